//! Adapters alone: written, attached again to the same bits, and refused where they do not fit.

use super::*;
use crate::save::record::{RecipeRef, RunRecord, SourceRef};
use prunectl_model::{LoadOptions, init};
use prunectl_prune::{ADAPTERS, build};
use prunectl_recipe::catalogue::Args;

/// A random model of a family.
fn model(family: &str) -> Transformer {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/families").join(family).join("config.json");
    init(&config, 3, &LoadOptions::default()).unwrap()
}

/// The model with adapters on those of its layers' matrices whose names end so, at their first values.
fn attached(family: &str, row: &str, args: &[(&str, f64)], ends: &[&str]) -> (Transformer, BTreeSet<String>) {
    let mut model = model(family);
    let all = (0..model.n_layers()).flat_map(|l| model.linears(l).unwrap());
    let weights: BTreeSet<String> = all.filter(|slot| ends.iter().any(|end| stem_of(slot).ends_with(end))).collect();
    let spec = ADAPTERS.iter().find(|e| e.spec.name == row).unwrap().spec;
    let mut values = Args::default();
    for p in spec.params {
        let given = args.iter().find(|(name, _)| *name == p.name).map(|(_, v)| prunectl_recipe::plan::Value::Number(*v));
        let default = p.default.and_then(|d| d.parse::<f64>().ok()).map(prunectl_recipe::plan::Value::Number);
        values.0.extend(given.or(default).map(|v| (p.name.to_owned(), v)));
    }
    if row == "splopa" {
        let block = [2.0, 4.0].map(prunectl_recipe::plan::Value::Number).to_vec();
        values.0.insert("shape".into(), prunectl_recipe::plan::Value::List(block));
    }
    for (slot, tensor) in build(ADAPTERS, row, &values).unwrap().attach(&model, &weights).unwrap() {
        model.params_mut().set(slot, tensor);
    }
    let stems = weights.iter().map(|w| stem_of(w).to_owned()).collect();
    (model, stems)
}

/// The same as if it had been trained: every number that trains is another, and so is the head.
fn trained(mut model: Transformer) -> Transformer {
    let slots: Vec<String> = model.params().slots().map(str::to_owned).collect();
    for (i, slot) in slots.iter().filter(|s| prunectl_model::adapter::trains(s) || s.starts_with("classifier.")).enumerate() {
        let t = model.params().require(slot).unwrap().clone();
        let n = t.elem_count();
        let values: Vec<f32> = (0..n).map(|k| ((k * 7 + i * 13) as f32 * 0.31).sin() * 0.2).collect();
        model.params_mut().set(slot, Tensor::from_vec(values, t.shape(), &Device::Cpu).unwrap());
    }
    model
}

fn record(recipe: &str) -> PruneRecord {
    let run = RunRecord {
        recipe: RecipeRef { name: recipe.into(), sha256: "ab".into() },
        prunectl: "0".into(),
        model: SourceRef { name: "m".into(), source: "init:x".into(), revision: None, sha256: BTreeMap::new() },
        data: vec![],
        metrics: serde_json::Map::new(),
        shapes: vec![],
    };
    PruneRecord::after(None, run, "compact", vec![], vec![], vec![])
}

/// The weights with the adapters added in, and the head.
fn bits(model: &Transformer) -> BTreeMap<String, Vec<u32>> {
    let fused = model.fused(&model.adapted()).unwrap();
    let of = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect();
    fused.params().iter().map(|(slot, t)| (slot.to_owned(), of(t))).collect()
}

