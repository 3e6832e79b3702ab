//! Recovery: writers fitted anew after a prune.

use candle_core::{DType, Device, Tensor};
use prunectl_model::{Batch, Gates, LoadOptions, Transformer};
use prunectl_prune::{
    BlockObserver, BlockSpec, Decision, Examples, Fit, InMemory, Key, OPTIMIZERS, Progressed, PruneError, Rebuilt, Removed, Result, Sites,
    Stage, StepEvent, TrainState, Trainer, fit, reconstruct, stages, surgery,
};
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::{Value, When};

use crate::common::golden;

fn tiny(name: &str) -> Transformer {
    prunectl_model::load(&golden("methods/models").join(name), &LoadOptions::default()).unwrap()
}

/// Two batches of different lengths, the second padded.
fn texts() -> InMemory {
    let ids = |b: usize, s: usize, salt: usize| {
        let ids: Vec<u32> = (0..b * s).map(|i| ((i * 7 + salt + i * i / 3) % 23 + 2) as u32).collect();
        Tensor::from_vec(ids, (b, s), &Device::Cpu).unwrap()
    };
    let mut padded = Batch::new(ids(3, 10, 5));
    let keep: Vec<u8> = (0..30).map(|i| u8::from(i % 10 < 10 - i / 10)).collect();
    padded.keep = Some(Tensor::from_vec(keep, (3, 10), &Device::Cpu).unwrap());
    InMemory::new(vec![Batch::new(ids(6, 12, 1)), padded])
}

fn without(model: &Transformer, sites: &[(SiteKind, usize, &[usize])]) -> Decision {
    let mut decision = Decision::default();
    for (kind, layer, gone) in sites {
        let n = if *kind == SiteKind::Neurons { model.dims()[*layer].ffn } else { model.dims()[*layer].q_heads };
        decision.sites.insert(Key::of(*kind, *layer), (0..n).filter(|u| !gone.contains(u)).collect());
    }
    decision
}

fn pruned(dense: &Transformer, decision: &Decision) -> (Transformer, Removed) {
    let (mut model, mut removed) = (dense.clone(), Removed::default());
    surgery::mask(&mut model, &mut removed, decision).unwrap();
    (model, removed)
}

fn distance(a: &Transformer, b: &Transformer) -> f32 {
    let batch = Batch::new(Tensor::new(&[[3u32, 9, 4, 17, 20, 5]], &Device::Cpu).unwrap());
    let out = |m: &Transformer| m.hidden(&batch, &Gates::default(), &mut ()).unwrap().0;
    (out(a) - out(b)).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
}

/// A neuron that another one repeats can be made up for entirely: the other's column takes its place.
#[test]
fn a_repeated_neuron_costs_nothing() {
    for name in ["llama-tiny", "bert-tiny"] {
        let mut dense = tiny(name);
        for part in ["gate.weight", "up.weight", "up.bias"] {
            let slot = format!("layers.1.mlp.{part}");
            let Some(w) = dense.params().get(&slot).cloned() else { continue };
            let index: Vec<u32> = (0..w.dim(0).unwrap() as u32).map(|i| if i == 5 { 3 } else { i }).collect();
            dense.params_mut().set(slot, w.index_select(&Tensor::new(index, &Device::Cpu).unwrap(), 0).unwrap());
        }
        let decision = without(&dense, &[(SiteKind::Neurons, 1, &[5])]);
        let (mut model, removed) = pruned(&dense, &decision);
        let lost = distance(&dense, &model);
        let fitted = fit(Fit::LeastSquares, &dense, &mut model, &removed, &decision, &mut texts(), &()).unwrap();
        assert_eq!(fitted.len(), 1);
        assert_eq!(fitted[0].slot, "layers.1.mlp.down.weight");
        assert!(fitted[0].after < 1e-3 * fitted[0].before, "{name}: {fitted:?}");
        let left = distance(&dense, &model);
        assert!(left < lost / 4.0, "{name}: {left} of {lost}: only the damping may stand between them");
        let column = model.params().get("layers.1.mlp.down.weight").unwrap().narrow(1, 5, 1).unwrap();
        assert_eq!(column.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap(), 0.0, "a removed column stays zero");
    }
}

