//! Criteria beside one another: a matrix of rank correlations, and who beats chance. States beside one another: how alike they are.

use std::fmt::Write as _;

use super::data::{FloorTable, RankTable};
use super::figures::figure;
use super::html::{Html, escape};

/// Side of a cell and the room for names at its left.
const SIDE: f64 = 46.0;
const NAMES: f64 = 190.0;
/// Shades for ρ from 0 to 1.
const SHADES: f64 = 10.0;
/// Letters of a name beside the drawing; the table has the whole of it.
const NAME_LETTERS: usize = 26;

fn rho(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |r| format!("{r:.3}").replace('-', "\u{2212}"))
}

/// The section's body.
pub(super) fn compared(h: &mut Html, ranks: &[RankTable], floors: &[FloorTable]) {
    for (i, one) in ranks.iter().enumerate() {
        let explained = "Spearman's rank correlation: 1 if both put all units in the same order. The stronger the colour, the closer to 1; negative ones are grey.";
        matrix(h, one, &format!("ranks{i}"), explained, "Rank correlation over all units");
    }
    for floor in floors {
        let caption = format!("{} over {}, the scores of random()", floor.metric, floor.floor);
        h.table("", &caption, &["scores", "#better on average by", "#amounts at which it is better"], |h| {
            for (name, mean, better, amounts) in &floor.rows {
                h.within("tr", "", |h| {
                    h.el("th", "scope=\"row\"", name);
                    h.number(&figure(*mean, floor.unit)).number(&format!("{better} of {amounts}"));
                });
            }
        });
    }
}

/// The body of the section on states between blocks.
pub(super) fn alike(h: &mut Html, tables: &[RankTable]) {
    for (i, one) in tables.iter().enumerate() {
        let explained =
            "A block whose output is much like its input does little. The stronger the colour, the closer to 1; negative ones are grey.";
        matrix(h, one, &format!("alike{i}"), explained, "How alike two states are");
    }
}

/// A drawing, and under it its numbers.
fn matrix(h: &mut Html, one: &RankTable, id: &str, explained: &str, caption: &str) {
    h.el("h3", "", &one.title);
    h.within("figure", "", |h| {
        h.raw(&drawing(one, id));
        h.el("figcaption", "", explained);
    });
    let heads: Vec<String> = std::iter::once(String::new()).chain(one.names.iter().map(|n| format!("#{n}"))).collect();
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    h.table("", caption, &heads, |h| {
        for (name, row) in one.names.iter().zip(&one.rho) {
            h.within("tr", if one.exact.as_ref() == Some(name) { "class=\"changed\"" } else { "" }, |h| {
                h.el("th", "scope=\"row\"", name);
                for value in row {
                    h.number(&rho(*value));
                }
            });
        }
    });
}

fn drawing(table: &RankTable, id: &str) -> String {
    let n = table.names.len() as f64;
    let (width, height) = (NAMES + SIDE * n + 4.0, SIDE * n + 4.0);
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\"><title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">A square for each pair of {}, in the order of the table below.</desc>",
        escape(&table.title),
        table.names.len(),
    );
    for (r, (name, row)) in table.names.iter().zip(&table.rho).enumerate() {
        let y = 2.0 + SIDE * r as f64;
        let short: String = name.chars().take(NAME_LETTERS).collect();
        let _ =
            write!(out, "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", NAMES - 8.0, y + SIDE / 2.0 + 4.0, escape(&short));
        for (c, (other, value)) in table.names.iter().zip(row).enumerate() {
            let class = match value {
                Some(v) if *v >= 0.0 => format!("h{}", (v * SHADES).floor().clamp(0.0, SHADES - 1.0)),
                _ => "none".to_owned(),
            };
            let _ = write!(
                out,
                "<g><title>{} and {}: {}</title><rect class=\"{class}\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\"/></g>",
                escape(name),
                escape(other),
                rho(*value),
                NAMES + SIDE * c as f64,
                SIDE - 2.0,
                SIDE - 2.0
            );
        }
    }
    out.push_str("</svg>");
    out
}
