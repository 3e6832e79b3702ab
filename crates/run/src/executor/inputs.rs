//! What methods read: batches and token streams, made for a model from a recipe's data.

use prunectl_model::{Blueprint, Head, Transformer, stated_length};
use prunectl_recipe::plan::DataExpr;

use crate::data::{Ask, AutoBatch, BatchSpec, Classes, DataBatches, DataStore, Need, Target, USUAL_TOKENS, Windows, row_tokens};
use crate::error::{Error, Result};
use crate::executor::state::ModelState;

/// Tokens of a row where neither the model's positions nor its config limits them.
const LONGEST_TOKENS: usize = 1 << 17;
/// Share of the tokens that a masked language model is asked for outside `train` (Devlin et al. 2018, sec. 3.1).
const MASKED_SHARE: f64 = 0.15;

/// What a step wants of its data.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Whether each row must have a label.
    pub need: Need,
    /// Whether labels are wanted at all; `masked_lm` hides tokens itself.
    pub labels: bool,
    /// `batch = …` of the step.
    pub batch: Option<u64>,
    /// Whether a backward pass follows.
    pub backward: bool,
    /// Whether an encoder gets the two texts of a pair as rows of their own, to compare their embeddings.
    pub apart: bool,
}

/// The longest row that a model takes, in tokens.
pub fn longest_row(model: &Transformer) -> usize {
    longest_of(model.blueprint(), &model.origin().config)
}

/// The same of a model that is only described.
pub fn longest_of(blueprint: &Blueprint, config: &serde_json::Value) -> usize {
    stated_length(blueprint, config).unwrap_or(LONGEST_TOKENS).max(1)
}

/// What a model's loss compares with.
fn target(model: &Transformer) -> Option<Target> {
    match &model.blueprint().head {
        Head::Tokens { .. } if model.blueprint().attention.causal => Some(Target::NextToken),
        Head::Tokens { .. } => Some(Target::MaskedToken { probability: MASKED_SHARE, seed: 0 }),
        Head::Sequence { regression: true, .. } => Some(Target::Values),
        Head::Sequence { labels, .. } => Some(Target::Classes(Classes::from_config(&model.origin().config, *labels))),
        Head::Spans => Some(Target::Answers),
        Head::Encode { .. } => None,
    }
}

/// Rows of `length` tokens at once where the step doesn't say; without a length, of the usual one.
pub fn rows_at_once(state: &ModelState, batch: Option<u64>, length: Option<u64>, backward: bool) -> usize {
    if let Some(rows) = batch {
        return usize::try_from(rows).unwrap_or(usize::MAX).max(1);
    }
    let model = &state.model;
    let length = length.map_or_else(|| longest_row(model).min(USUAL_TOKENS), |l| l as usize);
    AutoBatch::new(model.blueprint(), model.dims(), length, backward, model.device().is_cpu()).rows(state.memory_bytes)
}

/// Batches of a recipe's data for a model.
pub fn batches(data: &DataStore, state: &ModelState, expr: &DataExpr, wanted: Wanted) -> Result<DataBatches> {
    let model = &state.model;
    let apart = wanted.apart && matches!(model.blueprint().head, Head::Encode { .. });
    let spec = BatchSpec {
        target: match wanted.labels {
            true if apart => Some(Target::Values),
            true => target(model),
            false => None,
        },
        apart,
        need: wanted.need,
        max_length: longest_row(model),
        batch: rows_at_once(state, wanted.batch, row_tokens(expr), wanted.backward),
        vocabulary: model.blueprint().vocab,
        token_types: model.blueprint().embeddings.token_types,
        device: model.device().clone(),
    };
    own_template(expr, &state.decl.name)?;
    Ok(data.resolve(expr)?.batches(state.tokenizer.as_ref(), spec)?)
}

/// Conversations are written out by the template of the model that reads them: another's would give tokens that it never saw.
fn own_template(expr: &DataExpr, name: &str) -> Result<()> {
    match expr {
        DataExpr::Chat { model, .. } if model != name => {
            Err(Error::Refused { what: format!("`.chat({model})` is read by `{name}`"), remedy: format!("write `.chat({name})`") })
        }
        DataExpr::Chat { of, .. } | DataExpr::Sample { of, .. } | DataExpr::Pack { of, .. } | DataExpr::Take { of, .. } => {
            own_template(of, name)
        }
        DataExpr::Mix(parts) => parts.iter().try_for_each(|(_, e)| own_template(e, name)),
        DataExpr::Source { .. } => Ok(()),
    }
}

/// A recipe's data as questions for a causal language model.
pub fn questions(
    data: &DataStore,
    state: &ModelState,
    expr: &DataExpr,
    ask: Ask,
) -> Result<(Vec<prunectl_prune::Question>, Option<String>)> {
    let blueprint = state.model.blueprint();
    if !blueprint.attention.causal || !matches!(blueprint.head, Head::Tokens { .. }) {
        return Err(Error::Refused {
            what: format!("`{}` does not continue texts: it is loaded for {}", state.decl.name, state.model.origin().task),
            remedy: "measure a causal language model".to_owned(),
        });
    }
    Ok(data.resolve(expr)?.questions(state.tokenizer.as_ref(), ask, longest_row(&state.model), blueprint.vocab)?)
}

/// A recipe's data as questions about contexts, for a model that points at answers.
pub fn asked(data: &DataStore, state: &ModelState, expr: &DataExpr, length: usize, stride: usize) -> Result<Vec<prunectl_prune::Asked>> {
    // A model that takes less than a window shares less, so that each piece of the context brings something new.
    let longest = longest_row(&state.model);
    let windows = Windows { length: length.min(longest), stride: if longest < length { stride.min(longest / 3) } else { stride } };
    Ok(data.resolve(expr)?.asked(state.tokenizer.as_ref(), windows, state.model.blueprint().vocab)?)
}

/// A recipe's data as one stream of tokens.
pub fn stream(data: &DataStore, state: &ModelState, expr: &DataExpr) -> Result<prunectl_prune::TokenStream> {
    let stream = data.resolve(expr)?.stream(state.tokenizer.as_ref(), state.model.blueprint().vocab)?;
    Ok(prunectl_prune::TokenStream { prefix: stream.prefix, ids: stream.ids })
}
