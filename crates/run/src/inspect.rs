//! `inspect DIR`: shapes, what was removed by whom, sizes, loaders; headers only, no weights.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use prunectl_model::{Facts, LayerDims};
use serde::Serialize;

use crate::error::Result;
use crate::save::PruneRecord;
use crate::save::record::{KeptSite, RunRecord};
use crate::stock::{self, LoaderVerdict};

/// What a model folder holds.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// The folder.
    pub dir: PathBuf,
    /// The config's `model_type`.
    pub model_type: String,
    /// The task, as on the Hub.
    pub task: String,
    /// The dtype of the weights.
    pub dtype: String,
    /// Parameters of the network.
    pub parameters: u64,
    /// Bytes of the weight files.
    pub file_bytes: u64,
    /// `compact` or `padded`, where prunectl wrote it.
    pub layout: Option<String>,
    /// One per layer.
    pub layers: Vec<LayerView>,
    /// The runs that made it, oldest first.
    pub runs: Vec<RunRecord>,
    /// What is kept of every site that lost something, in the original model's indices.
    pub sites: Vec<KeptSite>,
    /// Layers of the original model that are gone.
    pub layers_gone: Vec<usize>,
    /// Who can read it.
    pub loaders: Vec<LoaderVerdict>,
}

/// One layer.
#[derive(Debug, Clone, Serialize)]
pub struct LayerView {
    /// Its index in the original model.
    pub original: usize,
    /// Its shape.
    pub now: LayerDims,
    /// Its shape in the original model.
    pub before: Option<LayerDims>,
}

/// Looks at a folder.
///
/// # Errors
/// The config, the headers or `prune.json` can't be read.
pub fn inspect(dir: &Path) -> Result<Inspection> {
    let facts = Facts::read(dir, None)?;
    let record = PruneRecord::read(dir)?;
    let remote_code = dir.join(crate::save::REMOTE_CODE_FILE).is_file();
    let target = stock::Target {
        model_type: &facts.model_type,
        blueprint: &facts.blueprint,
        dims: &facts.dims,
        own: facts.config.get(prunectl_model::OWN_KEY),
        no_remote_code: (!remote_code).then_some("the folder has no modeling_prunectl.py"),
    };
    let loaders = stock::loaders(&target);
    let original_of = |i: usize| record.as_ref().and_then(|r| r.layers.get(i).copied()).unwrap_or(i);
    let before = |i: usize| record.as_ref().and_then(|r| r.original.get(i).copied());
    let layers =
        facts.dims.iter().enumerate().map(|(i, now)| LayerView { original: original_of(i), now: *now, before: before(original_of(i)) });
    let layers: Vec<LayerView> = layers.collect();
    let layers_gone = match &record {
        Some(r) => (0..r.original.len()).filter(|l| !r.layers.contains(l)).collect(),
        None => Vec::new(),
    };
    let (layout, runs, sites) = match record {
        Some(r) => (Some(r.layout), r.history.into_iter().chain(std::iter::once(r.run)).collect(), r.sites),
        None => (None, Vec::new(), Vec::new()),
    };
    Ok(Inspection {
        dir: dir.into(),
        model_type: facts.model_type,
        task: facts.task.to_string(),
        dtype: format!("{:?}", facts.stored_dtype).to_lowercase(),
        parameters: facts.parameters,
        file_bytes: facts.file_bytes,
        layout,
        layers,
        runs,
        sites,
        layers_gone,
        loaders,
    })
}

impl Inspection {
    /// How many units the original model has at a site of a layer that is still there.
    fn before(&self, site: &str, layer: usize) -> Option<usize> {
        let d = self.layers.iter().find(|l| l.original == layer)?.before?;
        match site {
            "attention.heads" => Some(d.q_heads),
            "attention.kv_groups" => Some(d.kv_heads),
            "mlp.neurons" => Some(d.ffn * d.experts.max(1)),
            "mlp.experts" => Some(d.experts),
            "attention" | "mlp" => Some(1),
            _ => None,
        }
    }

