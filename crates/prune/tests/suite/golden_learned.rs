//! Methods that learn against numbers made with their authors' code: each registry row is driven step by step, as the training loop does.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use prunectl_model::Slice;
use prunectl_prune::learned::{Backward, Layout, Learned, Learner, Moment, Values};
use prunectl_prune::{CRITERIA, Clock, Criterion, Decision, Key, OPTIMIZERS, Removed, Request, Shape, Sites, Update};
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::{Amount, Schedule, Scope, Share, Value};

use crate::common::{Case, build, close, worst};

const SLOT: &str = "layers.0.mlp.up.weight";

pub fn share(p: f64) -> Amount {
    Amount::Share { share: Share::from_fraction(p), each: false }
}

pub fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// One linear layer, `loss = mean((x (M ⊙ W)ᵀ + b − y)²)`, under a learner of its weights.
struct Linear {
    criterion: Box<dyn Criterion>,
    layout: Layout,
    sites: Sites,
    shape: (usize, usize),
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    learned: Learned,
    lr: (f64, f64),
}

/// What a step leaves.
#[derive(Default)]
struct Trace {
    weights: Vec<f32>,
    masks: Vec<u8>,
    scores: Vec<f32>,
    losses: Vec<f32>,
    grad_weight: Vec<f32>,
    grad_scores: Vec<f32>,
}

impl Linear {
    fn new(case: &Case, row: &str, args: &[(&str, Value)], scores: &str, lr: (f64, f64)) -> Self {
        let weight = case.input("weight");
        let shape = weight.dims2().unwrap();
        let criterion = build(CRITERIA, row, args);
        let mut sites = Sites::default();
        sites.weights.insert(SLOT.into());
        let layout = Layout { shapes: [(SLOT.to_owned(), shape)].into(), weights: sites.weights.clone(), ..Layout::default() };
        let mut learned = criterion.learner().unwrap().start(&layout).unwrap();
        assert!(learned.params[SLOT].iter().all(|s| *s == 0.0));
        let start = values(&case.input(scores));
        assert_eq!(learned.params[SLOT].len(), start.len());
        learned.params.insert(SLOT.into(), start);
        let bias = case.has("bias").then(|| values(&case.input("bias")));
        Self { criterion, layout, sites, shape, weight: values(&weight), bias, learned, lr }
    }

    fn learner(&self) -> &dyn Learner {
        self.criterion.learner().unwrap()
    }

    fn keep(&self, removed: f64, clock: &Clock, step: u64) -> Vec<u8> {
        let amount = share(removed);
        let gone = Removed::default();
        let request = Request::plain(&self.sites, &amount, Scope::Matrix, &gone);
        let shape = Shape { weights: [(SLOT.to_owned(), self.shape)].into(), ..Shape::default() };
        let moment = Moment { clock, step, removed, finally: removed, l1: 0.0, noise: 0 };
        let decision = self.learner().decide(&self.layout, &self.learned, &request, &shape, &moment, false).unwrap();
        decision.weights[SLOT].flatten_all().unwrap().to_vec1().unwrap()
    }

