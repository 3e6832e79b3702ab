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

/// A data set as Python's library leaves it in its cache: blobs, a snapshot that names them, a ref.
fn cached_set(cache: &std::path::Path) {
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let root = cache.join("datasets--org--set");
    std::fs::create_dir_all(root.join("refs")).unwrap();
    std::fs::write(root.join("refs/main"), commit).unwrap();
    let snapshot = root.join("snapshots").join(commit);
    std::fs::create_dir_all(snapshot.join("plain")).unwrap();
    let card = "---\nconfigs:\n- config_name: plain\n  data_files:\n  - split: train\n    path: plain/train-*\n  - split: validation\n    path: plain/dev.jsonl\n---\n";
    std::fs::write(snapshot.join("README.md"), card).unwrap();
    let row = |i: usize| format!("{{\"sentence\": \"the fox was happy {i}\", \"label\": {}}}\n", i % 2);
    for shard in 0..2 {
        let rows: String = (0..4).map(row).collect();
        std::fs::write(snapshot.join(format!("plain/train-0000{shard}-of-00002.jsonl")), rows).unwrap();
    }
    std::fs::write(snapshot.join("plain/dev.jsonl"), row(1)).unwrap();
}

#[test]
fn a_data_set_of_the_hub_is_read_from_pythons_cache() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("hub");
    cached_set(&cache);
    let eval = |split: &str| {
        let args = ["eval", "builtin:tiny-bert", "--data", "hf:org/set", "--split", split, "--json", "-q"];
        crate::common::prunectl(dir.path(), &args).env("HF_HUB_CACHE", &cache).output().unwrap()
    };
    for (split, rows) in [("train", 8), ("validation", 1)] {
        let out = eval(split);
        assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
        let value: Value = serde_json::from_str(&stdout(&out)).unwrap();
        assert_eq!(value["metrics"]["accuracy"]["examples"], rows, "{value}");
    }
    let out = eval("test");
    assert_eq!(out.status.code(), Some(1), "{}", stderr(&out));
    assert!(stderr(&out).contains("no split `test`") && stderr(&out).contains("train"), "{}", stderr(&out));
}

#[test]
pub fn a_locked_run_refuses_what_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    let data = "text,label\nthe fox was happy,1\nthe fox was sad,0\n";
    std::fs::create_dir(dir.path().join("r")).unwrap();
    std::fs::write(dir.path().join("r/d.csv"), data).unwrap();
    let recipe = "edition 2026\nmodel m = builtin(\"tiny-bert\")\ndata d = csv(\"d.csv\")\neval accuracy() of m on d as acc\n";
    std::fs::write(dir.path().join("r/a.prune"), recipe).unwrap();
    let out = run(dir.path(), &["run", "r/a.prune", "--locked", "-q"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(stderr(&out).contains("prunectl lock r/a.prune"), "{}", stderr(&out));
    let out = run(dir.path(), &["lock", "r/a.prune", "-q"]);
    assert_eq!((out.status.code(), stdout(&out).trim()), (Some(0), "r/a.lock"), "{}", stderr(&out));
    // The same from another folder: paths in the lock start from the recipe's.
    let out = run(&dir.path().join("r"), &["run", "a.prune", "--locked", "-q"]);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    std::fs::write(dir.path().join("r/d.csv"), format!("{data}more,1\n")).unwrap();
    let out = run(dir.path(), &["run", "r/a.prune", "--locked", "-q"]);
    assert_eq!(out.status.code(), Some(2));
    let told = stderr(&out);
    assert!(told.contains("data d.csv: ") && told.contains("is locked") && told.contains("prunectl lock r/a.prune"), "{told}");
    assert_eq!(run(dir.path(), &["run", "r/a.prune", "-q"]).status.code(), Some(0));
}

/// Scores of another run and an adapter's folder are read, too, and data that only a criterion inside `train` names.
#[test]
fn a_lock_has_all_that_steps_read() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let head = "edition 2026\nmodel m = builtin(\"tiny-bert\")\ndata d = builtin(\"tales\")\n";
    std::fs::write(
        d.join("make.prune"),
        format!("{head}score m.layers[*].mlp.neurons using magnitude() as s\nattach lora(rank = 2) to m.layers[0].linears as a\nsave m to \"low\" {{ format = peft }}\n"),
    )
    .unwrap();
    let out = run(d, &["run", "make.prune", "--out", "made", "-q"]);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    std::fs::write(d.join("e.csv"), "text,label\nthe fox was happy,1\nthe fox was sad,0\n").unwrap();
    let steps = "data e = csv(\"e.csv\")\nscore m.layers[*].mlp.neurons from \"made\" as s\nattach lora(rank = 2, from = \"low\") to m.layers[0].linears as a\n\
                 train m on d.train.take(8) for 1 steps { optimizer = adamw(lr = 1e-4)  prune m.layers[*].mlp.neurons by 10% using taylor(on = e) }\n";
    std::fs::write(d.join("take.prune"), format!("{head}{steps}")).unwrap();
    assert_eq!(run(d, &["lock", "take.prune", "-q"]).status.code(), Some(0));
    let lock = std::fs::read_to_string(d.join("take.lock")).unwrap();
    for file in ["e.csv", "made/scores/s.safetensors", "low/adapter_config.json", "low/adapter_model.safetensors"] {
        assert!(lock.contains(file), "{file}: {lock}");
    }
    let out = run(d, &["run", "take.prune", "--locked", "-q", "--out", "taken"]);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    let taken = std::fs::read_to_string(d.join("taken/recipe.lock")).unwrap();
    assert!(taken.contains("s.safetensors") && taken.contains("adapter_config.json"), "{taken}");
    let config = std::fs::read_to_string(d.join("low/adapter_config.json")).unwrap();
    std::fs::write(d.join("low/adapter_config.json"), format!("{config} ")).unwrap();
    let out = run(d, &["run", "take.prune", "--locked", "-q"]);
    assert!(out.status.code() == Some(2) && stderr(&out).contains("low/adapter_config.json"), "{}", stderr(&out));
    // What is not there is told before anything is loaded.
    std::fs::remove_dir_all(d.join("low")).unwrap();
    let out = run(d, &["run", "take.prune", "--out", "none"]);
    assert!(stderr(&out).contains("there is no adapter_config.json") && !d.join("none").exists(), "{}", stderr(&out));
}

