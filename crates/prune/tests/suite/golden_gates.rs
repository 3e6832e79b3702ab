//! Gates, parameters of structures and decays against numbers made with their authors' code, as `golden_learned` drives scores.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use prunectl_model::Slice;
use prunectl_prune::learned::{Backward, Layout, Learned, Moment, Values};
use prunectl_prune::{CRITERIA, Clock, Key, Removed, Request, Shape, Sites};
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::{Scope, Value};

use crate::common::{Case, build, close, worst};
use crate::golden_learned::{share, values};

/// A matrix whose columns (rows for `dim` 0) are the units of one site.
fn one_matrix(dim: usize, shape: (usize, usize), site: Key) -> (Layout, Sites) {
    let units = if dim == 0 { shape.0 } else { shape.1 };
    let slice = |start| vec![Slice { slot: site.to_string(), dim, start, len: 1 }];
    let mut sites = Sites::default();
    sites.add(site, 0..units);
    let units = [(site, (0..units).map(slice).collect())].into();
    (Layout { shapes: [(site.to_string(), shape)].into(), units, ..Layout::default() }, sites)
}

#[test]
fn structure_parameters_six_steps() {
    let case = Case::open("12_parameterized_structured_pruning");
    let site = Key::of(SiteKind::Neurons, 0);
    let (slot, clock, shape) = (site.to_string(), Clock::steps(6), (24, 32));
    for (dim, side) in [(0, "row"), (1, "col")] {
        for (decay, word) in [("l1", "l1"), ("wd", "l2")] {
            let args = [("l1", Value::Number(0.3)), ("threshold", Value::Number(0.1)), ("decay", Value::Word(word.into()))];
            let criterion = build(CRITERIA, "psp", &args);
            let learner = criterion.learner().unwrap();
            let (layout, sites) = one_matrix(dim, shape, site);
            let mut learned = learner.start(&layout).unwrap();
            assert!(learned.params[&slot].iter().all(|a| *a == 1.0));
            learned.params.insert(slot.clone(), values(&case.input(&format!("alpha.{side}"))));
            let mut weight = values(&case.input("weight"));
            let mut out: BTreeMap<&str, Vec<f32>> = [("alpha", learned.params[&slot].clone())].into();
            let ffn = learned.params[&slot].len();
            let dims = prunectl_model::LayerDims { ffn, ..prunectl_model::LayerDims::default() };
            let whole = Shape { dims: vec![dims], ..Shape::default() };
            for step in 0..6 {
                let moment = Moment { clock: &clock, step, removed: 0.0, finally: 0.5, l1: 0.0, noise: 0 };
                let (amount, gone) = (share(0.0), Removed::default());
                let request = Request::plain(&sites, &amount, Scope::Global, &gone);
                let decision = learner.decide(&layout, &learned, &request, &whole, &moment, false).unwrap();
                let gates = learner.gates(&layout, &learned, &moment, true).unwrap()[&site].clone();
                let nu: Vec<f32> =
                    gates.iter().enumerate().map(|(i, a)| if decision.sites[&site].contains(&i) { *a } else { 0.0 }).collect();
                let along = if dim == 0 { (shape.0, 1) } else { (1, shape.1) };
                let factor = Tensor::from_slice(&nu, along, &Device::Cpu).unwrap().broadcast_as(shape).unwrap();
                let w = Tensor::from_slice(&weight, shape, &Device::Cpu).unwrap();
                let q = Var::from_tensor(&w.mul(&factor).unwrap()).unwrap();
                let y = case.input("x").get(step as usize).unwrap().matmul(&q.t().unwrap()).unwrap();
                let loss = (y - case.input("y").get(step as usize).unwrap()).unwrap().sqr().unwrap().mean_all().unwrap();
                let by_q = loss.backward().unwrap().get(q.as_tensor()).unwrap().clone();
                let gradients = Values::from([(slot.clone(), values(&by_q))]);
                let weights = BTreeMap::from([(slot.as_str(), weight.as_slice())]);
                let backward = Backward { gradients: &gradients, weights: &weights };
                let (by_alpha, _) = learner.gradients(&layout, &learned, &backward, &moment).unwrap();
                let by_weight = values(&by_q.mul(&factor).unwrap());
                weight.iter_mut().zip(by_weight).for_each(|(w, g)| *w -= 0.1 * g);
                let alpha = learned.params.get_mut(&slot).unwrap();
                alpha.iter_mut().zip(&by_alpha[&slot]).for_each(|(a, g)| *a -= 0.1 * g);
                out.entry("nu").or_default().extend(nu);
                out.entry("alpha").or_default().extend(alpha.iter());
                out.entry("losses").or_default().push(loss.to_scalar().unwrap());
            }
            out.insert("weight_final", weight);
            for (what, ours) in out {
                close(&case, &format!("{side}.{decay}.{what}"), &ours);
            }
        }
    }
    worst("12_parameterized_structured_pruning");
}

