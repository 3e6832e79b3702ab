//! The `{ options }` of statements: which there are, and reading them.

use crate::ast::{Block, Entry, Expr, ExprKind, Ident, Stmt, StmtKind};
use crate::catalogue::{Args, Param, Ty};
use crate::diagnostic::Diagnostic;
use crate::plan::Span;
use crate::syntax_error::nearest;

use super::{Binding, Checker, Cx};

const fn option(name: &'static str, ty: Ty, doc: &'static str) -> Param {
    Param { name, ty, default: None, optional: true, range: None, doc }
}

const fn with(p: Param, default: &'static str) -> Param {
    Param { default: Some(default), optional: false, ..p }
}

const fn within(p: Param, low: f64, high: f64) -> Param {
    Param { range: Some((low, high)), ..p }
}

/// Types that the Hugging Face layout holds.
pub(super) const FLOATS: &[&str] = &["f32", "f16", "bf16"];
const DTYPES: Ty = Ty::OneOf(FLOATS);
const SAVED_DTYPES: Ty = Ty::OneOf(&["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k"]);
const HUGE: f64 = 1e15;
const BATCH: Param =
    within(option("batch", Ty::Count, "Examples at a time; left out, it is chosen to fit memory. Results do not depend on it."), 1.0, HUGE);

const TEXT: Param = option(
    "text",
    Ty::Column,
    "Column of the text. Left out, the usual names are looked for: text, sentence, sentence1, question1, premise, ….",
);
const TEXT_PAIR: Param = option("text_pair", Ty::Column, "Column of the second text of a pair.");
const LABEL: Param = option(
    "label",
    Ty::Column,
    "Column of the label: a class as a number or by name, a value for regression, or the right one of `choices`.",
);
const LABELS: Param = option("labels", Ty::List(&Ty::Text), "Names of the labels in the order of the model's classes.");
const CHOICES: Param =
    option("choices", Ty::List(&Ty::Column), "Columns of the continuations to choose from, or one column that holds a list of them.");
const FORM: Param = option(
    "form",
    Ty::OneOf(&["arc", "blimp", "hellaswag", "mmlu", "piqa", "winogrande"]),
    "A benchmark of multiple choice in its own columns: prompt, options and the right one are made as lm-evaluation-harness makes them.",
);
const MESSAGES: Param = option("messages", Ty::Column, "Column of the turns of a conversation.");
const ANSWERS: Param = option(
    "answers",
    Ty::Column,
    "Column of the right answers to the question in `text` about the context in `text_pair`, as SQuAD has it.",
);
const CORRUPT: Param = option(
    "corrupt",
    Ty::OneOf(&["stop", "skip"]),
    "What a row that can't be read does: it is an error (`stop`, if left out), or it is left out, counted and reported.",
);
const REVISION: Param = option("revision", Ty::Text, "Branch, tag or commit on the Hub.");

pub(super) const MODEL_FIELDS: &[Param] = &[
    REVISION,
    option("dtype", DTYPES, "Type of the weights in memory; computing is in f32 unless this says otherwise."),
    option("task", Ty::Text, "Which head: `text-classification`, `fill-mask`, `text-generation`, …."),
    within(
        option(
            "labels",
            Ty::Count,
            "Classes of the head. With `task`, a head that the files lack, or one for so many classes, is drawn at random and said so.",
        ),
        1.0,
        1e6,
    ),
    option("seed", Ty::Count, "Seed of `init`."),
];
pub(super) const HUB_DATA_FIELDS: &[Param] = &[
    option("config", Ty::Text, "The set's configuration."),
    option("files", Ty::Text, "Only these files of it; `*` stands for any part of a name."),
    REVISION,
    TEXT,
    TEXT_PAIR,
    LABEL,
    LABELS,
    CHOICES,
    FORM,
    MESSAGES,
    ANSWERS,
    CORRUPT,
];
pub(super) const CSV_FIELDS: &[Param] = &[
    TEXT,
    TEXT_PAIR,
    LABEL,
    LABELS,
    CHOICES,
    MESSAGES,
    CORRUPT,
    option("header", Ty::Bool, "Whether the first row names the columns; left out, it does unless columns are given by number."),
    option("separator", Ty::Text, "One character; left out, a tab for .tsv and a comma otherwise."),
    option("quoting", Ty::Bool, "Whether \"…\" may hold separators and line breaks; left out, it may except in .tsv."),
];
pub(super) const ROW_FIELDS: &[Param] = &[TEXT, TEXT_PAIR, LABEL, LABELS, CHOICES, FORM, MESSAGES, ANSWERS, CORRUPT];
pub(super) const DATA_FIELDS: &[Param] = &[];

