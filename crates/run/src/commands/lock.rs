//! `prunectl lock RECIPE`: writes down everything that a run would read, with its hashes, beside the recipe.

use std::path::{Path, PathBuf};

use clap::Args;
use prunectl_recipe::plan::{ModelSource, Plan};

use crate::cli::{Compute, DONE, RecipeArgs};
use crate::commands::run::accepted;
use crate::commands::{print, print_json};
use crate::compile::{Compiled, compile};
use crate::data::DataStore;
use crate::error::{Error, Result};
use crate::executor::{data_of, others_of};
use crate::files::write_atomic;
use crate::lock::{Lock, LockedSource};
use crate::models::{describe, hashes};
use crate::recipes::{BUILTIN, RecipeFile};
use crate::session::Options;

/// Arguments of `lock`.
#[derive(Debug, Args)]
pub struct LockCommand {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Where to, instead of beside the recipe.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    compute: Compute,
}

impl LockCommand {
    /// Reads every source once and writes the lock.
    pub fn run(&self, options: &Options) -> Result<u8> {
        let options = self.compute.over(options);
        let recipe = RecipeFile::open(&self.recipe.recipe)?;
        let compiled = compile(&recipe, &self.recipe.set, options.hub.clone())?;
        let lock = made(&recipe, compiled, &options)?;
        let path = match &self.out {
            Some(path) => path.clone(),
            None => beside(&recipe)?,
        };
        let before = path.exists().then(|| Lock::read(&path)).transpose()?;
        write_atomic(&path, lock.to_yaml()?.as_bytes())?;
        let changes = before.map(|b| b.differences(&lock)).unwrap_or_default();
        if options.json {
            print_json(&serde_json::json!({"lock": path, "changes": changes, "models": lock.models.len(), "data": lock.data.len()}))?;
            return DONE;
        }
        for change in &changes {
            options.ui.note(format!("  {change}"));
        }
        print(&format!("{}\n", path.display()))?;
        DONE
    }
}

/// `recipes/a.prune` → `recipes/a.lock`.
pub fn beside(recipe: &RecipeFile) -> Result<PathBuf> {
    if recipe.shown.starts_with(BUILTIN) {
        return Err(Error::Usage { message: format!("{} lies inside the program; say where the lock is: --out FILE", recipe.shown) });
    }
    Ok(Path::new(&recipe.shown).with_extension("lock"))
}

/// A lock of all that the recipe names, as it is now; paths in it start from the recipe's folder.
pub fn made(recipe: &RecipeFile, compiled: Compiled, options: &Options) -> Result<Lock> {
    let mut lock = Lock::new(&recipe.shown, &recipe.text, &compiled.uses);
    let plan: Plan = accepted(compiled.result, &compiled.sources, &compiled.models, options)?;
    for decl in plan.models.iter().filter(|d| !matches!(d.source, ModelSource::Copy(_))) {
        options.ui.note(format!("reading {} from {}", decl.name, describe(&decl.source)));
        let files = hashes(decl, &options.hub)?;
        lock.models.insert(decl.name.clone(), LockedSource { source: describe(&decl.source), files });
    }
    let data = DataStore::new(&plan.data, &options.hub);
    for expr in data_of(&plan) {
        data.resolve(expr)?;
    }
    lock.data(&data.files(), "it was locked")?;
    for path in others_of(&plan) {
        lock.file(&path, "it was locked")?;
    }
    Ok(lock.within(&recipe.base))
}

/// What a run with `--locked` must find as it was: every difference is told.
pub fn verify(recipe: &RecipeFile, set: &[(String, String)], options: &Options) -> Result<()> {
    let path = beside(recipe)?;
    if !path.is_file() {
        return Err(Error::Usage {
            message: format!(
                "--locked needs {}; write it with:\n    prunectl lock {}",
                path.display(),
                crate::interrupt::shell_quote(&recipe.shown)
            ),
        });
    }
    let lock = Lock::read(&path)?;
    let now = made(recipe, compile(recipe, set, options.hub.clone())?, options)?;
    let differences = lock.differences(&now);
    match differences.is_empty() {
        true => Ok(()),
        false => Err(Error::Unlocked { path, differences, recipe: recipe.shown.clone() }),
    }
}
