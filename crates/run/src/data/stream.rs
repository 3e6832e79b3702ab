//! Documents as one stream of tokens.

use std::sync::{Arc, Mutex, PoisonError};

use prunectl_prune::TokenStream;
use rayon::prelude::*;

use super::error::{DataError, Place};
use super::select::{Dataset, RowKind, RowRef, Selection};
use crate::tokenizer::Tokenizer;

/// What stands between two documents.
const BLANK_LINE: &str = "\n\n";
/// Text that is tokenised at once where a stream is only cut into windows: enough that the cuts are rare, little enough that a text of
/// many gigabytes passes through memory. A tokenizer needs some two hundred bytes for each byte that it works on.
pub const SEGMENT_BYTES: usize = 128 * 1024;
/// Segments in memory at once.
const SEGMENTS: usize = 256;
/// Tokens of a stream that is kept for the next step: 64 MiB.
const KEPT_TOKENS: usize = 16 << 20;

/// The stream that windows were last cut from: the steps of a recipe mostly ask for the same one.
#[derive(Debug, Default)]
pub(crate) struct LastStream(Mutex<Option<(String, Arc<Vec<u32>>)>>);

impl LastStream {
    /// [`in_segments`], or what it gave the last time for the same data and tokenizer.
    pub(crate) fn of(&self, selection: &Selection, what: &str, tokenizer: Option<&Tokenizer>) -> Result<Arc<Vec<u32>>, DataError> {
        let key = format!("{what} {}", tokenizer.map(Tokenizer::sha256).unwrap_or_default());
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, ids)) = last.as_ref().filter(|(k, _)| *k == key) {
            return Ok(ids.clone());
        }
        *last = None;
        let ids = Arc::new(in_segments(selection, what, tokenizer)?);
        if ids.len() <= KEPT_TOKENS {
            *last = Some((key, ids.clone()));
        }
        Ok(ids)
    }
}

impl Dataset {
    /// The stream that perplexity is defined on: documents joined by a blank line and tokenised once, as one text. Rows of a token file
    /// are put one behind the other, padding left out.
    ///
    /// The whole text is in memory while it is tokenised. Every id is below `vocabulary`.
    pub fn stream(&self, tokenizer: Option<&Tokenizer>, vocabulary: usize) -> Result<TokenStream, DataError> {
        let selection = self.select(tokenizer)?;
        refuse_chat(&selection, &self.describe())?;
        let out = match selection.kind() {
            RowKind::Tokens => TokenStream { prefix: Vec::new(), ids: stored(&selection)? },
            RowKind::Documents => {
                let tokenizer = tokenizer.ok_or_else(|| DataError::NoTokenizer { what: self.describe() })?;
                let mut text = String::new();
                for row in 0..selection.rows.len() {
                    if row > 0 {
                        text.push_str(BLANK_LINE);
                    }
                    text.push_str(&text_of(&selection, row)?);
                }
                TokenStream { prefix: tokenizer.prefix().to_vec(), ids: tokenizer.encode_plain(&text)? }
            }
        };
        let found = out.prefix.iter().chain(&out.ids).enumerate().find(|(_, id)| **id as usize >= vocabulary);
        if let Some((at, id)) = found {
            let place = Place { file: format!("the token stream of {}, token", self.describe()), line: at as u64 };
            return Err(DataError::TokenRange { place, id: i64::from(*id), rows: vocabulary });
        }
        match out.ids.is_empty() {
            true => Err(DataError::Empty { what: self.describe(), hint: "its text has no tokens".into() }),
            false => Ok(out),
        }
    }
}

/// The stream that windows for training and calibration are cut from: as [`Dataset::stream`], its prefix in front, but tokenised in
/// segments of some 128 KiB of whole documents, in parallel. Only tokens beside the seams, one in some 30,000, can differ
/// from those of one text; a text below that size has none.
pub(super) fn in_segments(selection: &Selection, what: &str, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>, DataError> {
    refuse_chat(selection, what)?;
    if selection.kind() == RowKind::Tokens {
        return stored(selection);
    }
    let tokenizer = tokenizer.ok_or_else(|| DataError::NoTokenizer { what: what.to_owned() })?;
    let mut out = tokenizer.prefix().to_vec();
    let mut segments = vec![String::new()];
    let last = selection.rows.len().saturating_sub(1);
    for row in 0..selection.rows.len() {
        let text = text_of(selection, row)?;
        let full = segments.last().is_some_and(|s| s.len() >= SEGMENT_BYTES);
        if full && segments.len() == SEGMENTS {
            drain(&mut segments, tokenizer, &mut out)?;
        }
        if full {
            segments.push(String::new());
        }
        if let Some(segment) = segments.last_mut() {
            segment.push_str(&text);
            if row < last {
                segment.push_str(BLANK_LINE);
            }
        }
    }
    drain(&mut segments, tokenizer, &mut out)?;
    Ok(out)
}

/// A stream has no turns: what is learned from would be lost.
fn refuse_chat(selection: &Selection, what: &str) -> Result<(), DataError> {
    match selection.chat {
        None => Ok(()),
        Some(_) => Err(DataError::Mixed {
            what: what.to_owned(),
            found: "conversations".into(),
            expected: "texts: a stream of tokens has no turns. Use conversations row by row".into(),
        }),
    }
}

/// Tokenises segments in parallel and appends them in order.
fn drain(segments: &mut Vec<String>, tokenizer: &Tokenizer, out: &mut Vec<u32>) -> Result<(), DataError> {
    let done: Vec<_> = std::mem::take(segments).into_par_iter().map(|s| tokenizer.encode_plain(&s)).collect();
    for ids in done {
        out.extend(ids?);
    }
    Ok(())
}

/// The text of a row; of a pair, both texts with a blank line between them.
fn text_of(selection: &Selection, row: usize) -> Result<String, DataError> {
    let Some(RowRef::Stored { table, row }) = selection.rows.get(row) else { return Ok(String::new()) };
    let document = match selection.table(*table) {
        Some(t) => t.document(*row as usize)?,
        None => None,
    };
    Ok(document.map_or_else(String::new, |d| match d.pair {
        Some(pair) => d.text + BLANK_LINE + &pair,
        None => d.text,
    }))
}

/// Rows of tokens one behind the other, padding left out.
fn stored(selection: &Selection) -> Result<Vec<u32>, DataError> {
    let mut out = Vec::new();
    for (at, r) in selection.rows.iter().enumerate() {
        match r {
            RowRef::Window { stream, start } => {
                let windows = selection.streams.get(*stream as usize);
                let window = windows.and_then(|w| w.ids.get(*start as usize..*start as usize + w.length));
                out.extend_from_slice(window.unwrap_or_default());
            }
            RowRef::Stored { table, row } => {
                let Some(tokens) = selection.table(*table).and_then(|t| t.tokens()) else { continue };
                let row = tokens.row(*row as usize);
                for (i, id) in row.ids.iter().enumerate() {
                    if row.keep.as_ref().and_then(|k| k.get(i)) == Some(&0) {
                        continue;
                    }
                    let range = |_| DataError::TokenRange { place: selection.place(at), id: *id, rows: u32::MAX as usize };
                    out.push(u32::try_from(*id).map_err(range)?);
                }
            }
        }
    }
    Ok(out)
}