/// `score`, `eval` outside `train`.
pub(super) const BATCH_FIELDS: &[Param] = &[BATCH];
/// `eval` inside `train`.
pub(super) const TRAIN_EVAL_FIELDS: &[Param] = &[BATCH];
/// `prune`: those that have a type of the catalogue; the others are read in `prune.rs`.
pub(super) const PRUNE_FIELDS: &[Param] = &[
    within(option("align", Ty::Count, "Kept counts are rounded up to a multiple of it."), 1.0, HUGE),
    within(
        option(
            "rescore",
            Ty::Percent,
            "Score again after every such share of the selected units has gone; 10% by default where the criterion allows it.",
        ),
        1e-6,
        100.0,
    ),
    option("protect", Ty::Selector, "Units that stay, whatever their score. They count among the units of a share."),
    option(
        "inputs",
        Ty::OneOf(&["pruned", "dense"]),
        "For layer-wise criteria: whether a block is scored on the inputs that its pruned predecessors give (the default) or on dense ones.",
    ),
    option(
        "loads_in",
        Ty::List(&Ty::OneOf(&["transformers", "candle", "llama_cpp", "vllm"])),
        "Loaders that must be able to read the result: a shape that one of them can't load is an error.",
    ),
    BATCH,
];
/// `prune`: fields that go to the executor as they are.
pub(super) const PRUNE_EXTRA: &[Param] = &[
    option(
        "reconstruct",
        Ty::OneOf(&["none", "bias", "least_squares"]),
        "What makes up for removed heads, KV groups and neurons: nothing (the default), the bias of the matrix that they write through (`o`, `down`), or a least-squares fit of that matrix, on the pruned model's inputs, block by block. A bias that is missing is added.",
    ),
    option(
        "on",
        Ty::Data,
        "Data that `reconstruct` fits on (labels are not used) and that a bound's sensitivity curves are measured on; left out, the criterion's.",
    ),
];
const STEP_BATCH: Param = within(
    with(option("batch", Ty::Count, "Examples of a step. It decides the result, so it is never chosen by the machine."), "16"),
    1.0,
    HUGE,
);
const ACCUMULATE: Param = within(with(option("accumulate", Ty::Count, "Batches whose gradients make one step."), "1"), 1.0, HUGE);
const CLIP: Param = within(option("clip", Ty::Float, "Largest norm of the gradient."), 1e-12, HUGE);
const PASSES: Param = option(
    "dtype",
    DTYPES,
    "Type of the forward and the backward pass; the model's if left out. Weights and the optimizer's state stay in f32 while it lasts. Nothing \
     scales the loss: `bf16` has the range of f32, in `f16` small gradients vanish.",
);

pub(super) const TRAIN_FIELDS: &[Param] = &[
    STEP_BATCH,
    ACCUMULATE,
    CLIP,
    with(option("seed", Ty::Count, "Seed of the data's order and of dropout."), "0"),
    PASSES,
    option(
        "flops_of",
        Ty::Model,
        "The length is that of this model: it is multiplied by its FLOPs over those of the model that trains, so that both cost the same \
         (Scratch-B: Liu et al., Rethinking the Value of Network Pruning (2019), sec. 3).",
    ),
    within(with(option("checkpoint_every", Ty::Steps, "How often the state is written for `resume`."), "50 steps"), 1.0, HUGE),
    with(option("recompute", Ty::Bool, "Whether a block's graph is rebuilt in the backward pass, to save memory."), "false"),
];
pub(super) const RECONSTRUCT_FIELDS: &[Param] =
    &[STEP_BATCH, ACCUMULATE, CLIP, with(option("seed", Ty::Count, "Seed of the data's order."), "0"), PASSES];
pub(super) const SAVE_FIELDS: &[Param] = &[
    with(option("format", Ty::OneOf(&["hf", "gguf", "peft"]), "What is written."), "hf"),
    with(
        option("layout", Ty::OneOf(&["compact", "padded"]), "`padded` writes removed units as zeros: stock everywhere, no smaller."),
        "compact",
    ),
    option(
        "dtype",
        SAVED_DTYPES,
        "Type of the weights on disk; by default what the model had there. From `q8_0` on: with `format = gguf` only.",
    ),
];
pub(super) const EXPECT_FIELDS: &[Param] = &[
    with(option("paired", Ty::Bool, "Compare example by example."), "false"),
    within(option("confidence", Ty::Percent, "The gate holds only if it does with this confidence."), 50.0, 99.9999),
];
pub(super) const REINIT_FIELDS: &[Param] = &[with(option("seed", Ty::Count, "Seed of the new weights."), "0")];

/// Every table, under the statement that it belongs to: the reference prints them.
pub const OPTION_TABLES: &[(&str, &[Param])] = &[
    ("model", MODEL_FIELDS),
    ("data = hf(…)", HUB_DATA_FIELDS),
    ("data = csv(…)", CSV_FIELDS),
    ("data = jsonl(…), parquet(…)", ROW_FIELDS),
    ("score, eval", BATCH_FIELDS),
    ("prune", PRUNE_FIELDS),
    ("prune, further", PRUNE_EXTRA),
    ("train", TRAIN_FIELDS),
    ("reconstruct", RECONSTRUCT_FIELDS),
    ("save", SAVE_FIELDS),
    ("expect", EXPECT_FIELDS),
    ("reinit", REINIT_FIELDS),
];

