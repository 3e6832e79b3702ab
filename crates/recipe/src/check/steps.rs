//! Statements, one after the other.

use crate::ast::{Arg, Expr, ExprKind, Ident, Stmt, StmtKind};
use crate::catalogue::Kind;
use crate::diagnostic::{Diagnostic, Severity};
use crate::plan::{Expr as RunExpr, Span, StepKind, Value};
use crate::syntax_error::nearest;

use super::options::{BATCH_FIELDS, EXPECT_FIELDS, FLOATS, REINIT_FIELDS, SAVE_FIELDS};
use super::{Binding, Checker, Cx, gate};

impl<'a> Checker<'a> {
    /// A statement of the recipe.
    pub(super) fn statement(&mut self, stmt: &'a Stmt, cx: Cx) {
        let before = self.steps.len();
        self.check_statement(stmt, cx);
        // No statement may get lost: one that left no step has a mistake, or hangs on one.
        let silent = matches!(stmt.kind, StmtKind::Let { .. } | StmtKind::Data { .. });
        if !silent && self.steps.len() == before && !self.exhausted() && !self.diagnostics.iter().any(|d| d.severity == Severity::Error) {
            self.error("P0001", "this statement was not understood", stmt.span, "no step came of it");
        }
    }

    fn check_statement(&mut self, stmt: &'a Stmt, cx: Cx) {
        let span = stmt.span;
        match &stmt.kind {
            StmtKind::Edition(_) | StmtKind::Use { .. } | StmtKind::Param { .. } => {
                self.error("P0503", "this belongs at the top of a recipe, outside loops", span, "not here");
            }
            StmtKind::Model { name, .. } | StmtKind::Data { name, .. } if self.in_loop => {
                let d = Diagnostic::error("P0503", "models and data are declared outside loops", span, "not here");
                self.report(d.hint("declare it above the loop"));
                self.bind(name, Binding::Poison, cx.scope, false);
            }
            StmtKind::Let { name, value } => self.let_statement(name, value, cx),
            StmtKind::Model { name, value, block } => self.model_statement(span, name, value, block.as_ref(), cx),
            StmtKind::Data { name, value, block } => self.data_statement(span, name, value, block.as_ref(), cx),
            StmtKind::Score { selector, using, from, name, block } => {
                self.score_statement(span, selector, using.as_ref(), from.as_ref(), name.as_ref(), block.as_ref(), cx);
            }
            StmtKind::Prune(p) => {
                if let Some(prune) = self.prune(span, p, cx, None) {
                    self.emit(span, None, "prune", StepKind::Prune(prune));
                } else {
                    // A prune with a mistake would have masked something: what follows is not to be blamed.
                    self.states.values_mut().for_each(|state| state.touched = true);
                }
            }
            StmtKind::Compact { model, block } => {
                self.simple_options(block.as_ref(), cx, &[], "compact");
                let Some(model) = self.model_ident(model, cx) else { return };
                let state = self.state(&model);
                let nothing = !state.touched;
                state.weights.turned = None;
                if state.masked.take().is_some() {
                    // Counts are only known to the run from here on.
                    state.facts = None;
                }
                if nothing && !self.in_loop {
                    self.report(Diagnostic::warning("P0903", format!("nothing of `{model}` is masked here"), span, "does nothing"));
                }
                self.emit(span, None, "compact", StepKind::Compact { model });
            }
            StmtKind::Reconstruct { selector, teacher, data, length, block } => {
                self.reconstruct_statement(span, selector, teacher, data, length, block.as_ref(), cx);
            }
            StmtKind::Train { model, data, length, block } => self.train_statement(span, model, data, length, block.as_ref(), cx),
            StmtKind::Attach { adapter, selector, name, block } => {
                self.simple_options(block.as_ref(), cx, &[], "attach");
                let method = self.method(Kind::Adapter, adapter, cx);
                let s = self.selector(selector, cx);
                match (method, s) {
                    (Some(adapter), Some(selector)) => {
                        let model = super::selector::model_of(&selector).to_owned();
                        let kind = StepKind::Attach { adapter, selector, name: name.name.clone() };
                        self.emit(span, Some(&name.name), "attach", kind);
                        self.bind(name, Binding::Adapter { model, full: name.name.clone() }, cx.scope, false);
                    }
                    _ => self.bind(name, Binding::Poison, cx.scope, false),
                }
            }
            StmtKind::Fuse { adapter, model, block } => {
                self.simple_options(block.as_ref(), cx, &[], "fuse");
                let m = self.model_ident(model, cx);
                let a = match self.lookup(&adapter.name, cx.scope) {
                    Some(Binding::Adapter { model: of, full }) => Some((of, full)),
                    Some(Binding::Poison) => None,
                    Some(_) => {
                        self.error("P0105", format!("`{}` is no adapter", adapter.name), adapter.span, "expected an adapter");
                        None
                    }
                    None => {
                        self.unknown_name(&adapter.name, adapter.span, cx.scope, "expected an adapter");
                        None
                    }
                };
                if let (Some(model), Some((of, adapter_name))) = (m, a) {
                    if of != model {
                        self.error(
                            "P0509",
                            format!("`{adapter_name}` is attached to `{of}`, not to `{model}`"),
                            adapter.span,
                            "another model's",
                        );
                        return;
                    }
                    self.emit(span, None, "fuse", StepKind::Fuse { adapter: adapter_name, model });
                }
            }
            StmtKind::Snapshot { model, name, block } => {
                self.simple_options(block.as_ref(), cx, &[], "snapshot");
                match self.model_ident(model, cx) {
                    Some(model) => {
                        let full = format!("{}{}", name.name, self.suffix());
                        self.emit(span, Some(&name.name), "snapshot", StepKind::Snapshot { model: model.clone(), name: full.clone() });
                        let weights = self.state(&model).weights;
                        self.bind(name, Binding::Snapshot { model, full, weights }, cx.scope, false);
                    }
                    None => self.bind(name, Binding::Poison, cx.scope, false),
                }
            }
            StmtKind::Rewind { model, member, to, block } => {
                self.simple_options(block.as_ref(), cx, &[], "rewind");
                self.rewind(span, model, member.as_ref(), to, cx);
            }
            StmtKind::Reinit { model, block } => {
                let options = self.simple_options(block.as_ref(), cx, REINIT_FIELDS, "reinit");
                if let (Some(model), Some(o)) = (self.model_ident(model, cx), options) {
                    self.emit(span, None, "reinit", StepKind::Reinit { model, seed: o.count("seed").unwrap_or(0) });
                }
            }
            StmtKind::Quantize { model, method, block } => {
                self.simple_options(block.as_ref(), cx, &[], "quantize");
                let (m, method) = (self.model_ident(model, cx), self.method(Kind::Quantizer, method, cx));
                if let (Some(model), Some(method)) = (m, method) {
                    self.emit(span, None, "quantize", StepKind::Quantize { model, method });
                }
            }
            StmtKind::Repeat { variable, range, body } => self.repeat_statement(span, variable, range, body, cx),
            StmtKind::Sweep { axes, name, body } => self.sweep_statement(span, axes, name.as_ref(), body, cx),
            StmtKind::Adopt { model, grid, filter, rank, block } => {
                self.simple_options(block.as_ref(), cx, &[], "adopt");
                self.adopt(span, model, grid, filter.as_ref(), rank, cx);
            }
            StmtKind::Eval { metric, of, on, name, block } => {
                let options = self.simple_options(block.as_ref(), cx, BATCH_FIELDS, "eval");
                let batch = options.and_then(|o| o.count("batch").ok());
                let kind = self.eval_kind(span, metric, of.as_ref(), on.as_ref(), None, batch, cx);
                let Some(name) = name else {
                    self.eval_needs_name(span);
                    return;
                };
                let binding = match kind {
                    Some(kind) => Binding::Metric { full: self.emit(span, Some(&name.name), "eval", kind) },
                    None => Binding::Poison,
                };
                self.bind(name, binding, cx.scope, false);
            }
            StmtKind::Expect { expr, message, block } => {
                let condition = self.condition(expr, cx, None);
                let message = message.as_ref().map(|m| self.text_value(m, cx, true));
                let options = self.simple_options(block.as_ref(), cx, EXPECT_FIELDS, "expect");
                let (Some(expr_checked), Some(o)) = (condition, options) else { return };
                let paired = o.flag("paired").unwrap_or(false);
                let confidence = match o.get("confidence") {
                    Some(Value::Percent(s)) => Some(*s),
                    _ => None,
                };
                if (paired || confidence.is_some()) && gate::metrics(&expr_checked) < 2 {
                    let d = Diagnostic::error("P0412", "a paired comparison needs two metrics", expr.span, "names fewer than two");
                    self.report(d.hint("measure both models on the same data, then compare: `after >= before - 1 pp`"));
                    return;
                }
                if matches!(message, Some(None)) {
                    return;
                }
                self.emit(span, None, "expect", StepKind::Expect { expr: expr_checked, message: message.flatten(), paired, confidence });
            }
            StmtKind::Save { model, to, block } => {
                let options = self.simple_options(block.as_ref(), cx, SAVE_FIELDS, "save");
                let m = self.model_ident(model, cx);
                let path = self.text_value(to, cx, false);
                let (Some(model), Some(to_path), Some(o)) = (m, path, options) else { return };
                let word = |k: &str| o.word(k).map(str::to_owned).ok();
                let layout = word("layout").unwrap_or_default();
                self.warn_masked(&model, span, &layout);
                let to = to_path.replace('%', "");
                if to.is_empty() {
                    self.error("P0413", "`save` needs a folder", span, "an empty path");
                    return;
                }
                let (format, dtype) = (word("format").unwrap_or_default(), word("dtype"));
                if let Some(dtype) = dtype.as_ref().filter(|d| format != "gguf" && !FLOATS.contains(&d.as_str())) {
                    let message = format!("`dtype = {dtype}` is a type of GGUF files");
                    let d = Diagnostic::error("P0414", message, span, format!("the Hugging Face layout has {}", FLOATS.join(", ")));
                    self.report(d.hint("add `format = gguf`, or choose another dtype"));
                }
                let kind = StepKind::Save { model, to, format, layout, dtype };
                self.emit(span, None, "save", kind);
            }
            StmtKind::Broken { defines } => {
                for name in defines {
                    if self.lookup_span(&name.name, cx.scope).is_none() {
                        self.bind(name, Binding::Poison, cx.scope, false);
                    }
                }
            }
        }
    }

