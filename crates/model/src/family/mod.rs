//! Families: one data file each, and the table of all. A family file turns a config into a `Blueprint` and names tensors; it computes nothing.

mod bert;
mod codegen;
pub(crate) mod config;
mod distilbert;
mod electra;
mod falcon;
mod gemma;
mod gpt2;
mod gpt_neo;
mod gpt_neox;
mod llama;
mod mistral;
mod mixtral;
pub(crate) mod names;
mod opt;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod roberta;

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::blueprint::{Blueprint, Head, LayerSpec, Pooling, Task};
use crate::dims::LayerDims;
use crate::error::{ModelError, Result};
use config::{Fields, Source};
use names::Names;

/// Turns a config into mechanisms and shapes.
pub(crate) type Reader = fn(&Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)>;

/// A row of `FAMILIES`.
pub struct Family {
    /// Its name in tables and messages.
    pub name: &'static str,
    /// The `model_type`s that it reads.
    pub model_types: &'static [&'static str],
    /// transformers' class for each task; the first of a task is the one that is written.
    pub architectures: &'static [(&'static str, Task)],
    pub(crate) read: Reader,
    pub(crate) names: fn(&Blueprint) -> Names,
    pub(crate) keys: Keys,
    /// Rewrites fields that describe single layers, once some are gone.
    pub(crate) write_layers: fn(&mut Map<String, Value>, &Blueprint, &[LayerDims]),
}

impl Family {
    /// The config field with the width of the residual stream.
    #[must_use]
    pub fn hidden_key(&self) -> &'static str {
        self.keys.hidden
    }
}

impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The config fields that hold counts.
pub(crate) struct Keys {
    pub layers: &'static str,
    pub hidden: &'static str,
    /// Width of the embedding tables, where the config has it.
    pub embedding: Option<&'static str>,
    pub heads: &'static str,
    pub kv_heads: Option<&'static str>,
    pub head_dim: Option<&'static str>,
    pub ffn: &'static str,
    pub experts: Option<ExpertKeys>,
}

/// The config fields of mixtures.
pub(crate) struct ExpertKeys {
    pub count: &'static [&'static str],
    pub top_k: &'static str,
    pub ffn: &'static str,
}

/// Every family. No row without golden logits and golden gate gradients of Hugging Face transformers.
pub const FAMILIES: &[Family] = &[
    bert::FAMILY,
    roberta::FAMILY,
    roberta::XLM,
    distilbert::FAMILY,
    electra::FAMILY,
    gpt2::FAMILY,
    gpt_neo::FAMILY,
    gpt_neox::FAMILY,
    codegen::FAMILY,
    opt::FAMILY,
    falcon::FAMILY,
    llama::FAMILY,
    mistral::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    gemma::GEMMA2,
    gemma::GEMMA3,
    phi3::FAMILY,
    mixtral::FAMILY,
    qwen3_moe::FAMILY,
];

/// The config key under which shapes stand that stock fields can't say.
pub const OWN_KEY: &str = "prunectl";

/// What a config says.
pub(crate) struct Resolved {
    pub family: &'static Family,
    pub model_type: String,
    pub task: Task,
    pub blueprint: Blueprint,
    pub dims: Vec<LayerDims>,
}

/// Reads a config: which family, for what, which mechanisms and shapes.
pub(crate) fn resolve(path: &Path, config: &Value, task: Option<Task>, has_tensor: &dyn Fn(&str) -> bool) -> Result<Resolved> {
    let fields = Fields::top(path, config)?;
    let Some(model_type) = fields.text(&["model_type"])? else {
        return Err(fields.error("model_type", format!("one of {}", known_types())));
    };
    let family = FAMILIES.iter().find(|f| f.model_types.contains(&model_type));
    refuse(&fields, model_type, family)?;
    let Some(family) = family else {
        let what = match mechanism(model_type) {
            Some(mechanism) => format!("model_type `{model_type}`, {mechanism},"),
            None => format!("model_type `{model_type}`"),
        };
        return Err(fields.unsupported(what, format!("these are: {}", known_types())));
    };
    let task = choose_task(&fields, family, task)?;
    let (mut blueprint, mut dims) = (family.read)(&Source { fields, task, has_tensor })?;
    read_own(&fields, &mut blueprint, &mut dims)?;
    check_sizes(&fields, family, &blueprint, &dims)?;
    Ok(Resolved { family, model_type: model_type.to_owned(), task, blueprint, dims })
}

