//! The run directory: where it is, who owns it, and how files get into it.
//!
//! It comes into being whole: a folder with the recipe's copy and the journal's first line is made under a temporary name and renamed,
//! so a directory with a run's name can always be resumed. A lock file, held by the process, keeps a second one out.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::{self, write_atomic};
use crate::interrupt::{Interrupt, shell_quote};
use crate::journal::{Event, JOURNAL, Journal, Start};

/// The recipe's copy.
pub const RECIPE: &str = "recipe.prune";
/// Hashes of everything that the run reads.
pub const LOCK: &str = "recipe.lock";
/// The plan in JSON.
pub const PLAN: &str = "plan.json";
/// Every metric.
pub const METRICS: &str = "metrics.json";
/// The report.
pub const REPORT: &str = "report.html";
/// Scores by step.
pub const SCORES: &str = "scores";
/// Decisions by step.
pub const DECISIONS: &str = "decisions";
/// States that only `resume` needs.
pub const CHECKPOINTS: &str = "checkpoints";
const OWNER: &str = ".lock";

/// A run directory that this process owns.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    journal: Journal,
    interrupt: Interrupt,
    // Locked while this lives; the system unlocks it when the process dies, however it does.
    _owner: File,
}

impl RunDir {
    /// Makes `out`, or `runs/<name>-<n>` with the first free n, holding `first_files` and the journal's first line.
    pub fn create(out: Option<&Path>, start: &Start, first_files: &[(&str, &[u8])], interrupt: Interrupt) -> Result<Self> {
        let parent = match out {
            Some(out) => {
                refuse_used(out)?;
                out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
            }
            None => PathBuf::from("runs"),
        };
        fs::create_dir_all(&parent).map_err(Error::io("create", &parent))?;
        let fresh = parent.join(format!(".{}-{}{}", files::file_name_of(&start.name), std::process::id(), files::PARTIAL));
        let made = Self::make(out, &parent, &fresh, start, first_files, interrupt);
        if made.is_err() {
            // Nothing half-made stays; the first error is the one to tell.
            let _ = fs::remove_dir_all(&fresh);
        }
        made
    }

    fn make(
        out: Option<&Path>,
        parent: &Path,
        fresh: &Path,
        start: &Start,
        first_files: &[(&str, &[u8])],
        interrupt: Interrupt,
    ) -> Result<Self> {
        remove_orphans(parent, &start.name);
        if fresh.exists() {
            // Left by a process of the same number that was killed within these lines, on a system that knows no locks.
            fs::remove_dir_all(fresh).map_err(Error::io("remove", fresh))?;
        }
        fs::create_dir(fresh).map_err(Error::io("create", fresh))?;
        let owner = own(fresh)?;
        for (name, bytes) in first_files {
            write_atomic(&fresh.join(name), bytes)?;
        }
        for folder in [SCORES, DECISIONS, CHECKPOINTS] {
            let path = fresh.join(folder);
            fs::create_dir(&path).map_err(Error::io("create", &path))?;
        }
        let mut journal = Journal::create(fresh, start)?;
        let path = match out {
            Some(out) => {
                // Renaming over an empty folder succeeds, over anything else it fails: nobody's files are lost.
                fs::rename(fresh, out).or_else(|e| refuse_used(out).and(Err(Error::io("create", out)(e))))?;
                out.to_owned()
            }
            None => claim_next(parent, &files::file_name_of(&start.name), fresh)?,
        };
        files::sync_folder_of(&path)?;
        journal.set_folder(&path);
        interrupt.watch(Some(path.clone()));
        Ok(Self { path, journal, interrupt, _owner: owner })
    }

    /// Takes over a run that stopped.
    pub fn reopen(path: &Path, interrupt: Interrupt) -> Result<(Self, Start, Vec<Event>)> {
        if !path.join(JOURNAL).exists() {
            return Err(Error::NotARun { path: path.to_owned() });
        }
        let owner = own(path)?;
        let (journal, start, events) = Journal::reopen(path)?;
        interrupt.watch(Some(path.to_owned()));
        Ok((Self { path: path.to_owned(), journal, interrupt, _owner: owner }, start, events))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same directory by its absolute path, before the process goes elsewhere.
    pub fn absolute(mut self, here: &Path) -> Self {
        let path = here.join(&self.path);
        self.path.clone_from(&path);
        self.journal.set_folder(&path);
        self.interrupt.watch(Some(path));
        self
    }

    /// The path of a file in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file whole and returns its SHA-256.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<String> {
        let _hold = self.interrupt.hold();
        write_atomic(&self.path.join(name), bytes)?;
        Ok(files::sha256(bytes))
    }

    /// Writes a safetensors file whole, tensor by tensor, and returns its SHA-256.
    pub fn write_tensors<V: safetensors::View>(&self, name: &str, tensors: Vec<(String, V)>) -> Result<String> {
        let _hold = self.interrupt.hold();
        files::write_tensors(&self.path.join(name), tensors)
    }

    /// Writes a file of any size whole, and returns its SHA-256.
    pub fn write_with(&self, name: &str, body: impl FnOnce(&mut dyn std::io::Write) -> Result<()>) -> Result<String> {
        let _hold = self.interrupt.hold();
        files::write_atomic_with(&self.path.join(name), body)
    }

    /// Writes JSON, indented, whole, and returns its SHA-256.
    pub fn write_json(&self, name: &str, value: &impl serde::Serialize) -> Result<String> {
        let mut text = serde_json::to_vec_pretty(value).map_err(|e| Error::Internal(format!("{name} can't be written as JSON: {e}")))?;
        text.push(b'\n');
        self.write(name, &text)
    }

