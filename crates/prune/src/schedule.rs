//! Schedules: values over the clock of a training. Pure functions of a step number.
//!
//! Zhu & Gupta, To prune, or not to prune (2017), eq. 1 for `cubic`. A ramp holds its first value before its `during` and its last
//! value after it. The last update always lands on the schedule's last value, whatever the steps divide.

use prunectl_recipe::catalogue::{Kind, Param, Spec, Ty};
use prunectl_recipe::plan::{Curve, Schedule, When};

use crate::row::{optional, other, required};

/// The clock of one training: what turns epochs, tokens and shares into steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clock {
    /// Optimiser steps of the whole training, at least 1.
    pub steps: u64,
    /// Optimiser steps of one pass over the data.
    pub steps_per_epoch: f64,
    /// Tokens of one step, on average; 0 if unknown.
    pub tokens_per_step: f64,
}

impl Clock {
    /// A clock that only counts steps.
    pub fn steps(steps: u64) -> Self {
        Self { steps: steps.max(1), steps_per_epoch: steps.max(1) as f64, tokens_per_step: 0.0 }
    }

    /// That point, or length, in steps.
    pub fn at(&self, when: When) -> f64 {
        match when {
            When::Share(s) => s * self.steps as f64,
            When::Steps(n) => n as f64,
            When::Epochs(e) => e * self.steps_per_epoch,
            When::Tokens(n) if self.tokens_per_step > 0.0 => n as f64 / self.tokens_per_step,
            When::Tokens(_) => self.steps as f64,
        }
    }

    /// The value in force in step `step` (from 0). The last step has the schedule's last value.
    pub fn value(&self, schedule: &Schedule, step: u64) -> f64 {
        let t = if step + 1 >= self.steps { self.steps as f64 } else { step as f64 };
        value_at(schedule, t, self)
    }

    /// Whether an event that happens `every` so often happens after step `step` (from 0): at multiples, and after the last step.
    pub fn fires(&self, every: When, step: u64) -> bool {
        if step + 1 >= self.steps {
            return true;
        }
        let period = self.at(every).max(1.0);
        // A period need not be whole (half an epoch): it fires in the step in which a multiple of it falls.
        (((step + 1) as f64 + ROUNDING) / period).floor() > ((step as f64 + ROUNDING) / period).floor()
    }
}

/// Absorbs rounding where a product of a share and a count should be whole.
const ROUNDING: f64 = 1e-9;

/// The value at time `t` in steps, `0 <= t <= clock.steps`.
pub fn value_at(schedule: &Schedule, t: f64, clock: &Clock) -> f64 {
    piece(schedule, t, 0.0, clock.steps as f64, clock)
}

/// The value at time `t` of a schedule that owns the time from `start` to `end`.
fn piece(schedule: &Schedule, t: f64, start: f64, end: f64, clock: &Clock) -> f64 {
    match schedule {
        Schedule::Hold { value, .. } => *value,
        Schedule::Ramp { curve, from, to, during, length } => {
            let (a, b) = span(*during, *length, start, end, clock);
            ramp(*curve, *from, *to, a, b, t)
        }
        Schedule::Stairs { values, during } => {
            let (a, b) = span(*during, None, start, end, clock);
            stairs(values, a, b, t)
        }
        Schedule::Then(parts) => {
            let mut from = start;
            for (i, part) in parts.iter().enumerate() {
                let last = i + 1 == parts.len();
                let to = if last { end } else { own_end(part, from, end, clock) };
                if last || t < to {
                    return piece(part, t, from, to, clock);
                }
                from = to;
            }
            0.0
        }
    }
}

/// From when to when a ramp moves. `during` counts from the beginning of the training, `for` from the schedule's own start.
fn span(during: Option<(When, When)>, length: Option<When>, start: f64, end: f64, clock: &Clock) -> (f64, f64) {
    match (during, length) {
        (Some((a, b)), _) => (clock.at(a), clock.at(b)),
        (None, Some(length)) => (start, start + clock.at(length)),
        (None, None) => (start, end),
    }
}

/// Where a piece ends that something follows.
fn own_end(schedule: &Schedule, start: f64, end: f64, clock: &Clock) -> f64 {
    match schedule {
        Schedule::Hold { length: Some(length), .. } => start + clock.at(*length),
        Schedule::Ramp { during, length, .. } if during.is_some() || length.is_some() => span(*during, *length, start, end, clock).1,
        Schedule::Stairs { during: Some((_, b)), .. } => clock.at(*b),
        Schedule::Then(parts) => parts.iter().fold(start, |at, part| own_end(part, at, end, clock)),
        _ => end,
    }
}

