//! LLM.int8(): vector-wise int8 with outlier columns kept apart.
//!
//! Dettmers et al., LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale (2022), eq. 5-8. The arithmetic is the network's own
//! (`prunectl_model::int8`); this is its row.

use prunectl_model::Transformer;
use prunectl_model::int8::Int8;
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Kind, Ty};

use super::Quantizer;
use crate::error::Result;
use crate::row::{other, param, within};

impl Quantizer for Int8 {
    fn quantize(&self, model: &Transformer) -> Result<Transformer> {
        Ok(model.to_int8(*self)?)
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Quantizer>, ArgError> {
    Ok(Box::new(Int8 { threshold: args.float("threshold")?, half: args.word("outliers")? == "half" }))
}

pub(super) const ENTRY: Entry<dyn Quantizer> = Entry {
    spec: other(
        Kind::Quantizer,
        "int8",
        "Dettmers et al., LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale (2022), eq. 8",
        &[
            within(param("threshold", Ty::Float, "6.0", "Input columns that reach it stay in full precision; 0: none do."), 0.0, 1e9),
            param(
                "outliers",
                Ty::OneOf(&["int8", "half"]),
                "int8",
                "The weights that outlier columns meet: the int8 ones, as in the published code, or 16-bit ones, the paper's eq. 8.",
            ),
        ],
        "Vector-wise int8: each row of the weight and each token of the input has its own scale; columns with outliers are kept apart. \
         Matrices of the layers are quantised; embeddings, head, norms, biases and routers stay. Saved in bitsandbytes' layout.\n\n\
         Mind: the threshold compares with ≥; a zero row has scale 0. As in the published code a token's scale is its largest entry below the \
         threshold, and outliers meet the int8 weights. The paper's eq. 8 keeps 16-bit ones and leaves outlier columns out of a token's scale: \
         `outliers = half`. Any column may hold an outlier, so that form stores all matrices as 16-bit numbers (save it with `dtype = f16`), which other loaders \
         read and do not round; it shows what the scheme costs, and makes no file smaller than its 16 bits. Outlier \
         columns belong to a sequence, not to a batch, so results do not depend on the batch. It comes last: what changes weights afterwards is refused. \
         Files shrink, memory and time do not: the products are computed in floating point.\n\n\
         ```prune\nquantize m using int8(threshold = 6.0)\nsave m to \"out/int8\"\n```",
    ),
    build,
};

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use candle_core::{DType, Device, Tensor};
    use prunectl_model::{Batch, Gates, LoadOptions, ModelError, Point, Tap};

    use super::*;
    use crate::quantizer::QUANTIZERS;

    fn golden(path: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/methods").join(path)
    }

    fn quantizer(threshold: f64, outliers: &str) -> Box<dyn Quantizer> {
        let mut args = Args::default();
        args.0.insert("threshold".into(), prunectl_recipe::plan::Value::Number(threshold));
        args.0.insert("outliers".into(), prunectl_recipe::plan::Value::Word(outliers.into()));
        crate::build(QUANTIZERS, "int8", &args).unwrap()
    }

    #[test]
    fn codes_scales_and_products_equal_the_library() {
        let load = |file: &str| candle_core::safetensors::load(golden("15_llm_int8").join(file), &Device::Cpu).unwrap();
        let (inputs, expected) = (load("inputs.safetensors"), load("expected.safetensors"));
        let case: serde_json::Value = serde_json::from_slice(&std::fs::read(golden("15_llm_int8/case.json")).unwrap()).unwrap();
        let found = prunectl_model::int8::codes(&inputs["weight"]).unwrap();
        let theirs: Vec<i8> = expected["q_w"].flatten_all().unwrap().to_vec1::<i64>().unwrap().iter().map(|q| *q as i8).collect();
        assert_eq!(found.codes, theirs);
        assert_eq!(
            found.codes,
            expected["bnb.q_w"].flatten_all().unwrap().to_vec1::<i64>().unwrap().iter().map(|q| *q as i8).collect::<Vec<_>>()
        );
        let close = |name: &str, ours: &[f32]| {
            let tolerance = |k: &str| case["expected"][name][k].as_f64().unwrap();
            let theirs = expected[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(ours.len(), theirs.len(), "{name}");
            let mut worst = 0f64;
            for (a, b) in ours.iter().zip(&theirs) {
                let (a, b) = (f64::from(*a), f64::from(*b));
                assert!((a - b).abs() <= tolerance("atol") + tolerance("rtol") * b.abs(), "{name}: {a} {b}");
                worst = worst.max((a - b).abs());
            }
            println!("golden 15_llm_int8 ({name}): worst error {worst:.1e}");
        };
        close("scale_w", &found.scales);
        let library = [(6.0, "y.formula"), (6.0, "y.bnb"), (6.0, "y.linear8bitlt_eval"), (0.0, "y.no_outliers")];
        for (threshold, name) in library {
            close(name, &through_q(&inputs, threshold, "int8"));
        }
        for (threshold, name) in [(6.0, "y.paper"), (0.0, "y.no_outliers")] {
            close(name, &through_q(&inputs, threshold, "half"));
        }
    }

    /// The case's Linear in the place of an attention's q projection (24 of its 32 rows), read where queries leave it.
    fn through_q(inputs: &std::collections::HashMap<String, Tensor>, threshold: f64, outliers: &str) -> Vec<f32> {
        let mut model = prunectl_model::load(&golden("models/bert-tiny"), &LoadOptions::default()).unwrap();
        let pad = |t: &Tensor| t.pad_with_zeros(0, 0, 8).unwrap();
        model.params_mut().set("layers.0.attention.q.weight", pad(&inputs["weight"]));
        model.params_mut().set("layers.0.attention.q.bias", pad(&inputs["bias"]));
        let model = quantizer(threshold, outliers).quantize(&model).unwrap();
        assert_eq!(model.int8(), Some(Int8 { threshold, half: outliers == "half" }));
        struct Queries(Option<Tensor>);
        impl Tap for Queries {
            fn wants(&self, layer: usize, point: Point) -> bool {
                layer == 0 && point == Point::Queries
            }
            fn see(&mut self, _: usize, _: Point, x: &Tensor) -> std::result::Result<(), ModelError> {
                self.0 = Some(x.clone());
                Ok(())
            }
        }
        let rows = inputs["x"].dim(0).unwrap();
        let (_, context) = model.embed(&Batch::new(Tensor::zeros((1, rows), DType::U32, &Device::Cpu).unwrap())).unwrap();
        let mut queries = Queries(None);
        // Post-norm: attention reads the block's input as it is.
        model.block(0, &inputs["x"].unsqueeze(0).unwrap(), &context, None, &mut queries).unwrap();
        let q = queries.0.unwrap(); // [1, heads, rows, head_dim]
        let q = q.transpose(1, 2).unwrap().flatten_from(2).unwrap().squeeze(0).unwrap();
        q.narrow(1, 0, 24).unwrap().contiguous().unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn what_surrounds_a_sequence_does_not_change_it() {
        let model = prunectl_model::load(&golden("models/llama-tiny"), &LoadOptions::default()).unwrap();
        for outliers in ["int8", "half"] {
            let int8 = quantizer(1.0, outliers).quantize(&model).unwrap();
            let ids: Vec<u32> = (0..24).map(|i| (i * 7 % 60) as u32).collect();
            let both = Tensor::from_vec(ids, (2, 12), &Device::Cpu).unwrap();
            let logits = |b: Tensor| int8.forward(&Batch::new(b), &Gates::default(), &mut ()).unwrap();
            let one = logits(both.narrow(0, 1, 1).unwrap()).flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let two = logits(both).narrow(0, 1, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(one.iter().zip(&two).all(|(a, b)| (a - b).abs() <= 1e-5 * a.abs().max(1.0)));
        }
    }
}