/// What well-known models are made of that this network has not, by parts of their `model_type`.
const MECHANISMS: &[(&[&str], &str)] = &[
    (&["mamba", "rwkv", "jamba", "zamba", "bamba", "recurrent_gemma", "falcon_h1", "xlstm", "lfm2"], "which has state-space layers (SSM)"),
    (&["deepseek_v2", "deepseek_v3", "minicpm3", "kimi"], "which has multi-head latent attention (MLA)"),
    (&["t5", "bart", "pegasus", "marian", "m2m_100", "prophetnet", "blenderbot", "whisper"], "an encoder-decoder"),
    (&["gemma3n", "llava", "_vl", "mllama", "paligemma", "idefics", "clip", "vit"], "which sees images"),
];

fn mechanism(model_type: &str) -> Option<&'static str> {
    if model_type == "gemma3" {
        return Some("which sees images (its language model alone, saved as `gemma3_text`, is read)");
    }
    MECHANISMS.iter().find(|(parts, _)| parts.iter().any(|part| model_type.contains(part))).map(|(_, what)| *what)
}

fn known_types() -> String {
    FAMILIES.iter().flat_map(|f| f.model_types.iter().copied()).collect::<Vec<_>>().join(", ")
}

/// Refuses by name what no family has.
fn refuse(fields: &Fields<'_>, model_type: &str, family: Option<&Family>) -> Result<()> {
    let none = "there is no such layer in this network, and none is approximated";
    if let Some((name, _)) = fields.get(&["kv_lora_rank", "q_lora_rank"]) {
        return Err(fields.unsupported(format!("multi-head latent attention, MLA (`{name}` of model_type `{model_type}`)"), none));
    }
    if let Some((name, _)) = fields.get(&["ssm_cfg", "state_size", "ssm_state_size", "mamba_d_state", "mamba_n_heads"]) {
        return Err(fields.unsupported(format!("a state-space layer, SSM (`{name}` of model_type `{model_type}`)"), none));
    }
    if let Some((name, value)) = fields.get(&["quantization_config"])
        && crate::checkpoint::int8_of(&serde_json::json!({ "quantization_config": value })).is_none()
    {
        return Err(
            fields.unsupported(format!("a checkpoint that is quantised already (`{name}`)"), "prune the original weights, then `quantize`")
        );
    }
    if let Some(map) = fields.object("auto_map")?.filter(|_| fields.get(&[OWN_KEY]).is_none()) {
        for class in ["AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSequenceClassification"] {
            let Some(place) = map.text(&[class])? else { continue };
            let stock = place
                .rsplit('.')
                .next()
                .is_some_and(|name| family.is_some_and(|f| f.architectures.iter().any(|(known, _)| *known == name)));
            if !stock {
                return Err(fields.unsupported(
                    format!("remote code (`auto_map.{class}` is `{place}`)"),
                    "code in a checkpoint is never run; use a model whose architecture transformers has built in",
                ));
            }
        }
    }
    fields.refuse_flag("is_encoder_decoder", "an encoder-decoder", none)?;
    fields.refuse_flag("add_cross_attention", "cross-attention", none)
}

fn choose_task(fields: &Fields<'_>, family: &Family, wanted: Option<Task>) -> Result<Task> {
    let offers = |task: Task| family.architectures.iter().any(|(_, t)| *t == task);
    if let Some(task) = wanted {
        if offers(task) {
            return Ok(task);
        }
        let mut known: Vec<String> = family.architectures.iter().map(|(_, t)| t.to_string()).collect();
        known.dedup();
        return Err(fields.unsupported(format!("task `{task}` with the family {}", family.name), format!("it has {}", known.join(", "))));
    }
    let names = fields.texts("architectures")?.unwrap_or_default();
    let Some(name) = names.first() else {
        let first = family.architectures.first().map(|(_, task)| *task);
        return first.ok_or_else(|| fields.error("architectures", "a class of transformers"));
    };
    family.architectures.iter().find(|(known, _)| known == name).map(|(_, task)| *task).ok_or_else(|| {
        let known: Vec<&str> = family.architectures.iter().map(|(known, _)| *known).collect();
        fields.unsupported(format!("architecture `{name}`"), format!("the family {} has {}; or name a task", family.name, known.join(", ")))
    })
}

