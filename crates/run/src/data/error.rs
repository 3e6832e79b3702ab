//! What can be wrong with data and tokenizers. Every error names the file and line, what was found, what was expected, and the way out.

use std::path::PathBuf;

/// A row of a file, as a reader would look for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file, or the name of built-in data.
    pub file: String,
    /// Its line, from 1; for a safetensors file the row, from 0.
    pub line: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A row that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// Its first line in the file, from 1.
    pub line: u64,
    /// Why.
    pub why: String,
}

/// Rows of one file that can't be read: the first few, and how many there are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BadRows {
    /// At most [`BadRows::SHOWN`], in file order.
    pub first: Vec<BadRow>,
    /// All of them.
    pub count: u64,
    /// Rows of the file, good and bad.
    pub of: u64,
}

impl BadRows {
    /// How many are kept for the message.
    pub const SHOWN: usize = 5;

    pub(crate) fn add(&mut self, line: u64, why: String) {
        self.count += 1;
        if self.first.len() < Self::SHOWN {
            self.first.push(BadRow { line, why });
        }
    }
}

impl std::fmt::Display for BadRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} rows can't be read", self.count, self.of)?;
        for row in &self.first {
            write!(f, "\n  line {}: {}", row.line, row.why)?;
        }
        let more = self.count.saturating_sub(self.first.len() as u64);
        if more > 0 {
            write!(f, "\n  and {more} more")?;
        }
        Ok(())
    }
}

/// Why data can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A name that no `data` statement declares.
    #[error("no data is called `{name}`; declared: {}", list(.known))]
    UnknownData { name: String, known: Vec<String> },
    /// `builtin("…")` of something else.
    #[error("no built-in data is called `{name}`; there is: {}", list(.known))]
    UnknownBuiltin { name: String, known: Vec<String> },
    /// A split that the source lacks.
    #[error("data `{data}` has no split `{split}`; {}", splits(.data, .known))]
    UnknownSplit { data: String, split: String, known: Vec<String> },
    /// A source with splits used as a whole.
    #[error("data `{data}` has splits; say which: {}", dotted(.data, .known))]
    SplitNeeded { data: String, known: Vec<String> },
    /// Something that this build can't do yet.
    #[error("{what} is not carried out by this version: {instead}")]
    NotYet { what: String, instead: String },
    /// A field of a `data` statement that can't be used.
    #[error("data `{data}`: field `{field}` is {found}; expected {expected}")]
    Field { data: String, field: String, found: String, expected: String },
    /// An argument of `.sample`, `.pack`, `.take` or `mix` that can't be used.
    #[error("{what}: {found}; expected {expected}")]
    Argument { what: String, found: String, expected: String },
    /// The operating system refused.
    #[error("{}: {error}{}", path.display(), way_out(error))]
    Io { path: PathBuf, error: std::io::Error },
    /// A path that is not what the source reads.
    #[error("{}: found {found}; expected {expected}", path.display())]
    WrongFile { path: PathBuf, found: String, expected: String },
    /// The file was written to while it was in use.
    #[error("{} changed while it was being read (now {found} bytes, {expected} when it was opened): run again when nothing writes to it", path.display())]
    Changed { path: PathBuf, found: u64, expected: u64 },
    /// Bytes that are not UTF-8.
    #[error("{}: byte {offset} (line {line}) is not UTF-8; convert the file, for instance with `iconv -f latin1 -t utf-8`", path.display())]
    NotUtf8 { path: PathBuf, offset: u64, line: u64 },
    /// Rows that can't be read.
    #[error("{}: {rows}\n  correct them, or say `corrupt = skip` in the data statement to leave them out and have them counted", path.display())]
    Corrupt { path: PathBuf, rows: BadRows },
    /// No column or field of that name.
    #[error("{}: no column `{field}`; found: {}. {hint}", path.display(), list(.found))]
    NoColumn { path: PathBuf, field: String, found: Vec<String>, hint: String },
    /// Nothing to run on.
    #[error("{what} is empty: {hint}")]
    Empty { what: String, hint: String },
    /// A safetensors file that is not a token file.
    #[error("{}: {why}", path.display())]
    Tokens { path: PathBuf, why: String },
    /// A label that the model doesn't have.
    #[error("{place}: label {label} is out of range; the model has {classes} labels, 0 to {}{}", .classes.saturating_sub(1), hidden(.label))]
    LabelRange { place: Place, label: i64, classes: usize },
    /// A label whose name neither the recipe nor the model's config knows.
    #[error("{place}: no label is called `{label}`; known: {}. Name them in the data statement in the order of the model's classes: `labels = [\"…\", \"…\"]`", list(.known))]
    LabelName { place: Place, label: String, known: Vec<String> },
    /// A label of the wrong kind.
    #[error("{place}: label {found}; expected {expected}")]
    LabelKind { place: Place, found: String, expected: String },
    /// A row without a label where the step needs one.
    #[error("{place} has no label, and {why}")]
    NoLabel { place: Place, why: String },
    /// Text without a tokenizer.
    #[error(
        "{what} is text, and the model has no tokenizer: put its tokenizer.json into the model's folder, or use `tokens(\"….safetensors\")`"
    )]
    NoTokenizer { what: String },
    /// Rows that can't be used together.
    #[error("{what}: {found}; expected {expected}")]
    Mixed { what: String, found: String, expected: String },
    /// A token that the embedding has no row for.
    #[error("{place}: token id {id} is out of range; the model's embedding has {rows} rows")]
    TokenRange { place: Place, id: i64, rows: usize },
    /// A row longer than the model can take where it may not be cut.
    #[error("{place}: {length} tokens; the model takes at most {limit}. Use shorter rows, or `length = {limit} tokens`")]
    TooLong { place: Place, length: usize, limit: usize },
    /// The Hub's own trouble.
    #[error(transparent)]
    Hub(#[from] crate::hub::HubError),
    /// The tokenizer's own trouble.
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
    /// Candle could not make a tensor.
    #[error("could not put a batch on the device: {0}")]
    Tensor(#[from] candle_core::Error),
}

fn list(names: &[String]) -> String {
    const SHOWN: usize = 20;
    if names.is_empty() {
        return "none".into();
    }
    let mut out = names.iter().take(SHOWN).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        out.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    out
}

fn dotted(data: &str, splits: &[String]) -> String {
    splits.iter().map(|s| format!("`{data}.{s}`")).collect::<Vec<_>>().join(", ")
}

fn splits(data: &str, known: &[String]) -> String {
    match known.is_empty() {
        true => format!("it is one file without splits: use `{data}` itself"),
        false => format!("it has {}", dotted(data, known)),
    }
}

/// What to look at where a file is not there.
fn way_out(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::NotFound => "; paths in a recipe start from its folder, those of arguments from the working directory",
        _ => "",
    }
}

fn hidden(label: &i64) -> &'static str {
    if *label == -1 { " (−1 marks labels that a benchmark keeps hidden: use another split)" } else { "" }
}
