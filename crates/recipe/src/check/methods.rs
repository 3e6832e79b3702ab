//! Calls of catalogue rows: their name, their arguments, each with its type and range.

use std::collections::HashMap;

use crate::ast::{Arg, Expr, ExprKind, Seg};
use crate::catalogue::{Args, Catalogue, Kind, Param, Spec, Ty};
use crate::diagnostic::Diagnostic;
use crate::lower::parse_expr;
use crate::plan::{Method, Schedule, Span, Unit, Value};
use crate::syntax_error::nearest;

use super::amount::Dim;
use super::eval::{Val, describe, share};
use super::{Binding, Checker, Cx, options};

/// How a kind of row is called in messages.
pub(super) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Criterion => "criterion",
        Kind::Metric => "metric",
        Kind::Loss => "loss",
        Kind::Optimizer => "optimizer",
        Kind::Adapter => "adapter",
        Kind::Quantizer => "quantizer",
        Kind::Schedule => "schedule",
        Kind::Rule => "rule",
    }
}

/// Every default of the catalogue and of the statements' options, parsed once. A default that does not parse is `None`.
pub(super) fn parse_defaults(catalogue: &Catalogue) -> HashMap<&'static str, Option<Expr>> {
    let rows = catalogue.iter().flat_map(|s| s.params);
    let tables = options::OPTION_TABLES.iter().flat_map(|(_, params)| params.iter());
    rows.chain(tables).filter_map(|p| p.default).map(|d| (d, parse_expr(d, Span::default()))).collect()
}

/// What a type is called in messages.
pub(crate) fn ty_name(ty: &Ty) -> String {
    match ty {
        Ty::Bool => "true or false".into(),
        Ty::Count => "a whole number".into(),
        Ty::Float => "a number without a unit".into(),
        Ty::Percent => "a percent such as 40%".into(),
        Ty::Tokens => "a number of tokens".into(),
        Ty::Steps => "a number of steps".into(),
        Ty::Text => "a string".into(),
        Ty::Column => "a column's name in quotes, or its number from 0".into(),
        Ty::Path => "a path in quotes".into(),
        Ty::OneOf(words) => words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(" or "),
        Ty::Data => "data".into(),
        Ty::Model => "a model".into(),
        Ty::Snapshot => "a snapshot".into(),
        Ty::Selector => "a selector".into(),
        Ty::Adapter => "an adapter".into(),
        Ty::Scheduled => "a number or a schedule".into(),
        Ty::ScheduledPercent => "a percent or a schedule of percents".into(),
        Ty::Metric => "the name of an `eval`".into(),
        Ty::List(of) => format!("a list, each entry {}", ty_name(of)),
    }
}

impl<'a> Checker<'a> {
    /// A call of a row of one kind.
    pub(super) fn method(&mut self, kind: Kind, e: &'a Expr, cx: Cx) -> Option<Method> {
        let place = e.span;
        let (e, cx) = self.head(e, cx);
        let (name, name_span, args): (&str, Span, &'a [Arg]) = match &e.kind {
            ExprKind::Call(callee, args) => match &callee.kind {
                ExprKind::Name(n) => (n, callee.span, args),
                _ => {
                    self.error(
                        "P0301",
                        format!("expected a {}, found a call of something else", kind_name(kind)),
                        callee.span,
                        "not a method",
                    );
                    return None;
                }
            },
            ExprKind::Name(n) => match self.lookup(n, cx.scope) {
                Some(Binding::Poison) => return None,
                None if self.catalogue.get(kind, n).is_some() => {
                    let d = Diagnostic::error("P0407", format!("the {} `{n}` is called with `()`", kind_name(kind)), e.span, "add `()`");
                    self.report(d.fix(format!("{n}()")));
                    return None;
                }
                None => (n, e.span, &[]),
                Some(_) => {
                    self.error("P0301", format!("`{n}` is no {}", kind_name(kind)), e.span, format!("expected a {}", kind_name(kind)));
                    return None;
                }
            },
            _ => {
                let v = self.eval(e, cx);
                self.mismatch(&v, &format!("a {} such as `name()`", kind_name(kind)), place);
                return None;
            }
        };
        let Some(spec) = self.catalogue.get(kind, name) else {
            self.unknown_method(kind, name, name_span);
            // The arguments still deserve a look at their names.
            return None;
        };
        // Defaults stand where the call stands.
        let args = self.args(spec.name, spec.params, args, cx, e.span)?;
        Some(Method { name: spec.name.to_owned(), args, span: e.span })
    }

