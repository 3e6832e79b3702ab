//! `prune` inside `train`: what goes follows the schedule, stays zero, and survives a resume to the same bits.

use std::cell::RefCell;

use candle_core::{Device, Tensor};
use prunectl_model::{Batch, Gates, Transformer};
use prunectl_prune::{
    CRITERIA, Examples, Flow, InMemory, InnerPrune, Measure, Observer, PruneError, Removed, Result, Sites, StepEvent, TrainSpec,
    TrainState, Trainer,
};
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::{Amount, Curve, Schedule, Scope, Value, When};

use crate::common::{all, build};
use crate::training::{adamw, bits, data, model, spec, values};

const STEPS: u64 = 11;

fn cubic(to: f64) -> Amount {
    let schedule = Schedule::Ramp { curve: Curve::Cubic, from: 0.0, to, during: Some((When::Share(0.1), When::Share(0.7))), length: None };
    Amount::Scheduled { schedule, each: false }
}

fn weights(model: &Transformer) -> Sites {
    let mut sites = Sites::default();
    for layer in 0..model.n_layers() {
        sites.weights.extend(model.linears(layer).unwrap());
    }
    sites
}

fn neurons(model: &Transformer) -> Sites {
    all(model, &[SiteKind::Neurons])
}

fn inner(criterion: &str, args: &[(&str, Value)], sites: Sites, amount: Amount) -> InnerPrune {
    let scope = if sites.weights.is_empty() { Scope::Global } else { Scope::Matrix };
    let measure = Measure::Criterion { criterion: build(CRITERIA, criterion, args), on: None };
    InnerPrune { sites, protect: Sites::default(), amount, scope, at_least: None, align: None, every: Some(When::Steps(3)), measure }
}

fn training(prune: InnerPrune) -> TrainSpec {
    TrainSpec { prunes: vec![prune], ..spec(When::Steps(STEPS), "adamw", &adamw()) }
}

/// Everything that learns or is scored, with the share of a site that it should end at.
fn everything(model: &Transformer) -> Vec<(&'static str, TrainSpec)> {
    let lr = [("lr", Value::Number(0.05))];
    let soft = [("kind", Value::Word("soft".into())), ("threshold", Value::Number(0.5)), ("lr", Value::Number(0.05))];
    let block = |n: f64| [("granularity", Value::Word("block".into())), ("rows", Value::Number(n)), ("columns", Value::Number(n))];
    vec![
        ("magnitude", training(inner("magnitude", &[], weights(model), cubic(0.5)))),
        ("taylor", training(inner("taylor", &[], neurons(model), cubic(0.5)))),
        ("movement", training(inner("movement", &lr, weights(model), cubic(0.5)))),
        ("movement of heads", training(inner("movement", &lr, all(model, &[SiteKind::KvGroups]), cubic(0.5)))),
        ("learned_scores", training(inner("learned_scores", &block(4.0), weights(model), cubic(0.5)))),
        ("gum", training(inner("gum", &lr, neurons(model), cubic(0.5)))),
        ("slimming", training(inner("slimming", &[], neurons(model), cubic(0.5)))),
        (BY_GATES[0], training(inner("psp", &[], neurons(model), cubic(0.5)))),
        (BY_GATES[1], training(inner("hard_concrete", &[], all(model, &[SiteKind::Heads]), cubic(0.5)))),
        ("lobster", training(inner("lobster", &[("lambda", Value::Number(1e-3))], weights(model), cubic(0.5)))),
        (
            "serene",
            training(inner(
                "serene",
                &[("lambda", Value::Number(1e-2)), ("bound", Value::Word("lower".into()))],
                neurons(model),
                cubic(0.5),
            )),
        ),
        ("soft movement", training(inner("movement", &soft, neurons(model), cubic(0.5)))),
    ]
}

/// Those whose gates, not the schedule, say what is gone while the training lasts.
const BY_GATES: [&str; 2] = ["psp", "hard_concrete"];

#[derive(Default)]
struct Record {
    events: Vec<StepEvent>,
    save_at: u64,
    saved: Option<TrainState>,
    settled: Option<u64>,
}

impl Observer for Record {
    fn step(&mut self, trainer: &mut Trainer<'_>, event: &StepEvent) -> Result<Flow> {
        self.events.push(*event);
        if event.step == self.save_at {
            self.saved = Some(trainer.state()?);
        }
        if trainer.settled() && self.settled.is_none() {
            self.settled = Some(event.step);
        }
        Ok(Flow::Continue)
    }
}

fn zeros(t: &Tensor) -> usize {
    values(t).iter().filter(|v| **v == 0.0).count()
}

