//! The Hub over HTTP: look-ups, with Python's cache as it lies on the disk. Bytes of files: [`super::download`].

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{HeaderName, Response, Uri, header};

use super::download::link;

use super::{Fetched, Hub, HubEnv, HubError, Listing, RepoId, Watch, safe_relative};

/// Tries of a request before its failure is reported; a try that brought new bytes starts the count again.
pub(super) const TRIES: u32 = 5;
/// Tries of a look-up that nobody answers: without a network the cache is asked soon.
const LOOK_UPS: u32 = 2;
/// Downloads at once, as in the Python library.
const AT_ONCE: usize = 8;
/// Redirects of one request (a renamed repository, a mirror, a store) before we give up.
const REDIRECTS: usize = 5;
/// The longest answer that is not a file.
const MAX_LISTING_BYTES: u64 = 256 << 20;
/// With more files than this a description's list of them may be cut short; the tree has all.
const LISTED_WHOLE: usize = 1000;
/// Pages of a tree before we give up.
const MAX_PAGES: usize = 10_000;

/// A client of one Hub and one cache.
#[derive(Debug)]
pub struct Client {
    pub(super) env: HubEnv,
    agent: ureq::Agent,
}

/// What the Hub says of a file before it is fetched.
pub(super) struct Meta {
    pub(super) commit: String,
    pub(super) etag: String,
    pub(super) size: Option<u64>,
    /// Where its bytes are; another host's for large files.
    pub(super) location: String,
}

/// The parts of a repository's description that are needed.
#[derive(Deserialize)]
struct Description {
    sha: String,
    siblings: Option<Vec<Sibling>>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// An entry of a repository's tree.
#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
}

/// What to do after a failed try.
pub(super) enum Failure {
    Final(HubError),
    /// Worth another try, after this wait if the server named one; `progress` when bytes had come.
    Again {
        reason: String,
        status: Option<u16>,
        wait: Option<Duration>,
        progress: bool,
    },
}

impl Failure {
    /// No status, no bytes.
    pub(super) fn again(reason: impl Into<String>) -> Self {
        Self::Again { reason: reason.into(), status: None, wait: None, progress: false }
    }
}

impl From<HubError> for Failure {
    fn from(e: HubError) -> Self {
        Self::Final(e)
    }
}

pub(super) fn disk(path: &Path) -> impl FnOnce(std::io::Error) -> HubError + '_ {
    move |source| HubError::Disk { path: path.to_owned(), source }
}

/// A URL without its query, which may hold a signature.
pub(super) fn shown(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().to_owned()
}

pub(super) fn origin(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    Some((uri.scheme_str()?.to_ascii_lowercase(), uri.authority()?.as_str().rsplit('@').next()?.to_ascii_lowercase()))
}

pub(super) fn text<'a, B>(response: &'a Response<B>, name: &str) -> Option<&'a str> {
    response.headers().get(name).and_then(|v| v.to_str().ok())
}

/// The address that a redirect names, which may be relative (RFC 9110, 10.2.2).
fn resolved(from: &str, to: &str) -> Option<String> {
    if origin(to).is_some() {
        return Some(to.to_owned());
    }
    let (scheme, host) = origin(from)?;
    if let Some(rest) = to.strip_prefix("//") {
        return Some(format!("{scheme}://{rest}"));
    }
    if to.starts_with('/') {
        return Some(format!("{scheme}://{host}{to}"));
    }
    let path: Uri = from.parse().ok()?;
    let folder = path.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    Some(format!("{scheme}://{host}{folder}/{to}"))
}

/// The next page of a list: `<…>; rel="next"` in a `Link` header.
fn next_page(link: &str) -> Option<&str> {
    link.split(',').find_map(|one| {
        let (address, rest) = one.trim().strip_prefix('<')?.split_once('>')?;
        rest.split(';').any(|p| matches!(p.trim(), "rel=\"next\"" | "rel=next")).then_some(address)
    })
}

/// What a server says about when to come again.
pub(super) fn retry_after<B>(response: &Response<B>) -> Option<Duration> {
    text(response, "retry-after").and_then(|s| s.trim().parse().ok()).map(|s: u64| Duration::from_secs(s.min(300)))
}

