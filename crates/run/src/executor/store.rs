//! Scores and decisions in files, as the run directory's layout says.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use prunectl_model::{Transformer, file_shape, from_file_tensors, to_file_tensors};
use prunectl_prune::{Decision, Key, Record, Scores, UnitMap};
use prunectl_recipe::catalogue::SiteKind;

use crate::error::{Error, Result};
use crate::files::file_name_of;
use crate::rundir::{DECISIONS, RunDir, SCORES};

/// Bits in a byte of a packed mask.
const BITS: usize = 8;

/// A safetensors file as bytes. One metadata key, because the order of several is not fixed.
pub fn to_bytes(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let contiguous = tensors.iter().map(|(k, t)| Ok((k, t.contiguous()?))).collect::<Result<Vec<_>>>()?;
    safetensors::serialize(contiguous.iter().map(|(k, t)| (k.as_str(), t)), Some(metadata))
        .map_err(|e| Error::Internal(format!("tensors can't be written as safetensors: {e}")))
}

/// The tensors of a safetensors file.
pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let damaged = |what: String| Error::Damaged { path: path.to_owned(), what };
    let map = candle_core::safetensors::load_buffer(bytes, &Device::Cpu).map_err(|e| damaged(e.to_string()))?;
    Ok(map.into_iter().collect())
}

/// Writes `scores/NAME.safetensors`: units under `layers.{i}.attention.heads` and the like, `[units]` (neurons of experts `[experts, ffn]`), weights
/// under the names and in the shapes that they have in the model's files. Returns its name in the run directory and its hash.
pub fn write_scores(dir: &RunDir, name: &str, scores: &Scores, model: &Transformer) -> Result<(String, String)> {
    let file = format!("{SCORES}/{}.safetensors", file_name_of(name));
    let mut tensors = to_file_tensors(model, &scores.weights)?;
    for (key, values) in &scores.sites {
        let flat = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
        let experts = key.layer.and_then(|l| model.dims().get(l)).map_or(0, |d| d.experts);
        let by_expert = key.kind == SiteKind::Neurons && experts > 0 && values.len().is_multiple_of(experts);
        tensors.insert(key.to_string(), if by_expert { flat.reshape((experts, values.len() / experts))? } else { flat });
    }
    let hash = dir.write(&file, &to_bytes(&tensors)?)?;
    Ok((file, hash))
}

/// Scores as [`write_scores`] wrote them, weights under their names in the model's files.
pub fn named_scores(bytes: &[u8], path: &Path) -> Result<Scores> {
    let mut scores = Scores::default();
    for (name, tensor) in from_bytes(bytes, path)? {
        let tensor = tensor.to_dtype(DType::F32)?;
        match Key::parse(&name) {
            Some(key) => {
                scores.sites.insert(key, tensor.flatten_all()?.to_vec1()?);
            }
            None => {
                scores.weights.insert(name, tensor);
            }
        }
    }
    Ok(scores.checked("stored scores")?)
}

/// Reads what [`write_scores`] wrote, weights by slot. The caller looks whether a site has as many units as the model.
pub fn read_scores(bytes: &[u8], path: &Path, model: &Transformer) -> Result<Scores> {
    let named = named_scores(bytes, path)?;
    let weights = from_file_tensors(model, named.weights).map_err(|e| Error::Refused {
        what: format!("{}: {e}", path.display()),
        remedy: "score again on this model, with this selector".to_owned(),
    })?;
    Ok(Scores { sites: named.sites, weights })
}

/// Writes `decisions/NAME.json`, and the keep masks of single weights beside it, under their names in the model's files.
pub fn write_decision(dir: &RunDir, name: &str, decision: &Decision, map: &UnitMap, model: &Transformer) -> Result<Vec<(String, String)>> {
    let stem = format!("{DECISIONS}/{}", file_name_of(name));
    let mut files = Vec::new();
    if !decision.weights.is_empty() {
        let masks = to_file_tensors(model, &decision.weights)?;
        let packed = masks.into_iter().map(|(name, keep)| Ok((name, pack(&keep)?))).collect::<Result<BTreeMap<_, _>>>()?;
        let file = format!("{stem}.safetensors");
        let hash = dir.write(&file, &to_bytes(&packed)?)?;
        files.push((file, hash));
    }
    let file = format!("{stem}.json");
    let hash = dir.write_json(&file, &decision.record(map))?;
    files.push((file, hash));
    Ok(files)
}

