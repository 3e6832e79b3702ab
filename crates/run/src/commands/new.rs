//! `prunectl new`: writes a recipe for a model, by asking three things or taking them as flags.

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use prunectl_model::{Task, stated_length};
use prunectl_recipe::plan::{DataExpr, DataSource, ModelDecl, ModelSource, Plan, Span};
use prunectl_recipe::render::render;

use crate::cli::DONE;
use crate::commands::draft::{data_source, model_source, stem};
use crate::commands::{print, print_json};
use crate::compile::compile;
use crate::data::DataStore;
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::hub::Door;
use crate::models::read_facts;
use crate::recipes::RecipeFile;
use crate::session::Options;

/// Arguments of `new`.
#[derive(Debug, Args)]
pub struct New {
    /// The recipe to write, for instance my_model.prune.
    pub recipe: Option<PathBuf>,
    /// The model: a folder, or builtin:<name>.
    #[arg(long)]
    pub model: Option<String>,
    /// The data: a text, csv, tsv or jsonl file, or builtin:tales.
    #[arg(long)]
    pub data: Option<String>,
    /// What to remove.
    #[arg(long, value_enum)]
    pub remove: Option<Remove>,
    /// The share to remove.
    #[arg(long, value_name = "PERCENT", value_parser = parse_share, default_value = "40%")]
    pub share: u8,
}

/// What a new recipe removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Remove {
    /// Attention heads.
    Heads,
    /// FFN neurons.
    Neurons,
    /// Single weights.
    Weights,
}

fn parse_share(text: &str) -> Result<u8, String> {
    let number = text.trim().trim_end_matches('%');
    match number.parse::<u8>() {
        Ok(n) if n <= 90 => Ok(n),
        _ => Err(format!("found `{text}`, expected a whole percentage from 0% to 90%")),
    }
}

impl New {
    /// Asks for what the flags leave out, writes the recipe and checks it.
    pub fn run(&self, options: &Options) -> Result<u8> {
        let model = self.answer(
            self.model.as_deref(),
            "--model",
            "Which model? A folder, or builtin:tiny-bert, builtin:tiny-llama",
            "builtin:tiny-bert",
        )?;
        let data = self.answer(
            self.data.as_deref(),
            "--data",
            "Which data? A .txt, .csv, .tsv or .jsonl file, or builtin:tales",
            "builtin:tales",
        )?;
        let remove = match self.remove {
            Some(remove) => remove,
            None => {
                let word = self.answer(None, "--remove", "What should go? heads, neurons or weights", "heads")?;
                Remove::from_str(&word, true)
                    .map_err(|_| Error::Usage { message: format!("found `{word}`, expected heads, neurons or weights") })?
            }
        };
        let source = model_source(&model)?;
        let decl = ModelDecl {
            name: "m".to_owned(),
            // Of a built-in model the config says enough.
            source: match model.starts_with("builtin:") {
                true => ModelSource::Init { config: PathBuf::from(&model), seed: 0 },
                false => ModelSource::Dir(PathBuf::from(&model)),
            },
            dtype: None,
            task: None,
            labels: None,
            span: Span::default(),
        };
        let facts = read_facts(&decl, &options.hub)?;
        let path = self.recipe.clone().unwrap_or_else(|| PathBuf::from(format!("{}.prune", stem(&model))));
        if path.exists() {
            return Err(Error::Usage { message: format!("{} exists; give another name: prunectl new NAME.prune", path.display()) });
        }
        let (data_source, name) = (data_source(&data)?, stem(&model));
        let window = stated_length(&facts.blueprint, &facts.config).map_or(WINDOW_TOKENS, |n| (n as u64).clamp(2, WINDOW_TOKENS));
        let splits = data == "builtin:tales";
        let mut wanted = Wanted {
            model: &source,
            data: &data_source,
            task: facts.task,
            remove,
            share: self.share,
            name: &name,
            splits,
            window,
            rows: PROBE_ROWS,
        };
        let formatted = |wanted: &Wanted<'_>| {
            let text = recipe(wanted);
            prunectl_recipe::format::format(&text).unwrap_or(text)
        };
        // Paths in a recipe start from its folder; those given here start from the working directory, so only a recipe in it is checked as it is.
        let mut draft = RecipeFile {
            shown: path.display().to_string(),
            name: path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default(),
            base: path.parent().map(Path::to_owned).unwrap_or_default(),
            text: formatted(&wanted),
        };
        let compiled = compile(&draft, &[], options.hub.clone())?;
        if let Ok(plan) = &compiled.result
            && !splits
            && let Some(rows) = rows_of(plan, &options.hub).filter(|rows| (1..PROBE_ROWS).contains(rows))
        {
            wanted.rows = rows;
            draft.text = formatted(&wanted);
        }
        if let Err(mistakes) = &compiled.result {
            return Err(Error::Recipe { rendered: render(mistakes, &compiled.sources, options.ui.color), errors: mistakes.len() });
        }
        write_atomic(&path, draft.text.as_bytes())?;
        options.ui.note("wrote it; look at it, then:");
        options.ui.note(format!("    prunectl plan {0}\n    prunectl run {0}", path.display()));
        if options.json {
            print_json(&serde_json::json!({"recipe": path, "model": model, "data": data, "task": facts.task.to_string()}))?;
        } else {
            print(&format!("{}\n", path.display()))?;
        }
        DONE
    }

    fn answer(&self, given: Option<&str>, flag: &str, question: &str, default: &str) -> Result<String> {
        if let Some(given) = given {
            return Ok(given.to_owned());
        }
        if !std::io::stdin().is_terminal() {
            return Err(Error::Usage { message: format!("stdin is no terminal to ask on; give {flag} (for instance {flag} {default})") });
        }
        eprint!("{question} [{default}]: ");
        std::io::stderr().flush().map_err(Error::io("write", "stderr"))?;
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map_err(Error::io("read", "stdin"))?;
        let line = line.trim();
        Ok(if line.is_empty() { default.to_owned() } else { line.to_owned() })
    }
}

