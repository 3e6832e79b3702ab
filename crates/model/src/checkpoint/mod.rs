//! Checkpoints: names ↔ slots, reading a folder, writing back.

mod files;
mod matrix;
mod sentence;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::blueprint::{Blueprint, Head, Slot, Task};
use crate::dims::LayerDims;
use crate::error::{ModelError, Result};
use crate::family::names::FileTensor;
use crate::family::{self, FAMILIES, Family, Resolved};
use crate::int8::Int8;
use crate::params::Params;
use crate::tensors::{Away, Shelf, Tensors};
use crate::transformer::{Blocked, Origin, Transformer};
use files::{Files, read_json};

pub use matrix::FileMatrix;

/// Seed of a head that the files lack.
const HEAD_SEED: u64 = 0;

/// How to load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The type to compute in.
    pub dtype: DType,
    /// Where to.
    pub device: Device,
    /// What for. None: as the config's `architectures` says.
    pub task: Option<Task>,
    /// Classes of the head, where the config is not to say.
    pub labels: Option<usize>,
    /// A classifier or span head that the files lack is drawn at random ([`Facts::fresh`] names it) instead of being an error.
    pub fresh_head: bool,
    /// The weights stay in their files until they are asked for, and what changes them is put away here. None: all of them in memory.
    pub shelf: Option<Arc<Shelf>>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { dtype: DType::F32, device: Device::Cpu, task: None, labels: None, fresh_head: false, shelf: None }
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
    /// The family's name: its row of `FAMILIES`.
    pub family: &'static str,
    /// What it would be loaded for.
    pub task: Task,
    /// `config.json`.
    pub config: serde_json::Value,
    /// Scalars that the network has; a tied head counts once.
    pub parameters: u64,
    /// The type of most scalars on disk.
    pub stored_dtype: DType,
    /// Bytes of the weight files, as their headers say.
    pub file_bytes: u64,
    /// Whether the token head shares the embedding's matrix.
    pub tied: bool,
    /// Tensors of the files that the network does not use.
    pub unused: Vec<String>,
    /// Tensors of the head that the files lack: drawn at random when the model is loaded.
    pub fresh: Vec<String>,
}

/// A folder whose config and headers are read and agree.
struct Opened {
    resolved: Resolved,
    config: serde_json::Value,
    files: Files,
    /// Each tensor that the network needs, under the name that it has in these files.
    tensors: Vec<(String, FileTensor)>,
    /// Those of the head that they lack and that may be drawn at random.
    fresh: Vec<FileTensor>,
}

/// A config with another number of classes; their names go, if they are not so many.
fn with_labels(mut config: serde_json::Value, labels: Option<usize>) -> serde_json::Value {
    let (Some(labels), Some(fields)) = (labels, config.as_object_mut()) else { return config };
    let named = fields.get("id2label").and_then(|names| names.as_object()).map(serde_json::Map::len);
    if named != Some(labels) {
        fields.remove("id2label");
        fields.remove("label2id");
    }
    fields.insert("num_labels".to_owned(), labels.into());
    config
}

/// Whether a tensor belongs to a head that is trained for a task, and not to the network below it.
fn of_task_head(tensor: &FileTensor, task: Task) -> bool {
    let head = |slot: &str| slot.starts_with("classifier.") || slot.starts_with("pooler.");
    matches!(task, Task::Classification | Task::QuestionAnswering) && tensor.parts.iter().all(|slot| head(&slot.name))
}

impl Opened {
    fn read(dir: &Path, options: &LoadOptions, data: bool) -> Result<Self> {
        let task = options.task;
        let path = dir.join("config.json");
        let config = with_labels(read_json(&path)?, options.labels);
        // The config is judged before the weights: its complaint says more than a missing file.
        family::resolve(&path, &config, task, &|_| false)?;
        let files = Files::open(dir, data)?;
        let mut resolved = family::resolve(&path, &config, task, &|name| files.has_suffix(name))?;
        if let Head::Encode { pooling, .. } = &mut resolved.blueprint.head
            && let Some(stated) = sentence::pooling(dir)?
        {
            *pooling = stated;
        }
        let names = (resolved.family.names)(&resolved.blueprint);
        let (mut tensors, mut fresh) = (Vec::new(), Vec::new());
        for tensor in names.file_tensors(&resolved.blueprint, &resolved.dims)? {
            let Some(name) = find(&files, names.prefix, &tensor.name) else {
                if options.fresh_head && of_task_head(&tensor, resolved.task) {
                    fresh.push(tensor);
                    continue;
                }
                return Err(ModelError::MissingTensor {
                    path: dir.to_owned(),
                    tensor: tensor.name.clone(),
                    expected: format!("{:?}", tensor.shape()),
                    task: resolved.task.to_string(),
                });
            };
            let other = files.entry(&name).is_some_and(|(_, entry)| entry.shape != tensor.shape());
            if other && options.fresh_head && options.labels.is_some() && of_task_head(&tensor, resolved.task) {
                fresh.push(tensor);
                continue;
            }
            let int8 = files.entry(&name).is_some_and(|(_, entry)| entry.dtype == "I8");
            let tensor = if int8 { tensor.upright() } else { tensor };
            check_entry(&files, &name, &tensor)?;
            tensors.push((name, tensor));
        }
        Ok(Self { resolved, config, files, tensors, fresh })
    }