/// Shapes that stock fields can't say: `{"prunectl": {"head_dim": …, "layer_dims": […], "layers": […], "embedding_scale": …,
/// "biases": {…}}}`; the families' readers take `head_dim`, the rest is put in place here.
fn read_own(fields: &Fields<'_>, blueprint: &mut Blueprint, dims: &mut Vec<LayerDims>) -> Result<()> {
    let Some(own) = fields.object(OWN_KEY)? else { return Ok(()) };
    if let Some((name, value)) = own.get(&["layer_dims"]) {
        let read: Vec<LayerDims> = serde_json::from_value(value.clone()).map_err(|e| own.error(name, format!("shapes of layers: {e}")))?;
        if read.len() != dims.len() {
            return Err(own.error(name, format!("{} entries, one a layer", dims.len())));
        }
        *dims = read;
    }
    if let Some((name, value)) = own.get(&["layers"]) {
        let read: Vec<LayerSpec> = serde_json::from_value(value.clone()).map_err(|e| own.error(name, format!("layers: {e}")))?;
        let tables = blueprint.rotary.len();
        if read.len() != dims.len() || read.iter().any(|l| l.rotary.is_some_and(|r| r >= tables) || !l.scale.is_finite()) {
            return Err(own.error(name, format!("{} entries whose `rotary` is below {tables}", dims.len())));
        }
        blueprint.layers = read;
    }
    if let Some((name, value)) = own.get(&["biases"]) {
        let read: Biases = serde_json::from_value(value.clone()).map_err(|e| own.error(name, format!("which biases there are: {e}")))?;
        read.put(blueprint);
    }
    if let Some(scale) = own.positive_or_none(&["embedding_scale"])? {
        blueprint.embeddings.scale = scale;
    }
    Ok(())
}

/// Which projections have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Biases {
    qkv: bool,
    o: bool,
    up: bool,
    down: bool,
}

impl Biases {
    fn of(blueprint: &Blueprint) -> Self {
        let (a, m) = (&blueprint.attention, &blueprint.mlp);
        Self { qkv: a.qkv_bias, o: a.o_bias, up: m.up_bias, down: m.down_bias }
    }

    fn put(self, blueprint: &mut Blueprint) {
        let Self { qkv, o, up, down } = self;
        (blueprint.attention.qkv_bias, blueprint.attention.o_bias) = (qkv, o);
        (blueprint.mlp.up_bias, blueprint.mlp.down_bias) = (up, down);
    }
}

/// The config and blueprint of the same network with biases on the output projections of its sublayers, where asked for. A stock switch is
/// thrown where the family has one, although it brings more biases along; they are to be zeros.
pub(crate) fn with_output_biases(original: &Value, task: Task, blueprint: &Blueprint, attention: bool, mlp: bool) -> (Value, Blueprint) {
    let (mut config, mut out) = (original.clone(), blueprint.clone());
    let wanted = |b: &Blueprint| (!attention || b.attention.o_bias) && (!mlp || b.mlp.down_bias);
    for (asked, key) in [(attention && !blueprint.attention.o_bias, "attention_bias"), (mlp && !blueprint.mlp.down_bias, "mlp_bias")] {
        let mut tried = config.clone();
        let Value::Object(map) = &mut tried else { continue };
        map.insert(key.into(), json!(true));
        let Ok(said) = resolve(Path::new("config.json"), &tried, Some(task), &|_| false) else { continue };
        let thrown = if key == "attention_bias" { said.blueprint.attention.o_bias } else { said.blueprint.mlp.down_bias };
        if asked && thrown {
            let (mut biases, said) = (Biases::of(&out), Biases::of(&said.blueprint));
            biases = Biases { qkv: biases.qkv | said.qkv, o: biases.o | said.o, up: biases.up | said.up, down: biases.down | said.down };
            biases.put(&mut out);
            config = tried;
        }
    }
    if !wanted(&out) {
        out.attention.o_bias |= attention;
        out.mlp.down_bias |= mlp;
    }
    (config, out)
}

/// The config and blueprint of the same network with a head of its own.
///
/// # Errors
/// The family's reader doesn't take the switch.
pub(crate) fn untied(original: &Value, task: Task, blueprint: &Blueprint) -> Result<(Value, Blueprint)> {
    const KEY: &str = "tie_word_embeddings";
    let mut config = original.clone();
    if let Value::Object(map) = &mut config {
        map.insert(KEY.into(), json!(false));
    }
    let said = resolve(Path::new("config.json"), &config, Some(task), &|_| false)?;
    let mut out = blueprint.clone();
    if let (Head::Tokens { tied, .. }, Head::Tokens { tied: false, .. }) = (&mut out.head, &said.blueprint.head) {
        *tied = false;
        return Ok((config, out));
    }
    Err(ModelError::Mismatch {
        what: "head of its own".into(),
        found: format!("{:?} although the config says `{KEY}: false`", said.blueprint.head),
        expected: "one that is not tied: this family has no such switch".into(),
    })
}

