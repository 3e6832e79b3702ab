//! What README promises first: the recipe that ships inside the program, end to end.

use std::fs;

/// Runs it, and returns how many heads the saved folder has.
fn runs(dir: &std::path::Path, n: usize, arguments: &[&str]) -> usize {
    let out = crate::common::prunectl(dir, &[&["run", "builtin:bert_heads"], arguments].concat()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let run = dir.join(format!("runs/bert_heads-{n}"));
    let metrics: serde_json::Value = serde_json::from_slice(&fs::read(run.join("metrics.json")).unwrap()).unwrap();
    let value = |name: &str| metrics[name]["value"].as_f64().unwrap();
    assert!(value("before") > 0.85, "dense accuracy {}", value("before"));
    assert!(value("after") >= value("before") - 0.01, "{} after {}", value("after"), value("before"));
    let table = String::from_utf8(out.stdout).unwrap();
    for row in ["accuracy", "parameters", "file size", "tokens/s", "report"] {
        assert!(table.contains(row), "`{row}` is not in:\n{table}");
    }
    for file in ["recipe.prune", "recipe.lock", "plan.json", "journal.jsonl", "report.html", "decisions/prune-1.json"] {
        assert!(run.join(file).is_file(), "{file}");
    }
    let saved = prunectl_model::load(&dir.join("out/bert-heads"), &prunectl_model::LoadOptions::default()).unwrap();
    saved.dims().iter().map(|d| d.q_heads).sum()
}

/// 40 % of the heads go, the gate holds, and the saved folder opens again with fewer parameters; a second run replaces what the first saved.
#[test]
fn the_first_recipe_runs_twice_from_the_program_alone() {
    let dir = tempfile::tempdir().unwrap();
    let config: serde_json::Value = serde_json::from_slice(include_bytes!("../../assets/tiny-bert/config.json")).unwrap();
    let all = (config["num_hidden_layers"].as_u64().unwrap() * config["num_attention_heads"].as_u64().unwrap()) as usize;
    assert_eq!(runs(dir.path(), 1, &[]), all - all * 40 / 100);
    // One round of scores instead of ten: the second time only has to work.
    assert_eq!(runs(dir.path(), 2, &["--set", "sparsity=10%"]), all - all * 10 / 100);
}
