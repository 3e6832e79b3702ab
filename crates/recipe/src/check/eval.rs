//! Static values: numbers with their units, strings, and following names to what they stand for.

use crate::ast::{BinOp, Entry, Expr, ExprKind, Piece, Seg, UnOp};
use crate::diagnostic::Diagnostic;
use crate::plan::{Share, Span, Unit, Value};
use crate::syntax_error::nearest;

use super::{Binding, Checker, Cx};

/// A value as far as it can be known without a type.
#[derive(Debug, Clone)]
pub(super) enum Val<'a> {
    Bool(bool),
    Number(f64),
    /// In percent.
    Percent(f64),
    /// In percentage points.
    Points(f64),
    Quantity(f64, Unit),
    Text(String),
    Path(std::path::PathBuf),
    /// A name that nothing in sight has.
    Word(&'a str, Span, usize),
    /// A call, a selector, a record, a list, …: looked at where a type is known.
    Other(&'a Expr),
    /// Already reported.
    Poison,
}

/// A unit's meaning: the unit, and the factor to it. Percentage points are told apart by `None`.
fn unit(name: &str) -> Option<(Option<Unit>, f64)> {
    const KIB: f64 = 1024.0;
    Some(match name {
        "pp" => (None, 1.0),
        "token" | "tokens" => (Some(Unit::Tokens), 1.0),
        "step" | "steps" => (Some(Unit::Steps), 1.0),
        "epoch" | "epochs" => (Some(Unit::Epochs), 1.0),
        "head" | "heads" => (Some(Unit::Heads), 1.0),
        "group" | "groups" => (Some(Unit::Groups), 1.0),
        "neuron" | "neurons" => (Some(Unit::Neurons), 1.0),
        "layer" | "layers" => (Some(Unit::Layers), 1.0),
        "expert" | "experts" => (Some(Unit::Experts), 1.0),
        "channel" | "channels" => (Some(Unit::Channels), 1.0),
        "byte" | "bytes" => (Some(Unit::Bytes), 1.0),
        "KiB" => (Some(Unit::Bytes), KIB),
        "MiB" => (Some(Unit::Bytes), KIB * KIB),
        "GiB" => (Some(Unit::Bytes), KIB * KIB * KIB),
        "K" => (Some(Unit::Count), 1e3),
        "M" => (Some(Unit::Count), 1e6),
        "B" => (Some(Unit::Count), 1e9),
        "ms" => (Some(Unit::Milliseconds), 1.0),
        "s" => (Some(Unit::Milliseconds), 1e3),
        "min" => (Some(Unit::Milliseconds), 6e4),
        "h" => (Some(Unit::Milliseconds), 3.6e6),
        _ => return None,
    })
}

/// Every unit, as messages list them.
pub(super) const UNITS: &[&str] = &[
    "pp", "tokens", "steps", "epochs", "heads", "groups", "neurons", "layers", "experts", "channels", "bytes", "KiB", "MiB", "GiB", "K",
    "M", "B", "ms", "s", "min", "h",
];

/// What a unit counts, as messages say it.
pub(super) fn unit_name(u: Unit) -> &'static str {
    match u {
        Unit::Tokens => "tokens",
        Unit::Steps => "steps",
        Unit::Epochs => "epochs",
        Unit::Heads => "heads",
        Unit::Groups => "groups",
        Unit::Neurons => "neurons",
        Unit::Layers => "layers",
        Unit::Experts => "experts",
        Unit::Channels => "channels",
        Unit::Bytes => "bytes",
        Unit::Milliseconds => "a time",
        Unit::Count => "a count",
    }
}

/// Names that the language gives a meaning in some place, without a definition.
const RESERVED_WORDS: &[&str] = &["scores", "remaining", "params", "dense", "layers"];

