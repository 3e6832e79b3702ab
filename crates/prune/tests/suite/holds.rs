//! What holds for every criterion that scores: neither the batch nor the threads show, padding never counts, and what is degenerate gives a
//! defined score or an error that says where.

use candle_core::{DType, Device, Tensor};
use prunectl_model::{Batch, Labels, LoadOptions, SiteKind as ModelKind, Task, Transformer};
use prunectl_prune::{CRITERIA, Decision, InMemory, Key, PruneError, Removed, Scores, Sites, surgery};
use prunectl_recipe::catalogue::{SiteKind, Support};
use prunectl_recipe::plan::{Share, Value};

use crate::common::{all, build, golden};

/// Relative to the largest score of a site: what rounding in f32 gives when sums are cut elsewhere.
const BATCH_TOLERANCE: f64 = 1e-5;
const SEQUENCES: usize = 32;
const LONGEST: usize = 12;

fn load(name: &str, task: Option<&str>) -> Transformer {
    let options = LoadOptions { task: task.and_then(Task::parse), ..LoadOptions::default() };
    prunectl_model::load(&golden("methods/models").join(name), &options).unwrap()
}

fn bert() -> Transformer {
    load("bert-tiny", Some("text-classification"))
}

fn llama() -> Transformer {
    load("llama-tiny", None)
}

/// Sequences of different lengths.
fn sequences() -> Vec<(Vec<u32>, u32)> {
    let length = |i: usize| 3 + (i * 5) % (LONGEST - 2);
    (0..SEQUENCES).map(|i| ((0..length(i)).map(|t| (3 + (i * 17 + t * 29 + i * t) % 60) as u32).collect(), (i % 3) as u32)).collect()
}

/// The sequences in batches of `size`, the shorter ones padded.
fn batches(size: usize, classes: bool) -> InMemory {
    let all = sequences();
    let make = |rows: &[(Vec<u32>, u32)]| {
        let longest = rows.iter().map(|(ids, _)| ids.len()).max().unwrap();
        let padded = |of: &dyn Fn(&[u32], usize) -> u32| -> Vec<u32> {
            rows.iter().flat_map(|(ids, _)| (0..longest).map(|t| of(ids, t)).collect::<Vec<_>>()).collect()
        };
        let shape = (rows.len(), longest);
        let ids = padded(&|ids, t| ids.get(t).copied().unwrap_or(0));
        let keep: Vec<u8> = padded(&|ids, t| u32::from(t < ids.len())).into_iter().map(|k| k as u8).collect();
        let mut batch = Batch::new(Tensor::from_vec(ids, shape, &Device::Cpu).unwrap());
        if keep.contains(&0) {
            batch.keep = Some(Tensor::from_vec(keep, shape, &Device::Cpu).unwrap());
        }
        if classes {
            let labels: Vec<i64> = rows.iter().map(|(_, class)| i64::from(*class)).collect();
            batch.labels = Some(Labels::Classes(Tensor::new(labels, &Device::Cpu).unwrap()));
        }
        batch
    };
    InMemory::new(all.chunks(size).map(make).collect())
}

/// Every row that scores, with the sites of it that the model has.
fn rows(model: &Transformer) -> Vec<(&'static str, Sites)> {
    let scores = |e: &&prunectl_recipe::catalogue::Entry<dyn prunectl_prune::Criterion>| {
        e.spec.support == Support::Runs && !e.spec.learns && e.spec.name != "sparsegpt"
    };
    let mut out = Vec::new();
    for row in CRITERIA.iter().filter(scores) {
        let units = [SiteKind::Heads, SiteKind::KvGroups, SiteKind::Neurons, SiteKind::Layers];
        let kinds: Vec<SiteKind> = units
            .into_iter()
            .filter(|k| row.spec.sites.is_empty() || row.spec.sites.contains(k))
            // HRank of a neuron says nothing.
            .filter(|k| !(row.spec.name == "hrank" && *k == SiteKind::Neurons))
            .collect();
        let mut sites = all(model, &kinds);
        if row.spec.sites.contains(&SiteKind::Weights) {
            sites.weights.extend(model.linears(1).unwrap());
        }
        if !sites.is_empty() {
            out.push((row.spec.name, sites));
        }
    }
    assert!(out.len() >= 20, "{} rows score", out.len());
    out
}

fn arguments(name: &str) -> Vec<(&'static str, Value)> {
    if name == "supermask" { vec![("initial", Value::Name("early".into()))] } else { Vec::new() }
}

