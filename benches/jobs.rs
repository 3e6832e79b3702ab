//! Whole jobs as a recipe would run them: by criterion on small random models, or on one of your own, for timing beside PyTorch
//! (`benches/peers/compare.py`) or under a profiler.
//!
//! `cargo bench --bench jobs [-- FILTER]` gives every job to criterion; `cargo bench --bench jobs -- JOB --model DIR [--tokens FILE] [--batch N] [--batches N] [--seq N]` prints one JSON line for each line on
//! stdin (once without any). DIR is a folder in the Hugging Face layout; FILE holds `input_ids` [rows, tokens] and, for a classifier,
//! `labels` [rows]. Jobs: heads, ablate, ppl, train, wanda, sparsegpt, forward, half. `result` is what PyTorch must agree with.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot read its operands has nothing to measure")]

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use criterion::Criterion;
use prunectl_kernels::memory::Recycler;
use prunectl_kernels::threads;
use prunectl_model::{Batch, Gates, Labels, LoadOptions, Transformer};
use prunectl_prune::{
    CRITERIA, Examples, InMemory, Inputs, Key, LOSSES, METRICS, OPTIMIZERS, Removed, Request, Result, Sites, Term, TokenStream, TrainSpec,
    Trainer,
};
use prunectl_recipe::catalogue::{Args, Entry, SiteKind, Ty};
use prunectl_recipe::plan::{Amount, Schedule, Scope, Share, Unit, Value, When};
use serde_json::json;

#[global_allocator]
static MEMORY: Recycler = Recycler;

/// A row's default, as the recipe's checker would read it.
fn default(text: &str, ty: Ty) -> Value {
    let number = |t: &str| t.trim().parse::<f64>().unwrap();
    match ty {
        Ty::Bool => Value::Bool(text == "true"),
        Ty::Percent | Ty::ScheduledPercent => Value::Percent(Share::from_fraction(number(text.trim_end_matches('%')) / 100.0)),
        Ty::Tokens => Value::Quantity(number(text.trim_end_matches(" tokens")), Unit::Tokens),
        Ty::OneOf(_) => Value::Word(text.into()),
        _ => Value::Number(number(text)),
    }
}

/// A method from its row: defaults, with some arguments given.
fn build<T: ?Sized>(rows: &[Entry<T>], name: &str, given: &[(&str, Value)]) -> Box<T> {
    let row = rows.iter().find(|r| r.spec.name == name).unwrap();
    let defaults = row.spec.params.iter().filter_map(|p| Some((p.name.into(), default(p.default?, p.ty))));
    let args = defaults.chain(given.iter().map(|(name, value)| ((*name).into(), value.clone()))).collect();
    prunectl_prune::build(rows, name, &Args(args)).unwrap()
}

/// Batches in a fixed order, whatever the trainer asks for: the other side sees the same.
struct InOrder {
    batches: Vec<Batch>,
    at: usize,
    rows: usize,
}

impl Examples for InOrder {
    fn len(&self) -> usize {
        self.rows
    }

    fn batch(&mut self, _: &[usize]) -> Result<Batch> {
        self.at += 1;
        Ok(self.batches[(self.at - 1) % self.batches.len()].clone())
    }
}

const JOBS: [&str; 8] = ["heads", "ablate", "ppl", "train", "wanda", "sparsegpt", "forward", "half"];

struct Job {
    model: Transformer,
    batches: Vec<Batch>,
    /// Tokens of a row.
    seq: usize,
}

impl Job {
    fn heads(&self) -> Sites {
        let mut sites = Sites::default();
        for (layer, d) in self.model.dims().iter().enumerate() {
            sites.add(Key::of(SiteKind::Heads, layer), 0..d.q_heads);
        }
        sites
    }

    fn examples(&self) -> usize {
        self.batches.iter().map(|b| b.size().unwrap().0).sum()
    }

    /// Head scores by layer; means over examples, as sums over batches of means.
    fn loss_delta(&self, estimate: &str) -> Vec<f64> {
        let criterion = build(CRITERIA, "loss_delta", &[("estimate", Value::Word(estimate.into()))]);
        let scores = criterion.score(&self.model, &self.heads(), &mut InMemory::new(self.batches.clone()), &()).unwrap();
        let batches = self.batches.len() as f64;
        scores.sites.values().flatten().map(|s| f64::from(*s) * batches).collect()
    }

    /// Sum over the windows of their mean losses.
    fn perplexity(&self) -> Vec<f64> {
        let window = Value::Quantity(self.seq as f64, Unit::Tokens);
        let ids = self.batches.iter().flat_map(|b| b.input_ids.flatten_all().unwrap().to_vec1::<u32>().unwrap()).collect();
        let stream = TokenStream { prefix: Vec::new(), ids };
        let metric = build(METRICS, "perplexity", &[("window", window)]);
        let mut inputs = Inputs {
            model: &self.model,
            batches: None,
            stream: Some(&stream),
            questions: None,
            asked: None,
            teacher: None,
            batch: 1,
            progress: &(),
        };
        vec![metric.measure(&mut inputs).unwrap().value.ln() * self.examples() as f64]
    }

