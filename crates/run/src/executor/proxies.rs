//! Zero-cost proxies of a sweep's cells beside what the cells came to: the vote between cells, and rank correlations.

use prunectl_prune::{VOTERS, spearman, vote_agreement, votes};
use serde::Serialize;

use super::book::{CellResult, Row, plain_name};

/// The metric's name in the catalogue.
const ZERO_COST: &str = "zero_cost";

/// How one proxy ranks the cells of a sweep beside one metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Proxy {
    /// The proxy's recorded name.
    pub proxy: String,
    /// The metric's.
    pub metric: String,
    /// Cells that have both.
    pub cells: usize,
    /// Spearman's ρ, positive where the proxy prefers what the metric finds better; None where one of them is the same in all cells.
    pub spearman: Option<f64>,
    /// Of a vote: the share of ordered pairs of cells that it decides as the metric does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pairs_agreed: Option<f64>,
}

/// The rows of each cell: what `eval` recorded in it.
pub(super) struct Cells<'a> {
    /// Every eval of the run.
    pub rows: &'a mut [Row],
    /// Where each cell's begin and end.
    pub spans: Vec<std::ops::Range<usize>>,
}

impl Cells<'_> {
    /// The last row of that plain name in a cell.
    fn row(&self, cell: usize, name: &str) -> Option<&Row> {
        self.rows.get(self.spans.get(cell)?.clone())?.iter().rev().find(|r| plain_name(&r.name) == name)
    }

    /// Plain names of the metrics, in the order of their first eval.
    fn names(&self) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        for row in self.spans.iter().filter_map(|s| self.rows.get(s.clone())).flatten() {
            let name = plain_name(&row.name);
            if !out.iter().any(|n| n == name) {
                out.push(name.to_owned());
            }
        }
        out
    }

    /// What the three voters say of each cell; None unless every cell has all of them.
    fn voters(&self, name: &str) -> Option<Vec<[f64; 3]>> {
        let of = |cell: usize| {
            let row = self.row(cell, name).filter(|r| r.recorded.metric == ZERO_COST)?;
            let [a, b, c] = VOTERS.map(|v| row.recorded.details.get(v).copied());
            Some([a?, b?, c?])
        };
        (0..self.spans.len()).map(of).collect()
    }

    /// Gives every vote its value: only now are all cells known.
    pub fn decide(&mut self, results: &mut [CellResult]) {
        for name in self.names() {
            let Some(voters) = self.voters(&name) else { continue };
            for ((span, value), cell) in self.spans.iter().zip(votes(&voters)).zip(results.iter_mut()) {
                let own = self.rows.get_mut(span.clone()).unwrap_or_default().iter_mut().rev().find(|r| plain_name(&r.name) == name);
                if let Some(row) = own {
                    row.recorded.value = value;
                }
                cell.values.iter_mut().filter(|(n, _)| *n == name).for_each(|(_, v)| *v = value);
            }
        }
    }

    /// Every proxy beside every metric that says which way is good.
    pub fn ranked(&self) -> Vec<Proxy> {
        let names = self.names();
        let first = |name: &str| (0..self.spans.len()).find_map(|cell| self.row(cell, name));
        let is_proxy = |name: &String| first(name).is_some_and(|r| r.recorded.metric == ZERO_COST);
        let mut out = Vec::new();
        for proxy in names.iter().filter(|n| is_proxy(n)) {
            for metric in names.iter().filter(|n| !is_proxy(n)) {
                let Some(up) = first(metric).and_then(|r| r.higher_is_better) else { continue };
                let sign = if up { 1.0 } else { -1.0 };
                let value = |cell: usize, name: &str| self.row(cell, name).map(|r| r.recorded.value).filter(|v| v.is_finite());
                let both = |cell: &usize| value(*cell, proxy).is_some() && value(*cell, metric).is_some();
                let cells: Vec<usize> = (0..self.spans.len()).filter(both).collect();
                let of = |name: &str| -> Vec<f64> { cells.iter().filter_map(|c| value(*c, name)).collect() };
                let results: Vec<f64> = of(metric).iter().map(|v| sign * v).collect();
                let voters = self.voters(proxy);
                let voters = voters.map(|v| cells.iter().filter_map(|c| v.get(*c).copied()).collect::<Vec<_>>());
                out.push(Proxy {
                    proxy: proxy.clone(),
                    metric: metric.clone(),
                    cells: cells.len(),
                    spearman: spearman(&of(proxy), &results),
                    pairs_agreed: voters.and_then(|v| vote_agreement(&v, &results)),
                });
            }
        }
        out
    }
}

impl Proxy {
    /// `snip ranks 9 cells as acc does: ρ = 0.850`.
    pub fn in_words(&self) -> String {
        let rho = self.spearman.map_or_else(|| "ρ undefined: one of them is the same in all".to_owned(), |r| format!("ρ = {r:.3}"));
        let agreed = self.pairs_agreed.map_or_else(String::new, |a| format!(", {:.1} % of the pairs decided alike", a * 100.0));
        format!("{} beside {} over {} cells: {rho}{agreed}", self.proxy, self.metric, self.cells)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn row(name: &str, metric: &str, value: f64, details: &[f64]) -> Row {
        let mut row = Row::sample(name, metric, value);
        row.higher_is_better = Some(metric == ZERO_COST);
        row.recorded.details = VOTERS.iter().zip(details).map(|(n, v)| ((*n).to_owned(), *v)).collect();
        row
    }

    /// Three cells with losses 3, 1, 2: a proxy of 10, 30, 20 ranks them the same way, one of 30, 10, 20 the other way round. The
    /// vote prefers the second to both, the third to the first.
    #[test]
    fn proxies_are_ranked_beside_the_result() {
        let mut rows = Vec::new();
        for (i, (good, bad, loss)) in [(10.0, 30.0, 3.0), (30.0, 10.0, 1.0), (20.0, 20.0, 2.0)].into_iter().enumerate() {
            let name = |n: &str| format!("{n}[amount={i}]");
            rows.push(row(&name("good"), ZERO_COST, good, &[]));
            rows.push(row(&name("bad"), ZERO_COST, bad, &[]));
            rows.push(row(&name("vote"), ZERO_COST, 0.0, &[good, good, bad]));
            rows.push(row(&name("val"), "loss", loss, &[]));
        }
        let cell =
            |_| CellResult { labels: Vec::new(), values: vec![("vote".into(), 0.0)], units: BTreeMap::new(), params: None, failed: None };
        let mut results: Vec<CellResult> = (0..3).map(cell).collect();
        let mut cells = Cells { rows: &mut rows, spans: vec![0..4, 4..8, 8..12] };
        cells.decide(&mut results);
        assert_eq!(results.iter().map(|c| c.values[0].1).collect::<Vec<_>>(), [0.0, 1.0, 0.5]);
        let found = cells.ranked();
        let of = |name: &str| found.iter().find(|p| p.proxy == name).unwrap();
        assert_eq!((of("good").spearman, of("good").pairs_agreed), (Some(1.0), None));
        assert_eq!(of("bad").spearman, Some(-1.0));
        assert_eq!((of("vote").spearman, of("vote").pairs_agreed, of("vote").cells), (Some(1.0), Some(1.0), 3));
        assert_eq!(found.len(), 3);
        assert_eq!(rows[6].recorded.value, 1.0);
    }
}
