//! How the kernels reach the elements of candle tensors, and how they cut the work: by shape, never by the number of threads.

use crate::error::KernelError;
use crate::real::Real;
use candle_core::{CpuStorage, Layout, Result, Storage, StorageRef, Tensor, WithDType};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Elements that one task handles: 64 KiB of f32, which stay in a core's private cache.
const TASK: usize = 16 * 1024;

/// Whole rows that make up one task.
pub fn per_task(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}

/// The elements of a contiguous operand.
pub fn slice<'a, T: WithDType>(op: &'static str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let all = storage.as_slice::<T>()?;
    layout.contiguous_offsets().and_then(|(start, end)| all.get(start..end)).ok_or_else(|| {
        let found = format!("strides {:?}", layout.stride());
        KernelError::Value { op, what: "layout", found, expected: "contiguous elements".to_string() }.into()
    })
}

/// A CPU tensor held for reading.
pub struct Held<'a> {
    guard: StorageRef<'a>,
    layout: &'a Layout,
    op: &'static str,
}

impl<'a> Held<'a> {
    pub fn new(op: &'static str, x: &'a Tensor) -> Self {
        let (guard, layout) = x.storage_and_layout();
        Held { guard, layout, op }
    }

    pub fn cpu(&self) -> Result<&CpuStorage> {
        match &*self.guard {
            Storage::Cpu(storage) => Ok(storage),
            other => {
                let found = format!("{:?}", other.device().location());
                Err(KernelError::Device { op: self.op, what: "an operand of the CPU kernel", found, expected: "Cpu".to_string() }.into())
            }
        }
    }

    /// The elements of a contiguous tensor.
    pub fn slice<T: WithDType>(&self) -> Result<&[T]> {
        slice(self.op, self.cpu()?, self.layout)
    }
}

/// Binds `$t` to the element type of a CPU storage that is f32 or f64.
macro_rules! by_type {
    ($op:expr, $storage:expr, $t:ident => $body:expr) => {
        match $storage {
            candle_core::CpuStorage::F32(_) => {
                type $t = f32;
                $body
            }
            candle_core::CpuStorage::F64(_) => {
                type $t = f64;
                $body
            }
            other => Err(crate::error::KernelError::DType {
                op: $op,
                what: "an operand of the CPU kernel",
                found: candle_core::backend::BackendStorage::dtype(other),
                expected: "f32 or f64",
            }
            .into()),
        }
    };
}
pub(crate) use by_type;

/// The elements of a piece of a new vector that wait to be written, first to last.
pub struct Fresh<'a, T>(&'a mut [MaybeUninit<T>]);

impl<'a, T: Real> Fresh<'a, T> {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Writes `values` to the next elements, as many as there is room for, and hands those back. The iterator's closures must be small
    /// enough to be inlined: elsewhere they are compiled for no particular instruction set.
    #[inline(always)]
    pub fn write(&mut self, values: impl Iterator<Item = T>) -> &'a mut [T] {
        let mut count = 0;
        for (place, value) in self.0.iter_mut().zip(values) {
            place.write(value);
            count += 1;
        }
        self.written(count)
    }

    /// Writes the next element.
    #[inline(always)]
    pub fn push(&mut self, value: T) {
        self.write(std::iter::once(value));
    }

    /// Zeros in the next `count` elements.
    #[inline(always)]
    pub fn zeros(&mut self, count: usize) -> &'a mut [T] {
        self.write(std::iter::repeat_n(T::ZERO, count))
    }

    /// The first `count` elements, all of which must have been written.
    #[inline(always)]
    fn written(&mut self, count: usize) -> &'a mut [T] {
        let (done, rest) = std::mem::take(&mut self.0).split_at_mut(count);
        self.0 = rest;
        // SAFETY: both callers count what they write, and `MaybeUninit<T>` has the layout of `T`.
        unsafe { &mut *(std::ptr::from_mut(done) as *mut [T]) }
    }
}

/// [`Fresh::write`] to two at once.
#[inline(always)]
pub fn write2<T: Real>(a: &mut Fresh<'_, T>, b: &mut Fresh<'_, T>, values: impl Iterator<Item = (T, T)>) {
    let mut count = 0;
    for ((a, b), (x, y)) in a.0.iter_mut().zip(b.0.iter_mut()).zip(values) {
        a.write(x);
        b.write(y);
        count += 1;
    }
    a.written(count);
    b.written(count);
}

