//! `tokenizer.json` as llama.cpp wants to be told: byte-level BPE, and BPE made from SentencePiece. Anything else becomes a file that
//! takes and gives token ids only, and says so.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::file::Meta;

/// Types of tokens in the format.
mod kind {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

/// Splitting expressions of byte-level tokenizers that llama.cpp has built in, and its names for them.
const SPLITS: &[(&str, &str)] = &[
    (
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
        "llama-bpe",
    ),
    (
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
        "qwen2",
    ),
    ("'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", "gpt-2"),
];

/// Metadata of the vocabulary, and what the user should know.
pub(crate) struct Vocabulary {
    pub metadata: Vec<(String, Meta)>,
    pub warnings: Vec<String>,
}

/// Files that say something of the tokens; null where there is none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sources<'a> {
    /// `tokenizer.json`.
    pub tokenizer: &'a Value,
    /// `tokenizer_config.json`.
    pub settings: &'a Value,
    /// `config.json`.
    pub config: &'a Value,
    /// Rows of the embedding.
    pub rows: usize,
}

/// Reads it all.
pub(crate) fn vocabulary(sources: Sources<'_>) -> Vocabulary {
    match read(sources) {
        Ok(vocabulary) => vocabulary,
        Err(why) => Vocabulary {
            metadata: vec![("tokenizer.ggml.model".into(), Meta::Text("no_vocab".into()))],
            warnings: vec![format!("the file has no vocabulary ({why}): llama.cpp takes and gives token ids only")],
        },
    }
}

fn read(s: Sources<'_>) -> Result<Vocabulary, String> {
    if s.tokenizer.is_null() {
        return Err("the model has no tokenizer.json".into());
    }
    let model = &s.tokenizer["model"];
    let kind = model["type"].as_str().unwrap_or("unknown");
    if kind != "BPE" {
        return Err(format!("its tokenizer is of the type {kind}, and byte-level or SentencePiece-like BPE are written"));
    }
    let vocab = model["vocab"].as_object().ok_or("its tokenizer.json lists no vocabulary")?;
    let mut tokens = Tokens::new(s.rows);
    for (text, id) in vocab {
        tokens.put(id.as_u64(), text, kind::NORMAL)?;
    }
    let merges = merges(&model["merges"])?;
    let mut out = Vocabulary { metadata: Vec::new(), warnings: Vec::new() };
    let mut set = |key: &str, meta: Meta| out.metadata.push((format!("tokenizer.ggml.{key}"), meta));
    let pieces = parts(&s.tokenizer["pre_tokenizer"]);
    if model["byte_fallback"].as_bool() == Some(true) {
        for token in &mut tokens.kinds {
            let byte = token.0.len() == 6 && token.0.starts_with("<0x") && token.0.ends_with('>');
            token.1 = if byte { kind::BYTE } else { token.1 };
        }
        let prefix = parts(&s.tokenizer["normalizer"]).iter().any(|n| n["type"] == "Prepend")
            || pieces.iter().any(|p| p["type"] == "Metaspace" && p["prepend_scheme"] != "never");
        set("model", Meta::Text("llama".into()));
        set("pre", Meta::Text("default".into()));
        set("add_space_prefix", Meta::Bool(prefix));
        set("scores", Meta::F32s(scores(&tokens, &merges)));
        if !all_pairs_merge(vocab.keys().map(String::as_str), &merges) {
            out.warnings.push(
                "llama.cpp merges any two tokens whose joint text is a token, and this tokenizer does not: some texts are cut differently"
                    .into(),
            );
        }
    } else if pieces.iter().any(|p| p["type"] == "ByteLevel") {
        let split = pieces.iter().find(|p| p["type"] == "Split").and_then(|p| p["pattern"]["Regex"].as_str());
        let own = pieces.iter().any(|p| p["type"] == "ByteLevel" && p["use_regex"] != false);
        let pre = match (split, own) {
            (None, true) => "gpt-2",
            (Some(regex), _) => SPLITS
                .iter()
                .find(|(known, _)| *known == regex)
                .map(|(_, name)| *name)
                .ok_or_else(|| format!("no splitting expression that we know in llama.cpp is `{regex}`"))?,
            (None, false) => return Err("its byte-level tokenizer does not split into words, which llama.cpp always does".into()),
        };
        set("model", Meta::Text("gpt2".into()));
        set("pre", Meta::Text(pre.into()));
        set("merges", Meta::Texts(merges.iter().map(|(a, b)| format!("{a} {b}")).collect()));
        if pieces.iter().any(|p| p["type"] == "ByteLevel" && p["add_prefix_space"] == true) {
            set("add_space_prefix", Meta::Bool(true));
        }
        if let Some(normalizer) = parts(&s.tokenizer["normalizer"]).first() {
            let name = normalizer["type"].as_str().unwrap_or("unknown");
            out.warnings.push(format!("llama.cpp does not apply the tokenizer's normaliser {name}"));
        }
    } else {
        return Err("its tokenizer is neither byte-level nor has byte fallback".into());
    }
    for added in s.tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let special = added["special"].as_bool() == Some(true);
        tokens.put(
            added["id"].as_u64(),
            added["content"].as_str().unwrap_or_default(),
            if special { kind::CONTROL } else { kind::USER },
        )?;
    }
    specials(&s, &mut tokens, &mut out.metadata);
    out.metadata.push(("tokenizer.ggml.token_type".into(), Meta::I32s(tokens.kinds.iter().map(|t| t.1).collect())));
    out.metadata.push(("tokenizer.ggml.tokens".into(), Meta::Texts(tokens.kinds.into_iter().map(|t| t.0).collect())));
    Ok(out)
}

