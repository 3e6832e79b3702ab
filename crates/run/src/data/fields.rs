//! The fields of a `data` statement.

use prunectl_recipe::catalogue::Args;
use prunectl_recipe::plan::{DataDecl, Value};

use super::error::DataError;
use super::forms::{FORMS, Form};

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
    /// `choices = ["ending0", "ending1"]`, or `["endings"]`, a column with a list.
    pub(crate) choices: Vec<Column>,
    /// `form = mmlu`: the columns are those of this benchmark.
    pub(crate) form: Option<Form>,
    /// `messages = "conversation"`.
    pub(crate) messages: Option<Column>,
    /// `answers = "answers"`.
    pub(crate) answers: Option<Column>,
    /// `header = false`.
    pub(crate) header: Option<bool>,
    /// `separator = ";"`.
    pub(crate) separator: Option<u8>,
    /// `quoting = false`.
    pub(crate) quoting: Option<bool>,
    /// `corrupt = skip`.
    pub(crate) corrupt: Corrupt,
}

impl Fields {
    pub(crate) fn read(decl: &DataDecl) -> Result<Self, DataError> {
        let wrong = |field: &str, found: String, expected: &str| DataError::Field {
            data: decl.name.clone(),
            field: field.to_owned(),
            found,
            expected: expected.to_owned(),
        };
        let of = Reader { args: &decl.fields, wrong: &wrong };
        Ok(Self {
            text: of.column("text")?,
            pair: of.column("text_pair")?,
            label: of.column("label")?,
            labels: of.names("labels")?,
            choices: of.columns("choices")?,
            form: match of.word("form")? {
                None => None,
                Some(name) => {
                    let known = FORMS.iter().find(|(n, _)| *n == name);
                    let all = || FORMS.map(|(n, _)| n).join(", ");
                    Some(known.ok_or_else(|| wrong("form", format!("`{name}`"), &format!("one of {}", all())))?.1)
                }
            },
            messages: of.column("messages")?,
            answers: of.column("answers")?,
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
    fn columns(&self, name: &str) -> Result<Vec<Column>, DataError> {
        let expected = "a list of columns: [\"ending0\", \"ending1\"]";
        let one = |v: &Value| match v {
            Value::Word(s) | Value::Text(s) => Ok(Column::Name(s.clone())),
            v => match v.as_u64().and_then(|i| usize::try_from(i).ok()) {
                Some(i) => Ok(Column::Index(i)),
                None => Err((self.wrong)(name, show(v), expected)),
            },
        };
        match self.args.get(name) {
            None => Ok(Vec::new()),
            Some(Value::List(items)) => items.iter().map(one).collect(),
            Some(v) => Err((self.wrong)(name, show(v), expected)),
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
    ("question", Some("context")),
    ("sentence", None),
    ("content", None),
];
/// Names that labels have.
const LABELS: &[&str] = &["label", "labels", "score"];

/// Names that the turns of a conversation have.
const MESSAGES: &[&str] = &["messages", "conversations", "conversation"];

/// The name that right answers have.
const ANSWERS: &str = "answers";

/// Where the texts and the label of a row are, by name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Layout<C> {
    /// Absent where only continuations or turns are read.
    pub(crate) text: Option<C>,
    pub(crate) pair: Option<C>,
    pub(crate) label: Option<C>,
    pub(crate) choices: Vec<C>,
    pub(crate) messages: Option<C>,
    pub(crate) answers: Option<C>,
}

impl<C> Layout<C> {
    /// No column.
    pub(crate) fn empty() -> Self {
        Self { text: None, pair: None, label: None, choices: Vec::new(), messages: None, answers: None }
    }

    /// The same with other names of the columns; the first that has none is the error.
    pub(crate) fn map<D, E>(self, name: impl Fn(C) -> Result<D, E>) -> Result<Layout<D>, E> {
        Ok(Layout {
            text: self.text.map(&name).transpose()?,
            pair: self.pair.map(&name).transpose()?,
            label: self.label.map(&name).transpose()?,
            choices: self.choices.into_iter().map(&name).collect::<Result<_, _>>()?,
            messages: self.messages.map(&name).transpose()?,
            answers: self.answers.map(&name).transpose()?,
        })
    }
}

impl Fields {
    /// Finds the columns among the names of a file. The error is the column that is not there.
    pub(crate) fn layout(&self, names: &[String]) -> Result<Layout<Column>, Column> {
        let has = |n: &str| names.iter().any(|x| x == n);
        let there = |c: &Column| match c {
            // `choices.text`: a field of a field.
            Column::Name(n) => has(n) || n.split_once('.').is_some_and(|(outer, _)| has(outer)),
            Column::Index(i) => *i < names.len(),
        };
        let checked = |c: &Option<Column>| match c {
            Some(c) if !there(c) => Err(c.clone()),
            c => Ok(c.clone()),
        };
        let named = |n: &str| Some(Column::Name(n.to_owned()));
        if let Some(absent) = self.choices.iter().find(|c| !there(c)) {
            return Err(absent.clone());
        }
        let known = TEXTS.iter().find(|(a, b)| has(a) && b.is_none_or(has));
        let messages = match (checked(&self.messages)?, &self.text, known) {
            (Some(messages), ..) => Some(messages),
            (None, None, None) => MESSAGES.iter().find(|n| has(n)).and_then(|n| named(n)),
            _ => None,
        };
        let (text, pair) = match (checked(&self.text)?, known) {
            (Some(text), _) => (Some(text), checked(&self.pair)?),
            (None, _) if messages.is_some() => (None, None),
            (None, Some((a, b))) => {
                let default = match b {
                    Some(b) => named(b),
                    None if *a == "text" && has("text_pair") => named("text_pair"),
                    None => None,
                };
                (named(a), checked(&self.pair)?.or(default))
            }
            // Continuations alone: minimal pairs.
            (None, None) if !self.choices.is_empty() => (None, None),
            (None, None) => return Err(Column::Name("text".into())),
        };
        let label = match checked(&self.label)? {
            Some(label) => Some(label),
            None => LABELS.iter().find(|n| has(n)).and_then(|n| named(n)),
        };
        let answers = match checked(&self.answers)? {
            Some(answers) => Some(answers),
            // Only beside a context; elsewhere the name may mean anything.
            None if has("context") && has(ANSWERS) && pair.as_ref() == named("context").as_ref() => named(ANSWERS),
            None => None,
        };
        Ok(Layout { text, pair, label, choices: self.choices.clone(), messages, answers })
    }
}
