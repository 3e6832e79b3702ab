//! Every family × every site, as a recipe: what `plan` foresees is what an independent reader counts in the files that `save` wrote, what
//! is masked computes what is compacted, zeros of single weights lie where the decision says and nowhere else, and transformers reads it.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use prunectl_model::{Batch, LoadOptions, Task, Transformer, load};
use serde_json::{Value, json};

use crate::common::{run, stderr};
use crate::families::{MODELS, golden};
use crate::stock::{difference, logits};

/// Masked units are added as zeros, in another order than without them.
const MASKED: f64 = 2e-5;
/// Other kernels, another order of summation.
const READ: f64 = 1e-4;

/// A name, what follows `prune m.`, and whether zeros alone switch such units off, so that a masked model can be saved.
const SITES: &[(&str, &str, bool)] = &[
    ("heads", "layers[*].attention.heads by 50% using magnitude()", true),
    ("kv_groups", "layers[*].attention.kv_groups by 25% using magnitude() { scope = layer }", true),
    ("neurons", "layers[*].mlp.neurons by 40% using magnitude()", true),
    ("even_neurons", "layers[*].mlp.neurons by 30% using random(seed = 2) { scope = layer }", true),
    ("experts", "layers[*].mlp.experts by 30% using magnitude()", false),
    ("attention", "layers[*].attention by 1 layer using random(seed = 3)", true),
    ("mlp", "layers[*].mlp by 1 layer using random(seed = 3)", true),
    ("layers", "layers[*] by 1 layer using magnitude()", false),
    ("hidden", "hidden by 25% using magnitude()", false),
    ("weights", "layers[*].linears.weights by 50% using magnitude() { scope = matrix }", true),
    ("n_of_m", "layers[*].linears.weights by 2 of 4 using magnitude()", true),
];

/// The sites that a model has.
fn sites_of(model: &Transformer) -> Vec<&'static (&'static str, &'static str, bool)> {
    let has = |name: &str| match name {
        "experts" => model.dims().iter().all(|d| d.experts > 1),
        "kv_groups" => model.dims().iter().all(|d| d.kv_heads >= 4 && d.group_size() > 1),
        _ => true,
    };
    SITES.iter().filter(|(name, ..)| has(name)).collect()
}

/// Golden models whose sites are those of another one of the list.
const ALIKE: &[&str] = &[
    "bert_cls",
    "bert_qa",
    "roberta_cls",
    "distilbert_cls",
    "electra_mlm",
    "gpt_neox_serial",
    "falcon_serial",
    "llama_tied",
    "llama_rope3",
];

fn recipe(dir: &Path, sites: &[&(&str, &str, bool)]) -> String {
    let mut text = "edition 2026\n\n".to_owned();
    for (name, ..) in sites {
        text += &format!("model {name} = dir(\"{}\")\n", dir.display());
    }
    for (name, step, zeros) in sites {
        text += &format!("\nprune {name}.{step}\n");
        if *zeros && !step.contains("weights") {
            text += &format!("save {name} to \"out/{name}-masked\"\n");
        }
        text += &format!("compact {name}\nsave {name} to \"out/{name}\"\n");
    }
    text
}

/// Scalars in a folder's weight file, by a reader that has no part in the writing.
fn counted(dir: &Path) -> u64 {
    let bytes = fs::read(dir.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().iter().map(|(_, t)| t.shape().iter().map(|n| *n as u64).product::<u64>()).sum()
}

fn tensors(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The keep mask `[rows, columns]` of a packed one: the first column in the lowest bit.
fn unpacked(packed: &Tensor, columns: usize) -> Vec<bool> {
    let (rows, bytes) = packed.dims2().unwrap();
    let packed = packed.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))).map(|(r, c)| packed[r * bytes + c / 8] >> (c % 8) & 1 == 1).collect()
}

/// Holds the file against the original and the decision's masks, bit for bit; returns the masked matrices.
fn zeros_are_where_planned(what: &str, original: &Path, saved: &Path, masks: &Path) -> usize {
    let (before, after, masks) = (tensors(original), tensors(saved), tensors(masks));
    assert_eq!(before.len(), after.len(), "{what}");
    for (name, t) in &after {
        let (was, now) = (flat(&before[name]), flat(t));
        let kept = masks.get(name).map(|mask| unpacked(mask, t.dims()[1]));
        for (i, (was, now)) in was.iter().zip(&now).enumerate() {
            let wanted = if kept.as_ref().is_none_or(|k| k[i]) { *was } else { 0.0 };
            assert_eq!(now.to_bits(), wanted.to_bits(), "{what}: entry {i} of {name}");
        }
    }
    assert!(masks.keys().all(|name| after.contains_key(name)), "{what}: a mask of no matrix of the file");
    masks.len()
}

