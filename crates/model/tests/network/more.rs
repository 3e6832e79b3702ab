//! What the pack lacks, made by `tests/golden/make_more.py`: other heads, other variants of families, other rotary scalings.

use candle_core::{DType, Tensor};
use prunectl_model::{Batch, Gates, Labels, LoadOptions, Pooling, Task, load};

use crate::golden::OpenGates;
use crate::pack::*;

const TOLERANCE: f64 = 1e-4;
const LOSS_TOLERANCE: f64 = 1e-5;

#[test]
fn other_heads_and_variants_equal_transformers() {
    let root = root().join("../more");
    let mut folders: Vec<_> = std::fs::read_dir(&root).unwrap().map(|f| f.unwrap().path()).collect();
    folders.sort();
    assert_eq!(folders.len(), 18);
    let mut with_gradients = 0;
    for folder in folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let model = load(&folder, &LoadOptions::default()).unwrap();
        let want = candle_core::safetensors::load(folder.join("expected.safetensors"), &candle_core::Device::Cpu).unwrap();
        let keep = want["attention_mask"].to_dtype(DType::U8).unwrap();
        let mut batch = Batch {
            input_ids: want["input_ids"].to_dtype(DType::U32).unwrap(),
            keep: Some(keep.clone()),
            token_type_ids: want.get("token_type_ids").map(|t| t.to_dtype(DType::U32).unwrap()),
            labels: None,
        };
        let outputs = model.forward(&batch, &Gates::default(), &mut ()).unwrap();
        let reloaded = saved_and_loaded(&model).forward(&batch, &Gates::default(), &mut ()).unwrap();
        if model.origin().task == Task::Encoder {
            let pooled = model.with_pooling(Pooling::Pooler).unwrap().forward(&batch, &Gates::default(), &mut ()).unwrap();
            let (mean, pooler) = (error(&outputs, &want["mean"]), error(&pooled, &want["pooler"]));
            println!("{name:16} mean pooling {mean:.1e} pooler {pooler:.1e}");
            assert!(mean < TOLERANCE && pooler < TOLERANCE && same_bits(&outputs, &reloaded), "{name}: {mean} {pooler}");
            continue;
        }
        assert!(same_bits(&outputs, &reloaded), "{name}: saved, loaded, other outputs");
        let labels = want["labels"].clone();
        batch.labels = Some(match (labels.dims(), labels.dtype()) {
            ([_, 2], _) => Labels::Spans(labels),
            ([_], DType::F32) => Labels::Values(labels),
            ([_], _) => Labels::Classes(labels),
            _ => Labels::Tokens(labels),
        });
        let loss = model.loss(&batch, &outputs).unwrap().mean().unwrap();
        let on_tokens = |a: &Tensor, b: &Tensor| if a.rank() == 2 { error(a, b) } else { error_where_real(a, b, &keep) };
        if let Some(heads) = want.get("head_gate_grad") {
            let open = OpenGates::new(&model, heads, &want["ffn_gate_grad"]);
            let (_, by_head, by_neuron) = open.gradients(&model, &batch);
            let (by_head, by_neuron) = (error(&by_head, heads), error(&by_neuron, &want["ffn_gate_grad"]));
            println!("{name:16} gradients of head gates {by_head:.1e}, of neuron gates {by_neuron:.1e}");
            assert!(by_head < TOLERANCE && by_neuron < TOLERANCE, "{name}: {by_head:.1e} {by_neuron:.1e}");
            with_gradients += 1;
        }
        let (logits, loss) = (on_tokens(&outputs, &want["logits"]), error(&loss, &want["loss"]));
        println!("{name:16} logits {logits:.1e} loss {loss:.1e}");
        assert!(logits < TOLERANCE && loss < LOSS_TOLERANCE, "{name}: logits {logits:.1e}, loss {loss:.1e}");
    }
    assert_eq!(with_gradients, 1, "XLM-R has them");
}
