//! Invariants of every family and site: a gate of 0 equals surgery, and surgery does what its plan says.

use crate::pack::*;
use candle_core::{DType, Device, Tensor};
use prunectl_model::{Gates, LayerGates, Layout, LoadOptions, SiteKind, Transformer, site};

const KINDS: [SiteKind; 7] =
    [SiteKind::Heads, SiteKind::KvGroups, SiteKind::Neurons, SiteKind::Experts, SiteKind::Attention, SiteKind::Mlp, SiteKind::Layers];

/// Families and variants that the pack lacks, beside it.
const MORE: [&str; 4] = ["../more/xlm_roberta_mlm", "../more/gpt_neox_serial", "../more/falcon_grouped", "../more/qwen3_moe_mixed"];

/// A gate of 0 multiplies by 0 what surgery leaves out of a sum: the rest is added in another order.
const TOLERANCE: f64 = 2e-5;

/// Two sets of units whose removal, one after the other, is legal; indices of the dense model.
fn two_removals(model: &Transformer, kind: SiteKind, layer: usize) -> Option<(Vec<usize>, Vec<usize>)> {
    let d = model.dims()[layer];
    Some(match kind {
        SiteKind::Heads if d.group_size() >= 4 => {
            let of = |i: usize| (0..d.kv_heads).map(|g| g * d.group_size() + i).collect();
            (of(1), of(3))
        }
        SiteKind::Heads if d.group_size() > 1 => ((0..d.kv_heads).map(|g| g * d.group_size() + g % 2).collect(), vec![]),
        SiteKind::Heads if d.q_heads >= 4 => (vec![1, 2], vec![3]),
        SiteKind::KvGroups if d.kv_heads >= 3 => (vec![1], vec![2]),
        SiteKind::KvGroups if d.kv_heads == 2 => (vec![1], vec![]),
        SiteKind::Neurons => {
            let of = |picks: &[usize]| (0..d.experts.max(1)).flat_map(|e| picks.iter().map(move |p| e * d.ffn + p)).collect();
            (of(&[0, 3, 17]), of(&[5]))
        }
        SiteKind::Experts if d.experts >= 3 => (vec![1], vec![2]),
        SiteKind::Attention | SiteKind::Mlp => (vec![0], vec![]),
        SiteKind::Layers => (vec![layer], vec![]),
        _ => return None,
    })
}

fn without(model: &Transformer, kind: SiteKind, layer: usize, drop: &[usize]) -> Transformer {
    let place = (kind != SiteKind::Layers).then_some(layer);
    let n = model.units(kind, place).unwrap();
    let kept: Vec<usize> = (0..n).filter(|u| !drop.contains(u)).collect();
    let planned = site::shrink(model.blueprint(), model.dims(), kind, place, &kept).unwrap();
    let pruned = model.keep_units(kind, place, &kept).unwrap();
    assert_eq!(planned.0.parameter_count(&planned.1), pruned.parameter_count(), "planned and counted parameters, {kind:?}");
    assert_eq!(planned.1, pruned.dims());
    pruned
}

fn zero_gates(model: &Transformer, kind: SiteKind, layer: usize, off: &[usize]) -> Gates {
    let d = model.dims()[layer];
    let ones = |n: usize, zeros: &[usize]| {
        let values: Vec<f32> = (0..n).map(|i| if zeros.contains(&i) { 0.0 } else { 1.0 }).collect();
        Some(Tensor::new(values, &Device::Cpu).unwrap())
    };
    let mut g = LayerGates::default();
    match kind {
        SiteKind::Heads => g.heads = ones(d.q_heads, off),
        SiteKind::KvGroups => {
            let heads: Vec<usize> = off.iter().flat_map(|u| (0..d.group_size()).map(move |i| u * d.group_size() + i)).collect();
            g.heads = ones(d.q_heads, &heads);
        }
        SiteKind::Neurons if d.experts > 0 => {
            g.neurons = ones(d.experts * d.ffn, off).map(|t| t.reshape((d.experts, d.ffn)).unwrap());
        }
        SiteKind::Neurons => g.neurons = ones(d.ffn, off),
        SiteKind::Experts => g.experts = ones(d.experts, off),
        SiteKind::Attention => g.attention = ones(1, &[0]),
        SiteKind::Mlp => g.mlp = ones(1, &[0]),
        _ => g.layer = ones(1, &[0]),
    }
    let mut layers = vec![LayerGates::default(); model.n_layers()];
    layers[layer] = g;
    Gates { layers, hidden: None }
}

