//! Conversations as rows of tokens: written out by the model's own chat template, learned from where the recipe says.
//!
//! Templates are Jinja as transformers runs them: blocks trimmed, Python's methods of strings and lists, `raise_exception`, `tojson`
//! without escapes for HTML. Dates are not given to templates: the same recipe must give the same bytes on any day.

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, context};

use prunectl_model::IGNORED;

use super::error::{DataError, Place};
use crate::tokenizer::Tokenizer;

/// Which turns are learned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Learn {
    /// Every token.
    All,
    /// What the assistant says, its end mark included.
    Assistant,
}

impl Learn {
    /// The word of `.chat(m, loss = …)`.
    pub(crate) fn parse(word: &str) -> Self {
        if word == "assistant" { Self::Assistant } else { Self::All }
    }
}

/// A conversation in tokens, with a label for each: the token, or [`IGNORED`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Encoded {
    pub(crate) ids: Vec<u32>,
    pub(crate) labels: Vec<i64>,
    pub(crate) cut: bool,
}

fn raise(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// JSON as Python writes it, not as HTML needs it.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent = options.get::<Option<usize>>("indent")?;
    // `ensure_ascii`, `sort_keys`, …: accepted, as templates give them.
    let plain = serde_json::to_value(value).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    let text = match indent {
        Some(n) => {
            let blanks = " ".repeat(n);
            let mut out = Vec::new();
            let formatter = serde_json::ser::PrettyFormatter::with_indent(blanks.as_bytes());
            let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
            serde::Serialize::serialize(&plain, &mut serializer).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
            String::from_utf8_lossy(&out).into_owned()
        }
        // Python puts a blank behind commas and colons.
        None => python_json(&plain),
    };
    Ok(Value::from_safe_string(text))
}

fn python_json(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Array(items) => format!("[{}]", items.iter().map(python_json).collect::<Vec<_>>().join(", ")),
        serde_json::Value::Object(map) => {
            let entry = |(k, v): (&String, &serde_json::Value)| format!("{}: {}", serde_json::Value::from(k.as_str()), python_json(v));
            format!("{{{}}}", map.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        plain => plain.to_string(),
    }
}

/// The turns with `role` and `content`; ShareGPT's `from` and `value` are read as them.
fn turns(messages: &str) -> Result<Vec<serde_json::Value>, String> {
    let all: Vec<serde_json::Value> = serde_json::from_str(messages).map_err(|e| format!("the turns are not a JSON list ({e})"))?;
    let one = |turn: serde_json::Value| match turn {
        serde_json::Value::Object(mut turn) => {
            if let Some(from) = turn.get("from").and_then(|f| f.as_str()).filter(|_| !turn.contains_key("role")) {
                let role = match from {
                    "human" => "user",
                    "gpt" | "model" | "bot" => "assistant",
                    other => other,
                };
                let role = serde_json::Value::from(role);
                turn.insert("role".to_owned(), role);
            }
            if let Some(value) = turn.get("value").filter(|_| !turn.contains_key("content")).cloned() {
                turn.insert("content".to_owned(), value);
            }
            if !turn.get("role").is_some_and(serde_json::Value::is_string) {
                return Err("a turn has no `role`".to_owned());
            }
            Ok(serde_json::Value::Object(turn))
        }
        _ => Err("a turn is not an object with `role` and `content`".to_owned()),
    };
    all.into_iter().map(one).collect()
}

/// Writes turns out; `prompt` adds what makes the assistant answer.
fn render(template: &str, tokenizer: &Tokenizer, turns: &[serde_json::Value], prompt: bool) -> Result<String, String> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise);
    environment.add_filter("tojson", to_json);
    // Nobody's template may run for ever.
    environment.set_recursion_limit(128);
    let (bos_token, eos_token) = tokenizer.marks();
    environment
        .render_str(template, context! { messages => turns, add_generation_prompt => prompt, bos_token, eos_token })
        .map_err(|e| format!("its chat template says: {}", e.detail().map_or_else(|| e.to_string(), str::to_owned)))
}