    /// Sum of the losses of distillation steps, one a batch.
    fn train(&self) -> Vec<f64> {
        let hold = |value| Schedule::Hold { value, length: None };
        let args = [("teacher", Value::Model("m".into())), ("temperature", Value::Number(2.0))];
        let distill = Term { weight: hold(0.5), term: build(LOSSES, "distill", &args), teacher: Some(self.model.clone()) };
        let task = Term { weight: hold(0.5), term: build(LOSSES, "task", &[]), teacher: None };
        let rates = [("lr", Value::Number(1e-4)), ("decay", Value::Word("all".into()))];
        let spec = TrainSpec {
            length: When::Steps(self.batches.len() as u64),
            batch: self.batches[0].size().unwrap().0,
            accumulate: 1,
            clip: None,
            optimizer: build(OPTIMIZERS, "adamw", &rates),
            loss: vec![distill, task],
            only: None,
            seed: 0,
            dtype: None,
            recompute: false,
            prunes: Vec::new(),
        };
        let mut data = InOrder { batches: self.batches.clone(), at: 0, rows: self.examples() };
        let mut trainer = Trainer::new(&self.model, &Removed::default(), &spec, &data).unwrap();
        vec![self.batches.iter().map(|_| trainer.advance(&mut data).unwrap().loss).sum()]
    }

    /// Half of the weights of every projection; the pruned model.
    fn layerwise(&self, method: &str, scope: Scope) -> Transformer {
        let mut model = self.model.clone();
        let projection = |slot: &&str| {
            slot.starts_with("layers.") && slot.ends_with(".weight") && self.model.params().get(slot).is_some_and(|t| t.rank() == 2)
        };
        let weights = model.params().iter().map(|(slot, _)| slot).filter(projection).map(str::to_owned).collect();
        let sites = Sites { weights, ..Sites::default() };
        let amount = Amount::Share { share: Share::from_fraction(0.5), each: false };
        let mut removed = Removed::default();
        let before = Removed::default();
        let request = Request::plain(&sites, &amount, scope, &before);
        let criterion = build(CRITERIA, method, &[]);
        let mut data = InMemory::new(self.batches.clone());
        criterion.layerwise().unwrap().prune(&mut model, &mut removed, &request, &mut data, &()).unwrap();
        model
    }

    /// Share of zeros in the projections, and the mean loss of the first batch.
    fn state_of(&self, model: &Transformer) -> Vec<f64> {
        let (mut zeros, mut all) = (0.0, 0.0);
        for (_, t) in model.params().iter().filter(|(slot, t)| slot.starts_with("layers.") && t.rank() == 2) {
            zeros += f64::from(t.eq(0.0).unwrap().to_dtype(DType::F32).unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap())
                * t.elem_count() as f64;
            all += t.elem_count() as f64;
        }
        let loss = model.forward_loss(&self.batches[0], &Gates::default(), &mut ()).unwrap().mean().unwrap();
        vec![zeros / all, f64::from(loss.to_scalar::<f32>().unwrap())]
    }

    /// The model without every second KV group (or head) and neuron of each layer.
    fn halved(&self) -> Transformer {
        let even = |n: usize| (0..n).step_by(2).collect::<Vec<usize>>();
        let mut model = self.model.clone();
        for layer in 0..model.n_layers() {
            let d = *model.layer_dims(layer).unwrap();
            let grouped = d.group_size() > 1 && d.kv_heads > 1;
            let (kind, n) =
                if grouped { (prunectl_model::SiteKind::KvGroups, d.kv_heads) } else { (prunectl_model::SiteKind::Heads, d.q_heads) };
            model = model.keep_units(kind, Some(layer), &even(n)).unwrap();
            model = model.keep_units(prunectl_model::SiteKind::Neurons, Some(layer), &even(d.ffn)).unwrap();
        }
        model
    }

    /// Milliseconds of the passes through the blocks of the dense model and of the halved one, and how many times as fast that is.
    fn half(&self) -> Vec<f64> {
        let half = self.halved();
        let ms = |model: &Transformer| {
            let start = Instant::now();
            self.batches.iter().for_each(|b| drop(model.hidden(b, &Gates::default(), &mut ()).unwrap()));
            start.elapsed().as_secs_f64() * 1e3
        };
        let pairs: Vec<(f64, f64)> = (0..5).map(|_| (ms(&self.model), ms(&half))).collect();
        let least = |of: fn(&(f64, f64)) -> f64| pairs.iter().map(of).fold(f64::INFINITY, f64::min);
        let (dense, smaller) = (least(|p| p.0), least(|p| p.1));
        vec![dense, smaller, dense / smaller]
    }

