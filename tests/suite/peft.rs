//! Adapter folders go to the peft library and come from it: the same logits as the model that the adapter was fused into.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::common::{run, stderr};

/// LoRA on a causal model, and SPLoRA on a classifier.
const SAVES: &str = r#"edition 2026

model l = init("builtin:tiny-llama", seed = 3)
model b = init("builtin:tiny-bert", seed = 3)
data  d = builtin("tales")

save l to "llama"
save b to "bert"
attach lora(rank = 3, alpha = 6) to l.layers[*].{attention, mlp}.linears as low
attach splora(rank = 2) to b.layers[*].linears as beside
train l on d.train.take(24) for 6 steps { only = low     batch = 8  optimizer = adamw(lr = 2e-2) }
train b on d.train.take(24) for 6 steps { only = beside  batch = 8  optimizer = adamw(lr = 2e-2) }
save l to "llama-adapter" { format = peft }
save b to "bert-adapter" { format = peft }
fuse low into l
fuse beside into b
save l to "llama-fused"
save b to "bert-fused"
"#;

/// An adapter that peft made is attached, and fused.
const TAKES: &str = r#"edition 2026

model l = dir("llama")

attach lora(rank = 4, from = "theirs") to l.layers[*].attention.linears as theirs
fuse theirs into l
save l to "theirs-fused"
"#;

/// LoRA on a family whose files join projections in one module; FAMILY and CONFIG stand for its name and its config. Of the layer's other
/// matrices the rank is another than of the joined one.
const JOINED: &str = r#"edition 2026

model m = init("CONFIG", seed = 3)
data  d = tokens("ids.safetensors")

save m to "FAMILY"
attach lora(rank = 2, alpha = 6) to m.layers[*].linears as low
train m on d for 6 steps { batch = 8  optimizer = adamw(lr = 2e-2) }
save m to "FAMILY-adapter" { format = peft }
fuse low into m
save m to "FAMILY-fused"
"#;

/// An adapter that peft made of whole modules is attached to their parts, and fused.
const PARTS: &str = r#"edition 2026

model m = dir("gpt2")

attach lora(rank = 4, from = "gpt2-theirs") to m.tensors("*c_attn.weight") as theirs
fuse theirs into m
save m to "gpt2-theirs-fused"
"#;

/// Families with joined projections: in blocks (transposed in GPT-2), by group, by shard, with gate and up together; and experts, which
/// transformers joins.
const FAMILIES: [&str; 7] = ["gpt2", "gpt_neox", "falcon", "codegen", "phi3", "mixtral", "qwen3_moe"];

/// Logits in f32 through two programs, as a share of the largest.
const TOLERANCE: f64 = 1e-5;

#[test]
fn peft_opens_our_adapters_and_we_open_its() {
    let Some(python) = prunectl_testkit::python("peft opens the adapters") else { return };
    if !Command::new(&python).args(["-c", "import peft"]).output().unwrap().status.success() {
        return prunectl_testkit::skip(
            "peft opens the adapters",
            "peft",
            "that Python has no peft; scripts/make-python-env.sh installs it",
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/python/check_peft.py");
    let peft = |args: &[&str]| {
        let out = Command::new(&python).arg(&script).args(args).current_dir(d).env("HF_MODULES_CACHE", d.join("modules")).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    fs::write(d.join("saves.prune"), SAVES).unwrap();
    let out = run(d, &["run", "saves.prune", "--out", "r1"]);
    assert!(out.status.success(), "{}", stderr(&out));
    peft(&["make", "llama", "theirs", "AutoModelForCausalLM", "4", "q_proj", "k_proj", "v_proj", "o_proj"]);
    fs::write(d.join("takes.prune"), TAKES).unwrap();
    let out = run(d, &["run", "takes.prune", "--out", "r2"]);
    assert!(out.status.success(), "{}", stderr(&out));
    let ids = candle_core::Tensor::arange(0i64, 16 * 12, &candle_core::Device::Cpu).unwrap();
    let ids = ids.broadcast_mul(&candle_core::Tensor::new(37i64, ids.device()).unwrap()).unwrap();
    let ids: Vec<i64> = ids.to_vec1::<i64>().unwrap().into_iter().map(|n| 5 + n % 50).collect();
    let ids = candle_core::Tensor::from_vec(ids, (16, 12), &candle_core::Device::Cpu).unwrap();
    candle_core::safetensors::save(&[("input_ids".to_owned(), ids)].into(), d.join("ids.safetensors")).unwrap();
    for family in FAMILIES {
        let config = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families").join(family).join("config.json");
        let recipe = JOINED.replace("FAMILY", family).replace("CONFIG", &config.display().to_string());
        fs::write(d.join(format!("{family}.prune")), recipe).unwrap();
        let out = run(d, &["run", &format!("{family}.prune")]);
        assert!(out.status.success(), "{family}: {}", stderr(&out));
    }
    peft(&["make", "gpt2", "gpt2-theirs", "AutoModelForCausalLM", "4", "c_attn"]);
    fs::write(d.join("parts.prune"), PARTS).unwrap();
    let out = run(d, &["run", "parts.prune", "--out", "r3"]);
    assert!(out.status.success(), "{}", stderr(&out));
    let case = |name: &str, base: &str, adapter: &str, class: &str| json!({"name": name, "base": base, "adapter": adapter, "fused": format!("{name}-fused"), "auto_class": class});
    let mut cases = vec![
        case("llama", "llama", "llama-adapter", "AutoModelForCausalLM"),
        case("bert", "bert", "bert-adapter", "AutoModelForSequenceClassification"),
        case("theirs", "llama", "theirs", "AutoModelForCausalLM"),
        case("gpt2-theirs", "gpt2", "gpt2-theirs", "AutoModelForCausalLM"),
    ];
    cases.extend(FAMILIES.map(|family| case(family, family, &format!("{family}-adapter"), "AutoModelForCausalLM")));
    fs::write(d.join("cases.json"), json!(cases).to_string()).unwrap();
    let said = peft(&["check", "cases.json"]);
    assert_eq!(said.lines().count(), cases.len(), "{said}");
    for line in said.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        println!("peft: {case}");
        assert!(case["error"].is_null(), "{case}");
        assert!(case["difference"].as_f64().unwrap() < TOLERANCE && case["moved"].as_f64().unwrap() > 100.0 * TOLERANCE, "{case}");
    }
}