/// An entity tag as a file name: weak mark and quotes off; refused if it could name anything but a file in `blobs/`.
fn clean_etag(raw: &str) -> Option<String> {
    let etag = raw.trim().trim_start_matches("W/").trim_matches('"');
    let plain = !etag.is_empty() && etag.len() <= 200 && etag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    plain.then(|| etag.to_owned())
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a body is a web page.
fn is_page(body: &[u8]) -> bool {
    let start = body.trim_ascii_start();
    let tag = start.get(..14).unwrap_or(start).to_ascii_lowercase();
    tag.starts_with(b"<!doctype html") || tag.starts_with(b"<html")
}

pub(super) fn login_page(what: &str) -> String {
    format!("a web page where a {what} was asked for: does this network, or a proxy, want you to log in first?")
}

impl Client {
    /// A client for that environment.
    pub fn new(env: HubEnv) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(env.etag_timeout))
            .timeout_recv_response(Some(env.etag_timeout.max(env.download_timeout)))
            .timeout_per_read(Some(env.download_timeout))
            .user_agent(concat!("prunectl/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { env, agent: config.new_agent() }
    }

    fn login(&self) -> &'static str {
        if self.env.token.is_some() {
            "check that the token in HF_TOKEN (or saved by `hf auth login`) may read it"
        } else {
            "set HF_TOKEN or run `hf auth login` (no token was found)"
        }
    }

    pub(super) fn protocol(&self, url: &str, what: impl Into<String>) -> HubError {
        HubError::Protocol { url: shown(url), what: what.into(), endpoint: self.env.endpoint.clone() }
    }

    /// One request, redirects not followed. The token goes to the Hub's own host only.
    fn ask(&self, method: &str, url: &str, headers: &[(HeaderName, &str)]) -> Result<Response<ureq::Body>, Failure> {
        let mut request = ureq::http::Request::builder().method(method).uri(url).header(header::ACCEPT_ENCODING, "identity");
        if let Some(token) = &self.env.token
            && origin(url).is_some()
            && origin(url) == origin(&self.env.endpoint)
        {
            request = request.header(header::AUTHORIZATION, token.bearer());
        }
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let request = request.body(()).map_err(|e| self.protocol(url, format!("an address that is none ({e})")))?;
        self.agent.run(request).map_err(|e| Failure::again(e.to_string()))
    }

    /// A request and the redirects that answer it, to an answer that is none or that is `enough`; with the address that gave it.
    pub(super) fn follow(
        &self,
        method: &str,
        url: &str,
        headers: &[(HeaderName, &str)],
        enough: impl Fn(&Response<ureq::Body>) -> bool,
    ) -> Result<(String, Response<ureq::Body>), Failure> {
        let mut at = url.to_owned();
        for _ in 0..=REDIRECTS {
            let response = self.ask(method, &at, headers)?;
            if !response.status().is_redirection() || enough(&response) {
                return Ok((at, response));
            }
            let to = text(&response, "location").and_then(|to| resolved(&at, to));
            at = to.ok_or_else(|| self.protocol(&at, "a redirect that leads nowhere"))?;
        }
        Err(self.protocol(url, format!("more than {REDIRECTS} redirects, perhaps in a circle")).into())
    }

    /// Refusals of the Hub that no later try will cure, and those that one may.
    fn refuse<B>(&self, repo: &RepoId, file: Option<&str>, url: &str, response: &Response<B>) -> Failure {
        let status = response.status().as_u16();
        let (name, endpoint) = (repo.name.clone(), self.env.endpoint.clone());
        let code = text(response, "x-error-code").unwrap_or_default();
        let named = match (code, status) {
            ("GatedRepo", _) | ("", 403) => Some(HubError::Gated { repo: name, endpoint, login: self.login() }),
            ("RevisionNotFound", _) => Some(HubError::RevisionNotFound { repo: name, revision: repo.revision.clone(), endpoint }),
            ("EntryNotFound", _) => {
                Some(HubError::FileNotFound { repo: name, file: file.unwrap_or_default().to_owned(), revision: repo.revision.clone() })
            }
            ("RepoNotFound", _) | ("", 401 | 404) => Some(HubError::RepoNotFound { repo: name, endpoint, login: self.login() }),
            _ => None,
        };
        if let Some(error) = named {
            return Failure::Final(error);
        }
        if status == 429 || status == 408 || status >= 500 {
            return Failure::Again {
                reason: format!("status {status}"),
                status: Some(status),
                wait: retry_after(response),
                progress: false,
            };
        }
        let advice = match status {
            401 | 403 => self.login(),
            _ => "is HF_ENDPOINT the address of a Hub?",
        };
        Failure::Final(HubError::Status { url: shown(url), status, tries: 1, advice })
    }

    /// Tries until success, a final failure, or [`TRIES`] failures in a row without a byte of progress (`unanswered` of them if no server answers).
    pub(super) fn persist<T>(
        &self,
        url: &str,
        label: &str,
        unanswered: u32,
        watch: &dyn Watch,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, HubError> {
        let (mut failures, mut wait) = (0, self.env.first_wait);
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again { reason, status, wait: told, progress }) => {
                    if progress {
                        (failures, wait) = (0, self.env.first_wait);
                    }
                    failures += 1;
                    if failures >= if status.is_none() { unanswered } else { TRIES } {
                        let url = shown(url);
                        return Err(match status {
                            Some(429) => HubError::Status {
                                url,
                                status: 429,
                                tries: failures,
                                advice: "too many requests: log in or wait some minutes",
                            },
                            Some(status) => HubError::Status { url, status, tries: failures, advice: "the server has a fault: try later" },
                            None => HubError::Network { url, tries: failures, reason },
                        });
                    }
                    let pause = told.unwrap_or(wait);
                    watch.retry(label, &reason, pause);
                    std::thread::sleep(pause);
                    wait = (wait * 2).min(Duration::from_secs(30));
                }
            }
        }
    }

    fn folder(&self, repo: &RepoId) -> PathBuf {
        self.env.cache.join(repo.repo().folder_name())
    }

    /// The commit that the cache holds for the revision.
    fn cached_commit(&self, repo: &RepoId) -> Option<String> {
        if is_commit(&repo.revision) {
            return self.folder(repo).join("snapshots").join(&repo.revision).is_dir().then(|| repo.revision.clone());
        }
        let stored = fs::read_to_string(self.folder(repo).join("refs").join(&repo.revision)).ok()?;
        Some(stored.trim().to_owned()).filter(|c| is_commit(c))
    }

    fn cached_listing(&self, repo: &RepoId) -> Result<Listing, HubError> {
        let offline = || HubError::Offline { what: repo.name.clone(), repo: repo.name.clone(), cache: self.env.cache.clone() };
        let commit = self.cached_commit(repo).ok_or_else(offline)?;
        let root = self.folder(repo).join("snapshots").join(&commit);
        let (mut files, mut open) = (Vec::new(), vec![PathBuf::new()]);
        while let Some(below) = open.pop() {
            let dir = root.join(&below);
            for entry in fs::read_dir(&dir).map_err(disk(&dir))? {
                let entry = entry.map_err(disk(&dir))?;
                let name = below.join(entry.file_name());
                if entry.path().is_dir() {
                    open.push(name);
                } else if entry.path().is_file() {
                    files.push(name.to_string_lossy().into_owned());
                }
            }
        }
        files.sort();
        if files.is_empty() { Err(offline()) } else { Ok(Listing { commit, files, stale: None }) }
    }

    fn online_listing(&self, repo: &RepoId) -> Result<Listing, HubError> {
        let url = format!("{}/api/{}", self.env.endpoint, repo.repo().api_url());
        let (about, at, _): (Description, _, _) =
            self.persist(&url, &repo.name, LOOK_UPS, &(), || self.described(repo, &url, "repository description"))?;
        if !is_commit(&about.sha) {
            return Err(self.protocol(&at, "no commit"));
        }
        let listed: Vec<String> = about.siblings.unwrap_or_default().into_iter().map(|s| s.rfilename).collect();
        let files = if listed.is_empty() || listed.len() > LISTED_WHOLE { self.tree(repo, &about.sha)? } else { listed };
        match files.iter().find(|f| safe_relative(f).is_none()) {
            Some(bad) => Err(self.protocol(&at, format!("the file name {bad:?}, which leaves the cache"))),
            None => Ok(Listing { commit: about.sha, files, stale: None }),
        }
    }

    /// Every file of a commit, page by page.
    fn tree(&self, repo: &RepoId, commit: &str) -> Result<Vec<String>, HubError> {
        let mut url = format!("{}/api/{}/{}/tree/{commit}?recursive=true", self.env.endpoint, repo.kind.plural(), repo.name);
        let mut files = Vec::new();
        for _ in 0..MAX_PAGES {
            let (page, at, next): (Vec<Entry>, _, _) =
                self.persist(&url, &repo.name, TRIES, &(), || self.described(repo, &url, "list of files"))?;
            files.extend(page.into_iter().filter(|e| e.kind == "file").map(|e| e.path));
            let Some(next) = next else { return Ok(files) };
            // The next page is asked for with the token, so it must be the Hub's.
            if origin(&next).is_none() || origin(&next) != origin(&at) {
                return Err(self.protocol(&at, "a list of files that goes on at another host"));
            }
            url = next;
        }
        Err(self.protocol(&url, format!("a list of files of more than {MAX_PAGES} pages")))
    }

    /// An answer in JSON, the address that gave it, and that of the next page.
    fn described<T: serde::de::DeserializeOwned>(
        &self,
        repo: &RepoId,
        url: &str,
        what: &str,
    ) -> Result<(T, String, Option<String>), Failure> {
        let (at, mut response) = self.follow("GET", url, &[], |_| false)?;
        if !response.status().is_success() {
            return Err(self.refuse(repo, None, &at, &response));
        }
        let next = text(&response, "link").and_then(next_page).and_then(|to| resolved(&at, to));
        let mut body = Vec::new();
        let read = response.body_mut().with_config().limit(MAX_LISTING_BYTES).reader().read_to_end(&mut body);
        read.map_err(|e| Failure::again(e.to_string()))?;
        match serde_json::from_slice(&body) {
            Ok(found) => Ok((found, at, next)),
            Err(_) if is_page(&body) => Err(self.protocol(&at, login_page(what)).into()),
            Err(e) => Err(self.protocol(&at, format!("no {what} ({e})")).into()),
        }
    }

    pub(super) fn meta(&self, repo: &RepoId, commit: &str, file: &str) -> Result<Meta, Failure> {
        let escaped: String = file
            .bytes()
            .map(|b| if b.is_ascii_alphanumeric() || b"-_.~/".contains(&b) { (b as char).to_string() } else { format!("%{b:02X}") })
            .collect();
        let url = format!("{}/{}/resolve/{commit}/{escaped}", self.env.endpoint, repo.repo().url());
        // A file's own headers come with the redirect to its bytes; redirects without them lead to another Hub or another name.
        let (url, response) = self.follow("HEAD", &url, &[], |r| text(r, "x-linked-etag").is_some())?;
        if !response.status().is_success() && !response.status().is_redirection() {
            return Err(self.refuse(repo, Some(file), &url, &response));
        }
        let page = text(&response, "content-type").is_some_and(|t| t.starts_with("text/html"));
        let no_commit = || match page {
            true => login_page("commit of a file (X-Repo-Commit)"),
            false => "no X-Repo-Commit".to_owned(),
        };
        let commit = text(&response, "x-repo-commit").filter(|c| is_commit(c)).ok_or_else(|| self.protocol(&url, no_commit()))?;
        let raw = text(&response, "x-linked-etag").or_else(|| text(&response, "etag")).ok_or_else(|| self.protocol(&url, "no ETag"))?;
        let etag = clean_etag(raw).ok_or_else(|| self.protocol(&url, format!("the ETag {raw:?}, which is no file name")))?;
        let size = text(&response, "x-linked-size")
            .or_else(|| text(&response, "content-length").filter(|_| response.status().is_success()))
            .and_then(|s| s.trim().parse().ok());
        let away = text(&response, "location").filter(|_| response.status().is_redirection()).and_then(|to| resolved(&url, to));
        Ok(Meta { commit: commit.to_owned(), etag, size, location: away.unwrap_or_else(|| url.clone()) })
    }

    fn one(&self, repo: &RepoId, commit: &str, file: &str, watch: &dyn Watch) -> Result<Fetched, HubError> {
        let relative = safe_relative(file)
            .ok_or_else(|| self.protocol(&self.env.endpoint, format!("the file name {file:?}, which leaves the cache")))?;
        let folder = self.folder(repo);
        let pointer = folder.join("snapshots").join(commit).join(relative);
        if pointer.is_file() {
            let etag = fs::read_link(&pointer).ok().and_then(|t| Some(t.file_name()?.to_string_lossy().into_owned()));
            return Ok(Fetched { name: file.to_owned(), path: pointer, etag });
        }
        if self.env.offline {
            return Err(HubError::Offline {
                what: format!("{}/{file}", repo.name),
                repo: repo.name.clone(),
                cache: self.env.cache.clone(),
            });
        }
        let label = format!("{}/{file}", repo.name);
        let meta = self.persist(&format!("{}/{label}", self.env.endpoint), &label, TRIES, watch, || self.meta(repo, commit, file))?;
        if meta.commit != commit {
            return Err(self.protocol(&meta.location, format!("commit {} where {commit} was asked for", meta.commit)));
        }
        let blob = folder.join("blobs").join(&meta.etag);
        let lock = self.env.cache.join(".locks").join(repo.repo().folder_name()).join(format!("{}.lock", meta.etag));
        Self::stays_inside(&folder, &pointer)?;
        for below in [&blob, &lock, &pointer] {
            let parent = below.parent().unwrap_or(&folder);
            fs::create_dir_all(parent).map_err(disk(parent))?;
        }
        let guard = OpenOptions::new().create(true).truncate(false).write(true).open(&lock).map_err(disk(&lock))?;
        guard.lock().map_err(disk(&lock))?;
        if !blob.is_file() {
            self.bytes(repo, commit, file, meta, &blob, watch)?;
        }
        link(&blob, &pointer, relative)?;
        drop(guard);
        let etag = blob.file_name().map(|n| n.to_string_lossy().into_owned());
        Ok(Fetched { name: file.to_owned(), path: pointer, etag })
    }

    /// Refuses folders of a snapshot that are links: what is written below them would leave the cache.
    fn stays_inside(folder: &Path, pointer: &Path) -> Result<(), HubError> {
        let linked = pointer.ancestors().skip(1).take_while(|p| *p != folder).find(|p| p.is_symlink());
        linked.map_or(Ok(()), |path| Err(HubError::Link { path: path.to_owned(), to: fs::read_link(path).unwrap_or_default() }))
    }

    /// The folder of a commit's files.
    pub fn snapshot(&self, repo: &RepoId, commit: &str) -> PathBuf {
        self.folder(repo).join("snapshots").join(commit)
    }

    /// The first `length` bytes of a file, not kept.
    pub fn prefix(&self, repo: &RepoId, commit: &str, file: &str, length: u64) -> Result<Vec<u8>, HubError> {
        if self.env.offline {
            return Err(HubError::Offline {
                what: format!("{}/{file}", repo.name),
                repo: repo.name.clone(),
                cache: self.env.cache.clone(),
            });
        }
        let url = format!("{}/{}/{file}", self.env.endpoint, repo.name);
        self.persist(&url, file, TRIES, &(), || {
            let meta = self.meta(repo, commit, file)?;
            let range = format!("bytes=0-{}", length.saturating_sub(1));
            let (at, mut response) = self.follow("GET", &meta.location, &[(header::RANGE, &range)], |_| false)?;
            if !response.status().is_success() {
                return Err(self.refuse(repo, Some(file), &at, &response));
            }
            let mut body = Vec::new();
            let read = response.body_mut().with_config().limit(u64::MAX).reader().take(length).read_to_end(&mut body);
            read.map_err(|e| Failure::again(e.to_string()))?;
            if (body.len() as u64) < length && meta.size.is_none_or(|size| size >= length) {
                return Err(Failure::again(format!("{} of {length} bytes came", body.len())));
            }
            Ok(body)
        })
    }
}

