//! Gradients against central differences, row by row of the registries: a loss or a learner that is added without a case here fails.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use prunectl_model::{Batch, Gates, Labels, LoadOptions, Task, Transformer};
use prunectl_prune::learned::{Backward, Layout, Learned, Learner, Moment, Values};
use prunectl_prune::{CRITERIA, Clock, Key, LEARNED, LOSSES, LossInput, LossTerm, Shared, Sites};
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::{Share, Value};

use crate::common::{all, build, golden};

fn word(w: &str) -> Value {
    Value::Word(w.into())
}

fn load(path: &str, task: Option<&str>) -> Transformer {
    let task = task.and_then(Task::parse);
    prunectl_model::load(&golden(path), &LoadOptions { dtype: DType::F64, task, ..LoadOptions::default() }).unwrap()
}

/// Numbers between −1 and 1 in that shape, the same on every machine.
fn direction(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    let values: Vec<f64> = (0..n).map(|i| ((i * 7919 + 31) % 101) as f64 / 50.0 - 1.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn scalar(t: &Tensor) -> f64 {
    t.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

/// Three rows of 8 tokens, the second and the third padded.
fn rows() -> Batch {
    let ids: Vec<u32> = (0..24).map(|i| ((i * 13 + i * i / 5) % 37 + 3) as u32).collect();
    let mut batch = Batch::new(Tensor::from_vec(ids, (3, 8), &Device::Cpu).unwrap());
    let keep: Vec<u8> = (0..24).map(|i| u8::from(i % 8 < 8 - 2 * (i / 8))).collect();
    batch.keep = Some(Tensor::from_vec(keep, (3, 8), &Device::Cpu).unwrap());
    batch
}

/// A model to differentiate, and examples whose labels its head can use.
fn subjects() -> Vec<(&'static str, Transformer, Batch)> {
    let labelled = |labels: Labels| Batch { labels: Some(labels), ..rows() };
    let of = |values: &[i64]| Tensor::new(values, &Device::Cpu).unwrap();
    let classifier = load("methods/models/bert-tiny", Some("text-classification"));
    let values = Tensor::new(&[0.5f32, -1.0, 2.0], &Device::Cpu).unwrap();
    let spans = labelled(Labels::Spans(Tensor::new(&[[1i64, 2], [0, 3], [2, 2]], &Device::Cpu).unwrap()));
    vec![
        ("classes", classifier, labelled(Labels::Classes(of(&[0, 1, 1])))),
        ("values", load("more/bert_regression", None), labelled(Labels::Values(values))),
        ("spans", load("more/bert_qa", Some("question-answering")), spans),
        ("tokens", load("methods/models/llama-tiny", None), rows()),
        ("masks", load("families/bert_mlm", Some("fill-mask")), rows()),
    ]
}

/// Weights as large as a trained model's: those of an initialisation leave gradients that differences can't resolve.
fn another(model: &Transformer, times: f64) -> Transformer {
    let mut out = model.reinit(5).unwrap();
    for (slot, t) in out.clone().params().iter() {
        out.params_mut().set(slot, (t * times).unwrap());
    }
    out
}

/// A row's arguments, and the subjects that it is tried on.
type Tried = (&'static str, Vec<(&'static str, Value)>, &'static [&'static str]);

/// Every row of [`LOSSES`] but `l1`, which the learners differentiate.
fn losses() -> Vec<Tried> {
    const ALL: &[&str] = &["classes", "tokens"];
    vec![
        ("task", vec![], &["classes", "values", "spans", "tokens"]),
        ("next_token", vec![], &["tokens"]),
        ("masked_lm", vec![("mask", Value::Number(2.0)), ("p", Value::Percent(Share::from_fraction(0.5)))], &["masks"]),
        ("distill", vec![("temperature", Value::Number(2.0))], &["classes", "values", "spans", "tokens", "masks"]),
        ("hidden", vec![], ALL),
        ("hidden", vec![("distance", word("cosine"))], ALL),
        ("hidden", vec![("distance", word("first"))], ALL),
        ("attention_maps", vec![], ALL),
        ("attention_maps", vec![("kind", word("kl"))], ALL),
        ("minilm", vec![("relation_heads", Value::Number(4.0))], ALL),
        ("relation", vec![], ALL),
        ("relation", vec![("distance", Value::Number(0.0))], ALL),
        ("relation", vec![("angle", Value::Number(0.0))], ALL),
        ("noisy_student", vec![("noise", Value::Percent(Share::from_fraction(0.3)))], &["classes", "values", "tokens"]),
    ]
}

/// The mean of a term over what counts, its parameters as variables or not.
fn mean(term: &dyn LossTerm, model: &Transformer, teacher: &Transformer, batch: &Batch) -> Tensor {
    let shared = Shared::of(std::iter::once(term), model);
    let sum = term.sum(&LossInput::new(model, batch, Some(teacher), 11, true, &shared), &Clock::steps(1), 0).unwrap();
    (sum.to_dtype(DType::F64).unwrap() / term.count(model, batch, 11).unwrap()).unwrap()
}

#[test]
fn every_loss() {
    let tried: Vec<&str> = losses().iter().map(|(name, ..)| *name).collect();
    for row in LOSSES.iter().filter(|row| row.spec.name != "l1") {
        assert!(tried.contains(&row.spec.name), "`{}` has no case here", row.spec.name);
    }
    let mut worst = (0.0, String::new());
    for (subject, dense, batch) in subjects() {
        let teacher = dense.clone();
        for (name, args, _) in losses().into_iter().filter(|(_, _, on)| on.contains(&subject)) {
            let mut args = args;
            if LOSSES.iter().any(|r| r.spec.name == name && r.spec.params.iter().any(|p| p.name == "teacher")) {
                args.push(("teacher", Value::Model("t".into())));
            }
            let term = build(LOSSES, name, &args);
            let mut model = another(&dense, 6.0);
            for (own, t) in term.parameters(&model, Some(&teacher), 3).unwrap() {
                model.params_mut().set(format!("{LEARNED}{own}"), t);
            }
            let (mut graph, mut vars) = (model.clone(), Vec::new());
            for (slot, t) in model.params().iter() {
                let var = Var::from_tensor(t).unwrap();
                graph.params_mut().set(slot, var.as_tensor().clone());
                vars.push((slot.to_owned(), var));
            }
            let grads = mean(&*term, &graph, &teacher, &batch).backward().unwrap();
            let mut seen = 0;
            for (slot, var) in vars.iter().filter(|(slot, _)| {
                ["layers.0.attention.q.weight", "layers.1.mlp.up.weight", "layers.0.mlp.down.weight"].contains(&slot.as_str())
            }) {
                let (w, along) = (model.params().get(slot).unwrap(), direction(var.dims()));
                let at = |step: f64| {
                    let mut moved = model.clone();
                    moved.params_mut().set(slot.clone(), (w + (&along * step).unwrap()).unwrap());
                    scalar(&mean(&*term, &moved, &teacher, &batch))
                };
                // In f64 the error is about h² · f‴ + 1e-16 / h.
                let h = 1e-6;
                let expected = (at(h) - at(-h)) / (2.0 * h);
                let found = grads.get(var).map_or(0.0, |g| scalar(&g.mul(&along).unwrap().sum_all().unwrap()));
                let error = (found - expected).abs();
                assert!(error <= 1e-5 * found.abs().max(expected.abs()) + 1e-8, "{name} {args:?}, {subject}, {slot}: {found} {expected}");
                seen += usize::from(found.abs() > 1e-7);
                if found.abs() > 1e-7 && error / found.abs() > worst.0 {
                    worst = (error / found.abs(), format!("{name}, {subject}, {slot}"));
                }
            }
            assert!(seen > 0, "{name} on {subject} has no gradient at all");
        }
    }
    println!("worst gradient of a loss against central differences: {:.1e} ({})", worst.0, worst.1);
}

/// How a learner's parameters reach the loss.
#[derive(Clone, Copy, PartialEq)]
enum Through {
    /// As a factor on the output of a unit, which [`Learner::gates`] says.
    Gates,
    /// Straight through the mask: as a number added to the mask of everything that the score stands for.
    Mask,
}

/// A row, its arguments, how its parameters reach the loss, and what they are tried on.
type Learning = (&'static str, Vec<(&'static str, Value)>, Through, Site);

