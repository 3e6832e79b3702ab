//! How many values the delta-encoded pages of a parquet file promise. The parquet crate makes room for as many as such a page's own header
//! says before it reads one, and a damaged header may say 2⁶²: the process would end for want of memory. A page says elsewhere how many
//! values it has, so the two are compared first (Parquet format, Encodings.md, DELTA_BINARY_PACKED and the two made of it).

use parquet::basic::Encoding;
use parquet::column::page::{Page, PageReader};
use parquet::errors::Result;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{FileReader, RowGroupReader};

/// Levels are stored as runs, behind their length in four bytes.
const LEVEL_LENGTH_BYTES: usize = 4;

/// What is wrong with the file's delta-encoded pages, if anything. For this all pages are unpacked once more than to read the rows: a column
/// does not have to name the encodings of its pages, and making JSON of them takes far longer.
pub(super) fn wrong(reader: &impl FileReader) -> Result<Option<String>> {
    for i in 0..reader.num_row_groups() {
        let group = reader.get_row_group(i)?;
        for column in 0..group.metadata().num_columns() {
            if let Some(why) = column_wrong(group.as_ref(), group.metadata(), column)? {
                return Ok(Some(why));
            }
        }
    }
    Ok(None)
}

fn is_delta(encoding: Encoding) -> bool {
    matches!(encoding, Encoding::DELTA_LENGTH_BYTE_ARRAY | Encoding::DELTA_BYTE_ARRAY)
}

fn column_wrong(group: &dyn RowGroupReader, metadata: &RowGroupMetaData, column: usize) -> Result<Option<String>> {
    let described = metadata.column(column);
    let (max_def, max_rep) = (described.column_descr().max_def_level(), described.column_descr().max_rep_level());
    let mut pages: Box<dyn PageReader> = group.get_column_page_reader(column)?;
    while let Some(page) = pages.get_next_page()? {
        let (values, count) = match &page {
            Page::DataPage { buf, num_values, encoding, def_level_encoding, rep_level_encoding, .. } if is_delta(*encoding) => {
                let mut rest = buf.as_ref();
                for (max, encoding) in [(max_rep, rep_level_encoding), (max_def, def_level_encoding)] {
                    if max > 0 {
                        rest = match behind_levels(rest, *encoding) {
                            Some(rest) => rest,
                            None => return Ok(Some("levels that go on behind their page".to_owned())),
                        };
                    }
                }
                (rest, *num_values)
            }
            Page::DataPageV2 { buf, num_values, encoding, def_levels_byte_len, rep_levels_byte_len, .. } if is_delta(*encoding) => {
                let levels = (*def_levels_byte_len as usize).saturating_add(*rep_levels_byte_len as usize);
                (buf.get(levels..).unwrap_or_default(), *num_values)
            }
            _ => continue,
        };
        let both = page.encoding() == Encoding::DELTA_BYTE_ARRAY;
        if !promises_no_more(values, u64::from(count), both) {
            return Ok(Some(format!("a page of {count} values whose lengths are for more, or end too early")));
        }
    }
    Ok(None)
}

/// What stands behind a page's levels. Those that are not runs are of an encoding that nobody writes any more.
fn behind_levels(bytes: &[u8], encoding: Encoding) -> Option<&[u8]> {
    if encoding != Encoding::RLE {
        return None;
    }
    let (length, rest) = bytes.split_first_chunk::<LEVEL_LENGTH_BYTES>()?;
    rest.get(u32::from_le_bytes(*length) as usize..)
}

/// Whether the blocks of lengths in front of the values (of `both` the prefixes' and the suffixes') are for at most `count` values.
fn promises_no_more(bytes: &[u8], count: u64, both: bool) -> bool {
    let mut rest = bytes;
    (0..=usize::from(both)).all(|_| block(&mut rest).is_some_and(|n| n <= count))
}

/// Passes one delta-encoded list of numbers; how many it says it has.
fn block(bytes: &mut &[u8]) -> Option<u64> {
    let (size, parts, count) = (number(bytes)?, number(bytes)?, number(bytes)?);
    let _first = number(bytes)?;
    let each = size.checked_div(parts)?;
    let mut left = count.saturating_sub(1);
    while left > 0 {
        let _least = number(bytes)?;
        let (widths, rest) = bytes.split_at_checked(usize::try_from(parts).ok()?)?;
        *bytes = rest;
        for width in widths {
            if left == 0 {
                break;
            }
            let length = u64::from(*width).checked_mul(each)? / 8;
            *bytes = bytes.get(usize::try_from(length).ok()?..).or((left <= each).then_some(&[]))?;
            left = left.saturating_sub(each.max(1));
        }
        // A block without parts would never end.
        if widths.is_empty() {
            return None;
        }
    }
    Some(count)
}

/// A number of seven bits a byte, the lowest first.
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut out = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        out |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(out);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two files of pyarrow (`fuzz/seeds.py`), and one of them with changed bytes, which the fuzzer found to take a gigabyte.
    #[test]
    fn a_file_that_promises_too_much_is_told_from_others() {
        let of = |name: &str| {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/parquet").join(name);
            let reader = parquet::file::reader::SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
            wrong(&reader).unwrap()
        };
        assert_eq!((of("prefixes.parquet"), of("lengths.parquet")), (None, None));
        assert!(of("promises.parquet").unwrap().starts_with("a page of 5 values whose lengths are for more"));
    }

    #[test]
    fn lengths_are_for_no_more_values_than_the_page_has() {
        // Blocks of 128 in 4 parts, 3 values from 5 on: least difference 0, widths 1 0 0 0, 32 bits.
        let list = [0x80, 1, 4, 3, 10, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        let mut rest = &list[..];
        assert_eq!((block(&mut rest), rest.len()), (Some(3), 0));
        assert!(promises_no_more(&list, 3, false) && !promises_no_more(&list, 2, false));
        assert!(!promises_no_more(&list, 3, true), "the second list is missing");
        assert!(promises_no_more(&[list, list].concat(), 3, true));
        // 2⁶² values.
        let many = [0x80, 1, 4, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40, 10];
        assert!(!promises_no_more(&many, 1000, false));
        assert!(!promises_no_more(&[0x80, 1, 0, 9, 10, 0], 1000, false), "no parts");
    }
}
