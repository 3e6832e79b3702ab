//! What README promises first: the recipe that ships inside the program, end to end.

use std::fs;

/// 40 % of the heads go, the gate holds, and the saved folder opens again with fewer parameters.
#[test]
fn the_first_recipe_runs_twice_from_the_program_alone() {
    let dir = tempfile::tempdir().unwrap();
    for n in 1..=2 {
        let out = crate::common::prunectl(dir.path(), &["run", "builtin:bert_heads"]).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let run = dir.path().join(format!("runs/bert_heads-{n}"));
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
    }
    let saved = prunectl_model::load(&dir.path().join("out/bert-heads"), &prunectl_model::LoadOptions::default()).unwrap();
    let heads: usize = saved.dims().iter().map(|d| d.q_heads).sum();
    let config: serde_json::Value = serde_json::from_slice(include_bytes!("../../assets/tiny-bert/config.json")).unwrap();
    let all = (config["num_hidden_layers"].as_u64().unwrap() * config["num_attention_heads"].as_u64().unwrap()) as usize;
    assert_eq!(heads, all - all * 40 / 100);
}
