//! A model that is pruned, saved, opened again and pruned further: the weights are those of the original model's units that `prune.json`
//! lists, and it tells the whole history.

use std::path::Path;

use prunectl_model::{LoadOptions, Transformer, load};
use prunectl_run::save::PruneRecord;
use serde_json::Value;

use crate::common::prunectl;

fn run(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).unwrap();
    let output = prunectl(dir, &["run", name]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn rows(model: &Transformer, slot: &str) -> Vec<Vec<f32>> {
    model.params().require(slot).unwrap().to_vec2::<f32>().unwrap()
}

#[test]
fn pruned_saved_opened_and_pruned_further() {
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-bert");
    let first = format!(
        "edition 2026\n\nmodel m = dir(\"{}\")\n\nprune m.layers[*].attention.heads by 25% using magnitude() {{ at_least = 1 head }}\n\
         prune m.layers[*].mlp.neurons by 30% using magnitude() {{ scope = global  at_least = 4 neurons }}\ncompact m\nsave m to \"out/one\"\n",
        source.display()
    );
    run(dir.path(), "first.prune", &first);
    let second = "edition 2026\n\nmodel m = dir(\"out/one\")\n\nprune m.layers[*].mlp.neurons by 40% using magnitude() { scope = layer }\n\
                  prune m.layers[*].attention.heads by 1 head using magnitude() { at_least = 1 head }\ncompact m\nsave m to \"out/two\"\n";
    run(dir.path(), "second.prune", second);

    let original = load(&source, &LoadOptions::default()).unwrap();
    let two = load(&dir.path().join("out/two"), &LoadOptions::default()).unwrap();
    let record = PruneRecord::read(&dir.path().join("out/two")).unwrap().unwrap();
    assert_eq!(record.original, original.dims());
    assert_eq!(record.run.recipe.name, "second");
    assert_eq!(record.history.iter().map(|r| r.recipe.name.as_str()).collect::<Vec<_>>(), ["first"]);
    let mut fewer = 0;
    for (l, d) in two.dims().iter().enumerate() {
        let from = record.layers[l];
        let kept = |site: &str, all: usize| -> Vec<usize> {
            let site = record.sites.iter().find(|s| s.site == site);
            site.and_then(|s| s.kept.get(&from)).cloned().unwrap_or_else(|| (0..all).collect())
        };
        let before = original.dims()[from];
        let (neurons, heads) = (kept("mlp.neurons", before.ffn), kept("attention.heads", before.q_heads));
        assert_eq!((neurons.len(), heads.len()), (d.ffn, d.q_heads), "layer {l}");
        fewer += before.ffn - d.ffn;
        let (now, then) = (rows(&two, &format!("layers.{l}.mlp.up.weight")), rows(&original, &format!("layers.{from}.mlp.up.weight")));
        assert!(neurons.iter().zip(&now).all(|(unit, row)| *row == then[*unit]), "neurons of layer {l}");
        let (now, then) =
            (rows(&two, &format!("layers.{l}.attention.q.weight")), rows(&original, &format!("layers.{from}.attention.q.weight")));
        let size = d.head_dim;
        let same = heads.iter().enumerate().all(|(i, h)| now[i * size..(i + 1) * size] == then[h * size..(h + 1) * size]);
        assert!(same, "heads of layer {l}");
    }
    assert!(fewer > 0);
    // `inspect` tells it to a person.
    let output = prunectl(dir.path(), &["inspect", "out/two"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("pruned by `first`") && said.contains("pruned by `second`"), "{said}");
}

/// The same with layers and experts gone.
#[test]
fn layers_and_experts_are_told_in_the_first_models_indices() {
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families/qwen3_moe");
    let fewer = "prune m.layers[*].mlp.experts by 1 expert using random(seed = 4) { scope = layer }\ncompact m\n";
    let first = format!(
        "edition 2026\n\nmodel m = dir(\"{}\")\n\nprune m.layers[*] by 1 layer using random(seed = 4)\ncompact m\n{fewer}save m to \"out/one\"\n",
        source.display()
    );
    run(dir.path(), "first.prune", &first);
    run(dir.path(), "second.prune", &format!("edition 2026\n\nmodel m = dir(\"out/one\")\n\n{fewer}save m to \"out/two\"\n"));
    let original = load(&source, &LoadOptions::default()).unwrap();
    let two = load(&dir.path().join("out/two"), &LoadOptions::default()).unwrap();
    let record = PruneRecord::read(&dir.path().join("out/two")).unwrap().unwrap();
    assert_eq!((two.n_layers(), record.layers.len(), original.n_layers()), (2, 2, 3));
    let kept = |site: &str, layer: usize| record.sites.iter().find(|s| s.site == site).unwrap().kept[&layer].clone();
    for (l, d) in two.dims().iter().enumerate() {
        let from = record.layers[l];
        let before = original.dims()[from];
        let experts = kept("mlp.experts", from);
        assert_eq!((experts.len(), d.experts, before.experts), (3, 3, 5));
        for (e, expert) in experts.iter().enumerate() {
            let now = rows(&two, &format!("layers.{l}.mlp.experts.{e}.up.weight"));
            assert_eq!(now, rows(&original, &format!("layers.{from}.mlp.experts.{expert}.up.weight")), "layer {l}, expert {e}");
        }
        // Neurons are counted through all experts of the first model.
        let neurons: Vec<usize> = experts.iter().flat_map(|e| (0..before.ffn).map(move |n| e * before.ffn + n)).collect();
        assert_eq!(kept("mlp.neurons", from), neurons, "layer {l}");
    }
}

/// Every kind of site, twice: layers, KV groups, heads, experts, neurons, a sublayer and hidden channels.
#[test]
fn every_site_twice_is_told_in_the_first_models_indices() {
    let dir = tempfile::tempdir().unwrap();
    for (family, sites) in [
        ("qwen3_moe", &["layers[*]", "layers[*].attention.kv_groups", "layers[*].mlp.experts", "layers[*].mlp.neurons", "hidden"][..]),
        ("llama", &["layers[*].mlp", "layers[*].attention.heads", "layers[*].attention.kv_groups", "layers[*].mlp.neurons", "hidden"]),
        ("gpt2", &["layers[*].attention", "layers[*].attention.heads", "layers[*].mlp.neurons", "hidden"]),
    ] {
        let d = dir.path().join(family);
        std::fs::create_dir(&d).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families").join(family);
        let recipe = |from: &str, to: &str, seed: usize| {
            let mut text = format!("edition 2026\n\nmodel m = dir(\"{from}\")\n\n");
            for (i, site) in sites.iter().enumerate() {
                let (amount, options) = match *site {
                    "layers[*]" | "layers[*].mlp" | "layers[*].attention" => ("1 layer", ""),
                    "hidden" => ("20%", ""),
                    "layers[*].mlp.experts" => ("1 expert", "{ scope = layer }"),
                    "layers[*].attention.kv_groups" => ("1 group", "{ scope = layer }"),
                    "layers[*].attention.heads" => ("30%", "{ at_least = 2 heads }"),
                    _ => ("30%", "{ at_least = 4 neurons }"),
                };
                // The second time whole layers are gone already.
                if !(seed > 9 && amount == "1 layer") {
                    text += &format!("prune m.{site} by {amount} using random(seed = {}) {options}\ncompact m\n", seed + i);
                }
            }
            text + &format!("save m to \"{to}\"\n")
        };
        run(&d, "first.prune", &recipe(source.to_str().unwrap(), "out/one", 3));
        run(&d, "second.prune", &recipe("out/one", "out/two", 30));
        let original = load(&source, &LoadOptions::default()).unwrap();
        let two = load(&d.join("out/two"), &LoadOptions::default()).unwrap();
        let record = PruneRecord::read(&d.join("out/two")).unwrap().unwrap();
        assert_eq!(record.history.len(), 1);
        let kept = |site: &str, layer: usize, all: usize| -> Vec<usize> {
            let site = record.sites.iter().find(|s| s.site == site);
            site.and_then(|s| s.kept.get(&layer)).cloned().unwrap_or_else(|| (0..all).collect())
        };
        let hidden = kept("hidden", 0, original.blueprint().hidden);
        assert_eq!(hidden.len(), two.blueprint().hidden, "{family}");
        let narrow = |rows: &[Vec<f32>]| -> Vec<Vec<f32>> { rows.iter().map(|r| hidden.iter().map(|c| r[*c]).collect()).collect() };
        assert_eq!(rows(&two, "embeddings.token.weight"), narrow(&rows(&original, "embeddings.token.weight")), "{family}");
        for (l, now) in two.dims().iter().enumerate() {
            let from = record.layers[l];
            let before = original.dims()[from];
            if now.q_heads > 0 {
                let (heads, groups) = (kept("attention.heads", from, before.q_heads), kept("attention.kv_groups", from, before.kv_heads));
                assert_eq!((heads.len(), groups.len()), (now.q_heads, now.kv_heads), "{family} layer {l}");
                for (part, units) in [("q", &heads), ("k", &groups), ("v", &groups)] {
                    let was = rows(&original, &format!("layers.{from}.attention.{part}.weight"));
                    let of = |unit: &usize| was[unit * before.head_dim..(unit + 1) * before.head_dim].to_vec();
                    let wanted: Vec<Vec<f32>> = units.iter().flat_map(of).collect();
                    assert_eq!(rows(&two, &format!("layers.{l}.attention.{part}.weight")), narrow(&wanted), "{family} layer {l} {part}");
                }
            }
            let experts = kept("mlp.experts", from, before.experts);
            assert_eq!(experts.len(), now.experts, "{family} layer {l}");
            let neurons = kept("mlp.neurons", from, before.ffn * before.experts.max(1));
            assert_eq!(neurons.len(), now.ffn * now.experts.max(1), "{family} layer {l}");
            if now.ffn == 0 {
                continue;
            }
            let stem = |layer: usize, expert: Option<usize>| match expert {
                Some(e) => format!("layers.{layer}.mlp.experts.{e}.up.weight"),
                None => format!("layers.{layer}.mlp.up.weight"),
            };
            for e in 0..now.experts.max(1) {
                let mixture = now.experts > 0;
                let was = rows(&original, &stem(from, mixture.then(|| experts[e])));
                let own = &neurons[e * now.ffn..(e + 1) * now.ffn];
                assert!(own.iter().all(|n| n / before.ffn == if mixture { experts[e] } else { 0 }), "{family} layer {l}: {own:?}");
                let wanted: Vec<Vec<f32>> = own.iter().map(|n| was[n % before.ffn].clone()).collect();
                assert_eq!(rows(&two, &stem(l, mixture.then_some(e))), narrow(&wanted), "{family} layer {l} expert {e}");
            }
        }
        // The result goes on: it is told, and exported.
        let inspected = prunectl(&d, &["inspect", "out/two", "--json"]).output().unwrap();
        let told: Value = serde_json::from_slice(&inspected.stdout).unwrap_or_else(|e| panic!("{family}: {e}"));
        assert!(told.to_string().contains("\"first\"") && told.to_string().contains("\"second\""), "{told}");
        let exported = prunectl(&d, &["export", "out/two", "--format", "hf", "--out", "out/hf"]).output().unwrap();
        assert!(exported.status.success(), "{family}: {}", String::from_utf8_lossy(&exported.stderr));
        assert_eq!(load(&d.join("out/hf"), &LoadOptions::default()).unwrap().dims(), two.dims(), "{family}");
        assert_eq!(PruneRecord::read(&d.join("out/hf")).unwrap().unwrap().sites, record.sites, "{family}");
    }
}

/// What is no model folder is named as what it is.
#[test]
fn a_path_that_is_no_model_folder_is_named_as_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), "p.prune", "edition 2026\n\nmodel m = builtin(\"tiny-llama\")\n\nsave m to \"out/m\"\n");
    for (path, says) in [
        ("nothere", "there is no folder nothere"),
        ("runs/p-1", "is a run directory; the models that the run saved are in out/m"),
        ("out/m/model.safetensors", "is a file; give its folder, out/m"),
        ("p.prune", "is a file; give a model folder"),
        ("out", "has no config.json"),
        ("builtin:tiny-llama", "reads folders, not `builtin:` names"),
        ("hf:org/name", "`prunectl plan hf:org/name` reads its headers"),
    ] {
        for args in [vec!["inspect", path], vec!["export", path, "--format", "gguf"]] {
            let output = prunectl(dir.path(), &args).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.code() == Some(2) && said.contains(says), "{args:?}: {said}");
        }
    }
    for (args, says) in [
        (["--format", "gguf", "--dtype", "q4_k_m"], "`q4_k` has that type in every matrix"),
        (["--format", "hf", "--dtype", "q8_0"], "with --format gguf it is there"),
    ] {
        let output = prunectl(dir.path(), &[&["export", "out/m"], args.as_slice()].concat()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(says), "{args:?}: {said}");
    }
}

