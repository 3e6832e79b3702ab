//! Which threads compute.

use std::cell::Cell;

use rayon::prelude::*;

thread_local!(static WHOLE: Cell<bool> = const { Cell::new(false) });

/// Maps items in parallel, each a computation of many kernels; results in the items' order. What a computation does between its kernels,
/// on one thread, overlaps with the others; and where there are items enough for all threads, none cuts its matrix products: a product's
/// parts would each pack the right factor again. Bits do not depend on it.
///
/// # Errors
/// The error of the first item in order that has one.
pub fn side_by_side<T: Send, R: Send, E: Send>(
    items: impl IntoParallelIterator<Item = T, Iter: IndexedParallelIterator>,
    compute: impl Fn(T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let items = items.into_par_iter();
    let whole = items.len() >= rayon::current_num_threads();
    let results: Vec<Result<R, E>> = items
        .with_max_len(1)
        .map(|item| {
            let before = WHOLE.replace(whole);
            let result = compute(item);
            WHOLE.set(before);
            result
        })
        .collect();
    results.into_iter().collect()
}

/// Whether other computations keep the other threads busy.
pub(crate) fn products_stay_whole() -> bool {
    WHOLE.get()
}

/// Keeps candle's own elementwise operations on the thread that calls them.
///
/// They are short (sums of gradients, mostly), and candle shares each with a pool of its own whose caller spins until the last worker is
/// through. Beside rayon's threads, which the kernels of this crate run on, a worker often has no core at that moment: the spinning took
/// a fifth of the processor time of scoring a small encoder's heads. Does nothing where CANDLE_NUM_THREADS is set.
///
/// # Safety
/// No other thread may run yet: the environment is changed.
pub unsafe fn keep_elementwise_on_caller() {
    const THREADS: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(THREADS).is_none() {
        // SAFETY: the caller's promise.
        unsafe { std::env::set_var(THREADS, "1") };
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::linear;

    fn values(rows: usize, columns: usize) -> Tensor {
        let values: Vec<f32> = (0..rows * columns).map(|i| ((i * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    /// Whole or cut, a product is the same bits; and a computation inside may be parallel itself.
    #[test]
    fn side_by_side_gives_the_bits_of_one_after_the_other() {
        for (rows, features, out) in [(512, 576, 192), (1030, 1536, 70), (2048, 384, 384), (300, 65, 2), (64, 1100, 33), (7, 5, 3)] {
            let (x, w) = (values(rows, features), values(out, features));
            let alone = linear(&x, &w, None).unwrap().to_vec2::<f32>().unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
            let both = pool.install(|| side_by_side(vec![&x; 3], |x| linear(x, &w, None)?.to_vec2::<f32>())).unwrap();
            assert!(both.iter().all(|y| *y == alone), "[{rows}, {features}]·[{features}, {out}]");
            for threads in [1, 2, 3, 4] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                assert!(pool.install(|| linear(&x, &w, None)).unwrap().to_vec2::<f32>().unwrap() == alone, "{threads} threads");
            }
        }
    }

    #[test]
    fn the_first_error_in_order_is_told() {
        let result: Result<Vec<u32>, u32> = side_by_side(vec![1u32, 2, 3, 4], |i| if i % 2 == 0 { Err(i) } else { Ok(i) });
        assert_eq!(result, Err(2));
        assert_eq!(side_by_side(vec![1u32, 3], Ok::<u32, ()>), Ok(vec![1, 3]));
    }
}
