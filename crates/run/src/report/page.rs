//! The page: sections in the order in which a reader asks. What came out, does it hold, what was removed, how does it compare, and with
//! which recipe on which machine.

use prunectl_model::LayerDims;

use super::data::{
    Chart, Expectation, FigureUnit, Heatmap, Histogram, MetricRow, ReportData, SavedModel, Series, ShapeRow, StepRow, SummaryRow, Sweep,
};
use super::figures::{change, duration, figure, grouped, significant};
use super::html::{Html, escape};
use super::svg;

const STYLE: &str = include_str!("style.css");
/// Score tables of wider layers would be longer than the rest of the page; `scores/` has them all.
const MAX_SCORE_COLUMNS: usize = 64;
/// Curves with more points are thinned in the table, not in the drawing.
const MAX_CURVE_ROWS: usize = 200;

/// The whole page. Pure: the same data gives the same bytes.
#[must_use]
pub fn render(data: &ReportData) -> String {
    let sections = sections(data);
    let mut h = Html::default();
    h.raw("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>");
    // Nothing may be fetched, whatever a recipe puts into the page.
    h.raw("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src &#39;none&#39;; style-src &#39;unsafe-inline&#39;\"/>");
    h.raw("<meta name=\"color-scheme\" content=\"light dark\"/>");
    h.el("title", "", &format!("{} · prunectl", data.title));
    h.raw("<style>").raw(STYLE).raw("</style></head><body>\n");
    h.within("header", "", |h| {
        h.el("h1", "", &data.title);
        if !data.doc.trim().is_empty() {
            h.el("p", "class=\"lead\"", data.doc.trim());
        }
        if !data.outcome.is_empty() {
            h.el("p", if data.outcome == "done" { "class=\"soft\"" } else { "class=\"bad\"" }, &format!("Run: {}", data.outcome));
        }
        h.within("nav", "aria-label=\"Sections\"", |h| {
            h.within("ul", "", |h| {
                for section in &sections {
                    h.within("li", "", |h| {
                        h.el("a", &format!("href=\"#{}\"", section.id), section.title);
                    });
                }
            });
        });
    });
    h.raw("\n<main>");
    for section in sections {
        h.raw("\n").within("section", &format!("aria-labelledby=\"{}\"", section.id), |h| {
            h.el("h2", &format!("id=\"{}\"", section.id), section.title);
            (section.body)(h, data);
        });
    }
    h.raw("</main>\n");
    h.el("footer", "", "Written by prunectl. This file is complete in itself: it fetches nothing and runs no script.");
    h.raw("</body></html>\n");
    h.finish()
}

struct Section {
    id: &'static str,
    title: &'static str,
    body: fn(&mut Html, &ReportData),
}

/// The sections that have something to say.
fn sections(data: &ReportData) -> Vec<Section> {
    let mut all = Vec::new();
    let mut add = |shown: bool, id: &'static str, title: &'static str, body: fn(&mut Html, &ReportData)| {
        if shown {
            all.push(Section { id, title, body });
        }
    };
    add(!data.summary.is_empty(), "result", "Dense beside pruned", |h, d| summary(h, &d.summary));
    add(!data.expectations.is_empty(), "gates", "Expectations", |h, d| expectations(h, &d.expectations));
    add(!data.warnings.is_empty(), "warnings", "Warnings", |h, d| warnings(h, &d.warnings));
    add(!data.metrics.is_empty(), "figures", "Figures and their protocol", |h, d| metrics(h, &d.metrics));
    add(!data.shapes.is_empty(), "shapes", "Shapes", |h, d| shapes(h, &d.shapes));
    add(!data.heatmaps.is_empty(), "importance", "Importance of each unit", |h, d| heatmaps(h, &d.heatmaps));
    add(!(data.ranks.is_empty() && data.floors.is_empty()), "compared", "Criteria beside one another", |h, d| {
        super::compared::compared(h, &d.ranks, &d.floors)
    });
    add(!data.sweeps.is_empty(), "sweeps", "Sweeps", |h, d| sweeps(h, &d.sweeps));
    add(!data.sensitivity.is_empty(), "sensitivity", "Sensitivity of each layer", |h, d| curves(h, &d.sensitivity, "sense"));
    add(!data.alike.is_empty(), "alike", "How alike the states between blocks are", |h, d| super::compared::alike(h, &d.alike));
    add(!data.curves.is_empty(), "curves", "Training", |h, d| curves(h, &d.curves, "curve"));
    add(!data.histograms.is_empty(), "weights", "Weights", |h, d| histograms(h, &d.histograms));
    add(!data.saves.is_empty(), "saved", "Saved", |h, d| saves(h, &d.saves));
    add(!data.recipe.is_empty(), "recipe", "Recipe", recipe);
    add(!data.environment.is_empty() || !data.steps.is_empty(), "environment", "Environment and steps", |h, d| {
        environment(h, &d.environment);
        steps(h, &d.steps);
    });
    all
}

