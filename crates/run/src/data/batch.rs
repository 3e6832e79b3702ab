//! Rows as batches of tensors: tokenised in parallel, cut by a stated rule, padded to the longest of their batch, in the order of the
//! data whatever the batch.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use prunectl_model::{Batch, IGNORED, Labels};
use prunectl_prune::{Batches, Examples, PruneError};
use rayon::prelude::*;

use super::answers::{self, Windows};
use super::chat;
use super::document::Document;
use super::draw::Draw;
use super::error::DataError;
use super::labels::{self, Classes};
use super::select::{Dataset, RowKind, RowRef, Selection};
use super::tokens::{LabelKind, TokenLabel};
use crate::tokenizer::Tokenizer;

/// Rows that are tokenised ahead, in parallel.
const AHEAD_ROWS: usize = 256;
/// Tokens kept after tokenising, for steps that pass over their data many times (about 16 bytes each at most).
const CACHED_TOKENS: usize = 16 << 20;

/// What the loss compares with.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// The tokens themselves, padding ignored. Not shifted: the loss shifts them.
    NextToken,
    /// Tokens hidden as BERT's are (Devlin et al. 2018, §3.1): of those that are not special, each is chosen with this probability; a
    /// chosen one becomes the mask token in 80 %, a random one in 10 %, and stays in 10 %. The choice depends on the seed, the epoch and
    /// the row alone.
    MaskedToken { probability: f64, seed: u64 },
    /// One class a row.
    Classes(Classes),
    /// One value a row.
    Values,
    /// First and last token of the answer that the context has to the question.
    Answers,
}

/// What a missing label does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// It is an error.
    Required,
    /// Batches then have no labels, all of them.
    Optional,
}

/// How rows become batches.
#[derive(Debug, Clone)]
pub struct BatchSpec {
    /// What the loss compares with; `None`: batches have no labels.
    pub target: Option<Target>,
    /// Whether every row must have a label.
    pub need: Need,
    /// Documents are cut to so many tokens, special tokens included: the model's longest row, or a step's `length`.
    pub max_length: usize,
    /// Rows in a batch.
    pub batch: usize,
    /// The two texts of a pair become rows of their own: a batch of n pairs has 2n rows, the first texts and then the second ones, and n
    /// labels.
    pub apart: bool,
    /// Rows of the model's embedding: ids must be below.
    pub vocabulary: usize,
    /// Token types that the model knows; 0 leaves them out of the batches.
    pub token_types: usize,
    /// Where the tensors go.
    pub device: Device,
}

/// A row in tokens, ready for a batch.
#[derive(Debug)]
struct Ready {
    ids: Vec<u32>,
    keep: Option<Vec<u8>>,
    types: Option<Vec<u32>>,
    tokens: Option<Vec<i64>>,
    /// First and last token of an answer.
    answer: Option<(usize, usize)>,
    cut: bool,
    /// The second text of a pair that stays apart.
    second: Option<Arc<Ready>>,
}

/// One label a row, for all rows.
#[derive(Debug)]
enum RowLabels {
    Classes(Vec<i64>),
    Values(Vec<f32>),
}

/// Batches of a [`Dataset`], for passes in order ([`Batches`]) and for training ([`Examples`]).
#[derive(Debug)]
pub struct DataBatches {
    what: String,
    selection: Selection,
    tokenizer: Option<Tokenizer>,
    spec: BatchSpec,
    labels: Option<RowLabels>,
    /// Whether rows carry a label for each token.
    token_labels: bool,
    cache: Vec<Option<Arc<Ready>>>,
    cached_tokens: usize,
    ahead: BTreeMap<usize, Arc<Ready>>,
    at: usize,
    epoch: u64,
    cut: Vec<bool>,
    tokens: Option<u64>,
}

