//! Whether a teacher can teach a model, as far as both configs say it: told before anything runs.

use std::collections::BTreeMap;

use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::diagnostic::Diagnostic;
use prunectl_recipe::plan::{Span, Step, Train, Value};

use super::Sim;

/// The code of what a run would not carry out.
const CODE: &str = "P0414";

/// The model behind a teacher; a snapshot's is that of the training itself.
fn model_behind(teacher: &Value) -> Option<&str> {
    match teacher {
        Value::Model(name) | Value::Frozen { model: name, .. } => Some(name),
        _ => None,
    }
}

fn tokens(teacher: &Value, student: &str, at: Span, sims: &BTreeMap<String, Sim>) -> Option<Diagnostic> {
    let name = model_behind(teacher)?;
    let (theirs, ours) = (sims.get(name)?.file.blueprint.vocab, sims.get(student)?.file.blueprint.vocab);
    (theirs != ours).then(|| {
        let message = format!("`{name}` can't teach `{student}`: its vocabulary has {theirs} tokens, that of `{student}` {ours}");
        Diagnostic::error(CODE, message, at, "both read the same ids").hint("take a teacher with the same tokenizer")
    })
}

/// Teachers of the terms of a training's loss that read other ids.
pub(super) fn of_losses(train: &Train, sims: &BTreeMap<String, Sim>) -> Vec<Diagnostic> {
    let teachers = train.loss.iter().filter_map(|(_, term)| Some((term.args.get("teacher")?, term.span)));
    teachers.filter_map(|(teacher, at)| tokens(teacher, &train.model, at, sims)).collect()
}

/// The teacher of `reconstruct` gives the residual stream itself, so its width counts, too.
pub(super) fn of_blocks(teacher: &Value, student: &str, step: &Step, sims: &BTreeMap<String, Sim>) -> Vec<Diagnostic> {
    let width = || {
        let name = model_behind(teacher)?;
        // The width of a model that lost channels is known when it has.
        let whole = |name: &str| sims.get(name).filter(|sim| !sim.vague && !sim.gone.contains_key(&SiteKind::Hidden));
        let (theirs, ours) = (whole(name)?.file.blueprint.hidden, whole(student)?.file.blueprint.hidden);
        (theirs != ours).then(|| {
            let message = format!("`{name}` can't teach the blocks of `{student}`: its residual stream is {theirs} wide, theirs {ours}");
            let d = Diagnostic::error(CODE, message, step.span, "another width");
            d.hint("take `frozen(m)`, or `train` with `hidden(teacher)`, which learns a projection")
        })
    };
    tokens(teacher, student, step.span, sims).or_else(width).into_iter().collect()
}
