//! Safetensors files, streamed: one tensor at a time is converted and written, so that memory stays flat and the bytes depend on the
//! tensors alone (names sorted, one metadata key).

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use candle_core::{DType, Tensor};
use half::{bf16, f16};
use prunectl_model::FilePart;

use super::SaveError;
use super::folder::Draft;
use crate::tensor_file::{self, Entry, Values};

/// Weights beyond this go to several files, as Hugging Face's tools split them.
pub const SHARD_BYTES: u64 = 5_000_000_000;
/// Values converted at a time.
const CHUNK: usize = 1 << 16;

/// The name of a dtype in safetensors, and its size.
fn stored(dtype: DType) -> Result<(&'static str, usize), SaveError> {
    match dtype {
        DType::F64 => Ok(("F64", 8)),
        DType::F32 => Ok(("F32", 4)),
        DType::F16 => Ok(("F16", 2)),
        DType::BF16 => Ok(("BF16", 2)),
        other => Err(SaveError::Dtype { found: format!("{other:?}") }),
    }
}

/// Writes `model.safetensors`, or shards of at most `shard_bytes` and an index.
///
/// # Errors
/// The disk is full, or a value is not finite in `dtype`.
pub(super) fn write_weights(
    draft: &mut Draft,
    parts: &[FilePart<'_>],
    int8: &BTreeSet<String>,
    dtype: DType,
    shard_bytes: u64,
) -> Result<(), SaveError> {
    stored(dtype)?;
    let mut pieces: Vec<(String, Piece<'_>)> = Vec::with_capacity(parts.len());
    for part in parts {
        pieces.extend(match int8.contains(&part.name) {
            true => quantised(&part.name, &part.read()?)?.into_iter().collect(),
            false => vec![(part.name.clone(), Piece::Float(part))],
        });
    }
    // Wide values first, so that each lies at a multiple of its width.
    let width = |p: &Piece<'_>| -> u64 { p.bytes(dtype).unwrap_or(0) / (p.shape().iter().product::<usize>() as u64).max(1) };
    pieces.sort_by(|a, b| width(&b.1).cmp(&width(&a.1)).then_with(|| a.0.cmp(&b.0)));
    let mut shards: Vec<Vec<&(String, Piece<'_>)>> = vec![Vec::new()];
    let (mut filled, mut total) = (0_u64, 0_u64);
    for piece in &pieces {
        let bytes = piece.1.bytes(dtype)?;
        total += bytes;
        if filled > 0 && filled + bytes > shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push(piece);
        }
    }
    if let [only] = shards.as_slice() {
        draft.write("model.safetensors", |out| write_file(out, only, dtype))?;
        return Ok(());
    }
    let n = shards.len();
    let mut map = serde_json::Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{n:05}.safetensors", i + 1);
        draft.write(&file, |out| write_file(out, shard, dtype))?;
        for (name, _) in shard {
            map.insert(name.clone(), file.clone().into());
        }
    }
    let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": map });
    draft.write_bytes("model.safetensors.index.json", &pretty(&index))?;
    Ok(())
}

/// What is written under one name.
enum Piece<'t> {
    /// In the dtype asked for.
    Float(&'t FilePart<'t>),
    /// An int8 matrix `[rows, columns]`.
    Codes(Vec<i8>, [usize; 2]),
    /// Its rows' scales.
    Scales(Vec<f32>),
    /// The number of its layout: 0, row by row.
    Format,
}

impl Piece<'_> {
    fn word(&self, dtype: DType) -> Result<&'static str, SaveError> {
        Ok(match self {
            Self::Float(_) => stored(dtype)?.0,
            Self::Codes(..) => "I8",
            Self::Scales(_) => "F32",
            Self::Format => "U8",
        })
    }

    fn shape(&self) -> Vec<usize> {
        match self {
            Self::Float(part) => part.shape.clone(),
            Self::Codes(_, shape) => shape.to_vec(),
            Self::Scales(s) => vec![s.len()],
            Self::Format => Vec::new(),
        }
    }

    fn bytes(&self, dtype: DType) -> Result<u64, SaveError> {
        Ok(match self {
            Self::Float(part) => part.shape.iter().product::<usize>() as u64 * stored(dtype)?.1 as u64,
            Self::Codes(codes, _) => codes.len() as u64,
            Self::Scales(s) => s.len() as u64 * 4,
            Self::Format => 1,
        })
    }
}