    /// The result and the milliseconds of the job alone.
    fn run(&self, job: &str) -> (Vec<f64>, f64) {
        let start = Instant::now();
        let ms = || start.elapsed().as_secs_f64() * 1e3;
        match job {
            "heads" => (self.loss_delta("gradient"), ms()),
            "ablate" => (self.loss_delta("exact"), ms()),
            "ppl" => (self.perplexity(), ms()),
            "train" => (self.train(), ms()),
            "wanda" | "sparsegpt" => {
                let model = self.layerwise(job, if job == "wanda" { Scope::Row } else { Scope::Matrix });
                let elapsed = ms();
                (self.state_of(&model), elapsed)
            }
            "forward" => {
                let loss = |b: &Batch| self.model.forward_loss(b, &Gates::default(), &mut ()).unwrap().mean().unwrap();
                (vec![self.batches.iter().map(|b| f64::from(loss(b).to_scalar::<f32>().unwrap())).sum()], ms())
            }
            "half" => (self.half(), ms()),
            other => panic!("no job `{other}`"),
        }
    }
}

/// `--name value` pairs; what Cargo adds by itself (`--bench`) has no value.
fn option<'a>(args: &'a [String], name: &str) -> Option<&'a str> {
    args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).map(String::as_str)
}

fn load(args: &[String]) -> Option<Job> {
    let number = |name: &str| option(args, name).map(|n| n.parse::<usize>().unwrap());
    let dir = Path::new(option(args, "--model")?);
    let tokens = option(args, "--tokens").map_or_else(|| dir.join("tokens.safetensors"), |p| p.into());
    let model = prunectl_model::load(dir, &LoadOptions::default()).unwrap();
    let tensors = candle_core::safetensors::load(tokens, &Device::Cpu).unwrap();
    let ids = tensors["input_ids"].to_dtype(DType::U32).unwrap();
    let (rows, width) = ids.dims2().unwrap();
    let (batch, seq) = (number("--batch").unwrap_or(1), number("--seq").unwrap_or(width));
    let batches = (0..number("--batches").unwrap_or(rows / batch)).map(|i| {
        let own = |t: &Tensor| t.narrow(0, i * batch, batch).unwrap().contiguous().unwrap();
        let mut cut = Batch::new(own(&ids).narrow(1, 0, seq).unwrap().contiguous().unwrap());
        cut.labels = tensors.get("labels").map(|l| Labels::Classes(own(&l.to_dtype(DType::I64).unwrap())));
        cut
    });
    let batches = batches.collect();
    Some(Job { model, batches, seq })
}

/// A job on random weights of a configuration, with batches of [rows, seq] tokens and, for a classifier, labels.
fn random(config: &serde_json::Value, batches: usize, (rows, seq): (usize, usize)) -> Job {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    let model = prunectl_model::init(&path, 0, &LoadOptions::default()).unwrap();
    let vocabulary = config["vocab_size"].as_u64().unwrap() as u32;
    let batch = |n: usize| {
        let ids = (0..rows * seq).map(|i| (n * rows * seq + i) as u32 * 7919 % vocabulary);
        let mut batch = Batch::new(Tensor::from_iter(ids, &Device::Cpu).unwrap().reshape((rows, seq)).unwrap());
        let labels = (0..rows).map(|i| (i % 2) as i64);
        batch.labels = config.get("id2label").map(|_| Labels::Classes(Tensor::from_iter(labels, &Device::Cpu).unwrap()));
        batch
    };
    Job { model, batches: (0..batches).map(batch).collect(), seq }
}

/// Every job in criterion's hands.
fn sample() {
    let encoder = json!({
        "model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 1000, "hidden_size": 256,
        "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024, "max_position_embeddings": 128, "hidden_act": "gelu",
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "id2label": {"0": "a", "1": "b"},
    });
    let decoder = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 4096, "hidden_size": 192, "num_hidden_layers": 4,
        "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 512, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true, "rope_theta": 10000.0, "hidden_act": "silu",
    });
    let (encoder, decoder) = (random(&encoder, 2, (8, 64)), random(&decoder, 4, (2, 128)));
    let mut criterion = Criterion::default().sample_size(10).warm_up_time(Duration::from_secs(1)).configure_from_args();
    for (name, job) in JOBS.map(|name| (name, if matches!(name, "heads" | "ablate") { &encoder } else { &decoder })) {
        // What a job says about its result comes after its time.
        let time = |count| (0..count).map(|_| Duration::from_secs_f64(job.run(name).1 / 1e3)).sum();
        criterion.bench_function(name, |b| b.iter_custom(time));
    }
    criterion.final_summary();
}

fn main() {
    // SAFETY: nothing has started a thread yet.
    unsafe { threads::keep_elementwise_on_caller() };
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let start = Instant::now();
    let (Some(name), Some(job)) = (args.first(), load(&args)) else {
        return sample();
    };
    let start_ms = start.elapsed().as_secs_f64() * 1e3;
    let print = || {
        let (result, elapsed_ms) = job.run(name);
        println!("{}", json!({"job": name, "result": result, "elapsed_ms": elapsed_ms, "start_ms": start_ms}));
        std::io::stdout().flush().unwrap();
    };
    let input = std::io::stdin();
    if input.is_terminal() || option(&args, "--once").is_some() {
        print();
    } else {
        input.lock().lines().for_each(|_| print());
    }
}
