//! Criteria against numbers made with their authors' code, through the registry rows that the executor uses.

use crate::common::{Case, close, worst};
use candle_core::Tensor;
use prunectl_prune::{Key, Scores, Sites};
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::Value;

fn word(w: &str) -> Value {
    Value::Word(w.into())
}

fn layers(scores: &Scores, kind: SiteKind) -> Vec<f32> {
    scores.sites.iter().filter(|(k, _)| k.kind == kind).flat_map(|(_, v)| v.clone()).collect()
}

#[test]
fn michel_bert() {
    let case = Case::open("02_michel_bert");
    let model = case.model("text-classification");
    let sites = crate::common::all(&model, &[SiteKind::Heads]);
    let run =
        |args: &[(&str, Value)]| layers(&crate::common::score(&model, "loss_delta", args, &sites, &mut case.classified()), SiteKind::Heads);
    close(&case, "delta_loss.single_head", &run(&[]));
    let g = ("estimate", word("gradient"));
    close(&case, "importance.paper", &run(std::slice::from_ref(&g)));
    for (quirk, raw, normed) in [
        ("reference", "importance.authors.unnormalised", "importance.authors"),
        ("bertology", "importance.hf.unnormalised", "importance.hf.layer_l2"),
    ] {
        close(&case, raw, &run(&[g.clone(), ("quirk", word(quirk))]));
        close(&case, normed, &run(&[g.clone(), ("quirk", word(quirk)), ("normalize", word("layer"))]));
    }
    worst("02_michel_bert");
}

#[test]
fn michel_llama() {
    let case = Case::open("02_michel_llama");
    let model = case.model("text-generation");
    for (kind, stem) in [(SiteKind::Heads, "head"), (SiteKind::KvGroups, "kv")] {
        let sites = crate::common::all(&model, &[kind]);
        let run = |args: &[(&str, Value)]| layers(&crate::common::score(&model, "loss_delta", args, &sites, &mut case.texts()), kind);
        close(&case, &format!("{stem}.delta_loss.single"), &run(&[]));
        let g = ("estimate", word("gradient"));
        close(&case, &format!("{stem}.importance.paper"), &run(std::slice::from_ref(&g)));
        close(&case, &format!("{stem}.importance.paper.l2"), &run(&[g.clone(), ("normalize", word("layer"))]));
        close(&case, &format!("{stem}.importance.token"), &run(&[g.clone(), ("quirk", word("reference"))]));
        let l2 = [g.clone(), ("quirk", word("reference")), ("normalize", word("layer"))];
        close(&case, &format!("{stem}.importance.token.l2"), &run(&l2));
    }
    worst("02_michel_llama");
}

#[test]
fn magnitude_groups() {
    let case = Case::open("01_magnitude_groups");
    let model = case.model("text-generation");
    for (kind, stem) in [(SiteKind::Neurons, "ffn"), (SiteKind::KvGroups, "kv"), (SiteKind::Heads, "q")] {
        let sites = crate::common::all(&model, &[kind]);
        for (norm, reduce) in [("l1", "sum"), ("l1", "mean"), ("l2", "sum"), ("l2", "mean")] {
            let args = [("norm", word(norm)), ("reduce", word(reduce)), ("quirk", word("reference"))];
            let scores = crate::common::score(&model, "magnitude", &args, &sites, &mut crate::common::nothing());
            let plain = crate::common::score(&model, "magnitude", &[("norm", word(norm))], &sites, &mut crate::common::nothing());
            for layer in 0..model.n_layers() {
                let key = Key::of(kind, layer);
                let tail = if kind == SiteKind::Neurons { "none" } else { "heads" };
                let name = format!("{stem}.{layer}.{norm}.{reduce}.{tail}");
                close(&case, &name, scores.get(key).unwrap());
                if reduce == "sum" {
                    // The paper's form is the sum over the group, rooted for l2; the reference averages over a head's 4 entries.
                    let n = if kind == SiteKind::Neurons { 1.0 } else { 4.0 };
                    let root = |s: f32| if norm == "l2" { s.sqrt() } else { s };
                    for (own, reference) in plain.get(key).unwrap().iter().zip(case.expected(&name)) {
                        assert!((own - root(reference * n)).abs() <= 1e-4 * own.abs(), "{name}: {own} {reference}");
                    }
                }
            }
        }
    }
    worst("01_magnitude_groups");
}

