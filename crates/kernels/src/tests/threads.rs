//! The number of threads does not show in any bit.

use super::cases::large;
use super::{arguments, flat, random, value_and_gradients};
use candle_core::DType;
use gemm::Parallelism;

fn in_pool<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

fn bits(x: &[f64]) -> Vec<u64> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_kernel_gives_the_same_bits_on_one_thread_and_on_three() {
    for case in large() {
        let run = || {
            let (y, gradients) = value_and_gradients(&case.fused, &arguments(&case, DType::F32)).unwrap();
            [vec![y], gradients].concat().iter().map(|t| bits(&flat(t))).collect::<Vec<_>>()
        };
        assert!(in_pool(1, run) == in_pool(3, run), "{}", case.name);
    }
}

/// candle asks for as many threads as RAYON_NUM_THREADS or the machine has, so the product itself must not depend on the request.
#[test]
fn the_matrix_product_gives_the_same_bits_for_any_parallelism() {
    for [m, n, k] in [[1, 300, 500], [300, 1, 500], [7, 9, 2000], [129, 515, 257], [512, 512, 64], [64, 2000, 700]] {
        let narrow = |shape: &[usize], seed| flat(&random(shape, seed)).into_iter().map(|x| x as f32).collect::<Vec<_>>();
        let (a, b) = (narrow(&[m, k], 1), narrow(&[n, k], 2));
        let product = |parallelism| {
            let mut out = vec![0f32; m * n];
            // SAFETY: the buffers have m·n, m·k and n·k elements, and the strides are those of row-major matrices.
            unsafe {
                gemm::gemm(
                    m,
                    n,
                    k,
                    out.as_mut_ptr(),
                    1,
                    n as isize,
                    false,
                    a.as_ptr(),
                    1,
                    k as isize,
                    b.as_ptr(),
                    k as isize,
                    1,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    parallelism,
                );
            }
            out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let alone = product(Parallelism::None);
        for threads in [1, 2, 3, 8] {
            assert!(product(Parallelism::Rayon(threads)) == alone, "[{m}, {k}]·[{k}, {n}] on {threads}");
            assert!(in_pool(3, || product(Parallelism::Rayon(threads))) == alone, "[{m}, {k}]·[{k}, {n}] on {threads}, pool of 3");
        }
    }
}
