//! The model card: what a person finds on opening the folder, and what the Hub shows.

use std::fmt::Write as _;

use super::record::PruneRecord;
use crate::report::{MetricRow, figure};
use crate::stock::{Loader, LoaderVerdict, Verdict};

/// What only the executor knows.
#[derive(Debug, Clone, Default)]
pub struct CardFacts {
    /// A heading; the recipe's name where it is empty.
    pub title: String,
    /// The model on the Hub that this one comes from.
    pub base_model: Option<String>,
    /// Its licence, in the Hub's spelling.
    pub license: Option<String>,
    /// The Hub's name of the task: `text-generation`, …
    pub task: String,
    /// Parameters before.
    pub dense_params: u64,
    /// Parameters after.
    pub params: u64,
    /// What was measured.
    pub metrics: Vec<MetricRow>,
    /// The recipe's text.
    pub recipe: String,
}

/// Text in a table cell: a bar or a line's end would break the table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

/// A YAML string in double quotes; JSON's escapes are YAML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// `README.md`.
pub(super) fn text(facts: &CardFacts, record: &PruneRecord, loaders: &[LoaderVerdict]) -> String {
    let mut out = String::from("---\nlibrary_name: transformers\n");
    if !facts.task.is_empty() {
        let _ = writeln!(out, "pipeline_tag: {}", quoted(&facts.task));
    }
    if let Some(base) = &facts.base_model {
        let _ = writeln!(out, "base_model: {}", quoted(base));
    }
    if let Some(license) = &facts.license {
        let _ = writeln!(out, "license: {}", quoted(license));
    }
    out.push_str("tags:\n- pruned\n- prunectl\n---\n\n");
    let run = &record.run;
    let title = if facts.title.is_empty() { &run.recipe.name } else { &facts.title };
    let _ = writeln!(out, "# {}\n", cell(title));
    let _ = writeln!(
        out,
        "Pruned from `{}` by the recipe `{}` with prunectl {}: {} parameters, of {} before.\n",
        cell(&run.model.source),
        cell(&run.recipe.name),
        cell(&run.prunectl),
        facts.params,
        facts.dense_params
    );
    if !facts.metrics.is_empty() {
        out.push_str("| metric | value | dense | protocol |\n|---|---|---|---|\n");
        for m in &facts.metrics {
            let dense = m.dense.map_or_else(|| "–".into(), |d| figure(d, m.unit));
            let _ = writeln!(
                out,
                "| {} (`{}`) | {} | {} | {} |",
                cell(&m.metric),
                cell(&m.name),
                cell(&figure(m.value, m.unit)),
                cell(&dense),
                cell(&m.protocol)
            );
        }
        out.push('\n');
    }
    out.push_str("## Loading\n\n");
    for verdict in loaders {
        let _ = writeln!(out, "- {}", cell(&verdict.to_string()));
    }
    let transformers = loaders.iter().find(|l| l.loader == Loader::Transformers);
    if let Some(class) = auto_class(&facts.task) {
        let call = match transformers.map(|t| &t.verdict) {
            Some(Verdict::Stock { .. }) => Some(format!("{class}.from_pretrained(\"path/to/this/folder\")")),
            Some(Verdict::RemoteCode { .. }) => Some(format!("{class}.from_pretrained(\"path/to/this/folder\", trust_remote_code=True)")),
            _ => None,
        };
        if let Some(call) = call {
            let _ = writeln!(out, "\n```python\nfrom transformers import {class}\n\nmodel = {call}\n```");
        }
    }
    let _ = writeln!(out, "\n`prune.json` lists the units that were kept, in the indices of the original model.");
    if !record.history.is_empty() {
        let names: Vec<String> = record.history.iter().map(|r| format!("`{}`", cell(&r.recipe.name))).collect();
        let _ = writeln!(out, "It was pruned before, by {}.", names.join(", "));
    }
    if !facts.recipe.is_empty() {
        // A fence that is longer than any in the recipe.
        let fence = "`".repeat(3.max(facts.recipe.split(|c| c != '`').map(str::len).max().unwrap_or(0) + 1));
        let _ = writeln!(out, "\n## The recipe\n\n{fence}\n{}\n{fence}", facts.recipe.trim_end());
    }
    out
}

fn auto_class(task: &str) -> Option<&'static str> {
    match task {
        "text-generation" => Some("AutoModelForCausalLM"),
        "fill-mask" => Some("AutoModelForMaskedLM"),
        "text-classification" => Some("AutoModelForSequenceClassification"),
        "question-answering" => Some("AutoModelForQuestionAnswering"),
        "feature-extraction" => Some("AutoModel"),
        _ => None,
    }
}
