//! What holds for every criterion that scores: neither the batch nor the threads show, padding never counts, and what is degenerate gives a
//! defined score or an error that says where. A row is taken from the registry: a new one is held to this, too.

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor};
use prunectl_model::{Batch, Labels, LoadOptions, SiteKind as ModelKind, Task, Transformer};
use prunectl_prune::{Batches, CRITERIA, Decision, InMemory, Key, PruneError, Removed, Request, Scores, Shape, Sites, select, surgery};
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::{Amount, Share, Value};

use crate::common::{all, build, golden};

/// Relative to the largest score of a site: what rounding in f32 gives when sums are cut elsewhere.
pub const BATCH_TOLERANCE: f64 = 1e-5;
pub const SEQUENCES: usize = 32;
const LONGEST: usize = 12;
/// Rows that look neither at data nor at weights.
pub const BLIND: &[&str] = &["random", "uniform"];

fn load(name: &str, task: Option<&str>) -> Transformer {
    let options = LoadOptions { task: task.and_then(Task::parse), ..LoadOptions::default() };
    prunectl_model::load(&golden(name), &options).unwrap()
}

pub fn bert() -> Transformer {
    load("methods/models/bert-tiny", Some("text-classification"))
}

/// A classifier, a language model and a mixture, which together have every kind of unit; and whether the data has classes.
pub fn networks() -> Vec<(Transformer, bool)> {
    vec![(bert(), true), (load("methods/models/llama-tiny", None), false), (load("families/mixtral", None), false)]
}

/// Sequences of different lengths.
fn sequences() -> Vec<(Vec<u32>, u32)> {
    let length = |i: usize| 3 + (i * 5) % (LONGEST - 2);
    (0..SEQUENCES).map(|i| ((0..length(i)).map(|t| (3 + (i * 17 + t * 29 + i * t) % 60) as u32).collect(), (i % 3) as u32)).collect()
}

/// The sequences in batches of `size`, the shorter ones padded on the right.
pub fn batches(size: usize, classes: bool) -> InMemory {
    padded(size, classes, false)
}

fn padded(size: usize, classes: bool, left: bool) -> InMemory {
    let all = sequences();
    let make = |rows: &[(Vec<u32>, u32)]| {
        let longest = rows.iter().map(|(ids, _)| ids.len()).max().unwrap();
        let padded = |of: &dyn Fn(&[u32], usize) -> u32| -> Vec<u32> {
            let from = |ids: &[u32]| if left { longest - ids.len() } else { 0 };
            rows.iter().flat_map(|(ids, _)| (0..longest).map(|t| of(ids, t.wrapping_sub(from(ids)))).collect::<Vec<_>>()).collect()
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

/// Every row that works outside `train`, with the sites of it that the network has.
pub fn rows(model: &Transformer) -> Vec<(&'static str, Sites)> {
    let mut out = Vec::new();
    for row in CRITERIA.iter().filter(|e| !e.spec.learns) {
        let kinds: Vec<SiteKind> = row.spec.sites.iter().copied().filter(|k| *k != SiteKind::Weights).collect();
        let mut sites = all(model, &kinds);
        sites.units.retain(|_, units| !units.is_empty());
        if row.spec.sites.contains(&SiteKind::Weights) {
            sites.weights.extend(model.linears(1).unwrap());
        }
        if !sites.is_empty() {
            out.push((row.spec.name, sites));
        }
    }
    out
}

/// Panics where a row of the registry that works outside `train` is in none of these.
pub fn every_row_is_in(seen: &BTreeSet<&str>) {
    let missing: Vec<&str> = CRITERIA.iter().filter(|e| !e.spec.learns && !seen.contains(e.spec.name)).map(|e| e.spec.name).collect();
    assert!(missing.is_empty(), "nothing was held of {missing:?}");
}

/// What a row is given besides its defaults: what has none, and what would take long.
pub fn arguments(name: &str) -> Vec<(&'static str, Value)> {
    let percent = |p: f64| Value::Percent(Share::from_fraction(p / 100.0));
    match name {
        "supermask" => vec![("initial", Value::Name("early".into()))],
        "adaptive" => vec![("target", Value::Word("params".into())), ("bound", percent(95.0))],
        "synflow" => vec![("rounds", Value::Number(3.0))],
        _ => Vec::new(),
    }
}

fn score(name: &str, model: &Transformer, sites: &Sites, data: &mut InMemory) -> prunectl_prune::Result<Scores> {
    let mut criterion = build(CRITERIA, name, &arguments(name));
    if criterion.snapshot().is_some() {
        criterion.set_snapshot(model.reinit(7).unwrap());
    }
    criterion.score(model, sites, data, &())
}

/// Units that the criterion refuses by name leave, so that the rest can be compared; None where it scores nothing apart from a prune.
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
            Err(PruneError::ScoresNothing { .. }) => return None,
            Err(PruneError::Invalid { what, .. }) if what.starts_with("network that") => return None,
            Err(e) => panic!("{name}: {e}"),
        }
    }
}

