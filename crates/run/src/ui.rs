//! What goes to stderr: notes, warnings, progress. Results go to stdout, printed by the commands.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a bar is drawn at most, per second.
const BAR_HZ: u8 = 10;

/// How talkative the command is, and whether there is a terminal.
#[derive(Debug, Clone, Copy)]
pub struct Ui {
    /// -1 with `-q`, 0, 1 with `-v`, ….
    pub verbosity: i8,
    /// Whether stderr takes bars: a terminal, and not `-q`.
    pub bars: bool,
    /// Whether stderr takes colours.
    pub color: bool,
    /// Whether stdout takes colours.
    pub color_out: bool,
}

impl Ui {
    /// From the flags and the environment: NO_COLOR (set and not empty) and TERM=dumb switch colours off.
    pub fn new(verbosity: i8) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) || std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        let terminal = std::io::stderr().is_terminal();
        Self {
            verbosity,
            bars: terminal && verbosity >= 0,
            color: terminal && !plain,
            color_out: std::io::stdout().is_terminal() && !plain,
        }
    }

    /// A line that `-q` suppresses.
    pub fn note(&self, line: impl std::fmt::Display) {
        if self.verbosity >= 0 {
            eprintln!("{line}");
        }
    }

    /// A line that only `-v` shows.
    pub fn detail(&self, line: impl std::fmt::Display) {
        if self.verbosity >= 1 {
            eprintln!("{line}");
        }
    }

    /// A warning; always shown.
    pub fn warn(&self, line: impl std::fmt::Display) {
        if self.color {
            eprintln!("\x1b[33mwarning\x1b[0m: {line}");
        } else {
            eprintln!("warning: {line}");
        }
    }

    /// A bar that is invisible off a terminal.
    pub fn bar(&self, what: &str) -> ProgressBar {
        if !self.bars {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(BAR_HZ));
        if let Ok(style) = ProgressStyle::with_template("{msg:28} {wide_bar} {pos}/{len} {eta}") {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}
