//! The network against Hugging Face transformers, its sites, and checkpoints that lie.

mod checkpoints;
mod golden;
mod pack;
mod sites;