/// Rows that a criterion is measured on, where there are so many.
const PROBE_ROWS: u64 = 256;
/// Windows of text that one is measured on, and the tokens of each, where the model takes so many.
const PROBE_WINDOWS: u64 = 64;
const WINDOW_TOKENS: u64 = 256;

/// Rows of the recipe's data, where they can be counted here.
fn rows_of(plan: &Plan, hub: &Door) -> Option<u64> {
    let decl = plan.data.first().filter(|decl| !matches!(decl.source, DataSource::Hub(_)))?;
    let whole = DataExpr::Source { name: decl.name.clone(), split: None };
    let rows = DataStore::new(&plan.data, hub).resolve(&whole).ok()?.count()?;
    Some(rows as u64)
}

/// What a recipe is written for.
struct Wanted<'a> {
    model: &'a str,
    data: &'a str,
    task: Task,
    remove: Remove,
    share: u8,
    name: &'a str,
    /// Whether the data has splits.
    splits: bool,
    /// Tokens of a window.
    window: u64,
    /// Rows of the probe.
    rows: u64,
}

fn recipe(wanted: &Wanted<'_>) -> String {
    let Wanted { model, data, task, remove, share, name, splits, window, rows } = *wanted;
    let (train, test) = if splits { ("d.train", "d.validation") } else { ("d", "d") };
    let perplexity = format!("perplexity(window = {window} tokens)");
    let (metric, gate) = match task {
        Task::Classification => ("accuracy()", "after >= before - 2 pp"),
        Task::CausalLm => (perplexity.as_str(), "after <= 1.5 * before"),
        Task::QuestionAnswering => ("answer_f1()", "after >= before - 2 pp"),
        Task::MaskedLm | Task::Encoder => ("loss()", "after <= 1.5 * before"),
    };
    let (what, selector, method, options, compact) = match remove {
        Remove::Heads => (
            "attention heads",
            "m.layers[*].attention.heads",
            "loss_delta(on = probe, estimate = gradient)",
            "{ scope = global  rescore = 10%  at_least = 1 head }",
            true,
        ),
        Remove::Neurons => ("FFN neurons", "m.layers[*].mlp.neurons", "taylor(on = probe)", "{ scope = layer  at_least = 10% }", true),
        Remove::Weights => ("single weights", "m.layers[*].linears.weights", "magnitude()", "{ scope = matrix }", false),
    };
    let probe = match (method.contains("probe"), task) {
        (false, _) => String::new(),
        // However long the documents are.
        (true, Task::CausalLm) => format!("let probe = {train}.sample({PROBE_WINDOWS}, length = {window} tokens, seed = 0)\n\n"),
        (true, _) => format!("let probe = {train}.take({rows})\n\n"),
    };
    let compact = if compact { "compact m\n" } else { "" };
    format!(
        "## Remove {what} from {name}.\nedition 2026\n\n## Share of the {what} to remove.\nparam sparsity: percent = {share}% in 0%..=90%\n\n\
         model m = {model}\ndata  d = {data}\n\n{probe}\
         eval {metric} of m on {test} as before\n\n\
         prune {selector} by sparsity using {method} {options}\n{compact}\n\
         eval {metric} of m on {test} as after\nexpect {gate} else \"pruning cost too much\"\nsave m to \"out/{name}-{{sparsity}}\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_new_recipe_passes_check() {
        for model in ["builtin:tiny-bert", "builtin:tiny-llama"] {
            let task = if model.ends_with("bert") { Task::Classification } else { Task::CausalLm };
            for remove in [Remove::Heads, Remove::Neurons, Remove::Weights] {
                let (source, name) = (model_source(model).unwrap(), stem(model));
                let text = recipe(&Wanted {
                    model: &source,
                    data: "builtin(\"tales\")",
                    task,
                    remove,
                    share: 40,
                    name: &name,
                    splits: true,
                    window: 256,
                    rows: 256,
                });
                let file = RecipeFile { shown: "new.prune".into(), name: "new".into(), base: ".".into(), text: text.clone() };
                let compiled = compile(&file, &[], crate::hub::Door::cache_only()).unwrap();
                if let Err(mistakes) = compiled.result {
                    panic!("{text}\n{}", render(&mistakes, &compiled.sources, false));
                }
            }
        }
    }

    #[test]
    fn shares() {
        assert!(parse_share("95%").is_err() && parse_share("x").is_err());
        assert_eq!(parse_share("40%"), Ok(40));
    }
}
