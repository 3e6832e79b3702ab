//! How much has to go so that a bound holds: arithmetic over shapes, for `plan MODEL --to …`.

use prunectl_model::{Facts, LayerDims, cost};
use prunectl_recipe::plan::{Limit, LimitValue, Share};
use serde::Serialize;

use crate::error::{Error, Result};

/// Shares are tried in thousandths.
const STEPS: u32 = 1000;
/// The largest share that is tried: every layer keeps something.
const MOST: u32 = 990;

/// What is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// Attention heads.
    Heads,
    /// FFN neurons.
    Neurons,
    /// Both, the same share of each.
    Units,
}

impl What {
    /// The selector behind a model's name.
    pub fn selector(self) -> &'static str {
        match self {
            Self::Heads => "layers[*].attention.heads",
            Self::Neurons => "layers[*].mlp.neurons",
            Self::Units => "layers[*].{attention.heads, mlp.neurons}",
        }
    }
}

/// One limit, and what the shapes give.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Met {
    /// `params`, `flops`, `memory`.
    pub metric: String,
    /// The limit.
    pub limit: f64,
    /// Of the model as it is.
    pub before: f64,
    /// Of the smaller one.
    pub after: f64,
}

/// The least share, in thousandths, that meets every limit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fit {
    /// Removed from every layer.
    pub thousandths: u32,
    /// The limits.
    pub limits: Vec<Met>,
    /// Shapes that are left.
    #[serde(skip)]
    pub dims: Vec<LayerDims>,
}

impl Fit {
    /// The share as a recipe writes it: `12.5%`.
    pub fn share(&self) -> String {
        format!("{}%", f64::from(self.thousandths) / 10.0)
    }
}

/// Finds the least share. A limit that only a measurement can tell (latency) is refused.
pub fn fit(facts: &Facts, limits: &[Limit], what: What) -> Result<Fit> {
    let values = |dims: &[LayerDims]| limits.iter().map(|l| value(facts, l, dims)).collect::<Result<Vec<f64>>>();
    let before = values(&facts.dims)?;
    let bounds: Vec<f64> = limits
        .iter()
        .zip(&before)
        .map(|(l, b)| match l.value {
            LimitValue::Absolute(x) => x,
            LimitValue::OfDense(share) => b * share.fraction(),
        })
        .collect();
    let holds = |found: &[f64]| found.iter().zip(&bounds).all(|(v, b)| v <= b);
    let mut last = before.clone();
    for thousandths in 0..=MOST {
        let dims = without(&facts.dims, thousandths, what);
        let after = values(&dims)?;
        if holds(&after) {
            let met = limits.iter().zip(before.iter().zip(after.iter().zip(&bounds)));
            let limits = met.map(|(l, (b, (a, limit)))| Met { metric: l.metric.name.clone(), limit: *limit, before: *b, after: *a });
            return Ok(Fit { thousandths, limits: limits.collect(), dims });
        }
        last = after;
    }
    let (limit, (found, bound)) = limits
        .iter()
        .zip(last.iter().zip(&bounds))
        .find(|(_, (v, b))| v > b)
        .ok_or_else(|| Error::Internal("a bound neither holds nor fails".to_owned()))?;
    Err(Error::Refused {
        what: format!(
            "{} can't come down to {bound:.0} by removing {}: with {} % of them gone it is still {found:.0} (embeddings and what is not selected stay)",
            limit.metric.name,
            match what {
                What::Heads => "attention heads",
                What::Neurons => "FFN neurons",
                What::Units => "heads and neurons",
            },
            f64::from(MOST) / 10.0
        ),
        remedy: "give a larger limit, or another --remove".to_owned(),
    })
}

/// Every layer without that share of its units. Query heads leave every KV group equally.
fn without(dims: &[LayerDims], thousandths: u32, what: What) -> Vec<LayerDims> {
    let share = Share(i64::from(thousandths) * Share::ONE.0 / i64::from(STEPS));
    let smaller = |d: &LayerDims| {
        let mut d = *d;
        if what != What::Neurons {
            let per_group = d.group_size();
            if per_group > 1 {
                d.q_heads = (per_group - share.of(per_group)).max(1) * d.kv_heads;
            } else {
                let left = d.q_heads - share.of(d.q_heads);
                (d.q_heads, d.kv_heads) = (left, left.min(d.kv_heads));
            }
        }
        if what != What::Heads {
            d.ffn -= share.of(d.ffn);
        }
        d
    };
    dims.iter().map(smaller).collect()
}

/// What a limit is about, of the model with these shapes.
fn value(facts: &Facts, limit: &Limit, dims: &[LayerDims]) -> Result<f64> {
    let count = |name: &str| limit.metric.args.count(name).map(|n| n as usize).map_err(|e| Error::Internal(e.to_string()));
    let blueprint = &facts.blueprint;
    Ok(match limit.metric.name.as_str() {
        "params" => blueprint.parameter_count(dims) as f64,
        "flops" => cost::flops(blueprint, dims, count("length")?) as f64,
        "memory" => {
            let each = facts.stored_dtype.size_in_bytes();
            let cache =
                if blueprint.attention.causal { cost::kv_cache_bytes(blueprint, dims, count("batch")?, count("length")?, each) } else { 0 };
            (blueprint.parameter_count(dims) * each as u64 + cache) as f64
        }
        other => {
            return Err(Error::Refused {
                what: format!("`{other}` can't be foreseen from headers"),
                remedy: "bound params, flops(length) or memory(batch, length); a recipe's `prune … to` measures".to_owned(),
            });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_leave_every_group_equally() {
        let grouped = LayerDims { q_heads: 8, kv_heads: 4, head_dim: 8, ffn: 100, experts: 0, ..LayerDims::default() };
        let plain = LayerDims { q_heads: 12, kv_heads: 12, head_dim: 8, ffn: 100, experts: 0, ..LayerDims::default() };
        let left = without(&[grouped, plain], 500, What::Units);
        assert_eq!((left[0].q_heads, left[0].kv_heads, left[0].ffn), (4, 4, 50));
        assert_eq!((left[1].q_heads, left[1].kv_heads, left[1].ffn), (6, 6, 50));
        assert_eq!(without(&[plain], 125, What::Neurons)[0].ffn, 88);
    }
}