/// Every row of [`CRITERIA`] that has a [`Learner`].
fn learners() -> Vec<Learning> {
    let number = Value::Number;
    let granularity = |w: &str| vec![("granularity", word(w))];
    let block = vec![("granularity", word("block")), ("rows", number(8.0)), ("columns", number(4.0))];
    vec![
        ("slimming", vec![("l1", number(0.02))], Through::Gates, Site::Neurons),
        ("slimming", vec![("l1", number(0.02))], Through::Gates, Site::Groups),
        ("psp", vec![("l1", number(0.02))], Through::Gates, Site::Neurons),
        ("psp", vec![("l1", number(0.02)), ("decay", word("l2"))], Through::Gates, Site::Groups),
        ("hard_concrete", vec![], Through::Gates, Site::Neurons),
        ("hard_concrete", vec![], Through::Gates, Site::Groups),
        ("movement", vec![("penalty", number(0.03))], Through::Mask, Site::Weights),
        ("movement", vec![("penalty", number(0.03)), ("kind", word("soft"))], Through::Mask, Site::Neurons),
        ("movement", vec![], Through::Mask, Site::Groups),
        ("learned_scores", block, Through::Mask, Site::Weights),
        ("learned_scores", granularity("row"), Through::Mask, Site::Weights),
        ("learned_scores", granularity("column"), Through::Mask, Site::Weights),
        ("learned_scores", granularity("neuron"), Through::Mask, Site::Neurons),
        ("learned_scores", granularity("head"), Through::Mask, Site::Groups),
        ("gum", vec![("penalty", number(0.03))], Through::Mask, Site::Neurons),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Site {
    Neurons,
    Groups,
    Weights,
}

const SLOT: &str = "layers.1.mlp.up.weight";

/// What a learner differentiates: a network, what is selected of it, and the batch.
struct Bench<'a> {
    model: &'a Transformer,
    layout: &'a Layout,
    batch: &'a Batch,
    through: Through,
}

impl Bench<'_> {
    /// The network's weights under the factors of gates (`learned`), and with `moved` added to the mask of those entries.
    fn weights(&self, learner: &dyn Learner, learned: &Learned, moment: &Moment<'_>, moved: Option<(&[Vec<bool>], f64)>) -> Transformer {
        let mut factors: BTreeMap<String, Vec<f64>> = self.layout.shapes.iter().map(|(s, (r, c))| (s.clone(), vec![1.0; r * c])).collect();
        if self.through == Through::Gates {
            for (key, gates) in learner.gates(self.layout, learned, moment, true).unwrap() {
                for (slices, gate) in self.layout.units[&key].iter().zip(gates) {
                    // A unit's output is read by the columns of a matrix.
                    for slice in slices.iter().filter(|s| s.dim == 1) {
                        let columns = self.layout.shapes[&slice.slot].1;
                        for (i, f) in factors.get_mut(&slice.slot).unwrap().iter_mut().enumerate() {
                            *f *= if (slice.start..slice.start + slice.len).contains(&(i % columns)) { f64::from(gate) } else { 1.0 };
                        }
                    }
                }
            }
        }
        if let Some((entries, by)) = moved {
            for (factor, entries) in factors.values_mut().zip(entries) {
                factor.iter_mut().zip(entries).for_each(|(f, e)| *f += if *e { by } else { 0.0 });
            }
        }
        let mut model = self.model.clone();
        for (slot, factor) in factors {
            let w = self.model.params().get(&slot).unwrap();
            model.params_mut().set(slot.clone(), (w * Tensor::from_vec(factor, w.dims(), &Device::Cpu).unwrap()).unwrap());
        }
        model
    }

    /// Which entries of each matrix (in the order of [`Layout::shapes`]) one score stands for.
    fn entries(&self, name: &str, index: usize, of: usize, args: &[(&str, Value)]) -> Vec<Vec<bool>> {
        let unit = self.layout.units.iter().find(|(key, _)| key.to_string() == name).map(|(_, units)| &units[index]);
        let each = |(slot, (rows, columns)): (&String, &(usize, usize))| -> Vec<bool> {
            (0..rows * columns)
                .map(|i| match unit {
                    Some(slices) => slices.iter().filter(|s| s.slot == *slot).any(|s| {
                        let at = if s.dim == 0 { i / columns } else { i % columns };
                        (s.start..s.start + s.len).contains(&at)
                    }),
                    None if slot != name => false,
                    None => {
                        let size = |what: &str| args.iter().find(|(n, _)| *n == what).and_then(|(_, v)| v.as_f64()).map(|n| n as usize);
                        let (height, width) = match (size("rows").zip(size("columns")), of) {
                            (Some(block), _) => block,
                            (None, n) if n == *rows => (1, *columns),
                            (None, n) if n == *columns => (*rows, 1),
                            _ => (1, 1),
                        };
                        (i / columns / height) * (columns / width) + (i % columns) / width == index
                    }
                })
                .collect()
        };
        self.layout.shapes.iter().map(each).collect()
    }

    fn task(&self, model: &Transformer) -> Tensor {
        model.forward_loss(self.batch, &Gates::default(), &mut ()).unwrap().mean().unwrap().to_dtype(DType::F64).unwrap()
    }
}

