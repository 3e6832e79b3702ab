//! The network against Hugging Face transformers, its sites, and checkpoints that lie.

mod golden;
mod pack;
mod sites;