/// Text and type of each row of the embedding.
struct Tokens {
    kinds: Vec<(String, i32)>,
    ids: HashMap<String, usize>,
}

impl Tokens {
    fn new(rows: usize) -> Self {
        Self { kinds: (0..rows).map(|i| (format!("[PAD{i}]"), kind::UNUSED)).collect(), ids: HashMap::new() }
    }

    fn put(&mut self, id: Option<u64>, text: &str, kind: i32) -> Result<(), String> {
        let rows = self.kinds.len();
        let place = id.and_then(|id| usize::try_from(id).ok()).and_then(|id| self.kinds.get_mut(id).map(|slot| (id, slot)));
        let (id, slot) = place.ok_or_else(|| format!("its token `{text}` has no row among the embedding's {rows}"))?;
        *slot = (text.to_owned(), kind);
        self.ids.insert(text.to_owned(), id);
        Ok(())
    }
}

/// A component, or those of a `Sequence`.
fn parts(value: &Value) -> Vec<&Value> {
    let list = ["pretokenizers", "normalizers", "processors"].iter().find_map(|key| value[*key].as_array());
    match list {
        Some(list) => list.iter().collect(),
        None if value.is_null() => Vec::new(),
        None => vec![value],
    }
}

/// Pairs in the order of their rank; either spelling of the file.
fn merges(value: &Value) -> Result<Vec<(String, String)>, String> {
    let wrong = || "its merges can't be read".to_owned();
    let pair = |v: &Value| match v {
        Value::String(s) => s.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        Value::Array(list) => match list.as_slice() {
            [Value::String(a), Value::String(b)] => Some((a.clone(), b.clone())),
            _ => None,
        },
        _ => None,
    };
    value.as_array().ok_or_else(wrong)?.iter().map(|v| pair(v).ok_or_else(wrong)).collect()
}

/// A score for each token, higher for what is merged earlier: minus the rank of the first merge that makes it.
fn scores(tokens: &Tokens, merges: &[(String, String)]) -> Vec<f32> {
    let mut rank: HashMap<String, usize> = HashMap::new();
    for (i, (a, b)) in merges.iter().enumerate() {
        rank.entry(format!("{a}{b}")).or_insert(i);
    }
    let last = merges.len();
    tokens.kinds.iter().map(|(text, _)| -(rank.get(text).copied().unwrap_or(last) as f32)).collect()
}

/// Whether every way to put a token together from two others is a merge, as in files that were made from SentencePiece.
fn all_pairs_merge<'a>(tokens: impl Iterator<Item = &'a str>, merges: &[(String, String)]) -> bool {
    let listed: HashSet<(&str, &str)> = merges.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let made: HashSet<String> = merges.iter().map(|(a, b)| format!("{a}{b}")).collect();
    let known: HashSet<&str> = tokens.collect();
    made.iter().all(|token| {
        token.char_indices().skip(1).map(|(at, _)| token.split_at(at)).all(|(a, b)| {
            // A part that is a token counts only if it can be reached: one character, or made by a merge.
            let reached = |part: &str| known.contains(part) && (part.chars().count() == 1 || made.contains(part));
            !(reached(a) && reached(b)) || listed.contains(&(a, b))
        })
    })
}

