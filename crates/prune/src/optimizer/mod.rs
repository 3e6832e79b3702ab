//! Optimisers: one file each, ending in its row. They work on host buffers: parameters are f32 while they train.

mod adamw;
mod sgd;

use std::collections::BTreeMap;

use prunectl_recipe::catalogue::{ArgError, Args, Entry};
use prunectl_recipe::plan::{Schedule, Value};

use crate::error::Result;

/// What an optimiser remembers of one parameter: buffers of the parameter's length, by name.
pub type Memory = BTreeMap<&'static str, Vec<f32>>;

/// One update of one parameter.
pub struct Update<'a> {
    /// The parameter, flat; changed in place.
    pub weights: &'a mut [f32],
    /// Its gradient.
    pub gradient: &'a [f32],
    /// The optimiser's buffers for it.
    pub memory: &'a mut Memory,
    /// The update's number, from 1.
    pub step: u64,
    /// The learning rate now.
    pub lr: f64,
    /// Whether it is a matrix (or table): biases and norms are not decayed by default.
    pub matrix: bool,
    /// Whether weight decay applies at all; never to learned scores.
    pub decays: bool,
}

/// An update rule.
pub trait Optimizer: Send + Sync {
    /// The learning rate over time.
    fn lr(&self) -> &Schedule;
    /// Names of its buffers.
    fn buffers(&self) -> &'static [&'static str];
    /// Updates one parameter.
    fn update(&self, update: Update<'_>) -> Result<()>;
}

/// Every optimiser that the language knows.
pub static OPTIMIZERS: &[Entry<dyn Optimizer>] = &[adamw::ENTRY, sgd::ENTRY];

/// A number or a schedule of it.
pub(crate) fn schedule(args: &Args, name: &str) -> std::result::Result<Schedule, ArgError> {
    match args.get(name) {
        Some(Value::Schedule(s)) => Ok(s.clone()),
        _ => Ok(Schedule::Hold { value: args.float(name)?, length: None }),
    }
}
