//! `save`: hands the model to the exporter, with the record of what was removed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use prunectl_model::LayerDims;
use prunectl_prune::{Key, UnitMap, site};
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::ModelSource;

use crate::data::FileRecord;
use crate::error::{Error, Result};
use crate::executor::book::SavedFolder;
use crate::executor::state::ModelState;
use crate::executor::{Executor, Outcome};
use crate::gguf::{self, Quantization};
use crate::journal::StepDone;
use crate::models::{Place, describe};
use crate::save::record::{KeptSite, RecipeRef, RunRecord, SourceRef};
use crate::save::{Assets, CardFacts, Layout, PruneRecord, SHARD_BYTES, SaveRequest, write, write_adapter};
use crate::session::Dtype;

impl Executor<'_> {
    pub(super) fn save(
        &mut self,
        model: &str,
        to: &str,
        format: &str,
        layout: &str,
        dtype: Option<&str>,
        done: Option<&StepDone>,
    ) -> Result<Outcome> {
        let target = PathBuf::from(to);
        if let Some(done) = done
            && let Ok(saved) = serde_json::from_value::<SavedFolder>(done.result.clone())
            && target.join("prune.json").is_file()
        {
            self.book.saves.push(saved);
            return Ok(Outcome {
                result: done.result.clone(),
                reused: Some(format!("{to} was saved before the interruption")),
                ..Outcome::default()
            });
        }
        // Left out, a format is `hf` and a layout is `compact`.
        let layout = if layout.is_empty() { "compact" } else { layout };
        let layout = Layout::parse(layout).ok_or_else(|| Error::Internal(format!("layout `{layout}`")))?;
        if format == "peft" {
            return self.save_adapters(model, to);
        }
        let gguf = match format {
            "" | "hf" => None,
            "gguf" => Some(dtype.map(str::parse::<Quantization>).transpose().map_err(|e| Error::Internal(format!("dtype: {e}")))?),
            _ => return Err(Error::Internal(format!("format `{format}`"))),
        };
        let dtype = match (gguf, dtype) {
            (None, Some(word)) => Some(word.parse::<Dtype>().map_err(|e| Error::Internal(format!("dtype: {e}")))?.0),
            _ => None,
        };
        let state = &self.state.model(model)?.without_adapters()?;
        let blocked = state.model.blocked();
        if !blocked.hidden.is_empty() {
            return Err(Error::Refused {
                what: format!(
                    "{} channels of the residual stream of `{model}` are masked, and a file of zeros can't say that norms leave them out",
                    blocked.hidden.len()
                ),
                remedy: format!("write `compact {model}` before the `save`"),
            });
        }
        let record = self.record_of(state, layout);
        let card = CardFacts {
            title: String::new(),
            base_model: match &state.decl.source {
                ModelSource::Hub { repo, .. } => Some(repo.clone()),
                _ => None,
            },
            license: None,
            task: state.model.origin().task.to_string(),
            dense_params: state.dense.parameter_count(),
            params: state.model.parameter_count(),
            metrics: self.metric_rows(),
            recipe: self.sources.get(0).map(|s| s.text.clone()).unwrap_or_default(),
        };
        let assets = match &state.files {
            Place::Folder(dir) => Assets::Folder(dir),
            Place::Builtin(files) => Assets::Bytes(files),
            // The tokenizer that lies beside the config was used with the model; it is its.
            Place::Config(config) => match config.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => Assets::Folder(folder),
                _ => Assets::Folder(std::path::Path::new(".")),
            },
        };
        let request = SaveRequest { target: &target, layout, dtype, assets, record: &record, card: &card, shard_bytes: SHARD_BYTES };
        let stored = state.model.origin().stored_dtype;
        let saved = self.dir.uninterrupted(|| match gguf {
            None => write(&state.model, &request),
            Some(quantization) => gguf::save(&state.model, &request, quantization.unwrap_or_else(|| Quantization::of(stored))),
        })?;
        let saved = SavedFolder {
            model: model.to_owned(),
            dir: to.to_owned(),
            weight_bytes: saved.weight_bytes,
            loaders: saved.loaders.iter().map(|l| (l.loader.to_string(), l.to_string())).collect(),
            verified: format!(
                "opened again, logits differ by {:.1e} at most (allowed {:.0e}; {})",
                saved.verified.difference, saved.verified.tolerance, saved.verified.probe
            ),
            warnings: saved.warnings,
        };
        self.options.ui.note(format!("saved {model} to {to}: {}", saved.verified));
        for (_, verdict) in &saved.loaders {
            self.options.ui.note(format!("  {verdict}"));
        }
        for warning in saved.warnings.clone() {
            self.warn(format!("{to}: {warning}"));
        }
        let result = serde_json::to_value(&saved).map_err(|e| Error::Internal(format!("a save can't be written as JSON: {e}")))?;
        self.book.saves.push(saved);
        Ok(Outcome { result, ..Outcome::default() })
    }

    /// `format = peft`: the attached adapters alone.
    fn save_adapters(&mut self, model: &str, to: &str) -> Result<Outcome> {
        let state = self.state.model(model)?;
        let stems = state.model.adapted();
        if stems.is_empty() {
            return Err(Error::Refused {
                what: format!("format = peft saves adapters, and `{model}` has none here"),
                remedy: "save before they are fused, or leave `format` out".to_owned(),
            });
        }
        let record = self.record_of(state, Layout::Compact);
        let written = self.dir.uninterrupted(|| write_adapter(&state.model, &stems, &PathBuf::from(to), &record))?;
        let saved = SavedFolder {
            model: model.to_owned(),
            dir: to.to_owned(),
            weight_bytes: written.bytes,
            loaders: vec![(written.reader.to_owned(), format!("{}: {}", written.reader, written.says))],
            verified: "adapters alone, in f32".to_owned(),
            warnings: Vec::new(),
        };
        self.options.ui.note(format!("saved the adapters of {model} to {to}"));
        for (_, verdict) in &saved.loaders {
            self.options.ui.note(format!("  {verdict}"));
        }
        let result = serde_json::to_value(&saved).map_err(|e| Error::Internal(format!("a save can't be written as JSON: {e}")))?;
        self.book.saves.push(saved);
        Ok(Outcome { result, ..Outcome::default() })
    }

    fn record_of(&self, state: &ModelState, layout: Layout) -> PruneRecord {
        let data = self.lock.data.iter().map(|file| SourceRef {
            name: file.path.clone(),
            source: format!("file:{}", file.path),
            revision: None,
            sha256: BTreeMap::from([(file.path.clone(), file.sha256.clone())]),
        });
        let metrics = match self.book.metrics() {
            serde_json::Value::Object(mut map) => {
                map.remove("model");
                map
            }
            _ => serde_json::Map::new(),
        };
        let run = RunRecord {
            recipe: RecipeRef { name: self.plan.name.clone(), sha256: self.start.recipe_sha256.clone() },
            prunectl: self.start.prunectl.clone(),
            model: SourceRef {
                name: state.decl.name.clone(),
                source: describe(&state.decl.source),
                revision: None,
                sha256: state.hashes.clone(),
            },
            data: data.collect(),
            metrics,
            shapes: state.model.dims().to_vec(),
        };
        let (layers, sites) = kept(state);
        PruneRecord::after(state.record.as_ref(), run, layout.word(), state.dense.dims().to_vec(), layers, sites)
    }

    /// Data files of the run, for the report.
    pub(super) fn data_files(&self) -> Vec<FileRecord> {
        self.data.files()
    }
}

