//! LoRA: a scaled product of two thin matrices beside the weight.
//!
//! Hu et al., LoRA: Low-Rank Adaptation of Large Language Models (2021), eq. 3 and sec. 4.1: `W + (alpha / rank)·B·A`, A drawn, B zero at
//! first. Our `rows` is their A, our `cols` their B.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use prunectl_model::{AdapterPart, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Kind, Spec, Ty};

use super::{Adapter, FROM, SITES, kaiming, shapes, uniform};
use crate::error::Result;
use crate::row::{other, param, within};

struct Lora {
    rank: usize,
    alpha: f64,
    seed: u64,
}

impl Adapter for Lora {
    fn attach(&self, model: &Transformer, weights: &BTreeSet<String>) -> Result<BTreeMap<String, Tensor>> {
        let mut out = BTreeMap::new();
        for (i, (stem, rows, columns)) in shapes(model, weights)?.into_iter().enumerate() {
            out.insert(AdapterPart::Rows.slot(&stem), uniform(model, &[self.rank, columns], kaiming(columns), self.seed, i as u64)?);
            out.insert(AdapterPart::Cols.slot(&stem), Tensor::zeros((rows, self.rank), model.dtype(), model.device())?);
            let scale = Tensor::new(self.alpha / self.rank.max(1) as f64, model.device())?.to_dtype(model.dtype())?;
            out.insert(AdapterPart::Scale.slot(&stem), scale);
        }
        Ok(out)
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Adapter>, ArgError> {
    Ok(Box::new(Lora { rank: args.count("rank")? as usize, alpha: args.float("alpha")?, seed: args.count("seed")? }))
}

pub(super) const ENTRY: Entry<dyn Adapter> = Entry {
    spec: Spec {
        sites: SITES,
        ..other(
            Kind::Adapter,
            "lora",
            "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models (2021), eq. 3",
            &[
                within(param("rank", Ty::Count, "16", "Columns of B, rows of A."), 1.0, 65536.0),
                within(param("alpha", Ty::Float, "16", "The update is scaled by alpha / rank."), 0.0, 1e6),
                within(param("seed", Ty::Count, "0", "Of A's first values; B starts at zero."), 0.0, 9e15),
                FROM,
            ],
            "`W + (alpha/rank)·B·A`, B zero at first. The weight is frozen; a `train` without `only` trains adapters alone. Pruned with the weight: \
             rows of B, columns of A.\n\n\
             ```prune\nattach lora(rank = 4) to m.layers[*].linears as a\ntrain m on d.train for 20 steps { optimizer = adamw(lr = 1e-3) }\nfuse a into m\n```",
        )
    },
    build,
};