/// An int8 matrix as bitsandbytes stores it: codes, scales (SCB), and the mark of their layout.
fn quantised<'t>(name: &str, tensor: &Tensor) -> Result<[(String, Piece<'t>); 3], SaveError> {
    let found = prunectl_model::int8::codes(tensor)?;
    prunectl_model::int8::check_codes(name, &found)?;
    let (rows, columns) = tensor.dims2()?;
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    Ok([
        (name.to_owned(), Piece::Codes(found.codes, [rows, columns])),
        (format!("{stem}.SCB"), Piece::Scales(found.scales)),
        (format!("{stem}.weight_format"), Piece::Format),
    ])
}

/// JSON as people read it, with a line's end.
pub(super) fn pretty(value: &serde_json::Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// What is written of a piece, when it is its turn.
fn entry<'t>(name: &str, piece: &'t Piece<'t>, dtype: DType) -> Result<Entry<'t, SaveError>, SaveError> {
    let put = |out: &mut dyn Write, bytes: &[u8]| out.write_all(bytes).map_err(|e| SaveError::io("write", Path::new(""), e));
    let tensor = name.to_owned();
    let values: Values<'t, SaveError> = match piece {
        Piece::Codes(codes, _) => Box::new(move |out| put(out, &codes.iter().map(|q| *q as u8).collect::<Vec<u8>>())),
        Piece::Scales(scales) => Box::new(move |out| put(out, &scales.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<u8>>())),
        Piece::Format => Box::new(move |out| put(out, &[0])),
        Piece::Float(part) => Box::new(move |out| {
            let flat = part.read()?.flatten_all()?;
            let n = flat.elem_count();
            let (mut buffer, mut bad) = (Vec::with_capacity(CHUNK.min(n) * stored(dtype)?.1), 0);
            for start in (0..n).step_by(CHUNK) {
                buffer.clear();
                bad += encode(&flat.narrow(0, start, CHUNK.min(n - start))?, dtype, &mut buffer)?;
                put(out, &buffer)?;
            }
            match bad {
                0 => Ok(()),
                count => Err(SaveError::NotFinite { tensor: tensor.clone(), count, dtype: stored(dtype)?.0.to_lowercase() }),
            }
        }),
    };
    Ok(Entry { name: name.to_owned(), dtype: piece.word(dtype)?, shape: piece.shape(), bytes: piece.bytes(dtype)?, values })
}

