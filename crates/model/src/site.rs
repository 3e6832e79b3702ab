//! Sites and units: which slices of which parameters belong to one removable unit, and leave together.

use serde::{Deserialize, Serialize};

use crate::blueprint::{Blueprint, Head, Projection};
use crate::dims::LayerDims;
use crate::error::{ModelError, Result};

/// Kinds of prunable places. The same as the recipe language's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SiteKind {
    /// Query heads.
    Heads,
    /// Key/value heads with their query heads.
    KvGroups,
    /// FFN neurons; in a mixture unit e·ffn + f is neuron f of expert e.
    Neurons,
    /// Routed experts, with their router rows.
    Experts,
    /// A whole attention sublayer.
    Attention,
    /// A whole MLP sublayer.
    Mlp,
    /// A whole layer.
    Layers,
    /// Channels of the residual stream.
    Hidden,
    /// Single entries of weight matrices.
    Weights,
}

impl SiteKind {
    /// Its name in messages and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Heads => "heads",
            Self::KvGroups => "kv_groups",
            Self::Neurons => "neurons",
            Self::Experts => "experts",
            Self::Attention => "attention",
            Self::Mlp => "mlp",
            Self::Layers => "layers",
            Self::Hidden => "hidden",
            Self::Weights => "weights",
        }
    }
}

/// `len` consecutive indices of dimension `dim` of a parameter, from `start`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slice {
    /// The parameter.
    pub slot: String,
    /// The dimension.
    pub dim: usize,
    /// First index.
    pub start: usize,
    /// Number of indices.
    pub len: usize,
}

impl Slice {
    fn new(slot: String, dim: usize, start: usize, len: usize) -> Self {
        Self { slot, dim, start, len }
    }
}

/// Units of that kind: in a layer, or in the whole model for `Layers` and `Hidden`.
pub fn units(blueprint: &Blueprint, dims: &[LayerDims], kind: SiteKind, layer: Option<usize>) -> Result<usize> {
    Ok(match kind {
        SiteKind::Layers => dims.len(),
        SiteKind::Hidden => blueprint.hidden,
        SiteKind::Weights => return Err(no_units(kind, layer)),
        _ => {
            let (_, d) = layer_of(dims, kind, layer)?;
            match kind {
                SiteKind::Heads => d.q_heads,
                SiteKind::KvGroups => d.kv_heads,
                SiteKind::Neurons => d.ffn * d.experts.max(1),
                SiteKind::Experts => d.experts,
                SiteKind::Attention => usize::from(d.has_attention()),
                _ => usize::from(d.has_mlp()),
            }
        }
    })
}

