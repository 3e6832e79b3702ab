//! Zero-cost proxies: what a shape promises before it is trained, and the vote of three of them.
//!
//! Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS (2021), sec. 3, each the sum over the network of a pruning criterion, higher is
//! better: `snip` Σ |g·w|, `grad_norm` Σ over matrices ‖g‖₂, `grasp` Σ −w·Hg at temperature 1, `synflow` Σ |w|·∂R/∂|w|, `fisher`
//! Σ over units of ½·mean_x((∂L/∂ξ)²) times the inputs of a unit's rows, L the mean loss of all examples. `jacob_cov` (Mellor et al., Neural
//! Architecture Search without Training, 2020): the rows ∂(Σ outputs)/∂x_n, x_n what enters the first block, correlated over the examples;
//! `−Σ log(v + k) + 1/(v + k)` over the eigenvalues v, k = 1e-5. `vote`: of two shapes the one that two of synflow, jacob_cov and snip prefer.
//!
//! g and H are of the mean loss over all the data, over the weight matrices of the layers; units are heads and neurons.

use std::collections::BTreeMap;

use candle_core::DType;
use prunectl_model::Transformer;
use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind, Ty};
use prunectl_recipe::plan::Value;

use super::{Inputs, Measured, Metric, Needs};
use crate::criterion::{CRITERIA, gradient_norms, synaptic_flow};
use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::linalg::singular_values;
use crate::network::Network;
use crate::row::{metric, needs_data, param};
use crate::scores::Scores;
use crate::site::{Key, Sites};

const NAME: &str = "zero_cost";
/// Added to eigenvalues.
const K: f64 = 1e-5;
/// The three that vote.
pub const VOTERS: [&str; 3] = ["synflow", "jacob_cov", "snip"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    SynFlow,
    Snip,
    Grasp,
    Fisher,
    GradNorm,
    JacobCov,
    Vote,
}

struct ZeroCost {
    kind: Kind,
}

impl Kind {
    fn of(word: &str) -> Self {
        match word {
            "snip" => Self::Snip,
            "grasp" => Self::Grasp,
            "fisher" => Self::Fisher,
            "grad_norm" => Self::GradNorm,
            "jacob_cov" => Self::JacobCov,
            "vote" => Self::Vote,
            _ => Self::SynFlow,
        }
    }

