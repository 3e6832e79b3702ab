//! Scores of single weights against golden numbers, through the registry rows that the executor uses.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use candle_core::{DType, Tensor};
use common::{Case, close, worst};
use prunectl_model::{Batch, Transformer};
use prunectl_prune::{InMemory, Scores, Sites};
use prunectl_recipe::plan::Value;

/// Our slot and the case's name of each projection of these layers.
fn slots(layers: &[usize]) -> Vec<(String, String)> {
    let names = [
        ("attention.q", "self_attn.q_proj"),
        ("attention.k", "self_attn.k_proj"),
        ("attention.v", "self_attn.v_proj"),
        ("attention.o", "self_attn.o_proj"),
        ("mlp.gate", "mlp.gate_proj"),
        ("mlp.up", "mlp.up_proj"),
        ("mlp.down", "mlp.down_proj"),
    ];
    let of = |l: usize| names.map(|(a, b)| (format!("layers.{l}.{a}.weight"), format!("model.layers.{l}.{b}.weight")));
    layers.iter().flat_map(|l| of(*l)).collect()
}

fn all_weights(model: &Transformer) -> Sites {
    let mut sites = Sites::default();
    for layer in 0..model.n_layers() {
        sites.weights.extend(model.linears(layer).unwrap());
    }
    sites
}

fn flat(scores: &Scores, slot: &str) -> Vec<f32> {
    scores.weights[slot].flatten_all().unwrap().to_vec1().unwrap()
}

fn word(w: &str) -> Value {
    Value::Word(w.into())
}

#[test]
fn loss_models() {
    let case = Case::open("04_loss_modelling_llama");
    let model = case.model("text-generation");
    let sites = all_weights(&model);
    let run = |name, args: &[(&str, Value)], data: &mut InMemory| common::score(&model, name, args, &sites, data);
    let linear = run("loss_model", &[], &mut case.texts());
    let first = run("loss_model", &[], &mut case.first_batch());
    let damage = run("obd", &[], &mut case.texts());
    let quadratic = run("loss_model", &[("kind", word("quadratic"))], &mut case.texts());
    let penalised = run("loss_model", &[("penalty", Value::Number(2.0))], &mut case.texts());
    for (ours, theirs) in slots(&[0, 1]) {
        close(&case, &format!("LM.b3.{theirs}"), &flat(&linear, &ours));
        close(&case, &format!("LM.b1.{theirs}"), &flat(&first, &ours));
        close(&case, &format!("OBD_fisher.b3.{theirs}"), &flat(&damage, &ours));
        let w = model.params().get(&ours).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let parts = flat(&linear, &ours).into_iter().zip(flat(&damage, &ours)).zip(flat(&quadratic, &ours));
        for (((l, d), q), (p, w)) in parts.zip(flat(&penalised, &ours).into_iter().zip(w)) {
            // |−g·w + ½·h·w²| is the sum or the difference of its parts.
            assert!(((l + d) - q).abs() < 1e-6 || ((l - d).abs() - q).abs() < 1e-6, "{l} {d} {q}");
            assert!((p - l - w * w).abs() < 1e-6);
        }
    }
    worst("04_loss_modelling_llama");
}

/// Σ_c p_c · (½ h w² with the label c).
#[test]
fn gauss_newton_of_a_classifier() {
    use prunectl_model::{Gates, Labels};
    let case = Case::open("02_michel_bert");
    let model = case.model("text-classification");
    let sites = Sites { weights: ["layers.0.mlp.up.weight".to_owned()].into(), ..Sites::default() };
    let slot = sites.weights.first().unwrap();
    let one = prunectl_prune::Batches::next(&mut common::one_by_one(&mut case.classified())).unwrap().unwrap();
    let logits = model.forward(&one, &Gates::default(), &mut ()).unwrap().get(0).unwrap().to_vec1::<f32>().unwrap();
    let total: f32 = logits.iter().map(|z| z.exp()).sum();
    let mut expected = vec![0f32; model.params().get(slot).unwrap().elem_count()];
    for (class, z) in logits.iter().enumerate() {
        let mut labelled = one.clone();
        labelled.labels = Some(Labels::Classes(Tensor::new(&[class as i64], &candle_core::Device::Cpu).unwrap()));
        let fisher = common::score(&model, "obd", &[], &sites, &mut InMemory::new(vec![labelled]));
        for (sum, f) in expected.iter_mut().zip(flat(&fisher, slot)) {
            *sum += z.exp() / total * f;
        }
    }
    let ggn = common::score(&model, "obd", &[("hessian", word("ggn"))], &sites, &mut InMemory::new(vec![one]));
    let largest = expected.iter().copied().fold(0f32, f32::max);
    assert!(logits.len() == 3 && largest > 0.0);
    for (g, e) in flat(&ggn, slot).iter().zip(expected) {
        assert!((g - e).abs() <= 1e-5 * largest, "{g} {e}");
    }
}

fn batch_of(case: &Case) -> InMemory {
    InMemory::new(vec![Batch::new(case.input("input_ids").to_dtype(DType::U32).unwrap())])
}

/// Scores divided by what the published codes divide by.
fn shares(scores: &Scores, total: impl Fn(f64) -> f64) -> Scores {
    let sum: f64 = scores.weights.values().map(|t| t.to_dtype(DType::F64).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()).sum();
    let weights = scores.weights.iter().map(|(slot, t)| (slot.clone(), (t / total(sum)).unwrap())).collect();
    Scores { weights, ..Scores::default() }
}

#[test]
fn snip_and_grasp() {
    let case = Case::open("06_init_pruning_llama");
    let model = case.model("text-generation");
    let sites = all_weights(&model);
    let snip = shares(&common::score(&model, "snip", &[], &sites, &mut batch_of(&case)), |s| s);
    let grasp = |t: f64| {
        let scores = common::score(&model, "grasp", &[("temperature", Value::Number(t))], &sites, &mut batch_of(&case));
        shares(&scores, |s| s.abs() + 1e-10)
    };
    let (cold, hot) = (grasp(1.0), grasp(200.0));
    for (ours, theirs) in slots(&[0, 2]) {
        close(&case, &format!("snip.{theirs}"), &flat(&snip, &ours));
        close(&case, &format!("grasp.T1.{theirs}"), &flat(&cold, &ours));
        close(&case, &format!("grasp.T200.{theirs}"), &flat(&hot, &ours));
    }
    worst("06_init_pruning_llama");
}
