//! `modeling_prunectl.py`: what lets `AutoModel….from_pretrained(dir, trust_remote_code=True)` load a model whose layers differ.

use prunectl_model::LayerDims;
use serde_json::{Map, Value, json};

use super::SaveError;
use super::folder::Draft;

/// The file's name beside the weights.
pub const REMOTE_CODE_FILE: &str = "modeling_prunectl.py";
const SOURCE: &str = include_str!("modeling_prunectl.py");

/// Families whose modules the Python file knows how to resize, with the auto classes that each architecture belongs to.
const COVERED: &[(&str, &[(&str, &str)])] = &[
    (
        "bert",
        &[
            ("BertForSequenceClassification", "AutoModelForSequenceClassification"),
            ("BertForMaskedLM", "AutoModelForMaskedLM"),
            ("BertForQuestionAnswering", "AutoModelForQuestionAnswering"),
            ("BertForTokenClassification", "AutoModelForTokenClassification"),
            ("BertModel", "AutoModel"),
        ],
    ),
    (
        "llama",
        &[
            ("LlamaForCausalLM", "AutoModelForCausalLM"),
            ("LlamaForSequenceClassification", "AutoModelForSequenceClassification"),
            ("LlamaModel", "AutoModel"),
        ],
    ),
];

/// Whether the Python file can load layers that differ, of that `model_type`.
#[must_use]
pub fn covers(model_type: &str) -> bool {
    COVERED.iter().any(|(name, _)| *name == model_type)
}

/// Writes the file and points the config's `auto_map` at it. The file reads `prunectl.layer_dims`; the stock fields go back to counts that
/// the stock classes accept while they are built (`original`'s), since a count such as 5 of 64 / 8 heads fails their validation.
pub(super) fn add(config: &mut Value, original: &Value, dims: &[LayerDims], draft: &mut Draft) -> Result<(), SaveError> {
    let Some(fields) = config.as_object_mut() else { return Ok(()) };
    let model_type = fields.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let Some((_, classes)) = COVERED.iter().find(|(name, _)| *name == model_type) else { return Ok(()) };
    let auto_map: Map<String, Value> =
        classes.iter().map(|(class, auto)| ((*auto).to_owned(), format!("modeling_prunectl.Pruned{class}").into())).collect();
    fields.insert("auto_map".into(), Value::Object(auto_map));
    for name in ["num_attention_heads", "num_key_value_heads"] {
        match original.get(name) {
            Some(count) => fields.insert(name.into(), count.clone()),
            None => fields.shift_remove(name),
        };
    }
    let own = fields.entry("prunectl").or_insert_with(|| json!({}));
    if let Some(own) = own.as_object_mut() {
        own.insert("layer_dims".into(), json!(dims));
    }
    draft.write_bytes(REMOTE_CODE_FILE, SOURCE.as_bytes())?;
    Ok(())
}
