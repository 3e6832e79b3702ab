//! `prunectl compare RUN…`: do criteria agree, and which of them beats chance?

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use comfy_table::{Table, presets};

use crate::cli::DONE;
use crate::commands::run::table;
use crate::commands::{print, print_json};
use crate::compare::{Comparison, Correlations, MetricTable};
use crate::error::{Error, Result};
use crate::report::{FigureUnit, figure};
use crate::session::Options;
use prunectl_prune::Margin;

/// Arguments of `compare`.
#[derive(Debug, Args)]
pub struct Compare {
    /// Run directories that hold scores.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// How the tables are written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// How tables are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For a terminal.
    Text,
    /// Markdown.
    Md,
    /// One value a line: table, row, column, value.
    Csv,
}

impl Compare {
    /// Prints rank correlations and the metric at each amount.
    pub fn run(&self, options: &Options) -> Result<u8> {
        let found = Comparison::read(&self.runs)?;
        if found.scores.is_empty() {
            return Err(Error::NothingScored { runs: self.runs.iter().map(|r| r.display().to_string()).collect() });
        }
        if options.json {
            print_json(&found)?;
        } else if self.format == Format::Csv {
            print(&csv(&found))?;
        } else {
            print(&text(&found, self.format))?;
        }
        DONE
    }
}

fn rho(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |r| format!("{r:.3}"))
}

fn text(found: &Comparison, format: Format) -> String {
    let mut parts = vec![one("scores", sets(found), format)];
    for c in &found.correlations {
        let title = format!("rank correlation (Spearman) over {} units of {}", c.units, c.site);
        parts.push(one(&title, matrix(c), format));
    }
    for m in &found.metrics {
        let dense = m.dense.map_or_else(String::new, |d| format!(", dense {}", figure(d, m.unit)));
        let on = if m.data.is_empty() { String::new() } else { format!(" on {}", m.data) };
        parts.push(one(&format!("{}: {}{on}{dense}", m.name, m.metric), values(m), format));
        if !m.rows.iter().any(|r| r.floor) {
            parts.push("no scores of random() were pruned by: without that floor nobody knows what a value is worth\n".to_owned());
        }
    }
    parts.join("\n")
}

fn one(title: &str, mut table: Table, format: Format) -> String {
    if format == Format::Md {
        table.load_style(presets::ASCII_MARKDOWN);
        return format!("### {title}\n\n{table}\n");
    }
    format!("{title}\n{table}\n")
}

/// Each set of scores: what it is, what it took, how it ranks beside the exact loss delta.
fn sets(found: &Comparison) -> Table {
    let mut out = table(&["scores", "criterion", "scored in", "ρ with exact", "ρ within layers"]);
    for set in &found.scores {
        let with_exact = |of: fn(&Correlations) -> &Vec<Vec<Option<f64>>>| {
            found.correlations.iter().find_map(|c| {
                let place = |name: &String| c.scores.iter().position(|s| s == name);
                let (own, exact) = (place(&set.name)?, place(c.exact.as_ref()?)?);
                *of(c).get(own)?.get(exact)?
            })
        };
        out.add_row([
            set.name.clone(),
            set.criterion.clone(),
            set.scored_ms.map_or_else(|| "while pruning".to_owned(), |ms| figure(ms as f64 / 1e3, FigureUnit::Plain) + " s"),
            rho(with_exact(|c| &c.overall)),
            rho(with_exact(|c| &c.within_layers)),
        ]);
    }
    out
}

fn matrix(c: &Correlations) -> Table {
    let header: Vec<&str> = std::iter::once("").chain(c.scores.iter().map(String::as_str)).collect();
    let mut out = table(&header);
    for (name, row) in c.scores.iter().zip(&c.overall) {
        out.add_row(std::iter::once(name.clone()).chain(row.iter().map(|r| rho(*r))));
    }
    out
}

fn values(m: &MetricTable) -> Table {
    let seeds = m.floors.iter().any(|f| f.seeds.len() > 1);
    let last = ["over random", "better at", "better than every seed at"];
    let last = last.into_iter().take(if seeds { 3 } else { 2 });
    let header: Vec<&str> = std::iter::once("scores").chain(m.amounts.iter().map(String::as_str)).chain(last).collect();
    let mut out = table(&header);
    let cell = |v: &Option<f64>| v.map_or_else(|| "–".to_owned(), |v| figure(v, m.unit));
    for row in &m.rows {
        let name = if row.floor { format!("{} (floor)", row.scores) } else { row.scores.clone() };
        let over = row.margin.map_or_else(|| "–".to_owned(), |g| figure(g.mean, m.unit));
        let times = |of: fn(&Margin) -> usize| row.margin.map_or_else(|| "–".to_owned(), |g| format!("{} of {}", of(&g), g.amounts));
        let all = seeds.then(|| times(|g| g.better_than_all));
        out.add_row(std::iter::once(name).chain(row.values.iter().map(cell)).chain([over, times(|g| g.better)]).chain(all));
    }
    for floor in m.floors.iter().filter(|f| f.seeds.len() > 1) {
        let name = format!("random, mean of {}{}", floor.seeds.len(), floor.after);
        out.add_row(std::iter::once(name).chain(floor.values.iter().map(cell)));
    }
    out
}

/// `table,row,column,value`: what a spreadsheet pivots.
fn csv(found: &Comparison) -> String {
    let quoted = |t: &str| if t.contains([',', '"', '\n']) { format!("\"{}\"", t.replace('"', "\"\"")) } else { t.to_owned() };
    let mut out = "table,row,column,value\n".to_owned();
    let mut line = |cells: [&str; 3], value: f64| {
        let cells: Vec<String> = cells.iter().map(|c| quoted(c)).collect();
        out += &format!("{},{value}\n", cells.join(","));
    };
    for c in &found.correlations {
        for (what, matrix) in [("spearman", &c.overall), ("spearman within layers", &c.within_layers)] {
            for (a, row) in c.scores.iter().zip(matrix) {
                for (b, value) in c.scores.iter().zip(row) {
                    if let Some(value) = value {
                        line([&format!("{what} {}", c.site), a, b], *value);
                    }
                }
            }
        }
    }
    for m in &found.metrics {
        for row in &m.rows {
            for (amount, value) in m.amounts.iter().zip(&row.values) {
                if let Some(value) = value {
                    line([&m.name, &row.scores, amount], *value);
                }
            }
            if let Some(margin) = row.margin {
                line([&m.name, &row.scores, "over random"], margin.mean);
            }
        }
    }
    out
}
