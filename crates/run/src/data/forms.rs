//! Benchmarks of multiple choice in their own columns, asked as lm-evaluation-harness asks them: the prompt, the options and the right one.

use serde_json::{Map, Value};

use super::document::{Document, Label};

/// A benchmark's columns and the prompt that is made of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Clark et al., Think you have Solved Question Answering? (2018): `question`, `choices` {`text`, `label`}, `answerKey`.
    Arc,
    /// Warstadt et al., BLiMP (2020): `sentence_good`, `sentence_bad`.
    Blimp,
    /// Zellers et al., HellaSwag (2019): `activity_label`, `ctx_a`, `ctx_b`, `endings`, `label`.
    Hellaswag,
    /// Hendrycks et al., Measuring Massive Multitask Language Understanding (2021): `question`, four `choices`, `answer`; the prompt is
    /// introduced by `subject`, where there is one. The options are the letters.
    Mmlu,
    /// Bisk et al., PIQA (2020): `goal`, `sol1`, `sol2`, `label`.
    Piqa,
    /// Sakaguchi et al., WinoGrande (2020): `sentence` with a blank `_`, `option1`, `option2`, `answer`. Partial evaluation (Trinh and Le,
    /// A Simple Method for Commonsense Reasoning, 2018): what stands behind the blank is scored, after each way to fill it.
    Winogrande,
}

/// The names of the forms, as a recipe writes them.
pub(crate) const FORMS: [(&str, Form); 6] = [
    ("arc", Form::Arc),
    ("blimp", Form::Blimp),
    ("hellaswag", Form::Hellaswag),
    ("mmlu", Form::Mmlu),
    ("piqa", Form::Piqa),
    ("winogrande", Form::Winogrande),
];

/// The fields of a row.
struct Row<'a>(&'a Map<String, Value>);

impl<'a> Row<'a> {
    fn text(&self, name: &str) -> Result<&'a str, String> {
        match self.0.get(name) {
            Some(Value::String(s)) => Ok(s),
            Some(v) => Err(format!("field `{name}` is {v}; expected a string")),
            None => Err(format!("no field `{name}`")),
        }
    }

    fn texts(&self, name: &str) -> Result<Vec<String>, String> {
        texts(name, self.0.get(name).ok_or_else(|| format!("no field `{name}`"))?)
    }

    /// A whole number, or the text of one.
    fn number(&self, name: &str) -> Result<i64, String> {
        let v = self.0.get(name).ok_or_else(|| format!("no field `{name}`"))?;
        let found = v.as_i64().or_else(|| v.as_str().and_then(|s| s.trim().parse().ok()));
        found.ok_or_else(|| format!("field `{name}` is {v}; expected a whole number (a split without answers can't be scored)"))
    }
}

fn texts(name: &str, v: &Value) -> Result<Vec<String>, String> {
    let all = v.as_array().and_then(|all| all.iter().map(|t| t.as_str().map(str::to_owned)).collect());
    all.ok_or_else(|| format!("field `{name}` is {v}; expected a list of texts"))
}

/// HellaSwag's texts without the marks of the pages that they come from.
fn without_marks(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        let (before, from) = rest.split_at(open);
        out.push_str(before);
        // A mark ends on its line.
        match from.find([']', '\n']).filter(|end| from[*end..].starts_with(']')) {
            Some(end) => rest = from.get(end + 1..).unwrap_or_default(),
            None => {
                out.push('[');
                rest = from.get(1..).unwrap_or_default();
            }
        }
    }
    out.push_str(rest);
    out.replace("  ", " ")
}

/// The first letter large, the others small.
fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters.flat_map(char::to_lowercase)).collect())
}

impl Form {
    /// The question that a row asks.
    pub(crate) fn document(self, row: &Map<String, Value>) -> Result<Document, String> {
        let row = Row(row);
        let (text, choices, right) = match self {
            Self::Arc => {
                let both = row
                    .0
                    .get("choices")
                    .and_then(Value::as_object)
                    .ok_or("field `choices` is no object of two lists, `text` and `label`")?;
                let of = |name: &str| texts(name, both.get(name).unwrap_or(&Value::Null));
                let (key, letters) = (row.text("answerKey")?, of("label")?);
                let right = letters
                    .iter()
                    .position(|l| l == key)
                    .ok_or_else(|| format!("field `answerKey` is `{key}`; expected one of {}", letters.join(", ")))?;
                (format!("Question: {}\nAnswer:", row.text("question")?), of("text")?, right as i64)
            }
            Self::Blimp => (String::new(), vec![row.text("sentence_good")?.to_owned(), row.text("sentence_bad")?.to_owned()], 0),
            Self::Hellaswag => {
                let context = format!("{}: {} {}", row.text("activity_label")?, row.text("ctx_a")?, capitalized(row.text("ctx_b")?));
                (without_marks(&context), row.texts("endings")?.iter().map(|e| without_marks(e)).collect(), row.number("label")?)
            }
            Self::Mmlu => {
                let options = row.texts("choices")?;
                let [a, b, c, d] = options.as_slice() else {
                    return Err(format!("field `choices` has {} options; expected 4", options.len()));
                };
                let subject = row.text("subject").unwrap_or_default().replace('_', " ");
                let about = match subject.trim() {
                    "" => String::new(),
                    subject => format!("The following are multiple choice questions (with answers) about {subject}.\n\n"),
                };
                let text = format!("{about}{}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:", row.text("question")?.trim());
                (text, ["A", "B", "C", "D"].map(str::to_owned).to_vec(), row.number("answer")?)
            }
            Self::Piqa => {
                let options = vec![row.text("sol1")?.to_owned(), row.text("sol2")?.to_owned()];
                (format!("Question: {}\nAnswer:", row.text("goal")?), options, row.number("label")?)
            }
            Self::Winogrande => {
                let sentence = row.text("sentence")?;
                let (before, after) = sentence.split_once('_').ok_or_else(|| format!("field `sentence` has no blank `_`: {sentence:?}"))?;
                let filled = |name| Ok::<_, String>(format!("{before}{}", row.text(name)?));
                let document = self.finished(String::new(), vec![filled("option1")?, filled("option2")?], row.number("answer")? - 1)?;
                return Ok(Document { ending: Some(after.trim().to_owned()), ..document });
            }
        };
        self.finished(text, choices, right)
    }