    /// Reads a file and checks that it is the one whose hash the journal has.
    pub fn read_checked(&self, name: &str, sha256: &str) -> Result<Vec<u8>> {
        let path = self.path.join(name);
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        let found = files::sha256(&bytes);
        if found != sha256 {
            return Err(Error::Damaged { path, what: format!("found sha256 {found}, the journal has {sha256}") });
        }
        Ok(bytes)
    }

    /// Adds a line to the journal.
    pub fn log(&mut self, event: &Event) -> Result<()> {
        let _hold = self.interrupt.hold();
        self.journal.append(event)
    }

    /// The process may not end by a signal while `work` runs (a `save` being renamed into place).
    pub fn uninterrupted<T>(&self, work: impl FnOnce() -> T) -> T {
        let _hold = self.interrupt.hold();
        work()
    }

    /// Removes what only `resume` needs.
    pub fn drop_checkpoints(&self) -> Result<()> {
        let path = self.path.join(CHECKPOINTS);
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &path)(e)),
            _ => Ok(()),
        }
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        self.interrupt.watch(None);
    }
}

/// Removes what processes that were killed before their run directory had its name left beside it.
fn remove_orphans(parent: &Path, name: &str) {
    let start = format!(".{}-", files::file_name_of(name));
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let process = file.strip_prefix(&start).and_then(|rest| rest.strip_suffix(files::PARTIAL));
        let ours = process.is_some_and(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
        if ours && let Ok(_owner) = own(&entry.path()) {
            // Nobody reads it; what can't be removed stays.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// `runs/<name>-<n>` for the first n behind the highest there is; a rename onto a name that another process just took fails, and the next is tried.
fn claim_next(parent: &Path, name: &str, fresh: &Path) -> Result<PathBuf> {
    let mut n = 1 + highest(parent, name)?;
    loop {
        let path = parent.join(format!("{name}-{n}"));
        if path.exists() {
            n += 1;
            continue;
        }
        match fs::rename(fresh, &path) {
            Ok(()) => return Ok(path),
            Err(_) if path.exists() => n += 1,
            Err(e) => return Err(Error::io("create", &path)(e)),
        }
    }
}

/// The highest n of `<name>-<n>` in `parent`, 0 if there is none.
fn highest(parent: &Path, name: &str) -> Result<u64> {
    let entries = fs::read_dir(parent).map_err(Error::io("read", parent))?;
    Ok(entries.flatten().filter_map(|e| e.file_name().to_str()?.strip_prefix(name)?.strip_prefix('-')?.parse().ok()).max().unwrap_or(0))
}

/// Fails if `out` exists and holds anything.
fn refuse_used(out: &Path) -> Result<()> {
    if out.join(JOURNAL).exists() {
        let hint = format!(", or go on with the run in it: prunectl resume {}", shell_quote(&out.display().to_string()));
        return Err(Error::OutputExists { path: out.to_owned(), hint });
    }
    match fs::read_dir(out).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::OutputExists { path: out.to_owned(), hint: String::new() }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => Err(Error::OutputExists { path: out.to_owned(), hint: String::new() }),
        Err(e) => Err(Error::io("read", out)(e)),
    }
}

fn own(dir: &Path) -> Result<File> {
    let path = dir.join(OWNER);
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(Error::io("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::RunBusy { path: dir.to_owned() }),
        Err(TryLockError::Error(e)) => Err(Error::io("lock", &path)(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::FORMAT;

    fn start(name: &str) -> Start {
        Start {
            format: FORMAT,
            prunectl: "0".into(),
            recipe: format!("{name}.prune"),
            name: name.into(),
            base: ".".into(),
            cwd: ".".into(),
            set: vec![],
            device: "cpu".into(),
            dtype: None,
            memory: None,
            offline: false,
            recipe_sha256: String::new(),
        }
    }

    #[test]
    fn owned_by_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a");
        let run = RunDir::create(Some(&out), &start("a"), &[(RECIPE, b"edition 2026\n")], Interrupt::default()).unwrap();
        assert!(matches!(RunDir::reopen(&out, Interrupt::default()), Err(Error::RunBusy { .. })));
        drop(run);
        let (run, _, events) = RunDir::reopen(&out, Interrupt::default()).unwrap();
        assert!(events.is_empty());
        assert_eq!(fs::read(run.join(RECIPE)).unwrap(), b"edition 2026\n");
    }

    #[test]
    fn somebody_elses_folder_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a");
        fs::create_dir(&out).unwrap();
        fs::write(out.join("mine.txt"), "x").unwrap();
        let e = RunDir::create(Some(&out), &start("a"), &[], Interrupt::default()).unwrap_err();
        assert!(matches!(e, Error::OutputExists { .. }), "{e}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::remove_file(out.join("mine.txt")).unwrap();
        RunDir::create(Some(&out), &start("a"), &[], Interrupt::default()).unwrap();
    }

    #[test]
    fn what_a_killed_process_left_goes_with_the_next_run() {
        let dir = tempfile::tempdir().unwrap();
        let (dead, other) = (dir.path().join(".a-1.partial"), dir.path().join(".ab-1.partial"));
        fs::create_dir(&dead).unwrap();
        fs::create_dir(&other).unwrap();
        RunDir::create(Some(&dir.path().join("r")), &start("a"), &[], Interrupt::default()).unwrap();
        assert!(!dead.exists() && other.exists());
    }

    #[test]
    fn numbers_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let parent = dir.path();
        for name in ["a-1", "a-7", "a-b", "ab-9"] {
            fs::create_dir(parent.join(name)).unwrap();
        }
        let fresh = parent.join(".fresh");
        fs::create_dir(&fresh).unwrap();
        assert_eq!(claim_next(parent, "a", &fresh).unwrap(), parent.join("a-8"));
    }
}
