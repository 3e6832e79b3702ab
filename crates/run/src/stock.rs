//! Who can read a shape: family × loader, as data. A row says what a loader's unmodified code accepts; `tests/suite` holds the rows
//! that are marked as tried against the loaders themselves.

use std::fmt;

use prunectl_model::{Blueprint, LayerDims};
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

const BY_HIDDEN: &str = "head_dim = hidden_size // num_attention_heads";
const READS_HEAD_DIM: &str = "the attention reads head_dim, and nothing checks it against hidden_size";
const CHECKED: &str = "the attention reads head_dim; the config wants hidden_size % num_attention_heads == 0";
const NO_CANDLE: &str = "it has no model of that type";

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
        row("distilbert",  Candle,       Absent,   true,  "its GELU is the tanh form: logits differ by some 1e-4"),
        row("mixtral",     Candle,       Absent,   true,  "its config wants `use_flash_attn`, which no config of the family has"),
        row("roberta",     Candle,       Absent,   false, NO_CANDLE),
        row("electra",     Candle,       Absent,   false, NO_CANDLE),
        row("gpt2",        Candle,       Absent,   false, NO_CANDLE),
        row("gpt_neo",     Candle,       Absent,   false, NO_CANDLE),
        row("gpt_neox",    Candle,       Absent,   false, NO_CANDLE),
        row("codegen",     Candle,       Absent,   false, NO_CANDLE),
        row("opt",         Candle,       Absent,   false, NO_CANDLE),
        row("bert",        Vllm,         Derived,  false, BY_HIDDEN),
        row("llama",       Vllm,         Divisors, false, CHECKED),
    ]
};

/// Rows of 16 bytes, in the narrowest dtype that we write.
const GROUPED_ALIGN: usize = 8;

/// What vLLM's Llama with a shape of its own for each layer takes (its `nemotron_nas` model).
const VLLM_BLOCKS: &str = "vLLM's per-layer `block_configs` say only which sublayers are gone, equal query heads over fewer key/value heads, \
                           and FFN widths in steps of 256, and this build does not write them";

/// Architectures that tests/suite/llama_cpp.rs runs.
const TRIED_IN_LLAMA_CPP: &[&str] = &["llama", "deci", "qwen3", "qwen3moe", "gemma2", "gemma3", "gpt2"];

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
            Verdict::Stock { tried: true } => write!(f, "{loader}: loads as it is"),
            Verdict::Stock { tried: false } => write!(f, "{loader}: should load as it is (by its source; not tried by our tests)"),
            Verdict::Gguf { architecture } => write!(f, "{loader}: runs model.gguf (architecture `{architecture}`)"),
            Verdict::Export { architecture, tried } => {
                let tried = if *tried { "" } else { ", by its source; not tried by our tests" };
                write!(f, "{loader}: after `prunectl export DIR --format gguf` (architecture `{architecture}`{tried})")
            }
            Verdict::RemoteCode { reason } => write!(f, "{loader}: loads with trust_remote_code=True ({reason})"),
            Verdict::Refused { reason, remedy } => write!(f, "{loader}: does not load: {reason}; {remedy}"),
            Verdict::Unknown { reason } => write!(f, "{loader}: unknown: {reason}"),
        }
    }
}

/// Every loader's verdict on a shape.
#[must_use]
pub fn loaders(target: &Target<'_>) -> Vec<LoaderVerdict> {
    Loader::ALL.into_iter().map(|loader| LoaderVerdict { loader, verdict: verdict(target, loader) }).collect()
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
    let Some((reason, remedy)) = obstacle(target, row) else { return Verdict::Stock { tried: row.tried } };
    match target.no_remote_code {
        _ if loader == Loader::Vllm && row.model_type == "llama" => Verdict::Refused { reason, remedy: format!("{remedy}; {VLLM_BLOCKS}") },
        _ if loader != Loader::Transformers => Verdict::Refused { reason, remedy },
        None => Verdict::RemoteCode { reason },
        Some(why) => Verdict::Refused { reason: format!("{reason}; remote code can't either: {why}"), remedy },
    }
}

