//! GGUF: what llama.cpp loads. The file is written beside its place, read back, and must hold a network that computes what the model in
//! memory computes with its weights rounded the same way; only then is it there.

mod arch;
mod file;
mod metadata;
mod pieces;
mod vocab;

use std::collections::BTreeMap;
use std::io::BufReader;
use std::path::Path;
use std::str::FromStr;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{DType, Device, Tensor};
use prunectl_model::{Blueprint, LayerDims, Params, Transformer};
use serde_json::Value;

pub use arch::Inexpressible;
pub(crate) use arch::nearest;
use file::{Info, Meta};
use pieces::{From as Origin, Piece, Turn};

use crate::save::folder::Draft;
use crate::save::{self, Assets, SaveError, SaveRequest, Saved, Verified, verify};
use crate::stock::{Loader, LoaderVerdict, Verdict};

/// The type of a file's matrices. A matrix whose rows are no whole number of blocks falls back to the next finer type that fits, to f16
/// at last; norms, biases and routers stay f32, as llama.cpp's own converter has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantization(GgmlDType);

/// Word, type, and number of `general.file_type`.
const TYPES: &[(&str, GgmlDType, u32)] = &[
    ("f32", GgmlDType::F32, 0),
    ("f16", GgmlDType::F16, 1),
    ("bf16", GgmlDType::BF16, 32),
    ("q8_0", GgmlDType::Q8_0, 7),
    ("q5_1", GgmlDType::Q5_1, 9),
    ("q5_0", GgmlDType::Q5_0, 8),
    ("q4_1", GgmlDType::Q4_1, 3),
    ("q4_0", GgmlDType::Q4_0, 2),
    ("q6_k", GgmlDType::Q6K, 18),
    ("q5_k", GgmlDType::Q5K, 17),
    ("q4_k", GgmlDType::Q4K, 15),
    ("q3_k", GgmlDType::Q3K, 12),
    ("q2_k", GgmlDType::Q2K, 10),
];

impl Quantization {
    /// The words, finest first.
    pub fn words() -> Vec<&'static str> {
        TYPES.iter().map(|(word, ..)| *word).collect()
    }

    /// Every word with its type, finest first.
    pub(crate) fn all() -> impl Iterator<Item = (&'static str, GgmlDType)> {
        TYPES.iter().map(|(word, kind, _)| (*word, *kind))
    }

    /// The type of weights of that kind.
    pub fn of(dtype: DType) -> Self {
        Self(match dtype {
            DType::F16 => GgmlDType::F16,
            DType::BF16 => GgmlDType::BF16,
            _ => GgmlDType::F32,
        })
    }

    /// Its word.
    #[must_use]
    pub fn word(self) -> &'static str {
        TYPES.iter().find(|(_, t, _)| *t == self.0).map_or("f32", |(word, ..)| *word)
    }

    fn number(self) -> u32 {
        TYPES.iter().find(|(_, t, _)| *t == self.0).map_or(0, |(.., n)| *n)
    }

    fn of_tensor(self, piece: &Piece) -> GgmlDType {
        let fine = ["ffn_gate_inp.weight", "position_embd.weight", "rope_freqs.weight"];
        if piece.shape.len() < 2 || fine.iter().any(|name| piece.name.ends_with(name)) {
            return GgmlDType::F32;
        }
        let row = piece.shape.last().copied().unwrap_or(1);
        [self.0, GgmlDType::Q8_0].into_iter().find(|t| row.is_multiple_of(t.block_size())).unwrap_or(GgmlDType::F16)
    }
}

impl FromStr for Quantization {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = TYPES.iter().find(|(word, ..)| *word == text);
        known.map(|(_, t, _)| Self(*t)).ok_or_else(|| format!("found `{text}`, expected {}", Self::words().join(", ")))
    }
}

/// The architecture that llama.cpp would run the shapes with.
///
/// # Errors
/// Why there is none, and what would make it legal.
pub fn architecture(blueprint: &Blueprint, dims: &[LayerDims]) -> Result<&'static str, Inexpressible> {
    arch::architecture(blueprint, dims)
}