/// One file.
fn write_file(out: &mut dyn Write, pieces: &[&(String, Piece<'_>)], dtype: DType) -> Result<(), SaveError> {
    let entries = pieces.iter().map(|(name, piece)| entry(name, piece, dtype)).collect::<Result<Vec<_>, _>>()?;
    tensor_file::write(out, &entries, |e| SaveError::io("write", Path::new(""), e))
}

/// Appends values as little-endian bytes; returns how many are not finite.
fn encode(part: &Tensor, dtype: DType, into: &mut Vec<u8>) -> Result<usize, SaveError> {
    let part = part.to_device(&candle_core::Device::Cpu)?.to_dtype(dtype)?;
    let mut bad = 0;
    match dtype {
        DType::F64 => {
            for x in part.to_vec1::<f64>()? {
                bad += usize::from(!x.is_finite());
                into.extend_from_slice(&x.to_le_bytes());
            }
        }
        DType::F32 => {
            for x in part.to_vec1::<f32>()? {
                bad += usize::from(!x.is_finite());
                into.extend_from_slice(&x.to_le_bytes());
            }
        }
        DType::F16 => {
            for x in part.to_vec1::<f16>()? {
                bad += usize::from(!x.is_finite());
                into.extend_from_slice(&x.to_le_bytes());
            }
        }
        DType::BF16 => {
            for x in part.to_vec1::<bf16>()? {
                bad += usize::from(!x.is_finite());
                into.extend_from_slice(&x.to_le_bytes());
            }
        }
        other => return Err(SaveError::Dtype { found: format!("{other:?}") }),
    }
    Ok(bad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use prunectl_model::Tensors;

    fn tensors() -> Tensors {
        let t = |n: usize| Tensor::arange(0_f32, n as f32, &Device::Cpu).unwrap().reshape((n / 2, 2)).unwrap();
        [("b.weight", 6), ("a.weight", 10), ("c.weight", 4)].into_iter().map(|(name, n)| (name.to_owned(), t(n))).collect()
    }

    fn parts(tensors: &Tensors) -> Vec<FilePart<'_>> {
        FilePart::plain(tensors)
    }

    /// The `safetensors` crate, which has no part in the writing, reads every dtype back.
    #[test]
    fn an_independent_reader_finds_the_same_values() {
        let dir = tempfile::tempdir().unwrap();
        for (dtype, word) in
            [(DType::F32, safetensors::Dtype::F32), (DType::F16, safetensors::Dtype::F16), (DType::BF16, safetensors::Dtype::BF16)]
        {
            let target = dir.path().join(format!("{dtype:?}"));
            let mut draft = Draft::beside(&target).unwrap();
            write_weights(&mut draft, &parts(&tensors()), &BTreeSet::new(), dtype, SHARD_BYTES).unwrap();
            draft.publish().unwrap();
            let bytes = std::fs::read(target.join("model.safetensors")).unwrap();
            let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(read.len(), 3);
            let view = read.tensor("a.weight").unwrap();
            assert_eq!((view.dtype(), view.shape()), (word, [5, 2].as_slice()));
            let back = candle_core::safetensors::load(target.join("model.safetensors"), &Device::Cpu).unwrap();
            for (name, t) in &tensors() {
                let b = back[name].to_dtype(DType::F32).unwrap();
                assert_eq!(b.to_vec2::<f32>().unwrap(), t.to_vec2::<f32>().unwrap(), "{name} as {dtype:?}");
            }
            let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
            assert_eq!(header.metadata().as_ref().map(|m| m.len()), Some(1), "two keys would make the bytes depend on a hash order");
        }
    }

    #[test]
    fn shards_hold_every_tensor_once_and_stay_below_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m");
        let mut draft = Draft::beside(&target).unwrap();
        write_weights(&mut draft, &parts(&tensors()), &BTreeSet::new(), DType::F32, 44).unwrap();
        draft.publish().unwrap();
        let index: serde_json::Value =
            serde_json::from_slice(&std::fs::read(target.join("model.safetensors.index.json")).unwrap()).unwrap();
        assert_eq!(index["metadata"]["total_size"], 80);
        let map = index["weight_map"].as_object().unwrap();
        assert_eq!(map.len(), 3);
        for (name, file) in map {
            let back = candle_core::safetensors::load(target.join(file.as_str().unwrap()), &Device::Cpu).unwrap();
            assert!(back.contains_key(name));
        }
        assert_eq!(map["b.weight"], map["c.weight"]);
        assert_ne!(map["a.weight"], map["b.weight"]);
    }

    #[test]
    fn a_weight_that_the_dtype_cannot_hold_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let big = Tensors::from([("x.weight", Tensor::new(&[1.0_f32, 1e6], &Device::Cpu).unwrap())]);
        let mut draft = Draft::beside(&dir.path().join("m")).unwrap();
        let error = write_weights(&mut draft, &parts(&big), &BTreeSet::new(), DType::F16, SHARD_BYTES).unwrap_err().to_string();
        assert!(error.contains("`x.weight` has 1 value"), "{error}");
        drop(draft);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a failed save leaves nothing behind");
    }
}
