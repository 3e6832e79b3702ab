//! `recipe.lock`: hashes of everything that a run reads, so that a resumed run works on the same bytes and a reader can check them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Version of the lock's format.
pub const FORMAT: u32 = 1;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// [`FORMAT`].
    pub format: u32,
    /// The recipe.
    pub recipe: LockedFile,
    /// Recipes that it `use`s, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uses: Vec<LockedFile>,
    /// Models by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<String, LockedSource>,
    /// Data files, by path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<LockedFile>,
    /// What else steps read: adapters, scores of earlier runs. By path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<LockedFile>,
}

/// A file and its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedFile {
    /// As the recipe reaches it.
    pub path: String,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// A model's source and its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedSource {
    /// `dir:…`, `builtin:…`, `init:…`.
    pub source: String,
    /// File name → SHA-256.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
}

impl Lock {
    /// A lock of a recipe and what it `use`s.
    pub fn new(recipe: &str, text: &str, uses: &[(std::path::PathBuf, String)]) -> Self {
        let locked = |path: String, text: &str| LockedFile { path, sha256: crate::files::sha256(text.as_bytes()) };
        Self {
            format: FORMAT,
            recipe: locked(recipe.to_owned(), text),
            uses: uses.iter().map(|(path, text)| locked(path.display().to_string(), text)).collect(),
            models: BTreeMap::new(),
            data: Vec::new(),
            files: Vec::new(),
        }
    }

    /// Reads a lock.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let lock: Self = serde_yaml::from_str(&text).map_err(|e| Error::Damaged { path: path.to_owned(), what: e.to_string() })?;
        if lock.format != FORMAT {
            return Err(Error::Damaged { path: path.to_owned(), what: format!("found lock format {}, expected {FORMAT}", lock.format) });
        }
        Ok(lock)
    }

    /// The file's text.
    pub fn to_yaml(&self) -> Result<String> {
        serde_yaml::to_string(self).map_err(|e| Error::Internal(format!("the lock can't be written as YAML: {e}")))
    }

    /// The same with paths that start from the recipe's folder, so that a lock says the same wherever the command is given.
    pub fn within(mut self, base: &Path) -> Self {
        let inside = |path: &str| -> String {
            let rest = Path::new(path).strip_prefix(base).ok().filter(|p| !p.as_os_str().is_empty());
            rest.map_or_else(|| path.to_owned(), |p| p.display().to_string())
        };
        self.recipe.path = inside(&self.recipe.path);
        for file in self.uses.iter_mut().chain(&mut self.data).chain(&mut self.files) {
            file.path = inside(&file.path);
        }
        for source in self.models.values_mut() {
            for kind in ["dir:", "init:"] {
                if let Some(path) = source.source.strip_prefix(kind) {
                    source.source = format!("{kind}{}", inside(path));
                }
            }
            source.files = std::mem::take(&mut source.files).into_iter().map(|(name, hash)| (inside(&name), hash)).collect();
        }
        self
    }

    /// What is otherwise in `now`, one line each.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let (locked, found) = (self.entries(), now.entries());
        let changed = locked.iter().filter_map(|(what, was)| match found.get(what) {
            None => Some(format!("{what} is locked and no longer read")),
            Some(is) if is != was => Some(format!("{what}: {} is locked, {} is there", short(was), short(is))),
            Some(_) => None,
        });
        let new = found.keys().filter(|what| !locked.contains_key(*what)).map(|what| format!("{what} is read and not locked"));
        changed.chain(new).collect()
    }

    /// Everything that it locks, by name: a hash, a commit, a source.
    fn entries(&self) -> BTreeMap<String, &str> {
        let mut out = BTreeMap::new();
        out.insert(format!("recipe {}", self.recipe.path), self.recipe.sha256.as_str());
        out.extend(self.uses.iter().map(|f| (format!("used recipe {}", f.path), f.sha256.as_str())));
        for (name, model) in &self.models {
            out.insert(format!("model {name}"), model.source.as_str());
            out.extend(model.files.iter().map(|(file, hash)| (format!("model {name}, {file}"), hash.as_str())));
        }
        out.extend(self.data.iter().map(|f| (format!("data {}", f.path), f.sha256.as_str())));
        out.extend(self.files.iter().map(|f| (format!("file {}", f.path), f.sha256.as_str())));
        out
    }

    /// Refuses a recipe, or one that it `use`s, that is not the locked one.
    pub fn verify_texts(&self, other: &Self, since: &'static str) -> Result<()> {
        verify(&self.recipe, &other.recipe, since)?;
        for (expected, found) in self.uses.iter().zip(&other.uses) {
            verify(expected, found, since)?;
        }
        Ok(())
    }

    /// Adds a model's files, or refuses them if the lock has others. Returns whether the lock changed.
    pub fn model(&mut self, name: &str, found: LockedSource, since: &'static str) -> Result<bool> {
        let Some(expected) = self.models.get(name) else {
            self.models.insert(name.to_owned(), found);
            return Ok(true);
        };
        for (file, hash) in &expected.files {
            let missing = || "no such file".to_owned();
            let now = found.files.get(file).cloned().unwrap_or_else(missing);
            if now != *hash {
                let path = format!("{} / {file}", expected.source).into();
                return Err(Error::Drift { path, since, found: now, expected: hash.clone() });
            }
        }
        Ok(false)
    }

    /// Adds a file that a step reads, or refuses it if the lock has another hash. Returns whether the lock changed.
    pub fn file(&mut self, path: &Path, since: &'static str) -> Result<bool> {
        let file = LockedFile { path: path.display().to_string(), sha256: crate::files::sha256_file(path)? };
        if let Some(expected) = self.files.iter().find(|f| f.path == file.path) {
            return verify(expected, &file, since).map(|()| false);
        }
        self.files.push(file);
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(true)
    }

    /// Adds data files, or refuses those whose hash is another one. Returns whether the lock changed.
    pub fn data(&mut self, found: &[crate::data::FileRecord], since: &'static str) -> Result<bool> {
        let mut changed = false;
        for file in found {
            let file = LockedFile { path: file.path.display().to_string(), sha256: file.sha256.clone() };
            match self.data.iter().find(|f| f.path == file.path) {
                Some(expected) => verify(expected, &file, since)?,
                None => {
                    self.data.push(file);
                    changed = true;
                }
            }
        }
        self.data.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(changed)
    }
}

