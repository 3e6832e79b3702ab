//! How alike the blocks' representations are: centred kernel alignment and cosine, between every two of them.
//!
//! Kornblith et al., Similarity of Neural Network Representations Revisited (2019), eq. 2-5: with `K = k(X, X)`, `L = k(Y, Y)` over tokens and
//! `H = I − 1/n`, `CKA = ⟨HKH, HLH⟩ / (‖HKH‖ ‖HLH‖)`; linear: `k(x, y) = x·y`; RBF: `exp(−‖x − y‖² / 2σ²)`, σ² the median of the squared distances
//! that are not zero. Gromov et al., The Unreasonable Ineffectiveness of the Deeper Layers (2024), eq. 6: the mean over tokens of `cos(h_i, h_j)`.
//!
//! Representation 0 is the input of the first block, k the output of block k − 1, before the final norm. The value is the mean over the blocks of
//! the similarity of their input and output; every pair is among the details. CKA keeps `tokens` tokens, drawn evenly, so memory does not
//! grow with the data; padding never counts.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use prunectl_model::{Gates, ModelError, Point, Tap};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Ty};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::{Inputs, Measured, Metric, Needs};
use crate::error::{PruneError, Result};
use crate::row::{metric, needs_data, param, within};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kernel {
    Linear,
    Rbf,
}

struct Cka {
    kernel: Kernel,
    tokens: usize,
}

struct Cosine;

/// The representations of one batch, `[b·s, hidden]` each.
#[derive(Default)]
struct States(Vec<Tensor>);

impl Tap for States {
    fn wants(&self, layer: usize, point: Point) -> bool {
        point == Point::BlockOutput || (layer == 0 && point == Point::BlockInput)
    }

    fn see(&mut self, _: usize, _: Point, x: &Tensor) -> std::result::Result<(), ModelError> {
        self.0.push(x.detach().to_dtype(DType::F64)?.flatten_to(1)?);
        Ok(())
    }
}

/// Calls `see` with the states of each batch and which of its rows are real tokens; the number of those.
fn each(method: &'static str, inputs: &mut Inputs<'_>, mut see: impl FnMut(&[Tensor], &[bool]) -> Result<()>) -> Result<u64> {
    let missing = || PruneError::Missing { method, needs: "examples".into() };
    let batches = inputs.batches.take().ok_or_else(missing)?;
    let (mut tokens, mut done) = (0, 0);
    batches.reset()?;
    while let Some(batch) = batches.next()? {
        inputs.progress.check()?;
        let mut states = States::default();
        inputs.model.hidden(&batch, &Gates::default(), &mut states)?;
        let n = batch.input_ids.elem_count();
        let real: Vec<bool> = match &batch.keep {
            Some(keep) => keep.flatten_all()?.to_vec1::<u8>()?.iter().map(|k| *k != 0).collect(),
            None => vec![true; n],
        };
        tokens += real.iter().filter(|r| **r).count() as u64;
        see(&states.0, &real)?;
        done += 1;
        inputs.progress.advance(done, batches.len_hint().map_or(done, |n| n as u64), method);
    }
    inputs.batches = Some(batches);
    if tokens == 0 {
        return Err(PruneError::NoData { method, batches: done as usize });
    }
    Ok(tokens)
}

/// The value and the details of a symmetric matrix of similarities.
fn measured(matrix: &[Vec<f64>], protocol: String, tokens: u64) -> Measured {
    let n = matrix.len();
    let at = |i: usize, j: usize| matrix.get(i).and_then(|r| r.get(j)).copied().unwrap_or(f64::NAN);
    let blocks = n.saturating_sub(1);
    let value = (0..blocks).map(|i| at(i, i + 1)).sum::<f64>() / blocks.max(1) as f64;
    let details: BTreeMap<String, f64> =
        (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))).map(|(i, j)| (format!("{i}-{j}"), at(i, j))).collect();
    Measured { value, protocol, tokens: Some(tokens), details, ..Measured::default() }
}

/// The centred kernel of rows `[n][width]`, n × n, and its norm.
fn centred(rows: &[Vec<f64>], kernel: Kernel) -> (Vec<f64>, f64) {
    let n = rows.len();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let mut k: Vec<f64> =
        (0..n * n).into_par_iter().map(|c| rows.get(c / n).zip(rows.get(c % n)).map_or(0.0, |(a, b)| dot(a, b))).collect();
    if kernel == Kernel::Rbf {
        let own: Vec<f64> = k.iter().step_by(n + 1).copied().collect();
        let of = |i: usize| own.get(i).copied().unwrap_or_default();
        let distances: Vec<f64> = k.iter().enumerate().map(|(c, g)| of(c / n) + of(c % n) - 2.0 * g).collect();
        let mut apart: Vec<f64> = distances.iter().copied().filter(|d| *d != 0.0).collect();
        apart.sort_by(f64::total_cmp);
        let middle = |i: usize| apart.get(i).copied().unwrap_or(1.0);
        let median = if apart.len() % 2 == 1 {
            middle(apart.len() / 2)
        } else {
            (middle((apart.len() / 2).saturating_sub(1)) + middle(apart.len() / 2)) / 2.0
        };
        k = distances.iter().map(|d| (-0.5 * d / median).exp()).collect();
    }
    let size = n.max(1) as f64;
    let means: Vec<f64> = k.chunks(n.max(1)).map(|row| row.iter().sum::<f64>() / size).collect();
    let all = means.iter().sum::<f64>() / size;
    let of = |i: usize| means.get(i).copied().unwrap_or_default();
    for (c, v) in k.iter_mut().enumerate() {
        *v += all - of(c / n) - of(c % n);
    }
    let norm = dot(&k, &k).sqrt();
    (k, norm)
}