/// N of M by magnitude, along the inputs: the authors' masks where nothing ties, the lowest indices first where something does.
#[test]
fn n_of_m_masks() {
    use prunectl_prune::{Removed, Request, Shape, select};
    use prunectl_recipe::plan::{Amount, Scope};
    let case = Case::open("13_nm_masks");
    let slots = ["w", "tied"];
    let model = crate::common::holding(&case, &slots);
    let sites = Sites { weights: slots.map(str::to_owned).into(), ..Sites::default() };
    let scores = crate::common::score(&model, "magnitude", &[], &sites, &mut crate::common::nothing());
    let shape = Shape::of(&model, &sites).unwrap();
    // Ours says what goes, theirs what stays.
    for (name, removed, group) in [("1of4", 3, 4), ("2of4", 2, 4), ("4of8", 4, 8), ("3of4", 1, 4)] {
        let (none, amount) = (Removed::default(), Amount::NofM { removed, group });
        let request = Request::plain(&sites, &amount, Scope::Matrix, &none);
        let masks = select(&scores, &request, &shape).unwrap().weights;
        let flat = |slot: &str| masks[slot].flatten_all().unwrap().to_vec1::<u8>().unwrap();
        assert_eq!(flat("w"), case.mask(&format!("mask.{name}")), "{name}");
        for slot in slots {
            assert_eq!(flat(slot), case.mask(&format!("stable.{slot}.{name}")), "{name}, {slot}");
        }
    }
    println!("golden 13_nm_masks: masks exact");
}

