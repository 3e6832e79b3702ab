//! SliceGPT's turn and cut on every network that it serves: nothing cut, nothing changes; a cut is the network whose stream is projected
//! onto the kept directions, worked out on the untouched network; masked and compacted compute the same.

use candle_core::{DType, Device, Tensor};
use prunectl_model::{Batch, Gates, LoadOptions, ModelError, NormKind, Point, Tap, Transformer};
use prunectl_prune::{CRITERIA, Decision, InMemory, Key, PruneError, Removed, Request, Scores, UnitMap, surgery};
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::{Amount, Scope, Share};

use crate::common::{all, build, golden};

const TURNED: &[&str] = &[
    "families/llama",
    "families/llama_tied",
    "families/mistral",
    "families/qwen2",
    "families/qwen3",
    "families/phi3",
    "families/mixtral",
    "families/qwen3_moe",
    "families/gpt2",
    "families/gpt_neo",
    "families/gpt_neox",
    "more/gpt_neox_serial",
    "families/codegen",
    "families/opt",
    "families/falcon",
    "more/falcon_serial",
    "more/llama_cls",
];
const REFUSED: &[&str] =
    &["families/bert_mlm", "families/bert_cls", "families/distilbert_mlm", "families/gemma2", "families/gemma3", "families/opt_postnorm"];

fn load(name: &str) -> Transformer {
    prunectl_model::load(&golden(name), &LoadOptions::default()).unwrap().to_dtype(DType::F64).unwrap()
}

fn batch() -> Batch {
    let ids: Vec<u32> = (0..48).map(|i| 3 + (i * 29 + i * i) % 60).collect();
    let mut batch = Batch::new(Tensor::from_vec(ids, (4, 12), &Device::Cpu).unwrap());
    let keep: Vec<u8> = (0..48).map(|i| u8::from(i % 12 < 6 + i / 12)).collect();
    batch.keep = Some(Tensor::from_vec(keep, (4, 12), &Device::Cpu).unwrap());
    batch
}

fn logits(model: &Transformer) -> Vec<f64> {
    let batch = batch();
    let out = model.forward(&batch, &Gates::default(), &mut ()).unwrap().to_dtype(DType::F64).unwrap();
    // What follows padding means nothing.
    let out = match (out.rank(), &batch.keep) {
        (3, Some(keep)) => out.broadcast_mul(&keep.to_dtype(DType::F64).unwrap().unsqueeze(2).unwrap()).unwrap(),
        _ => out,
    };
    out.flatten_all().unwrap().to_vec1().unwrap()
}

fn apart(a: &[f64], b: &[f64]) -> f64 {
    let scale = b.iter().fold(0f64, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / scale
}

fn slice(model: &Transformer, share: f64) -> prunectl_prune::Result<(Transformer, Removed, Decision, Scores)> {
    let sites = all(model, &[SiteKind::Hidden]);
    let amount = Amount::Share { share: Share::from_fraction(share), each: false };
    let none = Removed::default();
    let request = Request::plain(&sites, &amount, Scope::Global, &none);
    let (mut model, mut removed) = (model.clone(), Removed::default());
    let method = build(CRITERIA, "slice", &[]);
    let data = &mut InMemory::new(vec![batch()]);
    let (decision, scores) = method.layerwise().unwrap().prune(&mut model, &mut removed, &request, data, &())?;
    Ok((model, removed, decision, scores))
}

#[test]
fn nothing_cut_nothing_changes() {
    for name in TURNED {
        let dense = load(name);
        let (turned, ..) = slice(&dense, 0.0).unwrap_or_else(|e| panic!("{name}: {e}"));
        let error = apart(&logits(&turned), &logits(&dense));
        assert!(error < 1e-10, "{name}: {error:e}");
        // It was turned, all the same.
        let slot = "layers.0.mlp.down.weight";
        if let (Some(a), Some(b)) = (turned.params().get(slot), dense.params().get(slot)) {
            assert!(a.sub(b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap() > 1e-3, "{name}");
        }
    }
}

/// Solves `a x = b` for every column of b, by elimination with pivots.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let n = a.len();
    for i in 0..n {
        let pivot = (i..n).max_by(|x, y| a[*x][i].abs().total_cmp(&a[*y][i].abs())).unwrap();
        a.swap(i, pivot);
        b.swap(i, pivot);
        let (of_a, of_b) = (a[i].clone(), b[i].clone());
        for (row, (a, b)) in a.iter_mut().zip(&mut b).enumerate() {
            if row != i {
                let f = a[i] / of_a[i];
                a.iter_mut().zip(&of_a).for_each(|(x, y)| *x -= f * y);
                b.iter_mut().zip(&of_b).for_each(|(x, y)| *x -= f * y);
            }
        }
    }
    (0..n).map(|i| b[i].iter().map(|x| x / a[i][i]).collect()).collect()
}

fn rows(t: &Tensor) -> Vec<Vec<f64>> {
    t.to_dtype(DType::F64).unwrap().to_vec2().unwrap()
}

/// `[hidden, n]`, the turn that took the table of embeddings to its new form: least squares.
fn turn_of(dense: &Transformer, sliced: &Transformer) -> Tensor {
    let slot = "embeddings.token.weight";
    let (old, new) = (dense.params().get(slot).unwrap(), sliced.params().get(slot).unwrap());
    let size = (new.dim(1).unwrap() as f64 / old.dim(1).unwrap() as f64).sqrt();
    let t = old.t().unwrap().contiguous().unwrap();
    let (a, b) = (t.matmul(old).unwrap(), (t.matmul(new).unwrap() / size).unwrap());
    let x = solve(rows(&a), rows(&b));
    let n = x[0].len();
    Tensor::from_vec(x.concat(), (old.dim(1).unwrap(), n), &Device::Cpu).unwrap()
}

#[test]
fn a_cut_is_the_network_whose_stream_is_projected() {
    for name in TURNED {
        let dense = load(name);
        let (masked, mut removed, decision, _) = slice(&dense, 0.25).unwrap_or_else(|e| panic!("{name}: {e}"));
        let hidden = dense.blueprint().hidden;
        let n = decision.sites[&Key::of(SiteKind::Hidden, 0)].len();
        assert_eq!(n, hidden - hidden / 4, "{name}");
        let mut sliced = masked.clone();
        surgery::compact(&mut sliced, &mut removed, &mut UnitMap::default()).unwrap();
        assert_eq!(sliced.blueprint().hidden, n);
        let found = logits(&sliced);
        let error = apart(&logits(&masked), &found);
        assert!(error < 1e-10, "{name}: masked and compacted differ by {error:e}");

        // On the untouched network: whatever is written to the stream is projected, all norms are as they were.
        let turn = turn_of(&dense, &sliced);
        let project = turn.matmul(&turn.t().unwrap().contiguous().unwrap()).unwrap();
        let twice = project.matmul(&project).unwrap().sub(&project).unwrap().abs().unwrap().max_all().unwrap();
        assert!(twice.to_scalar::<f64>().unwrap() < 1e-8, "{name}: not a projection");
        let mut projected = dense.untied().unwrap();
        let slots: Vec<String> = projected.params().slots().map(str::to_owned).collect();
        for slot in slots {
            let w = projected.params().require(&slot).unwrap().clone();
            let stem = slot.rsplit_once('.').unwrap().0;
            let new = if slot.starts_with("embeddings.") {
                w.matmul(&project).unwrap()
            } else if !(stem.ends_with(".attention.o") || stem.ends_with(".down")) {
                continue;
            } else if w.rank() == 1 {
                project.matmul(&w.unsqueeze(1).unwrap()).unwrap().squeeze(1).unwrap()
            } else {
                project.matmul(&w).unwrap()
            };
            projected.params_mut().set(slot, new);
        }
        let error = apart(&found, &logits(&projected));
        assert!(error < 1e-8, "{name}: {error:e} from the projected network");
        assert!(apart(&found, &logits(&dense)) > 1e-4, "{name}: the cut changes nothing");
    }
}

/// Σ x̂x̂ᵀ of what an RMS norm gives, from norms' outputs divided by their weights.
struct Normed<'a> {
    model: &'a Transformer,
    sum: Tensor,
}

