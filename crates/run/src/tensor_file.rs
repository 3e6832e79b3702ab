//! A safetensors file written one tensor at a time, so that memory stays flat. Its bytes depend on the tensors alone: one metadata key,
//! because the order of several is not fixed, and a header padded with spaces so that the data starts at a multiple of 8.

use std::io::{self, Write};

/// Writes a tensor's values.
pub type Values<'t, E> = Box<dyn Fn(&mut dyn Write) -> Result<(), E> + 't>;

/// A tensor of the file, its values made when it is their turn.
pub struct Entry<'t, E> {
    /// Its name.
    pub name: String,
    /// Its type's name in the format: `F32`.
    pub dtype: &'static str,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Bytes of its values.
    pub bytes: u64,
    /// Writes them.
    pub values: Values<'t, E>,
}

/// Writes length, header and data.
///
/// # Errors
/// The disk is full, or a tensor's values can't be made.
pub fn write<E>(out: &mut dyn Write, entries: &[Entry<'_, E>], failed: impl Fn(io::Error) -> E) -> Result<(), E> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::json!({ "format": "pt" }));
    let mut offset = 0_u64;
    for entry in entries {
        let end = offset + entry.bytes;
        let place = serde_json::json!({ "dtype": entry.dtype, "shape": entry.shape, "data_offsets": [offset, end] });
        header.insert(entry.name.clone(), place);
        offset = end;
    }
    let mut text = serde_json::Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    out.write_all(&(text.len() as u64).to_le_bytes()).map_err(&failed)?;
    out.write_all(&text).map_err(&failed)?;
    entries.iter().try_for_each(|entry| (entry.values)(out))
}
