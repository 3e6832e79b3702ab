//! The recipe and what it `use`s: opened by the caller's loader, each once, cycles refused.

use std::path::{Component, Path, PathBuf};

use crate::ast::{ExprKind, Piece, Recipe, StmtKind};
use crate::diagnostic::Diagnostic;
use crate::plan::Span;
use crate::source::Sources;
use crate::{Loader, lower};

/// A parsed file.
pub(crate) struct Parsed {
    /// Its path, joined and normalised.
    pub path: PathBuf,
    /// The folder that its relative paths start from.
    pub folder: PathBuf,
    pub recipe: Recipe,
    /// Statement index → file index, for every `use` that could be opened.
    pub uses: Vec<(usize, usize)>,
}

/// `a/./b/../c` → `a/c`, without asking a file system.
fn normalise(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for c in path.components() {
        match c {
            Component::CurDir => {}
            Component::ParentDir if matches!(out.components().next_back(), Some(Component::Normal(_))) => {
                out.pop();
            }
            c => out.push(c),
        }
    }
    out
}

/// The folder of a file.
fn folder_of(path: &Path) -> PathBuf {
    path.parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Parses the recipe and, depth first, everything that it `use`s.
pub(crate) fn parse_all(text: &str, file_name: &str, loader: &dyn Loader, sources: &mut Sources) -> (Vec<Parsed>, Vec<Diagnostic>) {
    let (mut parsed, mut errors) = (Vec::new(), Vec::new());
    let path = normalise(Path::new(file_name));
    let file = sources.add(file_name, text);
    let (recipe, e) = lower::parse(text, file);
    errors.extend(e);
    parsed.push(Parsed { folder: folder_of(&path), path, recipe, uses: Vec::new() });
    let mut open = vec![0];
    load_uses(0, &mut parsed, &mut open, loader, sources, &mut errors);
    (parsed, errors)
}

fn load_uses(
    at: usize,
    parsed: &mut Vec<Parsed>,
    open: &mut Vec<usize>,
    loader: &dyn Loader,
    sources: &mut Sources,
    errors: &mut Vec<Diagnostic>,
) {
    let Some(this) = parsed.get(at) else { return };
    let mut wanted: Vec<(usize, PathBuf, Span)> = Vec::new();
    for (i, stmt) in this.recipe.items.iter().enumerate() {
        let StmtKind::Use { path, .. } = &stmt.kind else { continue };
        let ExprKind::Str(pieces) = &path.kind else { continue };
        match pieces.as_slice() {
            [Piece::Text(p)] => wanted.push((i, normalise(&this.folder.join(p)), path.span)),
            _ => errors.push(Diagnostic::error("P0601", "the path of a `use` is a plain string", path.span, "give the file's path")),
        }
    }
    for (i, path, span) in wanted {
        if let Some(known) = parsed.iter().position(|p| p.path == path) {
            if open.contains(&known) {
                let chain: Vec<String> = open.iter().filter_map(|o| parsed.get(*o)).map(|p| p.path.display().to_string()).collect();
                let d = Diagnostic::error("P0602", format!("`{}` uses itself", path.display()), span, "closes the circle");
                errors.push(d.hint(format!("{} → {}", chain.join(" → "), path.display())));
            } else if let Some(p) = parsed.get_mut(at) {
                p.uses.push((i, known));
            }
            continue;
        }
        match loader.load(&path) {
            Ok(text) => {
                let file = sources.add(&path.display().to_string(), &text);
                let (recipe, e) = lower::parse(&text, file);
                errors.extend(e);
                let index = parsed.len();
                parsed.push(Parsed { folder: folder_of(&path), path, recipe, uses: Vec::new() });
                if let Some(p) = parsed.get_mut(at) {
                    p.uses.push((i, index));
                }
                if open.len() < crate::lex::MAX_DEPTH {
                    open.push(index);
                    load_uses(index, parsed, open, loader, sources, errors);
                    open.pop();
                }
            }
            Err(why) => {
                let d = Diagnostic::error("P0601", format!("can't open `{}`: {why}", path.display()), span, "used here");
                errors.push(d.hint("the path starts from the folder of the recipe that names it"));
            }
        }
    }
}