impl Tap for Normed<'_> {
    fn wants(&self, _: usize, point: Point) -> bool {
        matches!(point, Point::AttentionInput | Point::MlpInput | Point::FinalNorm)
    }
    fn see(&mut self, layer: usize, point: Point, x: &Tensor) -> Result<(), ModelError> {
        let norm = match point {
            Point::AttentionInput => format!("layers.{layer}.norm1.weight"),
            Point::MlpInput => format!("layers.{layer}.norm2.weight"),
            _ => "final_norm.weight".into(),
        };
        let keep = batch().keep.unwrap().to_dtype(DType::F64)?.unsqueeze(2)?;
        let x = x.broadcast_div(self.model.params().get(&norm).unwrap())?.broadcast_mul(&keep)?.flatten_to(1)?;
        self.sum = (&self.sum + x.t()?.contiguous()?.matmul(&x)?)?;
        Ok(())
    }
}

/// The new channels do not vary together, and vary as much as their scores say, the largest first.
#[test]
fn directions_are_principal() {
    let dense = load("families/llama");
    assert_eq!(dense.blueprint().norm.kind, NormKind::Rms);
    let (turned, _, _, scores) = slice(&dense, 0.0).unwrap();
    let hidden = dense.blueprint().hidden;
    let mut seen = Normed { model: &dense, sum: Tensor::zeros((hidden, hidden), DType::F64, &Device::Cpu).unwrap() };
    let (x, context) = dense.hidden(&batch(), &Gates::default(), &mut seen).unwrap();
    dense.last_norm(&x, &context, &mut seen).unwrap();
    let turn = turn_of(&dense, &turned);
    let c = rows(&turn.t().unwrap().contiguous().unwrap().matmul(&seen.sum).unwrap().matmul(&turn).unwrap());
    let total: f64 = (0..hidden).map(|i| c[i][i]).sum();
    let shares = scores.get(Key::of(SiteKind::Hidden, 0)).unwrap();
    for (i, row) in c.iter().enumerate() {
        assert!((row[i] / total - f64::from(shares[i])).abs() < 1e-6, "{i}: {} {}", row[i] / total, shares[i]);
        assert!(row.iter().enumerate().all(|(j, v)| i == j || v.abs() < 1e-7 * total), "{i}");
    }
    assert!(shares.windows(2).all(|w| w[0] >= w[1]) && shares[0] > 1.5 / hidden as f32, "{shares:?}");
}

#[test]
fn what_it_does_not_serve_is_refused_by_name() {
    for name in REFUSED {
        let error = slice(&load(name), 0.25).err().unwrap().to_string();
        assert!(error.contains("network that slice turns") && error.contains("norms before each sublayer"), "{name}: {error}");
    }
    let llama = load("families/llama");
    let scored = build(CRITERIA, "slice", &[]).score(&llama, &all(&llama, &[SiteKind::Hidden]), &mut InMemory::default(), &());
    assert!(matches!(scored, Err(PruneError::ScoresNothing { .. })));
}
