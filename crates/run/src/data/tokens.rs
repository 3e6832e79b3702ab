//! Data that is tokenised already: a safetensors file with `input_ids` and, where there are any, `attention_mask`, `token_type_ids` and
//! `labels`. The file is mapped, not read: only the rows that a step uses come into memory.

use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, SafeTensors};
use sha2::{Digest, Sha256};

use super::error::{DataError, Place};
use super::file::{FileRecord, RawFile};
use crate::tokenizer::hex;

/// One row of a token file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenRow {
    pub(crate) ids: Vec<i64>,
    /// 1 on real tokens.
    pub(crate) keep: Option<Vec<u8>>,
    pub(crate) types: Option<Vec<u32>>,
    pub(crate) label: Option<TokenLabel>,
}

/// The label of a row of a token file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TokenLabel {
    Class(i64),
    Value(f64),
    /// One for each token, −100 ignored.
    Tokens(Vec<i64>),
}

/// Which shape the labels of a token file have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LabelKind {
    Absent,
    Class,
    Value,
    Tokens,
}

#[derive(Debug, Clone)]
struct Field {
    dtype: Dtype,
    start: usize,
    /// Numbers in a row.
    width: usize,
}

/// An open token file.
#[derive(Debug)]
pub(crate) struct TokenTable {
    map: memmap2::Mmap,
    name: String,
    rows: usize,
    ids: Field,
    keep: Option<Field>,
    types: Option<Field>,
    labels: Option<Field>,
    pub(crate) record: FileRecord,
}

impl TokenTable {
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let file = RawFile::open(path, path)?;
        let wrong = |why: String| DataError::Tokens { path: path.to_owned(), why };
        let handle = std::fs::File::open(path).map_err(|e| file.io(e))?;
        // SAFETY: the map is only read, through bounds-checked slices. Another process that cuts the file while it is mapped ends this
        // one with SIGBUS, as it does for every program that maps its input; no memory is corrupted.
        let map = unsafe { memmap2::Mmap::map(&handle) }.map_err(|e| file.io(e))?;
        // The header is a JSON text of at most 100 MB, each tensor lies inside the file and none overlaps another: checked in here.
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| wrong(format!("not a safetensors file: {e}")))?;
        let data = header + 8;
        let names = || {
            let mut n: Vec<String> = metadata.tensors().into_keys().collect();
            n.sort();
            n.join(", ")
        };
        let needed = || wrong(format!("no tensor `input_ids`; found: {}", names()));
        let ids_info = metadata.info("input_ids").ok_or_else(needed)?;
        let (lead, rows, width) = match ids_info.shape.as_slice() {
            [rows, width] => (vec![*rows], *rows, *width),
            // Batches that somebody formed are rows like any others.
            [batches, rows, width] => (vec![*batches, *rows], batches * rows, *width),
            other => return Err(wrong(format!("`input_ids` has shape {other:?}; expected [rows, tokens] or [batches, rows, tokens]"))),
        };
        if rows == 0 || width == 0 {
            return Err(DataError::Empty { what: path.display().to_string(), hint: format!("`input_ids` has shape [{rows}, {width}]") });
        }
        let field = |name: &str, whole: bool| field(&metadata, name, data, &lead, width, whole).map_err(wrong);
        let ids = field("input_ids", true)?.ok_or_else(needed)?;
        let record = FileRecord { path: path.to_owned(), bytes: file.bytes(), sha256: hex(&Sha256::digest(&map[..])) };
        let (keep, types) = (field("attention_mask", true)?, field("token_type_ids", true)?);
        let mut labels = field("labels", false)?;
        if labels.is_none() {
            labels = field("label", false)?;
        }
        for (name, f) in [("input_ids", Some(&ids)), ("attention_mask", keep.as_ref()), ("token_type_ids", types.as_ref())] {
            if let Some(f) = f.filter(|f| is_float(f.dtype)) {
                return Err(wrong(format!("`{name}` holds {:?}; expected whole numbers (I64)", f.dtype)));
            }
        }
        if let Some(f) = labels.as_ref().filter(|f| f.width > 1 && is_float(f.dtype)) {
            return Err(wrong(format!("`labels` holds {:?} for each token; expected I64, −100 where nothing is scored", f.dtype)));
        }
        Ok(Self { map, name: path.display().to_string(), rows, ids, keep, types, labels, record })
    }

    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    /// Tokens in a row.
    pub(crate) fn width(&self) -> usize {
        self.ids.width
    }

    /// Whether the file says which tokens are padding.
    pub(crate) fn has_padding(&self) -> bool {
        self.keep.is_some()
    }

    pub(crate) fn label_kind(&self) -> LabelKind {
        match &self.labels {
            None => LabelKind::Absent,
            // A row of one token has one label either way; then the shape of the tensor can't tell, and a class is meant.
            Some(f) if f.width > 1 => LabelKind::Tokens,
            Some(f) if is_float(f.dtype) => LabelKind::Value,
            Some(_) => LabelKind::Class,
        }
    }

    pub(crate) fn place(&self, row: usize) -> Place {
        Place { file: format!("{}, row", self.name), line: row as u64 }
    }

    pub(crate) fn row(&self, row: usize) -> TokenRow {
        let whole = |f: &Field| -> Vec<i64> { self.numbers(f, row).map(|x| x as i64).collect() };
        TokenRow {
            ids: self.integers(&self.ids, row),
            keep: self.keep.as_ref().map(|f| self.integers(f, row).iter().map(|k| u8::from(*k != 0)).collect()),
            types: self.types.as_ref().map(|f| self.integers(f, row).iter().map(|t| u32::try_from(*t).unwrap_or(u32::MAX)).collect()),
            label: self.labels.as_ref().and_then(|f| match self.label_kind() {
                LabelKind::Absent => None,
                LabelKind::Tokens => Some(TokenLabel::Tokens(self.integers(f, row))),
                LabelKind::Value => self.numbers(f, row).next().map(TokenLabel::Value),
                LabelKind::Class => whole(f).first().map(|c| TokenLabel::Class(*c)),
            }),
        }
    }

    fn raw(&self, f: &Field, row: usize) -> &[u8] {
        let bytes = f.width * size_of_dtype(f.dtype);
        let start = f.start + row * bytes;
        self.map.get(start..start + bytes).unwrap_or_default()
    }

    fn integers(&self, f: &Field, row: usize) -> Vec<i64> {
        let raw = self.raw(f, row);
        match f.dtype {
            Dtype::I64 => each(raw, i64::from_le_bytes).collect(),
            // Ids over i64 become negative, which the range check refuses.
            Dtype::U64 => each(raw, |b| u64::from_le_bytes(b) as i64).collect(),
            Dtype::I32 => each(raw, |b| i64::from(i32::from_le_bytes(b))).collect(),
            Dtype::U32 => each(raw, |b| i64::from(u32::from_le_bytes(b))).collect(),
            Dtype::I16 => each(raw, |b| i64::from(i16::from_le_bytes(b))).collect(),
            Dtype::U16 => each(raw, |b| i64::from(u16::from_le_bytes(b))).collect(),
            Dtype::I8 => raw.iter().map(|b| i64::from(*b as i8)).collect(),
            _ => raw.iter().map(|b| i64::from(*b)).collect(),
        }
    }

    fn numbers<'a>(&'a self, f: &Field, row: usize) -> Box<dyn Iterator<Item = f64> + 'a> {
        let raw = self.raw(f, row);
        match f.dtype {
            Dtype::F64 => Box::new(each(raw, f64::from_le_bytes)),
            Dtype::F32 => Box::new(each(raw, |b| f64::from(f32::from_le_bytes(b)))),
            Dtype::F16 => Box::new(each(raw, |b| f16::from_le_bytes(b).to_f64())),
            Dtype::BF16 => Box::new(each(raw, |b| bf16::from_le_bytes(b).to_f64())),
            _ => Box::new(self.integers(f, row).into_iter().map(|i| i as f64)),
        }
    }
}

