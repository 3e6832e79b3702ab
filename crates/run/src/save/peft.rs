//! Adapters alone, in a folder: `adapter_config.json` beside `adapter_model.safetensors`.
//!
//! Low-rank ones lie as the peft library has them, under the names of the model's modules. Where a family's files hold several projections
//! in one module (GPT-2's `c_attn`, Phi-3's `qkv_proj`), peft knows one update of the whole module: that of our parts is the same product
//! with their `A` below each other and their `B` on a diagonal, so its rank is the sum of theirs. It is taken apart again when it is read;
//! a full update of such a module, as peft trains it, becomes one of the same rank on each part. A classifier's head goes along, as peft's
//! `modules_to_save`. Prototypes (SPLoPA) peft does not know; they lie under the network's own names, for this program alone.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use prunectl_model::adapter::{PROTOTYPE_COLS, PROTOTYPE_ROWS, stem_of};
use prunectl_model::{AdapterPart, FileMatrix, Task, Transformer, from_file_tensors, to_file_tensors};
use serde_json::{Value, json};

use super::record::RECORD_FILE;
use super::{PruneRecord, SaveError, folder, weights};
use crate::executor::{from_bytes, to_bytes};

/// The weights of an adapter.
const TENSORS_FILE: &str = "adapter_model.safetensors";
const CONFIG_FILE: &str = "adapter_config.json";
/// What peft puts in front of a module's name.
const PREFIX: &str = "base_model.model.";
const ROWS: &str = ".lora_A.weight";
const COLS: &str = ".lora_B.weight";
/// What stands behind a stem in the names of an adapter of prototypes.
const POSITIONS: &str = ".adapter.";
/// `peft_type` of adapters of low rank, and of prototypes.
const LORA: &str = "LORA";
const SPLOPA: &str = "SPLOPA";

fn unfit(reason: impl Into<String>) -> SaveError {
    SaveError::Adapter { reason: reason.into() }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenAdapter {
    /// Bytes of its weights.
    pub bytes: u64,
    /// Who reads it.
    pub reader: &'static str,
    /// In words.
    pub says: String,
}

/// One part of a module that carries an adapter.
struct Part {
    stem: String,
    /// Its place among the module's slots.
    place: usize,
    rank: usize,
}

/// A part's stem, its rows and its columns.
type Own<'m> = (&'m str, Tensor, Tensor);

/// A module of the model's files with the parts of it that carry adapters.
struct Module {
    name: String,
    matrix: FileMatrix,
    parts: Vec<Part>,
}

impl Module {
    fn rank(&self) -> usize {
        self.parts.iter().map(|part| part.rank).sum()
    }

    /// The update of the whole module, `alpha / rank · cols · rows`: rows `[rank, in]`, cols `[out, rank]`, alpha.
    fn update(&self, model: &Transformer) -> Result<(Tensor, Tensor, f64), SaveError> {
        let whole = |tensor: &Tensor| -> Result<Tensor, SaveError> { Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?) };
        let part = |part: AdapterPart, stem: &str| -> Result<Tensor, SaveError> { whole(model.params().require(&part.slot(stem))?) };
        let scale = |stem: &str| match model.params().get(&AdapterPart::Scale.slot(stem)) {
            Some(scale) => scale.to_dtype(DType::F64)?.to_scalar::<f64>(),
            None => Ok(1.0),
        };
        let rank = self.rank();
        let scales = self.parts.iter().map(|part| scale(&part.stem)).collect::<candle_core::Result<Vec<f64>>>()?;
        let common = scales.iter().copied().find(|s| *s != 0.0).unwrap_or_default();
        let (mut rows, mut before) = (Vec::new(), 0);
        let mut cols: Vec<Tensor> =
            self.matrix.slots().map(|(_, n)| Tensor::zeros((n, rank), DType::F32, &Device::Cpu)).collect::<candle_core::Result<_>>()?;
        for (own, scale) in self.parts.iter().zip(&scales) {
            rows.push(part(AdapterPart::Rows, &own.stem)?);
            let mut values = part(AdapterPart::Cols, &own.stem)?;
            if *scale != common {
                values = (values * (scale / common))?;
            }
            if let Some(cols) = cols.get_mut(own.place) {
                *cols = values.pad_with_zeros(1, before, rank - before - own.rank)?;
            }
            before += own.rank;
        }
        let alpha = alpha(common, rank);
        Ok((Tensor::cat(&rows, 0)?.contiguous()?, self.matrix.join(&cols)?.contiguous()?, alpha))
    }

    /// Each part's own rows and columns of an update of the whole module; None where ranks do not fit.
    fn taken_apart(&self, rows: &Tensor, cols: &Tensor) -> Result<Option<Vec<Own<'_>>>, SaveError> {
        let found = rows.dim(0)?;
        let cols = self.matrix.split(cols)?;
        let (mut out, mut before) = (Vec::new(), 0);
        for part in &self.parts {
            let Some(cols) = cols.get(part.place) else { return Ok(None) };
            let from = if found == part.rank { 0 } else { before };
            before += part.rank;
            if found != part.rank && !(found == self.rank() && alone(cols, from, part.rank)?) {
                return Ok(None);
            }
            let own = (rows.narrow(0, from, part.rank)?.contiguous()?, cols.narrow(1, from, part.rank)?.contiguous()?);
            out.push((part.stem.as_str(), own.0, own.1));
        }
        Ok(Some(out))
    }

    /// A slot of the module that the update changes and that carries no adapter.
    fn left_out(&self, cols: &Tensor) -> Result<Option<&str>, SaveError> {
        let cols = self.matrix.split(cols)?;
        for (place, ((slot, _), cols)) in self.matrix.slots().zip(&cols).enumerate() {
            if self.parts.iter().all(|part| part.place != place) && !alone(cols, 0, 0)? {
                return Ok(Some(slot));
            }
        }
        Ok(None)
    }
}

