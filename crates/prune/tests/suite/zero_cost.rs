//! Zero-cost proxies through their row: sums of what the criteria, held against golden numbers elsewhere, say of every weight.

use candle_core::{DType, Var};
use prunectl_model::{Batch, Gates, Transformer};
use prunectl_prune::{Batches, Decision, InMemory, Inputs, METRICS, Measured, Removed, Scores, Sites, UnitMap, surgery};
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::Value;

use crate::common::{Case, all, build, one_by_one, score};

const KINDS: [&str; 6] = ["synflow", "snip", "grasp", "fisher", "grad_norm", "jacob_cov"];

fn measured(model: &Transformer, kind: &str, data: &mut InMemory) -> Measured {
    let metric = build(METRICS, "zero_cost", &[("kind", Value::Word(kind.into()))]);
    let mut inputs =
        Inputs { model, batches: Some(data), stream: None, questions: None, asked: None, teacher: None, batch: 4, progress: &() };
    metric.measure(&mut inputs).unwrap()
}

fn weights(model: &Transformer) -> Sites {
    Sites { weights: (0..model.n_layers()).flat_map(|l| model.linears(l).unwrap()).collect(), ..Sites::default() }
}

fn sum(scores: &Scores) -> f64 {
    let weights = scores.weights.values().map(|t| t.to_dtype(DType::F64).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap());
    weights.sum::<f64>() + scores.sites.values().flatten().map(|s| f64::from(*s)).sum::<f64>()
}

fn near(a: f64, b: f64, tolerance: f64, what: &str) {
    assert!((a - b).abs() <= tolerance * b.abs(), "{what}: {a} {b}");
}

#[test]
fn proxies_are_sums_of_their_criteria() {
    let case = Case::open("02_michel_bert");
    let model = case.model("text-classification");
    let sites = weights(&model);
    let data = || case.classified();
    near(measured(&model, "snip", &mut data()).value, sum(&score(&model, "snip", &[], &sites, &mut data())), 1e-12, "snip");
    near(measured(&model, "synflow", &mut data()).value, sum(&score(&model, "synflow", &[], &sites, &mut data())), 1e-6, "synflow");
    let cold = [("temperature", Value::Number(1.0))];
    near(measured(&model, "grasp", &mut data()).value, -sum(&score(&model, "grasp", &cold, &sites, &mut data())), 1e-12, "grasp");

    let units = all(&model, &[SiteKind::Heads, SiteKind::Neurons]);
    let mut rows = one_by_one(&mut data());
    let n = rows.len_hint().unwrap() as f64;
    let fisher = sum(&score(&model, "fisher", &[], &units, &mut rows)) * model.blueprint().hidden as f64 / (n * n);
    near(measured(&model, "fisher", &mut data()).value, fisher, 1e-6, "fisher");

    // Σ‖g‖ by a backward pass of its own.
    let mut with = model.clone();
    let vars: Vec<Var> = sites
        .weights
        .iter()
        .map(|slot| {
            let var = Var::from_tensor(model.params().get(slot).unwrap()).unwrap();
            with.params_mut().set(slot.clone(), var.as_tensor().clone());
            var
        })
        .collect();
    let mut total = None;
    let mut rows = data();
    rows.reset().unwrap();
    while let Some(batch) = rows.next().unwrap() {
        let loss = with.forward_loss(&batch, &Gates::default(), &mut ()).unwrap().sum().unwrap();
        total = Some(total.map_or(loss.clone(), |t: candle_core::Tensor| (t + loss).unwrap()));
    }
    let grads = (total.unwrap() / n).unwrap().backward().unwrap();
    let norm = |v: &Var| {
        f64::from(grads.get(v.as_tensor()).map_or(0.0, |g| g.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap())).sqrt()
    };
    near(measured(&model, "grad_norm", &mut data()).value, vars.iter().map(norm).sum(), 1e-5, "grad_norm");

    let vote = measured(&model, "vote", &mut data());
    assert_eq!(vote.value, 0.0);
    for name in prunectl_prune::VOTERS {
        assert_eq!(vote.details[name], measured(&model, name, &mut data()).value);
    }
}

/// A batch of one and one of all, one and two threads, padding, and units as zeros or gone: one value.
#[test]
fn proxies_do_not_depend_on_how_they_are_run() {
    let case = Case::open("02_michel_bert");
    let model = case.model("text-classification");
    let mut masked = model.clone();
    let mut removed = Removed::default();
    let mut decision = Decision::default();
    for (key, units) in all(&model, &[SiteKind::Heads, SiteKind::Neurons]).units {
        decision.sites.insert(key, units.into_iter().filter(|u| u % 3 != 1).collect());
    }
    surgery::mask(&mut masked, &mut removed, &decision).unwrap();
    let mut compact = masked.clone();
    surgery::compact(&mut compact, &mut removed.clone(), &mut UnitMap::default()).unwrap();
    for kind in KINDS {
        let value = measured(&masked, kind, &mut case.classified()).value;
        near(measured(&masked, kind, &mut one_by_one(&mut case.classified())).value, value, 1e-5, kind);
        near(measured(&compact, kind, &mut case.classified()).value, value, 1e-5, &format!("{kind}, compacted"));
        let pool = |n: usize| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        let on = |n: usize| pool(n).install(|| measured(&masked, kind, &mut case.classified()).value);
        assert_eq!(on(1).to_bits(), on(2).to_bits(), "{kind}");
        assert!(value.is_finite());
    }
}

/// A causal model needs no labels; its outputs at every token count.
#[test]
fn proxies_of_a_language_model() {
    let case = Case::open("02_michel_llama");
    let model = case.model("text-generation");
    for kind in KINDS {
        let value = measured(&model, kind, &mut case.texts()).value;
        near(measured(&model, kind, &mut one_by_one(&mut case.texts())).value, value, 1e-5, kind);
    }
    let nothing = build(METRICS, "zero_cost", &[("kind", Value::Word("jacob_cov".into()))]);
    let mut none = InMemory::new(Vec::<Batch>::new());
    let mut inputs = Inputs {
        model: &model,
        batches: Some(&mut none),
        stream: None,
        questions: None,
        asked: None,
        teacher: None,
        batch: 4,
        progress: &(),
    };
    assert!(nothing.measure(&mut inputs).is_err());
}
