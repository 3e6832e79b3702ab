//! Real models, where they are at hand: `PRUNECTL_SHARED` names the folder of reference data (`models/`, `golden/`). Without it these
//! tests say so and pass.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use prunectl_model::{Batch, Facts, Gates, LoadOptions, load};

use crate::golden::OpenGates;
use crate::pack::*;

fn shared() -> Option<PathBuf> {
    // Both folders are used.
    prunectl_testkit::shared("models", "real models").and_then(|dir| dir.parent().map(Into::into))
}

fn tensors(path: PathBuf) -> Tensors {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

#[test]
fn minilm_sst2_gives_its_logits() {
    let Some(shared) = shared() else { return };
    let dir = shared.join("models/minilm-sst2");
    let model = load(&dir, &LoadOptions::default()).unwrap();
    assert_eq!(model.origin().stored_dtype, DType::F16);
    assert_eq!(Facts::read(&dir, None).unwrap().parameters, model.parameter_count());
    let want = tensors(shared.join("golden/sst2/expected.safetensors"));
    let batch = batch(&want);
    let logits = model.forward(&batch, &Gates::default(), &mut ()).unwrap();
    let (loss, heads, neurons) = OpenGates::new(&model, &want["head_gate_grad"], &want["ffn_gate_grad"]).gradients(&model, &batch);
    for (found, name, tolerance) in
        [(logits, "logits", 1e-4), (loss, "loss", 1e-5), (heads, "head_gate_grad", 2e-4), (neurons, "ffn_gate_grad", 2e-4)]
    {
        let error = error(&found, &want[name]);
        println!("minilm-sst2 {name:16} {error:.1e} (tolerance {tolerance:.0e})");
        assert!(error < tolerance, "{name}: {error}");
    }
}

#[test]
fn stories260k_gives_its_losses() {
    let Some(shared) = shared() else { return };
    let model = load(&shared.join("models/stories260k"), &LoadOptions::default()).unwrap();
    assert_eq!(model.parameter_count(), 260_032);
    let story = tensors(shared.join("golden/stories260k/expected.safetensors"));
    let ids = |t: &Tensor| Batch::new(t.to_dtype(DType::U32).unwrap());
    let logits = model.forward(&ids(&story["input_ids"].unsqueeze(0).unwrap()), &Gates::default(), &mut ()).unwrap();
    let logits = error(&logits.squeeze(0).unwrap(), &story["logits"]);
    println!("stories260k logits {logits:.1e}");
    assert!(logits < 1e-4);

    let want = tensors(shared.join("golden/ppl/nll.safetensors"));
    for protocol in ["windows", "windows_bos_each"] {
        let batch = ids(&want[&format!("{protocol}.input_ids")]);
        let loss = model.forward_loss(&batch, &Gates::default(), &mut ()).unwrap();
        assert_eq!(loss.per_example_count, [255; 3]);
        let error = error(&loss.per_example_sum, &want[&format!("{protocol}.nll")].sum(1).unwrap());
        println!("stories260k {protocol} {error:.1e}");
        assert!(error < 1e-5, "{protocol}: {error}");
    }
}

#[test]
fn sentence_embeddings_come_out() {
    let Some(shared) = shared() else { return };
    let model = load(&shared.join("models/all-minilm-l6-v2"), &LoadOptions::default()).unwrap();
    let ids = Tensor::new(&[[101_u32, 7592, 102]], &Device::Cpu).unwrap();
    let embedding = model.forward(&Batch::new(ids), &Gates::default(), &mut ()).unwrap();
    assert_eq!(embedding.dims(), [1, 384]);
}