fn optional(x: Option<f64>, unit: FigureUnit) -> String {
    x.map_or_else(|| "–".to_owned(), |x| figure(x, unit))
}

fn summary(h: &mut Html, rows: &[SummaryRow]) {
    h.table("big", "The model before and after", &["", "#dense", "#pruned", "#change"], |h| {
        for row in rows {
            h.within("tr", "", |h| {
                h.el("th", "scope=\"row\"", &row.name);
                h.number(&optional(row.dense, row.unit)).number(&optional(row.pruned, row.unit));
                match (row.dense, row.pruned) {
                    (Some(dense), Some(pruned)) => {
                        let text = change(dense, pruned, row.unit);
                        let better = row
                            .higher_is_better
                            .filter(|_| dense != pruned)
                            .map(|up| if up == (pruned > dense) { " better" } else { " worse" });
                        h.number(&format!("{text}{}", better.unwrap_or("")));
                    }
                    _ => {
                        h.number("–");
                    }
                }
            });
        }
    });
}

fn expectations(h: &mut Html, rows: &[Expectation]) {
    let failed = rows.iter().filter(|e| !e.passed).count();
    let verdict = if failed == 0 { format!("All {} held.", rows.len()) } else { format!("{failed} of {} failed.", rows.len()) };
    h.el("p", if failed == 0 { "class=\"good\"" } else { "class=\"bad\"" }, &verdict);
    h.table("", "What the recipe demanded", &["", "expectation", "with its values", "#line"], |h| {
        for e in rows {
            h.within("tr", "", |h| {
                // A word as well as a colour.
                h.el("td", if e.passed { "class=\"good\"" } else { "class=\"bad\"" }, if e.passed { "✓ held" } else { "✗ failed" });
                h.within("td", "", |h| {
                    h.el("code", "", &e.text);
                    if let Some(message) = &e.message {
                        h.el("span", "class=\"protocol\"", message);
                    }
                });
                h.within("td", "", |h| {
                    h.el("code", "", &e.detail);
                });
                h.number(&e.line.to_string());
            });
        }
    });
}

fn warnings(h: &mut Html, rows: &[String]) {
    h.within("ul", "class=\"plain\"", |h| {
        for warning in rows {
            h.el("li", "", warning);
        }
    });
}

fn metrics(h: &mut Html, rows: &[MetricRow]) {
    // A sweep measures the same way in every cell: each protocol is told once.
    let mut protocols: Vec<(&str, &str)> = Vec::new();
    for m in rows {
        if !protocols.contains(&(&m.metric, &m.protocol)) {
            protocols.push((&m.metric, &m.protocol));
        }
    }
    let number = |m: &MetricRow| protocols.iter().position(|p| *p == (m.metric.as_str(), m.protocol.as_str())).map_or(0, |i| i + 1);
    h.within("ol", "class=\"protocols\"", |h| {
        for (i, (metric, protocol)) in protocols.iter().enumerate() {
            h.within("li", &format!("id=\"protocol-{}\"", i + 1), |h| {
                h.el("code", "", metric).el("span", "class=\"protocol\"", protocol);
            });
        }
    });
    let heads = ["name", "metric", "protocol", "model", "#value", "#dense", "#over", "device"];
    h.table("", "Every eval, with the number of the protocol that gives it its meaning", &heads, |h| {
        for m in rows {
            h.within("tr", "", |h| {
                h.within("th", "scope=\"row\"", |h| {
                    h.el("code", "", &m.name);
                });
                h.within("td", "", |h| {
                    h.el("code", "class=\"whole\"", m.metric.split('(').next().unwrap_or(&m.metric));
                });
                let of = number(m);
                h.within("td", "", |h| {
                    h.el("a", &format!("href=\"#protocol-{of}\""), &of.to_string());
                });
                h.el("td", "", &m.model);
                let error = m.stderr.map_or_else(String::new, |e| format!(" ± {}", figure(e, m.unit)));
                h.number(&format!("{}{error}", figure(m.value, m.unit)));
                h.number(&optional(m.dense, m.unit)).number(&m.counted);
                h.el("td", "", &m.device);
            });
        }
    });
}

