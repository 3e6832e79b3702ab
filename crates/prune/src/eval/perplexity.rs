//! Perplexity by a stated protocol.

use prunectl_recipe::catalogue::{ArgError, Args, Entry, Ty};

use super::{Inputs, Measured, Metric, Needs};
use crate::data::TokenStream;
use crate::error::{PruneError, Result};
use crate::row::{metric, needs_data, optional, param, runs, within};

/// Where BOS stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bos {
    Once,
    Each,
}

/// The pruning papers' variant: windows of the model's 2048 tokens, tail dropped, every window's mean weighted alike.
const PAPERS: &str = "wikitext2-2048";
/// Tokens of a window where neither the recipe nor a protocol says.
const WINDOW_TOKENS: usize = 1024;

struct Perplexity {
    window: usize,
    stride: usize,
    bos: Bos,
    papers: bool,
}

/// One window: tokens to run, and from which of them on they are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Window {
    ids: Vec<u32>,
    /// Index of the first scored token; everything before it is context.
    from: usize,
}

impl Perplexity {
    fn windows(&self, stream: &TokenStream) -> Vec<Window> {
        let mut out = Vec::new();
        match self.bos {
            Bos::Once => {
                let ids: Vec<u32> = stream.prefix.iter().chain(&stream.ids).copied().collect();
                let (mut start, mut scored) = (0, 0);
                while start < ids.len() {
                    let end = (start + self.window).min(ids.len());
                    // The first token of the text has no context; later windows score what no earlier one held.
                    let from = scored.max(start + 1) - start;
                    let whole = end - start == self.window;
                    if end - start > from && (whole || !self.papers) {
                        out.push(Window { ids: ids.get(start..end).unwrap_or_default().to_vec(), from });
                    }
                    scored = end;
                    if end == ids.len() {
                        break;
                    }
                    start += self.stride;
                }
            }
            Bos::Each => {
                let room = self.window.saturating_sub(stream.prefix.len()).max(1);
                let step = self.stride.min(room);
                let (mut start, mut scored) = (0, 0);
                while start < stream.ids.len() {
                    let end = (start + room).min(stream.ids.len());
                    let ids: Vec<u32> = stream.prefix.iter().chain(stream.ids.get(start..end).unwrap_or_default()).copied().collect();
                    let from = (stream.prefix.len() + scored - start).max(1);
                    if ids.len() > from && (end - start == room || !self.papers) {
                        out.push(Window { ids, from });
                    }
                    scored = end;
                    if end == stream.ids.len() {
                        break;
                    }
                    start += step;
                }
            }
        }
        out
    }
}

impl Metric for Perplexity {
    fn needs(&self) -> Needs {
        Needs::Stream
    }

    fn higher_is_better(&self) -> Option<bool> {
        Some(false)
    }

    fn measure(&self, inputs: &mut Inputs<'_>) -> Result<Measured> {
        let stream = inputs.stream.ok_or(PruneError::Missing { method: "perplexity", needs: "a text".into() })?;
        let _ = self.windows(stream);
        Err(PruneError::NothingSelected)
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    let papers = args.get("protocol").is_some() && args.word("protocol")? == PAPERS;
    let window = match args.get("window") {
        Some(_) => args.count("window")? as usize,
        None if papers => 2048,
        None => WINDOW_TOKENS,
    };
    let stride = if args.get("stride").is_some() { args.count("stride")? as usize } else { window };
    let wrong = |name: &str, found: usize, expected: String| ArgError { name: name.into(), found: found.to_string(), expected };
    if window < 2 {
        return Err(wrong("window", window, "at least 2 tokens: the first is context only".into()));
    }
    if stride == 0 || stride > window {
        return Err(wrong("stride", stride, format!("1 to {window} tokens: a longer stride would skip text")));
    }
    let bos = if args.word("bos")? == "each" { Bos::Each } else { Bos::Once };
    Ok(Box::new(Perplexity { window, stride, bos, papers }))
}

pub(super) const ENTRY: Entry<dyn Metric> = Entry {
    spec: runs(needs_data(metric(
        "perplexity",
        "exp of the token-weighted mean negative log-likelihood",
        &[
            within(
                optional("window", Ty::Tokens, "Tokens of a window, each run alone; its first token is context only. 1024 if left out."),
                2.0,
                1e7,
            ),
            within(
                optional(
                    "stride",
                    Ty::Tokens,
                    "Start of one window to the start of the next; the overlap is context only. The window if left out.",
                ),
                1.0,
                1e7,
            ),
            param("bos", Ty::OneOf(&["once", "each"]), "once", "Special tokens in front of the text once, or in front of every window."),
            optional("protocol", Ty::OneOf(&[PAPERS]), "The pruning papers' variant: windows of 2048, tail dropped."),
        ],
        "Documents are joined by a blank line, tokenised once with the special tokens that the tokenizer puts in front of a text, and cut into windows that are run alone. \
         Every token is scored at most once; the tail is included; NLL in f32, summed in f64.\n\n\
         Mind: BOS handling alone moved one model's figure from 4.79 to 5.29. Compare figures of the same protocol only.\n\n\
         ```prune\neval perplexity(window = 128 tokens, stride = 64 tokens) of m on d.test as ppl\n```",
    ))),
    build: Some(build),
};
