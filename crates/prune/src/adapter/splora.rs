//! SPLoRA: a low-rank adapter that is pruned with its weight.
//!
//! Hedegaard et al., Structured Pruning Adapters (2022), eq. 8-9: `W + B·A`, neither scaled nor dropped out; rows of B leave with the
//! weight's rows, columns of A with its columns, so the pruned adapter fuses exactly. Our `rows` is the authors' A (`rows`), our `cols` their
//! B (`cols`), without their leading dimension of 1. As in their code B starts near zero, not at it. They train the bias along; ours is
//! frozen unless `only` names it.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use prunectl_model::{AdapterPart, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Kind, Spec, Ty};

use super::{Adapter, FROM, SITES, kaiming, shapes, uniform};
use crate::error::Result;
use crate::row::{other, param, within};

/// B's first values lie in ± this.
pub(super) const START: f64 = 1e-4;
/// Streams of B's values, apart from those of A.
const COLS_STREAM: u64 = 1 << 32;

struct Splora {
    rank: usize,
    seed: u64,
}

impl Adapter for Splora {
    fn attach(&self, model: &Transformer, weights: &BTreeSet<String>) -> Result<BTreeMap<String, Tensor>> {
        let mut out = BTreeMap::new();
        for (i, (stem, rows, columns)) in shapes(model, weights)?.into_iter().enumerate() {
            out.insert(AdapterPart::Rows.slot(&stem), uniform(model, &[self.rank, columns], kaiming(columns), self.seed, i as u64)?);
            let stream = COLS_STREAM + i as u64;
            out.insert(AdapterPart::Cols.slot(&stem), uniform(model, &[rows, self.rank], START, self.seed, stream)?);
        }
        Ok(out)
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Adapter>, ArgError> {
    Ok(Box::new(Splora { rank: args.count("rank")? as usize, seed: args.count("seed")? }))
}

pub(super) const ENTRY: Entry<dyn Adapter> = Entry {
    spec: Spec {
        sites: SITES,
        ..other(
            Kind::Adapter,
            "splora",
            "Hedegaard et al., Structured Pruning Adapters (2022), eq. 8-9",
            &[
                within(param("rank", Ty::Count, "16", "Columns of B, rows of A."), 1.0, 65536.0),
                within(param("seed", Ty::Count, "0", "Of the first values."), 0.0, 9e15),
                FROM,
            ],
            "`W + B·A`, pruned with the weight: rows of B, columns of A. The weight is frozen; a `train` without `only` trains adapters alone. \
             Scores see the sum.\n\n\
             Mind: the start is not exactly zero, unlike LoRA's; the rank is not reduced by pruning.\n\n\
             ```prune\nattach splora(rank = 4) to m.layers[*].linears as a\ntrain m on d.train for 20 steps { optimizer = adamw(lr = 1e-3) }\nprune m.layers[*].mlp.neurons by 30% using magnitude()\nfuse a into m\ncompact m\n```",
        )
    },
    build,
};
