//! File names ↔ slots: a family lists stems, and how the tensors of a stem lie in its files.

use candle_core::Tensor;

use crate::blueprint::{Blueprint, Slot};
use crate::dims::LayerDims;
use crate::error::{ModelError, Result};

/// The names of a family's files.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// What base-model files leave out in front.
    pub prefix: &'static str,
    /// Stems, or whole names with `.weight` or `.bias`; `{l}` stands for a layer, `{e}` for an expert.
    pub entries: Vec<Name>,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Name {
    /// Canonical stem; the parent's of fused projections.
    pub slot: &'static str,
    /// The stem in files.
    pub file: &'static str,
    /// How the tensor lies there.
    pub how: How,
}

/// How tensors lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// As they are.
    Plain,
    /// Matrices as `[in, out]`.
    Transposed,
    /// q, k and v in one tensor.
    Qkv(QkvOrder),
    /// The same, `[in, out]`.
    QkvTransposed(QkvOrder),
    /// gate, then up, in one tensor.
    GateUp,
}

/// The order of rows in a fused q, k, v tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QkvOrder {
    /// All q, all k, all v.
    Blocks,
    /// For each key/value head: its q heads, its k, its v.
    PerGroup,
    /// This many shards (fewer where the heads do not divide), each q, v, k.
    ShardsQvk(usize),
}

/// A row of the table for tensors that lie as they are.
pub(crate) const fn plain(slot: &'static str, file: &'static str) -> Name {
    Name { slot, file, how: How::Plain }
}

/// A row of the table.
pub(crate) const fn stored(slot: &'static str, file: &'static str, how: How) -> Name {
    Name { slot, file, how }
}

/// A tensor of the family's files and the slots that it holds.
#[derive(Debug, Clone)]
pub(crate) struct FileTensor {
    pub name: String,
    pub how: How,
    pub parts: Vec<Slot>,
    pub dims: Option<LayerDims>,
}

/// A slot's name cut into pattern, layer, expert and suffix.
struct Parsed {
    stem: String,
    layer: Option<usize>,
    expert: Option<usize>,
    suffix: &'static str,
}

fn parse(slot: &str) -> Parsed {
    let (stem, suffix) = match (slot.strip_suffix(".weight"), slot.strip_suffix(".bias")) {
        (Some(stem), _) => (stem, ".weight"),
        (_, Some(stem)) => (stem, ".bias"),
        _ => (slot, ""),
    };
    let (mut layer, mut expert, mut before) = (None, None, "");
    let mut parts = Vec::new();
    for part in stem.split('.') {
        parts.push(match (part.parse::<usize>(), before) {
            (Ok(n), "layers") => {
                layer = Some(n);
                "{l}"
            }
            (Ok(n), "experts") => {
                expert = Some(n);
                "{e}"
            }
            _ => part,
        });
        before = part;
    }
    Parsed { stem: parts.join("."), layer, expert, suffix }
}

impl Names {
    /// The tensors of the family's files for a network with these dims, in the order of its slots.
    pub fn file_tensors(&self, blueprint: &Blueprint, dims: &[LayerDims]) -> Result<Vec<FileTensor>> {
        let mut tensors: Vec<FileTensor> = Vec::new();
        let mut fused = std::collections::HashMap::new();
        for slot in blueprint.slots(dims) {
            let parsed = parse(&slot.name);
            let (entry, name) = self.find(&parsed).ok_or_else(|| ModelError::Mismatch {
                what: format!("name of `{}` in this family's files", slot.name),
                found: "none".into(),
                expected: "a row in its table of names".into(),
            })?;
            let layer_dims = parsed.layer.and_then(|l| dims.get(l)).copied();
            let is_fused = matches!(entry.how, How::Qkv(_) | How::QkvTransposed(_) | How::GateUp);
            match fused.get(&name).and_then(|i: &usize| tensors.get_mut(*i)) {
                Some(tensor) if is_fused => tensor.parts.push(slot),
                _ => {
                    fused.insert(name.clone(), tensors.len());
                    tensors.push(FileTensor { name, how: entry.how, parts: vec![slot], dims: layer_dims });
                }
            }
        }
        Ok(tensors)
    }

    fn find(&self, parsed: &Parsed) -> Option<(Name, String)> {
        let fill = |file: &str, suffix: &str| {
            let mut name = format!("{file}{suffix}");
            if let Some(l) = parsed.layer {
                name = name.replace("{l}", &l.to_string());
            }
            if let Some(e) = parsed.expert {
                name = name.replace("{e}", &e.to_string());
            }
            name
        };
        let whole = format!("{}{}", parsed.stem, parsed.suffix);
        if let Some(entry) = self.entries.iter().find(|n| n.slot == whole) {
            return Some((*entry, fill(entry.file, "")));
        }
        if let Some(entry) = self.entries.iter().find(|n| n.slot == parsed.stem) {
            return Some((*entry, fill(entry.file, parsed.suffix)));
        }
        let (parent, child) = parsed.stem.rsplit_once('.')?;
        let entry = self.entries.iter().find(|n| {
            n.slot == parent
                && match n.how {
                    How::Qkv(_) | How::QkvTransposed(_) => matches!(child, "q" | "k" | "v"),
                    How::GateUp => matches!(child, "gate" | "up"),
                    How::Plain | How::Transposed => false,
                }
        })?;
        Some((*entry, fill(entry.file, parsed.suffix)))
    }
}

