//! Parquet files, row by row, as lines of JSON: from there on they are read as any other rows.
//!
//! The crate is used without arrow. Columns of raw bytes (images, audio) are left out: nothing here could use them.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::error::DataError;
use crate::caught::quietly;

/// Writes every row of `file` as one line of JSON.
pub(super) fn to_lines(file: &File, shown: &Path, out: &mut impl Write) -> Result<(), DataError> {
    let wrong = |found: String| DataError::WrongFile { path: shown.to_owned(), found, expected: "a whole parquet file".into() };
    // The crate answers some damaged files with a panic. Nothing of its state outlives the call.
    let read = quietly(|| {
        let broken = |e: parquet::errors::ParquetError| wrong(format!("a parquet file that can't be read ({e})"));
        let file = file.try_clone().map_err(|error| DataError::Io { path: shown.to_owned(), error })?;
        let reader = SerializedFileReader::new(file).map_err(broken)?;
        if let Some(why) = super::delta::wrong(&reader).map_err(broken)? {
            return Err(wrong(format!("a parquet file with {why}")));
        }
        for (number, row) in reader.get_row_iter(None).map_err(broken)?.enumerate() {
            let row = row.map_err(|e| wrong(format!("a parquet file whose row {} can't be read ({e})", number + 1)))?;
            let mut line = object(row).to_string();
            line.push('\n');
            // What can't be written is the temporary folder's trouble.
            out.write_all(line.as_bytes()).map_err(|error| DataError::Io { path: std::env::temp_dir(), error })?;
        }
        Ok(())
    });
    read.unwrap_or_else(|_| Err(wrong("a parquet file that is damaged, or has a column of a kind that can't be read".to_owned())))
}

fn object(row: Row) -> Value {
    let mut out = Map::new();
    for (name, field) in row.into_columns() {
        if let Some(value) = value(field) {
            out.insert(name, value);
        }
    }
    Value::Object(out)
}

/// `None` where JSON has no word for it.
fn value(field: Field) -> Option<Value> {
    Some(match field {
        Field::Null => Value::Null,
        Field::Bool(b) => b.into(),
        Field::Byte(x) => x.into(),
        Field::Short(x) => x.into(),
        Field::Int(x) | Field::Date(x) | Field::TimeMillis(x) => x.into(),
        Field::Long(x) | Field::TimeMicros(x) | Field::TimestampMillis(x) | Field::TimestampMicros(x) => x.into(),
        Field::UByte(x) => x.into(),
        Field::UShort(x) => x.into(),
        Field::UInt(x) => x.into(),
        Field::ULong(x) => x.into(),
        Field::Float16(x) => f64::from(f32::from(x)).into(),
        // By way of its decimal form, so that 0.1 stays 0.1.
        Field::Float(x) => x.to_string().parse::<f64>().unwrap_or(f64::from(x)).into(),
        Field::Double(x) => x.into(),
        Field::Str(s) => s.into(),
        Field::Group(row) => object(row),
        Field::ListInternal(list) => Value::Array(list.elements().iter().filter_map(|f| value(f.clone())).collect()),
        Field::MapInternal(map) => {
            let text = |f: &Field| match f {
                Field::Str(s) => s.clone(),
                other => other.to_string(),
            };
            map.entries().iter().filter_map(|(k, v)| Some((text(k), value(v.clone())?))).collect::<Map<_, _>>().into()
        }
        Field::Decimal(_) | Field::Bytes(_) => return None,
    })
}
