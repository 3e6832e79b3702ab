//! The journal: what a run did, one JSON object a line, each flushed to the disk before the next step begins.
//!
//! A line is either whole or it is the last one and torn; [`Journal::read`] drops a torn last line, which is what a power cut can leave.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The journal's file name in a run directory.
pub const JOURNAL: &str = "journal.jsonl";

/// Version of the journal's format; a journal of another version is not resumed.
pub const FORMAT: u32 = 1;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// The first line: all that `resume` needs besides the recipe's copy.
    Start(Start),
    /// A step begins.
    Begin { index: usize, kind: String, name: String, line: u32 },
    /// A step is finished and everything it wrote is on the disk.
    Step(StepDone),
    /// The run goes on after an interruption; the steps after this line are numbered from 0 again.
    Resume { finished_steps: usize },
    /// A training goes on after that optimiser step, from its last checkpoint.
    Continue { name: String, step: u64, of: u64 },
    /// Ctrl-C or a termination signal.
    Interrupted,
    /// The run ended; `status` is `done`, `expect` (an expectation was not met) or `error`.
    End {
        status: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
}

/// The first line of a journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of prunectl that began the run.
    pub prunectl: String,
    /// The recipe as it was named on the command line.
    pub recipe: String,
    /// The recipe's name: its file name without `.prune`.
    pub name: String,
    /// Folder that the recipe's relative paths start from.
    pub base: PathBuf,
    /// Working directory, where relative `save` paths start from.
    pub cwd: PathBuf,
    /// `--set` in order.
    pub set: Vec<(String, String)>,
    /// `--device` as given.
    pub device: String,
    /// `--dtype` as given.
    pub dtype: Option<String>,
    /// `--memory` in bytes, as given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// `--offline`.
    pub offline: bool,
    /// SHA-256 of the recipe's text.
    pub recipe_sha256: String,
}

/// A finished step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepDone {
    /// Its place in the order in which a run without interruption meets the steps, from 0.
    pub index: usize,
    /// `score`, `prune`, `train`, `eval`, ….
    pub kind: String,
    /// `as NAME`, or `prune-1`, ….
    pub name: String,
    /// Its line in the recipe.
    pub line: u32,
    /// Wall-clock time.
    pub elapsed_ms: u64,
    /// Peak memory of the process so far; 0 where the system doesn't tell.
    pub peak_rss_bytes: u64,
    /// Whether the result was taken from earlier work instead of computed.
    pub reused: bool,
    /// Why it could be reused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Files of the run directory that hold the result, with their SHA-256: a resumed run checks them before it trusts them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<(String, String)>,
    /// What a resumed run needs besides files: a metric, the outcome of an `expect`.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub result: serde_json::Value,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// A new journal with its first line.
    pub fn create(dir: &Path, start: &Start) -> Result<Self> {
        let path = dir.join(JOURNAL);
        let file = OpenOptions::new().append(true).create_new(true).open(&path).map_err(Error::io("create", &path))?;
        let mut journal = Self { file, path };
        journal.append(&Event::Start(start.clone()))?;
        Ok(journal)
    }

    /// Reads every whole line, cuts off a torn last one, and opens the journal for appending.
    pub fn reopen(dir: &Path) -> Result<(Self, Start, Vec<Event>)> {
        let path = dir.join(JOURNAL);
        let mut file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(Error::NotARun { path: dir.to_owned() }),
            Err(e) => return Err(Error::io("read", &path)(e)),
        };
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(Error::io("read", &path))?;
        let (events, whole) = parse(&text, &path)?;
        file.set_len(whole as u64).map_err(Error::io("write", &path))?;
        file.seek(SeekFrom::Start(whole as u64)).map_err(Error::io("write", &path))?;
        let mut events = events.into_iter();
        let Some(Event::Start(start)) = events.next() else {
            return Err(Error::Damaged { path, what: "its first line is not a `start` event".to_owned() });
        };
        if start.format != FORMAT {
            return Err(Error::Damaged {
                path,
                what: format!("found journal format {}, expected {FORMAT} (another version of prunectl made it)", start.format),
            });
        }
        Ok((Self { file, path }, start, events.collect()))
    }

    /// Reads every whole line without changing anything.
    pub fn read(dir: &Path) -> Result<Vec<Event>> {
        let path = dir.join(JOURNAL);
        match std::fs::read(&path) {
            Ok(text) => Ok(parse(&text, &path)?.0),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Error::NotARun { path: dir.to_owned() }),
            Err(e) => Err(Error::io("read", &path)(e)),
        }
    }

    /// Its folder is called `dir` now; messages name it.
    pub fn set_folder(&mut self, dir: &Path) {
        self.path = dir.join(JOURNAL);
    }

    /// Adds a line and waits until it is on the disk.
    pub fn append(&mut self, event: &Event) -> Result<()> {
        let line = line_of(event)?;
        // One write call: a torn line can only be the last.
        self.file.write_all(&line).and_then(|()| self.file.sync_data()).map_err(Error::io("write", &self.path))
    }
}