/// Enough of a hash to tell two apart; anything else as it is.
fn short(text: &str) -> &str {
    const SHOWN: usize = 12;
    let hash = text.len() >= 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if hash { text.get(..SHOWN).unwrap_or(text) } else { text }
}

fn verify(expected: &LockedFile, found: &LockedFile, since: &'static str) -> Result<()> {
    if expected.sha256 == found.sha256 {
        return Ok(());
    }
    Err(Error::Drift { path: expected.path.clone().into(), since, found: found.sha256.clone(), expected: expected.sha256.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_is_refused_and_yaml_round_trips() {
        let mut lock = Lock::new("a.prune", "edition 2026\n", &[]);
        let source = |hash: &str| LockedSource { source: "dir:m".into(), files: [("config.json".to_owned(), hash.to_owned())].into() };
        assert!(lock.model("m", source("11"), "the run began").unwrap());
        assert!(!lock.model("m", source("11"), "the run began").unwrap());
        let e = lock.model("m", source("22"), "the run began").unwrap_err().to_string();
        assert!(e.contains("config.json") && e.contains("found sha256 22") && e.contains("expected 11"), "{e}");
        let mut other = lock.clone();
        other.models.insert("n".into(), source("33"));
        other.recipe.sha256 = "b".repeat(64);
        assert_eq!(
            lock.differences(&other),
            [
                format!("recipe a.prune: {} is locked, bbbbbbbbbbbb is there", &lock.recipe.sha256[..12]),
                "model n is read and not locked".to_owned(),
                "model n, config.json is read and not locked".to_owned(),
            ]
        );
        assert!(lock.differences(&lock).is_empty());
        let mut below = lock.clone();
        below.recipe.path = "r/a.prune".into();
        below.models.insert("m".into(), LockedSource { source: "dir:r/m".into(), ..source("11") });
        let mut here = lock.clone();
        here.models.insert("m".into(), source("11"));
        assert_eq!(below.within(Path::new("r")), here);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recipe.lock");
        std::fs::write(&path, lock.to_yaml().unwrap()).unwrap();
        assert_eq!(Lock::read(&path).unwrap(), lock);
    }
}
