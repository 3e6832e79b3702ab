//! `train` and `reconstruct`: clock, optimizer, loss, and what stands inside.

use crate::ast::{Arg, BinOp, Block, Expr, ExprKind, Ident, Stmt, StmtKind};
use crate::catalogue::Kind;
use crate::diagnostic::Diagnostic;
use crate::plan::{Method, Schedule, Span, StepKind, Train, Value, When};

use super::amount::{Dim, SCHEDULES};
use super::eval::Val;
use super::options::{Fields, RECONSTRUCT_FIELDS, TRAIN_EVAL_FIELDS, TRAIN_FIELDS};
use super::{Binding, Checker, Cx};

impl<'a> Checker<'a> {
    /// `for 3 epochs`.
    fn length(&mut self, e: &'a Expr, cx: Cx) -> Option<When> {
        match self.when(e, cx)? {
            When::Share(_) => {
                self.error("P0303", "found a percent, expected steps, epochs or tokens", e.span, "a share of what?");
                None
            }
            When::Steps(0) | When::Tokens(0) => {
                self.error("P0306", "a training lasts longer than nothing", e.span, "out of range");
                None
            }
            w => Some(w),
        }
    }

    /// A `train` statement.
    pub(super) fn train_statement(
        &mut self,
        span: Span,
        model: &'a Ident,
        data: &'a Expr,
        length: &'a Expr,
        block: Option<&'a Block>,
        cx: Cx,
    ) {
        let name = self.model_ident(model, cx);
        let data = self.data_expr(data, cx);
        let length = self.length(length, cx);
        let mut fields = self.fields(block, cx, "train");
        let steps = std::mem::take(&mut fields.steps);
        let only = fields.take("only").map(|(e, cx)| self.selector(e, cx));
        let optimizer = self.optimizer(&mut fields, span);
        let loss = match fields.take("loss") {
            Some((e, cx)) => self.loss(e, cx),
            None => self.default_loss(span),
        };
        let options = self.take_options(&mut fields, TRAIN_FIELDS);
        // Names recorded inside are in sight of `keep` and `stop`, wherever these stand.
        let (mut prunes, mut evals, mut ok) = (Vec::new(), Vec::new(), true);
        for stmt in steps {
            match &stmt.kind {
                StmtKind::Prune(p) => match self.prune(stmt.span, p, cx, name.as_deref()) {
                    Some(p) => prunes.push(p),
                    None => ok = false,
                },
                StmtKind::Eval { metric, of, on, name: as_name, block } => {
                    match self.inner_eval(stmt, metric, of.as_ref(), on.as_ref(), as_name.as_ref(), block.as_ref(), name.as_deref(), cx) {
                        Some(e) => evals.push(e),
                        None => ok = false,
                    }
                }
                _ => self.error("P0503", "only `prune` and `eval` stand inside `train`", stmt.span, "not here"),
            }
        }
        let keep = fields.take("keep").map(|(e, cx)| (self.keep(e, cx), e.span));
        let stop = fields.take("stop").map(|(e, cx)| (self.stop(e, cx), e.span));
        let of_stop = |m: &Method| match m.args.get("metric") {
            Some(Value::Name(name) | Value::Word(name) | Value::Text(name)) => Some(name.clone()),
            _ => None,
        };
        let watched = [
            keep.as_ref().and_then(|(k, at)| Some((k.as_ref()?.0.clone(), *at))),
            stop.as_ref().and_then(|(s, at)| Some((of_stop(s.as_ref()?)?, *at))),
        ];
        let known = ok;
        for (name, at) in watched.into_iter().flatten().filter(|(name, _)| known && evals.iter().all(|(step, _)| step.name != *name)) {
            let d = Diagnostic::error("P0512", format!("`{name}` is not measured inside this `train`"), at, "its value never changes here");
            self.report(d.hint(format!("write `eval … as {name} {{ every = 20 steps }}` in its block, under a name of its own")));
            ok = false;
        }
        let (keep, stop) = (keep.map(|(k, _)| k), stop.map(|(s, _)| s));
        let known = ["only", "optimizer", "loss", "keep", "stop"].into_iter().chain(TRAIN_FIELDS.iter().map(|p| p.name)).collect();
        self.leftover(fields, known, "train");
        if matches!(keep, Some(None)) || matches!(stop, Some(None)) || matches!(only, Some(None)) || !ok {
            return;
        }
        let all = (name, data, length, optimizer, loss, options);
        let (Some(model), Some(data), Some(length), Some(optimizer), Some(loss), Some(options)) = all else { return };
        let train = Train {
            model,
            data,
            length,
            only: only.flatten(),
            optimizer,
            loss,
            options,
            prunes,
            evals,
            keep: keep.flatten(),
            stop: stop.flatten(),
        };
        self.emit(span, None, "train", StepKind::Train(train));
    }

