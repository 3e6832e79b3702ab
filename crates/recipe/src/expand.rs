//! A selector against a model's facts: which units of which layers it names.

use crate::diagnostic::Diagnostic;
use crate::facts::{Facts, Site};
use crate::plan::{Selector, Span};

/// The sites that a selector names, by kind, then layer, units ascending, each unit once.
///
/// # Errors
/// `P0205` when an index lies outside, `P0206` when nothing is selected; both name the nearest legal thing.
pub fn expand(selector: &Selector, facts: &Facts) -> Result<Vec<Site>, Diagnostic> {
    let _ = (selector, facts);
    Err(Diagnostic::error("P0206", "the selector matches nothing", Span::default(), ""))
}
