//! The page is whole, fetches nothing, says every number, and can't be broken by what a recipe puts into it.

use prunectl_model::LayerDims;

use super::*;

const HOSTILE: &str = "</pre><script src=\"https://evil.example/x.js\">alert('1')</script>&\u{0}<img src=x onerror=y>";

fn dims(q_heads: usize, ffn: usize) -> LayerDims {
    LayerDims { q_heads, kv_heads: q_heads, head_dim: 32, ffn, ..LayerDims::default() }
}

fn figures(value: f64, dense: Option<f64>, name: &str) -> MetricRow {
    MetricRow {
        name: name.into(),
        metric: "accuracy()".into(),
        model: "bert".into(),
        value,
        unit: FigureUnit::Percent,
        stderr: Some(0.0047),
        protocol: "argmax of the class logits equals the label; every example once, no truncation".into(),
        counted: "4096 examples".into(),
        device: "cpu".into(),
        dense,
    }
}

/// A run as `recipes/bert_heads.prune` with a sweep and a training would leave it.
fn sample(text: &str) -> ReportData {
    let score = |l: usize, u: usize| ((l * 7 + u * 13) % 29) as f32 / 29.0 * 0.031 - 0.002;
    let heat = |title: &str, unit: &str, units: usize| Heatmap {
        title: title.into(),
        criterion: "loss_delta(on = probe)".into(),
        unit: unit.into(),
        rows: (0..6)
            .map(|layer| HeatRow {
                layer,
                scores: (0..units).map(|u| Some(score(layer, u))).collect(),
                removed: (0..units).map(|u| score(layer, u) < 0.009).collect(),
            })
            .collect(),
    };
    let weights: Vec<f32> = (0..20_000_u32)
        .map(|i| (0..6).map(|k| ((i.wrapping_mul(2_654_435_761).rotate_left(5 * k) >> 8) as f32 / 16_777_216.0) - 0.5).sum::<f32>() * 0.05)
        .collect();
    let pruned: Vec<f32> = weights.iter().map(|w| if w.abs() < 0.012 { 0.0 } else { *w }).collect();
    let methods = ["loss_delta(on = probe)", "gradient", "magnitude", "random"];
    let cells = methods.iter().enumerate().flat_map(|(m, name)| {
        (1..=8).map(move |step| SweepCell {
            labels: vec![(*name).into(), format!("{}%", step * 10)],
            values: vec![Some(0.87 - 0.002 * (step * step) as f64 * (1.0 + m as f64 * 0.35)), Some(0.31 + 0.01 * step as f64)],
            params: Some(1_200_000 - 61_000 * step as u64),
            failed: (m == 3 && step > 5).then(|| "head pruning cost more than one point".into()),
        })
    });
    let rank = RankTable {
        title: format!("48 units of attention.heads{text}"),
        names: vec![format!("exact{text}"), "chance".into()],
        exact: Some(format!("exact{text}")),
        rho: vec![vec![Some(1.0), Some(-0.125)], vec![Some(-0.125), None]],
    };
    let floor = FloorTable {
        metric: "acc".into(),
        floor: "chance".into(),
        unit: FigureUnit::Percent,
        rows: vec![(format!("exact{text}"), 0.031_25, 7, 8)],
    };
    ReportData {
        alike: vec![rank.clone()],
        ranks: vec![rank],
        floors: vec![floor],
        sensitivity: vec![Chart {
            title: format!("prune-1{text}"),
            x: "units gone".into(),
            y: "loss".into(),
            series: vec![Series { name: format!("layers.0.mlp.neurons{text}"), points: vec![(0.0, 0.5), (8.0, 0.75)] }],
        }],
        title: "bert_heads".into(),
        doc: format!("Remove the attention heads that BERT can best do without.{text}"),
        outcome: "done".into(),
        summary: vec![
            SummaryRow {
                name: "accuracy".into(),
                dense: Some(0.9312),
                pruned: Some(0.9279),
                unit: FigureUnit::Percent,
                higher_is_better: Some(true),
            },
            SummaryRow {
                name: "parameters".into(),
                dense: Some(1_234_567.0),
                pruned: Some(987_653.0),
                unit: FigureUnit::Count,
                higher_is_better: None,
            },
            SummaryRow {
                name: "file size".into(),
                dense: Some(2_469_134.0),
                pruned: Some(1_975_306.0),
                unit: FigureUnit::Bytes,
                higher_is_better: Some(false),
            },
            SummaryRow {
                name: "speed".into(),
                dense: Some(51_200.0),
                pruned: Some(64_300.0),
                unit: FigureUnit::TokensPerSecond,
                higher_is_better: Some(true),
            },
        ],
        metrics: vec![figures(0.9312, None, "before"), figures(0.9279, Some(0.9312), &format!("after{text}"))],
        expectations: vec![
            Expectation {
                text: "after >= before - 1 pp".into(),
                line: 28,
                passed: true,
                detail: "0.9279 >= 0.9312 - 0.01".into(),
                message: Some(format!("head pruning cost more than one point{text}")),
            },
            Expectation { text: "after >= 99%".into(), line: 29, passed: false, detail: "0.9279 >= 0.99".into(), message: None },
        ],
        heatmaps: vec![heat(&format!("prune-1 · attention.heads{text}"), "head", 12), heat("wide · mlp.neurons", "neuron", 1536)],
        shapes: (0..6)
            .map(|layer| ShapeRow { layer, before: dims(12, 1536), after: (layer != 4).then(|| dims(12 - layer, 1536)) })
            .collect(),
        histograms: vec![Histogram::of(&format!("layers.*.attention.o.weight{text}"), 48, &[&weights], &[&pruned])],
        sweeps: vec![Sweep {
            name: format!("grid{text}"),
            axes: vec!["method".into(), "amount".into()],
            metrics: vec![
                SweepMetric { name: "acc".into(), unit: FigureUnit::Percent, higher_is_better: true },
                SweepMetric { name: "loss".into(), unit: FigureUnit::Plain, higher_is_better: false },
            ],
            cells: cells.collect(),
            plot: None,
            proxies: vec![ProxyRow { proxy: format!("vote{text}"), metric: "acc".into(), cells: 9, rho: Some(-0.25), agreed: Some(0.75) }],
        }],
        curves: vec![Chart {
            title: "train-1".into(),
            x: "step".into(),
            y: "loss".into(),
            series: vec![
                Series {
                    name: "training".into(),
                    points: (0..300).map(|i| (f64::from(i), 2.0 / (1.0 + f64::from(i) * 0.05) + 0.3)).collect(),
                },
                Series {
                    name: "validation".into(),
                    points: (0..7).map(|i| (f64::from(i) * 50.0, 2.1 / (1.0 + f64::from(i) * 2.4) + 0.34)).collect(),
                },
            ],
        }],
        saves: vec![SavedModel {
            dir: "out/bert-heads".into(),
            bytes: 1_975_306,
            loaders: vec![("transformers".into(), format!("loads with trust_remote_code=True{text}"))],
            verified: "Reopened; logits equal to 3.1e-7 (allowed 2e-5).".into(),
        }],
        warnings: vec![format!("layer 4 lost every head{text}")],
        steps: vec![StepRow { line: 19, kind: "prune".into(), name: "prune-1".into(), elapsed_ms: 18_432 }],
        environment: vec![
            ("prunectl".into(), "0.1.0".into()),
            ("device".into(), "cpu, 2 threads".into()),
            ("recipe".into(), format!("sha256 5e1f…{text}")),
        ],
        recipe: format!(
            "edition 2026\n\nparam sparsity: percent = 40% in 0%..=90%\nmodel bert = builtin(\"tiny-bert\")\n# a < b & c{text}\n"
        ),
    }
}

