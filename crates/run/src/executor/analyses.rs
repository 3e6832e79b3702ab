//! What a model's analyses look like: curves of sensitivity by layer, and how alike the states between blocks are.

use std::collections::BTreeMap;

use crate::executor::book::Row;
use crate::report::{Chart, RankTable, Series};

/// Shares gone and the loss then, by layer.
type ByLayer = BTreeMap<usize, Vec<(f64, f64)>>;

/// The loss of the model with a share of one layer's units masked, one chart for each kind of unit, from `eval sensitivity(…)`.
pub(super) fn curves(row: &Row) -> Vec<Chart> {
    if row.recorded.metric != "sensitivity" {
        return Vec::new();
    }
    let details = &row.recorded.details;
    // By kind of unit and layer; a layer's key is `layers.3.mlp.neurons 30%`.
    let mut kinds: BTreeMap<&str, ByLayer> = BTreeMap::new();
    for (name, loss) in details {
        let Some((layer, kind, share)) = point(name) else { continue };
        kinds.entry(kind).or_default().entry(layer).or_default().push((share, *loss));
    }
    let of_kind = |(kind, layers): (&str, ByLayer)| {
        let series = layers.into_iter().map(|(layer, mut points)| {
            points.extend(details.get("dense").map(|loss| (0.0, *loss)));
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Series { name: format!("layer {layer}"), points }
        });
        Chart {
            title: format!("{}: {kind} of one layer gone", row.name),
            x: "% gone".to_owned(),
            y: "loss".to_owned(),
            series: series.collect(),
        }
    };
    kinds.into_iter().map(of_kind).collect()
}

/// `layers.3.mlp.neurons 30%` in parts.
fn point(name: &str) -> Option<(usize, &str, f64)> {
    let (site, share) = name.split_once(' ')?;
    let (layer, kind) = site.strip_prefix("layers.")?.split_once('.')?;
    Some((layer.parse().ok()?, kind, share.trim_end_matches('%').parse().ok()?))
}

/// Every pair of states, from `eval cka(…)` and `eval cosine(…)`.
pub(super) fn alike(row: &Row) -> Option<RankTable> {
    if !["cka", "cosine"].contains(&row.recorded.metric.as_str()) {
        return None;
    }
    let pair = |name: &str| -> Option<(usize, usize)> {
        let (a, b) = name.split_once('-')?;
        Some((a.parse().ok()?, b.parse().ok()?))
    };
    let pairs: BTreeMap<(usize, usize), f64> = row.recorded.details.iter().filter_map(|(k, v)| Some((pair(k)?, *v))).collect();
    let n = pairs.keys().map(|(_, b)| b + 1).max()?;
    let between = |a: usize, b: usize| if a == b { Some(1.0) } else { pairs.get(&(a.min(b), a.max(b))).copied() };
    Some(RankTable {
        title: format!("{}: {}", row.name, row.call),
        names: (0..n).map(|i| if i == 0 { "input of the first block".to_owned() } else { format!("output of block {}", i - 1) }).collect(),
        exact: None,
        rho: (0..n).map(|a| (0..n).map(|b| between(a, b)).collect()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::book::Recorded;

    fn row(metric: &str, details: &[(&str, f64)]) -> Row {
        let recorded = Recorded {
            metric: metric.to_owned(),
            value: 0.0,
            stderr: None,
            protocol: String::new(),
            tokens: None,
            examples: None,
            device: "cpu".to_owned(),
            model: "m".to_owned(),
            data: None,
            dense: true,
            details: details.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect(),
            warnings: Vec::new(),
        };
        Row { name: "a".to_owned(), call: format!("{metric}()"), recorded, higher_is_better: None }
    }

    #[test]
    fn a_curve_begins_with_the_dense_model_and_follows_the_share() {
        let found = curves(&row(
            "sensitivity",
            &[("dense", 1.0), ("layers.1.mlp.neurons 50%", 3.0), ("layers.1.mlp.neurons 10%", 2.0), ("layers.0.attention.heads 5%", 4.0)],
        ));
        assert_eq!(
            found.iter().map(|c| c.title.as_str()).collect::<Vec<_>>(),
            ["a: attention.heads of one layer gone", "a: mlp.neurons of one layer gone"]
        );
        assert_eq!(found[1].series[0].points, [(0.0, 1.0), (10.0, 2.0), (50.0, 3.0)]);
        assert!(curves(&row("accuracy", &[])).is_empty());
    }

    #[test]
    fn every_pair_stands_on_both_sides() {
        let found = alike(&row("cka", &[("0-1", 0.5), ("0-2", 0.25), ("1-2", 0.75)])).unwrap();
        assert_eq!(
            found.rho,
            [[Some(1.0), Some(0.5), Some(0.25)], [Some(0.5), Some(1.0), Some(0.75)], [Some(0.25), Some(0.75), Some(1.0)]]
        );
        assert_eq!(found.names[2], "output of block 1");
        assert!(alike(&row("loss", &[("0-1", 0.5)])).is_none());
    }
}
