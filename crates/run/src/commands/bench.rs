//! `prunectl bench MODEL… --data D`: models side by side, the first one the dense.
//!
//! Each model is measured in a process of its own (this program again, with one model), so that its peak memory is its own and a model
//! that does not fit leaves the others standing. What is measured is a recipe of `eval`s that the executor runs.

use std::process::{Command, Stdio};

use candle_core::Device;
use clap::{Args, ValueEnum};
use prunectl_model::Head;
use serde::{Deserialize, Serialize};

use crate::cli::{Compute, DONE};
use crate::commands::draft::{DataArgs, Draft, call, stem};
use crate::commands::eval::statements;
use crate::commands::run::carry_out_and_forget;
use crate::commands::{print, print_json};
use crate::error::{Error, Result};
use crate::executor::{peak_rss_bytes, unit_of};
use crate::models::{self, describe};
use crate::report::{FigureUnit, figure};
use crate::rounded;
use crate::session::Options;

/// Tokens of the prompt whose speed is measured, where the model takes so many.
const PROMPT_TOKENS: u64 = 128;
/// Tokens generated behind it.
const GENERATED_TOKENS: u64 = 32;

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// The models: folders, builtin:<name>, or hf:<org/name>[@revision]. The first is what the others are compared with.
    #[arg(required = true, value_name = "MODEL")]
    pub models: Vec<String>,
    #[command(flatten)]
    data: DataArgs,
    /// The metric of quality, as a recipe writes it; may be repeated. Left out: the one that fits the model.
    #[arg(long = "metric", value_name = "METRIC")]
    metrics: Vec<String>,
    /// Also the first model with its weights quantised to no more bytes than each smaller one has: what pruning has to beat.
    #[arg(long)]
    same_bytes: bool,
    /// Also the divergence of each model's outputs from the first one's.
    #[arg(long)]
    kl: bool,
    /// Tokens of the prompt whose speed is measured.
    #[arg(long, value_name = "TOKENS")]
    length: Option<u64>,
    /// Timed passes; the median counts. Of generated texts, half as many.
    #[arg(long, value_name = "N", default_value_t = 10)]
    runs: u64,
    /// md, csv or json.
    #[arg(short = 'o', long = "format", value_enum, default_value_t = Format::Md)]
    format: Format,
    /// The model to take the divergence from; the processes of `--kl` get it.
    #[arg(long, hide = true)]
    against: Option<String>,
    #[command(flatten)]
    compute: Compute,
}

/// How the table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A Markdown table with the protocols below it.
    Md,
    /// One line a model, values bare.
    Csv,
    /// A list.
    Json,
}

/// One measured value.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Figure {
    name: String,
    /// As `metrics.json` has it: a number, or a string for an infinity.
    value: serde_json::Value,
    stderr: Option<f64>,
    protocol: String,
    tokens: Option<u64>,
    examples: Option<u64>,
    metric: String,
}

impl Figure {
    fn number(&self) -> f64 {
        self.value.as_f64().or_else(|| self.value.as_str()?.parse().ok()).unwrap_or(f64::NAN)
    }
}

/// One model.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Row {
    model: String,
    source: String,
    quality: Vec<Figure>,
    parameters: u64,
    /// Bytes of the weight files.
    file_bytes: u64,
    /// Tokens a second of a forward pass over a prompt, batch 1: from the median time.
    prompt_tokens_per_second: Option<f64>,
    prompt_protocol: String,
    /// Tokens a second of greedy generation behind that prompt; only of models that continue texts.
    generation_tokens_per_second: Option<f64>,
    generation_protocol: Option<String>,
    /// Most memory that the process which measured all this ever held.
    peak_memory_bytes: Option<u64>,
    device: String,
}

impl Bench {
    /// Measures every model and prints the table.
    pub fn run(&self, options: &Options) -> Result<u8> {
        let options = self.compute.over(options);
        let json = options.json || self.format == Format::Json;
        let mut rows = match self.models.as_slice() {
            [one] => vec![self.measure(one, &options)?],
            several => several.iter().map(|m| self.measure_apart(m, &options)).collect::<Result<Vec<_>>>()?,
        };
        if self.same_bytes {
            rows.extend(self.quantised(&rows, &options)?);
        }
        if json {
            print_json(&rows)?;
        } else if self.format == Format::Csv {
            print(&csv(&rows))?;
        } else {
            print(&markdown(&rows))?;
        }
        DONE
    }

