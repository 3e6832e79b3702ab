//! What is wrong with a recipe, as data: the terminal, JSON and an editor all draw from it.

use crate::plan::Span;

/// One mistake or warning.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Diagnostic {
    /// `P0207`; see `prunectl explain P0207`.
    pub code: &'static str,
    /// Error or warning.
    pub severity: Severity,
    /// What was found and what was expected.
    pub message: String,
    /// Where.
    pub span: Span,
    /// Short text at the span.
    pub label: String,
    /// Did-you-mean, corrected text, what to do.
    pub hints: Vec<String>,
    /// Text that replaces the span, where the correction is unambiguous.
    pub fix: Option<String>,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The recipe can't run.
    Error,
    /// It can, but look.
    Warning,
}
