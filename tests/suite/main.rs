//! The program as its users meet it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod again;
mod bounds;
mod candle;
mod cli;
mod common;
mod compare;
mod families;
mod faults;
mod first_recipe;
mod golden_runs;
mod hub;
mod int8;
#[cfg(unix)]
mod kill;
#[cfg(unix)]
mod kill_training;
mod learning;
mod llama_cpp;
#[cfg(unix)]
mod many_kills;
mod measure;
#[cfg(target_os = "linux")]
mod memory;
mod peft;
mod recipes;
#[cfg(unix)]
mod recovery;
mod sets;
mod sites;
mod slice;
mod stock;
mod streaming;
mod variants;
mod vllm;
mod zero_cost;
