//! Diagnostics for the terminal and for programs.

use annotate_snippets::{AnnotationKind, Level, Message, Origin, Renderer, Snippet};

use crate::diagnostic::{Diagnostic, Severity};
use crate::plan::Span;
use crate::source::Sources;

/// Lines longer than this are not drawn: the place is given in numbers.
const MAX_LINE_BYTES: usize = 2000;

/// Diagnostics as the terminal shows them, an empty line between; `colour` adds ANSI colours.
pub fn render(diagnostics: &[Diagnostic], sources: &Sources, colour: bool) -> String {
    let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
    let mut out = String::new();
    for d in diagnostics {
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&one(d, sources, &renderer));
        out.push('\n');
    }
    out
}

fn one(d: &Diagnostic, sources: &Sources, renderer: &Renderer) -> String {
    let level = match d.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let mut group = level.primary_title(d.message.as_str()).id(d.code).elements(Vec::<Message>::new());
    if let Some(file) = sources.get(d.span.file) {
        let (line, column) = file.line_col(d.span.start);
        let range = file.line_range(line);
        let text = file.text.get(range.clone()).unwrap_or("").trim_end_matches('\r');
        if text.len() > MAX_LINE_BYTES {
            group = group.element(Origin::path(file.name.as_str()).line(line as usize).char_column(column as usize));
            if !d.label.is_empty() {
                group = group.element(Level::NOTE.message(d.label.as_str()));
            }
        } else {
            // A span of several lines is shown by its first.
            // The renderer wants whole characters, and at least one where there is one.
            let floor = |i: usize| (0..=i.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
            let start = floor((d.span.start as usize).saturating_sub(range.start));
            let next = text.get(start..).and_then(|t| t.chars().next()).map_or(start, |c| start + c.len_utf8());
            let end = floor((d.span.end as usize).saturating_sub(range.start)).max(next);
            let label = (!d.label.is_empty()).then_some(d.label.as_str());
            let mark = AnnotationKind::Primary.span(start..end).label(label);
            group = group.element(Snippet::source(text).line_start(line as usize).path(file.name.as_str()).annotation(mark));
        }
    }
    for hint in &d.hints {
        group = group.element(Level::HELP.message(hint.as_str()));
    }
    // A fix that no words name yet.
    if let Some(fix) = d.fix.as_ref().filter(|f| !d.label.contains(f.as_str()) && !d.hints.iter().any(|h| h.contains(f.as_str()))) {
        return renderer.render(&[group.element(Level::HELP.message(format!("write `{fix}`")))]);
    }
    renderer.render(&[group])
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
