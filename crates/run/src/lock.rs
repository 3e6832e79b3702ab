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
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recipe.lock");
        std::fs::write(&path, lock.to_yaml().unwrap()).unwrap();
        assert_eq!(Lock::read(&path).unwrap(), lock);
    }
}