impl<'a> Checker<'a> {
    /// Follows names, modules and record fields until something else stands there.
    pub(super) fn head(&mut self, mut e: &'a Expr, mut cx: Cx) -> (&'a Expr, Cx) {
        loop {
            if !self.spend(e.span) {
                return (e, cx);
            }
            match &e.kind {
                ExprKind::Name(n) => match self.lookup(n, cx.scope) {
                    Some(Binding::Expr(to, at)) => (e, cx) = (to, at),
                    _ => return (e, cx),
                },
                ExprKind::Path(base, Seg::Member(m)) => {
                    let (b, bcx) = self.head(base, cx);
                    match &b.kind {
                        ExprKind::Name(n) => {
                            let Some(Binding::Module(scope)) = self.lookup(n, bcx.scope) else { return (e, cx) };
                            match self.module_member(scope, &m.name) {
                                Some(Binding::Expr(to, at)) => (e, cx) = (to, at),
                                _ => return (e, cx),
                            }
                        }
                        ExprKind::Record(entries) => match self.record_field(entries, bcx, &m.name) {
                            Some((to, at)) => (e, cx) = (to, at),
                            None => return (e, cx),
                        },
                        _ => return (e, cx),
                    }
                }
                _ => return (e, cx),
            }
        }
    }

    pub(super) fn module_member(&mut self, scope: usize, name: &str) -> Option<Binding<'a>> {
        let n = self.scopes.get_mut(scope)?.names.get_mut(name)?;
        n.used = true;
        Some(n.binding.clone())
    }

    fn record_field(&mut self, entries: &'a [Entry], cx: Cx, name: &str) -> Option<(&'a Expr, Cx)> {
        for entry in entries.iter().rev() {
            match entry {
                Entry::Field(n, e) if n.name == name => return Some((e, cx)),
                Entry::Spread(s) => {
                    let (s, scx) = self.head(s, cx);
                    if let ExprKind::Record(inner) = &s.kind
                        && let Some(found) = self.record_field(inner, scx, name)
                    {
                        return Some(found);
                    }
                }
                _ => {}
            }
        }
        None
    }

    fn value_to_val(value: Value) -> Val<'a> {
        match value {
            Value::Bool(b) => Val::Bool(b),
            Value::Number(x) => Val::Number(x),
            Value::Percent(s) => Val::Percent(s.fraction() * 100.0),
            Value::Points(x) => Val::Points(x),
            Value::Quantity(x, u) => Val::Quantity(x, u),
            Value::Text(s) => Val::Text(s),
            Value::Path(p) => Val::Path(p),
            _ => Val::Poison,
        }
    }

    /// The value of an expression, as far as it has one without a type.
    pub(super) fn eval(&mut self, e: &'a Expr, cx: Cx) -> Val<'a> {
        let (e, cx) = self.head(e, cx);
        if self.exhausted() {
            return Val::Poison;
        }
        match &e.kind {
            ExprKind::Bool(b) => Val::Bool(*b),
            ExprKind::Number(x) => Val::Number(*x),
            ExprKind::Percent(x) => Val::Percent(*x),
            ExprKind::Quantity(x, u) => match unit(&u.name) {
                Some((Some(unit), factor)) => Val::Quantity(x * factor, unit),
                Some((None, _)) => Val::Points(*x),
                None => {
                    let d = Diagnostic::error("P0304", format!("unknown unit `{}`", u.name), u.span, "not a unit");
                    let d = match nearest(&u.name, UNITS.iter().copied()) {
                        Some(w) => Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(w),
                        None => d.hint(format!("units are: %, {}", UNITS.join(", "))),
                    };
                    self.report(d);
                    Val::Poison
                }
            },
            ExprKind::Str(pieces) => self.string(pieces, cx).map_or(Val::Poison, Val::Text),
            ExprKind::Name(n) => match self.lookup(n, cx.scope) {
                Some(Binding::Value(v)) => Self::value_to_val(v),
                Some(Binding::Poison) => Val::Poison,
                Some(Binding::Foreign) => {
                    let d =
                        Diagnostic::error("P0603", format!("`{n}` belongs to a recipe that is only `use`d"), e.span, "not available here");
                    self.report(d.hint("of another recipe only its `let`s and `param`s can be used: declare the model or the data here"));
                    Val::Poison
                }
                Some(_) => Val::Other(e),
                None => Val::Word(n, e.span, cx.scope),
            },
            ExprKind::Path(base, Seg::Member(m)) => {
                let (b, bcx) = self.head(base, cx);
                let ExprKind::Name(n) = &b.kind else { return Val::Other(e) };
                let scope = match self.lookup(n, bcx.scope) {
                    Some(Binding::Module(scope)) => scope,
                    Some(Binding::Poison) => return Val::Poison,
                    _ => return Val::Other(e),
                };
                match self.module_member(scope, &m.name) {
                    Some(Binding::Value(v)) => Self::value_to_val(v),
                    Some(Binding::Poison) => Val::Poison,
                    Some(_) => {
                        let d = Diagnostic::error(
                            "P0603",
                            format!("`{n}.{}` belongs to a recipe that is only `use`d", m.name),
                            m.span,
                            "not available here",
                        );
                        self.report(
                            d.hint("of another recipe only its `let`s and `param`s can be used: declare the model or the data here"),
                        );
                        Val::Poison
                    }
                    None => {
                        let names: Vec<String> = self.scopes.get(scope).map(|s| s.names.keys().cloned().collect()).unwrap_or_default();
                        let d = Diagnostic::error("P0104", format!("`{n}` has no `{}`", m.name), m.span, "not defined there");
                        let d = match nearest(&m.name, names.iter().map(String::as_str)) {
                            Some(w) => Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(w),
                            None => d.hint(format!("it defines: {}", names.join(", "))),
                        };
                        self.report(d);
                        Val::Poison
                    }
                }
            }
            ExprKind::Unary(UnOp::Neg, inner) => match self.eval(inner, cx) {
                Val::Number(x) => Val::Number(-x),
                Val::Percent(x) => Val::Percent(-x),
                Val::Points(x) => Val::Points(-x),
                Val::Quantity(x, u) => Val::Quantity(-x, u),
                Val::Poison => Val::Poison,
                _ => Val::Other(e),
            },
            ExprKind::Unary(UnOp::Not, inner) => match self.eval(inner, cx) {
                Val::Bool(b) => Val::Bool(!b),
                Val::Poison => Val::Poison,
                _ => Val::Other(e),
            },
            ExprKind::Binary(op @ (BinOp::Add | BinOp::Sub | BinOp::Mul | BinOp::Div), a, b) => self.arithmetic(e, *op, a, b, cx),
            _ => Val::Other(e),
        }
    }

    fn arithmetic(&mut self, e: &'a Expr, op: BinOp, a: &'a Expr, b: &'a Expr, cx: Cx) -> Val<'a> {
        use Val::{Number, Percent, Points, Poison, Quantity};
        let (left, right) = (self.eval(a, cx), self.eval(b, cx));
        let apply = |x: f64, y: f64| match op {
            BinOp::Add => x + y,
            BinOp::Sub => x - y,
            BinOp::Mul => x * y,
            _ => x / y,
        };
        let plus = matches!(op, BinOp::Add | BinOp::Sub);
        let out = match (&left, &right) {
            (Poison, _) | (_, Poison) => return Poison,
            (Val::Other(..) | Val::Word(..), _) | (_, Val::Other(..) | Val::Word(..)) => return Val::Other(e),
            (Number(x), Number(y)) => Some(Number(apply(*x, *y))),
            (Percent(x), Percent(y)) if plus => Some(Percent(apply(*x, *y))),
            (Percent(x), Points(y)) if plus => Some(Percent(apply(*x, *y))),
            (Points(x), Points(y)) if plus => Some(Points(apply(*x, *y))),
            (Quantity(x, u), Quantity(y, v)) if plus && u == v => Some(Quantity(apply(*x, *y), *u)),
            (Quantity(x, u), Quantity(y, v)) if op == BinOp::Div && u == v => Some(Number(x / y)),
            (Percent(x), Percent(y)) if op == BinOp::Div => Some(Number(x / y)),
            (Percent(x), Percent(y)) if op == BinOp::Mul => Some(Percent(x * y / 100.0)),
            (Percent(x), Number(y)) if !plus => Some(Percent(apply(*x, *y))),
            (Number(x), Percent(y)) if op == BinOp::Mul => Some(Percent(x * y)),
            (Points(x), Number(y)) if !plus => Some(Points(apply(*x, *y))),
            (Number(x), Points(y)) if op == BinOp::Mul => Some(Points(x * y)),
            (Quantity(x, u), Number(y)) if !plus => Some(Quantity(apply(*x, *y), *u)),
            (Number(x), Quantity(y, u)) if op == BinOp::Mul => Some(Quantity(x * y, *u)),
            (Quantity(x, u), Percent(y)) if op == BinOp::Mul => Some(Quantity(x * y / 100.0, *u)),
            (Percent(x), Quantity(y, u)) if op == BinOp::Mul => Some(Quantity(x * y / 100.0, *u)),
            _ => None,
        };
        let finite = |v: &Val| match v {
            Number(x) | Percent(x) | Points(x) | Quantity(x, _) => x.is_finite(),
            _ => true,
        };
        match out {
            Some(v) if finite(&v) => v,
            Some(_) => {
                self.error("P0308", "the result is not a number", e.span, if op == BinOp::Div { "divides by zero" } else { "too large" });
                Poison
            }
            None => {
                let message = format!("`{}` can't join {} and {}", op.text(), describe(&left), describe(&right));
                self.error("P0308", message, e.span, "units do not go together");
                Poison
            }
        }
    }

    /// A string with its values put in. A percent is written as `40`, whole numbers without a point.
    pub(super) fn string(&mut self, pieces: &'a [Piece], cx: Cx) -> Option<String> {
        self.string_in(pieces, cx, false)
    }

    /// Like [`Self::string`]; `labels` writes a percent as `40%` and a method in full, for people rather than for paths.
    pub(super) fn string_in(&mut self, pieces: &'a [Piece], cx: Cx, labels: bool) -> Option<String> {
        let mut out = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(t) => out.push_str(t),
                Piece::Interp(names, span) => out.push_str(&self.interpolate(names, *span, cx, labels)?),
            }
            // Work grows with the text, so that strings can't double for ever.
            self.work += out.len() / 64;
            if !self.spend(Span::default()) {
                return None;
            }
        }
        Some(out)
    }

    fn interpolate(&mut self, names: &'a [String], span: Span, cx: Cx, labels: bool) -> Option<String> {
        let first = names.first()?;
        let mut binding = self.lookup(first, cx.scope);
        if let (Some(Binding::Module(scope)), Some(member)) = (&binding, names.get(1)) {
            binding = self.module_member(*scope, member);
        } else if names.len() > 1 {
            binding = None;
        }
        let shown = names.join(".");
        let val = match binding {
            None if shown == "name" => return Some(self.name.clone()),
            None => {
                let all = self.names_in_sight(cx.scope, |_| true);
                let d = Diagnostic::error("P0103", format!("unknown name `{shown}` in a string"), span, "nothing to put in");
                let d = match nearest(&shown, all.iter().map(String::as_str).chain(["name"])) {
                    Some(w) => Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(format!("{{{w}}}")),
                    None => d.hint("write `\\{` for a brace"),
                };
                self.report(d);
                return None;
            }
            Some(Binding::Value(v)) => Self::value_to_val(v),
            Some(Binding::Expr(e, at)) => match self.eval(e, at) {
                Val::Other(e) if labels => return Some(self.label(e)),
                Val::Other(e) => return Some(self.short_label(e)),
                v => v,
            },
            Some(Binding::Poison) => return None,
            Some(_) => {
                let d = Diagnostic::error("P0103", format!("`{shown}` has no text"), span, "not a static value");
                self.report(d.hint("only `param`s, `let`s and the variables of `repeat` and `sweep` can stand in a string"));
                return None;
            }
        };
        match print_val(&val) {
            Some(text) if matches!(val, Val::Percent(_)) && labels => Some(format!("{text}%")),
            Some(text) => Some(text),
            None => match val {
                Val::Poison => None,
                Val::Word(w, ..) => Some(w.to_owned()),
                _ => None,
            },
        }
    }

    /// An expression as it was written, on one line.
    pub(super) fn label(&self, e: &Expr) -> String {
        self.sources.slice(e.span).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// A label that can be a part of a file name: a method's name without its arguments, no blanks, no `%`.
    pub(super) fn short_label(&self, e: &Expr) -> String {
        let text = match &e.kind {
            ExprKind::Call(callee, _) => self.label(callee),
            _ => self.label(e),
        };
        let safe: String =
            text.chars().filter(|c| *c != '%').map(|c| if c.is_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' }).collect();
        safe.trim_matches('-').to_owned()
    }

    /// Reports that a value is not what its place needs.
    pub(super) fn mismatch(&mut self, found: &Val<'a>, expected: &str, span: Span) {
        match found {
            Val::Poison => {}
            Val::Word(w, at, scope) => {
                if RESERVED_WORDS.contains(w) {
                    let message = format!("found the word `{w}`, expected {expected}");
                    self.error("P0301", message, *at, format!("expected {expected}"));
                } else {
                    self.unknown_name(w, *at, *scope, &format!("expected {expected}"));
                }
            }
            v => {
                let message = format!("found {}, expected {expected}", describe(v));
                self.error("P0301", message, span, format!("expected {expected}"));
            }
        }
    }
}

/// A number as a recipe writes it: no point where there is nothing behind it.
pub(super) fn print_number(x: f64) -> String {
    format!("{x}")
}

fn print_val(v: &Val) -> Option<String> {
    Some(match v {
        Val::Bool(b) => b.to_string(),
        // Nine decimals are what a share holds: 0.1 + 0.2 prints as 0.3.
        Val::Percent(x) => print_number((x * 1e7).round() / 1e7),
        Val::Number(x) | Val::Points(x) | Val::Quantity(x, _) => print_number(*x),
        Val::Text(s) => s.clone(),
        Val::Path(p) => p.display().to_string(),
        Val::Word(..) | Val::Other(..) | Val::Poison => return None,
    })
}

/// A value in words, for "found …".
pub(super) fn describe(v: &Val) -> String {
    match v {
        Val::Bool(b) => format!("`{b}`"),
        Val::Number(x) => format!("the number {}", print_number(*x)),
        Val::Percent(x) => format!("{}%", print_number(*x)),
        Val::Points(x) => format!("{} pp", print_number(*x)),
        Val::Quantity(x, Unit::Milliseconds) => format!("{} ms", print_number(*x)),
        Val::Quantity(x, Unit::Count) => format!("the count {}", print_number(*x)),
        Val::Quantity(x, u) => format!("{} {}", print_number(*x), unit_name(*u)),
        Val::Text(s) => format!("the string \"{s}\""),
        Val::Path(p) => format!("the path {}", p.display()),
        Val::Word(w, ..) => format!("the word `{w}`"),
        Val::Other(e) => describe_expr(e).to_owned(),
        Val::Poison => "nothing".to_owned(),
    }
}

fn describe_expr(e: &Expr) -> &'static str {
    match &e.kind {
        ExprKind::Call(..) => "a call",
        ExprKind::List(_) => "a list",
        ExprKind::Record(_) => "a record",
        ExprKind::Path(..) => "a selection",
        ExprKind::Name(_) => "a name of another sort",
        ExprKind::Ratio(..) => "a ratio",
        ExprKind::Binary(op, ..) => match op {
            BinOp::Then => "a schedule",
            BinOp::Of => "an amount",
            BinOp::Arrow => "a `->`",
            BinOp::Range | BinOp::RangeIn => "a range",
            BinOp::Union | BinOp::Except => "a selector",
            _ => "an expression that only a run can evaluate",
        },
        _ => "an expression",
    }
}

/// Percent to share, exact in decimal.
pub(super) fn share(percent: f64) -> Share {
    Share((percent * 1e7).round() as i64)
}