#[test]
fn every_learner() {
    let tried: Vec<&str> = learners().iter().map(|(name, ..)| *name).collect();
    for row in CRITERIA.iter().filter(|row| row.spec.learns) {
        // What decays weights has no gradient of its own: `golden_learned` differentiates its sensitivities.
        assert!(tried.contains(&row.spec.name) || ["serene", "lobster"].contains(&row.spec.name), "`{}` has no case", row.spec.name);
    }
    let dense = load("methods/models/llama-tiny", None);
    let model = another(&dense, 2.0);
    let (batch, clock) = (rows(), Clock::steps(4));
    let mut checked = 0;
    for (name, args, through, site) in learners() {
        let mut sites = Sites::default();
        match site {
            Site::Neurons => sites.add(Key::of(SiteKind::Neurons, 1), 0..model.dims()[1].ffn),
            Site::Groups => sites = all(&model, &[SiteKind::KvGroups]),
            Site::Weights => {
                sites.weights.insert(SLOT.into());
            }
        }
        let layout = Layout::of(&model, &sites).unwrap();
        let criterion = build(CRITERIA, name, &args);
        let learner = criterion.learner().unwrap();
        let mut learned = learner.start(&layout).unwrap();
        for (i, value) in learned.params.values_mut().flatten().enumerate() {
            *value += ((i * 37 % 19) as f32 / 19.0 - 0.5) * if name == "hard_concrete" { 3.0 } else { 0.6 };
        }
        // `l1(scores)` of the loss presses, too; the amount is at half its way.
        let moment = Moment { clock: &clock, step: 1, removed: 0.25, finally: 0.5, l1: 0.05, noise: 5 };
        let bench = Bench { model: &model, layout: &layout, batch: &batch, through };
        let seen = bench.weights(learner, &learned, &moment, None);
        let (mut graph, mut vars) = (seen.clone(), BTreeMap::new());
        for slot in layout.shapes.keys() {
            let var = Var::from_tensor(seen.params().get(slot).unwrap()).unwrap();
            graph.params_mut().set(slot.clone(), var.as_tensor().clone());
            vars.insert(slot.clone(), var);
        }
        let flat = |t: &Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let grads = bench.task(&graph).backward().unwrap();
        let gradients: Values = vars.iter().map(|(slot, var)| (slot.clone(), flat(grads.get(var).unwrap()))).collect();
        let plain: BTreeMap<String, Vec<f32>> = vars.keys().map(|s| (s.clone(), flat(model.params().get(s).unwrap()))).collect();
        let weights = plain.iter().map(|(slot, w)| (slot.as_str(), w.as_slice())).collect();
        let backward = Backward { gradients: &gradients, weights: &weights };
        let (found, _) = learner.gradients(&layout, &learned, &backward, &moment).unwrap();
        for (vector, found) in found.iter().filter(|(vector, _)| *vector != "multipliers") {
            let n = found.len();
            for index in [0, 1, n / 3, n / 2, n - 2, n - 1] {
                // The parameters are f32: the step is what their rounding makes of it, and its error is h² · f‴.
                let value = learned.params[vector][index];
                let ends = [value - 1e-4, value + 1e-4];
                let at = |end: f32| -> f64 {
                    let mut other = learned.clone();
                    other.params.get_mut(vector).unwrap()[index] = end;
                    let entries;
                    let moved = match through {
                        Through::Gates => bench.weights(learner, &other, &moment, None),
                        Through::Mask => {
                            entries = bench.entries(vector, index, n, &args);
                            bench.weights(learner, &learned, &moment, Some((&entries, f64::from(end) - f64::from(value))))
                        }
                    };
                    let penalty = learner.gradients(&layout, &other, &backward, &moment).unwrap().1;
                    scalar(&bench.task(&moved)) + penalty
                };
                let expected = (at(ends[1]) - at(ends[0])) / (f64::from(ends[1]) - f64::from(ends[0]));
                let found = f64::from(found[index]);
                let close = (found - expected).abs() <= 1e-3 * expected.abs() + 2e-5;
                assert!(close, "{name} {args:?} on {site:?}, {vector}[{index}]: {found} {expected}");
                checked += usize::from(expected.abs() > 1e-3);
            }
        }
    }
    assert!(checked > 100, "only {checked} gradients are large enough to say anything");
}
