//! The language reference, made from the hand-written chapters and the catalogue.

use crate::catalogue::{Catalogue, Kind, Param, Spec, Ty};
use crate::check::OPTION_TABLES;
use crate::explain::PAGES;

const CHAPTERS: &str = include_str!("reference.md");

/// Kinds in the order of the page, with their headings.
const KINDS: [(Kind, &str); 8] = [
    (Kind::Criterion, "Criteria: `using …`"),
    (Kind::Metric, "Metrics: `eval …`"),
    (Kind::Loss, "Losses: `loss = …`"),
    (Kind::Optimizer, "Optimizers: `optimizer = …`"),
    (Kind::Adapter, "Adapters: `attach …`"),
    (Kind::Quantizer, "Quantizers: `quantize m using …`"),
    (Kind::Schedule, "Schedules"),
    (Kind::Rule, "Rules: `keep = …`, `stop = …`, `adopt … by …`"),
];

/// The whole reference as Markdown.
pub fn reference(catalogue: &Catalogue) -> String {
    let mut out = CHAPTERS.to_owned();
    out.push_str("\n## Options\n");
    for (statement, params) in OPTION_TABLES {
        out.push_str(&format!("\n### `{statement}`\n\n{}", table(params)));
    }
    for (kind, heading) in KINDS {
        let mut rows = catalogue.of(kind).peekable();
        if rows.peek().is_some() {
            out.push_str(&format!("\n## {heading}\n"));
        }
        for spec in rows {
            out.push('\n');
            out.push_str(&method_page(spec));
        }
    }
    out.push_str("\n## Messages\n\n`prunectl explain CODE` has an example of each.\n\n");
    for p in PAGES {
        out.push_str(&format!("- `{}` {}\n", p.code, p.title));
    }
    out
}

/// The manual page of one method: `prunectl explain wanda`.
pub fn method_page(spec: &Spec) -> String {
    let mut out = format!("### `{}`\n\n", spec.name);
    if !spec.doc.is_empty() {
        out.push_str(spec.doc.trim_end());
        out.push_str("\n\n");
    }
    if !spec.source.is_empty() {
        out.push_str(&format!("Source: {}.\n\n", spec.source.trim_end_matches('.')));
    }
    if !spec.sites.is_empty() {
        let sites: Vec<String> = spec.sites.iter().map(|k| format!("`{}`", crate::check::kind_word(*k))).collect();
        out.push_str(&format!("For {}.\n\n", sites.join(", ")));
    }
    for (said, words) in [
        (spec.learns, "Learns, inside `train` only."),
        (spec.turns, "Turns the residual stream: it scores nothing apart from its prune, and a snapshot of before fits no more."),
        (spec.sequential, "Block by block: its scores hold for one amount."),
        (spec.needs_data, "Measured on data."),
    ] {
        if said {
            out.push_str(words);
            out.push_str("\n\n");
        }
    }
    out.push_str(&table(spec.params));
    out
}

fn table(params: &[Param]) -> String {
    if params.is_empty() {
        return String::new();
    }
    let mut out = String::from("| name | type | default | range | |\n|---|---|---|---|---|\n");
    for p in params {
        let default = match (p.default, p.optional) {
            (Some(d), _) => format!("`{d}`"),
            (None, true) => "—".to_owned(),
            (None, false) => "required".to_owned(),
        };
        let unit = if matches!(p.ty, Ty::Percent | Ty::ScheduledPercent) { "%" } else { "" };
        let range = p.range.map(|(a, b)| crate::check::range_text(a, b, unit)).unwrap_or_default();
        out.push_str(&format!(
            "| `{}` | {} | {default} | {range} | {} |\n",
            p.name,
            crate::check::ty_name(&p.ty),
            p.doc.replace('|', "\\|")
        ));
    }
    out.push('\n');
    out
}

/// The fenced `prune` blocks of a Markdown text: its examples.
pub fn examples(markdown: &str) -> Vec<String> {
    let (mut out, mut current) = (Vec::new(), None::<String>);
    for line in markdown.lines() {
        match &mut current {
            None if line.trim() == "```prune" => current = Some(String::new()),
            None => {}
            Some(_) if line.trim() == "```" => out.extend(current.take()),
            Some(text) => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    out
}
