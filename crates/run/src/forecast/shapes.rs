//! Shapes and sizes at the end of a plan, from how many units of each site go at least and at most. Units of a site are alike, so counts
//! decide the sizes; which of them go, the run.

use std::collections::BTreeSet;

use prunectl_model::{Blueprint, Head, LayerDims, SiteKind as ModelKind, site::shrink};
use prunectl_prune::{Key, site};
use prunectl_recipe::catalogue::SiteKind;

use super::Sim;

/// A network's mechanisms and shapes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shape {
    pub blueprint: Blueprint,
    pub dims: Vec<LayerDims>,
}

impl Sim {
    /// Layers that go.
    pub(super) fn layers_gone(&self) -> usize {
        self.whole_gone(SiteKind::Layers)
    }

    fn whole_gone(&self, kind: SiteKind) -> usize {
        self.ranges.get(&Key { kind, layer: None }).map_or(0, |range| range.1)
    }
}

/// Shapes at the end: with the fewest units left, or with the most. Of layers that differ the largest (or the smallest) go.
pub(super) fn after(sim: &Sim, fewest: bool) -> Shape {
    let mut shape = Shape { blueprint: narrowed(sim), dims: inside(sim, fewest) };
    let gone = sim.layers_gone().min(shape.dims.len());
    if sim.compacted && gone > 0 {
        let alone = |layer: &usize| shape.dims.get(*layer).map_or(0, |d| one_layer(&shape.blueprint, d));
        let mut order: Vec<usize> = (0..shape.dims.len()).collect();
        order.sort_by_key(|layer| if fewest { std::cmp::Reverse(alone(layer)) } else { std::cmp::Reverse(u64::MAX - alone(layer)) });
        let mut kept: Vec<usize> = order.into_iter().skip(gone).collect();
        kept.sort_unstable();
        if let Ok((blueprint, dims)) = shrink(&shape.blueprint, &shape.dims, ModelKind::Layers, None, &kept) {
            shape = Shape { blueprint, dims };
        }
    }
    shape
}

fn one_layer(blueprint: &Blueprint, d: &LayerDims) -> u64 {
    blueprint.parameter_count(std::slice::from_ref(d))
}

/// The blueprint with the residual stream as wide as it will be.
fn narrowed(sim: &Sim) -> Blueprint {
    let mut blueprint = sim.file.blueprint.clone();
    if let (true, Head::Tokens { tied, .. }) = (sim.untied, &mut blueprint.head) {
        *tied = false;
    }
    let gone = sim.whole_gone(SiteKind::Hidden);
    if !sim.compacted || gone == 0 {
        return blueprint;
    }
    let kept: Vec<usize> = (0..blueprint.hidden.saturating_sub(gone)).collect();
    match shrink(&blueprint, &sim.file.dims, ModelKind::Hidden, None, &kept) {
        Ok((narrow, _)) => narrow,
        Err(_) => blueprint,
    }
}

/// Counts inside the layers, whole layers left where they are.
pub(super) fn inside(sim: &Sim, fewest: bool) -> Vec<LayerDims> {
    let mut dims = sim.file.dims.clone();
    if !sim.compacted {
        return dims;
    }
    for (key, (least, most)) in &sim.ranges {
        let gone = if fewest { *most } else { *least };
        if let Some(d) = key.layer.and_then(|l| dims.get_mut(l)) {
            take(d, key.kind, gone, &sim.file.blueprint);
        }
    }
    dims
}

