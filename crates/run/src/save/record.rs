//! `prune.json`: what was removed, by which recipe, from which model, in the original model's indices.
//!
//! A folder that was pruned, saved, opened and pruned again carries one record: the newest run on top, the earlier ones under `history`,
//! and kept units that always count in the very first model.

use std::collections::BTreeMap;
use std::path::Path;

use prunectl_model::LayerDims;
use serde::{Deserialize, Serialize};

use super::SaveError;

/// The `format` of the records that this version writes.
pub const RECORD_FORMAT: u32 = 1;
/// The file's name.
pub const RECORD_FILE: &str = "prune.json";
/// Records larger than this are refused: 128 layers of 64k neurons take less than 64 MiB.
const MAX_RECORD_BYTES: u64 = 256 << 20;

/// The units of one kind of site that are still there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptSite {
    /// `attention.heads`, `attention.kv_groups`, `mlp.neurons`, `mlp.experts`, `attention`, `mlp`, `layers`, `hidden`.
    pub site: String,
    /// Layer of the original model → kept unit indices of the original model, ascending. `layers` and `hidden` use the key 0.
    pub kept: BTreeMap<usize, Vec<usize>>,
}

/// A recipe by name and content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeRef {
    /// The file's stem, or `builtin:NAME`.
    pub name: String,
    /// SHA-256 of its text, in hex.
    pub sha256: String,
}

/// A model or data set by origin and content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRef {
    /// The name in the recipe.
    pub name: String,
    /// `hf:org/name`, `dir:path`, `builtin:name`, …
    pub source: String,
    /// Commit or tag where the source has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// SHA-256 of each file, in hex.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sha256: BTreeMap<String, String>,
}

/// One run: everything but the units, which only the newest record lists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The recipe.
    pub recipe: RecipeRef,
    /// Version of prunectl.
    pub prunectl: String,
    /// The model that the run started from.
    pub model: SourceRef,
    /// The data that it used.
    #[serde(default)]
    pub data: Vec<SourceRef>,
    /// Metrics as in `metrics.json`.
    #[serde(default)]
    pub metrics: serde_json::Map<String, serde_json::Value>,
    /// Shapes that this run left, layer by layer.
    #[serde(default)]
    pub shapes: Vec<LayerDims>,
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PruneRecord {
    /// Version of this schema: [`RECORD_FORMAT`].
    pub format: u32,
    /// The newest run.
    #[serde(flatten)]
    pub run: RunRecord,
    /// `compact` or `padded`.
    pub layout: String,
    /// Layers of the original (never pruned) model.
    pub original: Vec<LayerDims>,
    /// For each layer in the weights: its index in the original model.
    pub layers: Vec<usize>,
    /// What is kept of every site that lost something.
    pub sites: Vec<KeptSite>,
    /// Earlier runs, oldest first.
    #[serde(default)]
    pub history: Vec<RunRecord>,
}

