//! One row of data before it is tokenised.

use std::sync::Arc;

/// A text, or a pair of texts, with its label. Texts are kept byte for byte.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Document {
    /// The text; of a pair, the first.
    pub text: String,
    /// The second text of a pair.
    pub pair: Option<String>,
    /// The label as it stands in the file.
    pub label: Option<Label>,
    /// Continuations to choose from, in the order of the file.
    pub choices: Vec<String>,
    /// What is scored behind each of `choices`, which then are contexts; `None` where the choices themselves are scored behind `text`.
    pub ending: Option<String>,
    /// The turns of a conversation: a JSON list.
    pub messages: Option<String>,
    /// The right answers to the question `text` about the context `pair`; empty where the context has none, `None` where the data has no
    /// such column.
    pub answers: Option<Vec<Answer>>,
}

/// A right answer: a stretch of the context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The stretch, as the file has it.
    pub text: String,
    /// Its first character, from 0.
    pub start: usize,
}

impl Answer {
    /// The answers in a JSON value: SQuAD's `{"text": […], "answer_start": […]}`, or a list of `{"text": …, "answer_start": …}`.
    pub(crate) fn all_from_json(v: &serde_json::Value) -> Result<Vec<Self>, String> {
        use serde_json::Value;
        const EXPECTED: &str = "expected {\"text\": […], \"answer_start\": […]}";
        let one = |text: &Value, start: &Value| match (text.as_str(), start.as_u64().and_then(|s| usize::try_from(s).ok())) {
            (Some(text), Some(start)) => Ok(Self { text: text.to_owned(), start }),
            _ => Err(format!("has the answer {text} at {start}; {EXPECTED}")),
        };
        match v {
            Value::Null => Ok(Vec::new()),
            Value::Object(both) => match (both.get("text"), both.get("answer_start")) {
                (Some(Value::Array(texts)), Some(Value::Array(starts))) if texts.len() == starts.len() => {
                    texts.iter().zip(starts).map(|(t, s)| one(t, s)).collect()
                }
                _ => Err(format!("is not of two lists of one length; {EXPECTED}")),
            },
            Value::Array(all) => {
                let null = Value::Null;
                all.iter().map(|a| one(a.get("text").unwrap_or(&null), a.get("answer_start").unwrap_or(&null))).collect()
            }
            _ => Err(format!("is no object; {EXPECTED}")),
        }
    }
}

/// A label as it stands in a file.
#[derive(Debug, Clone, PartialEq)]
pub enum Label {
    /// A whole number: a class, or a value.
    Integer(i64),
    /// A value.
    Real(f64),
    /// The name of a class.
    Text(Arc<str>),
}

impl Label {
    /// The label in a cell of a csv file; `None` if it is blank.
    pub(crate) fn from_cell(cell: &str) -> Option<Self> {
        let cell = cell.trim();
        if cell.is_empty() {
            return None;
        }
        if let Ok(i) = cell.parse::<i64>() {
            return Some(Self::Integer(i));
        }
        match cell.parse::<f64>() {
            Ok(x) if x.is_finite() => Some(Self::Real(x)),
            _ => Some(Self::Text(cell.into())),
        }
    }

    /// The label in a JSON value; an error says what was found.
    pub(crate) fn from_json(v: &serde_json::Value) -> Result<Option<Self>, &'static str> {
        use serde_json::Value;
        match v {
            Value::Null => Ok(None),
            Value::Bool(b) => Ok(Some(Self::Integer(i64::from(*b)))),
            Value::Number(n) => match (n.as_i64(), n.as_f64()) {
                (Some(i), _) => Ok(Some(Self::Integer(i))),
                (None, Some(x)) if x.is_finite() => Ok(Some(Self::Real(x))),
                _ => Err("a number out of range"),
            },
            Value::String(s) => Ok(Some(Self::Text(s.as_str().into()))),
            Value::Array(_) => Err("a list"),
            Value::Object(_) => Err("an object"),
        }
    }
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Integer(i) => write!(f, "{i}"),
            Self::Real(x) => write!(f, "{x}"),
            Self::Text(t) => write!(f, "`{t}`"),
        }
    }
}
