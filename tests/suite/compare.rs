//! `prunectl compare`: criteria beside one another, from stored scores that were made once.

use std::path::Path;

use serde_json::Value;

use crate::common::{run, stderr, stdout};

/// The shipped recipe, small: nine criteria, three amounts.
fn study(dir: &Path) -> std::path::PathBuf {
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/compare_heads.prune");
    let out = dir.join("heads");
    let sizes = ["--set", "probe_size=8", "--set", "exam_size=32"];
    let done = run(dir, &[&["run", recipe, "-q", "--out", "heads"][..], &sizes].concat());
    assert!(done.status.success(), "{}", stderr(&done));
    out
}

/// Ten amounts of heads from one scoring of each criterion; the sequential one measures for every amount, and says what its scores hold for.
#[test]
fn a_sweep_over_ten_amounts_scores_once() {
    const RECIPE: &str = r#"edition 2026
model m = init("builtin:tiny-bert", seed = 3)
data  d = builtin("tales")
let probe = d.train.take(8)
let heads = m.layers[*].attention.heads
let weights = m.layers[0..1].linears.weights
score heads using loss_delta(on = probe) as exact
score heads using taylor(on = probe) as estimate
sweep scores over [exact, estimate], amount over [0%, 10%, 20%, 30%, 40%, 50%, 60%, 70%, 80%, 90%] as grid {
    prune heads by amount using scores
    eval loss() of m on d.validation.take(4) as loss
}
sweep amount over [20%, 40%] as blocks {
    prune weights by amount using sparsegpt(on = probe)
    eval loss() of m on d.validation.take(4) as sparse
}
"#;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ten.prune"), RECIPE).unwrap();
    let done = run(dir.path(), &["run", "ten.prune", "-q", "--out", "ten"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let journal = std::fs::read_to_string(dir.path().join("ten/journal.jsonl")).unwrap();
    let steps: Vec<Value> = journal.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).filter(|e| e["event"] == "step").collect();
    let scored: Vec<&Value> = steps.iter().filter(|s| s["kind"] == "score").map(|s| &s["name"]).collect();
    assert_eq!(scored, ["exact", "estimate"], "one scoring a criterion");
    let prunes: Vec<&Value> = steps.iter().filter(|s| s["kind"] == "prune").collect();
    let (once, each): (Vec<&Value>, Vec<&Value>) = prunes.into_iter().partition(|p| p["result"]["gone"]["attention.heads"].is_array());
    assert_eq!((once.len(), each.len()), (20, 2));
    for (i, prune) in once.iter().enumerate() {
        let scores = if i < 10 { "exact" } else { "estimate" };
        assert_eq!(prune["result"]["scores"], format!("the scores of `{scores}`"));
        // Of 48 heads ⌊48·p⌋ go.
        assert_eq!(prune["result"]["gone"]["attention.heads"], serde_json::json!([48 * (i % 10) / 10, 48]));
    }
    for (prune, amount) in each.iter().zip(["20%", "40%"]) {
        assert_eq!((&prune["result"]["holds_for"], &prune["result"]["scores"]), (&amount.into(), &Value::Null), "{prune}");
    }
}