    fn run(mut self, case: &Case, removed: &[f64]) -> (Trace, Self) {
        let (x, y) = (case.input("x"), case.input("y"));
        let clock = Clock::steps(removed.len() as u64);
        let sgd = build(OPTIMIZERS, "sgd", &[("lr", Value::Number(self.lr.0))]);
        let mut t = Trace { weights: self.weight.clone(), scores: self.learned.params[SLOT].clone(), ..Trace::default() };
        for (step, removed) in removed.iter().enumerate() {
            let keep = self.keep(*removed, &clock, step as u64);
            let masked: Vec<f32> = self.weight.iter().zip(&keep).map(|(w, k)| w * f32::from(*k)).collect();
            let w = Var::from_vec(masked, self.shape, &Device::Cpu).unwrap();
            let b = self.bias.as_ref().map(|b| Var::from_slice(b, b.len(), &Device::Cpu).unwrap());
            let mut out = x.get(step).unwrap().matmul(&w.t().unwrap()).unwrap();
            if let Some(b) = &b {
                out = out.broadcast_add(b).unwrap();
            }
            let loss = (out - y.get(step).unwrap()).unwrap().sqr().unwrap().mean_all().unwrap();
            let grads = loss.backward().unwrap();
            let gradient = values(grads.get(w.as_tensor()).unwrap());
            let gradients = Values::from([(SLOT.to_owned(), gradient.clone())]);
            let weights = BTreeMap::from([(SLOT, self.weight.as_slice())]);
            let moment = Moment { clock: &clock, step: step as u64, removed: *removed, finally: *removed, l1: 0.0, noise: 0 };
            let backward = Backward { gradients: &gradients, weights: &weights };
            let (by_score, _) = self.learner().gradients(&self.layout, &self.learned, &backward, &moment).unwrap();
            let by_weight: Vec<f32> = gradient.iter().zip(&keep).map(|(g, k)| g * f32::from(*k)).collect();
            let update = |weights: &mut [f32], gradient: &[f32], lr: f64| {
                let mut memory = BTreeMap::new();
                sgd.update(Update { weights, gradient, memory: &mut memory, step: 1, lr, matrix: true, decays: false }).unwrap();
            };
            update(&mut self.weight, &by_weight, self.lr.0);
            if let (Some(own), Some(b)) = (&mut self.bias, &b) {
                update(own, &values(grads.get(b.as_tensor()).unwrap()), self.lr.0);
            }
            update(self.learned.params.get_mut(SLOT).unwrap(), &by_score[SLOT], self.lr.1);
            t.losses.push(loss.to_scalar().unwrap());
            t.masks.extend(&keep);
            t.weights.extend(&self.weight);
            t.scores.extend(&self.learned.params[SLOT]);
            t.grad_weight.extend(by_weight);
            t.grad_scores.extend(&by_score[SLOT]);
        }
        (t, self)
    }
}

#[test]
fn movement_six_steps() {
    let case = Case::open("07_movement_emmental");
    let word = |w: &str| Value::Word(w.into());
    let stairs = |values: &[f64]| Value::Schedule(Schedule::Stairs { values: values.to_vec(), during: None });
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let soft = |values: &[f64]| vec![("kind", word("soft")), ("threshold", stairs(values))];
    // Theirs is the share kept. Soft ignores the share; their raw bars 0 and 5 are σ's 0.5 and 0.9933.
    for (name, args, kept) in [
        ("topk50", vec![], [0.5; 6]),
        ("topk_sched", vec![], [0.9, 0.7, 0.5, 0.4, 0.3, 0.25]),
        ("threshold", soft(&[0.5; 6]), [1.0; 6]),
        ("threshold_min", soft(&[sigmoid(5.0); 6]), [1.0; 6]),
        ("sigmoid", soft(&[0.5, 0.505, 0.51, 0.515, 0.52, 0.52]), [1.0; 6]),
    ] {
        let linear = Linear::new(&case, "movement", &args, "scores", (0.5, 20.0));
        // int(kept · n) stay with them, ⌊removed · n⌋ go with us: where kept · n is no whole number one entry less goes.
        let n = linear.weight.len() as f64;
        let removed = kept.map(|k| 1.0 - (k * n + 1e-9).floor() / n + 1e-9);
        let (t, end) = linear.run(&case, &removed);
        assert_eq!(t.masks, case.mask(&format!("{name}.masks")), "{name}");
        for (what, ours) in [
            ("weights", &t.weights),
            ("bias_final", end.bias.as_ref().unwrap()),
            ("losses", &t.losses),
            ("scores", &t.scores),
            ("grad_weight", &t.grad_weight),
            ("grad_scores", &t.grad_scores),
        ] {
            close(&case, &format!("{name}.{what}"), ours);
        }
    }
    worst("07_movement_emmental");
}