impl Dataset {
    /// Batches of the rows. Labels, token files and the fit of tokenizer and embedding are checked here, before a step begins.
    pub fn batches(&self, tokenizer: Option<&Tokenizer>, spec: BatchSpec) -> Result<DataBatches, DataError> {
        let what = self.describe();
        if spec.batch == 0 || spec.max_length == 0 {
            let found = format!("batch = {}, length = {}", spec.batch, spec.max_length);
            return Err(DataError::Argument { what, found, expected: "at least 1".into() });
        }
        let selection = self.select(tokenizer)?;
        let text = selection.kind() == RowKind::Documents;
        let tokenizer = match (text, tokenizer) {
            (true, None) => return Err(DataError::NoTokenizer { what }),
            (true, Some(t)) => {
                t.fits(spec.vocabulary)?;
                Some(t.limited(spec.max_length)?)
            }
            (false, t) => t.cloned(),
        };
        if let Some(Target::MaskedToken { probability, .. }) = &spec.target {
            if !(*probability > 0.0 && *probability < 1.0) {
                let expected = "between 0 and 1".into();
                return Err(DataError::Argument { what, found: format!("a mask probability of {probability}"), expected });
            }
            tokenizer.as_ref().ok_or_else(|| DataError::NoTokenizer { what: what.clone() })?.mask()?;
        }
        let (labels, token_labels) = row_labels(&selection, &spec, &what)?;
        let tokens = window_tokens(&selection);
        if let Some((row, length)) = longest_window(&selection).filter(|(_, l)| *l > spec.max_length) {
            return Err(DataError::TooLong { place: selection.place(row), length, limit: spec.max_length });
        }
        let rows = selection.rows.len();
        Ok(DataBatches {
            what,
            tokenizer,
            spec,
            labels,
            token_labels,
            cache: (0..rows).map(|_| None).collect(),
            cached_tokens: 0,
            ahead: BTreeMap::new(),
            at: 0,
            epoch: 0,
            cut: vec![false; rows],
            tokens,
            selection,
        })
    }
}

/// Length of the windows and first row of that length, of those that are cut from a stream or a token file.
fn longest_window(s: &Selection) -> Option<(usize, usize)> {
    let length = |r: &RowRef| match r {
        RowRef::Window { stream, .. } => s.streams.get(*stream as usize).map(|w| w.length),
        RowRef::Stored { table, .. } => s.table(*table)?.tokens().map(super::tokens::TokenTable::width),
    };
    s.rows.iter().enumerate().filter_map(|(i, r)| Some((i, length(r)?))).fold(None, |best: Option<(usize, usize)>, (i, l)| match best {
        Some(b) if b.1 >= l => Some(b),
        _ => Some((i, l)),
    })
}

/// Tokens of all rows, where that is known without reading them: windows are never padded.
fn window_tokens(s: &Selection) -> Option<u64> {
    let one = |r: &RowRef| match r {
        RowRef::Window { stream, .. } => s.streams.get(*stream as usize).map(|w| w.length as u64),
        RowRef::Stored { table, .. } => s.table(*table)?.tokens().filter(|t| !t.has_padding()).map(|t| t.width() as u64),
    };
    s.rows.iter().map(one).sum()
}

