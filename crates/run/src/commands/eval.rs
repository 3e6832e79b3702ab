//! `prunectl eval MODEL --data D`: measures a model, without a recipe.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::cli::{Compute, DONE};
use crate::commands::draft::{DataArgs, Draft, call, stem, value_name};
use crate::commands::run::{carry_out, carry_out_and_forget, table};
use crate::commands::{print, print_json};
use crate::error::Result;
use crate::executor::{Finished, unit_of};
use crate::report::figure;
use crate::session::Options;

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub struct Eval {
    /// The model: a folder, builtin:<name>, or hf:<org/name>[@revision].
    pub model: String,
    #[command(flatten)]
    data: DataArgs,
    /// A metric, as a recipe writes it: accuracy, 'perplexity(window = 256 tokens, bos = each)'; may be repeated. Left out: the one
    /// that fits the model.
    #[arg(long = "metric", value_name = "METRIC")]
    metrics: Vec<String>,
    /// Rows at once; left out, what fits memory. Results do not depend on it.
    #[arg(long)]
    batch: Option<u64>,
    /// Keep the run directory, here.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    compute: Compute,
}

impl Eval {
    /// Measures and prints.
    pub fn run(&self, options: &Options) -> Result<u8> {
        let options = self.compute.over(options);
        let draft = Draft::new(&format!("eval-{}", stem(&self.model)), &self.model, &self.data, &options)?;
        let calls = if self.metrics.is_empty() { vec![draft.quality()] } else { self.metrics.iter().map(|m| call(m)).collect() };
        let recipe = draft.with(&statements(&calls, &draft.on, self.batch));
        let finished = match &self.out {
            Some(out) => carry_out(&recipe, &[], Some(out), &options)?.1?,
            None => carry_out_and_forget(&recipe, &options)?,
        };
        if options.json {
            print_json(&json!({
                "model": self.model,
                "metrics": finished.book.metrics(),
                "warnings": finished.book.warnings,
                "run_dir": self.out,
            }))?;
        } else {
            print(&text(&finished, options.ui.verbosity < 0))?;
        }
        DONE
    }
}

/// One `eval` for each call; those that run on data get it.
pub fn statements(calls: &[String], on: &str, batch: Option<u64>) -> String {
    let catalogue = crate::compile::catalogue();
    let mut taken = Vec::new();
    let mut out = String::new();
    for call in calls {
        let name = value_name(call, &taken);
        let metric = call.split('(').next().unwrap_or_default();
        let wants = catalogue.get(prunectl_recipe::catalogue::Kind::Metric, metric).is_none_or(|s| s.needs_data);
        let data = if wants && !on.is_empty() { format!(" on {on}") } else { String::new() };
        let block = batch.filter(|_| wants).map_or_else(String::new, |b| format!(" {{ batch = {b} }}"));
        out += &format!("eval {call} of m{data} as {name}{block}\n");
        taken.push(name);
    }
    out
}

/// A table of values with their standard errors, and the protocols below; bare values where only results are wanted.
fn text(finished: &Finished, bare: bool) -> String {
    if bare {
        return finished.book.rows.iter().map(|r| format!("{}\n", r.recorded.value)).collect();
    }
    let mut shown = table(&["", "value", "± standard error", "over"]);
    for row in &finished.book.rows {
        let r = &row.recorded;
        let unit = unit_of(&r.metric);
        let over = match (r.tokens, r.examples) {
            (Some(n), _) if r.metric != "latency" => format!("{n} tokens"),
            (_, Some(n)) => format!("{n} examples"),
            _ => "–".to_owned(),
        };
        let error = r.stderr.map_or_else(|| "–".to_owned(), |e| figure(e, unit));
        shown.add_row([row.name.clone(), figure(r.value, unit), error, over]);
    }
    let mut out = format!("{shown}\n");
    for row in &finished.book.rows {
        out += &format!("{}: {}\n", row.name, row.recorded.protocol);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_the_model_alone_get_no_data() {
        let calls = ["perplexity(window = 8 tokens)".to_owned(), "params()".to_owned()];
        let text = statements(&calls, "d.test", Some(4));
        assert_eq!(text, "eval perplexity(window = 8 tokens) of m on d.test as perplexity { batch = 4 }\neval params() of m as params\n");
    }
}
