//! Single kernels, for timing beside PyTorch's own (`benches/peers/compare_kernels.py`).
//!
//! `cargo bench --bench kernels --no-run`; the binary answers each line `NAME forward|gradient REPEATS` on stdin with one JSON line:
//! milliseconds of one call, and numbers that PyTorch must agree with: the result times a fixed vector, and for `gradient` the same of
//! every operand's gradient. Operands are sines that both sides compute.
//!
//! `gradient` is a forward pass and `autograd::backward`, which starts from ones as large as the result: candle's engine writes them on
//! one thread, PyTorch's `ones_like` on all of them. An operand is a variable, whose gradient the kernels hand over without the zeros and
//! the addition of candle's store. `add` copies its gradient once for each variable, where PyTorch returns one tensor for both.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot read its operands has nothing to measure")]

use std::io::{BufRead, Write};
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor, Var};
use prunectl_kernels as kernels;
use prunectl_kernels::memory::Recycler;
use prunectl_kernels::{Activation, AdamW, AttnMask, RopeStyle, autograd, threads};

#[global_allocator]
static MEMORY: Recycler = Recycler;

/// `n` sines; the same numbers as the other side's.
fn sines(n: usize, phase: f64) -> Vec<f32> {
    (0..n).map(|i| ((i as f64 + 1.0) * 0.7 + phase).sin() as f32).collect()
}

fn operand(shape: &[usize], phase: f64) -> Tensor {
    Tensor::from_vec(sines(shape.iter().product(), phase), shape, &Device::Cpu).unwrap()
}

/// x times a fixed vector.
fn probe(x: &[f32]) -> f64 {
    x.iter().enumerate().map(|(i, x)| f64::from(*x) * ((i as f64 + 1.0) * 0.3).cos()).sum()
}

fn probe_of(x: &Tensor) -> f64 {
    probe(&x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap())
}

const ROWS: usize = 2048;
const WIDTH: usize = 3072;
const VOCABULARY: usize = 49152;

/// Shapes of a kernel's operands.
fn shapes(name: &str) -> Vec<Vec<usize>> {
    let x = vec![ROWS, WIDTH];
    match name {
        "softmax" | "gelu_erf" | "gelu_tanh" | "silu" => vec![x],
        "layer_norm" => vec![x, vec![WIDTH], vec![WIDTH]],
        "rms_norm" => vec![x, vec![WIDTH]],
        "swiglu" | "add" => vec![x.clone(), x],
        "cross_entropy" => vec![vec![512, VOCABULARY]],
        "kl_div" => vec![vec![512, VOCABULARY]; 2],
        "attention_bert" | "attention_padded" => vec![vec![16, 4, 128, 64]; 3],
        "attention_causal" => vec![vec![1, 9, 512, 64], vec![1, 3, 512, 64], vec![1, 3, 512, 64]],
        "rope" => vec![vec![4, 9, 512, 64]],
        "linear" => vec![vec![ROWS, 768], vec![WIDTH, 768], vec![WIDTH]],
        "gate" => vec![vec![4, ROWS / 4, WIDTH], vec![1, WIDTH]],
        "embedding" => vec![vec![VOCABULARY, 576]],
        "adamw" | "top_k" | "top_k_rows" => vec![],
        other => panic!("no kernel `{other}`"),
    }
}