/// What was written.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Written {
    /// llama.cpp's name of the architecture.
    pub architecture: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// What reading it back showed.
    pub verified: Verified,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// The file's name in a folder that `save … { format = gguf }` wrote.
pub const GGUF_FILE: &str = "model.gguf";

/// `save … { format = gguf }`: a folder with the file, `prune.json` and a model card.
///
/// # Errors
/// As [`export`]; nothing is left behind, and a folder that was there before is untouched.
pub fn save(model: &Transformer, request: &SaveRequest<'_>, quantization: Quantization) -> Result<Saved, SaveError> {
    save::check_target(request.target, &request.record.run.recipe.name)?;
    let shaped = save::shaped(model, request)?;
    let mut draft = Draft::beside(request.target)?;
    let title = if request.card.title.is_empty() { &request.record.run.recipe.name } else { &request.card.title };
    let written = write(&shaped, &mut draft, GGUF_FILE, title, quantization, request.assets)?;
    let loaders = vec![LoaderVerdict { loader: Loader::LlamaCpp, verdict: Verdict::Gguf { architecture: written.architecture } }];
    save::write_record(&mut draft, request, &loaders)?;
    let files = draft.publish()?;
    let warnings = written.warnings.into_iter().chain(written.verified.warning()).collect();
    Ok(Saved { dir: request.target.into(), files, weight_bytes: written.bytes, loaders, verified: written.verified, warnings })
}

/// `export … --format gguf`: one file.
///
/// # Errors
/// Something is at `target`, llama.cpp has no architecture for the model, a value is not finite, the disk is full, or what is read back
/// computes something else. Nothing is left behind.
pub fn export(
    model: &Transformer,
    target: &Path,
    title: &str,
    quantization: Quantization,
    assets: Assets<'_>,
) -> Result<Written, SaveError> {
    let name = target.file_name().and_then(|n| n.to_str()).ok_or_else(|| SaveError::NoName { target: target.into() })?;
    if target.exists() {
        return Err(SaveError::Exists { target: target.into() });
    }
    let mut draft = Draft::beside(target)?;
    let mut written = write(model, &mut draft, name, title, quantization, assets)?;
    written.warnings.extend(written.verified.warning());
    draft.publish_file(name)?;
    Ok(written)
}

/// The context length of a config that has none.
const DEFAULT_CONTEXT: usize = 2048;

/// Adds the file `name` to the draft.
///
/// # Errors
/// llama.cpp has no architecture for the model, a value is not finite, the disk is full, or what is read back computes something else.
fn write(
    model: &Transformer,
    draft: &mut Draft,
    name: &str,
    title: &str,
    quantization: Quantization,
    assets: Assets<'_>,
) -> Result<Written, SaveError> {
    let config = &model.origin().config;
    let context = ["max_position_embeddings", "n_positions", "n_ctx"].iter().find_map(|k| config[*k].as_u64());
    let context = context.and_then(|n| usize::try_from(n).ok()).unwrap_or(DEFAULT_CONTEXT);
    let plan = arch::plan(model.blueprint(), model.dims(), context)?;
    let json = |name: &str| assets.read(name).and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()).unwrap_or(Value::Null);
    let vocabulary = vocab::vocabulary(vocab::Sources {
        tokenizer: &json("tokenizer.json"),
        settings: &json("tokenizer_config.json"),
        config,
        rows: model.blueprint().vocab,
    });
    let mut metadata = plan.metadata;
    metadata.push(("general.name".into(), Meta::Text(title.into())));
    metadata.push(("general.file_type".into(), Meta::U32(quantization.number())));
    metadata.push(("general.quantization_version".into(), Meta::U32(2)));
    metadata.extend(vocabulary.metadata);
    let info = |p: &Piece| Info { name: p.name.clone(), shape: p.shape.clone(), dtype: quantization.of_tensor(p) };
    let infos: Vec<Info> = plan.pieces.iter().map(info).collect();
    let mut warnings: Vec<String> = plan.warnings.into_iter().chain(vocabulary.warnings).collect();
    let coarser = infos.iter().filter(|i| i.shape.len() > 1 && i.dtype != quantization.0 && i.dtype != GgmlDType::F32).count();
    if coarser > 0 {
        let (word, block) = (quantization.word(), quantization.0.block_size());
        warnings.push(format!(
            "{coarser} matrices whose rows are no whole number of {word} blocks are finer, and larger: prune with `align = {block}` to have all"
        ));
    }
    let bytes = draft.write(name, |out| {
        file::write(out, &metadata, &infos, |i| match (plan.pieces.get(i), infos.get(i)) {
            (Some(piece), Some(info)) => bytes_of(model, piece, info),
            _ => Ok(Vec::new()),
        })
    })?;
    let path = draft.path().join(name);
    let (again, exact) = read_back(model, &path, &plan.pieces, &infos)?;
    let verified = verify::against(&again, &exact, model, quantization.word())?;
    Ok(Written { architecture: plan.architecture.into(), bytes, verified, warnings })
}

