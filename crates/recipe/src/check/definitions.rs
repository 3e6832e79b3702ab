//! A recipe from its first line: its edition, what it `use`s, its `param`s and `let`s.

use crate::ast::{Arg, BinOp, Expr, ExprKind, Ident, Seg, Stmt, StmtKind};
use crate::catalogue::{Kind, Ty};
use crate::diagnostic::{Diagnostic, Severity};
use crate::plan::{ParamValue, Span, Unit, Value};
use crate::syntax_error::nearest;

use super::eval::Val;
use super::{Binding, Checker, Cx};

/// The edition that this build reads.
const EDITION: &str = "2026";
/// Types that a `param` can have.
const PARAM_TYPES: &[&str] = &["percent", "count", "float", "tokens", "steps", "epochs", "bool", "string", "path", "source"];

impl<'a> Checker<'a> {
    /// The whole recipe.
    pub(super) fn recipe(&mut self) {
        let scope = self.new_scope(None);
        self.file(0, scope, "");
        for (i, s) in self.settings.iter().enumerate() {
            if self.set_used.contains(&i) {
                continue;
            }
            let names: Vec<String> = self.param_names.clone();
            let d = Diagnostic::error(
                "P0106",
                format!("`--set {}={}`: there is no such param", s.name, s.text),
                Span::default(),
                "this recipe",
            );
            let d = match nearest(&s.name, names.iter().map(String::as_str)) {
                Some(w) => d.hint(format!("did you mean `{w}`?")),
                None if names.is_empty() => d.hint("it has no params"),
                None => d.hint(format!("it has: {}", names.join(", "))),
            };
            self.report(d);
        }
        if self.n_steps == 0 {
            // Made to be `use`d: what it defines is for others.
            return;
        }
        let unused: Vec<(String, Span)> = self
            .scopes
            .get(scope)
            .map(|s| s.names.iter().filter(|(_, n)| n.warn && !n.used).map(|(k, n)| (k.clone(), n.span)).collect())
            .unwrap_or_default();
        for (name, span) in unused {
            self.report(Diagnostic::warning("P0901", format!("`{name}` is never used"), span, "not used").hint("remove it, or use it"));
        }
    }

    /// The statements of a file: of the recipe all, of another only what can be `use`d.
    fn file(&mut self, file: usize, scope: usize, prefix: &str) {
        let Some(parsed) = self.parsed.get(file) else { return };
        let outer = std::mem::replace(&mut self.current_file, file);
        let items = &parsed.recipe.items;
        self.edition(items, file);
        for (i, stmt) in items.iter().enumerate() {
            if self.exhausted() {
                break;
            }
            let frame = self.frame();
            let cx = Cx { scope, frame };
            match &stmt.kind {
                StmtKind::Use { name, .. } => self.use_statement(file, i, name, scope, prefix),
                StmtKind::Param { name, ty, value, range } => self.param_statement(stmt, name, ty, value, range.as_ref(), cx, prefix),
                StmtKind::Let { name, value } => self.let_statement(name, value, cx),
                StmtKind::Broken { .. } => self.statement(stmt, cx),
                StmtKind::Model { name, .. } | StmtKind::Data { name, .. } if file > 0 => self.bind(name, Binding::Foreign, scope, false),
                _ if file > 0 => {}
                StmtKind::Edition(_) => {}
                _ => self.statement(stmt, cx),
            }
        }
        self.current_file = outer;
    }

    fn edition(&mut self, items: &'a [Stmt], file: usize) {
        let start = Span { file: file as u32, start: 0, end: 0 };
        match items.first().map(|s| (&s.kind, s.span)) {
            Some((StmtKind::Edition(e), span)) => {
                if e != EDITION {
                    let d = Diagnostic::error("P0502", format!("unknown edition {e}"), span, format!("this build reads edition {EDITION}"));
                    self.report(d.fix(format!("edition {EDITION}")));
                }
            }
            // It did not parse, and is reported.
            Some((StmtKind::Broken { .. }, span)) if self.sources.slice(span).starts_with("edition") => {}
            None if !self.diagnostics.is_empty() => {}
            other => {
                let span = other.map_or(start, |(_, s)| Span {
                    end: s.start + self.sources.slice(s).find([' ', '\n']).unwrap_or(self.sources.slice(s).len()) as u32,
                    ..s
                });
                let d = Diagnostic::error("P0501", "a recipe begins with its edition", span, format!("write `edition {EDITION}` above"));
                self.report(d);
            }
        }
        for s in items.iter().skip(1) {
            if let StmtKind::Edition(_) = s.kind {
                self.error("P0501", "the edition stands once, on the first line", s.span, "not here");
            }
        }
    }