#[test]
fn every_site_of_every_family() {
    for family in GOLDEN.iter().copied().chain(MORE) {
        let (model, want) = (model(family, "config.json", DType::F32), expected(family));
        let (batch, keep) = (batch(&want), want["attention_mask"].to_dtype(DType::U8).unwrap());
        let run = |m: &Transformer, gates: &Gates| m.forward(&batch, gates, &mut ()).unwrap();
        let compare = |a: &Tensor, b: &Tensor| if a.rank() == 2 { error(a, b) } else { error_where_real(a, b, &keep) };
        let dense = run(&model, &Gates::default());
        assert!(same_bits(&dense, &run(&saved_and_loaded(&model), &Gates::default())), "{family}: saved, loaded, other logits");
        let layer = 1;
        for kind in KINDS {
            let Some((first, second)) = two_removals(&model, kind, layer) else { continue };
            assert!(same_parameters(&model, &without(&model, kind, layer, &[])), "{family} {kind:?}: removing nothing changes bits");

            let all: Vec<usize> = first.iter().chain(&second).copied().collect();
            let pruned = without(&model, kind, layer, &all);
            let logits = run(&pruned, &Gates::default());
            let gated = compare(&run(&model, &zero_gates(&model, kind, layer, &all)), &logits);
            println!("site {} {kind:?} {gated:.1e}", family.trim_start_matches("../more/"));
            assert!(gated < TOLERANCE, "{family} {kind:?}: gate 0 against surgery {gated:.1e}");
            // It must have mattered, or the comparison shows nothing.
            assert!(compare(&dense, &logits) > 1e-3, "{family} {kind:?}: removal changed nothing");

            let by_gates_only = kind == SiteKind::Experts || (kind == SiteKind::Layers && model.blueprint().layout == Layout::Post);
            if !by_gates_only {
                let mut masked = model.clone();
                for unit in &all {
                    zero(&mut masked, &model.group(kind, (kind != SiteKind::Layers).then_some(layer), *unit).unwrap());
                }
                let masked = compare(&run(&masked, &Gates::default()), &logits);
                assert!(masked < TOLERANCE, "{family} {kind:?}: zeroed slices against surgery {masked:.1e}");
            }

            // Indices of the second step are those of the model that the first left.
            let shifted: Vec<usize> = second.iter().map(|u| u - first.iter().filter(|f| *f < u).count()).collect();
            let two_steps = without(&without(&model, kind, layer, &first), kind, layer, &shifted);
            assert!(same_parameters(&pruned, &two_steps), "{family} {kind:?}: two steps against one");

            let reloaded = saved_and_loaded(&pruned);
            assert_eq!(reloaded.dims(), pruned.dims(), "{family} {kind:?}");
            assert!(same_bits(&logits, &run(&reloaded, &Gates::default())), "{family} {kind:?}: saved, loaded, other logits");
        }
    }
}

/// When each head or neuron goes, the bias after it stays: as if all gates were 0.
#[test]
fn removing_all_units_leaves_the_bias() {
    for family in GOLDEN.iter().copied().chain(MORE) {
        let (model, want) = (model(family, "config.json", DType::F32), expected(family));
        let (batch, keep) = (batch(&want), want["attention_mask"].to_dtype(DType::U8).unwrap());
        for kind in [SiteKind::Heads, SiteKind::KvGroups, SiteKind::Neurons] {
            let all: Vec<usize> = (0..model.units(kind, Some(1)).unwrap()).collect();
            let pruned = without(&model, kind, 1, &all);
            let a = pruned.forward(&batch, &Gates::default(), &mut ()).unwrap();
            let b = model.forward(&batch, &zero_gates(&model, kind, 1, &all), &mut ()).unwrap();
            let error = if a.rank() == 2 { error(&a, &b) } else { error_where_real(&a, &b, &keep) };
            assert!(error < TOLERANCE, "{family} {kind:?}: {error:.1e}");
            let reloaded = saved_and_loaded(&pruned).forward(&batch, &Gates::default(), &mut ()).unwrap();
            assert!(same_bits(&a, &reloaded), "{family} {kind:?}");
        }
    }
}

/// Reference for `hidden`: in a network where no other dimension is as long as the residual stream is wide, every dimension of that
/// length loses the channels.
#[test]
fn hidden_channels_leave_everywhere() {
    for family in GOLDEN.iter().copied().chain(MORE) {
        let mut config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(root().join(family).join("config.json")).unwrap()).unwrap();
        for key in ["max_position_embeddings", "n_positions"] {
            if config.get(key).is_some_and(|n| n == 64 || n == 66) {
                config[key] = 60.into();
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
        let mut model = prunectl_model::init(&path, 7, &LoadOptions::default()).unwrap();
        for layer in 0..model.n_layers() {
            let d = model.dims()[layer];
            let drop: Vec<usize> = if d.group_size() > 1 { (0..d.kv_heads).map(|g| g * d.group_size()).collect() } else { vec![0] };
            model = without(&model, SiteKind::Heads, layer, &drop);
        }
        let hidden = model.blueprint().hidden;
        let drop = [0, 5, hidden - 1];
        let kept: Vec<usize> = (0..hidden).filter(|c| !drop.contains(c)).collect();
        let pruned = model.keep_units(SiteKind::Hidden, None, &kept).unwrap();
        let index = Tensor::new(kept.iter().map(|c| *c as u32).collect::<Vec<_>>(), &Device::Cpu).unwrap();
        for (slot, t) in model.params().iter() {
            let mut by_hand = t.clone();
            for dim in 0..t.rank() {
                if t.dim(dim).unwrap() == hidden {
                    by_hand = by_hand.contiguous().unwrap().index_select(&index, dim).unwrap();
                }
            }
            assert!(same_bits(&by_hand, pruned.params().require(slot).unwrap()), "{family}: {slot}");
        }
        assert_eq!(pruned.parameter_count(), pruned.blueprint().parameter_count(pruned.dims()));
        let batch = prunectl_model::Batch::new(Tensor::arange(6_u32, 18, &Device::Cpu).unwrap().reshape((1, 12)).unwrap());
        let run = |m: &Transformer| m.forward(&batch, &Gates::default(), &mut ()).unwrap();
        assert!(same_bits(&run(&pruned), &run(&saved_and_loaded(&pruned))), "{family}: saved, loaded, other logits");
        // Bit for bit, as each assertion says.
        println!("site {} Hidden 0e0", family.trim_start_matches("../more/"));
    }
}
