//! The command as a user meets it: statuses, messages, what is on stdout and what is on disk.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{QUICK, prunectl, run, stderr, stdout};
use serde_json::Value;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

#[test]
fn a_recipe_runs_end_to_end_and_a_second_time() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("quick.prune"), QUICK).unwrap();
    for n in 1..=2 {
        let out = run(dir.path(), &["run", "quick.prune", "--set", "share=50%"]);
        assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
        let table = stdout(&out);
        assert!(table.contains("dense") && table.contains("pruned") && table.contains("parameters") && table.contains("speed"), "{table}");
        let run_dir = dir.path().join(format!("runs/quick-{n}"));
        for file in ["recipe.prune", "recipe.lock", "plan.json", "journal.jsonl", "metrics.json", "report.html", "scores/s.safetensors"] {
            assert!(run_dir.join(file).is_file(), "{file} is missing");
        }
        assert!(!run_dir.join("checkpoints").exists());
        let metrics = json(&run_dir.join("metrics.json"));
        for name in ["before", "after", "masked", "thinner"] {
            assert!(
                metrics[name]["value"].is_number() && metrics[name]["protocol"].is_string() && metrics[name]["device"].is_string(),
                "{name}: {metrics}"
            );
        }
        let sizes = &metrics["model"]["m"]["parameters"];
        assert!(sizes["after"].as_u64() < sizes["before"].as_u64(), "{sizes}");
        let journal = fs::read_to_string(run_dir.join("journal.jsonl")).unwrap();
        for line in journal.lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            if event["event"] == "step" {
                for field in ["index", "kind", "name", "line", "elapsed_ms", "peak_rss_bytes", "reused"] {
                    assert!(!event[field].is_null(), "{field}: {line}");
                }
            }
        }
        assert!(dir.path().join("out/quick/prune.json").is_file());
    }
    // What was saved is shown from its headers, and prunes again.
    let out = run(dir.path(), &["inspect", "out/quick", "--json"]);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    assert!(serde_json::from_str::<Value>(&stdout(&out)).unwrap()["layers"].is_array());
}

#[test]
fn two_runs_of_one_recipe_write_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("quick.prune"), QUICK).unwrap();
    for (out, threads) in [("a", "1"), ("b", "2")] {
        let done =
            crate::common::prunectl(dir.path(), &["run", "quick.prune", "--out", out]).env("RAYON_NUM_THREADS", threads).output().unwrap();
        assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    }
    for file in ["metrics.json", "scores/s.safetensors", "recipe.lock", "plan.json"] {
        assert!(fs::read(dir.path().join("a").join(file)).unwrap() == fs::read(dir.path().join("b").join(file)).unwrap(), "{file} differs");
    }
}

#[test]
fn json_output_is_json_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("quick.prune"), QUICK).unwrap();
    let out = run(dir.path(), &["run", "quick.prune", "--json", "-q"]);
    let value: Value = serde_json::from_str(&stdout(&out)).expect("stdout is JSON");
    assert!(
        value["metrics"]["after"]["value"].is_number() && value["run_dir"] == "runs/quick-1" && value["saved"][0] == "out/quick",
        "{value}"
    );
    let out = run(dir.path(), &["plan", "quick.prune", "--json"]);
    let value: Value = serde_json::from_str(&stdout(&out)).expect("stdout is JSON");
    assert!(value["models"][0]["known"]["layers"].is_array() && value["steps"].is_array(), "{value}");
    let out = run(dir.path(), &["schema", "--json"]);
    let value: Value = serde_json::from_str(&stdout(&out)).expect("stdout is JSON");
    assert!(value["methods"].as_array().is_some_and(|m| m.len() > 40));
}

#[test]
fn a_failed_expectation_saves_everything_and_ends_with_1() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = QUICK.replace("after <= 100 * before else \"far worse\"", "after <= 0 * before else \"no model is that good\"");
    fs::write(dir.path().join("gate.prune"), recipe).unwrap();
    let out = run(dir.path(), &["run", "gate.prune"]);
    assert_eq!(out.status.code(), Some(1), "{}", stderr(&out));
    assert!(stderr(&out).contains("no model is that good"), "{}", stderr(&out));
    assert!(dir.path().join("out/quick/model.safetensors").is_file());
    assert!(dir.path().join("runs/gate-1/report.html").is_file());
    let out = run(dir.path(), &["resume", "runs/gate-1"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(stderr(&out).contains("has ended"), "{}", stderr(&out));
}

/// Status, and words that stderr must have.
fn refused(dir: &Path, args: &[&str], status: i32, words: &[&str]) {
    let out = run(dir, args);
    let text = stderr(&out);
    assert_eq!(out.status.code(), Some(status), "{args:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{args:?}: `{word}` is not in: {text}");
    }
    assert!(!text.contains("panicked") && stdout(&out).is_empty(), "{args:?}: {text}");
}