/// Of every four weights that follow each other along the inputs two are zeros. Files of GPT-2 have the inputs first.
fn two_of_four(what: &str, saved: &Path, masks: &Path, upright: bool) {
    let after = tensors(saved);
    for name in tensors(masks).keys() {
        let t = if upright { after[name].t().unwrap().contiguous().unwrap() } else { after[name].clone() };
        let inputs = t.dims()[1];
        for row in flat(&t).chunks(inputs) {
            for group in row.chunks_exact(4) {
                assert_eq!(group.iter().filter(|w| **w == 0.0).count(), 2, "{what}: {name}");
            }
        }
    }
}

#[test]
fn every_site_of_every_family_by_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let mut asked = Vec::new();
    let mut names = Vec::new();
    for place in MODELS.iter().filter(|m| !m.contains('@') && !m.ends_with("encoder")) {
        let family = place.rsplit('/').next().unwrap();
        if ALIKE.contains(&family) {
            continue;
        }
        let original = golden(place);
        let dense = load(&original, &LoadOptions::default()).unwrap();
        let sites = sites_of(&dense);
        let dir = folder.path().join(family);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("r.prune"), recipe(&original, &sites)).unwrap();
        let planned = run(&dir, &["plan", "r.prune", "--json"]);
        let planned: Value = serde_json::from_slice(&planned.stdout).unwrap_or_else(|e| panic!("{family}: {e} {}", stderr(&planned)));
        let done = run(&dir, &["run", "r.prune", "--out", "r", "-q"]);
        assert!(done.status.success(), "{family}: {}", stderr(&done));
        let want = tensors(&original.join("expected.safetensors"));
        let batch = Batch {
            keep: Some(want["attention_mask"].to_dtype(DType::U8).unwrap()),
            ..Batch::new(want["input_ids"].to_dtype(DType::U32).unwrap())
        };
        for (i, (site, step, zeros)) in sites.iter().enumerate() {
            let what = format!("{family} {site}");
            let saved = dir.join("out").join(site);
            // Planned and counted.
            let known = &planned["models"][i]["known"];
            let bounds: Vec<u64> = known["parameters_after"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
            let found = counted(&saved);
            assert!(bounds[0] <= found && found <= bounds[1], "{what}: planned {bounds:?}, counted {found}");
            assert!(bounds[0] > 0, "{what}");
            if matches!(*site, "even_neurons" | "hidden" | "weights" | "n_of_m") {
                assert_eq!(bounds[0], bounds[1], "{what}: the recipe decides the size");
            }
            let single = step.contains("weights");
            assert_eq!(found < counted(&original), !single, "{what}");
            let model = load(&saved, &LoadOptions::default()).unwrap();
            let output = logits(&model, &batch);
            if single {
                let masks = dir.join(format!("r/decisions/prune-{}.safetensors", i + 1));
                let matrices =
                    zeros_are_where_planned(&what, &original.join("model.safetensors"), &saved.join("model.safetensors"), &masks);
                assert!(matrices >= 2 * dense.n_layers(), "{what}: {matrices} masks");
                if *site == "n_of_m" {
                    two_of_four(&what, &saved.join("model.safetensors"), &masks, family == "gpt2");
                }
                println!("site {family} {} 0e0", if *site == "n_of_m" { "NofM" } else { "Weights" });
            } else if *zeros {
                let masked = load(&dir.join("out").join(format!("{site}-masked")), &LoadOptions::default()).unwrap();
                assert_eq!(masked.dims(), dense.dims(), "{what}");
                let error = difference(&logits(&masked, &batch), &output);
                assert!(error < MASKED, "{what}: masked against compacted {error:.1e}");
            }
            if model.origin().task != Task::Encoder {
                let answers = folder.path().join(format!("{}.safetensors", asked.len()));
                let whole = |t: &Tensor| t.to_dtype(DType::I64).unwrap();
                let keep = whole(batch.keep.as_ref().unwrap());
                let expected = HashMap::from([
                    ("input_ids".to_owned(), whole(&batch.input_ids)),
                    ("attention_mask".to_owned(), keep),
                    ("logits".to_owned(), output),
                ]);
                candle_core::safetensors::save(&expected, &answers).unwrap();
                let class = crate::families::auto_class(model.origin().task);
                // Shapes that need the Python file bring it; zeros among weights never do.
                let code = saved.join("modeling_prunectl.py").is_file();
                assert!(!(single && code), "{what}");
                asked.push(json!({"name": what, "dir": saved, "expected": answers, "auto_class": class, "trust_remote_code": code}));
                names.push(what);
            }
        }
    }
    let Some(python) = prunectl_testkit::python("transformers reads every site of every family") else { return };
    let results = prunectl_testkit::ask(&python, "check_logits.py", folder.path(), &asked);
    let mut wrong = Vec::new();
    for (name, result) in names.iter().zip(&results) {
        let complete = result["missing"].as_array().is_some_and(Vec::is_empty);
        match result["difference"].as_f64() {
            Some(error) if error < READ && complete => {
                let (family, site) = name.split_once(' ').unwrap();
                println!("read {family} {site} {error:.1e}");
            }
            _ => wrong.push(result.to_string()),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
