//! The plan: a recipe after every name, type, unit and range was checked. Expressions are evaluated, `repeat` and `sweep` unrolled;
//! what is left symbolic is what only a run can know: metrics in `expect`, and selectors, whose counts change with each `compact`.

use std::path::PathBuf;

use crate::catalogue::{Args, SiteKind};
use crate::diagnostic::Diagnostic;

/// A byte range of a source file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize)]
pub struct Span {
    /// Index of the file: 0 is the recipe, others are `use`d.
    pub file: u32,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

/// A share in units of 1e-9, so that ⌊p·n⌋ is exact in decimal arithmetic. 40 % is `Share(400_000_000)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Share(pub i64);

impl Share {
    /// All of it.
    pub const ONE: Share = Share(1_000_000_000);
    /// Nearest share to a fraction of 1.
    pub fn from_fraction(f: f64) -> Self {
        Self((f * 1e9).round() as i64)
    }
    /// As a fraction of 1.
    pub fn fraction(self) -> f64 {
        self.0 as f64 / 1e9
    }
    /// ⌊p·n⌋, never negative.
    pub fn of(self, n: usize) -> usize {
        ((i128::from(self.0.max(0)) * n as i128) / 1_000_000_000) as usize
    }
}

/// A whole recipe, ready to be planned against models and carried out.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The recipe's name, `{name}` in its strings: the stem of its file.
    pub name: String,
    /// The `##` lines at the top of the recipe.
    pub doc: String,
    /// Parameters with the values in force (`--set` applied).
    pub params: Vec<ParamValue>,
    /// Models in order of declaration.
    pub models: Vec<ModelDecl>,
    /// Data in order of declaration.
    pub data: Vec<DataDecl>,
    /// What to do, in order.
    pub steps: Vec<Step>,
    /// Files read through `use`, in the order of [`Span::file`] from 1.
    pub uses: Vec<PathBuf>,
    /// Warnings of the check.
    pub warnings: Vec<Diagnostic>,
}

/// A `param` and its value.
#[derive(Debug, Clone)]
pub struct ParamValue {
    /// Its name; a `use`d one is `common.rate`.
    pub name: String,
    /// Its declared type, as written.
    pub ty: String,
    /// The value in force.
    pub value: Value,
    /// The `##` lines above it.
    pub doc: String,
    /// Where it is declared.
    pub span: Span,
}

/// A `model` statement.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelDecl {
    /// Its name.
    pub name: String,
    /// Where it comes from.
    pub source: ModelSource,
    /// `{ dtype = … }`: `f32`, `f16` or `bf16`.
    pub dtype: Option<String>,
    /// `task = "…"`.
    pub task: Option<String>,
    /// `labels = 3`: classes of the head.
    pub labels: Option<u64>,
    /// The statement.
    pub span: Span,
}

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelSource {
    /// `hf("org/name", revision = "…")`.
    Hub { repo: String, revision: Option<String> },
    /// `dir("path")`, relative paths already joined to the recipe's folder.
    Dir(PathBuf),
    /// `builtin("name")`.
    Builtin(String),
    /// `init("config.json", seed = 0)`; the path may be `builtin:tiny-bert`.
    Init { config: PathBuf, seed: u64 },
    /// `copy(other)`: the other model as it is at this line.
    Copy(String),
}

/// A `data` statement.
#[derive(Debug, Clone, PartialEq)]
pub struct DataDecl {
    /// Its name.
    pub name: String,
    /// Where it comes from.
    pub source: DataSource,
    /// Other fields of the call and of its block: `text`, `label`, `config`, `files`, `revision`, ….
    pub fields: Args,
    /// The statement.
    pub span: Span,
}

/// Where data comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum DataSource {
    /// `hf("org/set", config = "…", files = "…")`.
    Hub(String),
    /// `text("f.txt")`: one document, byte for byte.
    Text(PathBuf),
    /// `csv("f.csv", …)`; a `.tsv` is separated by tabs.
    Csv(PathBuf),
    /// `jsonl("f.jsonl", …)`.
    Jsonl(PathBuf),
    /// `parquet("f.parquet", …)`.
    Parquet(PathBuf),
    /// `tokens("f.safetensors")`.
    Tokens(PathBuf),
    /// `builtin("name")`.
    Builtin(String),
}