    fn stored_dtype(&self) -> DType {
        let mut scalars: BTreeMap<&str, (u64, DType)> = BTreeMap::new();
        for (name, _) in &self.tensors {
            if let Some((_, entry)) = self.files.entry(name)
                && let Some(dtype) = entry.float()
            {
                scalars.entry(entry.dtype.as_str()).or_insert((0, dtype)).0 += entry.elements();
            }
        }
        scalars.values().max_by_key(|(n, _)| *n).map_or(DType::F32, |(_, dtype)| *dtype)
    }
}

/// The name under which the files have a tensor: as the family writes it, without the base model's prefix, or in BERT's first spelling.
fn find(files: &Files, prefix: &str, name: &str) -> Option<String> {
    let base = name.strip_prefix(prefix).unwrap_or(name);
    [name, base].into_iter().find_map(|name| {
        let old = name
            .strip_suffix(".weight")
            .map(|stem| format!("{stem}.gamma"))
            .or_else(|| name.strip_suffix(".bias").map(|stem| format!("{stem}.beta")));
        std::iter::once(name.to_owned()).chain(old).find(|name| files.entry(name).is_some())
    })
}

fn check_entry(files: &Files, name: &str, tensor: &FileTensor) -> Result<()> {
    let Some((path, entry)) = files.entry(name) else { return Ok(()) };
    let expected = tensor.shape();
    if entry.dtype == "I8" && entry.shape == expected && files.scales(name).is_some_and(|e| e.shape.first() == expected.first()) {
        return Ok(());
    }
    if entry.float().is_some() && entry.shape == expected {
        return Ok(());
    }
    Err(ModelError::TensorMismatch {
        path: path.to_owned(),
        tensor: name.to_owned(),
        found: format!("{} {:?}", entry.dtype, entry.shape),
        expected: format!("F32, F16, BF16 or F64 {expected:?}"),
    })
}

impl Facts {
    /// As [`file_matrices`] of the model that would be loaded.
    pub fn matrices(&self) -> Result<Vec<(String, Vec<String>)>> {
        let family = FAMILIES.iter().find(|f| f.name == self.family);
        let named = family.map(|f| names_and_tensors(f, &self.blueprint, &self.dims, self.task)).transpose()?;
        Ok(matrices(named.unwrap_or_default()))
    }

    /// Reads `config.json` and the headers of the safetensors files in a folder. Works where the files' data section is absent.
    pub fn read(dir: &Path, task: Option<Task>) -> Result<Self> {
        Self::read_for(dir, &LoadOptions { task, ..LoadOptions::default() })
    }

    /// The same of what `load` would make with these options.
    pub fn read_for(dir: &Path, options: &LoadOptions) -> Result<Self> {
        let opened = Opened::read(dir, options, false)?;
        let stored_dtype = opened.stored_dtype();
        let mut used: BTreeSet<String> = opened.tensors.iter().map(|(name, _)| name.clone()).collect();
        for (name, _) in &opened.tensors {
            used.extend(files::beside_int8(name));
        }
        let unused = opened.files.names().filter(|name| !used.contains(*name)).map(str::to_owned).collect();
        let file_bytes = opened.files.bytes();
        let Opened { resolved, config, fresh, .. } = opened;
        Ok(Self {
            fresh: fresh.into_iter().map(|t| t.name).collect(),
            parameters: resolved.blueprint.parameter_count(&resolved.dims),
            tied: matches!(resolved.blueprint.head, Head::Tokens { tied: true, .. }),
            blueprint: resolved.blueprint,
            dims: resolved.dims,
            model_type: resolved.model_type,
            family: resolved.family.name,
            task: resolved.task,
            config,
            stored_dtype,
            file_bytes,
            unused,
        })
    }

