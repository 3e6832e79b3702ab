//! What can go wrong in the world outside the recipe's text, with the exit status that the command ends in.

use std::io;
use std::path::{Path, PathBuf};

use prunectl_model::ModelError;
use prunectl_prune::PruneError;

/// Exit status of a finished command.
pub const EXIT_DONE: u8 = 0;
/// Exit status of a recipe with mistakes, and of a failed `expect`.
pub const EXIT_RECIPE: u8 = 1;
/// Exit status of wrong usage, of the environment (files, disks, devices) and of internal errors.
pub const EXIT_ENVIRONMENT: u8 = 2;
/// Exit status of a run that was interrupted; `prunectl resume` goes on with it.
pub const EXIT_INTERRUPTED: u8 = 130;

/// An error of the command, its files and its steps.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recipe has mistakes; they are rendered already.
    #[error("{rendered}")]
    Recipe {
        /// Every diagnostic, drawn with its place.
        rendered: String,
        /// How many errors there are.
        errors: usize,
    },
    /// A step failed; `rendered` shows its line.
    #[error("{rendered}")]
    Step {
        /// The error with its place in the recipe.
        rendered: String,
        /// Whether the recipe is at fault (status 1) and not the machine (status 2).
        recipe: bool,
    },
    /// One or more `expect`s were false; everything is saved.
    #[error("{} not met: {}", if failed.len() == 1 { "an expectation was" } else { "expectations were" }, failed.join("; "))]
    Expect {
        /// The messages of those that failed.
        failed: Vec<String>,
    },
    /// Run directories without a single score.
    #[error("{}: no step has scored anything; run a recipe with `score … as NAME` or `prune`, such as builtin:compare_heads", runs.join(", "))]
    NothingScored {
        /// The run directories.
        runs: Vec<String>,
    },
    /// A file operation failed.
    #[error("can't {action} {}: {}", path.display(), explain_io(source))]
    Io {
        /// What was tried: `read`, `write`, ….
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The recipe file isn't text.
    #[error("{}:{line}: byte {byte} is not UTF-8 text (found 0x{found:02x}); save the recipe as UTF-8", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Line of the byte, from 1.
        line: usize,
        /// Offset of the byte, from 0.
        byte: usize,
        /// The byte.
        found: u8,
    },
    /// The recipe is not there.
    #[error("there is no recipe {}{hint}", path.display())]
    NoRecipe {
        /// The file asked for.
        path: PathBuf,
        /// What is there instead, as a sentence with its own leading punctuation.
        hint: String,
    },
    /// The recipe is a folder.
    #[error("{} is a folder, expected a recipe file{hint}", path.display())]
    RecipeIsFolder {
        /// The folder.
        path: PathBuf,
        /// Which recipes are in it.
        hint: String,
    },
    /// `--out` names something that exists.
    #[error("{} exists and is not empty; choose another --out{hint}", path.display())]
    OutputExists {
        /// The folder.
        path: PathBuf,
        /// `, or go on with it: prunectl resume …` where it holds a run.
        hint: String,
    },
    /// Another process works in the run directory.
    #[error("another prunectl is working in {}; wait until it ends, or stop it", path.display())]
    RunBusy {
        /// The run directory.
        path: PathBuf,
    },
    /// The folder given to `resume` holds no run.
    #[error("{} is not a run directory: it has no journal.jsonl; give one that `prunectl run` made (runs/<recipe>-<n>)", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// The run is over; there is nothing to resume.
    #[error("the run in {} has ended ({status}); start a new one with `prunectl run`", path.display())]
    RunEnded {
        /// The run directory.
        path: PathBuf,
        /// How it ended.
        status: String,
    },
    /// A stored file of a run doesn't say what it should.
    #[error("{} is damaged: {what}; start the run again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// An input changed between a run and its resumption, or since it was locked.
    #[error("{} changed since {since}: found sha256 {found}, expected {expected}; put the old file back, or start a new run", path.display())]
    Drift {
        /// The file.
        path: PathBuf,
        /// `the run began` or `it was locked`.
        since: &'static str,
        /// Hash of the file as it is.
        found: String,
        /// Hash that was recorded.
        expected: String,
    },
    /// `--locked`, and something is not as it was locked.
    #[error("{} does not say what is here:\n  {}\nput the old state back, or accept the new one:\n    prunectl lock {}", path.display(), differences.join("\n  "), crate::interrupt::shell_quote(recipe))]
    Unlocked {
        /// The lock.
        path: PathBuf,
        /// Each difference, in words.
        differences: Vec<String>,
        /// The recipe, as it was named.
        recipe: String,
    },
    /// The device isn't there.
    #[error("device `{device}`: {reason}")]
    Device {
        /// As it was asked for.
        device: String,
        /// Why it can't be used, and what to do.
        reason: String,
    },
    /// The arguments of the command contradict each other or the world.
    #[error("{message}")]
    Usage {
        /// What was given, what is possible.
        message: String,
    },
    /// The data can't be used.
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    /// The tokenizer can't be used.
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
    /// A repository can't be looked up or downloaded.
    #[error(transparent)]
    Hub(#[from] crate::hub::HubError),
    /// The model can't be used.
    #[error(transparent)]
    Model(#[from] prunectl_model::ModelError),
    /// The science refused.
    #[error(transparent)]
    Prune(#[from] prunectl_prune::PruneError),
    /// Saving refused.
    #[error(transparent)]
    Save(#[from] crate::save::SaveError),
    /// A step can't do what the recipe asks of it.
    #[error("{what}; {remedy}")]
    Refused {
        /// What was found, what was expected.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// A tensor operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A device other than the CPU failed within a step.
    #[error("the device {device} failed: {reason}; {hint}")]
    DeviceFailed {
        /// Its name.
        device: String,
        /// Its own words.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// Something that can't happen happened.
    #[error("internal error: {0}; please report it with the recipe")]
    Internal(String),
}

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Wraps an I/O error with what was tried and where.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// The same error, or, where a tensor operation failed on a device other than the CPU, what that means for the run.
    #[must_use]
    pub fn on_device(self, device: &str) -> Self {
        let reason = match &self {
            Self::Tensor(e)
            | Self::Model(ModelError::Tensor(e))
            | Self::Prune(PruneError::Tensor(e) | PruneError::Model(ModelError::Tensor(e))) => e.to_string(),
            _ => return self,
        };
        let words = reason.to_lowercase().replace('_', " ");
        let hint = match words.contains("out of memory") {
            true => "its memory is full: give the step a smaller `batch`, or choose a smaller dtype",
            false => {
                "if it is lost (the system's log says so), resume when it is back; every finished step and the last checkpoint are kept"
            }
        };
        Self::DeviceFailed { device: device.to_owned(), reason, hint }
    }

    /// The status that the process ends with.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Recipe { .. } | Self::Expect { .. } | Self::Step { recipe: true, .. } => EXIT_RECIPE,
            Self::Prune(e) if !matches!(e, PruneError::Tensor(_) | PruneError::Data(_)) => EXIT_RECIPE,
            Self::Refused { .. } => EXIT_RECIPE,
            _ => EXIT_ENVIRONMENT,
        }
    }
}

/// The system's words, with the way out where there is a usual one.
fn explain_io(e: &io::Error) -> String {
    match e.kind() {
        _ if crate::files::no_room(e) => {
            format!("no room on the disk ({e}); free some space and go on with `prunectl resume`, or choose another --out")
        }
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only; choose another place".to_owned(),
        io::ErrorKind::PermissionDenied => format!("permission denied ({e})"),
        io::ErrorKind::NotFound => "there is no such file or folder".to_owned(),
        _ => e.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_device_is_told_from_one_that_is_full() {
        let failed =
            |text: &str| Error::Prune(PruneError::Tensor(candle_core::Error::Msg(text.to_owned()))).on_device("cuda:0").to_string();
        let lost = failed("DriverError(CUDA_ERROR_ECC_UNCORRECTABLE)");
        assert!(lost.contains("the device cuda:0 failed") && lost.contains("ECC") && lost.contains("resume when it is back"), "{lost}");
        assert!(failed("DriverError(CUDA_ERROR_OUT_OF_MEMORY)").contains("smaller `batch`"));
        // What is not the device's fault keeps its words.
        assert!(matches!(Error::Internal("x".into()).on_device("cuda:0"), Error::Internal(_)));
    }

    #[test]
    fn full_disk_names_the_way_out() {
        let e = Error::io("write", "runs/x-1/metrics.json")(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(e.exit_status(), EXIT_ENVIRONMENT);
        assert!(e.to_string().contains("no room on the disk") && e.to_string().contains("prunectl resume"), "{e}");
    }
}
