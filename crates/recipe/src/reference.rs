//! The language reference, made from the hand-written chapters and the catalogue.

use crate::catalogue::Catalogue;

/// The whole reference as Markdown.
pub fn reference(catalogue: &Catalogue) -> String {
    catalogue.iter().map(method_page).collect::<Vec<_>>().join("\n")
}

/// The manual page of one method: `prunectl explain wanda`.
pub fn method_page(spec: &crate::catalogue::Spec) -> String {
    format!("### `{}`\n\n{}\n", spec.name, spec.doc)
}
