//! What the machine can do, for comparison with what the jobs do (`benches/peers/compare.py --limits`).
//!
//! `cargo bench --bench limits` prints one JSON line: GFLOP/s of the matrix product at shapes of the jobs, the best of them, and GB/s of
//! reading and of copying arrays that no cache holds. RAYON_NUM_THREADS sets the threads.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot build its operands has nothing to measure")]

use std::hint::black_box;
use std::time::Instant;

use candle_core::{Device, Tensor};
use prunectl_kernels::linear;
use prunectl_kernels::memory::Recycler;
use rayon::prelude::*;
use serde_json::json;

#[global_allocator]
static MEMORY: Recycler = Recycler;

const REPEATS: usize = 12;
/// Rows, columns of the result, length of the sums.
const SHAPES: [(usize, usize, usize); 4] = [(512, 1536, 576), (2048, 1536, 384), (2048, 3072, 768), (2048, 2048, 2048)];
/// f32 elements of an array: 256 MiB.
const ELEMENTS: usize = 64 << 20;
const PIECE: usize = 1 << 18;

/// Seconds of the fastest of several calls.
fn least(mut call: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        call();
        start.elapsed().as_secs_f64()
    };
    (0..REPEATS).map(time).fold(f64::INFINITY, f64::min)
}

fn product((n, m, k): (usize, usize, usize)) -> f64 {
    let numbers = |rows: usize| Tensor::randn(0f32, 1.0, (rows, k), &Device::Cpu).unwrap();
    let (x, w) = (numbers(n), numbers(m));
    2e-9 * (n * m * k) as f64 / least(|| _ = black_box(linear(&x, &w, None).unwrap()))
}

fn main() {
    let products = SHAPES.map(|shape| (format!("{shape:?}"), product(shape)));
    let best = products.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
    let (from, mut to) = (vec![1f32; ELEMENTS], vec![0f32; ELEMENTS]);
    let gigabytes = 4e-9 * ELEMENTS as f64;
    let sum = |piece: &[f32]| piece.chunks_exact(64).fold([0f32; 64], |sums, x| std::array::from_fn(|i| sums[i] + x[i]))[0];
    let read = gigabytes / least(|| _ = black_box(from.par_chunks(PIECE).map(sum).sum::<f32>()));
    let copy =
        2.0 * gigabytes / least(|| to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE)).for_each(|(to, from)| to.copy_from_slice(from)));
    let products: serde_json::Map<_, _> = products.into_iter().map(|(shape, rate)| (shape, json!(rate))).collect();
    println!(
        "{}",
        json!({"gflop_s": best, "products": products, "read_gb_s": read, "copy_gb_s": copy, "threads": rayon::current_num_threads()})
    );
}
