//! What a file says beside its tensors.

use prunectl_model::{Blueprint, Head, LayerDims, RotaryScaling};

use super::arch::Arch;
use super::file::Meta;

pub(crate) fn count(n: usize) -> Meta {
    Meta::U32(n as u32)
}

/// Key and value, in the file's order.
pub(crate) struct Metadata {
    pub arch: &'static str,
    pub list: Vec<(String, Meta)>,
}

impl Metadata {
    pub(crate) fn top(&mut self, key: &str, meta: Meta) {
        self.list.push((key.into(), meta));
    }

    pub(crate) fn own(&mut self, key: &str, meta: Meta) {
        self.list.push((format!("{}.{key}", self.arch), meta));
    }
}

pub(crate) fn mixture(metadata: &mut Metadata, b: &Blueprint, dims: &[LayerDims]) {
    let (Some(router), Some(d)) = (&b.mlp.router, dims.first().filter(|d| d.experts > 0)) else { return };
    metadata.own("expert_count", count(d.experts));
    metadata.own("expert_used_count", count(router.top_k.min(d.experts)));
    metadata.own("expert_feed_forward_length", count(d.ffn));
}

/// Frequencies of the rotary table; the factors by which they are divided, where they are not divided evenly.
pub(crate) fn rotary(metadata: &mut Metadata, b: &Blueprint) -> Option<Vec<f32>> {
    let table = b.rotary.first()?;
    metadata.own("rope.freq_base", Meta::F32(table.theta as f32));
    if let Some(sliding) = b.rotary.get(1) {
        metadata.own("rope.freq_base_swa", Meta::F32(sliding.theta as f32));
    }
    match table.scaling {
        RotaryScaling::Linear { factor } => {
            metadata.own("rope.scaling.type", Meta::Text("linear".into()));
            metadata.own("rope.scaling.factor", Meta::F32(factor as f32));
            None
        }
        RotaryScaling::Ramp { factor, low, high, original } => {
            let divisor = |pair: usize| {
                let frequency = table.theta.powf(-2.0 * pair as f64 / table.dim as f64);
                let turns = original as f64 * frequency / std::f64::consts::TAU;
                // Of all turns in the original context: below `low` divided, above `high` kept, a ramp of 1/divisor between.
                let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                1.0 / ((1.0 - keep) / factor + keep)
            };
            Some((0..table.dim / 2).map(|pair| divisor(pair) as f32).collect())
        }
        RotaryScaling::None | RotaryScaling::Dynamic { .. } => None,
    }
}

pub(crate) fn windows(metadata: &mut Metadata, arch: Arch, b: &Blueprint) {
    if !matches!(arch, Arch::Gemma2 | Arch::Gemma3) {
        return;
    }
    if let Some(window) = b.layers.iter().filter_map(|l| l.window).max() {
        metadata.own("attention.sliding_window", count(window));
        metadata.own("attention.sliding_window_pattern", Meta::Bools(b.layers.iter().map(|l| l.window.is_some()).collect()));
    }
    if let Some(cap) = b.attention.softcap {
        metadata.own("attn_logit_softcapping", Meta::F32(cap as f32));
    }
    if let Head::Tokens { softcap: Some(cap), .. } = b.head {
        metadata.own("final_logit_softcapping", Meta::F32(cap as f32));
    }
}
