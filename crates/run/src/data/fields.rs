//! The fields of a `data` statement.

use prunectl_recipe::catalogue::Args;
use prunectl_recipe::plan::{DataDecl, DataSource, Value};

use super::error::DataError;

/// A column of a csv file, or a field of a JSON object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Column {
    /// By its name.
    Name(String),
    /// By its position, from 0; csv only.
    Index(usize),
}

impl std::fmt::Display for Column {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(n) => write!(f, "{n}"),
            Self::Index(i) => write!(f, "{i}"),
        }
    }
}

/// What a row that can't be read does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Corrupt {
    /// It is an error.
    #[default]
    Stop,
    /// It is left out, counted and reported.
    Skip,
}

/// The fields of a `data` statement, read and checked.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Fields {
    /// `text = "sentence"`.
    pub(crate) text: Option<Column>,
    /// `text_pair = "hypothesis"`.
    pub(crate) pair: Option<Column>,
    /// `label = "score"`.
    pub(crate) label: Option<Column>,
    /// `labels = ["negative", "positive"]`: the label's name of class 0, 1, ….
    pub(crate) labels: Vec<String>,
    /// `header = false`.
    pub(crate) header: Option<bool>,
    /// `separator = ";"`.
    pub(crate) separator: Option<u8>,
    /// `quoting = false`.
    pub(crate) quoting: Option<bool>,
    /// `corrupt = skip`.
    pub(crate) corrupt: Corrupt,
}

/// Every field with the sources that know it and one sentence, for the reference.
pub const FIELDS: &[(&str, &[&str], &str)] = &[
    ("text", &["csv", "jsonl"], "the column or field that holds the text; a number counts columns from 0"),
    ("text_pair", &["csv", "jsonl"], "the second text of a pair"),
    ("label", &["csv", "jsonl"], "the label: a class as a number or by name, or a value for regression"),
    ("labels", &["csv", "jsonl"], "names of the labels in the order of the model's classes: `[\"negative\", \"positive\"]`"),
    ("header", &["csv"], "whether the first row names the columns; false where columns are numbers, otherwise true"),
    ("separator", &["csv"], "one character; a tab for .tsv, otherwise a comma"),
    ("quoting", &["csv"], "whether \"…\" may hold separators and line breaks; false for .tsv, otherwise true"),
    ("corrupt", &["csv", "jsonl"], "`stop` (default) or `skip`: left out, counted and reported"),
];

impl Fields {
    pub(crate) fn read(decl: &DataDecl) -> Result<Self, DataError> {
        let source = match &decl.source {
            DataSource::Csv(_) => "csv",
            DataSource::Jsonl(_) => "jsonl",
            DataSource::Text(_) => "text",
            DataSource::Tokens(_) => "tokens",
            DataSource::Builtin(_) => "builtin",
            // What a Hub data set takes belongs to the part that reads it.
            DataSource::Hub(_) => return Ok(Self::default()),
        };
        let known: Vec<&str> = FIELDS.iter().filter(|(_, s, _)| s.contains(&source)).map(|(n, ..)| *n).collect();
        let wrong = |field: &str, found: String, expected: &str| DataError::Field {
            data: decl.name.clone(),
            field: field.to_owned(),
            found,
            expected: expected.to_owned(),
        };
        if let Some(unknown) = decl.fields.0.keys().find(|k| !known.contains(&k.as_str())) {
            let expected = match known.is_empty() {
                true => format!("no fields: {source}(…) takes none"),
                false => format!("one of {}", known.join(", ")),
            };
            return Err(wrong(unknown, format!("not a field of {source}(…)"), &expected));
        }
        let of = Reader { args: &decl.fields, wrong: &wrong };
        Ok(Self {
            text: of.column("text")?,
            pair: of.column("text_pair")?,
            label: of.column("label")?,
            labels: of.names("labels")?,
            header: of.flag("header")?,
            separator: of.byte("separator")?,
            quoting: of.flag("quoting")?,
            corrupt: match of.word("corrupt")? {
                None | Some("stop") => Corrupt::Stop,
                Some("skip") => Corrupt::Skip,
                Some(other) => return Err(wrong("corrupt", format!("`{other}`"), "stop or skip")),
            },
        })
    }
}

struct Reader<'a, F> {
    args: &'a Args,
    wrong: &'a F,
}

