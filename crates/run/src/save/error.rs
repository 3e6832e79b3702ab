//! What can go wrong while saving.

use std::io;
use std::path::{Path, PathBuf};

/// What went wrong while saving; nothing is left behind in any of these cases.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The target belongs to somebody else.
    #[error("{} already holds {found}; save writes over nothing but a folder that the recipe `{recipe}` saved before. Move it away, or save to another name", .target.display())]
    Occupied {
        /// The target.
        target: PathBuf,
        /// What is there.
        found: String,
        /// The recipe that wants to write.
        recipe: String,
    },
    /// The target is `/`, `..` or empty.
    #[error("{} has no name of its own to save to; give a folder name, such as out/model", .target.display())]
    NoName {
        /// The target.
        target: PathBuf,
    },
    /// A file is in the way.
    #[error("{} is there already; export writes over nothing. Move it away, or give another name with --out", .target.display())]
    Exists {
        /// The target.
        target: PathBuf,
    },
    /// No room.
    #[error("no room on the disk: could not {doing} {}; free some space, or save to another disk", .path.display())]
    DiskFull {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Any other refusal of the system.
    #[error("could not {doing} {}: {source}", .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// `prune.json` can't be read.
    #[error("{} is no record of prunectl: {reason}", .path.display())]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The dtype can't be written.
    #[error("{found} can't be written as weights; choose f32, f16 or bf16")]
    Dtype {
        /// The dtype asked for.
        found: String,
    },
    /// A weight does not survive the dtype.
    #[error("`{tensor}` has {count} value(s) that are not finite as {dtype}; save it with dtype = f32 or bf16, or look for what made them")]
    NotFinite {
        /// The tensor's name in the file.
        tensor: String,
        /// How many values.
        count: usize,
        /// The dtype.
        dtype: String,
    },
    /// A padded layout that can't be built.
    #[error("layout = padded can't be written: {reason}")]
    Padding {
        /// Why.
        reason: String,
    },
    /// No architecture of llama.cpp computes what the model computes.
    #[error("llama.cpp can't run this model: {0}")]
    Inexpressible(#[from] crate::gguf::Inexpressible),
    /// vLLM's per-layer blocks can't say the shapes.
    #[error("vLLM's per-layer blocks can't say this model: {reason}; {remedy}")]
    Blocks {
        /// Why.
        reason: String,
        /// What would make it legal.
        remedy: String,
    },
    /// The reloaded model computes something else.
    #[error(
        "the saved folder does not compute what the model in memory computes: largest relative difference of the logits {found:.2e}, allowed {allowed:.0e} ({probe}); nothing was kept"
    )]
    Differs {
        /// max|a−b| / max|b|.
        found: f64,
        /// The tolerance.
        allowed: f64,
        /// The probe batch, in words.
        probe: String,
    },
    /// The folder does not load.
    #[error("the saved folder does not load again, so it was not kept: {reason}")]
    Reload {
        /// The model crate's message.
        reason: String,
    },
    /// A folder whose adapter can't be attached.
    #[error("the adapter in {} can't be attached: {reason}", .folder.display())]
    AdapterFolder {
        /// The folder.
        folder: PathBuf,
        /// Why, and what would do.
        reason: String,
    },
    /// An adapter that can't be written alone.
    #[error("the adapter can't stand alone: {reason}")]
    Adapter {
        /// Why.
        reason: String,
    },
    /// Tensor arithmetic.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// The network.
    #[error(transparent)]
    Model(#[from] prunectl_model::ModelError),
}

impl SaveError {
    /// Sorts out a full disk.
    pub fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        match crate::files::no_room(&source) {
            true => Self::DiskFull { doing, path: path.into() },
            false => Self::Io { doing, path: path.into(), source },
        }
    }

    /// The same error with the file's full place.
    #[must_use]
    pub fn at(self, shown: &Path) -> Self {
        match self {
            Self::Io { doing, source, .. } => Self::Io { doing, path: shown.into(), source },
            Self::DiskFull { doing, .. } => Self::DiskFull { doing, path: shown.into() },
            other => other,
        }
    }
}
