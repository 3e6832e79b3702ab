//! Who can read a shape: family × loader, as data. A row says what a loader's unmodified code accepts; `tests/stock.rs` holds the rows
//! that are marked as tried against the loaders themselves.

use std::fmt;

use prunectl_model::LayerDims;
use serde::Serialize;

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
}

/// One cell of the table.
struct Row {
    model_type: &'static str,
    loader: Loader,
    heads: HeadCounts,
    /// Where the loader says so.
    source: &'static str,
    /// Tried by tests/stock.rs, or read in the loader's source only.
    tried: bool,
}

const ROWS: &[Row] = &[
    Row {
        model_type: "bert",
        loader: Loader::Transformers,
        heads: HeadCounts::Derived,
        source: "BertSelfAttention: attention_head_size = hidden_size / num_attention_heads",
        tried: true,
    },
    Row {
        model_type: "bert",
        loader: Loader::Candle,
        heads: HeadCounts::Derived,
        source: "models::bert: attention_head_size = hidden_size / num_attention_heads",
        tried: true,
    },
    Row {
        model_type: "bert",
        loader: Loader::Vllm,
        heads: HeadCounts::Derived,
        source: "BertSelfAttention: head_dim = hidden_size // total_num_heads",
        tried: false,
    },
    Row {
        model_type: "llama",
        loader: Loader::Transformers,
        heads: HeadCounts::Divisors,
        source: "LlamaAttention reads head_dim; LlamaConfig wants hidden_size % num_attention_heads == 0",
        tried: true,
    },
    Row {
        model_type: "llama",
        loader: Loader::Candle,
        heads: HeadCounts::Derived,
        source: "models::llama: head_dim = hidden_size / num_attention_heads",
        tried: true,
    },
    Row {
        model_type: "llama",
        loader: Loader::Vllm,
        heads: HeadCounts::Divisors,
        source: "LlamaAttention reads head_dim; the config is transformers' own",
        tried: false,
    },
];

/// What is asked of the table.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The config's `model_type`.
    pub model_type: &'a str,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Shapes as they will be written (of a padded layout: the original ones).
    pub dims: &'a [LayerDims],
    /// Whether `modeling_prunectl.py` covers the family.
    pub remote_code: bool,
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
    /// Whether the loader reads the folder, with or without the Python file.
    #[must_use]
    pub fn loads(&self) -> bool {
        matches!(self.verdict, Verdict::Stock { .. } | Verdict::RemoteCode { .. })
    }
}

impl fmt::Display for LoaderVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let loader = self.loader;
        match &self.verdict {
            Verdict::Stock { tried: true } => write!(f, "{loader}: loads as it is"),
            Verdict::Stock { tried: false } => write!(f, "{loader}: should load as it is (by its source; not tried by our tests)"),
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
        return Verdict::Unknown { reason: "llama.cpp reads GGUF files, not this folder".into() };
    }
    let Some(row) = ROWS.iter().find(|r| r.model_type == target.model_type && r.loader == loader) else {
        return Verdict::Unknown { reason: format!("no one has tried `{}` there yet", target.model_type) };
    };
    let Some((reason, remedy)) = obstacle(target, row) else { return Verdict::Stock { tried: row.tried } };
    if loader == Loader::Transformers && target.remote_code {
        return Verdict::RemoteCode { reason };
    }
    Verdict::Refused { reason, remedy }
}

/// Why a shape is not stock, and what would make it so.
fn obstacle(target: &Target<'_>, row: &Row) -> Option<(String, String)> {
    let first = target.dims.first()?;
    let padded = "`layout = padded` writes the removed units as zeros";
    if let Some(layer) = target.dims.iter().position(|d| d.q_heads == 0 || d.ffn == 0) {
        return Some((format!("layer {layer} has lost a whole sublayer"), padded.into()));
    }
    if let Some((layer, other)) = target.dims.iter().enumerate().find(|(_, d)| d.q_heads != first.q_heads || d.kv_heads != first.kv_heads) {
        let reason = format!("layer 0 has {} heads, layer {layer} has {}", heads(first), heads(other));
        return Some((reason, format!("use `scope = layer` for equal counts, or {padded}")));
    }
    if let Some((layer, other)) = target.dims.iter().enumerate().find(|(_, d)| d.ffn != first.ffn || d.experts != first.experts) {
        let reason = format!("layer 0 has {} neurons, layer {layer} has {}", first.ffn, other.ffn);
        return Some((reason, format!("use `scope = layer` for equal widths, or {padded}")));
    }
    let derived = target.hidden.checked_div(first.q_heads) == Some(first.head_dim) && target.hidden.is_multiple_of(first.q_heads.max(1));
    let fits = match row.heads {
        HeadCounts::Derived => derived,
        HeadCounts::Divisors => target.hidden.is_multiple_of(first.q_heads),
    };
    if fits {
        return None;
    }
    let reason = match row.heads {
        HeadCounts::Derived => {
            format!("it computes head_dim as {} / {}, which is not {} ({})", target.hidden, first.q_heads, first.head_dim, row.source)
        }
        HeadCounts::Divisors => format!("{} is not a multiple of {} heads ({})", target.hidden, first.q_heads, row.source),
    };
    let remedy = match row.heads {
        HeadCounts::Derived => padded.to_owned(),
        HeadCounts::Divisors => {
            match (1..first.q_heads).rev().find(|n| target.hidden.is_multiple_of(*n) && n.is_multiple_of(first.kv_heads.max(1))) {
                Some(n) => format!("{n} heads in every layer would load, and so would the original shape: {padded}"),
                None => padded.to_owned(),
            }
        }
    };
    Some((reason, remedy))
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
        verdict(&Target { model_type, hidden: 64, dims: &dims(counts), remote_code }, loader)
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
        for loader in Loader::ALL {
            assert_eq!(Loader::parse(loader.word()), Some(loader));
        }
    }
}