#[test]
fn bad_input_gets_one_clear_message_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let write = |name: &str, text: &str| fs::write(d.join(name), text).unwrap();
    write("quick.prune", QUICK);
    refused(d, &["run", "none.prune"], 2, &["there is no recipe none.prune", "quick.prune"]);
    fs::create_dir(d.join("folder")).unwrap();
    refused(d, &["run", "folder"], 2, &["is a folder"]);
    fs::write(d.join("latin.prune"), b"edition 2026\n# caf\xe9\n").unwrap();
    refused(d, &["run", "latin.prune"], 2, &["latin.prune:2", "not UTF-8"]);
    write("typo.prune", &QUICK.replace("attention.heads", "attention.head"));
    refused(d, &["run", "typo.prune"], 1, &["typo.prune:", "heads"]);
    write("long.prune", &format!("edition 2026\n# {}\n{}\n", "x".repeat(1 << 20), "y".repeat(1 << 20)));
    refused(d, &["run", "long.prune"], 1, &["long.prune:3"]);
    write("deep.prune", &format!("edition 2026\nlet a = {}1\n", "(".repeat(100_000)));
    refused(d, &["run", "deep.prune"], 1, &["deep.prune:2"]);
    refused(d, &["run", "quick.prune", "--set", "share=95%"], 1, &["share"]);
    refused(d, &["run", "quick.prune", "--set", "shore=40%"], 1, &["shore"]);
    refused(d, &["run", "quick.prune", "--set", "share"], 2, &["NAME=VALUE"]);
    refused(d, &["run", "quick.prune", "--device", "gpu"], 2, &["gpu", "cuda"]);
    write("nomodel.prune", &QUICK.replace("init(\"builtin:tiny-bert\", seed = 3)", "dir(\"nowhere\")"));
    refused(d, &["run", "nomodel.prune"], 2, &["nowhere"]);
    assert!(!d.join("runs").exists(), "a run directory was made for a run that could not be");
    write("empty.csv", "text,label\n");
    write(
        "empty.prune",
        &QUICK
            .replace("builtin(\"tales\")", "csv(\"empty.csv\", text = \"text\", label = \"label\")")
            .replace("d.train", "d")
            .replace("d.validation", "d"),
    );
    refused(d, &["run", "empty.prune"], 2, &["empty"]);
    let _ = fs::remove_dir_all(d.join("runs"));
    write("wrong.csv", "text,label\na story,0\nanother,7\n");
    write(
        "wrong.prune",
        &QUICK
            .replace("builtin(\"tales\")", "csv(\"wrong.csv\", text = \"text\", label = \"label\")")
            .replace("d.train", "d")
            .replace("d.validation", "d")
            .replace(".take(32)", ".take(2)")
            .replace(".take(16)", ".take(2)"),
    );
    refused(d, &["run", "wrong.prune"], 2, &["label 7", "wrong.csv:3"]);
    let _ = fs::remove_dir_all(d.join("runs"));
    fs::create_dir_all(d.join("out/quick")).unwrap();
    write("out/quick/mine.txt", "mine");
    refused(d, &["run", "quick.prune"], 2, &["out/quick"]);
    assert_eq!(fs::read_to_string(d.join("out/quick/mine.txt")).unwrap(), "mine");
    assert!(!d.join("runs").exists(), "a run directory was made for a run that could not be");
    refused(d, &["run", "quick.prune", "--out", "folder/../out/quick"], 2, &["out/quick"]);
    refused(d, &["resume", "folder"], 2, &["not a run directory"]);
    refused(d, &["explain", "P9999"], 2, &["P9999"]);
    refused(d, &["frobnicate"], 2, &["frobnicate"]);
}