    fn optimizer(&mut self, fields: &mut Fields<'a>, span: Span) -> Option<Method> {
        if let Some((e, cx)) = fields.take("optimizer") {
            return self.method(Kind::Optimizer, e, cx);
        }
        if fields.incomplete {
            return None;
        }
        let spec = self.catalogue.get(Kind::Optimizer, "adamw");
        let complete = spec.is_some_and(|s| s.params.iter().all(|p| p.optional || p.default.is_some()));
        match spec.filter(|_| complete) {
            Some(s) => {
                Some(Method { name: s.name.to_owned(), args: self.args(s.name, s.params, &[], Cx { scope: 0, frame: 0 }, span)?, span })
            }
            None => {
                let d = Diagnostic::error("P0403", "`train` needs an optimizer", span, "`optimizer` is missing");
                self.report(d.hint("add `optimizer = adamw(lr = 1e-4)` to its block"));
                None
            }
        }
    }

    fn default_loss(&mut self, span: Span) -> Option<Vec<(Schedule, Method)>> {
        match self.catalogue.get(Kind::Loss, "task") {
            Some(s) => {
                let args = self.args(s.name, s.params, &[], Cx { scope: 0, frame: 0 }, span)?;
                Some(vec![(Schedule::Hold { value: 1.0, length: None }, Method { name: s.name.to_owned(), args, span })])
            }
            None => {
                self.error("P0403", "`train` needs a loss", span, "`loss` is missing");
                None
            }
        }
    }

    /// A weighted sum of loss terms.
    fn loss(&mut self, e: &'a Expr, cx: Cx) -> Option<Vec<(Schedule, Method)>> {
        let mut out = Vec::new();
        self.loss_terms(e, cx, 1.0, &mut out).then_some(out)
    }

    fn loss_terms(&mut self, e: &'a Expr, cx: Cx, sign: f64, out: &mut Vec<(Schedule, Method)>) -> bool {
        let (h, hcx) = self.head(e, cx);
        match &h.kind {
            ExprKind::Binary(op @ (BinOp::Add | BinOp::Sub), a, b) => {
                let first = self.loss_terms(a, hcx, sign, out);
                self.loss_terms(b, hcx, if *op == BinOp::Sub { -sign } else { sign }, out) && first
            }
            ExprKind::Binary(BinOp::Mul, a, b) => {
                let (weight, term) = if self.is_loss(b, hcx) { (a, b) } else { (b, a) };
                let weight = self.schedule(weight, hcx, Dim::Plain);
                let method = self.method(Kind::Loss, term, hcx);
                match (weight, method) {
                    (Some(w), Some(m)) => {
                        out.push((scaled(w, sign), m));
                        true
                    }
                    _ => false,
                }
            }
            ExprKind::Call(..) | ExprKind::Name(_) => match self.method(Kind::Loss, e, cx) {
                Some(m) => {
                    out.push((Schedule::Hold { value: sign, length: None }, m));
                    true
                }
                None => false,
            },
            _ => {
                let v = self.eval(e, cx);
                self.mismatch(&v, "a sum of losses such as `task() + 0.1 * l1(scores)`", e.span);
                false
            }
        }
    }