#[test]
fn blocks_rows_and_columns_six_steps() {
    let case = Case::open("07_movement_blocks");
    let word = |w: &str| Value::Word(w.into());
    let block = vec![("granularity", word("block")), ("rows", Value::Number(4.0)), ("columns", Value::Number(4.0))];
    let of = |w: &str| vec![("granularity", word(w))];
    for (name, args, scores, removed) in [
        ("block.topk50", block, "scores.block", 0.5),
        ("row.topk50", of("row"), "scores.row", 0.5),
        ("col.topk50", of("column"), "scores.col", 0.5),
        // 7 of 24 rows stay.
        ("row.topk30", of("row"), "scores.row", 0.71),
    ] {
        let (t, _) = Linear::new(&case, "learned_scores", &args, scores, (0.5, 5.0)).run(&case, &[removed; 6]);
        assert_eq!(t.masks, case.mask(&format!("{name}.masks")), "{name}");
        close(&case, &format!("{name}.weights"), &t.weights);
        close(&case, &format!("{name}.losses"), &t.losses);
        close(&case, &format!("{name}.scores"), &t.scores);
    }
    worst("07_movement_blocks");
}

#[test]
fn the_penalty_on_scores() {
    let case = Case::open("07_movement_regularisation");
    let criterion = build(CRITERIA, "movement", &[("penalty", Value::Number(1.0))]);
    let learner = criterion.learner().unwrap();
    let (mut layout, mut learned) = (Layout::default(), Learned::default());
    for (slot, name) in [("a", "scores.a"), ("b", "scores.b")] {
        layout.shapes.insert(slot.into(), case.input(name).dims2().unwrap());
        layout.weights.insert(slot.into());
        learned.params.insert(slot.into(), values(&case.input(name)));
    }
    let (gradients, weights, clock) = (Values::new(), BTreeMap::new(), Clock::steps(1));
    let backward = Backward { gradients: &gradients, weights: &weights };
    let at = |l1| Moment { clock: &clock, step: 0, removed: 0.0, finally: 0.5, l1, noise: 0 };
    let (g, value) = learner.gradients(&layout, &learned, &backward, &at(0.0)).unwrap();
    close(&case, "l1.value", &[value as f32]);
    close(&case, "l1.grad.a", &g["a"]);
    close(&case, "l1.grad.b", &g["b"]);
    // `l1(scores)` in the loss of the training is the same term: its weight over the number of score vectors.
    let criterion = build(CRITERIA, "movement", &[]);
    let (again, other) = criterion.learner().unwrap().gradients(&layout, &learned, &backward, &at(0.5)).unwrap();
    assert_eq!((g, value.to_bits()), (again, other.to_bits()));
    worst("07_movement_regularisation");
}

