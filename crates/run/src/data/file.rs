//! A file that is read where it is needed: scanned once from front to back when it is opened, then row by row at known offsets, so that
//! no more than an index of it stays in memory.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::DataError;
use crate::tokenizer::hex;

/// A file that data was read from, for the lock and the report.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FileRecord {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// An open file with positioned reads.
#[derive(Debug)]
pub(crate) struct RawFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl RawFile {
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let io = |error| DataError::Io { path: path.to_owned(), error };
        let file = File::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            let found = if meta.is_dir() { "a folder" } else { "not a regular file" };
            return Err(DataError::WrongFile { path: path.to_owned(), found: found.into(), expected: "a file".into() });
        }
        if meta.len() == 0 {
            return Err(DataError::Empty { what: path.display().to_string(), hint: "the file has no bytes".into() });
        }
        let this = Self { path: path.to_owned(), file, bytes: meta.len() };
        this.refuse_compressed()?;
        Ok(this)
    }

    fn refuse_compressed(&self) -> Result<(), DataError> {
        const MAGIC: [(&[u8], &str, &str); 5] = [
            (&[0x1f, 0x8b], "gzip", "gunzip -k"),
            (&[0x28, 0xb5, 0x2f, 0xfd], "zstd", "unzstd -k"),
            (b"PK\x03\x04", "zip", "unzip"),
            (b"BZh", "bzip2", "bunzip2 -k"),
            (b"PAR1", "parquet", "python -c 'import pandas, sys; …to_json(lines=True)'"),
        ];
        let head = self.read(0, self.bytes.min(4) as usize)?;
        match MAGIC.iter().find(|(magic, ..)| head.starts_with(magic)) {
            None => Ok(()),
            Some((_, name, tool)) => Err(DataError::WrongFile {
                path: self.path.clone(),
                found: format!("a {name} file"),
                expected: format!("plain text; unpack it first (`{tool}`)"),
            }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A reader from the front that hashes what it reads. Only one at a time: it moves the file's own position.
    pub(crate) fn scan(&self) -> BufReader<Hashing<&File>> {
        BufReader::with_capacity(1 << 18, Hashing { inner: &self.file, hash: Sha256::new() })
    }

    /// What the lock records, after `scan` came to the end.
    pub(crate) fn record(&self, scanned: BufReader<Hashing<&File>>) -> FileRecord {
        let sha256 = hex(&scanned.into_inner().hash.finalize());
        FileRecord { path: self.path.clone(), bytes: self.bytes, sha256 }
    }

    pub(crate) fn io(&self, error: std::io::Error) -> DataError {
        DataError::Io { path: self.path.clone(), error }
    }

    /// `length` bytes from `offset`. A file that shrank since it was opened is an error of its own.
    pub(crate) fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, DataError> {
        let mut out = vec![0; length];
        match read_exact_at(&self.file, &mut out, offset) {
            Ok(()) => Ok(out),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err(self.changed()),
            Err(e) => Err(self.io(e)),
        }
    }

    pub(crate) fn changed(&self) -> DataError {
        let found = self.file.metadata().map_or(0, |m| m.len());
        DataError::Changed { path: self.path.clone(), found, expected: self.bytes }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !out.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, out, offset)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        out = &mut out[n..];
        offset += n as u64;
    }
    Ok(())
}

/// Passes bytes through a hash.
#[derive(Debug)]
pub(crate) struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(out)?;
        self.hash.update(out.get(..n).unwrap_or_default());
        Ok(n)
    }
}

/// Text of bytes, or where they stop being UTF-8.
pub(crate) fn utf8(bytes: Vec<u8>) -> Result<String, (usize, Vec<u8>)> {
    String::from_utf8(bytes).map_err(|e| (e.utf8_error().valid_up_to(), e.into_bytes()))
}
