//! Metrics of extractive question answering: SQuAD's exact match and F1 (Rajpurkar et al., SQuAD: 100,000+ Questions for Machine
//! Comprehension of Text, 2016, sec. 6.1), with version 2's rule for questions without an answer (Rajpurkar et al. 2018, sec. 5).
//!
//! Which words are the answer is decided as Devlin et al. (BERT, 2018, sec. 4.2 and 4.3) and the usual fine-tuning script do: in every
//! window the 20 best starts are paired with the 20 best ends; a pair in the context, in order and not too long, with the greatest sum of
//! logits wins over all windows, the earlier window and the better start among equals. Where the data has questions without an answer, the
//! answer is empty if the smallest sum of both logits at the first token, over the windows, exceeds the best pair's.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use prunectl_model::{Batch, Gates, Head, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Param, Ty};

use super::agreement::stderr;
use super::{Inputs, Measured, Metric, Needs};
use crate::data::{Asked, Window};
use crate::error::{PruneError, Result};
use crate::row::{metric, needs_data, param, within};

/// Starts and ends that are tried in a window.
const BEST: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Score {
    Exact,
    F1,
}

struct Answers {
    score: Score,
    length: usize,
    stride: usize,
    longest: usize,
}

/// What a window proposes: the bytes of the context and the sum of logits, and the sum at the first token.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Found {
    best: Option<(usize, usize, f32)>,
    none: f32,
}

/// Numbers of the largest values, the largest first; among equals the later one, as sorting upwards and reading backwards gives.
fn best(logits: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let at = |i: usize| logits.get(i).copied().unwrap_or(f32::NEG_INFINITY);
    order.sort_by(|a, b| at(*b).total_cmp(&at(*a)).then(b.cmp(a)));
    order.truncate(BEST);
    order
}

fn find(window: &Window, starts: &[f32], ends: &[f32], longest: usize) -> Found {
    let at = |logits: &[f32], i: usize| logits.get(i).copied().unwrap_or(f32::NEG_INFINITY);
    let place = |i: usize| window.places.get(i).copied().flatten();
    let last = best(ends);
    let mut found: Option<(usize, usize, f32)> = None;
    for start in best(starts) {
        for end in &last {
            if *end < start || end - start + 1 > longest {
                continue;
            }
            let (Some((from, _)), Some((_, to))) = (place(start), place(*end)) else { continue };
            let sum = at(starts, start) + at(ends, *end);
            if found.is_none_or(|(.., most)| sum > most) {
                found = Some((from, to, sum));
            }
        }
    }
    Found { best: found, none: at(starts, 0) + at(ends, 0) }
}

/// Windows of one length, at once.
fn read(model: &Transformer, windows: &[&Window], longest: usize) -> Result<Vec<Found>> {
    let (n, length) = (windows.len(), windows.first().map_or(0, |w| w.ids.len()));
    let rows = |of: &dyn Fn(&Window) -> Vec<u32>| -> Result<Tensor> {
        let all: Vec<u32> = windows.iter().flat_map(|w| of(w)).collect();
        Ok(Tensor::from_vec(all, (n, length), model.device())?)
    };
    let mut batch = Batch::new(rows(&|w| w.ids.clone())?);
    if model.blueprint().embeddings.token_types > 0 && windows.iter().any(|w| w.types.is_some()) {
        batch.token_type_ids = Some(rows(&|w| w.types.clone().unwrap_or_else(|| vec![0; length]))?);
    }
    let logits = model.forward(&batch, &Gates::default(), &mut ())?.to_dtype(DType::F32)?; // [n, length, 2]
    let side = |i: usize| logits.narrow(2, i, 1)?.squeeze(2)?.to_vec2::<f32>();
    let (starts, ends) = (side(0)?, side(1)?);
    Ok(windows.iter().zip(starts.iter().zip(&ends)).map(|(w, (s, e))| find(w, s, e, longest)).collect())
}

/// Lower case, without ASCII punctuation and the words a, an, the; words with one blank between.
fn normal(text: &str) -> String {
    let plain: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let mut out = String::with_capacity(plain.len());
    let mut word = String::new();
    for c in plain.chars().chain(std::iter::once(' ')) {
        if c.is_alphanumeric() {
            word.push(c);
            continue;
        }
        if !["a", "an", "the"].contains(&word.as_str()) {
            out.push_str(&word);
        } else {
            out.push(' ');
        }
        word.clear();
        out.push(c);
    }
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn f1(given: &str, right: &str) -> f64 {
    let (given, right): (Vec<&str>, Vec<&str>) = (given.split_whitespace().collect(), right.split_whitespace().collect());
    if given.is_empty() || right.is_empty() {
        return f64::from(u8::from(given == right));
    }
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    for word in &right {
        *left.entry(word).or_default() += 1;
    }
    let mut same = 0usize;
    for word in &given {
        if let Some(n) = left.get_mut(word).filter(|n| **n > 0) {
            *n -= 1;
            same += 1;
        }
    }
    let (precision, recall) = (same as f64 / given.len() as f64, same as f64 / right.len() as f64);
    if same == 0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) }
}