/// The coupled slices of one unit: removing the unit removes these.
///
/// Zeroing them switches the unit off too, with two exceptions that need gates: a layer of a post-norm network (its norms change what
/// passes), and an expert (a zeroed router row is still chosen).
pub fn group(blueprint: &Blueprint, dims: &[LayerDims], kind: SiteKind, layer: Option<usize>, unit: usize) -> Result<Vec<Slice>> {
    let available = units(blueprint, dims, kind, layer)?;
    if unit >= available {
        return Err(wrong_units(kind, layer, &[unit], available));
    }
    match kind {
        SiteKind::Hidden => return Ok(hidden_group(blueprint, dims, unit)),
        SiteKind::Layers => return Ok(whole_slots(blueprint, dims, &|name| name.starts_with(&format!("layers.{unit}.")))),
        _ => {}
    }
    let (layer, d) = layer_of(dims, kind, layer)?;
    let p = format!("layers.{layer}");
    Ok(match kind {
        SiteKind::Heads => {
            let mut slices = Vec::new();
            // With shared key/value heads those stay until the last query head of their group goes.
            let own_kv = d.group_size() == 1;
            for name in if own_kv { &["q", "k", "v"][..] } else { &["q"] } {
                rows(&mut slices, &format!("{p}.attention.{name}"), unit * d.head_dim, d.head_dim, blueprint.attention.qkv_bias);
            }
            slices.push(Slice::new(format!("{p}.attention.o.weight"), 1, unit * d.head_dim, d.head_dim));
            slices
        }
        SiteKind::KvGroups => {
            let (mut slices, width) = (Vec::new(), d.group_size() * d.head_dim);
            let bias = blueprint.attention.qkv_bias;
            rows(&mut slices, &format!("{p}.attention.q"), unit * width, width, bias);
            for name in ["k", "v"] {
                rows(&mut slices, &format!("{p}.attention.{name}"), unit * d.head_dim, d.head_dim, bias);
            }
            slices.push(Slice::new(format!("{p}.attention.o.weight"), 1, unit * width, width));
            slices
        }
        SiteKind::Neurons => {
            let stems = d.mlp_stems(&p);
            let (expert, neuron) = (unit / d.ffn, unit % d.ffn);
            let stem = stems.get(expert).ok_or_else(|| wrong_units(kind, Some(layer), &[unit], available))?;
            let (mut slices, mlp) = (Vec::new(), &blueprint.mlp);
            if mlp.gated {
                rows(&mut slices, &format!("{stem}.gate"), neuron, 1, mlp.up_bias);
            }
            rows(&mut slices, &format!("{stem}.up"), neuron, 1, mlp.up_bias);
            slices.push(Slice::new(format!("{stem}.down.weight"), 1, neuron, 1));
            slices
        }
        SiteKind::Experts => {
            let prefix = format!("{p}.mlp.experts.{unit}.");
            let mut slices = whole_slots(blueprint, dims, &|name| name.starts_with(&prefix));
            slices.push(Slice::new(format!("{p}.mlp.router.weight"), 0, unit, 1));
            slices
        }
        _ => {
            // Whatever a network without the sublayer does not have.
            let mut without = dims.to_vec();
            if let Some(d) = without.get_mut(layer) {
                if kind == SiteKind::Attention { d.remove_attention() } else { d.remove_mlp() }
            }
            let left: std::collections::BTreeSet<String> = blueprint.slots(&without).into_iter().map(|s| s.name).collect();
            whole_slots(blueprint, dims, &|name| name.starts_with(&format!("{p}.")) && !left.contains(name))
        }
    })
}

impl LayerDims {
    /// The shape without its attention.
    pub fn remove_attention(&mut self) {
        (self.q_heads, self.kv_heads, self.attention_bias_left) = (0, 0, false);
    }

    /// The shape without its MLP.
    pub fn remove_mlp(&mut self) {
        (self.ffn, self.experts, self.mlp_bias_left) = (0, 0, false);
    }
}

