//! Golden cases, and methods built from their rows with the row's defaults.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use prunectl_model::{Batch, Labels, LoadOptions, Task, Transformer};
use prunectl_prune::{Batches, CRITERIA, InMemory, Key, Scores, Sites};
use prunectl_recipe::catalogue::{Args, Entry, SiteKind, Ty};
use prunectl_recipe::plan::{Share, Unit, Value};

pub fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

pub struct Case {
    name: String,
    inputs: HashMap<String, Tensor>,
    expected: HashMap<String, Tensor>,
    json: serde_json::Value,
}

thread_local! {
    /// Worst error of this test as a share of the tolerance, and as a relative error.
    static WORST: RefCell<(f64, f64, String)> = const { RefCell::new((0.0, 0.0, String::new())) };
}

impl Case {
    pub fn open(name: &str) -> Self {
        let dir = golden("methods").join(name);
        let load = |file: &str| candle_core::safetensors::load(dir.join(file), &Device::Cpu).unwrap();
        let json = serde_json::from_slice(&std::fs::read(dir.join("case.json")).unwrap()).unwrap();
        Self { name: name.into(), inputs: load("inputs.safetensors"), expected: load("expected.safetensors"), json }
    }

    pub fn model(&self, task: &str) -> Transformer {
        let dir = golden("methods").join(&self.name).join(self.json["model"].as_str().unwrap());
        let options = LoadOptions { task: Task::parse(task), ..LoadOptions::default() };
        prunectl_model::load(&dir, &options).unwrap()
    }

    pub fn input(&self, name: &str) -> Tensor {
        self.inputs[name].clone()
    }

    pub fn has(&self, input: &str) -> bool {
        self.inputs.contains_key(input)
    }

    pub fn expected(&self, name: &str) -> Vec<f32> {
        let t = self.expected.get(name).unwrap_or_else(|| panic!("no {name}"));
        t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    pub fn mask(&self, name: &str) -> Vec<u8> {
        self.expected(name).iter().map(|v| u8::from(*v != 0.0)).collect()
    }

    fn ids(&self, batch: usize) -> Tensor {
        self.inputs["input_ids"].get(batch).unwrap().to_dtype(DType::U32).unwrap()
    }

    /// The batches of a language-modelling case.
    pub fn texts(&self) -> InMemory {
        let n = self.inputs["input_ids"].dim(0).unwrap();
        InMemory::new((0..n).map(|i| Batch::new(self.ids(i))).collect())
    }

    pub fn first_batch(&self) -> InMemory {
        InMemory::new(vec![Batch::new(self.ids(0))])
    }

    pub fn is_classification(&self) -> bool {
        self.inputs.contains_key("labels")
    }

    /// The batches of a classification case.
    pub fn classified(&self) -> InMemory {
        let n = self.inputs["input_ids"].dim(0).unwrap();
        let batch = |i: usize| {
            let mut batch = Batch::new(self.ids(i));
            batch.keep = Some(self.inputs["attention_mask"].get(i).unwrap().to_dtype(DType::U8).unwrap());
            batch.labels = Some(Labels::Classes(self.inputs["labels"].get(i).unwrap()));
            batch
        };
        InMemory::new((0..n).map(batch).collect())
    }
}

/// |a − b| <= atol + rtol·|b| with the case's own tolerances.
pub fn close(case: &Case, name: &str, ours: &[f32]) {
    let tolerance = &case.json["expected"][name];
    let (rtol, atol) = (tolerance["rtol"].as_f64().unwrap(), tolerance["atol"].as_f64().unwrap());
    let theirs = case.expected(name);
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let scale = theirs.iter().fold(0f64, |m, v| m.max(f64::from(v.abs()))).max(1e-30);
    for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        let (a, b) = (f64::from(*a), f64::from(*b));
        let (error, allowed) = ((a - b).abs(), atol + rtol * b.abs());
        assert!(error <= allowed, "{name}[{i}]: {a} instead of {b}, {error:e} > {allowed:e}");
        WORST.with_borrow_mut(|w| {
            if error / scale > w.1 {
                *w = (error / allowed, error / scale, name.to_owned());
            }
        });
    }
}

