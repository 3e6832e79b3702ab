//! Which threads compute.

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
