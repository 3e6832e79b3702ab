//! Scores, selection, surgery, training and metrics, against golden numbers and on small models.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod adapters;
mod common;
mod distillation;
mod golden_gates;
mod golden_layerwise;
mod golden_learned;
mod golden_methods;
mod golden_networks;
mod golden_weights;
mod gradients;
mod holds;
mod holds_pruned;
mod inside;
mod networks;
mod perplexity;
mod recovery;
mod slice;
mod surgery;
mod tickets;
mod training;
mod zero_cost;
