//! `repeat` and `sweep`, written out: every round and every cell is checked with its own values.

use crate::ast::{BinOp, Expr, ExprKind, Ident, Stmt};
use crate::diagnostic::Diagnostic;
use crate::plan::{Cell, Span, Step, StepKind, Value};

use super::eval::describe;
use super::{Binding, Checker, Cx};

/// Rounds of a `repeat`, values of an axis, cells of a sweep.
const MAX_ROUNDS: i64 = 10_000;

impl<'a> Checker<'a> {
    /// Checks statements in a scope of their own and returns their steps and the scope.
    fn body(&mut self, body: &'a [Stmt], names: Vec<(&Ident, Binding<'a>)>, labels: &[(String, String)], cx: Cx) -> (Vec<Step>, usize) {
        let scope = self.new_scope(Some(cx.scope));
        for (name, binding) in names {
            self.bind(name, binding, scope, false);
        }
        let outer_steps = std::mem::take(&mut self.steps);
        let outer_in_loop = std::mem::replace(&mut self.in_loop, true);
        let outer_labels = self.labels.len();
        self.labels.extend_from_slice(labels);
        for stmt in body {
            if self.exhausted() {
                break;
            }
            let frame = self.frame();
            self.statement(stmt, Cx { scope, frame });
        }
        self.labels.truncate(outer_labels);
        self.in_loop = outer_in_loop;
        (std::mem::replace(&mut self.steps, outer_steps), scope)
    }

    /// Makes what a body recorded known outside: the last round's or cell's is what the plain name means.
    fn export(&mut self, from: usize, to: usize, all: bool) -> Vec<String> {
        let mut metrics = Vec::new();
        let names: Vec<(String, Binding<'a>, Span)> = self
            .scopes
            .get(from)
            .map(|s| s.names.iter().map(|(k, n)| (k.clone(), n.binding.clone(), n.span)).collect())
            .unwrap_or_default();
        for (name, binding, span) in names {
            let keep = match &binding {
                Binding::Metric { .. } => {
                    metrics.push(name.clone());
                    true
                }
                Binding::Poison => true,
                Binding::Snapshot { .. } | Binding::Adapter { .. } | Binding::Score { .. } | Binding::Grid { .. } => all,
                _ => false,
            };
            if keep {
                self.bind(&Ident { name, span }, binding, to, false);
            }
        }
        metrics
    }

    pub(super) fn repeat_statement(&mut self, span: Span, variable: &'a Ident, range: &'a Expr, body: &'a [Stmt], cx: Cx) {
        let Some((from, to)) = self.rounds(range, cx) else {
            // The body is looked at all the same, once, with a variable that says nothing.
            self.body(body, vec![(variable, Binding::Poison)], &[(variable.name.clone(), "?".to_owned())], cx);
            return;
        };
        let (mut rounds, mut last) = (Vec::new(), None);
        for i in from..=to {
            if self.exhausted() {
                break;
            }
            let value = Binding::Value(Value::Number(i as f64));
            let (steps, scope) = self.body(body, vec![(variable, value)], &[(variable.name.clone(), i.to_string())], cx);
            rounds.push(steps);
            last = Some(scope);
        }
        if let Some(scope) = last {
            let in_loop = std::mem::replace(&mut self.in_loop, true);
            self.export(scope, cx.scope, true);
            self.in_loop = in_loop;
        }
        self.emit(span, None, "repeat", StepKind::Repeat { variable: variable.name.clone(), rounds });
    }

    /// First and last round.
    fn rounds(&mut self, range: &'a Expr, cx: Cx) -> Option<(i64, i64)> {
        let (h, hcx) = self.head(range, cx);
        let ExprKind::Binary(op @ (BinOp::Range | BinOp::RangeIn), a, b) = &h.kind else {
            let v = self.eval(range, cx);
            if !matches!(v, super::eval::Val::Poison) {
                let d =
                    Diagnostic::error("P0507", format!("found {}, expected a range of rounds", describe(&v)), range.span, "not a range");
                self.report(d.hint("write `1..=10`"));
            }
            return None;
        };
        let (a, b) = (self.integer(a, hcx), self.integer(b, hcx));
        let (a, b) = (a?, b?);
        let b = if *op == BinOp::Range { b - 1 } else { b };
        if b < a {
            self.error("P0507", "this `repeat` has no rounds", range.span, "the range is empty");
            return None;
        }
        if b - a >= MAX_ROUNDS {
            self.error("P0508", format!("{} rounds are more than {MAX_ROUNDS}", b - a + 1), range.span, "too many");
            return None;
        }
        Some((a, b))
    }

    pub(super) fn sweep_statement(&mut self, span: Span, axes: &'a [(Ident, Expr)], name: Option<&'a Ident>, body: &'a [Stmt], cx: Cx) {
        let mut lists: Vec<(&'a Ident, Vec<AxisValue<'a>>)> = Vec::new();
        let (mut ok, mut cells_wanted) = (true, 1usize);
        for (axis, values) in axes {
            match self.axis(values, cx) {
                Some(list) => {
                    cells_wanted = cells_wanted.saturating_mul(list.len());
                    lists.push((axis, list));
                }
                None => {
                    ok = false;
                    lists.push((axis, Vec::new()));
                }
            }
        }
        if ok && cells_wanted > MAX_ROUNDS as usize {
            self.error("P0508", format!("{cells_wanted} cells are more than {MAX_ROUNDS}"), span, "too many");
            ok = false;
        }
        let entry = self.states.clone();
        if !ok {
            let names = lists.iter().map(|(a, _)| (*a, Binding::Poison)).collect();
            self.body(body, names, &[], cx);
            self.states = entry;
            if let Some(n) = name {
                self.bind(n, Binding::Poison, cx.scope, false);
            }
            return;
        }
        let (mut cells, mut last) = (Vec::new(), None);
        for index in 0..cells_wanted {
            if self.exhausted() {
                break;
            }
            // The last axis runs fastest.
            let (mut rest, mut picked) = (index, Vec::new());
            for (axis, list) in lists.iter().rev() {
                if let Some(v) = list.get(rest % list.len().max(1)) {
                    picked.push((*axis, v.clone()));
                }
                rest /= list.len().max(1);
            }
            picked.reverse();
            let labels: Vec<(String, String)> = picked.iter().map(|(a, v)| (a.name.clone(), v.full.clone())).collect();
            let short: Vec<(String, String)> = picked.iter().map(|(a, v)| (a.name.clone(), v.short.clone())).collect();
            let names = picked.iter().map(|(a, v)| (*a, Binding::Expr(v.expr, v.cx))).collect();
            self.states = entry.clone();
            let (steps, scope) = self.body(body, names, &short, cx);
            cells.push(Cell { labels, steps });
            last = Some(scope);
        }
        let left = std::mem::replace(&mut self.states, entry);
        let in_loop = std::mem::replace(&mut self.in_loop, true);
        let metrics = last.map(|scope| self.export(scope, cx.scope, false)).unwrap_or_default();
        self.in_loop = in_loop;
        let axes = axes.iter().map(|(a, _)| a.name.clone()).collect();
        let full = self.emit(span, name.map(|n| n.name.as_str()), "sweep", StepKind::Sweep { axes, cells });
        self.grids.insert(full.clone(), left);
        if let Some(n) = name {
            self.bind(n, Binding::Grid { full, metrics }, cx.scope, false);
        }
    }

    fn axis(&mut self, values: &'a Expr, cx: Cx) -> Option<Vec<AxisValue<'a>>> {
        let (h, hcx) = self.head(values, cx);
        let ExprKind::List(items) = &h.kind else {
            let v = self.eval(values, cx);
            self.mismatch(&v, "a list of values to sweep over", values.span);
            return None;
        };
        if items.is_empty() {
            self.error("P0507", "this axis has no values", values.span, "an empty list");
            return None;
        }
        let full: Vec<String> = items.iter().map(|i| self.label(i)).collect();
        let name = |e: &Expr, text: &str| match &e.kind {
            ExprKind::Call(callee, _) => self.label(callee),
            _ => text.to_owned(),
        };
        let short: Vec<String> = items.iter().zip(&full).map(|(e, t)| name(e, t)).collect();
        // Two calls of one method are told apart by their arguments.
        let twice = (0..short.len()).any(|i| short.iter().skip(i + 1).any(|s| Some(s) == short.get(i)));
        let short = if twice { full.clone() } else { short };
        Some(items.iter().zip(full.into_iter().zip(short)).map(|(expr, (full, short))| AxisValue { expr, cx: hcx, full, short }).collect())
    }
}

/// One value of an axis.
#[derive(Clone)]
struct AxisValue<'a> {
    expr: &'a Expr,
    cx: Cx,
    /// As it was written.
    full: String,
    /// A method without its arguments, where that tells the values apart.
    short: String,
}