fn row_labels(s: &Selection, spec: &BatchSpec, what: &str) -> Result<(Option<RowLabels>, bool), DataError> {
    let Some(target) = &spec.target else { return Ok((None, false)) };
    if s.chat.is_some() {
        return match target {
            Target::NextToken => Ok((None, true)),
            _ => Err(DataError::Mixed {
                what: what.to_owned(),
                found: "conversations".into(),
                expected: "texts: only a causal language model reads conversations".into(),
            }),
        };
    }
    if matches!(target, Target::Answers) {
        return match s.kind() {
            RowKind::Documents => Ok((None, false)),
            _ if spec.need == Need::Optional => Ok((None, false)),
            _ => Err(DataError::Mixed { what: what.to_owned(), found: "rows of tokens".into(), expected: "questions and contexts".into() }),
        };
    }
    let stored = |r: &RowRef| match r {
        RowRef::Stored { table, row } => Some((s.table(*table)?, *row as usize)),
        RowRef::Window { .. } => None,
    };
    let token_kind = |r: &RowRef| stored(r).and_then(|(t, _)| t.tokens()).map(|t| t.label_kind());
    let per_row = matches!(target, Target::Classes(_) | Target::Values);
    let mut kinds: Vec<LabelKind> = s.rows.iter().filter_map(token_kind).collect();
    kinds.dedup();
    if !per_row {
        return match kinds.as_slice() {
            [] | [LabelKind::Absent] => Ok((None, false)),
            [LabelKind::Tokens] => Ok((None, true)),
            [LabelKind::Class | LabelKind::Value] => Err(DataError::Mixed {
                what: what.to_owned(),
                found: "one label for each row".into(),
                expected: "labels [rows, tokens] for a model that predicts tokens, or none".into(),
            }),
            _ => Err(DataError::Mixed {
                what: what.to_owned(),
                found: "token files with and without labels".into(),
                expected: "all with, or all without".into(),
            }),
        };
    }
    if kinds.contains(&LabelKind::Tokens) {
        return Err(DataError::Mixed {
            what: what.to_owned(),
            found: "a label for each token".into(),
            expected: "labels [rows]: the model gives one answer a row".into(),
        });
    }
    let (mut classes, mut values) = (Vec::new(), Vec::new());
    for (at, r) in s.rows.iter().enumerate() {
        let place = || s.place(at);
        let label = stored(r).and_then(|(table, row)| match table.tokens() {
            None => table.label(row).cloned(),
            Some(t) => match t.row(row).label {
                Some(TokenLabel::Class(c)) => Some(super::Label::Integer(c)),
                Some(TokenLabel::Value(v)) => Some(super::Label::Real(v)),
                Some(TokenLabel::Tokens(_)) | None => None,
            },
        });
        let Some(label) = label else {
            if spec.need == Need::Optional {
                return Ok((None, false));
            }
            let why = match stored(r) {
                None => "windows of a token stream have none: use the documents themselves",
                Some(_) => "the model is measured against labels: say which column holds them (`label = \"…\"`)",
            };
            return Err(DataError::NoLabel { place: place(), why: why.into() });
        };
        match target {
            Target::Classes(c) => {
                let names = stored(r).map_or(&[][..], |(t, _)| &t.label_names);
                classes.push(c.class(&label, names, place)?);
            }
            _ => values.push(labels::value(&label, place)?),
        }
    }
    Ok((Some(if matches!(target, Target::Classes(_)) { RowLabels::Classes(classes) } else { RowLabels::Values(values) }), false))
}