/// The tensor of a piece, f32, as the file's rows.
fn tensor_of(model: &Transformer, piece: &Piece) -> Result<Tensor, SaveError> {
    let get =
        |slot: &String| -> Result<Tensor, SaveError> { Ok(model.params().require(slot)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?) };
    let all = |slots: &[String]| slots.iter().map(get).collect::<Result<Vec<_>, _>>();
    let tensor = match &piece.from {
        Origin::Slot(slot) => get(slot)?,
        Origin::Rows(slot, rows) => get(slot)?.narrow(0, 0, *rows)?.contiguous()?,
        Origin::Stack(slots) => Tensor::stack(&all(slots)?, 0)?,
        Origin::Cat(parts) => {
            let scaled = |(slot, factor): &(String, f64)| -> Result<Tensor, SaveError> {
                Ok(if *factor == 1.0 { get(slot)? } else { (get(slot)? * *factor)? })
            };
            Tensor::cat(&parts.iter().map(scaled).collect::<Result<Vec<_>, _>>()?, 0)?
        }
        Origin::Fill(value) => Tensor::full(*value, piece.shape.as_slice(), &Device::Cpu)?,
        Origin::Values(values) => Tensor::new(values.as_slice(), &Device::Cpu)?,
    };
    let turned = match piece.turn {
        Turn::None => tensor,
        Turn::Interleave(heads) => swap_pairs(&tensor, heads, 2)?,
        Turn::Halve { heads, turned } => swap_first(&tensor, heads, turned, turned / 2)?,
        Turn::PlusOne => (tensor + 1.0)?,
    };
    Ok(if piece.factor == 1.0 { turned } else { (turned * piece.factor)? })
}

/// Values in blocks. candle quantises the whole storage below a tensor, so a view must become a tensor of its own first.
fn quantized(values: Vec<f32>, info: &Info) -> Result<QTensor, SaveError> {
    Ok(QTensor::quantize(&Tensor::from_vec(values, info.shape.as_slice(), &Device::Cpu)?, info.dtype)?)
}

fn values_of(model: &Transformer, piece: &Piece) -> Result<Vec<f32>, SaveError> {
    Ok(tensor_of(model, piece)?.flatten_all()?.to_vec1::<f32>()?)
}

/// Rows of each head as `[outer, rest]`, exchanged: 2 outer halves become neighbours, or the other way round with half a head outer.
fn swap_pairs(tensor: &Tensor, heads: usize, outer: usize) -> Result<Tensor, SaveError> {
    let rows = tensor.dim(0)? / heads.max(1);
    let rest = tensor.elem_count() / (heads * rows).max(1);
    let turned = tensor.reshape((heads, outer, rows / outer.max(1), rest))?.transpose(1, 2)?.contiguous()?;
    Ok(turned.reshape(tensor.dims())?)
}

