//! AdamW: Adam with decoupled weight decay and bias correction.
//!
//! Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019), algorithm 2. Our step is theirs with η folded into the decay,
//! as in PyTorch: `w ← w − lr·λ·w`, then `w ← w − lr·m̂ / (√v̂ + ε)`.

use prunectl_kernels::{AdamW as Options, adamw_step};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Kind, Ty};
use prunectl_recipe::plan::Schedule;

use super::{Optimizer, Update, schedule};
use crate::buffers::zeros;
use crate::error::{PruneError, Result};
use crate::row::{other, param, required, within};

const FIRST: &str = "m";
const SECOND: &str = "v";

struct AdamW {
    lr: Schedule,
    weight_decay: f64,
    decay_all: bool,
    beta1: f64,
    beta2: f64,
    eps: f64,
}

impl Optimizer for AdamW {
    fn lr(&self) -> &Schedule {
        &self.lr
    }

    fn buffers(&self) -> &'static [&'static str] {
        &[FIRST, SECOND]
    }

    fn update(&self, u: Update<'_>) -> Result<()> {
        let weight_decay = if u.decays && (u.matrix || self.decay_all) { self.weight_decay } else { 0.0 };
        let options = Options { lr: u.lr, beta1: self.beta1, beta2: self.beta2, eps: self.eps, weight_decay };
        let n = u.weights.len();
        let mut m = u.memory.remove(FIRST).unwrap_or_else(|| zeros(n));
        let mut v = u.memory.remove(SECOND).unwrap_or_else(|| zeros(n));
        let done = adamw_step(u.weights, u.gradient, &mut m, &mut v, u.step, &options);
        u.memory.insert(FIRST, m);
        u.memory.insert(SECOND, v);
        done.map_err(PruneError::from)
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Optimizer>, ArgError> {
    Ok(Box::new(AdamW {
        lr: schedule(args, "lr")?,
        weight_decay: args.float("weight_decay")?,
        decay_all: args.word("decay")? == "all",
        beta1: args.float("beta1")?,
        beta2: args.float("beta2")?,
        eps: args.float("eps")?,
    }))
}

pub(super) const ENTRY: Entry<dyn Optimizer> = Entry {
    spec: other(
        Kind::Optimizer,
        "adamw",
        "Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019), algorithm 2",
        &[
            within(required("lr", Ty::Scheduled, "Learning rate, or a schedule of it."), 0.0, f64::MAX),
            within(param("weight_decay", Ty::Float, "0.01", "λ of the decoupled decay, multiplied by the learning rate."), 0.0, 1e3),
            param(
                "decay",
                Ty::OneOf(&["matrices", "all"]),
                "matrices",
                "What decays: matrices and tables, or biases and norms too (PyTorch's default).",
            ),
            within(param("beta1", Ty::Float, "0.9", "Memory of the gradient's mean."), 0.0, 1.0),
            within(param("beta2", Ty::Float, "0.999", "Memory of its square."), 0.0, 1.0),
            within(param("eps", Ty::Float, "1e-8", "Added to the root of the second moment."), 0.0, 1.0),
        ],
        "Adam with bias correction; the decay is decoupled from the gradient.\n\n\
         ```prune\ntrain m on d.train for 20 steps {\n    optimizer = adamw(lr = linear(0 -> 1e-3, for = 10%) then cosine(1e-3 -> 0), weight_decay = 0.01)\n}\n```",
    ),
    build,
};
