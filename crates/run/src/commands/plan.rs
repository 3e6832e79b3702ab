//! `prunectl plan RECIPE`: what a run would do, from configs and safetensors headers alone.

use std::path::PathBuf;

use clap::Args;
use prunectl_recipe::Sources;
use prunectl_recipe::plan::{Bound, Goal, Plan, StepKind};
use serde_json::{Value, json};

use crate::cli::{DONE, parse_set};
use crate::commands::draft::{self, DataArgs, Draft, stem};
use crate::commands::run::table;
use crate::commands::{print, print_json};
use crate::compile::compile;
use crate::error::{Error, Result};
use crate::fit::{Fit, What};
use crate::forecast::{Forecast, ModelForecast, Range, StepForecast, forecast};
use crate::models::DiskFacts;
use crate::recipes::{BUILTIN, BUILTINS, RecipeFile};
use crate::report::{FigureUnit, figure};
use crate::session::Options;
use prunectl_recipe::render::render;

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct PlanCommand {
    /// A recipe file, or `builtin:<name>` for one inside the program; or a model: a folder, hf:<org/name>[@revision], builtin:<name>.
    pub recipe: PathBuf,
    /// Sets a `param` of the recipe; may be repeated.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = parse_set)]
    pub set: Vec<(String, String)>,
    /// The memory that a run would be given, for example 2GiB.
    #[arg(long, value_parser = crate::streaming::parse_memory)]
    pub memory: Option<u64>,
    /// Of a model: the bound that the smaller one shall keep, as a recipe writes it: 'params <= 6B', 'memory(batch = 8) <= 60% of dense'.
    #[arg(long, value_name = "BOUND", conflicts_with = "set")]
    pub to: Option<String>,
    /// Of a model: what is taken out for --to.
    #[arg(long, value_enum, default_value_t = What::Units, requires = "to")]
    pub remove: What,
}

impl PlanCommand {
    /// Prints the plan.
    pub fn run(&self, options: &Options) -> Result<u8> {
        let (recipe, found) = self.recipe(options)?;
        let compiled = compile(&recipe, &self.set, options.hub.clone())?;
        let sources = &compiled.sources;
        let plan = compiled.result.map_err(|d| Error::Recipe { rendered: render(&d, sources, options.ui.color), errors: d.len() })?;
        if !plan.warnings.is_empty() {
            eprintln!("{}", render(&plan.warnings, sources, options.ui.color).trim_end());
        }
        let forecast = forecast(&plan, sources, &compiled.models, self.memory);
        let refused = forecast.refused();
        if options.json {
            let mut value = to_json(&plan, &forecast, &refused.iter().map(|d| d.message.clone()).collect::<Vec<_>>());
            if let (Some(fit), Some(object)) = (&found, value.as_object_mut()) {
                object.insert("fit".to_owned(), json!(fit));
                object.insert("statements".to_owned(), json!(recipe.text));
            }
            print_json(&value)?;
            return DONE;
        }
        print(&text(&plan, &forecast))?;
        if let Some(fit) = &found {
            print(&fitted(fit, &recipe.text))?;
        }
        if !refused.is_empty() {
            eprintln!("\n`run` will refuse this recipe:\n{}", render(&refused, sources, options.ui.color).trim_end());
        }
        DONE
    }
}