impl<F: Fn(&str, String, &str) -> DataError> Reader<'_, F> {
    fn word(&self, name: &str) -> Result<Option<&str>, DataError> {
        match self.args.get(name) {
            None => Ok(None),
            Some(Value::Word(s) | Value::Text(s)) => Ok(Some(s)),
            Some(v) => Err((self.wrong)(name, show(v), "a word or a string")),
        }
    }
    fn column(&self, name: &str) -> Result<Option<Column>, DataError> {
        match self.args.get(name) {
            None => Ok(None),
            Some(Value::Word(s) | Value::Text(s)) => Ok(Some(Column::Name(s.clone()))),
            Some(v) => match v.as_u64().and_then(|i| usize::try_from(i).ok()) {
                Some(i) => Ok(Some(Column::Index(i))),
                None => Err((self.wrong)(name, show(v), "a column's name in quotes, or its number from 0")),
            },
        }
    }
    fn flag(&self, name: &str) -> Result<Option<bool>, DataError> {
        match self.args.get(name) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(v) => Err((self.wrong)(name, show(v), "true or false")),
        }
    }
    fn byte(&self, name: &str) -> Result<Option<u8>, DataError> {
        let Some(s) = self.word(name)? else { return Ok(None) };
        match s.as_bytes() {
            b"\\t" => Ok(Some(b'\t')),
            [b] if b.is_ascii() && !matches!(b, b'"' | b'\n' | b'\r') => Ok(Some(*b)),
            _ => Err((self.wrong)(name, format!("`{s}`"), "one ASCII character, such as \",\" or \";\" or \"\\t\"")),
        }
    }
    fn names(&self, name: &str) -> Result<Vec<String>, DataError> {
        let expected = "a list of names: [\"negative\", \"positive\"]";
        match self.args.get(name) {
            None => Ok(Vec::new()),
            Some(Value::List(items)) => items
                .iter()
                .map(|v| match v {
                    Value::Text(s) | Value::Word(s) => Ok(s.clone()),
                    Value::Number(x) => Ok(x.to_string()),
                    v => Err((self.wrong)(name, format!("a list with {}", show(v)), expected)),
                })
                .collect(),
            Some(v) => Err((self.wrong)(name, show(v), expected)),
        }
    }
}

fn show(v: &Value) -> String {
    match v {
        Value::Bool(b) => b.to_string(),
        Value::Number(x) => x.to_string(),
        Value::Text(s) | Value::Word(s) => format!("`{s}`"),
        Value::Quantity(..) => "a number with a unit".into(),
        Value::Percent(_) | Value::Points(_) => "a percentage".into(),
        Value::List(_) => "a list".into(),
        Value::Record(_) => "a record".into(),
        _ => "a value of another type".into(),
    }
}

/// Names that texts have in the data sets that people use, in the order they are tried: the text, and the second text of a pair.
const TEXTS: &[(&str, Option<&str>)] = &[
    ("text", None),
    ("sentence1", Some("sentence2")),
    ("question1", Some("question2")),
    ("premise", Some("hypothesis")),
    ("question", Some("sentence")),
    ("sentence", None),
    ("content", None),
];
/// Names that labels have.
const LABELS: &[&str] = &["label", "labels", "score"];

/// Where the texts and the label of a row are, by name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Layout<C> {
    pub(crate) text: C,
    pub(crate) pair: Option<C>,
    pub(crate) label: Option<C>,
}

impl Fields {
    /// Finds the columns among the names of a file. The error is the column that is not there.
    pub(crate) fn layout(&self, names: &[String]) -> Result<Layout<Column>, Column> {
        let has = |n: &str| names.iter().any(|x| x == n);
        let there = |c: &Column| match c {
            Column::Name(n) => has(n),
            Column::Index(i) => *i < names.len(),
        };
        let checked = |c: &Option<Column>| match c {
            Some(c) if !there(c) => Err(c.clone()),
            c => Ok(c.clone()),
        };
        let named = |n: &str| Some(Column::Name(n.to_owned()));
        let (text, pair) = match checked(&self.text)? {
            Some(text) => (text, checked(&self.pair)?),
            None => {
                let known = TEXTS.iter().find(|(a, b)| has(a) && b.is_none_or(has));
                let Some((a, b)) = known else { return Err(Column::Name("text".into())) };
                let default = match b {
                    Some(b) => named(b),
                    None if *a == "text" && has("text_pair") => named("text_pair"),
                    None => None,
                };
                (Column::Name((*a).to_owned()), checked(&self.pair)?.or(default))
            }
        };
        let label = match checked(&self.label)? {
            Some(label) => Some(label),
            None => LABELS.iter().find(|n| has(n)).and_then(|n| named(n)),
        };
        Ok(Layout { text, pair, label })
    }
}