fn values(scores: &Scores) -> Vec<(String, Vec<f32>)> {
    let units = scores.sites.iter().map(|(k, v)| (k.to_string(), v.clone()));
    units.chain(scores.weights.iter().map(|(k, t)| (k.clone(), t.flatten_all().unwrap().to_vec1().unwrap()))).collect()
}

/// Rows that only prune: what they give is held in `holds_pruned`.
fn only_prunes(name: &str) -> bool {
    let criterion = build(CRITERIA, name, &arguments(name));
    let refused = criterion.score(&bert(), &all(&bert(), &[SiteKind::Hidden]), &mut batches(8, true), &());
    matches!(refused, Err(PruneError::ScoresNothing { .. })) && criterion.layerwise().is_some()
}

#[test]
fn one_sequence_at_a_time_and_thirty_two_give_the_same_scores_and_padding_never_counts() {
    let mut seen = BTreeSet::new();
    for (model, classes) in networks() {
        // In f64 nothing is left but what a method does with its data.
        let model = model.to_dtype(DType::F64).unwrap();
        for (name, mut sites) in rows(&model) {
            if only_prunes(name) {
                seen.insert(name);
            }
            let Some(one) = scored(name, &model, &mut sites, &mut batches(1, classes)) else { continue };
            // Positions of an encoder count from the first column, so there padding on the left says something else.
            for left in [false, true].into_iter().filter(|left| !(*left && classes)) {
                let many = score(name, &model, &sites, &mut padded(SEQUENCES, classes, left)).unwrap();
                for ((key, a), (_, b)) in values(&one).iter().zip(values(&many)) {
                    let scale = a.iter().fold(0f64, |m, v| m.max(f64::from(v.abs()))).max(1e-30);
                    for (unit, (a, b)) in a.iter().zip(&b).enumerate() {
                        let error = (f64::from(*a) - f64::from(*b)).abs() / scale;
                        assert!(error <= BATCH_TOLERANCE, "{name}: {key}, unit {unit}: {a} one by one, {b} in a batch (left: {left})");
                    }
                }
            }
            seen.insert(name);
        }
    }
    every_row_is_in(&seen);
}

/// What is computed with so many threads.
pub fn in_pool<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

#[test]
fn one_thread_and_two_give_the_same_bits() {
    for (model, classes) in networks() {
        for (name, mut sites) in rows(&model) {
            if scored(name, &model, &mut sites, &mut batches(8, classes)).is_none() {
                continue;
            }
            let bits = |v: Vec<(String, Vec<f32>)>| {
                v.into_iter().map(|(k, v)| (k, v.iter().map(|x| x.to_bits()).collect::<Vec<_>>())).collect::<Vec<_>>()
            };
            let run = || values(&score(name, &model, &sites, &mut batches(8, classes)).unwrap());
            assert!(bits(in_pool(1, run)) == bits(in_pool(2, run)), "{name}");
        }
    }
}

/// The matrix with some rows, or all, multiplied by 0.
fn zero(model: &mut Transformer, slot: &str, row: Option<usize>) {
    let Some(t) = model.params().get(slot).cloned() else { return };
    let keep: Vec<f32> = (0..t.dim(0).unwrap()).map(|i| if row.is_none_or(|r| r == i) { 0.0 } else { 1.0 }).collect();
    let mut shape = vec![1; t.rank()];
    shape[0] = keep.len();
    let keep = Tensor::from_vec(keep, shape, &Device::Cpu).unwrap();
    model.params_mut().set(slot, t.broadcast_mul(&keep).unwrap());
}

/// A neuron whose weights are all zeros, a head that gives nothing, and a layer whose activations are all the same.
fn dead_parts(model: &Transformer) -> Transformer {
    let mut model = model.clone();
    for layer in 0..2 {
        for stem in ["mlp", "mlp.experts.0", "mlp.experts.1"] {
            for name in ["up", "gate"] {
                let row = (layer == 0).then_some(3);
                zero(&mut model, &format!("layers.{layer}.{stem}.{name}.weight"), row);
                zero(&mut model, &format!("layers.{layer}.{stem}.{name}.bias"), row);
            }
        }
    }
    zero(&mut model, "layers.2.attention.v.weight", None);
    zero(&mut model, "layers.2.attention.v.bias", None);
    model
}

/// All weights of all layers the same number: whatever is compared ties.
fn one_number(model: &Transformer) -> Transformer {
    let mut model = model.clone();
    for layer in 0..model.n_layers() {
        for slot in model.linears(layer).unwrap() {
            let w = model.params().require(&slot).unwrap().clone();
            model.params_mut().set(slot, (w.zeros_like().unwrap() + 0.02).unwrap());
        }
    }
    model
}

/// The degenerate networks of one: dead neurons and constant activations; all weights the same; a layer of one head.
pub fn degenerate(model: &Transformer) -> Vec<(&'static str, Transformer)> {
    let mut out = vec![("dead parts", dead_parts(model)), ("one number", one_number(model))];
    if model.dims()[1].group_size() == 1 {
        out.push(("one head", model.keep_units(ModelKind::Heads, Some(1), &[2]).unwrap()));
    } else {
        out.push(("one group", model.keep_units(ModelKind::KvGroups, Some(1), &[1]).unwrap()));
    }
    out
}

