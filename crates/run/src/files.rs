//! Files that are either old or new, never half: written beside their place, flushed to the disk, renamed.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Whether a write failed for want of room: a full disk, a used-up quota, a limit on a file's size.
pub fn no_room(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// What a name ends in while its content is being written. A run directory may hold one after a crash; nothing ever reads it.
pub const PARTIAL: &str = ".partial";

/// Replaces `path` by `bytes`: after a crash at any moment it holds the old content or the new one.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = partial_name(path);
    let written = (|| {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    })();
    if written.is_err() {
        // The first error is the one to tell; a partial file that stays is never read.
        let _ = fs::remove_file(&partial);
    }
    written.map_err(Error::io("write", path))?;
    sync_folder_of(path)
}

/// The same for a safetensors file, tensor by tensor; its SHA-256. One metadata key, because the order of several is not fixed.
pub fn write_tensors<V: safetensors::View>(path: &Path, tensors: Vec<(String, V)>) -> Result<String> {
    let partial = partial_name(path);
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let written = safetensors::serialize_to_file(tensors, Some(metadata), &partial)
        .map_err(|e| match e {
            safetensors::SafeTensorError::IoError(e) => Error::io("write", path)(e),
            e => Error::Internal(format!("tensors can't be written as safetensors: {e}")),
        })
        .and_then(|()| sha256_file(&partial))
        .and_then(|hash| {
            let renamed = File::open(&partial).and_then(|f| f.sync_all()).and_then(|()| fs::rename(&partial, path));
            renamed.map_err(Error::io("write", path))?;
            Ok(hash)
        });
    if written.is_err() {
        // The first error is the one to tell; a partial file that stays is never read.
        let _ = fs::remove_file(&partial);
    }
    let hash = written?;
    sync_folder_of(path)?;
    Ok(hash)
}

/// The same of content that is made while it is written; returns its SHA-256.
pub fn write_atomic_with(path: &Path, body: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<String> {
    let partial = partial_name(path);
    let io = |e| Error::io("write", path)(e);
    let written: Result<String> = (|| {
        let mut out = Hashed { file: BufWriter::with_capacity(1 << 20, File::create(&partial).map_err(io)?), hash: Sha256::new() };
        body(&mut out).map_err(|e| match e {
            Error::Io { action, source, .. } => Error::Io { action, path: path.to_owned(), source },
            other => other,
        })?;
        let Hashed { file, hash } = out;
        file.into_inner().map_err(|e| io(e.into_error()))?.sync_all().map_err(io)?;
        fs::rename(&partial, path).map_err(io)?;
        Ok(hex(&hash.finalize()))
    })();
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    let hash = written?;
    sync_folder_of(path)?;
    Ok(hash)
}

/// A file whose content is hashed as it is written.
struct Hashed {
    file: BufWriter<File>,
    hash: Sha256,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hash.update(bytes.get(..n).unwrap_or_default());
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// The name under which `path` is written before it is renamed.
pub fn partial_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().map(|n| n.to_owned()).unwrap_or_default();
    name.push(PARTIAL);
    path.with_file_name(name)
}

/// Makes a rename in the folder of `path` last through a power cut, where the system can.
pub fn sync_folder_of(path: &Path) -> Result<()> {
    #[cfg(unix)]
    if let Some(folder) = path.parent() {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io("flush", folder))?;
    }
    Ok(())
}

/// SHA-256 of a file's content, in hexadecimal.
pub fn sha256_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(Error::io("read", path))?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}

/// SHA-256 of bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A step's name as a file name: the same wherever the name is short and plain; characters that a path can't carry become `_`,
/// and a long name ends in its hash instead.
pub fn file_name_of(name: &str) -> String {
    const LONGEST: usize = 120;
    let clean: String = name.chars().map(|c| if c.is_control() || "/\\:*?\"<>|".contains(c) { '_' } else { c }).collect();
    if clean.len() <= LONGEST && clean == name {
        return clean;
    }
    let cut = clean.char_indices().map(|(i, _)| i).take_while(|i| *i <= LONGEST - 10).last().unwrap_or(0);
    format!("{}-{}", &clean[..cut.min(clean.len())], &sha256(name.as_bytes())[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert!(!partial_name(&path).exists());
        assert!(write_atomic(&dir.path().join("none/a"), b"x").is_err());
    }

    #[test]
    fn names_become_files() {
        assert_eq!(file_name_of("acc[round=3]"), "acc[round=3]");
        let long = file_name_of(&format!("grid[method=wanda(on = a/b), {}]", "x".repeat(300)));
        assert!(long.len() < 140 && !long.contains('/'), "{long}");
        assert_ne!(file_name_of("a/b"), file_name_of("a\\b"));
    }
}