#[test]
fn a_sweep_over_amounts_scores_once_and_is_compared() {
    let dir = tempfile::tempdir().unwrap();
    let out = study(dir.path());

    let journal = std::fs::read_to_string(out.join("journal.jsonl")).unwrap();
    let steps: Vec<Value> = journal.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).filter(|e| e["event"] == "step").collect();
    let of = |kind: &str| steps.iter().filter(|s| s["kind"] == kind).collect::<Vec<_>>();
    assert_eq!(of("score").len(), 9, "one scoring a criterion");
    assert_eq!(of("prune").len(), 27);
    for prune in of("prune") {
        assert!(prune["result"]["scores"].as_str().unwrap().starts_with("the scores of `"), "{prune}");
        let gone = &prune["result"]["gone"]["attention.heads"];
        assert!(gone[0].as_u64().unwrap() > 0 && gone[1] == 48, "{prune}");
    }

    let json = run(dir.path(), &["compare", "heads", "--json"]);
    assert!(json.status.success(), "{}", stderr(&json));
    let found: Value = serde_json::from_str(&stdout(&json)).unwrap();
    let ranks = &found["correlations"][0];
    assert_eq!(
        (&ranks["site"], &ranks["units"], &ranks["layers"], &ranks["exact"]),
        (&"attention.heads".into(), &48.into(), &4.into(), &"exact".into())
    );
    let rho = |a: usize, b: usize| ranks["overall"][a][b].as_f64().unwrap();
    for a in 0..9 {
        assert!((rho(a, a) - 1.0).abs() < 1e-12);
        for b in 0..9 {
            assert!(rho(a, b) == rho(b, a) && rho(a, b).abs() <= 1.0 + 1e-12);
        }
    }
    let table = &found["metrics"][0];
    assert_eq!(table["amounts"], serde_json::json!(["20%", "40%", "60%"]));
    assert_eq!(table["rows"].as_array().unwrap().len(), 9);
    let metrics: Value = serde_json::from_slice(&std::fs::read(out.join("metrics.json")).unwrap()).unwrap();
    for row in table["rows"].as_array().unwrap() {
        let name = row["scores"].as_str().unwrap();
        assert_eq!(row["floor"], name == "chance");
        assert_eq!(row["margin"].is_null(), name == "chance");
        for (amount, value) in ["20%", "40%", "60%"].iter().zip(row["values"].as_array().unwrap()) {
            assert_eq!(*value, metrics[format!("acc[scores={name}, amount={amount}]")]["value"]);
        }
    }
    assert_eq!(table["dense"], metrics["dense"]["value"]);

    let text = stdout(&run(dir.path(), &["compare", "heads"]));
    assert!(text.contains("chance (floor)") && text.contains("rank correlation (Spearman) over 48 units"), "{text}");
    let md = stdout(&run(dir.path(), &["compare", "heads", "--format", "md"]));
    assert!(md.contains("### scores") && md.contains("| exact"), "{md}");
    let csv = stdout(&run(dir.path(), &["compare", "heads", "--format", "csv"]));
    let line = format!("acc,chance,60%,{}", metrics["acc[scores=chance, amount=60%]"]["value"]);
    assert!(csv.lines().any(|l| l == line), "{line} is missing:\n{csv}");

    let report = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(report.contains("Criteria beside one another") && report.contains("Rank correlation over all units"));
}

/// Seeds of random() make one floor, and what was refitted has a floor that was refitted too.
#[test]
fn floors_are_means_over_seeds_with_the_same_recovery() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = r#"edition 2026
model m = init("builtin:tiny-bert", seed = 3)
data  d = builtin("tales")
let heads = m.layers[*].attention.heads
let few   = d.train.take(8)
score heads using magnitude() as size
score heads using random(seed = 0) as chance0
score heads using random(seed = 1) as chance1
sweep scores over [size, chance0, chance1], amount over [25%, 50%], fit over [none, least_squares] as grid {
    prune heads by amount using scores { reconstruct = fit  on = few }
    eval loss() of m on few as val
}
"#;
    std::fs::write(dir.path().join("a.prune"), recipe).unwrap();
    let done = run(dir.path(), &["run", "a.prune", "-q", "--out", "a"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let found: Value = serde_json::from_str(&stdout(&run(dir.path(), &["compare", "a", "--json"]))).unwrap();
    let metrics: Value = serde_json::from_slice(&std::fs::read(dir.path().join("a/metrics.json")).unwrap()).unwrap();
    let value = |scores: &str, fit: &str| metrics[format!("val[scores={scores}, amount=50%, fit={fit}]")]["value"].as_f64().unwrap();
    let table = &found["metrics"][0];
    let rows = table["rows"].as_array().unwrap();
    let of = |name: &str| rows.iter().find(|r| r["scores"] == name).unwrap_or_else(|| panic!("no {name}: {rows:?}"));
    assert_eq!(rows.len(), 6);
    assert_eq!(of("size + least_squares")["values"][1].as_f64(), Some(value("size", "least_squares")));
    let floors = table["floors"].as_array().unwrap();
    assert_eq!(floors.len(), 2);
    for (floor, (after, fit)) in floors.iter().zip([("", "none"), (" + least_squares", "least_squares")]) {
        assert_eq!(floor["after"], after);
        assert_eq!(floor["seeds"], serde_json::json!([format!("chance0{after}"), format!("chance1{after}")]));
        let mean = f64::midpoint(value("chance0", fit), value("chance1", fit));
        assert!((floor["values"][1].as_f64().unwrap() - mean).abs() < 1e-12);
        let gain = |i: usize| floor["values"][i].as_f64().unwrap() - of(&format!("size{after}"))["values"][i].as_f64().unwrap();
        let margin = &of(&format!("size{after}"))["margin"];
        assert!((margin["mean"].as_f64().unwrap() - f64::midpoint(gain(0), gain(1))).abs() < 1e-12, "{margin}");
        assert!(margin["better_than_all_seeds_at"].as_u64() <= margin["better_at"].as_u64());
        assert!(of(&format!("chance0{after}"))["margin"].is_null());
    }
    let text = stdout(&run(dir.path(), &["compare", "a"]));
    assert!(text.contains("random, mean of 2 + least_squares") && text.contains("better than every seed at"), "{text}");
}

#[test]
fn runs_that_scored_nothing_are_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = run(dir.path(), &["compare", "nowhere"]);
    assert_eq!(nowhere.status.code(), Some(2), "{}", stderr(&nowhere));
    std::fs::write(dir.path().join("a.prune"), "edition 2026\nmodel m = init(\"builtin:tiny-bert\", seed = 1)\neval params() of m as p\n")
        .unwrap();
    assert!(run(dir.path(), &["run", "a.prune", "-q", "--out", "a"]).status.success());
    let empty = run(dir.path(), &["compare", "a"]);
    assert_eq!(empty.status.code(), Some(2));
    assert!(stderr(&empty).contains("no step has scored anything"), "{}", stderr(&empty));
}