    /// The same of a config alone (`init("config.json", …)`): no file, so no bytes.
    pub fn of_config(path: &Path, task: Option<Task>) -> Result<Self> {
        Self::of_config_for(path, &LoadOptions { task, ..LoadOptions::default() })
    }

    /// The same of what `init` would make with these options.
    pub fn of_config_for(path: &Path, options: &LoadOptions) -> Result<Self> {
        let task = options.task;
        let config = with_labels(read_json(path)?, options.labels);
        let resolved = family::resolve(path, &config, task, &|_| false)?;
        Ok(Self {
            parameters: resolved.blueprint.parameter_count(&resolved.dims),
            tied: matches!(resolved.blueprint.head, Head::Tokens { tied: true, .. }),
            blueprint: resolved.blueprint,
            dims: resolved.dims,
            model_type: resolved.model_type,
            family: resolved.family.name,
            task: resolved.task,
            config,
            stored_dtype: DType::F32,
            file_bytes: 0,
            unused: Vec::new(),
            fresh: Vec::new(),
        })
    }
}

/// A slot of a folder's files.
#[derive(Debug)]
struct InFiles {
    files: Arc<Files>,
    name: String,
    tensor: FileTensor,
    part: usize,
    dtype: DType,
    device: Device,
}

impl Away for InFiles {
    fn shape(&self) -> &[usize] {
        self.tensor.parts.get(self.part).map(|slot| slot.shape.as_slice()).unwrap_or_default()
    }

    fn read(&self) -> Result<Tensor> {
        let missing = || ModelError::MissingSlot { slot: self.name.clone() };
        let value = self.files.tensor(&self.name, self.dtype, &self.device)?.ok_or_else(missing)?;
        let part = self.tensor.split(&value)?.into_iter().nth(self.part).ok_or_else(missing)?;
        // A part of a fused tensor must not hold all of it in memory.
        Ok(if self.tensor.parts.len() > 1 { part.force_contiguous()? } else { part })
    }
}

/// Loads a model from a folder with `config.json` and `model.safetensors` (or shards and an index).
///
/// # Errors
/// The folder is no model that this network can be, a tensor is missing, misshapen or not finite.
pub fn load(dir: &Path, options: &LoadOptions) -> Result<Transformer> {
    let opened = Opened::read(dir, options, true)?;
    let stored_dtype = opened.stored_dtype();
    let Opened { resolved, config, fresh, files, tensors } = opened;
    let files = Arc::new(files);
    let mut params = Params::from(Tensors::on(options.shelf.clone()));
    for (name, tensor) in tensors {
        // What is streamed is looked at here all the same: a value that is not finite is told when a model is opened.
        let Some(value) = files.tensor(&name, options.dtype, &options.device)? else {
            return Err(ModelError::MissingSlot { slot: name });
        };
        if options.shelf.is_none() {
            for (slot, part) in tensor.parts.iter().zip(tensor.split(&value)?) {
                params.set(slot.name.clone(), part);
            }
            continue;
        }
        for (part, slot) in tensor.parts.iter().enumerate() {
            let (files, name, dtype, device) = (files.clone(), name.clone(), options.dtype, options.device.clone());
            let away = InFiles { files, name, tensor: tensor.clone(), part, dtype, device };
            params.tensors_mut().insert_away(slot.name.clone(), Arc::new(away));
        }
    }
    for slot in fresh.iter().flat_map(|t| &t.parts) {
        params.set(slot.name.clone(), crate::init::slot(&resolved.blueprint, &resolved.dims, &config, &slot.name, HEAD_SEED, options)?);
    }
    Ok(assemble(resolved, config, params, stored_dtype, options))
}

pub(crate) fn assemble(
    resolved: Resolved,
    config: serde_json::Value,
    params: Params,
    stored_dtype: DType,
    options: &LoadOptions,
) -> Transformer {
    Transformer {
        blocked: Blocked::default(),
        int8: int8_of(&config),
        blueprint: Arc::new(resolved.blueprint),
        dims: resolved.dims,
        params,
        origin: Arc::new(Origin { config, model_type: resolved.model_type, family: resolved.family, task: resolved.task, stored_dtype }),
        device: options.device.clone(),
        dtype: options.dtype,
        blockwise: None,
    }
}