    fn unknown_method(&mut self, kind: Kind, name: &str, span: Span) {
        let names: Vec<&str> = self.catalogue.of(kind).map(|s| s.name).collect();
        let d = Diagnostic::error("P0401", format!("unknown {} `{name}`", kind_name(kind)), span, "not in the catalogue");
        let other = self.catalogue.iter().find(|s| s.name == name).map(|s| kind_name(s.kind));
        let d = match (nearest(name, names.iter().copied()), other) {
            (_, Some(other)) => d.hint(format!("`{name}` is a {other}, not a {}", kind_name(kind))),
            (Some(w), _) => Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(w),
            _ => d.hint(format!("known: {}", names.join(", "))),
        };
        self.report(d);
    }

    /// The spec behind a checked method.
    pub(super) fn spec(&self, kind: Kind, name: &str) -> Option<&'static Spec> {
        self.catalogue.get(kind, name)
    }

    /// Arguments against parameters: positional ones first, in order.
    pub(super) fn args(&mut self, of: &str, params: &'static [Param], args: &'a [Arg], cx: Cx, call: Span) -> Option<Args> {
        let mut given: Vec<(&'static Param, &'a Expr)> = Vec::new();
        let mut ok = true;
        for (i, arg) in args.iter().enumerate() {
            let param = match &arg.name {
                Some(n) => match params.iter().find(|p| p.name == n.name) {
                    Some(p) => p,
                    None => {
                        let names: Vec<&str> = params.iter().map(|p| p.name).collect();
                        let d = Diagnostic::error("P0402", format!("`{of}` has no argument `{}`", n.name), n.span, "unknown argument");
                        let d = match nearest(&n.name, names.iter().copied()) {
                            Some(w) => Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(w),
                            None if names.is_empty() => d.hint(format!("`{of}` takes no arguments")),
                            None => d.hint(format!("it takes: {}", names.join(", "))),
                        };
                        self.report(d);
                        ok = false;
                        continue;
                    }
                },
                None => match params.get(i) {
                    Some(p) => p,
                    None => {
                        let takes = match params.len() {
                            0 => "no arguments".to_owned(),
                            1 => "one argument".to_owned(),
                            n => format!("{n} arguments"),
                        };
                        self.error("P0405", format!("`{of}` takes {takes}"), arg.value.span, "one too many");
                        ok = false;
                        continue;
                    }
                },
            };
            if given.iter().any(|(p, _)| p.name == param.name) {
                self.error("P0404", format!("`{}` is given twice", param.name), arg.value.span, "second value");
                ok = false;
                continue;
            }
            given.push((param, &arg.value));
        }
        let mut out = Args::default();
        for param in params {
            let value = match given.iter().find(|(p, _)| p.name == param.name) {
                Some((_, e)) => self.coerce(param, e, cx),
                None => match self.default(param) {
                    Some(v) => Some(v),
                    None if param.optional => continue,
                    None => {
                        let d = Diagnostic::error(
                            "P0403",
                            format!("`{of}` needs `{}`: {}", param.name, ty_name(&param.ty)),
                            call,
                            format!("`{}` is missing", param.name),
                        );
                        self.report(d.hint(param.doc));
                        None
                    }
                },
            };
            match value {
                Some(v) => {
                    out.0.insert(param.name.to_owned(), v);
                }
                None => ok = false,
            }
        }
        ok.then_some(out)
    }

    /// A parameter's default, checked like a written value.
    pub(super) fn default(&mut self, param: &'static Param) -> Option<Value> {
        let e = self.defaults.get(param.default?)?.as_ref()?;
        self.coerce(param, e, Cx { scope: 0, frame: 0 })
    }

    /// A value for a parameter.
    pub(super) fn coerce(&mut self, param: &'static Param, e: &'a Expr, cx: Cx) -> Option<Value> {
        let value = self.typed(&param.ty, e, cx)?;
        let (low, high) = match param.range {
            Some(r) => r,
            None => return Some(value),
        };
        let scale = if matches!(param.ty, Ty::Percent | Ty::ScheduledPercent) { 100.0 } else { 1.0 };
        let outside = numbers(&value).into_iter().map(|x| x * scale).find(|x| *x < low - 1e-9 || *x > high + 1e-9);
        if let Some(x) = outside {
            let unit = if scale == 100.0 { "%" } else { "" };
            let message = format!("`{}` is {x}{unit}, outside {}", param.name, range_text(low, high, unit));
            self.error("P0306", message, e.span, "out of range");
            return None;
        }
        Some(value)
    }

    /// A value of a type.
    pub(super) fn typed(&mut self, ty: &'static Ty, e: &'a Expr, cx: Cx) -> Option<Value> {
        match ty {
            Ty::Data => return self.data_expr(e, cx).map(Value::Data),
            Ty::Model => return self.model_value(e, cx),
            Ty::Selector => return self.selector(e, cx).map(Value::Selector),
            Ty::Scheduled => return self.schedule(e, cx, Dim::Plain).map(Value::Schedule),
            Ty::ScheduledPercent => return self.schedule(e, cx, Dim::Percent).map(Value::Schedule),
            Ty::Snapshot | Ty::Adapter | Ty::Metric => return self.recorded(ty, e, cx),
            Ty::List(of) => {
                let (l, lcx) = self.head(e, cx);
                let ExprKind::List(items) = &l.kind else {
                    let v = self.eval(e, cx);
                    self.mismatch(&v, &ty_name(ty), e.span);
                    return None;
                };
                return items
                    .iter()
                    .map(|i| self.typed(of, i, lcx))
                    .collect::<Vec<_>>()
                    .into_iter()
                    .collect::<Option<Vec<_>>>()
                    .map(Value::List);
            }
            _ => {}
        }
        let v = self.eval(e, cx);
        match (ty, &v) {
            (Ty::Bool, Val::Bool(b)) => Some(Value::Bool(*b)),
            (Ty::Count, Val::Number(x) | Val::Quantity(x, Unit::Count)) => {
                if *x < 0.0 || x.fract() != 0.0 {
                    self.error("P0307", format!("found {x}, expected a whole number ≥ 0"), e.span, "not a whole number");
                    return None;
                }
                Some(Value::Number(*x))
            }
            (Ty::Float, Val::Number(x) | Val::Quantity(x, Unit::Count)) => Some(Value::Number(*x)),
            (Ty::Percent, Val::Percent(x)) => Some(Value::Percent(share(*x))),
            (Ty::Percent, Val::Number(x)) => {
                self.needs_percent(*x, e.span);
                None
            }
            (Ty::Tokens, Val::Quantity(x, Unit::Tokens)) => Some(Value::Quantity(*x, Unit::Tokens)),
            (Ty::Steps, Val::Quantity(x, Unit::Steps)) => Some(Value::Quantity(*x, Unit::Steps)),
            (Ty::Tokens, Val::Number(x)) => {
                self.needs_unit(*x, "tokens", e.span);
                None
            }
            (Ty::Steps, Val::Number(x)) => {
                self.needs_unit(*x, "steps", e.span);
                None
            }
            (Ty::Text | Ty::Column, Val::Text(s)) => Some(Value::Text(s.clone())),
            (Ty::Column, Val::Number(x)) if *x >= 0.0 && x.fract() == 0.0 => Some(Value::Number(*x)),
            (Ty::Path, Val::Text(s)) => Some(Value::Path(self.join(s))),
            (Ty::Path, Val::Path(p)) => Some(Value::Path(p.clone())),
            (Ty::OneOf(words), Val::Word(w, at, _)) => self.one_of(words, w, *at),
            (Ty::OneOf(words), Val::Text(w)) => self.one_of(words, w, e.span),
            // `order = 2`, where the words are numbers.
            (Ty::OneOf(words), Val::Number(x)) if words.contains(&x.to_string().as_str()) => Some(Value::Word(x.to_string())),
            (Ty::OneOf(words), Val::Other(o)) => match &o.kind {
                // A name in sight hides no word of the catalogue.
                ExprKind::Name(n) => self.one_of(words, n, o.span),
                _ => {
                    self.mismatch(&v, &ty_name(ty), e.span);
                    None
                }
            },
            (Ty::Count | Ty::Float | Ty::Percent | Ty::Tokens | Ty::Steps, Val::Quantity(..) | Val::Percent(_) | Val::Points(_)) => {
                let message = format!("found {}, expected {}", describe(&v), ty_name(ty));
                self.error("P0303", message, e.span, "wrong unit");
                None
            }
            _ => {
                self.mismatch(&v, &ty_name(ty), e.span);
                None
            }
        }
    }

    fn one_of(&mut self, words: &'static [&'static str], word: &str, span: Span) -> Option<Value> {
        if words.contains(&word) {
            return Some(Value::Word(word.to_owned()));
        }
        let expected = ty_name(&Ty::OneOf(words));
        let d = Diagnostic::error("P0406", format!("found `{word}`, expected {expected}"), span, "not one of them");
        let d = match nearest(word, words.iter().copied()) {
            Some(w) => Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(w),
            None => d,
        };
        self.report(d);
        None
    }

    /// A number stands where a percent belongs.
    pub(super) fn needs_percent(&mut self, x: f64, span: Span) {
        let d = Diagnostic::error("P0302", format!("found the number {x}, expected a percent"), span, "has no unit");
        let percent = super::eval::print_number((x * 1e9).round() / 1e7);
        let d = if (0.0..=1.0).contains(&x) {
            d.hint(format!("write `{percent}%`")).fix(format!("{percent}%"))
        } else {
            d.hint(format!("write `{x}%`"))
        };
        self.report(d);
    }

    /// A number stands where a quantity belongs.
    pub(super) fn needs_unit(&mut self, x: f64, unit: &str, span: Span) {
        let d = Diagnostic::error("P0302", format!("found the number {x}, expected {unit}"), span, "has no unit");
        self.report(d.hint(format!("write `{x} {unit}`")).fix(format!("{x} {unit}")));
    }

    /// The full name of a snapshot, an adapter or a metric.
    fn recorded(&mut self, ty: &Ty, e: &'a Expr, cx: Cx) -> Option<Value> {
        if *ty == Ty::Metric {
            return self.metric_name(e, cx).map(Value::Name);
        }
        let (h, hcx) = self.head(e, cx);
        if let ExprKind::Name(n) = &h.kind {
            match (ty, self.lookup(n, hcx.scope)) {
                (Ty::Snapshot, Some(Binding::Snapshot { full, .. })) | (Ty::Adapter, Some(Binding::Adapter { full, .. })) => {
                    return Some(Value::Name(full));
                }
                (_, Some(Binding::Poison)) => return None,
                _ => {}
            }
        }
        let v = self.eval(e, cx);
        self.mismatch(&v, &ty_name(ty), e.span);
        None
    }

    /// `acc`, or `acc[round = 3]`: the full name of a recorded metric.
    pub(super) fn metric_name(&mut self, e: &'a Expr, cx: Cx) -> Option<String> {
        let (h, hcx) = self.head(e, cx);
        let (base, index) = match &h.kind {
            ExprKind::Path(base, Seg::Index(crate::ast::Index::Items(items), _)) => (&**base, Some(items)),
            _ => (h, None),
        };
        if let ExprKind::Name(n) = &base.kind {
            match self.lookup(n, hcx.scope) {
                Some(Binding::Metric { full }) => {
                    let Some(items) = index else { return Some(full) };
                    let cell: Vec<String> =
                        items.iter().filter_map(|a| a.name.as_ref().map(|k| format!("{}={}", k.name, self.label(&a.value)))).collect();
                    return Some(format!("{n}[{}]", cell.join(", ")));
                }
                Some(Binding::Poison) => return None,
                _ => {}
            }
        }
        let v = self.eval(e, cx);
        self.mismatch(&v, "the name of an `eval … as NAME`", e.span);
        None
    }

    /// A relative path, joined to the folder of the file being checked.
    pub(super) fn join(&self, path: &str) -> std::path::PathBuf {
        let folder = self.parsed.get(self.current_file).map(|p| p.folder.clone()).unwrap_or_default();
        if path.starts_with("builtin:") { path.into() } else { folder.join(path) }
    }
}

/// Every number in a value, percents as fractions.
fn numbers(value: &Value) -> Vec<f64> {
    fn of(s: &Schedule, out: &mut Vec<f64>) {
        match s {
            Schedule::Hold { value, .. } => out.push(*value),
            Schedule::Ramp { from, to, .. } => out.extend([*from, *to]),
            Schedule::Stairs { values, .. } => out.extend(values),
            Schedule::Then(parts) => parts.iter().for_each(|p| of(p, out)),
        }
    }
    match value {
        Value::Schedule(s) => {
            let mut out = Vec::new();
            of(s, &mut out);
            out
        }
        Value::List(items) => items.iter().flat_map(numbers).collect(),
        v => v.as_f64().into_iter().collect(),
    }
}

/// `5..=70`, or one-sided where a side is infinite.
pub(crate) fn range_text(low: f64, high: f64, unit: &str) -> String {
    match (low.is_finite() && low.abs() < 1e15, high.is_finite() && high.abs() < 1e15) {
        (true, true) => format!("{low}{unit}..={high}{unit}"),
        (true, false) => format!("{low}{unit}.."),
        (false, true) => format!("..={high}{unit}"),
        (false, false) => "the finite numbers".to_owned(),
    }
}
