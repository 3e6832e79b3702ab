//! Recovery steps as a user runs them: what they report, and that a killed run ends in the same bytes, with one thread or two.

use std::fs;
use std::path::Path;

use crate::common::{prunectl, run, stderr, stdout};
use crate::kill::{content, killed_after};

/// Closed-form recovery, then blocks; the second block has a checkpoint inside.
const RECIPE: &str = r#"edition 2026

model m = init("builtin:tiny-bert", seed = 3)
data  d = builtin("tales")

let probe   = d.train.take(24)
let teacher = frozen(m)

prune m.layers[*].attention.heads | m.layers[*].mlp.neurons by 40% each using magnitude() {
    at_least    = 10%
    reconstruct = least_squares
    on          = probe
}
reconstruct m.layers[0..2] from teacher on probe for 60 steps {
    batch     = 4
    optimizer = adamw(lr = 1e-3)
}
compact m
eval loss() of m on d.validation.take(16) as after
save m to "out/small"
"#;

fn write(dir: &Path) {
    fs::write(dir.join("r.prune"), RECIPE).unwrap();
}

#[test]
fn recovery_is_reported_and_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    write(d);
    let plan = run(d, &["plan", "r.prune"]);
    assert!(stdout(&plan).contains("fitted by least squares, block by block, in 6 passes"), "{}", stdout(&plan));
    assert!(stdout(&plan).contains("each trained alone on"), "{}", stdout(&plan));
    let out = run(d, &["run", "r.prune", "--out", "whole"]);
    assert!(out.status.success(), "{}", stderr(&out));
    let metrics: serde_json::Value = serde_json::from_slice(&fs::read(d.join("whole/metrics.json")).unwrap()).unwrap();
    let fitted = metrics["reconstruct"]["prune-1"]["writers"].as_array().unwrap();
    assert!(fitted.len() >= 4 && metrics["reconstruct"]["prune-1"]["method"] == "least_squares", "{metrics}");
    assert!(fitted.iter().all(|w| w["after"].as_f64() < w["before"].as_f64()), "{fitted:?}");
    let blocks = metrics["reconstruct"]["reconstruct-1"]["blocks"].as_array().unwrap();
    assert_eq!(blocks.len(), 2);
    assert!(blocks.iter().all(|b| b["last"].as_f64() < b["first"].as_f64() && b["steps"] == 60), "{blocks:?}");
    let expected = content(&d.join("whole"));
    let saved = content(&d.join("out/small"));

    // One thread computes the same bits; and so does a run that is killed within the prune, within the blocks, and while it resumes.
    for (name, lines) in [("one", None), ("early", Some(8)), ("late", Some(11))] {
        fs::remove_dir_all(d.join("out")).unwrap();
        match lines {
            None => {
                assert!(prunectl(d, &["run", "r.prune", "--out", name]).env("RAYON_NUM_THREADS", "1").output().unwrap().status.success())
            }
            Some(n) => {
                let journal = d.join(name).join("journal.jsonl");
                if killed_after(d, &["run", "r.prune", "--out", name], &journal, n) {
                    let out = run(d, &["resume", name]);
                    assert!(out.status.success() || stderr(&out).contains("has ended"), "{}", stderr(&out));
                }
            }
        }
        let found = content(&d.join(name));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
        for (file, bytes) in &expected {
            assert!(found.get(file) == Some(bytes), "{name}: {file} differs");
        }
        assert!(content(&d.join("out/small")).iter().all(|(file, bytes)| saved.get(file) == Some(bytes)), "{name}");
    }
}

#[test]
fn blocks_take_up_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    write(d);
    assert!(run(d, &["run", "r.prune", "--out", "whole"]).status.success());
    let journal = d.join("cut/journal.jsonl");
    let checkpoint = d.join("cut/checkpoints/reconstruct-1.safetensors");
    let mut child = prunectl(d, &["run", "r.prune", "--out", "cut"]).stderr(std::process::Stdio::null()).spawn().unwrap();
    let clock = std::time::Instant::now();
    while !checkpoint.exists() && child.try_wait().unwrap().is_none() && clock.elapsed().as_secs() < 120 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let _ = child.kill();
    child.wait().unwrap();
    let ended = fs::read_to_string(&journal).unwrap().contains("\"event\":\"end\"");
    let out = run(d, &["resume", "cut"]);
    assert!(out.status.success() || ended, "{}", stderr(&out));
    assert!(ended || stderr(&out).contains("goes on with layers."), "{}", stderr(&out));
    let (expected, found) = (content(&d.join("whole")), content(&d.join("cut")));
    assert!(expected.iter().all(|(file, bytes)| found.get(file) == Some(bytes)));
}

