//! Any bytes as a tokenizer.json: refused, or a tokenizer that cuts and counts as it says; never a panic of ours.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prunectl_run::tokenizer::Tokenizer;

fuzz_target!(|bytes: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_bytes("fuzz", bytes, &serde_json::Value::Null) else { return };
    let vocabulary = tokenizer.vocabulary();
    if let Ok(limited) = tokenizer.limited(8)
        && let Ok(row) = limited.encode("One day, a text of a few words. ½", Some("and another"))
    {
        assert!(row.ids.len() <= 8);
        assert!(row.ids.iter().all(|id| (*id as usize) < vocabulary));
    }
});