#[test]
fn magnitude_masks() {
    use prunectl_prune::{Removed, Request, Shape, select};
    use prunectl_recipe::plan::{Amount, Scope, Share};
    let case = Case::open("01_magnitude_masks");
    let slots = ["a", "b", "t"];
    let model = crate::common::holding(&case, &slots);
    let own = Sites { weights: slots.map(str::to_owned).into(), ..Sites::default() };
    let scores = crate::common::score(&model, "magnitude", &[], &own, &mut crate::common::nothing());
    let shape = Shape::of(&model, &own).unwrap();
    let masks = |slots: &[&str], scope| {
        let sites = Sites { weights: slots.iter().map(|s| (*s).to_owned()).collect(), ..Sites::default() };
        let amount = Amount::Share { share: Share::from_fraction(0.5), each: false };
        let removed = Removed::default();
        let request = Request::plain(&sites, &amount, scope, &removed);
        select(&scores, &request, &shape).unwrap().weights
    };
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let local = masks(&["a", "b", "t"], Scope::Matrix);
    for slot in ["a", "b", "t"] {
        assert_eq!(flat(&local[slot]), case.mask(&format!("stable.local.{slot}")), "{slot}");
    }
    for slot in ["a", "b"] {
        assert_eq!(flat(&local[slot]), case.mask(&format!("torch.local.{slot}")), "torch {slot}");
        assert_eq!(flat(&local[slot]), case.mask(&format!("synflow.local.{slot}")), "synflow {slot}");
    }
    let global = masks(&["a", "b"], Scope::Global);
    for slot in ["a", "b"] {
        assert_eq!(flat(&global[slot]), case.mask(&format!("torch.global.{slot}")), "global {slot}");
    }
    // Ties at the bar: torch leaves open which of them go, so counts and untied entries are compared.
    let (ours, theirs) = (flat(&local["t"]), case.mask("torch.local.t"));
    let w = scores.weights["t"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let bar = w.iter().zip(&ours).filter(|(_, k)| **k == 0).map(|(s, _)| *s).fold(0.0, f32::max);
    assert_eq!(ours.iter().filter(|k| **k == 0).count(), theirs.iter().filter(|k| **k == 0).count());
    assert!(w.iter().zip(ours.iter().zip(&theirs)).all(|(s, (a, b))| *s == bar || a == b));
}

#[test]
fn taylor() {
    let case = Case::open("03_taylor_hessian");
    let model = case.model("text-generation");
    for (kind, stem) in [(SiteKind::Neurons, "ffn"), (SiteKind::KvGroups, "kv"), (SiteKind::Heads, "q")] {
        let sites = crate::common::all(&model, &[kind]);
        for (golden, reduce) in [("plain", "element"), ("multi", "group")] {
            let args = [("reduce", word(reduce)), ("quirk", word("reference"))];
            let scores = crate::common::score(&model, "taylor", &args, &sites, &mut case.first_batch());
            for layer in 0..model.n_layers() {
                let tail = if kind == SiteKind::Neurons { "sum" } else { "sum.heads" };
                close(&case, &format!("taylor.{stem}.{layer}.{golden}.{tail}"), scores.get(Key::of(kind, layer)).unwrap());
            }
        }
    }
    worst("03_taylor_hessian");
}

#[test]
fn schedules() {
    use prunectl_prune::schedule::{Clock, value_at};
    use prunectl_recipe::plan::{Curve, Schedule, When};
    let case = Case::open("08_schedules");
    let cases: [(&str, Curve, f64, f64, u64, u64, u64); 5] = [
        ("cubic", Curve::Cubic, 0.0, 0.8, 11, 91, 10),
        ("cubic_init", Curve::Cubic, 0.25, 0.9, 0, 64, 4),
        ("ragged", Curve::Cubic, 0.1, 0.7, 5, 51, 7),
        ("linear", Curve::Linear, 0.2, 0.6, 10, 60, 5),
        ("degenerate_freq1", Curve::Cubic, 0.0, 0.5, 3, 9, 1),
    ];
    for (name, curve, from, to, begin, end, every) in cases {
        let ramp = Schedule::Ramp { curve, from, to, during: Some((When::Steps(begin), When::Steps(end))), length: None };
        let n = case.expected(&format!("{name}.sparsity")).len() as u64;
        let clock = Clock::steps(n);
        let ours: Vec<f32> = (0..n).map(|t| value_at(&ramp, t as f64, &clock) as f32).collect();
        close(&case, &format!("{name}.sparsity"), &ours);
        // What is in force between updates, where the range is a multiple of `every`; elsewhere the reference never reaches the last value.
        if (end - begin) % every == 0 {
            let held =
                |t: u64| if t < begin { 0.0 } else { value_at(&ramp, (begin + (t.min(end) - begin) / every * every) as f64, &clock) };
            close(&case, &format!("{name}.applied"), &(0..n).map(|t| held(t) as f32).collect::<Vec<_>>());
        }
    }
    let u: Vec<f32> = case.input("u").to_vec1().unwrap();
    let clock = Clock::steps(1);
    for (name, curve) in [("agp", Curve::Cubic), ("cos", Curve::Cosine), ("lin", Curve::Linear)] {
        let ramp = Schedule::Ramp { curve, from: 0.1, to: 0.75, during: None, length: None };
        let ours: Vec<f32> = u.iter().map(|u| value_at(&ramp, f64::from(*u), &clock) as f32).collect();
        close(&case, &format!("unit.{name}"), &ours);
    }
    // Exponential in what is left, as SynFlow's: density 0.05 after 20 rounds.
    let ramp = Schedule::Ramp { curve: Curve::Exponential, from: 0.0, to: 0.95, during: None, length: None };
    let clock = Clock::steps(20);
    let ours: Vec<f32> = (1..=20).map(|t| 1.0 - value_at(&ramp, f64::from(t), &clock) as f32).collect();
    close(&case, "synflow.exponential.density", &ours);
    worst("08_schedules");
}

fn same_scores(a: &Scores, b: &Scores) {
    for (key, a) in &a.sites {
        for (a, b) in a.iter().zip(b.get(*key).unwrap()) {
            assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "{key}: {a} {b}");
        }
    }
}

