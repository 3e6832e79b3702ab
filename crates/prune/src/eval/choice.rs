//! Metrics that compare continuations of a text by their log-likelihood: multiple choice, minimal pairs, and the last word.

use candle_core::{D, DType, Tensor};
use prunectl_kernels::cross_entropy;
use prunectl_model::{Batch, Gates, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Ty};

use super::{Inputs, Measured, Metric, Needs};
use crate::data::{Continuation, Question};
use crate::error::{PruneError, Result};
use crate::row::{metric, needs_data, param};

/// What a continuation's log-likelihood is divided by before the best is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    None,
    Characters,
    Bytes,
}

/// What one continuation got.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Said {
    /// Σ log p of its tokens, natural logarithm, f64.
    log_likelihood: f64,
    /// Whether each of its tokens is the model's first choice.
    greedy: bool,
}

/// Log-likelihoods of every option of every question, in order. Rows of one length run together, so that none is padded.
fn ask(inputs: &Inputs<'_>, questions: &[Question], name: &'static str) -> Result<Vec<Vec<Said>>> {
    let mut rows: Vec<(usize, usize, &Continuation)> = questions
        .iter()
        .enumerate()
        .flat_map(|(q, question)| question.options.iter().enumerate().map(move |(o, option)| (q, o, option)))
        .collect();
    rows.sort_by_key(|(q, o, c)| (c.ids.len(), *q, *o));
    let mut out: Vec<Vec<Said>> = questions.iter().map(|q| vec![Said::default(); q.options.len()]).collect();
    let (mut done, total) = (0, rows.len() as u64);
    for alike in rows.chunk_by(|a, b| a.2.ids.len() == b.2.ids.len()) {
        for batch in alike.chunks(inputs.batch.max(1)) {
            inputs.progress.check()?;
            let said = say(inputs.model, &batch.iter().map(|r| r.2).collect::<Vec<_>>())?;
            for ((q, o, _), said) in batch.iter().zip(said) {
                if let Some(slot) = out.get_mut(*q).and_then(|q| q.get_mut(*o)) {
                    *slot = said;
                }
            }
            done += batch.len() as u64;
            inputs.progress.advance(done, total, name);
        }
    }
    Ok(out)
}

/// Continuations of one length, at once.
fn say(model: &Transformer, batch: &[&Continuation]) -> Result<Vec<Said>> {
    // The last token is never an input: nothing is predicted from it.
    let length = batch.first().map_or(0, |c| c.ids.len()).saturating_sub(1);
    let ids: Vec<u32> = batch.iter().flat_map(|c| c.ids.iter().take(length).copied()).collect();
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for (i, c) in batch.iter().enumerate() {
        for (at, id) in c.ids.iter().enumerate().skip(c.from.max(1)) {
            rows.push((i * length + at - 1) as u32);
            targets.push(*id);
        }
    }
    let input = Batch::new(Tensor::from_vec(ids, (batch.len(), length), model.device())?);
    let (x, context) = model.hidden(&input, &Gates::default(), &mut ())?;
    let logits = model.finish_rows(&x, &context, &rows, &mut ())?.to_dtype(DType::F32)?; // [scored, vocab]
    let best = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
    let n = targets.len();
    let nll: Vec<f32> = cross_entropy(&logits, &Tensor::new(targets.as_slice(), model.device())?.reshape(n)?)?.to_vec1()?;
    let mut out = Vec::with_capacity(batch.len());
    let mut scored = nll.iter().zip(best.iter().zip(&targets));
    for c in batch {
        let mut said = Said { log_likelihood: 0.0, greedy: true };
        for (nll, (best, target)) in scored.by_ref().take(c.ids.len().saturating_sub(c.from.max(1))) {
            said.log_likelihood -= f64::from(*nll);
            said.greedy &= best == target;
        }
        out.push(said);
    }
    Ok(out)
}

fn questions<'a>(inputs: &Inputs<'a>, method: &'static str) -> Result<&'a [Question]> {
    match inputs.questions {
        None => Err(PruneError::Missing { method, needs: "data with continuations: `choices = […]`".into() }),
        Some([]) => Err(PruneError::NoData { method, batches: 0 }),
        Some(all) => Ok(all),
    }
}

/// A share of examples, with its binomial standard error.
fn share(right: Vec<f64>, tokens: u64, protocol: String) -> Measured {
    let n = right.len() as f64;
    let value = right.iter().sum::<f64>() / n;
    Measured {
        value,
        stderr: Some((value * (1.0 - value) / n).sqrt()),
        protocol,
        tokens: Some(tokens),
        examples: Some(right.len() as u64),
        per_example: right,
        ..Measured::default()
    }
}

fn scored_tokens(questions: &[Question]) -> u64 {
    questions.iter().flat_map(|q| &q.options).map(|c| c.ids.len().saturating_sub(c.from) as u64).sum()
}

struct Choice {
    length: Length,
}

impl Choice {
    /// The option with the highest log-likelihood by its length; the first of equals.
    fn best(&self, question: &Question, said: &[Said]) -> usize {
        let by = |c: &Continuation| match self.length {
            Length::None => 1.0,
            Length::Characters => c.characters.max(1) as f64,
            Length::Bytes => c.bytes.max(1) as f64,
        };
        let mut best = (0, f64::NEG_INFINITY);
        for (i, (c, s)) in question.options.iter().zip(said).enumerate() {
            let x = s.log_likelihood / by(c);
            if x > best.1 {
                best = (i, x);
            }
        }
        best.0
    }
}