    fn use_statement(&mut self, file: usize, index: usize, name: &'a Ident, scope: usize, prefix: &str) {
        let target = self.parsed.get(file).and_then(|p| p.uses.iter().find(|(i, _)| *i == index)).map(|(_, f)| *f);
        let Some(target) = target else {
            self.bind(name, Binding::Poison, scope, false);
            return;
        };
        let module = match self.modules.get(&target) {
            Some(m) => *m,
            None => {
                let m = self.new_scope(None);
                self.modules.insert(target, m);
                let prefix = format!("{prefix}{}.", name.name);
                self.file(target, m, &prefix);
                m
            }
        };
        self.bind(name, Binding::Module(module), scope, false);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one statement")]
    fn param_statement(
        &mut self,
        stmt: &'a Stmt,
        name: &'a Ident,
        ty: &'a Ident,
        value: &'a Expr,
        range: Option<&'a Expr>,
        cx: Cx,
        prefix: &str,
    ) {
        let full = format!("{prefix}{}", name.name);
        self.param_names.push(full.clone());
        let settings = self.settings;
        let set = settings.iter().enumerate().rev().find(|(_, s)| s.name == full);
        self.set_used.extend(settings.iter().enumerate().filter(|(_, s)| s.name == full).map(|(i, _)| i));
        if !PARAM_TYPES.contains(&ty.name.as_str()) {
            let d = Diagnostic::error("P0313", format!("unknown type `{}`", ty.name), ty.span, "not a type");
            let d = match nearest(&ty.name, PARAM_TYPES.iter().copied()) {
                Some(w) => Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(w),
                None => d.hint(format!("types are: {}", PARAM_TYPES.join(", "))),
            };
            self.report(d);
            self.bind(name, Binding::Poison, cx.scope, false);
            return;
        }
        let warn = prefix.is_empty();
        if ty.name == "source" {
            let mut e = value;
            if let Some((_, s)) = set {
                match &s.expr {
                    Some(x) => e = x,
                    None => self.bad_setting(&s.name, &s.text, "expected a source such as `dir(\"path\")`", &[], name.span),
                }
            }
            self.bind(name, Binding::Expr(e, cx), cx.scope, warn);
            let value = Value::Text(if set.is_some() { set.map(|(_, s)| s.text.clone()).unwrap_or_default() } else { self.label(e) });
            self.params.push(ParamValue { name: full, ty: ty.name.clone(), value, doc: stmt.doc.clone(), span: name.span });
            return;
        }
        let mut v = self.param_value(&ty.name, value, cx);
        let bounds = range.and_then(|r| self.param_range(&ty.name, r, cx));
        if let (Some(x), Some(b)) = (&v, &bounds) {
            self.in_range(&name.name, x, b, value.span);
        }
        if let Some((_, s)) = set {
            let before = self.diagnostics.len();
            let set_value = match (&s.expr, ty.name.as_str()) {
                (Some(e), "string" | "path") if matches!(e.kind, ExprKind::Str(_)) => self.param_value(&ty.name, e, cx),
                (_, "string") => Some(Value::Text(s.text.clone())),
                (_, "path") => Some(Value::Path(s.text.clone().into())),
                (Some(e), _) => self.param_value(&ty.name, e, cx),
                (None, _) => None,
            };
            if let (Some(x), Some(b)) = (&set_value, &bounds) {
                self.in_range(&name.name, x, b, name.span);
            }
            // Mistakes of the value have no place in the file: they are told at the param.
            let found: Vec<Diagnostic> = self.diagnostics.split_off(before.min(self.diagnostics.len()));
            if set_value.is_none() || !found.is_empty() {
                let why = found.first().map_or_else(|| format!("expected {}", article(&ty.name)), |d| d.message.clone());
                let hints: Vec<String> = found.iter().flat_map(|d| d.hints.clone()).collect();
                self.bad_setting(&s.name, &s.text, &why, &hints, name.span);
            }
            v = set_value.or(v);
        }
        let binding = match &v {
            Some(v) => Binding::Value(v.clone()),
            None => Binding::Poison,
        };
        self.bind(name, binding, cx.scope, warn);
        if let Some(value) = v {
            self.params.push(ParamValue { name: full, ty: ty.name.clone(), value, doc: stmt.doc.clone(), span: name.span });
        }
    }

    fn bad_setting(&mut self, name: &str, text: &str, why: &str, hints: &[String], span: Span) {
        let mut d = Diagnostic::error("P0108", format!("`--set {name}={text}`: {why}"), span, "declared here");
        d.hints.extend_from_slice(hints);
        self.report(d);
    }

    fn param_value(&mut self, ty: &str, e: &'a Expr, cx: Cx) -> Option<Value> {
        let ty: &'static Ty = match ty {
            "percent" => &Ty::Percent,
            "count" => &Ty::Count,
            "float" => &Ty::Float,
            "tokens" => &Ty::Tokens,
            "steps" => &Ty::Steps,
            "bool" => &Ty::Bool,
            "string" => &Ty::Text,
            "path" => &Ty::Path,
            _ => {
                return match self.eval(e, cx) {
                    Val::Quantity(x, Unit::Epochs) => Some(Value::Quantity(x, Unit::Epochs)),
                    Val::Number(x) => {
                        self.needs_unit(x, "epochs", e.span);
                        None
                    }
                    v => {
                        self.mismatch(&v, "a number of epochs", e.span);
                        None
                    }
                };
            }
        };
        self.typed(ty, e, cx)
    }

