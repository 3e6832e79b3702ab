//! Stochastic gradient descent with momentum, as PyTorch writes it: `b ← μ·b + g`, `w ← w − lr·b` (Nesterov: `g + μ·b`).

use prunectl_recipe::catalogue::{ArgError, Args, Entry, Kind, Ty};
use prunectl_recipe::plan::Schedule;

use super::{Optimizer, Update, schedule};
use crate::buffers::zeros;
use crate::error::Result;
use crate::row::{other, param, required, within};

const MOMENTUM: &str = "momentum";

struct Sgd {
    lr: Schedule,
    momentum: f64,
    nesterov: bool,
    weight_decay: f64,
}

impl Optimizer for Sgd {
    fn lr(&self) -> &Schedule {
        &self.lr
    }

    fn buffers(&self) -> &'static [&'static str] {
        if self.momentum > 0.0 { &[MOMENTUM] } else { &[] }
    }

    fn update(&self, u: Update<'_>) -> Result<()> {
        let decay = if u.decays { self.weight_decay as f32 } else { 0.0 };
        let (lr, mu) = (u.lr as f32, self.momentum as f32);
        if mu == 0.0 {
            for (w, g) in u.weights.iter_mut().zip(u.gradient) {
                *w -= lr * (g + decay * *w);
            }
            return Ok(());
        }
        let n = u.weights.len();
        // PyTorch's buffer starts as the first gradient, which zeros and μ·0 + g give as well.
        let buffer = u.memory.entry(MOMENTUM).or_insert_with(|| zeros(n));
        for ((w, g), b) in u.weights.iter_mut().zip(u.gradient).zip(buffer) {
            let g = g + decay * *w;
            *b = mu * *b + g;
            *w -= lr * if self.nesterov { g + mu * *b } else { *b };
        }
        Ok(())
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Optimizer>, ArgError> {
    Ok(Box::new(Sgd {
        lr: schedule(args, "lr")?,
        momentum: args.float("momentum")?,
        nesterov: args.flag("nesterov")?,
        weight_decay: args.float("weight_decay")?,
    }))
}

pub(super) const ENTRY: Entry<dyn Optimizer> = Entry {
    spec: other(
        Kind::Optimizer,
        "sgd",
        "Sutskever et al., On the importance of initialization and momentum in deep learning (2013), eq. 1-4",
        &[
            within(required("lr", Ty::Scheduled, "Learning rate, or a schedule of it."), 0.0, f64::MAX),
            within(param("momentum", Ty::Float, "0", "μ."), 0.0, 1.0),
            param("nesterov", Ty::Bool, "false", "Nesterov's variant."),
            within(param("weight_decay", Ty::Float, "0", "Added to the gradient: λ·w."), 0.0, 1e3),
        ],
        "Gradient descent with momentum. The decay is part of the gradient, as in PyTorch.",
    ),
    build,
};
