//! Every family × every kind of removal: `save` writes it, transformers loads it as the table says (unmodified, or with the Python file
//! beside the weights), gives the same logits and the same greedy text, with a cache and without. Prints the table of worst errors.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use prunectl_model::{Batch, Gates, LoadOptions, SiteKind, Task, Transformer, load};
use prunectl_prune::{Key, PruneError, Removed, Request, Sites, UnitMap, surgery};
use prunectl_recipe::catalogue::Args;
use prunectl_recipe::plan::{Amount, Scope, Share};
use prunectl_run::save::{Layout, Saved};
use prunectl_run::stock::{Loader, Verdict};
use serde_json::json;

use crate::stock::{greedy, logits, record, save};
use prunectl_testkit::ask;

/// Largest relative difference of logits, max|a−b| / max|b|: f32 on both sides, other kernels and another order of summation.
const TOLERANCE: f64 = 1e-4;
/// New tokens of the greedy texts.
const NEW: usize = 10;

/// Golden models of every family, and of those variants whose attention or layout is another one; `@`: loaded without its head.
pub const MODELS: &[&str] = &[
    "families/bert_mlm",
    "families/bert_cls",
    "more/bert_qa",
    "families/roberta_mlm",
    "more/roberta_cls",
    "more/xlm_roberta_mlm",
    "families/distilbert_mlm",
    "families/distilbert_cls",
    "families/electra_cls",
    "more/electra_mlm",
    "families/gpt2",
    "families/gpt_neo",
    "families/gpt_neox",
    "more/gpt_neox_serial",
    "families/codegen",
    "families/opt",
    "families/opt_postnorm",
    "more/opt_narrow_cls",
    "families/falcon",
    "more/falcon_grouped",
    "more/falcon_serial",
    "families/llama",
    "families/llama_tied",
    "families/llama_rope3",
    "families/mistral",
    "families/qwen2",
    "families/qwen3",
    "families/gemma2",
    "families/gemma3",
    "families/phi3",
    "more/phi3_longrope_short",
    "more/qwen3_yarn",
    "families/mixtral",
    "families/qwen3_moe",
    "more/qwen3_moe_mixed",
    "more/bert_encoder",
    "families/llama@encoder",
    "families/mixtral@encoder",
];

/// Kinds of removal, the columns of the table.
pub const SHAPES: &[&str] = &[
    "dense",
    "heads",
    "equal_heads",
    "neurons",
    "equal_neurons",
    "attention",
    "mlp",
    "all_heads",
    "all_neurons",
    "layer",
    "experts",
    "hidden",
    "sliced",
    "weights",
];

pub fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The model that is left without these units of a layer.
fn without(model: &Transformer, kind: SiteKind, layer: usize, drop: &dyn Fn(usize) -> bool) -> Transformer {
    let place = (!matches!(kind, SiteKind::Layers | SiteKind::Hidden)).then_some(layer);
    let kept: Vec<usize> = (0..model.units(kind, place).unwrap()).filter(|u| !drop(*u)).collect();
    model.keep_units(kind, place, &kept).unwrap()
}

/// One head, or one of each group of key/value heads.
fn fewer_heads(model: &Transformer, layer: usize) -> Transformer {
    let group = model.dims()[layer].group_size();
    match group {
        0 => model.clone(),
        1 => without(model, SiteKind::Heads, layer, &|h| h == 1),
        _ => without(model, SiteKind::Heads, layer, &|h| h % group == 1),
    }
}

fn fewer_neurons(model: &Transformer, layer: usize, step: usize) -> Transformer {
    let ffn = model.dims()[layer].ffn;
    without(model, SiteKind::Neurons, layer, &|n| (n % ffn) % step == 1)
}

/// Every third weight of each layer's matrices is zero.
fn fewer_weights(model: &Transformer) -> Transformer {
    let mut out = model.clone();
    let matrices: Vec<String> =
        model.params().iter().filter(|(name, t)| t.rank() == 2 && name.starts_with("layers.")).map(|(name, _)| name.to_owned()).collect();
    for name in matrices {
        let tensor = model.params().get(&name).unwrap();
        let keep: Vec<f32> = (0..tensor.elem_count()).map(|i| f32::from(u8::from(i % 3 != 0))).collect();
        let keep = Tensor::from_vec(keep, tensor.dims(), &Device::Cpu).unwrap();
        out.params_mut().set(name, (tensor * keep).unwrap());
    }
    out
}