    fn finished(self, text: String, choices: Vec<String>, right: i64) -> Result<Document, String> {
        if !usize::try_from(right).is_ok_and(|right| right < choices.len()) {
            let first = i64::from(self == Self::Winogrande);
            return Err(format!("the right option is {}; expected {first} to {}", right + first, choices.len() as i64 - 1 + first));
        }
        Ok(Document { text, choices, label: Some(Label::Integer(right)), ..Document::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(form: Form, row: &str) -> Result<Document, String> {
        form.document(serde_json::from_str::<Value>(row).unwrap().as_object().unwrap())
    }

    #[test]
    fn prompts_are_those_of_the_harness() {
        let d = of(Form::Mmlu, r#"{"question": " How many? ", "subject": "small_numbers", "choices": ["1", "2", "3", "4"], "answer": 2}"#)
            .unwrap();
        assert_eq!(
            d.text,
            "The following are multiple choice questions (with answers) about small numbers.\n\nHow many?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
        );
        assert_eq!((d.choices.concat().as_str(), &d.label), ("ABCD", &Some(Label::Integer(2))));
        let d =
            of(Form::Winogrande, r#"{"sentence": "The cup fell, so _ broke.", "option1": "it", "option2": "she", "answer": "1"}"#).unwrap();
        assert_eq!(
            (d.choices[1].as_str(), d.ending.as_deref(), &d.label),
            ("The cup fell, so she", Some("broke."), &Some(Label::Integer(0)))
        );
        let row = r#"{"activity_label": "Tea", "ctx_a": "[header] Boil water [title] Now", "ctx_b": "the Cup", "endings": ["a  [step] b", "[open"], "label": "1"}"#;
        let d = of(Form::Hellaswag, row).unwrap();
        assert_eq!((d.text.as_str(), d.choices), ("Tea: Boil water. Now The cup", vec!["a  b".to_owned(), "[open".to_owned()]));
        let d = of(Form::Arc, r#"{"question": "Why?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}"#).unwrap();
        assert_eq!((d.text.as_str(), &d.label), ("Question: Why?\nAnswer:", &Some(Label::Integer(1))));
        let d = of(Form::Piqa, r#"{"goal": "Open it", "sol1": "pull", "sol2": "push", "label": 0}"#).unwrap();
        assert_eq!((d.text.as_str(), d.choices.len()), ("Question: Open it\nAnswer:", 2));
        assert_eq!(of(Form::Blimp, r#"{"sentence_good": "a", "sentence_bad": "b"}"#).unwrap().choices, ["a", "b"]);
    }

    #[test]
    fn rows_of_another_form_are_refused_by_name() {
        for (form, row, words) in [
            (Form::Winogrande, r#"{"sentence": "No blank", "option1": "a", "option2": "b", "answer": "1"}"#, "no blank"),
            (Form::Winogrande, r#"{"sentence": "A _", "option1": "a", "option2": "b", "answer": ""}"#, "without answers"),
            (Form::Winogrande, r#"{"sentence": "A _", "option1": "a", "option2": "b", "answer": "3"}"#, "3; expected 1 to 2"),
            (Form::Mmlu, r#"{"question": "Q", "choices": ["1"], "answer": 0}"#, "1 options; expected 4"),
            (Form::Arc, r#"{"question": "Q", "choices": {"text": ["x"], "label": ["A"]}, "answerKey": "B"}"#, "one of A"),
            (Form::Piqa, r#"{"goal": "G", "sol1": "a", "sol2": 3, "label": 0}"#, "`sol2` is 3"),
            (Form::Hellaswag, r#"{"ctx": "G"}"#, "no field `activity_label`"),
        ] {
            let e = of(form, row).unwrap_err();
            assert!(e.contains(words), "{e}");
        }
    }
}
