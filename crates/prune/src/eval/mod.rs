//! Metrics: one file each, ending in its row. Every value states its protocol.

mod agreement;
mod answers;
mod barrier;
mod choice;
mod paired;
mod perplexity;
mod sensitivity;
mod similarity;
mod simple;
mod task;
mod teacher;
mod zero_cost;

pub use agreement::rank_correlation as spearman;
pub use paired::paired_lower_bound;
use std::collections::BTreeMap;
pub use zero_cost::{VOTERS, proxy, vote_agreement, votes};

use prunectl_model::Transformer;
use prunectl_recipe::catalogue::Entry;

use crate::data::{Asked, Batches, Progress, Question, TokenStream};
use crate::error::Result;

/// What a metric reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// The model alone.
    Nothing,
    /// Batches of examples.
    Batches,
    /// One stream of tokens.
    Stream,
    /// Questions with the continuations that the data names.
    Choices,
    /// The last word of each text, as a question with one continuation.
    LastWords,
    /// Questions about contexts, in windows of at most so many tokens of which neighbours share so many of the context.
    Answers {
        /// Tokens of a window.
        length: usize,
        /// Tokens shared.
        stride: usize,
    },
    /// Batches, and another model beside the one measured.
    BatchesAndTeacher,
    /// Batches, and the models at both ends of a line: `a` as the model, `b` as the teacher.
    BatchesAndEnds,
}

/// What the executor hands to a metric: at least what [`Metric::needs`] says.
pub struct Inputs<'a> {
    /// The model to measure.
    pub model: &'a Transformer,
    /// Examples.
    pub batches: Option<&'a mut dyn Batches>,
    /// The documents as one stream.
    pub stream: Option<&'a TokenStream>,
    /// Questions.
    pub questions: Option<&'a [Question]>,
    /// Questions about contexts.
    pub asked: Option<&'a [Asked]>,
    /// The other model (`kl(teacher)`, `barrier(a, b)`).
    pub teacher: Option<&'a Transformer>,
    /// Sequences run at once, where the metric cuts its own windows.
    pub batch: usize,
    /// Told how far it is.
    pub progress: &'a dyn Progress,
}

/// A measured value.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Measured {
    /// The value. A share (accuracy) is a fraction of 1.
    pub value: f64,
    /// Standard error of the mean over examples or tokens, where one is defined.
    pub stderr: Option<f64>,
    /// How it was measured, in words.
    pub protocol: String,
    /// Scored tokens.
    pub tokens: Option<u64>,
    /// Examples.
    pub examples: Option<u64>,
    /// The value of each example, in order, for paired comparison; empty where there are none.
    pub per_example: Vec<f64>,
    /// Further values by name, of a metric whose one value sums up many (`0-1`: of blocks 0 and 1).
    pub details: BTreeMap<String, f64>,
    /// What whoever reads the value should be warned of.
    pub warnings: Vec<String>,
}

/// A number about a model.
pub trait Metric: Send + Sync {
    /// What it reads.
    fn needs(&self) -> Needs;
    /// Measures.
    fn measure(&self, inputs: &mut Inputs<'_>) -> Result<Measured>;
    /// Whether a larger value is a better model; None: neither.
    fn higher_is_better(&self) -> Option<bool>;
}

/// Every metric that the language knows.
pub static METRICS: &[Entry<dyn Metric>] = &[
    perplexity::ENTRY,
    task::ACCURACY,
    task::F1,
    task::MATTHEWS,
    task::PEARSON,
    task::SPEARMAN,
    task::LOSS,
    teacher::KL,
    choice::CHOICE,
    choice::LAST_WORD,
    answers::EXACT_MATCH,
    answers::ANSWER_F1,
    simple::PARAMS,
    simple::FLOPS,
    simple::LATENCY,
    simple::GENERATION,
    simple::MEMORY,
    simple::SPARSITY,
    barrier::ENTRY,
    zero_cost::ENTRY,
    sensitivity::ENTRY,
    similarity::CKA,
    similarity::COSINE,
];
