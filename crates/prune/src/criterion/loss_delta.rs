//! Loss delta: what a unit's absence costs, measured or estimated.
//!
//! Michel et al., Are Sixteen Heads Really Better than One? (2019): the definition (sec. 3) for `exact`, eq. 3-4 for `gradient`.
//! Our gate is their ξ. `exact.rs` holds the measurement, `gate_gradients.rs` the estimate.

mod exact;

use prunectl_model::Transformer;
use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind, Ty};

use super::gate_gradients::{self, Of};
use super::{Criterion, Standing};
use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::row::{GATED_SITES, ON, criterion, needs_data, param};
use crate::scores::Scores;
use crate::site::Sites;

const NAME: &str = "loss_delta";

struct LossDelta {
    exact: bool,
    by_layer: bool,
    absolute: bool,
    of: Of,
}

/// Keeps a layer of zeros from dividing by zero, as the authors do.
const NORM_EPS: f64 = 1e-20;

/// Divides the scores of each layer by their ℓ2 norm.
fn normalize(scores: &mut Scores) {
    for values in scores.sites.values_mut() {
        let norm = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt() + NORM_EPS;
        for v in values.iter_mut() {
            *v = (f64::from(*v) / norm) as f32;
        }
    }
}

impl Criterion for LossDelta {
    fn needs_data(&self) -> bool {
        true
    }

    fn standing(&self) -> Standing {
        if self.exact && !self.absolute && !self.by_layer { Standing::Exact } else { Standing::Estimate }
    }

    fn passes(&self, units: usize) -> u64 {
        if self.exact { units as u64 + 1 } else { 1 }
    }

    fn parallel_tokens(&self) -> usize {
        if self.exact { exact::TOKENS_PER_RUN } else { 0 }
    }

    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        if let Some(kind) = sites.kinds().into_iter().find(|k| matches!(k, SiteKind::Weights | SiteKind::Hidden)) {
            return Err(PruneError::Site { method: NAME, kind, hint: "a gate can't switch these off; use `taylor` or `magnitude`" });
        }
        let mut scores = if self.exact {
            exact::score(model, sites, data, progress)?
        } else {
            gate_gradients::score(NAME, self.of, model, sites, data, progress)?
        };
        if self.absolute {
            scores.sites.values_mut().flatten().for_each(|v| *v = v.abs());
        }
        if self.by_layer {
            normalize(&mut scores);
        }
        scores.checked(NAME)
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    let exact = args.word("estimate")? == "exact";
    let of = match args.word("quirk")? {
        "reference" => Of::Token,
        "bertology" => Of::Batch,
        _ => Of::Example,
    };
    if exact && of != Of::Example {
        let found = args.word("quirk")?.to_owned();
        return Err(ArgError { name: "quirk".into(), found, expected: "none: only `estimate = gradient` has variants".into() });
    }
    Ok(Box::new(LossDelta { exact, by_layer: args.word("normalize")? == "layer", absolute: args.flag("absolute")?, of }))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: needs_data(criterion(
        "loss_delta",
        "Michel et al., Are Sixteen Heads Really Better than One? (2019), eq. 3-4",
        &[
            ON,
            param(
                "estimate",
                Ty::OneOf(&["exact", "gradient"]),
                "exact",
                "Measure each removal, or estimate all from one backward pass a batch.",
            ),
            param("normalize", Ty::OneOf(&["none", "layer"]), "none", "`layer` divides the scores of each layer by their ℓ2 norm."),
            param("absolute", Ty::Bool, "false", "Size of the change instead of the change, for `exact`."),
            param(
                "quirk",
                Ty::OneOf(&["none", "reference", "bertology"]),
                "none",
                "For `gradient`: the authors' code (absolute value per token) or the one of transformers' bertology (absolute value of each batch's sum).",
            ),
        ],
        GATED_SITES,
        "What a unit's absence costs. `exact`: L(without the unit) − L, the token-weighted mean loss over **all** the data, unit by unit, the others present; the sign is kept, so a unit whose absence helps goes first. \
         `gradient`: the mean over examples of |∂L(x)/∂ξ|, ξ a gate on the unit's output, L(x) the mean over the example's scored tokens.\n\n\
         Mind: the absolute value is taken per example. Published scripts take it per token or per batch, so their scores depend on the batch size; both are behind `quirk`. Padding never counts.\n\n\
         ```prune\nprune m.layers[*].attention.heads by 40% using loss_delta(on = d.train.sample(32, seed = 0)) { rescore = 10%  at_least = 1 head }\n```",
    )),
    build,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::Key;

    #[test]
    fn a_layer_is_divided_by_its_norm_by_hand() {
        let key = |layer| Key::of(SiteKind::Heads, layer);
        let mut scores = Scores { sites: [(key(0), vec![3.0, -4.0]), (key(1), vec![0.0, 0.0])].into(), ..Scores::default() };
        normalize(&mut scores);
        assert_eq!(scores.sites[&key(0)], [0.6, -0.8]);
        assert_eq!(scores.sites[&key(1)], [0.0, 0.0]);
    }
}
