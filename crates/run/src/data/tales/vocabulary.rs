//! The tokenizers of the built-in models, made from the words that the tales use: one token per word, case folded.
//!
//! They are data in `assets/`, embedded in the binary; this module makes those files, and its tests hold the two together.
use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::Split;

/// Stories read to collect the words; all of them occur in a far smaller number.
const STORIES_READ: usize = 8_192;

/// Words, full stops, and the blank line between two documents. Anything else separates.
const TOKEN_PATTERN: &str = r"\n\n|\w+|[^\w\s]";

/// Which special tokens stand around a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[CLS] text [SEP]`, with `[MASK]`.
    Bert,
    /// `<s> text`, with `</s>`.
    Llama,
}

impl Layout {
    /// The special tokens in the order of their ids.
    pub fn special(self) -> &'static [&'static str] {
        match self {
            Layout::Bert => &["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
            Layout::Llama => &["<unk>", "<s>", "</s>"],
        }
    }

    fn unknown(self) -> &'static str {
        match self {
            Layout::Bert => "[UNK]",
            Layout::Llama => "<unk>",
        }
    }

    /// Special tokens before and after a text.
    fn around(self) -> (&'static str, Option<&'static str>) {
        match self {
            Layout::Bert => ("[CLS]", Some("[SEP]")),
            Layout::Llama => ("<s>", None),
        }
    }
}

/// Every token that the tales use, sorted: the blank line, the full stop, then the words.
pub fn words() -> Vec<String> {
    let mut words = BTreeSet::from(["\n\n".to_owned(), ".".to_owned()]);
    for tale in Split::Train.tales().take(STORIES_READ) {
        words.extend(tale.text.split([' ', '.']).filter(|w| !w.is_empty()).map(str::to_lowercase));
    }
    words.into_iter().collect()
}

/// The `tokenizer.json` of this layout, as the `tokenizers` crate and transformers read it.
pub fn tokenizer_json(layout: Layout) -> Value {
    let special = layout.special();
    let tokens = special.iter().map(|&s| s.to_owned()).chain(words());
    let vocab: serde_json::Map<String, Value> = tokens.enumerate().map(|(id, token)| (token, json!(id))).collect();
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let (before, after) = layout.around();
    let piece = |token: &str, type_id: u32| json!({"SpecialToken": {"id": token, "type_id": type_id}});
    let text = |name: &str, type_id: u32| json!({"Sequence": {"id": name, "type_id": type_id}});
    let mut single = vec![piece(before, 0), text("A", 0)];
    single.extend(after.map(|token| piece(token, 0)));
    let mut pair = single.clone();
    match after {
        Some(token) => pair.extend([text("B", 1), piece(token, 1)]),
        None => pair.extend([piece(before, 0), text("B", 0)]),
    }
    let named: serde_json::Map<String, Value> = [Some(before), after]
        .into_iter()
        .flatten()
        .map(|token| (token.to_owned(), json!({"id": token, "ids": [vocab.get(token)], "tokens": [token]})))
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": TOKEN_PATTERN}, "behavior": "Removed", "invert": true},
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": named},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": layout.unknown()},
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::str::FromStr;

    use tokenizers::Tokenizer;

    use super::*;

    /// `assets/` holds what this module makes; `PRUNECTL_BLESS=1` writes it again.
    #[test]
    fn the_tokenizers_in_assets_are_made_from_the_tales() {
        for (folder, layout) in [("tiny-bert", Layout::Bert), ("tiny-llama", Layout::Llama)] {
            let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../assets").join(folder).join("tokenizer.json");
            let made = format!("{:#}\n", tokenizer_json(layout));
            if std::env::var_os("PRUNECTL_BLESS").is_some() {
                std::fs::write(&path, &made).expect("assets can be written");
            }
            let stored = std::fs::read_to_string(&path).expect("the asset is there");
            assert!(stored == made, "{} differs from what the tales give; PRUNECTL_BLESS=1 writes it", path.display());
        }
    }

    #[test]
    fn every_tale_is_made_of_known_words_and_reads_back() {
        for layout in [Layout::Bert, Layout::Llama] {
            let tokenizer = Tokenizer::from_str(&tokenizer_json(layout).to_string()).expect("a tokenizer");
            let unknown = tokenizer.token_to_id(layout.unknown()).expect("an id");
            for split in Split::ALL {
                for tale in split.tales().take(4_096) {
                    let encoding = tokenizer.encode(tale.text.as_str(), true).expect("tokens");
                    assert!(!encoding.get_ids().contains(&unknown), "{}", tale.text);
                    assert_eq!(tokenizer.decode(encoding.get_ids(), true).expect("text"), tale.text.to_lowercase());
                }
            }
        }
    }

    #[test]
    fn special_tokens_stand_where_the_models_expect_them() {
        let tokens = |layout, text: &str| {
            let tokenizer = Tokenizer::from_str(&tokenizer_json(layout).to_string()).expect("a tokenizer");
            tokenizer.encode(text, true).expect("tokens").get_tokens().to_vec()
        };
        assert_eq!(tokens(Layout::Bert, "Lost to her."), ["[CLS]", "lost", "to", "her", ".", "[SEP]"]);
        assert_eq!(tokens(Layout::Llama, "He left.\n\nMia"), ["<s>", "he", "left", ".", "\n\n", "mia"]);
        assert_eq!(tokens(Layout::Bert, "A zebra"), ["[CLS]", "a", "[UNK]", "[SEP]"]);
    }
}