/// Whether nothing stands outside those columns.
fn alone(cols: &Tensor, from: usize, rank: usize) -> candle_core::Result<bool> {
    let width = cols.dim(1)?;
    let outside = |start: usize, n: usize| -> candle_core::Result<f32> {
        if n == 0 { Ok(0.0) } else { cols.narrow(1, start, n)?.abs()?.sum_all()?.to_scalar::<f32>() }
    };
    Ok(outside(0, from)? == 0.0 && outside(from + rank, width.saturating_sub(from + rank))? == 0.0)
}

/// The alpha of a scale, which is in f32: round where that gives the same scale back.
fn alpha(scale: f64, rank: usize) -> f64 {
    let rank = rank as f64;
    let round = (scale * rank * ALPHA_DIGITS).round() / ALPHA_DIGITS;
    if (round / rank) as f32 == scale as f32 { round } else { scale * rank }
}

const ALPHA_DIGITS: f64 = 1e6;

/// The modules of these stems, which all carry adapters of low rank.
fn modules(model: &Transformer, stems: &BTreeSet<String>) -> Result<Vec<Module>, SaveError> {
    let (mut out, mut placed) = (Vec::new(), 0);
    for matrix in FileMatrix::all(model)? {
        let mut parts = Vec::new();
        for (place, (slot, _)) in matrix.slots().enumerate() {
            let stem = stem_of(slot);
            if stems.contains(stem) {
                let rank = model.params().require(&AdapterPart::Rows.slot(stem))?.dim(0)?;
                parts.push(Part { stem: stem.to_owned(), place, rank });
            }
        }
        placed += parts.len();
        if !parts.is_empty() {
            let name = matrix.name.strip_suffix(".weight").unwrap_or(&matrix.name).to_owned();
            out.push(Module { name, matrix, parts });
        }
    }
    if placed == stems.len() { Ok(out) } else { Err(unfit("a matrix that it stands beside has no name in this family's files")) }
}

/// Whether the stem's adapter is made of prototypes.
fn of_prototypes(model: &Transformer, stem: &str) -> bool {
    model.params().has(&AdapterPart::Positions.slot(stem))
}

/// The head that a task trains, under the names of the files.
fn head(model: &Transformer) -> Result<BTreeMap<String, Tensor>, SaveError> {
    if !matches!(model.origin().task, Task::Classification | Task::QuestionAnswering) {
        return Ok(BTreeMap::new());
    }
    let of_head = |slot: &&str| slot.starts_with("classifier.") || slot.starts_with("pooler.");
    let slots: Vec<String> = model.params().slots().filter(of_head).map(str::to_owned).collect();
    let mut head = BTreeMap::new();
    for slot in slots {
        let tensor = model.params().require(&slot)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        head.insert(slot, tensor);
    }
    Ok(to_file_tensors(model, &head)?)
}