/// The two MLPs of the case: `y = h + mlp2(h)`, `h = x + mlp1(x)`; the biases of masked neurons stay, as with the authors.
#[test]
fn gum_four_steps() {
    let case = Case::open("11_gum");
    let [ffn, hidden] = [48, 32];
    let args = [
        ("lr", Value::Number(2.0)),
        ("uniqueness", Value::Number(0.8)),
        ("penalty", Value::Number(0.3)),
        ("follow", Value::Word("nothing".into())),
        ("memory", Value::Number(0.9)),
    ];
    let criterion = build(CRITERIA, "gum", &args);
    let learner = criterion.learner().unwrap();
    let sgd = build(OPTIMIZERS, "sgd", &[("lr", Value::Number(0.2))]);
    let (mut layout, mut sites, mut weights) = (Layout::default(), Sites::default(), BTreeMap::new());
    for l in 0..2 {
        let key = Key::of(SiteKind::Neurons, l);
        let slice = |slot: String, dim, start| Slice { slot, dim, start, len: 1 };
        let group = |j| vec![slice(format!("{l}.c_fc.weight"), 0, j), slice(format!("{l}.c_proj.weight"), 1, j)];
        layout.units.insert(key, (0..ffn).map(group).collect());
        layout.shapes.insert(format!("{l}.c_fc.weight"), (ffn, hidden));
        layout.shapes.insert(format!("{l}.c_proj.weight"), (hidden, ffn));
        sites.add(key, 0..ffn);
        for part in ["c_fc.weight", "c_fc.bias", "c_proj.weight", "c_proj.bias"] {
            weights.insert(format!("{l}.{part}"), values(&case.input(&format!("{l}.{part}"))));
        }
    }
    let mut learned = learner.start(&layout).unwrap();
    let name = |l: usize| Key::of(SiteKind::Neurons, l).to_string();
    for l in 0..2 {
        learned.params.insert(name(l), values(&case.input(&format!("{l}.scores"))));
    }
    let dims = prunectl_model::LayerDims { ffn, ..prunectl_model::LayerDims::default() };
    let shape = Shape { dims: vec![dims; 2], hidden, ..Shape::default() };
    let mut out: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for l in 0..2 {
        out.insert(format!("{l}.scores"), learned.params[&name(l)].clone());
    }
    let clock = Clock::steps(4);
    for (step, kept) in [0.9, 0.75, 0.6, 0.5].into_iter().enumerate() {
        let moment = Moment { clock: &clock, step: step as u64, removed: 1.0 - kept, finally: 0.5, l1: 0.0, noise: 0 };
        let stay = (kept * 96.0f64 + 1e-9).floor();
        let (amount, gone) = (share(1.0 - stay / 96.0 + 1e-9), Removed::default());
        let request = Request::plain(&sites, &amount, Scope::Global, &gone);
        let decision = learner.decide(&layout, &learned, &request, &shape, &moment, false).unwrap();
        let mut bar = f32::INFINITY;
        let mut vars = BTreeMap::new();
        let mut activations = BTreeMap::new();
        let mut x = case.input("x").get(step).unwrap();
        for l in 0..2 {
            let kept = &decision.sites[&Key::of(SiteKind::Neurons, l)];
            let mask: Vec<f32> = (0..ffn).map(|j| f32::from(u8::from(kept.contains(&j)))).collect();
            bar = kept.iter().map(|j| learned.params[&name(l)][*j]).fold(bar, f32::min);
            let var = |part: &str, dims: &[usize], along: Option<usize>| {
                let slot = format!("{l}.{part}");
                let w = Tensor::from_slice(&weights[&slot], dims, &Device::Cpu).unwrap();
                let w = match along {
                    Some(0) => w.broadcast_mul(&Tensor::from_slice(&mask, (ffn, 1), &Device::Cpu).unwrap()).unwrap(),
                    Some(_) => w.broadcast_mul(&Tensor::from_slice(&mask, (1, ffn), &Device::Cpu).unwrap()).unwrap(),
                    None => w,
                };
                (slot, Var::from_tensor(&w).unwrap())
            };
            let (fc, fb) = (var("c_fc.weight", &[ffn, hidden], Some(0)), var("c_fc.bias", &[ffn], None));
            let (pj, pb) = (var("c_proj.weight", &[hidden, ffn], Some(1)), var("c_proj.bias", &[hidden], None));
            let h = x.matmul(&fc.1.t().unwrap()).unwrap().broadcast_add(&fb.1).unwrap().gelu_erf().unwrap();
            let y = h.matmul(&pj.1.t().unwrap()).unwrap().broadcast_add(&pb.1).unwrap();
            x = (x + y).unwrap();
            out.entry(format!("{l}.mask")).or_default().extend(&mask);
            out.entry(format!("{l}.activations")).or_default().extend(values(&h));
            activations.insert(l, h.detach());
            vars.extend([fc, fb, pj, pb]);
        }
        let loss = (x - case.input("target").get(step).unwrap()).unwrap().sqr().unwrap().mean_all().unwrap();
        out.entry("task_loss".into()).or_default().push(loss.to_scalar().unwrap());
        out.entry("bar".into()).or_default().push(bar);
        let grads = loss.backward().unwrap();
        let gradients: Values = vars.iter().map(|(slot, v)| (slot.clone(), values(grads.get(v.as_tensor()).unwrap()))).collect();
        let dense = weights.iter().map(|(slot, w)| (slot.as_str(), w.as_slice())).collect();
        let backward = Backward { gradients: &gradients, weights: &dense };
        let (by_score, penalty) = learner.gradients(&layout, &learned, &backward, &moment).unwrap();
        out.entry("regu".into()).or_default().push((penalty / 0.3) as f32);
        learner.observe(&layout, &mut learned, &activations, &moment).unwrap();
        for l in 0..2 {
            let site = name(l);
            let multiplier = learned.aux[&format!("multipliers/{site}")].clone();
            let products = &learned.aux[&format!("products/{site}")];
            out.entry(format!("{l}.running_norm2")).or_default().extend(products.iter().step_by(ffn + 1));
            let score = multiplier.iter().map(|m| ((f64::from(*m) - 1.0) / 0.8 * ffn as f64 * kept) as f32);
            out.entry(format!("{l}.uniqueness_score")).or_default().extend(score);
            out.entry(format!("{l}.regu_mask_mult")).or_default().extend(multiplier);
            out.entry(format!("{l}.grad_scores")).or_default().extend(&by_score[&site]);
            let mut memory = BTreeMap::new();
            let scores = learned.params.get_mut(&site).unwrap();
            let gradient = &by_score[&site];
            sgd.update(Update { weights: scores, gradient, memory: &mut memory, step: 1, lr: 2.0, matrix: false, decays: false }).unwrap();
            out.entry(format!("{l}.scores")).or_default().extend(scores.iter());
        }
        let factors = rows_and_columns(&layout, &decision);
        for (slot, mut gradient) in gradients {
            if let Some(f) = factors.get(&slot) {
                gradient.iter_mut().zip(f).for_each(|(g, f)| *g *= f);
            }
            let (weights, mut memory) = (weights.get_mut(&slot).unwrap(), BTreeMap::new());
            sgd.update(Update { weights, gradient: &gradient, memory: &mut memory, step: 1, lr: 0.2, matrix: true, decays: false })
                .unwrap();
        }
    }
    for l in 0..2 {
        for part in ["c_fc", "c_proj"] {
            out.insert(format!("{l}.{part}.weight_final"), weights[&format!("{l}.{part}.weight")].clone());
        }
    }
    for (name, ours) in &out {
        if name.ends_with(".mask") {
            assert_eq!(ours, &case.expected(name), "{name}");
        } else {
            close(&case, name, ours);
        }
    }
    worst("11_gum");
}