/// Every kind of adapter, on families whose files hold matrices as they are, transposed, joined in blocks, by group and by shard.
#[test]
fn what_is_saved_alone_is_attached_again_to_the_same_bits() {
    let all = ["q", "k", "v", "o", "up", "down", "gate"];
    let cases = [
        ("llama", &all[..], 0),
        ("bert_cls", &all[..], 0),
        ("gpt2", &all[..], 3),
        ("gpt_neox", &all[..], 3),
        ("falcon", &all[..], 3),
        ("codegen", &all[..], 3),
        ("phi3", &all[..], 3),
        ("gpt2", &["q", "v"][..], 2),
        ("phi3", &["up"][..], 1),
    ];
    for (family, ends, parts) in cases {
        for (row, args) in
            [("lora", &[("rank", 2.0), ("alpha", 3.0)][..]), ("splora", &[("rank", 2.0)]), ("splopa", &[("prototypes", 3.0)])]
        {
            let folder = tempfile::tempdir().unwrap();
            let target = folder.path().join("alone");
            let (start, stems) = attached(family, row, args, ends);
            let model = trained(start.clone());
            assert_ne!(bits(&model), bits(&start), "{family} {row}");
            let written = write_adapter(&model, &stems, &target, &record("r")).unwrap();
            let fused = written.says.contains(&format!("takes its {parts} parts as one update of rank {}", 2 * parts));
            assert_eq!(fused, parts > 1 && row != "splopa", "{family} {row}: {}", written.says);
            assert_eq!(written.reader, if row == "splopa" { "prunectl" } else { "peft" });
            let mut again = start.clone();
            assert!(read_adapter(&mut again, &stems, &target).unwrap().is_empty());
            assert!(bits(&again) == bits(&model), "{family} {row} {ends:?}");
        }
    }
}

/// A full update of a joined module, as peft trains it, is one of the same rank on each part.
#[test]
fn an_update_of_a_joined_module_is_taken_apart() {
    for family in ["gpt2", "gpt_neox", "falcon", "codegen", "phi3"] {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("theirs");
        let (mut model, stems) = attached(family, "lora", &[("rank", 2.0), ("alpha", 6.0)], &["attention.q", "attention.k", "attention.v"]);
        write_adapter(&trained(model.clone()), &stems, &target, &record("r")).unwrap();
        // Their file: rank 2 on the whole module.
        let mut tensors = candle_core::safetensors::load(target.join(TENSORS_FILE), &Device::Cpu).unwrap();
        let mut wanted = BTreeMap::new();
        let matrices: BTreeMap<String, FileMatrix> = FileMatrix::all(&model).unwrap().into_iter().map(|m| (m.name.clone(), m)).collect();
        for (name, t) in &mut tensors {
            let n = if name.ends_with(ROWS) { (2, t.dim(1).unwrap()) } else { (t.dim(0).unwrap(), 2) };
            *t = (Tensor::arange(0f32, (n.0 * n.1) as f32, &Device::Cpu).unwrap().reshape(n).unwrap() * 0.37).unwrap().sin().unwrap();
        }
        for (name, cols) in tensors.iter().filter(|(name, _)| name.ends_with(COLS)) {
            let module = name.strip_prefix(PREFIX).unwrap().strip_suffix(COLS).unwrap();
            let update = (cols.matmul(&tensors[&format!("{PREFIX}{module}{ROWS}")]).unwrap() * 3.0).unwrap();
            let matrix = &matrices[&format!("{module}.weight")];
            let parts = matrix.split(&update).unwrap();
            wanted.extend(matrix.slots().map(|(slot, _)| slot.to_owned()).zip(parts));
        }
        candle_core::safetensors::save(&tensors, target.join(TENSORS_FILE)).unwrap();
        std::fs::write(
            target.join(CONFIG_FILE),
            r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 1.0, "alpha_pattern": {"MODULE": 6}}"#.replace(
                "MODULE",
                matrices
                    .keys()
                    .find(|n| wanted.contains_key(matrices[*n].slots().next().unwrap().0))
                    .unwrap()
                    .strip_suffix(".weight")
                    .unwrap()
                    .rsplit('.')
                    .next()
                    .unwrap(),
            ),
        )
        .unwrap();
        read_adapter(&mut model, &stems, &target).unwrap();
        let fused = model.fused(&stems).unwrap();
        let bare = self::model(family);
        for (slot, update) in wanted {
            let expected = (bare.params().require(&slot).unwrap() + update).unwrap();
            let off = (fused.params().require(&slot).unwrap() - expected).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            assert!(off.to_scalar::<f32>().unwrap() < 1e-5, "{family} {slot}: {off}");
        }
    }
}