/// CKA of every two representations; of one that is the same for all tokens it is 0.
fn cka(states: &[Vec<Vec<f64>>], kernel: Kernel) -> Vec<Vec<f64>> {
    let kernels: Vec<(Vec<f64>, f64)> = states.iter().map(|rows| centred(rows, kernel)).collect();
    let pair = |(k, a): &(Vec<f64>, f64), (l, b): &(Vec<f64>, f64)| {
        let product: f64 = k.iter().zip(l).map(|(x, y)| x * y).sum();
        if a * b > 0.0 { product / (a * b) } else { 0.0 }
    };
    kernels.iter().map(|k| kernels.iter().map(|l| pair(k, l)).collect()).collect()
}

impl Metric for Cka {
    fn needs(&self) -> Needs {
        Needs::Batches
    }

    fn higher_is_better(&self) -> Option<bool> {
        None
    }

    fn measure(&self, inputs: &mut Inputs<'_>) -> Result<Measured> {
        let mut kept: Vec<Vec<Vec<f64>>> = Vec::new();
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut seen = 0;
        each("cka", inputs, |states, real| {
            kept.resize(states.len(), Vec::new());
            let states = states.iter().map(|s| Ok(s.to_vec2::<f64>()?)).collect::<Result<Vec<_>>>()?;
            for token in real.iter().enumerate().filter(|(_, r)| **r).map(|(t, _)| t) {
                // Vitter (1985), algorithm R: the same places in every representation.
                let place = if seen < self.tokens { seen } else { rng.random_range(0..=seen) };
                seen += 1;
                for (kept, rows) in kept.iter_mut().zip(&states) {
                    let row = rows.get(token).cloned().unwrap_or_default();
                    if place == kept.len() {
                        kept.push(row);
                    } else if let Some(old) = kept.get_mut(place) {
                        *old = row;
                    }
                }
            }
            Ok(())
        })?;
        let used = kept.first().map_or(0, Vec::len);
        let what = if self.kernel == Kernel::Linear { "linear" } else { "RBF" };
        let protocol = format!(
            "{what} CKA between the input and the output of each block, mean over blocks; details: every pair of representations, 0 the input of the first block; {used} tokens, the biased estimate"
        );
        Ok(measured(&cka(&kept, self.kernel), protocol, used as u64))
    }
}

impl Metric for Cosine {
    fn needs(&self) -> Needs {
        Needs::Batches
    }

    fn higher_is_better(&self) -> Option<bool> {
        None
    }

    fn measure(&self, inputs: &mut Inputs<'_>) -> Result<Measured> {
        let mut sums: Vec<Vec<f64>> = Vec::new();
        let tokens = each("cosine", inputs, |states, real| {
            sums.resize(states.len(), vec![0.0; states.len()]);
            let norms = states.iter().map(|s| Ok(s.sqr()?.sum(1)?.sqrt()?.to_vec1::<f64>()?)).collect::<Result<Vec<_>>>()?;
            for (i, (a, own)) in states.iter().zip(&norms).enumerate() {
                for (j, (b, other)) in states.iter().zip(&norms).enumerate().skip(i) {
                    let products = a.mul(b)?.sum(1)?.to_vec1::<f64>()?;
                    let sizes = own.iter().zip(other).map(|(x, y)| x * y);
                    let all = products.iter().zip(sizes).zip(real).filter(|(_, real)| **real);
                    let sum: f64 = all.map(|((p, n), _)| if n > 0.0 { p / n } else { 0.0 }).sum();
                    for (row, column) in if i == j { vec![(i, j)] } else { vec![(i, j), (j, i)] } {
                        if let Some(cell) = sums.get_mut(row).and_then(|r| r.get_mut(column)) {
                            *cell += sum;
                        }
                    }
                }
            }
            Ok(())
        })?;
        sums.iter_mut().flatten().for_each(|v| *v /= tokens as f64);
        let protocol = "mean over tokens of the cosine between the input and the output of each block, mean over blocks; details: every pair of representations, 0 the input of the first block".to_owned();
        Ok(measured(&sums, protocol, tokens))
    }
}

fn build_cka(args: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    let kernel = if args.word("kernel")? == "rbf" { Kernel::Rbf } else { Kernel::Linear };
    Ok(Box::new(Cka { kernel, tokens: usize::try_from(args.count("tokens")?).unwrap_or(usize::MAX) }))
}

