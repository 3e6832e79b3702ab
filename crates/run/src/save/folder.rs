//! Writing a folder so that it is there whole or not at all: a temporary folder beside the target, synced, then renamed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::SaveError;
use super::record::{PruneRecord, RECORD_FILE};

/// May `target` be written by the recipe `recipe`? Yes where nothing (or an empty folder) is there, or a folder that this recipe saved
/// before. Cheap: call it before the work starts.
///
/// # Errors
/// [`SaveError::Occupied`] says whose it is.
pub fn check_target(target: &Path, recipe: &str) -> Result<(), SaveError> {
    let occupied = |found: String| Err(SaveError::Occupied { target: target.into(), found, recipe: recipe.into() });
    let meta = match fs::symlink_metadata(target) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(SaveError::io("look at", target, e)),
    };
    if !meta.is_dir() {
        return occupied(if meta.is_symlink() { "a symbolic link".into() } else { "a file".into() });
    }
    match PruneRecord::read(target) {
        Ok(Some(record)) if record.run.recipe.name == recipe => Ok(()),
        Ok(Some(record)) => occupied(format!("a model that the recipe `{}` saved", record.run.recipe.name)),
        Ok(None) => {
            let mut entries = fs::read_dir(target).map_err(|e| SaveError::io("read", target, e))?;
            if entries.next().is_none() { Ok(()) } else { occupied(format!("a folder without {RECORD_FILE}")) }
        }
        Err(SaveError::BadRecord { reason, .. }) => occupied(format!("a folder whose {RECORD_FILE} can't be read: {reason}")),
        Err(e) => Err(e),
    }
}

/// A folder in the making; dropped without [`Draft::publish`] it leaves nothing behind.
#[derive(Debug)]
pub struct Draft {
    path: PathBuf,
    target: PathBuf,
    files: Vec<(String, u64)>,
    published: bool,
    // Locked while this lives, and unlocked by the system however the process ends.
    _owner: Option<File>,
}

/// What the name of a folder in the making ends in.
const PART: &str = ".part";

/// Takes a folder in the making for this process; `None` where a folder can't be locked. An error: another process has it.
fn own(path: &Path) -> Result<Option<File>, TryLockError> {
    let Ok(folder) = File::open(path) else { return Ok(None) };
    match folder.try_lock() {
        Ok(()) => Ok(Some(folder)),
        Err(TryLockError::WouldBlock) => Err(TryLockError::WouldBlock),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

/// Removes what processes that were killed left beside a target.
fn remove_orphans(parent: &Path, name: &OsStr) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let start = format!(".{}.", name.to_string_lossy());
    for entry in entries.flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let process = file.strip_prefix(&start).and_then(|rest| rest.strip_suffix(PART));
        if !process.is_some_and(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit())) {
            continue;
        }
        if let Ok(Some(_owned)) = own(&entry.path()) {
            // Nobody reads it; what can't be removed stays.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Draft {
    /// A new, empty folder beside `target`, on the same file system.
    ///
    /// # Errors
    /// `target` has no name, or its parent can't be made or written.
    pub fn beside(target: &Path) -> Result<Self, SaveError> {
        let name = target.file_name().ok_or_else(|| SaveError::NoName { target: target.into() })?;
        let parent = match target.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(|e| SaveError::io("create", parent, e))?;
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}{PART}", std::process::id()));
        let path = parent.join(hidden);
        remove_orphans(parent, name);
        // A run that was killed may have left one; the process id is part of the name, so nobody else is writing there.
        if path.exists() {
            fs::remove_dir_all(&path).map_err(|e| SaveError::io("remove", &path, e))?;
        }
        fs::create_dir(&path).map_err(|e| SaveError::io("create", &path, e))?;
        let owner = own(&path).ok().flatten();
        Ok(Self { path, target: target.into(), files: Vec::new(), published: false, _owner: owner })
    }

    /// Where the files are for now.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one file, `name` possibly in a subfolder, and syncs it.
    ///
    /// # Errors
    /// The disk is full or not writable; messages name the target, not the temporary place.
    pub fn write(&mut self, name: &str, body: impl FnOnce(&mut dyn Write) -> Result<(), SaveError>) -> Result<u64, SaveError> {
        let path = self.path.join(name);
        let shown = self.target.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| SaveError::io("create", &shown, e))?;
        }
        let file = File::create(&path).map_err(|e| SaveError::io("create", &shown, e))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        body(&mut out).map_err(|e| e.at(&shown))?;
        let file = out.into_inner().map_err(|e| SaveError::io("write", &shown, e.into_error()))?;
        file.sync_all().map_err(|e| SaveError::io("sync", &shown, e))?;
        let bytes = file.metadata().map_err(|e| SaveError::io("look at", &shown, e))?.len();
        self.files.retain(|(known, _)| known != name);
        self.files.push((name.into(), bytes));
        Ok(bytes)
    }

    /// Writes one small file.
    ///
    /// # Errors
    /// As [`Draft::write`].
    pub fn write_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<u64, SaveError> {
        self.write(name, |out| out.write_all(bytes).map_err(|e| SaveError::io("write", Path::new(name), e)))
    }

    /// Puts the folder in its place. An old one there (see [`check_target`]) is exchanged in one step where the system can do that.
    ///
    /// # Errors
    /// The renaming failed; the old folder is back in its place then.
    pub fn publish(mut self) -> Result<Vec<(String, u64)>, SaveError> {
        sync_folder(&self.path)?;
        if self.target.exists() {
            exchange(&self.path, &self.target).map_err(|e| SaveError::io("replace", &self.target, e))?;
            // What lies under the temporary name is the old folder now. If it can't be removed, the new one is still good.
            let _ = fs::remove_dir_all(&self.path);
        } else {
            fs::rename(&self.path, &self.target).map_err(|e| SaveError::io("rename to", &self.target, e))?;
        }
        self.published = true;
        if let Some(parent) = self.target.parent().filter(|p| !p.as_os_str().is_empty()) {
            sync_folder(parent)?;
        }
        Ok(std::mem::take(&mut self.files))
    }
}