impl FileTensor {
    /// Its shape in the file.
    pub fn shape(&self) -> Vec<usize> {
        let mut shape = self.parts.first().map(|s| s.shape.clone()).unwrap_or_default();
        if let Some(rows) = shape.first_mut() {
            *rows = self.parts.iter().filter_map(|s| s.shape.first()).sum();
        }
        self.turned(&shape)
    }

    /// A part's shape as it lies in the file.
    pub fn turned(&self, shape: &[usize]) -> Vec<usize> {
        let mut shape = shape.to_vec();
        if matches!(self.how, How::Transposed | How::QkvTransposed(_)) {
            shape.reverse();
        }
        shape
    }

    /// The same tensor with matrices as `[out, in]`: a matrix of int8 has a scale for each row, so its rows are outputs in every family's
    /// files (transformers, too, turns GPT-2's before it quantises them).
    pub fn upright(self) -> Self {
        let how = match self.how {
            How::Transposed => How::Plain,
            How::QkvTransposed(order) => How::Qkv(order),
            other => other,
        };
        Self { how, ..self }
    }

    /// The slots' tensors of a tensor as it lies in the file.
    pub fn split(&self, tensor: &Tensor) -> Result<Vec<Tensor>> {
        let tensor = self.turn(tensor)?;
        match self.how {
            How::Plain | How::Transposed => Ok(vec![tensor]),
            How::GateUp | How::Qkv(QkvOrder::Blocks) | How::QkvTransposed(QkvOrder::Blocks) => self.cut(&tensor, 0, &self.rows()),
            How::Qkv(order) | How::QkvTransposed(order) => {
                let (outer, places) = self.interleave(order);
                let rows = self.rows();
                let inner: Vec<usize> = places.iter().filter_map(|p| rows.get(*p)).map(|n| n / outer).collect();
                let rest = tensor.elem_count() / rows.iter().sum::<usize>().max(1);
                let pieces = self.cut(&tensor.reshape((outer, inner.iter().sum::<usize>(), rest))?, 1, &inner)?;
                let mut parts = vec![None; rows.len()];
                for (place, piece) in places.iter().zip(pieces) {
                    if let (Some(part), Some(slot)) = (parts.get_mut(*place), self.parts.get(*place)) {
                        let mut shape = tensor.dims().to_vec();
                        if let (Some(rows), Some(own)) = (shape.first_mut(), slot.shape.first()) {
                            *rows = *own;
                        }
                        *part = Some(piece.reshape(shape)?);
                    }
                }
                Ok(parts.into_iter().flatten().collect())
            }
        }
    }

    /// The tensor as it lies in the file, of the slots' tensors.
    pub fn join(&self, parts: &[Tensor]) -> Result<Tensor> {
        let joined = match (self.how, parts) {
            (How::Plain | How::Transposed, [one]) => one.clone(),
            (How::Qkv(order) | How::QkvTransposed(order), parts) if order != QkvOrder::Blocks => {
                let (outer, places) = self.interleave(order);
                let mut pieces = Vec::new();
                for part in places.iter().filter_map(|p| parts.get(*p)) {
                    let rows = part.dim(0)?;
                    let rest = part.elem_count() / rows.max(1);
                    pieces.push(part.reshape((outer, rows / outer, rest))?);
                }
                let joined = Tensor::cat(&pieces, 1)?;
                let mut shape = parts.first().map(|part| part.dims().to_vec()).unwrap_or_default();
                if let Some(rows) = shape.first_mut() {
                    *rows = parts.iter().map(|part| part.dim(0)).sum::<candle_core::Result<usize>>()?;
                }
                joined.reshape(shape)?
            }
            (_, parts) => Tensor::cat(parts, 0)?,
        };
        self.turn(&joined)
    }

    /// Between a slot's matrix and the same matrix as it lies in the file; its own inverse.
    pub fn turn(&self, tensor: &Tensor) -> Result<Tensor> {
        if matches!(self.how, How::Transposed | How::QkvTransposed(_)) && tensor.rank() == 2 {
            return Ok(tensor.t()?.contiguous()?);
        }
        Ok(tensor.clone())
    }

    fn rows(&self) -> Vec<usize> {
        self.parts.iter().filter_map(|s| s.shape.first().copied()).collect()
    }

    /// Number of groups of rows, and the order of q (0), k (1), v (2) in each.
    fn interleave(&self, order: QkvOrder) -> (usize, [usize; 3]) {
        let dims = self.dims.unwrap_or_default();
        match order {
            QkvOrder::Blocks => (1, [0, 1, 2]),
            QkvOrder::PerGroup => (dims.kv_heads.max(1), [0, 1, 2]),
            QkvOrder::ShardsQvk(most) => {
                let shards = (1..=most).rev().find(|n| dims.q_heads.is_multiple_of(*n)).unwrap_or(1);
                (shards, [0, 2, 1])
            }
        }
    }

    fn cut(&self, tensor: &Tensor, dim: usize, rows: &[usize]) -> Result<Vec<Tensor>> {
        let mut start = 0;
        rows.iter()
            .map(|n| {
                let piece = tensor.narrow(dim, start, *n)?.contiguous()?;
                start += n;
                Ok(piece)
            })
            .collect()
    }
}
