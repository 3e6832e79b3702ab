//! Recipes: those in files, and those inside the program.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What a recipe's name begins with when it is inside the program.
pub const BUILTIN: &str = "builtin:";

/// Recipes inside the program, by name: those that need nothing but built-in models and data.
pub const BUILTINS: &[(&str, &str)] = &[
    ("adapters_study", include_str!("../../../recipes/adapters_study.prune")),
    ("bert_heads", include_str!("../../../recipes/bert_heads.prune")),
    ("compare_classifier", include_str!("../../../recipes/compare_classifier.prune")),
    ("compare_heads", include_str!("../../../recipes/compare_heads.prune")),
    ("compare_language_model", include_str!("../../../recipes/compare_language_model.prune")),
    ("heads_study", include_str!("../../../recipes/heads_study.prune")),
    ("gradual_study", include_str!("../../../recipes/gradual_study.prune")),
    ("llama_gradual", include_str!("../../../recipes/llama_gradual.prune")),
    ("llama_gum", include_str!("../../../recipes/llama_gum.prune")),
    ("llama_movement", include_str!("../../../recipes/llama_movement.prune")),
    ("llama_neurons_study", include_str!("../../../recipes/llama_neurons_study.prune")),
    ("llama_tickets", include_str!("../../../recipes/llama_tickets.prune")),
    ("reconstruct_study", include_str!("../../../recipes/reconstruct_study.prune")),
    ("scores_study", include_str!("../../../recipes/scores_study.prune")),
    ("scratch_study", include_str!("../../../recipes/scratch_study.prune")),
    ("shapes_study", include_str!("../../../recipes/shapes_study.prune")),
];

/// A recipe's text and where it came from.
#[derive(Debug, Clone)]
pub struct RecipeFile {
    /// As it was named on the command line.
    pub shown: String,
    /// The file name without `.prune`.
    pub name: String,
    /// The folder that relative paths start from.
    pub base: PathBuf,
    /// The text.
    pub text: String,
}

impl RecipeFile {
    /// The file name that messages show; its stem is the recipe's name.
    pub fn file_name(&self) -> String {
        if self.shown.starts_with(BUILTIN) { format!("{}.prune", self.name) } else { self.shown.clone() }
    }

    /// Reads a recipe, or takes it from the program.
    pub fn open(path: &Path) -> Result<Self> {
        if let Some(name) = path.to_str().and_then(|p| p.strip_prefix(BUILTIN)) {
            let (name, text) = BUILTINS.iter().find(|(n, _)| *n == name).ok_or_else(|| {
                let known: Vec<&str> = BUILTINS.iter().map(|(n, _)| *n).collect();
                let hint = format!(" inside the program; it has {}", known.join(", "));
                Error::NoRecipe { path: path.to_owned(), hint }
            })?;
            return Ok(Self {
                shown: path.display().to_string(),
                name: (*name).to_owned(),
                base: PathBuf::from("."),
                text: (*text).to_owned(),
            });
        }
        let text = read_text(path)?;
        let name = path.file_stem().map_or_else(|| "recipe".to_owned(), |s| s.to_string_lossy().into_owned());
        let base = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        Ok(Self { shown: path.display().to_string(), name, base, text })
    }
}

/// A recipe's text, or why there is none.
pub fn read_text(path: &Path) -> Result<String> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {
            return Err(Error::RecipeIsFolder {
                path: path.to_owned(),
                hint: recipes_in(path).map(|l| format!("; it holds {l}")).unwrap_or_default(),
            });
        }
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::NoRecipe { path: path.to_owned(), hint: nearest(path) });
        }
        Err(e) => return Err(Error::io("read", path)(e)),
    }
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    String::from_utf8(bytes).map_err(|e| {
        let byte = e.utf8_error().valid_up_to();
        let bytes = e.as_bytes();
        let line = 1 + bytes.iter().take(byte).filter(|b| **b == b'\n').count();
        Error::NotUtf8 { path: path.to_owned(), line, byte, found: bytes.get(byte).copied().unwrap_or_default() }
    })
}

/// What could have been meant instead of a file that isn't there.
fn nearest(path: &Path) -> String {
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    if BUILTINS.iter().any(|(n, _)| *n == stem) {
        return format!("; the program has its own: {BUILTIN}{stem}");
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match recipes_in(folder) {
        Some(list) => format!("; {} holds {list}", folder.display()),
        None => format!("; `prunectl new` writes one, `{BUILTIN}bert_heads` is inside the program"),
    }
}

/// The first few recipes of a folder, as a list in words.
fn recipes_in(folder: &Path) -> Option<String> {
    const SHOWN: usize = 6;
    let mut names: Vec<String> =
        fs::read_dir(folder).ok()?.flatten().filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.ends_with(".prune")).collect();
    names.sort();
    let more = names.len() > SHOWN;
    names.truncate(SHOWN);
    (!names.is_empty()).then(|| format!("{}{}", names.join(", "), if more { ", …" } else { "" }))
}

/// Opens what a recipe `use`s from the disk, and remembers what it read.
#[derive(Debug, Default)]
pub struct DiskLoader {
    read: std::cell::RefCell<Vec<(PathBuf, String)>>,
}

impl DiskLoader {
    /// Every file read, with its text, in order.
    pub fn read_files(self) -> Vec<(PathBuf, String)> {
        self.read.into_inner()
    }
}

impl prunectl_recipe::Loader for DiskLoader {
    fn load(&self, path: &Path) -> Result<String, String> {
        let text = read_text(path).map_err(|e| e.to_string())?;
        self.read.borrow_mut().push((path.to_owned(), text.clone()));
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_recipe_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let bad = dir.path().join("bad.prune");
        fs::write(&bad, b"edition 2026\n\xff\n").unwrap();
        let e = RecipeFile::open(&bad).unwrap_err().to_string();
        assert!(e.contains("bad.prune:2") && e.contains("byte 13") && e.contains("0xff"), "{e}");
        let e = RecipeFile::open(dir.path()).unwrap_err().to_string();
        assert!(e.contains("is a folder") && e.contains("bad.prune"), "{e}");
        let e = RecipeFile::open(&dir.path().join("bat.prune")).unwrap_err().to_string();
        assert!(e.contains("there is no recipe") && e.contains("bad.prune"), "{e}");
        assert!(RecipeFile::open(Path::new("builtin:none")).is_err());
    }
}
