//! Wanda and SparseGPT against the numbers of their authors' code, through the registry rows. The authors' one linear layer is the query
//! projection of a decoder without norms in front: its table of embeddings is the recorded inputs, so that what the layer reads is them.

use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use prunectl_model::{Batch, LoadOptions, SiteKind, Transformer};
use prunectl_prune::{CRITERIA, Decision, InMemory, Removed, Request, Scores, Sites};
use prunectl_recipe::plan::{Amount, Scope, Share, Value};

use crate::common::{Case, build, close, worst};

const SLOT: &str = "layers.0.attention.q.weight";

/// A model whose first layer reads the recorded inputs `[sequences, tokens, 32]`, and the batches that are them.
fn reading(case: &Case, inputs: &str) -> (Transformer, InMemory) {
    let x = case.input(inputs);
    let (sequences, tokens, hidden) = x.dims3().unwrap();
    let config = serde_json::json!({
        "model_type": "opt", "architectures": ["OPTForCausalLM"], "do_layer_norm_before": false, "hidden_size": hidden,
        "ffn_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": sequences * tokens,
        "max_position_embeddings": tokens, "word_embed_proj_dim": hidden,
    });
    static CONFIGS: AtomicUsize = AtomicUsize::new(0);
    let own = CONFIGS.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("prunectl-layerwise-{}-{own}.json", std::process::id()));
    std::fs::write(&path, config.to_string()).unwrap();
    let model = prunectl_model::init(&path, 0, &LoadOptions::default()).unwrap();
    std::fs::remove_file(&path).unwrap();
    // Three heads of eight: 24 rows.
    let mut model = model.keep_units(SiteKind::Heads, Some(0), &[0, 1, 2]).unwrap();
    let positions = model.params().get("embeddings.position.weight").unwrap().zeros_like().unwrap();
    model.params_mut().set("embeddings.position.weight", positions);
    model.params_mut().set("embeddings.token.weight", x.flatten_to(1).unwrap());
    model.params_mut().set(SLOT, case.input("weight"));
    let ids = Tensor::arange(0, (sequences * tokens) as u32, &Device::Cpu).unwrap().reshape((sequences, tokens)).unwrap();
    // In batches of two, two and one.
    let rows = |from: usize| Batch::new(ids.narrow(0, from, 2.min(sequences - from)).unwrap());
    (model, InMemory::new((0..sequences).step_by(2).map(rows).collect()))
}

fn share(f: f64) -> Amount {
    Amount::Share { share: Share::from_fraction(f), each: false }
}

fn pattern(removed: u32, group: u32) -> Amount {
    Amount::NofM { removed, group }
}

fn sites() -> Sites {
    Sites { weights: [SLOT.to_owned()].into(), ..Sites::default() }
}

/// A prune as the executor does it: the model afterwards, the decision, the scores.
fn prune(case: &Case, inputs: &str, row: &str, args: &[(&str, Value)], amount: &Amount, scope: Scope) -> (Transformer, Decision, Scores) {
    let (mut model, mut data) = reading(case, inputs);
    let (sites, mut removed, none) = (sites(), Removed::default(), Removed::default());
    let request = Request::plain(&sites, amount, scope, &none);
    let row = build(CRITERIA, row, args);
    let (decision, scores) = row.layerwise().unwrap().prune(&mut model, &mut removed, &request, &mut data, &()).unwrap();
    (model, decision, scores)
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn mask(decision: &Decision) -> Vec<u8> {
    decision.weights[SLOT].flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn wanda() {
    let case = Case::open("05_wanda");
    let reference = [("quirk", Value::Word("reference".into()))];
    let (model, mut data) = reading(&case, "inputs");
    let dense = crate::common::score(&model, "wanda", &reference, &sites(), &mut data);
    close(&case, "score", &flat(&dense.weights[SLOT]));
    // The paper's norm is of all tokens, not divided by the sequences.
    let paper = crate::common::score(&model, "wanda", &[], &sites(), &mut data);
    let by_sequence: Vec<f32> = flat(&paper.weights[SLOT]).iter().map(|s| s / 5f32.sqrt()).collect();
    close(&case, "score", &by_sequence);
    for (name, amount) in
        [("u50", share(0.5)), ("u30", share(0.3)), ("2of4", pattern(2, 4)), ("4of8", pattern(4, 8)), ("1of4", pattern(1, 4))]
    {
        for args in [&reference[..], &[]] {
            let (pruned, decision, _) = prune(&case, "inputs", "wanda", args, &amount, Scope::Row);
            assert_eq!(mask(&decision), case.mask(&format!("mask.{name}")), "{name}");
            let left = flat(pruned.params().get(SLOT).unwrap());
            assert!(left.iter().zip(flat(&case.input("weight"))).zip(mask(&decision)).all(|((l, w), k)| *l == w * f32::from(k)));
        }
    }
    worst("05_wanda");
}

#[test]
fn sparsegpt() {
    let case = Case::open("05_sparsegpt");
    for (name, inputs, amount, block) in [
        ("u50.bs8", "inputs", share(0.5), 8.0),
        ("u50.bs128", "inputs", share(0.5), 128.0),
        ("u70.bs16", "inputs", share(0.7), 16.0),
        ("2of4.bs8", "inputs", pattern(2, 4), 8.0),
        ("2of4.bs128", "inputs", pattern(2, 4), 128.0),
        ("4of8.bs128", "inputs", pattern(4, 8), 128.0),
        ("dead.u50.bs8", "inputs_dead", share(0.5), 8.0),
    ] {
        let args = [("block", Value::Number(block)), ("quirk", Value::Word("reference".into()))];
        let (model, decision, _) = prune(&case, inputs, "sparsegpt", &args, &amount, Scope::Matrix);
        assert_eq!(mask(&decision), case.mask(&format!("mask.{name}")), "{name}");
        close(&case, &format!("weight.{name}"), &flat(model.params().get(SLOT).unwrap()));
    }
    worst("05_sparsegpt");
}
