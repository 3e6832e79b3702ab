//! Any bytes as a csv, tsv, JSON lines or text file, packed or not: an error with its place, or rows that can all be read; never a panic.
//! The first byte chooses the format and what is asked of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prunectl_fuzz::{open, written};
use prunectl_recipe::plan::DataSource;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let name = ["f.csv", "f.tsv", "f.jsonl", "f.txt"][usize::from(kind % 4)];
    let (_dir, path) = written(name, bytes);
    let source = match kind % 4 {
        0 | 1 => DataSource::Csv(path),
        2 => DataSource::Jsonl(path),
        _ => DataSource::Text(path),
    };
    open(source, kind & 0x10 != 0, kind & 0x20 != 0);
});
