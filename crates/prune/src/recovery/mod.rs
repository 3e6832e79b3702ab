//! Recovery without a training of the whole model: writers fitted anew in closed form, and blocks trained one by one against a teacher.

mod blocks;
mod least_squares;
mod sublayer;

pub use blocks::{BlockObserver, BlockSpec, Progressed, Rebuilt, Stage, reconstruct, stages};
pub use least_squares::{Fit, Fitted, fit};
