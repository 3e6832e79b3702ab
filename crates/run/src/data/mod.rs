//! Data: sources and splits, samples and mixtures of them, token streams and batches.
//!
//! What is opened here is data that a recipe names; models and recipes are opened elsewhere, and nothing here knows what the numbers are
//! used for. A row that can't be read is an error with its file and line, or, where the recipe says `corrupt = skip`, counted and
//! reported; none is dropped silently. Draws are the same on every platform ([`draw`]).

mod answers;
mod batch;
mod chat;
mod delta;
mod document;
mod draw;
mod error;
mod fields;
mod file;
mod forms;
mod hub;
mod labels;
mod lines;
mod memory;
mod parquet;
mod questions;
mod select;
mod stream;
mod table;
pub mod tales;
#[cfg(test)]
pub(crate) mod tests;
mod tokens;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use prunectl_recipe::plan::{DataDecl, DataExpr, DataSource};

pub use answers::Windows;
pub use batch::{BatchSpec, DataBatches, Need, Target};
pub use document::{Answer, Document, Label};
pub use error::{BadRow, BadRows, DataError, Place};
pub use file::FileRecord;
pub use labels::Classes;
pub use memory::{AutoBatch, USUAL_TOKENS, memory_bytes};
pub use questions::Ask;
pub use select::{Dataset, describe, row_count, row_tokens};
pub(crate) use stream::SEGMENT_BYTES;

use crate::hub::Door;
use fields::Fields;
use lines::LineTable;
use stream::LastStream;
use table::{Body, Table};

/// Splits in the order in which they are listed, with the words that name them in files.
const SPLITS: [(&str, &[&str]); 3] =
    [("train", &["train", "training"]), ("validation", &["validation", "valid", "val", "dev"]), ("test", &["test"])];

/// The splits of a source, found without reading it: empty for a source without splits, `None` when it can't be known here.
pub fn splits(decl: &DataDecl, hub: &Door) -> Option<Vec<String>> {
    match parts(decl, hub).ok()? {
        Parts::Whole(_) => Some(Vec::new()),
        Parts::Splits(s) => Some(s.into_iter().map(|(name, _)| name).collect()),
    }
}

/// Endings of files, by what they hold.
const TEXT: &[&str] = &["txt", "text", "raw", "md"];
const CSV: &[&str] = &["csv", "tsv", "tab"];
const JSON: &[&str] = &["jsonl", "ndjson", "json"];
const PARQUET: &[&str] = &["parquet"];

/// The ending of a file's name, that of its packing left out, in lower case.
fn ending(path: &Path) -> String {
    lines::plain_name(path).extension().and_then(|e| e.to_str()).unwrap_or_default().to_lowercase()
}

/// Where the rows of a split come from.
#[derive(Debug, Clone, PartialEq)]
enum Part {
    File(PathBuf),
    /// Files of a repository, fetched when they are opened.
    Hub {
        files: Vec<String>,
    },
    Builtin {
        name: String,
        split: &'static str,
    },
}

#[derive(Debug, Clone, PartialEq)]
enum Parts {
    Whole(Part),
    Splits(Vec<(String, Part)>),
}

fn parts(decl: &DataDecl, hub: &Door) -> Result<Parts, DataError> {
    match &decl.source {
        DataSource::Hub(repo) => {
            let found = hub::splits(decl, repo, hub)?;
            Ok(Parts::Splits(found.into_iter().map(|(split, files)| (split, Part::Hub { files })).collect()))
        }
        DataSource::Text(p) => files(p, TEXT),
        DataSource::Csv(p) => files(p, CSV),
        DataSource::Jsonl(p) => files(p, JSON),
        DataSource::Parquet(p) => files(p, PARQUET),
        DataSource::Tokens(p) => files(p, &["safetensors"]),
        DataSource::Builtin(name) => builtin_splits(name),
    }
}