/// Scores made block by block on pruned inputs belong to their amount; scores of dense inputs serve any.
#[test]
fn sequential_scores_can_not_be_reused_and_dense_ones_can() {
    let dir = tempfile::tempdir().unwrap();
    let head = "edition 2026\nmodel m = init(\"builtin:tiny-bert\", seed = 3)\ndata  d = builtin(\"tales\")\nlet w = m.layers[*].linears.weights\n";
    let recipe = |name: &str, rest: &str| {
        std::fs::write(dir.path().join(name), format!("{head}{rest}")).unwrap();
        run(dir.path(), &["run", name, "-q", "--out", name.trim_end_matches(".prune")])
    };
    let first = recipe("a.prune", "score w using wanda(on = d.train.take(4)) as s\nprune w by 50% using wanda(on = d.train.take(4))\n");
    assert!(first.status.success(), "{}", stderr(&first));
    let again = recipe("b.prune", "score w from \"a\" as s\nprune w by 30% using s\n");
    assert!(again.status.success(), "{}", stderr(&again));
    std::fs::rename(dir.path().join("a/scores/s.safetensors"), dir.path().join("a/other.safetensors")).unwrap();
    // What is left are the scores of the prune.
    let sequential = recipe("c.prune", "score w from \"a\"\n");
    assert_eq!(sequential.status.code(), Some(1));
    assert!(stderr(&sequential).contains("block by block on pruned inputs: they hold for 50% alone"), "{}", stderr(&sequential));
}

/// What the analyses of a model say is drawn: curves by layer, and a square for each pair of states.
#[test]
fn analyses_are_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = "edition 2026\nmodel m = init(\"builtin:tiny-bert\", seed = 3)\ndata  d = builtin(\"tales\")\nlet few = d.train.take(4)\n\
                  eval cka() of m on few as alike\neval cosine() of m on few as turns\neval sensitivity(amounts = [20%, 60%]) of m on few as curves\n";
    std::fs::write(dir.path().join("a.prune"), recipe).unwrap();
    let done = run(dir.path(), &["run", "a.prune", "-q", "--out", "a"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let report = std::fs::read_to_string(dir.path().join("a/report.html")).unwrap();
    for said in [
        "How alike the states between blocks are",
        "alike: cka()",
        "turns: cosine()",
        "output of block 3",
        "Sensitivity of each layer",
        "curves: attention.heads of one layer gone",
        "curves: mlp.neurons of one layer gone",
    ] {
        assert!(report.contains(said), "{said}");
    }
}