/// Blueprint and dims of the model that keeps these units (ascending); `keep_units` on shapes alone, for `plan`.
pub fn shrink(
    blueprint: &Blueprint,
    dims: &[LayerDims],
    kind: SiteKind,
    layer: Option<usize>,
    kept: &[usize],
) -> Result<(Blueprint, Vec<LayerDims>)> {
    let available = units(blueprint, dims, kind, layer)?;
    let ascending = kept.windows(2).all(|w| matches!(w, [a, b] if a < b));
    if !ascending || kept.last().is_some_and(|last| *last >= available) {
        return Err(wrong_units(kind, layer, kept, available));
    }
    let (mut blueprint, mut dims) = (blueprint.clone(), dims.to_vec());
    match kind {
        SiteKind::Layers => {
            blueprint.layers = kept.iter().filter_map(|l| blueprint.layers.get(*l)).cloned().collect();
            dims = kept.iter().filter_map(|l| dims.get(*l)).copied().collect();
            return Ok((blueprint, dims));
        }
        SiteKind::Hidden => {
            if kept.is_empty() {
                return Err(wrong_units(kind, layer, kept, available));
            }
            if blueprint.embeddings.project.is_none() {
                blueprint.embeddings.width = kept.len();
            }
            blueprint.hidden = kept.len();
            return Ok((blueprint, dims));
        }
        _ => {}
    }
    let (index, d) = layer_of(&dims, kind, layer)?;
    let mut d = *d;
    match kind {
        SiteKind::Heads => {
            let kept_by_group = heads_by_group(&d, kept);
            let counts: Vec<usize> = kept_by_group.iter().copied().filter(|n| *n > 0).collect();
            if counts.windows(2).any(|w| matches!(w, [a, b] if a != b)) {
                return Err(ModelError::Uneven {
                    layer: index,
                    found: format!("{kept_by_group:?} query heads of the key/value groups"),
                    expected: "each group that stays must keep as many; remove whole kv_groups, or un-share keys and values first".into(),
                });
            }
            (d.q_heads, d.kv_heads) = (kept.len(), counts.len());
            d.attention_bias_left = kept.is_empty() && blueprint.attention.o_bias;
        }
        SiteKind::KvGroups => {
            (d.q_heads, d.kv_heads) = (kept.len() * d.group_size(), kept.len());
            d.attention_bias_left = kept.is_empty() && blueprint.attention.o_bias;
        }
        SiteKind::Neurons if d.experts == 0 => {
            d.ffn = kept.len();
            d.mlp_bias_left = kept.is_empty() && blueprint.mlp.down_bias;
        }
        SiteKind::Neurons => {
            let counts: Vec<usize> = (0..d.experts).map(|e| kept.iter().filter(|u| *u / d.ffn == e).count()).collect();
            let width = counts.first().copied().unwrap_or(0);
            if counts.iter().any(|n| *n != width) {
                return Err(ModelError::Uneven {
                    layer: index,
                    found: format!("{counts:?} neurons of the experts"),
                    expected: "every expert must keep as many".into(),
                });
            }
            if width == 0 { d.remove_mlp() } else { d.ffn = width }
        }
        SiteKind::Experts if kept.is_empty() => d.remove_mlp(),
        SiteKind::Experts => d.experts = kept.len(),
        SiteKind::Attention if kept.is_empty() => d.remove_attention(),
        SiteKind::Mlp if kept.is_empty() => d.remove_mlp(),
        _ => {}
    }
    if let Some(slot) = dims.get_mut(index) {
        *slot = d;
    }
    if let (SiteKind::Experts, Some(router)) = (kind, &mut blueprint.mlp.router) {
        let most = dims.iter().map(|d| d.experts).max().unwrap_or(0);
        router.top_k = router.top_k.min(most.max(1));
    }
    Ok((blueprint, dims))
}

/// How many of these query heads each key/value group has.
pub(crate) fn heads_by_group(d: &LayerDims, heads: &[usize]) -> Vec<usize> {
    let mut counts = vec![0; d.kv_heads];
    for head in heads {
        if let Some(count) = head.checked_div(d.group_size()).and_then(|g| counts.get_mut(g)) {
            *count += 1;
        }
    }
    counts
}

/// Weight matrices of a layer in the order in which they are applied, routers left out.
pub fn linears(blueprint: &Blueprint, dims: &[LayerDims], layer: usize) -> Result<Vec<String>> {
    let d = dims.get(layer).ok_or(ModelError::NoSuchLayer { layer, layers: dims.len() })?;
    let p = format!("layers.{layer}");
    let mut slots = Vec::new();
    if d.q_heads > 0 {
        slots.extend(["q", "k", "v", "o"].map(|name| format!("{p}.attention.{name}.weight")));
    }
    if d.ffn > 0 {
        for stem in d.mlp_stems(&p) {
            let names: &[&str] = if blueprint.mlp.gated { &["gate", "up", "down"] } else { &["up", "down"] };
            slots.extend(names.iter().map(|name| format!("{stem}.{name}.weight")));
        }
    }
    Ok(slots)
}