/// The best of exact match and of F1 over the right answers; without any, the empty answer is right.
fn judge(given: &str, right: &[String]) -> (f64, f64) {
    let given = normal(given);
    let right: Vec<String> = right.iter().map(|r| normal(r)).filter(|r| !r.is_empty()).collect();
    let right = if right.is_empty() { vec![String::new()] } else { right };
    let exact = right.contains(&given);
    (f64::from(u8::from(exact)), right.iter().map(|r| f1(&given, r)).fold(0.0, f64::max))
}

impl Answers {
    fn name(&self) -> &'static str {
        match self.score {
            Score::Exact => "exact_match",
            Score::F1 => "answer_f1",
        }
    }

    /// The answer to every question. Windows of one length run together, so that none is padded.
    fn answer<'a>(&self, inputs: &Inputs<'_>, asked: &'a [Asked], with_none: bool) -> Result<Vec<&'a str>> {
        let mut rows: Vec<(usize, usize, &Window)> =
            asked.iter().enumerate().flat_map(|(q, a)| a.windows.iter().enumerate().map(move |(w, window)| (q, w, window))).collect();
        rows.sort_by_key(|(q, w, window)| (window.ids.len(), *q, *w));
        let mut found: Vec<Vec<Option<Found>>> = asked.iter().map(|a| vec![None; a.windows.len()]).collect();
        let (mut done, total) = (0, rows.len() as u64);
        for alike in rows.chunk_by(|a, b| a.2.ids.len() == b.2.ids.len()) {
            for batch in alike.chunks(inputs.batch.max(1)) {
                inputs.progress.check()?;
                let said = read(inputs.model, &batch.iter().map(|r| r.2).collect::<Vec<_>>(), self.longest)?;
                for ((q, w, _), one) in batch.iter().zip(said) {
                    if let Some(slot) = found.get_mut(*q).and_then(|q| q.get_mut(*w)) {
                        *slot = Some(one);
                    }
                }
                done += batch.len() as u64;
                inputs.progress.advance(done, total, self.name());
            }
        }
        Ok(asked
            .iter()
            .zip(&found)
            .map(|(a, windows)| {
                let mut best: Option<(usize, usize, f32)> = None;
                for (from, to, sum) in windows.iter().flatten().filter_map(|f| f.best) {
                    if best.is_none_or(|(.., most)| sum > most) {
                        best = Some((from, to, sum));
                    }
                }
                let none = windows.iter().flatten().map(|f| f.none).fold(f32::INFINITY, f32::min);
                match best {
                    Some((from, to, sum)) if !(with_none && none > sum) => a.context.get(from..to).unwrap_or_default(),
                    _ => "",
                }
            })
            .collect())
    }
}

impl Metric for Answers {
    fn needs(&self) -> Needs {
        Needs::Answers { length: self.length, stride: self.stride }
    }

    fn higher_is_better(&self) -> Option<bool> {
        Some(true)
    }

    fn measure(&self, inputs: &mut Inputs<'_>) -> Result<Measured> {
        let method = self.name();
        if !matches!(inputs.model.blueprint().head, Head::Spans) {
            let needs = "a model whose head points at answers (`task = \"question-answering\"`)".into();
            return Err(PruneError::Missing { method, needs });
        }
        let asked = match inputs.asked {
            None => return Err(PruneError::Missing { method, needs: "data with questions, contexts and answers".into() }),
            Some([]) => return Err(PruneError::NoData { method, batches: 0 }),
            Some(all) => all,
        };
        let with_none = asked.iter().any(|a| a.answers.is_empty());
        let given = self.answer(inputs, asked, with_none)?;
        let (exact, f1): (Vec<f64>, Vec<f64>) = given.iter().zip(asked).map(|(given, a)| judge(given, &a.answers)).unzip();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let windows: usize = asked.iter().map(|a| a.windows.len()).sum();
        let details = [("exact_match", mean(&exact)), ("answer_f1", mean(&f1))].map(|(k, v)| (k.to_owned(), v)).into();
        let per_example = if self.score == Score::Exact { exact } else { f1 };
        Ok(Measured {
            value: mean(&per_example),
            stderr: Some(stderr(&per_example)),
            protocol: format!(
                "SQuAD's {} over the right answers, lower case, without punctuation and articles; {windows} windows of at most {} tokens, {} of \
                 the context shared by neighbours; the {BEST} best starts and ends of each, answers of at most {} tokens{}",
                if self.score == Score::Exact { "exact match, the best" } else { "F1 of words, the best" },
                self.length,
                self.stride,
                self.longest,
                if with_none { "; the empty answer where the first token's sum is greater" } else { "" }
            ),
            examples: Some(asked.len() as u64),
            per_example,
            details,
            ..Measured::default()
        })
    }
}

