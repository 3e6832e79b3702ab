//! Models, data sources, and what can be made of data.

use crate::ast::{Arg, BinOp, Block, Expr, ExprKind, Ident, Seg};
use crate::catalogue::{Args, Param, Ty};
use crate::diagnostic::Diagnostic;
use crate::plan::{DataDecl, DataExpr, DataSource, ModelDecl, ModelSource, Span, StepKind, Value};
use crate::syntax_error::nearest;

use super::eval::{Val, describe, share};
use super::options::{CSV_FIELDS, DATA_FIELDS, HUB_DATA_FIELDS, MODEL_FIELDS, ROW_FIELDS};
use super::{Binding, Checker, Cx, ModelState};

const MODEL_SOURCES: &[&str] = &["hf", "dir", "builtin", "init", "copy"];
const DATA_SOURCES: &[&str] = &["hf", "text", "csv", "jsonl", "parquet", "tokens", "builtin"];
const DATA_METHODS: &[&str] = &["sample", "pack", "take", "chat"];

const SAMPLE: &[Param] = &[
    Param {
        name: "n",
        ty: Ty::Count,
        default: None,
        optional: false,
        range: Some((1.0, 1e12)),
        doc: "How many documents, or windows if `length` is given.",
    },
    Param { name: "length", ty: Ty::Tokens, default: None, optional: true, range: Some((1.0, 1e9)), doc: "Length of a window." },
    Param { name: "seed", ty: Ty::Count, default: Some("0"), optional: false, range: None, doc: "Seed of the choice." },
];
const PACK: &[Param] =
    &[Param { name: "length", ty: Ty::Tokens, default: None, optional: false, range: Some((1.0, 1e9)), doc: "Tokens of a row." }];
const TAKE: &[Param] =
    &[Param { name: "n", ty: Ty::Count, default: None, optional: false, range: Some((1.0, 1e12)), doc: "How many, from the beginning." }];
const CHAT: &[Param] = &[
    Param { name: "model", ty: Ty::Model, default: None, optional: false, range: None, doc: "Whose chat template." },
    Param {
        name: "loss",
        ty: Ty::OneOf(&["assistant", "all"]),
        default: Some("all"),
        optional: false,
        range: None,
        doc: "Which turns are learned from.",
    },
];

impl<'a> Checker<'a> {
    /// A call of one of some names: its name, its arguments.
    fn source_call(&mut self, e: &'a Expr, cx: Cx, known: &[&str], what: &str) -> Option<(&'a str, &'a [Arg], Cx, Span)> {
        let (h, hcx) = self.head(e, cx);
        if let ExprKind::Call(callee, args) = &h.kind
            && let ExprKind::Name(n) = &callee.kind
        {
            if known.contains(&n.as_str()) {
                return Some((n, args, hcx, h.span));
            }
            let d = Diagnostic::error("P0409", format!("`{n}` is no source of {what}"), callee.span, "unknown source");
            let d = match nearest(n, known.iter().copied()) {
                Some(w) => Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(w),
                None => d.hint(format!("sources are: {}", known.join(", "))),
            };
            self.report(d);
            return None;
        }
        let v = self.eval(e, cx);
        self.mismatch(&v, &format!("a source of {what} such as `{}(\"…\")`", known.first().copied().unwrap_or("")), e.span);
        None
    }

    /// The first argument of a source, a string; the others by name.
    fn first_text(&mut self, of: &str, args: &'a [Arg], cx: Cx, call: Span) -> Option<(String, &'a [Arg])> {
        let Some((first, rest)) = args.split_first().filter(|(a, _)| a.name.is_none()) else {
            self.error("P0403", format!("`{of}` needs a name or a path in quotes, first"), call, "missing");
            return None;
        };
        self.static_argument(&first.value, cx);
        match self.eval(&first.value, cx) {
            Val::Text(s) => Some((s, rest)),
            Val::Path(p) => Some((p.display().to_string(), rest)),
            v => {
                self.mismatch(&v, "a name or a path in quotes", first.value.span);
                None
            }
        }
    }

    /// Arguments of sources are literals or params, so that a lock can be made without running.
    fn static_argument(&mut self, e: &'a Expr, cx: Cx) {
        if let ExprKind::Name(n) = &e.kind
            && let Some(Binding::Expr(..)) = self.lookup(n, cx.scope)
        {
            let d = Diagnostic::error("P0511", "the arguments of a source are literals or `param`s", e.span, "a `let`");
            self.report(d.hint(format!("make it `param {n}: … = …`, or write the value here")));
        }
    }

