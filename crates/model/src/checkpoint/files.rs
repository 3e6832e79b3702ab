//! The weight files of a folder: one, or shards with an index; a tensor is mapped while it is read.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use serde_json::Value;

use crate::error::{ModelError, Result};
use crate::header::{Entry, Header};
use crate::tensors::map;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The largest config or index that is read.
const MAX_JSON_BYTES: u64 = 64 << 20;

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    header: Header,
    /// None where only the header is looked at.
    data: Option<File>,
}

/// A tensor's bytes.
enum Bytes {
    Mapped(Mmap),
    None,
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::None => &[],
        }
    }
}

/// The tensors of a folder.
#[derive(Debug)]
pub(crate) struct Files {
    shards: Vec<Shard>,
    /// Tensor → shard.
    index: BTreeMap<String, usize>,
}

/// A JSON file.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(io)?.len();
    if size > MAX_JSON_BYTES {
        return Err(ModelError::Config {
            path: path.to_owned(),
            field: "(the whole file)".into(),
            found: format!("{size} bytes"),
            expected: format!("at most {MAX_JSON_BYTES}"),
        });
    }
    let bytes = std::fs::read(path).map_err(io)?;
    serde_json::from_slice(&bytes).map_err(|source| ModelError::Json { path: path.to_owned(), source })
}

/// What stands beside an int8 matrix in bitsandbytes' layout: its scales, and a mark of its row-major format.
pub(super) fn beside_int8(name: &str) -> [String; 2] {
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    [format!("{stem}.SCB"), format!("{stem}.weight_format")]
}

impl Files {
    /// Reads the headers. With `data` the files are opened and their sizes checked.
    pub fn open(dir: &Path, data: bool) -> Result<Self> {
        let single = dir.join(SINGLE);
        if single.is_file() {
            let shard = Shard::open(single, data)?;
            let index = shard.header.tensors.keys().map(|name| (name.clone(), 0)).collect();
            return Ok(Self { shards: vec![shard], index });
        }
        let path = dir.join(INDEX);
        if !path.is_file() {
            return Err(no_weights(dir));
        }
        let json = read_json(&path)?;
        let bad = |field: String, found: String, expected: &str| ModelError::Config {
            path: path.clone(),
            field,
            found,
            expected: expected.to_owned(),
        };
        let Some(map) = json.get("weight_map").and_then(Value::as_object) else {
            return Err(bad("weight_map".into(), "nothing".into(), "an object: tensor → file"));
        };
        let mut names: Vec<&str> = Vec::new();
        let mut index = BTreeMap::new();
        for (tensor, file) in map {
            let plain = file.as_str().filter(|f| Path::new(f).file_name().is_some_and(|n| n == *f));
            let Some(file) = plain else {
                return Err(bad(format!("weight_map.{tensor}"), file.to_string(), "the name of a file in the same folder"));
            };
            let shard = names.iter().position(|n| *n == file).unwrap_or_else(|| {
                names.push(file);
                names.len() - 1
            });
            index.insert(tensor.clone(), shard);
        }
        let shards = names.iter().map(|name| Shard::open(dir.join(name), data)).collect::<Result<Vec<_>>>()?;
        for (tensor, shard) in &index {
            let Some(shard) = shards.get(*shard) else { continue };
            if !shard.header.tensors.contains_key(tensor) {
                let found = format!("{} without it", shard.path.display());
                return Err(bad(format!("weight_map.{tensor}"), found, "the shard that has it; download the shards again"));
            }
        }
        Ok(Self { shards, index })
    }

    /// Every tensor's name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// Whether there is a tensor of that name, whatever stands in front of it.
    pub fn has_suffix(&self, name: &str) -> bool {
        self.index.keys().any(|known| known.strip_suffix(name).is_some_and(|front| front.is_empty() || front.ends_with('.')))
    }

    /// A tensor's entry and the file that it is in.
    pub fn entry(&self, name: &str) -> Option<(&Path, &Entry)> {
        let shard = self.shards.get(*self.index.get(name)?)?;
        Some((&shard.path, shard.header.tensors.get(name)?))
    }

