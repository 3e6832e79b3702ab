//! Where transformers keeps the parts of a layer: read off the family's table of tensor names, for the code that rebuilds stock classes.

use serde_json::{Map, Value};

use crate::blueprint::{Layout, Task};
use crate::family::names::How;
use crate::transformer::Transformer;

/// The modules of transformers' classes for a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StockModules {
    /// The list of layers, below the base model: `encoder.layer`.
    pub layers: String,
    /// Part and path inside a layer: (`attention.q`, `attention.self.query`). Fused projections are `attention.qkv` and `mlp.gate_up`.
    pub modules: Vec<(String, String)>,
    /// The class that is written for each task.
    pub classes: Vec<(&'static str, Task)>,
    /// Config fields that count heads, as the model's original config has them; `None` where it has no such field.
    pub head_counts: Vec<(&'static str, Option<Value>)>,
}

/// The config field with Falcon's count of key/value heads, which its row of keys leaves out: only one variant reads it.
const EXTRA_KV_HEADS: &str = "num_kv_heads";

/// Reads them off. Parts of experts and routers are not listed: transformers fuses those on loading.
#[must_use]
pub fn stock_modules(model: &Transformer) -> StockModules {
    let family = model.origin().family;
    let names = (family.names)(model.blueprint());
    let mut layers = String::new();
    let mut modules = Vec::new();
    for entry in &names.entries {
        let Some(part) = entry.slot.strip_prefix("layers.{l}.") else { continue };
        let Some((list, path)) = entry.file.split_once(".{l}.") else { continue };
        if part.contains("experts") || part.ends_with("router") {
            continue;
        }
        list.strip_prefix(names.prefix).unwrap_or(list).clone_into(&mut layers);
        let part = match entry.how {
            How::Qkv(_) | How::QkvTransposed(_) => format!("{part}.qkv"),
            How::GateUp => format!("{part}.gate_up"),
            How::Plain | How::Transposed => part.to_owned(),
        };
        modules.push((part, path.to_owned()));
    }
    let mut classes: Vec<(&'static str, Task)> = Vec::new();
    for (class, task) in family.architectures {
        if !classes.iter().any(|(_, known)| known == task) {
            classes.push((class, *task));
        }
    }
    let empty = Map::new();
    let config = model.origin().config.as_object().unwrap_or(&empty);
    let fields = [Some(family.keys.heads), family.keys.kv_heads, Some(EXTRA_KV_HEADS)];
    let head_counts = fields.into_iter().flatten().map(|key| (key, config.get(key).cloned())).collect();
    StockModules { layers, modules, classes, head_counts }
}

impl Layout {
    /// Its name in configs and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pre => "pre",
            Self::Post => "post",
            Self::Sandwich => "sandwich",
            Self::Parallel => "parallel",
            Self::ParallelOneNorm => "parallel_one_norm",
        }
    }
}