#[test]
fn loss_delta_does_not_depend_on_the_batch() {
    let case = Case::open("02_michel_bert");
    let model = case.model("text-classification");
    let kinds = [SiteKind::Heads, SiteKind::Neurons, SiteKind::Attention, SiteKind::Mlp, SiteKind::Layers];
    let sites = crate::common::all(&model, &kinds);
    for args in [vec![], vec![("estimate", word("gradient"))]] {
        let four = crate::common::score(&model, "loss_delta", &args, &sites, &mut case.classified());
        let one = crate::common::score(&model, "loss_delta", &args, &sites, &mut crate::common::one_by_one(&mut case.classified()));
        same_scores(&four, &one);
    }
}

#[test]
fn taylor_does_not_depend_on_the_batch() {
    let case = Case::open("02_michel_bert");
    let model = case.model("text-classification");
    let sites = crate::common::all(&model, &[SiteKind::Heads, SiteKind::Neurons]);
    for order in [1.0, 2.0] {
        let args = [("order", Value::Number(order))];
        let four = crate::common::score(&model, "taylor", &args, &sites, &mut case.classified());
        let one = crate::common::score(&model, "taylor", &args, &sites, &mut crate::common::one_by_one(&mut case.classified()));
        same_scores(&four, &one);
    }
}

#[test]
fn random_depends_on_seed_and_site_alone() {
    let case = Case::open("02_michel_bert");
    let model = case.model("text-classification");
    let run = |seed: f64, kinds: &[SiteKind]| {
        let sites = crate::common::all(&model, kinds);
        crate::common::score(&model, "random", &[("seed", Value::Number(seed))], &sites, &mut crate::common::nothing())
    };
    let (both, heads) = (run(1.0, &[SiteKind::Heads, SiteKind::Neurons]), run(1.0, &[SiteKind::Heads]));
    for (key, values) in &heads.sites {
        assert_eq!(Some(values.as_slice()), both.get(*key));
    }
    assert_ne!(heads.sites, run(2.0, &[SiteKind::Heads]).sites);
}

#[test]
fn block_influence() {
    let case = Case::open("13_shortgpt");
    let model = case.model("text-generation");
    let sites = crate::common::all(&model, &[SiteKind::Layers]);
    let on = crate::common::score(&model, "block_influence", &[], &sites, &mut case.texts());
    close(&case, "bi.mean", on.get(Key::of(SiteKind::Layers, 0)).unwrap());
    let on = crate::common::score(&model, "block_influence", &[("quirk", word("reference"))], &sites, &mut case.texts());
    close(&case, "bi.sum", on.get(Key::of(SiteKind::Layers, 0)).unwrap());
    worst("13_shortgpt");
}

/// Activations recorded by hand.
struct Seen(Vec<(usize, prunectl_model::Point, Tensor)>);

impl prunectl_model::Tap for Seen {
    fn wants(&self, _: usize, p: prunectl_model::Point) -> bool {
        matches!(p, prunectl_model::Point::HeadContext | prunectl_model::Point::Intermediate)
    }

    fn see(&mut self, layer: usize, p: prunectl_model::Point, t: &Tensor) -> prunectl_model::Result<()> {
        self.0.push((layer, p, t.clone()));
        Ok(())
    }
}