fn layer_of(dims: &[LayerDims], kind: SiteKind, layer: Option<usize>) -> Result<(usize, &LayerDims)> {
    let layer = layer.ok_or_else(|| no_units(kind, None))?;
    Ok((layer, dims.get(layer).ok_or(ModelError::NoSuchLayer { layer, layers: dims.len() })?))
}

fn rows(slices: &mut Vec<Slice>, stem: &str, start: usize, len: usize, bias: bool) {
    slices.push(Slice::new(format!("{stem}.weight"), 0, start, len));
    if bias {
        slices.push(Slice::new(format!("{stem}.bias"), 0, start, len));
    }
}

fn whole_slots(blueprint: &Blueprint, dims: &[LayerDims], belongs: &dyn Fn(&str) -> bool) -> Vec<Slice> {
    let slots = blueprint.slots(dims).into_iter().filter(|s| belongs(&s.name));
    slots.map(|s| Slice { len: s.shape.first().copied().unwrap_or(1), slot: s.name, dim: 0, start: 0 }).collect()
}

/// Every dimension of every parameter that runs along the residual stream.
fn hidden_group(blueprint: &Blueprint, dims: &[LayerDims], channel: usize) -> Vec<Slice> {
    let project = blueprint.embeddings.project;
    let mut slices = Vec::new();
    for slot in blueprint.slots(dims) {
        let along: &[usize] = match slot.name.as_str() {
            "embeddings.token.weight" | "embeddings.token_type.weight" if project.is_none() => &[1],
            "embeddings.position.weight" if project != Some(Projection::Sum) => &[1],
            "embeddings.norm.weight" | "embeddings.norm.bias" if project != Some(Projection::Sum) => &[0],
            "embeddings.project.weight" | "embeddings.project.bias" => &[0],
            "final_norm.weight" | "final_norm.bias" => &[0],
            "head.transform.weight" if project.is_none() => &[0, 1],
            "head.transform.weight" | "head.project.weight" => &[1],
            "classifier.weight" if !blueprint.projects_out() => &[1],
            "head.transform.bias" | "head.norm.weight" | "head.norm.bias" if project.is_none() => &[0],
            "head.weight" if project.is_none() || !narrow_head(&blueprint.head) => &[1],
            "pooler.weight" => &[0, 1],
            "pooler.bias" => &[0],
            name if name.starts_with("layers.") => layer_dims_along(name),
            _ => &[],
        };
        slices.extend(along.iter().map(|dim| Slice::new(slot.name.clone(), *dim, channel, 1)));
    }
    slices
}

/// Whether the token head multiplies something that is as wide as the embeddings, not as the residual stream.
fn narrow_head(head: &Head) -> bool {
    matches!(head, Head::Tokens { transform, project, .. } if transform.is_some() || *project)
}

fn layer_dims_along(name: &str) -> &'static [usize] {
    let mut parts = name.rsplit('.');
    let (leaf, module) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match (module, leaf) {
        ("norm1" | "norm2" | "post_norm1" | "post_norm2", _) => &[0],
        ("o" | "down", _) => &[0],
        ("q" | "k" | "v" | "gate" | "up" | "router", "weight") => &[1],
        _ => &[],
    }
}

fn no_units(kind: SiteKind, layer: Option<usize>) -> ModelError {
    let (found, expected) = match layer {
        None => ("no layer", "the layer that they are in"),
        Some(_) => ("single weights", "units; weights are kept or dropped by masks of their tensors"),
    };
    ModelError::Mismatch { what: format!("units of kind {}", kind.name()), found: found.into(), expected: expected.into() }
}

fn wrong_units(kind: SiteKind, layer: Option<usize>, found: &[usize], available: usize) -> ModelError {
    let place = layer.map_or_else(|| "the model".to_owned(), |l| format!("layer {l}"));
    ModelError::Units { kind: kind.name().into(), place, found: format!("{found:?}"), available }
}
