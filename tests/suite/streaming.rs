//! A model that stays on the disk: the same bytes as in memory, from the same recipe.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::common::{run, stderr, stdout};
use crate::families::golden;

const MODELS: [&str; 4] = ["families/llama", "families/gpt2", "families/phi3", "families/gemma2"];
const RECIPES: [(&str, &str); 3] = [
    (
        "wanda",
        "prune w by 30% using wanda(on = d) { batch = 2 }\nprune w by 2 of 4 using wanda(on = d) { batch = 2 }\nsave m to \"out\" { dtype = bf16 }\n",
    ),
    (
        "sparsegpt",
        "prune w by 30% using sparsegpt(on = d, block = 16) { batch = 2 }\nprune w by 60% using sparsegpt(on = d) { batch = 2 }\nsave m to \"out\"\n",
    ),
    (
        "flap",
        "prune m.layers[*].mlp.neurons by 40% using flap(on = d) { batch = 2 }\nprune m.layers[*].attention.kv_groups by 25% using wanda(on = d) { batch = 2 }\ncompact m\nsave m to \"out\"\n",
    ),
];

/// Every file below a folder that must be the same, by its path.
fn files(folder: &Path, into: &mut BTreeMap<String, Vec<u8>>, prefix: &str) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let name = format!("{prefix}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            files(&entry.path(), into, &name);
        } else {
            into.insert(name, fs::read(entry.path()).unwrap());
        }
    }
}

fn results(model: &str, steps: &str, memory: &str) -> BTreeMap<String, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let folder = golden(model);
    let data = folder.join("expected.safetensors");
    let text = format!(
        "edition 2026\nmodel m = dir({:?})\ndata d = tokens({:?})\nlet w = m.layers[*].linears.weights\n{steps}eval loss() of m on d as after {{ batch = 2 }}\n",
        folder.display().to_string(),
        data.display().to_string()
    );
    fs::write(dir.path().join("stream.prune"), text).unwrap();
    let out = run(dir.path(), &["run", "stream.prune", "--out", "run", "--memory", memory]);
    assert_eq!(out.status.code(), Some(0), "{model}, {memory}: {}", stderr(&out));
    assert_eq!(stderr(&out).contains("stays on the disk"), memory == "1MiB", "{}", stderr(&out));
    let mut found = BTreeMap::new();
    files(&dir.path().join("out"), &mut found, "out");
    for part in ["scores", "decisions"] {
        files(&dir.path().join("run").join(part), &mut found, part);
    }
    found.insert("metrics".to_owned(), fs::read(dir.path().join("run/metrics.json")).unwrap());
    assert_eq!(
        fs::read_dir(dir.path().join("run")).unwrap().flatten().filter(|e| e.file_name().to_string_lossy().starts_with(".tmp")).count(),
        0
    );
    found
}

#[test]
fn a_streamed_model_gives_the_same_bytes() {
    for model in MODELS {
        for (name, steps) in RECIPES {
            let (memory, disk) = (results(model, steps, "64GiB"), results(model, steps, "1MiB"));
            assert!(memory.keys().eq(disk.keys()), "{model}, {name}: {:?} {:?}", memory.keys(), disk.keys());
            for (file, bytes) in &memory {
                assert!(*bytes == disk[file], "{model}, {name}: {file} differs");
            }
        }
    }
}

#[test]
fn the_plan_says_what_stays_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let folder = golden("families/llama");
    let data = folder.join("expected.safetensors");
    let write = |steps: &str| {
        let text = format!(
            "edition 2026\nmodel m = dir({:?})\ndata d = tokens({:?})\n{steps}",
            folder.display().to_string(),
            data.display().to_string()
        );
        fs::write(dir.path().join("stream.prune"), text).unwrap();
        stdout(&run(dir.path(), &["plan", "stream.prune", "--memory", "1MiB"]))
    };
    let layerwise = write("prune m.layers[*].linears.weights by 50% using wanda(on = d)\nsave m to \"out\"\n");
    assert!(layerwise.contains("m stays on the disk"), "{layerwise}");
    // Training needs every weight at once.
    let trained = write("train m on d for 1 steps {}\nsave m to \"out\"\n");
    assert!(!trained.contains("stays on the disk"), "{trained}");
}
