//! How data and progress come in. This crate never opens a file and never prints.

use prunectl_model::Batch;

use crate::error::{PruneError, Result};

/// A finite stream of batches that can be read again from the start, in the same order.
pub trait Batches {
    /// Back to the first batch.
    fn reset(&mut self) -> Result<()>;
    /// The next batch, or `None` after the last.
    fn next(&mut self) -> Result<Option<Batch>>;
    /// How many batches there are, if that is known.
    fn len_hint(&self) -> Option<usize> {
        None
    }
}

/// Examples by number, for training: the loop decides the order.
pub trait Examples {
    /// Number of examples.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// An epoch begins, or goes on after a resume: data that is drawn anew in each (masked tokens) draws by this number.
    fn epoch(&mut self, epoch: u64) {
        let _ = epoch;
    }
    /// The batch of those examples, in that order.
    fn batch(&mut self, indices: &[usize]) -> Result<Batch>;
    /// Tokens that count in one pass over the data, if known; needed for lengths in tokens.
    fn tokens_hint(&self) -> Option<u64> {
        None
    }
}

/// A token stream for perplexity: the documents joined by a blank line and tokenised once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenStream {
    /// The special tokens that the tokenizer puts in front of a text (usually BOS, or nothing).
    pub prefix: Vec<u32>,
    /// The text's own tokens, without them.
    pub ids: Vec<u32>,
}

/// A context and what may follow it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Question {
    /// What may follow, each with its context.
    pub options: Vec<Continuation>,
    /// The right one.
    pub answer: usize,
    /// Whether the options are contexts with one continuation in common (partial evaluation) instead of continuations of one context.
    pub partial: bool,
}

/// A context with one continuation, in tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Continuation {
    /// Context and continuation.
    pub ids: Vec<u32>,
    /// The continuation's first token, at least 1.
    pub from: usize,
    /// Characters of the option as the data has it.
    pub characters: usize,
    /// Its bytes in UTF-8.
    pub bytes: usize,
}

/// A question about a context.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Question and context in tokens, the context in pieces that the model can read.
    pub windows: Vec<Window>,
    /// The context, byte for byte.
    pub context: String,
    /// The right answers; none where the context has no answer.
    pub answers: Vec<String>,
}

/// A question with one piece of its context, in tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Window {
    /// Question and piece, with special tokens.
    pub ids: Vec<u32>,
    /// Token types; `None`: all are 0.
    pub types: Option<Vec<u32>>,
    /// Of each token the bytes of the context that it covers; `None` outside the context.
    pub places: Vec<Option<(usize, usize)>>,
}

/// Told how far a method is; asked whether to go on.
pub trait Progress: Sync {
    /// `done` of `total` units of work of that name.
    fn advance(&self, done: u64, total: u64, what: &str) {
        let _ = (done, total, what);
    }
    /// Something worth a line: a factorisation that needed more damping, a layer that was skipped.
    fn note(&self, message: &str) {
        let _ = message;
    }
    /// Whether the user wants to stop.
    fn interrupted(&self) -> bool {
        false
    }
    /// An error if the user wants to stop.
    fn check(&self) -> Result<()> {
        if self.interrupted() { Err(PruneError::Interrupted) } else { Ok(()) }
    }
}

/// Says nothing, never stops.
impl Progress for () {}

/// Batches held in memory.
#[derive(Debug, Clone, Default)]
pub struct InMemory {
    batches: Vec<Batch>,
    at: usize,
}

impl InMemory {
    /// Batches in the order given.
    pub fn new(batches: Vec<Batch>) -> Self {
        Self { batches, at: 0 }
    }
}

impl Batches for InMemory {
    fn reset(&mut self) -> Result<()> {
        self.at = 0;
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Batch>> {
        let batch = self.batches.get(self.at).cloned();
        self.at += 1;
        Ok(batch)
    }

    fn len_hint(&self) -> Option<usize> {
        Some(self.batches.len())
    }
}