/// The same of the first `turned` rows of each head only.
fn swap_first(tensor: &Tensor, heads: usize, turned: usize, outer: usize) -> Result<Tensor, SaveError> {
    let rows = tensor.dim(0)? / heads.max(1);
    let rest = tensor.elem_count() / (heads * rows).max(1);
    let split = tensor.reshape((heads, rows, rest))?;
    let first = swap_pairs(&split.narrow(1, 0, turned)?.contiguous()?.reshape((heads * turned, rest))?, heads, outer)?;
    let first = first.reshape((heads, turned, rest))?;
    let all = if turned == rows { first } else { Tensor::cat(&[&first, &split.narrow(1, turned, rows - turned)?], 1)? };
    Ok(all.contiguous()?.reshape(tensor.dims())?)
}

fn bytes_of(model: &Transformer, piece: &Piece, info: &Info) -> Result<Vec<u8>, SaveError> {
    let values = values_of(model, piece)?;
    let bad = values.iter().filter(|x| !x.is_finite()).count();
    if bad > 0 {
        return Err(SaveError::NotFinite { tensor: piece.name.clone(), count: bad, dtype: format!("{:?}", info.dtype).to_lowercase() });
    }
    Ok(quantized(values, info)?.data()?.into_owned())
}

/// The network that the file holds, with its weights as they were read, and `model` with its weights rounded the same way without the file.
fn read_back(model: &Transformer, path: &Path, pieces: &[Piece], infos: &[Info]) -> Result<(Transformer, Transformer), SaveError> {
    let open = std::fs::File::open(path).map_err(|e| SaveError::io("open", path, e))?;
    let mut reader = BufReader::new(open);
    let content = gguf_file::Content::read(&mut reader)?;
    let (mut found, mut rounded) = (BTreeMap::new(), BTreeMap::new());
    for (piece, info) in pieces.iter().zip(infos) {
        let there = content.tensor(&mut reader, &piece.name, &Device::Cpu)?;
        let fresh = quantized(values_of(model, piece)?, info)?.dequantize(&Device::Cpu)?;
        spread(model, piece, &there.dequantize(&Device::Cpu)?, &mut found)?;
        spread(model, piece, &fresh, &mut rounded)?;
    }
    let with = |params: BTreeMap<String, Tensor>| model.with_shape(model.dims().to_vec(), Params::from(params));
    Ok((with(found)?, with(rounded)?))
}

/// Puts a tensor of the file back into the slots that it was made of.
fn spread(model: &Transformer, piece: &Piece, tensor: &Tensor, into: &mut BTreeMap<String, Tensor>) -> Result<(), SaveError> {
    let tensor = if piece.factor == 1.0 { tensor.clone() } else { (tensor / piece.factor)? };
    let tensor = match piece.turn {
        Turn::None => tensor,
        Turn::Interleave(heads) => swap_pairs(&tensor, heads, tensor.dim(0)? / heads.max(1) / 2)?,
        Turn::Halve { heads, turned } => swap_first(&tensor, heads, turned, 2)?,
        Turn::PlusOne => (tensor - 1.0)?,
    };
    let mut put = |slot: &String, t: Tensor| -> Result<(), SaveError> {
        into.insert(slot.clone(), t.to_dtype(model.dtype())?.to_device(model.device())?);
        Ok(())
    };
    match &piece.from {
        Origin::Slot(slot) => put(slot, tensor)?,
        Origin::Rows(slot, rows) => {
            let whole = model.params().require(slot)?;
            let rest = whole.dim(0)?.saturating_sub(*rows);
            let rest = (rest > 0).then(|| whole.narrow(0, *rows, rest)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)).transpose()?;
            put(slot, rest.map_or(Ok(tensor.clone()), |rest| Tensor::cat(&[&tensor, &rest], 0))?)?;
        }
        Origin::Stack(slots) => {
            for (i, slot) in slots.iter().enumerate() {
                put(slot, tensor.get(i)?)?;
            }
        }
        Origin::Cat(parts) => {
            let mut start = 0;
            for (slot, factor) in parts {
                let rows = model.params().require(slot)?.dim(0)?;
                let part = tensor.narrow(0, start, rows)?.contiguous()?;
                put(slot, if *factor == 1.0 { part } else { (part / *factor)? })?;
                start += rows;
            }
        }
        Origin::Fill(_) | Origin::Values(_) => {}
    }
    Ok(())
}