/// Eight sequences a batch, and one sequence of three tokens: fewer than a matrix has columns, so that products of inputs are singular.
pub fn plenty_and_few(classes: bool) -> [InMemory; 2] {
    let first = batches(1, classes).next().unwrap().unwrap();
    [batches(8, classes), InMemory::new(vec![first])]
}

#[test]
fn what_is_degenerate_has_defined_scores_that_can_be_pruned_by() {
    let mut seen = BTreeSet::new();
    for (dense, classes) in networks() {
        for (what, model) in degenerate(&dense) {
            for (name, mut sites) in rows(&model) {
                if only_prunes(name) {
                    seen.insert(name);
                }
                for mut data in plenty_and_few(classes) {
                    let Some(scores) = scored(name, &model, &mut sites, &mut data) else { continue };
                    for (key, values) in values(&scores) {
                        assert!(values.iter().all(|v| v.is_finite()), "{name} of {what}: {key}");
                    }
                    for kind in sites.kinds() {
                        half_goes(name, what, &model, &sites, kind, &scores);
                    }
                    seen.insert(name);
                }
            }
        }
    }
    every_row_is_in(&seen);
}

/// Selects half of a kind: ⌊n/2⌋ go, or the nearest legal count below, whatever ties.
fn half_goes(name: &str, what: &str, model: &Transformer, sites: &Sites, kind: SiteKind, scores: &Scores) {
    let mut own = Sites::default();
    if kind == SiteKind::Weights {
        own.weights = sites.weights.clone();
    } else {
        own.units = sites.of_kind(kind).map(|(k, u)| (k, u.clone())).collect();
    }
    let amount = Amount::Share { share: Share::from_fraction(0.5), each: false };
    let removed = Removed::default();
    let scope = build(CRITERIA, name, &arguments(name)).default_scope(kind);
    let request = Request::plain(&own, &amount, scope, &removed);
    let decision = select(scores, &request, &Shape::of(model, &own).unwrap()).unwrap_or_else(|e| panic!("{name} of {what}: {e}"));
    if kind == SiteKind::Weights {
        for (slot, keep) in &decision.weights {
            let gone = keep.flatten_all().unwrap().to_vec1::<u8>().unwrap().iter().filter(|k| **k == 0).count();
            let (rows, columns) = keep.dims2().unwrap();
            let expected = if scope == prunectl_recipe::plan::Scope::Row { rows * (columns / 2) } else { rows * columns / 2 };
            assert!(gone == expected || scope == prunectl_recipe::plan::Scope::Global, "{name} of {what}: {slot}: {gone} of {expected}");
        }
        return;
    }
    let gone = |key: &Key, kept: &Vec<usize>| own.units[key].len() as usize - kept.len();
    let total: usize = decision.sites.iter().map(|(k, kept)| gone(k, kept)).sum();
    let by_site: usize = own.units.values().map(|u| u.len() as usize / 2).sum();
    // Grouped heads leave in bundles.
    assert!(total <= own.count(kind) / 2 && (kind == SiteKind::Heads || total >= by_site), "{name} of {what}: {total} {kind:?}");
}

/// A weight of layer 1 that is no number: criteria that look at it, or at what follows from it, say which unit of which layer.
#[test]
fn a_model_that_gives_nan_is_an_error_that_names_the_unit_and_never_a_score() {
    let (mut seen, mut wrong) = (BTreeSet::new(), Vec::new());
    for (dense, classes) in networks() {
        let model = with_nan(&dense);
        for (name, mut sites) in rows(&model) {
            if only_prunes(name) {
                seen.insert(name);
            }
            // What a criterion can't score at all leaves with a clean model.
            if scored(name, &dense, &mut sites, &mut batches(8, classes)).is_none() {
                continue;
            }
            seen.insert(name);
            match score(name, &model, &sites, &mut batches(8, classes)) {
                Ok(_) if BLIND.contains(&name) => {}
                Ok(_) => wrong.push(format!("{name} gave scores")),
                Err(e) => wrong.extend(names_no_place(name, &e)),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    every_row_is_in(&seen);
}

/// One entry of layer 1's first matrix of an MLP, in all its experts, is no number.
pub fn with_nan(model: &Transformer) -> Transformer {
    let mut model = model.clone();
    let slots: Vec<String> = model.linears(1).unwrap().into_iter().filter(|s| s.ends_with(".up.weight")).collect();
    for slot in slots {
        let w = model.params().require(&slot).unwrap().clone();
        let mut values = w.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values[5] = f32::NAN;
        model.params_mut().set(slot, Tensor::from_vec(values, w.shape().clone(), &Device::Cpu).unwrap());
    }
    model
}

/// An error without `unit 3 of layers.1.mlp.neurons`, `entry 5 of layers.1.…`, or a unit that belongs to no layer.
pub fn names_no_place(name: &str, error: &PruneError) -> Option<String> {
    let text = error.to_string();
    let layer = text.contains("layers.") || text.contains("of layers ") || text.contains("of hidden ");
    let names = layer && (text.contains("unit ") || text.contains("entry "));
    (!names).then(|| format!("{name}: {text}"))
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