    /// As a person reads it; equal neighbouring layers share a line.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "{}: {} for {}", self.dir.display(), self.model_type, self.task);
        let _ = writeln!(out, "{} parameters, {} bytes of {} weights", self.parameters, self.file_bytes, self.dtype);
        for run in &self.runs {
            let _ = writeln!(out, "pruned by `{}` (prunectl {}), from {}", run.recipe.name, run.prunectl, run.model.source);
        }
        if self.layout.as_deref() == Some("padded") {
            out.push_str("padded: removed units are zeros in the original shape\n");
        }
        out.push_str("\nlayers\n");
        let mut start = 0;
        while let Some(first) = self.layers.get(start) {
            let same = self.layers.iter().skip(start).take_while(|l| l.now == first.now && l.before == first.before).count();
            let end = start + same.max(1);
            let last = self.layers.get(end - 1).unwrap_or(first);
            let name = if same > 1 { format!("{}–{}", first.original, last.original) } else { first.original.to_string() };
            let _ = writeln!(out, "  {name:>7}  {}", shape(&first.now, first.before.as_ref()));
            start = end;
        }
        if !self.layers_gone.is_empty() {
            let list: Vec<String> = self.layers_gone.iter().map(usize::to_string).collect();
            let _ = writeln!(out, "  gone: {}", list.join(", "));
        }
        if !self.sites.is_empty() {
            out.push_str("\nremoved\n");
            let there = |layer: usize| self.layers.iter().any(|l| l.original == layer);
            // Where each head has keys and values of its own, a group that is gone is a head that is gone.
            let grouped = self.layers.iter().any(|l| l.before.is_some_and(|d| d.kv_heads != d.q_heads));
            let told = |s: &&KeptSite| s.site != "layers" && (grouped || s.site != "attention.kv_groups");
            for site in self.sites.iter().filter(told) {
                let kept_of = |layer: &usize| site.site == "hidden" || there(*layer);
                let site =
                    KeptSite { kept: site.kept.iter().filter(|(l, _)| kept_of(l)).map(|(l, k)| (*l, k.clone())).collect(), ..site.clone() };
                if site.kept.is_empty() {
                    continue;
                }
                let kept: usize = site.kept.values().map(Vec::len).sum();
                let before: Option<usize> = site.kept.keys().map(|layer| self.before(&site.site, *layer)).sum();
                let layers = match site.kept.len() {
                    1 if site.site == "hidden" => String::new(),
                    1 => " in 1 layer".to_owned(),
                    n => format!(" in {n} layers"),
                };
                let _ = match before {
                    Some(before) => writeln!(out, "  {}: {} of {before}{layers}", site.site, before.saturating_sub(kept)),
                    None => writeln!(out, "  {}: {kept} kept{layers}", site.site),
                };
            }
        }
        out.push_str("\nloaders\n");
        for loader in &self.loaders {
            let _ = writeln!(out, "  {loader}");
        }
        out
    }
}

fn shape(now: &LayerDims, before: Option<&LayerDims>) -> String {
    let part = |what: &str, now: usize, before: Option<usize>| match before {
        Some(b) if b != now => format!("{now} of {b} {what}"),
        _ => format!("{now} {what}"),
    };
    let mut parts = vec![part("heads", now.q_heads, before.map(|b| b.q_heads))];
    if now.kv_heads != now.q_heads {
        parts.push(part("key/value heads", now.kv_heads, before.map(|b| b.kv_heads)));
    }
    parts.push(format!("{} wide", now.head_dim));
    if now.experts > 0 {
        parts.push(part("experts", now.experts, before.map(|b| b.experts)));
    }
    parts.push(part("neurons", now.ffn, before.map(|b| b.ffn)));
    parts.join(", ")
}
