//! Steps that are quick enough to be done again in a resumed run: loading, copies, snapshots, rewinding, compacting.

use prunectl_model::Shelf;
use prunectl_prune::{QUANTIZERS, Removed, UnitMap, build, surgery};
use prunectl_recipe::plan::{Method, ModelSource};

use crate::error::{Error, Result};
use crate::executor::state::{ModelState, Snapshot};
use crate::executor::{Executor, Outcome};
use crate::lock::LockedSource;
use crate::models::{Place, describe, hashes, load, read_facts};
use crate::save::PruneRecord;
use crate::streaming;

impl Executor<'_> {
    pub(super) fn load(&mut self, name: &str) -> Result<Outcome> {
        let decl = self.plan.models.iter().find(|m| m.name == name);
        let decl = decl.ok_or_else(|| Error::Internal(format!("model `{name}` is not declared")))?.clone();
        if let ModelSource::Copy(of) = &decl.source {
            let mut copy = self.state.model(of)?.clone();
            copy.decl = decl;
            self.state.models.insert(name.to_owned(), copy);
            return Ok(Outcome::default());
        }
        let source = describe(&decl.source);
        self.options.ui.note(format!("loading {name} from {source}"));
        let files = hashes(&decl, &self.options.hub)?;
        if self.lock.model(name, LockedSource { source, files: files.clone() }, "the run began")? {
            self.write_lock()?;
        }
        let facts = read_facts(&decl, &self.options.hub)?;
        let memory = streaming::budget(self.options.memory);
        let streamed =
            matches!(decl.source, ModelSource::Dir(_) | ModelSource::Hub { .. }) && streaming::streams(self.plan, &facts, memory);
        if streamed {
            self.options.ui.note(format!("{name} stays on the disk: its blocks pass through memory one after the other"));
        }
        let shelf = streamed.then(|| Shelf::new(self.dir.path())).transpose()?;
        let loaded = load(&decl, &self.device, self.options.dtype, &self.options.hub, shelf)?;
        let record = match &loaded.files {
            Place::Folder(dir) => PruneRecord::read(dir)?,
            Place::Builtin(_) | Place::Config(_) => None,
        };
        let file_bytes = match &decl.source {
            ModelSource::Init { .. } => None,
            _ => {
                if !facts.fresh.is_empty() {
                    let outputs = match facts.blueprint.head {
                        prunectl_model::Head::Sequence { labels, .. } => {
                            format!(" with {labels} outputs (`labels = …` says another number)")
                        }
                        _ => String::new(),
                    };
                    self.warn(format!(
                        "{name}: its files hold no {}; a head{outputs} was drawn at random (seed 0). Train it before you measure anything",
                        facts.fresh.join(", ")
                    ));
                }
                Some(facts.file_bytes)
            }
        };
        let state = ModelState {
            dense: loaded.model.clone(),
            removed: Removed::beside(&loaded.model)?,
            model: loaded.model,
            map: UnitMap::default(),
            adapters: Default::default(),
            tokenizer: loaded.tokenizer,
            decl,
            files: loaded.files,
            file_bytes,
            hashes: files,
            record,
            memory_bytes: memory,
            changed: false,
        };
        self.state.models.insert(name.to_owned(), state);
        Ok(Outcome::default())
    }

    pub(super) fn freeze(&mut self, model: &str, id: u32) -> Result<Outcome> {
        let frozen = self.state.model(model)?.model.clone();
        self.state.frozen.insert(id, frozen);
        Ok(Outcome::default())
    }

    pub(super) fn snapshot(&mut self, model: &str, name: &str) -> Result<Outcome> {
        let taken = Snapshot { model: model.to_owned(), network: self.state.model(model)?.model.clone() };
        self.state.snapshots.insert(name.to_owned(), taken);
        Ok(Outcome::default())
    }

    /// Weights go back, masks stay: what is masked now is zero again afterwards.
    pub(super) fn rewind(&mut self, model: &str, to: &str, schedule_only: bool) -> Result<Outcome> {
        if schedule_only {
            // Every `train` counts its own steps from 0, so its learning-rate clock has gone back already.
            return Ok(Outcome::default());
        }
        let snapshot = self.state.snapshot(to)?.network.clone();
        let state = self.state.model_mut(model)?;
        if snapshot.dims() != state.model.dims() || snapshot.blueprint().hidden != state.model.blueprint().hidden {
            return Err(Error::Refused {
                what: format!("`{model}` was compacted since `snapshot {model} as {to}`, so its weights can't go back"),
                remedy: "rewind before `compact`, or take the snapshot after it".to_owned(),
            });
        }
        state.model = snapshot;
        state.drop_lost_adapters();
        remask(state)?;
        Ok(Outcome::default())
    }

    pub(super) fn compact(&mut self, model: &str) -> Result<Outcome> {
        let ui = self.options.ui;
        let state = self.state.model_mut(model)?;
        let whole = state.removed.units.kinds().contains(&prunectl_recipe::catalogue::SiteKind::Layers);
        if whole && !state.adapters.is_empty() {
            return Err(Error::Refused {
                what: format!("`compact {model}` takes whole layers out, and with them parts of an adapter"),
                remedy: "fuse the adapter first".to_owned(),
            });
        }
        let before = state.model.parameter_count();
        if state.removed.units.is_empty() {
            ui.note(format!("compact {model}: no whole unit is masked, nothing to take out"));
        }
        surgery::compact(&mut state.model, &mut state.removed, &mut state.map)?;
        let after = state.model.parameter_count();
        ui.note(format!("compact {model}: {before} parameters before, {after} after"));
        Ok(Outcome::default())
    }

    /// Matrices of fewer bits. Nothing may change them afterwards.
    pub(super) fn quantize(&mut self, model: &str, method: &Method) -> Result<Outcome> {
        let state = self.state.model_mut(model)?;
        state.model = build(QUANTIZERS, &method.name, &method.args)?.quantize(&state.model)?;
        state.changed = true;
        Ok(Outcome::default())
    }

    /// New weights in the shape that the model has now; masks stay.
    pub(super) fn reinit(&mut self, model: &str, seed: u64) -> Result<Outcome> {
        let state = self.state.model_mut(model)?;
        if !state.adapters.is_empty() {
            return Err(Error::Refused {
                what: format!("`{model}` has an adapter, and new weights would make it meaningless"),
                remedy: "fuse it before `reinit`, or attach it afterwards".to_owned(),
            });
        }
        state.model = state.model.reinit(seed)?;
        state.changed = true;
        remask(state)?;
        Ok(Outcome::default())
    }
}

/// Zeroes again what is masked, or gives it the value at which it is held.
fn remask(state: &mut ModelState) -> Result<()> {
    let removed = std::mem::take(&mut state.removed);
    state.removed.held = removed.held.clone();
    let mut decision = prunectl_prune::Decision::default();
    for (key, gone) in &removed.units.units {
        let total = match prunectl_prune::site::to_model(key.kind) {
            Some(kind) => state.model.units(kind, key.layer)?,
            None => continue,
        };
        decision.sites.insert(*key, (0..total).filter(|u| !gone.contains(*u)).collect());
    }
    decision.weights = removed.weights.clone();
    surgery::mask(&mut state.model, &mut state.removed, &decision)?;
    Ok(())
}