impl PruneRecord {
    /// Reads `dir/prune.json`; `None` where there is none.
    ///
    /// # Errors
    /// The file can't be read, is no record, or was written by a later format.
    pub fn read(dir: &Path) -> Result<Option<Self>, SaveError> {
        let path = dir.join(RECORD_FILE);
        let length = match std::fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(SaveError::io("read", &path, e)),
        };
        if length > MAX_RECORD_BYTES {
            return Err(SaveError::BadRecord { path, reason: format!("it has {length} bytes; at most {MAX_RECORD_BYTES} are read") });
        }
        let text = std::fs::read_to_string(&path).map_err(|e| SaveError::io("read", &path, e))?;
        // The format comes first: a later one may have changed the fields around it.
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| SaveError::BadRecord { path: path.clone(), reason: e.to_string() })?;
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(f) if f == u64::from(RECORD_FORMAT) => {}
            Some(f) => {
                let reason = format!("its format is {f}; this prunectl reads format {RECORD_FORMAT}");
                return Err(SaveError::BadRecord { path, reason });
            }
            None => return Err(SaveError::BadRecord { path, reason: "it has no `format` number, so prunectl did not write it".into() }),
        }
        serde_json::from_value(value).map(Some).map_err(|e| SaveError::BadRecord { path, reason: e.to_string() })
    }

    /// A record of a run that starts from `before`, the record of the folder that the model was opened from: earlier runs move into the
    /// history, and units that are counted in the opened model are counted in the original one.
    ///
    /// `layers` and `sites` count in the opened model.
    #[must_use]
    pub fn after(
        before: Option<&Self>,
        run: RunRecord,
        layout: &str,
        opened: Vec<LayerDims>,
        layers: Vec<usize>,
        sites: Vec<KeptSite>,
    ) -> Self {
        let mut now = Self { format: RECORD_FORMAT, run, layout: layout.into(), original: opened, layers, sites, history: Vec::new() };
        let Some(before) = before else { return now };
        now.history = before.history.iter().cloned().chain(std::iter::once(before.run.clone())).collect();
        now.original.clone_from(&before.original);
        let original_layer = |l: usize| before.layers.get(l).copied().unwrap_or(l);
        // A padded folder has the removed units in its shapes again, so its indices already are the original ones.
        let padded = before.layout == "padded";
        for site in &mut now.sites {
            let earlier = before.sites.iter().find(|s| s.site == site.site);
            if matches!(site.site.as_str(), "layers") {
                let kept = site.kept.get(&0).map(|k| k.iter().map(|l| original_layer(*l)).collect()).unwrap_or_default();
                site.kept = BTreeMap::from([(0, kept)]);
                continue;
            }
            let in_layers = site.site != "hidden";
            site.kept = std::mem::take(&mut site.kept)
                .into_iter()
                .map(|(layer, units)| {
                    let layer = if in_layers { original_layer(layer) } else { layer };
                    let units = match earlier.and_then(|s| s.kept.get(&layer)) {
                        Some(old) if padded => units.into_iter().filter(|u| old.contains(u)).collect(),
                        Some(old) => units.into_iter().filter_map(|u| old.get(u).copied()).collect(),
                        None => units,
                    };
                    (layer, units)
                })
                .collect();
        }
        now.layers = now.layers.iter().map(|l| original_layer(*l)).collect();
        for old in &before.sites {
            match now.sites.iter_mut().find(|s| s.site == old.site) {
                Some(site) => {
                    for (layer, units) in &old.kept {
                        site.kept.entry(*layer).or_insert_with(|| units.clone());
                    }
                }
                None => now.sites.push(old.clone()),
            }
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str) -> RunRecord {
        let source = SourceRef { name: "m".into(), source: "dir:x".into(), revision: None, sha256: BTreeMap::new() };
        RunRecord {
            recipe: RecipeRef { name: name.into(), sha256: "00".into() },
            prunectl: "0".into(),
            model: source,
            data: vec![],
            metrics: serde_json::Map::new(),
            shapes: vec![],
        }
    }

    fn shape(q_heads: usize) -> LayerDims {
        LayerDims { q_heads, kv_heads: q_heads, head_dim: 4, ffn: 8, ..LayerDims::default() }
    }

    fn site(name: &str, kept: &[(usize, &[usize])]) -> KeptSite {
        KeptSite { site: name.into(), kept: kept.iter().map(|(l, u)| (*l, u.to_vec())).collect() }
    }

    /// Two runs: the second counts in what the first left, the record counts in the first model.
    #[test]
    fn a_second_run_is_told_in_the_first_models_indices() {
        let heads = "attention.heads";
        let first = PruneRecord::after(
            None,
            run("one"),
            "compact",
            vec![shape(4); 3],
            vec![0, 2],
            vec![site(heads, &[(0, &[1, 3]), (2, &[0, 1, 3])]), site("layers", &[(0, &[0, 2])])],
        );
        let opened = vec![shape(2), shape(3)];
        let second = PruneRecord::after(Some(&first), run("two"), "compact", opened, vec![0, 1], vec![site(heads, &[(1, &[0, 2])])]);
        assert_eq!(second.layers, [0, 2]);
        assert_eq!(second.original, vec![shape(4); 3]);
        assert_eq!(second.sites[0], site(heads, &[(0, &[1, 3]), (2, &[0, 3])]));
        assert_eq!(second.sites[1], site("layers", &[(0, &[0, 2])]));
        assert_eq!(second.history.len(), 1);
        assert_eq!(second.history[0].recipe.name, "one");
        // What was written comes back.
        let text = serde_json::to_string(&second).unwrap();
        assert_eq!(serde_json::from_str::<PruneRecord>(&text).unwrap(), second);
    }

    /// A padded folder has its removed units back as zeros: nobody may count them as kept again.
    #[test]
    fn zeros_of_a_padded_folder_stay_removed() {
        let heads = "attention.heads";
        let first = PruneRecord::after(None, run("one"), "padded", vec![shape(4)], vec![0], vec![site(heads, &[(0, &[1, 3])])]);
        let second = PruneRecord::after(Some(&first), run("two"), "padded", vec![shape(4)], vec![0], vec![site(heads, &[(0, &[0, 1, 2])])]);
        assert_eq!(second.sites[0], site(heads, &[(0, &[1])]));
    }

    #[test]
    fn other_peoples_prune_json_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        assert!(PruneRecord::read(dir.path()).unwrap().is_none());
        for (text, reason) in
            [("[", "EOF"), ("{}", "no `format`"), ("{\"format\": 9}", "format is 9"), ("{\"format\": 1}", "missing field")]
        {
            std::fs::write(dir.path().join(RECORD_FILE), text).unwrap();
            let error = PruneRecord::read(dir.path()).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