#[test]
fn slimming_presses_and_ranks() {
    let case = Case::open("12_network_slimming");
    let criterion = build(CRITERIA, "slimming", &[("l1", Value::Number(0.01))]);
    let learner = criterion.learner().unwrap();
    let (mut layout, mut sites, mut gradients) = (Layout::default(), Sites::default(), Values::new());
    let (mut params, mut ones, mut dims) = (Values::new(), BTreeMap::new(), Vec::new());
    for l in 0..3 {
        let site = Key::of(SiteKind::Neurons, l);
        let scale = values(&case.input(&format!("scale.{l}")));
        let (own, named) = one_matrix(1, (1, scale.len()), site);
        layout.shapes.extend(own.shapes);
        layout.units.extend(own.units);
        sites.add(site, named.units[&site].iter());
        gradients.insert(site.to_string(), values(&case.input(&format!("grad.{l}"))));
        ones.insert(site.to_string(), vec![1.0f32; scale.len()]);
        dims.push(prunectl_model::LayerDims { ffn: scale.len(), ..prunectl_model::LayerDims::default() });
        params.insert(site.to_string(), scale);
    }
    let learned = Learned { params, aux: Values::new() };
    let clock = Clock::steps(1);
    let moment = Moment { clock: &clock, step: 0, removed: 0.5, finally: 0.5, l1: 0.0, noise: 0 };
    let weights = ones.iter().map(|(slot, w)| (slot.as_str(), w.as_slice())).collect();
    let backward = Backward { gradients: &gradients, weights: &weights };
    let (by_scale, _) = learner.gradients(&layout, &learned, &backward, &moment).unwrap();
    for l in 0..3 {
        let site = Key::of(SiteKind::Neurons, l).to_string();
        close(&case, &format!("grad_l1.{l}"), &by_scale[&site]);
        let after: Vec<f32> = learned.params[&site].iter().zip(&by_scale[&site]).map(|(s, g)| s - 0.1 * g).collect();
        close(&case, &format!("scale_after.{l}"), &after);
    }
    for percent in [0.3, 0.5, 0.7] {
        // Their threshold itself goes, too: one more than the share.
        let theirs = (96.0f64 * percent) as usize + 1;
        let (amount, gone) = (share(theirs as f64 / 96.0 + 1e-9), Removed::default());
        let request = Request::plain(&sites, &amount, Scope::Global, &gone);
        let shape = Shape { dims: dims.clone(), ..Shape::default() };
        let decision = learner.decide(&layout, &learned, &request, &shape, &moment, true).unwrap();
        for (l, own) in dims.iter().enumerate() {
            let kept = &decision.sites[&Key::of(SiteKind::Neurons, l)];
            let mask: Vec<u8> = (0..own.ffn).map(|u| u8::from(kept.contains(&u))).collect();
            assert_eq!(mask, case.mask(&format!("mask.{percent}.{l}")), "{percent} {l}");
        }
    }
    worst("12_network_slimming");
}

