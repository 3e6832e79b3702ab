//! From a recipe's file to its plan: the catalogue, the models' configs and the data's splits are brought to the compiler here.

use std::path::PathBuf;

use prunectl_recipe::Sources;
use prunectl_recipe::catalogue::Catalogue;
use prunectl_recipe::diagnostic::Diagnostic;
use prunectl_recipe::plan::Plan;

use crate::error::Result;
use crate::hub::Door;
use crate::models::DiskFacts;
use crate::recipes::{DiskLoader, RecipeFile};

/// Every method of this build.
pub fn catalogue() -> Catalogue {
    prunectl_prune::catalogue()
}

/// What came of a compilation.
#[derive(Debug)]
pub struct Compiled {
    /// What spans point into.
    pub sources: Sources,
    /// The plan, or every mistake.
    pub result: Result<Plan, Vec<Diagnostic>>,
    /// Recipes that were `use`d, with their texts, in order.
    pub uses: Vec<(PathBuf, String)>,
    /// What was read of its models.
    pub models: DiskFacts,
}

/// Compiles a recipe with `--set` values.
pub fn compile(recipe: &RecipeFile, set: &[(String, String)], hub: Door) -> Result<Compiled> {
    let loader = DiskLoader::default();
    let models = DiskFacts::new(hub);
    let compiled = prunectl_recipe::compile(&recipe.text, &recipe.file_name(), set, &loader, &catalogue(), &models);
    Ok(Compiled { sources: compiled.sources, result: compiled.result, uses: loader.read_files(), models })
}