    /// Measures one model in this process.
    fn measure(&self, model: &str, options: &Options) -> Result<Row> {
        let draft = Draft::new(&format!("bench-{}", stem(model)), model, &self.data, options)?;
        let mut calls: Vec<String> = match (self.metrics.is_empty(), draft.on.is_empty()) {
            (true, true) => Vec::new(),
            (true, false) => vec![draft.quality()],
            (false, _) => self.metrics.iter().map(|m| call(m)).collect(),
        };
        let quality = calls.len();
        let length = self.length.unwrap_or(PROMPT_TOKENS).min(draft.longest());
        calls.push(format!("latency(batch = 1, length = {length} tokens, runs = {})", self.runs));
        let blueprint = &draft.facts.blueprint;
        let generates = blueprint.attention.causal
            && matches!(blueprint.head, Head::Tokens { .. })
            && draft.facts.config.get("quantization_config").is_none();
        if generates {
            let prompt = length.min(draft.longest().saturating_sub(GENERATED_TOKENS)).max(1);
            let tokens = GENERATED_TOKENS.min(draft.longest().saturating_sub(prompt)).max(1);
            let runs = self.runs.div_ceil(2);
            calls.push(format!("generation(batch = 1, prompt = {prompt} tokens, tokens = {tokens} tokens, runs = {runs})"));
        }
        let mut text = String::new();
        if let Some(dense) = &self.against {
            text += &format!("model dense = {}\neval kl(dense) of m on {} as kl\n", super::draft::model_source(dense)?, draft.on);
        }
        text = statements(&calls, &draft.on, None) + &text;
        let finished = carry_out_and_forget(&draft.with(&text), options)?;
        let figures: Vec<Figure> = finished
            .book
            .rows
            .iter()
            .map(|row| {
                let value = serde_json::to_value(&row.recorded).unwrap_or_default();
                Figure {
                    name: row.name.clone(),
                    value: value.get("value").cloned().unwrap_or_default(),
                    stderr: row.recorded.stderr,
                    protocol: row.recorded.protocol.clone(),
                    tokens: row.recorded.tokens,
                    examples: row.recorded.examples,
                    metric: row.recorded.metric.clone(),
                }
            })
            .collect();
        let latency = figures.get(quality).cloned().ok_or_else(|| Error::Internal("latency was not measured".to_owned()))?;
        let generation = figures.get(quality + 1).filter(|_| generates).cloned();
        let speeds = quality..quality + 1 + usize::from(generates);
        Ok(Row {
            model: model.to_owned(),
            source: describe(&draft.model.source),
            quality: figures.into_iter().enumerate().filter(|(i, _)| !speeds.contains(i)).map(|(_, f)| f).collect(),
            parameters: draft.facts.parameters,
            file_bytes: draft.facts.file_bytes,
            prompt_tokens_per_second: Some(length as f64 / latency.number() * 1e3),
            prompt_protocol: latency.protocol,
            generation_tokens_per_second: generation.as_ref().map(Figure::number),
            generation_protocol: generation.map(|g| g.protocol),
            peak_memory_bytes: Some(peak_rss_bytes()),
            device: finished.book.rows.first().map_or_else(String::new, |r| r.recorded.device.clone()),
        })
    }

    /// The first model, quantised to the bytes of each smaller one.
    fn quantised(&self, rows: &[Row], options: &Options) -> Result<Vec<Row>> {
        let (Some(dense), Some(first)) = (self.models.first(), rows.first()) else { return Ok(Vec::new()) };
        let draft = Draft::new(&format!("bench-{}", stem(dense)), dense, &DataArgs::default(), options)?;
        let loaded = models::load(&draft.model, &Device::Cpu, None, &options.hub, None)?;
        let folder = tempfile::Builder::new().prefix("prunectl-").tempdir().map_err(Error::io("create", std::env::temp_dir()))?;
        let mut out: Vec<Row> = Vec::new();
        for smaller in rows.iter().skip(1).filter(|r| r.file_bytes < first.file_bytes) {
            let Some((word, kind, bytes)) = rounded::finest_within(&loaded.model, smaller.file_bytes) else {
                options.ui.warn(format!("{dense} takes more than the bytes of {} in every quantised type", smaller.model));
                continue;
            };
            let name = format!("{dense} as {word}");
            if out.iter().any(|r| r.model == name) {
                continue;
            }
            let path = folder.path().join(word);
            rounded::save(&loaded, kind, &path)?;
            let measured = self.measure_apart(&path.display().to_string(), options)?;
            // What was timed computes in f32.
            out.push(Row {
                model: name,
                source: format!("{}, quantised", first.source),
                file_bytes: bytes,
                prompt_tokens_per_second: None,
                generation_tokens_per_second: None,
                generation_protocol: None,
                peak_memory_bytes: None,
                ..measured
            });
        }
        Ok(out)
    }