/// By differences through the gates themselves: the task's part for a fixed draw, and the Lagrangian.
#[test]
fn hard_concrete_gradients() {
    let site = Key::of(SiteKind::Neurons, 0);
    let (layout, _) = one_matrix(1, (2, 4), site);
    let slot = site.to_string();
    let criterion = build(CRITERIA, "hard_concrete", &[]);
    let learner = criterion.learner().unwrap();
    let mut learned = learner.start(&layout).unwrap();
    let clock = Clock::steps(1);
    let moment = Moment { clock: &clock, step: 0, removed: 0.5, finally: 0.5, l1: 0.0, noise: 11 };
    let open = learner.gates(&layout, &learned, &moment, false).unwrap();
    assert_eq!(open[&site], [1.0; 4], "it starts as the dense model");
    learned.params.insert(slot.clone(), vec![-0.6, 0.1, 0.4, -0.2]);
    learned.params.insert("multipliers".into(), vec![0.7, 1.3]);
    // L = Σ G ⊙ W′ has the gradient G by W′.
    let g: Vec<f32> = (0..8).map(|i| (i as f32 * 1.7).sin()).collect();
    let w: Vec<f32> = (0..8).map(|i| (i as f32 * 0.9).cos()).collect();
    let gradients = Values::from([(slot.clone(), g.clone())]);
    let weights = BTreeMap::from([(slot.as_str(), w.as_slice())]);
    let backward = Backward { gradients: &gradients, weights: &weights };
    let loss = |learned: &Learned| -> f64 {
        let z = learner.gates(&layout, learned, &moment, true).unwrap()[&site].clone();
        let task: f64 = g.iter().zip(&w).zip(z.iter().cycle()).map(|((g, w), z)| f64::from(*g) * f64::from(*w) * f64::from(*z)).sum();
        task + learner.gradients(&layout, learned, &backward, &moment).unwrap().1
    };
    let (found, _) = learner.gradients(&layout, &learned, &backward, &moment).unwrap();
    let mut inside = 0;
    for (name, sign) in [(slot.as_str(), 1.0), ("multipliers", -1.0)] {
        for (i, ours) in found[name].iter().enumerate() {
            let at = |by: f32| {
                let mut other = learned.clone();
                other.params.get_mut(name).unwrap()[i] += by;
                loss(&other)
            };
            let expected = sign * (at(1e-3) - at(-1e-3)) / 2e-3;
            let ours = f64::from(*ours);
            inside += usize::from(expected.abs() > 0.01);
            assert!((ours - expected).abs() < 1e-3 * expected.abs().max(0.1), "{name}[{i}]: {ours} {expected}");
        }
    }
    assert!(inside >= 3, "{found:?}");
    // The same draw for the same step, another for another.
    let other = Moment { noise: 12, ..moment };
    let gates = |m| learner.gates(&layout, &learned, m, true).unwrap();
    assert_eq!(gates(&moment), gates(&moment));
    assert_ne!(gates(&moment), gates(&other));
}

/// One decay step of every matrix of the case's classifier, from gradients taken here.
#[test]
fn lobster_decays_what_the_loss_does_not_feel() {
    let case = Case::open("12_serene_lobster");
    let names = ["fc0", "fc1", "fc2"];
    let var = |name: String| Var::from_tensor(&case.input(&name)).unwrap();
    let nets: Vec<(Var, Var)> = names.iter().map(|n| (var(format!("{n}.weight")), var(format!("{n}.bias")))).collect();
    let mut x = case.input("x");
    for (i, (w, b)) in nets.iter().enumerate() {
        x = x.matmul(&w.t().unwrap()).unwrap().broadcast_add(b).unwrap();
        if i + 1 < nets.len() {
            x = x.relu().unwrap();
        }
    }
    let of = x.exp().unwrap().sum_keepdim(1).unwrap().log().unwrap();
    let chosen = x.broadcast_sub(&of).unwrap().gather(&case.input("y").unsqueeze(1).unwrap(), 1).unwrap();
    let grads = chosen.mean_all().unwrap().neg().unwrap().backward().unwrap();
    let criterion = build(CRITERIA, "lobster", &[("lambda", Value::Number(0.1))]);
    let shrink = criterion.shrinks().unwrap();
    let (mut layout, mut gradients) = (Layout::default(), Values::new());
    for (name, (w, _)) in names.iter().zip(&nets) {
        let slot = format!("{name}.weight");
        layout.shapes.insert(slot.clone(), w.dims2().unwrap());
        layout.weights.insert(slot.clone());
        gradients.insert(slot.clone(), values(grads.get(w.as_tensor()).unwrap()));
        let felt: Vec<f32> = gradients[&slot].iter().map(|g| g.abs()).collect();
        close(&case, &format!("sensitivity.lobster.{slot}"), &felt);
    }
    let (clock, weights) = (Clock::steps(1), BTreeMap::new());
    let moment = Moment { clock: &clock, step: 0, removed: 0.0, finally: 0.5, l1: 0.0, noise: 0 };
    let factors = shrink.factors(&layout, &Backward { gradients: &gradients, weights: &weights }, &moment).unwrap();
    for (slot, factor) in factors {
        let after: Vec<f32> = values(&case.input(&slot)).iter().zip(factor).map(|(w, f)| w * f).collect();
        close(&case, &format!("lobster.{slot}"), &after);
    }
    assert_eq!(shrink.tolerance(), 0.01);
    worst("12_serene_lobster");
}

