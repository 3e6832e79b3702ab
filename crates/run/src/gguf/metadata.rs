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

/// Frequencies of the rotary table; the tensors of factors by which they are divided, where they are not divided evenly.
pub(crate) fn rotary(metadata: &mut Metadata, arch: Arch, b: &Blueprint) -> Vec<(&'static str, Vec<f32>)> {
    let Some(table) = b.rotary.first() else { return Vec::new() };
    metadata.own("rope.freq_base", Meta::F32(table.theta as f32));
    if let Some(sliding) = b.rotary.get(1) {
        metadata.own("rope.freq_base_swa", Meta::F32(sliding.theta as f32));
    }
    let divisors = |seq: usize| (0..table.dim / 2).map(|pair| table.divisor(pair, seq) as f32).collect();
    match table.scaling {
        RotaryScaling::Linear { factor } => {
            metadata.own("rope.scaling.type", Meta::Text("linear".into()));
            metadata.own("rope.scaling.factor", Meta::F32(factor as f32));
            Vec::new()
        }
        RotaryScaling::Yarn { factor, original, attention, .. } if !arch.divides_pairs() => {
            metadata.own("rope.scaling.type", Meta::Text("yarn".into()));
            metadata.own("rope.scaling.factor", Meta::F32(factor as f32));
            metadata.own("rope.scaling.original_context_length", count(original));
            // On top of its own, which is that of the paper.
            metadata.own("rope.scaling.attn_factor", Meta::F32((attention / (1.0 + 0.1 * factor.max(1.0).ln())) as f32));
            Vec::new()
        }
        RotaryScaling::Ramp { original, .. } => vec![("rope_freqs", divisors(original))],
        RotaryScaling::Yarn { original, attention, .. } => {
            metadata.own("rope.scaling.attn_factor", Meta::F32(attention as f32));
            vec![("rope_freqs", divisors(original))]
        }
        RotaryScaling::Long { original, attention, .. } => {
            metadata.own("rope.scaling.type", Meta::Text("longrope".into()));
            metadata.own("rope.scaling.original_context_length", count(original));
            metadata.own("rope.scaling.attn_factor", Meta::F32(attention as f32));
            vec![("rope_factors_short", divisors(original)), ("rope_factors_long", divisors(original + 1))]
        }
        RotaryScaling::None | RotaryScaling::Dynamic { .. } => Vec::new(),
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
