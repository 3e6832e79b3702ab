//! Drawings: inline SVG, coloured by classes of the style sheet so that they follow the reader's light or dark theme. Every drawing has
//! a title and a description, and the page prints its numbers in a table beside it: colour never is the only carrier of a fact.

use std::fmt::Write as _;

use super::data::{Chart, HeatRow, Heatmap, Histogram};
use super::figures::significant;
use super::html::escape;

const WIDTH: f64 = 880.0;
const CHART_HEIGHT: f64 = 320.0;
const LEFT: f64 = 68.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;
/// Steps of the colour scale; classes h0 … h9.
const SHADES: usize = 10;
/// Series colours and marker shapes; classes s0 … s7.
pub(super) const SERIES: usize = 8;
/// Layers with more units are drawn as averages of neighbours.
const MAX_COLUMNS: usize = 128;

/// Ranks over all scored units, as shades: a score's size says little across criteria, its place among all others does.
struct Shades(Vec<f32>);

impl Shades {
    fn of(map: &Heatmap) -> Self {
        let mut all: Vec<f32> = map.rows.iter().flat_map(|r| r.scores.iter().flatten().copied()).filter(|s| s.is_finite()).collect();
        all.sort_by(f32::total_cmp);
        Self(all)
    }

    /// Shade of a score: the share of scores below it, in tenths.
    fn of_score(&self, score: f32) -> usize {
        if self.0.is_empty() {
            return 0;
        }
        let below = self.0.partition_point(|s| *s < score);
        (below * SHADES / self.0.len()).min(SHADES - 1)
    }

    /// Smallest and largest score of a shade.
    fn bounds(&self, shade: usize) -> Option<(f32, f32)> {
        let mut in_shade = self.0.iter().copied().filter(|s| self.of_score(*s) == shade);
        let first = in_shade.next()?;
        Some((first, in_shade.next_back().unwrap_or(first)))
    }
}

/// One drawn cell: a unit, or neighbours of one layer.
struct Cell {
    first: usize,
    last: usize,
    score: Option<f32>,
    scored: usize,
    removed: usize,
}

fn cells(row: &HeatRow, columns: usize, units: usize) -> Vec<Cell> {
    let group = units.div_ceil(columns.max(1)).max(1);
    (0..row.scores.len().max(row.removed.len()).min(units))
        .step_by(group)
        .map(|first| {
            let last = (first + group).min(units) - 1;
            let scores: Vec<f64> = row.scores.iter().take(last + 1).skip(first).flatten().map(|s| f64::from(*s)).collect();
            let mean = (!scores.is_empty()).then(|| (scores.iter().sum::<f64>() / scores.len() as f64) as f32);
            let removed = row.removed.iter().take(last + 1).skip(first).filter(|r| **r).count();
            Cell { first, last, score: mean, scored: scores.len(), removed }
        })
        .collect()
}

/// Units of the widest layer.
pub(super) fn widest(map: &Heatmap) -> usize {
    map.rows.iter().map(|r| r.scores.len().max(r.removed.len())).max().unwrap_or(0)
}

/// Whether neighbouring units share a cell.
pub(super) fn is_wide(map: &Heatmap) -> bool {
    widest(map) > MAX_COLUMNS
}

