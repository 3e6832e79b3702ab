//! Positions: rows of a learned table, and rotary tables (Su et al., RoFormer, 2021, eq. 34).

use std::f64::consts::TAU;

use candle_core::{DType, Device, Tensor};

use crate::blueprint::{PositionRule, Rotary, RotaryScaling};
use crate::error::Result;

/// The length, in pairs, of a ramp of YaRN that begins where it ends.
const LEAST_RAMP: f64 = 1e-3;

/// The row of the position table that each token takes.
pub(crate) fn rows(rule: &PositionRule, ids: &[Vec<u32>], keep: Option<&[Vec<u8>]>) -> Vec<Vec<u32>> {
    let rank = |base: usize, counts: &dyn Fn(usize, usize) -> bool| -> Vec<Vec<u32>> {
        ids.iter()
            .enumerate()
            .map(|(row, tokens)| {
                let mut seen = base as u32;
                (0..tokens.len())
                    .map(|at| {
                        if !counts(row, at) {
                            return base as u32;
                        }
                        seen += 1;
                        seen
                    })
                    .collect()
            })
            .collect()
    };
    match rule {
        PositionRule::Index => ids.iter().map(|tokens| (0..tokens.len() as u32).collect()).collect(),
        PositionRule::RankInKeep { base } => {
            let real = |row: usize, at: usize| keep.and_then(|k| k.get(row)?.get(at)).is_none_or(|k| *k != 0);
            rank(*base, &real)
        }
        PositionRule::RankAmongNot { pad, base } => {
            let real = |row: usize, at: usize| ids.get(row).and_then(|t| t.get(at)) != Some(pad);
            rank(*base, &real)
        }
    }
}

/// Angular frequencies, one for each pair, for sequences of `seq` tokens.
pub(crate) fn frequencies(rotary: &Rotary, seq: usize) -> Vec<f64> {
    let over = rotary.over as f64;
    let theta = match rotary.scaling {
        // transformers' "dynamic": the base grows with the sequence once it is longer than what the model was trained on.
        RotaryScaling::Dynamic { factor, original } if seq > original => {
            let growth = factor * seq as f64 / original as f64 - (factor - 1.0);
            rotary.theta * growth.powf(over / (over - 2.0))
        }
        _ => rotary.theta,
    };
    (0..rotary.dim / 2).map(|pair| theta.powf(-2.0 * pair as f64 / over) / rotary.divisor(pair, seq)).collect()
}

impl Rotary {
    /// By what a pair's frequency is divided in sequences of `seq` tokens.
    #[must_use]
    pub fn divisor(&self, pair: usize, seq: usize) -> f64 {
        let mix = |keep: f64, factor: f64| 1.0 / ((1.0 - keep) / factor + keep);
        match &self.scaling {
            RotaryScaling::None | RotaryScaling::Dynamic { .. } => 1.0,
            RotaryScaling::Linear { factor } => *factor,
            RotaryScaling::Ramp { factor, low, high, original } => {
                let turns = *original as f64 * self.theta.powf(-2.0 * pair as f64 / self.over as f64) / TAU;
                mix(((turns - low) / (high - low)).clamp(0.0, 1.0), *factor)
            }
            RotaryScaling::Yarn { factor, fast, slow, original, truncate, .. } => {
                // The pair, as a real number, that turns so often in the original context.
                let at = |turns: f64| self.dim as f64 * (*original as f64 / (turns * TAU)).ln() / (2.0 * self.theta.ln());
                let (first, last) = if *truncate { (at(*fast).floor(), at(*slow).ceil()) } else { (at(*fast), at(*slow)) };
                let (first, last) = (first.max(0.0), last.min(self.dim as f64 - 1.0));
                let length = if first == last { LEAST_RAMP } else { last - first };
                mix(1.0 - ((pair as f64 - first) / length).clamp(0.0, 1.0), *factor)
            }
            RotaryScaling::Long { short, long, original, .. } => {
                let divisors = if seq > *original { long } else { short };
                divisors.get(pair).copied().unwrap_or(1.0)
            }
        }
    }

    /// The factor on cos and sin.
    #[must_use]
    pub fn growth(&self) -> f64 {
        match self.scaling {
            RotaryScaling::Yarn { attention, .. } | RotaryScaling::Long { attention, .. } => attention,
            _ => 1.0,
        }
    }
}

/// cos and sin `[1, seq, dim / 2]` of the positions from `first` on.
pub(crate) fn rotary_table(rotary: &Rotary, first: usize, seq: usize, dtype: DType, device: &Device) -> Result<(Tensor, Tensor)> {
    let frequencies = frequencies(rotary, first + seq);
    let grown = rotary.growth();
    let angles: Vec<f64> = (first..first + seq).flat_map(|at| frequencies.iter().map(move |f| at as f64 * f)).collect();
    let table = |f: fn(f64) -> f64| -> Result<Tensor> {
        let values: Vec<f64> = angles.iter().map(|a| grown * f(*a)).collect();
        // Narrowed on the host: not every device has f64.
        Ok(Tensor::from_vec(values, (1, seq, rotary.dim / 2), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
    };
    Ok((table(f64::cos)?, table(f64::sin)?))
}
