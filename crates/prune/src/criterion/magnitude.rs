//! Magnitude: the size of a unit's weights.
//!
//! Han et al., Learning both Weights and Connections for Efficient Neural Networks (2015), sec. 3, for weights; Li et al., Pruning
//! Filters for Efficient ConvNets (2017), sec. 3.1, for structures. Our default is the rooted ℓ2 norm over the coupled group.

use candle_core::{DType, Device};
use prunectl_model::Transformer;
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Ty};

use super::Criterion;
use crate::data::{Batches, Progress};
use crate::error::Result;
use crate::groups::{Fold, GroupSum, head_dim, same, sums};
use crate::row::{ALL_SITES, criterion, param};
use crate::scores::Scores;
use crate::site::Sites;

struct Magnitude {
    squares: bool,
    mean: bool,
    reference: bool,
}

impl Magnitude {
    fn unit(&self, g: &GroupSum, head_dim: usize) -> f64 {
        if self.reference {
            let members = if self.mean { g.members.max(1) } else { 1 };
            return g.sum / (members * head_dim) as f64;
        }
        let sum = if self.mean { g.sum / g.entries.max(1) as f64 } else { g.sum };
        if self.squares { sum.sqrt() } else { sum }
    }
}

impl Criterion for Magnitude {
    fn score(&self, model: &Transformer, sites: &Sites, _: &mut dyn Batches, _: &dyn Progress) -> Result<Scores> {
        let entry: fn(f64) -> f64 = if self.squares { |w| w * w } else { f64::abs };
        let weights = |slot: &str| Ok(model.params().read(slot)?);
        let mut out = Scores::default();
        for (key, sums) in sums(model, sites, Fold { entry, line: same }, &weights)? {
            let head_dim = head_dim(model, key);
            out.sites.insert(key, sums.iter().map(|g| self.unit(g, head_dim) as f32).collect());
        }
        for slot in &sites.weights {
            let w = model.params().read(slot)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
            out.weights.insert(slot.clone(), w.abs()?);
        }
        out.checked("magnitude")
    }
}

/// Magnitude with its defaults.
pub(crate) fn plain() -> impl Criterion {
    Magnitude { squares: true, mean: false, reference: false }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(Magnitude {
        squares: args.word("norm")? == "l2",
        mean: args.word("reduce")? == "mean",
        reference: args.word("quirk")? == "reference",
    }))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: criterion(
        "magnitude",
        "Han et al., Learning both Weights and Connections for Efficient Neural Networks (2015), sec. 3",
        &[
            param("norm", Ty::OneOf(&["l1", "l2"]), "l2", "`l1` = Σ|w|, `l2` = √Σw²."),
            param(
                "reduce",
                Ty::OneOf(&["sum", "mean"]),
                "sum",
                "Over the group; `mean` divides by its number of weights (inside the root).",
            ),
            param(
                "quirk",
                Ty::OneOf(&["none", "reference"]),
                "none",
                "`reference` is the score of torch-pruning: squares are not rooted, `mean` divides by the number of member matrices, heads average over their entries.",
            ),
        ],
        ALL_SITES,
        "The size of a unit: `Σ|w|` or `√Σw²` over all weights of its group (a query head: its q rows and o columns; a KV group: also k, v and all its query heads; a neuron: its up and gate rows and down column). A single weight: `|w|`.\n\n\
         Mind: biases and norms do not count. Other codes leave squares unrooted or average over members, so sums over groups of different size rank differently (`quirk = \"reference\"`). Scales differ between layers: `scope = layer` keeps a global ranking from emptying one.\n\n\
         ```prune\nprune m.layers[*].mlp.neurons by 30% using magnitude(norm = l1)\n```",
    ),
    build,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criterion::by_hand::{SLOT, holding, numbers};

    /// Entries 3 and −4: ℓ1 7, ℓ2 5 rooted; the means over two entries 3.5 and √12.5; the reference divides the sum of squares by members.
    #[test]
    fn by_hand() {
        let of = |squares, mean, reference, sum| {
            let group = GroupSum { sum, entries: 2, members: 5 };
            Magnitude { squares, mean, reference }.unit(&group, 1)
        };
        assert_eq!((of(false, false, false, 7.0), of(true, false, false, 25.0)), (7.0, 5.0));
        assert_eq!((of(false, true, false, 7.0), of(true, true, false, 25.0)), (3.5, 12.5f64.sqrt()));
        assert_eq!((of(true, false, true, 25.0), of(true, true, true, 25.0)), (25.0, 5.0));
        let (model, sites) = holding(&[&[3.0, -4.0]]);
        let scores = plain().score(&model, &sites, &mut crate::data::InMemory::default(), &()).unwrap();
        assert_eq!(numbers(&scores.weights[SLOT]), [3.0, 4.0]);
    }
}
