//! Runs the built binary in a folder of its own.

use std::path::Path;
use std::process::{Command, Output};

/// A recipe that is quick and uses every kind of step that a run directory stores: scores, prunes in rounds, stored scores, compact, eval,
/// repeat, sweep, adopt, snapshot and rewind, save. The model is made from a config, so nothing but the binary is needed.
pub const QUICK: &str = r#"edition 2026

param share: percent = 25% in 0%..=90%

model m = init("builtin:tiny-bert", seed = 3)
data  d = builtin("tales")

let probe = d.train.take(16)
let heads = m.layers[*].attention.heads

eval loss() of m on d.validation.take(32) as before
score heads using loss_delta(on = probe, estimate = gradient) as s
snapshot m as early

sweep amount over [25%, 50%] as grid {
    prune heads by amount using s
    eval loss() of m on d.validation.take(32) as swept
}

prune heads by share using loss_delta(on = probe) { scope = global  rescore = 25%  at_least = 1 head }
eval loss() of m on d.validation.take(32) as masked
rewind m to early
compact m

repeat round in 1..=2 {
    prune m.layers[*].mlp.neurons by 20% of remaining using magnitude() { scope = layer }
    eval loss() of m on d.validation.take(32) as thinner
}
compact m

eval loss() of m on d.validation.take(32) as after
expect after <= 100 * before else "far worse"
save m to "out/quick"
"#;

/// The binary, in `dir`, with a plain environment.
pub fn prunectl(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_prunectl"));
    // No test needs the network, and none may use it by accident.
    command.env("HF_HUB_OFFLINE", "1");
    command.current_dir(dir).args(args).env("NO_COLOR", "1").env_remove("RUST_BACKTRACE");
    command
}

/// Runs it to its end.
pub fn run(dir: &Path, args: &[&str]) -> Output {
    prunectl(dir, args).output().expect("the binary starts")
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("stdout is text")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("stderr is text")
}
