//! What commands say of a path that is no model folder: the mistakes that are made most.

use std::path::Path;

use crate::error::{Error, Result};
use crate::stock::vllm;

/// A folder with a `config.json` that we read.
///
/// # Errors
/// What the path is instead, and what to give.
pub(super) fn check(dir: &Path) -> Result<()> {
    let shown = dir.display();
    let refuse = |what: String| Err(Error::Usage { message: what });
    if dir.join("config.json").is_file() {
        return match is_for_vllm(dir) {
            true => refuse(format!("{shown} was written for vLLM; give the folder that it was exported from")),
            false => Ok(()),
        };
    }
    let text = dir.to_string_lossy();
    if let Some((scheme @ ("builtin" | "hf" | "init"), name)) = text.split_once(':') {
        let message = format!(
            "this command reads folders, not `{scheme}:` names: save the model with a recipe (`model m = …`, `save m to \"out/m\"`)"
        );
        let plan = if scheme == "hf" { format!("; `prunectl plan hf:{name}` reads its headers from the Hub") } else { String::new() };
        return refuse(message + &plan);
    }
    if !dir.exists() {
        return refuse(format!("there is no folder {shown}; give one that `save` wrote, or any with config.json and *.safetensors"));
    }
    if dir.is_file() {
        let parent = dir.parent().filter(|p| p.join("config.json").is_file());
        return refuse(match (dir.extension().and_then(|e| e.to_str()), parent) {
            (Some("gguf"), _) => format!("{shown} is a GGUF file, which is written and not read; give the folder that it came from"),
            (_, Some(folder)) => format!("{shown} is a file; give its folder, {}", folder.display()),
            _ => format!("{shown} is a file; give a model folder: config.json and *.safetensors"),
        });
    }
    let saved = saved_by(dir);
    if !saved.is_empty() {
        return refuse(format!("{shown} is a run directory; the models that the run saved are in {}", saved.join(", ")));
    }
    if dir.join("journal.jsonl").is_file() {
        return refuse(format!("{shown} is a run directory, and the run saved no model; write `save m to \"…\"` in its recipe"));
    }
    if dir.join("model.gguf").is_file() {
        return refuse(format!("{shown} holds a GGUF file alone, which is written and not read; save the model with format = hf"));
    }
    refuse(format!("{shown} has no config.json; give a model folder: config.json and *.safetensors"))
}

fn is_for_vllm(dir: &Path) -> bool {
    let config = std::fs::read(dir.join("config.json")).ok();
    let config: Option<serde_json::Value> = config.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    config.is_some_and(|c| c["model_type"] == vllm::MODEL_TYPE)
}

/// The folders that a run saved to, in the order of its journal.
fn saved_by(run: &Path) -> Vec<String> {
    let journal = std::fs::read_to_string(run.join("journal.jsonl")).unwrap_or_default();
    let steps = journal.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let saves = steps.filter(|s| s["event"] == "step" && s["kind"] == "save");
    saves.filter_map(|s| s["result"]["dir"].as_str().map(str::to_owned)).collect()
}