    /// Bytes of all files, as their headers say.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.header.data_start.saturating_add(s.header.data_bytes)).sum()
    }

    /// The scales of an int8 matrix, where there are some.
    pub fn scales(&self, name: &str) -> Option<&Entry> {
        let [scales, _] = beside_int8(name);
        self.entry(&scales).map(|(_, e)| e).filter(|e| e.dtype == "F32" && e.shape.len() == 1)
    }

    /// An int8 matrix in the type that is asked for: each row times its scale.
    fn int8(&self, name: &str, shard: &Shard, entry: &Entry, dtype: DType, device: &Device) -> Result<Option<Tensor>> {
        let [scales, _] = beside_int8(name);
        let missing = |what: &str| ModelError::Safetensors {
            path: shard.path.clone(),
            place: format!("tensor `{name}`"),
            found: format!("int8 without {what}"),
            expected: format!("`{scales}`, f32, one value for each row"),
        };
        let steps = self.tensor(&scales, DType::F32, &Device::Cpu)?.ok_or_else(|| missing("scales"))?.to_vec1::<f32>()?;
        let bytes = shard.bytes(entry)?.ok_or_else(|| missing("data"))?;
        let &[rows, columns] = entry.shape.as_slice() else { return Err(missing("rows and columns")) };
        if steps.len() != rows {
            return Err(missing("a scale for each row"));
        }
        let values = crate::int8::values(bytes.as_slice().iter().map(|b| *b as i8), &steps, columns)?;
        Ok(Some(values.to_dtype(dtype)?.to_device(device)?))
    }

    /// A float tensor, checked to be finite, or an int8 matrix, in the type that is asked for.
    pub fn tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Option<Tensor>> {
        let Some(shard) = self.index.get(name).and_then(|i| self.shards.get(*i)) else { return Ok(None) };
        let Some(entry) = shard.header.tensors.get(name) else { return Ok(None) };
        if entry.dtype == "I8" {
            return self.int8(name, shard, entry, dtype, device);
        }
        let Some(stored) = entry.float() else {
            return Err(ModelError::TensorMismatch {
                path: shard.path.clone(),
                tensor: name.to_owned(),
                found: entry.dtype.clone(),
                expected: "F32, F16, BF16 or F64".into(),
            });
        };
        let bytes = shard.bytes(entry)?.ok_or_else(|| ModelError::Safetensors {
            path: shard.path.clone(),
            place: format!("tensor `{name}`"),
            found: "no data".into(),
            expected: format!("{} bytes", entry.end - entry.begin),
        })?;
        let bytes = bytes.as_slice();
        if let Some((index, value)) = first_not_finite(stored, bytes) {
            return Err(ModelError::NotFinite { path: shard.path.clone(), tensor: name.to_owned(), index, value });
        }
        let tensor = Tensor::from_raw_buffer(bytes, stored, &entry.shape, &Device::Cpu)?;
        Ok(Some(tensor.to_dtype(dtype)?.to_device(device)?))
    }
}

impl Shard {
    fn open(path: PathBuf, data: bool) -> Result<Self> {
        let header = Header::read(&path)?;
        if !data {
            return Ok(Self { path, header, data: None });
        }
        let io = |source| ModelError::Io { path: path.clone(), source };
        let file = File::open(&path).map_err(io)?;
        header.check_size(&path, file.metadata().map_err(io)?.len())?;
        Ok(Self { path, header, data: Some(file) })
    }

    /// Where the file was opened with its data; its size and the entry's place in it have been checked.
    fn bytes(&self, entry: &Entry) -> Result<Option<Bytes>> {
        let Some(file) = &self.data else { return Ok(None) };
        let n = entry.end.saturating_sub(entry.begin);
        if n == 0 {
            return Ok(Some(Bytes::None));
        }
        let begin = self.header.data_start.saturating_add(entry.begin);
        let map = map(file, begin, n).map_err(|source| ModelError::Io { path: self.path.clone(), source })?;
        Ok(Some(Bytes::Mapped(map)))
    }
}