/// `quantization_config` of a model whose matrices are stored as int8.
const QUANTISED: &str = "quantization_config";
/// Linear modules of transformers that are never int8 here: heads, poolers and routers.
const SKIPPED: &[&str] = &["lm_head", "classifier", "score", "pooler", "cls", "qa_outputs", "router", "block_sparse_moe.gate", "mlp.gate"];

/// Beside shapes of our own: the outlier threshold of a model of int8 whose files hold 16-bit matrices, which others read as they are.
const HALF: &str = "int8_threshold";

/// How a config says that the model multiplies by int8: matrices in bitsandbytes' layout, or 16-bit ones under a key of our own.
pub(crate) fn int8_of(config: &serde_json::Value) -> Option<Int8> {
    if let Some(threshold) = config.get(family::OWN_KEY).and_then(|own| own.get(HALF)).and_then(serde_json::Value::as_f64) {
        return Some(Int8 { threshold, half: true });
    }
    let own = config.get(QUANTISED)?;
    let ours = own.get("quant_method")?.as_str()? == "bitsandbytes" && own.get("load_in_8bit")?.as_bool()?;
    let threshold = own.get("llm_int8_threshold").and_then(serde_json::Value::as_f64).unwrap_or(6.0);
    ours.then_some(Int8 { threshold, half: false })
}

/// Names of the file tensors that hold int8 values.
pub fn int8_tensors(model: &Transformer) -> Result<BTreeSet<String>> {
    let linears = int8_slots(model)?;
    Ok(named_tensors(model)?.into_iter().filter(|(_, t)| is_int8(t, &linears)).map(|(name, _)| name).collect())
}

/// Slots of int8 matrices.
fn int8_slots(model: &Transformer) -> Result<BTreeSet<String>> {
    let mut out = BTreeSet::new();
    if model.int8().is_some_and(|how| !how.half) {
        for layer in 0..model.n_layers() {
            out.extend(model.linears(layer)?);
        }
    }
    Ok(out)
}

fn is_int8(tensor: &FileTensor, slots: &BTreeSet<String>) -> bool {
    !tensor.parts.is_empty() && tensor.parts.iter().all(|s| slots.contains(&s.name))
}

/// A tensor of a model's files as it would be written, put together when it is read.
#[derive(Debug)]
pub struct FilePart<'t> {
    /// Its name in the file.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<usize>,
    tensors: &'t Tensors,
    how: Part,
}

/// How a tensor of a file is put together.
#[derive(Debug)]
enum Part {
    /// Of all its slots.
    Whole(FileTensor),
    /// Of the only one that there is.
    Alone(FileTensor, String),
    /// As it is.
    Plain,
}

impl<'t> FilePart<'t> {
    /// Tensors that are written as they are, under their own names.
    pub fn plain(tensors: &'t Tensors) -> Vec<Self> {
        let part =
            |name: &String| Self { name: name.clone(), shape: tensors.shape(name).unwrap_or_default().to_vec(), tensors, how: Part::Plain };
        tensors.keys().map(part).collect()
    }

    /// Gives its room on a shelf back: it can't be read any more.
    pub fn release(&self) {
        match &self.how {
            Part::Plain => self.tensors.release(&self.name),
            Part::Alone(_, slot) => self.tensors.release(slot),
            Part::Whole(tensor) => tensor.parts.iter().for_each(|slot| self.tensors.release(&slot.name)),
        }
    }

    /// The tensor, contiguous.
    ///
    /// # Errors
    /// A part of it is not there, or can't be read.
    pub fn read(&self) -> Result<Tensor> {
        let one = |slot: &str| self.tensors.read(slot)?.ok_or_else(|| ModelError::MissingSlot { slot: slot.to_owned() });
        match &self.how {
            Part::Plain => Ok(one(&self.name)?.contiguous()?),
            Part::Alone(tensor, slot) => Ok(tensor.turn(&one(slot)?)?.contiguous()?),
            Part::Whole(tensor) => {
                let parts = tensor.parts.iter().map(|slot| one(&slot.name)).collect::<Result<Vec<_>>>()?;
                Ok(tensor.join(&parts)?.contiguous()?)
            }
        }
    }
}