impl Metric for Choice {
    fn needs(&self) -> Needs {
        Needs::Choices
    }

    fn higher_is_better(&self) -> Option<bool> {
        Some(true)
    }

    fn measure(&self, inputs: &mut Inputs<'_>) -> Result<Measured> {
        let questions = questions(inputs, "choice")?;
        let said = ask(inputs, questions, "choice")?;
        let right = questions.iter().zip(&said).map(|(q, s)| f64::from(u8::from(self.best(q, s) == q.answer)));
        let length = match self.length {
            Length::None => "",
            Length::Characters => " divided by the option's characters",
            Length::Bytes => " divided by the option's UTF-8 bytes",
        };
        let summed = match questions.iter().all(|q| q.partial) {
            true => "what stands behind the option (partial evaluation)",
            false => "its tokens behind the question and a blank",
        };
        let protocol = format!(
            "share of questions whose right option has the highest log-likelihood{length}, summed over {summed}, the first of equals; no examples in front (zero-shot)"
        );
        let of_right: f64 = questions.iter().zip(&said).filter_map(|(q, s)| s.get(q.answer)).map(|s| s.log_likelihood).sum();
        let details = [("log-likelihood".to_owned(), of_right / questions.len() as f64)].into();
        Ok(Measured { details, ..share(right.collect(), scored_tokens(questions), protocol) })
    }
}

struct LastWord;

impl Metric for LastWord {
    fn needs(&self) -> Needs {
        Needs::LastWords
    }

    fn higher_is_better(&self) -> Option<bool> {
        Some(true)
    }

    fn measure(&self, inputs: &mut Inputs<'_>) -> Result<Measured> {
        let questions = questions(inputs, "last_word")?;
        let said = ask(inputs, questions, "last_word")?;
        let right = said.iter().map(|s| f64::from(u8::from(s.first().is_some_and(|s| s.greedy)))).collect();
        let nll = -said.iter().filter_map(|s| s.first()).map(|s| s.log_likelihood).sum::<f64>() / said.len() as f64;
        let protocol = format!(
            "share of texts whose last word the model's first choices spell, token by token; exp of the mean negative log-likelihood of a last word: {:.4}",
            nll.exp()
        );
        Ok(share(right, scored_tokens(questions), protocol))
    }
}

fn choice(args: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    let length = match args.word("length")? {
        "characters" => Length::Characters,
        "bytes" => Length::Bytes,
        _ => Length::None,
    };
    Ok(Box::new(Choice { length }))
}

fn last_word(_: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    Ok(Box::new(LastWord))
}

pub(super) const CHOICE: Entry<dyn Metric> = Entry {
    spec: needs_data(metric(
        "choice",
        "Brown et al., Language Models are Few-Shot Learners (2020), sec. 2.4; `acc` and `acc_norm` as lm-evaluation-harness defines them",
        &[param(
            "length",
            Ty::OneOf(&["none", "characters", "bytes"]),
            "none",
            "What log-likelihoods are divided by: `none` is the harness's acc, `characters` its acc_norm, `bytes` its acc_bytes.",
        )],
        "Multiple choice by log-likelihood (ARC, HellaSwag, PIQA, WinoGrande, MMLU): the share of questions whose right option is the likeliest. The data names the \
         options in `choices`; `label` is the right one's number from 0, its letter, or its text. Without `label` the first option is right, and without a text the \
         options stand alone behind the tokenizer's BOS (or EOS): minimal pairs (BLiMP). `form = mmlu` (or another benchmark) in the data statement reads the \
         benchmark's own columns and makes the harness's prompt of them; WinoGrande's options fill the sentence's blank, and what stands behind it is scored.\n\n\
         ```prune\ndata pairs = jsonl(\"wug.jsonl\", choices = [\"sentence_good\", \"sentence_bad\"])\neval choice() of m on pairs as grammar\n```",
    )),
    build: choice,
};

pub(super) const LAST_WORD: Entry<dyn Metric> = Entry {
    spec: needs_data(metric(
        "last_word",
        "Paperno et al., The LAMBADA dataset (2016)",
        &[],
        "Share of texts whose last word (what stands behind the last blank) the model would write itself, always taking its first choice.",
    )),
    build: last_word,
};

#[cfg(test)]
mod tests {
    use super::*;

    fn option(characters: usize, bytes: usize) -> Continuation {
        Continuation { ids: vec![1, 2], from: 1, characters, bytes }
    }

    #[test]
    fn lengths_decide_between_a_long_and_a_short_option() {
        let question = Question { options: vec![option(2, 8), option(8, 9)], answer: 1, partial: false };
        let said = [-3.0, -6.0].map(|log_likelihood| Said { log_likelihood, greedy: false });
        let best = |length| Choice { length }.best(&question, &said);
        // −3 against −6; −1.5 against −0.75; −0.375 against −0.667.
        assert_eq!((best(Length::None), best(Length::Characters), best(Length::Bytes)), (0, 1, 0));
        let same = [Said { log_likelihood: -1.0, greedy: true }; 2];
        assert_eq!(Choice { length: Length::None }.best(&question, &same), 0);
    }
}
