//! Folders of sentence-transformers: what stands behind the network is a list of modules.

use std::path::Path;

use serde_json::Value;

use super::files::read_json;
use crate::blueprint::Pooling;
use crate::error::{ModelError, Result};

const MODULES: &str = "modules.json";
/// Where the pooling's config is, where no list says it.
const POOLING: &str = "1_Pooling";
/// Modules that change no direction of an embedding; `Normalize` its length alone.
const HARMLESS: &[&str] = &["Transformer", "Normalize", "Dropout"];

/// The pooling that the folder states, where it is such a folder.
///
/// # Errors
/// A module that this network does not have (a dense layer, say), or a pooling that it does not have: the embeddings would be others.
pub(super) fn pooling(dir: &Path) -> Result<Option<Pooling>> {
    let list = dir.join(MODULES);
    let mut place = POOLING.to_owned();
    if list.is_file() {
        let modules = read_json(&list)?;
        for module in modules.as_array().into_iter().flatten() {
            let text = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
            let kind = text("type").rsplit('.').next().unwrap_or_default();
            match kind {
                "Pooling" => text("path").clone_into(&mut place),
                _ if HARMLESS.contains(&kind) => {}
                _ => {
                    return Err(ModelError::Unsupported {
                        path: list,
                        what: format!("the module `{kind}` of sentence-transformers (`{}`)", text("path")),
                        hint: format!(
                            "embeddings are made by Pooling and {} alone; without {MODULES} the network below it can be pruned",
                            HARMLESS.join(", ")
                        ),
                    });
                }
            }
        }
    }
    let path = dir.join(place).join("config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let config = read_json(&path)?;
    let stated = config.as_object().into_iter().flatten();
    let asked: Vec<&str> = stated
        .filter_map(|(key, value)| match (key.strip_prefix("pooling_mode")?, value) {
            ("", Value::String(mode)) => Some(mode.as_str()),
            (_, Value::Bool(true)) => key.strip_prefix("pooling_mode_"),
            _ => None,
        })
        .collect();
    match asked.as_slice() {
        ["mean_tokens" | "mean"] => Ok(Some(Pooling::Mean)),
        ["cls_token" | "cls"] => Ok(Some(Pooling::First)),
        ["lasttoken"] => Ok(Some(Pooling::Last)),
        other => Err(ModelError::Unsupported {
            path,
            what: format!("pooling {other:?}"),
            hint: "one of pooling_mode_mean_tokens, pooling_mode_cls_token and pooling_mode_lasttoken is".into(),
        }),
    }
}
