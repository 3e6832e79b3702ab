//! SPLoPA: the update is a mix of low-rank prototype blocks that all adapted matrices share.
//!
//! Hedegaard et al., Structured Pruning Adapters (2022), eq. 10: `W + Σ_n pos_n ⊗ (cols_n · rows_n)`, a position's weight for each block of
//! the matrix and each prototype. The authors share prototypes through a global of the process; ours belong to the model. Where a row or
//! column of the weight is removed, the update is cut to it; blocks can't lose single rows, so `compact` wants the adapter fused first.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use prunectl_model::adapter::{PROTOTYPE_COLS, PROTOTYPE_ROWS};
use prunectl_model::{AdapterPart, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Kind, Spec, Ty};
use prunectl_recipe::plan::Value;

use super::splora::START;
use super::{Adapter, FROM, SITES, kaiming, shapes, uniform};
use crate::error::{PruneError, Result};
use crate::row::{other, param, within};

/// Streams of the prototypes' values, apart from those of positions.
const PROTOTYPE_STREAM: u64 = 1 << 32;

struct Splopa {
    prototypes: usize,
    /// Rows and columns of a block.
    shape: (usize, usize),
    rank: usize,
    seed: u64,
}

impl Adapter for Splopa {
    fn attach(&self, model: &Transformer, weights: &BTreeSet<String>) -> Result<BTreeMap<String, Tensor>> {
        let (p, q) = self.shape;
        let mut out = BTreeMap::new();
        let (cols, rows) = ([self.prototypes, p, self.rank], [self.prototypes, self.rank, q]);
        match (model.params().get(PROTOTYPE_COLS), model.params().get(PROTOTYPE_ROWS)) {
            (Some(a), Some(b)) if a.dims() == cols && b.dims() == rows => {}
            (Some(a), _) => {
                return Err(PruneError::Invalid {
                    what: "prototypes of splopa",
                    found: format!("{cols:?}"),
                    expected: format!("{:?}, as those that the model has: its matrices share them", a.dims()),
                });
            }
            _ => {
                out.insert(PROTOTYPE_COLS.to_owned(), uniform(model, &cols, kaiming(self.rank), self.seed, PROTOTYPE_STREAM)?);
                out.insert(PROTOTYPE_ROWS.to_owned(), uniform(model, &rows, kaiming(q), self.seed, PROTOTYPE_STREAM + 1)?);
            }
        }
        for (i, (stem, height, width)) in shapes(model, weights)?.into_iter().enumerate() {
            let (Some(down), Some(across)) = (blocks(height, p), blocks(width, q)) else {
                return Err(PruneError::Invalid {
                    what: "`shape` of splopa",
                    found: format!("[{p}, {q}]"),
                    expected: format!("rows and columns that divide the {height} × {width} of `{stem}.weight`"),
                });
            };
            let positions = uniform(model, &[self.prototypes, down, across], START, self.seed, i as u64)?;
            out.insert(AdapterPart::Positions.slot(&stem), positions);
            for (part, n) in [(AdapterPart::KeepRows, height), (AdapterPart::KeepCols, width)] {
                out.insert(part.slot(&stem), Tensor::ones(n, model.dtype(), model.device())?);
            }
        }
        Ok(out)
    }
}

/// How many blocks of that size a length holds, if it holds whole ones.
fn blocks(length: usize, size: usize) -> Option<usize> {
    (length.checked_rem(size)? == 0).then_some(length / size)
}

fn build(args: &Args) -> std::result::Result<Box<dyn Adapter>, ArgError> {
    let shape = match args.get("shape") {
        Some(Value::List(items)) => items.iter().map(|v| v.as_u64().map(|n| n as usize)).collect::<Option<Vec<_>>>(),
        _ => None,
    };
    let Some([p, q]) = shape.as_deref() else {
        let found = args.get("shape").map_or_else(|| "nothing".into(), |v| format!("{v:?}"));
        return Err(ArgError { name: "shape".into(), found, expected: "rows and columns of a block, such as [32, 32]".into() });
    };
    Ok(Box::new(Splopa {
        prototypes: args.count("prototypes")? as usize,
        shape: (*p, *q),
        rank: args.count("rank")? as usize,
        seed: args.count("seed")?,
    }))
}

pub(super) const ENTRY: Entry<dyn Adapter> = Entry {
    spec: Spec {
        sites: SITES,
        ..other(
            Kind::Adapter,
            "splopa",
            "Hedegaard et al., Structured Pruning Adapters (2022), eq. 10",
            &[
                within(param("prototypes", Ty::Count, "64", "Prototype blocks, shared by the model's matrices."), 1.0, 65536.0),
                param("shape", Ty::List(&Ty::Count), "[32, 32]", "Rows and columns of a block."),
                within(param("rank", Ty::Count, "1", "Rank of a prototype."), 1.0, 65536.0),
                within(param("seed", Ty::Count, "0", "Of the first values."), 0.0, 9e15),
                FROM,
            ],
            "`W + Σ_n pos_n ⊗ P_n`: each block of the update is a mix of prototypes. The weight is frozen; a `train` without `only` trains adapters \
             alone.\n\n\
             Mind: block sizes must divide the weight; prototypes are shared per model; fuse before `compact`.",
        )
    },
    build,
};
