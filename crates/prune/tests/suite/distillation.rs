//! Distillation losses through their rows: golden numbers, gradients with other shapes than the teacher's (`gradients` has all rows), padding, layer maps, refusals.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use prunectl_model::{Batch, LoadOptions, SiteKind, Transformer};
use prunectl_prune::{Clock, LEARNED, LOSSES, LossInput, LossTerm, Shared};
use prunectl_recipe::plan::{Share, Value};

use crate::common::{Case, build, close, golden, worst};

fn term(name: &str, args: &[(&str, Value)]) -> Box<dyn LossTerm> {
    let mut args = args.to_vec();
    args.push(("teacher", Value::Model("t".into())));
    build(LOSSES, name, &args)
}

fn word(w: &str) -> Value {
    Value::Word(w.into())
}

fn sum(term: &dyn LossTerm, model: &Transformer, teacher: &Transformer, batch: &Batch) -> prunectl_prune::Result<Tensor> {
    let shared = Shared::of(std::iter::once(term), model);
    term.sum(&LossInput::new(model, batch, Some(teacher), 11, true, &shared), &Clock::steps(1), 0)
}

/// Sum over count, and its gradients by the parameters.
fn loss(term: &dyn LossTerm, model: &Transformer, teacher: &Transformer, batch: &Batch) -> (f64, BTreeMap<String, Tensor>) {
    let (mut model, mut vars) = (model.clone(), Vec::new());
    for (slot, t) in model.clone().params().iter() {
        let var = Var::from_tensor(t).unwrap();
        model.params_mut().set(slot, var.as_tensor().clone());
        vars.push((slot.to_owned(), var));
    }
    let count = term.count(&model, batch, 11).unwrap();
    let loss = (sum(term, &model, teacher, batch).unwrap() / count).unwrap();
    let grads = loss.backward().unwrap();
    let grads = vars.into_iter().filter_map(|(slot, var)| Some((slot, grads.get(&var)?.clone()))).collect();
    (loss.to_dtype(DType::F64).unwrap().to_scalar().unwrap(), grads)
}

#[test]
fn minilm_equals_the_authors_code() {
    let case = Case::open("14_minilmv2");
    let load = |name: &str| prunectl_model::load(&golden("methods/models").join(name), &LoadOptions::default()).unwrap();
    let (student, teacher) = (load("bert-minilm-student"), load("bert-minilm-teacher"));
    let mut batch = Batch::new(case.input("input_ids").to_dtype(DType::U32).unwrap());
    batch.keep = Some(case.input("attention_mask").to_dtype(DType::U8).unwrap());
    for (name, relations) in [("loss.all", "all"), ("loss.qq", "queries"), ("loss.kk", "keys"), ("loss.vv", "values")] {
        let args = [("relation_heads", Value::Number(4.0)), ("layer", Value::Number(1.0)), ("relations", word(relations))];
        let (value, grads) = loss(&*term("minilm", &args), &student, &teacher, &batch);
        close(&case, name, &[value as f32]);
        if relations == "all" {
            for (theirs, ours) in [("query", "q"), ("key", "k"), ("value", "v")] {
                let grad = &grads[&format!("layers.1.attention.{ours}.weight")];
                close(&case, &format!("grad.student.1.{theirs}.weight"), &grad.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            }
        }
    }
    worst("14_minilmv2");
}

fn tiny(name: &str) -> Transformer {
    let options = LoadOptions { dtype: DType::F64, ..LoadOptions::default() };
    prunectl_model::load(&golden("methods/models").join(name), &options).unwrap()
}

fn ids(b: usize, s: usize) -> Tensor {
    let ids: Vec<u32> = (0..b * s).map(|i| ((i * 13 + i * i / 5) % 37 + 3) as u32).collect();
    Tensor::from_vec(ids, (b, s), &Device::Cpu).unwrap()
}

/// Three examples, the second and third padded on the right.
fn padded() -> Batch {
    let mut batch = Batch::new(ids(3, 8));
    let keep: Vec<u8> = (0..24).map(|i| u8::from(i % 8 < 8 - 2 * (i / 8))).collect();
    batch.keep = Some(Tensor::from_vec(keep, (3, 8), &Device::Cpu).unwrap());
    batch
}

fn terms(heads: f64) -> Vec<(&'static str, Vec<(&'static str, Value)>)> {
    vec![
        ("distill", vec![("temperature", Value::Number(2.0))]),
        ("hidden", vec![]),
        ("hidden", vec![("distance", word("cosine"))]),
        ("hidden", vec![("distance", word("first"))]),
        ("attention_maps", vec![]),
        ("attention_maps", vec![("kind", word("kl"))]),
        ("minilm", vec![("relation_heads", Value::Number(heads))]),
        ("relation", vec![]),
        ("noisy_student", vec![("noise", Value::Percent(Share::from_fraction(0.3)))]),
    ]
}

