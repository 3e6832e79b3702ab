//! A small catalogue and helpers: this crate knows no method, so its tests bring the rows that they use.

use std::path::Path;

use prunectl_recipe::catalogue::{Catalogue, Kind, Param, SiteKind, Spec, Ty};
use prunectl_recipe::diagnostic::Diagnostic;
use prunectl_recipe::plan::{DataDecl, DataSource, ModelDecl};
use prunectl_recipe::{Compiled, Facts, Loader, ModelFacts, compile};

const fn p(name: &'static str, ty: Ty, default: &'static str) -> Param {
    Param { name, ty, default: Some(default), optional: false, range: None, doc: "" }
}
const fn need(name: &'static str, ty: Ty) -> Param {
    Param { name, ty, default: None, optional: false, range: None, doc: "" }
}
const fn opt(name: &'static str, ty: Ty) -> Param {
    Param { name, ty, default: None, optional: true, range: None, doc: "" }
}
const fn within(p: Param, low: f64, high: f64) -> Param {
    Param { range: Some((low, high)), ..p }
}
const fn row(name: &'static str, kind: Kind, params: &'static [Param]) -> Spec {
    Spec { name, kind, source: "", doc: "", params, sites: &[], sequential: false, learns: false, turns: false, needs_data: false }
}
const fn criterion(name: &'static str, params: &'static [Param]) -> Spec {
    row(name, Kind::Criterion, params)
}
const fn on_data(s: Spec) -> Spec {
    Spec { needs_data: true, ..s }
}
const UNITS: &[SiteKind] =
    &[SiteKind::Heads, SiteKind::KvGroups, SiteKind::Neurons, SiteKind::Experts, SiteKind::Attention, SiteKind::Mlp, SiteKind::Layers];

static ROWS: &[Spec] = &[
    criterion("magnitude", &[p("norm", Ty::OneOf(&["l1", "l2"]), "l2"), p("reduce", Ty::OneOf(&["sum", "mean"]), "sum")]),
    criterion("random", &[p("seed", Ty::Count, "0")]),
    Spec { sites: UNITS, ..criterion("loss_delta", &[need("on", Ty::Data), p("estimate", Ty::OneOf(&["exact", "gradient"]), "exact")]) },
    criterion("taylor", &[opt("on", Ty::Data), p("order", Ty::OneOf(&["1", "2"]), "1"), opt("through", Ty::Adapter)]),
    Spec { sequential: true, sites: &[SiteKind::Weights], ..criterion("wanda", &[need("on", Ty::Data)]) },
    Spec {
        sequential: true,
        sites: &[SiteKind::Weights],
        ..criterion(
            "sparsegpt",
            &[need("on", Ty::Data), within(p("damp", Ty::Percent, "1%"), 0.0, 100.0), within(p("block", Ty::Count, "128"), 1.0, 65536.0)],
        )
    },
    Spec { turns: true, sites: &[SiteKind::Hidden], ..criterion("slice", &[need("on", Ty::Data)]) },
    Spec { learns: true, ..criterion("movement", &[p("lr", Ty::Scheduled, "1e-2")]) },
    Spec { learns: true, ..criterion("gum", &[within(p("uniqueness", Ty::Float, "0.5"), 0.0, 1.0)]) },
    on_data(row("accuracy", Kind::Metric, &[])),
    on_data(row("loss", Kind::Metric, &[])),
    on_data(row(
        "perplexity",
        Kind::Metric,
        &[p("window", Ty::Tokens, "2048 tokens"), opt("stride", Ty::Tokens), p("bos", Ty::OneOf(&["once", "each"]), "once")],
    )),
    on_data(row("kl", Kind::Metric, &[need("teacher", Ty::Model)])),
    on_data(row("barrier", Kind::Metric, &[need("a", Ty::Model), need("b", Ty::Model), p("points", Ty::Count, "30")])),
    row("params", Kind::Metric, &[]),
    row("flops", Kind::Metric, &[p("length", Ty::Tokens, "128 tokens")]),
    row("latency", Kind::Metric, &[p("batch", Ty::Count, "1"), p("length", Ty::Tokens, "128 tokens")]),
    row("memory", Kind::Metric, &[p("batch", Ty::Count, "1"), p("length", Ty::Tokens, "128 tokens")]),
    row("task", Kind::Loss, &[]),
    row("next_token", Kind::Loss, &[]),
    row("distill", Kind::Loss, &[need("teacher", Ty::Model), p("temperature", Ty::Scheduled, "1")]),
    row("l1", Kind::Loss, &[need("of", Ty::OneOf(&["scores"]))]),
    row("adamw", Kind::Optimizer, &[need("lr", Ty::Scheduled), p("weight_decay", Ty::Float, "0")]),
    row("splora", Kind::Adapter, &[p("rank", Ty::Count, "8")]),
    row("int8", Kind::Quantizer, &[p("threshold", Ty::Float, "6.0")]),
];

pub fn catalogue() -> Catalogue {
    Catalogue::new(ROWS)
}

/// Opens the recipes that ship, and a few that exist only here.
pub struct Files;

impl Loader for Files {
    fn load(&self, path: &Path) -> Result<String, String> {
        match path.to_str() {
            Some("common.prune" | "recipes/common.prune") => Ok("edition 2026\nparam rate: float = 3e-5 in 0..=1\nlet finetune = { batch = 16, optimizer = adamw(lr = rate) }\nmodel m = builtin(\"tiny-bert\")\n".into()),
            Some("circle.prune") => Ok("edition 2026\nuse \"circle.prune\" as again\n".into()),
            _ => {
                let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
                std::fs::read_to_string(root.join(path)).map_err(|_| "no such file".to_owned())
            }
        }
    }
}

/// Every model is a BERT of 12 layers of 12 heads; `tales` has three splits.
pub struct Twelve;

impl ModelFacts for Twelve {
    fn facts(&self, _: &ModelDecl) -> Option<Facts> {
        Some(Facts::uniform("bert", 12, 12, 12, 3072, 768))
    }
    fn splits(&self, decl: &DataDecl) -> Option<Vec<String>> {
        matches!(decl.source, DataSource::Builtin(_)).then(|| ["train", "validation", "test"].map(str::to_owned).to_vec())
    }
}

pub fn compiled(text: &str) -> Compiled {
    compiled_with(text, &[])
}

pub fn compiled_with(text: &str, set: &[(&str, &str)]) -> Compiled {
    let set: Vec<(String, String)> = set.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    compile(text, "recipe.prune", &set, &Files, &catalogue(), &Twelve)
}

/// The declarations that short examples leave out.
pub const PRELUDE: &str = "edition 2026\nmodel m = builtin(\"tiny-bert\")\ndata d = builtin(\"tales\")\n";

/// Codes of everything found, in order.
pub fn codes(text: &str) -> Vec<&'static str> {
    match compiled(text).result {
        Ok(p) => p.warnings.iter().map(|d| d.code).collect(),
        Err(d) => d.iter().map(|d: &Diagnostic| d.code).collect(),
    }
}
