//! `prunectl score MODEL --select S --using C`: scores units without a recipe, and keeps the run directory for `score … from`.

use std::path::PathBuf;

use clap::Args;
use prunectl_recipe::catalogue::Kind;
use serde_json::json;

use crate::cli::{Compute, DONE};
use crate::commands::draft::{DataArgs, Draft, stem};
use crate::commands::run::{carry_out, table};
use crate::commands::{print, print_json};
use crate::error::Result;
use crate::executor::Finished;
use crate::report::{FigureUnit, figure};
use crate::rundir::SCORES;
use crate::session::Options;

/// The name of the scores in the run directory.
const NAME: &str = "s";

/// Arguments of `score`.
#[derive(Debug, Args)]
pub struct Score {
    /// The model: a folder, builtin:<name>, or hf:<org/name>[@revision].
    pub model: String,
    /// What is scored, as a recipe writes it behind the model's name.
    #[arg(long, value_name = "SELECTOR", default_value = "layers[*].attention.heads")]
    select: String,
    /// The criterion, as a recipe writes it: magnitude, 'loss_delta(on = d, estimate = gradient)'. `d` stands for the data's rows.
    #[arg(long, value_name = "CRITERION")]
    using: String,
    #[command(flatten)]
    data: DataArgs,
    /// The run directory, instead of runs/score-<model>-<n>.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    compute: Compute,
}

impl Score {
    /// Scores, and prints where the scores are and how they are spread.
    pub fn run(&self, options: &Options) -> Result<u8> {
        let options = self.compute.over(options);
        let draft = Draft::new(&format!("score-{}", stem(&self.model)), &self.model, &self.data, &options)?;
        let selector = self.select.trim().trim_start_matches("m.").trim_start_matches('.');
        let recipe = draft.with(&format!("score m.{selector} using {} as {NAME}\n", self.criterion(&draft.on)));
        let (path, ran) = carry_out(&recipe, &[], self.out.as_deref(), &options)?;
        let finished = ran?;
        let file = path.join(SCORES).join(format!("{NAME}.safetensors"));
        if options.json {
            let sites: serde_json::Map<String, serde_json::Value> =
                finished.book.scored.iter().flat_map(|s| &s.scores.sites).map(|(key, values)| (key.to_string(), json!(values))).collect();
            print_json(&json!({"run_dir": path, "file": file, "scores": sites}))?;
        } else if options.ui.verbosity < 0 {
            print(&format!("{}\n", file.display()))?;
        } else {
            print(&format!(
                "{}\nscores  {}\nuse them with `score m.{selector} … from \"{}\"`\n",
                spread(&finished),
                file.display(),
                path.display()
            ))?;
        }
        DONE
    }

    /// The criterion as a call; one that is measured on data and does not say on which gets the data of the arguments.
    fn criterion(&self, on: &str) -> String {
        let using = self.using.trim();
        if using.contains('(') {
            // `d` alone names the source; the arguments may mean one split of it, or its first rows.
            return if on.is_empty() {
                using.to_owned()
            } else {
                using.replace("on = d)", &format!("on = {on})")).replace("on = d,", &format!("on = {on},"))
            };
        }
        let takes_data = crate::compile::catalogue().get(Kind::Criterion, using).is_some_and(|s| s.params.iter().any(|p| p.name == "on"));
        if takes_data && !on.is_empty() { format!("{using}(on = {on})") } else { format!("{using}()") }
    }
}

/// Least, mean and most of each site.
fn spread(finished: &Finished) -> String {
    let mut out = table(&["site", "units", "least", "at unit", "mean", "most"]);
    for (key, values) in finished.book.scored.iter().flat_map(|s| &s.scores.sites) {
        let least = values.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1));
        let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len().max(1) as f64;
        let plain = |x: f64| figure(x, FigureUnit::Plain);
        out.add_row([
            key.to_string(),
            values.len().to_string(),
            least.map_or_else(String::new, |(_, v)| plain(f64::from(*v))),
            least.map_or_else(String::new, |(i, _)| i.to_string()),
            plain(mean),
            plain(f64::from(most)),
        ]);
    }
    for (slot, scores) in finished.book.scored.iter().flat_map(|s| &s.scores.weights) {
        out.add_row([slot.clone(), scores.elem_count().to_string()]);
    }
    out.to_string()
}
