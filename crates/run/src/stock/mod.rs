//! Who can read a shape: family × loader, as data. A row says what a loader's unmodified code accepts; `tests/suite` holds the rows
//! that are marked as tried against the loaders themselves.

pub(crate) mod candle;
pub(crate) mod vllm;

use std::fmt;

use prunectl_model::{Blueprint, LayerDims, RotaryScaling};
use serde::Serialize;
use serde_json::Value;

use crate::gguf;

/// A program that reads our folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Loader {
    /// Hugging Face transformers.
    Transformers,
    /// candle-transformers.
    Candle,
    /// llama.cpp, from a GGUF file.
    LlamaCpp,
    /// vLLM.
    Vllm,
}

impl Loader {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Transformers, Self::Candle, Self::LlamaCpp, Self::Vllm];

    /// The word in `loads_in = […]`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Transformers => "transformers",
            Self::Candle => "candle",
            Self::LlamaCpp => "llama_cpp",
            Self::Vllm => "vllm",
        }
    }

    /// The loader of that word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|l| l.word() == word)
    }
}

impl fmt::Display for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transformers => "transformers",
            Self::Candle => "candle-transformers",
            Self::LlamaCpp => "llama.cpp",
            Self::Vllm => "vLLM",
        })
    }
}

/// Which head counts, the same in every layer, a loader takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HeadCounts {
    /// The width of a head is `hidden / heads`, so only the original count fits.
    Derived,
    /// The width is read, but the hidden size must be a multiple of the count.
    Divisors,
    /// The width is read, and any count is taken.
    Any,
    /// It has no such model, or one that computes something else.
    Absent,
}

/// One cell of the table.
struct Row {
    model_type: &'static str,
    loader: Loader,
    heads: HeadCounts,
    /// Where the loader says so.
    source: &'static str,
    /// Tried by our tests, or read in the loader's source only.
    tried: bool,
}

const fn row(model_type: &'static str, loader: Loader, heads: HeadCounts, tried: bool, source: &'static str) -> Row {
    Row { model_type, loader, heads, source, tried }
}

/// The family whose stock attention cuts its fused projection in four, whatever the number of heads.
pub(crate) const CODEGEN: &str = "codegen";
const CODEGEN_SHARDS: usize = 4;
/// The family whose config class has a check of its own.
pub(crate) const PHI3: &str = "phi3";
const BY_HIDDEN: &str = "head_dim = hidden_size // num_attention_heads";
const READS_HEAD_DIM: &str = "the attention reads head_dim, and nothing checks it against hidden_size";
const CHECKED: &str = "the attention reads head_dim; the config wants hidden_size % num_attention_heads == 0";
const NO_CANDLE: &str = "it has no model of that type";
const NO_VLLM: &str = "it has no model of its own of that type";
const FALCON_THERE: &str =
    "its GELU is the tanh form, its MLP four times as wide as hidden_size and its output a matrix of its own, whatever the config says";
const FALCON_FFN: &str = "its MLP is four times as wide as hidden_size, whatever the config says";
const TANH: &str = "its GELU is the tanh form where the config asks for the exact one: logits differ";