#[test]
fn the_schedule_is_followed_and_what_is_gone_is_zero() {
    let model = model();
    for (name, spec) in everything(&model) {
        let mut trainer = Trainer::new(&model, &Removed::default(), &spec, &data()).unwrap();
        let mut record = Record::default();
        trainer.run(&mut data(), &mut record).unwrap();
        let shares: Vec<f64> = record.events.iter().map(|e| e.sparsity.unwrap()).collect();
        // Soft movement may have more under its bar than the amount asks for.
        let soft = name == "soft movement";
        assert!((shares[10] - 0.5).abs() < 0.01 || soft && shares[10] > 0.5, "{name}: {shares:?}");
        if ["lobster", "serene"].contains(&name) {
            // Before the end no more goes than the loss bears.
            assert!(shares.is_sorted() && shares[6] <= 0.5, "{name}: {shares:?}");
            continue;
        }
        if BY_GATES.contains(&name) || soft {
            // Only the end has the amount.
            assert_eq!(record.settled, Some(STEPS), "{name}");
            continue;
        }
        // Due before steps 1, 4, 7, 10 and the last: the first is before the ramp, and 10 is behind it.
        assert_eq!(shares[..3], [0.0; 3], "{name}");
        assert!(shares.is_sorted() && shares[3] > 0.2 && shares[3] == shares[5] && shares[6] > shares[5], "{name}: {shares:?}");
        assert_eq!(record.settled, Some(10), "{name}");
        let (decision, _) = trainer.decisions().remove(0).unwrap();
        let after = trainer.model().unwrap();
        for (slot, keep) in &decision.weights {
            let gone = zeros(keep);
            assert_eq!(gone, values(keep).len() / 2, "{name}: {slot}");
            assert_eq!(zeros(after.params().get(slot).unwrap()), gone, "{name}: {slot}");
        }
        let mut removed = 0;
        for (key, kept) in &decision.sites {
            let total = match key.kind {
                SiteKind::Neurons => model.dims()[key.layer.unwrap()].ffn,
                _ => model.dims()[key.layer.unwrap()].kv_heads,
            };
            removed += total - kept.len();
            // The whole group is zero, not only the side that was cut while it trained.
            let slot = format!("layers.{}.{}", key.layer.unwrap(), if key.kind == SiteKind::Neurons { "mlp.up" } else { "attention.v" });
            let rows = after.params().get(&format!("{slot}.weight")).unwrap();
            let width = rows.dim(0).unwrap() / total;
            for unit in 0..total {
                let own = rows.narrow(0, unit * width, width).unwrap();
                assert_eq!(zeros(&own) == own.elem_count(), !kept.contains(&unit), "{name}: {key} {unit}");
            }
        }
        let total: usize = spec.prunes[0].sites.units.values().map(|u| u.len() as usize).sum();
        assert_eq!(removed, total / 2, "{name}");
    }
}

#[test]
fn a_resume_in_the_middle_ends_in_the_same_bits() {
    let model = model();
    for (name, spec) in everything(&model) {
        for save_at in [1, 5, 9] {
            let mut whole = Trainer::new(&model, &Removed::default(), &spec, &data()).unwrap();
            let mut record = Record { save_at, ..Record::default() };
            whole.run(&mut data(), &mut record).unwrap();
            let state = record.saved.unwrap();
            let mut rest = Trainer::resume(&model, &Removed::default(), &spec, &data(), &state).unwrap();
            let mut again = Record::default();
            rest.run(&mut data(), &mut again).unwrap();
            assert_eq!(bits(&whole.model().unwrap()), bits(&rest.model().unwrap()), "{name} after {save_at}");
            let seen = |e: &[StepEvent]| e.iter().map(|e| (e.loss.to_bits(), e.sparsity)).collect::<Vec<_>>();
            assert_eq!(seen(&record.events[save_at as usize..]), seen(&again.events), "{name} after {save_at}");
            let (a, b) = (whole.state().unwrap().tensors, rest.state().unwrap().tensors);
            assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{name}");
        }
    }
}