/// The first NaN or infinity: every exponent bit set.
fn first_not_finite(dtype: DType, bytes: &[u8]) -> Option<(usize, f64)> {
    fn find<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> Option<usize> {
        let (values, _) = bytes.as_chunks::<N>();
        // Whole blocks first: the common case, no bad value at all, vectorises.
        const BLOCK: usize = 4096;
        let block = values.chunks(BLOCK).position(|b| b.iter().fold(false, |any, v| any | bad(*v)))?;
        let inside = values.get(block * BLOCK..)?.iter().position(|v| bad(*v))?;
        Some(block * BLOCK + inside)
    }
    let value = |index: usize, width: usize| {
        let raw = bytes.get(index * width..(index + 1) * width).unwrap_or_default();
        match (dtype, raw) {
            (DType::F64, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]),
            (DType::F32, &[a, b, c, d]) => f64::from(f32::from_le_bytes([a, b, c, d])),
            (DType::F16, &[a, b]) => half::f16::from_le_bytes([a, b]).to_f64(),
            (_, &[a, b]) => half::bf16::from_le_bytes([a, b]).to_f64(),
            _ => f64::NAN,
        }
    };
    let found = match dtype {
        DType::F64 => find::<8>(bytes, |v| u64::from_le_bytes(v) & 0x7ff0_0000_0000_0000 == 0x7ff0_0000_0000_0000),
        DType::F32 => find::<4>(bytes, |v| u32::from_le_bytes(v) & 0x7f80_0000 == 0x7f80_0000),
        DType::F16 => find::<2>(bytes, |v| u16::from_le_bytes(v) & 0x7c00 == 0x7c00),
        _ => find::<2>(bytes, |v| u16::from_le_bytes(v) & 0x7f80 == 0x7f80),
    };
    found.map(|index| (index, value(index, dtype.size_in_bytes())))
}

fn no_weights(dir: &Path) -> ModelError {
    let mut others: Vec<String> = std::fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    others.sort();
    let ends = |ends: &'static [&'static str]| others.iter().find(|name| ends.iter().any(|end| name.ends_with(end)));
    let convert = |argument: &str| {
        let class = class_of(dir).unwrap_or_else(|| "AutoModelForCausalLM".to_owned());
        let place = dir.display();
        format!(
            "python -c \"from transformers import {class} as M; M.from_pretrained('{place}'{argument}).save_pretrained('{place}', safe_serialization=True)\""
        )
    };
    let (found, hint) = if let Some(name) = ends(&[".bin", ".bin.index.json", ".pt", ".pth"]) {
        (format!("`{name}`"), format!("pickled files can run code and are not read; convert it once: {}", convert("")))
    } else if let Some(name) = ends(&[".gguf"]) {
        let argument = format!(", gguf_file='{name}'");
        (
            format!("`{name}`"),
            format!("GGUF is what `export` writes, not what is read; prune the original, or unpack it once: {}", convert(&argument)),
        )
    } else if let Some(name) = ends(&[".h5", ".msgpack"]) {
        let hint = "weights of TensorFlow and Flax are not read; transformers 4 converts them (`from_tf=True` or `from_flax=True`, then `save_pretrained`)";
        (format!("`{name}`"), hint.to_owned())
    } else {
        let found = if others.is_empty() { "no files".to_owned() } else { others.join(", ") };
        (found, format!("expected `{SINGLE}` or `{INDEX}`"))
    };
    ModelError::NoWeights { path: dir.to_owned(), found, hint }
}

/// transformers' class that the folder's config names.
fn class_of(dir: &Path) -> Option<String> {
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("config.json")).ok()?).ok()?;
    let class = config.get("architectures")?.get(0)?.as_str()?;
    class.chars().all(|c| c.is_ascii_alphanumeric()).then(|| class.to_owned())
}
