//! `quantize m using int8(…)`: pruned, quantised, saved, loaded again.

use serde_json::Value;

use crate::common::{run, stderr, stdout};

#[test]
fn an_int8_model_is_saved_and_loaded_with_the_same_answers() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let head = "edition 2026\nmodel m = builtin(\"tiny-bert\")\ndata  d = builtin(\"tales\")\nlet test = d.validation.take(128)\n";
    write(
        "small.prune",
        &format!(
            "{head}eval accuracy() of m on test as dense\nprune m.layers[*].mlp.neurons by 10% using magnitude() {{ scope = layer }}\ncompact m\n\
             save m to \"out/float\"\nquantize m using int8(threshold = 6.0)\neval accuracy() of m on test as int8\n\
             eval loss() of m on test as loss8\nexpect int8 >= dense - 5 pp\nsave m to \"out/int8\"\n"
        ),
    );
    let done = run(dir.path(), &["run", "small.prune", "-q", "--out", "a"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let size = |path: &str| std::fs::metadata(dir.path().join(path)).unwrap().len();
    let (float, int8) = (size("out/float/model.safetensors"), size("out/int8/model.safetensors"));
    assert!(int8 * 10 < float * 8, "{int8} bytes of int8, {float} before");

    // Anybody's reader finds codes and scales.
    let bytes = std::fs::read(dir.path().join("out/int8/model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let name = "bert.encoder.layer.0.intermediate.dense";
    let codes = file.tensor(&format!("{name}.weight")).unwrap();
    assert_eq!(codes.dtype(), safetensors::Dtype::I8);
    let scales = file.tensor(&format!("{name}.SCB")).unwrap();
    assert_eq!((scales.dtype(), scales.shape()), (safetensors::Dtype::F32, &codes.shape()[..1]));
    let largest = codes.data().chunks(codes.shape()[1]).map(|row| row.iter().map(|b| (*b as i8).unsigned_abs()).max().unwrap());
    assert!(largest.into_iter().all(|m| m == 127 || m == 0));
    let config: Value = serde_json::from_slice(&std::fs::read(dir.path().join("out/int8/config.json")).unwrap()).unwrap();
    assert_eq!(config["quantization_config"]["llm_int8_threshold"], 6.0);

    write(
        "again.prune",
        "edition 2026\nmodel m = dir(\"out/int8\")\ndata  d = builtin(\"tales\")\nlet test = d.validation.take(128)\n\
         eval accuracy() of m on test as int8\neval loss() of m on test as loss8\n",
    );
    let again = run(dir.path(), &["run", "again.prune", "-q", "--out", "b"]);
    assert!(again.status.success(), "{}", stderr(&again));
    let metrics =
        |run: &str| -> Value { serde_json::from_slice(&std::fs::read(dir.path().join(run).join("metrics.json")).unwrap()).unwrap() };
    let (a, b) = (metrics("a"), metrics("b"));
    assert_eq!(a["int8"]["value"], b["int8"]["value"]);
    let (a, b) = (a["loss8"]["value"].as_f64().unwrap(), b["loss8"]["value"].as_f64().unwrap());
    assert!((a - b).abs() <= 1e-5 * a.abs(), "{a} {b}");
    assert!(stdout(&run(dir.path(), &["plan", "again.prune"])).contains("bert"));

    write("late.prune", &format!("{head}quantize m using int8()\nprune m.layers[*].mlp.neurons by 10% using magnitude()\n"));
    let late = run(dir.path(), &["run", "late.prune", "-q", "--out", "c"]);
    assert_eq!(late.status.code(), Some(1));
    assert!(stderr(&late).contains("is quantised: nothing may change its weights afterwards"), "{}", stderr(&late));
}

/// The paper's form: outlier columns meet 16-bit weights, which are what is stored.
#[test]
fn int8_with_outliers_in_16_bits_is_saved_and_loaded_with_the_same_answers() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let head = "edition 2026\nmodel m = builtin(\"tiny-bert\")\n";
    let measure = "data  d = builtin(\"tales\")\nlet test = d.validation.take(32)\neval loss() of m on test as loss8\n";
    for (name, outliers) in [("paper", "half"), ("code", "int8")] {
        let quantize = format!("quantize m using int8(threshold = 1.5, outliers = {outliers})\n");
        write("a.prune", &format!("{head}{quantize}{measure}save m to \"out/{name}\"\n"));
        let done = run(dir.path(), &["run", "a.prune", "--out", name]);
        assert!(done.status.success(), "{}", stderr(&done));
        assert_eq!(stderr(&done).contains("llm_int8_has_fp16_weight"), name == "paper", "{}", stderr(&done));
        write("b.prune", &format!("edition 2026\nmodel m = dir(\"out/{name}\")\n{measure}save m to \"out/again-{name}\"\n"));
        let again = run(dir.path(), &["run", "b.prune", "-q", "--out", &format!("again-{name}")]);
        assert!(again.status.success(), "{}", stderr(&again));
    }
    let loss = |run: &str| {
        let metrics: Value = serde_json::from_slice(&std::fs::read(dir.path().join(run).join("metrics.json")).unwrap()).unwrap();
        metrics["loss8"]["value"].as_f64().unwrap()
    };
    let (paper, code) = (loss("paper"), loss("code"));
    assert!((paper - loss("again-paper")).abs() <= 1e-5 * paper && (code - loss("again-code")).abs() <= 1e-5 * code);
    assert!((paper - code).abs() > 1e-7, "outliers met the same weights");
    let config: Value = serde_json::from_slice(&std::fs::read(dir.path().join("out/again-paper/config.json")).unwrap()).unwrap();
    assert_eq!((&config["prunectl"]["int8_threshold"], &config["quantization_config"]), (&1.5.into(), &Value::Null));
    let bytes = std::fs::read(dir.path().join("out/paper/model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let w = file.tensor("bert.encoder.layer.0.intermediate.dense.weight").unwrap();
    assert_eq!(w.dtype(), safetensors::Dtype::F16, "the type that the model has on disk");
}

/// GPT-2's own files hold matrices as [in, out], fused; int8 has a scale for each output, so its files hold [out, in].
#[test]
fn an_int8_gpt2_is_saved_upright_and_loaded_again() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let gpt2 = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/families/gpt2");
    let ids: Vec<i64> = (0..48).map(|i| i * 7 % 50).collect();
    let bytes: Vec<u8> = ids.iter().flat_map(|i| i.to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I64, vec![4, 12], &bytes).unwrap();
    std::fs::write(dir.path().join("ids.safetensors"), safetensors::serialize([("input_ids", view)], None).unwrap()).unwrap();
    let measure = "data  d = tokens(\"ids.safetensors\")\neval loss() of m on d as loss8\n";
    write(
        "a.prune",
        &format!(
            "edition 2026\nmodel m = dir(\"{gpt2}\")\nprune m.layers[*].mlp.neurons by 25% using magnitude() {{ scope = layer }}\ncompact m\n\
             quantize m using int8(threshold = 2.0)\n{measure}save m to \"out/int8\"\n"
        ),
    );
    let done = run(dir.path(), &["run", "a.prune", "-q", "--out", "a"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let bytes = std::fs::read(dir.path().join("out/int8/model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let fused = file.names().into_iter().find(|n| n.ends_with("h.0.attn.c_attn.weight")).unwrap().to_owned();
    let codes = file.tensor(&fused).unwrap();
    assert_eq!((codes.dtype(), codes.shape()[0]), (safetensors::Dtype::I8, 3 * codes.shape()[1]));
    let scales = file.tensor(&fused.replace(".weight", ".SCB")).unwrap();
    assert_eq!(scales.shape(), &codes.shape()[..1]);
    write("b.prune", &format!("edition 2026\nmodel m = dir(\"out/int8\")\n{measure}"));
    let again = run(dir.path(), &["run", "b.prune", "-q", "--out", "b"]);
    assert!(again.status.success(), "{}", stderr(&again));
    let loss = |run: &str| {
        let metrics: Value = serde_json::from_slice(&std::fs::read(dir.path().join(run).join("metrics.json")).unwrap()).unwrap();
        metrics["loss8"]["value"].as_f64().unwrap()
    };
    let (a, b) = (loss("a"), loss("b"));
    assert!((a - b).abs() <= 1e-5 * a.abs(), "{a} {b}");
}