/// The student: fewer heads, other weights, a projection where a term wants one.
fn student(dense: &Transformer, term: &dyn LossTerm, teacher: &Transformer) -> Transformer {
    let mut model = dense.reinit(5).unwrap();
    for (slot, t) in model.clone().params().iter() {
        // Weights as small as those of an initialisation leave gradients that differences can't resolve.
        model.params_mut().set(slot, (t * 6.0).unwrap());
    }
    for (name, t) in term.parameters(&model, Some(teacher), 3).unwrap() {
        model.params_mut().set(format!("{LEARNED}{name}"), t);
    }
    model
}

fn directional(term: &dyn LossTerm, model: &Transformer, teacher: &Transformer, batch: &Batch, slots: &[&str], name: &str) {
    let (_, grads) = loss(term, model, teacher, batch);
    for slot in slots {
        let w = model.params().get(slot).unwrap();
        let direction: Vec<f64> = (0..w.elem_count()).map(|i| ((i * 7919 + 31) % 101) as f64 / 50.0 - 1.0).collect();
        let direction = Tensor::from_vec(direction, w.dims(), &Device::Cpu).unwrap();
        let at = |step: f64| {
            let mut moved = model.clone();
            moved.params_mut().set(*slot, (w + (&direction * step).unwrap()).unwrap());
            let count = term.count(&moved, batch, 11).unwrap();
            sum(term, &moved, teacher, batch).unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap() / count
        };
        let h = 1e-6;
        let numeric = (at(h) - at(-h)) / (2.0 * h);
        let analytic: f64 = match grads.get(*slot) {
            Some(g) => g.mul(&direction).unwrap().sum_all().unwrap().to_scalar().unwrap(),
            None => 0.0,
        };
        assert!((numeric - analytic).abs() <= 1e-5 * analytic.abs().max(numeric.abs()) + 1e-8, "{name} {slot}: {analytic} and {numeric}");
    }
}

/// A teacher of another width and depth: the projection learns, layers stand for each other as the map says, heads are averaged.
#[test]
fn a_larger_teacher_is_imitated() {
    let load = |name: &str| {
        let options = LoadOptions { dtype: DType::F64, ..LoadOptions::default() };
        prunectl_model::load(&golden("methods/models").join(name), &options).unwrap()
    };
    let (small, teacher) = (load("bert-minilm-student"), load("bert-minilm-teacher"));
    for (loss, args) in terms(8.0).into_iter().filter(|(loss, args)| *loss != "distill" && *loss != "noisy_student" && args.len() < 2) {
        let term = term(loss, &args);
        let model = student(&small, &*term, &teacher);
        let mut slots = vec!["layers.0.attention.k.weight", "layers.1.attention.q.weight"];
        let projected = format!("{LEARNED}projection.weight");
        if loss == "hidden" {
            slots.push(&projected);
        } else {
            assert!(model.params().get(&projected).is_none());
        }
        directional(&*term, &model, &teacher, &padded(), &slots, loss);
    }
}

/// A student that is its teacher has lost nothing (of the noisy one only the noise is left), and what stands behind padding does not matter.
#[test]
fn the_teacher_itself_is_at_zero_and_padding_does_not_count() {
    for name in ["llama-tiny", "bert-tiny"] {
        let teacher = tiny(name);
        for (loss_name, args) in terms(4.0) {
            let term = term(loss_name, &args);
            let own = loss(&*term, &teacher, &teacher, &padded()).0;
            assert!(own.abs() < 1e-9 || loss_name == "noisy_student", "{name} {loss_name}: {own}");
            let model = student(&teacher, &*term, &teacher);
            let mut other = padded();
            let keep = other.keep.as_ref().unwrap().flatten_all().unwrap().to_vec1::<u8>().unwrap();
            let changed = other.input_ids.flatten_all().unwrap().to_vec1::<u32>().unwrap();
            let changed: Vec<u32> = changed.iter().zip(&keep).map(|(id, k)| if *k == 0 { (id + 17) % 50 } else { *id }).collect();
            other.input_ids = Tensor::from_vec(changed, (3, 8), &Device::Cpu).unwrap();
            let (a, b) = (loss(&*term, &model, &teacher, &padded()).0, loss(&*term, &model, &teacher, &other).0);
            assert!((a - b).abs() <= 1e-12 * a.abs() && a > 0.0, "{name} {loss_name}: {a} {b}");
            // An example alone counts as it does beside others; pairs of examples need them, and noise is drawn for a batch.
            if !["relation", "noisy_student"].contains(&loss_name) {
                let parts: (f64, f64) = (0..3).fold((0.0, 0.0), |(total, n), row| {
                    let one = padded().rows(&[row]).unwrap();
                    let count = term.count(&model, &one, 11).unwrap();
                    (total + loss(&*term, &model, &teacher, &one).0 * count, n + count)
                });
                assert!((parts.0 / parts.1 - a).abs() <= 1e-10 * a, "{name} {loss_name}: {a} {}", parts.0 / parts.1);
            }
        }
    }
}

