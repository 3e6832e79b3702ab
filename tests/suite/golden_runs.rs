//! Golden cases that name a model, as recipes through the binary: what a user finds in `scores/` equals the reference, within its tolerance.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use serde_json::Value;

use crate::common::{run, stderr};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/methods").join(path)
}

fn floats(path: &Path, name: &str) -> Vec<f32> {
    let all = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let tensor = all.get(name).unwrap_or_else(|| panic!("{}: no `{name}` among {:?}", path.display(), all.keys()));
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// One run over a case's model and inputs, and what it is compared with.
struct Runs {
    dir: tempfile::TempDir,
    case: PathBuf,
    tolerances: Value,
}

impl Runs {
    fn of(case: &str, steps: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let case = golden(case);
        let json: Value = serde_json::from_slice(&fs::read(case.join("case.json")).unwrap()).unwrap();
        let model = case.join(json["model"].as_str().unwrap());
        let data = case.join("inputs.safetensors");
        let data = if data.is_file() { format!("data d = tokens({:?})\n", data.display().to_string()) } else { String::new() };
        let text = format!("edition 2026\nmodel m = dir({:?})\n{data}{steps}", model.display().to_string());
        fs::write(dir.path().join("golden.prune"), text).unwrap();
        let out = run(dir.path(), &["run", "golden.prune", "--out", "run"]);
        assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
        Self { dir, case, tolerances: json["expected"].clone() }
    }

    /// The stored scores of a site in every layer against a golden tensor `[layers, units]`.
    fn close(&self, scores: &str, site: &str, layers: usize, name: &str) {
        let file = self.dir.path().join(format!("run/scores/{scores}.safetensors"));
        let key = |l: usize| if site == "layers" { site.to_owned() } else { format!("layers.{l}.{site}") };
        let found: Vec<f32> = (0..layers).flat_map(|l| floats(&file, &key(l))).collect();
        self.equal(&found, name);
    }

    /// The same where each layer has a golden tensor of its own, named by `name`.
    fn close_by_layer(&self, scores: &str, site: &str, layers: usize, name: impl Fn(usize) -> String) {
        let file = self.dir.path().join(format!("run/scores/{scores}.safetensors"));
        (0..layers).for_each(|l| self.equal(&floats(&file, &format!("layers.{l}.{site}")), &name(l)));
    }

    /// The stored scores of a matrix's weights, by its name in the model's files.
    fn weights(&self, scores: &str, name: &str) -> Vec<f32> {
        floats(&self.dir.path().join(format!("run/scores/{scores}.safetensors")), name)
    }

    fn metrics(&self) -> Value {
        serde_json::from_slice(&fs::read(self.dir.path().join("run/metrics.json")).unwrap()).unwrap()
    }

    fn equal(&self, found: &[f32], name: &str) {
        let expected = floats(&self.case.join("expected.safetensors"), name);
        assert_eq!(found.len(), expected.len(), "{name}");
        let (rtol, atol) = (self.tolerances[name]["rtol"].as_f64().unwrap(), self.tolerances[name]["atol"].as_f64().unwrap());
        for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
            let (a, b) = (f64::from(*a), f64::from(*b));
            assert!((a - b).abs() <= atol + rtol * b.abs(), "{name}[{i}]: found {a}, expected {b}");
        }
    }
}

#[test]
fn heads_of_a_bert() {
    let runs = Runs::of(
        "02_michel_bert",
        "let h = m.layers[*].attention.heads\n\
         score h using loss_delta(on = d) as exact\n\
         score h using loss_delta(on = d, estimate = gradient) as paper\n\
         eval loss() of m on d as loss\n",
    );
    runs.close("exact", "attention.heads", 3, "delta_loss.single_head");
    runs.close("paper", "attention.heads", 3, "importance.paper");
    runs.equal(&[runs.metrics()["loss"]["value"].as_f64().unwrap() as f32], "loss");
}

#[test]
fn heads_and_kv_groups_of_a_llama() {
    let runs = Runs::of(
        "02_michel_llama",
        "score m.layers[*].attention.heads using loss_delta(on = d) as exact\n\
         score m.layers[*].attention.heads using loss_delta(on = d, estimate = gradient) as paper\n\
         score m.layers[*].attention.kv_groups using loss_delta(on = d) as exact_kv\n\
         score m.layers[*].attention.kv_groups using loss_delta(on = d, estimate = gradient) as paper_kv\n",
    );
    runs.close("exact", "attention.heads", 3, "head.delta_loss.single");
    runs.close("paper", "attention.heads", 3, "head.importance.paper");
    runs.close("exact_kv", "attention.kv_groups", 3, "kv.delta_loss.single");
    runs.close("paper_kv", "attention.kv_groups", 3, "kv.importance.paper");
}