/// The model of a column, where the removal is legal in the family.
pub fn pruned(dense: &Transformer, shape: &str) -> Option<Transformer> {
    let layers = dense.n_layers();
    Some(match shape {
        "dense" => dense.clone(),
        "heads" => {
            let mut out = fewer_heads(dense, 0);
            if dense.dims()[1].kv_heads > 1 {
                out = without(&out, SiteKind::KvGroups, 1, &|g| g == 0);
            }
            out
        }
        "equal_heads" => (0..layers).fold(dense.clone(), |m, l| fewer_heads(&m, l)),
        "neurons" => fewer_neurons(&fewer_neurons(dense, 0, 3), 1, 5),
        "equal_neurons" => (0..layers).fold(dense.clone(), |m, l| fewer_neurons(&m, l, 2)),
        "attention" => without(dense, SiteKind::Attention, 0, &|_| true),
        "mlp" => without(dense, SiteKind::Mlp, 1, &|_| true),
        "all_heads" => without(dense, SiteKind::Heads, 1, &|_| true),
        "all_neurons" => without(dense, SiteKind::Neurons, 0, &|_| true),
        "layer" => without(dense, SiteKind::Layers, 0, &|l| l == 0),
        "experts" if dense.dims().iter().any(|d| d.experts > 1) => {
            let layer = dense.dims().iter().position(|d| d.experts > 1)?;
            without(dense, SiteKind::Experts, layer, &|e| e == 1)
        }
        "hidden" => {
            let hidden = dense.blueprint().hidden;
            without(dense, SiteKind::Hidden, 0, &|c| c == 0 || c == 5 || c >= hidden - 2)
        }
        "sliced" => return sliced(dense),
        "weights" => fewer_weights(dense),
        _ => return None,
    })
}

/// A quarter of the residual stream's principal directions cut, where the network can be turned.
fn sliced(dense: &Transformer) -> Option<Transformer> {
    let mut sites = Sites::default();
    sites.add(Key::of(prunectl_recipe::catalogue::SiteKind::Hidden, 0), 0..dense.blueprint().hidden);
    let amount = Amount::Share { share: Share::from_fraction(0.25), each: false };
    let (protect, none) = (Sites::default(), Removed::default());
    let request = Request {
        sites: &sites,
        amount: &amount,
        scope: Scope::Global,
        at_least: None,
        align: None,
        protect: &protect,
        removed: &none,
        step: None,
    };
    let ids = Tensor::arange(3u32, 63, &Device::Cpu).unwrap().reshape((5, 12)).unwrap();
    let mut data = prunectl_prune::InMemory::new(vec![Batch::new(ids)]);
    let method = prunectl_prune::build(prunectl_prune::CRITERIA, "slice", &Args::default()).unwrap();
    let (mut model, mut removed) = (dense.clone(), Removed::default());
    match method.layerwise().unwrap().prune(&mut model, &mut removed, &request, &mut data, &()) {
        Ok(_) => {}
        Err(PruneError::Invalid { what: "network that slice turns", .. }) => return None,
        Err(e) => panic!("{e}"),
    }
    surgery::compact(&mut model, &mut removed, &mut UnitMap::default()).unwrap();
    Some(model)
}

/// A saved model of the table.
pub struct Cell {
    pub family: String,
    pub shape: &'static str,
    pub model: Transformer,
    pub saved: Saved,
    pub batch: Batch,
}

/// Every legal cell, saved below `folder`.
pub fn cells(folder: &Path) -> Vec<Cell> {
    let mut out = Vec::new();
    for &name in MODELS {
        let family = name.rsplit('/').next().unwrap();
        let (place, task) = name.split_once('@').map_or((name, None), |(place, _)| (place, Some(Task::Encoder)));
        out.extend(row(folder, family, &golden(place), task));
    }
    out
}

/// The cells of one model with golden numbers.
pub fn row(folder: &Path, family: &str, dir: &Path, task: Option<Task>) -> Vec<Cell> {
    let dense = load(dir, &LoadOptions { task, ..LoadOptions::default() }).unwrap();
    let want = candle_core::safetensors::load(dir.join("expected.safetensors"), &Device::Cpu).unwrap();
    let batch = Batch {
        keep: Some(want["attention_mask"].to_dtype(DType::U8).unwrap()),
        ..Batch::new(want["input_ids"].to_dtype(DType::U32).unwrap())
    };
    let mut out = Vec::new();
    for &shape in SHAPES {
        let Some(model) = pruned(&dense, shape) else { continue };
        let saved = save(&model, &folder.join(format!("{family}-{shape}")), Layout::Compact, &record(&dense, None));
        // Turned weights are no values of a narrow dtype any more: what was read back is what the other side has.
        let rounded = shape == "sliced" && dense.origin().stored_dtype != DType::F32;
        let model = if rounded { load(&saved.dir, &LoadOptions { task, ..LoadOptions::default() }).unwrap() } else { model };
        out.push(Cell { family: family.to_owned(), shape, model, saved, batch: batch.clone() });
    }
    out
}

pub fn auto_class(task: Task) -> &'static str {
    match task {
        Task::CausalLm => "AutoModelForCausalLM",
        Task::MaskedLm => "AutoModelForMaskedLM",
        Task::Classification => "AutoModelForSequenceClassification",
        Task::QuestionAnswering => "AutoModelForQuestionAnswering",
        Task::Encoder => "AutoModel",
    }
}

