//! Checkpoints: names ↔ slots, safe reading, writing back.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::blueprint::{Blueprint, Task};
use crate::dims::LayerDims;
use crate::error::{ModelError, Result};
use crate::transformer::Transformer;

/// How to load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The type to compute in.
    pub dtype: DType,
    /// Where to.
    pub device: Device,
    /// What for. None: as the config's `architectures` says.
    pub task: Option<Task>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { dtype: DType::F32, device: Device::Cpu, task: None }
    }
}

/// What config and safetensors headers say of a model, no weight read.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The mechanisms.
    pub blueprint: Blueprint,
    /// The shape of each layer.
    pub dims: Vec<LayerDims>,
    /// The config's `model_type`.
    pub model_type: String,
    /// What it would be loaded for.
    pub task: Task,
    /// `config.json`.
    pub config: serde_json::Value,
    /// Scalars that the network has.
    pub parameters: u64,
    /// The type of most tensors on disk.
    pub stored_dtype: DType,
    /// Bytes of the weight files, as their headers say.
    pub file_bytes: u64,
    /// Whether the token head shares the embedding's matrix.
    pub tied: bool,
    /// Tensors of the files that the network does not use.
    pub unused: Vec<String>,
}

impl Facts {
    /// Reads `config.json` and the headers of the safetensors files in a folder. Works where the files' data section is absent.
    pub fn read(dir: &Path, task: Option<Task>) -> Result<Self> {
        let _ = (dir, task);
        Err(ModelError::Mismatch { what: "Facts::read".into(), found: "a skeleton".into(), expected: "an implementation".into() })
    }
}

/// Loads a model from a folder with `config.json` and `model.safetensors` (or shards and an index).
pub fn load(dir: &Path, options: &LoadOptions) -> Result<Transformer> {
    let _ = (dir, options);
    Err(ModelError::Mismatch { what: "load".into(), found: "a skeleton".into(), expected: "an implementation".into() })
}

/// The config and the tensors under their file names: fused and transposed as the family's own files are. Tied tensors are left out.
pub fn to_checkpoint(model: &Transformer) -> Result<(serde_json::Value, BTreeMap<String, Tensor>)> {
    let _ = model;
    Err(ModelError::Mismatch { what: "to_checkpoint".into(), found: "a skeleton".into(), expected: "an implementation".into() })
}

/// A model with random weights in the shapes of a config (`init("config.json", seed = …)`): matrices and embeddings normal with the
/// config's `initializer_range`, biases 0, norms 1. The same seed gives the same bits on every machine.
pub fn init(config: &Path, seed: u64, options: &LoadOptions) -> Result<Transformer> {
    let _ = (config, seed, options);
    Err(ModelError::Mismatch { what: "init".into(), found: "a skeleton".into(), expected: "an implementation".into() })
}