    /// Measures one model in a process of its own.
    fn measure_apart(&self, model: &str, options: &Options) -> Result<Row> {
        let program = std::env::current_exe().map_err(Error::io("find", "this program"))?;
        options.ui.note(format!("measuring {model}"));
        let mut command = Command::new(&program);
        command.args(["bench", model, "--json", "--runs", &self.runs.to_string(), "--device", &options.device.to_string()]);
        let mut give = |flag: &str, value: Option<String>| {
            if let Some(value) = value {
                command.args([flag, &value]);
            }
        };
        give("--data", self.data.data.clone());
        give("--split", self.data.split.clone());
        give("--rows", self.data.rows.map(|n| n.to_string()));
        give("--length", self.length.map(|n| n.to_string()));
        give("--dtype", options.dtype.map(|d| d.to_string()));
        for metric in &self.metrics {
            give("--metric", Some(metric.clone()));
        }
        if self.kl {
            give("--against", self.models.first().cloned());
        }
        if options.offline {
            command.arg("--offline");
        }
        if options.ui.verbosity < 0 {
            command.arg("--quiet");
        }
        let out = command.stderr(Stdio::inherit()).output().map_err(Error::io("run", &program))?;
        if !out.status.success() {
            return Err(Error::Usage { message: format!("{model} was not measured (see above); leave it out, or correct it") });
        }
        serde_json::from_slice::<Vec<Row>>(&out.stdout)
            .ok()
            .and_then(|rows| rows.into_iter().next())
            .ok_or_else(|| Error::Internal(format!("the figures of {model} can't be read")))
    }
}

/// The names of the metrics of quality, in order of first appearance.
fn quality_names(rows: &[Row]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for figure in rows.iter().flat_map(|r| &r.quality) {
        if !names.contains(&figure.name.as_str()) {
            names.push(&figure.name);
        }
    }
    names
}