    /// Masked units that `save` would write as they are.
    fn warn_masked(&mut self, model: &str, span: Span, layout: &str) {
        let Some(masked) = self.states.get(model).and_then(|s| s.masked) else { return };
        if layout == "padded" {
            return;
        }
        let line = self.line(masked);
        let d = Diagnostic::warning("P0902", format!("`{model}` is saved with masked units: it is no smaller"), span, "not compacted");
        self.report(d.hint(format!("line {line} masks whole units; add `compact {model}` above this line")));
    }

    fn rewind(&mut self, span: Span, model: &'a Ident, member: Option<&'a Ident>, to: &'a Ident, cx: Cx) {
        let schedule_only = match member {
            None => false,
            Some(m) if m.name == "schedule" => true,
            Some(m) => {
                let d = Diagnostic::error("P0207", format!("`rewind` knows no `{}`", m.name), m.span, "did you mean `schedule`?");
                self.report(d.hint("`rewind m.schedule to early` rewinds only the learning rate's clock"));
                return;
            }
        };
        let m = self.model_ident(model, cx);
        match self.lookup(&to.name, cx.scope) {
            Some(Binding::Snapshot { model: of, full, weights }) => {
                let Some(model) = m else { return };
                if of != model {
                    self.error("P0509", format!("`{}` is a snapshot of `{of}`, not of `{model}`", to.name), to.span, "another model's");
                    return;
                }
                if !schedule_only {
                    let now = &mut self.state(&model).weights;
                    if let Some(turn) = now.turned.filter(|turn| weights.turned != Some(*turn)) {
                        let line = self.line(turn);
                        let message = format!("`{}` was taken before line {line} turned the residual stream of `{model}`", to.name);
                        let d = Diagnostic::error("P0514", message, to.span, "its channels are not those that are masked");
                        self.report(d.hint(format!("take the snapshot after line {line}, or rewind before it")));
                        return;
                    }
                    *now = weights;
                }
                self.emit(span, None, "rewind", StepKind::Rewind { model, to: full, schedule_only });
            }
            Some(Binding::Poison) => {}
            Some(_) => self.error("P0105", format!("`{}` is no snapshot", to.name), to.span, "expected a snapshot"),
            None => self.unknown_name(&to.name, to.span, cx.scope, "expected a snapshot"),
        }
    }

