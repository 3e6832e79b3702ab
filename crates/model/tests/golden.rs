//! Each family equals Hugging Face transformers: logits, loss, hidden states, gate gradients, in both spellings of its config.

mod common;

use candle_core::{DType, Tensor, Var};
use common::*;
use prunectl_model::{Batch, Gates, LayerGates, Point, Result, Tap, Transformer};

/// Collects what the pack has: the input of block 0, the output of each block and of the final norm, router logits.
#[derive(Default)]
struct Recorder {
    input: Option<Tensor>,
    blocks: Vec<Tensor>,
    routers: Vec<Tensor>,
    final_norm: Option<Tensor>,
}

impl Tap for Recorder {
    fn wants(&self, layer: usize, point: Point) -> bool {
        matches!(point, Point::BlockOutput | Point::FinalNorm | Point::RouterLogits) || (layer == 0 && point == Point::BlockInput)
    }

    fn see(&mut self, _: usize, point: Point, t: &Tensor) -> Result<()> {
        let t = t.detach();
        match point {
            Point::BlockInput => self.input = Some(t),
            Point::BlockOutput => self.blocks.push(t),
            Point::RouterLogits => self.routers.push(t),
            _ => self.final_norm = Some(t),
        }
        Ok(())
    }
}

/// Gates that are all 1, as variables: one for the heads and one for the neurons of each layer.
struct OpenGates {
    heads: Vec<Var>,
    neurons: Vec<Var>,
}

impl OpenGates {
    fn new(model: &Transformer, heads: &Tensor, neurons: &Tensor) -> Self {
        let var = |of: &Tensor, layer: usize| {
            let shape = of.get(layer).unwrap().dims().to_vec();
            Var::ones(shape, model.dtype(), model.device()).unwrap()
        };
        let layers = 0..model.n_layers();
        Self { heads: layers.clone().map(|l| var(heads, l)).collect(), neurons: layers.map(|l| var(neurons, l)).collect() }
    }

    fn gates(&self) -> Gates {
        let layers = self.heads.iter().zip(&self.neurons);
        let layers = layers.map(|(h, n)| LayerGates {
            heads: Some(h.as_tensor().clone()),
            neurons: Some(n.as_tensor().clone()),
            ..LayerGates::default()
        });
        Gates { layers: layers.collect(), hidden: None }
    }

    /// Loss, gradients of heads `[L, H]` and neurons `[L, F]` (or `[L, E, F]`).
    fn gradients(&self, model: &Transformer, batch: &Batch) -> (Tensor, Tensor, Tensor) {
        let loss = model.forward_loss(batch, &self.gates(), &mut ()).unwrap().mean().unwrap();
        let store = loss.backward().unwrap();
        let stack = |vars: &[Var]| {
            let grads: Vec<Tensor> = vars.iter().map(|v| store.get(v.as_tensor()).unwrap().clone()).collect();
            Tensor::stack(&grads, 0).unwrap()
        };
        (loss, stack(&self.heads), stack(&self.neurons))
    }
}

fn constant_gates(heads: &Tensor, neurons: &Tensor) -> Gates {
    let layers = (0..heads.dim(0).unwrap()).map(|l| LayerGates {
        heads: Some(heads.get(l).unwrap()),
        neurons: Some(neurons.get(l).unwrap()),
        ..LayerGates::default()
    });
    Gates { layers: layers.collect(), hidden: None }
}

/// Every quantity of the pack: its name, the manifest's name of its tolerance, the error.
fn errors(family: &str, config: &str, dtype: DType) -> Vec<(&'static str, &'static str, f64)> {
    let (model, want) = (model(family, config, dtype), expected(family));
    let batch = batch(&want);
    let keep = batch.keep.clone().unwrap();
    let mut seen = Recorder::default();
    let logits = model.forward(&batch, &Gates::default(), &mut seen).unwrap();
    let on_tokens = |found: &Tensor, want: &Tensor| {
        if found.rank() == 2 { error(found, want) } else { error_where_real(found, want, &keep) }
    };
    let mut all = vec![("logits", "logits", on_tokens(&logits, &want["logits"]))];
    let loss = model.loss(&batch, &logits).unwrap().mean().unwrap();
    all.push(("loss", "loss", error(&loss, &want["loss"])));
    all.push(("hidden_input", "hidden_states", on_tokens(&seen.input.unwrap(), &want["hidden_input"])));
    all.push(("hidden_states", "hidden_states", on_tokens(&Tensor::stack(&seen.blocks, 0).unwrap(), &want["hidden_states"])));
    if let Some(norm) = want.get("final_norm_output") {
        all.push(("final_norm_output", "hidden_states", on_tokens(&seen.final_norm.unwrap(), norm)));
    }
    if let Some(routers) = want.get("router_logits") {
        all.push(("router_logits", "hidden_states", on_tokens(&Tensor::stack(&seen.routers, 0).unwrap(), routers)));
    }
    let open = OpenGates::new(&model, &want["head_gate_grad"], &want["ffn_gate_grad"]);
    let (scored, heads, neurons) = open.gradients(&model, &batch);
    all.push(("loss of scored rows", "loss", error(&scored, &want["loss"])));
    all.push(("head_gate_grad", "head_gate_grad", error(&heads, &want["head_gate_grad"])));
    all.push(("ffn_gate_grad", "ffn_gate_grad", error(&neurons, &want["ffn_gate_grad"])));

    let (b, _) = batch.size().unwrap();
    let rows: Vec<_> = (0..b as u32).map(|row| open.gradients(&model, &batch.rows(&[row]).unwrap())).collect();
    let stack = |pick: &dyn Fn(&(Tensor, Tensor, Tensor)) -> Tensor| Tensor::stack(&rows.iter().map(pick).collect::<Vec<_>>(), 0).unwrap();
    all.push(("per_example.loss", "loss", error(&stack(&|r| r.0.clone()), &want["per_example.loss"])));
    all.push(("per_example.head_gate_grad", "head_gate_grad", error(&stack(&|r| r.1.clone()), &want["per_example.head_gate_grad"])));
    all.push(("per_example.ffn_gate_grad", "ffn_gate_grad", error(&stack(&|r| r.2.clone()), &want["per_example.ffn_gate_grad"])));

    let gates = constant_gates(&want["mask.heads"], &want["mask.ffn"]);
    let masked = model.forward(&batch, &gates, &mut ()).unwrap();
    all.push(("masked.logits (gates)", "logits", on_tokens(&masked, &want["masked.logits"])));
    let loss = model.loss(&batch, &masked).unwrap().mean().unwrap();
    all.push(("masked.loss (gates)", "loss", error(&loss, &want["masked.loss"])));
    all
}

#[test]
fn every_family_equals_transformers() {
    let mut failed = Vec::new();
    for family in GOLDEN {
        for config in ["config.json", "config_v4.json"] {
            for (quantity, tolerance_of, error) in errors(family, config, DType::F32) {
                let tolerance = tolerance(family, tolerance_of);
                println!("{family:16} {config:14} {quantity:30} {error:9.2e} (tolerance {tolerance:.0e})");
                if error > tolerance {
                    failed.push(format!("{family} {config} {quantity}: {error:.2e} > {tolerance:.0e}"));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
