//! Decisions: what stays, as data before it is surgery; what is gone but still there as zeros; and where today's units came from.

use std::collections::{BTreeMap, BTreeSet};

use prunectl_model::{LayerDims, Tensors, Transformer};
use prunectl_recipe::catalogue::SiteKind;
use serde::{Deserialize, Serialize};

use crate::error::{PruneError, Result};
use crate::site::{Key, Sites, part};

/// What stays. Serialise it with [`Decision::record`]; apply it with `surgery::mask`.
#[derive(Debug, Clone, Default)]
pub struct Decision {
    /// Kept units of each site concerned, ascending, in indices of the model that was scored. Units that were removed before are not in it.
    pub sites: BTreeMap<Key, Vec<usize>>,
    /// u8 `[out, in]` by slot, 1 = kept.
    pub weights: Tensors,
}

/// What is masked in a model and not compacted yet, in indices of the model as it is.
#[derive(Debug, Clone, Default)]
pub struct Removed {
    /// Units that are zeros now.
    pub units: Sites,
    /// u8 `[out, in]` by slot, 1 = kept: weights that must stay zero, or what `held` says.
    pub weights: Tensors,
    /// What masked weights stand at where that is not zero (`supermask(fill = init)`), f32 `[out, in]` by slot, 0 at all others.
    pub held: Tensors,
}

impl Removed {
    /// Nothing yet; masks of a streamed model's weights can be put away.
    ///
    /// # Errors
    /// No file can be made beside the model's.
    pub fn beside(model: &Transformer) -> Result<Self> {
        Ok(Self { weights: model.params().tensors().beside()?, ..Self::default() })
    }

    /// Whether that unit is gone.
    pub fn has(&self, key: Key, unit: usize) -> bool {
        self.units.contains(key, unit)
    }

    /// Whether nothing is masked.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty() && self.weights.is_empty()
    }

    /// Adds what a decision removes, with what goes along: a KV group takes its query heads, a layer both sublayers,
    /// a sublayer its units, an expert its neurons; a site whose last unit went takes the site that holds it.
    pub fn add(&mut self, decision: &Decision, dims: &[LayerDims], hidden: usize) -> Result<()> {
        for (key, kept) in &decision.sites {
            let kept: BTreeSet<usize> = kept.iter().copied().collect();
            let total = unit_count(*key, dims, hidden);
            for unit in (0..total).filter(|u| !kept.contains(u)) {
                self.remove(*key, unit, dims);
            }
        }
        for slot in decision.weights.keys() {
            match (self.weights.read(slot)?, decision.weights.read(slot)?) {
                (Some(before), Some(keep)) => {
                    self.weights.insert(slot.clone(), before.mul(&keep)?);
                    self.weights.put_away(slot)?;
                }
                _ => self.weights.share(slot, &decision.weights, slot),
            }
        }
        Ok(())
    }

    fn remove(&mut self, key: Key, unit: usize, dims: &[LayerDims]) {
        self.units.add(key, [unit]);
        let layer = if key.kind == SiteKind::Layers { unit } else { key.layer.unwrap_or_default() };
        let Some(d) = dims.get(layer) else { return };
        match key.kind {
            SiteKind::Layers => {
                self.remove(Key::of(SiteKind::Attention, layer), 0, dims);
                self.remove(Key::of(SiteKind::Mlp, layer), 0, dims);
            }
            SiteKind::Attention => {
                self.units.add(Key::of(SiteKind::Heads, layer), 0..d.q_heads);
                self.units.add(Key::of(SiteKind::KvGroups, layer), 0..d.kv_heads);
            }
            SiteKind::Mlp => {
                self.units.add(Key::of(SiteKind::Neurons, layer), 0..neurons(d));
                self.units.add(Key::of(SiteKind::Experts, layer), 0..d.experts);
            }
            SiteKind::KvGroups => {
                let r = d.group_size();
                self.units.add(Key::of(SiteKind::Heads, layer), unit * r..(unit + 1) * r);
            }
            SiteKind::Heads => {
                let r = d.group_size().max(1);
                let group = unit / r;
                if (group * r..(group + 1) * r).all(|h| self.has(key, h)) {
                    self.units.add(Key::of(SiteKind::KvGroups, layer), [group]);
                }
            }
            SiteKind::Experts => {
                self.units.add(Key::of(SiteKind::Neurons, layer), unit * d.ffn..(unit + 1) * d.ffn);
            }
            SiteKind::Neurons | SiteKind::Hidden | SiteKind::Weights => {}
        }
    }
}

fn neurons(d: &LayerDims) -> usize {
    d.ffn * d.experts.max(1)
}

/// Units of a site; hidden channels are not in `dims`, so their count is passed in.
pub(crate) fn unit_count(key: Key, dims: &[LayerDims], hidden: usize) -> usize {
    let d = key.layer.and_then(|l| dims.get(l)).copied().unwrap_or_default();
    match key.kind {
        SiteKind::Heads => d.q_heads,
        SiteKind::KvGroups => d.kv_heads,
        SiteKind::Neurons => neurons(&d),
        SiteKind::Experts => d.experts,
        SiteKind::Attention => usize::from(d.has_attention()),
        SiteKind::Mlp => usize::from(d.has_mlp()),
        SiteKind::Layers => dims.len(),
        SiteKind::Hidden => hidden,
        SiteKind::Weights => 0,
    }
}

