//! Any bytes as a safetensors file: an error or a header whose tensors cover its data section, never a panic.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use prunectl_model::header::Header;

fuzz_target!(|bytes: &[u8]| {
    let path = Path::new("fuzz");
    // As it is, and as the header of a file whose length is right: the fuzzer seldom guesses it.
    let mut framed = (bytes.len() as u64).to_le_bytes().to_vec();
    framed.extend_from_slice(bytes);
    for file in [bytes, &framed] {
        if let Ok(header) = Header::of_bytes(path, file) {
            let covered: u64 = header.tensors.values().map(|t| t.end - t.begin).sum();
            assert_eq!(covered, header.data_bytes);
            for tensor in header.tensors.values() {
                assert!(tensor.end <= header.data_bytes);
            }
            let _ = header.check_size(path, file.len() as u64);
        }
    }
});
