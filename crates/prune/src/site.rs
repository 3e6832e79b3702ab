//! Sites and units: keys of scores, decisions and histories, and sets of units that a selector was expanded to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use prunectl_model::LayerDims;
use prunectl_recipe::Units;
use prunectl_recipe::catalogue::SiteKind;

/// One site: a kind of unit, in one layer; `layer` is `None` for [`SiteKind::Layers`] and [`SiteKind::Hidden`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The kind of unit.
    pub kind: SiteKind,
    /// The layer that holds the units.
    pub layer: Option<usize>,
}

impl Key {
    /// The key of units inside a layer.
    pub fn of(kind: SiteKind, layer: usize) -> Self {
        Self { kind, layer: if matches!(kind, SiteKind::Layers | SiteKind::Hidden) { None } else { Some(layer) } }
    }

    /// Reads what `Display` writes.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "layers" => return Some(Self { kind: SiteKind::Layers, layer: None }),
            "hidden" => return Some(Self { kind: SiteKind::Hidden, layer: None }),
            _ => {}
        }
        let (layer, rest) = text.strip_prefix("layers.")?.split_once('.')?;
        let kind = part_kind(rest)?;
        Some(Self { kind, layer: Some(layer.parse().ok()?) })
    }
}

/// `layers.3.attention.heads`, `layers`, `hidden`: the key of a scores file.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "layers.{layer}.{}", part(self.kind)),
            None => f.write_str(part(self.kind)),
        }
    }
}

/// `attention.heads`, `mlp.neurons`, …: a kind as it stands in a path behind its layer.
pub fn part(kind: SiteKind) -> &'static str {
    match kind {
        SiteKind::Heads => "attention.heads",
        SiteKind::KvGroups => "attention.kv_groups",
        SiteKind::Neurons => "mlp.neurons",
        SiteKind::Experts => "mlp.experts",
        SiteKind::Attention => "attention",
        SiteKind::Mlp => "mlp",
        SiteKind::Layers => "layers",
        SiteKind::Hidden => "hidden",
        SiteKind::Weights => "linears.weights",
    }
}

fn part_kind(text: &str) -> Option<SiteKind> {
    [SiteKind::Heads, SiteKind::KvGroups, SiteKind::Neurons, SiteKind::Experts, SiteKind::Attention, SiteKind::Mlp]
        .into_iter()
        .find(|k| part(*k) == text)
}

/// The kind in words, for messages.
pub fn plural(kind: SiteKind) -> &'static str {
    match kind {
        SiteKind::Heads => "heads",
        SiteKind::KvGroups => "KV groups",
        SiteKind::Neurons => "neurons",
        SiteKind::Experts => "experts",
        SiteKind::Attention => "attention sublayers",
        SiteKind::Mlp => "MLP sublayers",
        SiteKind::Layers => "layers",
        SiteKind::Hidden => "hidden channels",
        SiteKind::Weights => "weights",
    }
}

/// The length of each group of consecutive units of which every group of the layer must keep as many: the query heads that share keys and
/// values, the neurons of one expert. `None` where units leave on their own.
pub fn even_group(kind: SiteKind, d: &LayerDims) -> Option<usize> {
    match kind {
        SiteKind::Heads if d.group_size() > 1 => Some(d.group_size()),
        SiteKind::Neurons if d.experts > 1 => Some(d.ffn),
        _ => None,
    }
}

/// How many units of that kind leave a layer together, so that it stays legal: one of each group that leaves evenly.
pub fn together(kind: SiteKind, d: &LayerDims) -> usize {
    match (kind, even_group(kind, d)) {
        (SiteKind::Heads, Some(_)) => d.kv_heads,
        (_, Some(_)) => d.experts,
        (_, None) => 1,
    }
}

/// The network's name for the same kind; weights are not units of the network.
pub fn to_model(kind: SiteKind) -> Option<prunectl_model::SiteKind> {
    use prunectl_model::SiteKind as M;
    Some(match kind {
        SiteKind::Heads => M::Heads,
        SiteKind::KvGroups => M::KvGroups,
        SiteKind::Neurons => M::Neurons,
        SiteKind::Experts => M::Experts,
        SiteKind::Attention => M::Attention,
        SiteKind::Mlp => M::Mlp,
        SiteKind::Layers => M::Layers,
        SiteKind::Hidden => M::Hidden,
        SiteKind::Weights => return None,
    })
}

/// A set of units and of whole weight matrices: what a selector names on a model of known shape. Indices are the current model's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sites {
    /// Units by site.
    pub units: BTreeMap<Key, Units>,
    /// Slots of the matrices whose single weights are meant (`layers.0.mlp.up.weight`).
    pub weights: BTreeSet<String>,
}

impl Sites {
    /// Adds units of one site.
    pub fn add(&mut self, key: Key, units: impl IntoIterator<Item = usize>) {
        self.units.entry(key).or_default().extend(units);
    }

    /// Whether it names nothing.
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty() && self.units.values().all(Units::is_empty)
    }

    /// Whether it names that unit.
    pub fn contains(&self, key: Key, unit: usize) -> bool {
        self.units.get(&key).is_some_and(|u| u.contains(unit))
    }

    /// The kinds that it names, in a fixed order.
    pub fn kinds(&self) -> BTreeSet<SiteKind> {
        let mut kinds: BTreeSet<SiteKind> = self.units.iter().filter(|(_, u)| !u.is_empty()).map(|(k, _)| k.kind).collect();
        if !self.weights.is_empty() {
            kinds.insert(SiteKind::Weights);
        }
        kinds
    }

    /// Units of that kind, all layers together.
    pub fn count(&self, kind: SiteKind) -> usize {
        self.units.iter().filter(|(k, _)| k.kind == kind).map(|(_, u)| u.len() as usize).sum()
    }

    /// The sites of one kind, by layer.
    pub fn of_kind(&self, kind: SiteKind) -> impl Iterator<Item = (Key, &Units)> {
        self.units.iter().filter(move |(k, u)| k.kind == kind && !u.is_empty()).map(|(k, u)| (*k, u))
    }
}

/// The layer number in a slot (`layers.3.attention.q.weight` → 3).
pub fn slot_layer(slot: &str) -> Option<usize> {
    slot.strip_prefix("layers.")?.split('.').next()?.parse().ok()
}