fn shape(d: &LayerDims) -> [String; 4] {
    let experts = if d.experts > 0 { format!("{} × ", d.experts) } else { String::new() };
    [
        if d.q_heads == 0 { "gone".into() } else { d.q_heads.to_string() },
        d.kv_heads.to_string(),
        d.head_dim.to_string(),
        if d.ffn == 0 { "gone".into() } else { format!("{experts}{}", d.ffn) },
    ]
}

fn shapes(h: &mut Html, rows: &[ShapeRow]) {
    let changed = rows.iter().filter(|r| r.after != Some(r.before)).count();
    h.el("p", "class=\"soft\"", &format!("{changed} of {} layers changed shape (tinted rows).", rows.len()));
    let heads = ["#layer", "#heads", "#key/value heads", "#head width", "#neurons"];
    h.table("", "Counts per layer, before → after", &heads, |h| {
        for row in rows {
            let before = shape(&row.before);
            let after = row.after.as_ref().map(shape);
            h.within("tr", if row.after == Some(row.before) { "" } else { "class=\"changed\"" }, |h| {
                h.el("th", "scope=\"row\" class=\"n\"", &row.layer.to_string());
                for (i, b) in before.iter().enumerate() {
                    match after.as_ref().and_then(|a| a.get(i)) {
                        Some(a) if a == b => h.number(b),
                        Some(a) => h.number(&format!("{b} → {a}")),
                        None => h.number(&format!("{b} → gone")),
                    };
                }
            });
        }
    });
}

fn heatmaps(h: &mut Html, maps: &[Heatmap]) {
    for (i, map) in maps.iter().enumerate() {
        h.el("h3", "", &map.title);
        if !map.criterion.is_empty() {
            h.within("p", "class=\"soft\"", |h| {
                h.text("Scored by ").el("code", "", &map.criterion).text(".");
            });
        }
        let columns = svg::widest(map);
        h.within("figure", "", |h| {
            h.within("div", "class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Importance map\"", |h| {
                h.raw(&svg::heatmap(map, &format!("heat{i}")));
            });
            h.raw(&svg::heat_legend(map));
            h.within("figcaption", "", |h| {
                h.text("Colour is the rank among all scored units, in tenths: the stronger, the more the model depends on the unit. ");
                h.text("The legend gives the scores of four of the tenths. ");
                if svg::is_wide(map) {
                    h.text("Neighbouring units are averaged; the bar in a cell is as high as the share of them that was removed.");
                } else {
                    h.text("A cross marks what was removed; rest the pointer on a cell for its score.");
                }
            });
        });
        if columns <= MAX_SCORE_COLUMNS {
            h.within("details", "", |h| {
                h.el("summary", "", "The scores as a table");
                let names: Vec<String> = std::iter::once("#layer".to_owned()).chain((0..columns).map(|c| format!("#{c}"))).collect();
                let heads: Vec<&str> = names.iter().map(String::as_str).collect();
                h.table("", "Scores; × marks what was removed", &heads, |h| {
                    for row in &map.rows {
                        h.within("tr", "", |h| {
                            h.el("th", "scope=\"row\" class=\"n\"", &row.layer.to_string());
                            for c in 0..columns {
                                let score =
                                    row.scores.get(c).copied().flatten().map_or_else(|| "–".into(), |s| significant(f64::from(s), 3));
                                let mark = if row.removed.get(c) == Some(&true) { " ×" } else { "" };
                                h.number(&format!("{score}{mark}"));
                            }
                        });
                    }
                });
            });
        } else {
            h.el("p", "class=\"soft\"", &format!("{columns} units a layer: the run directory's scores folder has every score."));
        }
    }
}