/// Every tag closes in order, every attribute is quoted, every entity is one of the five; returns (tag, attributes) of each element.
fn elements(page: &str) -> Vec<(String, String)> {
    let page = page.strip_prefix("<!DOCTYPE html>\n").expect("a doctype");
    let (mut open, mut seen): (Vec<String>, _) = (Vec::new(), Vec::new());
    let mut rest = page;
    while let Some(at) = rest.find('<') {
        let text = &rest[..at];
        if open.last().is_none_or(|t| t != "style") {
            assert!(!text.contains('>'), "a bare > in {text:?}");
            for entity in text.split('&').skip(1) {
                let name = entity.split(';').next().unwrap_or_default();
                assert!(["amp", "lt", "gt", "quot", "#39"].contains(&name), "entity &{name}");
            }
        }
        let end = at + rest[at..].find('>').expect("an open tag");
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "closed out of order");
            continue;
        }
        let closed = tag.ends_with('/');
        let tag = tag.trim_end_matches('/');
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "tag <{name}>");
        assert_eq!(attributes.matches('"').count() % 2, 0, "{attributes}");
        for (i, piece) in attributes.split('"').enumerate() {
            let fine = if i % 2 == 0 { piece.trim().is_empty() || piece.ends_with('=') } else { true };
            assert!(fine, "attribute {piece:?} in {attributes:?}");
        }
        seen.push((name.to_owned(), attributes.to_owned()));
        if !closed {
            open.push(name.to_owned());
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
    seen
}