/// Prints the worst error seen by this test, relative to each tensor's largest entry.
pub fn worst(case: &str) {
    WORST.with_borrow(|w| println!("golden {case}: worst relative error {:.1e} ({:.1}% of its tolerance, {})", w.1, w.0 * 100.0, w.2));
}

/// A row's default, as the recipe's checker would read it.
fn default(text: &str, ty: Ty) -> Value {
    let number = |t: &str| t.trim().parse::<f64>().unwrap();
    match ty {
        Ty::Bool => Value::Bool(text == "true"),
        Ty::Percent | Ty::ScheduledPercent => Value::Percent(Share::from_fraction(number(text.trim_end_matches('%')) / 100.0)),
        Ty::Tokens => Value::Quantity(number(text.trim_end_matches(" tokens")), Unit::Tokens),
        Ty::OneOf(_) => Value::Word(text.into()),
        Ty::Count | Ty::Float | Ty::Scheduled => Value::Number(number(text)),
        Ty::List(of) => Value::List(text.trim_matches(['[', ']']).split(',').map(|t| default(t.trim(), *of)).collect()),
        Ty::Text => Value::Text(text.trim_matches('"').into()),
        other => panic!("default of {other:?}"),
    }
}

/// A method from its row: defaults, with some arguments given.
pub fn build<T: ?Sized>(rows: &[Entry<T>], name: &str, given: &[(&str, Value)]) -> Box<T> {
    let row = rows.iter().find(|r| r.spec.name == name).unwrap();
    let mut args = Args::default();
    for p in row.spec.params {
        if let Some(d) = p.default {
            args.0.insert(p.name.into(), default(d, p.ty));
        }
    }
    for (name, value) in given {
        assert!(row.spec.params.iter().any(|p| p.name == *name), "no parameter {name}");
        args.0.insert((*name).into(), value.clone());
    }
    prunectl_prune::build(rows, name, &args).unwrap()
}

pub fn score(model: &Transformer, name: &str, args: &[(&str, Value)], sites: &Sites, data: &mut dyn Batches) -> Scores {
    build(CRITERIA, name, args).score(model, sites, data, &()).unwrap()
}

pub fn nothing() -> InMemory {
    InMemory::default()
}

pub fn one_by_one(data: &mut InMemory) -> InMemory {
    let mut out = Vec::new();
    data.reset().unwrap();
    while let Some(batch) = data.next().unwrap() {
        for row in 0..batch.size().unwrap().0 {
            out.push(batch.rows(&[row as u32]).unwrap());
        }
    }
    InMemory::new(out)
}

/// Every unit of those kinds.
pub fn all(model: &Transformer, kinds: &[SiteKind]) -> Sites {
    let mut sites = Sites::default();
    for kind in kinds {
        for (layer, d) in model.dims().iter().enumerate() {
            let units = match kind {
                SiteKind::Heads => 0..d.q_heads,
                SiteKind::KvGroups => 0..d.kv_heads,
                SiteKind::Neurons => 0..d.ffn * d.experts.max(1),
                SiteKind::Experts => 0..d.experts,
                SiteKind::Layers => layer..layer + 1,
                SiteKind::Attention | SiteKind::Mlp => 0..1,
                SiteKind::Hidden => 0..model.blueprint().hidden,
                SiteKind::Weights => panic!("weights are no units"),
            };
            sites.add(Key::of(*kind, layer), units);
        }
    }
    sites
}

/// A tiny model with some of a case's matrices beside its own.
pub fn holding(case: &Case, inputs: &[&str]) -> Transformer {
    let dir = golden("methods/models/llama-tiny");
    let mut model = prunectl_model::load(&dir, &LoadOptions::default()).unwrap();
    for name in inputs {
        model.params_mut().set(*name, case.input(name));
    }
    model
}
