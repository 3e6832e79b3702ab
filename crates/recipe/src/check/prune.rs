//! `score` and `prune`: selector, amount and criterion, and whether the three go together.

use crate::ast::{Block, Expr, ExprKind, Ident, PruneStmt};
use crate::catalogue::{Args, Kind, SiteKind, Spec};
use crate::diagnostic::Diagnostic;
use crate::plan::{Amount, Bound, CriterionRef, Goal, Part, Prune, Scope, Selector, Share, Span, StepKind, Unit, Value};
use crate::syntax_error::nearest;

use super::eval::{Val, describe, unit_name};
use super::options::{BATCH_FIELDS, PRUNE_EXTRA, PRUNE_FIELDS};
use super::selector::{kind_word, kinds_of, model_of, paths};
use super::{Binding, Checker, Cx};

const SCOPES: &[(&str, Scope)] = &[("global", Scope::Global), ("layer", Scope::Layer), ("matrix", Scope::Matrix), ("row", Scope::Row)];

/// The unit that counts sites of a kind.
fn counted_by(kind: SiteKind) -> Option<Unit> {
    Some(match kind {
        SiteKind::Heads => Unit::Heads,
        SiteKind::KvGroups => Unit::Groups,
        SiteKind::Neurons => Unit::Neurons,
        SiteKind::Experts => Unit::Experts,
        SiteKind::Layers => Unit::Layers,
        SiteKind::Hidden => Unit::Channels,
        SiteKind::Attention | SiteKind::Mlp => Unit::Layers,
        SiteKind::Weights => return None,
    })
}

impl<'a> Checker<'a> {
    /// A selector of what can be scored and removed.
    pub(super) fn prunable(&mut self, e: &'a Expr, cx: Cx) -> Option<Selector> {
        let s = self.selector(e, cx)?;
        let mut all = Vec::new();
        paths(&s, &mut all);
        for (part, span) in all {
            let why = match part {
                Part::Model => "the whole model",
                Part::Linears { .. } => "whole matrices",
                Part::Embeddings => "the embeddings",
                Part::Head => "the language-model head",
                Part::Classifier => "the classifier",
                Part::Adapter(_) => "an adapter",
                _ => continue,
            };
            let d = Diagnostic::error("P0211", format!("{why} can't be pruned"), span, "has no units");
            let d = match part {
                Part::Linears { .. } => d.hint("for single weights write `.linears.weights`"),
                _ => d.hint("units are heads, kv_groups, neurons, experts, attention, mlp, layers, hidden and weights"),
            };
            self.report(d);
            return None;
        }
        Some(s)
    }

    /// What stands behind `using`.
    fn criterion(&mut self, e: &'a Expr, cx: Cx, selector: Option<&Selector>, in_train: bool) -> Option<CriterionRef> {
        let (h, hcx) = self.head(e, cx);
        if let ExprKind::Name(n) = &h.kind {
            match self.lookup(n, hcx.scope) {
                Some(Binding::Score { full, selector: scored }) => {
                    if let Some(s) = selector {
                        let known = kinds_of(&scored);
                        let missing = kinds_of(s).into_iter().find(|k| !known.contains(k));
                        if model_of(&scored) != model_of(s) || missing.is_some() {
                            let what = missing.map_or("this model", kind_word);
                            let d = Diagnostic::error("P0209", format!("`{n}` holds no scores of {what}"), h.span, "scored something else");
                            self.report(d);
                            return None;
                        }
                    }
                    return Some(CriterionRef::Stored(full));
                }
                Some(Binding::Poison) => return None,
                _ => {}
            }
        }
        let method = self.method(Kind::Criterion, e, cx)?;
        let spec = self.spec(Kind::Criterion, &method.name)?;
        if let Some(s) = selector
            && let Some(kind) = kinds_of(s).into_iter().find(|k| !spec.sites.is_empty() && !spec.sites.contains(k))
        {
            let known: Vec<&str> = spec.sites.iter().map(|k| kind_word(*k)).collect();
            let d = Diagnostic::error("P0209", format!("`{}` can't score {}", method.name, kind_word(kind)), e.span, "not for these units");
            self.report(d.hint(format!("it scores: {}", known.join(", "))));
            return None;
        }
        if spec.learns && !in_train {
            let d = Diagnostic::error(
                "P0504",
                format!("`{}` learns its scores, so it works inside `train` only", method.name),
                e.span,
                "nothing learns here",
            );
            self.report(d.hint("move the `prune` into the block of a `train`"));
            return None;
        }
        if spec.needs_data && !in_train && method.args.get("on").is_none() {
            let message = format!("`{}` is measured on data, and outside `train` none is at hand", method.name);
            let d = Diagnostic::error("P0410", message, e.span, "`on` is missing");
            self.report(d.hint(format!("write `{}(on = d.train.sample(64, seed = 0))`", method.name)));
            return None;
        }
        Some(CriterionRef::Method(method))
    }

