//! Models and data sets of the Hugging Face Hub, behind one small trait.
//!
//! The crate `hf-hub` gives the cache's layout and the shape of the API's answers; the bytes are fetched by [`client`], because the crate
//! neither verifies a hash nor keeps a token from another host. The cache is the one that Python's `huggingface_hub` uses: a file that one has
//! downloaded the other finds.

mod client;
mod door;
mod download;
mod env;
mod error;

use std::path::{Component, Path, PathBuf};

pub use client::Client;
pub use door::{Door, Headers};
pub use env::{DEFAULT_ENDPOINT, HubEnv, Token};
pub use error::HubError;

/// A repository at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoId {
    /// `org/name`.
    pub name: String,
    /// A model or a data set.
    pub kind: Kind,
    /// Branch, tag or commit; `main` unless said.
    pub revision: String,
}

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

impl Kind {
    /// As the Hub's API spells it.
    fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }
}

impl RepoId {
    /// Checks the name: it becomes part of a URL and of a folder's name.
    pub fn new(kind: Kind, name: &str, revision: Option<&str>) -> Result<Self, HubError> {
        let part = |p: &str| {
            !p.is_empty()
                && p.len() <= 96
                && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
                && !p.starts_with(['.', '-'])
                && !p.ends_with(['.', '-'])
                && !p.contains("..")
                && !p.contains("--")
        };
        let parts: Vec<&str> = name.split('/').collect();
        let revision = revision.unwrap_or("main");
        if parts.len() > 2 || !parts.iter().all(|p| part(p)) || revision.is_empty() || safe_relative(revision).is_none() {
            return Err(HubError::BadRepo(if revision == "main" { name.to_owned() } else { format!("{name}@{revision}") }));
        }
        Ok(Self { name: name.to_owned(), kind, revision: revision.to_owned() })
    }

    fn repo(&self) -> hf_hub::Repo {
        let kind = match self.kind {
            Kind::Model => hf_hub::RepoType::Model,
            Kind::Dataset => hf_hub::RepoType::Dataset,
        };
        hf_hub::Repo::with_revision(self.name.clone(), kind, self.revision.clone())
    }
}

/// A path that stays below the folder it is joined to: no root, no `..`, no `.`, no backslash, no NUL.
pub fn safe_relative(name: &str) -> Option<&Path> {
    let plain = !name.is_empty()
        && !name.contains(['\\', '\0'])
        && !name.split('/').any(str::is_empty)
        && Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
    plain.then(|| Path::new(name))
}

/// What a repository holds at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The commit that the revision stands for.
    pub commit: String,
    /// Its files, relative, in the Hub's order. Offline: those that the cache has.
    pub files: Vec<String>,
    /// Why the cache was asked though the network is on: what the Hub said. The files are those that the cache has.
    pub stale: Option<String>,
}

/// One downloaded file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Its name in the repository.
    pub name: String,
    /// Where it lies: `…/snapshots/<commit>/<name>`.
    pub path: PathBuf,
    /// The Hub's entity tag: sha256 of a large file, git's sha1 of a small one.
    pub etag: Option<String>,
}

/// News of a download.
pub trait Watch: Sync {
    /// `got` of `total` bytes of `file` are here.
    fn bytes(&self, file: &str, got: u64, total: u64);
    /// A wait before another try.
    fn retry(&self, file: &str, reason: &str, wait: std::time::Duration);
}

impl Watch for () {
    fn bytes(&self, _: &str, _: u64, _: u64) {}
    fn retry(&self, _: &str, _: &str, _: std::time::Duration) {}
}

/// Where repositories come from.
pub trait Hub {
    /// The commit and files of a repository.
    fn list(&self, repo: &RepoId) -> Result<Listing, HubError>;
    /// Brings those files of the listing's commit into the cache, several at once; the order of `names` is kept.
    fn fetch(&self, repo: &RepoId, commit: &str, names: &[String], watch: &dyn Watch) -> Result<Vec<Fetched>, HubError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_cache_are_refused() {
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a\\b", "a\0b", "a/"] {
            assert!(safe_relative(bad).is_none(), "{bad:?}");
        }
        assert!(safe_relative("en/c4-train.00000.json.gz").is_some());
        for bad in ["", "a/b/c", "../x", "a/..", "-a/b", "a b", "org/", "o--o/n"] {
            assert!(RepoId::new(Kind::Model, bad, None).is_err(), "{bad:?}");
        }
        assert!(RepoId::new(Kind::Model, "gpt2", None).is_ok());
        assert!(RepoId::new(Kind::Dataset, "Salesforce/wikitext", Some("refs/convert/parquet")).is_ok());
        assert!(RepoId::new(Kind::Dataset, "a/b", Some("../../x")).is_err());
    }
}
