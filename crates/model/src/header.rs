//! The header of a safetensors file, read without trust: under a size cap of our own, every name, type, shape and offset checked
//! before a byte of data is looked at. Works on files whose data section is absent.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::DType;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::error::{ModelError, Result};

/// The largest header that is read.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes of the length in front of the header.
const LENGTH_BYTES: u64 = 8;

/// A tensor's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The type's name in the format: `F32`, `BF16`, `I64`, …
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// First byte, from the start of the data section.
    pub begin: u64,
    /// One past its last byte.
    pub end: u64,
}

impl Entry {
    /// The type as candle has it, for the floats that weights come in.
    pub fn float(&self) -> Option<DType> {
        match self.dtype.as_str() {
            "F64" => Some(DType::F64),
            "F32" => Some(DType::F32),
            "F16" => Some(DType::F16),
            "BF16" => Some(DType::BF16),
            _ => None,
        }
    }

    /// Number of scalars.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|n| *n as u64).product()
    }
}

/// A checked header.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// Tensors by name.
    pub tensors: BTreeMap<String, Entry>,
    /// Where the data section starts in the file.
    pub data_start: u64,
    /// Bytes of the data section.
    pub data_bytes: u64,
}

impl Header {
    /// Reads the header of a file; the data section may be cut short or absent.
    pub fn read(path: &Path) -> Result<Self> {
        let io = |source| ModelError::Io { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let mut length = [0_u8; LENGTH_BYTES as usize];
        if size < LENGTH_BYTES {
            return Err(broken(path, "the file", format!("{size} bytes"), "at least the 8 bytes of the header's length".into()));
        }
        file.read_exact(&mut length).map_err(io)?;
        let length = u64::from_le_bytes(length);
        check_length(path, length, size)?;
        let mut text = Vec::new();
        file.take(length).read_to_end(&mut text).map_err(io)?;
        Self::parse(path, &text)
    }

    /// Reads the header of a file that is in memory, its data section included or not.
    pub fn of_bytes(path: &Path, bytes: &[u8]) -> Result<Self> {
        let Some((length, rest)) = bytes.split_first_chunk::<{ LENGTH_BYTES as usize }>() else {
            let expected = "at least the 8 bytes of the header's length".into();
            return Err(broken(path, "the file", format!("{} bytes", bytes.len()), expected));
        };
        let length = u64::from_le_bytes(*length);
        check_length(path, length, bytes.len() as u64)?;
        let text = usize::try_from(length).ok().and_then(|n| rest.get(..n)).unwrap_or_default();
        Self::parse(path, text)
    }

    fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let mut deserializer = serde_json::Deserializer::from_slice(text);
        let entries = deserializer
            .deserialize_map(Entries)
            .and_then(|entries| deserializer.end().map(|()| entries))
            .map_err(|e| broken(path, "the header", e.to_string(), "a JSON object of tensors".into()))?;
        let mut header = Self { data_start: LENGTH_BYTES + text.len() as u64, ..Self::default() };
        for (name, value) in entries {
            if name == "__metadata__" {
                continue;
            }
            let entry = entry(path, &name, &value)?;
            let place = format!("tensor `{name}`");
            if header.tensors.insert(name, entry).is_some() {
                return Err(broken(path, &place, "two entries".into(), "one".into()));
            }
        }
        header.check_offsets(path)?;
        Ok(header)
    }

    /// Tensors must cover the data section without overlap or hole.
    fn check_offsets(&mut self, path: &Path) -> Result<()> {
        let mut spans: Vec<(&String, &Entry)> = self.tensors.iter().collect();
        spans.sort_by_key(|(_, e)| (e.begin, e.end));
        let mut at = 0;
        let mut before = "the start of the data";
        for (name, entry) in spans {
            if entry.begin != at {
                let what = if entry.begin < at { "overlaps" } else { "leaves a hole after" };
                return Err(broken(
                    path,
                    &format!("tensor `{name}`"),
                    format!("an offset of {} that {what} {before}", entry.begin),
                    format!("{at}"),
                ));
            }
            at = entry.end;
            before = name;
        }
        self.data_bytes = at;
        Ok(())
    }

    /// An error unless the file has exactly the bytes that the header announces.
    pub fn check_size(&self, path: &Path, size: u64) -> Result<()> {
        let expected = self.data_start.saturating_add(self.data_bytes);
        if size == expected {
            return Ok(());
        }
        let place = if size < expected { "the data, which is cut short" } else { "the data, which is longer than its header says" };
        Err(broken(path, place, format!("{size} bytes"), format!("{expected} bytes")))
    }
}

fn check_length(path: &Path, length: u64, size: u64) -> Result<()> {
    if length > MAX_HEADER_BYTES || length > size.saturating_sub(LENGTH_BYTES) {
        return Err(broken(
            path,
            "the header's length",
            format!("{length} bytes in a file of {size}"),
            format!("at most {} (a header may have {MAX_HEADER_BYTES})", size.saturating_sub(LENGTH_BYTES)),
        ));
    }
    Ok(())
}

fn entry(path: &Path, name: &str, value: &Value) -> Result<Entry> {
    let bad = |field: &str, expected: &str| {
        let found = value.get(field).map_or_else(|| "nothing".to_owned(), Value::to_string);
        broken(path, &format!("tensor `{name}`, `{field}`"), found, expected.to_owned())
    };
    let dtype = value.get("dtype").and_then(Value::as_str).ok_or_else(|| bad("dtype", "the name of a type"))?;
    let bits = bits(dtype).ok_or_else(|| bad("dtype", "a type of the safetensors format"))?;
    let numbers = |field: &str| -> Option<Vec<u64>> { value.get(field)?.as_array()?.iter().map(Value::as_u64).collect() };
    let shape = numbers("shape").ok_or_else(|| bad("shape", "a list of whole numbers, none below 0"))?;
    let offsets = numbers("data_offsets").unwrap_or_default();
    let [begin, end] = offsets.as_slice() else { return Err(bad("data_offsets", "two whole numbers, none below 0")) };
    let bytes = shape
        .iter()
        .try_fold(1_u64, |n, d| n.checked_mul(*d))
        .and_then(|n| n.checked_mul(bits))
        .filter(|n| n.is_multiple_of(8))
        .map(|n| n / 8)
        .ok_or_else(|| bad("shape", "a shape whose size can be counted in bytes"))?;
    if end.checked_sub(*begin) != Some(bytes) {
        return Err(bad("data_offsets", &format!("{bytes} bytes, for {dtype} {shape:?}")));
    }
    let shape: Option<Vec<usize>> = shape.iter().map(|d| usize::try_from(*d).ok()).collect();
    let shape = shape.ok_or_else(|| bad("shape", "dimensions that this machine can index"))?;
    Ok(Entry { dtype: dtype.to_owned(), shape, begin: *begin, end: *end })
}

/// Bits of a scalar of that type.
fn bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F64" | "I64" | "U64" | "C64" => 64,
        "F32" | "I32" | "U32" => 32,
        "F16" | "BF16" | "I16" | "U16" => 16,
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "F6_E2M3" | "F6_E3M2" => 6,
        "F4" => 4,
        _ => return None,
    })
}

/// Collects a JSON object's members in order, duplicates included: a map would keep the last in silence.
struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Vec<(String, Value)>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(entries)
    }
}

fn broken(path: &Path, place: &str, found: String, expected: String) -> ModelError {
    const LONGEST: usize = 200;
    let found = found.chars().take(LONGEST).collect();
    ModelError::Safetensors { path: path.to_owned(), place: place.to_owned(), found, expected }
}