/// Writes the folder.
///
/// # Errors
/// Prototypes beside adapters of low rank; a folder that belongs to somebody else.
pub fn write_adapter(
    model: &Transformer,
    stems: &BTreeSet<String>,
    target: &Path,
    record: &PruneRecord,
) -> Result<WrittenAdapter, SaveError> {
    folder::check_target(target, &record.run.recipe.name)?;
    let prototypes = stems.iter().filter(|stem| of_prototypes(model, stem)).count();
    let (config, tensors, reader, says) = match prototypes {
        0 => low_rank(model, stems)?,
        n if n == stems.len() => positions(model, stems)?,
        n => return Err(unfit(format!("{n} of its {} matrices carry prototypes, the others do not: fuse one kind before", stems.len()))),
    };
    let mut draft = folder::Draft::beside(target)?;
    draft.write_bytes(CONFIG_FILE, &weights::pretty(&config))?;
    let bytes = to_bytes(&tensors).map_err(|e| unfit(e.to_string()))?;
    let bytes = draft.write_bytes(TENSORS_FILE, &bytes)?;
    let json = serde_json::to_value(record).map_err(|e| SaveError::BadRecord { path: target.into(), reason: e.to_string() })?;
    draft.write_bytes(RECORD_FILE, &weights::pretty(&json))?;
    draft.publish()?;
    Ok(WrittenAdapter { bytes, reader, says })
}

type Laid = (Value, BTreeMap<String, Tensor>, &'static str, String);

fn low_rank(model: &Transformer, stems: &BTreeSet<String>) -> Result<Laid, SaveError> {
    let modules = modules(model, stems)?;
    let mut tensors = BTreeMap::new();
    let (mut ranks, mut alphas) = (serde_json::Map::new(), serde_json::Map::new());
    let mut first: Option<(usize, f64)> = None;
    for module in &modules {
        let (rows, cols, alpha) = module.update(model)?;
        let rank = module.rank();
        let common = *first.get_or_insert((rank, alpha));
        if rank != common.0 {
            ranks.insert(module.name.clone(), rank.into());
        }
        if alpha != common.1 {
            alphas.insert(module.name.clone(), alpha.into());
        }
        tensors.insert(format!("{PREFIX}{}{ROWS}", module.name), rows);
        tensors.insert(format!("{PREFIX}{}{COLS}", module.name), cols);
    }
    let head = head(model)?;
    let beside = |name: &String| name.rsplit_once('.').map_or(name.clone(), |(module, _)| module.to_owned());
    let trained: BTreeSet<String> = head.keys().map(beside).collect();
    tensors.extend(head.into_iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor)));
    let (rank, alpha) = first.unwrap_or_default();
    let config = json!({
        "peft_type": LORA,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": modules.iter().any(|m| m.matrix.turned),
        "inference_mode": true,
        "target_modules": modules.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(),
        "modules_to_save": if trained.is_empty() { Value::Null } else { json!(trained) },
        "base_model_name_or_path": Value::Null,
        "task_type": Value::Null,
    });
    let mut says = format!("{} matrices in {} modules, beside the model in the shape that it has here", stems.len(), modules.len());
    if let Some(fused) = modules.iter().find(|m| m.parts.len() > 1) {
        says += &format!("; `{}` takes its {} parts as one update of rank {}", fused.name, fused.parts.len(), fused.rank());
    }
    if !trained.is_empty() {
        says += "; the head goes along";
    }
    Ok((config, tensors, "peft", says))
}

/// The slots of adapters of prototypes.
fn position_slots(stems: &BTreeSet<String>) -> impl Iterator<Item = String> {
    let parts = [AdapterPart::Positions, AdapterPart::KeepRows, AdapterPart::KeepCols];
    let own = stems.iter().flat_map(move |stem| parts.map(|part| part.slot(stem)));
    own.chain([PROTOTYPE_COLS, PROTOTYPE_ROWS].map(str::to_owned))
}

fn positions(model: &Transformer, stems: &BTreeSet<String>) -> Result<Laid, SaveError> {
    let mut tensors = BTreeMap::new();
    for slot in position_slots(stems) {
        let tensor = model.params().require(&slot)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
        tensors.insert(slot, tensor);
    }
    let (n, p, rank) = model.params().require(PROTOTYPE_COLS)?.dims3()?;
    let q = model.params().require(PROTOTYPE_ROWS)?.dim(2)?;
    let head = head(model)?;
    let along = if head.is_empty() { "" } else { "; the head goes along" };
    tensors.extend(head.into_iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor)));
    let config = json!({"peft_type": SPLOPA, "prototypes": n, "shape": [p, q], "rank": rank});
    let says = format!("{} matrices; `attach splopa(…, from = …)` takes them, peft has no such adapter{along}", stems.len());
    Ok((config, tensors, "prunectl", says))
}

