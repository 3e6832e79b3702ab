//! The training loop: equal to PyTorch, resumable to the same bits, and true to its masks.

use std::collections::{BTreeMap, BTreeSet};

use crate::common::golden;
use candle_core::{DType, Device, Tensor};
use prunectl_model::{Batch, LoadOptions, Transformer};
use prunectl_prune::{
    Decision, Examples, Flow, LOSSES, OPTIMIZERS, Observer, PruneError, Removed, Result, StepEvent, Term, TrainSpec, TrainState, Trainer,
    surgery,
};
use prunectl_recipe::plan::{Curve, Schedule, Value, When};

pub struct Rows(Tensor);

impl Examples for Rows {
    fn len(&self) -> usize {
        self.0.dim(0).unwrap()
    }

    fn batch(&mut self, indices: &[usize]) -> Result<Batch> {
        let index: Vec<u32> = indices.iter().map(|i| *i as u32).collect();
        Ok(Batch::new(self.0.index_select(&Tensor::new(index, &Device::Cpu)?, 0)?))
    }

    fn tokens_hint(&self) -> Option<u64> {
        Some(self.0.elem_count() as u64)
    }
}

fn expected() -> std::collections::HashMap<String, Tensor> {
    candle_core::safetensors::load(golden("adamw/expected.safetensors"), &Device::Cpu).unwrap()
}

pub fn model() -> Transformer {
    prunectl_model::load(&golden("methods/models/llama-tiny"), &LoadOptions::default()).unwrap()
}

pub fn data() -> Rows {
    Rows(expected()["input_ids"].to_dtype(DType::U32).unwrap())
}

fn constant(value: f64) -> Schedule {
    Schedule::Hold { value, length: None }
}

pub fn spec(length: When, optimizer: &str, args: &[(&str, Value)]) -> TrainSpec {
    let term = Term { weight: constant(1.0), term: crate::common::build(LOSSES, "task", &[]), teacher: None };
    TrainSpec {
        length,
        batch: 4,
        accumulate: 1,
        clip: Some(1.0),
        optimizer: crate::common::build(OPTIMIZERS, optimizer, args),
        loss: vec![term],
        only: None,
        seed: 7,
        dtype: None,
        recompute: false,
        prunes: Vec::new(),
    }
}

pub fn adamw() -> Vec<(&'static str, Value)> {
    vec![("lr", Value::Number(3e-4)), ("decay", Value::Word("all".into()))]
}

#[derive(Default)]
struct Record {
    events: Vec<StepEvent>,
    save_at: Option<u64>,
    saved: Option<TrainState>,
    stop_at: Option<u64>,
}

impl Observer for Record {
    fn step(&mut self, trainer: &mut Trainer<'_>, event: &StepEvent) -> Result<Flow> {
        self.events.push(*event);
        if self.save_at == Some(event.step) {
            self.saved = Some(trainer.state()?);
        }
        Ok(if self.stop_at == Some(event.step) { Flow::Stop } else { Flow::Continue })
    }
}