fn score(name: &str, model: &Transformer, sites: &Sites, data: &mut InMemory) -> prunectl_prune::Result<Scores> {
    let mut criterion = build(CRITERIA, name, &arguments(name));
    if criterion.snapshot().is_some() {
        criterion.set_snapshot(model.reinit(7).unwrap());
    }
    criterion.score(model, sites, data, &())
}

/// Units the criterion refuses by name leave, so that the rest can be compared.
fn scored(name: &str, model: &Transformer, sites: &mut Sites, data: &mut InMemory) -> Option<Scores> {
    loop {
        match score(name, model, sites, data) {
            Ok(scores) => return Some(scores),
            Err(PruneError::Site { kind, .. }) => {
                sites.units.retain(|k, _| k.kind != kind);
                if kind == SiteKind::Weights {
                    sites.weights.clear();
                }
                if sites.is_empty() {
                    return None;
                }
            }
            Err(e) => panic!("{name}: {e}"),
        }
    }
}

fn values(scores: &Scores) -> Vec<(String, Vec<f32>)> {
    let units = scores.sites.iter().map(|(k, v)| (k.to_string(), v.clone()));
    units.chain(scores.weights.iter().map(|(k, t)| (k.clone(), t.flatten_all().unwrap().to_vec1().unwrap()))).collect()
}

#[test]
fn one_sequence_at_a_time_and_thirty_two_give_the_same_scores_and_padding_never_counts() {
    let mut compared = 0;
    for (model, classes) in [(bert(), true), (llama(), false)] {
        // In f64 nothing is left but what a method does with its data.
        let model = model.to_dtype(DType::F64).unwrap();
        for (name, mut sites) in rows(&model) {
            let Some(one) = scored(name, &model, &mut sites, &mut batches(1, classes)) else { continue };
            let many = score(name, &model, &sites, &mut batches(SEQUENCES, classes)).unwrap();
            for ((key, a), (_, b)) in values(&one).iter().zip(values(&many)) {
                let scale = a.iter().fold(0f64, |m, v| m.max(f64::from(v.abs()))).max(1e-30);
                for (unit, (a, b)) in a.iter().zip(&b).enumerate() {
                    let error = (f64::from(*a) - f64::from(*b)).abs() / scale;
                    assert!(error <= BATCH_TOLERANCE, "{name}: {key}, unit {unit}: {a} one by one, {b} in a batch");
                }
            }
            compared += 1;
        }
    }
    assert!(compared >= 40, "{compared}");
}

#[test]
fn one_thread_and_two_give_the_same_bits() {
    let in_pool = |threads: usize, f: &(dyn Fn() -> Vec<(String, Vec<f32>)> + Sync)| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
    };
    let model = bert();
    for (name, mut sites) in rows(&model) {
        if scored(name, &model, &mut sites, &mut batches(8, true)).is_none() {
            continue;
        }
        let bits = |v: Vec<(String, Vec<f32>)>| {
            v.into_iter().map(|(k, v)| (k, v.iter().map(|x| x.to_bits()).collect::<Vec<_>>())).collect::<Vec<_>>()
        };
        let run = || values(&score(name, &model, &sites, &mut batches(8, true)).unwrap());
        assert!(bits(in_pool(1, &run)) == bits(in_pool(2, &run)), "{name}");
    }
}

/// A neuron whose weights are all zeros, a head that gives nothing, and a layer whose activations are all the same.
fn degenerate(model: &Transformer) -> Transformer {
    let mut model = model.clone();
    let zero = |model: &mut Transformer, slot: &str, row: Option<usize>| {
        let Some(t) = model.params().get(slot).cloned() else { return };
        let keep: Vec<f32> = (0..t.dim(0).unwrap()).map(|i| if row.is_none_or(|r| r == i) { 0.0 } else { 1.0 }).collect();
        let mut shape = vec![1; t.rank()];
        shape[0] = keep.len();
        let keep = Tensor::from_vec(keep, shape, &Device::Cpu).unwrap();
        model.params_mut().set(slot, t.broadcast_mul(&keep).unwrap());
    };
    for name in ["up", "gate"] {
        zero(&mut model, &format!("layers.0.mlp.{name}.weight"), Some(3));
        zero(&mut model, &format!("layers.0.mlp.{name}.bias"), Some(3));
        zero(&mut model, &format!("layers.1.mlp.{name}.weight"), None);
        zero(&mut model, &format!("layers.1.mlp.{name}.bias"), None);
    }
    zero(&mut model, "layers.2.attention.v.weight", None);
    zero(&mut model, "layers.2.attention.v.bias", None);
    model
}