/// Has `f` write a piece; what it leaves is zero.
fn complete<T: Real>(piece: &mut [MaybeUninit<T>], f: impl FnOnce(&mut Fresh<'_, T>)) {
    let mut fresh = Fresh(piece);
    f(&mut fresh);
    fresh.zeros(fresh.len());
}

/// A new vector of `len` elements, written in parallel in pieces of `piece` (the last may be shorter); `f` gets a piece's index and its
/// elements, of which those that it doesn't write are zero.
pub fn fill<T: Real>(len: usize, piece: usize, f: impl Fn(usize, &mut Fresh<'_, T>) + Sync) -> Vec<T> {
    let mut out: Vec<T> = Vec::with_capacity(len);
    let fresh = &mut out.spare_capacity_mut()[..len];
    for_each_piece(fresh, piece, |i, piece| complete(piece, |fresh| f(i, fresh)));
    // SAFETY: every element up to `len`, which is within the capacity, has been written by `complete`.
    unsafe { out.set_len(len) };
    out
}

/// [`fill`] for two vectors at once, each with its length and piece size; both must come to the same number of pieces.
pub fn fill2<T: Real>(
    (len_a, piece_a): (usize, usize),
    (len_b, piece_b): (usize, usize),
    f: impl Fn(usize, &mut Fresh<'_, T>, &mut Fresh<'_, T>) + Sync,
) -> (Vec<T>, Vec<T>) {
    let (mut a, mut b): (Vec<T>, Vec<T>) = (Vec::with_capacity(len_a), Vec::with_capacity(len_b));
    let pieces_a = a.spare_capacity_mut()[..len_a].par_chunks_mut(piece_a.max(1));
    let pieces_b = b.spare_capacity_mut()[..len_b].par_chunks_mut(piece_b.max(1));
    debug_assert_eq!(pieces_a.len(), pieces_b.len());
    let common = pieces_a.len().min(pieces_b.len());
    pieces_a.zip(pieces_b).enumerate().for_each(|(i, (a, b))| complete(a, |a| complete(b, |b| f(i, a, b))));
    // SAFETY: the elements of the first `common` pieces of both have been written by `complete`.
    unsafe {
        a.set_len(len_a.min(common * piece_a.max(1)));
        b.set_len(len_b.min(common * piece_b.max(1)));
    }
    (a, b)
}

/// Calls `f` with each piece of `x` and its index, in parallel where there is more than one.
pub fn for_each_piece<E: Send>(x: &mut [E], piece: usize, f: impl Fn(usize, &mut [E]) + Sync) {
    if x.len() <= piece {
        if !x.is_empty() {
            f(0, x);
        }
    } else {
        x.par_chunks_mut(piece.max(1)).enumerate().for_each(|(i, x)| f(i, x));
    }
}

/// Rows whose contributions are added up before they join the others in [`sum_pieces`].
pub const ROWS_PER_PARTIAL: usize = 64;

/// Adds up partial rows of `width` elements, first to last: the order that makes a sum over rows independent of the threads.
pub fn sum_pieces<T: Real>(partials: &[T], width: usize) -> Vec<T> {
    let mut total = vec![T::ZERO; width];
    if width > 0 {
        for partial in partials.chunks_exact(width) {
            for (t, &p) in total.iter_mut().zip(partial) {
                *t += p;
            }
        }
    }
    total
}

/// Adds up every `group` consecutive pieces of `len` elements, first to last.
pub fn sum_groups<T: Real>(x: Vec<T>, group: usize, len: usize) -> Vec<T> {
    if group <= 1 {
        return x;
    }
    fill(x.len() / group, len, |i, total: &mut Fresh<'_, T>| {
        let total = total.zeros(len);
        for part in piece_of(&x, i, group * len, group * len).chunks(len.max(1)) {
            for (t, &p) in total.iter_mut().zip(part) {
                *t += p;
            }
        }
    })
}

/// The rows of piece `i` where pieces have `piece` elements: `x[i·piece ..]`, as many as there are in `like`.
pub fn piece_of<T>(x: &[T], i: usize, piece: usize, len: usize) -> &[T] {
    let start = (i * piece).min(x.len());
    &x[start..(start + len).min(x.len())]
}

/// A tensor on the CPU from its elements.
pub fn tensor<T: Real>(data: Vec<T>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(data, like.shape(), like.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_piece_leaves_is_zero_and_what_it_has_too_much_is_dropped() {
        let y = fill(5, 2, |i, y: &mut Fresh<'_, f32>| {
            y.push(1.0 + i as f32);
            if i == 0 {
                let last = y.write(std::iter::repeat_n(7.0, 9));
                last[0] += 1.0;
            }
            assert_eq!(y.len(), usize::from(i == 1));
        });
        assert_eq!(y, [1.0, 8.0, 2.0, 0.0, 3.0]);
        let (a, b) = fill2((3, 2), (4, 2), |_, a, b| write2(a, b, std::iter::repeat((1.0f64, 2.0))));
        assert_eq!((a, b), (vec![1.0; 3], vec![2.0, 2.0, 2.0, 0.0]));
    }
}
