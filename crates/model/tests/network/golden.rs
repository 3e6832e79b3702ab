//! Each family equals Hugging Face transformers: logits, loss, hidden states, gate gradients, in both spellings of its config.

use crate::pack::*;
use candle_core::{DType, Tensor, Var};
use prunectl_model::{Batch, Gates, LayerGates, ModelError, Point, Result, SiteKind, Tap, Transformer};

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
pub struct OpenGates {
    heads: Vec<Var>,
    neurons: Vec<Var>,
}

impl OpenGates {
    pub fn new(model: &Transformer, heads: &Tensor, neurons: &Tensor) -> Self {
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
    pub fn gradients(&self, model: &Transformer, batch: &Batch) -> (Tensor, Tensor, Tensor) {
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
    let forward = |m: &Transformer| m.forward(&batch, &Gates::default(), &mut ()).unwrap();
    all.push(("masked.logits (zeroed)", "logits", on_tokens(&forward(&zeroed(&model, &want)), &want["masked.logits"])));
    let pruned = pruned(&model, &want);
    all.push(("masked.logits (surgery)", "logits", on_tokens(&forward(&pruned), &want["masked.logits"])));
    let reloaded = saved_and_loaded(&pruned);
    all.push(("masked.logits (reloaded)", "logits", on_tokens(&forward(&reloaded), &want["masked.logits"])));
    all
}

/// Units of a layer whose gate is on, and off.
fn on_and_off(mask: &Tensor, layer: usize) -> (Vec<usize>, Vec<usize>) {
    let mask: Vec<f32> = mask.get(layer).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (0..mask.len()).partition(|u| mask[*u] != 0.0)
}

/// Every coupled slice of the units that are off is zero.
fn zeroed(model: &Transformer, want: &Tensors) -> Transformer {
    let mut zeroed = model.clone();
    for layer in 0..model.n_layers() {
        for (kind, mask) in [(SiteKind::Heads, "mask.heads"), (SiteKind::Neurons, "mask.ffn")] {
            for unit in on_and_off(&want[mask], layer).1 {
                zero(&mut zeroed, &model.group(kind, Some(layer), unit).unwrap());
            }
        }
    }
    zeroed
}

/// The units that are off are gone. Where heads leave unevenly, keys and values are un-shared first.
fn pruned(model: &Transformer, want: &Tensors) -> Transformer {
    let mut model = model.clone();
    for layer in 0..model.n_layers() {
        let (heads, neurons) = (on_and_off(&want["mask.heads"], layer).0, on_and_off(&want["mask.ffn"], layer).0);
        model = match model.keep_units(SiteKind::Heads, Some(layer), &heads) {
            Err(ModelError::Uneven { .. }) => model.unshare_kv(layer).unwrap().keep_units(SiteKind::Heads, Some(layer), &heads).unwrap(),
            other => other.unwrap(),
        };
        model = model.keep_units(SiteKind::Neurons, Some(layer), &neurons).unwrap();
    }
    model
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

#[test]
fn every_parameter_has_a_gradient() {
    for family in GOLDEN {
        let (mut model, batch) = (model(family, "config.json", DType::F32), batch(&expected(family)));
        let vars: Vec<(String, Var)> = model.params().iter().map(|(slot, t)| (slot.to_owned(), Var::from_tensor(t).unwrap())).collect();
        for (slot, var) in &vars {
            model.params_mut().set(slot.clone(), var.as_tensor().clone());
        }
        let loss = model.forward_loss(&batch, &Gates::default(), &mut ()).unwrap().mean().unwrap();
        let grads = loss.backward().unwrap();
        for (slot, var) in &vars {
            let grad = grads.get(var.as_tensor()).unwrap_or_else(|| panic!("{family}: no gradient of {slot}"));
            let size = grad.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(size.is_finite(), "{family} {slot}: {size}");
            // A constant added to every key moves no softmax, so the gradient of a key's bias is rounding only.
            assert!(size > 0.0 || slot.ends_with(".k.bias"), "{family} {slot}: the gradient is 0");
        }
    }
}

/// In f64, the directional derivative along random gates against central differences.
#[test]
fn gate_gradients_match_central_differences() {
    const STEP: f64 = 1e-5;
    for family in GOLDEN {
        let (model, want) = (model(family, "config.json", DType::F64), expected(family));
        let batch = batch(&want);
        let open = OpenGates::new(&model, &want["head_gate_grad"], &want["ffn_gate_grad"]);
        let (_, heads, neurons) = open.gradients(&model, &batch);
        let direction = |of: &Tensor, phase: f64| {
            let n = of.elem_count();
            let values: Vec<f64> = (0..n).map(|i| (1.7 * i as f64 + phase).sin()).collect();
            Tensor::from_vec(values, of.dims(), of.device()).unwrap()
        };
        let (dh, dn) = (direction(&heads, 0.3), direction(&neurons, 1.1));
        let loss = |step: f64| {
            let at = |d: &Tensor| ((d * step).unwrap() + 1.0).unwrap();
            let gates = constant_gates(&at(&dh), &at(&dn));
            model.forward_loss(&batch, &gates, &mut ()).unwrap().mean().unwrap().to_scalar::<f64>().unwrap()
        };
        let numeric = (loss(STEP) - loss(-STEP)) / (2.0 * STEP);
        let along = |g: &Tensor, d: &Tensor| (g * d).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
        let analytic = along(&heads, &dh) + along(&neurons, &dn);
        let error = (numeric - analytic).abs() / analytic.abs().max(1e-3);
        println!("{family:16} {error:.1e}");
        assert!(error < 1e-6, "{family}: {numeric} against {analytic}");
    }
}

/// Gates on the residual stream, on sublayers and on layers: 1 changes nothing, gradients match central differences in f64.
#[test]
fn coarse_gates_have_gradients() {
    // Small: a ReLU that changes sides within a step is no derivative.
    const STEP: f64 = 1e-7;
    for family in GOLDEN {
        let (model, batch) = (model(family, "config.json", DType::F64), batch(&expected(family)));
        let device = model.device().clone();
        let hidden = Var::ones(model.blueprint().hidden, DType::F64, &device).unwrap();
        let scalars: Vec<Var> = (0..3 * model.n_layers()).map(|_| Var::ones(1, DType::F64, &device).unwrap()).collect();
        let loss_at = |hidden: &Tensor, scalars: &[Tensor]| {
            let layers = scalars.chunks(3).map(|s| LayerGates {
                attention: Some(s[0].clone()),
                mlp: Some(s[1].clone()),
                layer: Some(s[2].clone()),
                ..LayerGates::default()
            });
            let gates = Gates { layers: layers.collect(), hidden: Some(hidden.clone()) };
            model.forward_loss(&batch, &gates, &mut ()).unwrap().mean().unwrap()
        };
        let number = |t: Tensor| t.to_scalar::<f64>().unwrap();
        let ones: Vec<Tensor> = scalars.iter().map(|v| v.as_tensor().clone()).collect();
        let loss = loss_at(hidden.as_tensor(), &ones);
        let plain = model.forward_loss(&batch, &Gates::default(), &mut ()).unwrap().mean().unwrap();
        let grads = loss.backward().unwrap();
        assert!((number(loss) - number(plain)).abs() < 1e-12, "{family}: gates of 1 change the loss");

        let wave = |i: usize| (1.3 * i as f64 + 0.2).sin();
        let along_hidden: Vec<f64> = (0..model.blueprint().hidden).map(wave).collect();
        let at = |step: f64| {
            let moved: Vec<f64> = along_hidden.iter().map(|d| 1.0 + step * d).collect();
            let scalars: Vec<Tensor> = (0..ones.len()).map(|i| Tensor::new(&[1.0 + step * wave(i)], &device).unwrap()).collect();
            number(loss_at(&Tensor::new(moved, &device).unwrap(), &scalars))
        };
        let numeric = (at(STEP) - at(-STEP)) / (2.0 * STEP);
        let values = |v: &Var| grads.get(v.as_tensor()).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let analytic: f64 = values(&hidden).iter().zip(&along_hidden).map(|(g, d)| g * d).sum::<f64>()
            + scalars.iter().enumerate().map(|(i, v)| values(v)[0] * wave(i)).sum::<f64>();
        let error = (numeric - analytic).abs() / analytic.abs().max(1e-2);
        assert!(error < 1e-6, "{family}: {numeric} against {analytic}");
    }
}

#[test]
fn no_family_is_named_in_the_network() {
    let mut words: Vec<String> = prunectl_model::FAMILIES
        .iter()
        .flat_map(|f| f.model_types.iter().map(|t| t.to_string()).chain([f.name.to_lowercase().replace(' ', "")]))
        .collect();
    words.extend(["gemma", "qwen", "pythia", "gpt"].map(str::to_owned));
    let net = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/net");
    for file in std::fs::read_dir(net).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap().to_lowercase();
        for word in &words {
            // Papers may be cited by their name.
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            for line in code {
                let mut names = line.split(|c: char| !c.is_alphanumeric() && c != '_');
                // `opt` begins every `option`.
                let named = if word.len() > 3 { line.contains(word.as_str()) } else { names.any(|n| n == word) };
                assert!(!named, "{}: `{word}` in {line}", path.display());
            }
        }
    }
}
