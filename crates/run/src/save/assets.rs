//! What stands beside the weights: tokenizer files, generation defaults, a pooling configuration.

use std::path::Path;

use prunectl_model::{Task, Transformer};
use serde_json::{Map, Value};

use super::SaveError;
use super::folder::Draft;
use super::weights::pretty;

/// Files that are carried over, where the source has them. Nothing else is: a folder may hold other weights, or secrets.
const CARRIED: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    POOLING,
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
];
const POOLING: &str = "1_Pooling/config.json";
/// A vocabulary of a million entries takes some 30 MB.
const MAX_ASSET_BYTES: u64 = 1 << 30;

/// Where the files come from.
#[derive(Debug, Clone, Copy, Default)]
pub enum Assets<'a> {
    /// The folder that the model was loaded from.
    Folder(&'a Path),
    /// Name and content, as a built-in model has them.
    Bytes(&'a [(&'a str, &'a [u8])]),
    /// None: a model without a tokenizer.
    #[default]
    None,
}

impl Assets<'_> {
    /// One file, where it is there and not absurdly large.
    pub(crate) fn read(self, name: &str) -> Option<Vec<u8>> {
        match self {
            Self::None => None,
            Self::Bytes(files) => files.iter().find(|(known, _)| *known == name).map(|(_, bytes)| bytes.to_vec()),
            Self::Folder(folder) => {
                let path = folder.join(name);
                let small = std::fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_ASSET_BYTES);
                small.then(|| std::fs::read(path).ok()).flatten()
            }
        }
    }
}

/// The pooling of sentence-transformers says how wide its input is.
fn fitting(name: &str, bytes: Vec<u8>, hidden: usize) -> Vec<u8> {
    const WIDTH: &str = "word_embedding_dimension";
    let Some(mut pooling) = (name == POOLING).then(|| serde_json::from_slice::<Value>(&bytes).ok()).flatten() else { return bytes };
    match pooling.get_mut(WIDTH) {
        Some(width) if *width != hidden => {
            *width = hidden.into();
            pretty(&pooling)
        }
        _ => bytes,
    }
}

/// Copies what there is; a causal model without `generation_config.json` gets one from its config.
pub(super) fn write(draft: &mut Draft, assets: Assets<'_>, config: &Value, of: &Transformer) -> Result<(), SaveError> {
    let hidden = of.blueprint().hidden;
    let mut generation = false;
    match assets {
        Assets::None => {}
        Assets::Bytes(files) => {
            for (name, bytes) in files.iter().filter(|(name, _)| CARRIED.contains(name)) {
                generation |= *name == "generation_config.json";
                draft.write_bytes(name, &fitting(name, bytes.to_vec(), hidden))?;
            }
        }
        Assets::Folder(folder) => {
            for name in CARRIED {
                let path = folder.join(name);
                match std::fs::metadata(&path) {
                    Ok(meta) if meta.is_file() && meta.len() <= MAX_ASSET_BYTES => {}
                    _ => continue,
                }
                let bytes = std::fs::read(&path).map_err(|e| SaveError::io("read", &path, e))?;
                generation |= *name == "generation_config.json";
                draft.write_bytes(name, &fitting(name, bytes, hidden))?;
            }
        }
    }
    if of.origin().task == Task::CausalLm && !generation {
        let mut fields = Map::new();
        fields.insert("_from_model_config".into(), true.into());
        for name in ["bos_token_id", "eos_token_id", "pad_token_id"] {
            if let Some(value) = config.get(name).filter(|v| !v.is_null()) {
                fields.insert(name.into(), value.clone());
            }
        }
        draft.write_bytes("generation_config.json", &pretty(&Value::Object(fields)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pooling_is_as_wide_as_the_network() {
        let stated = br#"{"word_embedding_dimension": 32, "pooling_mode_mean_tokens": true}"#.to_vec();
        assert_eq!(fitting(POOLING, stated.clone(), 32), stated, "not a byte changes where it fits");
        let fitted: Value = serde_json::from_slice(&fitting(POOLING, stated.clone(), 30)).unwrap();
        assert_eq!(fitted, serde_json::json!({"word_embedding_dimension": 30, "pooling_mode_mean_tokens": true}));
        assert_eq!(fitting("vocab.txt", stated.clone(), 30), stated);
    }
}