/// A data set or a part of one.
#[derive(Debug, Clone, PartialEq)]
pub enum DataExpr {
    /// `d` or `d.train`.
    Source { name: String, split: Option<String> },
    /// `.sample(n, seed = 0)` documents, or with `length` n windows of so many tokens.
    Sample { of: Box<DataExpr>, n: u64, length: Option<u64>, seed: u64 },
    /// `.pack(1024 tokens)`.
    Pack { of: Box<DataExpr>, tokens: u64 },
    /// `.take(n)`.
    Take { of: Box<DataExpr>, n: u64 },
    /// `.chat(m, loss = assistant)`.
    Chat { of: Box<DataExpr>, model: String, loss: String },
    /// `mix(70% of a, 30% of b)`.
    Mix(Vec<(Share, DataExpr)>),
}

/// A call of a catalogue row with checked arguments.
#[derive(Debug, Clone, PartialEq)]
pub struct Method {
    /// The row's name.
    pub name: String,
    /// Every parameter that has a value or a default.
    pub args: Args,
    /// The call.
    pub span: Span,
}

/// A checked value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `true`, `false`.
    Bool(bool),
    /// A number without a unit.
    Number(f64),
    /// `40%`.
    Percent(Share),
    /// `1 pp`, in percentage points.
    Points(f64),
    /// A number with a unit: `tokens`, `steps`, `epochs`, `heads`, `bytes`, `ms`, …; K/M/B, GiB and h are already multiplied out
    /// (counts, bytes, milliseconds).
    Quantity(f64, Unit),
    /// A string, interpolation done.
    Text(String),
    /// A bare word where the catalogue asks for one of a few: `global`, `exact`, `bf16`.
    Word(String),
    /// A file or folder, already joined to its base.
    Path(PathBuf),
    /// `[a, b]`.
    List(Vec<Value>),
    /// `{ a = 1 }`.
    Record(Args),
    /// A value over time.
    Schedule(Schedule),
    /// Units of a model.
    Selector(Selector),
    /// Data.
    Data(DataExpr),
    /// A model by name.
    Model(String),
    /// `frozen(m)`: the model as it is at that line; the number tells one `frozen` from another.
    Frozen { model: String, id: u32 },
    /// A snapshot, an adapter, a stored score, `scores`.
    Name(String),
    /// A call of a catalogue row.
    Method(Box<Method>),
    /// A weighted sum of loss terms.
    Loss(Vec<(Schedule, Method)>),
    /// An amount (a sweep's axis may hold one).
    Amount(Amount),
}

impl Value {
    /// The number in it; a percent as a fraction of 1.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Number(x) | Value::Quantity(x, _) | Value::Points(x) => Some(*x),
            Value::Percent(s) => Some(s.fraction()),
            Value::Schedule(Schedule::Hold { value, .. }) => Some(*value),
            _ => None,
        }
    }
    /// The whole number ≥ 0 in it.
    pub fn as_u64(&self) -> Option<u64> {
        self.as_f64().filter(|x| *x >= 0.0 && x.fract() == 0.0 && *x < 9.1e15).map(|x| x as u64)
    }
}

/// Units after normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub enum Unit {
    Tokens,
    Steps,
    Epochs,
    Heads,
    Groups,
    Neurons,
    Layers,
    Experts,
    Channels,
    Bytes,
    Milliseconds,
    /// K/M/B counts.
    Count,
}

/// A point or a length on the clock of a `train`.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub enum When {
    /// A fraction of the training.
    Share(f64),
    /// Optimiser steps.
    Steps(u64),
    /// Passes over the data.
    Epochs(f64),
    /// Tokens seen.
    Tokens(u64),
}

/// A value over time. Percents are fractions of 1.
#[derive(Debug, Clone, PartialEq)]
pub enum Schedule {
    /// Constant; `until` is a length of its own when followed by `then`.
    Hold { value: f64, length: Option<When> },
    /// From `from` to `to`, shaped by `curve`, over `during` or for `length` (whole training if both are absent).
    Ramp { curve: Curve, from: f64, to: f64, during: Option<(When, When)>, length: Option<When> },
    /// `steps([…])`: values held for equal shares of `during`.
    Stairs { values: Vec<f64>, during: Option<(When, When)> },
    /// `a then b`.
    Then(Vec<Schedule>),
}

/// The shape of a ramp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Curve {
    Linear,
    /// Zhu & Gupta 2017, eq. 1.
    Cubic,
    Exponential,
    Cosine,
}