#[test]
fn dead_and_constant_units_have_defined_scores() {
    for (model, classes) in [(bert(), true), (llama(), false)] {
        let model = degenerate(&model);
        for (name, mut sites) in rows(&model) {
            let Some(scores) = scored(name, &model, &mut sites, &mut batches(8, classes)) else { continue };
            for (key, values) in values(&scores) {
                assert!(values.iter().all(|v| v.is_finite()), "{name}: {key}");
            }
        }
    }
}

#[test]
fn a_layer_of_one_head_is_scored_like_any_other() {
    let one = bert().keep_units(ModelKind::Heads, Some(1), &[2]).unwrap();
    assert_eq!(one.dims()[1].q_heads, 1);
    for (name, mut sites) in rows(&one) {
        if let Some(scores) = scored(name, &one, &mut sites, &mut batches(8, true)) {
            for (key, values) in values(&scores) {
                assert!(values.iter().all(|v| v.is_finite()), "{name}: {key}");
            }
        }
    }
}

/// A weight of layer 1 that is no number: criteria that look at it or behind it refuse, and most can say where.
#[test]
fn a_model_that_gives_nan_is_an_error_and_never_a_score() {
    let mut model = bert();
    let slot = "layers.1.mlp.up.weight";
    let mut w = model.params().require(slot).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    w[5] = f32::NAN;
    let shape = model.params().require(slot).unwrap().shape().clone();
    model.params_mut().set(slot, Tensor::from_vec(w, shape, &Device::Cpu).unwrap());
    let mut named = 0;
    for (name, mut sites) in rows(&model) {
        // What a criterion can't score at all leaves with a clean model.
        if scored(name, &bert(), &mut sites, &mut batches(8, true)).is_none() {
            continue;
        }
        match score(name, &model, &sites, &mut batches(8, true)) {
            Ok(scores) => {
                assert!(["random", "uniform"].contains(&name), "{name} gave scores");
                assert!(values(&scores).iter().all(|(_, v)| v.iter().all(|x| x.is_finite())));
            }
            Err(e) => {
                let text = e.to_string();
                let place = text.contains("layers.") && (text.contains("unit ") || text.contains("entry "));
                named += usize::from(place);
                assert!(place || text.contains("layer") || text.contains("NaN"), "{name}: {text}");
            }
        }
    }
    assert!(named >= 15, "{named} say which unit of which layer");
}

/// One point of the curves by hand: the loss with the lowest tenth of a layer's neurons masked is the loss of the model so masked.
#[test]
fn sensitivity_is_the_loss_of_one_masked_layer() {
    let model = bert();
    let measure = |m: &Transformer, name: &str, args: &[(&str, Value)]| {
        let mut data = batches(8, true);
        let mut inputs = prunectl_prune::Inputs {
            model: m,
            batches: Some(&mut data),
            stream: None,
            questions: None,
            asked: None,
            teacher: None,
            batch: 8,
            progress: &(),
        };
        build(prunectl_prune::METRICS, name, args).measure(&mut inputs).unwrap()
    };
    let tenth = Share::from_fraction(0.1);
    let given = [("amounts", Value::List(vec![Value::Percent(tenth)])), ("criterion", Value::Text("magnitude".into()))];
    let found = measure(&model, "sensitivity", &given);
    assert_eq!(found.details.len(), 1 + 2 * 3, "{:?}", found.details);
    let dense = measure(&model, "loss", &[]).value;
    assert!((found.details["dense"] - dense).abs() < 1e-6 * dense);

    let key = Key::of(SiteKind::Neurons, 1);
    let mut sites = Sites::default();
    sites.add(key, 0..48);
    let scores = score("magnitude", &model, &sites, &mut batches(8, true)).unwrap();
    let mut order: Vec<usize> = (0..48).collect();
    order.sort_by(|a, b| scores.sites[&key][*a].total_cmp(&scores.sites[&key][*b]));
    let mut kept = order[4..].to_vec();
    kept.sort_unstable();
    let mut masked = model.clone();
    let decision = Decision { sites: [(key, kept)].into(), ..Decision::default() };
    surgery::mask(&mut masked, &mut Removed::default(), &decision).unwrap();
    let loss = measure(&masked, "loss", &[]).value;
    assert!((found.details["layers.1.mlp.neurons 10%"] - loss).abs() < 1e-6 * loss);
}
