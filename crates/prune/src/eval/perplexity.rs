//! Perplexity by a stated protocol: `exp(Σ NLL / tokens)`, natural logarithm, NLL in f32, summed in f64.

use candle_core::{DType, Tensor};
use prunectl_kernels::cross_entropy;
use prunectl_model::{Batch, Gates, Transformer, stated_length};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Ty};

use super::{Inputs, Measured, Metric, Needs};
use crate::data::TokenStream;
use crate::error::{PruneError, Result};
use crate::row::{metric, needs_data, optional, param, within};

/// Where BOS stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bos {
    Once,
    Each,
}

/// The pruning papers' variant: windows of the model's 2048 tokens, tail dropped, every window's mean weighted alike.
const PAPERS: &str = "wikitext2-2048";
/// Its windows.
const PAPERS_TOKENS: usize = 2048;
/// Tokens of a window where neither the recipe nor a protocol says.
const WINDOW_TOKENS: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Perplexity {
    /// None: [`WINDOW_TOKENS`], or what the model takes, if that is less.
    window: Option<usize>,
    /// None: the window.
    stride: Option<usize>,
    bos: Bos,
    papers: bool,
}

/// The same for a model.
struct Protocol {
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

impl Protocol {
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
        let longest = stated_length(inputs.model.blueprint(), &inputs.model.origin().config);
        let protocol = self.of(longest);
        let windows = protocol.windows(stream);
        let (mut sum, mut squares, mut tokens, mut done) = (0.0, 0.0, 0u64, 0);
        let total = windows.len() as u64;
        // Only the first and the last window differ from the others, so cutting at changes wastes nothing.
        let alike = |a: &Window, b: &Window| a.ids.len() == b.ids.len() && a.from == b.from;
        for run in windows.chunk_by(alike) {
            for windows in run.chunks(inputs.batch.max(1)) {
                inputs.progress.check()?;
                for nll in token_nll(inputs.model, windows)? {
                    sum += f64::from(nll);
                    squares += f64::from(nll) * f64::from(nll);
                    tokens += 1;
                }
                done += windows.len() as u64;
                inputs.progress.advance(done, total, "perplexity");
            }
        }
        if tokens == 0 {
            return Err(PruneError::NoData { method: "perplexity", batches: windows.len() });
        }
        let n = tokens as f64;
        let mean = sum / n;
        let deviation = (squares / n - mean * mean).max(0.0).sqrt() / n.sqrt();
        Ok(Measured {
            value: mean.exp(),
            // The delta method: d exp(x) = exp(x) dx.
            stderr: Some(mean.exp() * deviation),
            protocol: protocol.words(),
            warnings: longest.and_then(|longest| protocol.too_long(longest)).into_iter().collect(),
            tokens: Some(tokens),
            examples: Some(total),
            per_example: Vec::new(),
            ..Measured::default()
        })
    }
}

impl Perplexity {
    /// The protocol for a model that takes so many tokens.
    fn of(self, longest: Option<usize>) -> Protocol {
        let usual = || longest.map_or(WINDOW_TOKENS, |n| n.clamp(2, WINDOW_TOKENS));
        // A stride that is given says that windows are no shorter.
        let window = self.window.unwrap_or_else(|| usual().max(self.stride.unwrap_or_default()));
        Protocol { window, stride: self.stride.unwrap_or(window), bos: self.bos, papers: self.papers }
    }
}

impl Protocol {
    /// Where positions are computed nothing stops a window that the model was never trained on.
    fn too_long(&self, longest: usize) -> Option<String> {
        (self.window > longest).then(|| {
            format!(
                "windows of {} tokens on a model whose config states {longest}: what lies behind these it has not learned. Write perplexity(window = {longest} tokens)",
                self.window
            )
        })
    }

    fn words(&self) -> String {
        let bos = match self.bos {
            Bos::Once => "special tokens once, in front of the text",
            Bos::Each => "special tokens in front of every window",
        };
        let tail = if self.papers { "tail dropped, windows weighted alike" } else { "tail included" };
        let stride =
            if self.stride == self.window { String::new() } else { format!(" every {} tokens, the overlap context only", self.stride) };
        format!(
            "documents joined by a blank line and tokenised once; {bos}; windows of {} tokens{stride}, each run alone, the first token context only; {tail}; exp of the token-weighted mean NLL; its standard error takes tokens as independent",
            self.window
        )
    }
}