/// A block's fields, spreads written out; the later of two of a name is the one that counts.
#[derive(Default)]
pub(super) struct Fields<'a> {
    fields: Vec<(&'a Ident, &'a Expr, Cx)>,
    /// `prune` and `eval` inside `train`.
    pub steps: Vec<&'a Stmt>,
    /// Whether a part of it was not understood: then nothing is reported as missing.
    pub incomplete: bool,
}

impl<'a> Fields<'a> {
    /// Where a field's value stands.
    pub fn span(&self, name: &str) -> Option<Span> {
        self.fields.iter().find(|(n, ..)| n.name == name).map(|(_, e, _)| e.span)
    }

    pub fn take(&mut self, name: &str) -> Option<(&'a Expr, Cx)> {
        let i = self.fields.iter().position(|(n, ..)| n.name == name)?;
        let (_, e, cx) = self.fields.swap_remove(i);
        Some((e, cx))
    }
}

impl<'a> Checker<'a> {
    /// The fields of a block.
    pub(super) fn fields(&mut self, block: Option<&'a Block>, cx: Cx, what: &str) -> Fields<'a> {
        let mut out = Fields::default();
        if let Some(block) = block {
            self.collect(&block.entries, cx, what, &mut out, 0);
        }
        out
    }

    fn collect(&mut self, entries: &'a [Entry], cx: Cx, what: &str, out: &mut Fields<'a>, depth: usize) {
        let mut own: Vec<&str> = Vec::new();
        for entry in entries {
            match entry {
                Entry::Field(name, value) => {
                    if own.contains(&name.name.as_str()) {
                        self.error("P0404", format!("`{}` is given twice", name.name), name.span, "second value");
                        continue;
                    }
                    own.push(&name.name);
                    out.fields.retain(|(n, ..)| n.name != name.name);
                    out.fields.push((name, value, cx));
                }
                Entry::Spread(e) => {
                    let (h, hcx) = self.head(e, cx);
                    match &h.kind {
                        ExprKind::Record(inner) if depth < crate::lex::MAX_DEPTH => {
                            let mut spread = Fields::default();
                            self.collect(inner, hcx, what, &mut spread, depth + 1);
                            out.incomplete |= spread.incomplete;
                            for f in spread.fields {
                                out.fields.retain(|(n, ..)| n.name != f.0.name);
                                out.fields.push(f);
                            }
                        }
                        _ => {
                            out.incomplete = true;
                            let v = self.eval(e, cx);
                            self.mismatch(&v, "a record `{ … }` to spread", e.span);
                        }
                    }
                }
                Entry::Step(stmt) if let StmtKind::Broken { defines } = &stmt.kind => {
                    out.incomplete = true;
                    for name in defines {
                        self.bind(name, Binding::Poison, cx.scope, false);
                    }
                }
                Entry::Step(stmt) if what == "train" => out.steps.push(stmt),
                Entry::Step(stmt) => {
                    self.error(
                        "P0503",
                        format!("a statement can't stand in the options of `{what}`"),
                        stmt.span,
                        "only `train` holds statements",
                    );
                }
            }
        }
    }

    /// Reads the options of a table, with their defaults.
    pub(super) fn take_options(&mut self, fields: &mut Fields<'a>, params: &'static [Param]) -> Option<Args> {
        let (mut out, mut ok) = (Args::default(), true);
        for p in params {
            let value = match fields.take(p.name) {
                Some((e, cx)) => {
                    let v = self.coerce(p, e, cx);
                    ok &= v.is_some();
                    v
                }
                None => self.default(p),
            };
            if let Some(v) = value {
                out.0.insert(p.name.to_owned(), v);
            }
        }
        ok.then_some(out)
    }

    /// What is left of the fields is unknown.
    pub(super) fn leftover(&mut self, fields: Fields<'a>, known: Vec<&str>, what: &str) {
        for (name, _, _) in fields.fields {
            let d = Diagnostic::error("P0408", format!("`{what}` has no option `{}`", name.name), name.span, "unknown option");
            let d = match nearest(&name.name, known.iter().copied()) {
                Some(w) => Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(w),
                None if known.is_empty() => d.hint(format!("`{what}` takes no options")),
                None => d.hint(format!("it takes: {}", known.join(", "))),
            };
            self.report(d);
        }
    }

    /// A block of which nothing but a table's options is expected.
    pub(super) fn simple_options(
        &mut self,
        block: Option<&'a Block>,
        cx: Cx,
        params: &'static [Param],
        what: &'static str,
    ) -> Option<Args> {
        let mut fields = self.fields(block, cx, what);
        let args = self.take_options(&mut fields, params);
        self.leftover(fields, params.iter().map(|p| p.name).collect(), what);
        args
    }
}