/// The largest residual stream, sublayer and number of experts that are taken for real: far above any model, and small enough that no
/// count of parameters overflows and no list of names fills the memory before a file is looked at.
const MOST_HIDDEN: usize = 1 << 20;
const MOST_WIDTH: usize = 1 << 22;
const MOST_EXPERTS: usize = 1 << 17;

fn check_sizes(fields: &Fields<'_>, family: &Family, blueprint: &Blueprint, dims: &[LayerDims]) -> Result<()> {
    let keys = &family.keys;
    if blueprint.hidden > MOST_HIDDEN {
        return Err(fields.error(keys.hidden, format!("at most {MOST_HIDDEN}")));
    }
    let experts: usize = dims.iter().map(|d| d.experts).sum();
    if let Some(key) = keys.experts.as_ref().and_then(|k| k.count.first()).filter(|_| experts > MOST_EXPERTS) {
        return Err(fields.error(key, format!("at most {MOST_EXPERTS} experts in all layers together")));
    }
    for (layer, d) in dims.iter().enumerate() {
        if d.q_heads > 0 && (d.kv_heads == 0 || !d.q_heads.is_multiple_of(d.kv_heads) || d.head_dim == 0) {
            let expected = format!("a divisor of the {} query heads of layer {layer}, which has {}", d.q_heads, d.kv_heads);
            return Err(fields.error(keys.kv_heads.unwrap_or(OWN_KEY), expected));
        }
        if d.q_heads.saturating_mul(d.head_dim) > MOST_WIDTH {
            return Err(fields.error(keys.heads, format!("heads that are together at most {MOST_WIDTH} wide (layer {layer})")));
        }
        if d.ffn.saturating_mul(d.experts.max(1)) > MOST_WIDTH {
            return Err(fields.error(keys.ffn, format!("at most {MOST_WIDTH}, all experts together (layer {layer})")));
        }
    }
    Ok(())
}

/// The config of a (pruned) model: stock fields where they can say the shapes, else also per-layer arrays under `OWN_KEY`.
pub(crate) fn write_config(
    family: &'static Family,
    original: &Value,
    task: Task,
    blueprint: &Blueprint,
    dims: &[LayerDims],
) -> Result<Value> {
    let mut config = original.clone();
    let path = Path::new("config.json");
    let Value::Object(map) = &mut config else { return Ok(config) };
    map.shift_remove(OWN_KEY);
    set_counts(&family.keys, map, blueprint, dims);
    if let Some((class, _)) = family.architectures.iter().find(|(_, t)| *t == task) {
        let known = map.get("architectures").and_then(|v| v.get(0)).and_then(Value::as_str);
        if !family.architectures.iter().any(|(name, t)| Some(*name) == known && *t == task) {
            map.insert("architectures".into(), json!([class]));
        }
    }
    (family.write_layers)(map, blueprint, dims);
    let pooler = matches!(blueprint.head, Head::Encode { pooler: true, .. });
    let has_tensor = |name: &str| pooler && name.contains("pooler");
    // What the fields say now; a reader that fails says nothing.
    let mut said = resolve(path, &config, Some(task), &has_tensor).ok();
    let mut own = Map::new();
    if said.as_ref().is_none_or(|r| r.dims != dims)
        && let Some(head_dim) = dims.iter().map(|d| d.head_dim).max()
    {
        own.insert("head_dim".into(), json!(head_dim));
        if let Value::Object(map) = &mut config {
            map.insert(OWN_KEY.into(), json!({ "head_dim": head_dim }));
        }
        said = resolve(path, &config, Some(task), &has_tensor).ok();
    }
    let says = |f: &dyn Fn(&Resolved) -> bool| said.as_ref().is_some_and(f);
    if !says(&|r| r.dims == dims) {
        own.insert("layer_dims".into(), json!(dims));
    }
    if !says(&|r| r.blueprint.layers == blueprint.layers) {
        own.insert("layers".into(), json!(blueprint.layers));
    }
    if !says(&|r| r.blueprint.embeddings.scale == blueprint.embeddings.scale) {
        own.insert("embedding_scale".into(), json!(blueprint.embeddings.scale));
    }
    let biases = Biases::of(blueprint);
    if !says(&|r| Biases::of(&r.blueprint) == biases) {
        own.insert("biases".into(), json!(biases));
    }
    let Value::Object(map) = &mut config else { return Ok(config) };
    if !own.is_empty() {
        map.insert(OWN_KEY.into(), Value::Object(own));
    }
    let read = resolve(path, &config, Some(task), &has_tensor)?;
    let mut said = read.blueprint;
    adopt_pooling(&mut said, blueprint);
    if said != *blueprint || read.dims != dims {
        return Err(ModelError::Mismatch {
            what: "what config.json can say of this model".into(),
            found: format!("{said:?}"),
            expected: format!("{blueprint:?}"),
        });
    }
    Ok(config)
}