/// Layers downwards, units to the right; removed units carry a cross, averaged cells a bar as high as the share removed.
pub(super) fn heatmap(map: &Heatmap, id: &str) -> String {
    let units = widest(map);
    let columns = units.clamp(1, MAX_COLUMNS);
    let columns = units.div_ceil(units.div_ceil(columns).max(1)).max(1);
    let left = 78.0;
    // Half of the last column's number stands beyond it.
    let right = 14.0;
    let side = ((WIDTH - left - right) / columns as f64).min(30.0);
    let high = side.clamp(14.0, 26.0);
    let width = left + side * columns as f64 + right;
    let height = 24.0 + high * map.rows.len() as f64 + 4.0;
    let shades = Shades::of(map);
    let removed: usize = map.rows.iter().map(|r| r.removed.iter().filter(|x| **x).count()).sum();
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\"><title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{} layers, up to {units} {}s each, {removed} removed. Darker (brighter on a dark page) means a higher score.</desc>",
        escape(&map.title),
        map.rows.len(),
        escape(&map.unit),
    );
    let every = (36.0 / side).ceil().max(1.0) as usize;
    let group = units.div_ceil(columns).max(1);
    for column in (0..columns).step_by(nice_step(every)) {
        let x = left + side * (column as f64 + 0.5);
        let _ = write!(out, "<text x=\"{x:.1}\" y=\"14\" text-anchor=\"middle\">{}</text>", column * group);
    }
    for (r, row) in map.rows.iter().enumerate() {
        let y = 22.0 + high * r as f64;
        let _ =
            write!(out, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">layer {}</text>", left - 8.0, y + high / 2.0 + 4.0, row.layer);
        for (c, cell) in cells(row, columns, units).iter().enumerate() {
            draw_cell(&mut out, map, row, cell, &shades, (left + side * c as f64, y, side, high));
        }
    }
    out.push_str("</svg>");
    out
}

fn draw_cell(out: &mut String, map: &Heatmap, row: &HeatRow, cell: &Cell, shades: &Shades, (x, y, w, h): (f64, f64, f64, f64)) {
    let n = cell.last - cell.first + 1;
    let class = cell.score.map_or_else(|| "none".to_owned(), |s| format!("h{}", shades.of_score(s)));
    let gap = if w > 8.0 { 1.5 } else { 0.4 };
    let score = match cell.score {
        Some(s) if cell.scored > 1 => format!("mean score {}", significant(f64::from(s), 4)),
        Some(s) => format!("score {}", significant(f64::from(s), 4)),
        None => "not scored".into(),
    };
    let (what, fate) = if n == 1 {
        (format!("{} {}", map.unit, cell.first), if cell.removed > 0 { ", removed".into() } else { String::new() })
    } else {
        (format!("{}s {}–{}", map.unit, cell.first, cell.last), format!(", {} of {n} removed", cell.removed))
    };
    let _ = write!(
        out,
        "<g><title>layer {}, {}: {}{}</title><rect class=\"{class}\" x=\"{:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{:.2}\"/>",
        row.layer,
        escape(&what),
        score,
        fate,
        x + gap / 2.0,
        y + gap / 2.0,
        w - gap,
        h - gap
    );
    if n == 1 && cell.removed > 0 {
        let r = (w.min(h) * 0.26).max(1.5);
        let (cx, cy) = (x + w / 2.0, y + h / 2.0);
        let cross =
            format!("M{:.1} {:.1}L{:.1} {:.1}M{:.1} {:.1}L{:.1} {:.1}", cx - r, cy - r, cx + r, cy + r, cx - r, cy + r, cx + r, cy - r);
        let _ = write!(out, "<path class=\"xh\" d=\"{cross}\"/><path class=\"x\" d=\"{cross}\"/>");
    } else if cell.removed > 0 {
        let bar = (h - gap) * cell.removed as f64 / n as f64;
        let _ = write!(
            out,
            "<rect class=\"gone\" x=\"{:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{bar:.2}\"/>",
            x + w * 0.3,
            y + h - gap / 2.0 - bar,
            w * 0.4
        );
    }
    out.push_str("</g>");
}

/// The colour scale with the scores that bound each shade.
pub(super) fn heat_legend(map: &Heatmap) -> String {
    let shades = Shades::of(map);
    let mut out = String::from("<ul class=\"legend\">");
    for shade in [0, 3, 6, 9] {
        if let Some((low, high)) = shades.bounds(shade) {
            let _ = write!(
                out,
                "<li><svg width=\"16\" height=\"14\" aria-hidden=\"true\"><rect class=\"h{shade}\" width=\"16\" height=\"14\"/></svg>{} to {}</li>",
                significant(f64::from(low), 3),
                significant(f64::from(high), 3)
            );
        }
    }
    out.push_str(
        "<li><svg width=\"14\" height=\"14\" aria-hidden=\"true\"><path class=\"x\" d=\"M3 3L11 11M3 11L11 3\"/></svg>removed</li></ul>",
    );
    out
}

