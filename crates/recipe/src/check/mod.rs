//! From [`crate::ast`] to [`Plan`]: names, types, units, ranges, arguments; `repeat` and `sweep` unrolled.
//!
//! Expressions are checked where they are used, with the type that the place needs: a `let` keeps its expression and its scope.
//! A mistake found twice (in two rounds of a `repeat`, say) is reported once; what hangs on a broken statement is not reported.

mod amount;
mod data;
mod definitions;
mod eval;
mod files;
mod gate;
mod loops;
mod methods;
mod options;
mod prune;
mod selector;
mod steps;
mod train;

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::ast::{Expr, Ident};
use crate::catalogue::{Catalogue, SiteKind};
use crate::diagnostic::{Diagnostic, Severity};
use crate::facts::{Facts, ModelFacts};
use crate::plan::{DataDecl, ModelDecl, ParamValue, Plan, Selector, Span, Step, StepKind, Value};
use crate::source::Sources;
use crate::syntax_error::nearest;

pub(crate) use files::{Parsed, parse_all};
pub(crate) use methods::{range_text, ty_name};
pub use options::OPTION_TABLES;
pub(crate) use selector::kind_word;

/// Steps in a plan, loops unrolled: far beyond what anyone waits for.
const MAX_STEPS: usize = 100_000;
/// Names followed and values built in one check: stops `let`s that double each other.
const MAX_WORK: usize = 5_000_000;
/// Mistakes kept.
const MAX_DIAGNOSTICS: usize = 200;

/// Where an expression is looked at: its scope, and which `let` or step it belongs to (tells one `frozen(m)` from another).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cx {
    scope: usize,
    frame: u32,
}

/// What a name stands for.
#[derive(Debug, Clone)]
enum Binding<'a> {
    /// A `let`, an axis of a sweep, a `param` of type `source`.
    Expr(&'a Expr, Cx),
    /// A `param`, the variable of a `repeat`.
    Value(Value),
    Model(String),
    Data(String),
    Snapshot {
        model: String,
        full: String,
        weights: Weights,
    },
    Adapter {
        model: String,
        full: String,
    },
    Score {
        full: String,
        selector: Selector,
    },
    Metric {
        full: String,
    },
    Grid {
        full: String,
        metrics: Vec<String>,
    },
    /// `use … as name`: its scope.
    Module(usize),
    /// A model or data of a `use`d recipe.
    Foreign,
    /// Its statement is broken, and reported.
    Poison,
}

#[derive(Debug)]
struct Named<'a> {
    binding: Binding<'a>,
    span: Span,
    used: bool,
    /// Whether leaving it unused deserves a warning.
    warn: bool,
}

#[derive(Debug, Default)]
struct Scope<'a> {
    parent: Option<usize>,
    names: BTreeMap<String, Named<'a>>,
}

/// What the check follows of a model from step to step.
#[derive(Debug, Clone, Default)]
struct ModelState {
    facts: Option<Facts>,
    /// Whole units masked since the last `compact`: the step that did it.
    masked: Option<Span>,
    masked_kinds: Vec<SiteKind>,
    /// Whether anything was masked at all.
    touched: bool,
    weights: Weights,
}

/// What was done to a model's weights that a snapshot takes along.
#[derive(Debug, Clone, Copy, Default)]
struct Weights {
    /// Whether a `quantize` has had the last word.
    quantised: bool,
    /// The prune that turned the residual stream and is not compacted yet: what it masks are channels of that turn.
    turned: Option<Span>,
}

/// A `--set`, its value parsed where it is an expression.
pub(crate) struct Setting {
    pub name: String,
    pub text: String,
    pub expr: Option<Expr>,
}

pub(crate) struct Checker<'a> {
    parsed: &'a [Parsed],
    sources: &'a Sources,
    catalogue: &'a Catalogue,
    facts: &'a dyn ModelFacts,
    settings: &'a [Setting],
    /// The defaults of the catalogue and of the option tables, parsed.
    defaults: &'a HashMap<&'static str, Option<Expr>>,
    set_used: HashSet<usize>,
    param_names: Vec<String>,
    diagnostics: Vec<Diagnostic>,
    reported: HashSet<(&'static str, Span, String)>,
    scopes: Vec<Scope<'a>>,
    /// The recipe's name.
    name: String,
    params: Vec<ParamValue>,
    models: Vec<ModelDecl>,
    data: Vec<DataDecl>,
    states: HashMap<String, ModelState>,
    /// How each sweep's last cell left the models: what `adopt` takes over.
    grids: HashMap<String, HashMap<String, ModelState>>,
    /// Steps of the statement list being checked.
    steps: Vec<Step>,
    n_steps: usize,
    counters: HashMap<&'static str, usize>,
    /// Variables of the loops around, with their values as labels.
    labels: Vec<(String, String)>,
    /// Whether the statements being checked stand in a `repeat` or `sweep`.
    in_loop: bool,
    frozen: HashMap<(u32, Span), (String, u32)>,
    frames: u32,
    work: usize,
    /// Files whose modules exist.
    modules: HashMap<usize, usize>,
    current_file: usize,
}