/// Pooling stands in a file of its own (`1_Pooling/config.json`), not in the config.
fn adopt_pooling(said: &mut Blueprint, of: &Blueprint) {
    if let (Head::Encode { pooling: a, .. }, Head::Encode { pooling: b, .. }) = (&mut said.head, &of.head) {
        *a = *b;
    }
}

fn set_counts(keys: &Keys, map: &mut Map<String, Value>, blueprint: &Blueprint, dims: &[LayerDims]) {
    let mut set = |key: &str, value: usize| {
        map.insert(key.to_owned(), json!(value));
    };
    // One value for all layers that have the part, or none.
    let same = |of: &dyn Fn(&LayerDims) -> Option<usize>| {
        let mut values = dims.iter().filter_map(of);
        let first = values.next()?;
        values.all(|v| v == first).then_some(first)
    };
    set(keys.layers, dims.len());
    set(keys.hidden, blueprint.hidden);
    if let Some((heads, kv_heads)) = same_pair(dims) {
        set(keys.heads, heads);
        if let Some(key) = keys.kv_heads {
            set(key, kv_heads);
        }
    }
    if let Some(key) = keys.embedding {
        set(key, blueprint.embeddings.width);
    }
    if let (Some(key), Some(n)) = (keys.head_dim, same(&|d| (d.q_heads > 0).then_some(d.head_dim))) {
        set(key, n);
    }
    if let Some(n) = same(&|d| (d.ffn > 0 && d.experts == 0).then_some(d.ffn)) {
        set(keys.ffn, n);
    }
    if let Some(experts) = &keys.experts {
        if let Some(n) = same(&|d| (d.ffn > 0 && d.experts > 0).then_some(d.ffn)) {
            set(experts.ffn, n);
        }
        if let Some(n) = same(&|d| (d.ffn > 0 && d.experts > 0).then_some(d.experts)) {
            let key = experts.count.iter().find(|k| map.contains_key(**k)).or(experts.count.first());
            if let Some(key) = key {
                map.insert((*key).to_owned(), json!(n));
            }
        }
        if let Some(router) = &blueprint.mlp.router {
            map.insert(experts.top_k.to_owned(), json!(router.top_k));
        }
    }
}

/// Query and key/value heads, where all layers with attention have the same.
pub(crate) fn same_pair(dims: &[LayerDims]) -> Option<(usize, usize)> {
    let mut pairs = dims.iter().filter(|d| d.q_heads > 0).map(|d| (d.q_heads, d.kv_heads));
    let first = pairs.next()?;
    pairs.all(|pair| pair == first).then_some(first)
}

/// For families whose configs describe no single layer.
pub(crate) fn no_layer_fields(_: &mut Map<String, Value>, _: &Blueprint, _: &[LayerDims]) {}

/// For families with `layer_types`: written wherever layers may slide, or the field was there. A rule that goes by a layer's index, which
/// holds where the field is absent, speaks of other layers once some are gone.
pub(crate) fn write_layer_types(map: &mut Map<String, Value>, blueprint: &Blueprint, _: &[LayerDims]) {
    let never = map.get("use_sliding_window") == Some(&Value::Bool(false));
    if map.contains_key("layer_types") || !never {
        let kinds: Vec<&str> =
            blueprint.layers.iter().map(|l| if l.window.is_some() { "sliding_attention" } else { "full_attention" }).collect();
        map.insert("layer_types".into(), json!(kinds));
    }
}

/// The head of an encoder without a task-specific one.
pub(crate) fn encode_head(pooler: bool) -> Head {
    Head::Encode { pooling: Pooling::Mean, pooler }
}

/// The classification head's outputs and whether they are a value (transformers' `problem_type`, or one label).
pub(crate) fn labels_of(fields: &Fields<'_>) -> Result<(usize, bool)> {
    let labels = fields.labels()?;
    match fields.text(&["problem_type"])? {
        Some("regression") if labels == 1 => Ok((labels, true)),
        None => Ok((labels, labels == 1)),
        Some("single_label_classification") => Ok((labels, false)),
        Some(other) => Err(fields.unsupported(
            format!("problem_type `{other}` with {labels} labels"),
            "single_label_classification is, and regression with one label",
        )),
    }
}