/// The config and the tensors under their file names: fused and transposed as the family's own files are. Tied tensors are left out.
///
/// Where the counts of layers differ, or a stock field can't say them, the config has per-layer arrays under `"prunectl"`, which `load` reads.
pub fn checkpoint_parts(model: &Transformer) -> Result<(serde_json::Value, Vec<FilePart<'_>>)> {
    let adapted = model.adapted();
    if !adapted.is_empty() {
        return Err(ModelError::Mismatch {
            what: "parameters to be written".into(),
            found: format!("adapters on {} matrices", adapted.len()),
            expected: "none: `fuse` them into the model first, or save them alone".into(),
        });
    }
    let origin = &model.origin;
    let mut config = family::write_config(origin.family, &origin.config, origin.task, &model.blueprint, &model.dims)?;
    if let (Some(Int8 { threshold, half: true }), Some(fields)) = (model.int8(), config.as_object_mut())
        && let Some(own) = fields.entry(family::OWN_KEY).or_insert_with(|| serde_json::json!({})).as_object_mut()
    {
        own.insert(HALF.to_owned(), threshold.into());
    }
    if let (Some(Int8 { threshold, half: false }), Some(fields)) = (model.int8(), config.as_object_mut()) {
        let own = serde_json::json!({
            "quant_method": "bitsandbytes",
            "load_in_8bit": true,
            "llm_int8_threshold": threshold,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": SKIPPED,
        });
        fields.insert(QUANTISED.to_owned(), own);
    }
    let tensors = model.params.tensors();
    let mut parts: Vec<FilePart<'_>> = named_tensors(model)?
        .into_iter()
        .map(|(name, tensor)| FilePart { name, shape: tensor.shape(), tensors, how: Part::Whole(tensor) })
        .collect();
    parts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((config, parts))
}

/// The same with every tensor in memory.
///
/// # Errors
/// As [`checkpoint_parts`]; a tensor can't be read.
pub fn to_checkpoint(model: &Transformer) -> Result<(serde_json::Value, BTreeMap<String, Tensor>)> {
    let (config, parts) = checkpoint_parts(model)?;
    let tensors = parts.into_iter().map(|part| Ok((part.name.clone(), part.read()?))).collect::<Result<_>>()?;
    Ok((config, tensors))
}

/// Matrices of slots (scores, keep masks) as the family's files hold their weights: under the tensor's name in the file, fused and transposed.
/// Where only some parts of a fused tensor are given, each stands alone as `NAME[q]`.
///
/// # Errors
/// A slot that the model does not have.
pub fn file_parts<'t>(model: &Transformer, by_slot: &'t Tensors) -> Result<Vec<FilePart<'t>>> {
    let mut out = Vec::new();
    let mut placed = 0;
    for (name, tensor) in named_tensors(model)? {
        let given: Vec<Slot> = tensor.parts.iter().filter(|slot| by_slot.contains_key(&slot.name)).cloned().collect();
        placed += given.len();
        if given.len() == tensor.parts.len() {
            // Their own shapes: scores may be of blocks.
            let mut shape = given.first().and_then(|slot| by_slot.shape(&slot.name)).unwrap_or_default().to_vec();
            if let Some(rows) = shape.first_mut() {
                *rows = given.iter().filter_map(|slot| by_slot.shape(&slot.name)?.first()).sum();
            }
            let shape = tensor.turned(&shape);
            out.push(FilePart { name, shape, tensors: by_slot, how: Part::Whole(tensor) });
            continue;
        }
        for slot in given {
            let shape = tensor.turned(by_slot.shape(&slot.name).unwrap_or_default());
            let name = part_name(&name, &slot.name);
            out.push(FilePart { name, shape, tensors: by_slot, how: Part::Alone(tensor.clone(), slot.name) });
        }
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    if placed == by_slot.len() {
        return Ok(out);
    }
    Err(ModelError::Mismatch {
        what: "matrices to be named as in the model's files".into(),
        found: format!("{} of {} that the model has: {}", placed, by_slot.len(), by_slot.keys().cloned().collect::<Vec<_>>().join(", ")),
        expected: "slots of this model".into(),
    })
}

/// The same with every tensor in memory.
///
/// # Errors
/// As [`file_parts`]; a tensor can't be read.
pub fn to_file_tensors(model: &Transformer, by_slot: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let by_slot = by_slot.clone().into();
    file_parts(model, &by_slot)?.into_iter().map(|part| Ok((part.name.clone(), part.read()?))).collect()
}

