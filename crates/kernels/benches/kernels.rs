//! Every kernel, forward and with its gradient, beside the same thing in candle's own operations (`candle` in the names).
//! `cargo bench -p prunectl-kernels [-- FILTER]`; RAYON_NUM_THREADS sets the threads. Shapes are those of DESIGN's table.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot build its operands has nothing to measure")]

use candle_core::{D, DType, Device, Result, Tensor, Var};
use criterion::{Criterion, criterion_group, criterion_main};
use prunectl_kernels::memory::Recycler;
use prunectl_kernels::{Activation, AdamW, AttnMask, RopeStyle, autograd};
use std::hint::black_box;
use std::time::Duration;

#[global_allocator]
static MEMORY: Recycler = Recycler;

const ROWS: usize = 2048;
const WIDTH: usize = 3072;

fn var(shape: &[usize]) -> Var {
    Var::from_tensor(&Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()).unwrap()
}

/// Times `op` without a graph (constants) and with its backward pass (variables), which starts from a result-sized gradient of ones.
fn both(c: &mut Criterion, name: &str, shapes: &[&[usize]], op: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let vars: Vec<Var> = shapes.iter().map(|s| var(s)).collect();
    let constants: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().detach()).collect();
    c.bench_function(&format!("{name} forward"), |b| b.iter(|| black_box(op(&constants).unwrap())));
    let variables: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    c.bench_function(&format!("{name} with gradient"), |b| b.iter(|| black_box(autograd::backward(&op(&variables).unwrap()).unwrap())));
}

fn pointwise(c: &mut Criterion) {
    let x: &[usize] = &[ROWS, WIDTH];
    for act in [Activation::GeluErf, Activation::GeluTanh, Activation::Silu, Activation::Relu, Activation::QuickGelu] {
        both(c, &format!("{act:?}"), &[x], |t| act.apply(&t[0]));
    }
    both(c, "candle GeluErf", &[x], |t| t[0].gelu_erf());
    both(c, "candle GeluTanh", &[x], |t| t[0].gelu());
    both(c, "candle Silu", &[x], |t| t[0].silu());
    both(c, "gated Silu", &[x, x], |t| prunectl_kernels::gated(Activation::Silu, &t[0], &t[1]));
    both(c, "add", &[x, x], |t| prunectl_kernels::add(&t[0], &t[1]));
    both(c, "candle add", &[x, x], |t| &t[0] + &t[1]);
    // Gates of neurons, one row for all examples and one for each, and of heads.
    let (neurons, heads): (&[usize], &[usize]) = (&[4, 512, WIDTH], &[4, 512, 12, 64]);
    both(c, "gate neurons", &[neurons, &[1, WIDTH]], |t| prunectl_kernels::gate(&t[0], &t[1]));
    both(c, "gate neurons of each example", &[neurons, &[4, WIDTH]], |t| prunectl_kernels::gate(&t[0], &t[1]));
    both(c, "candle gate neurons", &[neurons, &[1, WIDTH]], |t| t[0].broadcast_mul(&t[1].reshape((1, 1, WIDTH))?));
    both(c, "gate heads", &[heads, &[1, 12]], |t| prunectl_kernels::gate(&t[0], &t[1]));
    both(c, "candle gated Silu", &[x, x], |t| t[0].silu()? * &t[1]);
}

fn by_row(c: &mut Criterion) {
    let (x, w): (&[usize], &[usize]) = (&[ROWS, WIDTH], &[WIDTH]);
    both(c, "softmax", &[x], |t| prunectl_kernels::softmax_last_dim(&t[0]));
    both(c, "candle softmax", &[x], |t| candle_nn::ops::softmax(&t[0], D::Minus1));
    both(c, "layer_norm", &[x, w, w], |t| prunectl_kernels::layer_norm(&t[0], &t[1], Some(&t[2]), 1e-5));
    both(c, "candle layer_norm", &[x, w, w], |t| candle_nn::ops::layer_norm_slow(&t[0], &t[1], &t[2], 1e-5));
    both(c, "rms_norm", &[x, w], |t| prunectl_kernels::rms_norm(&t[0], &t[1], 1e-5, false));
    both(c, "candle rms_norm", &[x, w], |t| candle_nn::ops::rms_norm_slow(&t[0], &t[1], 1e-5));
    let targets = Tensor::from_iter((0..ROWS as u32).map(|i| i % WIDTH as u32), &Device::Cpu).unwrap();
    both(c, "cross_entropy", &[x], |t| prunectl_kernels::cross_entropy(&t[0], &targets));
    both(c, "candle cross_entropy", &[x], |t| candle_nn::loss::cross_entropy(&t[0], &targets));
    both(c, "kl_div", &[x, x], |t| prunectl_kernels::kl_div(&t[0], &t[1], 2.0));
    both(c, "candle kl_div", &[x, x], |t| {
        let (s, t) = (candle_nn::ops::log_softmax(&(&t[0] / 2.0)?, 1)?, candle_nn::ops::log_softmax(&(&t[1] / 2.0)?, 1)?);
        (t.exp()? * (t - s)?)?.sum(1)
    });
}

