//! The Hub over HTTP: look-ups, and downloads that go on where they stopped, are verified, and share Python's cache with its locks.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sha1::Digest as _;
use ureq::http::{Response, Uri, header};

use super::{Fetched, Hub, HubEnv, HubError, Listing, RepoId, Watch, safe_relative};

/// Tries of a request before its failure is reported; a try that brought bytes starts the count again.
const TRIES: u32 = 5;
/// Tries of a look-up that nobody answers: without a network the cache is asked soon.
const LOOK_UPS: u32 = 2;
/// Downloads at once, as in the Python library.
const AT_ONCE: usize = 8;
/// Redirects within the Hub (a renamed repository) before we give up.
const REDIRECTS: usize = 5;
/// The longest answer that is not a file.
const MAX_LISTING_BYTES: u64 = 256 << 20;
const CHUNK_BYTES: usize = 1 << 20;

/// A client of one Hub and one cache.
#[derive(Debug)]
pub struct Client {
    env: HubEnv,
    agent: ureq::Agent,
    first_wait: Duration,
}

/// What the Hub says of a file before it is fetched.
struct Meta {
    commit: String,
    etag: String,
    size: Option<u64>,
    /// Where its bytes are; another host's for large files.
    location: String,
}

/// The entity tag's hash, where it is one.
enum Hash {
    Sha256(sha2::Sha256),
    /// Git's hash of a blob: sha1 over `blob <size>\0` and the bytes.
    Git(sha1::Sha1),
    None,
}

impl Hash {
    fn new(etag: &str, size: u64) -> Self {
        match (etag.len(), etag.bytes().all(|b| b.is_ascii_hexdigit())) {
            (64, true) => Self::Sha256(sha2::Sha256::default()),
            (40, true) => {
                let mut h = sha1::Sha1::default();
                h.update(format!("blob {size}\0"));
                Self::Git(h)
            }
            _ => Self::None,
        }
    }
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(h) => h.update(bytes),
            Self::Git(h) => h.update(bytes),
            Self::None => {}
        }
    }
    fn finish(self) -> Option<(&'static str, String)> {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        match self {
            Self::Sha256(h) => Some(("sha256", hex(&h.finalize()))),
            Self::Git(h) => Some(("git sha1", hex(&h.finalize()))),
            Self::None => None,
        }
    }
}

/// What to do after a failed try.
enum Failure {
    Final(HubError),
    /// Worth another try, after this wait if the server named one; `progress` when bytes had come.
    Again {
        reason: String,
        status: Option<u16>,
        wait: Option<Duration>,
        progress: bool,
    },
}

impl From<HubError> for Failure {
    fn from(e: HubError) -> Self {
        Self::Final(e)
    }
}

fn disk(path: &Path) -> impl FnOnce(std::io::Error) -> HubError + '_ {
    move |source| HubError::Disk { path: path.to_owned(), source }
}

/// A URL without its query, which may hold a signature.
fn shown(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().to_owned()
}

fn origin(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    Some((uri.scheme_str()?.to_ascii_lowercase(), uri.authority()?.as_str().rsplit('@').next()?.to_ascii_lowercase()))
}

