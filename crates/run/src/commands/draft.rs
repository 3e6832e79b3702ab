//! Recipes made from arguments: `eval`, `score`, `bench`, `plan DIR` and `new` say what they do in the language, and nothing but the
//! executor carries it out.

use std::path::{Path, PathBuf};

use clap::Args;
use prunectl_model::{Facts, Head, Task, stated_length};
use prunectl_recipe::plan::{DataDecl, ModelDecl, Plan};

use crate::builtin;
use crate::compile::compile;
use crate::error::{Error, Result};
use crate::models::read_facts;
use crate::recipes::RecipeFile;
use crate::session::Options;

/// Tokens of a perplexity window where the arguments don't say; a model that takes fewer is measured with what it takes.
const WINDOW_TOKENS: u64 = 2048;

/// Data on the command line.
#[derive(Debug, Clone, Default, Args)]
pub struct DataArgs {
    /// The data: a .txt, .csv, .tsv, .jsonl, .parquet or .safetensors file, builtin:<name>, hf:<org/name>, or a source as a recipe
    /// writes it: 'csv("dev.tsv", text = "sentence")'.
    #[arg(long, value_name = "DATA")]
    pub data: Option<String>,
    /// Its split; left out, the test split for language models and the validation split for others, where there is one.
    #[arg(long)]
    pub split: Option<String>,
    /// Only the first so many rows.
    #[arg(long, value_name = "N")]
    pub rows: Option<u64>,
}

/// A model's name without its place, as part of a recipe's or a folder's name.
pub fn stem(model: &str) -> String {
    let name = model.trim_end_matches('/').rsplit(['/', ':']).next().unwrap_or("model");
    let clean: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect();
    if clean.is_empty() { "model".to_owned() } else { clean }
}

/// A string of the language.
fn quoted(text: &str) -> Result<String> {
    if text.contains(['"', '\\', '\n', '{', '}']) {
        return Err(Error::Usage { message: format!("`{text}` holds a character that a recipe's string can't; rename it") });
    }
    Ok(format!("\"{text}\""))
}

/// `hf:org/name@revision` as a call.
fn hub_source(given: &str) -> Result<String> {
    Ok(match given.split_once('@') {
        Some((repo, revision)) => format!("hf({}, revision = {})", quoted(repo)?, quoted(revision)?),
        None => format!("hf({})", quoted(given)?),
    })
}

/// What a recipe writes for a model: a folder, `builtin:name`, `hf:org/name[@revision]`, or a source in the language's own words.
pub fn model_source(given: &str) -> Result<String> {
    if let Some(name) = given.strip_prefix("builtin:") {
        if builtin::model_files(name, None).is_none() {
            let known = builtin::model_names().collect::<Vec<_>>().join(", ");
            return Err(Error::Usage { message: format!("there is no built-in model `{name}`; there are {known}") });
        }
        return Ok(format!("builtin({})", quoted(name)?));
    }
    if let Some(repo) = given.strip_prefix("hf:") {
        return hub_source(repo);
    }
    if ["dir(", "hf(", "builtin(", "init("].iter().any(|s| given.starts_with(s)) {
        return Ok(given.to_owned());
    }
    Ok(format!("dir({})", quoted(given)?))
}

/// What a recipe writes for data.
pub fn data_source(given: &str) -> Result<String> {
    if let Some(name) = given.strip_prefix("builtin:") {
        return Ok(format!("builtin({})", quoted(name)?));
    }
    if let Some(repo) = given.strip_prefix("hf:") {
        return hub_source(repo);
    }
    if given.contains('(') && !Path::new(given).exists() {
        return Ok(given.to_owned());
    }
    let named = given.trim_end_matches(".gz").trim_end_matches(".zst");
    let kind = match Path::new(named).extension().and_then(|e| e.to_str()).unwrap_or_default() {
        "csv" | "tsv" => "csv",
        "jsonl" | "ndjson" | "json" => "jsonl",
        "parquet" => "parquet",
        "safetensors" => "tokens",
        "txt" | "raw" | "md" => "text",
        other => {
            return Err(Error::Usage {
                message: format!("{given}: found the ending `{other}`, expected txt, csv, tsv, jsonl, parquet or safetensors"),
            });
        }
    };
    Ok(format!("{kind}({})", quoted(given)?))
}

/// A recipe made from arguments. Its model is called `m`, its data `d`; paths in it start from the working directory.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The recipe's name.
    pub name: String,
    /// The statements that declare `m`, and `d` if data is given.
    head: String,
    /// `d`, its split and rows, as an expression; empty without data.
    pub on: String,
    /// What config and headers say of the model.
    pub facts: Facts,
    /// The model's declaration.
    pub model: ModelDecl,
}