#[test]
fn layers_and_heads_may_be_gone() {
    let teacher = tiny("llama-tiny");
    let small = teacher.keep_layers(&[0, 2]).unwrap().keep_units(SiteKind::KvGroups, Some(1), &[0, 3]).unwrap();
    for (name, args) in terms(4.0) {
        let term = term(name, &args);
        let model = student(&small, &*term, &teacher);
        if name == "minilm" {
            continue;
        }
        directional(&*term, &model, &teacher, &padded(), &["layers.1.attention.q.weight"], name);
    }
}

#[test]
fn a_teacher_that_reads_other_ids_is_refused() {
    let model = tiny("llama-tiny");
    let other = prunectl_model::load(&golden("families/llama"), &LoadOptions { dtype: DType::F64, ..LoadOptions::default() }).unwrap();
    assert_ne!(other.blueprint().vocab, model.blueprint().vocab);
    for (name, args) in terms(4.0) {
        let error = sum(&*term(name, &args), &model, &other, &padded()).unwrap_err().to_string();
        assert!(error.contains("vocabulary"), "{name}: {error}");
    }
    let odd = term("minilm", &[("relation_heads", Value::Number(5.0))]);
    assert!(sum(&*odd, &model, &model, &padded()).unwrap_err().to_string().contains("relation_heads"));
    let listed = term("hidden", &[("layers", Value::List(vec![Value::Number(0.0)]))]);
    assert!(sum(&*listed, &model, &model, &padded()).unwrap_err().to_string().contains("layer map"));
}

/// Of answer spans, where the answer begins and where it ends are distributions over real tokens: padding changes nothing.
#[test]
fn answer_spans_are_imitated_over_real_tokens() {
    use prunectl_model::{Gates, Task};
    let options = LoadOptions { task: Task::parse("question-answering"), ..LoadOptions::default() };
    let student = prunectl_model::load(&golden("more/bert_qa"), &options).unwrap();
    let teacher = student.reinit(5).unwrap();
    let term = term("distill", &[("temperature", Value::Number(2.0))]);
    let whole = Batch::new(Tensor::new(&[[1u32, 4, 7, 2]], &Device::Cpu).unwrap());
    let mut padded = Batch::new(Tensor::new(&[[1u32, 4, 7, 2, 9, 9]], &Device::Cpu).unwrap());
    padded.keep = Some(Tensor::new(&[[1u8, 1, 1, 1, 0, 0]], &Device::Cpu).unwrap());
    let soft = |model: &Transformer, side: usize| -> Vec<f64> {
        let out = model.forward(&whole, &Gates::default(), &mut ()).unwrap().to_dtype(DType::F64).unwrap();
        let logits = out.narrow(2, side, 1).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let each: Vec<f64> = logits.iter().map(|l| (l / 2.0).exp()).collect();
        let sum: f64 = each.iter().sum();
        each.iter().map(|e| e / sum).collect()
    };
    let divergence = |side: usize| -> f64 { soft(&teacher, side).iter().zip(soft(&student, side)).map(|(p, q)| p * (p / q).ln()).sum() };
    let expected = 4.0 * (divergence(0) + divergence(1)) / 2.0;
    for batch in [&whole, &padded] {
        let (found, grads) = loss(&*term, &student, &teacher, batch);
        assert!((found - expected).abs() < 1e-5 * expected.abs().max(0.1), "{found} {expected}");
        assert!(
            grads.values().all(|g| g
                .abs()
                .unwrap()
                .max_all()
                .unwrap()
                .to_dtype(DType::F64)
                .unwrap()
                .to_scalar::<f64>()
                .unwrap()
                .is_finite())
        );
    }
    assert!(expected > 1e-4, "{expected}");
}
