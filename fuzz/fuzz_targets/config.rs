//! Any bytes as a config.json: refused by name, or shapes whose parameters can be counted; never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prunectl_model::{Facts, Task};

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("config.json");
    std::fs::write(&path, bytes).expect("written");
    for task in [None, Some(Task::CausalLm), Some(Task::Classification), Some(Task::Encoder), Some(Task::QuestionAnswering)] {
        if let Ok(facts) = Facts::of_config(&path, task) {
            let _ = facts.blueprint.parameter_count(&facts.dims);
        }
    }
});