/// 0 in both the rows and the columns of masked neurons.
fn rows_and_columns(layout: &Layout, decision: &Decision) -> Values {
    let mut out = layout.factors(decision).unwrap();
    for (key, kept) in &decision.sites {
        for slice in layout.units[key].iter().enumerate().filter(|(u, _)| !kept.contains(u)).flat_map(|(_, s)| s).filter(|s| s.dim == 0) {
            let (rows, columns) = layout.shapes[&slice.slot];
            let factor = out.entry(slice.slot.clone()).or_insert_with(|| vec![1.0; rows * columns]);
            factor[slice.start * columns..(slice.start + slice.len) * columns].fill(0.0);
        }
    }
    out
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut layout = Layout::default();
    layout.shapes.insert(SLOT.into(), (24, 32));
    layout.weights.insert(SLOT.into());
    let start = |args: &[(&str, Value)]| build(CRITERIA, "learned_scores", args).learner().unwrap().start(&layout).map(|_| ());
    let block = [("granularity", Value::Word("block".into())), ("rows", Value::Number(5.0)), ("columns", Value::Number(4.0))];
    let e = start(&block).unwrap_err().to_string();
    assert!(e.contains("5 × 4") && e.contains("24 × 32") && e.contains(SLOT), "{e}");
    let e = start(&[("granularity", Value::Word("head".into()))]).unwrap_err().to_string();
    assert!(e.contains("weights"), "{e}");
    assert!(start(&[]).is_ok());
    // A row can't be pruned outside `train`.
    let criterion = build(CRITERIA, "movement", &[]);
    let model = prunectl_model::load(&crate::common::golden("methods/models/llama-tiny"), &prunectl_model::LoadOptions::default()).unwrap();
    let e = criterion.score(&model, &Sites::default(), &mut crate::common::nothing(), &()).unwrap_err().to_string();
    assert!(e.contains("train"), "{e}");
}
