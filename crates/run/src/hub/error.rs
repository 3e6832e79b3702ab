//! What can go wrong between us and the Hub, each with what to do about it.

use std::path::PathBuf;

/// A failed look-up or download.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Offline, and the cache lacks it.
    #[error(
        "`{what}` is not in the cache {cache} and the network is off (--offline, HF_HUB_OFFLINE): run once online, or `hf download {repo}` where there is a network and copy the cache"
    )]
    Offline {
        /// A repository or one of its files.
        what: String,
        /// The repository.
        repo: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// 401 or 404 for the repository. The Hub does not tell a private one from one that does not exist.
    #[error("`{repo}` was not found at {endpoint}: check the spelling; if it is private, {login}")]
    RepoNotFound {
        /// The repository.
        repo: String,
        /// The Hub.
        endpoint: String,
        /// What to do about the token.
        login: &'static str,
    },
    /// The licence must be accepted first.
    #[error("`{repo}` is gated: accept its terms at {endpoint}/{repo}, then {login}")]
    Gated {
        /// The repository.
        repo: String,
        /// The Hub.
        endpoint: String,
        /// What to do about the token.
        login: &'static str,
    },
    /// No such branch, tag or commit.
    #[error("`{repo}` has no revision `{revision}`: see {endpoint}/{repo}/commits/main")]
    RevisionNotFound {
        /// The repository.
        repo: String,
        /// The revision asked for.
        revision: String,
        /// The Hub.
        endpoint: String,
    },
    /// No such file.
    #[error("`{repo}` has no file `{file}` at revision {revision}")]
    FileNotFound {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// The revision.
        revision: String,
    },
    /// The server answered with an error that a later try did not cure.
    #[error("{url} answered {status} after {tries} tries: {advice}")]
    Status {
        /// Without its query, which may be a signature.
        url: String,
        /// HTTP status.
        status: u16,
        /// How often it was asked.
        tries: u32,
        /// What to do.
        advice: &'static str,
    },
    /// No answer, or a body that stopped.
    #[error("{url} could not be read after {tries} tries: {reason}; what has arrived is kept, run the same command again to go on")]
    Network {
        /// Without its query.
        url: String,
        /// How often it was tried.
        tries: u32,
        /// The last failure.
        reason: String,
    },
    /// Size or hash differ from what the Hub announced.
    #[error(
        "{file} of `{repo}` arrived damaged twice ({what}: found {found}, expected {expected}): the network or a proxy changes it; nothing was kept"
    )]
    Damaged {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// Size, sha256 or git sha1.
        what: &'static str,
        /// What arrived.
        found: String,
        /// What was announced.
        expected: String,
    },
    /// The answer lacks what the protocol requires, or names a path outside the cache.
    #[error("{url} answered something that is not the Hub's protocol: {what} (HF_ENDPOINT is {endpoint})")]
    Protocol {
        /// Without its query.
        url: String,
        /// What was missing or odd.
        what: String,
        /// The Hub.
        endpoint: String,
    },
    /// No safetensors.
    #[error(
        "`{repo}` has no safetensors weights (found {found}): look for another revision that has (`refs/pr/…`, made by the Hub's converter), or convert them in Python with `model.save_pretrained(dir, safe_serialization=True)` and use dir(\"…\")"
    )]
    NoSafetensors {
        /// The repository.
        repo: String,
        /// What it has instead.
        found: String,
    },
    /// A file that can't be used.
    #[error("{file} of `{repo}` can't be used: {what}")]
    BadFile {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// A folder of the cache that leads out of it.
    #[error("{} is a link to {}, so files below it would be written outside the cache: remove the link", path.display(), to.display())]
    Link {
        /// The folder.
        path: PathBuf,
        /// Where it leads.
        to: PathBuf,
    },
    /// A repository name that can't be one.
    #[error("`{0}` is not a repository name: expected `name` or `org/name`, of letters, digits, `-`, `_` and `.`")]
    BadRepo(String),
    /// The cache can't be read or written.
    #[error("{path}: {source}{}", hint(source))]
    Disk {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

fn hint(source: &std::io::Error) -> &'static str {
    match source.kind() {
        _ if crate::files::no_room(source) => {
            " (no room on the disk: free some space or set HF_HUB_CACHE to another disk; the download goes on where it stopped)"
        }
        std::io::ErrorKind::PermissionDenied => " (set HF_HUB_CACHE to a folder that you may write)",
        _ => "",
    }
}