    /// Over the matrices and units of `parts`.
    fn measure(self, network: &dyn Network, parts: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<f64> {
        match self {
            Self::SynFlow | Self::Vote => synaptic_flow(network, &parts.weights),
            Self::GradNorm => Ok(gradient_norms(NAME, network, &parts.weights, data, progress)?.iter().sum()),
            Self::Snip => of_weights("snip", Args::default(), network, parts, data, progress),
            Self::Grasp => {
                let args = Args([("temperature".to_owned(), Value::Number(1.0))].into());
                Ok(-of_weights("grasp", args, network, parts, data, progress)?)
            }
            Self::Fisher => fisher(network, parts, data, progress),
            Self::JacobCov => Ok(jacobian_score(&jacobians(network, data, progress)?)),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::SynFlow => "synaptic flow through the layers' matrices, no data",
            Self::Snip => "Σ |g·w| over the layers' matrices, g the gradient of the mean loss over the data",
            Self::Grasp => "Σ −w·Hg over the layers' matrices, g and H of the mean loss over the data",
            Self::Fisher => "Σ ½·E(∂L/∂ξ)²·hidden over heads and neurons, L the mean loss over the data",
            Self::GradNorm => "Σ ‖g‖₂ over the layers' matrices, g the gradient of the mean loss over the data",
            Self::JacobCov => "−Σ log(v + k) + 1/(v + k) over eigenvalues of the correlation of the examples' Jacobians, k = 1e-5",
            Self::Vote => {
                "share of a sweep's other shapes that it beats in two of synflow, jacob_cov and snip (see the details); 0 where it stands alone"
            }
        }
    }
}

/// The proxy of that name (`vote` has none alone), summed over the matrices and units of `parts`.
///
/// # Errors
/// Data without labels or examples, a NaN among the parameters.
pub fn proxy(kind: &str, network: &dyn Network, parts: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<f64> {
    finite(kind, Kind::of(kind).measure(network, parts, data, progress)?)
}

/// The weight matrices of all layers, their heads and neurons.
fn parts(model: &Transformer) -> Result<Sites> {
    let mut out = Sites::default();
    for (layer, d) in model.dims().iter().enumerate() {
        out.weights.extend(model.linears(layer)?);
        out.add(Key::of(SiteKind::Heads, layer), 0..d.q_heads);
        out.add(Key::of(SiteKind::Neurons, layer), 0..d.ffn * d.experts.max(1));
    }
    out.units.retain(|_, units| !units.is_empty());
    Ok(out)
}

/// A criterion's scores.
fn scores(
    name: &str,
    args: &Args,
    sites: &Sites,
    network: &dyn Network,
    data: &mut dyn Batches,
    progress: &dyn Progress,
) -> Result<Scores> {
    let row = crate::build(CRITERIA, name, args)?;
    let formula = row
        .formula()
        .ok_or_else(|| PruneError::Missing { method: NAME, needs: format!("a criterion that is a formula: `{name}` is none") })?;
    formula.scores(network, sites, data, progress)
}

fn of_weights(
    name: &str,
    args: Args,
    network: &dyn Network,
    parts: &Sites,
    data: &mut dyn Batches,
    progress: &dyn Progress,
) -> Result<f64> {
    let sites = Sites { weights: parts.weights.clone(), ..Sites::default() };
    let mut sum = 0.0;
    for t in scores(name, &args, &sites, network, data, progress)?.weights.values() {
        sum += t.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
    }
    Ok(sum)
}

/// The criterion's scores are of each example's own loss; the gradient of the mean over n examples is 1/n of it. Each unit counts as often
/// as its rows have inputs.
fn fisher(network: &dyn Network, parts: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<f64> {
    let sites = Sites { units: parts.units.clone(), ..Sites::default() };
    let examples = count(data)?;
    let mut sum = 0.0;
    for (key, values) in &scores("fisher", &Args::default(), &sites, network, data, progress)?.sites {
        let mut inputs = 0;
        for slice in network.group(*key, 0)?.iter().filter(|s| s.dim == 0) {
            inputs = inputs.max(network.params().shape(&slice.slot)?.get(1).copied().unwrap_or_default());
        }
        sum += values.iter().map(|s| f64::from(*s)).sum::<f64>() * inputs as f64;
    }
    Ok(sum / (examples * examples).max(1.0))
}

fn count(data: &mut dyn Batches) -> Result<f64> {
    let mut examples = 0;
    data.reset()?;
    while let Some(batch) = data.next()? {
        examples += batch.size()?.0;
    }
    Ok(examples as f64)
}

/// `∂(Σ outputs)/∂x_n` of each example, f64, token after token; shorter examples end in zeros.
fn jacobians(network: &dyn Network, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Vec<Vec<f64>>> {
    let network = network.wide()?;
    let mut out = Vec::new();
    let mut done = 0;
    data.reset()?;
    while let Some(batch) = data.next()? {
        progress.check()?;
        out.extend(network.jacobians(&batch)?.to_dtype(DType::F64)?.to_vec2::<f64>()?);
        done += 1;
        progress.advance(done, data.len_hint().map_or(done, |n| n as u64), NAME);
    }
    if out.is_empty() {
        return Err(PruneError::NoData { method: NAME, batches: done as usize });
    }
    let width = out.iter().map(Vec::len).max().unwrap_or(0);
    out.iter_mut().for_each(|row| row.resize(width, 0.0));
    Ok(out)
}

/// `−Σ log(v + k) + 1/(v + k)`, v the eigenvalues of the rows' correlations. A row that is the same everywhere correlates with none.
fn jacobian_score(rows: &[Vec<f64>]) -> f64 {
    let unit = |row: &Vec<f64>| -> Vec<f64> {
        let mean = row.iter().sum::<f64>() / row.len().max(1) as f64;
        let norm = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>().sqrt();
        row.iter().map(|x| if norm > 0.0 { (x - mean) / norm } else { 0.0 }).collect()
    };
    let rows: Vec<Vec<f64>> = rows.iter().map(unit).collect();
    let correlation: Vec<Vec<f64>> = rows
        .iter()
        .enumerate()
        .map(|(i, a)| {
            let dot = |b: &Vec<f64>| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
            rows.iter().enumerate().map(|(j, b)| if i == j { 1.0 } else { dot(b) }).collect()
        })
        .collect();
    // Symmetric and not negative: its singular values are its eigenvalues.
    -singular_values(&correlation).iter().map(|v| (v + K).ln() + 1.0 / (v + K)).sum::<f64>()
}

/// Whether at least two of the voters put the first shape before the second; a tie is a vote against.
fn beats(a: &[f64; 3], b: &[f64; 3]) -> bool {
    2 * a.iter().zip(b).filter(|(a, b)| a > b).count() >= VOTERS.len()
}

/// For each of several shapes, in the order of [`VOTERS`], the share of the others that it beats.
#[must_use]
pub fn votes(proxies: &[[f64; 3]]) -> Vec<f64> {
    let others = proxies.len().saturating_sub(1).max(1) as f64;
    let wins = |i: usize, a: &[f64; 3]| proxies.iter().enumerate().filter(|(j, b)| i != *j && beats(a, b)).count() as f64;
    proxies.iter().enumerate().map(|(i, a)| wins(i, a) / others).collect()
}

/// The share of ordered pairs of shapes in which the vote and the result agree, higher results being better; None of fewer than two.
#[must_use]
pub fn vote_agreement(proxies: &[[f64; 3]], results: &[f64]) -> Option<f64> {
    let all: Vec<(&[f64; 3], &f64)> = proxies.iter().zip(results).collect();
    let (mut pairs, mut agreed) = (0u32, 0u32);
    for (i, (a, ra)) in all.iter().enumerate() {
        for (b, rb) in all.iter().enumerate().filter(|(j, _)| i != *j).map(|(_, other)| other) {
            pairs += 1;
            agreed += u32::from(beats(a, b) == (ra > rb));
        }
    }
    (pairs > 0).then(|| f64::from(agreed) / f64::from(pairs))
}

impl Metric for ZeroCost {
    fn needs(&self) -> Needs {
        Needs::Batches
    }

    fn higher_is_better(&self) -> Option<bool> {
        Some(true)
    }

    fn measure(&self, inputs: &mut Inputs<'_>) -> Result<Measured> {
        let missing = || PruneError::Missing { method: NAME, needs: "examples".into() };
        let data = inputs.batches.take().ok_or_else(missing)?;
        let parts = parts(inputs.model)?;
        let mut details = BTreeMap::new();
        let mut value = 0.0;
        if self.kind == Kind::Vote {
            for name in VOTERS {
                details.insert(name.to_owned(), proxy(name, inputs.model, &parts, data, inputs.progress)?);
            }
        } else {
            value = finite(NAME, self.kind.measure(inputs.model, &parts, data, inputs.progress)?)?;
        }
        inputs.batches = Some(data);
        Ok(Measured { value, protocol: self.kind.words().to_owned(), details, ..Measured::default() })
    }
}

fn finite(proxy: &str, value: f64) -> Result<f64> {
    match value.is_finite() {
        true => Ok(value),
        false => Err(PruneError::Invalid {
            what: "zero-cost proxy",
            found: format!("{proxy} = {value}"),
            expected: "a finite number: check the weights, or take another kind".into(),
        }),
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    Ok(Box::new(ZeroCost { kind: Kind::of(args.word("kind")?) }))
}

pub(super) const ENTRY: Entry<dyn Metric> = Entry {
    spec: needs_data(metric(
        NAME,
        "Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS (2021), sec. 3",
        &[param(
            "kind",
            Ty::OneOf(&["synflow", "snip", "grasp", "fisher", "grad_norm", "jacob_cov", "vote"]),
            "synflow",
            "The proxy, or the vote of synflow, jacob_cov and snip.",
        )],
        "What a shape promises before anything is trained: a criterion summed over the network, from one small set of data. In a `sweep` the report \
         and `metrics.json` (under `proxies`) have each proxy's rank correlation with every other metric of the cells, positive where the proxy ranks them \
         as the metric does; the value of `vote` is the share of the other cells that a cell beats.\n\n\
         Mind: masked units count as zeros, so a mask and the compacted shape have one value. `jacob_cov` looks at what enters the \
         first block, and takes n² time and memory in the examples: give it a few dozen. All but `synflow` need labels (a causal model predicts its own input), `jacob_cov` none.\n\n\
         ```prune\nsweep amount over [20%, 40%, 60%] as grid {\n    prune m.layers[*].mlp.neurons by amount using magnitude()\n    \
         eval zero_cost(kind = snip) of m on d.train.sample(32, seed = 0) as promise\n    eval loss() of m on d.validation as val\n}\n```",
    )),
    build,
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rows that are each other's negative, correlation −1: eigenvalues 0 and 2. A constant row correlates with nobody: 1 and 1.
    #[test]
    fn jacobian_score_by_hand() {
        let of = |v: [f64; 2]| -v.iter().map(|v| (v + K).ln() + 1.0 / (v + K)).sum::<f64>();
        let near = |a: f64, b: f64| assert!((a - b).abs() <= 1e-9 * b.abs(), "{a} {b}");
        near(jacobian_score(&[vec![1.0, 2.0, 3.0], vec![3.0, 2.0, 1.0]]), of([0.0, 2.0]));
        near(jacobian_score(&[vec![1.0, 2.0, 3.0], vec![4.0, 4.0, 4.0]]), of([1.0, 1.0]));
    }

    /// The first beats the second in two of three, the third ties in two with the first: a tie is a vote against both.
    #[test]
    fn votes_by_hand() {
        let shapes = [[2.0, 2.0, 0.0], [1.0, 1.0, 5.0], [2.0, 2.0, 1.0]];
        assert_eq!(votes(&shapes), [0.5, 0.0, 0.5]);
        // Ordered pairs: (0,1) and (2,1) are won, the other four lost. Against 3 > 1, 2 < 1 …: results 3, 1, 2 agree but in (0,2).
        assert_eq!(vote_agreement(&shapes, &[3.0, 1.0, 2.0]), Some(5.0 / 6.0));
        assert_eq!((votes(&[[0.0; 3]]), vote_agreement(&[[0.0; 3]], &[1.0])), (vec![0.0], None));
    }
}
