//! A masked model computes what the compacted one does, whatever was removed, and two steps come to the same as one.

use crate::common::Case;
use candle_core::{DType, Tensor};
use prunectl_model::{Gates, Transformer};
use prunectl_prune::{Decision, Key, Removed, UnitMap, surgery};
use prunectl_recipe::catalogue::SiteKind;

fn outputs(model: &Transformer, case: &Case) -> Vec<f32> {
    let mut data = if case.is_classification() { case.classified() } else { case.first_batch() };
    let batch = prunectl_prune::Batches::next(&mut data).unwrap().unwrap();
    let out = model.forward(&batch, &Gates::default(), &mut ()).unwrap();
    out.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn same(a: &[f32], b: &[f32], what: &str) {
    let scale = b.iter().fold(0f32, |m, v| m.max(v.abs()));
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= 2e-5 * scale, "{what}: {a} {b}");
    }
    assert_eq!(a.len(), b.len());
}

fn decision(sites: &[(SiteKind, usize, &[usize])]) -> Decision {
    Decision { sites: sites.iter().map(|(k, l, kept)| (Key::of(*k, *l), kept.to_vec())).collect(), ..Decision::default() }
}

const CASES: [(&str, &str); 2] = [("02_michel_bert", "text-classification"), ("02_michel_llama", "text-generation")];

#[test]
fn masked_equals_compacted() {
    for (name, task) in CASES {
        let case = Case::open(name);
        let dense = case.model(task);
        let grouped = dense.dims()[0].group_size() > 1;
        let mut decisions = vec![
            ("heads", decision(&[(SiteKind::Heads, 0, if grouped { &[1, 2, 4, 7] } else { &[0, 5, 7] })])),
            ("groups", decision(&[(SiteKind::KvGroups, 1, &[0, 3])])),
            ("neurons", decision(&[(SiteKind::Neurons, 2, &[1, 2, 30]), (SiteKind::Neurons, 0, &[])])),
            ("attention", decision(&[(SiteKind::Attention, 1, &[])])),
            ("mlp", decision(&[(SiteKind::Mlp, 0, &[])])),
            ("layers", decision(&[(SiteKind::Layers, 0, &[0, 2])])),
            ("a mix", decision(&[(SiteKind::KvGroups, 0, &[2, 3]), (SiteKind::Mlp, 1, &[]), (SiteKind::Layers, 0, &[0, 1])])),
        ];
        let slot = "layers.2.mlp.down.weight";
        let shape = dense.params().get(slot).unwrap().dims2().unwrap();
        let keep: Vec<u8> = (0..shape.0 * shape.1).map(|i| u8::from(i % 3 != 0)).collect();
        let mut weights = decision(&[(SiteKind::Layers, 0, &[0, 2]), (SiteKind::Neurons, 2, &[0, 4, 9])]);
        weights.weights.insert(slot.into(), Tensor::from_vec(keep, shape, dense.device()).unwrap());
        decisions.push(("weights", weights));
        for (what, decision) in decisions {
            let (mut model, mut removed, mut map) = (dense.clone(), Removed::default(), UnitMap::default());
            surgery::mask(&mut model, &mut removed, &decision).unwrap();
            let masked = outputs(&model, &case);
            assert_eq!(model.parameter_count(), dense.parameter_count());
            // Zeroing again changes nothing.
            surgery::mask(&mut model, &mut removed, &decision).unwrap();
            assert_eq!(outputs(&model, &case), masked);
            surgery::compact(&mut model, &mut removed, &mut map).unwrap();
            same(&outputs(&model, &case), &masked, &format!("{name} {what}"));
            assert!(model.parameter_count() < dense.parameter_count());
            assert!(removed.units.is_empty());
            for (slot, keep) in &removed.weights {
                let w = model.params().get(slot).unwrap();
                assert_eq!(w.dims(), keep.dims(), "{slot}");
                let flat = |t: &Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert!(flat(w).iter().zip(flat(keep)).all(|(w, k)| k != 0.0 || *w == 0.0));
            }
        }
    }
}

#[test]
fn two_steps_equal_one_and_history_counts_in_original_units() {
    let case = Case::open("02_michel_bert");
    let dense = case.model("text-classification");
    let run = |steps: &[Decision]| {
        let (mut model, mut map) = (dense.clone(), UnitMap::default());
        let mut records = Vec::new();
        for step in steps {
            let mut removed = Removed::default();
            records.push(step.record(&map));
            surgery::mask(&mut model, &mut removed, step).unwrap();
            surgery::compact(&mut model, &mut removed, &mut map).unwrap();
        }
        (model, map, records)
    };
    let heads = |l, kept: &'static [usize]| (SiteKind::Heads, l, kept);
    let first = decision(&[heads(2, &[0, 2, 4, 6, 7]), (SiteKind::Neurons, 1, &[3, 5, 8]), (SiteKind::Layers, 0, &[1, 2])]);
    // What were layers 1 and 2 are 0 and 1 now; heads 2 and 7 are 1 and 4; neuron 8 is 2.
    let second = decision(&[heads(1, &[1, 4]), (SiteKind::Neurons, 0, &[0, 2])]);
    let once = decision(&[heads(2, &[2, 7]), (SiteKind::Neurons, 1, &[3, 8]), (SiteKind::Layers, 0, &[1, 2])]);
    let (a, map, records) = run(&[first, second]);
    let (b, whole, _) = run(&[once]);
    assert_eq!(outputs(&a, &case), outputs(&b, &case));
    assert_eq!(map.sites["layers.2.attention.heads"], [2, 7]);
    assert_eq!(map.sites["layers.1.mlp.neurons"], whole.sites["layers.1.mlp.neurons"]);
    assert_eq!(map.sites["layers"], [1, 2]);
    let json = serde_json::to_value(&records[1]).unwrap();
    let expected = serde_json::json!({"sites": [
        {"site": "attention.heads", "kept": {"2": [2, 7]}},
        {"site": "mlp.neurons", "kept": {"1": [3, 8]}},
    ]});
    assert_eq!(json, expected);
    // A record finds its way back to today's indices.
    let (_, between, _) =
        run(&[decision(&[heads(2, &[0, 2, 4, 6, 7]), (SiteKind::Neurons, 1, &[3, 5, 8]), (SiteKind::Layers, 0, &[1, 2])])]);
    let back = Decision::from_record(&records[1], Default::default(), &between, 2).unwrap();
    assert_eq!(back.sites[&Key::of(SiteKind::Heads, 1)], [1, 4]);
    assert_eq!(back.sites[&Key::of(SiteKind::Neurons, 0)], [0, 2]);
}
