//! Any bytes as a parquet file: an error with its place, or rows that can all be read; never a panic of ours. (Damaged files make the parquet
//! crate panic; that panic is caught where it is called, so the fuzzer's abort on panic is switched off.) Memory is bounded by the fuzzer's
//! own limits, `-rss_limit_mb` and `-malloc_limit_mb`: a header that promises gigabytes must not take them.
#![no_main]

use std::sync::Once;

use libfuzzer_sys::fuzz_target;
use prunectl_fuzz::{open, written};
use prunectl_recipe::plan::DataSource;

fuzz_target!(|bytes: &[u8]| {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let (_dir, path) = written("f.parquet", bytes);
    open(DataSource::Parquet(path), false, false);
});