/// Reads a decision back.
pub fn read_decision(dir: &RunDir, files: &[(String, String)], map: &UnitMap, model: &Transformer) -> Result<Decision> {
    let mut weights = BTreeMap::new();
    let mut record = None;
    for (file, hash) in files.iter().filter(|(f, _)| f.starts_with(DECISIONS)) {
        let bytes = dir.read_checked(file, hash)?;
        let path = dir.join(file);
        let damaged = |what: String| Error::Damaged { path: path.clone(), what };
        if file.ends_with(".json") {
            record = Some(serde_json::from_slice::<Record>(&bytes).map_err(|e| damaged(e.to_string()))?);
            continue;
        }
        let mut masks = Vec::new();
        for (name, packed) in from_bytes(&bytes, &path)? {
            let (rows, columns) = file_shape(model, &name).ok_or_else(|| damaged(format!("the model has no matrix `{name}`")))?;
            masks.push((name, unpack(&packed, rows, columns)?));
        }
        weights = from_file_tensors(model, masks).map_err(|e| damaged(e.to_string()))?;
    }
    let record = record.ok_or_else(|| Error::Damaged { path: dir.join(DECISIONS), what: "a decision has no JSON file".to_owned() })?;
    Ok(Decision::from_record(&record, weights, map, model.n_layers())?)
}

/// u8 `[out, in]` of 0 and 1 to u8 `[out, ⌈in / 8⌉]`, the first column in the lowest bit.
pub fn pack(keep: &Tensor) -> Result<Tensor> {
    let (rows, columns) = keep.dims2()?;
    let values = keep.to_device(&Device::Cpu)?.to_dtype(DType::U8)?.flatten_all()?.to_vec1::<u8>()?;
    let width = columns.div_ceil(BITS);
    let mut out = vec![0u8; rows * width];
    for (row, packed) in values.chunks(columns.max(1)).zip(out.chunks_mut(width.max(1))) {
        for (byte, bits) in packed.iter_mut().zip(row.chunks(BITS)) {
            *byte = bits.iter().enumerate().fold(0, |b, (i, bit)| b | (u8::from(*bit != 0) << i));
        }
    }
    Ok(Tensor::from_vec(out, (rows, width), &Device::Cpu)?)
}

/// The inverse of [`pack`].
pub fn unpack(packed: &Tensor, rows: usize, columns: usize) -> Result<Tensor> {
    let width = columns.div_ceil(BITS);
    let found = packed.dims2()?;
    if found != (rows, width) {
        return Err(Error::Refused {
            what: format!("a keep mask has shape {found:?}, expected {:?}", (rows, width)),
            remedy: "start the run again".to_owned(),
        });
    }
    let bytes = packed.to_dtype(DType::U8)?.flatten_all()?.to_vec1::<u8>()?;
    let mut out = Vec::with_capacity(rows * columns);
    for row in bytes.chunks(width.max(1)) {
        out.extend(row.iter().flat_map(|b| (0..BITS).map(move |i| (b >> i) & 1)).take(columns));
    }
    Ok(Tensor::from_vec(out, (rows, columns), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_survive_packing() {
        for columns in [1, 7, 8, 9, 20] {
            let values: Vec<u8> = (0..3 * columns).map(|i| u8::from(i % 3 != 1)).collect();
            let keep = Tensor::from_vec(values.clone(), (3, columns), &Device::Cpu).unwrap();
            let packed = pack(&keep).unwrap();
            assert_eq!(packed.dims(), [3, columns.div_ceil(8)]);
            assert_eq!(unpack(&packed, 3, columns).unwrap().flatten_all().unwrap().to_vec1::<u8>().unwrap(), values);
        }
    }

    #[test]
    fn safetensors_bytes_do_not_depend_on_anything_else() {
        let t = |x: f32| Tensor::new(&[x, x], &Device::Cpu).unwrap();
        let tensors: BTreeMap<String, Tensor> = (0..20).map(|i| (format!("layers.{i}"), t(i as f32))).collect();
        let bytes = to_bytes(&tensors).unwrap();
        assert_eq!(bytes, to_bytes(&tensors).unwrap());
        assert_eq!(from_bytes(&bytes, std::path::Path::new("x")).unwrap().len(), 20);
    }
}