/// Ids of special tokens, and which of them a text is wrapped in.
fn specials(s: &Sources<'_>, tokens: &mut Tokens, metadata: &mut Vec<(String, Meta)>) {
    let by_text = |name: &str| {
        let text = s.settings[name].as_str().or_else(|| s.settings[name]["content"].as_str())?;
        tokens.ids.get(text).map(|id| *id as u64)
    };
    let by_id = |name: &str| match &s.config[format!("{name}_id").as_str()] {
        Value::Array(list) => list.first().and_then(Value::as_u64),
        other => other.as_u64(),
    };
    let mut set = |key: &str, meta: Meta| metadata.push((format!("tokenizer.ggml.{key}"), meta));
    let template = &s.tokenizer["post_processor"];
    let template = parts(template).into_iter().find(|p| p["type"] == "TemplateProcessing").unwrap_or(template);
    let single: Vec<&Value> = template["single"].as_array().into_iter().flatten().collect();
    let wraps = |part: Option<&&Value>| {
        let name = part?["SpecialToken"]["id"].as_str()?;
        template["special_tokens"][name]["ids"][0].as_u64()
    };
    let (first, last) = (wraps(single.first()), if single.len() > 1 { wraps(single.last()) } else { None });
    let unknown =
        by_text("unk_token").or_else(|| s.tokenizer["model"]["unk_token"].as_str().and_then(|t| tokens.ids.get(t)).map(|i| *i as u64));
    for (key, id) in [
        ("bos_token_id", first.or_else(|| by_text("bos_token")).or_else(|| by_id("bos_token"))),
        ("eos_token_id", by_text("eos_token").or_else(|| by_id("eos_token")).or(last)),
        ("unknown_token_id", unknown),
        ("padding_token_id", by_text("pad_token").or_else(|| by_id("pad_token"))),
    ] {
        if let Some(id) = id.and_then(|id| u32::try_from(id).ok()) {
            set(key, Meta::U32(id));
        }
    }
    set("add_bos_token", Meta::Bool(first.is_some()));
    set("add_eos_token", Meta::Bool(last.is_some()));
    if let Some(template) = s.settings["chat_template"].as_str() {
        metadata.push(("tokenizer.chat_template".into(), Meta::Text(template.into())));
    }
    if let Some(slot) = unknown.and_then(|id| usize::try_from(id).ok()).and_then(|id| tokens.kinds.get_mut(id)) {
        slot.1 = kind::UNKNOWN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sources(tokenizer: &Value) -> Vocabulary {
        vocabulary(Sources { tokenizer, settings: &Value::Null, config: &json!({"eos_token_id": [2, 3]}), rows: 6 })
    }

    fn get<'a>(v: &'a Vocabulary, key: &str) -> Option<&'a Meta> {
        v.metadata.iter().find(|(k, _)| k == &format!("tokenizer.ggml.{key}")).map(|(_, m)| m)
    }

    #[test]
    fn sentencepiece_like_vocabularies_get_scores_in_the_order_of_merges() {
        let tokenizer = json!({
            "model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>", "merges": ["b c", "a bc"],
                      "vocab": {"<unk>": 0, "<0x0A>": 1, "a": 2, "bc": 3, "abc": 4}},
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]},
        });
        let v = sources(&tokenizer);
        assert_eq!(get(&v, "model"), Some(&Meta::Text("llama".into())));
        assert_eq!(get(&v, "scores"), Some(&Meta::F32s(vec![-2.0, -2.0, -2.0, 0.0, -1.0, -2.0])));
        assert_eq!(
            get(&v, "token_type"),
            Some(&Meta::I32s(vec![kind::UNKNOWN, kind::BYTE, kind::NORMAL, kind::NORMAL, kind::NORMAL, kind::UNUSED]))
        );
        assert_eq!((get(&v, "add_space_prefix"), get(&v, "add_bos_token")), (Some(&Meta::Bool(true)), Some(&Meta::Bool(false))));
        assert_eq!(get(&v, "eos_token_id"), Some(&Meta::U32(2)));
        assert!(v.warnings.is_empty(), "{:?}", v.warnings);
    }

    #[test]
    fn byte_level_vocabularies_get_their_merges_and_the_name_of_their_expression() {
        let tokenizer = json!({
            "model": {"type": "BPE", "merges": [["a", "b"]], "vocab": {"a": 0, "b": 1, "ab": 2}},
            "pre_tokenizer": {"type": "ByteLevel", "use_regex": true},
            "added_tokens": [{"id": 5, "content": "<s>", "special": true}],
            "post_processor": {"type": "TemplateProcessing", "special_tokens": {"<s>": {"ids": [5]}},
                               "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]},
        });
        let v = sources(&tokenizer);
        assert_eq!((get(&v, "model"), get(&v, "pre")), (Some(&Meta::Text("gpt2".into())), Some(&Meta::Text("gpt-2".into()))));
        assert_eq!(get(&v, "merges"), Some(&Meta::Texts(vec!["a b".into()])));
        assert_eq!((get(&v, "bos_token_id"), get(&v, "add_bos_token")), (Some(&Meta::U32(5)), Some(&Meta::Bool(true))));
        let mut strange = tokenizer;
        strange["pre_tokenizer"] =
            json!({"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "x"}}, {"type": "ByteLevel"}]});
        let v = sources(&strange);
        assert_eq!(get(&v, "model"), Some(&Meta::Text("no_vocab".into())));
        assert!(v.warnings[0].contains("`x`"), "{:?}", v.warnings);
    }
}