    fn adopt(&mut self, span: Span, model: &'a Ident, grid: &'a Ident, filter: Option<&'a Expr>, rank: &'a Expr, cx: Cx) {
        let m = self.model_ident(model, cx);
        let (full, metrics) = match self.lookup(&grid.name, cx.scope) {
            Some(Binding::Grid { full, metrics }) => (full, metrics),
            Some(Binding::Poison) => return,
            Some(_) => {
                self.error("P0105", format!("`{}` is no sweep", grid.name), grid.span, "expected the name of a `sweep … as NAME`");
                return;
            }
            None => {
                self.unknown_name(&grid.name, grid.span, cx.scope, "expected the name of a `sweep … as NAME`");
                return;
            }
        };
        let condition = filter.map(|f| self.condition(f, cx, Some(&metrics)));
        let ExprKind::Call(callee, args) = &rank.kind else {
            self.error("P0512", "expected `lowest(NAME)` or `highest(NAME)`", rank.span, "which cell?");
            return;
        };
        let (ExprKind::Name(which), [Arg { name: None, value }]) = (&callee.kind, args.as_slice()) else {
            self.error("P0512", "expected `lowest(NAME)` or `highest(NAME)`", rank.span, "which cell?");
            return;
        };
        if !matches!(which.as_str(), "lowest" | "highest") {
            self.error("P0512", format!("found `{which}`, expected `lowest` or `highest`"), callee.span, "which cell?");
            return;
        }
        let ExprKind::Name(metric) = &value.kind else {
            self.error("P0512", "cells are ranked by one metric", value.span, "name an `eval` of the sweep");
            return;
        };
        if !metrics.contains(metric) {
            let d = Diagnostic::error("P0512", format!("the sweep records no `{metric}`"), value.span, "not measured in its cells");
            let d = match nearest(metric, metrics.iter().map(String::as_str)) {
                Some(w) => Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(w),
                None => d.hint(format!("it records: {}", metrics.join(", "))),
            };
            self.report(d);
            return;
        }
        if matches!(condition, Some(None)) {
            return;
        }
        let Some(model) = m else { return };
        if let Some(left) = self.grids.get(&full).and_then(|g| g.get(&model)).cloned() {
            self.states.insert(model.clone(), left);
        }
        // Which cell's shape it is, only the run knows.
        self.state(&model).facts = None;
        let rank = RunExpr::Metric(metric.clone(), value.span);
        let kind = StepKind::Adopt { model, grid: full, filter: condition.flatten(), rank, lowest: which == "lowest" };
        self.emit(span, None, "adopt", kind);
    }
}
