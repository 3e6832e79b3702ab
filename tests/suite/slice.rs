//! `prune m.hidden … using slice(…)` as a user runs it.

use serde_json::Value;

use crate::common::{run, stderr, stdout};

const RECIPE: &str = r#"edition 2026
model m = builtin("tiny-llama")
data  d = builtin("tales")
prune m.hidden by 20% using slice(on = d.train.sample(8, seed = 0))
eval loss() of m on d.validation.take(8) as masked
compact m
eval loss() of m on d.validation.take(8) as small
eval params() of m as size
save m to "out/m" { dtype = f32 }
"#;

fn metric(dir: &std::path::Path, run: &str, name: &str) -> f64 {
    let metrics: Value = serde_json::from_slice(&std::fs::read(dir.join(run).join("metrics.json")).unwrap()).unwrap();
    metrics[name]["value"].as_f64().unwrap()
}

#[test]
fn a_slice_is_foreseen_computes_the_same_when_compacted_and_when_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.prune"), RECIPE).unwrap();
    let done = run(dir.path(), &["run", "a.prune", "-q", "--out", "a"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let (masked, small) = (metric(dir.path(), "a", "masked"), metric(dir.path(), "a", "small"));
    assert!((masked - small).abs() <= 1e-5 * small, "{masked} {small}");

    // The head has a matrix of its own now, and the plan said so.
    let plan: Value = serde_json::from_str(&stdout(&run(dir.path(), &["plan", "a.prune", "--json"]))).unwrap();
    let after = &plan["models"][0]["known"]["parameters_after"];
    assert_eq!(*after, serde_json::json!([metric(dir.path(), "a", "size"), metric(dir.path(), "a", "size")].map(|n| n as u64)), "{after}");
    let config: Value = serde_json::from_slice(&std::fs::read(dir.path().join("out/m/config.json")).unwrap()).unwrap();
    assert_eq!((&config["hidden_size"], &config["tie_word_embeddings"]), (&52.into(), &false.into()));

    let again =
        "edition 2026\nmodel m = dir(\"out/m\")\ndata  d = builtin(\"tales\")\neval loss() of m on d.validation.take(8) as opened\n";
    std::fs::write(dir.path().join("b.prune"), again).unwrap();
    let done = run(dir.path(), &["run", "b.prune", "-q", "--out", "b"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let opened = metric(dir.path(), "b", "opened");
    assert!((opened - small).abs() <= 1e-5 * small, "{opened} {small}");
}

#[test]
fn what_can_not_be_done_with_directions_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let head = "edition 2026\nmodel m = builtin(\"tiny-llama\")\nmodel b = builtin(\"tiny-bert\")\ndata  d = builtin(\"tales\")\nlet few = d.train.take(4)\n";
    for (text, says) in [
        ("score m.hidden using slice(on = few) as s\n", "`slice` gives no scores apart from a prune"),
        (
            "snapshot m as early\nprune m.hidden by 20% using slice(on = few)\nrewind m to early\n",
            "before line 7 turned the residual stream",
        ),
        ("prune b.hidden by 20% using slice(on = few)\n", "norms behind the sublayers"),
        ("prune m.hidden by 20% using slice(on = few)\nsave m to \"out/m\"\n", "write `compact m` before the `save`"),
        ("prune m.layers[*].mlp.neurons by 20% using magnitude()\nprune m.hidden by 20% using slice(on = few)\n", "`compact` before it"),
    ] {
        std::fs::write(dir.path().join("a.prune"), format!("{head}{text}")).unwrap();
        let refused = run(dir.path(), &["run", "a.prune", "-q"]);
        assert!(!refused.status.success() && stderr(&refused).contains(says), "{text}{}", stderr(&refused));
    }
}
