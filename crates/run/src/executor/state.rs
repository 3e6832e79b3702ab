//! What the steps of a run work on. Cloning is cheap (tensors are shared), so a sweep's cells each start from a copy.

use std::collections::{BTreeMap, BTreeSet};

use prunectl_model::Transformer;
use prunectl_prune::{Removed, Scores, Sites, UnitMap};
use prunectl_recipe::plan::{ModelDecl, Value};
use prunectl_recipe::{Site, plan::Selector};

use crate::error::{Error, Result};
use crate::models::{Place, facts_of};
use crate::save::PruneRecord;
use crate::tokenizer::Tokenizer;

/// Everything that a step can change.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Models by name.
    pub models: BTreeMap<String, ModelState>,
    /// Snapshots by name.
    pub snapshots: BTreeMap<String, Snapshot>,
    /// `frozen(m)` by its number.
    pub frozen: BTreeMap<u32, Transformer>,
    /// `score … as s`.
    pub scores: BTreeMap<String, Scores>,
}

/// A model's network as it once was.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The model's name.
    pub model: String,
    /// Its weights then.
    pub network: Transformer,
}

/// One model.
#[derive(Debug, Clone)]
pub struct ModelState {
    /// The network as it is now; masked units are zeros.
    pub model: Transformer,
    /// What is masked.
    pub removed: Removed,
    /// Where today's units came from.
    pub map: UnitMap,
    /// Attached adapters: the stems of the weights that carry them, by name.
    pub adapters: BTreeMap<String, BTreeSet<String>>,
    /// Its tokenizer.
    pub tokenizer: Option<Tokenizer>,
    /// As it was loaded.
    pub dense: Transformer,
    /// Its declaration.
    pub decl: ModelDecl,
    /// Where its files are.
    pub files: Place,
    /// Bytes of its weight files, where it has any.
    pub file_bytes: Option<u64>,
    /// Hashes of its files.
    pub hashes: BTreeMap<String, String>,
    /// `prune.json` of the folder that it was loaded from.
    pub record: Option<PruneRecord>,
    /// The memory that its steps may use, which decides batches.
    pub memory_bytes: u64,
    /// Whether a prune or a training has changed it.
    pub changed: bool,
}

impl ModelState {
    /// The units that a selector names on this model as it is now.
    pub fn sites(&self, selector: &Selector) -> Result<Sites> {
        let facts = facts_of(&self.model)?;
        let expanded = prunectl_recipe::expand(selector, &facts).map_err(|d| Error::Refused {
            what: d.message.clone(),
            remedy: if d.hints.is_empty() { "look at the model with `prunectl inspect`".to_owned() } else { d.hints.join("; ") },
        })?;
        Ok(to_sites(&expanded))
    }
}

/// Expanded sites in the form that criteria take.
pub fn to_sites(expanded: &[Site]) -> Sites {
    let mut out = Sites::default();
    for site in expanded {
        out.weights.extend(site.tensors.iter().cloned());
        if !site.units.is_empty() {
            let key = prunectl_prune::Key::of(site.kind, site.layer.unwrap_or_default());
            *out.units.entry(key).or_default() |= &site.units;
        }
    }
    out
}

/// The model that a selector speaks of; the checker made sure that there is one.
pub fn model_of(selector: &Selector) -> &str {
    match selector {
        Selector::Path { model, .. } => model,
        Selector::Union(parts) => parts.first().map_or("", model_of),
        Selector::Except(of, _) => model_of(of),
    }
}

impl State {
    /// A model by name.
    pub fn model(&self, name: &str) -> Result<&ModelState> {
        self.models.get(name).ok_or_else(|| Error::Internal(format!("model `{name}` is used before it is loaded")))
    }

    /// A model by name, to be changed.
    pub fn model_mut(&mut self, name: &str) -> Result<&mut ModelState> {
        self.models.get_mut(name).ok_or_else(|| Error::Internal(format!("model `{name}` is used before it is loaded")))
    }

    /// A snapshot by name.
    pub fn snapshot(&self, name: &str) -> Result<&Snapshot> {
        self.snapshots.get(name).ok_or_else(|| Error::Internal(format!("snapshot `{name}` is used before it is taken")))
    }

    /// The network that a value names: a model, a snapshot, or `frozen(m)`; and the model's name.
    pub fn network(&self, value: &Value) -> Result<(Transformer, String)> {
        match value {
            Value::Name(name) if self.snapshots.contains_key(name) => self.snapshot(name).map(|s| (s.network.clone(), s.model.clone())),
            Value::Model(name) | Value::Name(name) => Ok((self.model(name)?.model.clone(), name.clone())),
            Value::Frozen { model, id } => {
                let frozen = self.frozen.get(id).ok_or_else(|| Error::Internal(format!("frozen({model}) is used before it is made")))?;
                Ok((frozen.clone(), model.clone()))
            }
            other => Err(Error::Internal(format!("a model was expected, found {other:?}"))),
        }
    }
}
