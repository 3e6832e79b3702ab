//! Perplexity against transformers' NLL of each token, on a real model that is not part of this project.

use crate::common::golden;
use candle_core::Device;
use prunectl_model::LoadOptions;
use prunectl_prune::{Inputs, METRICS, TokenStream};
use prunectl_recipe::plan::{Unit, Value};

#[test]
fn nll_of_every_protocol() {
    let Some(dir) = prunectl_testkit::shared("models/stories260k", "nll_of_every_protocol") else { return };
    let model = prunectl_model::load(&dir, &LoadOptions::default()).unwrap();
    let tensors = candle_core::safetensors::load(golden("ppl/nll.safetensors"), &Device::Cpu).unwrap();
    let ids = |name: &str| -> Vec<Vec<u32>> {
        let t = tensors[name].to_dtype(candle_core::DType::U32).unwrap();
        if t.rank() == 1 { vec![t.to_vec1().unwrap()] } else { t.to_vec2().unwrap() }
    };
    let mean = |names: &[&str]| -> f64 {
        let all: Vec<f32> = names.iter().flat_map(|n| tensors[*n].flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect();
        all.iter().map(|v| f64::from(*v)).sum::<f64>() / all.len() as f64
    };
    let bos = 1;
    let cases = [
        // Three windows of a stream that begins with BOS.
        ("once", 256, TokenStream { prefix: vec![], ids: ids("windows.input_ids").concat() }, mean(&["windows.nll"])),
        (
            "each",
            256,
            {
                let text = ids("windows_bos_each.input_ids").into_iter().flat_map(|w| w[1..].to_vec()).collect();
                TokenStream { prefix: vec![bos], ids: text }
            },
            mean(&["windows_bos_each.nll"]),
        ),
        (
            "once",
            128,
            {
                let mut text = ids("sliding.0.input_ids").concat();
                text.extend(&ids("sliding.1.input_ids")[0][128..]);
                text.extend(&ids("sliding.2.input_ids")[0][128..]);
                TokenStream { prefix: vec![], ids: text }
            },
            mean(&["sliding.0.nll", "sliding.1.nll", "sliding.2.nll"]),
        ),
    ];
    for (bos, stride, stream, expected) in cases {
        let args = [
            ("window", Value::Quantity(256.0, Unit::Tokens)),
            ("stride", Value::Quantity(f64::from(stride), Unit::Tokens)),
            ("bos", Value::Word(bos.into())),
        ];
        let metric = crate::common::build(METRICS, "perplexity", &args);
        let mut values = Vec::new();
        for batch in [1, 2, 8] {
            let mut inputs = Inputs {
                model: &model,
                batches: None,
                stream: Some(&stream),
                questions: None,
                asked: None,
                teacher: None,
                batch,
                progress: &(),
            };
            values.push(metric.measure(&mut inputs).unwrap());
        }
        let error = (values[0].value - expected.exp()).abs() / expected.exp();
        println!("golden ppl, BOS {bos}, stride {stride}: {} tokens, relative error {error:.1e}", values[0].tokens.unwrap());
        assert!(error < 1e-5, "{} instead of {}", values[0].value, expected.exp());
        for v in &values {
            assert!((v.value - values[0].value).abs() < 1e-6 * v.value, "the batch must not matter");
        }
    }
}