/// 1, 2, 5, 10, 20, … at or above `n`.
fn nice_step(n: usize) -> usize {
    let mut base = 1;
    loop {
        for m in [1, 2, 5] {
            if base * m >= n {
                return base * m;
            }
        }
        base *= 10;
    }
}

/// About `n` round ticks that cover `low..high`.
fn ticks(low: f64, high: f64, n: usize) -> Vec<f64> {
    let span = high - low;
    if !span.is_finite() || span <= 0.0 {
        return vec![low];
    }
    let raw = span / n as f64;
    let base = 10_f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * base).find(|s| *s >= raw * 0.999).unwrap_or(base * 10.0);
    let first = (low / step - 1e-9).ceil();
    (0..=(n * 3)).map(|i| (first + i as f64) * step).take_while(|t| *t <= high + step * 1e-9).collect()
}

fn tick_label(t: f64, all: &[f64]) -> String {
    let step = match all {
        [a, b, ..] => (b - a).abs(),
        _ => 1.0,
    };
    let decimals = if step >= 1.0 || step == 0.0 { 0 } else { (-step.log10()).ceil().clamp(0.0, 8.0) as usize };
    if t.abs() >= 1e5 || (t != 0.0 && decimals >= 6) {
        return significant(t, 2);
    }
    let text = format!("{t:.decimals$}");
    if text.trim_start_matches(['-', '0', '.']).is_empty() { "0".into() } else { text.replace('-', "\u{2212}") }
}

/// A plot's area and scales.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
}

impl Frame {
    fn around(points: impl Iterator<Item = (f64, f64)>) -> Option<Self> {
        let mut frame: Option<Self> = None;
        for (x, y) in points.filter(|(x, y)| x.is_finite() && y.is_finite()) {
            let f = frame.get_or_insert(Self { x: (x, x), y: (y, y) });
            f.x = (f.x.0.min(x), f.x.1.max(x));
            f.y = (f.y.0.min(y), f.y.1.max(y));
        }
        frame.map(|f| Self { x: widen(f.x), y: widen(f.y) })
    }

    fn px(&self, x: f64) -> f64 {
        LEFT + (x - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - LEFT - RIGHT)
    }

    fn py(&self, y: f64) -> f64 {
        CHART_HEIGHT - BOTTOM - (y - self.y.0) / (self.y.1 - self.y.0) * (CHART_HEIGHT - TOP - BOTTOM)
    }

    fn open(&self, out: &mut String, id: &str, title: &str, description: &str, x_name: &str, y_name: &str) {
        let _ = write!(
            out,
            "<svg viewBox=\"0 0 {WIDTH} {CHART_HEIGHT}\" width=\"{WIDTH}\" height=\"{CHART_HEIGHT}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\"><title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>",
            escape(title),
            escape(description)
        );
        let (xs, ys) = (ticks(self.x.0, self.x.1, 8), ticks(self.y.0, self.y.1, 5));
        for t in &ys {
            let y = self.py(*t);
            let _ = write!(
                out,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                y + 4.0,
                tick_label(*t, &ys)
            );
        }
        let floor = CHART_HEIGHT - BOTTOM;
        for t in &xs {
            let x = self.px(*t);
            let _ = write!(
                out,
                "<path class=\"axis\" d=\"M{x:.1} {floor:.1}v5\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                floor + 19.0,
                tick_label(*t, &xs)
            );
        }
        let _ = write!(out, "<path class=\"axis\" d=\"M{LEFT} {floor:.1}H{:.1}\"/>", WIDTH - RIGHT);
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            CHART_HEIGHT - 6.0,
            escape(x_name)
        );
        let middle = (TOP + floor) / 2.0;
        let _ = write!(
            out,
            "<text x=\"14\" y=\"{middle:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {middle:.1})\">{}</text>",
            escape(y_name)
        );
    }
}

fn widen((low, high): (f64, f64)) -> (f64, f64) {
    let span = high - low;
    let pad = if span > 0.0 { span * 0.04 } else { low.abs().max(1.0) * 0.05 };
    (low - pad, high + pad)
}

