//! Pruning that learns, as a user writes it: what a plan advises, pruned shapes from scratch, supermasks.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::{run, stderr, stdout};

/// Runs a recipe's text in a folder; its metrics and what it said.
fn metrics(dir: &Path, text: &str) -> (Value, String) {
    fs::write(dir.join("r.prune"), text).unwrap();
    let out = run(dir, &["run", "r.prune", "--out", "run", "-v"]);
    assert!(out.status.success(), "{}\n{text}", stderr(&out));
    let metrics = serde_json::from_slice(&fs::read(dir.join("run/metrics.json")).unwrap()).unwrap();
    (metrics, stderr(&out))
}

/// The statements between back-quotes of a plan's advice.
fn advised(dir: &Path, text: &str) -> Vec<String> {
    fs::write(dir.join("r.prune"), text).unwrap();
    let out = run(dir, &["plan", "r.prune"]);
    assert!(out.status.success(), "{}", stderr(&out));
    let (plan, lines) = (stdout(&out), |line: &&str| line.contains("nothing recovers what goes"));
    let all: Vec<String> = plan.lines().filter(lines).map(|l| l.trim().to_owned()).collect();
    all.iter().flat_map(|line| line.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// What a plan advises stands in the recipe where it says, is understood, and brings every block nearer; with it nothing more is advised.
#[test]
fn the_advice_of_a_plan_runs() {
    let recipes = [
        // A classifier whose criterion has data; a language model, pruned twice, with data only in its `eval`; a bound; layers.
        (
            "builtin(\"tiny-bert\")",
            "prune m.layers[*].mlp.neurons by 60% using taylor(on = d.train.take(48)) { rescore = 100% }\n",
            "d.train.take(48)",
        ),
        (
            "builtin(\"tiny-llama\")",
            "prune m.layers[*].attention.kv_groups by 50% using magnitude()\nprune m.layers[*].mlp.neurons by 60% using magnitude()\n",
            "d.train.pack(128 tokens)",
        ),
        ("builtin(\"tiny-bert\")", "prune m.layers[*] by 1 layers using magnitude()\n", "d.train"),
    ];
    for (model, prunes, data) in recipes {
        let dir = tempfile::tempdir().unwrap();
        let head = format!("edition 2026\nmodel m = {model}\ndata d = builtin(\"tales\")\n");
        let tail = "compact m\neval loss() of m on d.validation.take(64) as after\n";
        let bare = format!("{head}{prunes}{tail}");
        let statements = advised(dir.path(), &bare);
        let [above, behind] = statements.as_slice() else { panic!("{statements:?}") };
        assert_eq!(above, "let teacher = frozen(m)");
        assert!(behind.contains(&format!("from teacher on {data} for")), "{behind}");
        // Shorter here, for the time that it takes.
        let behind = behind.replace("for 120 steps", "for 20 steps").replace(data, "d.train.take(48)");
        let whole = format!("{head}{above}\n{prunes}{behind}\n{tail}");
        let (found, _) = metrics(dir.path(), &whole);
        let blocks = found["reconstruct"]["reconstruct-1"]["blocks"].as_array().unwrap();
        assert!(blocks.len() >= 3 && blocks.iter().all(|b| b["first"] == 0.0 || b["last"].as_f64() < b["first"].as_f64()), "{blocks:?}");
        // Where a layer went, those before it have nothing to learn.
        let idle = blocks.iter().filter(|b| b["steps"] == 1 && b["last"] == 0.0).count();
        assert_eq!(idle > 0, prunes.contains("layers[*] by"), "{blocks:?}");
        assert!(advised(dir.path(), &whole).is_empty());
    }
}

/// What is recovered later, by a copy too, needs no advice; a training before the prune is no recovery.
#[test]
fn advice_where_it_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let head = "edition 2026\nmodel m = builtin(\"tiny-bert\")\ndata d = builtin(\"tales\")\n";
    let prune = "prune m.layers[*].attention.heads by 40% using magnitude()\n";
    let train = "train m on d.train for 2 steps { optimizer = adamw(lr = 1e-4) }\n";
    let copy = "model c = copy(m)\ntrain c on d.train for 2 steps { optimizer = adamw(lr = 1e-4) }\n";
    for (body, wanted) in [
        (format!("{prune}{train}"), false),
        (format!("{prune}{copy}"), false),
        (format!("{copy}{prune}"), true),
        (format!("{train}{prune}"), true),
        (prune.replace("magnitude()", "magnitude() { reconstruct = bias  on = d.train.take(8) }"), false),
        ("prune m.layers[*].linears.weights by 40% using magnitude()\n".to_owned(), false),
        (format!("let teacher = 3\nsweep share over [20%, 40%] as grid {{ {} }}\n", prune.replace("40%", "share").trim()), true),
    ] {
        let found = advised(dir.path(), &format!("{head}{body}"));
        assert_eq!(!found.is_empty(), wanted, "{body}: {found:?}");
        if body.contains("teacher") {
            assert_eq!(found[0], "let whole = frozen(m)");
        }
    }
}

/// Steps of a finished training, from the last point of its curve in the journal.
fn steps(dir: &Path, name: &str) -> f64 {
    let journal = fs::read_to_string(dir.join("run/journal.jsonl")).unwrap();
    let line = journal.lines().find(|l| l.contains(&format!("\"{name}\"")) && l.contains("\"loss\"")).unwrap().to_owned();
    let event: Value = serde_json::from_str(&line).unwrap();
    event["result"]["loss"].as_array().unwrap().last().unwrap()[0].as_f64().unwrap()
}

/// A metric that stands still stops the training; before the last units went it does not.
#[test]
fn a_training_stops_when_nothing_gets_better() {
    for (prune, last) in [
        ("", 9.0..10.0),
        ("prune m.layers[*].mlp.neurons by cubic(0% -> 20%, during = 0%..60%) using magnitude() { every = 3 steps }", 24.0..30.0),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let recipe = format!(
            "edition 2026
model m = builtin(\"tiny-bert\")
data d = builtin(\"tales\")
train m on d.train for 30 steps {{
    batch     = 2
    optimizer = sgd(lr = 0)
    stop      = stale(val, after = 2)
    {prune}
    eval loss() of m on d.validation.take(8) as val {{ every = 3 steps }}
}}
"
        );
        let (_, said) = metrics(dir.path(), &recipe);
        assert!(said.contains("has not improved for 2 evaluations"), "{said}");
        assert!(last.contains(&steps(dir.path(), "train-1")), "{said}");
    }
}

/// Scratch-B takes the steps that make its FLOPs those of the whole model's training: 4 · (FLOPs of the whole / FLOPs of the rest).
#[test]
fn a_pruned_shape_from_scratch() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = "edition 2026
model m = init(\"builtin:tiny-llama\", seed = 3)
data d = builtin(\"tales\")
let dense = frozen(m)
let text = d.train.pack(32 tokens)
let setup = { batch = 2  optimizer = adamw(lr = 1e-3) }
eval flops(length = 32 tokens) of m as whole
prune m.layers[*].attention.kv_groups | m.layers[*].mlp.neurons by 50% each using magnitude() { scope = layer }
compact m
eval flops(length = 32 tokens) of m as rest
reinit m { seed = 1 }
train m on text for 4 steps { ..setup }
train m on text for 4 steps { ..setup  flops_of = dense }
";
    let (found, said) = metrics(dir.path(), recipe);
    let value = |name: &str| found[name]["value"].as_f64().unwrap();
    let ratio = value("whole") / value("rest");
    assert!(ratio > 1.3, "{ratio}");
    assert!(said.contains(&format!("train-2: as many FLOPs as `m` would take, {ratio:.3} times the length")), "{said}");
    let (even, budget) = (steps(dir.path(), "train-1"), steps(dir.path(), "train-2"));
    assert_eq!((even, budget), (4.0, (4.0 * ratio).round()));
}

/// `init`: removed weights stand at their first values, whatever trains; `sign`: kept ones are ± one number in each matrix.
#[test]
fn supermasks_of_a_recipe() {
    for (fill, after) in [("init", "train m on d.train for 3 steps { optimizer = sgd(lr = 1e-2) }\n"), ("sign", "")] {
        let dir = tempfile::tempdir().unwrap();
        let recipe = format!(
            "edition 2026
model m = init(\"builtin:tiny-bert\", seed = 3)
data d = builtin(\"tales\")
save m to \"out/first\"
snapshot m as first
train m on d.train for 3 steps {{ optimizer = sgd(lr = 1e-1) }}
prune m.layers[*].linears.weights by 60% using supermask(kind = large_final, initial = first, fill = {fill}) {{ scope = matrix }}
{after}save m to \"out/last\"
"
        );
        metrics(dir.path(), &recipe);
        let open = |name: &str| candle_core::safetensors::load(dir.path().join(name).join("model.safetensors"), &candle_core::Device::Cpu);
        let (first, last) = (open("out/first").unwrap(), open("out/last").unwrap());
        let values = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let mut seen = 0;
        for (name, w) in last.iter().filter(|(name, _)| name.contains(".layer.") && name.ends_with("dense.weight")) {
            let (w, w_i) = (values(w), values(&first[name]));
            seen += 1;
            let same = w.iter().zip(&w_i).filter(|(a, b)| a == b).count() as f64 / w.len() as f64;
            let zeros = w.iter().filter(|w| **w == 0.0).count() as f64 / w.len() as f64;
            if fill == "init" {
                assert!((0.59..0.7).contains(&same) && zeros < 0.01, "{name}: {same} as at first, {zeros} zeros");
            } else {
                let largest = w.iter().fold(0f32, |m, w| m.max(w.abs()));
                assert!(w.iter().all(|w| *w == 0.0 || w.abs() == largest) && (zeros - 0.6).abs() < 0.01, "{name}: {zeros}");
                assert!(w.iter().zip(&w_i).all(|(w, i)| *w == 0.0 || w.is_sign_positive() == i.is_sign_positive()), "{name}");
            }
        }
        assert!(seen >= 4, "{:?}", last.keys());
    }
}

/// A constant amount that the loss does not bear at once is whole with the last update.
#[test]
fn what_a_tolerance_holds_back_goes_in_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (_, said) = metrics(
        dir.path(),
        "edition 2026\nmodel m = builtin(\"tiny-llama\")\ndata d = builtin(\"tales\")\n\
         train m on d.train.pack(64 tokens) for 7 steps {\n    batch = 2\n    optimizer = sgd(lr = 1e-3)\n    \
         prune m.layers[*].mlp.neurons by 98% using lobster(lambda = 1e-4, tolerance = 0%) { every = 3 steps }\n}\n",
    );
    assert!(said.contains("674 of 688 neurons are masked"), "{said}");
}

/// What a training can't do is told by `check`, and by `run` before it makes a folder.
#[test]
fn what_a_training_refuses_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let inside = |prune: &str, loss: &str| {
        format!("train m on d.train.take(8) for 2 steps {{\n    optimizer = adamw(lr = 1e-3)\n    {loss}\n    {prune}\n}}\n")
    };
    let lora = "attach lora(rank = 2) to m.layers[*].linears as a\n";
    let movement = "prune m.layers[*].mlp.neurons by 20% using movement()";
    let config = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-bert/config.json")).unwrap();
    fs::write(d.join("wide.json"), config.replace("\"hidden_size\": 96", "\"hidden_size\": 48")).unwrap();
    for (body, says) in [
        (inside("prune m.layers[*].linears.weights by 20% using sparsegpt(on = d.train.take(8))", ""), "`sparsegpt` makes up"),
        (format!("{lora}{}", inside(movement, "")), "adapters are attached"),
        (format!("{lora}{}", inside("prune m.layers[*].linears.weights by 20% using magnitude()", "")), "adapters are attached"),
        (format!("model t = builtin(\"tiny-llama\")\n{}", inside("", "loss = distill(t)")), "`t` can't teach `m`: its vocabulary"),
        (
            "model t = init(\"wide.json\", seed = 1)\nreconstruct m.layers[*] from t on d.train.take(8) for 2 steps { optimizer = adamw(lr = 1e-3) }\n".to_owned(),
            "residual stream is 48 wide",
        ),
    ] {
        fs::write(d.join("r.prune"), format!("edition 2026\nmodel m = builtin(\"tiny-bert\")\ndata d = builtin(\"tales\")\n{body}")).unwrap();
        for args in [&["check", "r.prune"][..], &["plan", "r.prune"], &["run", "r.prune", "--out", "run"]] {
            let out = run(d, args);
            assert!(stderr(&out).contains(says) && stderr(&out).contains("r.prune:"), "{args:?}\n{body}{}", stderr(&out));
        }
        assert!(!d.join("run").exists());
    }
    for (body, code) in [
        ("score m.layers[*].mlp.neurons using taylor() as s\n".to_owned(), "P0410"),
        (inside("", "").replace("lr = 1e-3", "lr = linear(0 -> -1e-4)"), "P0306"),
    ] {
        fs::write(d.join("r.prune"), format!("edition 2026\nmodel m = builtin(\"tiny-bert\")\ndata d = builtin(\"tales\")\n{body}"))
            .unwrap();
        let out = run(d, &["check", "r.prune"]);
        assert!(stderr(&out).contains(code), "{body}{}", stderr(&out));
    }
    // Fused before, or never there, they are no obstacle.
    for body in [format!("{lora}fuse a into m\n{}", inside(movement, "")), inside(movement, "")] {
        fs::write(d.join("r.prune"), format!("edition 2026\nmodel m = builtin(\"tiny-bert\")\ndata d = builtin(\"tales\")\n{body}"))
            .unwrap();
        assert!(run(d, &["check", "r.prune"]).status.success(), "{body}");
    }
}

/// `dtype` of a training is the type of its passes: near f32, not it; the saved weights are f32 all the same. An adapter of prototypes,
/// saved alone, gives the same model again, and so does the head that was trained beside it.
#[test]
fn passes_in_bf16_and_adapters_alone() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = |dtype: &str| {
        format!(
            "edition 2026
model m = builtin(\"tiny-bert\")
model n = builtin(\"tiny-bert\")
data d = builtin(\"tales\")
let teacher = frozen(m)
attach splopa(prototypes = 3, shape = [16, 16]) to m.layers[*].linears as a
train m on d.train.take(24) for 6 steps {{ only = a | m.classifier  batch = 8  optimizer = adamw(lr = 1e-2)  {dtype} }}
eval loss() of m on d.validation.take(32) as trained
save m to \"alone\" {{ format = peft }}
attach splopa(prototypes = 3, shape = [16, 16], from = \"alone\") to n.layers[*].linears as b
eval loss() of n on d.validation.take(32) as again
fuse b into n
prune n.layers[*].mlp.neurons by 40% using magnitude()
reconstruct n.layers[*] from teacher on d.train.take(24) for 4 steps {{ batch = 8  optimizer = adamw(lr = 1e-3)  {dtype} }}
eval loss() of n on d.validation.take(32) as rebuilt
"
        )
    };
    let value = |found: &Value, name: &str| found[name]["value"].as_f64().unwrap();
    let (exact, _) = metrics(dir.path(), &recipe(""));
    fs::remove_dir_all(dir.path().join("run")).unwrap();
    let (coarse, said) = metrics(dir.path(), &recipe("dtype = bf16"));
    assert!(said.contains("peft has no such adapter; the head goes along"), "{said}");
    for found in [&exact, &coarse] {
        assert_eq!(value(found, "trained"), value(found, "again"));
    }
    for name in ["trained", "rebuilt"] {
        let (a, b) = (value(&coarse, name), value(&exact, name));
        assert!(a != b && (a - b).abs() < 0.1 * b, "{name}: {a} {b}");
    }
}

/// Distances are computed in f32 whatever the passes are: neither their sums nor the masks of attention overflow in f16.
#[test]
fn every_imitation_in_half() {
    let dir = tempfile::tempdir().unwrap();
    let first = |dtype: &str| {
        let recipe = format!(
            "edition 2026
model m = builtin(\"tiny-bert\")
model n = builtin(\"tiny-bert\")
data d = builtin(\"tales\")
prune m.layers[*].mlp.neurons by 60% using magnitude()
train m on d.train.take(16) for 2 steps {{
    batch = 16
    optimizer = adamw(lr = 1e-3)
    {dtype}
    loss = task() + distill(n, temperature = 2) + hidden(n) + 10 * hidden(n, distance = cosine) + 0.1 * attention_maps(n) + attention_maps(n, kind = kl) + minilm(n) + relation(n) + noisy_student(n)
}}
"
        );
        metrics(dir.path(), &recipe);
        let journal = fs::read_to_string(dir.path().join("run/journal.jsonl")).unwrap();
        let line = journal.lines().find(|l| l.contains("\"train-1\"") && l.contains("\"loss\"")).unwrap();
        let event: Value = serde_json::from_str(line).unwrap();
        fs::remove_dir_all(dir.path().join("run")).unwrap();
        event["result"]["loss"][0][1].as_f64().unwrap()
    };
    let exact = first("");
    for (dtype, tolerance) in [("dtype = f16", 5e-3), ("dtype = bf16", 3e-2)] {
        let found = first(dtype);
        assert!(found != exact && (found - exact).abs() < tolerance * exact, "{dtype}: {found} {exact}");
    }
}