/// A conversation in tokens, cut at its end to `limit`.
pub(crate) fn encode(
    tokenizer: &Tokenizer,
    messages: &str,
    learn: Learn,
    limit: usize,
    place: impl Fn() -> Place,
) -> Result<Encoded, DataError> {
    let wrong = |found: String, expected: &str| DataError::Mixed { what: place().to_string(), found, expected: expected.to_owned() };
    let template = tokenizer.template().ok_or_else(|| {
        wrong(
            format!("a conversation, and {} has no chat template", tokenizer.origin()),
            "`chat_template` in the model's tokenizer_config.json, or chat_template.jinja; a model that was not made for chat has none",
        )
    })?;
    let turns = turns(messages).map_err(|e| wrong(e, "turns with `role` and `content`"))?;
    let write = |n: usize, prompt: bool| {
        render(template, tokenizer, turns.get(..n).unwrap_or_default(), prompt).map_err(|e| wrong(e, "turns that the template takes"))
    };
    let text = write(turns.len(), false)?;
    let mut spans = Vec::new();
    if learn == Learn::Assistant {
        for (i, turn) in turns.iter().enumerate().filter(|(_, t)| t.get("role").and_then(|r| r.as_str()) == Some("assistant")) {
            let _ = turn;
            let (before, after) = (write(i, true)?, write(i + 1, false)?);
            // What the template adds to make the assistant speak is no part of the answer; without such a thing, the turn begins behind the
            // turns before it.
            let before = if after.starts_with(&before) { before } else { write(i, false)? };
            if !after.starts_with(&before) || !text.starts_with(&after) {
                return Err(wrong(
                    "a template that writes earlier turns otherwise when later ones follow".to_owned(),
                    "`loss = all`: where this assistant's turns begin can't be told",
                ));
            }
            spans.push(before.len()..after.len());
        }
        if spans.is_empty() {
            return Err(wrong("a conversation in which the assistant says nothing".to_owned(), "`loss = all`, or one in which it does"));
        }
    }
    let (mut ids, offsets) = tokenizer.encode_with_offsets(&text)?;
    let mut labels: Vec<i64> = ids
        .iter()
        .zip(&offsets)
        .map(|(id, (start, end))| {
            // A token without text (a byte of a character) lies where it starts.
            let inside = spans.iter().any(|s| s.contains(start) && *end <= s.end.max(start + 1));
            if learn == Learn::All || inside { i64::from(*id) } else { IGNORED }
        })
        .collect();
    let cut = ids.len() > limit;
    ids.truncate(limit);
    labels.truncate(limit);
    Ok(Encoded { ids, labels, cut })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::tokenizer;

    const TEMPLATE: &str = "{% for m in messages %}\n    {{- m['role'][0] + ' ' + m.content.strip() + ' h ' }}\n{%- endfor %}{% if add_generation_prompt %}{{ 'a ' }}{% endif %}";
    const TALK: &str = r#"[{"role": "bad", "content": " c "}, {"role": "assistant", "content": "d e"}, {"role": "good", "content": "f"}, {"role": "assistant", "content": "g"}]"#;

    fn at() -> Place {
        Place { file: "t.jsonl".into(), line: 3 }
    }

    #[test]
    fn only_the_assistants_words_are_learned() {
        let t = tokenizer().with_template(TEMPLATE);
        // "b c h a d e h g f h a g h"
        let e = encode(&t, TALK, Learn::Assistant, 100, at).unwrap();
        assert_eq!(e.ids, [6, 7, 12, 5, 8, 9, 12, 11, 10, 12, 5, 11, 12]);
        let learned: Vec<usize> = e.labels.iter().enumerate().filter(|(_, l)| **l != IGNORED).map(|(i, _)| i).collect();
        assert_eq!(learned, [4, 5, 6, 11, 12]);
        let all = encode(&t, TALK, Learn::All, 4, at).unwrap();
        assert_eq!((all.ids.as_slice(), all.cut), (&[6u32, 7, 12, 5][..], true));
        assert!(all.labels.iter().all(|l| *l != IGNORED));
    }

    #[test]
    fn what_a_template_refuses_names_the_row() {
        let t = tokenizer().with_template("{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}");
        let e = encode(&t, TALK, Learn::All, 9, at).unwrap_err().to_string();
        assert!(e.contains("t.jsonl:3") && e.contains("user first"), "{e}");
        let e = encode(&tokenizer(), TALK, Learn::All, 9, at).unwrap_err().to_string();
        assert!(e.contains("has no chat template"), "{e}");
        let t = tokenizer().with_template(TEMPLATE);
        assert!(encode(&t, r#"[{"content": "x"}]"#, Learn::All, 9, at).unwrap_err().to_string().contains("no `role`"));
    }

    #[test]
    fn sharegpt_and_pythons_json() {
        let t = turns(r#"[{"from": "human", "value": "x"}]"#).unwrap();
        assert_eq!((t[0]["role"].as_str(), t[0]["content"].as_str()), (Some("user"), Some("x")));
        assert_eq!(python_json(&serde_json::json!({"a": [1, "<b>"]})), r#"{"a": [1, "<b>"]}"#);
    }
}