pub fn values(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

pub fn bits(model: &Transformer) -> BTreeMap<String, Vec<u32>> {
    model.params().iter().map(|(slot, t)| (slot.to_owned(), values(t).iter().map(|v| v.to_bits()).collect())).collect()
}

#[test]
fn fifty_steps_equal_pytorch() {
    let expected = expected();
    let losses = expected["losses"].to_vec1::<f64>().unwrap();
    let norms = expected["norms"].to_vec1::<f64>().unwrap();
    for (batch, accumulate) in [(4, 1), (2, 2), (3, 2)] {
        let spec = TrainSpec { batch, accumulate, ..spec(When::Steps(50), "adamw", &adamw()) };
        let mut trainer = Trainer::new(&model(), &Removed::default(), &spec, &data()).unwrap();
        let mut record = Record::default();
        trainer.run(&mut data(), &mut record).unwrap();
        for (event, (loss, norm)) in record.events.iter().zip(losses.iter().zip(&norms)) {
            assert!((event.loss - loss).abs() < 2e-5 * loss.abs(), "step {}: {} {loss}", event.step, event.loss);
            assert!((event.grad_norm - norm).abs() < 1e-4 * norm, "step {}: {} {norm}", event.step, event.grad_norm);
        }
        let (_, ours) = prunectl_model::to_checkpoint(&trainer.model().unwrap()).unwrap();
        let mut worst: f32 = 0.0;
        for (name, t) in &ours {
            let theirs = values(&expected[name]);
            worst = values(t).iter().zip(theirs).fold(worst, |w, (a, b)| w.max((a - b).abs()));
        }
        println!("golden adamw, batch {batch} × {accumulate}: worst error of a weight after 50 steps {worst:.1e}");
        assert!(worst < 1e-5, "{worst}");
    }
}

#[test]
fn a_resumed_training_has_the_same_bits() {
    let warm = Schedule::Ramp { curve: Curve::Linear, from: 0.0, to: 1e-3, during: None, length: Some(When::Share(0.2)) };
    let lr = Schedule::Then(vec![warm, Schedule::Ramp { curve: Curve::Cosine, from: 1e-3, to: 0.0, during: None, length: None }]);
    for optimizer in ["adamw", "sgd"] {
        let mut args = vec![("lr", Value::Schedule(lr.clone()))];
        if optimizer == "sgd" {
            args.push(("momentum", Value::Number(0.9)));
        }
        // Three examples of four in one step, one in the next: epochs end in a smaller step.
        let spec = TrainSpec { batch: 3, accumulate: 1, ..spec(When::Epochs(4.5), optimizer, &args) };
        let mut whole = Trainer::new(&model(), &Removed::default(), &spec, &data()).unwrap();
        let mut record = Record { save_at: Some(4), ..Record::default() };
        whole.run(&mut data(), &mut record).unwrap();
        assert_eq!(record.events.len(), 9);
        assert_eq!(record.events.last().unwrap().lr, 0.0, "the last value lands");
        let state = record.saved.unwrap();
        let json = serde_json::to_string(&state.meta).unwrap();
        let state = TrainState { tensors: state.tensors, meta: serde_json::from_str(&json).unwrap() };
        let mut rest = Trainer::resume(&model(), &Removed::default(), &spec, &data(), &state).unwrap();
        let mut again = Record::default();
        rest.run(&mut data(), &mut again).unwrap();
        assert_eq!(bits(&whole.model().unwrap()), bits(&rest.model().unwrap()), "{optimizer}");
        let losses = |events: &[StepEvent]| events.iter().map(|e| e.loss.to_bits()).collect::<Vec<_>>();
        assert_eq!(losses(&record.events[4..]), losses(&again.events));
        let other = TrainSpec { seed: 8, ..spec };
        assert!(matches!(Trainer::resume(&model(), &Removed::default(), &other, &data(), &state), Err(PruneError::State { .. })));
    }
}

#[test]
fn masked_weights_stay_zero_and_others_train_alone() {
    let slot = "layers.0.mlp.up.weight";
    let mut model = model();
    let shape = model.params().get(slot).unwrap().dims2().unwrap();
    let keep: Vec<u8> = (0..shape.0 * shape.1).map(|i| u8::from(i % 3 != 0)).collect();
    let keep = Tensor::from_vec(keep, shape, &Device::Cpu).unwrap();
    let decision = Decision { weights: [(slot.to_owned(), keep.clone())].into(), ..Decision::default() };
    let mut removed = Removed::default();
    surgery::mask(&mut model, &mut removed, &decision).unwrap();
    let only: BTreeSet<String> = [slot.to_owned(), "layers.1.attention.q.weight".to_owned()].into();
    let spec = TrainSpec { only: Some(only.clone()), ..spec(When::Steps(5), "adamw", &adamw()) };
    let mut trainer = Trainer::new(&model, &removed, &spec, &data()).unwrap();
    trainer.run(&mut data(), &mut ()).unwrap();
    let after = trainer.model().unwrap();
    for (w, k) in values(after.params().get(slot).unwrap()).iter().zip(values(&keep)) {
        assert_eq!(*w == 0.0, k == 0.0);
    }
    for (name, before) in bits(&model) {
        assert_eq!(bits(&after)[&name] != before, only.contains(&name), "{name}");
    }
}

/// Removed weights that stand at their first values don't train, and are cut with their neurons.
#[test]
fn held_weights_stay_where_they_are() {
    let (slot, first, mut model) = ("layers.0.mlp.up.weight", model().reinit(3).unwrap(), model());
    let keep = |w: &Tensor| -> Vec<u8> { (0..w.elem_count()).map(|i| u8::from(i % 3 != 0)).collect() };
    let w_i = first.params().get(slot).unwrap();
    let mut removed = Removed::default();
    let gone = Tensor::from_vec(keep(w_i), w_i.dims(), &Device::Cpu).unwrap();
    removed.held.insert(slot.to_owned(), gone.where_cond(&w_i.zeros_like().unwrap(), w_i).unwrap());
    let decision = Decision { weights: [(slot.to_owned(), gone)].into(), ..Decision::default() };
    surgery::mask(&mut model, &mut removed, &decision).unwrap();
    let before = model.clone();
    let spec = spec(When::Steps(5), "adamw", &adamw());
    let train = |model: &Transformer, removed: &Removed| {
        let mut trainer = Trainer::new(model, removed, &spec, &data()).unwrap();
        trainer.run(&mut data(), &mut ()).unwrap();
        trainer.model().unwrap()
    };
    let mut model = train(&before, &removed);
    let held = |model: &Transformer, first: &[f32], masked: &[u8]| {
        for ((w, i), k) in values(model.params().get(slot).unwrap()).iter().zip(first).zip(masked) {
            assert_eq!(w == i, *k == 0, "{w} {i} {k}");
        }
    };
    held(&model, &values(w_i), &keep(w_i));
    // Without its first neuron: zeros there, and after compacting every third of what is left still stands where it stood.
    let key = prunectl_prune::Key::of(prunectl_recipe::catalogue::SiteKind::Neurons, 0);
    let ffn = model.dims()[0].ffn;
    let decision = Decision { sites: [(key, (1..ffn).collect())].into(), ..Decision::default() };
    surgery::mask(&mut model, &mut removed, &decision).unwrap();
    let columns = w_i.dim(1).unwrap();
    assert!(values(&train(&model, &removed).params().get(slot).unwrap().get(0).unwrap()).iter().all(|w| *w == 0.0));
    surgery::compact(&mut model, &mut removed, &mut prunectl_prune::UnitMap::default()).unwrap();
    let model = train(&model, &removed);
    held(&model, &values(w_i)[columns..], &keep(w_i)[columns..]);
}

#[test]
fn a_diverging_loss_stops_with_its_step() {
    let spec = TrainSpec { clip: None, ..spec(When::Steps(50), "sgd", &[("lr", Value::Number(1e30))]) };
    let mut trainer = Trainer::new(&model(), &Removed::default(), &spec, &data()).unwrap();
    let e = trainer.run(&mut data(), &mut ()).unwrap_err();
    assert!(matches!(e, PruneError::Diverged { step: 2.., .. } | PruneError::GradientDiverged { step: 2.., .. }), "{e}");
}

/// `lr` of 1e38 times a momentum of ten steps overflows f32 while the loss of a step is still finite: that update is the one that is named.
#[test]
fn an_update_that_overflows_is_told_at_its_own_step() {
    let spec = TrainSpec { clip: None, ..spec(When::Steps(1), "sgd", &[("lr", Value::Number(1e300))]) };
    let mut trainer = Trainer::new(&model(), &Removed::default(), &spec, &data()).unwrap();
    let e = trainer.run(&mut data(), &mut ()).unwrap_err();
    assert!(matches!(e, PruneError::WeightsDiverged { step: 1, .. }) && e.to_string().contains("1e300"), "{e}");
}

/// A loss whose weight begins at 0 moves nothing at first; it is no lack of data.
#[test]
fn a_loss_may_come_in_late() {
    let weight = Schedule::Stairs { values: vec![0.0, 1.0], during: None };
    let mut spec = spec(When::Steps(4), "adamw", &adamw());
    spec.loss = vec![Term { weight, term: crate::common::build(LOSSES, "task", &[]), teacher: None }];
    let mut trainer = Trainer::new(&model(), &Removed::default(), &spec, &data()).unwrap();
    let losses: Vec<f64> = (0..4).map(|_| trainer.advance(&mut data()).unwrap().loss).collect();
    assert!(losses[..2] == [0.0, 0.0] && losses[2] > 1.0 && losses[3] > 1.0, "{losses:?}");
    assert_ne!(bits(&trainer.model().unwrap()), bits(&model()));
}

/// In bf16 the passes are coarse, near those of f32; the weights are not: what an update adds may be less than bf16 can hold.
#[test]
fn passes_in_another_type_leave_the_weights_theirs() {
    let args = vec![("lr", Value::Number(1e-5)), ("weight_decay", Value::Number(0.0))];
    let train = |dtype: Option<DType>, state: Option<&TrainState>| {
        let spec = TrainSpec { dtype, ..spec(When::Steps(6), "adamw", &args) };
        let mut record = Record { save_at: Some(3), ..Record::default() };
        let mut trainer = match state {
            None => Trainer::new(&model(), &Removed::default(), &spec, &data()).unwrap(),
            Some(state) => Trainer::resume(&model(), &Removed::default(), &spec, &data(), state).unwrap(),
        };
        trainer.run(&mut data(), &mut record).unwrap();
        (trainer.model().unwrap(), record)
    };
    let (fine, exact) = train(None, None);
    for dtype in [DType::BF16, DType::F16, DType::F64] {
        let (coarse, record) = train(Some(dtype), None);
        assert_eq!(coarse.dtype(), DType::F32);
        let (a, b) = (record.events[0], exact.events[0]);
        let tolerance = if dtype == DType::BF16 { 2e-2 } else { 3e-3 };
        assert!((a.loss - b.loss).abs() < tolerance * b.loss && (a.grad_norm - b.grad_norm).abs() < 3.0 * tolerance * b.grad_norm);
        assert_ne!(a.grad_norm, b.grad_norm, "{dtype:?}");
        // Adam's first steps are about lr, whatever the gradient's size: far below bf16's resolution of weights near 0.02 (6e-5).
        let slot = "layers.0.mlp.up.weight";
        let (start, end, other) = (model(), coarse.params().require(slot).unwrap(), fine.params().require(slot).unwrap());
        let apart = |a: &Tensor, b: &Tensor| values(a).iter().zip(values(b)).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>();
        let (moved, off) = (apart(end, start.params().require(slot).unwrap()), apart(end, other));
        assert!(off < 0.2 * moved, "{dtype:?}: moved by {moved}, {off} off");
        let (again, _) = train(Some(dtype), record.saved.as_ref());
        assert_eq!(bits(&coarse), bits(&again));
    }
}

/// A limit on the gradient's norm that none reaches changes nothing: neither that all gradients are gathered before it, nor that, without
/// one, each parameter moves as soon as its gradient is there.
#[test]
fn updates_on_the_way_are_those_of_all_gradients_together() {
    for recompute in [false, true] {
        let train = |clip: Option<f64>| {
            let spec = TrainSpec { clip, recompute, ..spec(When::Steps(4), "adamw", &adamw()) };
            let mut trainer = Trainer::new(&model(), &Removed::default(), &spec, &data()).unwrap();
            let mut record = Record::default();
            trainer.run(&mut data(), &mut record).unwrap();
            let events: Vec<(u64, u64)> = record.events.iter().map(|e| (e.loss.to_bits(), e.grad_norm.to_bits())).collect();
            (events, bits(&trainer.model().unwrap()))
        };
        let (together, on_the_way) = (train(Some(1e9)), train(None));
        assert_eq!(together.0, on_the_way.0);
        assert!(together.1 == on_the_way.1 && together.1 != bits(&model()));
    }
}

#[test]
fn an_observer_can_stop() {
    let spec = spec(When::Tokens(64 * 20), "adamw", &adamw());
    let mut trainer = Trainer::new(&model(), &Removed::default(), &spec, &data()).unwrap();
    assert_eq!(trainer.clock().steps, 20);
    let mut record = Record { stop_at: Some(3), ..Record::default() };
    trainer.run(&mut data(), &mut record).unwrap();
    assert_eq!((record.events.len(), trainer.step()), (3, 3));
    assert_eq!(record.events[0].tokens, 64);
}

#[test]
fn distillation_of_oneself_costs_nothing_and_masked_lm_trains() {
    let teacher = model();
    let args = [("teacher", Value::Model("m".into())), ("temperature", Value::Number(2.0))];
    let mut spec = spec(When::Steps(2), "adamw", &adamw());
    spec.loss = vec![Term { weight: constant(1.0), term: crate::common::build(LOSSES, "distill", &args), teacher: Some(teacher) }];
    let mut trainer = Trainer::new(&model(), &Removed::default(), &spec, &data()).unwrap();
    let first = trainer.advance(&mut data()).unwrap();
    assert!(first.loss.abs() < 1e-6 && first.grad_norm < 1e-4, "{first:?}");
    let args = [("mask", Value::Number(3.0)), ("p", Value::Number(0.3))];
    spec.loss = vec![Term { weight: constant(1.0), term: crate::common::build(LOSSES, "masked_lm", &args), teacher: None }];
    let mut trainer = Trainer::new(&model(), &Removed::default(), &spec, &data()).unwrap();
    let (a, b) = (trainer.advance(&mut data()).unwrap(), trainer.advance(&mut data()).unwrap());
    assert!(a.loss > 1.0 && b.loss > 1.0 && a.loss != b.loss);
}

/// Blocks that are built again in the backward pass give the same losses, norms and weights: all of them trained, some alone, and behind a
/// term that looks at attention. Where one looks at hidden states, gradients meet between blocks and are added in another order.
#[test]
fn recomputation_changes_no_bit() {
    let dense = model();
    let last: BTreeSet<String> = dense.params().iter().map(|(s, _)| s.to_owned()).filter(|s| s.starts_with("layers.1.")).collect();
    let imitate = |name: &str| Term {
        weight: constant(0.5),
        term: crate::common::build(LOSSES, name, &[("teacher", Value::Model("t".into()))]),
        teacher: Some(dense.reinit(3).unwrap()),
    };
    for (what, only, more) in [
        ("all", None, None),
        ("the last layer", Some(last), None),
        ("hidden states", None, Some("hidden")),
        ("attention", None, Some("attention_maps")),
    ] {
        let train = |recompute: bool| {
            let mut spec = TrainSpec { batch: 2, accumulate: 2, only: only.clone(), recompute, ..spec(When::Steps(4), "adamw", &adamw()) };
            spec.loss.extend(more.map(imitate));
            let mut trainer = Trainer::new(&dense, &Removed::default(), &spec, &data()).unwrap();
            let mut record = Record::default();
            trainer.run(&mut data(), &mut record).unwrap();
            let events: Vec<(u64, u64)> = record.events.iter().map(|e| (e.loss.to_bits(), e.grad_norm.to_bits())).collect();
            (events, bits(&trainer.model().unwrap()))
        };
        let (plain, again) = (train(false), train(true));
        if more == Some("hidden") {
            for (a, b) in plain.0.iter().zip(&again.0).flat_map(|(a, b)| [(a.0, b.0), (a.1, b.1)]) {
                let (a, b) = (f64::from_bits(a), f64::from_bits(b));
                assert!((a - b).abs() < 1e-6 * a, "{what}: {a} {b}");
            }
        } else {
            assert_eq!(plain.0, again.0, "{what}: losses and norms");
            assert!(plain.1 == again.1, "{what}: weights");
        }
        assert!(plain.1 != bits(&dense), "{what}: nothing was learned");
    }
}
