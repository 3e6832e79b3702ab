//! The kernels and shapes that the checks walk over.

use super::{Case, Op};
use crate::{Activation, AttnMask, RopeStyle, plain};
use candle_core::{Device, Result, Tensor};

const ACTIVATIONS: [Activation; 5] = [Activation::GeluErf, Activation::GeluTanh, Activation::Silu, Activation::Relu, Activation::QuickGelu];

fn case(
    name: impl Into<String>,
    shapes: &[&[usize]],
    fused: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
    plain: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Case {
    let shapes = shapes.iter().map(|s| s.to_vec()).collect();
    Case { name: name.into(), shapes, fused: Box::new(fused) as Op, plain: Box::new(plain) as Op }
}

#[derive(Clone, Default)]
pub struct Masking {
    pub causal: bool,
    pub window: Option<usize>,
    /// [b][sk]
    pub keep: Option<Vec<Vec<u8>>>,
}

pub fn attention_case(name: &str, [b, hq, hkv, sq, sk, d]: [usize; 6], masking: Masking, softcap: Option<f64>) -> Case {
    let scale = 1.0 / (d as f64).sqrt();
    let run = move |t: &[Tensor], fused: bool| {
        let keep = masking.keep.as_ref().map(|k| Tensor::new(k.clone(), t[0].device())).transpose()?;
        let mask = AttnMask { causal: masking.causal, window: masking.window, key_keep: keep.as_ref() };
        let op = if fused { crate::attention } else { plain::attention };
        op(&t[0], &t[1], &t[2], &mask, scale, softcap)
    };
    let other = run.clone();
    let shapes: [&[usize]; 3] = [&[b, hq, sq, d], &[b, hkv, sk, d], &[b, hkv, sk, d + 1]];
    case(format!("attention {name}"), &shapes, move |t| run(t, true), move |t| other(t, false))
}

fn attention_cases() -> Vec<Case> {
    let causal = Masking { causal: true, ..Masking::default() };
    let ragged = Some(vec![vec![1, 1, 1, 1, 1, 0, 0], vec![0, 0, 1, 1, 1, 1, 1]]);
    let nothing_left = Some(vec![vec![0; 7], vec![1, 0, 0, 0, 0, 0, 0]]);
    vec![
        attention_case("full", [2, 2, 2, 5, 5, 4], Masking::default(), None),
        attention_case("one query, one key", [1, 1, 1, 1, 1, 3], causal.clone(), None),
        attention_case("causal gqa 8/2", [1, 8, 2, 6, 6, 4], causal.clone(), None),
        attention_case("causal mqa 8/1", [2, 8, 1, 5, 5, 3], causal.clone(), Some(2.0)),
        attention_case("causal, last of many", [2, 2, 1, 3, 7, 4], causal.clone(), None),
        attention_case("window 1", [1, 2, 2, 6, 6, 4], Masking { window: Some(1), ..causal.clone() }, None),
        attention_case("window 3", [1, 2, 1, 9, 9, 4], Masking { window: Some(3), ..causal.clone() }, Some(1.5)),
        attention_case("window, both sides", [1, 2, 2, 8, 8, 4], Masking { window: Some(3), ..Masking::default() }, None),
        attention_case("padding", [2, 2, 2, 7, 7, 4], Masking { keep: ragged.clone(), ..Masking::default() }, None),
        attention_case("padding causal", [2, 4, 2, 7, 7, 4], Masking { keep: ragged, ..causal.clone() }, None),
        attention_case("nothing visible", [2, 2, 2, 7, 7, 4], Masking { keep: nothing_left.clone(), ..Masking::default() }, None),
        attention_case("nothing visible causal", [2, 2, 1, 7, 7, 4], Masking { keep: nothing_left, ..causal.clone() }, Some(3.0)),
        attention_case("window 0", [1, 2, 2, 4, 4, 4], Masking { window: Some(0), ..causal }, None),
    ]
}

fn rope_case(style: RopeStyle, [b, h, s, d]: [usize; 4], rotary: usize, tables: usize) -> Case {
    let angles = super::random(&[tables, s, rotary / 2], 7);
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    let run = move |t: &[Tensor], fused: bool| {
        let like = |table: &Tensor| table.to_dtype(t[0].dtype())?.to_device(t[0].device());
        let (cos, sin) = (like(&cos)?, like(&sin)?);
        let op = if fused { crate::rope } else { plain::rope };
        op(&t[0], &cos, &sin, style, rotary)
    };
    let other = run.clone();
    let name = format!("rope {style:?} {rotary} of {d}, {tables} tables");
    case(name, &[&[b, h, s, d]], move |t| run(t, true), move |t| other(t, false))
}

fn targets(n: usize, v: usize, device: &Device) -> Tensor {
    Tensor::from_iter((0..n).map(|i| (i * 5 % v) as u32), device).unwrap()
}

/// [2, n + 1], some rows twice and, of many, some never.
fn ids(n: usize, device: &Device) -> Result<Tensor> {
    Tensor::from_iter((0..2 * (n + 1)).map(|i| (i * i % n) as u32), device)?.reshape((2, n + 1))
}

/// Each kernel at `n` rows of width `d`.
fn row_cases(n: usize, d: usize) -> Vec<Case> {
    let x: &[usize] = &[n, d];
    let mut cases = vec![
        case("softmax", &[x], |t| crate::softmax_last_dim(&t[0]), |t| plain::softmax(&t[0])),
        case(
            "layer_norm",
            &[x, &[d], &[d]],
            |t| crate::layer_norm(&t[0], &t[1], Some(&t[2]), 1e-5),
            |t| plain::layer_norm(&t[0], &t[1], Some(&t[2]), 1e-5),
        ),
        case(
            "layer_norm without bias",
            &[x, &[d]],
            |t| crate::layer_norm(&t[0], &t[1], None, 1e-2),
            |t| plain::layer_norm(&t[0], &t[1], None, 1e-2),
        ),
        case(
            "cross_entropy",
            &[x],
            move |t| crate::cross_entropy(&t[0], &targets(n, d, t[0].device())),
            move |t| plain::cross_entropy(&t[0], &targets(n, d, t[0].device())),
        ),
        case("kl_div", &[x, x], |t| crate::kl_div(&t[0], &t[1], 1.7), |t| plain::kl_div(&t[0], &t[1], 1.7)),
        case(
            "linear",
            &[&[n, 1, d], &[5, d], &[5]],
            |t| crate::linear(&t[0], &t[1], Some(&t[2])),
            |t| plain::linear(&t[0], &t[1], Some(&t[2])),
        ),
        case(
            "embedding",
            &[x],
            move |t| crate::embedding(&t[0], &ids(n, t[0].device())?),
            move |t| t[0].index_select(&ids(n, t[0].device())?.flatten_all()?, 0)?.reshape((2, n + 1, d)),
        ),
        case("linear without bias", &[x, &[3, d]], |t| crate::linear(&t[0], &t[1], None), |t| plain::linear(&t[0], &t[1], None)),
    ];
    for b in [1, 3] {
        let (heads, neurons): (&[usize], &[usize]) = (&[3, n, 2, d], &[3, n, d]);
        cases.push(case(
            format!("gate on heads, {b}"),
            &[heads, &[b, 2]],
            |t| crate::gate(&t[0], &t[1]),
            move |t| t[0].broadcast_mul(&t[1].reshape((b, 1, 2, 1))?),
        ));
        cases.push(case(
            format!("gate on neurons, {b}"),
            &[neurons, &[b, d]],
            |t| crate::gate(&t[0], &t[1]),
            move |t| t[0].broadcast_mul(&t[1].reshape((b, 1, d))?),
        ));
    }
    cases.push(case("add", &[x, x], |t| crate::add(&t[0], &t[1]), |t| &t[0] + &t[1]));
    for offset_one in [false, true] {
        cases.push(case(
            format!("rms_norm, offset {offset_one}"),
            &[x, &[d]],
            move |t| crate::rms_norm(&t[0], &t[1], 1e-6, offset_one),
            move |t| plain::rms_norm(&t[0], &t[1], 1e-6, offset_one),
        ));
    }
    for act in ACTIVATIONS {
        cases.push(case(format!("{act:?}"), &[x], move |t| act.apply(&t[0]), move |t| plain::activation(act, &t[0])));
        cases.push(case(
            format!("gated {act:?}"),
            &[x, x],
            move |t| crate::gated(act, &t[0], &t[1]),
            move |t| plain::activation(act, &t[0])? * &t[1],
        ));
        cases.push(case(
            format!("gated_linear {act:?}"),
            &[x, x, &[3, d]],
            move |t| crate::gated_linear(act, &t[0], &t[1], &t[2]),
            move |t| plain::linear(&(plain::activation(act, &t[0])? * &t[1])?, &t[2], None),
        ));
    }
    for case in &mut cases {
        case.name = format!("{} [{n}, {d}]", case.name);
    }
    cases
}

/// Small enough for finite differences.
pub fn small() -> Vec<Case> {
    let mut cases = attention_cases();
    for (n, d) in [(1, 1), (1, 37), (3, 7), (2, 33)] {
        cases.extend(row_cases(n, d));
    }
    for style in [RopeStyle::Half, RopeStyle::Interleaved] {
        cases.push(rope_case(style, [2, 3, 4, 6], 6, 1));
        cases.push(rope_case(style, [2, 1, 3, 7], 4, 2));
    }
    cases
}

/// Large enough for several tasks each.
pub fn large() -> Vec<Case> {
    let mut cases = row_cases(301, 331);
    let causal = Masking { causal: true, ..Masking::default() };
    let padded = vec![(0..190).map(|i| u8::from(i < 150)).collect(), vec![1; 190]];
    cases.push(attention_case("large causal gqa", [2, 4, 2, 190, 190, 32], Masking { keep: Some(padded), ..causal.clone() }, None));
    cases.push(attention_case("large window", [1, 3, 1, 150, 333, 16], Masking { window: Some(40), ..causal }, Some(30.0)));
    cases.push(attention_case("large full", [1, 2, 2, 65, 129, 64], Masking::default(), None));
    cases.push(rope_case(RopeStyle::Half, [2, 5, 77, 64], 64, 2));
    cases.push(rope_case(RopeStyle::Interleaved, [2, 5, 77, 64], 32, 1));
    cases
}