    /// Whether a factor is the loss term: a call that is no schedule.
    fn is_loss(&mut self, e: &'a Expr, cx: Cx) -> bool {
        let (h, _) = self.head(e, cx);
        match &h.kind {
            ExprKind::Call(callee, _) => matches!(&callee.kind, ExprKind::Name(n) if !SCHEDULES.contains(&n.as_str())),
            ExprKind::Name(n) => self.catalogue.get(Kind::Loss, n).is_some(),
            _ => false,
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one statement")]
    fn inner_eval(
        &mut self,
        stmt: &'a Stmt,
        metric: &'a Expr,
        of: Option<&'a Expr>,
        on: Option<&'a Expr>,
        name: Option<&'a Ident>,
        block: Option<&'a Block>,
        model: Option<&str>,
        cx: Cx,
    ) -> Option<(crate::plan::Step, When)> {
        let mut fields = self.fields(block, cx, "eval");
        let every = match fields.take("every") {
            Some((e, ecx)) => self.when(e, ecx),
            // Without a clock of its own it runs once a tenth of the training.
            None => Some(When::Share(0.1)),
        };
        let options = self.take_options(&mut fields, TRAIN_EVAL_FIELDS);
        self.leftover(fields, ["every"].into_iter().chain(TRAIN_EVAL_FIELDS.iter().map(|p| p.name)).collect(), "eval");
        let kind = self.eval_kind(stmt.span, metric, of, on, model, options.and_then(|o| o.count("batch").ok()), cx);
        let Some(name) = name else {
            self.eval_needs_name(stmt.span);
            return None;
        };
        let Some(kind) = kind else {
            self.bind(name, Binding::Poison, cx.scope, false);
            return None;
        };
        let step = self.make_step(stmt.span, Some(&name.name), "eval", kind);
        self.bind(name, Binding::Metric { full: step.name.clone() }, cx.scope, false);
        Some((step, every?))
    }

    /// `lowest(val)`, `highest(val)`.
    pub(super) fn keep(&mut self, e: &'a Expr, cx: Cx) -> Option<(String, bool)> {
        let (h, hcx) = self.head(e, cx);
        if let ExprKind::Call(callee, args) = &h.kind
            && let (ExprKind::Name(n), [Arg { name: None, value }]) = (&callee.kind, args.as_slice())
            && matches!(n.as_str(), "lowest" | "highest")
        {
            return Some((self.metric_name(value, hcx)?, n == "lowest"));
        }
        let d = Diagnostic::error("P0512", "expected `lowest(NAME)` or `highest(NAME)`", e.span, "which one to keep?");
        self.report(d.hint("NAME is that of an `eval … as NAME`"));
        None
    }

    /// `stale(val, after = 3)`, or a rule of the catalogue.
    fn stop(&mut self, e: &'a Expr, cx: Cx) -> Option<Method> {
        let (h, hcx) = self.head(e, cx);
        if let ExprKind::Call(callee, args) = &h.kind
            && let ExprKind::Name(n) = &callee.kind
        {
            if n == "stale" && self.catalogue.get(Kind::Rule, n).is_none() {
                let args = self.args("stale", STALE, args, hcx, h.span)?;
                return Some(Method { name: n.clone(), args, span: h.span });
            }
            if self.catalogue.get(Kind::Rule, n).is_some() {
                return self.method(Kind::Rule, e, cx);
            }
        }
        let d = Diagnostic::error("P0512", "expected `stale(NAME, after = 3)`", e.span, "when to stop?");
        self.report(d.hint("it stops once the metric NAME has not improved for so many evaluations"));
        None
    }

    /// A `reconstruct` statement.
    #[expect(clippy::too_many_arguments, reason = "the parts of one statement")]
    pub(super) fn reconstruct_statement(
        &mut self,
        span: Span,
        selector: &'a Expr,
        teacher: &'a Expr,
        data: &'a Expr,
        length: &'a Expr,
        block: Option<&'a Block>,
        cx: Cx,
    ) {
        let selector = self.selector(selector, cx);
        let teacher = self.model_value(teacher, cx);
        let data = self.data_expr(data, cx);
        let length = self.length(length, cx);
        let mut fields = self.fields(block, cx, "reconstruct");
        let optimizer = self.optimizer(&mut fields, span);
        let options = self.take_options(&mut fields, RECONSTRUCT_FIELDS);
        self.leftover(fields, ["optimizer"].into_iter().chain(RECONSTRUCT_FIELDS.iter().map(|p| p.name)).collect(), "reconstruct");
        if let (Some(selector), Some(teacher), Some(data), Some(length), Some(optimizer), Some(mut options)) =
            (selector, teacher, data, length, optimizer, options)
        {
            options.0.insert("optimizer".to_owned(), Value::Method(Box::new(optimizer)));
            self.emit(span, None, "reconstruct", StepKind::Reconstruct { selector, teacher, data, length, options });
        }
    }

    /// The step of an `eval`.
    #[expect(clippy::too_many_arguments, reason = "the parts of one statement")]
    pub(super) fn eval_kind(
        &mut self,
        span: Span,
        metric: &'a Expr,
        of: Option<&'a Expr>,
        on: Option<&'a Expr>,
        inside: Option<&str>,
        batch: Option<u64>,
        cx: Cx,
    ) -> Option<StepKind> {
        let method = self.method(Kind::Metric, metric, cx);
        let model = match of {
            Some(of) => self.model_value(of, cx),
            None => self.model_of_metric(method.as_ref(), inside, span),
        };
        let data = on.map(|on| self.data_expr(on, cx));
        let method = method?;
        let needs = self.spec(Kind::Metric, &method.name).is_some_and(|s| s.needs_data);
        if needs && on.is_none() {
            let d = Diagnostic::error("P0410", format!("`{}` is measured on data", method.name), metric.span, "`on` is missing");
            self.report(d.hint("write `on d.test` behind the model"));
            return None;
        }
        if let (false, Some(on)) = (needs, on) {
            self.error("P0410", format!("`{}` needs no data", method.name), on.span, "leave `on` out");
            return None;
        }
        if matches!(data, Some(None)) {
            return None;
        }
        Some(StepKind::Eval { metric: method, model: model?, data: data.flatten(), batch })
    }

    /// The model of an `eval` without `of`: the trained one, one that the metric names, or the only one.
    fn model_of_metric(&mut self, metric: Option<&Method>, inside: Option<&str>, span: Span) -> Option<Value> {
        if let Some(m) = inside {
            return Some(Value::Model(m.to_owned()));
        }
        let named = metric?.args.0.values().find(|v| matches!(v, Value::Model(_) | Value::Frozen { .. } | Value::Name(_)));
        if let Some(v) = named {
            return Some(v.clone());
        }
        if let [only] = self.models.as_slice() {
            return Some(Value::Model(only.name.clone()));
        }
        let d = Diagnostic::error("P0411", "of which model?", span, "`of` is missing");
        self.report(d.hint("write `of m` behind the metric"));
        None
    }

    pub(super) fn eval_needs_name(&mut self, span: Span) {
        let d = Diagnostic::error("P0506", "an `eval` needs a name", span, "`as NAME` is missing");
        self.report(d.hint("write `as acc` at its end: the result is recorded under it"));
    }

    /// A string with its values put in; `labels` as in `string_in`.
    pub(super) fn text_value(&mut self, e: &'a Expr, cx: Cx, labels: bool) -> Option<String> {
        let (h, hcx) = self.head(e, cx);
        if let ExprKind::Str(pieces) = &h.kind {
            return self.string_in(pieces, hcx, labels);
        }
        match self.eval(e, cx) {
            Val::Text(s) => Some(s),
            Val::Path(p) => Some(p.display().to_string()),
            v => {
                self.mismatch(&v, "a string", e.span);
                None
            }
        }
    }
}

/// The rule that `stop` knows without a catalogue.
pub(super) const STALE: &[crate::catalogue::Param] = &[
    crate::catalogue::Param {
        name: "metric",
        ty: crate::catalogue::Ty::Metric,
        default: None,
        optional: false,
        range: None,
        doc: "The name of an `eval` inside the `train`; lower is better for losses and perplexities.",
    },
    crate::catalogue::Param {
        name: "after",
        ty: crate::catalogue::Ty::Count,
        default: None,
        optional: false,
        range: Some((1.0, 1e9)),
        doc: "How many evaluations without an improvement.",
    },
];

fn scaled(s: Schedule, by: f64) -> Schedule {
    match s {
        Schedule::Hold { value, length } => Schedule::Hold { value: value * by, length },
        Schedule::Ramp { curve, from, to, during, length } => Schedule::Ramp { curve, from: from * by, to: to * by, during, length },
        Schedule::Stairs { values, during } => Schedule::Stairs { values: values.into_iter().map(|v| v * by).collect(), during },
        Schedule::Then(parts) => Schedule::Then(parts.into_iter().map(|p| scaled(p, by)).collect()),
    }
}
