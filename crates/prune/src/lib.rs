//! The science of pruning: criteria, selection, surgery, training and metrics.
//!
//! Not here: files, network, printing, family names. Data comes in through [`Batches`], [`Examples`] and [`TokenStream`];
//! progress goes out through [`Progress`]; what is decided is a [`Decision`] before it is surgery.
//!
//! Adding a method is one file and one row in its registry ([`CRITERIA`], [`METRICS`], [`LOSSES`], …).

mod adapter;
mod bound;
mod buffers;
mod calibrate;
mod comparison;
mod criterion;
mod data;
mod decision;
mod error;
mod eval;
mod groups;
mod labels;
pub mod learned;
mod linalg;
mod loss;
mod network;
mod optimizer;
mod quantizer;
mod recovery;
mod rescore;
mod row;
mod rule;
pub mod schedule;
mod scores;
mod selection;
pub mod site;
pub mod surgery;
mod train;
mod units;

pub use adapter::{ADAPTERS, Adapter, adapter_slots};
pub use bound::{Bounded, CURVE_POINTS, Limits, SensitivityCurve, to_limits, to_shape};
pub use comparison::{Agreement, ByAmount, Margin, agreements, margin, mean_curve};
pub use criterion::{CRITERIA, Criterion, Formula, Layerwise, Standing, TOKENS_SIDE_BY_SIDE};
pub use data::{Asked, Batches, Continuation, Examples, InMemory, Progress, Question, TokenStream, Window};
pub use decision::{Decision, Record, Removed, SiteRecord, UnitMap};
pub use error::{PruneError, Result};
pub use eval::{Inputs, METRICS, Measured, Metric, Needs, VOTERS, paired_lower_bound, proxy, spearman, vote_agreement, votes};
pub use loss::{LEARNED, LOSSES, LossInput, LossTerm, Shared};
pub use network::{GateGradients, Network, Total};
pub use optimizer::{Memory, OPTIMIZERS, Optimizer, Update};
pub use quantizer::{QUANTIZERS, Quantizer};
pub use recovery::{BlockObserver, BlockSpec, Fit, Fitted, Progressed, Rebuilt, Stage, fit, reconstruct, stages};
pub use rescore::{Rescored, rescore};
pub use rule::RULES;
pub use schedule::{Clock, SCHEDULES};
pub use scores::Scores;
pub use selection::{AtLeast, Request, Shape, select};
pub use site::{Key, Sites};
pub use train::{Flow, InnerPrune, Measure, Observer, StepEvent, Stored, Term, TrainMeta, TrainSpec, TrainState, Trainer};

use prunectl_recipe::catalogue::{Args, Catalogue, Entry};

/// Every row that the language knows.
pub fn catalogue() -> Catalogue {
    let specs = CRITERIA.iter().map(|e| &e.spec);
    let specs = specs.chain(METRICS.iter().map(|e| &e.spec)).chain(LOSSES.iter().map(|e| &e.spec));
    let specs = specs.chain(OPTIMIZERS.iter().map(|e| &e.spec)).chain(ADAPTERS.iter().map(|e| &e.spec));
    let specs = specs.chain(QUANTIZERS.iter().map(|e| &e.spec));
    Catalogue::new(specs.chain(SCHEDULES).chain(RULES))
}

/// The method of that name, built from its checked arguments.
///
/// # Errors
/// An argument that the method can't use, or no row of that name.
pub fn build<T: ?Sized>(rows: &[Entry<T>], name: &str, args: &Args) -> Result<Box<T>> {
    let row = rows.iter().find(|r| r.spec.name == name);
    let unknown = || PruneError::Invalid { what: "method", found: name.to_owned(), expected: "one of the catalogue".to_owned() };
    Ok((row.ok_or_else(unknown)?.build)(args)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_rows_are_documented() {
        let rows = CRITERIA.len()
            + METRICS.len()
            + LOSSES.len()
            + OPTIMIZERS.len()
            + ADAPTERS.len()
            + QUANTIZERS.len()
            + SCHEDULES.len()
            + RULES.len();
        assert_eq!(catalogue().iter().count(), rows, "a name stands twice");
        for spec in catalogue().iter() {
            assert!(!spec.doc.is_empty(), "{} has no page", spec.name);
            for p in spec.params {
                assert!(!(p.doc.is_empty() || p.optional && p.default.is_some()), "{}({})", spec.name, p.name);
            }
        }
    }
}