impl Hub for Client {
    fn list(&self, repo: &RepoId) -> Result<Listing, HubError> {
        if self.env.offline {
            return self.cached_listing(repo);
        }
        match self.online_listing(repo) {
            // As the Python library: where the Hub does not answer, or not us, the cache is used if it knows the revision.
            Err(error @ (HubError::Network { .. } | HubError::Status { .. } | HubError::Gated { .. } | HubError::RepoNotFound { .. })) => {
                match self.cached_listing(repo) {
                    Ok(listing) => Ok(Listing { stale: Some(error.to_string()), ..listing }),
                    Err(_) => Err(error),
                }
            }
            Err(error) => Err(error),
            Ok(listing) => {
                if repo.revision != listing.commit {
                    let path = self.folder(repo).join("refs").join(&repo.revision);
                    let parent = path.parent().unwrap_or(&self.env.cache);
                    fs::create_dir_all(parent).map_err(disk(parent))?;
                    let mut part = tempfile::NamedTempFile::new_in(parent).map_err(disk(parent))?;
                    part.write_all(listing.commit.as_bytes()).map_err(disk(part.path()))?;
                    part.persist(&path).map_err(|e| disk(&path)(e.error))?;
                }
                Ok(listing)
            }
        }
    }

    fn fetch(&self, repo: &RepoId, commit: &str, names: &[String], watch: &dyn Watch) -> Result<Vec<Fetched>, HubError> {
        let next = AtomicUsize::new(0);
        let done: Mutex<Vec<(usize, Result<Fetched, HubError>)>> = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(names.len()) {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(name) = names.get(i) else { break };
                        let outcome = self.one(repo, commit, name, watch);
                        if outcome.is_err() {
                            next.store(names.len(), Ordering::Relaxed);
                        }
                        done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((i, outcome));
                    }
                });
            }
        });
        let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        done.sort_by_key(|(i, _)| *i);
        done.into_iter().map(|(_, outcome)| outcome).collect()
    }
}