impl DataBatches {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.selection.rows.len()
    }

    /// Which tokens [`Target::MaskedToken`] hides: each epoch hides others. 0 unless set.
    pub fn set_epoch(&mut self, epoch: u64) {
        if self.epoch != epoch && matches!(self.spec.target, Some(Target::MaskedToken { .. })) {
            self.cache.iter_mut().for_each(|c| *c = None);
            self.cached_tokens = 0;
            self.ahead.clear();
        }
        self.epoch = epoch;
    }

    /// Tokens in one pass over the rows, padding left out. Tokenises what is not tokenised yet.
    pub fn count_tokens(&mut self) -> Result<u64, DataError> {
        if let Some(n) = self.tokens {
            return Ok(n);
        }
        let mut total = 0;
        let all: Vec<usize> = (0..self.rows()).collect();
        for rows in all.chunks(AHEAD_ROWS) {
            for ready in self.ready(rows)? {
                total += ready.keep.as_ref().map_or(ready.ids.len(), |k| k.iter().filter(|k| **k != 0).count()) as u64;
            }
        }
        self.tokens = Some(total);
        Ok(total)
    }

    /// What a reader of the results should know: the rule for long rows, and how many of those read so far it cut.
    pub fn notes(&self) -> Vec<String> {
        let cut = self.cut.iter().filter(|c| **c).count();
        match (&self.tokenizer, cut) {
            (Some(t), 1..) if self.selection.kind() == RowKind::Documents => {
                vec![format!("{}: {cut} of {} rows were cut; {}", self.what, self.rows(), t.rule())]
            }
            _ => Vec::new(),
        }
    }

    /// The rows with these numbers as one batch, in that order.
    pub fn batch_of(&mut self, rows: &[usize]) -> Result<Batch, DataError> {
        let mut ready = self.ready(rows)?;
        if self.spec.apart {
            let second: Vec<Arc<Ready>> = ready.iter().filter_map(|r| r.second.clone()).collect();
            ready.extend(second);
        }
        let length = ready.iter().map(|r| r.ids.len()).max().unwrap_or(0);
        let pad = self.tokenizer.as_ref().map_or(0, Tokenizer::pad);
        let size = (ready.len(), length);
        let device = &self.spec.device;
        // Padding is on the right: positions then count from 0 in every row.
        let padded = ready.len() * length != ready.iter().map(|r| r.ids.len()).sum::<usize>();
        let ids = fill(&ready, length, pad, |r| Some(&r.ids));
        let keep = (padded || ready.iter().any(|r| r.keep.is_some())).then(|| {
            let mut keep = Vec::with_capacity(rows.len() * length);
            for r in &ready {
                match &r.keep {
                    Some(k) => keep.extend_from_slice(k),
                    None => keep.extend(std::iter::repeat_n(1u8, r.ids.len())),
                }
                keep.extend(std::iter::repeat_n(0u8, length - r.ids.len()));
            }
            keep
        });
        let types =
            (self.spec.token_types > 0 && ready.iter().any(|r| r.types.is_some())).then(|| fill(&ready, length, 0, |r| r.types.as_ref()));
        let labels = match (&self.spec.target, &self.labels) {
            (None, _) => None,
            (_, Some(RowLabels::Classes(all))) => {
                let picked: Vec<i64> = rows.iter().filter_map(|r| all.get(*r).copied()).collect();
                Some(Labels::Classes(Tensor::new(picked, device)?))
            }
            (_, Some(RowLabels::Values(all))) => {
                let picked: Vec<f32> = rows.iter().filter_map(|r| all.get(*r).copied()).collect();
                Some(Labels::Values(Tensor::new(picked, device)?))
            }
            (Some(Target::Classes(_) | Target::Values), None) => None,
            (Some(Target::Answers), None) => {
                let ends = ready.iter().map(|r| r.answer).collect::<Option<Vec<_>>>();
                let ends = ends.map(|e| e.into_iter().flat_map(|(first, last)| [first as i64, last as i64]).collect::<Vec<_>>());
                ends.map(|e| Tensor::from_vec(e, (ready.len(), 2), device).map(Labels::Spans)).transpose()?
            }
            (Some(Target::NextToken | Target::MaskedToken { .. }), None) => {
                let mut labels = Vec::with_capacity(rows.len() * length);
                for r in &ready {
                    match &r.tokens {
                        Some(t) => labels.extend_from_slice(t),
                        None => labels.extend(r.ids.iter().enumerate().map(|(i, id)| match r.keep.as_ref().and_then(|k| k.get(i)) {
                            Some(0) => IGNORED,
                            _ => i64::from(*id),
                        })),
                    }
                    labels.extend(std::iter::repeat_n(IGNORED, length - r.ids.len()));
                }
                Some(Labels::Tokens(Tensor::from_vec(labels, size, device)?))
            }
        };
        Ok(Batch {
            input_ids: Tensor::from_vec(ids, size, device)?,
            keep: keep.map(|k| Tensor::from_vec(k, size, device)).transpose()?,
            token_type_ids: types.map(|t| Tensor::from_vec(t, size, device)).transpose()?,
            labels,
        })
    }

    /// Rows in tokens, from the cache or made in parallel.
    fn ready(&mut self, rows: &[usize]) -> Result<Vec<Arc<Ready>>, DataError> {
        let known = |this: &Self, row: usize| this.cache.get(row).cloned().flatten().or_else(|| this.ahead.get(&row).cloned());
        let mut missing: Vec<usize> = rows.iter().copied().filter(|r| known(self, *r).is_none()).collect();
        if !missing.is_empty() {
            missing.sort_unstable();
            missing.dedup();
            // All are made before the first error is looked at: which one is reported must not depend on which thread was first.
            let made: Vec<(usize, Result<Ready, DataError>)> = missing.into_par_iter().map(|r| (r, self.make(r))).collect();
            self.ahead.clear();
            for (row, ready) in made {
                let ready = Arc::new(ready?);
                if let Some(cut) = self.cut.get_mut(row) {
                    *cut = ready.cut;
                }
                match self.cache.get_mut(row) {
                    Some(slot) if self.cached_tokens + ready.ids.len() <= CACHED_TOKENS => {
                        self.cached_tokens += ready.ids.len();
                        *slot = Some(ready);
                    }
                    _ => drop(self.ahead.insert(row, ready)),
                }
            }
        }
        let absent = |row: usize| DataError::Argument {
            what: self.what.clone(),
            found: format!("row {row}"),
            expected: format!("rows 0 to {}", self.rows().saturating_sub(1)),
        };
        rows.iter().map(|r| known(self, *r).ok_or_else(|| absent(*r))).collect()
    }

    fn make(&self, at: usize) -> Result<Ready, DataError> {
        let empty = || DataError::Empty { what: self.selection.place(at).to_string(), hint: "the row has no tokens".into() };
        let mut ready = match self.selection.rows.get(at) {
            Some(RowRef::Window { stream, start }) => {
                let windows = self.selection.streams.get(*stream as usize);
                let window = windows.and_then(|w| w.ids.get(*start as usize..*start as usize + w.length));
                Ready {
                    ids: window.unwrap_or_default().to_vec(),
                    keep: None,
                    types: None,
                    tokens: None,
                    answer: None,
                    cut: false,
                    second: None,
                }
            }
            Some(RowRef::Stored { table, row }) => {
                let table = self.selection.table(*table).ok_or_else(empty)?;
                match table.tokens() {
                    Some(tokens) => self.stored(at, tokens.row(*row as usize))?,
                    None => {
                        let document = table.document(*row as usize)?.ok_or_else(empty)?;
                        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| DataError::NoTokenizer { what: self.what.clone() })?;
                        if let Some(learn) = self.selection.chat {
                            return self.conversation(at, &document, tokenizer, learn);
                        }
                        let answers = document.answers.is_some() || self.spec.need == Need::Required;
                        if answers && matches!(self.spec.target, Some(Target::Answers)) {
                            return self.answer(at, &document, tokenizer);
                        }
                        let pair = document.pair.as_deref();
                        let one = |text: &str, pair: Option<&str>| -> Result<Ready, DataError> {
                            let e = tokenizer.encode(text, pair)?;
                            Ok(Ready { ids: e.ids, keep: None, types: e.types, tokens: None, answer: None, cut: e.cut, second: None })
                        };
                        match (self.spec.apart, pair) {
                            (false, pair) => one(&document.text, pair)?,
                            (true, Some(pair)) => {
                                let second = one(pair, None)?;
                                let first = one(&document.text, None)?;
                                Ready { cut: first.cut || second.cut, second: Some(Arc::new(second)), ..first }
                            }
                            (true, None) => {
                                return Err(DataError::Mixed {
                                    what: self.selection.place(at).to_string(),
                                    found: "one text".into(),
                                    expected: "a pair of texts, whose embeddings are compared: say which column holds the second one \
                                               (`text_pair = \"…\"`)"
                                        .into(),
                                });
                            }
                        }
                    }
                }
            }
            None => return Err(empty()),
        };
        if ready.ids.is_empty() {
            return Err(empty());
        }
        let both = ready.ids.iter().chain(ready.second.iter().flat_map(|s| &s.ids));
        if let Some(id) = both.into_iter().find(|id| **id as usize >= self.spec.vocabulary) {
            let place = self.selection.place(at);
            return Err(DataError::TokenRange { place, id: i64::from(*id), rows: self.spec.vocabulary });
        }
        if let (Some(Target::MaskedToken { probability, seed }), false) = (&self.spec.target, self.token_labels) {
            self.hide(at, &mut ready, *probability, *seed)?;
        }
        Ok(ready)
    }

    fn answer(&self, at: usize, document: &Document, tokenizer: &Tokenizer) -> Result<Ready, DataError> {
        let windows = Windows::usual(self.spec.max_length);
        let (window, answer, cut) = answers::to_learn(tokenizer, document, windows, &|| self.selection.place(at))?;
        Ok(Ready { ids: window.ids, keep: None, types: window.types, tokens: None, answer: Some(answer), cut, second: None })
    }

    fn conversation(&self, at: usize, document: &Document, tokenizer: &Tokenizer, learn: chat::Learn) -> Result<Ready, DataError> {
        let messages = document.messages.as_deref().ok_or_else(|| DataError::Mixed {
            what: self.selection.place(at).to_string(),
            found: "a text".into(),
            expected: "the turns of a conversation: say which column holds them (`messages = \"…\"`)".into(),
        })?;
        let e = chat::encode(tokenizer, messages, learn, self.spec.max_length, || self.selection.place(at))?;
        Ok(Ready { ids: e.ids, keep: None, types: None, tokens: Some(e.labels), answer: None, cut: e.cut, second: None })
    }

    fn stored(&self, at: usize, row: super::tokens::TokenRow) -> Result<Ready, DataError> {
        let place = || self.selection.place(at);
        let range = |id: i64| DataError::TokenRange { place: place(), id, rows: self.spec.vocabulary };
        let ids = row.ids.iter().map(|id| u32::try_from(*id).map_err(|_| range(*id))).collect::<Result<Vec<u32>, _>>()?;
        let known = self.spec.token_types;
        if let Some(t) = row.types.as_ref().filter(|_| known > 0).and_then(|t| t.iter().find(|t| **t as usize >= known)) {
            let expected = format!("below {known}, the token types that the model has");
            return Err(DataError::Argument { what: place().to_string(), found: format!("token type {t}"), expected });
        }
        let tokens = match row.label {
            Some(TokenLabel::Tokens(labels)) if self.token_labels => {
                let wrong = labels.iter().find(|l| **l != IGNORED && !usize::try_from(**l).is_ok_and(|l| l < self.spec.vocabulary));
                if let Some(label) = wrong {
                    let expected = format!("a token id below {}, or {IGNORED}", self.spec.vocabulary);
                    return Err(DataError::LabelKind { place: place(), found: label.to_string(), expected });
                }
                Some(labels)
            }
            _ => None,
        };
        let keep = row.keep.filter(|k| k.contains(&0));
        Ok(Ready { ids, keep, types: row.types.filter(|t| t.iter().any(|t| *t != 0)), tokens, answer: None, cut: false, second: None })
    }

    fn hide(&self, at: usize, ready: &mut Ready, probability: f64, seed: u64) -> Result<(), DataError> {
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| DataError::NoTokenizer { what: self.what.clone() })?;
        let mask = tokenizer.mask()?;
        // One stream for each row and epoch; a row's number takes 32 bits.
        let mut draw = Draw::new(seed, b"masked\0\0", (self.epoch << 32) | at as u64);
        let mut labels = vec![IGNORED; ready.ids.len()];
        for (i, (id, label)) in ready.ids.iter_mut().zip(&mut labels).enumerate() {
            let padding = ready.keep.as_ref().and_then(|k| k.get(i)) == Some(&0);
            // Every position draws the same number of times, so that one token does not move the choices behind it.
            let (chosen, kind, random) = (draw.chance(probability), draw.below(10), draw.below(tokenizer.vocabulary() as u64));
            if padding || tokenizer.is_special(*id) || !chosen {
                continue;
            }
            *label = i64::from(*id);
            match kind {
                0..8 => *id = mask,
                8 => *id = random as u32,
                _ => {}
            }
        }
        ready.tokens = Some(labels);
        Ok(())
    }
}