fn apply(name: &str, t: &[Tensor]) -> Result<Tensor> {
    let attend = |mask: &AttnMask<'_>| kernels::attention(&t[0], &t[1], &t[2], mask, 0.125, None);
    let targets = || Tensor::from_iter((0..512u32).map(|i| i * 7), &Device::Cpu);
    match name {
        "softmax" => kernels::softmax_last_dim(&t[0]),
        "gelu_erf" => kernels::gelu_erf(&t[0]),
        "gelu_tanh" => kernels::gelu_tanh(&t[0]),
        "silu" => kernels::silu(&t[0]),
        "layer_norm" => kernels::layer_norm(&t[0], &t[1], Some(&t[2]), 1e-5),
        "rms_norm" => kernels::rms_norm(&t[0], &t[1], 1e-5, false),
        "swiglu" => kernels::gated(Activation::Silu, &t[0], &t[1]),
        "add" => kernels::add(&t[0], &t[1]),
        "cross_entropy" => kernels::cross_entropy(&t[0], &targets()?),
        "kl_div" => kernels::kl_div(&t[0], &t[1], 2.0),
        "attention_bert" => attend(&AttnMask::default()),
        "attention_padded" => {
            let keep = Tensor::from_iter((0..16 * 128u32).map(|i| u8::from(i % 128 < 64 + 4 * (i / 128))), &Device::Cpu)?;
            attend(&AttnMask { key_keep: Some(&keep.reshape((16, 128))?), ..AttnMask::default() })
        }
        "attention_causal" => attend(&AttnMask { causal: true, ..AttnMask::default() }),
        "rope" => {
            let angles: Vec<f32> = (0..512 * 32).map(|i| ((i / 32) as f64 * 10_000f64.powf(-f64::from(i % 32) / 32.0)) as f32).collect();
            let angles = Tensor::from_vec(angles, (1, 512, 32), &Device::Cpu)?;
            kernels::rope(&t[0], &angles.cos()?, &angles.sin()?, RopeStyle::Half, 64)
        }
        "gate" => kernels::gate(&t[0], &t[1]),
        "embedding" => {
            let ids = Tensor::from_iter((0..ROWS as u32).map(|i| i * 7919 % VOCABULARY as u32), &Device::Cpu)?;
            kernels::embedding(&t[0], &ids)
        }
        "linear" => kernels::linear(&t[0], &t[1], Some(&t[2])),
        other => panic!("no kernel `{other}` of tensors"),
    }
}

/// Milliseconds of a call, the mean of several.
fn time(repeats: usize, mut call: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..repeats).for_each(|_| call());
    start.elapsed().as_secs_f64() * 1e3 / repeats as f64
}

fn of_buffers(name: &str, repeats: usize) -> (f64, Vec<f64>) {
    let n = ROWS * WIDTH;
    let x = sines(n, 0.0);
    if name == "adamw" {
        let (mut p, g, mut m, mut v) = (x, sines(n, 1.0), vec![0f32; n], vec![0f32; n]);
        let options = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        let mut step = 0;
        let ms = time(repeats, || {
            step += 1;
            kernels::adamw_step(&mut p, &g, &mut m, &mut v, step, &options).unwrap();
        });
        return (ms, vec![probe(&p)]);
    }
    let whole = name == "top_k";
    let choose = || if whole { kernels::top_k_mask(&x, n / 2) } else { kernels::top_k_mask_rows(&x, WIDTH, WIDTH / 2) };
    let mut mask = Vec::new();
    let ms = time(repeats, || mask = choose());
    (ms, vec![probe(&mask.iter().map(|k| f32::from(*k)).collect::<Vec<_>>())])
}

fn measure(name: &str, gradient: bool, repeats: usize) -> (f64, Vec<f64>) {
    let shapes = shapes(name);
    if shapes.is_empty() {
        return of_buffers(name, repeats);
    }
    let operands: Vec<Tensor> = shapes.iter().enumerate().map(|(i, s)| operand(s, i as f64)).collect();
    if !gradient {
        let mut y = None;
        let ms = time(repeats, || y = Some(apply(name, &operands).unwrap()));
        return (ms, vec![probe_of(&y.unwrap())]);
    }
    let vars: Vec<Var> = operands.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let mut last = None;
    let ms = time(repeats, || last = Some(autograd::backward(&apply(name, &tensors).unwrap()).unwrap()));
    let mut gradients = last.unwrap();
    (ms, tensors.iter().map(|t| gradients.take(t).unwrap().map_or(0.0, |g| probe_of(&g))).collect())
}

fn main() {
    // SAFETY: nothing has started a thread yet.
    unsafe { threads::keep_elementwise_on_caller() };
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let (elapsed_ms, result) = measure(words[0], words[1] == "gradient", words[2].parse().unwrap());
        println!("{}", serde_json::json!({"elapsed_ms": elapsed_ms, "result": result}));
        std::io::stdout().flush().unwrap();
    }
}
