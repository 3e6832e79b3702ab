//! Repositories at the paths and with the headers of huggingface.co: small files on the Hub itself, large ones in a store on another port.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::Digest as _;

use crate::http::{Reply, Request, Server};

/// The commit of a repository unless it says otherwise.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Another one.
pub const OTHER_COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";
/// What a network's own page looks like, where one must log in first.
const LOGIN_PAGE: &str = "<!doctype html><title>Log in</title><p>Accept the terms of this network.";

/// A repository.
#[derive(Debug, Clone)]
pub struct Repo {
    /// `models` or `datasets`.
    pub kind: &'static str,
    /// `org/name`.
    pub name: String,
    /// What `main` stands for.
    pub commit: String,
    /// Files by their paths; those that are large lie in the store.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Endings of large files' names.
    pub large: Vec<&'static str>,
}

impl Repo {
    /// A model.
    pub fn model(name: &str, files: impl IntoIterator<Item = (&'static str, Vec<u8>)>) -> Self {
        Self {
            kind: "models",
            name: name.to_owned(),
            commit: COMMIT.to_owned(),
            files: files.into_iter().map(|(n, b)| (n.to_owned(), b)).collect(),
            large: vec![".safetensors", ".parquet", ".gz"],
        }
    }

    /// A data set.
    pub fn dataset(name: &str, files: impl IntoIterator<Item = (&'static str, Vec<u8>)>) -> Self {
        Self { kind: "datasets", ..Self::model(name, files) }
    }

    fn is_large(&self, file: &str) -> bool {
        self.large.iter().any(|end| file.ends_with(end))
    }

    fn page(&self) -> &str {
        if self.kind == "models" { "" } else { "datasets/" }
    }
}

/// What must be asked for before a fault ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Requests for large files, to the store.
    Bytes,
    /// Look-ups and `HEAD`s, to the Hub.
    Facts,
}

/// What the servers do wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// So many requests for large files end after so many bytes.
    pub cut: (usize, usize),
    /// So many requests of that kind are answered with this status.
    pub status: Option<(usize, Wanted, u16)>,
    /// So many requests for large files have a byte flipped.
    pub flip: usize,
    /// So many requests for large files are answered with another version of the file, under another entity tag of the store.
    pub older: usize,
    /// Ranges are ignored.
    pub no_range: bool,
    /// Ranges are answered from this many bytes further on.
    pub shifted: usize,
    /// Ranges are refused with 416, and no word of how long the file is.
    pub unsatisfied: bool,
    /// The store tells no length.
    pub no_length: bool,
    /// The store announces so many bytes more than it sends.
    pub short: u64,
    /// `X-Linked-Size`, instead of the right one.
    pub size: Option<usize>,
    /// `X-Linked-Etag`, instead of the right one.
    pub etag: Option<String>,
    /// Look-ups and `HEAD`s are refused with this status and `X-Error-Code`.
    pub refuse: Option<(u16, &'static str)>,
    /// `HEAD`s tell another commit than the look-up.
    pub commit: Option<String>,
    /// Names listed beside the repository's own.
    pub listed: Vec<String>,
    /// Bytes of large files come in pieces of so many bytes with this pause.
    pub drip: Option<(Duration, usize)>,
    /// So many requests of that kind are answered with a login page and status 200.
    pub page: Option<(usize, Wanted)>,
    /// Redirects lead back to where they came from: of look-ups and `HEAD`s, or of bytes.
    pub circle: Option<Wanted>,
    /// The description lists no files: they are in the tree, so many on a page.
    pub tree: Option<usize>,
    /// The Hub sends everybody on to a Hub on another port, as a mirror does.
    pub moved: bool,
    /// Signatures of large files' addresses end after so many requests for bytes, until the Hub is asked again.
    pub expires: Option<usize>,
}

/// State that the servers share.
struct State {
    repos: Vec<Repo>,
    faults: Faults,
    log: Mutex<Vec<String>>,
    bytes: AtomicUsize,
    facts: AtomicUsize,
    signed: AtomicUsize,
    sent: AtomicUsize,
}

/// A Hub and its store.
pub struct Hub {
    /// What `HF_ENDPOINT` must be.
    pub endpoint: String,
    /// Where large files lie.
    pub store: String,
    state: Arc<State>,
    /// Until they are dropped.
    _servers: Vec<Server>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

/// Git's name of a blob.
fn git(bytes: &[u8]) -> String {
    let mut hash = sha1::Sha1::default();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

impl Hub {
    /// Starts it.
    pub fn start(repos: Vec<Repo>, faults: Faults) -> Self {
        let state = Arc::new(State {
            repos,
            faults,
            log: Mutex::default(),
            bytes: AtomicUsize::new(0),
            facts: AtomicUsize::new(0),
            signed: AtomicUsize::new(0),
            sent: AtomicUsize::new(0),
        });
        let store = {
            let state = state.clone();
            Server::start(move |request| state.store(request))
        };
        let store_at = store.url();
        let main = {
            let (state, store_at) = (state.clone(), store_at.clone());
            Server::start(move |request| state.hub(request, &store_at))
        };
        if !state.faults.moved {
            return Self { endpoint: main.url(), store: store_at, state, _servers: vec![store, main] };
        }
        let mirror = {
            let (state, to) = (state.clone(), main.url());
            Server::start(move |request| {
                state.note("mirror", request);
                Reply::new(308, "").with("Location", format!("{to}{}", request.path))
            })
        };
        Self { endpoint: mirror.url(), store: store_at, state, _servers: vec![store, main, mirror] }
    }

    /// What was asked for: `WHO METHOD PATH range=… if-range=… auth=…`, in order.
    pub fn log(&self) -> Vec<String> {
        self.state.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes of bodies that were to be sent.
    pub fn sent(&self) -> usize {
        self.state.sent.load(Ordering::Relaxed)
    }
}

impl State {
    fn note(&self, who: &str, request: &Request) {
        let line = format!(
            "{who} {} {} range={} if-range={} auth={}",
            request.method,
            request.path,
            request.header("range").unwrap_or("-"),
            request.header("if-range").unwrap_or("-"),
            request.header("authorization").is_some()
        );
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// A whole answer, its bytes counted.
    fn send(&self, request: &Request, reply: Reply) -> Reply {
        if request.method != "HEAD" {
            self.sent.fetch_add(reply.cut.unwrap_or(reply.body.len()).min(reply.body.len()), Ordering::Relaxed);
        }
        reply
    }

    /// A fault that stands for a number of requests of a kind, this being the `n`-th.
    fn in_place_of_an_answer(&self, kind: Wanted, n: usize, request: &Request) -> Option<Reply> {
        if let Some((times, of, status)) = self.faults.status
            && of == kind
            && n <= times
        {
            return Some(Reply::new(status, "").with("Retry-After", "0"));
        }
        if let Some((times, of)) = self.faults.page
            && of == kind
            && n <= times
        {
            return Some(Reply::new(200, LOGIN_PAGE).with("Content-Type", "text/html"));
        }
        (self.faults.circle == Some(kind)).then(|| Reply::new(307, "").with("Location", request.path.clone()))
    }

    fn hub(&self, request: &Request, store: &str) -> Reply {
        self.note("hub", request);
        let path = request.path.split('?').next().unwrap_or_default();
        let small_file = request.method == "GET" && path.contains("/resolve/");
        if !small_file {
            let n = self.facts.fetch_add(1, Ordering::Relaxed) + 1;
            if let Some(reply) = self.in_place_of_an_answer(Wanted::Facts, n, request) {
                return reply;
            }
        }
        if let Some((status, code)) = self.faults.refuse {
            return Reply::new(status, "").with("X-Error-Code", code);
        }
        for repo in &self.repos {
            let api = format!("/api/{}/{}/", repo.kind, repo.name);
            if let Some(rest) = path.strip_prefix(&api) {
                return self.described(repo, rest, request);
            }
            let resolve = format!("/{}{}/resolve/", repo.page(), repo.name);
            if let Some((revision, file)) = path.strip_prefix(&resolve).and_then(|rest| rest.split_once('/')) {
                return self.file(repo, revision, file, request, store);
            }
        }
        Reply::new(404, "").with("X-Error-Code", "RepoNotFound")
    }

    /// `revision/…` and `tree/…` of the API.
    fn described(&self, repo: &Repo, rest: &str, request: &Request) -> Reply {
        let unknown = |revision: &str| revision != "main" && revision != repo.commit;
        if let Some(revision) = rest.strip_prefix("revision/") {
            if unknown(revision) {
                return Reply::new(404, "").with("X-Error-Code", "RevisionNotFound");
            }
            let names = repo.files.keys().chain(&self.faults.listed).map(|name| json!({"rfilename": name}));
            let mut about = json!({"id": repo.name, "sha": repo.commit, "private": false, "tags": [], "downloads": 0, "likes": 0});
            if self.faults.tree.is_none() {
                about["siblings"] = Value::Array(names.collect());
            }
            return self.send(request, Reply::new(200, about.to_string()).with("Content-Type", "application/json"));
        }
        let Some(revision) = rest.strip_prefix("tree/").filter(|r| !unknown(r)) else {
            return Reply::new(404, "").with("X-Error-Code", "RevisionNotFound");
        };
        let own = repo.files.iter().map(|(name, bytes)| {
            let mut entry = json!({"type": "file", "path": name, "size": bytes.len(), "oid": git(bytes)});
            if repo.is_large(name) {
                entry["lfs"] = json!({"oid": sha256(bytes), "size": bytes.len(), "pointerSize": 134});
            }
            entry
        });
        let folder = json!({"type": "directory", "path": "a folder", "size": 0, "oid": git(b"")});
        let other = self.faults.listed.iter().map(|name| json!({"type": "file", "path": name, "size": 0, "oid": git(b"")}));
        let all: Vec<Value> = own.chain([folder]).chain(other).collect();
        let page = self.faults.tree.unwrap_or(all.len()).max(1);
        let query = request.path.split_once('?').map_or("", |(_, q)| q);
        let from: usize = query.split('&').find_map(|q| q.strip_prefix("cursor=")?.parse().ok()).unwrap_or(0);
        let part: Vec<&Value> = all.iter().skip(from).take(page).collect();
        let mut reply = Reply::new(200, json!(part).to_string()).with("Content-Type", "application/json");
        if from + page < all.len() {
            let host = request.header("host").unwrap_or_default();
            let next = format!("http://{host}/api/{}/{}/tree/{revision}?recursive=true&cursor={}", repo.kind, repo.name, from + page);
            reply = reply.with("Link", format!("<{next}>; rel=\"next\""));
        }
        self.send(request, reply)
    }

    fn file(&self, repo: &Repo, revision: &str, file: &str, request: &Request, store: &str) -> Reply {
        let commit = self.faults.commit.as_ref().unwrap_or(&repo.commit);
        let Some(bytes) = repo.files.get(file).filter(|_| revision == repo.commit || revision == "main") else {
            return Reply::new(404, "").with("X-Error-Code", "EntryNotFound").with("X-Repo-Commit", commit);
        };
        if !repo.is_large(file) {
            let reply = ranged(request, bytes, &self.faults);
            return self.send(request, reply.with("X-Repo-Commit", commit).with("ETag", format!("\"{}\"", git(bytes))));
        }
        let etag = self.faults.etag.clone().unwrap_or_else(|| sha256(bytes));
        let size = self.faults.size.unwrap_or(bytes.len());
        let ticket = self.signed.fetch_add(1, Ordering::Relaxed);
        Reply::new(302, "")
            .with("X-Repo-Commit", commit)
            .with("X-Linked-Etag", format!("\"{etag}\""))
            .with("X-Linked-Size", size.to_string())
            .with("X-Xet-Hash", "ab".repeat(32))
            .with(
                "Link",
                format!("<{store}/api/xet-read-token>; rel=\"xet-auth\", <{store}/reconstruction>; rel=\"xet-reconstruction-info\""),
            )
            .with("Location", format!("{store}/{}/{file}?ticket={ticket}&Signature=hush", repo.name))
    }

    fn store(&self, request: &Request) -> Reply {
        self.note("store", request);
        let n = self.bytes.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(reply) = self.in_place_of_an_answer(Wanted::Bytes, n, request) {
            return self.send(request, reply);
        }
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let ticket: usize = query.split('&').find_map(|q| q.strip_prefix("ticket=")?.parse().ok()).unwrap_or(0);
        if self.faults.expires.is_some_and(|after| ticket == 0 && n > after) {
            return Reply::new(403, "<Error><Code>AccessDenied</Code></Error>");
        }
        let found = self.repos.iter().find_map(|r| r.files.get(path.strip_prefix(&format!("/{}/", r.name))?));
        let Some(bytes) = found else { return Reply::new(404, "") };
        let mut bytes = bytes.clone();
        let older = n <= self.faults.older;
        if older {
            bytes.reverse();
        }
        if n <= self.faults.flip
            && let Some(last) = bytes.last_mut()
        {
            *last ^= 1;
        }
        let tag = format!("\"store-{}\"", if older { "older" } else { "newer" });
        // RFC 9110, 13.1.5: another version than the one that was begun is sent from its beginning.
        let whole = request.header("if-range").is_some_and(|known| known != tag);
        let faults = Faults { no_range: self.faults.no_range || whole, ..self.faults.clone() };
        let mut reply = ranged(request, &bytes, &faults).with("ETag", tag);
        if n <= faults.cut.0 {
            reply.cut = Some(faults.cut.1);
        }
        reply.drip = faults.drip;
        reply.chunked = faults.no_length;
        if faults.short > 0 {
            reply.length = Some(reply.body.len() as u64 + faults.short);
        }
        self.send(request, reply)
    }
}

/// The bytes from where the request wants them, up to where.
fn ranged(request: &Request, bytes: &[u8], faults: &Faults) -> Reply {
    let asked = request.header("range").and_then(|r| r.strip_prefix("bytes=")?.split_once('-')).filter(|_| !faults.no_range);
    let Some((from, to)) = asked else { return Reply::new(200, bytes) };
    let from = from.parse::<usize>().unwrap_or(0) + faults.shifted;
    let to = to.parse::<usize>().map_or(bytes.len(), |last| last + 1).min(bytes.len());
    if faults.unsatisfied {
        return Reply::new(416, "");
    }
    if from >= to {
        return Reply::new(416, "").with("Content-Range", format!("bytes */{}", bytes.len()));
    }
    Reply::new(206, &bytes[from..to]).with("Content-Range", format!("bytes {from}-{}/{}", to - 1, bytes.len()))
}
