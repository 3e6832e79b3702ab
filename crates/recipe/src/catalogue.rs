//! The catalogue: one row for each method, written beside the method, read by `check`, `explain`, the docs and the executor.

use std::collections::BTreeMap;

use crate::plan::{Method, Value};

/// What a row of the catalogue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Scores units or weights: `prune … using CRITERION`.
    Criterion,
    /// A number: `eval METRIC() of m on DATA`.
    Metric,
    /// A term of `loss = …` in `train`.
    Loss,
    /// `optimizer = …` in `train`.
    Optimizer,
    /// `attach ADAPTER to …`.
    Adapter,
    /// `quantize m using …`.
    Quantizer,
    /// A value that changes over time: `linear(a -> b, …)`.
    Schedule,
    /// `stop = …`, `keep = …` in `train`.
    Rule,
}

/// The type of a parameter's value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ty {
    /// `true` or `false`.
    Bool,
    /// A whole number without a unit.
    Count,
    /// A number without a unit.
    Float,
    /// `40%`.
    Percent,
    /// `2048 tokens`.
    Tokens,
    /// `100 steps`.
    Steps,
    /// A string.
    Text,
    /// A column by its name, or by its number from 0.
    Column,
    /// A file or folder.
    Path,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A data set or a part of one.
    Data,
    /// A model, `frozen(m)` included.
    Model,
    /// A snapshot's name.
    Snapshot,
    /// A selector.
    Selector,
    /// An attached adapter's name.
    Adapter,
    /// A number or a schedule of it.
    Scheduled,
    /// A share or a schedule of it.
    ScheduledPercent,
    /// The name of an `eval … as NAME`.
    Metric,
    /// A list of values of this type.
    List(&'static Ty),
}

/// One parameter of a method.
#[derive(Debug, Clone, Copy)]
pub struct Param {
    /// Its name in a recipe.
    pub name: &'static str,
    /// The type that a value must have.
    pub ty: Ty,
    /// The default as it would be written in a recipe; `None` makes the parameter required unless `optional`.
    pub default: Option<&'static str>,
    /// Whether it may be absent without a default.
    pub optional: bool,
    /// Inclusive numeric bounds, in the parameter's unit (a percent counts as 0..=100).
    pub range: Option<(f64, f64)>,
    /// One sentence for `explain` and the docs.
    pub doc: &'static str,
}

/// What a criterion can score, or what an adapter can be attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SiteKind {
    /// Query heads: `.attention.heads`.
    Heads,
    /// Key/value heads with their query heads: `.attention.kv_groups`.
    KvGroups,
    /// FFN intermediate neurons: `.mlp.neurons`.
    Neurons,
    /// Routed experts: `.mlp.experts`.
    Experts,
    /// A whole attention sublayer: `.attention`.
    Attention,
    /// A whole MLP sublayer: `.mlp`.
    Mlp,
    /// A whole layer: `layers[…]`.
    Layers,
    /// Channels of the residual stream: `m.hidden`.
    Hidden,
    /// Single entries of weight matrices: `.linears.weights`, `m.tensors("…")`.
    Weights,
}

/// What everything but the constructor of a catalogue row says.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Its name in a recipe.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Title, year and equation of its source.
    pub source: &'static str,
    /// Manual page: what it measures, formula, what to mind. Markdown; its fenced `prune` blocks are tested.
    pub doc: &'static str,
    /// Parameters in positional order.
    pub params: &'static [Param],
    /// For criteria and adapters: the sites that it knows. Empty for the others.
    pub sites: &'static [SiteKind],
    /// For criteria: each block is scored on the inputs that its pruned predecessors give, so that scores can't be kept for another amount.
    pub sequential: bool,
    /// For criteria: it learns inside `train` and can't be used elsewhere.
    pub learns: bool,
    /// For criteria: it turns the residual stream, so that it gives no scores apart from its prune, and weights of before fit no more.
    pub turns: bool,
    /// For metrics: whether `on DATA` is needed.
    pub needs_data: bool,
}

/// Makes a method from its checked arguments.
pub type Build<T> = fn(&Args) -> Result<Box<T>, ArgError>;

/// A row: what the language knows, and the constructor that the executor calls.
pub struct Entry<T: ?Sized + 'static> {
    /// What the language knows.
    pub spec: Spec,
    /// Makes the method from its checked arguments.
    pub build: Build<T>,
}

/// Every row that `check` may use.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    rows: BTreeMap<(Kind, &'static str), &'static Spec>,
}

impl Catalogue {
    /// Collects rows. A name may appear once for each kind.
    pub fn new(specs: impl IntoIterator<Item = &'static Spec>) -> Self {
        Self { rows: specs.into_iter().map(|s| ((s.kind, s.name), s)).collect() }
    }

    /// The row of that kind and name.
    pub fn get(&self, kind: Kind, name: &str) -> Option<&'static Spec> {
        self.rows.iter().find(|((k, n), _)| *k == kind && *n == name).map(|(_, s)| *s)
    }

    /// Every row of that kind, by name.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &'static Spec> + '_ {
        self.rows.iter().filter(move |((k, _), _)| *k == kind).map(|(_, s)| *s)
    }

    /// Every row.
    pub fn iter(&self) -> impl Iterator<Item = &'static Spec> + '_ {
        self.rows.values().copied()
    }
}

/// Checked arguments of a method: every parameter that has a value or a default is present and has its type.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Args(pub BTreeMap<String, Value>);

/// An argument that a constructor can't use although its type is right.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("`{name}`: found {found}, expected {expected}")]
pub struct ArgError {
    /// The parameter.
    pub name: String,
    /// What was given.
    pub found: String,
    /// What was expected.
    pub expected: String,
}

impl Args {
    fn wrong(&self, name: &str, expected: &str) -> ArgError {
        let found = self.0.get(name).map_or_else(|| "nothing".to_owned(), |v| format!("{v:?}"));
        ArgError { name: name.to_owned(), found, expected: expected.to_owned() }
    }

    /// The value, if it was given or has a default.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// A number, whatever its unit; a percent is a fraction of 1.
    pub fn float(&self, name: &str) -> Result<f64, ArgError> {
        self.get(name).and_then(Value::as_f64).ok_or_else(|| self.wrong(name, "a number"))
    }

    /// A whole number ≥ 0, whatever its unit.
    pub fn count(&self, name: &str) -> Result<u64, ArgError> {
        self.get(name).and_then(Value::as_u64).ok_or_else(|| self.wrong(name, "a whole number"))
    }

    /// `true` or `false`.
    pub fn flag(&self, name: &str) -> Result<bool, ArgError> {
        match self.get(name) {
            Some(Value::Bool(b)) => Ok(*b),
            _ => Err(self.wrong(name, "true or false")),
        }
    }

    /// A word of a `OneOf`, or a string.
    pub fn word(&self, name: &str) -> Result<&str, ArgError> {
        match self.get(name) {
            Some(Value::Word(s) | Value::Text(s)) => Ok(s),
            _ => Err(self.wrong(name, "a word")),
        }
    }

    /// A data expression.
    pub fn data(&self, name: &str) -> Result<&crate::plan::DataExpr, ArgError> {
        match self.get(name) {
            Some(Value::Data(d)) => Ok(d),
            _ => Err(self.wrong(name, "data")),
        }
    }

    /// A method, such as an optimizer inside a block.
    pub fn method(&self, name: &str) -> Result<&Method, ArgError> {
        match self.get(name) {
            Some(Value::Method(m)) => Ok(m),
            _ => Err(self.wrong(name, "a method")),
        }
    }
}