fn build(args: &Args, score: Score) -> std::result::Result<Box<dyn Metric>, ArgError> {
    let count = |name: &str| args.count(name).map(|n| n as usize);
    Ok(Box::new(Answers { score, length: count("length")?, stride: count("stride")?, longest: count("longest")? }))
}
fn exact_match(args: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    build(args, Score::Exact)
}
fn answer_f1(args: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    build(args, Score::F1)
}

const SOURCE: &str = "Rajpurkar et al., SQuAD: 100,000+ Questions for Machine Comprehension of Text (2016), sec. 6.1; answers as Devlin et al. (2018), sec. 4.2";
const PARAMS: &[Param] = &[
    within(
        param(
            "length",
            Ty::Tokens,
            "384 tokens",
            "Tokens of a window, question and special tokens included; at most what the model takes.",
        ),
        8.0,
        1e6,
    ),
    within(param("stride", Ty::Tokens, "128 tokens", "Tokens of the context that neighbouring windows share."), 0.0, 1e6),
    within(param("longest", Ty::Tokens, "30 tokens", "Tokens of the longest answer."), 1.0, 1e6),
];

pub(super) const EXACT_MATCH: Entry<dyn Metric> = Entry {
    spec: needs_data(metric(
        "exact_match",
        SOURCE,
        PARAMS,
        "Share of questions whose answer, a stretch of the context, is one of the right ones to the letter, case, punctuation and articles \
         apart. The data has the columns question, context and answers, as SQuAD has; a question without answers is one that the context \
         does not answer.\n\n\
         ```prune\ndata squad = hf(\"rajpurkar/squad\")\neval exact_match() of m on squad.validation as em\n```",
    )),
    build: exact_match,
};
pub(super) const ANSWER_F1: Entry<dyn Metric> = Entry {
    spec: needs_data(metric(
        "answer_f1",
        SOURCE,
        PARAMS,
        "Mean over questions of the F1 between the words of the model's answer and those of the right one that agrees best. Data and \
         choice of the answer are those of `exact_match`, which stands beside it in the details.",
    )),
    build: answer_f1,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_compared_without_case_punctuation_and_articles() {
        assert_eq!(normal("The  Eiffel-Tower, an a the."), "eiffeltower");
        assert_eq!(normal("another thesis"), "another thesis");
        assert_eq!(judge("the Eiffel tower", &["Eiffel Tower!".into()]), (1.0, 1.0));
        // 2 words of 3 agree with 2 of 2: precision 2/3, recall 1.
        let (exact, f1) = judge("big red car", &["red car".into(), "bus".into()]);
        assert!(exact == 0.0 && (f1 - 0.8).abs() < 1e-12, "{f1}");
        assert_eq!((judge("", &[]), judge("x", &[]), judge("", &["x".into()])), ((1.0, 1.0), (0.0, 0.0), (0.0, 0.0)));
        // A word counts as often as both have it.
        assert!((judge("x x", &["x".into()]).1 - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn the_best_pair_in_the_context_in_order_and_not_too_long() {
        // [CLS] q [SEP] c0 c1 c2 [SEP]
        let places = vec![None, None, None, Some((0, 1)), Some((2, 3)), Some((4, 5)), None];
        let window = Window { ids: vec![0; 7], types: None, places };
        let starts = [9.0, 8.0, 0.0, 1.0, 5.0, 4.0, 0.0];
        let ends = [9.0, 0.0, 0.0, 7.0, 1.0, 3.0, 0.0];
        let found = find(&window, &starts, &ends, 30);
        assert_eq!(found, Found { best: Some((2, 5, 8.0)), none: 18.0 }, "3 to 3 sums to 8 too, and its start is the worse one");
        // 3 to 5 is too long.
        let most = |at: usize| -> Vec<f32> { (0..7).map(|i| if i == at { 5.0 } else { 0.0 }).collect() };
        assert_eq!(find(&window, &most(3), &most(5), 3).best, Some((0, 5, 10.0)));
        assert_eq!(find(&window, &most(3), &most(5), 2).best, Some((0, 3, 5.0)));
        assert_eq!(find(&window, &[f32::NAN; 7], &[0.0; 7], 0).best, None);
    }
}
