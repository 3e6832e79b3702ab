//! Adapters through their rows: the authors' numbers, exact fusion, pruning with the weight, and that only they train.

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor, Var};
use prunectl_model::adapter::{PROTOTYPE_COLS, PROTOTYPE_ROWS};
use prunectl_model::{AdapterPart, Batch, Gates, LoadOptions, Slice, Transformer};
use prunectl_prune::{
    ADAPTERS, Decision, Examples, Key, LOSSES, OPTIMIZERS, PruneError, Removed, Result, Term, TrainSpec, Trainer, adapter_slots, surgery,
};
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::{Schedule, Value, When};

use crate::common::{Case, build, close, golden, worst};

const STEM: &str = "layers.0.attention.q";
const WEIGHT: &str = "layers.0.attention.q.weight";

fn tiny(name: &str) -> Transformer {
    prunectl_model::load(&golden("methods/models").join(name), &LoadOptions::default()).unwrap()
}

fn number(n: f64) -> Value {
    Value::Number(n)
}

fn attached(model: &Transformer, name: &str, args: &[(&str, Value)], weights: &BTreeSet<String>) -> Transformer {
    let mut model = model.clone();
    for (slot, t) in build(ADAPTERS, name, args).attach(&model, weights).unwrap() {
        model.params_mut().set(slot, t);
    }
    model
}

