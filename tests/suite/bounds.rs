//! `prune … to BOUND`.

use serde_json::Value;

use crate::common::{run, stderr, stdout};

const TO_LIMITS: &str = r#"edition 2026
model m = init("builtin:tiny-bert", seed = 3)
data  d = builtin("tales")
let probe = d.train.take(8)
let units = m.layers[*].attention.heads | m.layers[*].mlp.neurons

eval params() of m as dense
eval flops(length = 32 tokens) of m as dense_flops
prune units to params <= 80% of dense and flops(length = 32 tokens) <= 60% of dense and latency(batch = 1, length = 8 tokens) <= 5000% of dense
    using magnitude() { on = probe  at_least = 1 heads }
compact m
eval params() of m as after
eval flops(length = 32 tokens) of m as after_flops
expect after <= 0.8 * dense
expect after_flops <= 0.6 * dense_flops
expect after_flops >= 0.59 * dense_flops else "more went than the bound asks for"
"#;

#[test]
fn limits_are_met_from_measured_curves_and_hardly_overshot() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.prune"), TO_LIMITS).unwrap();
    let plan = stdout(&run(dir.path(), &["plan", "a.prune"]));
    assert!(plan.contains("sensitivity curves") && plan.contains("params at most"), "{plan}");
    let done = run(dir.path(), &["run", "a.prune", "-q", "--out", "a"]);
    assert!(done.status.success(), "{}", stderr(&done));

    let journal = std::fs::read_to_string(dir.path().join("a/journal.jsonl")).unwrap();
    let mut steps = journal.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    let prune = steps.find(|e| e["event"] == "step" && e["kind"] == "prune").unwrap();
    let how = &prune["result"]["bound"];
    let curves = how["curves"].as_array().unwrap();
    assert_eq!(curves.len(), 8, "four layers of heads, four of neurons");
    for curve in curves {
        let points = curve["points"].as_array().unwrap();
        assert_eq!(points[0][0], 0);
        assert!(points.len() > 2 && points.iter().all(|p| p[1].as_f64().unwrap().is_finite()), "{curve}");
        assert_eq!(points[0][1], how["loss"]["dense"]);
    }
    assert!(how["loss"]["uniform"].as_f64().is_some() && how["loss"]["pruned"].as_f64().is_some(), "{how}");
    for limit in how["limits"].as_array().unwrap() {
        assert!(limit["reached"].as_f64().unwrap() <= limit["at_most"].as_f64().unwrap(), "{limit}");
    }
    let report = std::fs::read_to_string(dir.path().join("a/report.html")).unwrap();
    assert!(report.contains("Sensitivity of each layer"));
}

#[test]
fn a_shape_is_met_exactly_and_what_can_not_be_met_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let head = "edition 2026\nmodel m = init(\"builtin:tiny-bert\", seed = 3)\ndata  d = builtin(\"tales\")\n";
    let recipe = |rest: &str| std::fs::write(dir.path().join("b.prune"), format!("{head}{rest}")).unwrap();

    recipe("prune m.layers[*].mlp.neurons to { neurons = 100 } using magnitude()\ncompact m\nsave m to \"out/b\"\n");
    assert!(stdout(&run(dir.path(), &["plan", "b.prune"])).contains("100 neurons stay in each layer, 368 of 768 go"));
    let done = run(dir.path(), &["run", "b.prune", "-q", "--out", "b"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let config: Value = serde_json::from_slice(&std::fs::read(dir.path().join("out/b/config.json")).unwrap()).unwrap();
    assert_eq!(config["intermediate_size"], 100);

    recipe("prune m.layers[*].mlp.neurons to params <= 1% of dense using magnitude() { on = d.train.take(4) }\n");
    let never = run(dir.path(), &["run", "b.prune", "-q", "--out", "c"]);
    assert_eq!(never.status.code(), Some(1));
    let said = stderr(&never);
    assert!(said.contains("found params at ") && said.contains("% of its limit with everything gone that may go"), "{said}");
    assert!(said.contains("select more, or loosen"), "{said}");

    for (rest, code) in [
        ("prune m.layers[*].mlp.neurons to params <= 60% of dense using magnitude()\n", "P0403"),
        ("prune m.layers[*].linears.weights to params <= 60% of dense using magnitude() { on = d.train.take(4) }\n", "P0310"),
        ("prune m.layers[*].mlp.neurons to loss() <= 60% of dense using magnitude() { on = d.train.take(4) }\n", "P0311"),
    ] {
        recipe(rest);
        let wrong = run(dir.path(), &["check", "b.prune"]);
        assert_eq!(wrong.status.code(), Some(1));
        assert!(stderr(&wrong).contains(code) || stdout(&wrong).contains(code), "{rest}{}", stderr(&wrong));
    }
}