/// A file, or the splits that a folder holds: files whose name has the word train, validation (valid, val, dev) or test in it.
fn files(path: &Path, extensions: &[&str]) -> Result<Parts, DataError> {
    let io = |error| DataError::Io { path: path.to_owned(), error };
    if !std::fs::metadata(path).map_err(io)?.is_dir() {
        return Ok(Parts::Whole(Part::File(path.to_owned())));
    }
    let mut found: BTreeMap<usize, Vec<PathBuf>> = BTreeMap::new();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        let Some(name) = file.file_name().and_then(|n| n.to_str()).map(str::to_lowercase) else { continue };
        let known = extensions.contains(&ending(&file).as_str());
        if !known || name.starts_with('.') || !file.is_file() {
            continue;
        }
        let has = |words: &[&str]| name.split(|c: char| !c.is_alphanumeric()).any(|w| words.contains(&w));
        if let Some(i) = SPLITS.iter().position(|(_, words)| has(words)) {
            found.entry(i).or_default().push(file.clone());
        }
        names.push(name);
    }
    let wrong = |found: String, expected: String| DataError::WrongFile { path: path.to_owned(), found, expected };
    let all = extensions.join(", .");
    if found.is_empty() {
        names.sort();
        let found = match names.is_empty() {
            true => format!("a folder without .{all} files"),
            false => format!("a folder with {}", names.join(", ")),
        };
        return Err(wrong(found, format!("a file, or a folder with train.*, validation.* (or dev.*) and test.* of .{all}")));
    }
    let mut splits = Vec::new();
    for (i, mut files) in found {
        let Some((name, _)) = SPLITS.get(i) else { continue };
        files.sort();
        match files.as_slice() {
            [one] => splits.push(((*name).to_owned(), Part::File(one.clone()))),
            several => {
                let listed: Vec<String> = several.iter().map(|f| f.display().to_string()).collect();
                return Err(wrong(format!("{} files for the split `{name}`: {}", listed.len(), listed.join(", ")), "one".into()));
            }
        }
    }
    Ok(Parts::Splits(splits))
}

fn builtin_splits(name: &str) -> Result<Parts, DataError> {
    match name {
        "tales" => Ok(Parts::Splits(SPLITS.map(|(split, _)| (split.to_owned(), Part::Builtin { name: name.to_owned(), split })).to_vec())),
        _ => Err(DataError::UnknownBuiltin { name: name.to_owned(), known: vec!["tales".into()] }),
    }
}

/// A declared source, and what of it is open.
#[derive(Debug)]
struct Source {
    decl: DataDecl,
    open: Mutex<BTreeMap<String, Arc<Table>>>,
}

/// The data of a recipe. Nothing is read before a step wants it; what was read is kept open.
#[derive(Debug, Clone)]
pub struct DataStore {
    sources: Arc<BTreeMap<String, Source>>,
    hub: Door,
    last: Arc<LastStream>,
}

impl DataStore {
    /// The data statements of a plan, paths already joined to the recipe's folder.
    pub fn new(decls: &[DataDecl], hub: &Door) -> Self {
        let source = |d: &DataDecl| (d.name.clone(), Source { decl: d.clone(), open: Mutex::default() });
        Self { sources: Arc::new(decls.iter().map(source).collect()), hub: hub.clone(), last: Arc::default() }
    }

    /// Everything that can be known without reading a row: names, fields, files that exist, splits, and what this version can't do.
    /// The executor asks before it loads anything.
    pub fn check(&self, expr: &DataExpr) -> Result<(), DataError> {
        select::check(expr, &mut |name, split| {
            let source = self.source(name)?;
            Fields::read(&source.decl)?;
            self.part(source, split).map(|_| ())
        })
    }

    /// Opens what an expression names. Files are scanned whole, so a corrupt row is found here and not in the middle of a step.
    pub fn resolve(&self, expr: &DataExpr) -> Result<Dataset, DataError> {
        self.check(expr)?;
        let mut tables = BTreeMap::new();
        select::check(expr, &mut |name, split| {
            let table = self.open(name, split)?;
            tables.insert((name.to_owned(), split.map(str::to_owned)), table);
            Ok(())
        })?;
        Ok(Dataset::new(expr.clone(), tables, self.last.clone()))
    }

    /// Every file read so far, with its hash, by path.
    pub fn files(&self) -> Vec<FileRecord> {
        let mut all: Vec<FileRecord> = self.tables().flat_map(|t| t.records().into_iter().cloned().collect::<Vec<_>>()).collect();
        all.sort_by(|a, b| a.path.cmp(&b.path));
        all.dedup();
        all
    }