/// The files of an adapter's folder that are read.
pub fn adapter_files(folder: &Path) -> [PathBuf; 2] {
    [CONFIG_FILE, TENSORS_FILE].map(|name| folder.join(name))
}

/// Refuses a folder without them.
///
/// # Errors
/// One is not there.
pub fn check_adapter(folder: &Path) -> Result<(), SaveError> {
    let Some(missing) = adapter_files(folder).into_iter().find(|path| !path.is_file()) else { return Ok(()) };
    let name = missing.file_name().unwrap_or_default().display();
    let reason =
        format!("there is no {name}; expected a folder that `save … {{ format = peft }}` or peft wrote, named from the recipe's folder");
    Err(SaveError::AdapterFolder { folder: folder.into(), reason })
}

/// A folder that is to be attached.
struct Found<'f> {
    folder: &'f Path,
    config: Value,
    tensors: BTreeMap<String, Tensor>,
}

impl<'f> Found<'f> {
    fn open(folder: &'f Path) -> Result<Self, SaveError> {
        check_adapter(folder)?;
        let [config, tensors] = adapter_files(folder);
        let refused = |reason: String| SaveError::AdapterFolder { folder: folder.into(), reason };
        let text = std::fs::read(&config).map_err(|e| SaveError::io("read", &config, e))?;
        let json = serde_json::from_slice(&text).map_err(|e| refused(format!("{CONFIG_FILE} is no JSON: {e}")))?;
        let bytes = std::fs::read(&tensors).map_err(|e| SaveError::io("read", &tensors, e))?;
        let tensors = from_bytes(&bytes, &tensors).map_err(|e| refused(e.to_string()))?;
        Ok(Self { folder, config: json, tensors })
    }

    fn refused(&self, reason: impl Into<String>) -> SaveError {
        SaveError::AdapterFolder { folder: self.folder.into(), reason: reason.into() }
    }

    /// The scale of an update: alpha over its rank, or over the rank's root.
    fn scale(&self, module: &str, rank: usize) -> Result<f64, SaveError> {
        let mut alpha = self.config.get("lora_alpha").and_then(Value::as_f64);
        for (key, value) in self.config.get("alpha_pattern").and_then(Value::as_object).into_iter().flatten() {
            let plain = key.replace("\\.", ".");
            if plain.chars().any(|c| !(c.is_ascii_alphanumeric() || "._-".contains(c))) {
                return Err(self.refused(format!("`alpha_pattern` of {CONFIG_FILE} has the pattern `{key}`, expected names of modules")));
            }
            if module == plain || module.ends_with(&format!(".{plain}")) {
                alpha = value.as_f64();
            }
        }
        let alpha = alpha.ok_or_else(|| self.refused(format!("{CONFIG_FILE} has no `lora_alpha`")))?;
        let rooted = self.config.get("use_rslora").and_then(Value::as_bool).unwrap_or_default();
        let rank = rank.max(1) as f64;
        Ok(if rooted { alpha / rank.sqrt() } else { alpha / rank })
    }

    /// What is left of the file belongs to a head or a bias of the model, or to nothing that is known here. Names of what other matrices'
    /// adapters would take.
    fn put_others(mut self, model: &mut Transformer) -> Result<Vec<String>, SaveError> {
        let mut left = Vec::new();
        for (name, tensor) in std::mem::take(&mut self.tensors) {
            let own = name.strip_prefix(PREFIX).unwrap_or(&name).to_owned();
            if let Some(module) = own.strip_suffix(ROWS).or(own.strip_suffix(COLS)).or(own.split_once(POSITIONS).map(|(stem, _)| stem)) {
                left.push(module.to_owned());
                continue;
            }
            let slots = from_file_tensors(model, [(own.clone(), tensor)]).map_err(|e| {
                self.refused(format!("`{own}` in {TENSORS_FILE} is no part of a plain low-rank adapter of this model: {e}"))
            })?;
            for (slot, tensor) in slots {
                let tensor = tensor.to_device(model.device())?.to_dtype(model.dtype())?;
                model.params_mut().set(slot, tensor);
            }
        }
        left.sort();
        left.dedup();
        Ok(left)
    }
}

