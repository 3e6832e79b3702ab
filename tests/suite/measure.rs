//! `eval`, `score` and `bench`: measuring without a recipe, through the executor that recipes use.

use serde_json::Value;

use crate::common::{run, stderr, stdout};

#[test]
fn eval_measures_what_a_recipe_would() {
    let dir = tempfile::tempdir().unwrap();
    let out = run(
        dir.path(),
        &[
            "eval",
            "builtin:tiny-bert",
            "--data",
            "builtin:tales",
            "--rows",
            "48",
            "--metric",
            "accuracy",
            "--metric",
            "params",
            "--json",
            "-q",
        ],
    );
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    let value: Value = serde_json::from_str(&stdout(&out)).unwrap();
    let accuracy = &value["metrics"]["accuracy"];
    assert!(accuracy["value"].is_number() && accuracy["examples"] == 48 && accuracy["data"] == "d.validation.take(48)", "{value}");
    assert!(value["metrics"]["params"]["value"].as_f64() > Some(1000.0), "{value}");
    let recipe = "edition 2026\nmodel m = builtin(\"tiny-bert\")\ndata d = builtin(\"tales\")\neval accuracy() of m on d.validation.take(48) as acc\n";
    std::fs::write(dir.path().join("same.prune"), recipe).unwrap();
    let out = run(dir.path(), &["run", "same.prune", "--json", "-q"]);
    let same: Value = serde_json::from_str(&stdout(&out)).unwrap();
    assert_eq!(same["metrics"]["acc"]["value"], accuracy["value"]);
    // No run directory that nobody asked for.
    assert!(!dir.path().join("runs").join("eval-tiny_bert-1").exists());
}

#[test]
fn bench_sets_models_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let bench =
        ["bench", "builtin:tiny-llama", "builtin:tiny-llama", "--data", "builtin:tales", "--rows", "8", "--runs", "1", "--kl", "-q"];
    let out = run(dir.path(), &bench);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    let text = stdout(&out);
    assert!(text.contains("| model | perplexity | kl | parameters |") && text.contains("(100 %)"), "{text}");
    let out = run(dir.path(), &[&bench[..], &["-o", "json"]].concat());
    let rows: Value = serde_json::from_str(&stdout(&out)).unwrap();
    for row in rows.as_array().unwrap() {
        assert!(row["quality"][0]["stderr"].is_number() && row["quality"][0]["tokens"].is_number(), "{row}");
        assert_eq!(row["quality"][1]["value"].as_f64(), Some(0.0), "a model does not diverge from itself: {row}");
        assert!(row["peak_memory_bytes"].as_u64() > Some(0) && row["file_bytes"].as_u64() > Some(0), "{row}");
    }
}

#[test]
fn scores_without_a_recipe_serve_one() {
    let dir = tempfile::tempdir().unwrap();
    let out = run(dir.path(), &["score", "builtin:tiny-bert", "--using", "magnitude", "--out", "s", "-q"]);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    assert_eq!(stdout(&out).trim(), "s/scores/s.safetensors");
    assert!(dir.path().join("s/scores/s.safetensors").is_file());
    let out = run(dir.path(), &["score", "builtin:tiny-bert", "--using", "wnada", "-q"]);
    assert_eq!(out.status.code(), Some(1), "{}", stderr(&out));
    assert!(stderr(&out).contains("wanda"), "{}", stderr(&out));
}