/// Adds a line to the journal of `dir` from outside the run that has it open (the signal handler's thread).
pub fn append_to(dir: &Path, event: &Event) -> Result<()> {
    let path = dir.join(JOURNAL);
    let file = OpenOptions::new().append(true).open(&path).map_err(Error::io("write", &path))?;
    Journal { file, path }.append(event)
}

fn line_of(event: &Event) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(event).map_err(|e| Error::Internal(format!("a journal event can't be written as JSON: {e}")))?;
    line.push(b'\n');
    Ok(line)
}

/// Whole lines and their length in bytes. A last line without an end, or one that ends in the middle of JSON, is left out.
fn parse(text: &[u8], path: &Path) -> Result<(Vec<Event>, usize)> {
    let mut events = Vec::new();
    let mut whole = 0;
    for (i, line) in text.split_inclusive(|b| *b == b'\n').enumerate() {
        let last = whole + line.len() == text.len();
        match serde_json::from_slice(line) {
            Ok(event) if line.ends_with(b"\n") => events.push(event),
            _ if last => break,
            Ok(_) => break,
            Err(e) => return Err(Error::Damaged { path: path.to_owned(), what: format!("line {} is not an event ({e})", i + 1) }),
        }
        whole += line.len();
    }
    Ok((events, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Start {
        Start {
            format: FORMAT,
            prunectl: "0".into(),
            recipe: "a.prune".into(),
            name: "a".into(),
            base: ".".into(),
            cwd: ".".into(),
            set: vec![("p".into(), "40%".into())],
            device: "cpu".into(),
            dtype: None,
            memory: None,
            offline: false,
            recipe_sha256: String::new(),
        }
    }

    #[test]
    fn torn_last_line_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path(), &start()).unwrap();
        journal.append(&Event::Begin { index: 0, kind: "eval".into(), name: "a".into(), line: 3 }).unwrap();
        drop(journal);
        let path = dir.path().join(JOURNAL);
        let whole = std::fs::read(&path).unwrap();
        for cut in 1..30 {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let (mut journal, _, events) = Journal::reopen(dir.path()).unwrap();
            assert!(events.is_empty());
            journal.append(&Event::Interrupted).unwrap();
            assert_eq!(Journal::read(dir.path()).unwrap().len(), 2);
        }
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        drop(Journal::create(dir.path(), &start()).unwrap());
        let path = dir.path().join(JOURNAL);
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"event\": \"st\n{\"event\":\"interrupted\"}\n");
        std::fs::write(&path, text).unwrap();
        assert!(matches!(Journal::read(dir.path()), Err(Error::Damaged { .. })));
        assert!(matches!(Journal::read(Path::new("/nowhere")), Err(Error::NotARun { .. })));
    }
}