#[test]
fn activation_norm_by_hand_and_without_padding() {
    use prunectl_prune::Batches;
    let case = Case::open("02_michel_bert");
    let model = case.model("text-classification");
    let sites = crate::common::all(&model, &[SiteKind::Heads, SiteKind::Neurons]);
    let scores = crate::common::score(&model, "activation_norm", &[], &sites, &mut case.classified());
    let mut sums = vec![0f64; 8];
    let (mut data, mut examples) = (case.classified(), 0);
    while let Some(batch) = data.next().unwrap() {
        let mut seen = Seen(Vec::new());
        model.forward(&batch, &prunectl_model::Gates::default(), &mut seen).unwrap();
        let keep = batch.keep.as_ref().unwrap().to_vec2::<u8>().unwrap();
        for (_, _, t) in seen.0.iter().filter(|(l, p, _)| *l == 1 && *p == prunectl_model::Point::HeadContext) {
            for (b, example) in keep.iter().enumerate() {
                examples += 1;
                for (h, sum) in sums.iter_mut().enumerate() {
                    let mut squares = 0f64;
                    for (s, _) in example.iter().enumerate().filter(|(_, k)| **k != 0) {
                        let head: Vec<f32> = t.get(b).unwrap().get(s).unwrap().get(h).unwrap().to_vec1().unwrap();
                        squares += head.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
                    }
                    *sum += squares.sqrt();
                }
            }
        }
    }
    for (own, sum) in scores.get(Key::of(SiteKind::Heads, 1)).unwrap().iter().zip(sums) {
        assert!((f64::from(*own) - sum / f64::from(examples)).abs() < 1e-5 * sum);
    }
    let one = crate::common::score(&model, "activation_norm", &[], &sites, &mut crate::common::one_by_one(&mut case.classified()));
    same_scores(&scores, &one);
}