/// How much a prune removes or leaves.
#[derive(Debug, Clone, PartialEq)]
pub enum Amount {
    /// `40%` of the units selected, protected ones counted; `each` ranks and counts every kind of unit on its own.
    Share { share: Share, each: bool },
    /// `20% of remaining`.
    OfRemaining { share: Share, each: bool },
    /// `50% of params`.
    OfParams(Share),
    /// `2 of 4`: of every `group` consecutive inputs, `removed` go.
    NofM { removed: u32, group: u32 },
    /// `12 heads`.
    Units { n: u64, unit: Unit },
    /// One amount per selected layer.
    PerLayer(Vec<Amount>),
    /// `linear(10% -> 50%, across = layers)`.
    AcrossLayers { from: Share, to: Share },
    /// A share over the clock of the surrounding `train`.
    Scheduled { schedule: Schedule, each: bool },
}

/// `to BOUND`: what may stay.
#[derive(Debug, Clone, PartialEq)]
pub enum Bound {
    /// `params <= 60% of dense and latency(…) <= 70% of dense`: each holds.
    Limits(Vec<Limit>),
    /// `{ layers = 24, hidden = 1536, neurons = 4608 }`.
    Shape(Vec<(SiteKind, u64)>),
}

/// One `metric <= limit`.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// `params`, `memory(…)`, `latency(…)`, `flops(…)`.
    pub metric: Method,
    /// In the metric's own unit, or a share of the dense model's.
    pub value: LimitValue,
}

/// A limit's right side.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LimitValue {
    /// In the metric's unit (count, bytes, ms).
    Absolute(f64),
    /// `60% of dense`.
    OfDense(Share),
}

/// A set of units of one model, symbolic in the layer count.
#[derive(Debug, Clone, PartialEq)]
pub enum Selector {
    /// One path.
    Path { model: String, part: Part, span: Span },
    /// `A | B`.
    Union(Vec<Selector>),
    /// `A except B`.
    Except(Box<Selector>, Box<Selector>),
}

/// What a path selects.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// `m`: the whole model (in `only = …`).
    Model,
    /// `m.layers[…].attention.heads`, optionally `heads[0, 3]`.
    Units { layers: Indices, kind: SiteKind, units: Indices },
    /// `m.layers[…].linears`, `m.layers[…].attention.linears`: the weight matrices (for `attach`, `only`).
    Linears { layers: Indices, within: Option<SiteKind> },
    /// `m.layers[…].linears.weights`, `.attention.linears.weights`: single weights.
    Weights { layers: Indices, within: Option<SiteKind> },
    /// `m.embeddings`.
    Embeddings,
    /// `m.head`: language-model head.
    Head,
    /// `m.classifier`.
    Classifier,
    /// `m.hidden`.
    Hidden,
    /// `m.tensors("glob")`.
    Tensors(String),
    /// An attached adapter by name.
    Adapter(String),
}

/// Which layers or units.
#[derive(Debug, Clone, PartialEq)]
pub enum Indices {
    /// `[*]`, or nothing written.
    All,
    /// `[0, 3, -1]` and ranges: each `(start, end)` half-open, negative from the end, `None` open.
    Some(Vec<(Option<i64>, Option<i64>)>),
}

/// One step, with the place that it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The statement.
    pub span: Span,
    /// Its line, from 1.
    pub line: u32,
    /// `as NAME`, with `[round=3]` behind it inside `repeat` and `sweep`; `prune-1`, `train-1`, … otherwise.
    pub name: String,
    /// What to do.
    pub kind: StepKind,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq)]
pub enum StepKind {
    /// `score SELECTOR using CRITERION as s`, or `score … from "runs/x"`.
    Score { selector: Selector, criterion: CriterionRef, batch: Option<u64> },
    /// `prune …`, outside `train`.
    Prune(Prune),
    /// `compact m`.
    Compact { model: String },
    /// `reconstruct SELECTOR from teacher on DATA for N { … }`.
    Reconstruct { selector: Selector, teacher: Value, data: DataExpr, length: When, options: Args },
    /// `train m on DATA for N { … }`.
    Train(Train),
    /// `attach ADAPTER to SELECTOR as a`.
    Attach { adapter: Method, selector: Selector, name: String },
    /// `fuse a into m`.
    Fuse { adapter: String, model: String },
    /// `snapshot m as early`.
    Snapshot { model: String, name: String },
    /// `rewind m to early`; `schedule_only` for `rewind m.schedule to early`.
    Rewind { model: String, to: String, schedule_only: bool },
    /// `reinit m`.
    Reinit { model: String, seed: u64 },
    /// `quantize m using …`.
    Quantize { model: String, method: Method },
    /// A `model` statement reached in order (a `copy` is taken here; others may be loaded earlier).
    Load { model: String },
    /// `let t = frozen(m)` reached in order.
    Freeze { model: String, id: u32 },
    /// `repeat`, unrolled: the steps of each round, in order.
    Repeat { variable: String, rounds: Vec<Vec<Step>> },
    /// `sweep`, unrolled.
    Sweep { axes: Vec<String>, cells: Vec<Cell> },
    /// `adopt m from grid where … by lowest(val)`.
    Adopt { model: String, grid: String, filter: Option<Expr>, rank: Expr, lowest: bool },
    /// `eval METRIC() of m on DATA as name`.
    Eval { metric: Method, model: Value, data: Option<DataExpr>, batch: Option<u64> },
    /// `expect EXPR else "message"`.
    Expect { expr: Expr, message: Option<String>, paired: bool, confidence: Option<Share> },
    /// `save m to "path" { … }`.
    Save { model: String, to: String, format: String, layout: String, dtype: Option<String> },
}