/// Adapters pruned inside a training and beside it, and a loss with every kind of imitation.
const ADAPTED: &str = r#"edition 2026

model m = init("builtin:tiny-bert", seed = 3)
data  d = builtin("tales")

let probe   = d.train.take(24)
let teacher = frozen(m)

attach splora(rank = 2) to m.layers[*].linears as a
train m on probe for 12 steps {
    only      = a | m.classifier
    batch     = 8
    optimizer = adamw(lr = 5e-3)
    loss      = task() + 0.1 * hidden(teacher) + 0.1 * attention_maps(teacher, kind = kl) + minilm(teacher, relation_heads = 8) + relation(teacher)
    prune m.layers[*].mlp.neurons by linear(0% -> 30%, during = 0%..60%) using taylor(through = a) { every = 3 steps  at_least = 10% }
}
prune m.layers[*].attention.heads by 25% using taylor(on = probe, through = a) { at_least = 1 head }
eval loss() of m on d.validation.take(16) as adapted
save m to "out/adapter" { format = peft }
fuse a into m
eval loss() of m on d.validation.take(16) as fused
compact m
train m on probe for 3 steps { batch = 8  optimizer = adamw(lr = 1e-3)  loss = noisy_student(teacher) }
eval loss() of m on d.validation.take(16) as after
expect fused <= adapted + 0.00001 and fused >= adapted - 0.00001
save m to "out/adapted"
"#;

const AGAIN: &str = r#"edition 2026

model m = init("builtin:tiny-bert", seed = 3)
model n = init("builtin:tiny-bert", seed = 3)
data  d = builtin("tales")

attach lora(rank = 3, alpha = 6) to m.layers[*].attention.linears as a
train m on d.train.take(24) for 4 steps { batch = 8  optimizer = adamw(lr = 5e-3) }
eval loss() of m on d.validation.take(16) as trained
save m to "out/alone" { format = peft }
save m to "out/whole"
attach lora(rank = 3, from = "out/alone") to n.layers[*].attention.linears as b
eval loss() of n on d.validation.take(16) as attached
expect attached == trained
"#;

#[test]
fn adapters_train_are_pruned_and_fuse_and_survive_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    fs::write(d.join("a.prune"), ADAPTED).unwrap();
    let out = run(d, &["run", "a.prune", "--out", "whole"]);
    assert!(out.status.success(), "{}{}", stdout(&out), stderr(&out));
    assert!(stderr(&out).contains("parameters beside"), "{}", stderr(&out));
    let expected = content(&d.join("whole"));
    let saved = content(&d.join("out/adapted"));
    assert!(saved.contains_key("model.safetensors"));
    // The adapter alone, attached again to a fresh model of the shape that it was trained on, is the same update.
    assert!(d.join("out/adapter/adapter_model.safetensors").exists());
    fs::write(d.join("b.prune"), AGAIN).unwrap();
    let out = run(d, &["run", "b.prune", "--out", "again"]);
    assert!(out.status.success(), "{}{}", stdout(&out), stderr(&out));
    fs::remove_dir_all(d.join("out")).unwrap();
    let journal = d.join("cut/journal.jsonl");
    if killed_after(d, &["run", "a.prune", "--out", "cut"], &journal, 11) {
        let out = run(d, &["resume", "cut"]);
        assert!(out.status.success() || stderr(&out).contains("has ended"), "{}", stderr(&out));
    }
    let found = content(&d.join("cut"));
    for (file, bytes) in &expected {
        assert!(found.get(file) == Some(bytes), "{file} differs");
    }
    assert!(content(&d.join("out/adapted")).iter().all(|(file, bytes)| saved.get(file) == Some(bytes)));
}

#[test]
fn a_fit_without_units_or_data_is_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    for (line, code) in [
        ("prune m.layers[*].mlp.neurons by 40% using magnitude() { reconstruct = least_squares }", "P0410"),
        ("prune m.layers[*].linears.weights by 40% using magnitude() { reconstruct = bias  on = d.train }", "P0513"),
    ] {
        fs::write(d.join("r.prune"), format!("edition 2026\nmodel m = builtin(\"tiny-bert\")\ndata d = builtin(\"tales\")\n{line}\n"))
            .unwrap();
        let out = run(d, &["check", "r.prune"]);
        assert!(stderr(&out).contains(code) || stdout(&out).contains(code), "{}{}", stdout(&out), stderr(&out));
    }
}
