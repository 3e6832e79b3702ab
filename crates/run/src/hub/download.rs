//! Bytes of files: gone on with by range after a cut, verified as a whole, then put under their name.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha1::Digest as _;
use ureq::http::header;

use super::client::{Client, Failure, Meta, TRIES, disk, login_page, origin, retry_after, shown, text};
use super::{HubError, RepoId, Watch};

const CHUNK_BYTES: usize = 1 << 20;
/// New bytes that make a try a success of its own, so that failures are counted from it: fewer would let a server that sends a byte and
/// falls silent keep us for ever.
const PROGRESS_BYTES: u64 = 16 << 10;

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

/// What the tries of one download know of one another.
#[derive(Default)]
struct Tried {
    /// The most bytes that have been here at once. Bytes that come again are no progress: a server that always begins anew and always
    /// stops would be asked for ever.
    most: u64,
    /// The store's own entity tag of the version that was begun.
    version: Option<String>,
}

/// A strong entity tag, as `If-Range` wants it.
fn strong(tag: &str) -> Option<String> {
    (tag.starts_with('"') && tag.is_ascii()).then(|| tag.to_owned())
}

impl Client {
    /// Brings a blob's bytes: what `<etag>.incomplete` holds is kept and gone on from, the whole is verified, then renamed.
    pub(super) fn bytes(
        &self,
        repo: &RepoId,
        commit: &str,
        file: &str,
        mut meta: Meta,
        blob: &Path,
        watch: &dyn Watch,
    ) -> Result<(), HubError> {
        let part = blob.with_file_name(format!("{}.incomplete", meta.etag));
        let label = format!("{}/{file}", repo.name);
        for last in [false, true] {
            let shown_at = meta.location.clone();
            let mut tried = Tried::default();
            self.persist(&shown_at, &label, TRIES, watch, || {
                let outcome = self.some_bytes(&meta, &part, &label, &mut tried, watch);
                if let Err(Failure::Final(HubError::Status { status: status @ (401 | 403 | 404 | 410), .. })) = outcome
                    && origin(&meta.location) != origin(&self.env.endpoint)
                {
                    // A signed address that has expired: ask the Hub for a new one.
                    meta = self.meta(repo, commit, file)?;
                    return Err(Failure::again(format!("the store refuses the file's address (status {status})")));
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

    /// One try: from the end of what is here to the end of the file, or as far as it comes.
    fn some_bytes(&self, meta: &Meta, part: &Path, label: &str, tried: &mut Tried, watch: &dyn Watch) -> Result<(), Failure> {
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
        tried.most = tried.most.max(have);
        let url = &meta.location;
        let range = format!("bytes={have}-");
        let mut headers = Vec::new();
        if have > 0 {
            headers.push((header::RANGE, range.as_str()));
            headers.extend(tried.version.as_deref().map(|v| (header::IF_RANGE, v)));
        }
        let (at, mut response) = self.follow("GET", url, &headers, |_| false)?;
        let status = response.status().as_u16();
        let starts_at = match status {
            206 => {
                let range = text(&response, "content-range").unwrap_or_default();
                range.trim_start_matches("bytes ").split('-').next().and_then(|s| s.trim().parse::<u64>().ok())
            }
            200 => Some(0),
            416 => {
                let range = text(&response, "content-range").unwrap_or_default();
                let total = range.rsplit('/').next().and_then(|s| s.trim().parse::<u64>().ok());
                if meta.size.is_none() && total == Some(have) {
                    // All of it is here; the hash will tell.
                    return Ok(());
                }
                out.set_len(0).map_err(disk(part))?;
                return Err(match total.filter(|t| *t == have) {
                    Some(_) => self.protocol(url, format!("that the file ends at byte {have}, and had announced more")).into(),
                    None => Failure::again("the server has not the bytes that were asked for; starting again"),
                });
            }
            429 | 408 | 500.. => {
                let wait = retry_after(&response);
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
                return Err(Failure::again("the answer begins somewhere else"));
            }
        }
        let is_page = text(&response, "content-type").is_some_and(|t| t.starts_with("text/html"));
        if is_page && meta.size.is_some() && text(&response, "content-length").and_then(|s| s.parse().ok()) != meta.size {
            return Err(Failure::again(login_page("file")));
        }
        if have == 0 {
            tried.version = text(&response, "etag").and_then(strong);
        }
        out.seek(SeekFrom::Start(have)).map_err(disk(part))?;
        let mut body = response.body_mut().with_config().limit(u64::MAX).reader();
        let mut chunk = vec![0; CHUNK_BYTES];
        let before = tried.most;
        let again =
            |reason: String, have: u64| Failure::Again { reason, status: None, wait: None, progress: have >= before + PROGRESS_BYTES };
        loop {
            let n = body.read(&mut chunk).map_err(|e| again(e.to_string(), have))?;
            if n == 0 {
                break;
            }
            out.write_all(chunk.get(..n).unwrap_or_default()).map_err(disk(part))?;
            have += n as u64;
            tried.most = tried.most.max(have);
            watch.bytes(label, have, meta.size.unwrap_or(have));
            if meta.size.is_some_and(|size| have > size) {
                break;
            }
        }
        match meta.size {
            Some(size) if have < size => Err(again(format!("the body ended at {have} of {size} bytes"), have)),
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
            hash.update(chunk.get(..n).unwrap_or_default());
        }
        Ok(hash.finish().filter(|(_, found)| !found.eq_ignore_ascii_case(&meta.etag)).map(|(what, found)| (what, found, meta.etag.clone())))
    }
}

/// `snapshots/<commit>/<name>` → `../../blobs/<etag>`; a copy where there are no symbolic links.
pub(super) fn link(blob: &Path, pointer: &Path, relative: &Path) -> Result<(), HubError> {
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