impl Draft {
    /// Looks at the model's config and headers and at the data's splits.
    pub fn new(name: &str, model: &str, data: &DataArgs, options: &Options) -> Result<Self> {
        let mut head = format!("edition 2026\nmodel m = {}\n", model_source(model)?);
        if let Some(data) = &data.data {
            head += &format!("data d = {}\n", data_source(data)?);
        } else if data.split.is_some() || data.rows.is_some() {
            return Err(Error::Usage { message: "--split and --rows say which rows of --data; give --data".to_owned() });
        }
        let plan = plan(&recipe(name, head.clone()), options)?;
        let model = plan.models.first().cloned().ok_or_else(|| Error::Internal("a draft without a model".to_owned()))?;
        let facts = read_facts(&model, &options.hub)?;
        let on = match plan.data.first() {
            Some(decl) => rows(decl, data, &facts, options)?,
            None => String::new(),
        };
        Ok(Self { name: name.to_owned(), head, on, facts, model })
    }

    /// The recipe with these statements.
    pub fn with(&self, statements: &str) -> RecipeFile {
        recipe(&self.name, format!("{}{statements}", self.head))
    }

    /// The metric that says how good a model of this kind is, as a call.
    pub fn quality(&self) -> String {
        match &self.facts.blueprint.head {
            Head::Sequence { regression: false, .. } => "accuracy()".to_owned(),
            Head::Sequence { .. } | Head::Encode { .. } => "spearman()".to_owned(),
            Head::Tokens { .. } if self.facts.blueprint.attention.causal => {
                format!("perplexity(window = {} tokens)", self.longest().min(WINDOW_TOKENS))
            }
            Head::Spans => "answer_f1()".to_owned(),
            Head::Tokens { .. } => "loss()".to_owned(),
        }
    }

    /// Tokens that the model's config allows in a row.
    pub fn longest(&self) -> u64 {
        stated_length(&self.facts.blueprint, &self.facts.config).map_or(WINDOW_TOKENS, |n| n as u64).max(2)
    }
}

/// The text as a recipe of the working directory.
fn recipe(name: &str, text: String) -> RecipeFile {
    RecipeFile { shown: format!("{name} (from the arguments)"), name: name.to_owned(), base: PathBuf::from("."), text }
}

/// The plan of a recipe that these commands wrote; mistakes in what the user gave are told as a recipe's are.
pub fn plan(recipe: &RecipeFile, options: &Options) -> Result<Plan> {
    let compiled = compile(recipe, &[], options.hub.clone())?;
    super::run::accepted(compiled.result, &compiled.sources, &compiled.models, options)
}

/// The same of a recipe that is only looked at, so that steps which this build does not carry out are no mistakes.
pub fn plan_only(recipe: &RecipeFile, options: &Options) -> Result<Plan> {
    let compiled = compile(recipe, &[], options.hub.clone())?;
    let color = options.ui.color;
    compiled.result.map_err(|d| Error::Recipe { rendered: prunectl_recipe::render::render(&d, &compiled.sources, color), errors: d.len() })
}

/// `d.test.take(100)`: the rows that the arguments name.
fn rows(decl: &DataDecl, args: &DataArgs, facts: &Facts, options: &Options) -> Result<String> {
    let mut on = "d".to_owned();
    let splits = crate::data::splits(decl, &options.hub).unwrap_or_default();
    let preferred: [&str; 3] = if facts.task == Task::CausalLm { ["test", "validation", "train"] } else { ["validation", "test", "train"] };
    let chosen = match &args.split {
        Some(split) => Some(split.clone()),
        None => preferred.iter().find(|s| splits.iter().any(|x| x == *s)).map(|s| (*s).to_owned()).or(splits.first().cloned()),
    };
    if let Some(split) = chosen {
        if args.split.is_none() {
            options.ui.note(format!("using the split `{split}`; --split names another"));
        }
        on += &format!(".{split}");
    }
    if let Some(n) = args.rows {
        on += &format!(".take({n})");
    }
    Ok(on)
}

/// A call: a bare name gets its parentheses.
pub fn call(given: &str) -> String {
    let given = given.trim();
    if given.contains('(') { given.to_owned() } else { format!("{given}()") }
}

/// A name for a metric's value that is a name of the language.
pub fn value_name(call: &str, taken: &[String]) -> String {
    let base: String = call.split('(').next().unwrap_or("value").trim().to_owned();
    let free = |n: &String| !taken.contains(n);
    std::iter::once(base.clone()).chain((2..).map(|i| format!("{base}_{i}"))).find(free).unwrap_or(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_in_the_languages_words() {
        assert_eq!(stem("/models/MiniLM-sst2/"), "minilm_sst2");
        assert_eq!(stem("builtin:tiny-bert"), "tiny_bert");
        assert!(data_source("a.bin").is_err() && model_source("a\"b").is_err() && model_source("builtin:none").is_err());
        assert_eq!(model_source("hf:org/name@v1").unwrap(), "hf(\"org/name\", revision = \"v1\")");
        assert_eq!(data_source("csv(\"a\", text = 0)").unwrap(), "csv(\"a\", text = 0)");
        assert_eq!(data_source("builtin:tales").unwrap(), "builtin(\"tales\")");
    }

    #[test]
    fn names_of_values_differ() {
        assert_eq!(call(" accuracy "), "accuracy()");
        let mut taken = Vec::new();
        for expected in ["perplexity", "perplexity_2", "perplexity_3"] {
            let name = value_name("perplexity(window = 8 tokens)", &taken);
            assert_eq!(name, expected);
            taken.push(name);
        }
    }
}