/// One decay step of every matrix of the case's classifier for each sensitivity. The reference divides by the batch twice, ours once: it
/// differentiates mean outputs, and the mean loss.
#[test]
fn serene_decays_what_insensitive_neurons_read() {
    let case = Case::open("12_serene_lobster");
    let names = ["fc0", "fc1", "fc2"];
    let mut x = case.input("x");
    let n = x.dim(0).unwrap();
    let (mut potentials, mut offsets) = (Vec::new(), Vec::new());
    for (i, name) in names.iter().enumerate() {
        let (w, b) = (case.input(&format!("{name}.weight")), case.input(&format!("{name}.bias")));
        let p = x.matmul(&w.t().unwrap()).unwrap().broadcast_add(&b).unwrap();
        let offset = Var::zeros(p.shape(), p.dtype(), p.device()).unwrap();
        x = (&p + offset.as_tensor()).unwrap();
        potentials.push(p);
        offsets.push(offset);
        if i + 1 < names.len() {
            x = x.relu().unwrap();
        }
    }
    let outputs: Vec<Tensor> = (0..x.dim(1).unwrap()).map(|k| x.narrow(1, k, 1).unwrap().mean_all().unwrap()).collect();
    let of = x.exp().unwrap().sum_keepdim(1).unwrap().log().unwrap();
    let chosen = x.broadcast_sub(&of).unwrap().gather(&case.input("y").unsqueeze(1).unwrap(), 1).unwrap();
    let loss = chosen.mean_all().unwrap().neg().unwrap();
    let felt = |of: &[Tensor], layer: usize| -> Vec<f32> {
        let mut sum = vec![0f32; offsets[layer].dim(1).unwrap()];
        for y in of {
            let g = y.backward().unwrap().get(offsets[layer].as_tensor()).unwrap().abs().unwrap();
            let mean = (g.sum(0).unwrap() / n as f64).unwrap();
            sum.iter_mut().zip(values(&mean)).for_each(|(s, v)| *s += 0.2 * v);
        }
        sum
    };
    let mut layout = Layout::default();
    for (layer, name) in names.iter().enumerate() {
        let slot = format!("{name}.weight");
        layout.shapes.insert(slot.clone(), case.input(&slot).dims2().unwrap());
        let rows = case.input(&slot).dim(0).unwrap();
        let units = (0..rows).map(|u| vec![Slice { slot: slot.clone(), dim: 0, start: u, len: 1 }]).collect();
        layout.units.insert(Key::of(SiteKind::Neurons, layer), units);
    }
    let (clock, weights) = (Clock::steps(1), BTreeMap::new());
    let moment = Moment { clock: &clock, step: 0, removed: 0.0, finally: 0.5, l1: 0.0, noise: 0 };
    for (bound, theirs) in [("full", "full"), ("lower", "lower-bound"), ("local", "local")] {
        let args = [("lambda", Value::Number(0.1)), ("bound", Value::Word(bound.into()))];
        let criterion = build(CRITERIA, "serene", &args);
        let mut gradients = Values::new();
        for layer in 0..names.len() {
            let own = match bound {
                "full" => felt(&outputs, layer),
                "lower" => felt(std::slice::from_ref(&loss), layer),
                _ => values(&potentials[layer].mean(0).unwrap()).iter().map(|p| f32::from(u8::from(*p > 0.0))).collect(),
            };
            // The file's `sensitivity.lower_bound` is of something else than the loss: its step has ours.
            if bound == "full" {
                close(&case, &format!("sensitivity.full.{}", names[layer]), &own);
            }
            gradients.insert(Key::of(SiteKind::Neurons, layer).to_string(), own);
        }
        let shrink = criterion.shrinks().unwrap();
        let factors = shrink.factors(&layout, &Backward { gradients: &gradients, weights: &weights }, &moment).unwrap();
        assert_eq!(factors.len(), names.len());
        for (slot, factor) in factors {
            let after: Vec<f32> = values(&case.input(&slot)).iter().zip(factor).map(|(w, f)| w * f).collect();
            close(&case, &format!("serene.{theirs}.{slot}"), &after);
        }
    }
    worst("12_serene_lobster (SeReNe)");
}

