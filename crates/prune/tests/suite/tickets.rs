//! Lottery tickets against the authors' code: three rounds of training, pruning and rewinding of a small classifier, with the optimiser, the
//! ranking and the counts that a recipe's `repeat { train prune rewind }` uses.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use prunectl_prune::{Memory, OPTIMIZERS, Removed, Request, Scores, Shape, Sites, Update, select};
use prunectl_recipe::plan::{Amount, Scope, Share, Value};

use crate::common::{Case, build, close, worst};

type Net = BTreeMap<String, Tensor>;

const WEIGHTS: [&str; 2] = ["fc0.weight", "fc1.weight"];
const PARTS: [&str; 4] = ["fc0.weight", "fc0.bias", "fc1.weight", "fc1.bias"];
/// Share of the remaining weights that goes in each round.
const FRACTION: f64 = 0.37;

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn masked(net: &Net, removed: &Removed) -> Net {
    let under = |slot: &String, w: &Tensor| match removed.weights.get(slot) {
        Some(keep) => keep.where_cond(w, &w.zeros_like().unwrap()).unwrap(),
        None => w.clone(),
    };
    net.iter().map(|(slot, w)| (slot.clone(), under(slot, w))).collect()
}

/// Trains with fresh momentum on the batches `steps`, at those learning rates; what is masked stays zero.
fn train(case: &Case, start: &Net, removed: &Removed, steps: std::ops::Range<usize>, lr: impl Fn(usize) -> f64) -> (Net, Vec<f32>) {
    let sgd = build(OPTIMIZERS, "sgd", &[("lr", Value::Number(0.2)), ("momentum", Value::Number(0.9))]);
    let mut memories: BTreeMap<String, Memory> = BTreeMap::new();
    let (mut net, mut losses) = (masked(start, removed), Vec::new());
    for step in steps.clone() {
        let vars: BTreeMap<&String, Var> = net.iter().map(|(slot, w)| (slot, Var::from_tensor(w).unwrap())).collect();
        let at = |part: &str| vars[&part.to_owned()].as_tensor().clone();
        let x = case.input("x").get(step).unwrap();
        let h = x.matmul(&at("fc0.weight").t().unwrap()).unwrap().broadcast_add(&at("fc0.bias")).unwrap().relu().unwrap();
        let y = h.matmul(&at("fc1.weight").t().unwrap()).unwrap().broadcast_add(&at("fc1.bias")).unwrap();
        let of = y.exp().unwrap().sum_keepdim(1).unwrap().log().unwrap();
        let classes = case.input("y").get(step).unwrap();
        let chosen = y.broadcast_sub(&of).unwrap().gather(&classes.unsqueeze(1).unwrap(), 1).unwrap();
        let loss = chosen.mean_all().unwrap().neg().unwrap();
        losses.push(loss.to_scalar().unwrap());
        let grads = loss.backward().unwrap();
        let mut next = Net::new();
        for (slot, var) in &vars {
            let mut weights = flat(var);
            let gradient = flat(grads.get(var.as_tensor()).unwrap());
            let memory = memories.entry((*slot).clone()).or_default();
            let (step, lr) = (step as u64 + 1, lr(step - steps.start));
            sgd.update(Update { weights: &mut weights, gradient: &gradient, memory, step, lr, matrix: true, decays: true }).unwrap();
            next.insert((*slot).clone(), Tensor::from_vec(weights, var.dims(), &Device::Cpu).unwrap());
        }
        net = masked(&next, removed);
    }
    (net, losses)
}

/// Masks ⌈fraction · remaining⌉ more of the smallest weights of both layers together.
fn prune(net: &Net, removed: &mut Removed) {
    let (mut scores, mut sites, mut shape) = (Scores::default(), Sites::default(), Shape::default());
    let mut left = 0;
    for slot in WEIGHTS {
        scores.weights.insert(slot.into(), net[slot].abs().unwrap());
        sites.weights.insert(slot.into());
        shape.weights.insert(slot.into(), net[slot].dims2().unwrap());
        left += match removed.weights.get(slot) {
            Some(keep) => keep.flatten_all().unwrap().to_vec1::<u8>().unwrap().iter().filter(|k| **k == 1).count(),
            None => net[slot].elem_count(),
        };
    }
    // Theirs rounds up, ours down.
    let wanted = (FRACTION * left as f64).ceil();
    let amount = Amount::OfRemaining { share: Share::from_fraction((wanted + 0.5) / left as f64), each: false };
    let before = removed.clone();
    let request = Request::plain(&sites, &amount, Scope::Global, &before);
    let decision = select(&scores, &request, &shape).unwrap();
    removed.add(&decision, &[], 0).unwrap();
}

fn compare(case: &Case, stem: &str, net: &Net, removed: &Removed, losses: &[f32]) {
    for slot in WEIGHTS {
        let keep: Vec<u8> = removed.weights[slot].flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(keep, case.mask(&format!("{stem}.mask.{slot}")), "{stem} {slot}");
    }
    for part in PARTS {
        close(case, &format!("{stem}.trained.{part}"), &flat(&net[part]));
    }
    close(case, &format!("{stem}.losses"), losses);
}

#[test]
fn three_rounds_of_rewinding() {
    let case = Case::open("09_lottery_ticket");
    let init: Net = PARTS.iter().map(|p| ((*p).to_owned(), case.input(p))).collect();
    let constant = |_: usize| 0.2;
    let (dense, losses) = train(&case, &init, &Removed::default(), 0..8, constant);
    for part in PARTS {
        close(&case, &format!("dense.trained.{part}"), &flat(&dense[part]));
    }
    close(&case, "dense.losses", &losses);
    let (early, _) = train(&case, &init, &Removed::default(), 0..2, constant);
    // Weights rewound to the start, and to step 2.
    for (name, snapshot, from) in [("init", &init, 0), ("step2", &early, 2)] {
        let (mut trained, mut removed) = (dense.clone(), Removed::default());
        for round in 1..=3 {
            prune(&trained, &mut removed);
            let (net, losses) = train(&case, snapshot, &removed, from..8, constant);
            compare(&case, &format!("imp.exact.{name}.round{round}"), &net, &removed, &losses);
            trained = net;
        }
    }
    // The learning rate rewound, the weights not.
    let schedule = case.expected("lr.rewound");
    let (mut trained, mut removed) =
        (train(&case, &init, &Removed::default(), 0..8, |s| f64::from(case.expected("lr.schedule")[s])).0, Removed::default());
    for round in 1..=3 {
        prune(&trained, &mut removed);
        let (net, losses) = train(&case, &trained, &removed, 2..8, |s| f64::from(schedule[s]));
        compare(&case, &format!("lr_rewind.round{round}"), &net, &removed, &losses);
        trained = net;
    }
    worst("09_lottery_ticket");
}
