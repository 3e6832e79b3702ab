//! Whatever the bytes, a recipe is parsed, checked, rendered and formatted without a panic, and formatting is stable.
//! `cargo +nightly fuzz run recipe`
#![no_main]

use libfuzzer_sys::fuzz_target;
use prunectl_recipe::catalogue::Catalogue;
use prunectl_recipe::{compile, format, render};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let compiled = compile(text, "fuzz.prune", &[], &(), &Catalogue::default(), &());
    if let Err(diagnostics) = &compiled.result {
        render::render(diagnostics, &compiled.sources, false);
    }
    if let Ok(once) = format::format(text) {
        assert_eq!(format::format(&once).ok().as_deref(), Some(once.as_str()));
    }
});
