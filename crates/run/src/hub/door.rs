//! The Hub as a command uses it: one look-up per repository and command, and only the files that are needed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::ProgressBar;

use super::{Client, Fetched, Hub, HubEnv, HubError, Kind, Listing, RepoId, Watch, safe_relative};
use crate::ui::Ui;

/// Files besides weights that a model folder may have; those that are there are fetched.
const SMALL_FILES: [&str; 14] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// A safetensors header longer than this is none.
const MAX_HEADER_BYTES: u64 = 100 << 20;

/// Where a model's config and headers can be read.
#[derive(Debug)]
pub enum Headers {
    /// In the cache, weights and all.
    Cached(PathBuf),
    /// In a folder of this command: weight files end after their headers.
    Stubs(Arc<tempfile::TempDir>),
}

impl Headers {
    /// The folder.
    pub fn path(&self) -> &Path {
        match self {
            Self::Cached(path) => path,
            Self::Stubs(dir) => dir.path(),
        }
    }
}

/// Whether it is a data set, name and revision.
type Key = (bool, String, String);
/// What was looked up.
type Listings = BTreeMap<Key, Listing>;

/// The Hub for one command. Clones share what was looked up.
#[derive(Debug, Clone)]
pub struct Door {
    client: Arc<Client>,
    ui: Option<Ui>,
    listings: Arc<Mutex<Listings>>,
    stubs: Arc<Mutex<BTreeMap<Key, Arc<tempfile::TempDir>>>>,
}

fn key(repo: &RepoId) -> Key {
    (repo.kind == Kind::Dataset, repo.name.clone(), repo.revision.clone())
}

impl Door {
    /// As the environment says, without the network if `offline`.
    pub fn new(ui: Ui, offline: bool) -> Self {
        let mut env = HubEnv::read();
        env.offline |= offline;
        let ui = Ui { bars: ui.bars && env.progress, ..ui };
        Self { client: Arc::new(Client::new(env)), ui: Some(ui), listings: Arc::default(), stubs: Arc::default() }
    }

    /// Only what the cache has, and silent.
    pub fn cache_only() -> Self {
        let mut env = HubEnv::read();
        env.offline = true;
        Self { client: Arc::new(Client::new(env)), ui: None, listings: Arc::default(), stubs: Arc::default() }
    }

    fn listing(&self, repo: &RepoId) -> Result<Listing, HubError> {
        let key = key(repo);
        let known = |door: &Self| door.listings.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(listing) = known(self) {
            return Ok(listing);
        }
        let found = self.client.list(repo)?;
        if let (Some(why), Some(ui)) = (&found.stale, self.ui) {
            ui.note(format!("{}: using what the cache has: {why}", repo.name));
        }
        self.listings.lock().unwrap_or_else(PoisonError::into_inner).insert(key, found.clone());
        Ok(found)
    }

    /// The commit and the files of a data set.
    pub fn dataset(&self, repo: &str, revision: Option<&str>) -> Result<Listing, HubError> {
        self.listing(&RepoId::new(Kind::Dataset, repo, revision)?)
    }

    /// Files of a data set, in the order asked for, downloaded where the cache lacks them.
    pub fn dataset_files(&self, repo: &str, revision: Option<&str>, names: &[String]) -> Result<Vec<PathBuf>, HubError> {
        let repo = RepoId::new(Kind::Dataset, repo, revision)?;
        let commit = self.listing(&repo)?.commit;
        Ok(self.fetch(&repo, &commit, names)?.into_iter().map(|f| f.path).collect())
    }

    /// The commit that a model's revision stands for in this command.
    pub fn commit(&self, repo: &str, revision: Option<&str>) -> Result<String, HubError> {
        Ok(self.listing(&RepoId::new(Kind::Model, repo, revision)?)?.commit)
    }

    fn fetch(&self, repo: &RepoId, commit: &str, names: &[String]) -> Result<Vec<Fetched>, HubError> {
        match self.ui {
            Some(ui) => {
                let bars = Bars { ui, bar: ui.bar(&repo.name), files: Mutex::default() };
                let fetched = self.client.fetch(repo, commit, names, &bars);
                bars.bar.finish_and_clear();
                fetched
            }
            None => self.client.fetch(repo, commit, names, &()),
        }
    }