#[test]
fn a_folder_that_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("alone");
    let q_and_v = ["attention.q", "attention.v"];
    let (model, stems) = attached("gpt2", "lora", &[("rank", 2.0)], &q_and_v);
    write_adapter(&trained(model.clone()), &stems, &target, &record("r")).unwrap();
    let refused = |family: &str, row: &str, args: &[(&str, f64)], ends: &[&str], says: &[&str]| {
        let (mut model, stems) = attached(family, row, args, ends);
        let e = read_adapter(&mut model, &stems, &target).unwrap_err().to_string();
        assert!(says.iter().all(|s| e.contains(s)) && e.contains("alone"), "{e}");
    };
    // Attached one after the other, each with what is its own.
    let (mut other, own) = attached("gpt2", "lora", &[("rank", 2.0)], &["attention.q", "attention.v", "mlp.up"]);
    let both = folder.path().join("both");
    write_adapter(&trained(other.clone()), &own, &both, &record("r")).unwrap();
    assert_eq!(read_adapter(&mut other, &stems, &both).unwrap().first().unwrap(), "transformer.h.0.mlp.c_fc");
    let rest: BTreeSet<String> = own.difference(&stems).cloned().collect();
    assert_eq!(read_adapter(&mut other, &rest, &both).unwrap().first().unwrap(), "transformer.h.0.attn.c_attn");
    let (fresh, _) = attached("gpt2", "lora", &[("rank", 2.0)], &["attention.q", "attention.v", "mlp.up"]);
    assert!(bits(&other) == bits(&trained(fresh)));
    refused("gpt2", "lora", &[("rank", 3.0)], &q_and_v, &["has rank 4 there", "rank 3 + 3 is attached", "rank = 4"]);
    refused("gpt2", "lora", &[("rank", 4.0)], &["attention.q"], &["attention.v", "leaves out"]);
    refused("gpt2", "lora", &[("rank", 2.0)], &["mlp.up"], &["c_fc", "c_attn", "attach to the modules"]);
    refused("gpt2", "splopa", &[("prototypes", 3.0)], &q_and_v, &["LORA, expected SPLOPA"]);
    refused("llama", "lora", &[("rank", 2.0)], &q_and_v, &["q_proj"]);
    let config = target.join(CONFIG_FILE);
    let text = std::fs::read_to_string(&config).unwrap();
    let mut tensors = candle_core::safetensors::load(target.join(TENSORS_FILE), &Device::Cpu).unwrap();
    std::fs::write(&config, text.replace("\"alpha_pattern\": {}", "\"alpha_pattern\": {\"h.*\": 3}")).unwrap();
    refused("gpt2", "lora", &[("rank", 2.0)], &q_and_v, &["alpha_pattern", "h.*"]);
    std::fs::write(&config, &text).unwrap();
    // What DoRA adds would be lost without a word.
    let name = format!("{PREFIX}transformer.h.0.attn.c_attn.lora_magnitude_vector");
    tensors.insert(name, Tensor::ones(3, DType::F32, &Device::Cpu).unwrap());
    candle_core::safetensors::save(&tensors, target.join(TENSORS_FILE)).unwrap();
    refused("gpt2", "lora", &[("rank", 2.0)], &q_and_v, &["lora_magnitude_vector", "plain low-rank"]);
    std::fs::write(target.join(TENSORS_FILE), "torn").unwrap();
    refused("gpt2", "lora", &[("rank", 2.0)], &q_and_v, &[TENSORS_FILE]);
    std::fs::remove_file(target.join(TENSORS_FILE)).unwrap();
    refused("gpt2", "lora", &[("rank", 2.0)], &q_and_v, &["there is no adapter_model.safetensors"]);
}
