//! A text read token by token through the cache of keys and values gives the logits of the whole text at once.

use candle_core::{DType, Tensor};
use prunectl_model::{Batch, Gates, LoadOptions, Transformer, load};

use crate::pack::*;

/// Rounding of f64: a product over one row adds up in another order than one over many.
const NEAR: f64 = 1e-11;

/// The golden rows with the most tokens before any padding, `[rows, seq]`.
fn ids(family: &str) -> Tensor {
    let batch = batch(&expected(family));
    let keep: Vec<Vec<u8>> = batch.keep.unwrap().to_vec2().unwrap();
    let real = |row: &Vec<u8>| row.iter().take_while(|k| **k != 0).count();
    let most = keep.iter().map(real).max().unwrap();
    let rows: Vec<u32> = (0u32..).zip(&keep).filter(|(_, row)| real(row) == most).map(|(i, _)| i).collect();
    let rows = Tensor::new(rows, batch.input_ids.device()).unwrap();
    batch.input_ids.index_select(&rows, 0).unwrap().narrow(1, 0, most).unwrap()
}

fn compare(name: &str, model: &Transformer, ids: &Tensor) {
    let (b, s) = ids.dims2().unwrap();
    let whole = model.forward(&Batch::new(ids.clone()), &Gates::default(), &mut ()).unwrap(); // [b, s, vocab]
    for first in [1, s / 2, s - 1] {
        let mut cache = model.cache().unwrap();
        let mut at = 0;
        for new in std::iter::once(first).chain(std::iter::repeat_n(1, s - first)) {
            let logits = model.extend(&ids.narrow(1, at, new).unwrap(), &mut cache).unwrap(); // [b, vocab]
            at += new;
            let expected = whole.narrow(1, at - 1, 1).unwrap().squeeze(1).unwrap();
            let e = error(&logits, &expected);
            assert!(e < NEAR, "{name}: {first} tokens at once, then one by one, token {at} of [{b}, {s}]: {e:e}");
        }
        assert_eq!(cache.seen(), s);
    }
}

#[test]
fn token_by_token_gives_the_same_logits_in_every_causal_family() {
    let mut tried = 0;
    for family in GOLDEN {
        let model = model(family, "config.json", DType::F64);
        if !model.blueprint().attention.causal {
            let refused = model.cache().unwrap_err().to_string();
            assert!(refused.contains("causal language model"), "{family}: {refused}");
            continue;
        }
        let ids = ids(family);
        assert!(ids.dim(1).unwrap() >= 4, "{family}: {:?}", ids.dims());
        compare(family, &model, &ids);
        tried += 1;
    }
    assert!(tried >= 15, "{tried}");
}

#[test]
fn a_long_text_outgrows_the_first_room() {
    let model = model("llama", "config.json", DType::F64);
    let vocab = model.blueprint().vocab;
    let ids: Vec<u32> = (0..600).map(|i| (i * 7919 % vocab) as u32).collect();
    let ids = Tensor::from_vec(ids, (1, 600), model.device()).unwrap();
    let whole = model.forward(&Batch::new(ids.clone()), &Gates::default(), &mut ()).unwrap();
    let mut cache = model.cache().unwrap();
    for (at, new) in [(0, 250), (250, 10), (260, 339), (599, 1)] {
        let logits = model.extend(&ids.narrow(1, at, new).unwrap(), &mut cache).unwrap();
        let expected = whole.narrow(1, at + new - 1, 1).unwrap().squeeze(1).unwrap();
        assert!(error(&logits, &expected) < NEAR, "{at} + {new}");
    }
}

#[test]
fn angles_that_change_with_the_length_are_not_mixed() {
    // Its long factors count from 13 tokens on.
    let dir = root().join("../more/phi3_longrope_long");
    let model = load(&dir, &LoadOptions { dtype: DType::F64, ..LoadOptions::default() }).unwrap();
    let all = candle_core::safetensors::load(dir.join("expected.safetensors"), model.device()).unwrap();
    let ids = all["input_ids"].to_dtype(DType::U32).unwrap().narrow(0, 0, 1).unwrap(); // [1, 20]
    let read = |pieces: &[usize]| {
        let (mut cache, mut at, mut last) = (model.cache().unwrap(), 0, None);
        for new in pieces {
            last = Some(model.extend(&ids.narrow(1, at, *new).unwrap(), &mut cache));
            at += new;
        }
        (at, last.unwrap())
    };
    for pieces in [&[20][..], &[13, 1, 1, 5], &[5, 6, 1]] {
        let (n, logits) = read(pieces);
        let whole = model.forward(&Batch::new(ids.narrow(1, 0, n).unwrap()), &Gates::default(), &mut ()).unwrap();
        let expected = whole.narrow(1, n - 1, 1).unwrap().squeeze(1).unwrap();
        assert!(error(&logits.unwrap(), &expected) < NEAR, "{pieces:?}");
    }
    let message = read(&[5, 7, 1]).1.unwrap_err().to_string();
    assert!(message.contains("beyond 12 tokens (asked for 13)") && message.contains("longrope"), "{message}");
}
