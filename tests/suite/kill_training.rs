//! A training with `prune`s inside is killed between two checkpoints, and must end in the bytes of one that nobody disturbed.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use crate::common::{prunectl, run, stderr};
use crate::kill::content;

/// A criterion under a schedule, and two that learn; evals inside, of which the lowest is kept.
const RECIPE: &str = r#"edition 2026

model m = init("builtin:tiny-llama", seed = 3)
data  d = builtin("tales")

let text = d.train.pack(32 tokens)

train m on text for 60 steps {
    batch            = 2
    optimizer        = adamw(lr = linear(0 -> 1e-3, for = 10%) then linear(1e-3 -> 0))
    loss             = next_token() + 0.01 * l1(scores)
    clip             = 1.0
    checkpoint_every = 5 steps
    keep             = lowest(val)

    prune m.layers[*].attention.kv_groups by cubic(0% -> 25%, during = 10%..50%) using magnitude() { every = 7 steps }
    prune m.layers[*].mlp.neurons by cubic(0% -> 50%, during = 10%..50%) using gum(lr = 0.05) { at_least = 10% }
    prune m.layers[*].attention.linears.weights by cubic(0% -> 50%, during = 10%..50%) using movement() { every = 3 steps }
    eval loss() of m on d.validation.take(8) as val { every = 20 steps }
}
compact m
eval loss() of m on d.validation.take(8) as after
save m to "out/m"
"#;

/// Checkpoints after which the process is killed.
const KILLS: [usize; 3] = [1, 4, 8];

/// Kills the run when its training has written so many checkpoints. False if it ended before.
fn killed_after(dir: &Path, args: &[&str], checkpoint: &Path, n: usize) -> bool {
    let mut child = prunectl(dir, args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let clock = Instant::now();
    let (mut seen, mut last) = (0, None::<SystemTime>);
    while seen < n && clock.elapsed() < Duration::from_secs(120) {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        let now = fs::metadata(checkpoint).and_then(|m| m.modified()).ok();
        if now.is_some() && now != last {
            (seen, last) = (seen + 1, now);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    true
}

#[test]
pub fn a_killed_training_resumes_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    fs::write(d.join("t.prune"), RECIPE).unwrap();
    let out = run(d, &["run", "t.prune", "--out", "whole"]);
    assert!(out.status.success(), "{}", stderr(&out));
    let expected = content(&d.join("whole"));
    for file in ["decisions/train-1.1.json", "decisions/train-1.3.safetensors", "scores/train-1.2.safetensors"] {
        assert!(expected.contains_key(file), "{file} of {:?}", expected.keys());
    }
    let saved = content(&d.join("out/m"));
    let mut kills = 0;
    for n in KILLS {
        fs::remove_dir_all(d.join("out")).unwrap();
        let name = format!("cut-{n}");
        let checkpoint = d.join(&name).join("checkpoints/train-1.safetensors");
        if killed_after(d, &["run", "t.prune", "--out", &name], &checkpoint, n) {
            kills += 1;
            let out = run(d, &["resume", &name]);
            let ended = stderr(&out).contains("has ended");
            assert!(out.status.success() || ended, "killed after checkpoint {n}: {}", stderr(&out));
            let journal = fs::read_to_string(d.join(&name).join("journal.jsonl")).unwrap();
            let line = journal.lines().find(|l| l.contains("\"event\":\"continue\"")).expect("the step that it went on from");
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(line["step"].as_u64().unwrap() >= 5 * n as u64 && line["of"] == 60, "{line}");
        }
        let found = content(&d.join(&name));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "killed after checkpoint {n}");
        for (file, bytes) in &expected {
            assert!(found.get(file) == Some(bytes), "killed after checkpoint {n}: {file} differs");
        }
        for (file, bytes) in content(&d.join("out/m")) {
            assert!(saved.get(&file) == Some(&bytes), "killed after checkpoint {n}: out/m/{file} differs");
        }
    }
    assert!(kills >= 2, "only {kills} of {} runs lived long enough to be killed", KILLS.len());
}

/// A loss that explodes ends the run with the step, the checkpoint that is left and what to try.
#[test]
fn a_diverging_training_says_where_and_what_to_try() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let recipe = RECIPE
        .replace("linear(0 -> 1e-3, for = 10%) then linear(1e-3 -> 0)", "steps([1e-3, 1e30])")
        .replace("clip             = 1.0\n", "");
    let recipe = recipe.replace("keep             = lowest(val)\n", "").replace(" + 0.01 * l1(scores)", "");
    let recipe = recipe.replace("compact m\n", "");
    let recipe: String = recipe.lines().filter(|l| !l.trim_start().starts_with("prune")).fold(String::new(), |t, l| t + l + "\n");
    fs::write(d.join("t.prune"), recipe).unwrap();
    let out = run(d, &["run", "t.prune", "--out", "r"]);
    let text = stderr(&out);
    assert_eq!(out.status.code(), Some(1), "{text}");
    for part in ["at step 3", "learning rate 1e30", "smaller learning rate", "last good checkpoint, of step 30 of 60", "t.prune:8"] {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
    assert!(d.join("r/checkpoints/train-1.safetensors").is_file());
}
