//! `report.html`: one file that explains a run to a person, with nothing fetched from anywhere and no script.

mod compared;
mod data;
mod figures;
mod html;
mod page;
mod svg;
#[cfg(test)]
mod tests;

pub use data::*;
pub use page::render;

/// A figure in its unit, as the report prints it.
#[must_use]
pub fn figure(x: f64, unit: FigureUnit) -> String {
    figures::figure(x, unit)
}