#[test]
fn choices_and_last_words() {
    let dir = tempfile::tempdir().unwrap();
    let quiz = "{\"q\": \"Once upon a\", \"a\": [\"time\", \"xylophone of doom\"], \"key\": \"A\"}\n{\"q\": \"\", \"a\": [\"The fox was happy.\", \"happy fox The. was\"], \"key\": 0}\n";
    std::fs::write(dir.path().join("q.jsonl"), quiz).unwrap();
    std::fs::write(dir.path().join("w.jsonl"), "{\"text\": \"Once upon a time\"}\n").unwrap();
    let source = "jsonl(\"q.jsonl\", text = \"q\", choices = [\"a\"], label = \"key\")";
    let args =
        ["eval", "builtin:tiny-llama", "--data", source, "--metric", "choice", "--metric", "choice(length = characters)", "--json", "-q"];
    let out = run(dir.path(), &args);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    let value: Value = serde_json::from_str(&stdout(&out)).unwrap();
    assert_eq!(value["metrics"]["choice"]["examples"], 2);
    assert!(value["metrics"]["choice_2"]["protocol"].as_str().unwrap().contains("characters"), "{value}");
    let out = run(dir.path(), &["eval", "builtin:tiny-llama", "--data", "w.jsonl", "--metric", "last_word", "-q"]);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    let out = run(dir.path(), &["eval", "builtin:tiny-bert", "--data", source, "--metric", "choice", "-q"]);
    assert!(stderr(&out).contains("does not continue texts"), "{}", stderr(&out));
}

#[test]
fn how_much_must_go_is_told_from_headers() {
    let dir = tempfile::tempdir().unwrap();
    let out = run(dir.path(), &["plan", "builtin:tiny-llama", "--to", "params <= 80% of dense", "--json"]);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    let value: Value = serde_json::from_str(&stdout(&out)).unwrap();
    let limit = &value["fit"]["limits"][0];
    assert!(limit["after"].as_f64() <= limit["limit"].as_f64() && limit["limit"].as_f64() < limit["before"].as_f64(), "{value}");
    // The plan of the statements agrees with the arithmetic.
    let after = value["models"][0]["known"]["parameters_after"].as_array().unwrap();
    assert_eq!(after[0].as_f64(), limit["after"].as_f64(), "{value}");
    let out = run(dir.path(), &["plan", "builtin:tiny-llama", "--to", "params <= 10"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(stderr(&out).contains("can't come down to 10"), "{}", stderr(&out));
    assert_eq!(run(dir.path(), &["plan", "builtin:tiny-llama"]).status.code(), Some(0));
    let out = run(dir.path(), &["man", "--out", "man"]);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    assert!(std::fs::read_to_string(dir.path().join("man/prunectl-bench.1")).unwrap().contains("prunectl"));
}

#[test]
fn the_ends_of_a_barrier_are_the_losses_of_its_models() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = "edition 2026\nmodel a = init(\"builtin:tiny-bert\", seed = 3)\nmodel b = init(\"builtin:tiny-bert\", seed = 4)\ndata d = builtin(\"tales\")\n\
                  let probe = d.validation.take(24)\nsnapshot a as early\n\
                  prune a.layers[*].linears.weights by 50% using magnitude()\n\
                  eval loss() of a on probe as first\neval loss() of b on probe as second\n\
                  eval barrier(a, b, points = 4) on probe as wall\neval barrier(early, a, points = 2) on probe as step\n";
    std::fs::write(dir.path().join("line.prune"), recipe).unwrap();
    let out = run(dir.path(), &["run", "line.prune", "--out", "r", "-q"]);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    let metrics: Value = serde_json::from_slice(&std::fs::read(dir.path().join("r/metrics.json")).unwrap()).unwrap();
    let of = |name: &str, detail: &str| metrics[name]["details"][detail].as_f64().unwrap_or_else(|| panic!("{name} {detail}: {metrics}"));
    let value = |name: &str| metrics[name]["value"].as_f64().unwrap();
    assert!((of("wall", "loss-0") - value("first")).abs() < 1e-9 && (of("wall", "loss-3") - value("second")).abs() < 1e-9, "{metrics}");
    let highest = (0..4).map(|i| of("wall", &format!("loss-{i}"))).fold(f64::MIN, f64::max);
    assert!((value("wall") - (highest - (value("first") + value("second")) / 2.0)).abs() < 1e-9);
    assert!(of("step", "loss-0") != of("step", "loss-1") && of("wall", "error-0") <= 1.0, "{metrics}");
}