/// One cell of a sweep: it starts from the state on entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Axis values as they are printed: `[("method", "wanda(on = calib)"), ("amount", "50%")]`.
    pub labels: Vec<(String, String)>,
    /// Its steps.
    pub steps: Vec<Step>,
}

/// Where scores come from.
#[derive(Debug, Clone, PartialEq)]
pub enum CriterionRef {
    /// A criterion, run now.
    Method(Method),
    /// `using s`: an earlier `score … as s`, with the suffix of its round or cell.
    Stored(String),
    /// `score … from "runs/x"`: a run directory's stored scores.
    Run { dir: PathBuf, name: Option<String> },
}

/// A `prune`, outside `train` or in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Prune {
    /// What may go.
    pub selector: Selector,
    /// How much goes, or what may stay.
    pub goal: Goal,
    /// The measure.
    pub criterion: CriterionRef,
    /// `scope`; `None` is the default of the site and criterion.
    pub scope: Option<Scope>,
    /// `at_least = 1 head` or `25%`, per layer.
    pub at_least: Option<Value>,
    /// `align = 64`: kept counts are rounded up to a multiple.
    pub align: Option<u64>,
    /// `rescore = 10%` of the selected units.
    pub rescore: Option<Share>,
    /// `every = 100 steps`, in `train`.
    pub every: Option<When>,
    /// `protect = SELECTOR`.
    pub protect: Option<Selector>,
    /// `inputs = pruned | dense`.
    pub dense_inputs: Option<bool>,
    /// `loads_in = […]`.
    pub loads_in: Vec<String>,
    /// `batch = 16`.
    pub batch: Option<u64>,
    /// Other fields that the catalogue does not name here (`reconstruct = least_squares`, …), checked.
    pub options: Args,
}

/// `by` or `to`.
#[derive(Debug, Clone, PartialEq)]
pub enum Goal {
    /// `by AMOUNT`.
    By(Amount),
    /// `to BOUND`.
    To(Bound),
}

/// Over which units scores are ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Scope {
    /// All selected units of a kind together.
    Global,
    /// Each layer on its own.
    Layer,
    /// Each weight matrix on its own.
    Matrix,
    /// Each output row on its own.
    Row,
}

/// A `train`.
#[derive(Debug, Clone, PartialEq)]
pub struct Train {
    /// The model.
    pub model: String,
    /// The data.
    pub data: DataExpr,
    /// How long.
    pub length: When,
    /// `only = SELECTOR`.
    pub only: Option<Selector>,
    /// `optimizer = adamw(…)`.
    pub optimizer: Method,
    /// `loss = …`: weighted terms.
    pub loss: Vec<(Schedule, Method)>,
    /// `batch`, `accumulate`, `clip`, `seed`, `dtype`, `checkpoint_every`, …, checked, defaults filled in.
    pub options: Args,
    /// `prune …` inside.
    pub prunes: Vec<Prune>,
    /// `eval … as val { every = 200 steps }` inside.
    pub evals: Vec<(Step, When)>,
    /// `keep = lowest(val)`: metric name, lowest.
    pub keep: Option<(String, bool)>,
    /// `stop = stale(val, after = 3)`.
    pub stop: Option<Method>,
}

/// What only a run can evaluate.
#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    /// A constant; percents are fractions of 1, `pp` too.
    Const(f64),
    /// A metric by its recorded name.
    Metric(String, Span),
    /// `not`, unary `-`.
    Unary(&'static str, Box<Expr>),
    /// `+ - * /`, comparisons, `and`, `or`.
    Binary(&'static str, Box<Expr>, Box<Expr>),
}