fn build_cosine(_: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    Ok(Box::new(Cosine))
}

pub(super) const CKA: Entry<dyn Metric> = Entry {
    spec: needs_data(metric(
        "cka",
        "Kornblith et al., Similarity of Neural Network Representations Revisited (2019), eq. 4",
        &[
            param("kernel", Ty::OneOf(&["linear", "rbf"]), "linear", "The kernel."),
            within(param("tokens", Ty::Count, "1024", "Tokens that are kept, drawn evenly from the data."), 2.0, 65536.0),
        ],
        "Centred kernel alignment between the blocks' representations, over tokens: its mean over input and output of each block; every pair is among the details in `metrics.json`.\n\n\
         Mind: the biased estimate depends on the number of tokens.\n\n\
         ```prune\neval cka() of m on d.validation.take(32) as alike\n```",
    )),
    build: build_cka,
};

pub(super) const COSINE: Entry<dyn Metric> = Entry {
    spec: needs_data(metric(
        "cosine",
        "Gromov et al., The Unreasonable Ineffectiveness of the Deeper Layers (2024), eq. 6",
        &[],
        "Mean cosine between the blocks' representations, token by token: its mean over input and output of each block; every pair is among the details in `metrics.json`.\n\n\
         Mind: a representation of zeros has cosine 0 with everything.\n\n\
         ```prune\neval cosine() of m on d.validation.take(32) as alike\n```",
    )),
    build: build_cosine,
};

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use candle_core::Device;
    use prunectl_model::{Batch, LoadOptions};
    use prunectl_recipe::plan::Value;

    use super::*;
    use crate::data::InMemory;
    use crate::eval::METRICS;

    /// X = (1, −1), Y = (2, −2): the same up to scale, CKA 1. X and (1, 1), the same for all tokens: 0. The RBF kernel of two points has one
    /// distance, so any two such are alike.
    #[test]
    fn cka_by_hand() {
        let rows = |v: &[f64]| v.iter().map(|x| vec![*x]).collect::<Vec<_>>();
        let all = cka(&[rows(&[1.0, -1.0]), rows(&[2.0, -2.0]), rows(&[1.0, 1.0])], Kernel::Linear);
        assert!((all[0][1] - 1.0).abs() < 1e-15 && all[0][2] == 0.0, "{all:?}");
        assert!((cka(&[rows(&[0.0, 3.0]), rows(&[5.0, 1.0])], Kernel::Rbf)[0][1] - 1.0).abs() < 1e-15);
    }

    #[test]
    fn equals_the_authors() {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/methods");
        let load = |file: &str| candle_core::safetensors::load(root.join("16_cka").join(file), &Device::Cpu).unwrap();
        let (inputs, expected) = (load("inputs.safetensors"), load("expected.safetensors"));
        let rows = |name: &str| inputs[name].to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
        let states = [rows("x"), rows("y")];
        let theirs = |name: &str| f64::from(expected[name].flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]);
        assert!((cka(&states, Kernel::Linear)[0][1] - theirs("linear")).abs() <= 1e-6 + 1e-5 * theirs("linear").abs());
        assert!((cka(&states, Kernel::Rbf)[0][1] - theirs("rbf")).abs() <= 1e-6 + 1e-4 * theirs("rbf").abs());

        let model = prunectl_model::load(&root.join("models/llama-tiny"), &LoadOptions::default()).unwrap();
        let ids = inputs["input_ids"].to_dtype(DType::U32).unwrap();
        let mut texts = InMemory::new((0..3).map(|b| Batch::new(ids.get(b).unwrap())).collect());
        let mut args = Args::default();
        args.0.insert("kernel".into(), Value::Word("linear".into()));
        args.0.insert("tokens".into(), Value::Number(1024.0));
        let mut worst = 0f64;
        for (name, key) in [("cka", "blocks.cka.all"), ("cosine", "blocks.cosine")] {
            let metric = crate::build(METRICS, name, &args).unwrap();
            let mut inputs = Inputs {
                model: &model,
                batches: Some(&mut texts),
                stream: None,
                questions: None,
                asked: None,
                teacher: None,
                batch: 1,
                progress: &(),
            };
            let found = metric.measure(&mut inputs).unwrap();
            assert_eq!((found.tokens, found.details.len()), (Some(192), 6));
            let theirs = expected[key].to_vec2::<f32>().unwrap();
            for (i, row) in theirs.iter().enumerate() {
                for (j, theirs) in row.iter().enumerate().skip(i + 1) {
                    let (ours, theirs) = (found.details[&format!("{i}-{j}")], f64::from(*theirs));
                    assert!((ours - theirs).abs() <= 1e-5 + 1e-4 * theirs.abs(), "{key} {i} {j}: {ours} {theirs}");
                    worst = worst.max((ours - theirs).abs());
                }
            }
            let next: f64 = (0..3).map(|i| f64::from(theirs[i][i + 1])).sum::<f64>() / 3.0;
            assert!((found.value - next).abs() < 1e-4);
        }
        println!("golden 16_cka: worst error {worst:.1e}");
    }
}
