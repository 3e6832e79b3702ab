//! Amounts, bounds, schedules and points on a clock.

use crate::ast::{Arg, BinOp, Entry, Expr, ExprKind};
use crate::catalogue::{Kind, SiteKind};
use crate::diagnostic::Diagnostic;
use crate::plan::{Amount, Bound, Curve, Limit, LimitValue, Schedule, Unit, When};
use crate::syntax_error::nearest;

use super::eval::{Val, describe, share};
use super::{Checker, Cx};

/// Whether a schedule's values are plain numbers or percents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dim {
    Plain,
    Percent,
}

/// Names of the schedules: a part of the language, since they have a type of their own in the plan.
pub(super) const SCHEDULES: &[&str] = &["hold", "linear", "cubic", "exponential", "cosine", "steps"];

impl<'a> Checker<'a> {
    /// A value of a schedule: a fraction of 1 for percents.
    fn level(&mut self, e: &'a Expr, cx: Cx, dim: Dim) -> Option<f64> {
        let v = self.eval(e, cx);
        match (dim, &v) {
            (Dim::Plain, Val::Number(x)) => Some(*x),
            (Dim::Percent, Val::Percent(x)) => Some(share(*x).fraction()),
            (Dim::Percent, Val::Number(x)) => {
                self.needs_percent(*x, e.span);
                None
            }
            (Dim::Plain, Val::Percent(_) | Val::Quantity(..) | Val::Points(_)) => {
                self.error("P0303", format!("found {}, expected a number without a unit", describe(&v)), e.span, "wrong unit");
                None
            }
            (Dim::Percent, Val::Quantity(..) | Val::Points(_)) => {
                self.error("P0303", format!("found {}, expected a percent", describe(&v)), e.span, "wrong unit");
                None
            }
            _ => {
                self.mismatch(&v, if dim == Dim::Plain { "a number or a schedule" } else { "a percent or a schedule" }, e.span);
                None
            }
        }
    }

    /// Whether an expression is a schedule rather than one value.
    pub(super) fn is_schedule(&mut self, e: &'a Expr, cx: Cx) -> bool {
        let (e, _) = self.head(e, cx);
        match &e.kind {
            ExprKind::Binary(BinOp::Then, ..) => true,
            ExprKind::Call(callee, _) => matches!(&callee.kind, ExprKind::Name(n) if SCHEDULES.contains(&n.as_str())),
            _ => false,
        }
    }

    /// A number or percent over time; a single value holds.
    pub(super) fn schedule(&mut self, e: &'a Expr, cx: Cx, dim: Dim) -> Option<Schedule> {
        let (h, hcx) = self.head(e, cx);
        match &h.kind {
            ExprKind::Binary(BinOp::Then, ..) => {
                let mut parts = Vec::new();
                self.flatten_then(h, hcx, &mut parts);
                let last = parts.len().saturating_sub(1);
                let mut out = Vec::new();
                for (i, (part, pcx)) in parts.into_iter().enumerate() {
                    let s = self.schedule(part, pcx, dim);
                    if let Some(s) = &s {
                        let has_length = match s {
                            Schedule::Hold { length, .. } | Schedule::Ramp { length, .. } => length.is_some(),
                            Schedule::Stairs { during, .. } => during.is_some(),
                            Schedule::Then(_) => true,
                        };
                        if i < last && !has_length {
                            let d = Diagnostic::error("P0309", "a schedule before `then` needs a length", part.span, "ends when?");
                            self.report(d.hint("add `for = 5%` of the training, or `for = 100 steps`"));
                        }
                    }
                    out.push(s);
                }
                out.into_iter().collect::<Option<Vec<_>>>().map(Schedule::Then)
            }
            ExprKind::Call(callee, args) => match &callee.kind {
                ExprKind::Name(n) if SCHEDULES.contains(&n.as_str()) => self.schedule_call(n, h, args, hcx, dim),
                ExprKind::Name(n) => {
                    let d = Diagnostic::error("P0401", format!("unknown schedule `{n}`"), callee.span, "not a schedule");
                    let d = match nearest(n, SCHEDULES.iter().copied()) {
                        Some(w) => Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(w),
                        None => d.hint(format!("schedules are: {}", SCHEDULES.join(", "))),
                    };
                    self.report(d);
                    None
                }
                _ => self.level(e, cx, dim).map(|value| Schedule::Hold { value, length: None }),
            },
            ExprKind::Binary(BinOp::Arrow, ..) => {
                let d = Diagnostic::error("P0301", "found a `->`, expected a schedule", h.span, "which curve?");
                self.report(d.hint(format!("name its curve: `linear({})`", self.label(h))));
                None
            }
            _ => self.level(e, cx, dim).map(|value| Schedule::Hold { value, length: None }),
        }
    }

