//! `plan`'s memory against what runs measure.

use serde_json::Value;

use crate::common::{run, stderr, stdout};

const RECIPES: [(&str, &str); 3] = [
    (
        "units",
        r#"edition 2026
model m = builtin("tiny-bert")
data  d = builtin("tales")
eval accuracy() of m on d.validation.take(256) as before
score m.layers[*].attention.heads using loss_delta(on = d.train.sample(128), estimate = gradient) as s
prune m.layers[*].attention.heads by 25% using s
compact m
save m to "out/units"
"#,
    ),
    (
        "weights",
        r#"edition 2026
model m = builtin("tiny-llama")
data  d = builtin("tales")
prune m.layers[*].linears.weights by 50% using wanda(on = d.train.take(2000).sample(16, length = 128 tokens))
eval perplexity(window = 128 tokens) of m on d.validation.take(200) as after
"#,
    ),
    (
        "training",
        r#"edition 2026
model m = builtin("tiny-llama")
data  d = builtin("tales")
let teacher = frozen(m)
train m on d.train.take(2000).pack(128 tokens) for 3 steps { batch = 16  optimizer = adamw(lr = 1e-4)  loss = distill(teacher) }
"#,
    ),
];

#[test]
fn no_run_takes_more_memory_than_planned_and_the_plan_is_no_wild_guess() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in RECIPES {
        let file = format!("{name}.prune");
        std::fs::write(dir.path().join(&file), text).unwrap();
        let out = run(dir.path(), &["plan", &file, "--json"]);
        let plan: Value = serde_json::from_str(&stdout(&out)).unwrap_or_else(|_| panic!("{}", stderr(&out)));
        let planned = plan["peak_memory_bytes"].as_u64().unwrap();
        let out = run(dir.path(), &["run", &file, "--out", name, "-q"]);
        assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
        let journal = std::fs::read_to_string(dir.path().join(name).join("journal.jsonl")).unwrap();
        let measured = journal.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()?["peak_rss_bytes"].as_u64()).max().unwrap();
        assert!(measured > 0 && measured <= planned && planned <= 5 * measured, "{name}: planned {planned}, measured {measured}");
    }
}