/// What a fit says is left is what a second fit finds; least squares leave less than the bias alone, and that less than nothing.
#[test]
fn each_block_is_fitted_on_the_inputs_that_the_blocks_before_it_give() {
    for name in ["llama-tiny", "bert-tiny"] {
        let dense = tiny(name);
        let heads = |l| (SiteKind::Heads, l, if name == "llama-tiny" { &[0, 3, 4, 6][..] } else { &[1][..] });
        let decision = without(&dense, &[heads(0), (SiteKind::Neurons, 0, &[0, 2, 3, 9]), heads(1), (SiteKind::Neurons, 1, &[1, 4])]);
        let (masked, removed) = pruned(&dense, &decision);
        let mut errors = Vec::new();
        for kind in [Fit::Bias, Fit::LeastSquares] {
            let mut model = masked.clone();
            let first = fit(kind, &dense, &mut model, &removed, &decision, &mut texts(), &()).unwrap();
            assert_eq!(first.len(), 4, "{name}");
            assert!(first.iter().all(|f| f.after <= f.before), "{name}: {first:?}");
            let again = fit(kind, &dense, &mut model.clone(), &removed, &decision, &mut texts(), &()).unwrap();
            // A second least-squares fit moves the first writer a little further, and so what the others read; means are met at once.
            let same = if kind == Fit::Bias { 4 } else { 1 };
            for (a, b) in first.iter().zip(&again).take(same) {
                assert!((a.after - b.before).abs() <= 1e-4 * a.after + 1e-7, "{name} {}: {} then {}", a.slot, a.after, b.before);
            }
            errors.push(again.last().unwrap().before);
            assert_eq!(model.params().get("layers.0.mlp.down.bias").is_some(), kind == Fit::Bias || name == "bert-tiny");
        }
        assert!(errors[1] < errors[0], "{name}: {errors:?}");
        // Compacting is still exact: nothing that was masked has come back.
        let mut model = masked.clone();
        fit(Fit::LeastSquares, &dense, &mut model, &removed, &decision, &mut texts(), &()).unwrap();
        let mut small = model.clone();
        surgery::compact(&mut small, &mut removed.clone(), &mut Default::default()).unwrap();
        assert!(distance(&model, &small) < 1e-5);
    }
}

#[test]
fn what_can_not_be_fitted_is_refused() {
    let dense = tiny("llama-tiny");
    let decision = without(&dense, &[(SiteKind::Neurons, 0, &[1])]);
    let (mut model, mut removed) = pruned(&dense, &decision);
    let none = fit(Fit::LeastSquares, &dense, &mut model, &removed, &decision, &mut InMemory::default(), &());
    assert!(matches!(none, Err(PruneError::NoData { .. })));
    let slot = "layers.0.mlp.down.weight";
    let keep = model.params().get(slot).unwrap().ones_like().unwrap().to_dtype(DType::U8).unwrap();
    removed.weights.insert(slot.into(), keep);
    let masked = fit(Fit::LeastSquares, &dense, &mut model, &removed, &decision, &mut texts(), &());
    assert!(masked.unwrap_err().to_string().contains(slot));
}

/// Rows of text, some padded.
struct Rows;

impl Examples for Rows {
    fn len(&self) -> usize {
        22
    }

    fn batch(&mut self, indices: &[usize]) -> Result<Batch> {
        let ids: Vec<u32> = indices.iter().flat_map(|i| (0..9).map(move |j| ((i * 31 + j * 7 + i * j) % 29 + 2) as u32)).collect();
        let keep: Vec<u8> = indices.iter().flat_map(|i| (0..9).map(move |j| u8::from(j < 9 - i % 3))).collect();
        let shape = (indices.len(), 9);
        let mut batch = Batch::new(Tensor::from_vec(ids, shape, &Device::Cpu)?);
        batch.keep = Some(Tensor::from_vec(keep, shape, &Device::Cpu)?);
        Ok(batch)
    }
}

#[derive(Default)]
struct Seen {
    blocks: Vec<Rebuilt>,
    /// After this step of that stage the training is left.
    leave: Option<(usize, u64)>,
    left: Option<(usize, Transformer, TrainState)>,
    losses: Vec<f64>,
}

impl BlockObserver for Seen {
    fn step(&mut self, stage: usize, model: &Transformer, trainer: &mut Trainer<'_>, event: &StepEvent) -> Result<()> {
        self.losses.push(event.loss);
        if self.leave == Some((stage, event.step)) {
            self.left = Some((stage, model.clone(), trainer.state()?));
            return Err(PruneError::Interrupted);
        }
        Ok(())
    }

    fn done(&mut self, _: usize, rebuilt: &Rebuilt, _: &Transformer) -> Result<()> {
        self.blocks.push(rebuilt.clone());
        self.losses.clear();
        Ok(())
    }
}