    fn flatten_then(&mut self, e: &'a Expr, cx: Cx, out: &mut Vec<(&'a Expr, Cx)>) {
        let (h, hcx) = self.head(e, cx);
        match &h.kind {
            ExprKind::Binary(BinOp::Then, a, b) => {
                self.flatten_then(a, hcx, out);
                self.flatten_then(b, hcx, out);
            }
            _ => out.push((e, cx)),
        }
    }

    fn schedule_call(&mut self, name: &str, call: &'a Expr, args: &'a [Arg], cx: Cx, dim: Dim) -> Option<Schedule> {
        let (mut first, mut length, mut during, mut ok) = (None, None, None, true);
        for arg in args {
            match arg.name.as_ref().map(|n| n.name.as_str()) {
                None if first.is_none() => first = Some(&arg.value),
                None => {
                    self.error("P0405", format!("`{name}` takes one value"), arg.value.span, "one too many");
                    ok = false;
                }
                Some("for") if name != "steps" => {
                    length = self.when(&arg.value, cx);
                    ok &= length.is_some();
                }
                Some("during") if name != "hold" => {
                    during = self.window(&arg.value, cx);
                    ok &= during.is_some();
                }
                Some(other) => {
                    let span = arg.name.as_ref().map_or(call.span, |n| n.span);
                    let d = Diagnostic::error("P0402", format!("`{name}` has no argument `{other}` here"), span, "unknown argument");
                    let known: &[&str] = match name {
                        "hold" => &["for"],
                        "steps" => &["during"],
                        _ => &["for", "during"],
                    };
                    let d = match nearest(other, known.iter().copied()) {
                        Some(w) => Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(w),
                        None => d.hint(format!("it takes: {}", known.join(", "))),
                    };
                    self.report(d);
                    ok = false;
                }
            }
        }
        let Some(first) = first else {
            let shape = match name {
                "hold" => "hold(x)".to_owned(),
                "steps" => "steps([a, b])".to_owned(),
                n => format!("{n}(a -> b)"),
            };
            let d = Diagnostic::error("P0403", format!("`{name}` needs a value"), call.span, "nothing given");
            self.report(d.hint(format!("write `{shape}`")));
            return None;
        };
        if name == "hold" {
            let value = self.level(first, cx, dim)?;
            return ok.then_some(Schedule::Hold { value, length });
        }
        if name == "steps" {
            let (list, lcx) = self.head(first, cx);
            let ExprKind::List(items) = &list.kind else {
                let v = self.eval(first, cx);
                self.mismatch(&v, "a list of values", first.span);
                return None;
            };
            let values = items.iter().map(|i| self.level(i, lcx, dim)).collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>()?;
            return ok.then_some(Schedule::Stairs { values, during });
        }
        let curve = match name {
            "linear" => Curve::Linear,
            "cubic" => Curve::Cubic,
            "exponential" => Curve::Exponential,
            _ => Curve::Cosine,
        };
        let (from, to) = self.arrow(first, cx, dim, name)?;
        if curve == Curve::Exponential && (from <= 0.0 || to <= 0.0) {
            self.error("P0306", "`exponential` needs two positive values", first.span, "never reaches zero");
            return None;
        }
        if let (Some(_), Some(_)) = (&length, &during) {
            self.error("P0404", "`for` and `during` say the same thing", call.span, "give one of them");
            return None;
        }
        ok.then_some(Schedule::Ramp { curve, from, to, during, length })
    }

    fn arrow(&mut self, e: &'a Expr, cx: Cx, dim: Dim, name: &str) -> Option<(f64, f64)> {
        let (h, hcx) = self.head(e, cx);
        let ExprKind::Binary(BinOp::Arrow, a, b) = &h.kind else {
            let d = Diagnostic::error("P0301", format!("`{name}` needs `a -> b`"), e.span, "from where to where?");
            self.report(d);
            return None;
        };
        let (a, b) = (self.level(a, hcx, dim), self.level(b, hcx, dim));
        Some((a?, b?))
    }

    /// A point or a length on the clock of a `train`.
    pub(super) fn when(&mut self, e: &'a Expr, cx: Cx) -> Option<When> {
        let v = self.eval(e, cx);
        match &v {
            Val::Percent(x) if (0.0..=100.0).contains(x) => Some(When::Share(share(*x).fraction())),
            Val::Quantity(x, Unit::Epochs) if *x >= 0.0 => Some(When::Epochs(*x)),
            Val::Quantity(x, Unit::Steps | Unit::Tokens) if *x < 0.0 || x.fract() != 0.0 => {
                self.error("P0307", format!("found {}, expected a whole number ≥ 0", describe(&v)), e.span, "not a whole number");
                None
            }
            Val::Quantity(x, Unit::Steps) => Some(When::Steps(*x as u64)),
            Val::Quantity(x, Unit::Tokens) => Some(When::Tokens(*x as u64)),
            Val::Percent(_) | Val::Quantity(_, Unit::Epochs) => {
                self.error("P0306", format!("found {}, outside the training", describe(&v)), e.span, "out of range");
                None
            }
            Val::Number(x) => {
                let d =
                    Diagnostic::error("P0302", format!("found the number {x}, expected steps, epochs or tokens"), e.span, "has no unit");
                self.report(d.hint(format!("write `{x} steps` or `{x} epochs`")));
                None
            }
            Val::Quantity(..) | Val::Points(_) => {
                self.error("P0303", format!("found {}, expected steps, epochs or tokens", describe(&v)), e.span, "wrong unit");
                None
            }
            _ => {
                self.mismatch(&v, "steps, epochs, tokens or a share of the training", e.span);
                None
            }
        }
    }

    /// `5%..70%`, `1 epochs..3 epochs`, or `70%` for 0%..70%.
    fn window(&mut self, e: &'a Expr, cx: Cx) -> Option<(When, When)> {
        let (h, hcx) = self.head(e, cx);
        match &h.kind {
            ExprKind::Binary(BinOp::Range | BinOp::RangeIn, a, b) => {
                let (from, to) = (self.when(a, hcx), self.when(b, hcx));
                let (from, to) = (from?, to?);
                let backwards = match (from, to) {
                    (When::Share(a), When::Share(b)) | (When::Epochs(a), When::Epochs(b)) => a > b,
                    (When::Steps(a), When::Steps(b)) | (When::Tokens(a), When::Tokens(b)) => a > b,
                    _ => {
                        self.error("P0303", "the ends of `during` have different units", e.span, "compare like with like");
                        return None;
                    }
                };
                if backwards {
                    self.error("P0306", "`during` ends before it begins", e.span, "turn it round");
                    return None;
                }
                Some((from, to))
            }
            _ => self.when(e, cx).map(|end| (When::Share(0.0), end)),
        }
    }

    /// How much a prune removes.
    pub(super) fn amount(&mut self, e: &'a Expr, cx: Cx) -> Option<Amount> {
        let (h, hcx) = self.head(e, cx);
        match &h.kind {
            ExprKind::Each(inner) => {
                let amount = self.amount(inner, hcx)?;
                match amount {
                    Amount::Share { share, .. } => Some(Amount::Share { share, each: true }),
                    Amount::OfRemaining { share, .. } => Some(Amount::OfRemaining { share, each: true }),
                    Amount::Scheduled { schedule, .. } => Some(Amount::Scheduled { schedule, each: true }),
                    _ => {
                        self.error("P0310", "`each` goes with a share", h.span, "this amount has one kind of unit already");
                        None
                    }
                }
            }
            ExprKind::Ratio(a, b) => {
                let d = Diagnostic::error("P0305", format!("`{a}:{b}` is no amount"), h.span, format!("write `{a} of {b}`"));
                self.report(d.hint(format!("`{a} of {b}` removes {a} of every {b} consecutive input weights")).fix(format!("{a} of {b}")));
                None
            }
            ExprKind::Binary(BinOp::Of, a, b) => self.amount_of(h, a, b, hcx),
            ExprKind::List(items) => {
                let list: Vec<Option<Amount>> = items.iter().map(|i| self.amount(i, hcx)).collect();
                let list = list.into_iter().collect::<Option<Vec<_>>>()?;
                if list.iter().any(|a| {
                    matches!(a, Amount::PerLayer(_) | Amount::AcrossLayers { .. } | Amount::Scheduled { .. } | Amount::OfParams(_))
                }) {
                    self.error("P0310", "a list of amounts holds one plain amount per layer", h.span, "not a plain amount");
                    return None;
                }
                Some(Amount::PerLayer(list))
            }
            ExprKind::Call(_, args) if args.iter().any(|a| a.name.as_ref().is_some_and(|n| n.name == "across")) => {
                self.across(h, args, hcx)
            }
            _ if self.is_schedule(h, hcx) => {
                let schedule = self.schedule(h, hcx, Dim::Percent)?;
                if !levels(&schedule).iter().all(|x| (0.0..=1.0).contains(x)) {
                    self.error("P0306", "a share to remove lies within 0%..=100%", e.span, "out of range");
                    return None;
                }
                Some(Amount::Scheduled { schedule, each: false })
            }
            // Says which schedules there are.
            ExprKind::Call(..) => self.schedule(h, hcx, Dim::Percent).and(None),
            _ => self.plain_amount(e, cx),
        }
    }

    fn plain_amount(&mut self, e: &'a Expr, cx: Cx) -> Option<Amount> {
        let v = self.eval(e, cx);
        match &v {
            Val::Percent(x) if (0.0..=100.0).contains(x) => Some(Amount::Share { share: share(*x), each: false }),
            Val::Percent(_) => {
                self.error("P0306", format!("found {}, outside 0%..=100%", describe(&v)), e.span, "out of range");
                None
            }
            Val::Number(x) => {
                let d = Diagnostic::error("P0305", format!("`{x}` is no amount: it has no unit"), e.span, "of what?");
                let percent = super::eval::print_number((x * 1e9).round() / 1e7);
                let d = if (0.0..=1.0).contains(x) {
                    d.hint(format!("write `{percent}%`")).fix(format!("{percent}%"))
                } else {
                    d.hint(format!("write `{x} heads`, or `{x}%`"))
                };
                self.report(d);
                None
            }
            Val::Quantity(x, unit @ (Unit::Heads | Unit::Groups | Unit::Neurons | Unit::Layers | Unit::Experts | Unit::Channels)) => {
                if *x < 0.0 || x.fract() != 0.0 {
                    self.error("P0307", format!("found {}, expected a whole number ≥ 0", describe(&v)), e.span, "not a whole number");
                    return None;
                }
                Some(Amount::Units { n: *x as u64, unit: *unit })
            }
            Val::Quantity(..) | Val::Points(_) => {
                let d = Diagnostic::error("P0303", format!("found {}, expected an amount of units", describe(&v)), e.span, "wrong unit");
                self.report(d.hint("amounts are a percent, `12 heads`, `2 of 4`, `20% of remaining`, `50% of params`"));
                None
            }
            _ => {
                self.mismatch(&v, "an amount such as `40%`, `12 heads` or `2 of 4`", e.span);
                None
            }
        }
    }

    fn amount_of(&mut self, e: &'a Expr, a: &'a Expr, b: &'a Expr, cx: Cx) -> Option<Amount> {
        let left = self.eval(a, cx);
        if let ExprKind::Name(word) = &b.kind {
            let part = match (&left, word.as_str()) {
                (Val::Percent(x), "remaining" | "params") if (0.0..=100.0).contains(x) => share(*x),
                (Val::Percent(_), "remaining" | "params") => {
                    self.error("P0306", format!("found {}, outside 0%..=100%", describe(&left)), a.span, "out of range");
                    return None;
                }
                (Val::Number(x), "remaining" | "params") => {
                    self.needs_percent(*x, a.span);
                    return None;
                }
                (_, "remaining" | "params") => {
                    self.mismatch(&left, "a percent", a.span);
                    return None;
                }
                (Val::Percent(_), _) => {
                    let d = Diagnostic::error("P0310", format!("found `{word}`, expected `remaining` or `params`"), b.span, "of what?");
                    let d = match nearest(word, ["remaining", "params"]) {
                        Some(w) => Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(w),
                        None => d,
                    };
                    self.report(d);
                    return None;
                }
                _ => return self.n_of_m(e, &left, b, cx),
            };
            return Some(if word == "remaining" { Amount::OfRemaining { share: part, each: false } } else { Amount::OfParams(part) });
        }
        self.n_of_m(e, &left, b, cx)
    }

    fn n_of_m(&mut self, e: &'a Expr, left: &Val<'a>, b: &'a Expr, cx: Cx) -> Option<Amount> {
        let right = self.eval(b, cx);
        match (left, &right) {
            (Val::Number(n), Val::Number(m)) if n.fract() == 0.0 && m.fract() == 0.0 && *n >= 1.0 && n < m && *m <= 1024.0 => {
                Some(Amount::NofM { removed: *n as u32, group: *m as u32 })
            }
            (Val::Number(n), Val::Number(m)) => {
                self.error("P0306", format!("`{n} of {m}` removes {n} of every {m} weights"), e.span, "needs 1 ≤ n < m ≤ 1024, whole");
                None
            }
            (Val::Poison, _) | (_, Val::Poison) => None,
            _ => {
                self.error("P0310", format!("`of` joins {} and {}", describe(left), describe(&right)), e.span, "not an amount");
                None
            }
        }
    }

    fn across(&mut self, call: &'a Expr, args: &'a [Arg], cx: Cx) -> Option<Amount> {
        let ExprKind::Call(callee, _) = &call.kind else { return None };
        if !matches!(&callee.kind, ExprKind::Name(n) if n == "linear") {
            self.error("P0402", "only `linear` runs across layers", callee.span, "write `linear`");
            return None;
        }
        let mut out = None;
        for arg in args {
            match arg.name.as_ref().map(|n| n.name.as_str()) {
                None => out = self.arrow(&arg.value, cx, Dim::Percent, "linear"),
                Some("across") if matches!(&arg.value.kind, ExprKind::Name(n) if n == "layers") => {}
                Some("across") => {
                    self.error("P0406", "`across` takes `layers`", arg.value.span, "expected `layers`");
                    return None;
                }
                Some(other) => {
                    let message = format!("`linear` has no argument `{other}` beside `across`");
                    self.error("P0402", message, arg.name.as_ref().map_or(call.span, |n| n.span), "unknown argument");
                    return None;
                }
            }
        }
        let (from, to) = out?;
        if !(0.0..=1.0).contains(&from) || !(0.0..=1.0).contains(&to) {
            self.error("P0306", "a share to remove lies within 0%..=100%", call.span, "out of range");
            return None;
        }
        Some(Amount::AcrossLayers { from: crate::plan::Share::from_fraction(from), to: crate::plan::Share::from_fraction(to) })
    }

    /// `to …`: what may stay.
    pub(super) fn bound(&mut self, e: &'a Expr, cx: Cx) -> Option<Bound> {
        let (h, hcx) = self.head(e, cx);
        match &h.kind {
            ExprKind::Record(entries) => self.shape(entries, hcx).map(Bound::Shape),
            ExprKind::Binary(op, ..) if *op == BinOp::And || op.compares() => {
                let mut limits = Vec::new();
                self.limits(h, hcx, &mut limits).then_some(Bound::Limits(limits))
            }
            _ => {
                let d = Diagnostic::error("P0311", "`to` takes what may stay: limits or a shape", e.span, "not a bound");
                self.report(d.hint("`to params <= 1.1B`, `to { layers = 24 }`; what is removed stands behind `by`"));
                None
            }
        }
    }

    fn limits(&mut self, e: &'a Expr, cx: Cx, out: &mut Vec<Limit>) -> bool {
        let (h, cx) = self.head(e, cx);
        match &h.kind {
            ExprKind::Binary(BinOp::And, a, b) => {
                let a = self.limits(a, cx, out);
                self.limits(b, cx, out) && a
            }
            ExprKind::Binary(BinOp::Le, a, b) => {
                let metric = match &a.kind {
                    // `params` alone is `params()`.
                    ExprKind::Name(n) if self.spec(Kind::Metric, n).is_some() && self.lookup(n, cx.scope).is_none() => {
                        self.spec(Kind::Metric, n).and_then(|s| {
                            let args = self.args(s.name, s.params, &[], cx, a.span)?;
                            Some(crate::plan::Method { name: s.name.to_owned(), args, span: a.span })
                        })
                    }
                    _ => self.method(Kind::Metric, a, cx),
                };
                let value = self.limit_value(b, cx);
                match (metric, value) {
                    (Some(metric), Some(value)) => {
                        out.push(Limit { metric, value });
                        true
                    }
                    _ => false,
                }
            }
            ExprKind::Binary(op, ..) if op.compares() => {
                self.error("P0311", format!("a limit is written with `<=`, found `{}`", op.text()), h.span, "write `metric <= limit`");
                false
            }
            _ => {
                self.error("P0311", "a limit is written `metric <= limit`", h.span, "not a limit");
                false
            }
        }
    }

    fn limit_value(&mut self, e: &'a Expr, cx: Cx) -> Option<LimitValue> {
        let (h, hcx) = self.head(e, cx);
        if let ExprKind::Binary(BinOp::Of, a, b) = &h.kind {
            let v = self.eval(a, hcx);
            return match (&v, &b.kind) {
                (Val::Percent(x), ExprKind::Name(n)) if n == "dense" && *x > 0.0 => Some(LimitValue::OfDense(share(*x))),
                (Val::Poison, _) => None,
                _ => {
                    self.error("P0311", "a relative limit is written `60% of dense`", h.span, "not a share of the dense model");
                    None
                }
            };
        }
        let v = self.eval(e, cx);
        match &v {
            Val::Number(x) | Val::Quantity(x, _) if *x > 0.0 => Some(LimitValue::Absolute(*x)),
            Val::Number(_) | Val::Quantity(..) => {
                self.error("P0306", "a limit is positive", e.span, "out of range");
                None
            }
            Val::Percent(x) => {
                let d = Diagnostic::error("P0302", format!("found {x}%, expected `{x}% of dense`"), e.span, "of what?");
                self.report(d.fix(format!("{x}% of dense")));
                None
            }
            _ => {
                self.mismatch(&v, "a limit such as `1.1B`, `6 GiB` or `70% of dense`", e.span);
                None
            }
        }
    }

    fn shape(&mut self, entries: &'a [Entry], cx: Cx) -> Option<Vec<(SiteKind, u64)>> {
        const KINDS: &[(&str, SiteKind)] = &[
            ("layers", SiteKind::Layers),
            ("hidden", SiteKind::Hidden),
            ("neurons", SiteKind::Neurons),
            ("heads", SiteKind::Heads),
            ("kv_groups", SiteKind::KvGroups),
            ("experts", SiteKind::Experts),
        ];
        let (mut out, mut ok) = (Vec::new(), true);
        for entry in entries {
            let Entry::Field(name, value) = entry else {
                ok = false;
                continue;
            };
            let Some((_, kind)) = KINDS.iter().find(|(n, _)| *n == name.name) else {
                let d = Diagnostic::error("P0408", format!("a shape has no `{}`", name.name), name.span, "unknown field");
                let names = KINDS.iter().map(|(n, _)| *n);
                let d = match nearest(&name.name, names.clone()) {
                    Some(w) => Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(w),
                    None => d.hint(format!("it may give: {}", names.collect::<Vec<_>>().join(", "))),
                };
                self.report(d);
                ok = false;
                continue;
            };
            let v = self.eval(value, cx);
            match v {
                Val::Number(x)
                | Val::Quantity(
                    x,
                    Unit::Count | Unit::Layers | Unit::Neurons | Unit::Heads | Unit::Groups | Unit::Experts | Unit::Channels,
                ) if x >= 1.0 && x.fract() == 0.0 => {
                    out.push((*kind, x as u64));
                }
                Val::Number(_) => {
                    self.error("P0307", "a shape is given in whole numbers ≥ 1", value.span, "not a whole number");
                    ok = false;
                }
                v => {
                    self.mismatch(&v, "a whole number", value.span);
                    ok = false;
                }
            }
        }
        (ok && !out.is_empty()).then_some(out)
    }
}

/// Every value that a schedule names.
pub(super) fn levels(s: &Schedule) -> Vec<f64> {
    match s {
        Schedule::Hold { value, .. } => vec![*value],
        Schedule::Ramp { from, to, .. } => vec![*from, *to],
        Schedule::Stairs { values, .. } => values.clone(),
        Schedule::Then(parts) => parts.iter().flat_map(levels).collect(),
    }
}