/// Checks parsed files (the first is the recipe) and makes the plan.
pub(crate) fn check(
    parsed: &[Parsed],
    sources: &Sources,
    catalogue: &Catalogue,
    facts: &dyn ModelFacts,
    settings: &[Setting],
    syntax: Vec<Diagnostic>,
    name: &str,
) -> Result<Plan, Vec<Diagnostic>> {
    let defaults = methods::parse_defaults(catalogue);
    let mut checker = Checker {
        parsed,
        sources,
        catalogue,
        facts,
        settings,
        defaults: &defaults,
        set_used: HashSet::new(),
        param_names: Vec::new(),
        diagnostics: Vec::new(),
        reported: HashSet::new(),
        scopes: vec![Scope::default()],
        name: name.to_owned(),
        params: Vec::new(),
        models: Vec::new(),
        data: Vec::new(),
        states: HashMap::new(),
        grids: HashMap::new(),
        steps: Vec::new(),
        n_steps: 0,
        counters: HashMap::new(),
        labels: Vec::new(),
        in_loop: false,
        frozen: HashMap::new(),
        frames: 0,
        work: 0,
        modules: HashMap::new(),
        current_file: 0,
    };
    for d in syntax {
        checker.report(d);
    }
    checker.recipe();
    let Checker { mut diagnostics, params, models, data, steps, .. } = checker;
    diagnostics.sort_by_key(|d| (d.span.file, d.span.start, d.span.end, d.code));
    if diagnostics.iter().any(|d| d.severity == Severity::Error) {
        return Err(diagnostics);
    }
    Ok(Plan {
        name: name.to_owned(),
        doc: parsed.first().map(|p| p.recipe.doc.clone()).unwrap_or_default(),
        params,
        models,
        data,
        steps,
        uses: parsed.iter().skip(1).map(|p| p.path.clone()).collect(),
        warnings: diagnostics,
    })
}

impl<'a> Checker<'a> {
    fn report(&mut self, d: Diagnostic) {
        if self.diagnostics.len() < MAX_DIAGNOSTICS && self.reported.insert((d.code, d.span, d.message.clone())) {
            self.diagnostics.push(d);
        }
    }

    fn error(&mut self, code: &'static str, message: impl Into<String>, span: Span, label: impl Into<String>) {
        self.report(Diagnostic::error(code, message, span, label));
    }

    fn frame(&mut self) -> u32 {
        self.frames += 1;
        self.frames
    }

    fn new_scope(&mut self, parent: Option<usize>) -> usize {
        self.scopes.push(Scope { parent, names: BTreeMap::new() });
        self.scopes.len() - 1
    }