    fn block_args(&mut self, block: Option<&'a Block>, cx: Cx, params: &'static [Param], what: &'static str) -> Option<Args> {
        let Some(block) = block else { return Some(Args::default()) };
        let mut fields = self.fields(Some(block), cx, what);
        let args = self.take_options(&mut fields, params);
        self.leftover(fields, params.iter().map(|p| p.name).collect(), what);
        args
    }

    /// A `model` statement.
    pub(super) fn model_statement(&mut self, span: Span, name: &'a Ident, value: &'a Expr, block: Option<&'a Block>, cx: Cx) {
        let decl = self.model_decl(span, name, value, block, cx);
        let Some(decl) = decl else {
            self.bind(name, Binding::Poison, cx.scope, false);
            return;
        };
        let state = match &decl.source {
            ModelSource::Copy(other) => self.states.get(other).cloned().unwrap_or_default(),
            _ => ModelState { facts: self.facts.facts(&decl), ..ModelState::default() },
        };
        self.states.insert(name.name.clone(), state);
        self.models.push(decl);
        self.bind(name, Binding::Model(name.name.clone()), cx.scope, false);
        self.emit(span, Some(&name.name), "load", StepKind::Load { model: name.name.clone() });
    }

    fn model_decl(&mut self, span: Span, name: &'a Ident, value: &'a Expr, block: Option<&'a Block>, cx: Cx) -> Option<ModelDecl> {
        let Some((source, args, scx, call)) = self.source_call(value, cx, MODEL_SOURCES, "models") else {
            self.block_args(block, cx, MODEL_FIELDS, "model");
            return None;
        };
        // What a source has no use for would be left out without a word.
        let params: &'static [Param] = match source {
            "hf" => &MODEL_FIELDS[..4],
            "init" => &MODEL_FIELDS[1..],
            "copy" => &[],
            _ => &MODEL_FIELDS[1..4],
        };
        let options = self.block_args(block, cx, params, "model");
        let cx = scx;
        if source == "copy" {
            let [Arg { name: None, value }] = args else {
                self.error("P0403", "`copy` takes one model", call, "write `copy(m)`");
                return None;
            };
            let model = self.model_name(value, cx)?;
            let task = self.models.iter().find(|m| m.name == model).and_then(|m| m.task.clone());
            return Some(ModelDecl { name: name.name.clone(), source: ModelSource::Copy(model), dtype: None, task, labels: None, span });
        }
        let (text, rest) = self.first_text(source, args, cx, call)?;
        for a in rest {
            self.static_argument(&a.value, cx);
        }
        let given = self.args(source, params, rest, cx, call);
        let (given, options) = (given?, options?);
        let text_of = |key: &str| match given.get(key).or_else(|| options.get(key)) {
            Some(Value::Text(s) | Value::Word(s)) => Some(s.clone()),
            _ => None,
        };
        let seed = given.count("seed").or_else(|_| options.count("seed")).unwrap_or(0);
        let labels = given.count("labels").or_else(|_| options.count("labels")).ok();
        let source = match source {
            "hf" => ModelSource::Hub { repo: text, revision: text_of("revision") },
            "dir" => ModelSource::Dir(self.join(&text)),
            "builtin" => ModelSource::Builtin(text),
            _ => ModelSource::Init { config: self.join(&text), seed },
        };
        Some(ModelDecl { name: name.name.clone(), source, dtype: text_of("dtype"), task: text_of("task"), labels, span })
    }

    /// A `data` statement.
    pub(super) fn data_statement(&mut self, span: Span, name: &'a Ident, value: &'a Expr, block: Option<&'a Block>, cx: Cx) {
        let decl = self.data_decl(span, name, value, block, cx);
        let binding = match decl {
            Some(decl) => {
                self.data.push(decl);
                Binding::Data(name.name.clone())
            }
            None => Binding::Poison,
        };
        self.bind(name, binding, cx.scope, false);
    }

    fn data_decl(&mut self, span: Span, name: &'a Ident, value: &'a Expr, block: Option<&'a Block>, cx: Cx) -> Option<DataDecl> {
        let (source, args, scx, call) = self.source_call(value, cx, DATA_SOURCES, "data")?;
        let params: &'static [Param] = match source {
            "hf" => HUB_DATA_FIELDS,
            "csv" => CSV_FIELDS,
            "jsonl" | "parquet" => ROW_FIELDS,
            _ => DATA_FIELDS,
        };
        let extra = self.block_args(block, cx, params, "data");
        let (text, rest) = self.first_text(source, args, scx, call)?;
        for a in rest {
            self.static_argument(&a.value, scx);
        }
        let fields = self.args(source, params, rest, scx, call);
        let (mut fields, extra) = (fields?, extra?);
        fields.0.extend(extra.0);
        let source = match source {
            "hf" => DataSource::Hub(text),
            "text" => DataSource::Text(self.join(&text)),
            "csv" => DataSource::Csv(self.join(&text)),
            "jsonl" => DataSource::Jsonl(self.join(&text)),
            "parquet" => DataSource::Parquet(self.join(&text)),
            "tokens" => DataSource::Tokens(self.join(&text)),
            _ => DataSource::Builtin(text),
        };
        Some(DataDecl { name: name.name.clone(), source, fields, span })
    }

    /// The name of a model.
    pub(super) fn model_name(&mut self, e: &'a Expr, cx: Cx) -> Option<String> {
        let (h, hcx) = self.head(e, cx);
        if let ExprKind::Name(n) = &h.kind {
            match self.lookup(n, hcx.scope) {
                Some(Binding::Model(m)) => return Some(m),
                Some(Binding::Poison) => return None,
                Some(Binding::Foreign) | None => {}
                Some(_) => {
                    self.error("P0105", format!("`{n}` is no model"), h.span, "expected a model");
                    return None;
                }
            }
        }
        let v = self.eval(e, cx);
        self.mismatch(&v, "a model", e.span);
        None
    }

    /// The model that a statement names.
    pub(super) fn model_ident(&mut self, name: &Ident, cx: Cx) -> Option<String> {
        match self.lookup(&name.name, cx.scope) {
            Some(Binding::Model(m)) => Some(m),
            Some(Binding::Poison) => None,
            Some(_) => {
                self.error("P0105", format!("`{}` is no model", name.name), name.span, "expected a model");
                None
            }
            None => {
                let models = self.names_in_sight(cx.scope, |b| matches!(b, Binding::Model(_)));
                let d = Diagnostic::error("P0101", format!("unknown name `{}`", name.name), name.span, "expected a model");
                let d = match nearest(&name.name, models.iter().map(String::as_str)) {
                    Some(w) => Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(w),
                    None => d,
                };
                self.report(d);
                None
            }
        }
    }

    /// A model, or a frozen one.
    pub(super) fn model_value(&mut self, e: &'a Expr, cx: Cx) -> Option<Value> {
        let (h, hcx) = self.head(e, cx);
        if let ExprKind::Call(callee, args) = &h.kind
            && matches!(&callee.kind, ExprKind::Name(n) if n == "frozen")
        {
            let (model, id) = self.frozen(h, args, hcx)?;
            return Some(Value::Frozen { model, id });
        }
        // A snapshot can stand where two states of a model are compared.
        if let ExprKind::Name(n) = &h.kind
            && let Some(Binding::Snapshot { full, .. }) = self.lookup(n, hcx.scope)
        {
            return Some(Value::Name(full));
        }
        self.model_name(e, cx).map(Value::Model)
    }

    /// `frozen(m)`: taken once where it is first reached.
    pub(super) fn frozen(&mut self, e: &'a Expr, args: &'a [Arg], cx: Cx) -> Option<(String, u32)> {
        if let Some(known) = self.frozen.get(&(cx.frame, e.span)) {
            return Some(known.clone());
        }
        let [Arg { name: None, value }] = args else {
            self.error("P0403", "`frozen` takes one model", e.span, "write `frozen(m)`");
            return None;
        };
        let model = self.model_name(value, cx)?;
        let id = self.frozen.len() as u32;
        self.frozen.insert((cx.frame, e.span), (model.clone(), id));
        self.emit(e.span, None, "freeze", StepKind::Freeze { model: model.clone(), id });
        Some((model, id))
    }

    /// A data set, or what is made of one.
    pub(super) fn data_expr(&mut self, e: &'a Expr, cx: Cx) -> Option<DataExpr> {
        let (h, hcx) = self.head(e, cx);
        match &h.kind {
            ExprKind::Name(n) => match self.lookup(n, hcx.scope) {
                Some(Binding::Data(name)) => Some(DataExpr::Source { name, split: None }),
                Some(Binding::Poison) => None,
                Some(Binding::Foreign) | None => {
                    let v = self.eval(h, hcx);
                    self.mismatch(&v, "data", h.span);
                    None
                }
                Some(_) => {
                    self.error("P0105", format!("`{n}` is no data"), h.span, "expected data");
                    None
                }
            },
            ExprKind::Path(base, Seg::Member(m)) => {
                let base = self.data_expr(base, hcx)?;
                let DataExpr::Source { name, split: None } = base else {
                    let d = Diagnostic::error("P0107", format!("this data has no `{}`", m.name), m.span, "not a split or method");
                    self.report(self.data_hint(d, &m.name));
                    return None;
                };
                if DATA_METHODS.contains(&m.name.as_str()) {
                    let d = Diagnostic::error(
                        "P0407",
                        format!("`{}` is called with its arguments", m.name),
                        m.span,
                        format!("write `{}(…)`", m.name),
                    );
                    self.report(d);
                    return None;
                }
                let splits = self.data.iter().find(|d| d.name == name).and_then(|d| self.facts.splits(d));
                if let Some(splits) = splits.filter(|s| !s.contains(&m.name)) {
                    let d = Diagnostic::error("P0107", format!("`{name}` has no split `{}`", m.name), m.span, "no such split");
                    let d = match nearest(&m.name, splits.iter().map(String::as_str)) {
                        Some(w) => Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(w),
                        None if splits.is_empty() => d.hint("this source has no splits: it is itself data"),
                        None => d.hint(format!("it has: {}", splits.join(", "))),
                    };
                    self.report(d);
                    return None;
                }
                Some(DataExpr::Source { name, split: Some(m.name.clone()) })
            }
            ExprKind::Call(callee, args) => match &callee.kind {
                ExprKind::Path(base, Seg::Member(m)) => self.data_method(base, m, args, hcx, h.span),
                ExprKind::Name(n) if n == "mix" => self.mix(args, hcx, h.span),
                ExprKind::Name(n) if DATA_SOURCES.contains(&n.as_str()) => {
                    let d = Diagnostic::error("P0105", "a source of data needs a name", h.span, "not here");
                    self.report(d.hint(format!("declare it: `data d = {}`", self.label(h))));
                    None
                }
                _ => self.no_data(e, cx),
            },
            _ => self.no_data(e, cx),
        }
    }

    fn no_data(&mut self, e: &'a Expr, cx: Cx) -> Option<DataExpr> {
        let v = self.eval(e, cx);
        self.mismatch(&v, "data such as `d.train`", e.span);
        None
    }

    fn data_hint(&self, d: Diagnostic, name: &str) -> Diagnostic {
        match nearest(name, DATA_METHODS.iter().copied()) {
            Some(w) => Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(w),
            None => d.hint(format!("data has: {}", DATA_METHODS.join(", "))),
        }
    }

    fn data_method(&mut self, base: &'a Expr, m: &'a Ident, args: &'a [Arg], cx: Cx, call: Span) -> Option<DataExpr> {
        let of = self.data_expr(base, cx);
        let params = match m.name.as_str() {
            "sample" => SAMPLE,
            "pack" => PACK,
            "take" => TAKE,
            "chat" => CHAT,
            other => {
                let d = Diagnostic::error("P0107", format!("data has no method `{other}`"), m.span, "unknown method");
                let d = self.data_hint(d, other);
                self.report(d);
                return None;
            }
        };
        let args = self.args(&m.name, params, args, cx, call);
        let (of, args) = (Box::new(of?), args?);
        let count = |k: &str| args.count(k).ok();
        Some(match m.name.as_str() {
            "sample" => DataExpr::Sample { of, n: count("n")?, length: count("length"), seed: count("seed").unwrap_or(0) },
            "pack" => DataExpr::Pack { of, tokens: count("length")? },
            "take" => DataExpr::Take { of, n: count("n")? },
            _ => {
                let Some(Value::Model(model) | Value::Frozen { model, .. }) = args.get("model") else { return None };
                DataExpr::Chat { of, model: model.clone(), loss: args.word("loss").ok()?.to_owned() }
            }
        })
    }

    fn mix(&mut self, args: &'a [Arg], cx: Cx, call: Span) -> Option<DataExpr> {
        let (mut parts, mut ok) = (Vec::new(), true);
        for arg in args {
            let (h, hcx) = self.head(&arg.value, cx);
            let ExprKind::Binary(BinOp::Of, a, b) = &h.kind else {
                self.error("P0310", "a part of a mix is written `70% of d`", arg.value.span, "which share?");
                ok = false;
                continue;
            };
            let (v, data) = (self.eval(a, hcx), self.data_expr(b, hcx));
            match (v, data) {
                (Val::Percent(x), Some(d)) => parts.push((share(x), d)),
                (Val::Percent(_) | Val::Poison, None) => ok = false,
                (v, _) => {
                    self.mismatch(&v, "a percent", a.span);
                    ok = false;
                }
            }
        }
        if !ok {
            return None;
        }
        let total: i64 = parts.iter().map(|(s, _)| s.0).sum();
        if total != crate::plan::Share::ONE.0 {
            let found = describe(&Val::Percent(total as f64 / 1e7));
            self.error("P0306", format!("the shares of a mix add up to {found}, not 100%"), call, "shares");
            return None;
        }
        Some(DataExpr::Mix(parts))
    }
}