/// The mark of a series: colour and shape together.
fn marker(series: usize, x: f64, y: f64, r: f64) -> String {
    let class = format!("m{}", series % SERIES);
    let poly = |points: &[(f64, f64)]| {
        let list: Vec<String> = points.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx * r, y + dy * r)).collect();
        format!("<polygon class=\"{class}\" points=\"{}\"/>", list.join(" "))
    };
    match series % 6 {
        0 => format!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r:.1}\"/>"),
        1 => poly(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
        2 => poly(&[(0.0, -1.2), (1.1, 0.85), (-1.1, 0.85)]),
        3 => poly(&[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)]),
        4 => poly(&[(0.0, 1.2), (1.1, -0.85), (-1.1, -0.85)]),
        _ => poly(&[
            (-0.4, -1.2),
            (0.4, -1.2),
            (0.4, -0.4),
            (1.2, -0.4),
            (1.2, 0.4),
            (0.4, 0.4),
            (0.4, 1.2),
            (-0.4, 1.2),
            (-0.4, 0.4),
            (-1.2, 0.4),
            (-1.2, -0.4),
            (-0.4, -0.4),
        ]),
    }
}

/// Names of the series with their marks.
pub(super) fn legend<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut out = String::from("<ul class=\"legend\">");
    for (i, name) in names.enumerate() {
        let _ = write!(
            out,
            "<li><svg width=\"26\" height=\"14\" aria-hidden=\"true\"><path class=\"s{}\" d=\"M1 7H25\"/>{}</svg>{}</li>",
            i % SERIES,
            marker(i, 13.0, 7.0, 4.0),
            escape(name)
        );
    }
    out.push_str("</ul>");
    out
}

/// Lines with marks; `None` where no point is finite.
pub(super) fn lines(chart: &Chart, id: &str) -> Option<String> {
    let frame = Frame::around(chart.series.iter().flat_map(|s| s.points.iter().copied()))?;
    let description = format!("{} against {}: {} line(s); the numbers are in the table below.", chart.y, chart.x, chart.series.len());
    let mut out = String::new();
    frame.open(&mut out, id, &chart.title, &description, &chart.x, &chart.y);
    for (i, series) in chart.series.iter().enumerate() {
        let mut d = String::new();
        let mut pen_down = false;
        for (x, y) in &series.points {
            if x.is_finite() && y.is_finite() {
                let _ = write!(d, "{}{:.1} {:.1}", if pen_down { 'L' } else { 'M' }, frame.px(*x), frame.py(*y));
                pen_down = true;
            } else {
                pen_down = false;
            }
        }
        let _ = write!(out, "<path class=\"s{}\" d=\"{d}\"/>", i % SERIES);
        // A curve of a thousand steps would drown in marks.
        if series.points.len() <= 40 {
            for (x, y) in series.points.iter().filter(|(x, y)| x.is_finite() && y.is_finite()) {
                let _ = write!(
                    out,
                    "<g><title>{}: {} {}, {} {}</title>{}</g>",
                    escape(&series.name),
                    escape(&chart.x),
                    significant(*x, 5),
                    escape(&chart.y),
                    significant(*y, 5),
                    marker(i, frame.px(*x), frame.py(*y), 4.0)
                );
            }
        }
    }
    out.push_str("</svg>");
    Some(out)
}

/// Points of several series and the line through those that no other beats on both axes (fewer parameters, better metric).
pub(super) fn pareto(chart: &Chart, higher_is_better: bool, id: &str) -> Option<String> {
    let frame = Frame::around(chart.series.iter().flat_map(|s| s.points.iter().copied()))?;
    let mut out = String::new();
    let description = format!("{} against {}; the dashed line joins the cells that no other cell beats on both.", chart.y, chart.x);
    frame.open(&mut out, id, &chart.title, &description, &chart.x, &chart.y);
    let front = pareto_front(chart.series.iter().flat_map(|s| s.points.iter().copied()), higher_is_better);
    let mut d = String::new();
    for (i, (x, y)) in front.iter().enumerate() {
        let _ = write!(d, "{}{:.1} {:.1}", if i == 0 { 'M' } else { 'L' }, frame.px(*x), frame.py(*y));
    }
    let _ = write!(out, "<path class=\"front\" d=\"{d}\"/>");
    for (i, series) in chart.series.iter().enumerate() {
        for (x, y) in series.points.iter().filter(|(x, y)| x.is_finite() && y.is_finite()) {
            let _ = write!(
                out,
                "<g><title>{}: {} {}, {} {}</title>{}</g>",
                escape(&series.name),
                escape(&chart.x),
                significant(*x, 5),
                escape(&chart.y),
                significant(*y, 5),
                marker(i, frame.px(*x), frame.py(*y), 5.0)
            );
        }
    }
    out.push_str("</svg>");
    Some(out)
}