fn each<const N: usize, T>(raw: &[u8], f: impl Fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    raw.chunks_exact(N).filter_map(move |b| Some(f(b.try_into().ok()?)))
}

fn is_float(d: Dtype) -> bool {
    matches!(d, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

fn size_of_dtype(d: Dtype) -> usize {
    match d {
        Dtype::F64 | Dtype::I64 | Dtype::U64 => 8,
        Dtype::F32 | Dtype::I32 | Dtype::U32 => 4,
        Dtype::F16 | Dtype::BF16 | Dtype::I16 | Dtype::U16 => 2,
        _ => 1,
    }
}

/// A tensor of the file: as large as `input_ids` if `whole`, otherwise one number a row (`[rows]`, `[rows, 1]`) or as large.
fn field(m: &Metadata, name: &str, data: usize, lead: &[usize], width: usize, whole: bool) -> Result<Option<Field>, String> {
    let Some(info) = m.info(name) else { return Ok(None) };
    let wide = info.shape == [lead, &[width]].concat();
    let narrow = !whole && (info.shape == lead || info.shape == [lead, &[1]].concat());
    if !wide && !narrow {
        let or = if whole { String::new() } else { format!(" or {lead:?}") };
        return Err(format!("`{name}` has shape {:?}; expected {:?}{or}, as `input_ids` has", info.shape, [lead, &[width]].concat()));
    }
    let known = is_float(info.dtype)
        || matches!(
            info.dtype,
            Dtype::I64 | Dtype::U64 | Dtype::I32 | Dtype::U32 | Dtype::I16 | Dtype::U16 | Dtype::I8 | Dtype::U8 | Dtype::BOOL
        );
    if !known {
        return Err(format!("`{name}` holds {:?}; expected I64", info.dtype));
    }
    let width = if narrow { 1 } else { width };
    Ok(Some(Field { dtype: info.dtype, start: data + info.data_offsets.0, width }))
}