impl PlanCommand {
    /// The recipe to plan; of a model, one that loads it and, with `--to`, takes out the least that meets the bound.
    fn recipe(&self, options: &Options) -> Result<(RecipeFile, Option<Fit>)> {
        let given = self.recipe.display().to_string();
        let known_recipe = given.strip_prefix(BUILTIN).is_some_and(|name| BUILTINS.iter().any(|(n, _)| *n == name));
        let model = given.starts_with("hf:") || (given.starts_with(BUILTIN) && !known_recipe) || self.recipe.join("config.json").is_file();
        if !model {
            if self.to.is_some() {
                return Err(Error::Usage {
                    message: format!("--to bounds a model, and {given} is a recipe; write `prune … to …` in it, or give a model's folder"),
                });
            }
            return Ok((RecipeFile::open(&self.recipe)?, None));
        }
        let none = DataArgs { data: None, split: None, rows: None };
        let draft = Draft::new(&stem(&given), &given, &none, options)?;
        let Some(bound) = &self.to else { return Ok((draft.with(""), None)) };
        // The language reads the bound; the step that holds it is not the one that is planned.
        let selector = self.remove.selector();
        // A bound in a recipe is met on data; nothing is measured here, so any will do.
        let step = format!("data probe = builtin(\"tales\")\nprune m.{selector} to {bound} using magnitude() {{ on = probe.train }}\n");
        let bounded = draft::plan_only(&draft.with(&step), options)?;
        let limits = bounded.steps.iter().find_map(|s| match &s.kind {
            StepKind::Prune(p) => match &p.goal {
                Goal::To(Bound::Limits(limits)) => Some(limits),
                _ => None,
            },
            _ => None,
        });
        let limits =
            limits.ok_or_else(|| Error::Usage { message: format!("--to takes limits such as 'params <= 6B', found `{bound}`") })?;
        let fit = crate::fit::fit(&draft.facts, limits, self.remove)?;
        let mut statements = String::new();
        if fit.thousandths > 0 {
            let each = if self.remove == What::Units { " each" } else { "" };
            statements = format!("prune m.{selector} by {}{each} using magnitude() {{ scope = layer }}\ncompact m\n", fit.share());
        }
        Ok((draft.with(&statements), Some(fit)))
    }
}

/// What `--to` found.
fn fitted(fit: &Fit, recipe: &str) -> String {
    let mut out = match fit.thousandths {
        0 => "\nthe model meets the bound as it is\n".to_owned(),
        _ => format!("\nthe bound is met with {} of every layer gone:\n", fit.share()),
    };
    for met in &fit.limits {
        let unit = crate::executor::unit_of(&met.metric);
        out +=
            &format!("  {}: {} → {}, at most {}\n", met.metric, figure(met.before, unit), figure(met.after, unit), figure(met.limit, unit));
    }
    if fit.thousandths > 0 {
        out += "a recipe to begin with (choose the criterion; `prunectl explain` lists them):\n";
        out += &recipe.lines().map(|l| format!("    {l}\n")).collect::<String>();
    }
    out
}

/// `plan.json` of a run directory.
pub fn outline(plan: &Plan, sources: &Sources, models: &DiskFacts, memory: Option<u64>) -> Value {
    to_json(plan, &forecast(plan, sources, models, memory), &[])
}

fn to_json(plan: &Plan, forecast: &Forecast, refused: &[String]) -> Value {
    json!({
        "recipe": plan.name,
        "params": plan.params.iter().map(|p| json!({"name": p.name, "type": p.ty, "value": crate::forecast::shown(&p.value)})).collect::<Vec<_>>(),
        "models": forecast.models,
        "steps": forecast.steps,
        "peak_memory_bytes": forecast.peak.as_ref().map(|p| p.bytes),
        "streamed": forecast.streamed,
        "refused": refused,
    })
}

fn text(plan: &Plan, forecast: &Forecast) -> String {
    let mut out = format!("{}\n", plan.name);
    for param in &plan.params {
        out += &format!("  {} = {}\n", param.name, crate::forecast::shown(&param.value));
    }
    out += "\n";
    let mut steps = table(&["line", "step", "what"]);
    for column in steps.column_iter_mut() {
        column.set_cell_alignment(comfy_table::CellAlignment::Left);
    }
    for step in &forecast.steps {
        steps.add_row([step.line.to_string(), format!("{} {}", step.kind, step.name), what(step)]);
    }
    out += &format!("{steps}\n");
    for model in &forecast.models {
        out += &format!("\n{}\n", of_model(model));
    }
    if let Some(peak) = &forecast.peak {
        let bytes = figure(peak.bytes as f64, FigureUnit::Bytes);
        let how = match (forecast.streamed.as_slice(), &peak.at) {
            ([], Some((line, step))) => format!("in `{step}` of line {line}"),
            ([], None) => "in any step".to_owned(),
            (names, _) => format!("{} stays on the disk: a block, its statistics and the activations of a batch", names.join(", ")),
        };
        out += &format!("\npeak memory at most about {bytes}, {how} (on the CPU, in f32; data files not counted)\n");
    }
    out
}

