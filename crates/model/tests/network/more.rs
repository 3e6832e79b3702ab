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

/// A classifier's class looks for the last token that is not the padding's id, and whoever takes the short way must see no more than it.
#[test]
fn a_padding_id_at_the_end_of_a_text_is_not_looked_at() {
    struct Open;
    impl prunectl_model::Tap for Open {
        fn wants(&self, _: usize, _: prunectl_model::Point) -> bool {
            true
        }
        fn see(&mut self, _: usize, _: prunectl_model::Point, _: &Tensor) -> prunectl_model::Result<()> {
            Ok(())
        }
    }
    let model = load(&root().join("../more/llama_cls"), &LoadOptions::default()).unwrap();
    let ids = Tensor::new(&[[7_u32, 30, 12, 0], [7, 30, 12, 9]], &candle_core::Device::Cpu).unwrap();
    let outputs = |ids: &Tensor, tap: &mut dyn prunectl_model::Tap| {
        let batch = Batch::new(ids.clone());
        model.forward(&batch, &Gates::default(), tap).unwrap()
    };
    let (short, long) = (outputs(&ids, &mut ()), outputs(&ids, &mut Open));
    assert!(error(&short, &long) < TOLERANCE, "{short} {long}");
    let cut = outputs(&ids.narrow(0, 0, 1).unwrap().narrow(1, 0, 3).unwrap().contiguous().unwrap(), &mut ());
    assert!(error(&short.narrow(0, 0, 1).unwrap(), &cut) < TOLERANCE, "what stands behind it changes nothing");
}
