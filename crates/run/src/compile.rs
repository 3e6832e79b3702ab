//! From a recipe's file to its plan: the catalogue, the models' configs and the data's splits are brought to the compiler here.

use prunectl_recipe::Compiled;
use prunectl_recipe::catalogue::Catalogue;

use crate::error::Result;
use crate::recipes::{DiskLoader, RecipeFile};

/// Every method of this build.
pub fn catalogue() -> Catalogue {
    Catalogue::default()
}

/// Compiles a recipe with `--set` values.
pub fn compile(recipe: &RecipeFile, set: &[(String, String)]) -> Result<Compiled> {
    let loader = DiskLoader::default();
    Ok(prunectl_recipe::compile(&recipe.text, &recipe.shown, set, &loader, &catalogue(), &()))
}
