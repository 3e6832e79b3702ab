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
    let metrics: Value = serde_json::from_slice(&fs::read(runs.dir.path().join("run/metrics.json")).unwrap()).unwrap();
    runs.equal(&[metrics["loss"]["value"].as_f64().unwrap() as f32], "loss");
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

#[test]
fn weights_of_a_llama() {
    let runs = Runs::of("06_init_pruning_llama", "score m.layers[*].linears.weights using synflow() as s\n");
    let file = runs.dir.path().join("run/scores/s.safetensors");
    for name in ["model.layers.0.self_attn.v_proj.weight", "model.layers.2.mlp.gate_proj.weight", "model.layers.2.mlp.down_proj.weight"] {
        runs.equal(&floats(&file, name), &format!("synflow.{name}"));
    }
}