    /// Bounds of a param in its own unit, percents as fractions; whether the upper one belongs to it.
    fn param_range(&mut self, ty: &str, e: &'a Expr, cx: Cx) -> Option<(f64, f64, bool, String)> {
        let (h, hcx) = self.head(e, cx);
        let ExprKind::Binary(op @ (BinOp::Range | BinOp::RangeIn), a, b) = &h.kind else {
            let v = self.eval(e, cx);
            self.mismatch(&v, "a range such as `0%..=90%`", e.span);
            return None;
        };
        let (low, high) = (self.param_value(ty, a, hcx), self.param_value(ty, b, hcx));
        let (low, high) = (low?.as_f64(), high?.as_f64());
        let (Some(low), Some(high)) = (low, high) else {
            self.error("P0314", format!("a `{ty}` has no range"), e.span, "only numbers have one");
            return None;
        };
        if low > high {
            self.error("P0204", "the range is empty", e.span, "ends before it begins");
            return None;
        }
        Some((low, high, *op == BinOp::RangeIn, self.label(e)))
    }

    fn in_range(&mut self, name: &str, value: &Value, bounds: &(f64, f64, bool, String), span: Span) {
        let (low, high, inclusive, text) = bounds;
        let Some(x) = value.as_f64() else { return };
        let inside = x >= low - 1e-12 && if *inclusive { x <= high + 1e-12 } else { x < *high };
        if !inside {
            let shown = match value {
                Value::Percent(s) => format!("{}%", super::eval::print_number((s.0 as f64) / 1e7)),
                _ => x.to_string(),
            };
            self.error("P0306", format!("`{name}` is {shown}, outside {text}"), span, "out of range");
        }
    }

    pub(super) fn let_statement(&mut self, name: &'a Ident, value: &'a Expr, cx: Cx) {
        let before = self.diagnostics.len();
        self.infer(value, cx, 0);
        let broken = self.diagnostics.get(before..).is_some_and(|new| new.iter().any(|d| d.severity == Severity::Error));
        let binding = if broken { Binding::Poison } else { Binding::Expr(value, cx) };
        self.bind(name, binding, cx.scope, self.current_file == 0);
    }

