//! `attach`, `fuse`, and what adapters change in other steps: which parameters train, what is scored, what is saved.

use std::collections::BTreeSet;

use prunectl_model::adapter::{self, is_adapter};
use prunectl_prune::{ADAPTERS, adapter_slots, build};
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::{Method, Part, Selector, Value};

use crate::error::{Error, Result};
use crate::executor::preflight::saves_to;
use crate::executor::state::{ModelState, model_of};
use crate::executor::{Executor, Outcome};
use crate::save::{adapter_files, check_adapter, read_adapter};

impl Executor<'_> {
    pub(super) fn attach(&mut self, method: &Method, selector: &Selector, name: &str) -> Result<Outcome> {
        let model = model_of(selector).to_owned();
        let state = self.state.model(&model)?;
        let sites = state.sites(selector)?;
        if let Some(kind) = sites.kinds().into_iter().find(|k| *k != SiteKind::Weights) {
            return Err(Error::Refused {
                what: format!("an adapter is attached to matrices, the selector names {}", prunectl_prune::site::plural(kind)),
                remedy: "write `.linears` behind the layers or sublayers".to_owned(),
            });
        }
        let added = build(ADAPTERS, &method.name, &method.args)?.attach(&state.model, &sites.weights)?;
        let stems: BTreeSet<String> = sites.weights.iter().map(|w| adapter::stem_of(w).to_owned()).collect();
        let mut left = Vec::new();
        if let Some(Value::Path(folder)) = method.args.get("from") {
            check_adapter(folder)?;
            // What this run makes itself may be another in the next round.
            if !saves_to(self.plan, folder) {
                self.lock_files(&adapter_files(folder))?;
            }
        }
        let state = self.state.model_mut(&model)?;
        for (slot, tensor) in added {
            state.model.params_mut().set(slot, tensor);
        }
        if let Some(Value::Path(folder)) = method.args.get("from") {
            left = read_adapter(&mut state.model, &stems, folder)?;
        }
        let slots = adapter_slots(&state.model, &stems);
        let numbers: usize = slots.iter().filter_map(|s| state.model.params().get(s)).map(|t| t.elem_count()).sum();
        let whole: usize = sites.weights.iter().filter_map(|s| state.model.params().get(s)).map(|t| t.elem_count()).sum();
        state.adapters.insert(name.to_owned(), stems.clone());
        state.changed = true;
        self.options.ui.note(format!("{name}: {} on {} matrices, {numbers} parameters beside {whole}", method.name, stems.len()));
        if let Some(first) = left.first() {
            self.warn(format!(
                "{name}: the folder has updates of {} more modules, such as `{first}`; attach to these, too, to take them",
                left.len()
            ));
        }
        let result = serde_json::json!({"adapter": method.name, "matrices": stems.len(), "parameters": numbers, "beside": whole});
        Ok(Outcome { result, ..Outcome::default() })
    }

    pub(super) fn fuse(&mut self, name: &str, model: &str) -> Result<Outcome> {
        let state = self.state.model_mut(model)?;
        let Some(stems) = state.adapters.remove(name) else {
            return Err(Error::Refused {
                what: format!("`{name}` is not attached to `{model}` here"),
                remedy: "fuse an adapter once, and not after a `rewind` to before it was attached".to_owned(),
            });
        };
        state.model = state.model.fused(&stems)?;
        state.changed = true;
        Ok(Outcome::default())
    }

    /// Slots that train: those that `only` names, or else those of the adapters, or else (None) all. A weight with an adapter is frozen.
    pub(super) fn trained(&self, state: &ModelState, only: Option<&Selector>) -> Result<Option<BTreeSet<String>>> {
        let adapted = state.model.adapted();
        let Some(only) = only else {
            return Ok((!adapted.is_empty()).then(|| adapter_slots(&state.model, &adapted)));
        };
        let mut out = named(state, only)?;
        out.retain(|slot| !adapted.contains(adapter::stem_of(slot)) && (!is_adapter(slot) || adapter::trains(slot)));
        Ok(Some(out))
    }
}

impl ModelState {
    /// The same model with its adapters added into the weights: what scores, and folders, are made of.
    pub(super) fn without_adapters(&self) -> Result<Self> {
        let adapted = self.model.adapted();
        if adapted.is_empty() {
            return Ok(self.clone());
        }
        Ok(Self { model: self.model.fused(&adapted)?, ..self.clone() })
    }

    /// Forgets adapters that the model does not carry any more.
    pub(super) fn drop_lost_adapters(&mut self) {
        let there = self.model.adapted();
        self.adapters.retain(|_, stems| stems.iter().all(|s| there.contains(s)));
    }
}

/// Every slot that a selector names.
fn named(state: &ModelState, selector: &Selector) -> Result<BTreeSet<String>> {
    let all = || state.model.params().slots().map(str::to_owned);
    let below = |prefixes: &[&str]| all().filter(|slot| prefixes.iter().any(|p| slot.starts_with(p))).collect();
    Ok(match selector {
        Selector::Union(parts) => {
            let mut out = BTreeSet::new();
            for part in parts {
                out.extend(named(state, part)?);
            }
            out
        }
        Selector::Except(of, but) => {
            let but = named(state, but)?;
            named(state, of)?.into_iter().filter(|slot| !but.contains(slot)).collect()
        }
        Selector::Path { part, .. } => match part {
            Part::Model => all().collect(),
            Part::Embeddings => below(&["embeddings."]),
            Part::Head => below(&["head."]),
            Part::Classifier => below(&["classifier.", "pooler."]),
            Part::Adapter(name) => match state.adapters.get(name) {
                Some(stems) => adapter_slots(&state.model, stems),
                None => {
                    return Err(Error::Refused {
                        what: format!("adapter `{name}` is not attached here"),
                        remedy: "train before it is fused".to_owned(),
                    });
                }
            },
            _ => {
                let sites = state.sites(selector)?;
                let mut out = sites.weights.clone();
                for (key, units) in &sites.units {
                    let Some(kind) = prunectl_prune::site::to_model(key.kind) else { continue };
                    for unit in units {
                        out.extend(state.model.group(kind, key.layer, unit)?.into_iter().map(|s| s.slot));
                    }
                }
                out
            }
        },
    })
}