/// NLL of each scored token of windows of one shape.
fn token_nll(model: &Transformer, windows: &[Window]) -> Result<Vec<f32>> {
    let Some(first) = windows.first() else { return Ok(Vec::new()) };
    let (b, s, from) = (windows.len(), first.ids.len(), first.from);
    let ids: Vec<u32> = windows.iter().flat_map(|w| w.ids.iter().copied()).collect();
    let mut rows = Vec::with_capacity(b * (s - from));
    let mut targets = Vec::with_capacity(b * (s - from));
    for (row, window) in windows.iter().enumerate() {
        for (at, id) in window.ids.iter().enumerate().skip(from) {
            rows.push((row * s + at - 1) as u32);
            targets.push(*id);
        }
    }
    let batch = Batch::new(Tensor::from_vec(ids, (b, s), model.device())?);
    let (x, context) = model.hidden(&batch, &Gates::default(), &mut ())?;
    let logits = model.finish_rows(&x, &context, &rows, &mut ())?.to_dtype(DType::F32)?;
    let n = targets.len();
    Ok(cross_entropy(&logits, &Tensor::from_vec(targets, n, model.device())?)?.to_vec1()?)
}

fn build(args: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    let papers = args.get("protocol").is_some() && args.word("protocol")? == PAPERS;
    let given = |name: &str| args.get(name).map(|_| args.count(name)).transpose().map(|n| n.map(|n| n as usize));
    let window = given("window")?.or(papers.then_some(PAPERS_TOKENS));
    let stride = given("stride")?;
    let wrong = |name: &str, found: usize, expected: String| ArgError { name: name.into(), found: found.to_string(), expected };
    if let Some(window) = window.filter(|n| *n < 2) {
        return Err(wrong("window", window, "at least 2 tokens: the first is context only".into()));
    }
    let most = window.unwrap_or(WINDOW_TOKENS);
    if let Some(stride) = stride.filter(|n| *n == 0 || *n > most) {
        return Err(wrong("stride", stride, format!("1 to {most} tokens: a longer stride would skip text")));
    }
    let bos = if args.word("bos")? == "each" { Bos::Each } else { Bos::Once };
    Ok(Box::new(Perplexity { window, stride, bos, papers }))
}

pub(super) const ENTRY: Entry<dyn Metric> = Entry {
    spec: needs_data(metric(
        "perplexity",
        "exp of the token-weighted mean negative log-likelihood",
        &[
            within(
                optional(
                    "window",
                    Ty::Tokens,
                    "Tokens of a window, each run alone; its first token is context only. 1024 if left out, or as many as the model's config states, if these are fewer.",
                ),
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
    )),
    build,
};

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(window: usize, stride: usize, bos: Bos, papers: bool, text: u32) -> Vec<(Vec<u32>, usize)> {
        let stream = TokenStream { prefix: vec![99], ids: (0..text).collect() };
        Protocol { window, stride, bos, papers }.windows(&stream).into_iter().map(|w| (w.ids, w.from)).collect()
    }

    #[test]
    fn a_window_that_is_left_out_is_one_that_the_model_takes() {
        let of = |window: Option<usize>, stride: Option<usize>, longest: Option<usize>| {
            let p = Perplexity { window, stride, bos: Bos::Once, papers: false }.of(longest);
            (p.window, p.stride, longest.and_then(|n| p.too_long(n)).is_some())
        };
        assert_eq!(of(None, None, None), (1024, 1024, false));
        assert_eq!(of(None, None, Some(4096)), (1024, 1024, false));
        assert_eq!(of(None, None, Some(512)), (512, 512, false));
        assert_eq!(of(None, Some(64), Some(512)), (512, 64, false));
        assert_eq!(of(None, Some(600), Some(512)), (600, 600, true));
        assert_eq!(of(Some(4096), None, Some(512)), (4096, 4096, true));
    }

    #[test]
    fn each_protocol_by_hand() {
        assert_eq!(windows(3, 3, Bos::Once, false, 4), [(vec![99, 0, 1], 1), (vec![2, 3], 1)]);
        assert_eq!(windows(3, 3, Bos::Once, true, 4), [(vec![99, 0, 1], 1)]);
        assert_eq!(windows(3, 3, Bos::Each, false, 5), [(vec![99, 0, 1], 1), (vec![99, 2, 3], 1), (vec![99, 4], 1)]);
        // The overlap is context only: every token once.
        assert_eq!(windows(4, 2, Bos::Once, false, 6), [(vec![99, 0, 1, 2], 1), (vec![1, 2, 3, 4], 2), (vec![3, 4, 5], 2)]);
    }

    #[test]
    fn every_token_is_scored_at_most_once_and_none_is_lost_with_a_stride() {
        for (window, stride) in [(5, 1), (5, 3), (5, 4), (7, 2)] {
            for text in 1..40 {
                let scored: Vec<u32> =
                    windows(window, stride, Bos::Once, false, text).into_iter().flat_map(|(ids, from)| ids[from..].to_vec()).collect();
                assert_eq!(scored, (0..text).collect::<Vec<_>>(), "window {window} stride {stride}");
                let each: Vec<u32> =
                    windows(window, stride, Bos::Each, false, text).into_iter().flat_map(|(ids, from)| ids[from..].to_vec()).collect();
                assert_eq!(each, (0..text).collect::<Vec<_>>(), "BOS each, window {window} stride {stride}");
            }
        }
    }
}