/// Gives the adapters of these stems, which are attached, the values of a folder that [`write_adapter`] or peft wrote. Returns what else has
/// an update there: another `attach` may take it.
///
/// # Errors
/// Files that are not there or not understood; a module without values; another rank or width; values that nothing here takes.
pub fn read_adapter(model: &mut Transformer, stems: &BTreeSet<String>, folder: &Path) -> Result<Vec<String>, SaveError> {
    let mut found = Found::open(folder)?;
    let kind = found.config.get("peft_type").and_then(Value::as_str).unwrap_or("none").to_owned();
    let wanted = if stems.iter().any(|stem| of_prototypes(model, stem)) { SPLOPA } else { LORA };
    if kind != wanted {
        let with = if wanted == LORA { "lora(…) or splora(…)" } else { "splopa(…)" };
        return Err(found.refused(format!("its `peft_type` is {kind}, expected {wanted} for {with}")));
    }
    match wanted {
        SPLOPA => read_positions(model, stems, &mut found)?,
        _ => read_low_rank(model, stems, &mut found)?,
    }
    found.put_others(model)
}

fn read_low_rank(model: &mut Transformer, stems: &BTreeSet<String>, found: &mut Found<'_>) -> Result<(), SaveError> {
    for module in modules(model, stems)? {
        let mut take = |end: &str| {
            let name = format!("{PREFIX}{}{end}", module.name);
            found.tensors.remove(&name).ok_or_else(|| {
                let has = found.tensors.keys().find(|n| n.ends_with(end)).map_or("no update".into(), |n| format!("updates such as `{n}`"));
                found.refused(format!("it has no `{name}`, but {has}: attach to the modules that it was made for"))
            })
        };
        let (rows, cols) = (take(ROWS)?, take(COLS)?);
        let slot = module.parts.first().map(|part| AdapterPart::Rows.slot(&part.stem)).unwrap_or_default();
        let columns = model.params().require(&slot)?.dim(1)?;
        let height: usize = module.matrix.slots().map(|(_, n)| n).sum();
        let (a, b) = (rows.dims(), cols.dims());
        let rank = a.first().copied().unwrap_or_default();
        if a != [rank, columns] || b != [height, rank] {
            return Err(found.refused(format!(
                "the update of `{}` is {a:?} and {b:?} there, expected [r, {columns}] and [{height}, r]: it was made beside a model of another shape",
                module.name
            )));
        }
        if let Some(slot) = module.left_out(&cols)? {
            return Err(found.refused(format!(
                "the update of `{}` changes `{slot}`, which the selector leaves out: attach to that as well",
                module.name
            )));
        }
        let Some(parts) = module.taken_apart(&rows, &cols)? else {
            let ranks: Vec<String> = module.parts.iter().map(|part| part.rank.to_string()).collect();
            return Err(found.refused(format!(
                "the update of `{}` has rank {rank} there, and rank {} is attached: attach with rank = {rank}",
                module.name,
                ranks.join(" + ")
            )));
        };
        let scale = found.scale(&module.name, rank)?;
        for (stem, rows, cols) in parts {
            for (part, tensor) in [(AdapterPart::Rows, rows), (AdapterPart::Cols, cols)] {
                let tensor = tensor.to_device(model.device())?.to_dtype(model.dtype())?;
                model.params_mut().set(part.slot(stem), tensor);
            }
            let scale = Tensor::new(scale, model.device())?.to_dtype(model.dtype())?;
            model.params_mut().set(AdapterPart::Scale.slot(stem), scale);
        }
    }
    Ok(())
}

fn read_positions(model: &mut Transformer, stems: &BTreeSet<String>, found: &mut Found<'_>) -> Result<(), SaveError> {
    let shared = model.adapted().iter().any(|stem| !stems.contains(stem) && of_prototypes(model, stem));
    for slot in position_slots(stems) {
        let own = model.params().require(&slot)?.clone();
        let there = found
            .tensors
            .remove(&slot)
            .ok_or_else(|| found.refused(format!("it has no `{slot}`: attach to the matrices that it was made for")))?;
        if there.dims() != own.dims() {
            let (a, b) = (there.dims(), own.dims());
            return Err(
                found.refused(format!("`{slot}` is {a:?} there, expected {b:?}: give `prototypes`, `shape` and `rank` as they were"))
            );
        }
        let there = there.to_device(model.device())?.to_dtype(model.dtype())?;
        let prototypes = slot == PROTOTYPE_COLS || slot == PROTOTYPE_ROWS;
        if prototypes && shared && there.ne(&own)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()? > 0.0 {
            return Err(found.refused("its prototypes are others than those that the model's adapters share: fuse these before"));
        }
        model.params_mut().set(slot, there);
    }
    Ok(())
}
