//! A file that is read where it is needed: scanned once from front to back when it is opened, then row by row at known offsets, so that
//! no more than an index of it stays in memory.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::DataError;
use crate::tokenizer::hex;

const BUFFER_BYTES: usize = 1 << 18;

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

/// An open file with positioned reads. What is packed (gzip, zstd, parquet) is unpacked into a file without a name, which goes when this is
/// closed: rows can then be read in any order, whatever their number, and memory holds none of them.
#[derive(Debug)]
pub(crate) struct RawFile {
    /// As messages and the lock name it.
    path: PathBuf,
    file: File,
    bytes: u64,
    /// The file that was unpacked.
    packed: Option<FileRecord>,
}

/// How a file is packed, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Gzip,
    Zstd,
    Parquet,
}

impl RawFile {
    /// Opens a file of text, unpacking it where it is compressed. `shown` is what messages and the lock call it.
    pub(crate) fn open(path: &Path, shown: &Path) -> Result<Self, DataError> {
        let this = Self::plain(path, shown)?;
        match this.packing()? {
            None => Ok(this),
            Some(Packing::Parquet) => Err(DataError::WrongFile {
                path: shown.to_owned(),
                found: "a parquet file".into(),
                expected: "plain text; read it with parquet(\"…\")".into(),
            }),
            Some(packing) => this.unpacked(packing),
        }
    }

    /// Opens a parquet file as lines of JSON, one for each row.
    pub(crate) fn parquet(path: &Path, shown: &Path) -> Result<Self, DataError> {
        let this = Self::plain(path, shown)?;
        match this.packing()? {
            Some(Packing::Parquet) => this.unpacked(Packing::Parquet),
            _ => Err(DataError::WrongFile {
                path: shown.to_owned(),
                found: "no parquet file".into(),
                expected: "one: it begins with PAR1".into(),
            }),
        }
    }

    fn plain(path: &Path, shown: &Path) -> Result<Self, DataError> {
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
        Ok(Self { path: shown.to_owned(), file, bytes: meta.len(), packed: None })
    }

    fn packing(&self) -> Result<Option<Packing>, DataError> {
        const REFUSED: [(&[u8], &str, &str); 2] = [(b"PK\x03\x04", "zip", "unzip"), (b"BZh", "bzip2", "bunzip2 -k")];
        let head = self.read(0, self.bytes.min(4) as usize)?;
        if let Some((_, name, tool)) = REFUSED.iter().find(|(magic, ..)| head.starts_with(magic)) {
            return Err(DataError::WrongFile {
                path: self.path.clone(),
                found: format!("a {name} file"),
                expected: format!("plain text, gzip, zstd or parquet; unpack it first (`{tool}`)"),
            });
        }
        const KNOWN: [(&[u8], Packing); 3] =
            [(&[0x1f, 0x8b], Packing::Gzip), (&[0x28, 0xb5, 0x2f, 0xfd], Packing::Zstd), (b"PAR1", Packing::Parquet)];
        Ok(KNOWN.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, p)| *p))
    }

    /// The same, unpacked; the lock records the packed file.
    fn unpacked(self, packing: Packing) -> Result<Self, DataError> {
        let mut scan = self.scan();
        std::io::copy(&mut scan, &mut std::io::sink()).map_err(|e| self.io(e))?;
        let packed = self.record(scan);
        (&self.file).rewind().map_err(|e| self.io(e))?;
        let temp = |error| DataError::Io { path: std::env::temp_dir(), error };
        let file = tempfile::tempfile().map_err(temp)?;
        // An error that names no side is the packed file's: a disk that is full says so.
        let wrong = |error: std::io::Error| match crate::files::no_room(&error) {
            true => temp(error),
            false => DataError::WrongFile {
                path: self.path.clone(),
                found: format!("a file that can't be unpacked ({error})"),
                expected: "a whole one".into(),
            },
        };
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, &file);
        match packing {
            Packing::Gzip => {
                let mut input = flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(BUFFER_BYTES, &self.file));
                std::io::copy(&mut input, &mut out).map_err(wrong)?;
            }
            Packing::Zstd => {
                let mut input = zstd::stream::read::Decoder::new(&self.file).map_err(wrong)?;
                std::io::copy(&mut input, &mut out).map_err(wrong)?;
            }
            Packing::Parquet => super::parquet::to_lines(&self.file, &self.path, &mut out)?,
        }
        out.flush().map_err(temp)?;
        drop(out);
        let bytes = file.metadata().map_err(temp)?.len();
        if bytes == 0 {
            return Err(DataError::Empty { what: self.path.display().to_string(), hint: "it holds nothing".into() });
        }
        Ok(Self { path: self.path, file, bytes, packed: Some(packed) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A reader from the front that hashes what it reads. Only one at a time: it moves the file's own position.
    pub(crate) fn scan(&self) -> BufReader<Hashing<&File>> {
        // An unpacked file was written through the same handle; one that can't go back can't be read either.
        let _ = (&self.file).rewind();
        BufReader::with_capacity(BUFFER_BYTES, Hashing { inner: &self.file, hash: Sha256::new() })
    }

    /// What the lock records, after `scan` came to the end.
    pub(crate) fn record(&self, scanned: BufReader<Hashing<&File>>) -> FileRecord {
        if let Some(packed) = &self.packed {
            return packed.clone();
        }
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
