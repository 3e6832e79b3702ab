//! The GGUF container, version 3: header, metadata, tensor infos, aligned data. Tensors are made and written one at a time.

use std::io::Write;
use std::path::Path;

use candle_core::quantized::GgmlDType;

use crate::save::SaveError;

/// Where tensor data may begin.
const ALIGNMENT: usize = 32;
const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Meta {
    /// A count.
    U32(u32),
    /// A factor.
    F32(f32),
    /// A switch.
    Bool(bool),
    /// Text.
    Text(String),
    /// One count a layer, …
    U32s(Vec<u32>),
    /// One type a token.
    I32s(Vec<i32>),
    /// One score a token.
    F32s(Vec<f32>),
    /// One switch a layer.
    Bools(Vec<bool>),
    /// Tokens, merges.
    Texts(Vec<String>),
}

/// Numbers of the types in the format.
mod kind {
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
}

/// Name, shape (rows first, as our tensors have it) and type of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Info {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: GgmlDType,
}

impl Info {
    /// Bytes of its data.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() / self.dtype.block_size() * self.dtype.type_size()
    }
}

fn text(out: &mut Vec<u8>, s: &str) {
    out.extend_from_slice(&(s.len() as u64).to_le_bytes());
    out.extend_from_slice(s.as_bytes());
}

fn array(out: &mut Vec<u8>, of: u32, len: usize) {
    out.extend_from_slice(&kind::ARRAY.to_le_bytes());
    out.extend_from_slice(&of.to_le_bytes());
    out.extend_from_slice(&(len as u64).to_le_bytes());
}

fn value(out: &mut Vec<u8>, meta: &Meta) {
    match meta {
        Meta::U32(x) => {
            out.extend_from_slice(&kind::U32.to_le_bytes());
            out.extend_from_slice(&x.to_le_bytes());
        }
        Meta::F32(x) => {
            out.extend_from_slice(&kind::F32.to_le_bytes());
            out.extend_from_slice(&x.to_le_bytes());
        }
        Meta::Bool(x) => {
            out.extend_from_slice(&kind::BOOL.to_le_bytes());
            out.push(u8::from(*x));
        }
        Meta::Text(s) => {
            out.extend_from_slice(&kind::STRING.to_le_bytes());
            text(out, s);
        }
        Meta::U32s(list) => {
            array(out, kind::U32, list.len());
            list.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
        }
        Meta::I32s(list) => {
            array(out, kind::I32, list.len());
            list.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
        }
        Meta::F32s(list) => {
            array(out, kind::F32, list.len());
            list.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
        }
        Meta::Bools(list) => {
            array(out, kind::BOOL, list.len());
            out.extend(list.iter().map(|x| u8::from(*x)));
        }
        Meta::Texts(list) => {
            array(out, kind::STRING, list.len());
            list.iter().for_each(|s| text(out, s));
        }
    }
}

/// The type's number in the format.
fn number(dtype: GgmlDType) -> u32 {
    match dtype {
        GgmlDType::F32 => 0,
        GgmlDType::F16 => 1,
        GgmlDType::Q4_0 => 2,
        GgmlDType::Q4_1 => 3,
        GgmlDType::Q5_0 => 6,
        GgmlDType::Q5_1 => 7,
        GgmlDType::Q8_0 => 8,
        GgmlDType::Q8_1 => 9,
        GgmlDType::Q2K => 10,
        GgmlDType::Q3K => 11,
        GgmlDType::Q4K => 12,
        GgmlDType::Q5K => 13,
        GgmlDType::Q6K => 14,
        GgmlDType::Q8K => 15,
        GgmlDType::BF16 => 30,
    }
}

/// Writes the file; `data` makes the bytes of tensor i when its turn comes.
pub(crate) fn write(
    out: &mut dyn Write,
    metadata: &[(String, Meta)],
    tensors: &[Info],
    mut data: impl FnMut(usize) -> Result<Vec<u8>, SaveError>,
) -> Result<(), SaveError> {
    let put = |out: &mut dyn Write, bytes: &[u8]| out.write_all(bytes).map_err(|e| SaveError::io("write", Path::new(""), e));
    let mut head = Vec::new();
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    head.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
    for (name, meta) in metadata {
        text(&mut head, name);
        value(&mut head, meta);
    }
    let mut offset = 0_usize;
    for tensor in tensors {
        text(&mut head, &tensor.name);
        head.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
        // The format lists the innermost dimension first.
        tensor.shape.iter().rev().for_each(|n| head.extend_from_slice(&(*n as u64).to_le_bytes()));
        head.extend_from_slice(&number(tensor.dtype).to_le_bytes());
        head.extend_from_slice(&(offset as u64).to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    put(out, &head)?;
    for i in 0..tensors.len() {
        let mut bytes = data(i)?;
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        put(out, &bytes)?;
    }
    Ok(())
}
