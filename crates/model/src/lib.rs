//! The network: one differentiable transformer, driven by a blueprint of mechanisms that a family file fills from a config.
//!
//! * `net/` the mechanisms: attention, MLP, norms, positions, embeddings, heads. It names no family and reads no config.
//! * `family/` one data file a family: config → `Blueprint`, and the names of its tensors. It computes nothing.
//! * `Blueprint::slots` is the one list of parameters that loading, counting, initialising, surgery and saving follow; `LayerDims` the
//!   only truth about counts, which differ between layers.
//! * `site` says which slices belong to a unit; `surgery` takes them out together, or not at all.
//! * `header`, `checkpoint/`: files are judged before they are used; every complaint names file, place, what was found and what was expected.
//!
//! Not here: recipe text, the hub, criteria, printing.

pub mod adapter;
mod batch;
mod blockwise;
mod blueprint;
mod checkpoint;
pub mod cost;
mod dims;
mod error;
mod family;
mod gates;
pub mod header;
mod init;
pub mod int8;
mod loss;
mod modules;
mod net;
mod params;
pub mod site;
mod surgery;
mod tensors;
mod transformer;

pub use adapter::AdapterPart;
pub use batch::{Batch, IGNORED, Labels};
pub use blockwise::Kept;
pub use blueprint::*;
pub use checkpoint::{
    Facts, FileMatrix, FilePart, LoadOptions, checkpoint_parts, file_matrices, file_parts, file_shape, from_file_tensors, init,
    int8_tensors, load, to_checkpoint, to_file_tensors,
};
pub use dims::LayerDims;
pub use error::{ModelError, Result};
pub use family::{FAMILIES, Family, OWN_KEY};
pub use gates::{Gates, LayerGates, Point, Tap};
pub use loss::{LossOut, ScoredTokens};
pub use modules::{StockModules, stock_modules};
pub use net::{Cache, Context, Shortcuts};
pub use params::{Params, layer_prefix};
pub use site::{SiteKind, Slice};
pub use tensors::{Shelf, Tensors};
pub use transformer::{Blocked, Origin, Transformer};