/// Takes units of one kind out of a layer. With the last the bias behind them is left.
fn take(d: &mut LayerDims, kind: SiteKind, gone: usize, blueprint: &Blueprint) {
    match kind {
        SiteKind::Heads => {
            // Equally many leave every group, so the count is a multiple of the groups.
            let left = d.q_heads.saturating_sub(gone);
            d.q_heads = if d.kv_heads > 0 && d.group_size() > 1 { left.div_ceil(d.kv_heads) * d.kv_heads } else { left };
            if d.group_size() <= 1 {
                d.kv_heads = d.kv_heads.min(d.q_heads);
            }
        }
        SiteKind::KvGroups => {
            let size = d.group_size();
            d.kv_heads = d.kv_heads.saturating_sub(gone);
            d.q_heads = d.kv_heads * size;
        }
        SiteKind::Neurons => {
            d.ffn = d.ffn.saturating_sub(gone / d.experts.max(1));
            if d.ffn == 0 {
                d.experts = 0;
            }
        }
        SiteKind::Experts => {
            d.experts = d.experts.saturating_sub(gone);
            if d.experts == 0 {
                d.remove_mlp();
            }
        }
        SiteKind::Attention if gone > 0 => d.remove_attention(),
        SiteKind::Mlp if gone > 0 => d.remove_mlp(),
        SiteKind::Attention | SiteKind::Mlp | SiteKind::Layers | SiteKind::Hidden | SiteKind::Weights => {}
    }
    match kind {
        SiteKind::Heads | SiteKind::KvGroups if gone > 0 && d.q_heads == 0 => {
            (d.kv_heads, d.attention_bias_left) = (0, blueprint.attention.o_bias);
        }
        SiteKind::Neurons if gone > 0 && d.ffn == 0 => d.mlp_bias_left = blueprint.mlp.down_bias,
        _ => {}
    }
}

/// Least and most of a size that is a sum over units. Where every layer's units cost the same, how many go in all decides it, but for
/// what else leaves with the last unit of a layer.
pub(super) fn size_after(sim: &Sim, least: &Shape, most: &Shape, size: impl Fn(&Blueprint, &[LayerDims]) -> u64) -> Option<(u64, u64)> {
    if sim.vague {
        return None;
    }
    let bounds = (size(&least.blueprint, &least.dims), size(&most.blueprint, &most.dims));
    if bounds.0 == bounds.1 {
        return Some(bounds);
    }
    let (blueprint, dims) = (&most.blueprint, &sim.file.dims);
    let Some(first) = dims.first().filter(|first| sim.layers_gone() == 0 && dims.iter().all(|d| d == *first)) else { return Some(bounds) };
    let kinds: BTreeSet<SiteKind> = sim.ranges.keys().map(|k| k.kind).filter(|k| *k != SiteKind::Hidden).collect();
    if overlap(&kinds) {
        return Some(bounds);
    }
    let with = |d: LayerDims| -> u64 {
        let mut all = dims.clone();
        if let Some(first) = all.first_mut() {
            *first = d;
        }
        size(blueprint, &all)
    };
    let whole = size(blueprint, dims);
    let (mut fewest, mut fullest) = (whole, whole);
    for kind in kinds {
        let (step, there) = (site::together(kind, first), units(kind, first));
        let (mut fewer, mut last, mut none) = (*first, *first, *first);
        take(&mut fewer, kind, step, blueprint);
        take(&mut last, kind, there.saturating_sub(step), blueprint);
        take(&mut none, kind, there, blueprint);
        let gone = sim.gone.get(&kind).copied().unwrap_or(0);
        let each = whole.saturating_sub(with(fewer));
        if whole.saturating_sub(with(last)) != each * (there / step.max(1)).saturating_sub(1) as u64 {
            // No sum: a token sees no more experts than so many, say.
            return Some(bounds);
        }
        let all = each * (gone / step.max(1)) as u64;
        // A layer whose last unit goes loses its norm, say, too.
        let rest = with(last).saturating_sub(with(none)).saturating_sub(each);
        let emptied = sim.ranges.iter().filter(|(key, range)| key.kind == kind && range.1 >= there).count().min(gone / there.max(1));
        fullest = fullest.saturating_sub(all);
        fewest = fewest.saturating_sub(all + rest * emptied as u64);
    }
    Some((fewest.max(bounds.0), fullest.min(bounds.1)))
}

/// Whether units of one kind hold units of another.
fn overlap(kinds: &BTreeSet<SiteKind>) -> bool {
    let attention = [SiteKind::Heads, SiteKind::KvGroups, SiteKind::Attention];
    let mlp = [SiteKind::Neurons, SiteKind::Experts, SiteKind::Mlp];
    [attention, mlp].iter().any(|group| group.iter().filter(|kind| kinds.contains(kind)).count() > 1)
}

fn units(kind: SiteKind, d: &LayerDims) -> usize {
    match kind {
        SiteKind::Heads => d.q_heads,
        SiteKind::KvGroups => d.kv_heads,
        SiteKind::Neurons => d.ffn * d.experts.max(1),
        SiteKind::Experts => d.experts,
        SiteKind::Attention | SiteKind::Mlp | SiteKind::Layers | SiteKind::Hidden | SiteKind::Weights => 1,
    }
}
