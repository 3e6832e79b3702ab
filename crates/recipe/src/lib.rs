//! Recipe text to a checked, typed [`plan::Plan`]. No files, no network, no tensors: what is needed of them comes in as arguments.

pub mod catalogue;
pub mod diagnostic;
pub mod plan;
