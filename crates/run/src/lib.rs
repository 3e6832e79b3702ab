//! The world around the science: command line, executor, data, device, run directory, report and export. Never maths.

pub mod builtin;
mod caught;
pub mod cli;
pub mod commands;
pub mod compare;
pub mod compile;
pub mod data;
pub mod error;
pub mod executor;
pub mod files;
pub mod fit;
pub mod forecast;
pub mod gguf;
mod held;
pub mod hub;
pub mod inspect;
pub mod interrupt;
pub mod journal;
pub mod lock;
pub mod models;
pub mod recipes;
pub mod report;
pub mod rounded;
pub mod rundir;
pub mod save;
pub mod session;
pub mod stock;
pub mod streaming;
mod tensor_file;
pub mod tokenizer;
pub mod ui;

pub use error::{Error, Result};