fn rebuild(
    dense: &Transformer,
    start: &Transformer,
    removed: &Removed,
    all: &[Stage],
    from: Option<Progressed>,
    seen: &mut Seen,
) -> Result<Transformer> {
    let make = || Ok(crate::common::build(OPTIMIZERS, "adamw", &[("lr", Value::Number(3e-3))]));
    let teacher_layers = (0..start.n_layers()).collect();
    let spec = BlockSpec {
        teacher: dense,
        length: When::Steps(24),
        batch: 4,
        accumulate: 1,
        clip: Some(1.0),
        optimizer: &make,
        seed: 3,
        dtype: None,
        teacher_layers,
    };
    let mut model = start.clone();
    reconstruct(&mut model, removed, all, &spec, &mut Rows, from, seen)?;
    Ok(model)
}

fn same(a: &Transformer, b: &Transformer) {
    for (slot, t) in a.params().iter() {
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(values(t) == values(b.params().get(slot).unwrap()), "{slot} differs");
    }
}

/// Mean squared distance of the last block's outputs on the real tokens of the rows.
fn apart(a: &Transformer, b: &Transformer) -> f32 {
    let batch = Rows.batch(&(0..22).collect::<Vec<_>>()).unwrap();
    let keep = batch.keep.clone().unwrap().to_dtype(DType::F32).unwrap().unsqueeze(2).unwrap();
    let out = |m: &Transformer| m.hidden(&batch, &Gates::default(), &mut ()).unwrap().0.broadcast_mul(&keep).unwrap();
    (out(a) - out(b)).unwrap().sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap()
}

#[test]
fn blocks_come_nearer_to_their_teacher_and_resume_to_the_same_bits() {
    for name in ["llama-tiny", "bert-tiny"] {
        let dense = tiny(name);
        let decision = without(
            &dense,
            &[(SiteKind::Neurons, 0, &[0, 2, 3, 9]), (SiteKind::Heads, 1, &[1, 2, 4, 7][..2 * dense.dims()[1].q_heads / 4])],
        );
        let (masked, removed) = pruned(&dense, &decision);
        let mut sites = Sites::default();
        sites.add(Key { kind: SiteKind::Layers, layer: None }, [0]);
        sites.add(Key::of(SiteKind::Attention, 1), [0]);
        sites.add(Key::of(SiteKind::Mlp, 1), [0]);
        let all = stages(&sites, &masked, &removed).unwrap();
        assert_eq!(all.iter().map(Stage::name).collect::<Vec<_>>(), ["layers.0", "layers.1.attention", "layers.1.mlp"]);
        let mut seen = Seen::default();
        let whole = rebuild(&dense, &masked, &removed, &all, None, &mut seen).unwrap();
        assert!(seen.blocks.iter().all(|b| b.last < b.first && b.steps == 24), "{name}: {:?}", seen.blocks);
        assert!(apart(&dense, &whole) < apart(&dense, &masked), "{name}: what the stages learned reaches the last block");
        // What is masked stays so, what was not named does not move.
        let mut again = whole.clone();
        surgery::mask(&mut again, &mut Removed::default(), &decision).unwrap();
        same(&whole, &again);
        let moved = |slot: &str| {
            let at = |m: &Transformer| m.params().get(slot).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            at(&whole) != at(&masked)
        };
        assert!(moved("layers.0.norm1.weight") && moved("layers.1.mlp.down.weight") && !moved("layers.1.norm1.weight"));
        for leave in [(0, 5), (1, 23), (2, 11)] {
            let mut cut = Seen { leave: Some(leave), ..Seen::default() };
            assert!(matches!(rebuild(&dense, &masked, &removed, &all, None, &mut cut), Err(PruneError::Interrupted)));
            let (stage, model, state) = cut.left.unwrap();
            let from = Progressed { stage, state: Some(state), losses: cut.losses };
            let mut rest = Seen::default();
            same(&whole, &rebuild(&dense, &model, &removed, &all, Some(from), &mut rest).unwrap());
            assert_eq!(rest.blocks, seen.blocks[stage..]);
        }
    }
}

#[test]
fn blocks_that_can_not_be_rebuilt_are_refused() {
    let dense = tiny("llama-tiny");
    let (masked, removed) = pruned(&dense, &without(&dense, &[(SiteKind::Neurons, 0, &[0])]));
    let mut sites = Sites::default();
    sites.add(Key::of(SiteKind::Heads, 0), [0]);
    assert!(matches!(stages(&sites, &masked, &removed), Err(PruneError::Site { .. })));
    assert!(matches!(stages(&Sites::default(), &masked, &removed), Err(PruneError::NothingToTrain)));
    let mut sites = Sites::default();
    sites.add(Key { kind: SiteKind::Layers, layer: None }, [0]);
    let all = stages(&sites, &masked, &removed).unwrap();
    let other = rebuild(&dense.keep_layers(&[0]).unwrap(), &masked, &removed, &all, None, &mut Seen::default());
    assert!(other.unwrap_err().to_string().contains("teacher"));
}