    /// What a name stands for, marking it used.
    fn lookup(&mut self, name: &str, scope: usize) -> Option<Binding<'a>> {
        let mut at = Some(scope);
        while let Some(i) = at {
            let s = self.scopes.get_mut(i)?;
            if let Some(n) = s.names.get_mut(name) {
                n.used = true;
                return Some(n.binding.clone());
            }
            at = s.parent;
        }
        None
    }

    /// Gives a name its meaning; a second meaning is an error, unless it is a recorded name, which the latest one takes.
    fn bind(&mut self, name: &Ident, binding: Binding<'a>, scope: usize, warn: bool) {
        let recorded = matches!(binding, Binding::Metric { .. } | Binding::Score { .. } | Binding::Snapshot { .. });
        let used_by_anyone = self.lookup_span(&name.name, scope);
        if let Some((old, was_recorded)) = used_by_anyone
            && old != name.span
            && !(recorded && was_recorded && self.in_loop)
        {
            let (line, _) = self.sources.line_col(old.file, old.start);
            let d = Diagnostic::error("P0102", format!("`{}` is defined twice", name.name), name.span, "second definition");
            self.report(d.hint(format!("the first is on line {line}; names are assigned once")));
        }
        if let Some(s) = self.scopes.get_mut(scope) {
            let used = s.names.get(&name.name).is_some_and(|n| n.used);
            s.names.insert(name.name.clone(), Named { binding, span: name.span, used, warn });
        }
    }

    /// Where a name got its meaning, and whether it is a recorded one.
    fn lookup_span(&self, name: &str, scope: usize) -> Option<(Span, bool)> {
        let mut at = Some(scope);
        while let Some(s) = at.and_then(|i| self.scopes.get(i)) {
            if let Some(n) = s.names.get(name) {
                let recorded = matches!(n.binding, Binding::Metric { .. } | Binding::Score { .. } | Binding::Snapshot { .. });
                return Some((n.span, recorded));
            }
            at = s.parent;
        }
        None
    }

    /// Names in sight for which `wanted` holds.
    fn names_in_sight(&self, scope: usize, wanted: impl Fn(&Binding<'a>) -> bool) -> Vec<String> {
        let (mut out, mut at) = (Vec::new(), Some(scope));
        while let Some(s) = at.and_then(|i| self.scopes.get(i)) {
            out.extend(s.names.iter().filter(|(_, n)| wanted(&n.binding)).map(|(k, _)| k.clone()));
            at = s.parent;
        }
        out
    }

    fn unknown_name(&mut self, name: &str, span: Span, scope: usize, what: &str) {
        let names = self.names_in_sight(scope, |_| true);
        let d = Diagnostic::error("P0101", format!("unknown name `{name}`"), span, what);
        let d = match nearest(name, names.iter().map(String::as_str)) {
            Some(w) => Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(w),
            None => d,
        };
        self.report(d);
    }

    /// Counts work; `false` once there was too much of it.
    fn spend(&mut self, span: Span) -> bool {
        self.work += 1;
        if self.work == MAX_WORK {
            self.error("P0508", "the recipe is too large once its names are written out", span, "gave up here");
        }
        self.work < MAX_WORK
    }

    fn line(&self, span: Span) -> u32 {
        self.sources.line_col(span.file, span.start).0
    }

    /// Appends a step under a name of its own or the next free one of its sort.
    fn emit(&mut self, span: Span, name: Option<&str>, sort: &'static str, kind: StepKind) -> String {
        if let Some(model) = changed(&kind) {
            let weights = &mut self.state(model).weights;
            let late = weights.quantised;
            weights.quantised |= matches!(kind, StepKind::Quantize { .. });
            if late {
                let what = format!("`{model}` is quantised: nothing may change its weights afterwards");
                self.report(Diagnostic::error("P0414", what, span, "too late").hint("`quantize` comes last, before `eval` and `save`"));
            }
        }
        let step = self.make_step(span, name, sort, kind);
        let full = step.name.clone();
        self.steps.push(step);
        full
    }

    fn make_step(&mut self, span: Span, name: Option<&str>, sort: &'static str, kind: StepKind) -> Step {
        self.n_steps += 1;
        if self.n_steps == MAX_STEPS {
            self.error("P0508", format!("the recipe has more than {MAX_STEPS} steps once its loops are written out"), span, "gave up here");
        }
        let base = match name {
            Some(n) => n.to_owned(),
            None => {
                let n = self.counters.entry(sort).or_insert(0);
                *n += 1;
                format!("{sort}-{n}")
            }
        };
        let name = if name.is_some() { format!("{base}{}", self.suffix()) } else { base };
        Step { span, line: self.line(span), name, kind }
    }

    /// `[round=3]`, inside loops.
    fn suffix(&self) -> String {
        if self.labels.is_empty() {
            return String::new();
        }
        let parts: Vec<String> = self.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        format!("[{}]", parts.join(", "))
    }

    fn exhausted(&self) -> bool {
        self.n_steps >= MAX_STEPS || self.work >= MAX_WORK
    }

    fn state(&mut self, model: &str) -> &mut ModelState {
        self.states.entry(model.to_owned()).or_default()
    }
}

/// The model whose weights a step changes.
fn changed(kind: &StepKind) -> Option<&str> {
    match kind {
        StepKind::Prune(p) => Some(selector::model_of(&p.selector)),
        StepKind::Train(t) => Some(&t.model),
        StepKind::Reconstruct { selector, .. } | StepKind::Attach { selector, .. } => Some(selector::model_of(selector)),
        StepKind::Compact { model } | StepKind::Reinit { model, .. } | StepKind::Quantize { model, .. } | StepKind::Fuse { model, .. } => {
            Some(model)
        }
        _ => None,
    }
}
