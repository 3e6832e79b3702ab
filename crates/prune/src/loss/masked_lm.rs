//! Masked language modelling: some tokens are hidden and guessed.
//!
//! Devlin et al., BERT (2019), sec. 3.1: of the chosen tokens 80 % become the mask token, 10 % a random one, 10 % stay.

use candle_core::Tensor;
use prunectl_model::{Batch, Gates, Head, IGNORED, Labels, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Kind, Ty};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{LossInput, LossTerm};
use crate::error::{PruneError, Result};
use crate::row::{optional, other, param, within};
use crate::schedule::Clock;

/// Of the chosen tokens, how many become the mask token.
const MASKED: f64 = 0.8;
/// Of the chosen tokens, how many are masked or random.
const CHANGED: f64 = 0.9;

struct MaskedLm {
    share: f64,
    /// The executor fills it in from the tokenizer where the recipe has none.
    mask: Option<u32>,
    special: u32,
}

impl MaskedLm {
    /// The batch with hidden tokens, and how many are scored. Labels in the data take precedence: the batch is masked already.
    fn hide(&self, model: &Transformer, batch: &Batch, seed: u64) -> Result<(Batch, usize)> {
        if !matches!(model.blueprint().head, Head::Tokens { .. }) {
            return Err(PruneError::Missing { method: "masked_lm", needs: "a model with a token head (task = \"fill-mask\")".into() });
        }
        if let Some(Labels::Tokens(labels)) = &batch.labels {
            let n = labels.flatten_all()?.to_vec1::<i64>()?.iter().filter(|l| **l != IGNORED).count();
            return Ok((batch.clone(), n));
        }
        let vocab = model.blueprint().vocab;
        let mask = self.mask.ok_or(PruneError::Missing { method: "masked_lm", needs: "the id of the mask token: `mask = …`".into() })?;
        if mask as usize >= vocab {
            return Err(PruneError::Invalid {
                what: "`mask` of masked_lm",
                found: mask.to_string(),
                expected: format!("a token id below the vocabulary's {vocab}"),
            });
        }
        let (b, s) = batch.size()?;
        let ids = batch.input_ids.flatten_all()?.to_vec1::<u32>()?;
        let keep = batch.keep.as_ref().map(|k| k.flatten_all()?.to_vec1::<u8>()).transpose()?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut hidden = ids.clone();
        let mut labels = vec![IGNORED; ids.len()];
        let mut n = 0;
        for (i, id) in ids.iter().enumerate() {
            let real = keep.as_ref().is_none_or(|k| k.get(i).is_some_and(|k| *k != 0));
            // One draw each, whatever happens to the token, so that a change of one token moves no other.
            let (chosen, how, other) = (rng.random::<f64>(), rng.random::<f64>(), rng.random::<u32>());
            if !real || *id < self.special || chosen >= self.share {
                continue;
            }
            n += 1;
            if let Some(label) = labels.get_mut(i) {
                *label = i64::from(*id);
            }
            if let Some(token) = hidden.get_mut(i) {
                if how < MASKED {
                    *token = mask;
                } else if how < CHANGED {
                    let range = (vocab as u32).saturating_sub(self.special).max(1);
                    *token = self.special.min(vocab as u32 - 1) + other % range;
                }
            }
        }
        let device = batch.input_ids.device();
        let mut out = batch.clone();
        out.input_ids = Tensor::from_vec(hidden, (b, s), device)?;
        out.labels = Some(Labels::Tokens(Tensor::from_vec(labels, (b, s), device)?));
        Ok((out, n))
    }
}

impl LossTerm for MaskedLm {
    fn count(&self, model: &Transformer, batch: &Batch, seed: u64) -> Result<f64> {
        Ok(self.hide(model, batch, seed)?.1 as f64)
    }

    fn sum(&self, input: &LossInput<'_>, _: &Clock, _: u64) -> Result<Tensor> {
        let (batch, _) = self.hide(input.model, input.batch, input.seed)?;
        // Other terms see the batch as it is, so their outputs can't be shared.
        Ok(input.model.forward_loss(&batch, &Gates::default(), &mut ())?.sum()?)
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn LossTerm>, ArgError> {
    let id = |name: &str| -> std::result::Result<u32, ArgError> {
        let n = args.count(name)?;
        u32::try_from(n).map_err(|_| ArgError { name: name.into(), found: n.to_string(), expected: "a token id".into() })
    };
    Ok(Box::new(MaskedLm { share: args.float("p")?, mask: args.get("mask").map(|_| id("mask")).transpose()?, special: id("special")? }))
}

pub(super) const ENTRY: Entry<dyn LossTerm> = Entry {
    spec: other(
        Kind::Loss,
        "masked_lm",
        "Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding (2019), sec. 3.1",
        &[
            within(param("p", Ty::Percent, "15%", "Share of the tokens that is hidden."), 0.0, 100.0),
            optional("mask", Ty::Count, "Id of the mask token. Left out: the tokenizer's."),
            param("special", Ty::Count, "5", "Ids below it are special tokens: never hidden, never drawn."),
        ],
        "Cross-entropy of hidden tokens: of those chosen 80 % become the mask token, 10 % a random token, 10 % stay. Labels in the data take precedence.\n\n\
         Mind: padding and special tokens are never chosen.",
    ),
    build,
};
