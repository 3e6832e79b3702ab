//! The network: one differentiable transformer, driven by a blueprint of mechanisms that a family file fills from a config.
//!
//! Not here: recipe text, the hub, criteria.

mod batch;
mod blueprint;
mod checkpoint;
pub mod cost;
mod dims;
mod error;
mod family;
mod gates;
pub mod header;
mod init;
mod loss;
mod net;
mod params;
pub mod site;
mod surgery;
mod transformer;

pub use batch::{Batch, IGNORED, Labels};
pub use blueprint::*;
pub use checkpoint::{Facts, LoadOptions, file_names, init, load, to_checkpoint};
pub use dims::LayerDims;
pub use error::{ModelError, Result};
pub use family::{FAMILIES, Family, OWN_KEY};
pub use gates::{Gates, LayerGates, Point, Tap};
pub use loss::{LossOut, ScoredTokens};
pub use net::Context;
pub use params::Params;
pub use site::{SiteKind, Slice};
pub use transformer::{Origin, Transformer};