#[rustfmt::skip] // A table.
const ROWS: &[Row] = {
    use HeadCounts::{Absent, Any, Derived, Divisors};
    use Loader::{Candle, Transformers, Vllm};
    &[
        row("bert",        Transformers, Derived,  true,  BY_HIDDEN),
        row("roberta",     Transformers, Derived,  true,  BY_HIDDEN),
        row("xlm-roberta", Transformers, Derived,  true,  BY_HIDDEN),
        row("distilbert",  Transformers, Derived,  true,  BY_HIDDEN),
        row("electra",     Transformers, Derived,  true,  BY_HIDDEN),
        row("gpt2",        Transformers, Derived,  true,  BY_HIDDEN),
        row("gpt_neo",     Transformers, Derived,  true,  BY_HIDDEN),
        row("gpt_neox",    Transformers, Derived,  true,  BY_HIDDEN),
        row("codegen",     Transformers, Derived,  true,  BY_HIDDEN),
        row("opt",         Transformers, Derived,  true,  BY_HIDDEN),
        row("falcon",      Transformers, Derived,  true,  BY_HIDDEN),
        row("llama",       Transformers, Divisors, true,  CHECKED),
        row("gemma2",      Transformers, Divisors, true,  CHECKED),
        row("gemma3_text", Transformers, Divisors, true,  CHECKED),
        row("mistral",     Transformers, Any,      true,  READS_HEAD_DIM),
        row("qwen2",       Transformers, Any,      true,  READS_HEAD_DIM),
        row("qwen3",       Transformers, Any,      true,  READS_HEAD_DIM),
        row("phi3",        Transformers, Any,      true,  READS_HEAD_DIM),
        row("mixtral",     Transformers, Any,      true,  READS_HEAD_DIM),
        row("qwen3_moe",   Transformers, Any,      true,  READS_HEAD_DIM),
        row("bert",        Candle,       Derived,  true,  BY_HIDDEN),
        row("llama",       Candle,       Derived,  true,  BY_HIDDEN),
        row("mistral",     Candle,       Any,      true,  READS_HEAD_DIM),
        row("qwen2",       Candle,       Derived,  true,  BY_HIDDEN),
        row("qwen3",       Candle,       Any,      true,  READS_HEAD_DIM),
        row("gemma2",      Candle,       Any,      true,  READS_HEAD_DIM),
        row("phi3",        Candle,       Derived,  true,  BY_HIDDEN),
        row("xlm-roberta", Candle,       Derived,  true,  BY_HIDDEN),
        row("gemma3_text", Candle,       Any,      true,  READS_HEAD_DIM),
        row("qwen3_moe",   Candle,       Any,      true,  READS_HEAD_DIM),
        row("distilbert",  Candle,       Absent,   true,  TANH),
        row("falcon",      Candle,       Absent,   true,  FALCON_THERE),
        row("mixtral",     Candle,       Absent,   true,  "its config wants `use_flash_attn`, which no config of the family has"),
        row("roberta",     Candle,       Absent,   true,  NO_CANDLE),
        row("electra",     Candle,       Absent,   true,  NO_CANDLE),
        row("gpt2",        Candle,       Absent,   true,  NO_CANDLE),
        row("gpt_neo",     Candle,       Absent,   true,  NO_CANDLE),
        row("gpt_neox",    Candle,       Absent,   true,  NO_CANDLE),
        row("codegen",     Candle,       Absent,   true,  NO_CANDLE),
        row("opt",         Candle,       Absent,   true,  NO_CANDLE),
        row("bert",        Vllm,         Derived,  false, BY_HIDDEN),
        row("roberta",     Vllm,         Derived,  false, BY_HIDDEN),
        row("xlm-roberta", Vllm,         Derived,  false, BY_HIDDEN),
        row("distilbert",  Vllm,         Absent,   false, NO_VLLM),
        row("electra",     Vllm,         Absent,   false, NO_VLLM),
        row("gpt2",        Vllm,         Derived,  false, BY_HIDDEN),
        row("gpt_neo",     Vllm,         Absent,   false, NO_VLLM),
        row("gpt_neox",    Vllm,         Derived,  false, BY_HIDDEN),
        row("codegen",     Vllm,         Absent,   false, NO_VLLM),
        row("opt",         Vllm,         Derived,  false, BY_HIDDEN),
        row("falcon",      Vllm,         Derived,  false, BY_HIDDEN),
        row("llama",       Vllm,         Divisors, false, CHECKED),
        row("gemma2",      Vllm,         Divisors, false, CHECKED),
        row("gemma3_text", Vllm,         Divisors, false, CHECKED),
        row("mistral",     Vllm,         Any,      false, READS_HEAD_DIM),
        row("qwen2",       Vllm,         Derived,  false, BY_HIDDEN),
        row("qwen3",       Vllm,         Any,      false, READS_HEAD_DIM),
        row("phi3",        Vllm,         Any,      false, READS_HEAD_DIM),
        row("mixtral",     Vllm,         Derived,  false, BY_HIDDEN),
        row("qwen3_moe",   Vllm,         Any,      false, READS_HEAD_DIM),
    ]
};