/// Points that no other point beats: fewer on x, better on y; in order of x.
pub(super) fn pareto_front(points: impl Iterator<Item = (f64, f64)>, higher_is_better: bool) -> Vec<(f64, f64)> {
    let sign = if higher_is_better { 1.0 } else { -1.0 };
    let mut all: Vec<(f64, f64)> = points.filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0).then((sign * b.1).total_cmp(&(sign * a.1))));
    let mut front: Vec<(f64, f64)> = Vec::new();
    for (x, y) in all {
        if front.last().is_none_or(|(_, best)| sign * y > sign * best) {
            front.push((x, y));
        }
    }
    front
}

/// Both counts over the same bins: a line for before, a filled area for after. The y axis is a square root, so that tails stay visible.
pub(super) fn histogram(h: &Histogram, id: &str) -> Option<String> {
    let (low, high) = (*h.edges.first()?, *h.edges.last()?);
    let most = h.before.iter().chain(&h.after).copied().max()?;
    let frame = Frame { x: (low, high), y: (0.0, (most as f64).sqrt().max(1.0) * 1.04) };
    let mut out = String::new();
    let description = "Number of weights by value, before (line) and after (area) pruning; exact zeros are left out of the area.";
    frame.open(&mut out, id, &h.title, description, "weight", "√ count");
    let outline = |counts: &[u64]| {
        let mut d = String::new();
        for (count, edges) in counts.iter().zip(h.edges.windows(2)) {
            let &[a, b] = edges else { continue };
            let y = frame.py((*count as f64).sqrt());
            let _ = write!(d, "{}{:.1} {y:.1}H{:.1}", if d.is_empty() { 'M' } else { 'L' }, frame.px(a), frame.px(b));
        }
        d
    };
    let floor = frame.py(0.0);
    let _ = write!(
        out,
        "<path class=\"after\" d=\"{}V{floor:.1}H{:.1}Z\"/><path class=\"before\" d=\"{}\"/></svg>",
        outline(&h.after),
        frame.px(low),
        outline(&h.before)
    );
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 1.0, 5), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks(3.0, 3.0, 5), [3.0]);
        assert_eq!(ticks(f64::NEG_INFINITY, 3.0, 5).len(), 1);
        let t = ticks(-0.013, 0.02, 5);
        assert!(t.len() >= 3 && t.iter().all(|x| (-0.013..=0.02001).contains(x)));
        assert_eq!(tick_label(0.6000000000000001, &[0.0, 0.2]), "0.6");
    }

    #[test]
    fn the_front_keeps_what_nothing_beats() {
        let points = [(1.0, 0.5), (2.0, 0.4), (3.0, 0.9), (3.0, 0.8), (4.0, 0.9), (f64::NAN, 9.0)];
        assert_eq!(pareto_front(points.into_iter(), true), [(1.0, 0.5), (3.0, 0.9)]);
        assert_eq!(pareto_front(points.into_iter(), false), [(1.0, 0.5), (2.0, 0.4)]);
    }

    #[test]
    fn wide_layers_are_averaged() {
        let row =
            HeatRow { layer: 0, scores: (0..1000).map(|i| Some(i as f32)).collect(), removed: (0..1000).map(|i| i % 2 == 0).collect() };
        let c = cells(&row, 125, 1000);
        assert_eq!(c.len(), 125);
        assert_eq!((c[0].first, c[0].last, c[0].removed, c[0].score), (0, 7, 4, Some(3.5)));
    }
}