    /// Rows left out by `corrupt = skip`, by file: for the run's output and its report.
    pub fn skipped(&self) -> Vec<(PathBuf, BadRows)> {
        let of = |t: Arc<Table>| t.skipped().into_iter().map(|(r, bad)| (r.path.clone(), bad.clone())).collect::<Vec<_>>();
        let mut all: Vec<_> = self.tables().flat_map(of).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all.dedup();
        all
    }

    fn tables(&self) -> impl Iterator<Item = Arc<Table>> + '_ {
        self.sources.values().flat_map(|s| lock(&s.open).values().cloned().collect::<Vec<_>>())
    }

    fn source(&self, name: &str) -> Result<&Source, DataError> {
        let known = || self.sources.keys().cloned().collect();
        self.sources.get(name).ok_or_else(|| DataError::UnknownData { name: name.to_owned(), known: known() })
    }

    fn part(&self, source: &Source, split: Option<&str>) -> Result<(String, Part), DataError> {
        let data = || source.decl.name.clone();
        match (parts(&source.decl, &self.hub)?, split) {
            (Parts::Whole(part), None) => Ok((String::new(), part)),
            (Parts::Whole(_), Some(split)) => Err(DataError::UnknownSplit { data: data(), split: split.to_owned(), known: Vec::new() }),
            (Parts::Splits(all), None) => Err(DataError::SplitNeeded { data: data(), known: all.into_iter().map(|(n, _)| n).collect() }),
            (Parts::Splits(mut all), Some(split)) => {
                let known: Vec<String> = all.iter().map(|(n, _)| n.clone()).collect();
                // A split goes by its own name first: `dev` may be one beside `validation`.
                let canonical = SPLITS.iter().find(|(_, words)| words.contains(&split)).map_or(split, |(name, _)| name);
                let at = all.iter().position(|(n, _)| n == split).or_else(|| all.iter().position(|(n, _)| n == canonical));
                match at {
                    Some(i) => Ok(all.swap_remove(i)),
                    None => Err(DataError::UnknownSplit { data: data(), split: split.to_owned(), known }),
                }
            }
        }
    }

    fn open(&self, name: &str, split: Option<&str>) -> Result<Arc<Table>, DataError> {
        let source = self.source(name)?;
        let (key, part) = self.part(source, split)?;
        if let Some(table) = lock(&source.open).get(&key) {
            return Ok(table.clone());
        }
        let fields = Fields::read(&source.decl)?;
        let body = match (&part, &source.decl.source) {
            (Part::Builtin { name, split }, _) => builtin(name, split),
            (Part::Hub { files }, _) => hub::open(&source.decl, files, &fields, &self.hub),
            (Part::File(p), DataSource::Csv(_)) => LineTable::delimited(p, p, &fields).map(|t| Body::Lines(vec![t])),
            (Part::File(p), DataSource::Jsonl(_)) => LineTable::json(p, p, &fields).map(|t| Body::Lines(vec![t])),
            (Part::File(p), DataSource::Parquet(_)) => LineTable::parquet(p, p, &fields).map(|t| Body::Lines(vec![t])),
            (Part::File(p), DataSource::Tokens(_)) => tokens::TokenTable::open(p).map(Body::Tokens),
            (Part::File(p), _) => Body::text(p, p),
        }?;
        let table = Arc::new(Table { body, label_names: fields.labels });
        lock(&source.open).insert(key, table.clone());
        Ok(table)
    }
}

/// A poisoned lock guards a map that is whole: entries are only ever added.
fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn builtin(name: &str, split: &str) -> Result<Body, DataError> {
    let split = tales::Split::from_name(split)
        .ok_or_else(|| DataError::UnknownBuiltin { name: format!("{name}.{split}"), known: vec!["tales".into()] })?;
    let document =
        |tale: tales::Tale| Document { text: tale.text, label: Some(Label::Integer(i64::from(tale.label))), ..Document::default() };
    Ok(Body::Memory { name: format!("{name}.{}", split.name()), documents: split.tales().map(document).collect() })
}