/// Why a shape is not stock, and what would make it so.
fn obstacle(target: &Target<'_>, row: &Row) -> Option<(String, String)> {
    let padded = "`layout = padded` writes the removed units as zeros";
    if row.heads == HeadCounts::Absent {
        return Some((row.source.to_owned(), "another loader reads this family".to_owned()));
    }
    let first = target.dims.first()?;
    if let Some(layer) = target.dims.iter().position(|d| d.q_heads == 0 || d.ffn == 0) {
        return Some((format!("layer {layer} has lost a whole sublayer"), padded.into()));
    }
    if let Some((layer, other)) = target.dims.iter().enumerate().find(|(_, d)| d.q_heads != first.q_heads || d.kv_heads != first.kv_heads) {
        let reason = format!("layer 0 has {} heads, layer {layer} has {}", heads(first), heads(other));
        return Some((reason, format!("use `scope = layer` for equal counts, or {padded}")));
    }
    // Layers with experts have their own width in configs.
    for mixture in [false, true] {
        let mut of_kind = target.dims.iter().enumerate().filter(|(_, d)| (d.experts > 0) == mixture);
        let Some((a, one)) = of_kind.next() else { continue };
        if let Some((b, other)) = of_kind.clone().find(|(_, d)| d.experts != one.experts) {
            let reason = format!("layer {a} has {} experts, layer {b} has {}", one.experts, other.experts);
            return Some((reason, "remove equally many experts from each layer".to_owned()));
        }
        if mixture && row.loader == Loader::Transformers && !one.ffn.is_multiple_of(GROUPED_ALIGN) {
            let reason = format!("experts of {} neurons: torch's grouped product wants a multiple of {GROUPED_ALIGN}", one.ffn);
            return Some((reason, format!("prune with `align = {GROUPED_ALIGN}`, or load it with experts_implementation=\"eager\"")));
        }
        if let Some((b, other)) = of_kind.find(|(_, d)| d.ffn != one.ffn) {
            let reason = format!("layer {a} has {} neurons, layer {b} has {}", one.ffn, other.ffn);
            return Some((reason, format!("use `scope = layer` for equal widths, or {padded}")));
        }
    }
    let says = |key: &str| target.own.is_some_and(|own| own.get(key).is_some());
    for (key, reason) in [
        ("biases", "it has biases that the stock classes do not have"),
        ("layers", "what a layer computes depends on its place in the original model (its window, or the factor on its scores)"),
        ("embedding_scale", "the factor on the embeddings is not the one that follows from the hidden size"),
    ] {
        if says(key) {
            return Some((reason.to_owned(), padded.to_owned()));
        }
    }
    let hidden = target.blueprint.hidden;
    let derived = hidden.checked_div(first.q_heads) == Some(first.head_dim) && hidden.is_multiple_of(first.q_heads.max(1));
    match row.heads {
        HeadCounts::Derived if !derived => {
            let reason =
                format!("it computes head_dim as {} / {}, which is not {} ({})", hidden, first.q_heads, first.head_dim, row.source);
            Some((reason, padded.to_owned()))
        }
        HeadCounts::Divisors if !hidden.is_multiple_of(first.q_heads.max(1)) => {
            let reason = format!("{} is not a multiple of {} heads ({})", hidden, first.q_heads, row.source);
            let fits = |n: &usize| hidden.is_multiple_of(*n) && n.is_multiple_of(first.kv_heads.max(1));
            let remedy = match (1..first.q_heads).rev().find(fits) {
                Some(n) => format!("{n} heads in every layer would load, and so would the original shape: {padded}"),
                None => padded.to_owned(),
            };
            Some((reason, remedy))
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
    fn the_table_speaks() {
        let stock = Verdict::Stock { tried: true };
        assert_eq!(of("bert", &[(8, 8, 96), (8, 8, 96)], Loader::Transformers, true), stock);
        assert_eq!(of("bert", &[(8, 8, 40), (8, 8, 40)], Loader::Candle, false), stock);
        assert_eq!(of("llama", &[(4, 2, 96), (4, 2, 96)], Loader::Transformers, true), stock);
        assert!(matches!(of("llama", &[(4, 2, 96), (4, 2, 96)], Loader::Candle, false), Verdict::Refused { .. }));
        assert!(matches!(of("bert", &[(4, 4, 96), (4, 4, 96)], Loader::Transformers, true), Verdict::RemoteCode { .. }));
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