fn text<'a, B>(response: &'a Response<B>, name: &str) -> Option<&'a str> {
    response.headers().get(name).and_then(|v| v.to_str().ok())
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
        Self { env, agent: config.new_agent(), first_wait: Duration::from_secs(1) }
    }

    #[cfg(test)]
    pub(super) fn impatient(mut self) -> Self {
        self.first_wait = Duration::from_millis(10);
        self
    }

    fn login(&self) -> &'static str {
        if self.env.token.is_some() {
            "check that the token in HF_TOKEN (or saved by `huggingface-cli login`) may read it"
        } else {
            "set HF_TOKEN or run `huggingface-cli login` (no token was found)"
        }
    }

    fn protocol(&self, url: &str, what: impl Into<String>) -> HubError {
        HubError::Protocol { url: shown(url), what: what.into(), endpoint: self.env.endpoint.clone() }
    }

    /// One request, redirects not followed. The token goes to the Hub's own host only.
    fn ask(&self, method: &str, url: &str, range: Option<&str>) -> Result<Response<ureq::Body>, Failure> {
        let mut request = ureq::http::Request::builder().method(method).uri(url).header(header::ACCEPT_ENCODING, "identity");
        if let Some(token) = &self.env.token
            && origin(url).is_some()
            && origin(url) == origin(&self.env.endpoint)
        {
            request = request.header(header::AUTHORIZATION, token.bearer());
        }
        if let Some(range) = range {
            request = request.header(header::RANGE, range);
        }
        let request = request.body(()).map_err(|e| self.protocol(url, format!("an address that is none ({e})")))?;
        self.agent.run(request).map_err(|e| Failure::Again { reason: e.to_string(), status: None, wait: None, progress: false })
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
            let wait = text(response, "retry-after").and_then(|s| s.trim().parse().ok()).map(|s: u64| Duration::from_secs(s.min(300)));
            return Failure::Again { reason: format!("status {status}"), status: Some(status), wait, progress: false };
        }
        let advice = match status {
            401 | 403 => self.login(),
            _ => "is HF_ENDPOINT the address of a Hub?",
        };
        Failure::Final(HubError::Status { url: shown(url), status, tries: 1, advice })
    }

    /// Tries until success, a final failure, or [`TRIES`] failures in a row without a byte of progress (`unanswered` of them if no server answers).
    fn persist<T>(
        &self,
        url: &str,
        label: &str,
        unanswered: u32,
        watch: &dyn Watch,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, HubError> {
        let (mut failures, mut wait) = (0, self.first_wait);
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again { reason, status, wait: told, progress }) => {
                    if progress {
                        (failures, wait) = (0, self.first_wait);
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
        if files.is_empty() { Err(offline()) } else { Ok(Listing { commit, files }) }
    }

    fn online_listing(&self, repo: &RepoId) -> Result<Listing, HubError> {
        let url = format!("{}/api/{}", self.env.endpoint, repo.repo().api_url());
        self.persist(&url, &repo.name, LOOK_UPS, &(), || {
            let mut at = url.clone();
            let mut response = self.ask("GET", &at, None)?;
            for _ in 0..REDIRECTS {
                match self.inner_redirect(&at, &response) {
                    Some(next) => {
                        at = next;
                        response = self.ask("GET", &at, None)?;
                    }
                    None => break,
                }
            }
            if !response.status().is_success() {
                return Err(self.refuse(repo, None, &at, &response));
            }
            let mut body = Vec::new();
            response.body_mut().with_config().limit(MAX_LISTING_BYTES).reader().read_to_end(&mut body).map_err(|e| Failure::Again {
                reason: e.to_string(),
                status: None,
                wait: None,
                progress: false,
            })?;
            let info: hf_hub::api::RepoInfo =
                serde_json::from_slice(&body).map_err(|e| self.protocol(&at, format!("no repository description ({e})")))?;
            if !is_commit(&info.sha) {
                return Err(self.protocol(&at, "no commit").into());
            }
            let files: Vec<String> = info.siblings.into_iter().map(|s| s.rfilename).collect();
            match files.iter().find(|f| safe_relative(f).is_none()) {
                Some(bad) => Err(self.protocol(&at, format!("the file name {bad:?}, which leaves the cache")).into()),
                None => Ok(Listing { commit: info.sha, files }),
            }
        })
    }

    /// Where a redirect within the Hub leads; `None` for a redirect to another host, and for no redirect.
    fn inner_redirect<B>(&self, from: &str, response: &Response<B>) -> Option<String> {
        let to = text(response, "location").filter(|_| response.status().is_redirection())?;
        if let Some(path) = to.strip_prefix('/') {
            let (scheme, host) = origin(from)?;
            return Some(format!("{scheme}://{host}/{path}"));
        }
        (origin(to).is_some() && origin(to) == origin(from)).then(|| to.to_owned())
    }

    fn meta(&self, repo: &RepoId, commit: &str, file: &str) -> Result<Meta, Failure> {
        let escaped: String = file
            .bytes()
            .map(|b| if b.is_ascii_alphanumeric() || b"-_.~/".contains(&b) { (b as char).to_string() } else { format!("%{b:02X}") })
            .collect();
        let mut url = format!("{}/{}/resolve/{commit}/{escaped}", self.env.endpoint, repo.repo().url());
        let mut seen = None;
        for _ in 0..REDIRECTS {
            let response = self.ask("HEAD", &url, None)?;
            let inner = self.inner_redirect(&url, &response);
            // A file's own headers come with the redirect to its bytes, even if those are on this host.
            let has_tag = text(&response, "x-linked-etag").is_some();
            match inner {
                Some(next) if !has_tag => url = next,
                _ => {
                    seen = Some(response);
                    break;
                }
            }
        }
        let response = seen.ok_or_else(|| self.protocol(&url, "more redirects than a Hub makes"))?;
        if !response.status().is_success() && !response.status().is_redirection() {
            return Err(self.refuse(repo, Some(file), &url, &response));
        }
        let commit = text(&response, "x-repo-commit").filter(|c| is_commit(c)).ok_or_else(|| self.protocol(&url, "no X-Repo-Commit"))?;
        let raw = text(&response, "x-linked-etag").or_else(|| text(&response, "etag")).ok_or_else(|| self.protocol(&url, "no ETag"))?;
        let etag = clean_etag(raw).ok_or_else(|| self.protocol(&url, format!("the ETag {raw:?}, which is no file name")))?;
        let size = text(&response, "x-linked-size")
            .or_else(|| text(&response, "content-length").filter(|_| response.status().is_success()))
            .and_then(|s| s.trim().parse().ok());
        let location = match text(&response, "location").filter(|_| response.status().is_redirection()) {
            Some(path) if path.starts_with('/') => self.inner_redirect(&url, &response).unwrap_or_else(|| url.clone()),
            Some(away) => away.to_owned(),
            None => url.clone(),
        };
        Ok(Meta { commit: commit.to_owned(), etag, size, location })
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
            let mut at = meta.location;
            let mut response = self.ask("GET", &at, Some(&range))?;
            for _ in 0..REDIRECTS {
                let Some(to) = text(&response, "location").filter(|_| response.status().is_redirection()) else { break };
                at = if to.starts_with('/') { self.inner_redirect(&at, &response).unwrap_or_default() } else { to.to_owned() };
                response = self.ask("GET", &at, Some(&range))?;
            }
            if !response.status().is_success() {
                return Err(self.refuse(repo, Some(file), &at, &response));
            }
            let mut body = Vec::new();
            let read = response.body_mut().with_config().limit(u64::MAX).reader().take(length).read_to_end(&mut body);
            read.map_err(|e| Failure::Again { reason: e.to_string(), status: None, wait: None, progress: false })?;
            if (body.len() as u64) < length && meta.size.is_none_or(|size| size >= length) {
                let reason = format!("{} of {length} bytes came", body.len());
                return Err(Failure::Again { reason, status: None, wait: None, progress: false });
            }
            Ok(body)
        })
    }

    /// Brings a blob's bytes: what `<etag>.incomplete` holds is kept and gone on from, the whole is verified, then renamed.
    fn bytes(&self, repo: &RepoId, commit: &str, file: &str, mut meta: Meta, blob: &Path, watch: &dyn Watch) -> Result<(), HubError> {
        let part = blob.with_file_name(format!("{}.incomplete", meta.etag));
        let label = format!("{}/{file}", repo.name);
        for last in [false, true] {
            let shown_at = meta.location.clone();
            self.persist(&shown_at, &label, TRIES, watch, || {
                let outcome = self.some_bytes(&meta, &part, &label, watch);
                if let Err(Failure::Final(HubError::Status { status: 401 | 403 | 404 | 410, .. })) = outcome
                    && origin(&meta.location) != origin(&self.env.endpoint)
                {
                    // A signed address that has expired: ask the Hub for a new one.
                    meta = self.meta(repo, commit, file)?;
                    return Err(Failure::Again { reason: "the file's address expired".into(), status: None, wait: None, progress: false });
                }
                outcome
            })?;
            match self.verify(&meta, &part)? {
                None => {
                    File::open(&part).and_then(|f| f.sync_all()).map_err(disk(&part))?;
                    return fs::rename(&part, blob).map_err(disk(blob));
                }
                Some((what, found, expected)) => {
                    fs::remove_file(&part).map_err(disk(&part))?;
                    if last {
                        return Err(HubError::Damaged { repo: repo.name.clone(), file: file.to_owned(), what, found, expected });
                    }
                    watch.retry(&label, &format!("{what} is wrong, starting again"), Duration::ZERO);
                }
            }
        }
        Ok(())
    }

    fn some_bytes(&self, meta: &Meta, part: &Path, label: &str, watch: &dyn Watch) -> Result<(), Failure> {
        let mut out = OpenOptions::new().create(true).truncate(false).write(true).open(part).map_err(disk(part))?;
        let mut have = out.seek(SeekFrom::End(0)).map_err(disk(part))?;
        if let Some(size) = meta.size {
            if have == size {
                return Ok(());
            }
            if have > size {
                out.set_len(0).map_err(disk(part))?;
                have = 0;
            }
        }
        let url = &meta.location;
        let range = (have > 0).then(|| format!("bytes={have}-"));
        let mut response = self.ask("GET", url, range.as_deref())?;
        let mut at = url.clone();
        for _ in 0..REDIRECTS {
            let Some(to) = text(&response, "location").filter(|_| response.status().is_redirection()) else { break };
            at = if to.starts_with('/') { self.inner_redirect(&at, &response).unwrap_or_default() } else { to.to_owned() };
            response = self.ask("GET", &at, range.as_deref())?;
        }
        let status = response.status().as_u16();
        let starts_at = match status {
            206 => {
                let range = text(&response, "content-range").unwrap_or_default();
                range.trim_start_matches("bytes ").split('-').next().and_then(|s| s.trim().parse::<u64>().ok())
            }
            200 => Some(0),
            416 => {
                out.set_len(0).map_err(disk(part))?;
                return Err(self.protocol(url, format!("that the file ends at byte {have}, and had announced more")).into());
            }
            429 | 408 | 500.. => {
                let wait = text(&response, "retry-after").and_then(|s| s.trim().parse().ok()).map(|s: u64| Duration::from_secs(s.min(300)));
                return Err(Failure::Again { reason: format!("status {status}"), status: Some(status), wait, progress: false });
            }
            _ => {
                return Err(HubError::Status {
                    url: shown(&at),
                    status,
                    tries: 1,
                    advice: "the file's address is refused: run again for a new one",
                }
                .into());
            }
        };
        if starts_at != Some(have) {
            // The server ignored the range or answered another one: begin again rather than glue the wrong ends together.
            out.set_len(0).map_err(disk(part))?;
            have = 0;
            if starts_at != Some(0) {
                return Err(Failure::Again {
                    reason: "the answer begins somewhere else".into(),
                    status: None,
                    wait: None,
                    progress: false,
                });
            }
        }
        out.seek(SeekFrom::Start(have)).map_err(disk(part))?;
        let started = have;
        let mut body = response.body_mut().with_config().limit(u64::MAX).reader();
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let again = |reason: String, have: u64| Failure::Again { reason, status: None, wait: None, progress: have > started };
            let n = body.read(&mut chunk).map_err(|e| again(e.to_string(), have))?;
            if n == 0 {
                break;
            }
            out.write_all(&chunk[..n]).map_err(disk(part))?;
            have += n as u64;
            watch.bytes(label, have, meta.size.unwrap_or(have));
            if meta.size.is_some_and(|size| have > size) {
                break;
            }
        }
        match meta.size {
            Some(size) if have < size => Err(Failure::Again {
                reason: format!("the body ended at {have} of {size} bytes"),
                status: None,
                wait: None,
                progress: have > started,
            }),
            _ => Ok(()),
        }
    }

    /// What differs from what the Hub announced, as (what, found, expected).
    fn verify(&self, meta: &Meta, part: &Path) -> Result<Option<(&'static str, String, String)>, HubError> {
        let mut file = File::open(part).map_err(disk(part))?;
        let size = file.metadata().map_err(disk(part))?.len();
        if let Some(expected) = meta.size.filter(|s| *s != size) {
            return Ok(Some(("size", size.to_string(), expected.to_string())));
        }
        let mut hash = Hash::new(&meta.etag, size);
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let n = file.read(&mut chunk).map_err(disk(part))?;
            if n == 0 {
                break;
            }
            hash.update(&chunk[..n]);
        }
        Ok(hash.finish().filter(|(_, found)| !found.eq_ignore_ascii_case(&meta.etag)).map(|(what, found)| (what, found, meta.etag.clone())))
    }
}

