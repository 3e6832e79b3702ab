//! What the language has and this executor does not carry out, found before anything is loaded.

use prunectl_recipe::diagnostic::Diagnostic;
use prunectl_recipe::plan::{Plan, Prune, Span, Step, StepKind, Value};

use crate::session::Dtype;

/// The code of a step that is checked and planned, but not carried out.
const CODE: &str = "P0414";

/// Every place where a run of the plan would have to stop, as errors that name what stands there.
pub fn refused(plan: &Plan) -> Vec<Diagnostic> {
    let mut out = Vec::new();
    steps(&plan.steps, &mut out);
    // An unrolled statement is met once for each round and cell.
    let mut seen = Vec::new();
    out.retain(|d| {
        let key = (d.span, d.message.clone());
        let new = !seen.contains(&key);
        seen.push(key);
        new
    });
    out
}

fn no(what: &str, span: Span, hint: &str) -> Diagnostic {
    Diagnostic::error(CODE, format!("{what}: this build checks and plans it, but does not carry it out"), span, "not carried out")
        .hint(hint)
}

fn steps(all: &[Step], out: &mut Vec<Diagnostic>) {
    let mut quantised: Vec<&str> = Vec::new();
    for step in all {
        if let Some(model) = changed(&step.kind).filter(|m| quantised.contains(m)) {
            let what = format!("`{model}` is quantised: nothing may change its weights afterwards");
            let d = Diagnostic::error(CODE, what, step.span, "too late");
            out.push(d.hint("`quantize` comes last, before `eval` and `save`"));
        }
        match &step.kind {
            StepKind::Quantize { model, .. } => quantised.push(model),
            StepKind::Prune(prune) => self::prune(prune, step.span, out),
            StepKind::Train(train) => {
                train.prunes.iter().for_each(|p| self::prune(p, step.span, out));
            }
            StepKind::Save { format, dtype: Some(dtype), .. } if format != "gguf" && dtype.parse::<Dtype>().is_err() => {
                let message = format!("`dtype = {dtype}` is a type of GGUF files");
                let d = Diagnostic::error("P0414", message, step.span, "the Hugging Face layout has f32, f16 and bf16");
                out.push(d.hint("add `format = gguf`, or choose another dtype"));
            }
            StepKind::Save { format, .. } if !matches!(format.as_str(), "" | "hf" | "gguf" | "peft") => {
                out.push(no(&format!("`format = {format}`"), step.span, "leave it out for the Hugging Face layout"))
            }
            StepKind::Repeat { rounds, .. } => rounds.iter().for_each(|r| steps(r, out)),
            StepKind::Sweep { cells, .. } => cells.iter().for_each(|c| steps(&c.steps, out)),
            _ => {}
        }
    }
}

/// The model whose weights a step changes.
fn changed(kind: &StepKind) -> Option<&str> {
    match kind {
        StepKind::Prune(p) => Some(super::model_of(&p.selector)),
        StepKind::Train(t) => Some(&t.model),
        StepKind::Reconstruct { selector, .. } | StepKind::Attach { selector, .. } => Some(super::model_of(selector)),
        StepKind::Compact { model } | StepKind::Reinit { model, .. } | StepKind::Quantize { model, .. } | StepKind::Fuse { model, .. } => {
            Some(model)
        }
        _ => None,
    }
}

fn prune(prune: &Prune, span: Span, out: &mut Vec<Diagnostic>) {
    if prune.options.0.values().any(|v| matches!(v, Value::Method(_))) {
        let names: Vec<&str> = prune.options.0.keys().map(String::as_str).collect();
        out.push(no(&format!("`prune … {{ {} }}`", names.join(", ")), span, "leave the option out"));
    }
}