/// `[rows, length]`, row by row, what is behind a row's end filled up.
fn fill(ready: &[Arc<Ready>], length: usize, with: u32, of: impl Fn(&Ready) -> Option<&Vec<u32>>) -> Vec<u32> {
    let mut out = Vec::with_capacity(ready.len() * length);
    for (i, r) in ready.iter().enumerate() {
        out.extend_from_slice(of(r).map_or(&[][..], |v| v));
        out.resize((i + 1) * length, with);
    }
    out
}

fn outside(e: DataError) -> PruneError {
    PruneError::Data(Box::new(e))
}

impl Batches for DataBatches {
    fn reset(&mut self) -> prunectl_prune::Result<()> {
        self.at = 0;
        Ok(())
    }

    fn next(&mut self) -> prunectl_prune::Result<Option<Batch>> {
        let end = (self.at + self.spec.batch).min(self.rows());
        let rows: Vec<usize> = (self.at..end).collect();
        if rows.is_empty() {
            return Ok(None);
        }
        let known = |r: &usize| self.ahead.contains_key(r) || self.cache.get(*r).is_some_and(Option::is_some);
        if !rows.iter().all(known) {
            let ahead: Vec<usize> = (self.at..(self.at + AHEAD_ROWS.max(self.spec.batch)).min(self.rows())).collect();
            self.ready(&ahead).map_err(outside)?;
        }
        let batch = self.batch_of(&rows).map_err(outside)?;
        self.at = end;
        Ok(Some(batch))
    }

    fn len_hint(&self) -> Option<usize> {
        Some(self.rows().div_ceil(self.spec.batch))
    }
}

impl Examples for DataBatches {
    fn len(&self) -> usize {
        self.rows()
    }

    fn epoch(&mut self, epoch: u64) {
        self.set_epoch(epoch);
    }

    fn batch(&mut self, indices: &[usize]) -> prunectl_prune::Result<Batch> {
        self.batch_of(indices).map_err(outside)
    }

    fn tokens_hint(&self) -> Option<u64> {
        self.tokens
    }
}