fn markdown(rows: &[Row]) -> String {
    let names = quality_names(rows);
    let generates = rows.iter().any(|r| r.generation_tokens_per_second.is_some());
    let mut heads: Vec<&str> =
        std::iter::once("model").chain(names.iter().copied()).chain(["parameters", "file", "prompt speed"]).collect();
    heads.extend(generates.then_some("generation"));
    heads.push("peak memory");
    let mut out = format!("| {} |\n|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
    let first = rows.first();
    for (i, row) in rows.iter().enumerate() {
        let share = |now: f64, of: Option<f64>, text: String| match of.filter(|b| i > 0 && *b > 0.0) {
            Some(before) => format!("{text} ({:.0} %)", now / before * 100.0),
            None => text,
        };
        let mut cells = vec![row.model.clone()];
        for name in &names {
            cells.push(match row.quality.iter().find(|f| f.name == *name) {
                Some(f) => {
                    let unit = unit_of(&f.metric);
                    let error = f.stderr.map_or_else(String::new, |e| format!(" ± {}", figure(e, unit)));
                    format!("{}{error}", figure(f.number(), unit))
                }
                None => "–".to_owned(),
            });
        }
        let of = |get: fn(&Row) -> f64| first.map(get);
        let parameters = row.parameters as f64;
        cells.push(share(parameters, of(|r| r.parameters as f64), figure(parameters, FigureUnit::Count)));
        let bytes = row.file_bytes as f64;
        cells.push(share(bytes, of(|r| r.file_bytes as f64), figure(bytes, FigureUnit::Bytes)));
        let mut optional = |get: fn(&Row) -> Option<f64>, unit: FigureUnit| {
            cells.push(get(row).map_or_else(|| "–".to_owned(), |now| share(now, first.and_then(get), figure(now, unit))));
        };
        optional(|r| r.prompt_tokens_per_second, FigureUnit::TokensPerSecond);
        if generates {
            optional(|r| r.generation_tokens_per_second, FigureUnit::TokensPerSecond);
        }
        optional(|r| r.peak_memory_bytes.map(|b| b as f64), FigureUnit::Bytes);
        out += &format!("| {} |\n", cells.join(" | "));
    }
    out.push('\n');
    for name in &names {
        if let Some(f) = rows.iter().flat_map(|r| &r.quality).find(|f| f.name == *name) {
            let over = match (f.tokens, f.examples) {
                (Some(n), _) => format!(" ({n} tokens)"),
                (None, Some(n)) => format!(" ({n} examples)"),
                (None, None) => String::new(),
            };
            out += &format!("{name}{over}: {}\n", f.protocol);
        }
    }
    if let Some(row) = first {
        out += &format!("prompt speed, on {}: {}\n", row.device, row.prompt_protocol);
        if let Some(protocol) = rows.iter().find_map(|r| r.generation_protocol.as_ref()) {
            out += &format!("generation: {protocol}\n");
        }
        if rows.iter().any(|r| r.prompt_tokens_per_second.is_none()) {
            out += "as a quantised type: GGUF's blocks, the finest whose bytes are no more than a smaller model's; computed with in f32, so without speed and memory of its own\n";
        }
        out += "peak memory: of the process that measured the model, weights, data and activations together\n";
        if rows.len() > 1 {
            out += &format!("in brackets: the share of {}'s\n", row.model);
        }
    }
    out
}

/// One line a model; a standard error stands in a column of its own.
fn csv(rows: &[Row]) -> String {
    let names = quality_names(rows);
    let cell = |text: &str| match text.contains([',', '"', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    };
    let mut heads = vec!["model".to_owned()];
    heads.extend(names.iter().flat_map(|n| [(*n).to_owned(), format!("{n}_stderr")]));
    heads.extend(
        ["parameters", "file_bytes", "prompt_tokens_per_second", "generation_tokens_per_second", "peak_memory_bytes"].map(str::to_owned),
    );
    let mut out = heads.join(",") + "\n";
    for row in rows {
        let mut cells = vec![cell(&row.model)];
        for name in &names {
            let figure = row.quality.iter().find(|f| f.name == *name);
            cells.push(figure.map_or_else(String::new, |f| f.number().to_string()));
            cells.push(figure.and_then(|f| f.stderr).map_or_else(String::new, |e| e.to_string()));
        }
        cells.push(row.parameters.to_string());
        cells.push(row.file_bytes.to_string());
        for speed in [row.prompt_tokens_per_second, row.generation_tokens_per_second] {
            cells.push(speed.map_or_else(String::new, |s| format!("{s:.1}")));
        }
        cells.push(row.peak_memory_bytes.map_or_else(String::new, |b| b.to_string()));
        out += &(cells.join(",") + "\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(model: &str, value: f64, parameters: u64) -> Row {
        let figure = Figure {
            name: "perplexity".into(),
            value: serde_json::json!(value),
            stderr: Some(0.25),
            protocol: "windows".into(),
            tokens: Some(100),
            examples: None,
            metric: "perplexity".into(),
        };
        Row {
            model: model.into(),
            source: model.into(),
            quality: vec![figure],
            parameters,
            file_bytes: 4 * parameters,
            prompt_tokens_per_second: Some(10.0),
            prompt_protocol: "median".into(),
            generation_tokens_per_second: None,
            generation_protocol: None,
            peak_memory_bytes: Some(1 << 20),
            device: "cpu".into(),
        }
    }

    #[test]
    fn the_others_are_shares_of_the_first() {
        let rows = [row("dense", 4.0, 1000), row("a,b", 5.0, 500)];
        let text = markdown(&rows);
        assert!(text.contains("| dense | 4 ± 0.25000 | 1000 |") && text.contains("| a,b | 5 ± 0.25000 | 500 (50 %) |"), "{text}");
        assert!(text.contains("perplexity (100 tokens): windows"), "{text}");
        let lines = csv(&rows);
        assert!(lines.lines().nth(2).is_some_and(|l| l.starts_with("\"a,b\",5,0.25,500,2000,10.0,,1048576")), "{lines}");
    }
}