#[test]
fn what_is_not_in_the_cache_is_said_before_anything_else_happens() {
    let dir = tempfile::tempdir().unwrap();
    let path = root().join("recipes/bert_adapters_mnli.prune");
    refused(dir.path(), &["run", path.to_str().unwrap()], 2, &["google-bert/bert-base-uncased", "offline"]);
    assert_eq!(run(dir.path(), &["check", path.to_str().unwrap()]).status.code(), Some(0));
}

#[test]
fn fmt_check_and_fmt_agree() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.prune");
    fs::write(&path, "edition 2026\n\n\n\nmodel   m=builtin(\"tiny-bert\")\n").unwrap();
    let out = run(dir.path(), &["fmt", "--check", "a.prune"]);
    assert_eq!((out.status.code(), stdout(&out).trim()), (Some(1), "a.prune"));
    assert_eq!(run(dir.path(), &["fmt", "a.prune"]).status.code(), Some(0));
    assert_eq!(run(dir.path(), &["fmt", "--check", "a.prune"]).status.code(), Some(0));
    for entry in fs::read_dir(root().join("recipes")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "prune") {
            assert_eq!(run(dir.path(), &["fmt", "--check", path.to_str().unwrap()]).status.code(), Some(0), "{}", path.display());
        }
    }
}

#[test]
fn every_code_and_every_method_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let schema: Value = serde_json::from_str(&stdout(&run(dir.path(), &["schema"]))).unwrap();
    let codes = schema["codes"].as_array().unwrap().iter().map(|c| c["code"].as_str().unwrap());
    let methods = schema["methods"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap());
    for topic in codes.chain(methods).chain(["p0207"]) {
        let out = run(dir.path(), &["explain", topic]);
        assert_eq!(out.status.code(), Some(0), "{topic}: {}", stderr(&out));
        assert!(stdout(&out).len() > 40, "{topic}");
    }
}

/// What can't fit is refused before anything is made: the config says how large the model is.
#[test]
pub fn a_training_that_no_machine_holds_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-llama/config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    for (field, n) in [
        ("hidden_size", 65536),
        ("intermediate_size", 262_144),
        ("num_hidden_layers", 400),
        ("num_attention_heads", 512),
        ("num_key_value_heads", 512),
        ("head_dim", 128),
    ] {
        config[field] = n.into();
    }
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let recipe = "edition 2026\nmodel m = init(\"config.json\", seed = 1)\ndata d = text(\"d.txt\")\n\
                  train m on d.pack(8 tokens) for 2 steps { batch = 1  optimizer = adamw(lr = 1e-3)  loss = next_token() }\n";
    fs::write(dir.path().join("a.prune"), recipe).unwrap();
    fs::write(dir.path().join("d.txt"), "a story").unwrap();
    let out = run(dir.path(), &["run", "a.prune", "--out", "r"]);
    assert_eq!(out.status.code(), Some(1), "{}", stderr(&out));
    let told = stderr(&out);
    assert!(told.contains("training all of `m` takes") && told.contains("this run may use") && told.contains("a.prune:4"), "{told}");
    assert!(!dir.path().join("r").exists());
}

#[test]
fn fmt_and_new_answer_in_json_too() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.prune"), "edition 2026\nmodel   m = builtin(\"tiny-bert\")\n").unwrap();
    let json = |args: &[&str]| -> serde_json::Value { serde_json::from_slice(&run(dir.path(), args).stdout).unwrap() };
    assert_eq!(json(&["fmt", "--check", "a.prune", "--json"]), serde_json::json!([{"path": "a.prune", "changed": true}]));
    assert_eq!(json(&["fmt", "a.prune", "--json"])[0]["changed"], true);
    assert_eq!(json(&["fmt", "a.prune", "--json"])[0]["changed"], false);
    let args = ["new", "b.prune", "--model", "builtin:tiny-bert", "--data", "builtin:tales", "--remove", "heads", "--json"];
    assert_eq!(json(&args)["recipe"], "b.prune");
}

#[test]
fn new_writes_a_recipe_that_checks() {
    let dir = tempfile::tempdir().unwrap();
    for (model, what) in [("builtin:tiny-bert", "heads"), ("builtin:tiny-llama", "neurons")] {
        let file = format!("{what}.prune");
        let out = run(dir.path(), &["new", &file, "--model", model, "--data", "builtin:tales", "--remove", what]);
        assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
        assert_eq!(run(dir.path(), &["check", &file]).status.code(), Some(0));
    }
    let out = run(dir.path(), &["new", "heads.prune", "--model", "builtin:tiny-bert", "--data", "builtin:tales", "--remove", "heads"]);
    assert_eq!(out.status.code(), Some(2));
    let out = crate::common::prunectl(dir.path(), &["new"]).stdin(std::process::Stdio::null()).output().unwrap();
    assert!(out.status.code() == Some(2) && stderr(&out).contains("--model"), "{}", stderr(&out));
}

