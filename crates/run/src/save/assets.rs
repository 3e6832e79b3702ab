//! What stands beside the weights: tokenizer files, generation defaults, a pooling configuration.

use std::path::Path;

use prunectl_model::Task;
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
    "1_Pooling/config.json",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
];
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

/// Copies what there is; a causal model without `generation_config.json` gets one from its config.
pub(super) fn write(draft: &mut Draft, assets: Assets<'_>, config: &Value, task: Task) -> Result<(), SaveError> {
    let mut generation = false;
    match assets {
        Assets::None => {}
        Assets::Bytes(files) => {
            for (name, bytes) in files.iter().filter(|(name, _)| CARRIED.contains(name)) {
                generation |= *name == "generation_config.json";
                draft.write_bytes(name, bytes)?;
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
                draft.write_bytes(name, &bytes)?;
            }
        }
    }
    if task == Task::CausalLm && !generation {
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