#[test]
fn wanda_prunes_on_the_inputs_of_pruned_blocks() {
    use prunectl_prune::{CRITERIA, Removed, Request};
    use prunectl_recipe::plan::{Amount, Scope, Share};
    let case = Case::open("02_michel_llama");
    let dense = case.model("text-generation");
    let mut sites = Sites::default();
    for layer in 0..dense.n_layers() {
        sites.weights.extend(dense.linears(layer).unwrap());
    }
    let wanda = crate::common::build(CRITERIA, "wanda", &[]);
    let scored = wanda.score(&dense, &sites, &mut case.texts(), &()).unwrap();
    let amount = Amount::Share { share: Share::from_fraction(0.5), each: false };
    let none = Removed::default();
    let request = Request::plain(&sites, &amount, Scope::Row, &none);
    let (mut model, mut removed) = (dense.clone(), Removed::default());
    let (decision, scores) = wanda.layerwise().unwrap().prune(&mut model, &mut removed, &request, &mut case.texts(), &()).unwrap();
    let flat = |t: &Tensor| t.to_dtype(candle_core::DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (slot, keep) in &decision.weights {
        let (keep, w) = (flat(keep), flat(model.params().get(slot).unwrap()));
        assert_eq!(keep.iter().filter(|k| **k == 0.0).count() * 2, keep.len(), "{slot}");
        assert!(w.iter().zip(&keep).all(|(w, k)| (*w == 0.0) == (*k == 0.0)));
        let same = flat(&scores.weights[slot]) == flat(&scored.weights[slot]);
        // The first block's inputs are dense either way.
        let first = slot.starts_with("layers.0.");
        assert_eq!(same, first, "{slot}");
    }
}

#[test]
fn group_fisher() {
    let case = Case::open("03_group_fisher_llama");
    let model = case.model("text-generation");
    for (kind, stem) in [(SiteKind::Neurons, "ffn"), (SiteKind::KvGroups, "kv")] {
        let sites = crate::common::all(&model, &[kind]);
        for (per, tail) in [("none", "fisher"), ("memory", "memory"), ("flops", "flops")] {
            let args = [("per", word(per)), ("quirk", word("reference"))];
            let scores = crate::common::score(&model, "group_fisher", &args, &sites, &mut case.texts());
            close(&case, &format!("{stem}.{tail}"), &layers(&scores, kind));
        }
        // The paper's form: the mean over examples, each with its own mean loss. Three batches of four.
        let paper = crate::common::score(&model, "group_fisher", &[], &sites, &mut case.texts());
        for (own, reference) in layers(&paper, kind).iter().zip(case.expected(&format!("{stem}.fisher"))) {
            assert!((own - reference * 16.0 / 12.0).abs() <= 1e-6 + 1e-4 * own, "{own} {reference}");
        }
        let fisher = crate::common::score(&model, "fisher", &[], &sites, &mut case.texts());
        for (own, group) in layers(&fisher, kind).iter().zip(layers(&paper, kind)) {
            assert_eq!(*own, group * 0.5);
        }
    }
    worst("03_group_fisher_llama");
}

/// Movement scores that tie: the authors' count and bar, everything above it and nothing below; of what ties the lowest index goes first.
#[test]
fn movement_ties() {
    use prunectl_prune::learned::{Layout, Learned, Moment};
    use prunectl_prune::{CRITERIA, Clock, Removed, Request, Shape};
    use prunectl_recipe::plan::{Amount, Scope, Unit};
    let case = Case::open("07_movement_ties");
    let slot = "layers.0.mlp.up.weight".to_owned();
    let sites = Sites { weights: [slot.clone()].into(), ..Sites::default() };
    let movement = crate::common::build(CRITERIA, "movement", &[]);
    let (clock, none) = (Clock::steps(1), Removed::default());
    for input in ["zeros", "tied"] {
        let scores = case.input(input);
        let size = scores.dims2().unwrap();
        let layout = Layout { shapes: [(slot.clone(), size)].into(), weights: sites.weights.clone(), ..Layout::default() };
        let shape = Shape { weights: layout.shapes.clone(), ..Shape::default() };
        let values = scores.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let learned = Learned { params: [(slot.clone(), values.clone())].into(), ..Learned::default() };
        for kept in ["0.5", "0.3", "0.29"] {
            let theirs = |what: &str| case.expected(&format!("{input}.keep{kept}.{what}"));
            let (stay, bar) = (theirs("count")[0] as usize, theirs("bar")[0]);
            let gone = values.len() - stay;
            // Their share is of what stays, and rounds what stays down.
            let amount = Amount::Units { n: gone as u64, unit: Unit::Count };
            let request = Request::plain(&sites, &amount, Scope::Matrix, &none);
            let removed = gone as f64 / values.len() as f64;
            let moment = Moment { clock: &clock, step: 0, removed, finally: removed, l1: 0.0, noise: 0 };
            let learner = movement.learner().unwrap();
            let decision = learner.decide(&layout, &learned, &request, &shape, &moment, true).unwrap();
            let keep = decision.weights[slot.as_str()].flatten_all().unwrap().to_vec1::<u8>().unwrap();
            assert_eq!(keep.iter().filter(|k| **k != 0).count(), stay);
            let ties: Vec<u8> = values.iter().zip(&keep).filter(|(s, _)| **s == bar).map(|(_, k)| *k).collect();
            assert!(values.iter().zip(&keep).all(|(s, k)| *s == bar || (*s > bar) == (*k == 1)), "{input} {kept}");
            // The golden's own rule keeps the lowest index among equals, LANGUAGE.md removes it: as many, from the other end.
            let mirrored: Vec<u8> = values.iter().zip(theirs("stable")).filter(|(s, _)| **s == bar).map(|(_, k)| k as u8).rev().collect();
            assert_eq!(ties, mirrored, "{input} {kept}");
            assert!(ties.is_sorted());
        }
    }
}

#[test]
fn rescoring_removes_a_tenth_at_a_time() {
    use prunectl_prune::{AtLeast, CRITERIA, Removed, Request, rescore};
    use prunectl_recipe::plan::{Amount, Scope, Share};
    let case = Case::open("02_michel_bert");
    let dense = case.model("text-classification");
    let sites = crate::common::all(&dense, &[SiteKind::Heads]);
    let amount = Amount::Share { share: Share::from_fraction(0.4), each: false };
    let none = Removed::default();
    let plain = Request::plain(&sites, &amount, Scope::Global, &none);
    let request = Request { at_least: Some(AtLeast::Units(1)), step: Some(Share::from_fraction(0.1)), ..plain };
    let criterion = crate::common::build(CRITERIA, "loss_delta", &[]);
    let run = |request: &Request<'_>| {
        let (mut model, mut removed) = (dense.clone(), Removed::default());
        rescore(&mut model, &mut removed, &*criterion, request, &mut case.classified(), &()).unwrap()
    };
    let out = run(&request);
    let kept: usize = out.decision.sites.values().map(Vec::len).sum();
    // 9 of 24 go, 2 in a round; the sixth round finds nothing left to do.
    assert_eq!((kept, out.rounds.len()), (15, 6));
    let first = crate::common::score(&dense, "loss_delta", &[], &sites, &mut case.classified());
    assert_eq!(out.rounds[0].sites, first.sites);
    let aligned = run(&Request { align: Some(4), ..request });
    for (key, kept) in &aligned.decision.sites {
        let plain = &out.decision.sites[key];
        assert_eq!(kept.len(), plain.len().div_ceil(4) * 4);
        assert!(plain.iter().all(|u| kept.contains(u)));
    }
}