fn what(step: &StepForecast) -> String {
    let mut lines = step.notes.clone();
    if let Some(passes) = step.passes {
        lines.push(format!("{} passes over its data", figure(passes as f64, FigureUnit::Count)));
    }
    lines.join("\n")
}

fn of_model(model: &ModelForecast) -> String {
    let Some(known) = &model.known else {
        return format!("{} ({}): {}", model.name, model.source, model.unknown.clone().unwrap_or_default());
    };
    let mut out = format!("{} ({}): {} for {}, {} layers\n", model.name, model.source, known.family, known.task, known.layers.len());
    let mixture = known.layers.iter().any(|l| l.experts > 0);
    let mut columns = vec!["layer", "heads", "kv groups", "neurons"];
    if mixture {
        columns.push("experts");
    }
    let mut shapes = table(&columns);
    let mut start = 0;
    while let Some(first) = known.layers.get(start) {
        let same = known.layers.iter().skip(start).take_while(|l| *l == first).count().max(1);
        let name = if same == 1 { start.to_string() } else { format!("{start}–{}", start + same - 1) };
        let change = |before: usize, after: Range| if after.is(before) { before.to_string() } else { format!("{before} → {after}") };
        let mut row = vec![
            name,
            change(first.heads, first.heads_after),
            change(first.kv_groups, first.kv_groups_after),
            change(first.neurons, first.neurons_after),
        ];
        if mixture {
            row.push(change(first.experts, first.experts_after));
        }
        shapes.add_row(row);
        start += same;
    }
    out += &format!("{shapes}\n");
    let mut sizes = table(&["", "before", "after"]);
    for (what, before, after) in [("layers", known.layers.len(), known.layers_after), ("hidden channels", known.hidden, known.hidden_after)]
    {
        if before != after {
            sizes.add_row([what.to_owned(), before.to_string(), after.to_string()]);
        }
    }
    let after = |r: &Option<(u64, u64)>| match r {
        Some((a, b)) if a == b => figure(*a as f64, FigureUnit::Count),
        Some((a, b)) => format!("{} – {}", figure(*a as f64, FigureUnit::Count), figure(*b as f64, FigureUnit::Count)),
        None => "decided by the run".to_owned(),
    };
    sizes.add_row(["parameters".to_owned(), figure(known.parameters as f64, FigureUnit::Count), after(&known.parameters_after)]);
    let flops = format!("FLOPs of {} tokens", known.flops_length_tokens);
    sizes.add_row([flops, figure(known.flops as f64, FigureUnit::Count), after(&known.flops_after)]);
    let cache = |r: (u64, u64)| {
        if r.0 == r.1 {
            figure(r.0 as f64, FigureUnit::Bytes)
        } else {
            format!("{} – {}", figure(r.0 as f64, FigureUnit::Bytes), figure(r.1 as f64, FigureUnit::Bytes))
        }
    };
    if let Some((before, after)) = known.kv_cache_bytes {
        sizes.add_row([
            format!("KV cache of {} tokens", known.flops_length_tokens),
            figure(before as f64, FigureUnit::Bytes),
            cache(after),
        ]);
    }
    sizes.add_row(["weight files".to_owned(), figure(known.file_bytes as f64, FigureUnit::Bytes), String::new()]);
    out += &format!("{sizes}\n");
    for loader in &known.loaders {
        out += &format!("  {loader}\n");
    }
    out.trim_end().to_owned()
}