    /// Looks at an expression whose type its use will tell: its names exist, and what can be only one thing is that.
    fn infer(&mut self, e: &'a Expr, cx: Cx, depth: usize) {
        let (h, hcx) = self.head(e, cx);
        if !std::ptr::eq(h, e) && depth > 0 {
            // Looked at where it was defined.
            return;
        }
        match &h.kind {
            ExprKind::Name(n) => {
                if let Val::Word(w, at, scope) = self.eval(h, hcx)
                    && !self.is_known_word(n)
                {
                    self.unknown_name(w, at, scope, "not defined");
                }
            }
            ExprKind::Path(..) => {
                if self.rooted_in_data(h, hcx) {
                    self.data_expr(h, hcx);
                } else if !matches!(self.eval(h, hcx), Val::Poison) {
                    self.selector(h, hcx);
                }
            }
            ExprKind::Call(callee, args) => match &callee.kind {
                ExprKind::Name(n) if n == "frozen" => {
                    self.frozen(h, args, hcx);
                }
                ExprKind::Path(..) if self.rooted_in_data(callee, hcx) => {
                    self.data_expr(h, hcx);
                }
                ExprKind::Path(..) => {
                    self.selector(h, hcx);
                }
                ExprKind::Name(n) if n == "mix" => {
                    self.data_expr(h, hcx);
                }
                ExprKind::Name(n) => self.infer_call(n, h, args, hcx, depth),
                _ => self.infer(callee, hcx, depth + 1),
            },
            ExprKind::List(items) => items.iter().for_each(|i| self.infer(i, hcx, depth + 1)),
            ExprKind::Record(entries) => {
                for entry in entries {
                    match entry {
                        crate::ast::Entry::Field(_, v) => self.infer(v, hcx, depth + 1),
                        crate::ast::Entry::Spread(v) => {
                            let (s, scx) = self.head(v, hcx);
                            if !matches!(s.kind, ExprKind::Record(_)) {
                                let found = self.eval(s, scx);
                                self.mismatch(&found, "a record `{ … }` to spread", v.span);
                            }
                        }
                        crate::ast::Entry::Step(_) => {}
                    }
                }
            }
            ExprKind::Binary(BinOp::Union | BinOp::Except, ..) => {
                self.selector(h, hcx);
            }
            ExprKind::Binary(op, a, b) => {
                if matches!(op, BinOp::Add | BinOp::Sub | BinOp::Mul | BinOp::Div) {
                    self.eval(h, hcx);
                }
                self.infer(a, hcx, depth + 1);
                self.infer(b, hcx, depth + 1);
            }
            ExprKind::Unary(_, a) | ExprKind::Each(a) | ExprKind::Onward(a) | ExprKind::UpTo { end: a, .. } => {
                self.infer(a, hcx, depth + 1)
            }
            _ => {
                self.eval(h, hcx);
            }
        }
    }

    fn infer_call(&mut self, n: &str, h: &'a Expr, args: &'a [Arg], cx: Cx, depth: usize) {
        const KINDS: [Kind; 7] = [Kind::Criterion, Kind::Loss, Kind::Optimizer, Kind::Adapter, Kind::Quantizer, Kind::Metric, Kind::Rule];
        let known: Vec<Kind> = KINDS.into_iter().filter(|k| self.catalogue.get(*k, n).is_some()).collect();
        match known.as_slice() {
            // `cosine` is a schedule and a metric: its use will tell.
            [kind] if !super::amount::SCHEDULES.contains(&n) => {
                self.method(*kind, h, cx);
            }
            [] if !super::amount::SCHEDULES.contains(&n)
                && !matches!(n, "lowest" | "highest" | "stale" | "hf" | "dir" | "builtin" | "copy" | "init") =>
            {
                let names: Vec<&str> = self.catalogue.iter().map(|s| s.name).chain(super::amount::SCHEDULES.iter().copied()).collect();
                let d = Diagnostic::error("P0401", format!("unknown method `{n}`"), h.span, "not in the catalogue");
                let d = match nearest(n, names) {
                    Some(w) => Diagnostic { label: format!("did you mean `{w}`?"), ..d },
                    None => d,
                };
                self.report(d);
            }
            _ => args.iter().for_each(|a| self.infer(&a.value, cx, depth + 1)),
        }
    }

    fn rooted_in_data(&mut self, e: &'a Expr, cx: Cx) -> bool {
        let (h, hcx) = self.head(e, cx);
        match &h.kind {
            ExprKind::Name(n) => matches!(self.lookup(n, hcx.scope), Some(Binding::Data(_))),
            ExprKind::Path(base, Seg::Member(_)) => self.rooted_in_data(base, hcx),
            ExprKind::Call(callee, _) => self.rooted_in_data(callee, hcx),
            _ => false,
        }
    }

    /// Words that need no definition somewhere: those of the catalogue's choices and of the options.
    fn is_known_word(&self, word: &str) -> bool {
        fn has(ty: &Ty, word: &str) -> bool {
            match ty {
                Ty::OneOf(words) => words.contains(&word),
                Ty::List(of) => has(of, word),
                _ => false,
            }
        }
        matches!(word, "global" | "layer" | "matrix" | "row" | "scores" | "remaining" | "params" | "dense" | "layers")
            || self.catalogue.iter().any(|s| s.params.iter().any(|p| has(&p.ty, word)))
            || super::OPTION_TABLES.iter().any(|(_, t)| t.iter().any(|p| has(&p.ty, word)))
    }
}

fn article(ty: &str) -> String {
    match ty {
        "percent" => "a percent such as 40%".to_owned(),
        "count" => "a whole number".to_owned(),
        "float" => "a number".to_owned(),
        "bool" => "`true` or `false`".to_owned(),
        other => format!("a number of {other}, such as `100 {other}`"),
    }
}
