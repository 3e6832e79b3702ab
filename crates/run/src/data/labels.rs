//! From a label as it stands in a file to what the loss compares with.

use super::document::Label;
use super::error::{DataError, Place};

/// The classes of a classification model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Classes {
    count: usize,
    names: Vec<(String, usize)>,
}

impl Classes {
    /// So many classes, without names.
    pub fn new(count: usize) -> Self {
        Self { count, names: Vec::new() }
    }

    /// `count` classes with the names of a Hugging Face config: `label2id`, then `id2label`.
    pub fn from_config(config: &serde_json::Value, count: usize) -> Self {
        let mut names: Vec<(String, usize)> = Vec::new();
        let mut add = |name: &str, id: Option<u64>| {
            let id = id.and_then(|i| usize::try_from(i).ok()).filter(|i| *i < count);
            if let Some(id) = id.filter(|_| !names.iter().any(|(n, _)| n == name)) {
                names.push((name.to_owned(), id));
            }
        };
        for (name, id) in config.get("label2id").and_then(|v| v.as_object()).into_iter().flatten() {
            add(name, id.as_u64());
        }
        for (id, name) in config.get("id2label").and_then(|v| v.as_object()).into_iter().flatten() {
            if let Some(name) = name.as_str() {
                add(name, id.parse().ok());
            }
        }
        names.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
        Self { count, names }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The class of a label. Names in the recipe go first, then whole numbers are classes, then the config's names, upper or lower case.
    pub(crate) fn class(&self, label: &Label, recipe: &[String], place: impl Fn() -> Place) -> Result<i64, DataError> {
        let written = match label {
            Label::Integer(i) => i.to_string(),
            Label::Real(x) => x.to_string(),
            Label::Text(t) => t.to_string(),
        };
        let i = if !recipe.is_empty() {
            match recipe.iter().position(|n| *n == written) {
                Some(i) => i as i64,
                None => return Err(DataError::LabelName { place: place(), label: written, known: recipe.to_vec() }),
            }
        } else {
            match label {
                Label::Integer(i) => *i,
                // Spreadsheets write a class as 1.0.
                Label::Real(x) if x.fract() == 0.0 && x.abs() < 1e9 => *x as i64,
                Label::Real(x) => {
                    let expected = format!("a class, 0 to {}: this is a value for a regression model", self.count.saturating_sub(1));
                    return Err(DataError::LabelKind { place: place(), found: x.to_string(), expected });
                }
                Label::Text(t) => self.named(t).ok_or_else(|| DataError::LabelName {
                    place: place(),
                    label: written,
                    known: self.names.iter().map(|(n, _)| n.clone()).collect(),
                })?,
            }
        };
        match usize::try_from(i) {
            Ok(class) if class < self.count => Ok(i),
            _ => Err(DataError::LabelRange { place: place(), label: i, classes: self.count }),
        }
    }

    fn named(&self, name: &str) -> Option<i64> {
        let exact = self.names.iter().find(|(n, _)| n == name);
        let any = || self.names.iter().find(|(n, _)| n.to_lowercase() == name.to_lowercase());
        exact.or_else(any).map(|(_, i)| *i as i64)
    }
}

/// The value of a label for regression.
pub(crate) fn value(label: &Label, place: impl FnOnce() -> Place) -> Result<f32, DataError> {
    match label {
        Label::Integer(i) => Ok(*i as f32),
        Label::Real(x) => Ok(*x as f32),
        Label::Text(t) => {
            Err(DataError::LabelKind { place: place(), found: format!("`{t}`"), expected: "a number: the model gives one value".into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> Place {
        Place { file: "f.csv".into(), line: 7 }
    }

    #[test]
    fn classes_by_number_and_by_name() {
        let config = serde_json::json!({"id2label": {"0": "NEGATIVE", "1": "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}});
        let classes = Classes::from_config(&config, 2);
        let of = |l: Label| classes.class(&l, &[], at).map_err(|e| e.to_string());
        assert_eq!(of(Label::Integer(1)), Ok(1));
        assert_eq!(of(Label::Real(1.0)), Ok(1));
        assert_eq!(of(Label::Text("positive".into())), Ok(1));
        let recipe = ["bad".to_owned(), "good".to_owned()];
        assert_eq!(classes.class(&Label::Text("good".into()), &recipe, at).ok(), Some(1));
        for (label, expected) in [
            (Label::Integer(2), "f.csv:7: label 2 is out of range; the model has 2 labels, 0 to 1"),
            (
                Label::Integer(-1),
                "f.csv:7: label -1 is out of range; the model has 2 labels, 0 to 1 (−1 marks labels that a benchmark keeps hidden",
            ),
            (Label::Text("mixed".into()), "f.csv:7: no label is called `mixed`; known: `NEGATIVE`, `POSITIVE`"),
            (Label::Real(0.5), "f.csv:7: label 0.5; expected a class, 0 to 1"),
        ] {
            let e = of(label).expect_err("refused");
            assert!(e.starts_with(expected), "{e}");
        }
    }
}
