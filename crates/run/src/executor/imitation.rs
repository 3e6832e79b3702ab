//! What imitating a teacher needs around a training: parameters that a loss term learns along, and a teacher that reads the same tokens.

use prunectl_model::Transformer;
use prunectl_prune::{LEARNED, TrainSpec};
use prunectl_recipe::plan::Value;

use crate::error::{Error, Result};
use crate::executor::Executor;
use crate::executor::state::ModelState;

/// The model with what the loss terms learn beside it; those parameters train, whatever `only` says.
pub(super) fn beside(model: &Transformer, spec: &mut TrainSpec) -> Result<Transformer> {
    let mut out = model.clone();
    for term in &spec.loss {
        for (name, tensor) in term.term.parameters(model, term.teacher.as_ref(), spec.seed)? {
            let slot = format!("{LEARNED}{name}");
            if out.params().get(&slot).is_some() {
                return Err(Error::Refused {
                    what: format!("two terms of the loss learn a `{name}`"),
                    remedy: "keep one of them, or take a teacher of the model's width".to_owned(),
                });
            }
            if let Some(only) = &mut spec.only {
                only.insert(slot.clone());
            }
            out.params_mut().set(slot, tensor);
        }
    }
    Ok(out)
}

/// The model without them.
pub(super) fn alone(mut model: Transformer) -> Transformer {
    model.params_mut().retain(|slot| !slot.starts_with(LEARNED));
    model
}

impl Executor<'_> {
    /// Refuses a teacher whose tokenizer gives other ids than the model's.
    pub(super) fn same_tokens(&self, teacher: &Value, state: &ModelState) -> Result<()> {
        let (Value::Model(name) | Value::Name(name) | Value::Frozen { model: name, .. }) = teacher else { return Ok(()) };
        let (Some(theirs), Some(ours)) = (self.state.model(name)?.tokenizer.as_ref(), state.tokenizer.as_ref()) else { return Ok(()) };
        if theirs.json() == ours.json() {
            return Ok(());
        }
        let refused = |what: String| Error::Refused {
            what: format!("`{name}` can't teach this model: {what}"),
            remedy: "take a teacher with the same tokenizer".to_owned(),
        };
        if theirs.vocabulary() != ours.vocabulary() {
            return Err(refused(format!("its vocabulary has {} tokens, the model's {}", theirs.vocabulary(), ours.vocabulary())));
        }
        for id in 0..ours.vocabulary() as u32 {
            let (a, b) = (theirs.decode(&[id], false)?, ours.decode(&[id], false)?);
            if a != b {
                return Err(refused(format!("token {id} is {a:?} there and {b:?} here")));
            }
        }
        Ok(())
    }
}
