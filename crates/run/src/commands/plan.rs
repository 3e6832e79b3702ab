//! `prunectl plan RECIPE`: what a run would do, from configs and safetensors headers alone.

use clap::Args;
use prunectl_recipe::Sources;
use prunectl_recipe::plan::Plan;
use serde_json::{Value, json};

use crate::cli::{DONE, RecipeArgs};
use crate::commands::run::table;
use crate::commands::{print, print_json};
use crate::compile::{compile, refused};
use crate::error::{Error, Result};
use crate::forecast::{Forecast, ModelForecast, Range, StepForecast, forecast};
use crate::hub::Door;
use crate::recipes::RecipeFile;
use crate::report::{FigureUnit, figure};
use crate::session::Options;
use prunectl_recipe::render::render;

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct PlanCommand {
    #[command(flatten)]
    recipe: RecipeArgs,
}

impl PlanCommand {
    /// Prints the plan.
    pub fn run(&self, options: &Options) -> Result<u8> {
        let recipe = RecipeFile::open(&self.recipe.recipe)?;
        let compiled = compile(&recipe, &self.recipe.set, options.hub.clone())?;
        let sources = &compiled.sources;
        let plan = compiled.result.map_err(|d| Error::Recipe { rendered: render(&d, sources, options.ui.color), errors: d.len() })?;
        if !plan.warnings.is_empty() {
            eprintln!("{}", render(&plan.warnings, sources, options.ui.color).trim_end());
        }
        let forecast = forecast(&plan, sources, &options.hub);
        let refused = [refused(&plan), forecast.unloadable()].concat();
        if options.json {
            print_json(&to_json(&plan, &forecast, &refused.iter().map(|d| d.message.clone()).collect::<Vec<_>>()))?;
            return DONE;
        }
        print(&text(&plan, &forecast))?;
        if !refused.is_empty() {
            eprintln!("\n`run` will refuse this recipe:\n{}", render(&refused, sources, options.ui.color).trim_end());
        }
        DONE
    }
}

/// `plan.json` of a run directory.
pub fn outline(plan: &Plan, sources: &Sources, hub: &Door) -> Value {
    to_json(plan, &forecast(plan, sources, hub), &[])
}

fn to_json(plan: &Plan, forecast: &Forecast, refused: &[String]) -> Value {
    json!({
        "recipe": plan.name,
        "params": plan.params.iter().map(|p| json!({"name": p.name, "type": p.ty, "value": crate::forecast::shown(&p.value)})).collect::<Vec<_>>(),
        "models": forecast.models,
        "steps": forecast.steps,
        "peak_memory_bytes": forecast.peak_memory_bytes,
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
    if let Some(bytes) = forecast.peak_memory_bytes {
        out += &format!(
            "\npeak memory about {} (weights twice where a dense copy stays, and the activations of a batch)\n",
            figure(bytes as f64, FigureUnit::Bytes)
        );
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
    let mut shapes = table(&["layer", "heads", "kv groups", "neurons"]);
    let mut start = 0;
    while let Some(first) = known.layers.get(start) {
        let same = known.layers.iter().skip(start).take_while(|l| *l == first).count().max(1);
        let name = if same == 1 { start.to_string() } else { format!("{start}–{}", start + same - 1) };
        let change = |before: usize, after: Range| if after.is(before) { before.to_string() } else { format!("{before} → {after}") };
        shapes.add_row([
            name,
            change(first.heads, first.heads_after),
            change(first.kv_groups, first.kv_groups_after),
            change(first.neurons, first.neurons_after),
        ]);
        start += same;
    }
    out += &format!("{shapes}\n");
    let mut sizes = table(&["", "before", "after"]);
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