/// The sensitivities are what moving a potential does to the loss, or to the outputs.
#[test]
fn serene_feels_what_a_moved_potential_does() {
    use prunectl_model::{Batch, Gates, Labels, LayerGates};
    let cases =
        [(Case::open("02_michel_bert"), "text-classification", "full"), (Case::open("02_michel_llama"), "text-generation", "lower")];
    for (case, task, bound) in cases {
        let model = case.model(task).to_dtype(candle_core::DType::F64).unwrap();
        let mut batch = Batch::new(Tensor::new(&[[1u32, 4, 7, 2], [3, 5, 6, 1]], &Device::Cpu).unwrap());
        let keep = [[1u8, 1, 1, 1], [1, 1, 1, 0]];
        batch.keep = Some(Tensor::new(&keep, &Device::Cpu).unwrap());
        if bound == "full" {
            batch.labels = Some(Labels::Classes(Tensor::new(&[0i64, 1], &Device::Cpu).unwrap()));
        }
        let mut sites = Sites::default();
        let ffn = model.dims()[1].ffn;
        sites.add(Key::of(SiteKind::Neurons, 1), 0..ffn);
        let layout = Layout::of(&model, &sites).unwrap();
        let args = [("lambda", Value::Number(0.1)), ("bound", Value::Word(bound.into()))];
        let criterion = build(CRITERIA, "serene", &args);
        let felt = criterion.shrinks().unwrap().feel(&layout, &model, std::slice::from_ref(&batch)).unwrap();
        let ours = &felt["layers.1.mlp.neurons"];
        assert_eq!(ours.len(), ffn);
        // y of every output with one potential moved.
        let outputs = |token: (usize, usize), unit: usize, by: f64| -> Vec<f64> {
            let mut moved = vec![0f64; 2 * 4 * ffn];
            moved[(token.0 * 4 + token.1) * ffn + unit] = by;
            let mut layers = vec![LayerGates::default(); model.n_layers()];
            layers[1].potentials = Some(Tensor::from_vec(moved, (2, 4, ffn), &Device::Cpu).unwrap());
            let gates = Gates { layers, hidden: None };
            if bound == "full" {
                let out = model.forward(&batch, &gates, &mut ()).unwrap();
                out.sum(0).unwrap().to_vec1().unwrap()
            } else {
                vec![model.forward_loss(&batch, &gates, &mut ()).unwrap().sum().unwrap().to_scalar::<f64>().unwrap()]
            }
        };
        for unit in [0, ffn / 2, ffn - 1] {
            let mut expected = 0.0;
            for token in (0..2).flat_map(|b| (0..4).map(move |s| (b, s))).filter(|t| keep[t.0][t.1] == 1) {
                let (up, down) = (outputs(token, unit, 1e-4), outputs(token, unit, -1e-4));
                expected += up.iter().zip(&down).map(|(u, d)| ((u - d) / 2e-4).abs()).sum::<f64>();
            }
            expected /= 7.0;
            let found = f64::from(ours[unit]);
            assert!((found - expected).abs() <= 1e-6 + 1e-4 * expected, "{bound}, unit {unit}: {found} {expected}");
        }
    }
}