/// Rows of 16 bytes, in the narrowest dtype that we write.
const GROUPED_ALIGN: usize = 8;

/// Architectures that tests/suite/llama_cpp.rs runs.
const TRIED_IN_LLAMA_CPP: &[&str] =
    &["llama", "deci", "qwen3", "qwen3moe", "openelm", "gemma2", "gemma3", "gpt2", "gptneox", "falcon", "phi2"];

/// What is asked of the table.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The config's `model_type`.
    pub model_type: &'a str,
    /// Its mechanisms.
    pub blueprint: &'a Blueprint,
    /// Shapes as they will be written (of a padded layout: the original ones).
    pub dims: &'a [LayerDims],
    /// What the config says beside the stock fields (`prunectl`), where it is there already.
    pub own: Option<&'a Value>,
    /// Why `modeling_prunectl.py` can't load the model either.
    pub no_remote_code: Option<&'a str>,
}

/// What one loader makes of a shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum Verdict {
    /// Loads as it is.
    Stock {
        /// Whether a test of ours loads such a shape there.
        tried: bool,
        /// What of it, or how far, where that is not all.
        #[serde(skip_serializing_if = "Option::is_none")]
        limit: Option<String>,
    },
    /// Runs: the folder holds the GGUF file.
    Gguf {
        /// The architecture that the file has.
        architecture: String,
    },
    /// Runs after `prunectl export`.
    Export {
        /// The architecture that the exported file has.
        architecture: String,
        /// Whether a test of ours runs such a file there.
        tried: bool,
    },
    /// Loads with the Python file beside the weights.
    RemoteCode {
        /// Why it is not stock.
        reason: String,
    },
    /// Can't.
    Refused {
        /// Why.
        reason: String,
        /// What would make it legal.
        remedy: String,
    },
    /// Nobody looked.
    Unknown {
        /// Why.
        reason: String,
    },
}

/// A loader and its verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LoaderVerdict {
    /// The loader.
    pub loader: Loader,
    /// Its verdict.
    #[serde(flatten)]
    pub verdict: Verdict,
}

impl LoaderVerdict {
    /// Whether the loader reads the folder, with or without the Python file, or what `export` makes of it.
    #[must_use]
    pub fn loads(&self) -> bool {
        matches!(self.verdict, Verdict::Stock { .. } | Verdict::RemoteCode { .. } | Verdict::Export { .. } | Verdict::Gguf { .. })
    }
}

impl fmt::Display for LoaderVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let loader = self.loader;
        match &self.verdict {
            Verdict::Stock { tried, limit } => {
                let limit = limit.as_deref().map(|l| format!(", {l}")).unwrap_or_default();
                match tried {
                    true => write!(f, "{loader}: loads as it is{limit}"),
                    false => write!(f, "{loader}: should load as it is{limit} (by its source; unverified by running)"),
                }
            }
            Verdict::Gguf { architecture } => write!(f, "{loader}: runs model.gguf (architecture `{architecture}`)"),
            Verdict::Export { architecture, tried } => {
                let format = if loader == Loader::Vllm { "vllm" } else { "gguf" };
                let tried = if *tried { "" } else { ", by its source; unverified by running" };
                write!(f, "{loader}: after `prunectl export DIR --format {format}` (architecture `{architecture}`{tried})")
            }
            Verdict::RemoteCode { reason } => write!(f, "{loader}: loads with trust_remote_code=True ({reason})"),
            Verdict::Refused { reason, remedy } => write!(f, "{loader}: does not load: {reason}; {remedy}"),
            Verdict::Unknown { reason } => write!(f, "{loader}: unknown: {reason}"),
        }
    }
}

/// Why a loader does not take a folder as it is, and what would make it so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Obstacle {
    pub reason: String,
    pub remedy: String,
}

