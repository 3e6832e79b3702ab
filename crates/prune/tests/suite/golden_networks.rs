//! Criteria on the perceptrons and 1×1 convolutions that their authors' code was run on, through the registry rows: the formula that a row
//! applies to a transformer is asked to score these.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use prunectl_model::LayerDims;
use prunectl_prune::{CRITERIA, InMemory, Key, Network, Removed, Request, Scores, Shape, Sites, select};
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::{Amount, Scope, Share, Unit, Value};

use crate::common::{Case, build, close, holding, nothing, worst};
use crate::networks::{Small, batches};

fn word(w: &str) -> Value {
    Value::Word(w.into())
}

fn scores(network: &dyn Network, name: &str, args: &[(&str, Value)], sites: &Sites, data: &mut InMemory) -> Scores {
    build(CRITERIA, name, args).formula().unwrap().scores(network, sites, data, &()).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn weights(network: &Small) -> Sites {
    network.sites(&[])
}

fn shape(network: &dyn Network, sites: &Sites) -> Shape {
    let of = |slot: &String| (slot.clone(), network.params().get(slot).unwrap().dims2().unwrap());
    Shape { weights: sites.weights.iter().map(of).collect(), ..Shape::default() }
}

/// `n` weights of all in all, counts being the codes' own: some round where we round down.
fn count(n: usize) -> Amount {
    Amount::Units { n: n as u64, unit: Unit::Count }
}

fn same_masks(case: &Case, name: &str, masks: &prunectl_model::Tensors) {
    for (slot, keep) in masks {
        let ours: Vec<u8> = flat(keep).iter().map(|k| u8::from(*k != 0.0)).collect();
        assert_eq!(ours, case.mask(&format!("{name}.{slot}")), "{name}.{slot}");
    }
}

/// Divided by the sum over all weights, or by its size, as the published codes do.
fn shared(scores: &Scores, total: fn(f64) -> f64) -> BTreeMap<String, Vec<f32>> {
    let values = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let sum = total(scores.weights.values().flat_map(values).sum());
    scores.weights.iter().map(|(slot, t)| (slot.clone(), values(t).into_iter().map(|v| (v / sum) as f32).collect())).collect()
}

/// The four criteria: gradients, curvature and penalty; half of all weights at once, and 80 % in four steps, scored again in each on
/// the masked network. `MP`, ½·w², ranks as magnitude does.
#[test]
fn loss_models() {
    let case = Case::open("04_loss_modelling_mlp");
    let network = Small::perceptron(&case, "");
    let sites = weights(&network);
    let total = sites.weights.iter().map(|s| network.params().get(s).unwrap().elem_count()).sum::<usize>();
    let round = |share: f64| count((share * total as f64).round() as usize);
    let ggn = ("hessian", word("ggn"));
    let quadratic = ("kind", word("quadratic"));
    for (n, own) in [(1, "b1"), (4, "b4")] {
        let mut data = batches(&case, n);
        for (name, row, args) in
            [("LM", "loss_model", vec![]), ("QM", "loss_model", vec![quadratic.clone(), ggn.clone()]), ("OBD", "obd", vec![ggn.clone()])]
        {
            let mut of = |network: &dyn Network, args: &[(&str, Value)]| scores(network, row, args, &sites, &mut data);
            let first = of(&network, &args);
            for (slot, t) in &first.weights {
                close(&case, &format!("{own}.{name}.reg0.0.{slot}"), &flat(t));
            }
            if row == "loss_model" {
                let penalised = [args.clone(), vec![("penalty", Value::Number(0.1))]].concat();
                for (slot, t) in &of(&network, &penalised).weights {
                    close(&case, &format!("{own}.{name}.reg0.1.{slot}"), &flat(t));
                }
            }
            let (none, half) = (Removed::default(), round(0.5));
            let once = select(&first, &Request::plain(&sites, &half, Scope::Global, &none), &shape(&network, &sites)).unwrap();
            same_masks(&case, &format!("{own}.{name}.mask.oneshot50"), &once.weights);
            let (mut removed, mut masked) = (Removed::default(), network.with(network.params().clone()));
            for share in [0.2, 0.4, 0.6, 0.8] {
                let (amount, before) = (round(share), removed.clone());
                let now = of(&*masked, &args);
                let decision = select(&now, &Request::plain(&sites, &amount, Scope::Global, &before), &shape(&network, &sites)).unwrap();
                masked = masked.masked(&mut removed, &decision).unwrap();
            }
            same_masks(&case, &format!("{own}.{name}.mask.iter4_to80"), &removed.weights);
        }
    }
    let model = holding(&case, &sites.weights.iter().map(String::as_str).collect::<Vec<_>>());
    let magnitude = crate::common::score(&model, "magnitude", &[], &sites, &mut nothing());
    for (slot, t) in &magnitude.weights {
        close(&case, &format!("b1.MP.reg0.0.{slot}"), &flat(t).iter().map(|w| 0.5 * w * w).collect::<Vec<_>>());
    }
    for (name, share) in [("oneshot50", 0.5), ("iter4_to80", 0.8)] {
        let (none, amount) = (Removed::default(), round(share));
        let decision = select(&magnitude, &Request::plain(&sites, &amount, Scope::Global, &none), &shape(&network, &sites)).unwrap();
        same_masks(&case, &format!("b1.MP.mask.{name}"), &decision.weights);
    }
    worst("04_loss_modelling_mlp");
}

#[test]
fn snip_grasp_and_synflow() {
    let case = Case::open("06_init_pruning_mlp");
    let network = Small::perceptron(&case, "");
    let sites = weights(&network);
    let (none, shape) = (Removed::default(), shape(&network, &sites));
    let half = Amount::Share { share: Share::from_fraction(0.5), each: false };
    let check = |name: &str, own: &Scores, shared: &BTreeMap<String, Vec<f32>>, masks: bool| {
        for (slot, values) in shared {
            close(&case, &format!("{name}.{slot}"), values);
        }
        if masks {
            let decision = select(own, &Request::plain(&sites, &half, Scope::Global, &none), &shape).unwrap();
            same_masks(&case, &format!("{name}.mask50"), &decision.weights);
        }
    };
    for (n, own) in [(1, "b1"), (2, "b2")] {
        let snip = scores(&network, "snip", &[], &sites, &mut batches(&case, n));
        check(&format!("snip.{own}"), &snip, &shared(&snip, |s| s), true);
    }
    for (temperature, n, name) in [(200.0, 1, "T200.b1"), (200.0, 2, "T200.b2"), (1.0, 1, "T1.b1")] {
        let grasp = scores(&network, "grasp", &[("temperature", Value::Number(temperature))], &sites, &mut batches(&case, n));
        check(&format!("grasp.{name}"), &grasp, &shared(&grasp, |s| s.abs() + 1e-10), true);
    }
    // The authors' own code: the lowest of −θ·Hg stay, one more than asked for.
    for (temperature, name) in [(200.0, "T200"), (1.0, "T1")] {
        let grasp = scores(&network, "grasp", &[("temperature", Value::Number(temperature))], &sites, &mut batches(&case, 1));
        check(&format!("grasp.authors.{name}"), &grasp, &shared(&grasp, |s| -(s.abs() + 1e-10)), false);
        let total: usize = grasp.weights.values().map(Tensor::elem_count).sum();
        let one_less = count(total / 2 - 1);
        let decision = select(&grasp, &Request::plain(&sites, &one_less, Scope::Global, &none), &shape).unwrap();
        same_masks(&case, &format!("grasp.authors.{name}.mask50"), &decision.weights);
    }
    let flow = scores(&network, "synflow", &[], &sites, &mut nothing());
    check("synflow", &flow, &flow.weights.iter().map(|(slot, t)| (slot.clone(), flat(t))).collect(), true);
    let model = holding(&case, &sites.weights.iter().map(String::as_str).collect::<Vec<_>>());
    let magnitude = crate::common::score(&model, "magnitude", &[], &sites, &mut nothing());
    check("mag", &magnitude, &magnitude.weights.iter().map(|(slot, t)| (slot.clone(), flat(t))).collect(), true);
    for (rounds, density) in [(1.0, 0.3), (20.0, 0.3), (20.0, 0.1)] {
        let row = build(CRITERIA, "synflow", &[("rounds", Value::Number(rounds))]);
        let amount = Amount::Share { share: Share::from_fraction(1.0 - density), each: false };
        let request = Request::plain(&sites, &amount, Scope::Global, &none);
        let (decision, first) = row.formula().unwrap().decide(&network, &shape, &request, &mut nothing(), &()).unwrap();
        assert!(first.weights.iter().all(|(slot, t)| flat(t) == flat(&flow.weights[slot])));
        same_masks(&case, &format!("synflow.loop{rounds}.d{density}.mask"), &decision.weights);
    }
    worst("06_init_pruning_mlp");
}

/// Channels that two convolutions read: their parts add up before they are squared. The authors' costs are those of a batch in millions of
/// activations and thousands of millions of multiply-adds; ours of one token, a multiply-add being two operations.
#[test]
fn group_fisher() {
    let case = Case::open("03_group_fisher");
    let (examples, positions) = (4.0, 5);
    let network = Small::branches(&case, positions);
    let tokens = examples * positions as f32;
    let names = [(0, "group0"), (1, "c3"), (2, "c4"), (3, "c1"), (4, "c2")];
    // What c1 and c2 read alone is measured by itself: gates on the same channel would be one unit twice.
    for layers in [&names[..3], &names[3..]] {
        let sites =
            Sites { weights: std::collections::BTreeSet::new(), ..network.sites(&layers.iter().map(|(l, _)| *l).collect::<Vec<_>>()) };
        let of = |per: &str| {
            scores(&network, "group_fisher", &[("per", word(per)), ("quirk", word("reference"))], &sites, &mut batches(&case, 2))
        };
        let (plain, memory, flops) = (of("none"), of("memory"), of("flops"));
        let get = |scores: &Scores, layer: usize| scores.get(Key::of(SiteKind::Neurons, layer)).unwrap().to_vec();
        for (layer, name) in layers {
            close(&case, &format!("fisher.{name}"), &get(&plain, *layer));
            if *layer < 3 {
                let in_theirs = |values: Vec<f32>, factor: f32| values.into_iter().map(|s| s * factor / tokens).collect::<Vec<_>>();
                close(&case, &format!("score.acts.{name}"), &in_theirs(get(&memory, *layer), 1e6));
                close(&case, &format!("score.flops.{name}"), &in_theirs(get(&flops, *layer), 2e9));
            }
        }
        if layers.len() < 3 {
            continue;
        }
        // One channel of all goes: the same one.
        let dims = [10, 8, 7].map(|ffn| LayerDims { ffn, ..LayerDims::default() });
        let shape = Shape { dims: dims.to_vec(), ..Shape::default() };
        let (none, one) = (Removed::default(), Amount::Units { n: 1, unit: Unit::Neurons });
        for (name, scores) in [("removed.acts", &memory), ("removed.flops", &flops)] {
            let decision = select(scores, &Request::plain(&sites, &one, Scope::Global, &none), &shape).unwrap();
            let kept = |layer: usize| &decision.sites[&Key::of(SiteKind::Neurons, layer)];
            // c1, c2, c3, c4: h0 twice.
            let ours: Vec<u8> = [(0, 10), (0, 10), (1, 8), (2, 7)]
                .iter()
                .flat_map(|(layer, n)| (0..*n).map(|u| u8::from(kept(*layer).contains(&u))).collect::<Vec<_>>())
                .collect();
            assert_eq!(ours, case.mask(name), "{name}");
        }
    }
    worst("03_group_fisher");
}

/// The authors' eight networks: every proxy, its rank correlation with the accuracy given, and the vote.
#[test]
fn zero_cost_proxies() {
    let case = Case::open("06_zero_cost");
    let networks: Vec<Small> = (0..8).map(|i| Small::perceptron(&case, &format!("net{i}."))).collect();
    let accuracy: Vec<f64> = flat(&case.input("accuracy")).into_iter().map(f64::from).collect();
    let data = || InMemory::new(vec![crate::networks::batch(&case.input("x"), &case.input("y"))]);
    let mut of = BTreeMap::new();
    for kind in ["grad_norm", "snip", "grasp", "fisher", "jacob_cov", "synflow"] {
        let value = |network: &Small| {
            let layers = network.sites(&[]).weights.len();
            let parts = network.sites(&(0..layers).collect::<Vec<_>>());
            prunectl_prune::proxy(kind, network, &parts, &mut data(), &()).unwrap()
        };
        let values: Vec<f64> = networks.iter().map(value).collect();
        close(&case, &format!("value.{kind}"), &values.iter().map(|v| *v as f32).collect::<Vec<_>>());
        close(&case, &format!("spearman.{kind}"), &[prunectl_prune::spearman(&values, &accuracy).unwrap() as f32]);
        of.insert(kind, values);
    }
    let proxies: Vec<[f64; 3]> = (0..8).map(|i| prunectl_prune::VOTERS.map(|name| of[name][i])).collect();
    close(&case, "vote", &[prunectl_prune::vote_agreement(&proxies, &accuracy).unwrap() as f32]);
    worst("06_zero_cost");
}