/// Today's layers in the loaded model, and the units of every site that lost some since, masked ones left out.
fn kept(state: &ModelState) -> (Vec<usize>, Vec<KeptSite>) {
    let layers: Vec<usize> = (0..state.model.n_layers()).map(|l| state.map.layer(l)).collect();
    let mut sites: BTreeMap<&'static str, BTreeMap<usize, Vec<usize>>> = BTreeMap::new();
    let whole = |kind| if kind == SiteKind::Layers { layers.len() } else { state.model.blueprint().hidden };
    for kind in [SiteKind::Layers, SiteKind::Hidden] {
        let key = Key { kind, layer: None };
        let now = remaining(state, key, whole(kind));
        if now.len() != (if kind == SiteKind::Layers { state.dense.n_layers() } else { state.dense.blueprint().hidden }) {
            sites.entry(site::part(kind)).or_default().insert(0, now);
        }
    }
    for (layer, dims) in state.model.dims().iter().enumerate() {
        let original = state.map.layer(layer);
        let before = state.dense.dims().get(original).copied().unwrap_or_default();
        for kind in [SiteKind::Heads, SiteKind::KvGroups, SiteKind::Neurons, SiteKind::Experts, SiteKind::Attention, SiteKind::Mlp] {
            let now = remaining(state, Key::of(kind, layer), count(kind, dims));
            if now.len() != count(kind, &before) {
                sites.entry(site::part(kind)).or_default().insert(original, now);
            }
        }
    }
    (layers, sites.into_iter().map(|(site, kept)| KeptSite { site: site.to_owned(), kept }).collect())
}

/// Units of a site that are there and not masked, in the loaded model's indices.
fn remaining(state: &ModelState, key: Key, total: usize) -> Vec<usize> {
    let map: &UnitMap = &state.map;
    (0..total).filter(|u| !state.removed.has(key, *u)).map(|u| map.unit(key, u)).collect()
}

fn count(kind: SiteKind, dims: &LayerDims) -> usize {
    match kind {
        SiteKind::Heads => dims.q_heads,
        SiteKind::KvGroups => dims.kv_heads,
        SiteKind::Neurons => dims.ffn * dims.experts.max(1),
        SiteKind::Experts => dims.experts,
        SiteKind::Attention => usize::from(dims.has_attention()),
        SiteKind::Mlp => usize::from(dims.has_mlp()),
        SiteKind::Layers | SiteKind::Hidden | SiteKind::Weights => 0,
    }
}
