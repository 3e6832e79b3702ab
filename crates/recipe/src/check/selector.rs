//! Selectors: paths from a model to its units, fanned out, joined and cut.

use crate::ast::{Arg, BinOp, Expr, ExprKind, Ident, Index, Seg};
use crate::catalogue::SiteKind;
use crate::diagnostic::Diagnostic;
use crate::expand::expand;
use crate::facts::Facts;
use crate::plan::{Indices, Part, Selector, Span};
use crate::syntax_error::nearest;

use super::eval::Val;
use super::{Binding, Checker, Cx};

/// A kind of unit as a recipe writes it.
pub(crate) fn kind_word(kind: SiteKind) -> &'static str {
    match kind {
        SiteKind::Heads => "heads",
        SiteKind::KvGroups => "kv_groups",
        SiteKind::Neurons => "neurons",
        SiteKind::Experts => "experts",
        SiteKind::Attention => "attention",
        SiteKind::Mlp => "mlp",
        SiteKind::Layers => "layers",
        SiteKind::Hidden => "hidden",
        SiteKind::Weights => "weights",
    }
}

/// What a part is called, and its parts.
fn parts_of(part: &Part) -> (&'static str, &'static [&'static str]) {
    match part {
        Part::Model => ("the model", &["layers", "hidden", "embeddings", "head", "classifier", "tensors"]),
        Part::Units { kind, .. } => match kind {
            SiteKind::Layers => ("layers", &["attention", "mlp", "linears"]),
            SiteKind::Attention => ("attention", &["heads", "kv_groups", "linears"]),
            SiteKind::Mlp => ("mlp", &["neurons", "experts", "linears"]),
            other => (kind_word(*other), &[]),
        },
        Part::Linears { .. } => ("linears", &["weights"]),
        Part::Weights { .. } => ("weights", &[]),
        Part::Embeddings => ("embeddings", &[]),
        Part::Head => ("head", &[]),
        Part::Classifier => ("classifier", &[]),
        Part::Hidden => ("hidden", &[]),
        Part::Tensors(_) => ("tensors", &[]),
        Part::Adapter(_) => ("an adapter", &[]),
    }
}

fn member(part: &Part, name: &str) -> Option<Part> {
    let units = |layers: &Indices, kind| Part::Units { layers: layers.clone(), kind, units: Indices::All };
    let within =
        |layers: &Indices, kind: SiteKind| Part::Linears { layers: layers.clone(), within: (kind != SiteKind::Layers).then_some(kind) };
    Some(match (part, name) {
        (Part::Model, "layers") => units(&Indices::All, SiteKind::Layers),
        (Part::Model, "hidden") => Part::Hidden,
        (Part::Model, "embeddings") => Part::Embeddings,
        (Part::Model, "head") => Part::Head,
        (Part::Model, "classifier") => Part::Classifier,
        (Part::Units { kind: SiteKind::Layers, layers, .. }, "attention") => units(layers, SiteKind::Attention),
        (Part::Units { kind: SiteKind::Layers, layers, .. }, "mlp") => units(layers, SiteKind::Mlp),
        (Part::Units { kind: SiteKind::Attention, layers, .. }, "heads") => units(layers, SiteKind::Heads),
        (Part::Units { kind: SiteKind::Attention, layers, .. }, "kv_groups") => units(layers, SiteKind::KvGroups),
        (Part::Units { kind: SiteKind::Mlp, layers, .. }, "neurons") => units(layers, SiteKind::Neurons),
        (Part::Units { kind: SiteKind::Mlp, layers, .. }, "experts") => units(layers, SiteKind::Experts),
        (Part::Units { kind: kind @ (SiteKind::Layers | SiteKind::Attention | SiteKind::Mlp), layers, .. }, "linears") => {
            within(layers, *kind)
        }
        (Part::Linears { layers, within }, "weights") => Part::Weights { layers: layers.clone(), within: *within },
        _ => return None,
    })
}

/// The model that a selector takes units from.
pub(crate) fn model_of(s: &Selector) -> &str {
    match s {
        Selector::Path { model, .. } => model,
        Selector::Union(parts) => parts.first().map_or("", model_of),
        Selector::Except(a, _) => model_of(a),
    }
}

/// The kinds of unit that a selector names, each once, in order of appearance.
pub(crate) fn kinds_of(s: &Selector) -> Vec<SiteKind> {
    fn add(s: &Selector, out: &mut Vec<SiteKind>) {
        match s {
            Selector::Path { part, .. } => {
                let kind = match part {
                    Part::Units { kind, .. } => Some(*kind),
                    Part::Weights { .. } | Part::Tensors(_) => Some(SiteKind::Weights),
                    Part::Hidden => Some(SiteKind::Hidden),
                    _ => None,
                };
                if let Some(k) = kind.filter(|k| !out.contains(k)) {
                    out.push(k);
                }
            }
            Selector::Union(parts) => parts.iter().for_each(|p| add(p, out)),
            Selector::Except(a, _) => add(a, out),
        }
    }
    let mut out = Vec::new();
    add(s, &mut out);
    out
}

/// Every path in a selector, those behind `except` left out.
pub(super) fn paths<'s>(s: &'s Selector, out: &mut Vec<(&'s Part, Span)>) {
    match s {
        Selector::Path { part, span, .. } => out.push((part, *span)),
        Selector::Union(parts) => parts.iter().for_each(|p| paths(p, out)),
        Selector::Except(a, _) => paths(a, out),
    }
}

impl<'a> Checker<'a> {
    /// A selector; errors are reported, also those that the model's facts show.
    pub(super) fn selector(&mut self, e: &'a Expr, cx: Cx) -> Option<Selector> {
        let s = self.select(e, cx)?;
        let model = model_of(&s).to_owned();
        if let Some(facts) = self.states.get(&model).and_then(|s| s.facts.as_ref())
            && let Err(d) = expand(&s, facts)
        {
            // An adapter or a whole model has no sites; only positions can be wrong.
            self.report(*d);
            return None;
        }
        Some(s)
    }

    fn select(&mut self, e: &'a Expr, cx: Cx) -> Option<Selector> {
        let (h, hcx) = self.head(e, cx);
        match &h.kind {
            ExprKind::Name(n) => match self.lookup(n, hcx.scope) {
                Some(Binding::Model(model)) => Some(Selector::Path { model, part: Part::Model, span: h.span }),
                Some(Binding::Adapter { model, full }) => Some(Selector::Path { model, part: Part::Adapter(full), span: h.span }),
                Some(Binding::Poison) => None,
                _ => self.no_selector(e, cx),
            },
            ExprKind::Path(base, seg) => {
                let base = self.select(base, hcx)?;
                self.apply(base, seg, hcx)
            }
            ExprKind::Call(callee, args) => self.tensors(h, callee, args, hcx),
            ExprKind::Binary(BinOp::Union, a, b) => {
                let (a, b) = (self.select(a, hcx), self.select(b, hcx));
                let (a, b) = (a?, b?);
                self.same_model(&a, &b, h.span)?;
                let mut parts = Vec::new();
                for s in [a, b] {
                    match s {
                        Selector::Union(inner) => parts.extend(inner),
                        s => parts.push(s),
                    }
                }
                Some(Selector::Union(parts))
            }
            ExprKind::Binary(BinOp::Except, a, b) => {
                let (a, b) = (self.select(a, hcx), self.select(b, hcx));
                let (a, b) = (a?, b?);
                self.same_model(&a, &b, h.span)?;
                Some(Selector::Except(Box::new(a), Box::new(b)))
            }
            _ => self.no_selector(e, cx),
        }
    }

    fn no_selector(&mut self, e: &'a Expr, cx: Cx) -> Option<Selector> {
        let v = self.eval(e, cx);
        match v {
            Val::Word(..) | Val::Poison => self.mismatch(&v, "a selector such as `m.layers[*].mlp.neurons`", e.span),
            _ => {
                let found = super::eval::describe(&v);
                let d = Diagnostic::error("P0201", format!("found {found}, expected units of a model"), e.span, "not a selector");
                self.report(d.hint("a selector begins with a model: `m.layers[*].attention.heads`"));
            }
        }
        None
    }

    fn same_model(&mut self, a: &Selector, b: &Selector, span: Span) -> Option<()> {
        if model_of(a) == model_of(b) {
            return Some(());
        }
        let message = format!("a selector takes from one model, found `{}` and `{}`", model_of(a), model_of(b));
        self.error("P0210", message, span, "two models");
        None
    }

    fn tensors(&mut self, e: &'a Expr, callee: &'a Expr, args: &'a [Arg], cx: Cx) -> Option<Selector> {
        if let ExprKind::Path(base, Seg::Member(m)) = &callee.kind
            && m.name == "tensors"
        {
            let base = self.select(base, cx)?;
            let Selector::Path { model, part: Part::Model, .. } = base else {
                self.error("P0207", "only a model has `tensors`", m.span, "write `m.tensors(\"glob\")`");
                return None;
            };
            let [Arg { name: None, value }] = args else {
                self.error("P0403", "`tensors` takes one glob in quotes", e.span, "write `m.tensors(\"*.weight\")`");
                return None;
            };
            return match self.eval(value, cx) {
                Val::Text(glob) => Some(Selector::Path { model, part: Part::Tensors(glob), span: e.span }),
                v => {
                    self.mismatch(&v, "a glob in quotes", value.span);
                    None
                }
            };
        }
        self.no_selector(e, cx)
    }

    /// A step along the paths of a selector.
    fn apply(&mut self, s: Selector, seg: &'a Seg, cx: Cx) -> Option<Selector> {
        match s {
            Selector::Union(parts) => {
                let parts: Vec<Option<Selector>> = parts.into_iter().map(|p| self.apply(p, seg, cx)).collect();
                parts.into_iter().collect::<Option<Vec<_>>>().map(Selector::Union)
            }
            Selector::Except(a, b) => {
                // `(A except B).mlp` is `A.mlp except B`: what is inside B stays out.
                let a = self.apply(*a, seg, cx)?;
                Some(Selector::Except(Box::new(a), b))
            }
            Selector::Path { model, part, span } => match seg {
                Seg::Member(m) => self.step(model, &part, m, span),
                Seg::Index(index, at) => self.index(model, part, index, *at, span, cx),
                Seg::Fan(items, _) => {
                    let mut out = Vec::new();
                    for item in items {
                        let mut s = Some(Selector::Path { model: model.clone(), part: part.clone(), span });
                        for seg in item {
                            s = s.and_then(|s| self.apply(s, seg, cx));
                        }
                        out.push(s);
                    }
                    out.into_iter().collect::<Option<Vec<_>>>().map(Selector::Union)
                }
            },
        }
    }

    fn step(&mut self, model: String, part: &Part, m: &Ident, span: Span) -> Option<Selector> {
        let joined = Span { start: span.start.min(m.span.start), end: m.span.end.max(span.end), file: m.span.file };
        let joined = if span.file == m.span.file { joined } else { m.span };
        if let Some(part) = member(part, &m.name) {
            return Some(Selector::Path { model, part, span: joined });
        }
        let (what, names) = parts_of(part);
        let what = if *part == Part::Model { format!("`{model}`") } else { format!("`{what}`") };
        let d = Diagnostic::error("P0207", format!("{what} has no part `{}`", m.name), m.span, "no such part");
        let facts = self.states.get(&model).and_then(|s| s.facts.as_ref());
        let d = match nearest(&m.name, names.iter().copied()) {
            Some(w) => {
                let counts = facts.and_then(|f| counts(f, part, w)).map(|c| format!(" ({c})")).unwrap_or_default();
                Diagnostic { label: format!("did you mean `{w}`?{counts}"), ..d }.fix(w)
            }
            None if names.is_empty() => d.hint(format!("{what} has no parts")),
            None => match deeper(part, &m.name) {
                Some(path) => d.hint(format!("`{}` stands in `{path}`", m.name)).fix(path),
                None => d.hint(format!("it has: {}", names.join(", "))),
            },
        };
        self.report(d);
        None
    }

    fn index(&mut self, model: String, part: Part, index: &'a Index, at: Span, span: Span, cx: Cx) -> Option<Selector> {
        let joined = Span { end: if at.file == span.file { at.end.max(span.end) } else { span.end }, ..span };
        let indices = self.indices(index, cx)?;
        let part = match part {
            Part::Units { kind: SiteKind::Layers, layers: Indices::All, units } => {
                Part::Units { kind: SiteKind::Layers, layers: indices, units }
            }
            Part::Units {
                kind: kind @ (SiteKind::Heads | SiteKind::KvGroups | SiteKind::Neurons | SiteKind::Experts),
                layers,
                units: Indices::All,
            } => Part::Units { kind, layers, units: indices },
            other => {
                let (what, _) = parts_of(&other);
                let twice = matches!(
                    other,
                    Part::Units {
                        kind: SiteKind::Layers | SiteKind::Heads | SiteKind::KvGroups | SiteKind::Neurons | SiteKind::Experts,
                        ..
                    }
                );
                let message = if twice { format!("`{what}` is indexed twice") } else { format!("`{what}` can't be indexed") };
                self.error("P0202", message, at, "no index here");
                return None;
            }
        };
        Some(Selector::Path { model, part, span: joined })
    }

    fn indices(&mut self, index: &'a Index, cx: Cx) -> Option<Indices> {
        let Index::Items(items) = index else { return Some(Indices::All) };
        let (mut out, mut ok) = (Vec::new(), true);
        for item in items {
            if let Some(name) = &item.name {
                self.error("P0203", "an index of units has no names", name.span, "write a number or a range");
                ok = false;
                continue;
            }
            match self.range(&item.value, cx) {
                Some(r) => out.push(r),
                None => ok = false,
            }
        }
        ok.then_some(Indices::Some(out))
    }

    fn range(&mut self, e: &'a Expr, cx: Cx) -> Option<(Option<i64>, Option<i64>)> {
        let (h, hcx) = self.head(e, cx);
        // One past -1 is the end, which has no number of its own.
        let after = |i: i64| if i == -1 { None } else { Some(i + 1) };
        let (start, end) = match &h.kind {
            ExprKind::Binary(BinOp::Range, a, b) => {
                let (a, b) = (self.integer(a, hcx), self.integer(b, hcx));
                (Some(a?), Some(b?))
            }
            ExprKind::Binary(BinOp::RangeIn, a, b) => {
                let (a, b) = (self.integer(a, hcx), self.integer(b, hcx));
                (Some(a?), after(b?))
            }
            ExprKind::Onward(a) => (Some(self.integer(a, hcx)?), None),
            ExprKind::UpTo { end, inclusive } => {
                let end = self.integer(end, hcx)?;
                (None, if *inclusive { after(end) } else { Some(end) })
            }
            _ => {
                let i = self.integer(e, cx)?;
                return Some((Some(i), after(i)));
            }
        };
        if let (Some(a), Some(b)) = (start, end)
            && (a < 0) == (b < 0)
            && a >= b
        {
            self.error("P0204", "the range is empty", e.span, "ends before it begins");
            return None;
        }
        Some((start, end))
    }

    pub(super) fn integer(&mut self, e: &'a Expr, cx: Cx) -> Option<i64> {
        match self.eval(e, cx) {
            Val::Number(x) if x.fract() == 0.0 && x.abs() < 1e9 => Some(x as i64),
            Val::Poison => None,
            v @ Val::Word(..) => {
                self.mismatch(&v, "a whole number", e.span);
                None
            }
            v => {
                let found = super::eval::describe(&v);
                self.error("P0203", format!("found {found}, expected a whole number"), e.span, "not an index");
                None
            }
        }
    }
}

/// Where a part that is not here can be found: `heads` below `layers` is `attention.heads`.
fn deeper(part: &Part, name: &str) -> Option<&'static str> {
    Some(match (part, name) {
        (Part::Units { kind: SiteKind::Layers, .. }, "heads") => "attention.heads",
        (Part::Units { kind: SiteKind::Layers, .. }, "kv_groups") => "attention.kv_groups",
        (Part::Units { kind: SiteKind::Layers, .. }, "neurons") => "mlp.neurons",
        (Part::Units { kind: SiteKind::Layers, .. }, "experts") => "mlp.experts",
        (Part::Units { kind: SiteKind::Layers, .. }, "weights") => "linears.weights",
        (Part::Units { kind: SiteKind::Attention | SiteKind::Mlp, .. }, "weights") => "linears.weights",
        (Part::Model, "attention") => "layers[*].attention",
        (Part::Model, "mlp") => "layers[*].mlp",
        (Part::Model, "linears") => "layers[*].linears",
        (Part::Model, "heads") => "layers[*].attention.heads",
        (Part::Model, "neurons") => "layers[*].mlp.neurons",
        _ => return None,
    })
}

/// "12 per layer × 12 layers" for the units that a part would name.
fn counts(facts: &Facts, part: &Part, name: &str) -> Option<String> {
    let n = facts.layers.len();
    let Some(Part::Units { kind, .. }) = member(part, name) else { return None };
    if kind == SiteKind::Layers {
        return Some(format!("{n} layers"));
    }
    let per: Vec<usize> = (0..n).map(|l| facts.units(kind, l)).collect();
    let (low, high) = (per.iter().min()?, per.iter().max()?);
    let per = if low == high { low.to_string() } else { format!("{low} to {high}") };
    Some(format!("{per} per layer × {n} layers"))
}