/// What the other side must give: the logits, and for causal models the greedy continuation of the first tokens.
fn write_expected(cell: &Cell, path: &Path) {
    let whole = |t: &Tensor| t.to_dtype(DType::I64).unwrap();
    let output = match cell.model.origin().task {
        Task::Encoder => {
            let (x, context) = cell.model.hidden(&cell.batch, &Gates::default(), &mut ()).unwrap();
            cell.model.last_norm(&x, &context, &mut ()).unwrap()
        }
        _ => logits(&cell.model, &cell.batch),
    };
    let mut tensors = HashMap::from([
        ("input_ids".to_owned(), whole(&cell.batch.input_ids)),
        ("attention_mask".to_owned(), whole(cell.batch.keep.as_ref().unwrap())),
        ("logits".to_owned(), output),
    ]);
    if cell.model.origin().task == Task::CausalLm {
        let prompt = [5_u32, 60, 31, 47, 12];
        let row = |ids: &[u32]| whole(&Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap());
        tensors.insert("prompt".into(), row(&prompt));
        tensors.insert("generated".into(), row(&greedy(&cell.model, &prompt, NEW)));
    }
    candle_core::safetensors::save(&tensors, path).unwrap();
}

/// The families' names, as tables have them.
pub fn rows() -> Vec<&'static str> {
    MODELS.iter().map(|m| m.rsplit('/').next().unwrap()).collect()
}

/// Prints row × column.
pub fn print_table(title: &str, rows: &[&str], columns: &[&str], cells: &BTreeMap<(String, String), String>) {
    println!("\n{title}\n{:20}{}", "", columns.iter().map(|c| format!("{c:>15}")).collect::<String>());
    for row in rows.iter().filter(|r| cells.keys().any(|(row, _)| row == *r)) {
        let cell = |c: &&str| format!("{:>15}", cells.get(&((*row).to_owned(), (*c).to_owned())).map_or("–", String::as_str));
        println!("{row:20}{}", columns.iter().map(cell).collect::<String>());
    }
}

#[test]
fn transformers_loads_every_family_in_every_shape() {
    let Some(python) = prunectl_testkit::python("transformers loads every family in every shape") else { return };
    let folder = tempfile::tempdir().unwrap();
    let table = transformers_reads(&python, folder.path(), &cells(folder.path()));
    print_table("transformers: worst error of the logits (py: with trust_remote_code=True)", &rows(), SHAPES, &table);
}

/// Has transformers read the cells as the loader table says, and returns the worst error of the logits by family and shape.
pub fn transformers_reads(python: &Path, folder: &Path, cells: &[Cell]) -> BTreeMap<(String, String), String> {
    let mut asked = Vec::new();
    for (i, cell) in cells.iter().enumerate() {
        let answers = folder.join(format!("{i}.safetensors"));
        write_expected(cell, &answers);
        let verdict = &cell.saved.loaders.iter().find(|l| l.loader == Loader::Transformers).unwrap().verdict;
        let mut ask_for = |trust: bool, loads: bool| {
            asked.push(json!({
                "name": i.to_string(), "dir": cell.saved.dir, "expected": answers, "auto_class": auto_class(cell.model.origin().task),
                "trust_remote_code": trust, "loads": loads, "caches": [true],
            }));
        };
        match verdict {
            Verdict::Stock { tried: true, .. } => ask_for(false, true),
            Verdict::RemoteCode { reason } => {
                ask_for(true, true);
                // What the table says of the head counts that stock classes refuse. Odd widths of experts are another matter: whether
                // torch takes them depends on its version and the dtype.
                if cell.shape == "equal_heads" && !reason.contains("grouped product") {
                    ask_for(false, false);
                }
            }
            // Falcon's class takes no odd width, which a slice may leave of a random one.
            Verdict::Refused { reason, .. } if reason.contains("its config refuses a hidden size") => {}
            other => panic!("{} {}: {other:?}", cell.family, cell.shape),
        }
    }
    let results = ask(python, "check_logits.py", folder, &asked);
    let (mut table, mut wrong) = (BTreeMap::new(), Vec::new());
    for (result, ask) in results.iter().zip(&asked) {
        let cell = &cells[result["name"].as_str().unwrap().parse::<usize>().unwrap()];
        let close = result["difference"].as_f64().is_some_and(|d| d < TOLERANCE);
        let complete = result["missing"].as_array().is_some_and(Vec::is_empty);
        let right = match ask["loads"] == true {
            true => result["loaded"] == true && close && complete && result["generated"] != false,
            false => result["loaded"] == false,
        };
        if !right {
            wrong.push(format!("{} {}: {result}", cell.family, cell.shape));
        }
        if ask["loads"] == true {
            let how = if ask["trust_remote_code"] == true { " py" } else { "" };
            let text = result["difference"].as_f64().map_or("fails".to_owned(), |d| format!("{d:.1e}{how}"));
            table.insert((cell.family.clone(), cell.shape.to_owned()), text);
        }
    }
    assert!(wrong.is_empty(), "{} of {} are not as the table says:\n{}", wrong.len(), results.len(), wrong.join("\n"));
    table
}