/// ∂L/∂ξ at ξ = 0, by differences: what the score of a hidden unit must learn from.
#[test]
fn a_hidden_units_score_follows_its_gate() {
    let model = model();
    let (lr, sites) = (1.0, neurons(&model));
    let mut prune = inner("movement", &[("lr", Value::Number(lr))], sites.clone(), cubic(0.5));
    prune.amount = Amount::Scheduled { schedule: Schedule::Hold { value: 0.25, length: None }, each: false };
    let mut spec = TrainSpec { prunes: vec![prune], clip: None, ..spec(When::Steps(2), "sgd", &[("lr", Value::Number(0.0))]) };
    spec.batch = 3;
    let mut trainer = Trainer::new(&model, &Removed::default(), &spec, &data()).unwrap();
    let event = trainer.advance(&mut data()).unwrap();
    let state = trainer.state().unwrap();
    let (decision, _) = trainer.decisions().remove(0).unwrap();
    let masked = trainer.model().unwrap();
    let batch: Batch = {
        // The trainer's first batch, found by its loss.
        let mut data = data();
        let n = data.len();
        let triples = (0..n).flat_map(|a| (0..n).flat_map(move |b| (0..n).map(move |c| [a, b, c])));
        let loss =
            |b: &Batch| -> f64 { f64::from(values(&masked.forward_loss(b, &Gates::default(), &mut ()).unwrap().mean().unwrap())[0]) };
        let mut all = triples.filter(|[a, b, c]| a < b && b < c).map(|t| data.batch(&t).unwrap());
        all.find(|b| (loss(b) - event.loss).abs() < 1e-6).unwrap()
    };
    let mut hidden = 0;
    for (key, kept) in &decision.sites {
        let layer = key.layer.unwrap();
        let slot = format!("layers.{layer}.mlp.down.weight");
        let learned = values(&state.tensors[&format!("prunes/0/params/{key}")]);
        let (dense, now) = (model.params().get(&slot).unwrap(), masked.params().get(&slot).unwrap());
        for unit in (0..learned.len()).filter(|u| !kept.contains(u)).take(4) {
            hidden += 1;
            let loss = |gate: f64| -> f64 {
                let pick: Vec<f32> = (0..learned.len()).map(|u| if u == unit { gate as f32 } else { 0.0 }).collect();
                let column = dense.broadcast_mul(&Tensor::new(pick, &Device::Cpu).unwrap()).unwrap();
                let mut other = masked.clone();
                other.params_mut().set(slot.clone(), (now + column).unwrap());
                f64::from(values(&other.forward_loss(&batch, &Gates::default(), &mut ()).unwrap().mean().unwrap())[0])
            };
            let expected = (loss(0.05) - loss(-0.05)) / 0.1;
            let found = -f64::from(learned[unit]) / lr;
            assert!((found - expected).abs() < 0.05 * expected.abs() + 2e-6, "{key} {unit}: {found} {expected}");
        }
    }
    assert!(hidden > 0);
}

#[test]
fn scores_may_be_given_and_data_may_be_named() {
    let model = model();
    let scores = crate::common::score(&model, "magnitude", &[], &neurons(&model), &mut crate::common::nothing());
    let mut stored = inner("magnitude", &[], neurons(&model), cubic(0.5));
    stored.measure = Measure::Stored(scores);
    let mut named = inner("taylor", &[], neurons(&model), cubic(0.5));
    let batch = data().batch(&[0, 1]).unwrap();
    named.measure =
        Measure::Criterion { criterion: build(CRITERIA, "taylor", &[]), on: Some(RefCell::new(Box::new(InMemory::new(vec![batch])))) };
    let spec = TrainSpec { prunes: vec![stored, named], ..training(inner("magnitude", &[], Sites::default(), cubic(0.1))) };
    let mut trainer = Trainer::new(&model, &Removed::default(), &spec, &data()).unwrap();
    trainer.run(&mut data(), &mut ()).unwrap();
    assert_eq!(trainer.decisions().iter().filter(|d| d.is_some()).count(), 2);
}

#[test]
fn a_penalty_without_scores_is_refused() {
    let mut spec = training(inner("magnitude", &[], weights(&model()), cubic(0.5)));
    spec.loss.push(prunectl_prune::Term {
        weight: Schedule::Hold { value: 0.1, length: None },
        term: build(prunectl_prune::LOSSES, "l1", &[]),
        teacher: None,
    });
    assert!(matches!(Trainer::new(&model(), &Removed::default(), &spec, &data()), Err(PruneError::Missing { method: "l1", .. })));
    // With scores it adds its value to the loss: 0.1 · σ(0).
    let with = |weight: f64| {
        let mut spec = training(inner("movement", &[], weights(&model()), cubic(0.5)));
        spec.loss.push(prunectl_prune::Term {
            weight: Schedule::Hold { value: weight, length: None },
            term: build(prunectl_prune::LOSSES, "l1", &[]),
            teacher: None,
        });
        Trainer::new(&model(), &Removed::default(), &spec, &data()).unwrap().advance(&mut data()).unwrap().loss
    };
    assert!((with(0.1) - with(0.0) - 0.05).abs() < 1e-6);
}
