//! Scores and decisions in files, as the run directory's layout says.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use prunectl_model::{FilePart, Tensors, Transformer, file_parts, file_shape, from_file_tensors};
use prunectl_prune::{Decision, Key, Record, Scores, UnitMap};
use prunectl_recipe::catalogue::SiteKind;

use crate::error::{Error, Result};
use crate::files::file_name_of;
use crate::rundir::{DECISIONS, RunDir, SCORES};
use crate::tensor_file::{self, Entry};

/// Values written at a time.
const CHUNK: usize = 1 << 18;
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
/// under the names and in the shapes that they have in the model's files. Returns its name in the run directory and its hash. Scores
/// of weights that were put away are in that file alone afterwards.
pub fn write_scores(dir: &RunDir, name: &str, scores: &Scores, model: &Transformer) -> Result<(String, String)> {
    let file = format!("{SCORES}/{}.safetensors", file_name_of(name));
    let mut units = Tensors::default();
    for (key, values) in &scores.sites {
        let flat = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
        let experts = key.layer.and_then(|l| model.dims().get(l)).map_or(0, |d| d.experts);
        let by_expert = key.kind == SiteKind::Neurons && experts > 0 && values.len().is_multiple_of(experts);
        units.insert(key.to_string(), if by_expert { flat.reshape((experts, values.len() / experts))? } else { flat });
    }
    let mut parts = file_parts(model, &scores.weights)?;
    parts.extend(FilePart::plain(&units));
    parts.sort_by(|a, b| a.name.cmp(&b.name));
    let entries: Vec<Entry<'_, Error>> = parts
        .into_iter()
        .map(|part| Entry {
            name: part.name.clone(),
            dtype: "F32",
            shape: part.shape.clone(),
            bytes: part.shape.iter().product::<usize>() as u64 * 4,
            values: Box::new(move |out: &mut dyn Write| {
                put(out, part.read()?.to_dtype(DType::F32)?.flatten_all()?, |x: f32| x.to_le_bytes())?;
                // The file has them now: twice on the disk would be as much again as the model.
                part.release();
                Ok(())
            }),
        })
        .collect();
    let hash = dir.write_with(&file, |out| tensor_file::write(out, &entries, full))?;
    Ok((file, hash))
}

/// Writes a vector's values, some at a time.
fn put<T: candle_core::WithDType, const N: usize>(out: &mut dyn Write, flat: Tensor, bytes: impl Fn(T) -> [u8; N]) -> Result<()> {
    let n = flat.elem_count();
    for start in (0..n).step_by(CHUNK) {
        let values = flat.narrow(0, start, CHUNK.min(n - start))?.to_vec1::<T>()?;
        out.write_all(&values.into_iter().flat_map(&bytes).collect::<Vec<u8>>()).map_err(full)?;
    }
    Ok(())
}

/// The error of a file that can't be written further; the caller knows which.
fn full(source: std::io::Error) -> Error {
    Error::Io { action: "write", path: SCORES.into(), source }
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
    let weights = from_file_tensors(model, named.weights.iter().map(|(name, t)| (name.clone(), t.clone()))).map_err(|e| {
        Error::Refused { what: format!("{}: {e}", path.display()), remedy: "score again on this model, with this selector".to_owned() }
    })?;
    Ok(Scores { sites: named.sites, weights: weights.into() })
}

/// Writes `decisions/NAME.json`, and the keep masks of single weights beside it, under their names in the model's files.
pub fn write_decision(dir: &RunDir, name: &str, decision: &Decision, map: &UnitMap, model: &Transformer) -> Result<Vec<(String, String)>> {
    let stem = format!("{DECISIONS}/{}", file_name_of(name));
    let mut files = Vec::new();
    if !decision.weights.is_empty() {
        let packed = file_parts(model, &decision.weights)?.into_iter().map(|part| {
            let &[rows, columns] = part.shape.as_slice() else {
                return Err(Error::Internal(format!("the keep mask of `{}` is no matrix", part.name)));
            };
            let shape = vec![rows, columns.div_ceil(BITS)];
            let bytes = shape.iter().product::<usize>() as u64;
            let name = part.name.clone();
            let values = move |out: &mut dyn Write| put(out, pack(&part.read()?)?.flatten_all()?, |x: u8| [x]);
            Ok(Entry { name, dtype: "U8", shape, bytes, values: Box::new(values) })
        });
        let packed = packed.collect::<Result<Vec<Entry<'_, Error>>>>()?;
        let file = format!("{stem}.safetensors");
        let hash = dir.write_with(&file, |out| tensor_file::write(out, &packed, full))?;
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
    Ok(Decision::from_record(&record, weights.into(), map, model.n_layers())?)
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