/// `snapshots/<commit>/<name>` → `../../blobs/<etag>`; a copy where there are no symbolic links.
fn link(blob: &Path, pointer: &Path, relative: &Path) -> Result<(), HubError> {
    if pointer.exists() {
        return Ok(());
    }
    let mut target = PathBuf::new();
    for _ in 0..relative.components().count() + 1 {
        target.push("..");
    }
    target.push("blobs");
    target.push(blob.file_name().unwrap_or_default());
    // A dangling link of an interrupted run would be in the way.
    match fs::remove_file(pointer) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(disk(pointer)(e)),
        _ => {}
    }
    #[cfg(unix)]
    let made = std::os::unix::fs::symlink(&target, pointer);
    #[cfg(not(unix))]
    let made: std::io::Result<()> = Err(std::io::ErrorKind::Unsupported.into());
    match made {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(_) => {
            let part = pointer.with_extension("prunectl-part");
            fs::copy(blob, &part).map_err(disk(&part))?;
            fs::rename(&part, pointer).map_err(disk(pointer))
        }
    }
}

impl Hub for Client {
    fn list(&self, repo: &RepoId) -> Result<Listing, HubError> {
        if self.env.offline {
            return self.cached_listing(repo);
        }
        match self.online_listing(repo) {
            // As the Python library: without an answer the cache is used, if it knows the revision.
            Err(error @ HubError::Network { .. }) => self.cached_listing(repo).map_err(|_| error),
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