/// A share or a number on an axis: `40%` → 40, `0.5` → 0.5.
fn axis_value(label: &str) -> Option<f64> {
    let label = label.trim();
    let number = label.strip_suffix('%').unwrap_or(label).trim().replace('_', "");
    number.parse::<f64>().ok().filter(|x| x.is_finite())
}

/// The sweep as lines over its numeric axis, one per combination of the others; `None` without a numeric axis.
fn sweep_chart(sweep: &Sweep, metric: usize) -> Option<Chart> {
    let n_axes = sweep.axes.len();
    let numeric = (0..n_axes).find(|a| {
        let values: Option<Vec<f64>> = sweep.cells.iter().map(|c| c.labels.get(*a).and_then(|l| axis_value(l))).collect();
        values.is_some_and(|v| v.iter().any(|x| Some(x) != v.first()))
    })?;
    let percent = sweep.cells.iter().all(|c| c.labels.get(numeric).is_some_and(|l| l.trim().ends_with('%')));
    let column = sweep.metrics.get(metric)?;
    let factor = if column.unit == FigureUnit::Percent { 100.0 } else { 1.0 };
    let mut chart = Chart {
        title: format!("{} over {}", column.name, sweep.axes.get(numeric)?),
        x: format!("{}{}", sweep.axes.get(numeric)?, if percent { " (%)" } else { "" }),
        y: format!("{}{}", column.name, if column.unit == FigureUnit::Percent { " (%)" } else { "" }),
        series: Vec::new(),
    };
    for cell in &sweep.cells {
        let others: Vec<&str> = cell.labels.iter().enumerate().filter(|(a, _)| *a != numeric).map(|(_, l)| l.as_str()).collect();
        let name = if others.is_empty() { column.name.clone() } else { others.join(", ") };
        let (Some(x), Some(y)) = (cell.labels.get(numeric).and_then(|l| axis_value(l)), cell.values.get(metric).copied().flatten()) else {
            continue;
        };
        match chart.series.iter_mut().find(|s| s.name == name) {
            Some(series) => series.points.push((x, y * factor)),
            None => chart.series.push(Series { name, points: vec![(x, y * factor)] }),
        }
    }
    for series in &mut chart.series {
        series.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    Some(chart)
}

/// Parameters against the metric.
fn sweep_pareto(sweep: &Sweep, metric: usize) -> Option<Chart> {
    let column = sweep.metrics.get(metric)?;
    let factor = if column.unit == FigureUnit::Percent { 100.0 } else { 1.0 };
    let mut series: Vec<Series> = Vec::new();
    for cell in &sweep.cells {
        let (Some(params), Some(y)) = (cell.params, cell.values.get(metric).copied().flatten()) else { continue };
        let name = cell.labels.first().cloned().unwrap_or_default();
        let point = (params as f64, y * factor);
        match series.iter_mut().find(|s| s.name == name) {
            Some(s) => s.points.push(point),
            None => series.push(Series { name, points: vec![point] }),
        }
    }
    let distinct = series.iter().flat_map(|s| &s.points).any(|p| Some(p.0) != series.first().and_then(|s| s.points.first()).map(|q| q.0));
    distinct.then(|| Chart {
        title: format!("{} against parameters", column.name),
        x: "parameters".into(),
        y: format!("{}{}", column.name, if column.unit == FigureUnit::Percent { " (%)" } else { "" }),
        series,
    })
}

fn sweeps(h: &mut Html, sweeps: &[Sweep]) {
    for (i, sweep) in sweeps.iter().enumerate() {
        h.el("h3", "", &sweep.name);
        let metric = sweep.plot.as_ref().and_then(|p| sweep.metrics.iter().position(|m| m.name == *p)).unwrap_or(0);
        if let Some(chart) = sweep_chart(sweep, metric) {
            let caption = format!("{}.", chart.title);
            figure_of(h, svg::lines(&chart, &format!("sweep{i}")), &chart, &caption);
        }
        if let Some(chart) = sweep_pareto(sweep, metric) {
            let up = sweep.metrics.get(metric).is_some_and(|m| m.higher_is_better);
            let caption = format!("{}. The dashed line joins the cells that no other cell beats on both axes.", chart.title);
            figure_of(h, svg::pareto(&chart, up, &format!("pareto{i}")), &chart, &caption);
        }
        if sweep.axes.len() == 2 {
            (0..sweep.metrics.len()).for_each(|m| crossed(h, sweep, m));
        }
        let mut names: Vec<String> = sweep.axes.clone();
        names.extend(sweep.metrics.iter().map(|m| format!("#{}", m.name)));
        let with_params = sweep.cells.iter().any(|c| c.params.is_some());
        if with_params {
            names.push("#parameters".into());
        }
        let any_failed = sweep.cells.iter().any(|c| c.failed.is_some());
        if any_failed {
            names.push("expectation".into());
        }
        let heads: Vec<&str> = names.iter().map(String::as_str).collect();
        h.table("", &format!("Every cell of {}", sweep.name), &heads, |h| {
            for cell in &sweep.cells {
                h.within("tr", "", |h| {
                    for a in 0..sweep.axes.len() {
                        h.el("th", "scope=\"row\"", cell.labels.get(a).map_or("–", String::as_str));
                    }
                    for (m, column) in sweep.metrics.iter().enumerate() {
                        h.number(&optional(cell.values.get(m).copied().flatten(), column.unit));
                    }
                    if with_params {
                        h.number(&cell.params.map_or_else(|| "–".into(), |p| grouped(p as f64)));
                    }
                    match &cell.failed {
                        Some(message) => {
                            h.el("td", "class=\"bad\"", &format!("✗ {message}"));
                        }
                        None if any_failed => {
                            h.el("td", "class=\"soft\"", "held");
                        }
                        None => {}
                    }
                });
            }
        });
        if !sweep.proxies.is_empty() {
            proxies(h, sweep);
        }
    }
}

fn proxies(h: &mut Html, sweep: &Sweep) {
    let caption =
        format!("Zero-cost proxies of {}: 1 if a proxy orders the cells as the metric does, \u{2212}1 if the other way round", sweep.name);
    h.table("", &caption, &["proxy", "metric", "#cells", "#rank correlation", "#pairs decided alike"], |h| {
        for row in &sweep.proxies {
            h.within("tr", "", |h| {
                h.el("th", "scope=\"row\"", &row.proxy);
                h.el("td", "", &row.metric);
                h.number(&row.cells.to_string());
                h.number(&row.rho.map_or_else(|| "–".into(), |r| significant(r, 3)));
                h.number(&row.agreed.map_or_else(|| "–".into(), |a| figure(a, FigureUnit::Percent)));
            });
        }
    });
}

/// One metric of a sweep over two axes: the first axis down, the second across.
fn crossed(h: &mut Html, sweep: &Sweep, metric: usize) {
    let (Some(column), Some(first)) = (sweep.metrics.get(metric), sweep.axes.first()) else { return };
    let mut labels: [Vec<&str>; 2] = Default::default();
    for cell in &sweep.cells {
        for (of, label) in labels.iter_mut().zip(&cell.labels) {
            if !of.contains(&label.as_str()) {
                of.push(label);
            }
        }
    }
    let [down, across] = labels;
    let numbers: Vec<String> = across.iter().map(|label| format!("#{label}")).collect();
    let heads: Vec<&str> = std::iter::once(first.as_str()).chain(numbers.iter().map(String::as_str)).collect();
    h.table("", &column.name, &heads, |h| {
        for row in &down {
            h.within("tr", "", |h| {
                h.el("th", "scope=\"row\"", row);
                for label in &across {
                    let cell = sweep.cells.iter().find(|c| matches!(c.labels.as_slice(), [a, b] if a == row && b == label));
                    let value = cell.and_then(|c| c.values.get(metric).copied().flatten());
                    let failed = cell.is_some_and(|c| c.failed.is_some());
                    h.number(&format!("{}{}", optional(value, column.unit), if failed { " ✗" } else { "" }));
                }
            });
        }
    });
}

fn figure_of(h: &mut Html, drawing: Option<String>, chart: &Chart, caption: &str) {
    let Some(drawing) = drawing else { return };
    h.within("figure", "", |h| {
        h.raw(&svg::legend(chart.series.iter().map(|s| s.name.as_str()))).raw(&drawing);
        if !caption.is_empty() {
            h.el("figcaption", "", caption);
        }
    });
}

fn curves(h: &mut Html, charts: &[Chart], id: &str) {
    for (i, chart) in charts.iter().enumerate() {
        h.el("h3", "", &chart.title);
        figure_of(h, svg::lines(chart, &format!("{id}{i}")), chart, "");
        h.within("details", "", |h| {
            h.el("summary", "", "The curve as a table");
            h.table("", &chart.title, &["line", &format!("#{}", chart.x), &format!("#{}", chart.y)], |h| {
                for series in &chart.series {
                    let every = series.points.len().div_ceil(MAX_CURVE_ROWS).max(1);
                    let last = series.points.len().saturating_sub(1);
                    for (_, (x, y)) in series.points.iter().enumerate().filter(|(i, _)| i % every == 0 || *i == last) {
                        h.within("tr", "", |h| {
                            h.el("th", "scope=\"row\"", &series.name);
                            h.number(&figure(*x, FigureUnit::Plain)).number(&figure(*y, FigureUnit::Plain));
                        });
                    }
                }
            });
        });
    }
}

fn histograms(h: &mut Html, all: &[Histogram]) {
    for (i, one) in all.iter().enumerate() {
        h.el("h3", "", &one.title);
        let (before, after): (u64, u64) = (one.before.iter().sum(), one.after.iter().sum());
        h.within("figure", "", |h| {
            h.raw("<ul class=\"legend\"><li><svg width=\"26\" height=\"14\" aria-hidden=\"true\"><path class=\"before\" d=\"M1 7H25\"/></svg>before</li>");
            h.raw("<li><svg width=\"26\" height=\"14\" aria-hidden=\"true\"><rect class=\"after\" width=\"26\" height=\"14\"/></svg>after</li></ul>");
            if let Some(drawing) = svg::histogram(one, &format!("hist{i}")) {
                h.raw(&drawing);
            }
            let zeros = format!(
                "{} weights before, {} after, {} exact zeros left out. The y axis is a square root; weights beyond four standard deviations are in the outer bins.",
                grouped(before as f64),
                grouped(after as f64),
                grouped(one.zeros_after as f64)
            );
            h.el("figcaption", "", &zeros);
        });
        h.within("details", "", |h| {
            h.el("summary", "", "The counts as a table");
            h.table("", &one.title, &["#from", "#to", "#before", "#after"], |h| {
                for ((edges, before), after) in one.edges.windows(2).zip(&one.before).zip(&one.after) {
                    let &[low, high] = edges else { continue };
                    h.within("tr", "", |h| {
                        h.number(&significant(low, 3)).number(&significant(high, 3));
                        h.number(&grouped(*before as f64)).number(&grouped(*after as f64));
                    });
                }
            });
        });
    }
}

fn saves(h: &mut Html, all: &[SavedModel]) {
    for saved in all {
        h.within("h3", "", |h| {
            h.el("code", "", &saved.dir);
        });
        h.el("p", "class=\"soft\"", &format!("{} of weights. {}", figure(saved.bytes as f64, FigureUnit::Bytes), saved.verified));
        h.table("", "Who can load it", &["loader", "verdict"], |h| {
            for (loader, verdict) in &saved.loaders {
                h.within("tr", "", |h| {
                    h.el("th", "scope=\"row\"", loader).el("td", "", verdict);
                });
            }
        });
    }
}

fn recipe(h: &mut Html, data: &ReportData) {
    h.raw("<pre tabindex=\"0\"><code>").raw(&escape(data.recipe.trim_end())).raw("</code></pre>");
}

fn environment(h: &mut Html, rows: &[(String, String)]) {
    if rows.is_empty() {
        return;
    }
    h.within("dl", "", |h| {
        for (name, value) in rows {
            h.el("dt", "", name).el("dd", "", value);
        }
    });
}

fn steps(h: &mut Html, rows: &[StepRow]) {
    if rows.is_empty() {
        return;
    }
    h.within("details", "", |h| {
        let total: u64 = rows.iter().map(|s| s.elapsed_ms).sum();
        h.el("summary", "", &format!("{} steps, {}", rows.len(), duration(total)));
        h.table("", "Steps", &["#line", "step", "name", "#time"], |h| {
            for step in rows {
                h.within("tr", "", |h| {
                    h.number(&step.line.to_string()).el("td", "", &step.kind).el("td", "", &step.name);
                    h.number(&duration(step.elapsed_ms));
                });
            }
        });
    });
}
