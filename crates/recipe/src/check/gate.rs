//! Expressions over metrics, which only a run can evaluate: `expect`, `adopt … where`.

use crate::ast::{BinOp, Expr, ExprKind, Index, Seg, UnOp};
use crate::catalogue::Kind;
use crate::plan::Expr as RunExpr;

use super::eval::{Val, describe};
use super::{Binding, Checker, Cx};

/// Whether an expression gives a number or a truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Number,
    Truth,
}

impl<'a> Checker<'a> {
    /// A condition. `grid` names the metrics of a sweep that may also be meant.
    pub(super) fn condition(&mut self, e: &'a Expr, cx: Cx, grid: Option<&[String]>) -> Option<RunExpr> {
        let (out, sort) = self.run_expr(e, cx, grid)?;
        if sort == Sort::Number {
            self.error("P0312", "expected a comparison, found a number", e.span, "true or false?");
            return None;
        }
        Some(out)
    }

    fn run_expr(&mut self, e: &'a Expr, cx: Cx, grid: Option<&[String]>) -> Option<(RunExpr, Sort)> {
        let (h, hcx) = self.head(e, cx);
        match &h.kind {
            ExprKind::Name(n) => match self.lookup(n, hcx.scope) {
                Some(Binding::Metric { full }) if grid.is_none_or(|g| !g.contains(n)) => {
                    Some((RunExpr::Metric(full, h.span), Sort::Number))
                }
                _ if grid.is_some_and(|g| g.contains(n)) => Some((RunExpr::Metric(n.clone(), h.span), Sort::Number)),
                // `params` in `adopt … where`: a metric of the cell's model that needs no data.
                None if grid.is_some() && self.spec(Kind::Metric, n).is_some_and(|s| !s.needs_data) => {
                    Some((RunExpr::Metric(n.clone(), h.span), Sort::Number))
                }
                _ => self.constant(e, cx),
            },
            ExprKind::Path(base, Seg::Index(Index::Items(_), _)) if matches!(base.kind, ExprKind::Name(_)) => {
                let name = self.metric_name(h, hcx)?;
                Some((RunExpr::Metric(name, h.span), Sort::Number))
            }
            ExprKind::Unary(op, inner) => {
                let (x, sort) = self.run_expr(inner, hcx, grid)?;
                let (text, want) = match op {
                    UnOp::Neg => ("-", Sort::Number),
                    UnOp::Not => ("not", Sort::Truth),
                };
                self.want(sort, want, inner)?;
                Some((RunExpr::Unary(text, Box::new(x)), want))
            }
            ExprKind::Binary(op, a, b) => {
                let (want, gives) = match op {
                    BinOp::And | BinOp::Or => (Sort::Truth, Sort::Truth),
                    op if op.compares() => (Sort::Number, Sort::Truth),
                    BinOp::Add | BinOp::Sub | BinOp::Mul | BinOp::Div => (Sort::Number, Sort::Number),
                    _ => {
                        self.error("P0312", format!("`{}` has no place in a condition", op.text()), h.span, "not a comparison");
                        return None;
                    }
                };
                // Two constants are joined with their units.
                if gives == Sort::Number {
                    match self.eval(h, hcx) {
                        Val::Other(..) | Val::Word(..) => {}
                        _ => return self.constant(h, hcx),
                    }
                }
                let (x, y) = (self.run_expr(a, hcx, grid), self.run_expr(b, hcx, grid));
                let ((x, sx), (y, sy)) = (x?, y?);
                self.want(sx, want, a)?;
                self.want(sy, want, b)?;
                Some((RunExpr::Binary(op.text(), Box::new(x), Box::new(y)), gives))
            }
            _ => self.constant(e, cx),
        }
    }

    fn want(&mut self, found: Sort, want: Sort, e: &Expr) -> Option<()> {
        if found == want {
            return Some(());
        }
        let (f, w) = if want == Sort::Truth { ("a number", "a comparison") } else { ("a truth", "a number") };
        self.error("P0312", format!("found {f}, expected {w}"), e.span, format!("expected {w}"));
        None
    }

    fn constant(&mut self, e: &'a Expr, cx: Cx) -> Option<(RunExpr, Sort)> {
        let v = self.eval(e, cx);
        let number = match &v {
            Val::Number(x) | Val::Quantity(x, _) => *x,
            Val::Percent(x) | Val::Points(x) => (x * 1e7).round() / 1e9,
            Val::Bool(b) => return Some((RunExpr::Const(f64::from(u8::from(*b))), Sort::Truth)),
            Val::Other(o) => {
                let (code, message) = match &o.kind {
                    ExprKind::Name(n) => ("P0105", format!("`{n}` is no number: it is the name of something else")),
                    _ => ("P0312", format!("found {}, expected a metric or a number", describe(&v))),
                };
                let label = "name a metric: `eval … as acc`, then `acc`";
                self.error(code, message, o.span, label);
                return None;
            }
            _ => {
                self.mismatch(&v, "a metric or a number", e.span);
                return None;
            }
        };
        Some((RunExpr::Const(number), Sort::Number))
    }
}

/// How many metrics a condition names.
pub(super) fn metrics(e: &RunExpr) -> usize {
    match e {
        RunExpr::Const(_) => 0,
        RunExpr::Metric(..) => 1,
        RunExpr::Unary(_, x) => metrics(x),
        RunExpr::Binary(_, a, b) => metrics(a) + metrics(b),
    }
}
