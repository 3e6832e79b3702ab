//! The network against Hugging Face transformers, its sites, and checkpoints that lie.

// clippy.toml lets tests unwrap, but does not count their helpers as tests.
#![allow(clippy::unwrap_used)]

mod checkpoints;
mod generation;
mod golden;
mod more;
mod pack;
mod real;
mod sites;