/// Every loader's verdict on a shape.
#[must_use]
pub fn loaders(target: &Target<'_>) -> Vec<LoaderVerdict> {
    let written = Target { model_type: saved_as(target), ..*target };
    let renamed = written.model_type != target.model_type;
    let verdict = |loader| match verdict(&written, loader) {
        Verdict::Stock { tried, limit } if renamed => {
            let renamed = format!("written as a `{}`, which computes the same", written.model_type);
            Verdict::Stock { tried, limit: Some(limit.map_or(renamed.clone(), |l| format!("{renamed}; {l}"))) }
        }
        other => other,
    };
    Loader::ALL.into_iter().map(|loader| LoaderVerdict { loader, verdict: verdict(loader) }).collect()
}

/// The `model_type` that the folder gets: a Llama without biases whose number of heads transformers' Llama refuses is a Mistral without a
/// window, whose classes read the same tensors and take any number.
#[must_use]
pub fn saved_as<'a>(target: &Target<'a>) -> &'a str {
    const WIDER: &str = "mistral";
    let stock = |model_type: &'a str| matches!(verdict(&Target { model_type, ..*target }, Loader::Transformers), Verdict::Stock { .. });
    let b = target.blueprint;
    let biases = b.attention.qkv_bias || b.attention.o_bias || b.mlp.up_bias || b.mlp.down_bias;
    match target.model_type {
        "llama" if !biases && !stock("llama") && stock(WIDER) => WIDER,
        own => own,
    }
}

fn verdict(target: &Target<'_>, loader: Loader) -> Verdict {
    if loader == Loader::LlamaCpp {
        return match gguf::architecture(target.blueprint, target.dims) {
            Ok(architecture) => Verdict::Export { architecture: architecture.into(), tried: TRIED_IN_LLAMA_CPP.contains(&architecture) },
            Err(gguf::Inexpressible { reason, remedy }) => Verdict::Refused { reason, remedy },
        };
    }
    let Some(row) = ROWS.iter().find(|r| r.model_type == target.model_type && r.loader == loader) else {
        return Verdict::Unknown { reason: format!("no one has tried `{}` there yet", target.model_type) };
    };
    let reach = match (obstacle(target, row), loader) {
        (Some(obstacle), _) => Err(obstacle),
        (None, Loader::Candle) => candle::reach(target),
        (None, _) => Ok(None),
    };
    let Obstacle { reason, remedy } = match reach {
        Ok(limit) => return Verdict::Stock { tried: row.tried, limit },
        Err(obstacle) => obstacle,
    };
    match (loader, target.no_remote_code) {
        (Loader::Vllm, _) if row.heads != HeadCounts::Absent => match vllm::blocks(target) {
            Ok(_) => Verdict::Export { architecture: vllm::ARCHITECTURE.into(), tried: false },
            Err(blocks) => Verdict::Refused { reason: format!("{reason}; {}", blocks.reason), remedy: blocks.remedy },
        },
        (Loader::Transformers, None) => Verdict::RemoteCode { reason },
        (Loader::Transformers, Some(why)) => Verdict::Refused { reason: format!("{reason}; remote code can't either: {why}"), remedy },
        _ => Verdict::Refused { reason, remedy },
    }
}

/// Whether the fields of a config can hold these counts of heads and transformers takes them.
pub(crate) fn takes_counts(target: &Target<'_>) -> bool {
    let row = ROWS.iter().find(|r| r.model_type == target.model_type && r.loader == Loader::Transformers);
    let (Some(row), Some(first)) = (row, target.dims.first()) else { return false };
    let hidden = target.blueprint.hidden;
    let divides = first.q_heads > 0 && hidden.is_multiple_of(first.q_heads);
    target.dims.iter().all(|d| d.q_heads == first.q_heads && d.kv_heads == first.kv_heads && d.q_heads > 0)
        && match row.heads {
            HeadCounts::Any => target.model_type != PHI3 || counts_divisors(target.blueprint, first.head_dim, first.q_heads),
            HeadCounts::Divisors => divides,
            HeadCounts::Derived => {
                divides && hidden.checked_div(first.q_heads) == Some(first.head_dim) && shards(target.model_type, first.q_heads)
            }
            HeadCounts::Absent => false,
        }
}

/// Whether CodeGen's stock attention, which cuts its heads in four, can do that to so many.
fn shards(model_type: &str, heads: usize) -> bool {
    model_type != CODEGEN || heads.is_multiple_of(CODEGEN_SHARDS)
}