#[test]
fn the_page_is_well_formed_and_reaches_for_nothing() {
    for text in ["", HOSTILE] {
        let page = render(&sample(text));
        let elements = elements(&page);
        let mut ids = Vec::new();
        for (name, attributes) in &elements {
            assert!(!["script", "link", "img", "iframe", "object", "base", "form"].contains(&name.as_str()), "<{name}>");
            for forbidden in ["src=", "onerror=\"", "onload=\"", "http:", "https:", "url("] {
                let own = attributes.split('"').step_by(2).collect::<String>();
                assert!(!own.contains(forbidden), "{forbidden} in {attributes}");
            }
            if let Some(id) = attributes.split("id=\"").nth(1).filter(|_| attributes.starts_with("id=") || attributes.contains(" id=")) {
                ids.push(id.split('"').next().unwrap_or_default().to_owned());
            }
            if let Some(target) = attributes.strip_prefix("href=\"") {
                assert!(target.starts_with('#'), "{attributes}");
            }
        }
        let unique: std::collections::BTreeSet<&String> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len(), "ids repeat: {ids:?}");
        let style = page.split("<style>").nth(1).and_then(|s| s.split("</style>").next()).unwrap_or_default();
        assert!(!style.is_empty() && !style.contains("url(") && !style.contains("@import") && !style.contains("http"));
    }
}

#[test]
fn every_number_is_on_the_page() {
    let data = sample("");
    let page = render(&data);
    let mut wanted: Vec<String> = Vec::new();
    for row in &data.summary {
        wanted.extend([row.dense, row.pruned].into_iter().flatten().map(|x| figure(x, row.unit)));
    }
    for m in &data.metrics {
        wanted.extend([figure(m.value, m.unit), m.protocol.clone(), m.counted.clone(), m.name.clone()]);
    }
    for cell in data.sweeps.iter().flat_map(|s| &s.cells) {
        wanted.extend(cell.values.iter().zip(&data.sweeps[0].metrics).filter_map(|(v, m)| v.map(|v| figure(v, m.unit))));
        wanted.extend(cell.params.map(|p| figure(p as f64, FigureUnit::Count)));
    }
    for row in &data.heatmaps[0].rows {
        wanted.extend(row.scores.iter().flatten().map(|s| figures::significant(f64::from(*s), 3)));
    }
    for h in &data.histograms {
        wanted.extend(h.before.iter().chain(&h.after).map(|n| figures::grouped(*n as f64)));
    }
    wanted.extend(data.expectations.iter().map(|e| html::escape(&e.detail)));
    wanted.extend(["\u{2212}0.125".to_owned(), "7 of 8".to_owned(), figure(0.031_25, FigureUnit::Percent)]);
    wanted.push("1536".into());
    wanted.push("12 → 9".into());
    for text in wanted {
        assert!(page.contains(&text), "{text:?} is missing");
    }
    // A removed head carries its cross: one path with a halo each.
    let removed = data.heatmaps[0].rows.iter().flat_map(|r| &r.removed).filter(|r| **r).count();
    assert_eq!(page.matches("class=\"xh\"").count(), removed);
}

#[test]
fn an_empty_run_still_makes_a_page() {
    let page = render(&ReportData { title: "x".into(), ..ReportData::default() });
    elements(&page);
    assert!(!page.contains("<section"));
    let nan = Heatmap {
        title: "n".into(),
        criterion: String::new(),
        unit: "head".into(),
        rows: vec![HeatRow { layer: 0, scores: vec![None, Some(f32::NAN)], removed: vec![] }],
    };
    let chart = Chart { series: vec![Series { name: "s".into(), points: vec![(0.0, f64::NAN)] }], ..Chart::default() };
    let histogram = Histogram::of("none", 4, &[], &[]);
    elements(&render(&ReportData { heatmaps: vec![nan], curves: vec![chart], histograms: vec![histogram], ..ReportData::default() }));
}

#[test]
fn a_histogram_counts_each_weight_once() {
    let before: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) / 250.0).collect();
    let after: Vec<f32> = before.iter().map(|x| if x.abs() < 1.0 { 0.0 } else { *x }).collect();
    let h = Histogram::of("w", 10, &[&before[..300], &before[300..]], &[&after]);
    assert_eq!(h.edges.len(), 11);
    assert_eq!(h.before.iter().sum::<u64>(), 1000);
    assert_eq!(h.after.iter().sum::<u64>() + h.zeros_after, 1000);
    assert_eq!(h.zeros_after, 499);
}
