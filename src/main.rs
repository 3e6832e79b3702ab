//! The command `prunectl`: everything is in `prunectl-run`; here are only the process and its exit status.

use std::process::ExitCode;

use clap::Parser;
use prunectl_kernels::memory::Recycler;
use prunectl_kernels::threads;
use prunectl_run::cli::{Cli, tell};
use prunectl_run::interrupt::Interrupt;

#[global_allocator]
static MEMORY: Recycler = Recycler;

fn main() -> ExitCode {
    // SAFETY: nothing has started a thread yet.
    unsafe { threads::keep_elementwise_on_caller() };
    // Wrong usage ends in clap's own message and status 2.
    let cli = Cli::parse();
    let json = cli.json();
    let interrupt = Interrupt::default();
    let outcome = match interrupt.install() {
        Ok(()) => cli.run(interrupt),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(error) => ExitCode::from(tell(&error, json)),
    }
}
