//! `modeling_prunectl.py`: what lets `AutoModel….from_pretrained(dir, trust_remote_code=True)` load a model whose layers differ.
//!
//! The file is made for the one family: its stock classes, and where each part of a layer stands in them, as the model crate's table of
//! tensor names has it; the code that rebuilds the parts is the same for all.

use std::fmt::Write as _;

use prunectl_model::{OWN_KEY, StockModules, Task, Transformer, stock_modules};
use serde_json::{Map, Value, json};

use super::SaveError;
use super::folder::Draft;
use crate::stock;

/// The file's name beside the weights.
pub const REMOTE_CODE_FILE: &str = "modeling_prunectl.py";
const BODY: &str = include_str!("modeling_body.py");
/// The family whose config class holds hidden / heads against its rotary embedding.
const FALCON: &str = "falcon";

/// The auto class that loads a task's architecture.
fn auto_class(task: Task) -> &'static str {
    match task {
        Task::CausalLm => "AutoModelForCausalLM",
        Task::MaskedLm => "AutoModelForMaskedLM",
        Task::Classification => "AutoModelForSequenceClassification",
        Task::QuestionAnswering => "AutoModelForQuestionAnswering",
        Task::Encoder => "AutoModel",
    }
}

/// Why the Python file can't load this model, if it can't.
#[must_use]
pub(super) fn obstacle(model: &Transformer) -> Option<String> {
    let (hidden, model_type) = (model.blueprint().hidden, model.origin().model_type.as_str());
    if model_type == stock::PHI3 && stock::heads_for_divisors(model.blueprint(), model.dims()).is_none() {
        let width = model.dims().iter().map(|d| d.head_dim).max().unwrap_or(1);
        return Some(format!(
            "its config counts longrope's divisors by hidden size and heads, and no number of heads makes heads {width} wide of {hidden} \
             channels: keep a multiple of {width} (`align = {width}`)"
        ));
    }
    let odd = model_type == FALCON && !hidden.is_multiple_of(2);
    odd.then(|| {
        let (below, above) = (hidden - 1, hidden + 1);
        format!(
            "its config refuses a hidden size such as {hidden}, which leaves no even width for any number of heads: \
             keep {below} or {above} channels (`align = 2`)"
        )
    })
}

/// The Python file.
fn source(stock: &StockModules, layout: &str, sharded: bool) -> String {
    let names: Vec<&str> = stock.classes.iter().map(|(class, _)| *class).collect();
    let mut out = String::from(
        "\"\"\"Loads a model whose layers differ in their numbers of heads, neurons or experts.\n\n\
         `prunectl` writes this file beside weights that no stock class can hold. It subclasses the stock classes of\n\
         transformers 5 and, before weights are read, gives each layer the shape that `config.prunectl[\"layer_dims\"]` lists:\n\n",
    );
    let example = stock.classes.first().map_or("AutoModel", |(_, task)| auto_class(*task));
    let _ = write!(
        out,
        "    from transformers import {example}\n    model = {example}.from_pretrained(\"path/to/folder\", trust_remote_code=True)\n\n\
         Nothing else is changed: attention, caching and generation are the stock ones.\n\"\"\"\n\n\
         import torch\nfrom torch import nn\nfrom transformers import {}\n\
         from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping\n\
         from transformers.pytorch_utils import Conv1D\n\n\
         # Where the list of layers stands in the base model, where the norms sit in a layer, and where its parts are.\n\
         LAYERS = \"{}\"\nLAYOUT = \"{layout}\"\nSHARDED = {}\nMODULES = {{\n",
        names.join(", "),
        stock.layers,
        if sharded { "True" } else { "False" },
    );
    for (part, path) in &stock.modules {
        let _ = writeln!(out, "    \"{part}\": \"{path}\",");
    }
    let _ = write!(out, "}}\n\n\n{BODY}");
    for class in names {
        let _ = write!(out, "\n\nclass Pruned{class}(Pruned, {class}):\n    pass\n");
    }
    out
}

/// Writes the file and points the config's `auto_map` at it. The file reads `prunectl.layer_dims` and `prunectl.layers`; the stock fields
/// get counts that the stock classes accept while they are built: their own where `taken`, else the original's, or one head where the hidden
/// size has changed, since a count such as 5 of 64 / 8 heads fails their validation.
pub(super) fn add(config: &mut Value, model: &Transformer, taken: bool, draft: &mut Draft) -> Result<(), SaveError> {
    let Some(fields) = config.as_object_mut() else { return Ok(()) };
    let modules = stock_modules(model);
    let auto_map: Map<String, Value> = modules
        .classes
        .iter()
        .map(|(class, task)| (auto_class(*task).to_owned(), format!("modeling_prunectl.Pruned{class}").into()))
        .collect();
    fields.insert("auto_map".into(), Value::Object(auto_map));
    let hidden = model.origin().config.get(model.origin().family.hidden_key()).and_then(Value::as_u64);
    let one = match stock::heads_for_divisors(model.blueprint(), model.dims()) {
        Some(heads) if model.origin().model_type == stock::PHI3 => json!(heads),
        _ => json!(1),
    };
    for (name, count) in modules.head_counts.iter().filter(|_| !taken) {
        match count.as_ref().map(|c| if hidden == Some(model.blueprint().hidden as u64) { c } else { &one }) {
            Some(count) => fields.insert((*name).into(), count.clone()),
            None => fields.shift_remove(*name),
        };
    }
    let own = fields.entry(OWN_KEY).or_insert_with(|| json!({}));
    if let Some(own) = own.as_object_mut() {
        own.insert("layer_dims".into(), json!(model.dims()));
        own.insert("layers".into(), json!(model.blueprint().layers));
    }
    let text = source(&modules, model.blueprint().layout.name(), model.origin().model_type == stock::CODEGEN);
    draft.write_bytes(REMOTE_CODE_FILE, text.as_bytes())?;
    Ok(())
}