/// The inverse of [`to_file_tensors`].
///
/// # Errors
/// A name that the model's files do not have, or another shape than theirs.
pub fn from_file_tensors(model: &Transformer, by_name: impl IntoIterator<Item = (String, Tensor)>) -> Result<BTreeMap<String, Tensor>> {
    let mut slots = BTreeMap::new();
    for (name, tensor) in named_tensors(model)? {
        for slot in &tensor.parts {
            slots.insert(part_name(&name, &slot.name), (tensor.clone(), Some(slot.clone())));
        }
        slots.insert(name, (tensor, None));
    }
    let mut out = BTreeMap::new();
    for (name, found) in by_name {
        let mismatch = |found: String, expected: String| ModelError::Mismatch { what: format!("matrix `{name}`"), found, expected };
        let (tensor, part) =
            slots.get(&name).ok_or_else(|| mismatch("no such tensor in the model's files".into(), "a tensor of this model".into()))?;
        let expected = match part {
            None => tensor.shape(),
            Some(slot) => tensor.turned(&slot.shape),
        };
        if found.dims() != expected.as_slice() {
            return Err(mismatch(format!("{:?}", found.dims()), format!("{expected:?}")));
        }
        match part {
            Some(slot) => {
                out.insert(slot.name.clone(), tensor.turn(&found)?);
            }
            None => out.extend(tensor.parts.iter().map(|s| s.name.clone()).zip(tensor.split(&found)?)),
        }
    }
    Ok(out)
}

/// Rows and columns of a matrix under the name that [`to_file_tensors`] gives it.
pub fn file_shape(model: &Transformer, name: &str) -> Option<(usize, usize)> {
    let tensors = named_tensors(model).ok()?;
    let shape = tensors.iter().find_map(|(file, tensor)| {
        if file == name {
            return Some(tensor.shape());
        }
        tensor.parts.iter().find(|slot| part_name(file, &slot.name) == name).map(|slot| tensor.turned(&slot.shape))
    })?;
    match shape.as_slice() {
        [rows, columns] => Some((*rows, *columns)),
        _ => None,
    }
}

/// The file's tensors with their names, as [`to_checkpoint`] writes them.
fn named_tensors(model: &Transformer) -> Result<Vec<(String, FileTensor)>> {
    let int8 = int8_slots(model)?;
    let named = names_and_tensors(model.origin.family, &model.blueprint, &model.dims, model.origin.task)?;
    let upright = |tensor: FileTensor| if is_int8(&tensor, &int8) { tensor.upright() } else { tensor };
    Ok(named.into_iter().map(|(name, tensor)| (name, upright(tensor))).collect())
}

fn names_and_tensors(family: &Family, blueprint: &Blueprint, dims: &[LayerDims], task: Task) -> Result<Vec<(String, FileTensor)>> {
    let names = (family.names)(blueprint);
    let tensors = names.file_tensors(blueprint, dims)?.into_iter().map(|tensor| {
        let bare = if task == Task::Encoder { tensor.name.strip_prefix(names.prefix) } else { None };
        (bare.unwrap_or(&tensor.name).to_owned(), tensor)
    });
    Ok(tensors.collect())
}

/// Matrices under the names of the files that hold them, each with the slots of the network that it is. A part of a fused tensor also
/// stands alone, as `NAME[q]`.
fn matrices(named: Vec<(String, FileTensor)>) -> Vec<(String, Vec<String>)> {
    let mut out = Vec::new();
    for (name, tensor) in named {
        let parts: Vec<&str> = tensor.parts.iter().filter(|slot| slot.shape.len() == 2).map(|slot| slot.name.as_str()).collect();
        if parts.len() > 1 {
            out.extend(parts.iter().map(|slot| (part_name(&name, slot), vec![(*slot).to_owned()])));
        }
        if !parts.is_empty() {
            out.push((name, parts.into_iter().map(str::to_owned).collect()));
        }
    }
    out
}

/// The model's matrices under the names of its files, each with its slots; parts of fused ones also alone, as `NAME[q]`.
pub fn file_matrices(model: &Transformer) -> Result<Vec<(String, Vec<String>)>> {
    Ok(matrices(named_tensors(model)?))
}

/// The name of one part of a fused tensor: `h.0.attn.c_attn.weight[q]`.
fn part_name(file: &str, slot: &str) -> String {
    let part = slot.rsplit('.').nth(1).unwrap_or(slot);
    format!("{file}[{part}]")
}

/// A model with random weights in the shapes of a config (`init("config.json", seed = …)`).
pub fn init(config: &Path, seed: u64, options: &LoadOptions) -> Result<Transformer> {
    let value = with_labels(read_json(config)?, options.labels);
    let resolved = family::resolve(config, &value, options.task, &|_| false)?;
    let params = crate::init::parameters(&resolved.blueprint, &resolved.dims, &value, seed, options)?;
    Ok(assemble(resolved, value, params, DType::F32, options))
}
