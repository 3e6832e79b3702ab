//! Positions: rows of a learned table, and rotary tables (Su et al., RoFormer, 2021, eq. 34).

use candle_core::{DType, Device, Tensor};

use crate::blueprint::{PositionRule, Rotary, RotaryScaling};
use crate::error::Result;

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
    let dim = rotary.dim as f64;
    let theta = match rotary.scaling {
        // transformers' "dynamic": the base grows with the sequence once it is longer than what the model was trained on.
        RotaryScaling::Dynamic { factor, original } if seq > original => {
            let growth = factor * seq as f64 / original as f64 - (factor - 1.0);
            rotary.theta * growth.powf(dim / (dim - 2.0))
        }
        _ => rotary.theta,
    };
    (0..rotary.dim / 2).map(|pair| scaled(theta.powf(-2.0 * pair as f64 / dim), &rotary.scaling)).collect()
}

fn scaled(frequency: f64, scaling: &RotaryScaling) -> f64 {
    match *scaling {
        RotaryScaling::None | RotaryScaling::Dynamic { .. } => frequency,
        RotaryScaling::Linear { factor } => frequency / factor,
        RotaryScaling::Ramp { factor, low, high, original } => {
            let wavelength = 2.0 * std::f64::consts::PI / frequency;
            let turns = original as f64 / wavelength;
            if turns < low {
                frequency / factor
            } else if turns > high {
                frequency
            } else {
                let smooth = (turns - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

/// cos and sin `[1, seq, dim / 2]` of the positions from `first` on.
pub(crate) fn rotary_table(rotary: &Rotary, first: usize, seq: usize, dtype: DType, device: &Device) -> Result<(Tensor, Tensor)> {
    let frequencies = frequencies(rotary, first + seq);
    let angles: Vec<f64> = (first..first + seq).flat_map(|at| frequencies.iter().map(move |f| at as f64 * f)).collect();
    let table = |f: fn(f64) -> f64| -> Result<Tensor> {
        let values: Vec<f64> = angles.iter().map(|a| f(*a)).collect();
        // Narrowed on the host: not every device has f64.
        Ok(Tensor::from_vec(values, (1, seq, rotary.dim / 2), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
    };
    Ok((table(f64::cos)?, table(f64::sin)?))
}