impl Draft {
    /// Puts one file of the draft in the target's place; the rest goes.
    ///
    /// # Errors
    /// The renaming failed, or something came to be there since.
    pub(crate) fn publish_file(self, name: &str) -> Result<(), SaveError> {
        if self.target.exists() {
            return Err(SaveError::Exists { target: self.target.clone() });
        }
        fs::rename(self.path.join(name), &self.target).map_err(|e| SaveError::io("rename to", &self.target, e))?;
        match self.target.parent().filter(|p| !p.as_os_str().is_empty()) {
            Some(parent) => sync_folder(parent),
            None => Ok(()),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // Already on the way out with an error that says more than this one could.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Renames reach the disk with the folder that holds them.
fn sync_folder(path: &Path) -> Result<(), SaveError> {
    if cfg!(unix) {
        let folder = File::open(path).map_err(|e| SaveError::io("open", path, e))?;
        match folder.sync_all() {
            Ok(()) => {}
            // Some network file systems refuse to sync a folder and sync it on their own.
            Err(e) if matches!(e.kind(), std::io::ErrorKind::InvalidInput | std::io::ErrorKind::Unsupported) => {}
            Err(e) => return Err(SaveError::io("sync", path, e)),
        }
    }
    Ok(())
}

/// Swaps two folders; where the file system has no such call, by three renames that are undone when one fails.
fn exchange(new: &Path, target: &Path) -> std::io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, new, CWD, target, RenameFlags::EXCHANGE) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let mut aside = new.as_os_str().to_owned();
    aside.push(".old");
    let aside = PathBuf::from(aside);
    fs::rename(target, &aside)?;
    if let Err(e) = fs::rename(new, target) {
        fs::rename(&aside, target)?;
        return Err(e);
    }
    fs::rename(&aside, new)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_save_left_is_removed_by_the_next_and_a_living_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m");
        // Of a process that is gone, of one that lives, and somebody's own.
        let (dead, alive, own_folder) = (dir.path().join(".m.1.part"), dir.path().join(".m.2.part"), dir.path().join(".m.x.part"));
        for path in [&dead, &alive, &own_folder] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("a"), "x").unwrap();
        }
        let living = own(&alive).unwrap();
        assert!(living.is_some());
        let draft = Draft::beside(&target).unwrap();
        assert!(!dead.exists() && alive.exists() && own_folder.exists());
        drop(draft);
        drop(living);
        Draft::beside(&target).unwrap().publish().unwrap();
        assert!(!alive.exists() && target.is_dir());
    }
}