/// `export` of what was saved: another dtype, the original shape, and a refusal that says why.
#[test]
fn a_saved_model_is_exported() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = "edition 2026\n\nmodel m = builtin(\"tiny-llama\")\n\nprune m.layers[*].mlp.neurons by 30% using magnitude() { scope = global }\n\
                  compact m\nsave m to \"out/m\"\nsave m to \"out/g\" { format = gguf  dtype = f16 }\n";
    run(dir.path(), "p.prune", recipe);
    assert!(dir.path().join("out/g/model.gguf").is_file() && dir.path().join("out/g/prune.json").is_file());
    let export = |args: &[&str]| {
        let output = prunectl(dir.path(), &[&["export", "out/m", "--json"], args].concat()).output().unwrap();
        let value: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.code(), value, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (status, found, said) = export(&["--format", "gguf", "--dtype", "q8_0"]);
    assert_eq!(status, Some(0), "{said}");
    assert_eq!((found["path"].as_str(), found["difference"].as_f64()), (Some("m-q8_0.gguf"), Some(0.0)));
    assert!(dir.path().join("m-q8_0.gguf").metadata().unwrap().len() == found["bytes"].as_u64().unwrap());
    let (status, _, said) = export(&["--format", "gguf", "--dtype", "q8_0"]);
    assert!(status == Some(2) && said.contains("is there already"), "{said}");
    let (status, found, said) = export(&["--format", "hf", "--layout", "padded", "--dtype", "bf16", "--out", "out/padded"]);
    assert_eq!(status, Some(0), "{said}");
    assert!(found["loaders"][0].as_str().unwrap().contains("loads as it is"), "{found}");
    let again = load(&dir.path().join("out/padded"), &LoadOptions::default()).unwrap();
    let dense = load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-llama"), &LoadOptions::default()).unwrap();
    assert_eq!(again.dims(), dense.dims());
    let bert = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-bert");
    let output = prunectl(dir.path(), &["export", bert.to_str().unwrap(), "--format", "gguf"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("only causal language models"));
}