/// Whether Phi-3's config class finds as many of longrope's divisors as it expects of a hidden size by this number of heads: it does not
/// know of a width of heads.
fn counts_divisors(b: &Blueprint, head_dim: usize, heads: usize) -> bool {
    let Some(rotary) = b.rotary.first().filter(|r| matches!(r.scaling, RotaryScaling::Long { .. })) else { return true };
    let share = rotary.dim as f64 / head_dim.max(1) as f64;
    let width = b.hidden.checked_div(heads).unwrap_or(0);
    (width as f64 * share) as usize / 2 == rotary.dim / 2
}

/// A number of heads with which Phi-3's config class takes the model's rotary table.
pub(crate) fn heads_for_divisors(b: &Blueprint, dims: &[LayerDims]) -> Option<usize> {
    let head_dim = dims.iter().map(|d| d.head_dim).max()?;
    (1..=b.hidden).find(|heads| counts_divisors(b, head_dim, *heads))
}

/// Why a shape is not stock, and what would make it so.
fn obstacle(target: &Target<'_>, row: &Row) -> Option<Obstacle> {
    let padded = "`layout = padded` writes the removed units as zeros";
    let because = |reason: String, remedy: String| Some(Obstacle { reason, remedy });
    if row.heads == HeadCounts::Absent {
        return because(row.source.to_owned(), "another loader reads this family".to_owned());
    }
    let first = target.dims.first()?;
    if let Some(layer) = target.dims.iter().position(|d| d.q_heads == 0 || d.ffn == 0) {
        return because(format!("layer {layer} has lost a whole sublayer"), padded.into());
    }
    if let Some((layer, other)) = target.dims.iter().enumerate().find(|(_, d)| d.q_heads != first.q_heads || d.kv_heads != first.kv_heads) {
        let reason = format!("layer 0 has {} heads, layer {layer} has {}", heads(first), heads(other));
        return because(reason, format!("use `scope = layer` for equal counts, or {padded}"));
    }
    // Layers with experts have their own width in configs.
    for mixture in [false, true] {
        let mut of_kind = target.dims.iter().enumerate().filter(|(_, d)| (d.experts > 0) == mixture);
        let Some((a, one)) = of_kind.next() else { continue };
        if let Some((b, other)) = of_kind.clone().find(|(_, d)| d.experts != one.experts) {
            let reason = format!("layer {a} has {} experts, layer {b} has {}", one.experts, other.experts);
            return because(reason, "remove equally many experts from each layer".to_owned());
        }
        let rows = [("neurons", one.ffn), ("hidden channels", target.blueprint.hidden)];
        if let Some((what, n)) = rows.into_iter().find(|(_, n)| !n.is_multiple_of(GROUPED_ALIGN)).filter(|_| mixture)
            && row.loader == Loader::Transformers
        {
            let reason = format!("experts of {n} {what}: torch's grouped product wants a multiple of {GROUPED_ALIGN}");
            return because(reason, format!("prune with `align = {GROUPED_ALIGN}`, or load it with experts_implementation=\"eager\""));
        }
        if let Some((b, other)) = of_kind.find(|(_, d)| d.ffn != one.ffn) {
            let reason = format!("layer {a} has {} neurons, layer {b} has {}", one.ffn, other.ffn);
            return because(reason, format!("use `scope = layer` for equal widths, or {padded}"));
        }
    }
    if row.model_type == "falcon" && row.loader == Loader::Vllm && first.ffn != 4 * target.blueprint.hidden {
        return because(format!("{FALCON_FFN}, and here it is {}", first.ffn), padded.into());
    }
    let says = |key: &str| target.own.is_some_and(|own| own.get(key).is_some());
    for (key, reason) in [
        ("biases", "it has biases that the stock classes do not have"),
        ("layers", "what a layer computes depends on its place in the original model (its window, or the factor on its scores)"),
        ("embedding_scale", "the factor on the embeddings is not the one that follows from the hidden size"),
    ] {
        if says(key) {
            return because(reason.to_owned(), padded.to_owned());
        }
    }
    if !shards(row.model_type, first.q_heads) && row.loader == Loader::Transformers {
        let reason = format!("its attention cuts the heads in {CODEGEN_SHARDS}, and {} are no multiple of that", first.q_heads);
        return because(reason, format!("keep a multiple of {CODEGEN_SHARDS} heads, or {padded}"));
    }
    if row.model_type == PHI3 && row.loader == Loader::Transformers && !counts_divisors(target.blueprint, first.head_dim, first.q_heads) {
        let (hidden, heads) = (target.blueprint.hidden, first.q_heads);
        let reason = format!("its config counts longrope's divisors by a head of {hidden} / {heads}, which is not {}", first.head_dim);
        return because(reason, padded.to_owned());
    }
    let hidden = target.blueprint.hidden;
    let derived = hidden.checked_div(first.q_heads) == Some(first.head_dim) && hidden.is_multiple_of(first.q_heads.max(1));
    match row.heads {
        HeadCounts::Derived if !derived => {
            let reason =
                format!("it computes head_dim as {} / {}, which is not {} ({})", hidden, first.q_heads, first.head_dim, row.source);
            because(reason, padded.to_owned())
        }
        HeadCounts::Divisors if !hidden.is_multiple_of(first.q_heads.max(1)) => {
            let reason = format!("{} is not a multiple of {} heads ({})", hidden, first.q_heads, row.source);
            let fits = |n: &usize| hidden.is_multiple_of(*n) && n.is_multiple_of(first.kv_heads.max(1));
            let remedy = match (1..first.q_heads).rev().find(fits) {
                Some(n) => format!("{n} heads in every layer would load, and so would the original shape: {padded}"),
                None => padded.to_owned(),
            };
            because(reason, remedy)
        }
        _ => None,
    }
}