    /// The row of a criterion that turns the residual stream.
    fn turning(&self, criterion: &CriterionRef) -> Option<&'static Spec> {
        let CriterionRef::Method(m) = criterion else { return None };
        self.spec(Kind::Criterion, &m.name).filter(|spec| spec.turns)
    }

    /// A criterion of a `score`: one whose scores mean something apart from a prune.
    fn scoring(&mut self, e: &'a Expr, cx: Cx, selector: Option<&Selector>) -> Option<CriterionRef> {
        let criterion = self.criterion(e, cx, selector, false)?;
        if let Some(Spec { name, .. }) = self.turning(&criterion) {
            let d = Diagnostic::error("P0414", format!("`{name}` gives no scores apart from a prune"), e.span, "nothing to keep");
            let hint = "it ranks directions that only its own turn makes channels of";
            self.report(d.hint(format!("{hint}; write `prune m.hidden by … using {name}(…)`")));
            return None;
        }
        Some(criterion)
    }

    /// A `score` statement.
    #[expect(clippy::too_many_arguments, reason = "the parts of one statement")]
    pub(super) fn score_statement(
        &mut self,
        span: Span,
        selector: &'a Expr,
        using: Option<&'a Expr>,
        from: Option<&'a Expr>,
        name: Option<&'a Ident>,
        block: Option<&'a Block>,
        cx: Cx,
    ) {
        let s = self.prunable(selector, cx);
        let criterion = match (using, from) {
            (_, Some(from)) => {
                if let Some(using) = using {
                    self.scoring(using, cx, s.as_ref());
                }
                match self.eval(from, cx) {
                    Val::Text(dir) => Some(CriterionRef::Run { dir: dir.into(), name: name.map(|n| n.name.clone()) }),
                    v => {
                        self.mismatch(&v, "the path of a run directory", from.span);
                        None
                    }
                }
            }
            (Some(using), None) => self.scoring(using, cx, s.as_ref()),
            (None, None) => {
                let d = Diagnostic::error("P0403", "`score` needs a criterion", span, "`using` is missing");
                self.report(d.hint("write `using CRITERION()`, or `from \"runs/…\"`"));
                None
            }
        };
        let options = self.simple_options(block, cx, BATCH_FIELDS, "score");
        match (s, criterion, options) {
            (Some(selector), Some(criterion), Some(options)) => {
                let kind = StepKind::Score { selector: selector.clone(), criterion, batch: options.count("batch").ok() };
                let full = self.emit(span, name.map(|n| n.name.as_str()), "score", kind);
                if let Some(n) = name {
                    self.bind(n, Binding::Score { full, selector }, cx.scope, false);
                }
            }
            _ => {
                if let Some(n) = name {
                    self.bind(n, Binding::Poison, cx.scope, false);
                }
            }
        }
    }

    /// A `prune`, inside `train` or outside.
    pub(super) fn prune(&mut self, span: Span, p: &'a PruneStmt, cx: Cx, train: Option<&str>) -> Option<Prune> {
        let selector = self.prunable(&p.selector, cx);
        if let (Some(s), Some(trained)) = (&selector, train)
            && model_of(s) != trained
        {
            self.error(
                "P0509",
                format!("this `train` is of `{trained}`, the selector of `{}`", model_of(s)),
                p.selector.span,
                "another model",
            );
        }
        let goal = match (&p.by, &p.to) {
            (Some(by), _) => {
                let amount = self.amount(by, cx);
                if let (Some(a), Some(s)) = (&amount, &selector) {
                    self.fits(a, s, by, train.is_some());
                }
                amount.map(Goal::By)
            }
            (None, Some(to)) => {
                if train.is_some() {
                    let d = Diagnostic::error("P0310", "a bound is met at once, not over a training", to.span, "not inside `train`");
                    self.report(d.hint("say how much goes: `by cubic(0% -> 40%)`; or prune to the bound before the `train`"));
                }
                let bound = self.bound(to, cx);
                if let (Some(Bound::Shape(shape)), Some(s)) = (&bound, &selector) {
                    let kinds = kinds_of(s);
                    if let Some((k, _)) = shape.iter().find(|(k, _)| !kinds.contains(k)) {
                        let message = format!("the shape gives `{}`, which the selector does not name", kind_word(*k));
                        self.error("P0310", message, to.span, "not selected");
                    }
                }
                bound.map(Goal::To)
            }
            (None, None) => None,
        };
        let criterion = self.criterion(&p.using, cx, selector.as_ref(), train.is_some());
        let mut fields = self.fields(p.block.as_ref(), cx, "prune");
        let scope = fields.take("scope").map(|(e, cx)| self.scope(e, cx));
        let at_least = fields.take("at_least").map(|(e, cx)| self.at_least(e, cx, selector.as_ref()));
        let every = match fields.take("every") {
            Some((e, ecx)) if train.is_some() => Some(self.when(e, ecx)),
            Some((e, _)) => {
                let d = Diagnostic::error("P0510", "`every` needs the clock of a `train`", e.span, "no steps here");
                self.report(d.hint("a `prune` outside `train` is one-shot: to score again in between, write `rescore = 10%`"));
                None
            }
            None => None,
        };
        let places = ["rescore", "inputs", "on"].map(|name| fields.span(name));
        let options = self.take_options(&mut fields, PRUNE_FIELDS);
        let refit = fields.span("reconstruct");
        let extra = self.take_options(&mut fields, PRUNE_EXTRA);
        let known = ["scope", "at_least", "every"].into_iter().chain(PRUNE_FIELDS.iter().chain(PRUNE_EXTRA).map(|p| p.name)).collect();
        self.leftover(fields, known, "prune");
        // A field that was given but is wrong (`Some(None)`) makes the whole statement wrong.
        let given = |f: &Option<Option<Scope>>| f.is_some_and(|x| x.is_none());
        if given(&scope) || matches!(at_least, Some(None)) || matches!(every, Some(None)) {
            return None;
        }
        let (selector, options) = (selector?, options?);
        if let (Some(at), Some(extra)) = (refit, &extra)
            && extra.word("reconstruct").is_ok_and(|w| w != "none")
        {
            self.refit(at, extra, &selector, criterion.as_ref(), train.is_some());
        }
        self.without_use(places, refit.is_some(), goal.as_ref(), train.is_some());
        if let (Some(Goal::To(bound)), Some(extra)) = (&goal, &extra) {
            self.can_be_met(bound, &selector, criterion.as_ref(), extra, p)?;
        }
        let words = |v: &Value| match v {
            Value::List(items) => items.iter().filter_map(|i| if let Value::Word(w) = i { Some(w.clone()) } else { None }).collect(),
            _ => Vec::new(),
        };
        let turned = criterion.as_ref().and_then(|c| self.turning(c)).map(|_| span);
        let state = self.state(model_of(&selector));
        state.weights.turned = turned.or(state.weights.turned);
        state.touched = true;
        if kinds_of(&selector).iter().any(|k| *k != SiteKind::Weights) {
            state.masked = Some(span);
            state.masked_kinds = kinds_of(&selector);
        }
        Some(Prune {
            goal: goal?,
            criterion: criterion?,
            scope: scope.flatten(),
            at_least: at_least.flatten(),
            align: options.count("align").ok(),
            rescore: match options.get("rescore") {
                Some(Value::Percent(s)) => Some(*s),
                _ => None,
            },
            every: every.flatten(),
            protect: match options.get("protect") {
                Some(Value::Selector(s)) => Some(s.clone()),
                _ => None,
            },
            dense_inputs: options.word("inputs").ok().map(|w| w == "dense"),
            loads_in: options.get("loads_in").map(words).unwrap_or_default(),
            batch: options.count("batch").ok(),
            options: extra?,
            selector,
        })
    }

    /// Options (`rescore`, `inputs`, `on`, where they stand) that nothing here would read, and a bound inside a training.
    fn without_use(&mut self, [rescore, inputs, on]: [Option<Span>; 3], refit: bool, goal: Option<&Goal>, in_train: bool) {
        let mut error = |at: Span, message: &str, hint: &str| {
            self.report(Diagnostic::error("P0408", message, at, "nothing reads it here").hint(hint));
        };
        if let (true, Some(at)) = (in_train, rescore) {
            error(at, "`rescore` is of a prune outside `train`", "inside, `every = 20 steps` says when it is scored again");
        }
        if let (true, Some(at)) = (in_train, inputs) {
            error(at, "`inputs` is of a prune outside `train`", "inside, scores are of the model as it stands");
        }
        // `reconstruct = none` may be one cell of a sweep.
        if let (Some(at), Some(Goal::By(_)), false) = (on, goal, refit) {
            let hint = "the criterion's data stands in its brackets: `using taylor(on = …)`; write `reconstruct = least_squares` for a fit on these";
            error(at, "`on` beside a prune is for `reconstruct = …` and for bounds", hint);
        }
    }

    /// Whether `reconstruct = …` has something to fit, and data to fit it on.
    fn refit(&mut self, at: Span, extra: &Args, selector: &Selector, criterion: Option<&CriterionRef>, in_train: bool) {
        let fitted = [SiteKind::Heads, SiteKind::KvGroups, SiteKind::Neurons];
        if in_train {
            let d = Diagnostic::error("P0513", "`reconstruct` makes up for a one-shot prune", at, "the training recovers by itself");
            self.report(d.hint("leave it out, or prune before the `train`"));
        } else if let Some(kind) = kinds_of(selector).into_iter().find(|k| !fitted.contains(k)) {
            let message = format!("`reconstruct` has nothing to fit where {} go", kind_word(kind));
            let d = Diagnostic::error("P0513", message, at, "for heads, kv_groups and neurons");
            self.report(d.hint(match kind {
                SiteKind::Weights => "`sparsegpt` updates the weights that stay; a `reconstruct` or `train` step recovers, too",
                _ => "recover with a `reconstruct` or `train` step",
            }));
        } else if extra.get("on").is_none() && !matches!(criterion, Some(CriterionRef::Method(m)) if m.args.get("on").is_some()) {
            let d = Diagnostic::error("P0410", "`reconstruct` is fitted on data, and the criterion has none", at, "`on` is missing");
            self.report(d.hint("write `on = d.train.sample(128)` beside it"));
        }
    }

    /// Whether a bound's limits can be measured on the model alone, and its curves on data.
    fn can_be_met(&mut self, bound: &Bound, s: &Selector, criterion: Option<&CriterionRef>, extra: &Args, p: &'a PruneStmt) -> Option<()> {
        let to = p.to.as_ref()?;
        if kinds_of(s).contains(&SiteKind::Weights) {
            let d = Diagnostic::error(
                "P0310",
                "a bound counts whole units: zeros among single weights make no model smaller",
                to.span,
                "not for weights",
            );
            self.report(d.hint("say how many weights go: `by 50%`"));
            return None;
        }
        let Bound::Limits(limits) = bound else { return Some(()) };
        for limit in limits {
            if self.spec(Kind::Metric, &limit.metric.name).is_some_and(|m| m.needs_data) {
                let message = format!("`{}` is measured on data, a limit on the model alone", limit.metric.name);
                let d = Diagnostic::error("P0311", message, limit.metric.span, "not a limit");
                self.report(d.hint("limits are params, flops(…), memory(…), latency(…); test the quality with `eval` and `expect`"));
                return None;
            }
        }
        let own = matches!(criterion, Some(CriterionRef::Method(m)) if matches!(m.args.get("on"), Some(Value::Data(_))));
        if criterion.is_some() && !own && extra.get("on").is_none() {
            let message = "a bound is met from sensitivity curves, which are measured on data";
            let d = Diagnostic::error("P0403", message, to.span, "on which data?");
            self.report(d.hint("give it in the step's block: `{ on = d.train.sample(64, seed = 0) }`"));
            return None;
        }
        Some(())
    }

    fn scope(&mut self, e: &'a Expr, cx: Cx) -> Option<Scope> {
        let v = self.eval(e, cx);
        let word = match &v {
            Val::Word(w, ..) => (*w).to_owned(),
            Val::Text(s) => s.clone(),
            Val::Poison => return None,
            _ => {
                self.mismatch(&v, "`global`, `layer`, `matrix` or `row`", e.span);
                return None;
            }
        };
        let found = SCOPES.iter().find(|(n, _)| *n == word).map(|(_, s)| *s);
        if found.is_none() {
            let d =
                Diagnostic::error("P0406", format!("found `{word}`, expected `global`, `layer`, `matrix` or `row`"), e.span, "not a scope");
            let d = match nearest(&word, SCOPES.iter().map(|(n, _)| *n)) {
                Some(w) => Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(w),
                None => d,
            };
            self.report(d);
        }
        found
    }

    /// `at_least = 1 head` or `25%`, per layer.
    fn at_least(&mut self, e: &'a Expr, cx: Cx, selector: Option<&Selector>) -> Option<Value> {
        let v = self.eval(e, cx);
        match &v {
            Val::Percent(x) if (0.0..=100.0).contains(x) => Some(Value::Percent(super::eval::share(*x))),
            Val::Quantity(x, unit) => {
                if x.fract() != 0.0 || *x < 0.0 {
                    self.error("P0307", format!("found {}, expected a whole number ≥ 0", describe(&v)), e.span, "not a whole number");
                    return None;
                }
                if let Some(s) = selector {
                    self.unit_fits(*unit, s, e.span)?;
                }
                Some(Value::Quantity(*x, *unit))
            }
            Val::Number(x) => {
                let unit = selector.and_then(|s| kinds_of(s).first().copied()).and_then(counted_by).map_or("heads", unit_name);
                self.needs_unit(*x, unit, e.span);
                None
            }
            Val::Percent(_) => {
                self.error("P0306", format!("found {}, outside 0%..=100%", describe(&v)), e.span, "out of range");
                None
            }
            _ => {
                self.mismatch(&v, "a count such as `1 head`, or a percent", e.span);
                None
            }
        }
    }

    fn unit_fits(&mut self, unit: Unit, s: &Selector, span: Span) -> Option<()> {
        let kinds = kinds_of(s);
        if kinds.iter().any(|k| counted_by(*k) == Some(unit)) {
            return Some(());
        }
        let selected: Vec<&str> = kinds.iter().map(|k| kind_word(*k)).collect();
        let d = Diagnostic::error(
            "P0303",
            format!("found {}, but the selector names {}", unit_name(unit), selected.join(" and ")),
            span,
            "wrong unit",
        );
        let d = match kinds.first().copied().and_then(counted_by) {
            Some(u) => d.hint(format!("count in {}", unit_name(u))),
            None => d.hint("weights are counted in percent, or `2 of 4`"),
        };
        self.report(d);
        None
    }

    /// Whether an amount makes sense for what is selected.
    fn fits(&mut self, amount: &Amount, s: &Selector, e: &'a Expr, in_train: bool) {
        let kinds = kinds_of(s);
        let weights = kinds == [SiteKind::Weights];
        match amount {
            Amount::Share { each: false, .. } | Amount::OfRemaining { each: false, .. } | Amount::Scheduled { each: false, .. }
                if kinds.len() > 1 =>
            {
                let selected: Vec<&str> = kinds.iter().map(|k| kind_word(*k)).collect();
                let message = format!("a share of {} together has no meaning", selected.join(" and "));
                let d = Diagnostic::error("P0505", message, e.span, "of which kind of unit?");
                self.report(d.hint(format!("write `{} each`, or a share of the parameters: `50% of params`", self.label(e))));
            }
            Amount::Units { unit, .. } => {
                self.unit_fits(*unit, s, e.span);
            }
            Amount::NofM { .. } if !weights => {
                let d = Diagnostic::error("P0310", "`n of m` removes single weights", e.span, "the selector names units");
                self.report(d.hint("select `.linears.weights`, or give a percent"));
            }
            _ => {}
        }
        if let Amount::PerLayer(list) = amount {
            for a in list {
                if let Amount::Units { unit, .. } = a {
                    self.unit_fits(*unit, s, e.span);
                }
            }
            let facts = self.states.get(model_of(s)).and_then(|m| m.facts.as_ref());
            let layers = facts.and_then(|f| crate::expand::expand(s, f).ok()).map(|sites| {
                let mut l: Vec<_> = sites.iter().filter_map(|x| x.layer).collect();
                l.sort_unstable();
                l.dedup();
                l.len()
            });
            if let Some(n) = layers.filter(|n| *n != list.len()) {
                self.error("P0310", format!("{} amounts for {n} selected layers", list.len()), e.span, "one for each layer");
            }
        }
        if matches!(amount, Amount::Scheduled { .. }) && !in_train {
            let d = Diagnostic::error("P0504", "a schedule needs the clock of a `train`", e.span, "one-shot here");
            self.report(d.hint("move the `prune` into a `train`, or give one amount"));
        }
        if let Amount::Share { share, .. } = amount
            && *share == Share(0)
            && !self.in_loop
        {
            self.report(Diagnostic::warning("P0904", "this prune removes nothing", e.span, "0%"));
        }
    }
}