/// Which unit of the original model each unit of today's model is. Sites that never lost a unit are not listed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitMap {
    /// `original[i]` of unit i now, by `layers.{original layer}.attention.heads`, ….
    pub sites: BTreeMap<String, Vec<usize>>,
}

impl UnitMap {
    /// The original layer of today's layer.
    pub fn layer(&self, layer: usize) -> usize {
        self.sites.get("layers").and_then(|l| l.get(layer)).copied().unwrap_or(layer)
    }

    fn original_key(&self, key: Key) -> Key {
        Key { kind: key.kind, layer: key.layer.map(|l| self.layer(l)) }
    }

    /// The original index of today's unit.
    pub fn unit(&self, key: Key, unit: usize) -> usize {
        let name = self.original_key(key).to_string();
        self.sites.get(&name).and_then(|u| u.get(unit)).copied().unwrap_or(unit)
    }

    /// Records that only `kept` units of a site are left. Record units inside layers before `layers` themselves.
    pub fn keep(&mut self, key: Key, kept: &[usize]) {
        let original: Vec<usize> = kept.iter().map(|u| self.unit(key, *u)).collect();
        self.sites.insert(self.original_key(key).to_string(), original);
    }
}

/// A decision as it is written to `decisions/NAME.json`, in indices of the original model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// One entry a kind of unit.
    pub sites: Vec<SiteRecord>,
    /// Slots whose keep masks stand in the safetensors file beside it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<String>,
}

/// Kept units of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteRecord {
    /// `attention.heads`, `mlp.neurons`, `layers`, ….
    pub site: String,
    /// Kept units by layer; under `*` for `layers` and `hidden`.
    pub kept: BTreeMap<String, Vec<usize>>,
}

/// The key of kept units that are in no layer.
const WHOLE_MODEL: &str = "*";

impl Decision {
    /// Nothing yet; masks of a streamed model's weights can be put away.
    ///
    /// # Errors
    /// No file can be made beside the model's.
    pub fn beside(model: &Transformer) -> Result<Self> {
        Ok(Self { sites: BTreeMap::new(), weights: model.params().tensors().beside()? })
    }

    /// The same, its masks put away where those of `whole` are.
    ///
    /// # Errors
    /// The disk is full.
    pub fn stored_in(mut self, whole: &Self) -> Result<Self> {
        let mut weights = Tensors::on(whole.weights.shelf().cloned());
        weights.store(std::mem::take(&mut self.weights))?;
        Ok(Self { weights, ..self })
    }

    /// Adds what was decided of other sites.
    pub fn add(&mut self, other: Self) {
        self.sites.extend(other.sites);
        self.weights.extend(other.weights);
    }

    /// The decision in indices of the original model. Layers sort by number, as text does not: the map's keys are padded by no one,
    /// so readers must parse them.
    pub fn record(&self, map: &UnitMap) -> Record {
        let mut sites: BTreeMap<&'static str, BTreeMap<String, Vec<usize>>> = BTreeMap::new();
        for (key, kept) in &self.sites {
            let layer = key.layer.map_or_else(|| WHOLE_MODEL.to_owned(), |l| map.layer(l).to_string());
            let kept = kept.iter().map(|u| map.unit(*key, *u)).collect();
            sites.entry(part(key.kind)).or_default().insert(layer, kept);
        }
        Record {
            sites: sites.into_iter().map(|(site, kept)| SiteRecord { site: site.to_owned(), kept }).collect(),
            weights: self.weights.keys().cloned().collect(),
        }
    }

    /// The decision that a record of a model with that history means; `weights` are the keep masks of the file beside it.
    pub fn from_record(record: &Record, weights: Tensors, map: &UnitMap, layers: usize) -> Result<Self> {
        let now: BTreeMap<usize, usize> = (0..layers).map(|l| (map.layer(l), l)).collect();
        let mut out = Self { sites: BTreeMap::new(), weights };
        for site in &record.sites {
            for (layer, kept) in &site.kept {
                let (key, name) = if layer == WHOLE_MODEL {
                    (Key::parse(&site.site), site.site.clone())
                } else {
                    let name = format!("layers.{layer}.{}", site.site);
                    (Key::parse(&name), name)
                };
                let unknown = || PruneError::Invalid {
                    what: "site of a decision",
                    found: name.clone(),
                    expected: "a site of this model, such as `attention.heads` of a layer that is still there".into(),
                };
                let mut key = key.ok_or_else(unknown)?;
                let original = map.sites.get(&key.to_string());
                if let Some(l) = key.layer {
                    key.layer = Some(*now.get(&l).ok_or_else(unknown)?);
                }
                let kept = match original {
                    None => kept.clone(),
                    Some(original) => {
                        let wanted: BTreeSet<usize> = kept.iter().copied().collect();
                        original.iter().enumerate().filter(|(_, o)| wanted.contains(o)).map(|(i, _)| i).collect()
                    }
                };
                out.sites.insert(key, kept);
            }
        }
        Ok(out)
    }
}