/// Where nothing fluctuates, replacing by the mean loses nothing: one repeated token gives every position the same activations.
#[test]
fn flap_loses_nothing_on_constant_activations_and_its_biases_are_saved() {
    use prunectl_model::{Batch, Gates, LoadOptions};
    use prunectl_prune::{CRITERIA, InMemory, Removed, Request};
    use prunectl_recipe::plan::{Amount, Scope, Share};
    let case = Case::open("02_michel_llama");
    let dense = case.model("text-generation");
    let batch = Batch::new(Tensor::full(7u32, (2, 6), &candle_core::Device::Cpu).unwrap());
    let sites = crate::common::all(&dense, &[SiteKind::Neurons, SiteKind::KvGroups]);
    let amount = Amount::Share { share: Share::from_fraction(0.5), each: true };
    let none = Removed::default();
    let request = Request::plain(&sites, &amount, Scope::Global, &none);
    let flap = crate::common::build(CRITERIA, "flap", &[]);
    let (mut model, mut removed) = (dense.clone(), Removed::default());
    let mut data = InMemory::new(vec![batch.clone()]);
    let (decision, _) = flap.layerwise().unwrap().prune(&mut model, &mut removed, &request, &mut data, &()).unwrap();
    let kept = |kind| decision.sites.iter().filter(|(k, _)| k.kind == kind).map(|(_, kept)| kept.len()).sum::<usize>();
    assert_eq!(
        (kept(SiteKind::Neurons), kept(SiteKind::KvGroups)),
        (sites.count(SiteKind::Neurons) / 2, sites.count(SiteKind::KvGroups) / 2)
    );
    let logits = |m: &prunectl_model::Transformer, b: &Batch| -> Vec<f32> {
        m.forward(b, &Gates::default(), &mut ()).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let worst = logits(&dense, &batch).iter().zip(logits(&model, &batch)).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(worst < 1e-4, "{worst}");
    let mut smaller = model.clone();
    prunectl_prune::surgery::compact(&mut smaller, &mut removed, &mut prunectl_prune::UnitMap::default()).unwrap();
    let (config, tensors) = prunectl_model::to_checkpoint(&smaller).unwrap();
    assert_eq!((&config["attention_bias"], &config["mlp_bias"]), (&true.into(), &true.into()));
    let dir = std::env::temp_dir().join(format!("flap-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    candle_core::safetensors::save(&tensors.into_iter().collect::<std::collections::HashMap<_, _>>(), dir.join("model.safetensors"))
        .unwrap();
    let again = prunectl_model::load(&dir, &LoadOptions::default()).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(logits(&smaller, &batch), logits(&again, &batch));
    let texts = Batch::new(case.input("input_ids").get(0).unwrap().to_dtype(candle_core::DType::U32).unwrap());
    for (a, b) in logits(&smaller, &texts).iter().zip(logits(&model, &texts)) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}
