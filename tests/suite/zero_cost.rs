//! Zero-cost proxies in a sweep: each shape's value, the vote between shapes, and how they rank beside the result.

use serde_json::Value;

use crate::common::{run, stderr, stdout};

const RECIPE: &str = r#"edition 2026
model m = init("builtin:tiny-bert", seed = 3)
data  d = builtin("tales")
let few = d.train.take(6)
sweep amount over [0%, 50%, 75%] as shapes {
    prune m.layers[*].mlp.neurons by amount using uniform()
    compact m
    eval zero_cost() of m on few as synflow
    eval zero_cost(kind = jacob_cov) of m on few as jacob_cov
    eval zero_cost(kind = vote) of m on few as vote
    eval loss() of m on few as val
}
adopt m from shapes where params >= 1 by highest(vote)
eval params() of m as size
"#;

#[test]
fn shapes_are_ranked_by_proxies_and_by_their_result() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.prune"), RECIPE).unwrap();
    let done = run(dir.path(), &["run", "a.prune", "-q", "--out", "a"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let metrics: Value = serde_json::from_slice(&std::fs::read(dir.path().join("a/metrics.json")).unwrap()).unwrap();
    let amounts = ["0%", "50%", "75%"];
    let of =
        |name: &str| -> Vec<f64> { amounts.iter().map(|a| metrics[format!("{name}[amount={a}]")]["value"].as_f64().unwrap()).collect() };
    // Less of a network passes less flow.
    let flow = of("synflow");
    assert!(flow[0] > flow[1] && flow[1] > flow[2], "{flow:?}");
    let votes = of("vote");
    assert!(votes.iter().all(|v| [0.0, 0.5, 1.0].contains(v)), "{votes:?}");
    for (amount, value) in amounts.iter().zip(&flow) {
        let details = &metrics[format!("vote[amount={amount}]")]["details"];
        assert_eq!(details["synflow"].as_f64(), Some(*value));
        assert!(details["snip"].as_f64().unwrap() > 0.0 && details["jacob_cov"].is_number());
    }
    let ranked = metrics["proxies"]["shapes"].as_array().unwrap();
    let proxy = |name: &str| ranked.iter().find(|p| p["proxy"] == name && p["metric"] == "val").unwrap();
    assert_eq!(ranked.len(), 3);
    // Of distinct ranks 1 2 3 and any order of them, ρ is one of these.
    let rho = proxy("synflow")["spearman"].as_f64().unwrap();
    assert!([-1.0, -0.5, 0.5, 1.0].iter().any(|r| (rho - r).abs() < 1e-12), "{rho}");
    assert!(proxy("synflow")["pairs_agreed"].is_null());
    assert!((0.0..=1.0).contains(&proxy("vote")["pairs_agreed"].as_f64().unwrap()));
    // The shape with the most votes, the first of equals, was adopted.
    let best = votes.iter().position(|v| *v == votes.iter().copied().fold(0.0, f64::max)).unwrap();
    let report = std::fs::read_to_string(dir.path().join("a/report.html")).unwrap();
    assert!(report.contains("Zero-cost proxies of shapes"));
    let journal = std::fs::read_to_string(dir.path().join("a/journal.jsonl")).unwrap();
    assert!(journal.contains(&format!("\"cell\":[\"{}\"]", amounts[best])), "{votes:?}");

    let page = stdout(&run(dir.path(), &["explain", "zero_cost"]));
    assert!(page.contains("jacob_cov") && !page.contains("does not carry it out"), "{page}");
}

/// The shipped recipe, small: nine shapes, every proxy beside every result.
#[test]
fn the_study_of_shapes_runs() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = ["--set", "probe_size=4", "--set", "exam_size=8", "--set", "effort=1 steps"];
    let done = run(dir.path(), &[&["run", "builtin:shapes_study", "-q", "--out", "a"][..], &sizes].concat());
    assert!(done.status.success(), "{}", stderr(&done));
    let metrics: Value = serde_json::from_slice(&std::fs::read(dir.path().join("a/metrics.json")).unwrap()).unwrap();
    let ranked = metrics["proxies"]["shapes"].as_array().unwrap();
    // Seven proxies beside size, loss and accuracy.
    assert_eq!(ranked.len(), 21);
    assert!(ranked.iter().all(|p| p["cells"] == 9));
    // Flow falls with every unit that goes: against the size, of which less is better, it ranks the other way round.
    let flow = ranked.iter().find(|p| p["proxy"] == "synflow" && p["metric"] == "size").unwrap();
    assert!(flow["spearman"].as_f64().unwrap() < 0.0, "{flow}");
}