fn attention(c: &mut Criterion) {
    for (name, [b, hq, hkv, s, d], causal) in [
        ("bert-mini 16x128", [16, 4, 4, 128, 64], false),
        ("smollm 1x512", [1, 9, 3, 512, 64], true),
        ("smollm 4x128", [4, 9, 3, 128, 64], true),
    ] {
        let mask = AttnMask { causal, ..AttnMask::default() };
        let (q, k): (&[usize], &[usize]) = (&[b, hq, s, d], &[b, hkv, s, d]);
        both(c, &format!("attention {name}"), &[q, k, k], |t| prunectl_kernels::attention(&t[0], &t[1], &t[2], &mask, 0.125, None));
        both(c, &format!("candle attention {name}"), &[q, k, k], |t| {
            let wide = |t: &Tensor| t.unsqueeze(2)?.broadcast_as((b, hkv, hq / hkv, s, d))?.contiguous()?.reshape((b, hq, s, d));
            let scores = (t[0].matmul(&wide(&t[1])?.t()?)? * 0.125)?;
            candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&wide(&t[2])?)
        });
    }
    let shape: &[usize] = &[16, 4, 128, 64];
    both(c, "attention_probs", &[shape, shape], |t| prunectl_kernels::attention_probs(&t[0], &t[1], &AttnMask::default(), 0.125, None));
    let tables = Tensor::randn(0f32, 1.0, (1, 512, 32), &Device::Cpu).unwrap();
    both(c, "rope", &[&[4, 9, 512, 64]], |t| prunectl_kernels::rope(&t[0], &tables, &tables, RopeStyle::Half, 64));
    both(c, "candle rope", &[&[4, 9, 512, 64]], |t| candle_nn::rotary_emb::rope_slow(&t[0], &tables.squeeze(0)?, &tables.squeeze(0)?));
}

fn products(c: &mut Criterion) {
    let ids = Tensor::from_iter((0..ROWS as u32).map(|i| i * 7919 % 49_152), &Device::Cpu).unwrap();
    both(c, "embedding", &[&[49_152, 576]], |t| prunectl_kernels::embedding(&t[0], &ids));
    both(c, "candle embedding", &[&[49_152, 576]], |t| t[0].index_select(&ids, 0));
    let (x, w, b): (&[usize], &[usize], &[usize]) = (&[4, 512, 768], &[WIDTH, 768], &[WIDTH]);
    both(c, "linear", &[x, w, b], |t| prunectl_kernels::linear(&t[0], &t[1], Some(&t[2])));
    both(c, "candle linear", &[x, w, b], |t| t[0].reshape((ROWS, 768))?.matmul(&t[1].t()?)?.broadcast_add(&t[2]));
    both(c, "candle linear by broadcasting", &[x, w, b], |t| t[0].matmul(&t[1].t()?.broadcast_left(4)?)?.broadcast_add(&t[2]));
    let weights = var(w).as_tensor().detach();
    both(c, "linear, constant weight", &[x], |t| prunectl_kernels::linear(&t[0], &weights, None));
}

fn buffers(c: &mut Criterion) {
    let n = ROWS * WIDTH;
    let (mut p, g, mut m, mut v) = (vec![0.1f32; n], vec![0.01f32; n], vec![0f32; n], vec![0f32; n]);
    let options = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    c.bench_function("adamw", |b| b.iter(|| prunectl_kernels::adamw_step(&mut p, &g, &mut m, &mut v, 7, &options).unwrap()));
    let scores = Tensor::randn(0f32, 1.0, n, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
    c.bench_function("top_k of all", |b| b.iter(|| black_box(prunectl_kernels::top_k_mask(&scores, n / 2))));
    c.bench_function("threshold", |b| b.iter(|| black_box(prunectl_kernels::threshold_mask(&scores, 0.5))));
    c.bench_function("top_k of rows", |b| b.iter(|| black_box(prunectl_kernels::top_k_mask_rows(&scores, WIDTH, WIDTH / 2))));
}

/// What layer-wise methods compute in f64.
fn doubles(c: &mut Criterion) {
    let columns = 768;
    let x: Vec<f64> = (0..ROWS * columns).map(|i| (i as f64).sin()).collect();
    let half = columns / 2;
    let mut sum = vec![0f64; half * half];
    let products = |sum: &mut [f64]| prunectl_kernels::gram::add_column_products(sum, &x, columns, 0..half, half..columns).unwrap();
    c.bench_function("column products", |b| b.iter(|| products(&mut sum)));
    let mut w = x.clone();
    c.bench_function("dot", |b| b.iter(|| black_box(prunectl_kernels::vector::dot(&x, &w))));
    c.bench_function("subtract scaled", |b| b.iter(|| prunectl_kernels::vector::subtract_scaled(&mut w, &x, 1e-9)));
}

criterion_group! {
    name = kernels;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(700));
    targets = pointwise, by_row, attention, products, buffers, doubles
}
criterion_main!(kernels);