#[test]
fn layers_and_groups_of_a_llama() {
    let runs = Runs::of("13_shortgpt", "score m.layers using block_influence(on = d) as influence\n");
    runs.close("influence", "layers", 1, "bi.mean");
    let runs = Runs::of(
        "03_group_fisher_llama",
        "score m.layers[*].mlp.neurons using group_fisher(on = d, per = flops, quirk = \"reference\") as neurons { batch = 4 }\n\
         score m.layers[*].attention.kv_groups using group_fisher(on = d, per = memory, quirk = \"reference\") as groups { batch = 4 }\n",
    );
    runs.close("neurons", "mlp.neurons", 3, "ffn.flops");
    runs.close("groups", "attention.kv_groups", 3, "kv.memory");
}

const MATRICES: [&str; 3] =
    ["model.layers.0.self_attn.v_proj.weight", "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.down_proj.weight"];

#[test]
fn weights_of_a_llama() {
    let weights = "m.layers[*].linears.weights";
    let runs = Runs::of("06_init_pruning_llama", &format!("score {weights} using synflow() as s\n"));
    for name in MATRICES {
        runs.equal(&runs.weights("s", name), &format!("synflow.{name}"));
    }
    let runs = Runs::of(
        "04_loss_modelling_llama",
        &format!(
            "score {weights} using loss_model(on = d) as all\n\
             score {weights} using loss_model(on = d.take(4)) as first\n\
             score {weights} using obd(on = d) as damage\n"
        ),
    );
    for name in MATRICES {
        for (scores, case) in [("all", "LM.b3"), ("first", "LM.b1"), ("damage", "OBD_fisher.b3")] {
            runs.equal(&runs.weights(scores, name), &format!("{case}.{name}"));
        }
    }
}

/// The groups of the reference average over a head's entries: `quirk = "reference"`.
#[test]
fn groups_of_a_llama_by_size_and_by_gradient() {
    let sites = [("mlp.neurons", "ffn", ""), ("attention.kv_groups", "kv", ".heads"), ("attention.heads", "q", ".heads")];
    let of = |method: &str| -> String {
        let score = |(site, stem, _): (&str, &str, &str)| format!("score m.layers[*].{site} using {method} as {stem}\n");
        sites.map(score).concat()
    };
    for (norm, reduce) in [("l1", "sum"), ("l2", "mean")] {
        let runs = Runs::of("01_magnitude_groups", &of(&format!("magnitude(norm = {norm}, reduce = {reduce}, quirk = \"reference\")")));
        for (site, stem, tail) in sites {
            let tail = if tail.is_empty() { ".none" } else { tail };
            runs.close_by_layer(stem, site, 3, |l| format!("{stem}.{l}.{norm}.{reduce}{tail}"));
        }
    }
    for (golden, reduce) in [("plain", "element"), ("multi", "group")] {
        let runs = Runs::of("03_taylor_hessian", &of(&format!("taylor(on = d.take(4), reduce = {reduce}, quirk = \"reference\")")));
        for (site, stem, tail) in sites {
            runs.close_by_layer(stem, site, 3, |l| format!("taylor.{stem}.{l}.{golden}.sum{tail}"));
        }
    }
}

#[test]
fn blocks_beside_one_another() {
    let runs = Runs::of("16_cka", "eval cka(kernel = linear) of m on d as cka\neval cosine() of m on d as cosine\n");
    for (metric, name) in [("cka", "blocks.cka.all"), ("cosine", "blocks.cosine")] {
        let details = &runs.metrics()[metric]["details"];
        let own = |i: usize, j: usize| match (i.min(j), i.max(j)) {
            (i, j) if i == j => 1.0,
            (i, j) => details[format!("{i}-{j}")].as_f64().unwrap() as f32,
        };
        let found: Vec<f32> = (0..16).map(|at| own(at / 4, at % 4)).collect();
        runs.equal(&found, name);
    }
}