/// However few rows the data has, and of a text that is one document, what `new` writes runs.
#[test]
fn new_runs_on_ones_own_data() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let rows: String = (0..12).map(|i| format!("\"Tom saw a {} dog.\",{}\n", if i % 2 == 0 { "sad" } else { "happy" }, i % 2)).collect();
    fs::write(d.join("few.csv"), format!("text,label\n{rows}")).unwrap();
    fs::write(d.join("one.txt"), "Once there was a small cat. It went to the park with a big dog. ".repeat(40)).unwrap();
    for (model, data, what) in [("builtin:tiny-bert", "few.csv", "neurons"), ("builtin:tiny-llama", "one.txt", "heads")] {
        let file = format!("{what}.prune");
        let out = run(d, &["new", &file, "--model", model, "--data", data, "--remove", what, "--share", "10%"]);
        assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
        let out = run(d, &["run", &file]);
        assert!(matches!(out.status.code(), Some(0 | 1)) && stderr(&out).contains("are masked"), "{}", stderr(&out));
    }
}

#[test]
fn doctor_and_completions_answer() {
    let dir = tempfile::tempdir().unwrap();
    let out = run(dir.path(), &["doctor", "--json"]);
    assert!(serde_json::from_str::<Value>(&stdout(&out)).unwrap()["threads"].is_number());
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&run(dir.path(), &["completions", shell])).contains("prunectl"), "{shell}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_built_in_recipe_needs_only_the_binary() {
    let dir = tempfile::tempdir().unwrap();
    for command in ["check", "plan"] {
        let out = run(dir.path(), &[command, "builtin:bert_heads"]);
        assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    }
}

/// `plan` reads configs and headers only: a checkpoint without its data is enough for it, and not for `run`.
#[test]
fn a_plan_needs_no_weights() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    fs::create_dir(d.join("model")).unwrap();
    for file in ["config.json", "tokenizer.json"] {
        fs::copy(root().join("assets/tiny-bert").join(file), d.join("model").join(file)).unwrap();
    }
    let whole = fs::read(root().join("assets/tiny-bert/model.safetensors")).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    fs::write(d.join("model/model.safetensors"), &whole[..8 + header]).unwrap();
    let recipe = "edition 2026\nmodel m = dir(\"model\")\nprune m.layers[*].attention.heads by 50% using magnitude()\ncompact m\n";
    fs::write(d.join("a.prune"), recipe).unwrap();
    let out = run(d, &["plan", "a.prune"]);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    // Thousands are parted by a narrow space.
    for part in ["24 of 48 heads go", "331\u{202f}970", "weight files"] {
        assert!(stdout(&out).contains(part), "`{part}` is not in:\n{}", stdout(&out));
    }
    refused(d, &["run", "a.prune"], 2, &["cut short"]);
}

/// Scores and keep masks of weights lie under the names that the weights have in the model's files, and are found there again.
#[test]
fn weight_scores_are_named_as_in_the_model_files() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = "edition 2026\nmodel m = builtin(\"tiny-llama\")\nlet w = m.layers[*].linears.weights\nscore w using magnitude() as s\n\
                  prune w by 50% using s { scope = row }\n";
    fs::write(dir.path().join("a.prune"), recipe).unwrap();
    let out = run(dir.path(), &["run", "a.prune", "--out", "one"]);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    let names = |file: &str| {
        let bytes = fs::read(dir.path().join("one").join(file)).unwrap();
        safetensors::SafeTensors::deserialize(&bytes)
            .unwrap()
            .tensors()
            .into_iter()
            .map(|(n, t)| (n, t.shape().to_vec()))
            .collect::<Vec<_>>()
    };
    let q = "model.layers.0.self_attn.q_proj.weight";
    assert!(names("scores/s.safetensors").contains(&(q.to_owned(), vec![64, 64])), "{:?}", names("scores/s.safetensors"));
    assert!(names("decisions/prune-1.safetensors").contains(&(q.to_owned(), vec![64, 8])), "{:?}", names("decisions/prune-1.safetensors"));
    fs::write(dir.path().join("b.prune"), recipe.replace("using magnitude() as s", "using magnitude() from \"one\" as s")).unwrap();
    let out = run(dir.path(), &["run", "b.prune", "--out", "two"]);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    for file in ["scores/s.safetensors", "decisions/prune-1.safetensors"] {
        assert_eq!(fs::read(dir.path().join("one").join(file)).unwrap(), fs::read(dir.path().join("two").join(file)).unwrap(), "{file}");
    }
}

