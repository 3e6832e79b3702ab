//! Recipe text to a checked, typed [`plan::Plan`]. No files, no network, no tensors: what is needed of them comes in as arguments.
//!
//! [`compile`] is the whole way; [`format::format`] and [`explain::page`] stand beside it, [`expand`] turns a selector into sites.

pub mod ast;
pub mod catalogue;
pub mod check;
pub mod diagnostic;
mod expand;
pub mod explain;
pub mod facts;
pub mod format;
mod lex;
pub mod lower;
pub mod plan;
pub mod reference;
pub mod render;
pub mod source;
mod syntax_error;

use std::path::Path;

pub use expand::expand;
pub use facts::{Facts, LayerFacts, ModelFacts, Site, Units};
pub use source::Sources;

use catalogue::Catalogue;
use diagnostic::Diagnostic;
use plan::Plan;

/// Opens what a recipe `use`s. The crate itself never opens a file.
pub trait Loader {
    /// The text of a recipe, its path already joined to the folder of the recipe that names it. The error is a sentence's end:
    /// "no such file".
    fn load(&self, path: &Path) -> Result<String, String>;
}

/// Opens nothing: every `use` is an error.
impl Loader for () {
    fn load(&self, _: &Path) -> Result<String, String> {
        Err("no other recipe can be opened from here".to_owned())
    }
}

/// What came of a compilation.
#[derive(Debug)]
pub struct Compiled {
    /// The recipe and what it `use`s: what spans point into.
    pub sources: Sources,
    /// The plan, its warnings inside, or every mistake (and the warnings, too).
    pub result: Result<Plan, Vec<Diagnostic>>,
}

/// Parses and checks a recipe. `file_name` is shown in messages, its folder is the base of relative paths, its stem is `{name}`;
/// `set` are the `--set name=value` pairs in order.
pub fn compile(
    text: &str,
    file_name: &str,
    set: &[(String, String)],
    loader: &dyn Loader,
    catalogue: &Catalogue,
    facts: &dyn ModelFacts,
) -> Compiled {
    let mut sources = Sources::default();
    let (parsed, syntax) = check::parse_all(text, file_name, loader, &mut sources);
    let settings: Vec<check::Setting> = set
        .iter()
        .map(|(name, text)| check::Setting { name: name.clone(), text: text.clone(), expr: lower::parse_expr(text, plan::Span::default()) })
        .collect();
    let name = recipe_name(file_name);
    let result = check::check(&parsed, &sources, catalogue, facts, &settings, syntax, &name);
    Compiled { sources, result }
}

/// The stem of a recipe's file, or what stands behind `builtin:`.
fn recipe_name(file_name: &str) -> String {
    let name = file_name.strip_prefix("builtin:").unwrap_or(file_name);
    Path::new(name).file_stem().map_or_else(|| "recipe".to_owned(), |s| s.to_string_lossy().into_owned())
}