/// The case's one layer stands in for a projection; the adapter is attached through its row, then given the case's values.
fn stand_in(case: &Case, name: &str, args: &[(&str, Value)], values: &[(String, Tensor)]) -> Transformer {
    let mut model = tiny("llama-tiny");
    model.params_mut().set(WEIGHT, case.input("weight"));
    model.params_mut().set(format!("{STEM}.bias"), case.input("bias"));
    let mut model = attached(&model, name, args, &[WEIGHT.to_owned()].into());
    for (slot, t) in values {
        let t = t.clone();
        assert_eq!(model.params().require(slot).unwrap().dims(), t.dims(), "{slot}");
        model.params_mut().set(slot.clone(), t);
    }
    model
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn parameter(model: &Transformer, slot: &str) -> Tensor {
    model.params().require(slot).unwrap().clone()
}

/// Gradients of mean((out − target)²).
fn gradients(model: &Transformer, case: &Case, slots: &[String]) -> Vec<Vec<f32>> {
    let mut model = model.clone();
    let vars: Vec<Var> = slots.iter().map(|s| Var::from_tensor(&parameter(&model, s)).unwrap()).collect();
    for (slot, var) in slots.iter().zip(&vars) {
        model.params_mut().set(slot.clone(), var.as_tensor().clone());
    }
    let out = model.project(STEM, &case.input("x")).unwrap();
    let grads = (out - case.input("target")).unwrap().sqr().unwrap().mean_all().unwrap().backward().unwrap();
    vars.iter().map(|v| flat(grads.get(v).unwrap())).collect()
}

fn zero(model: &mut Transformer, slice: &Slice) {
    let w = parameter(model, &slice.slot);
    let n = w.dim(slice.dim).unwrap();
    let keep: Vec<f32> = (0..n).map(|i| f32::from(i < slice.start || i >= slice.start + slice.len)).collect();
    let mut shape = vec![1; w.rank()];
    shape[slice.dim] = n;
    let keep = Tensor::from_vec(keep, shape, &Device::Cpu).unwrap();
    model.params_mut().set(slice.slot.clone(), w.broadcast_mul(&keep).unwrap());
}

#[test]
fn splora_equals_the_authors_code() {
    let case = Case::open("10_splora");
    let (rows, cols) = (AdapterPart::Rows.slot(STEM), AdapterPart::Cols.slot(STEM));
    let values = [(rows.clone(), case.input("rows").squeeze(0).unwrap()), (cols.clone(), case.input("cols").squeeze(0).unwrap())];
    let model = stand_in(&case, "splora", &[("rank", number(5.0))], &values);
    let x = case.input("x");
    close(&case, "out.train", &flat(&model.project(STEM, &x).unwrap()));
    let fused = model.fused(&model.adapted()).unwrap();
    assert!(fused.adapted().is_empty());
    close(&case, "out.eval", &flat(&fused.project(STEM, &x).unwrap()));
    close(&case, "fused.weight", &flat(&parameter(&fused, WEIGHT)));
    close(&case, "fused.bias", &flat(&parameter(&fused, &format!("{STEM}.bias"))));
    let grads = gradients(&model, &case, &[rows.clone(), cols.clone(), format!("{STEM}.bias")]);
    for (name, grad) in ["grad.rows", "grad.cols", "grad.bias"].iter().zip(&grads) {
        close(&case, name, grad);
    }

    let (out_mask, in_mask) = (flat(&case.input("out_mask")), flat(&case.input("in_mask")));
    let mut masked = model.clone();
    for (mask, dim) in [(&out_mask, 0), (&in_mask, 1)] {
        for (start, _) in mask.iter().enumerate().filter(|(_, k)| **k == 0.0) {
            let slice = Slice { slot: WEIGHT.into(), dim, start, len: 1 };
            for own in masked.adapter_slices(&slice) {
                zero(&mut masked, &own);
            }
            zero(&mut masked, &slice);
            if dim == 0 {
                zero(&mut masked, &Slice { slot: format!("{STEM}.bias"), dim: 0, start, len: 1 });
            }
        }
    }
    close(&case, "masked.out", &flat(&masked.project(STEM, &x).unwrap()));
    let kept = |mask: &[f32]| -> Tensor {
        let index: Vec<u32> = (0..mask.len() as u32).filter(|i| mask[*i as usize] != 0.0).collect();
        Tensor::new(index, &Device::Cpu).unwrap()
    };
    let (o, i) = (kept(&out_mask), kept(&in_mask));
    let pick = |slot: &str, dims: &[(usize, &Tensor)]| {
        dims.iter().fold(parameter(&masked, slot), |t, (dim, index)| t.index_select(index, *dim).unwrap())
    };
    close(&case, "pruned.rows", &flat(&pick(&rows, &[(1, &i)])));
    close(&case, "pruned.cols", &flat(&pick(&cols, &[(0, &o)])));
    close(&case, "pruned.weight", &flat(&pick(WEIGHT, &[(0, &o), (1, &i)])));
    close(&case, "pruned.bias", &flat(&pick(&format!("{STEM}.bias"), &[(0, &o)])));
    let fused = masked.fused(&masked.adapted()).unwrap();
    let small = parameter(&fused, WEIGHT).index_select(&o, 0).unwrap().index_select(&i, 1).unwrap();
    close(&case, "pruned.fused.weight", &flat(&small));
    let out = masked.project(STEM, &x).unwrap().index_select(&o, 1).unwrap();
    close(&case, "pruned.out", &flat(&out));
    // The authors count the bias with the adapter, the case says so.
    let count =
        |model: &Transformer| -> usize { adapter_slots(model, &model.adapted()).iter().map(|s| parameter(model, s).elem_count()).sum() };
    let counts: Vec<usize> = case.expected("counts").iter().map(|c| *c as usize).collect();
    assert_eq!(count(&model) + out_mask.len(), counts[0]);
    assert_eq!(5 * (o.elem_count() + i.elem_count()) + o.elem_count(), counts[1]);
    worst("10_splora");
}

#[test]
fn splopa_equals_the_authors_code() {
    let case = Case::open("10_splopa");
    let positions = AdapterPart::Positions.slot(STEM);
    let values = [
        (PROTOTYPE_ROWS.to_owned(), case.input("rows")),
        (PROTOTYPE_COLS.to_owned(), case.input("cols")),
        (positions.clone(), case.input("pos_weights")),
    ];
    let args = [("prototypes", number(4.0)), ("rank", number(2.0)), ("shape", Value::List(vec![number(4.0), number(8.0)]))];
    let model = stand_in(&case, "splopa", &args, &values);
    let x = case.input("x");
    close(&case, "out", &flat(&model.project(STEM, &x).unwrap()));
    let fused = model.fused(&model.adapted()).unwrap();
    close(&case, "fused.weight", &flat(&parameter(&fused, WEIGHT)));
    assert!(fused.params().get(PROTOTYPE_COLS).is_none(), "prototypes go with the last adapter that uses them");
    let grads = gradients(&model, &case, &[PROTOTYPE_ROWS.to_owned(), PROTOTYPE_COLS.to_owned(), positions.clone()]);
    for (name, grad) in ["grad.rows", "grad.cols", "grad.pos_weights"].iter().zip(&grads) {
        close(&case, name, grad);
    }
    let mask = case.input("block_mask").to_dtype(DType::F32).unwrap();
    let mut masked = model.clone();
    let left = case.input("pos_weights").broadcast_mul(&mask).unwrap();
    masked.params_mut().set(positions, left.clone());
    let spread = mask.reshape((6, 1, 4, 1)).unwrap().broadcast_as((6, 4, 4, 8)).unwrap().reshape((24, 32)).unwrap();
    masked.params_mut().set(WEIGHT, case.input("weight").mul(&spread).unwrap());
    close(&case, "masked.out", &flat(&masked.project(STEM, &x).unwrap()));
    close(&case, "masked.weight", &flat(&parameter(&masked.fused(&masked.adapted()).unwrap(), WEIGHT)));
    let count: usize = adapter_slots(&model, &model.adapted()).iter().map(|s| parameter(&model, s).elem_count()).sum();
    let counts: Vec<usize> = case.expected("counts").iter().map(|c| *c as usize).collect();
    assert_eq!(count, counts[0]);
    let shared = 4 * (4 * 2 + 2 * 8);
    assert_eq!(flat(&mask).iter().filter(|k| **k != 0.0).count() * 4 + shared, counts[1]);
    worst("10_splopa");
}

fn all_weights(model: &Transformer) -> BTreeSet<String> {
    (0..model.n_layers()).flat_map(|l| model.linears(l).unwrap()).collect()
}

/// The three adapters on every matrix of the layers, with updates of the weights' own size.
fn adapted_models(dense: &Transformer) -> Vec<(&'static str, Transformer)> {
    let splopa = vec![("prototypes", number(3.0)), ("shape", Value::List(vec![number(4.0), number(8.0)]))];
    let kinds: [(&'static str, Vec<(&str, Value)>); 3] =
        [("lora", vec![("rank", number(3.0)), ("alpha", number(5.0))]), ("splora", vec![("rank", number(3.0))]), ("splopa", splopa)];
    kinds
        .into_iter()
        .map(|(name, args)| {
            let start = attached(dense, name, &args, &all_weights(dense));
            assert!(apart(dense, &start) < 5e-3, "{name} starts (nearly) as the model is");
            let mut model = start.clone();
            for stem in start.adapted() {
                for part in [AdapterPart::Cols, AdapterPart::Positions] {
                    let slot = part.slot(&stem);
                    let Some(t) = start.params().get(&slot) else { continue };
                    let n = t.elem_count();
                    let drawn: Vec<f32> = (0..n).map(|i| ((i * 37 + stem.len() * 11) % 41) as f32 / 400.0 - 0.05).collect();
                    model.params_mut().set(slot, Tensor::from_vec(drawn, t.dims(), &Device::Cpu).unwrap());
                }
            }
            assert!(apart(dense, &model) > 1e-2, "{name}");
            (name, model)
        })
        .collect()
}

fn batch() -> Batch {
    let ids: Vec<u32> = (0..24).map(|i| (i * 7 + i * i / 3) % 30 + 2).collect();
    Batch::new(Tensor::from_vec(ids, (2, 12), &Device::Cpu).unwrap())
}

fn apart(a: &Transformer, b: &Transformer) -> f32 {
    let out = |m: &Transformer| m.hidden(&batch(), &Gates::default(), &mut ()).unwrap().0;
    (out(a) - out(b)).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
}

fn decision(model: &Transformer) -> Decision {
    let mut out = Decision::default();
    let d = model.dims()[0];
    out.sites.insert(Key::of(SiteKind::Neurons, 0), (0..d.ffn).filter(|n| ![0, 3, 5, 6].contains(n)).collect());
    let heads = Key::of(SiteKind::KvGroups, 1);
    out.sites.insert(heads, (0..d.kv_heads).filter(|g| *g != 1).collect());
    out
}

#[test]
fn they_fuse_exactly_and_leave_with_the_weight() {
    for name in ["llama-tiny", "bert-tiny"] {
        let dense = tiny(name);
        for (kind, model) in adapted_models(&dense) {
            let fused = model.fused(&model.adapted()).unwrap();
            assert!(apart(&model, &fused) < 2e-5, "{name} {kind}");
            let decision = decision(&model);
            let (mut masked, mut removed) = (model.clone(), Removed::default());
            surgery::mask(&mut masked, &mut removed, &decision).unwrap();
            let mut whole = fused.clone();
            surgery::mask(&mut whole, &mut Removed::default(), &decision).unwrap();
            assert!(
                apart(&masked, &whole) < 2e-5 && apart(&masked, &model) > 1e-3,
                "{name} {kind}: masking the adapter is masking the sum"
            );
            let fused = masked.fused(&masked.adapted()).unwrap();
            for (slot, t) in whole.params().iter() {
                let apart = (t - fused.params().require(slot).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
                assert!(apart.to_scalar::<f32>().unwrap() < 1e-6, "{name} {kind} {slot}");
            }
            let mut small = masked.clone();
            let compacted = surgery::compact(&mut small, &mut removed.clone(), &mut Default::default());
            if kind == "splopa" {
                assert!(compacted.unwrap_err().to_string().contains("fuse it before"), "{name}");
                continue;
            }
            compacted.unwrap();
            assert!(apart(&small, &masked) < 2e-5, "{name} {kind}");
            assert_eq!(small.adapted(), masked.adapted());
            assert_eq!(parameter(&small, "layers.0.mlp.up.adapter.cols").dim(0).unwrap(), small.dims()[0].ffn);
            assert_eq!(parameter(&small, "layers.0.mlp.down.adapter.rows").dim(1).unwrap(), small.dims()[0].ffn);
            assert!(apart(&small.fused(&small.adapted()).unwrap(), &small) < 2e-5, "{name} {kind}");
            assert!(small.keep_layers(&[0]).unwrap().adapted().iter().all(|stem| stem.starts_with("layers.0.")));
        }
    }
}

struct One;

impl Examples for One {
    fn len(&self) -> usize {
        2
    }

    fn batch(&mut self, indices: &[usize]) -> Result<Batch> {
        Ok(batch().rows(&indices.iter().map(|i| *i as u32).collect::<Vec<_>>())?)
    }
}

#[test]
fn only_they_train_and_what_is_removed_stays_so() {
    let dense = tiny("llama-tiny");
    for (kind, mut model) in adapted_models(&dense) {
        let mut removed = Removed::default();
        surgery::mask(&mut model, &mut removed, &decision(&dense)).unwrap();
        let only = adapter_slots(&model, &model.adapted());
        let spec = TrainSpec {
            length: When::Steps(15),
            batch: 2,
            accumulate: 1,
            clip: None,
            optimizer: build(OPTIMIZERS, "adamw", &[("lr", number(1e-2))]),
            loss: vec![Term { weight: Schedule::Hold { value: 1.0, length: None }, term: build(LOSSES, "task", &[]), teacher: None }],
            only: Some(only.clone()),
            seed: 0,
            dtype: None,
            recompute: false,
            prunes: Vec::new(),
        };
        let mut trainer = Trainer::new(&model, &removed, &spec, &One).unwrap();
        let first = trainer.advance(&mut One).unwrap().loss;
        trainer.run(&mut One, &mut ()).unwrap();
        let trained = trainer.model().unwrap();
        let loss = trained.forward_loss(&batch(), &Gates::default(), &mut ()).unwrap();
        let last = f64::from(loss.sum().unwrap().to_scalar::<f32>().unwrap()) / loss.count() as f64;
        assert!(last < first, "{kind}: {first} {last}");
        let mut moved = BTreeSet::new();
        for (slot, t) in trained.params().iter() {
            if flat(t) != flat(&parameter(&model, slot)) {
                moved.insert(slot.to_owned());
            }
        }
        assert!(moved.is_subset(&only) && moved.len() > only.len() / 2, "{kind}: {moved:?}");
        let fused = trained.fused(&trained.adapted()).unwrap();
        let mut again = fused.clone();
        surgery::mask(&mut again, &mut Removed::default(), &decision(&dense)).unwrap();
        assert!(apart(&fused, &again) == 0.0, "{kind}: a removed unit came back through the adapter");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let dense = tiny("llama-tiny");
    let weights = all_weights(&dense);
    let model = attached(&dense, "splora", &[("rank", number(2.0))], &weights);
    let twice = build(ADAPTERS, "lora", &[]).attach(&model, &weights);
    assert!(matches!(twice, Err(PruneError::Invalid { .. })));
    let odd = build(ADAPTERS, "splopa", &[("shape", Value::List(vec![number(5.0), number(7.0)]))]).attach(&dense, &weights);
    assert!(odd.unwrap_err().to_string().contains("divide"));
    assert!(prunectl_model::to_checkpoint(&model).unwrap_err().to_string().contains("fuse"));
    assert!(build(ADAPTERS, "lora", &[]).attach(&dense, &BTreeSet::new()).is_err());
}