    /// The names of a model's weight files.
    fn weights(&self, repo: &RepoId, listing: &Listing) -> Result<Vec<String>, HubError> {
        let has = |name: &str| listing.files.iter().any(|f| f == name);
        if has(WEIGHTS) {
            return Ok(vec![WEIGHTS.to_owned()]);
        }
        if has(INDEX) {
            let fetched = self.fetch(repo, &listing.commit, &[INDEX.to_owned()])?;
            let path = fetched.first().map(|f| f.path.clone()).unwrap_or_default();
            let disk = |source| HubError::Disk { path: path.clone(), source };
            let text = std::fs::read(&path).map_err(disk)?;
            let wrong = |what: String| HubError::BadFile { repo: repo.name.clone(), file: INDEX.to_owned(), what };
            let index: serde_json::Value = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
            let map = index.get("weight_map").and_then(|m| m.as_object()).ok_or_else(|| wrong("found no `weight_map`".to_owned()))?;
            let mut shards: Vec<String> = map.values().filter_map(|v| v.as_str()).map(str::to_owned).collect();
            shards.sort();
            shards.dedup();
            if let Some(bad) = shards.iter().find(|s| safe_relative(s).is_none() || !has(s)) {
                return Err(wrong(format!("it names the shard {bad:?}, which the repository does not have")));
            }
            return Ok(shards);
        }
        let other =
            listing.files.iter().find(|f| f.ends_with(".bin") || f.ends_with(".h5") || f.ends_with(".gguf") || f.ends_with(".msgpack"));
        Err(HubError::NoSafetensors { repo: repo.name.clone(), found: other.cloned().unwrap_or_else(|| "no weights".to_owned()) })
    }

    fn small(listing: &Listing) -> Vec<String> {
        SMALL_FILES.iter().filter(|name| listing.files.iter().any(|f| f == *name)).map(|name| (*name).to_owned()).collect()
    }

    /// The folder of a whole model: config, tokenizer and weights, downloaded where they are missing.
    pub fn model(&self, repo: &str, revision: Option<&str>) -> Result<PathBuf, HubError> {
        let repo = RepoId::new(Kind::Model, repo, revision)?;
        let listing = self.listing(&repo)?;
        let mut names = Self::small(&listing);
        names.extend(self.weights(&repo, &listing)?);
        self.fetch(&repo, &listing.commit, &names)?;
        Ok(self.client.snapshot(&repo, &listing.commit))
    }

    /// Config and headers of a model; of weights that are not in the cache only the headers are fetched.
    pub fn headers(&self, repo: &str, revision: Option<&str>) -> Result<Headers, HubError> {
        let repo = RepoId::new(Kind::Model, repo, revision)?;
        let listing = self.listing(&repo)?;
        let small = Self::small(&listing);
        self.fetch(&repo, &listing.commit, &small)?;
        let weights = self.weights(&repo, &listing)?;
        let snapshot = self.client.snapshot(&repo, &listing.commit);
        if weights.iter().all(|name| snapshot.join(name).is_file()) {
            return Ok(Headers::Cached(snapshot));
        }
        if let Some(known) = self.stubs.lock().unwrap_or_else(PoisonError::into_inner).get(&key(&repo)) {
            return Ok(Headers::Stubs(known.clone()));
        }
        let temp = std::env::temp_dir();
        let dir = tempfile::Builder::new().prefix("prunectl-").tempdir().map_err(|source| HubError::Disk { path: temp, source })?;
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            let made = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&path, bytes));
            made.map_err(|source| HubError::Disk { path, source })
        };
        for name in small.iter().map(String::as_str).chain(weights.len().gt(&1).then_some(INDEX)) {
            let from = snapshot.join(name);
            let bytes = std::fs::read(&from).map_err(|source| HubError::Disk { path: from, source })?;
            write(name, &bytes)?;
        }
        for name in &weights {
            let wrong = |what: String| HubError::BadFile { repo: repo.name.clone(), file: name.clone(), what };
            let head = self.client.prefix(&repo, &listing.commit, name, 8)?;
            let length = <[u8; 8]>::try_from(head.as_slice()).map(u64::from_le_bytes).map_err(|_| wrong("it has no header".to_owned()))?;
            if length > MAX_HEADER_BYTES {
                return Err(wrong(format!("its header says that it has {length} bytes")));
            }
            write(name, &self.client.prefix(&repo, &listing.commit, name, 8 + length)?)?;
        }
        let dir = Arc::new(dir);
        self.stubs.lock().unwrap_or_else(PoisonError::into_inner).insert(key(&repo), dir.clone());
        Ok(Headers::Stubs(dir))
    }
}

/// Bytes of all files of a download in one bar; retries as notes.
struct Bars {
    ui: Ui,
    bar: ProgressBar,
    files: Mutex<BTreeMap<String, (u64, u64)>>,
}

impl Watch for Bars {
    fn bytes(&self, file: &str, got: u64, total: u64) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.insert(file.to_owned(), (got, total));
        let (got, total) = files.values().fold((0, 0), |(g, t), (got, total)| (g + got, t + total));
        self.bar.set_length(total);
        self.bar.set_position(got);
    }
    fn retry(&self, file: &str, reason: &str, wait: Duration) {
        self.ui.note(format!("{file}: {reason}; trying again in {} s", wait.as_secs()));
    }
}