/// `loads_in` is held against the shapes before anything runs.
#[test]
fn a_loader_that_cannot_read_the_result_is_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = |name: &str, scope: &str, loader: &str, layout: &str| {
        let text = format!(
            "edition 2026\n\nmodel m = builtin(\"tiny-bert\")\n\nprune m.layers[*].mlp.neurons by 25% using magnitude() {{\n    \
             scope = {scope}\n    loads_in = [{loader}]\n}}\ncompact m\nsave m to \"out/m\" {layout}\n"
        );
        std::fs::write(dir.path().join(name), text).unwrap();
        let output = prunectl(dir.path(), &["check", name]).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(recipe("layer.prune", "layer", "transformers, candle", "").0, Some(0));
    assert_eq!(recipe("code.prune", "global", "transformers", "").0, Some(0), "remote code reads it");
    assert_eq!(recipe("padded.prune", "global", "candle", "{ layout = padded }").0, Some(0));
    let (status, said) = recipe("global.prune", "global", "candle", "");
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("`loads_in` names candle-transformers") && said.contains("scope = layer"), "{said}");
    let (status, said) = recipe("llama.prune", "layer", "llama_cpp", "");
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("only causal language models"), "{said}");
    let run = prunectl(dir.path(), &["run", "global.prune"]).output().unwrap();
    assert_eq!(run.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&run.stderr).contains("loads_in"));
}

/// Every command answers in JSON where it has an answer, one value and nothing else on stdout; also when it fails.
#[test]
fn every_command_answers_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let recipe = "edition 2026\nmodel m = init(\"builtin:tiny-bert\", seed = 3)\ndata d = builtin(\"tales\")\neval loss() of m on d.validation.take(4) as before\n\
                  prune m.layers[*].attention.heads by 25% using magnitude() { scope = layer }\ncompact m\nsave m to \"out/q\"\n";
    std::fs::write(d.join("q.prune"), recipe).unwrap();
    std::fs::write(d.join("bad.prune"), recipe.replace("loss()", "los()")).unwrap();
    let commands: [(&[&str], i32); 19] = [
        (&["check", "q.prune"], 0),
        (&["check", "bad.prune"], 1),
        (&["plan", "q.prune"], 0),
        (&["run", "q.prune", "--out", "r"], 0),
        (&["run", "bad.prune"], 1),
        (&["run", "none.prune"], 2),
        (&["resume", "r"], 2),
        (&["inspect", "out/q"], 0),
        (&["eval", "out/q", "--data", "builtin:tales", "--rows", "4", "--metric", "loss"], 0),
        (&["bench", "out/q", "--data", "builtin:tales", "--rows", "4", "--runs", "1"], 0),
        (&["score", "builtin:tiny-bert", "--using", "magnitude", "--out", "s"], 0),
        (&["lock", "q.prune"], 0),
        (&["fmt", "q.prune"], 0),
        (&["explain", "wanda"], 0),
        (&["export", "out/q", "--format", "hf", "--layout", "padded", "--out", "e"], 0),
        (&["new", "n.prune", "--model", "builtin:tiny-bert", "--data", "builtin:tales", "--remove", "heads"], 0),
        (&["plan", "hf:org/name", "--to", "params <= 6B"], 2),
        (&["doctor"], 0),
        (&["schema"], 0),
    ];
    for (args, status) in commands {
        let out = run(d, &[args, &["--json", "-q"]].concat());
        assert_eq!(out.status.code(), Some(status), "{args:?}: {}", stderr(&out));
        let value: Value = serde_json::from_str(&stdout(&out)).unwrap_or_else(|e| panic!("{args:?}: {e}: {}", stdout(&out)));
        assert!(status != 2 || (value["status"] == 2 && value["error"].is_string()), "{args:?}: {value}");
    }
}
