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

impl Diagnostic {
    /// An error without hints.
    pub fn error(code: &'static str, message: impl Into<String>, span: Span, label: impl Into<String>) -> Self {
        Self { code, severity: Severity::Error, message: message.into(), span, label: label.into(), hints: Vec::new(), fix: None }
    }

    /// A warning without hints.
    pub fn warning(code: &'static str, message: impl Into<String>, span: Span, label: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, message, span, label) }
    }

    /// Adds a line of help.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Gives the text that should stand there instead.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}