/// The last value of a schedule.
pub fn last_value(schedule: &Schedule) -> f64 {
    match schedule {
        Schedule::Hold { value, .. } => *value,
        Schedule::Ramp { to, .. } => *to,
        Schedule::Stairs { values, .. } => values.last().copied().unwrap_or_default(),
        Schedule::Then(parts) => parts.last().map_or(0.0, last_value),
    }
}

/// A ramp from `from` at time `a` to `to` at time `b`, clamped outside.
pub fn ramp(curve: Curve, from: f64, to: f64, a: f64, b: f64, t: f64) -> f64 {
    if t >= b {
        return to;
    }
    if t <= a {
        return from;
    }
    let u = (t - a) / (b - a);
    match curve {
        Curve::Linear => from + (to - from) * u,
        Curve::Cubic => to + (from - to) * (1.0 - u).powi(3),
        Curve::Cosine => from + (to - from) * (1.0 - (std::f64::consts::PI * u).cos()) / 2.0,
        Curve::Exponential => exponential(from, to, u),
    }
}

/// Geometric between two positive values. A share removed is geometric in what is left, as in SynFlow (2020): (1 − a)·((1 − b)/(1 − a))^u,
/// which is how a ramp from (or to) 0 is read.
fn exponential(from: f64, to: f64, u: f64) -> f64 {
    if from > 0.0 && to > 0.0 {
        from * (to / from).powf(u)
    } else if (0.0..1.0).contains(&from) && (0.0..1.0).contains(&to) {
        1.0 - (1.0 - from) * ((1.0 - to) / (1.0 - from)).powf(u)
    } else {
        from + (to - from) * u
    }
}

fn stairs(values: &[f64], a: f64, b: f64, t: f64) -> f64 {
    let Some(last) = values.last() else { return 0.0 };
    if t >= b || b <= a {
        return *last;
    }
    let u = ((t - a) / (b - a)).max(0.0);
    let i = (u * values.len() as f64 + ROUNDING).floor() as usize;
    values.get(i).copied().unwrap_or(*last)
}

const RANGE: Param = required("range", Ty::Scheduled, "First and last value: `0% -> 50%`.");
const FOR: Param =
    optional("for", Ty::Scheduled, "Length: a share of the training, steps, epochs or tokens. The whole training if left out.");
const DURING: Param = optional("during", Ty::Scheduled, "When: a range of shares (`5%..70%`), steps or epochs of the training.");
const ACROSS: Param = optional("across", Ty::OneOf(&["layers"]), "`layers`: not over time, but from the first selected layer to the last.");

/// Every schedule that the language knows. The plan holds them as values; nothing is constructed.
pub static SCHEDULES: &[Spec] = &[
    other(
        Kind::Schedule,
        "hold",
        "",
        &[required("value", Ty::Scheduled, "The value."), FOR],
        "One value; with `for`, until something else follows with `then`.",
    ),
    other(Kind::Schedule, "linear", "", &[RANGE, FOR, DURING, ACROSS], "`a + (b − a)·u`, u the share of the ramp that has passed."),
    other(
        Kind::Schedule,
        "cubic",
        "Zhu and Gupta, To prune, or not to prune: exploring the efficacy of pruning for model compression (2017), eq. 1",
        &[RANGE, FOR, DURING],
        "`b + (a − b)·(1 − u)³`: fast at first, gentle at the end.\n\nMind: published code evaluates it only at pruning steps, and never \
         reaches b where the range is not a multiple of `every`; here the last update always lands on b.",
    ),
    other(
        Kind::Schedule,
        "exponential",
        "Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow (2020), sec. 6",
        &[RANGE, FOR, DURING],
        "Geometric: `a·(b/a)^u`. Where an end is 0 it is geometric in what is left, `1 − (1 − a)·((1 − b)/(1 − a))^u`.",
    ),
    other(Kind::Schedule, "cosine", "Loshchilov and Hutter, SGDR (2017), eq. 5", &[RANGE, FOR, DURING], "`a + (b − a)·(1 − cos πu)/2`."),
    other(
        Kind::Schedule,
        "steps",
        "",
        &[required("values", Ty::List(&Ty::Scheduled), "Values in order."), DURING],
        "Each value for an equal share of the time.",
    ),
];