fn heads(d: &LayerDims) -> String {
    if d.q_heads == d.kv_heads { d.q_heads.to_string() } else { format!("{} (in {} groups)", d.q_heads, d.kv_heads) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(counts: &[(usize, usize, usize)]) -> Vec<LayerDims> {
        counts.iter().map(|&(q_heads, kv_heads, ffn)| LayerDims { q_heads, kv_heads, head_dim: 8, ffn, ..LayerDims::default() }).collect()
    }

    fn of(model_type: &str, counts: &[(usize, usize, usize)], loader: Loader, remote_code: bool) -> Verdict {
        let no_remote_code = (!remote_code).then_some("a test");
        verdict(&Target { model_type, blueprint: &blueprint(), dims: &dims(counts), own: None, no_remote_code }, loader)
    }

    /// Of a Llama with a hidden size of 64.
    fn blueprint() -> Blueprint {
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 40, "hidden_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 8, "intermediate_size": 96, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        });
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, config.to_string()).unwrap();
        prunectl_model::Facts::of_config(&path, None).unwrap().blueprint
    }

    #[test]
    fn no_cell_is_left_open() {
        for family in prunectl_model::FAMILIES {
            for model_type in family.model_types {
                for loader in [Loader::Transformers, Loader::Candle, Loader::Vllm] {
                    let rows = ROWS.iter().filter(|r| r.model_type == *model_type && r.loader == loader).count();
                    assert_eq!(rows, 1, "{model_type}, {loader}");
                }
            }
        }
    }

    #[test]
    fn a_llama_that_its_class_refuses_is_a_mistral() {
        let layers = dims(&[(6, 2, 96), (6, 2, 96)]);
        let mut blueprint = blueprint();
        let of = |blueprint: &Blueprint, dims: &[LayerDims]| {
            let target = Target { model_type: "llama", blueprint, dims, own: None, no_remote_code: None };
            (saved_as(&target).to_owned(), loaders(&target).into_iter().map(|l| l.to_string()).collect::<Vec<_>>())
        };
        let (name, said) = of(&blueprint, &layers);
        assert_eq!(name, "mistral");
        assert!(said[0].contains("loads as it is, written as a `mistral`") && said[1].contains("loads as it is"), "{said:?}");
        // Any number that its own class takes, and any that differs between layers, stays what it is.
        assert_eq!(of(&blueprint, &dims(&[(4, 2, 96), (4, 2, 96)])).0, "llama");
        assert_eq!(of(&blueprint, &dims(&[(6, 2, 96), (8, 8, 96)])).0, "llama");
        blueprint.attention.qkv_bias = true;
        assert_eq!(of(&blueprint, &layers).0, "llama");
    }

    #[test]
    fn candles_column_knows_what_its_models_leave_out() {
        let says = |change: &dyn Fn(&mut Blueprint)| {
            let mut blueprint = blueprint();
            change(&mut blueprint);
            let layers = dims(&[(8, 8, 96)]);
            let target = Target { model_type: "llama", blueprint: &blueprint, dims: &layers, own: None, no_remote_code: None };
            verdict(&target, Loader::Candle)
        };
        assert_eq!(says(&|_| {}), Verdict::Stock { tried: true, limit: None });
        let refused = |verdict: Verdict, with: &str| {
            assert!(matches!(&verdict, Verdict::Refused { reason, .. } if reason.contains(with)), "{verdict:?}")
        };
        refused(says(&|b| b.mlp.up_bias = true), "leaves out biases");
        refused(says(&|b| b.layers[0].scale *= 1.5), "multiplies scores");
        refused(says(&|b| b.rotary[0].scaling = prunectl_model::RotaryScaling::Linear { factor: 2.0 }), "rotary scaling");
        let windowed = says(&|b| b.layers[0].window = Some(16));
        assert!(matches!(&windowed, Verdict::Stock { limit: Some(limit), .. } if limit.contains("up to 16 tokens")), "{windowed:?}");
    }

    #[test]
    fn the_table_speaks() {
        let stock = Verdict::Stock { tried: true, limit: None };
        assert_eq!(of("bert", &[(8, 8, 96), (8, 8, 96)], Loader::Transformers, true), stock);
        assert_eq!(of("bert", &[(8, 8, 40), (8, 8, 40)], Loader::Candle, false), stock);
        assert_eq!(of("llama", &[(4, 2, 96), (4, 2, 96)], Loader::Transformers, true), stock);
        assert!(matches!(of("llama", &[(4, 2, 96), (4, 2, 96)], Loader::Candle, false), Verdict::Refused { .. }));
        assert!(matches!(of("bert", &[(4, 4, 96), (4, 4, 96)], Loader::Transformers, true), Verdict::RemoteCode { .. }));
        // 64 is 8 · 8, but the heads of this family are cut in four.
        assert_eq!(of("codegen", &[(8, 8, 96)], Loader::Transformers, true), stock);
        let hidden_48 = Blueprint { hidden: 48, ..blueprint() };
        let six = Target { model_type: "codegen", blueprint: &hidden_48, dims: &dims(&[(6, 6, 96)]), own: None, no_remote_code: None };
        assert!(matches!(verdict(&six, Loader::Transformers), Verdict::RemoteCode { reason } if reason.contains("cuts the heads in 4")));
        assert!(!takes_counts(&six) && takes_counts(&Target { model_type: "gpt2", ..six }));
        assert!(matches!(of("bert", &[(8, 8, 96), (8, 8, 95)], Loader::Transformers, false), Verdict::Refused { .. }));
        assert!(matches!(of("marian", &[(8, 8, 96)], Loader::Transformers, false), Verdict::Unknown { .. }));
        match of("llama", &[(6, 2, 96)], Loader::Transformers, false) {
            Verdict::Refused { reason, remedy } => {
                assert!(reason.contains("64 is not a multiple of 6"), "{reason}");
                assert!(remedy.contains("4 heads in every layer"), "{remedy}");
            }
            other => panic!("{other:?}"),
        }
        let export = |architecture: &str| Verdict::Export { architecture: architecture.into(), tried: true };
        assert_eq!(of("llama", &[(5, 1, 96), (5, 1, 96)], Loader::LlamaCpp, false), export("llama"));
        assert_eq!(of("llama", &[(5, 1, 96), (8, 8, 7)], Loader::LlamaCpp, false), export("deci"));
        for loader in Loader::ALL {
            assert_eq!(Loader::parse(loader.word()), Some(loader));
        }
    }
}
