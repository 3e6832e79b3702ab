//! How the kernels reach the elements of candle tensors, and how they cut the work: always by shape, never by the number of threads.

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

/// A new vector of `len` elements, filled in parallel in pieces of `piece` (the last may be shorter); `f` gets a piece's index and its
/// elements, which are zero.
pub fn fill<T: Real>(len: usize, piece: usize, f: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    let mut out: Vec<T> = Vec::with_capacity(len);
    let fresh = &mut out.spare_capacity_mut()[..len];
    // Zeroing a piece while it is in the cache costs next to nothing; zeroing the whole vector first would be one more pass over memory,
    // by one thread.
    for_each_piece(fresh, piece, |i, fresh| f(i, zeroed(fresh)));
    // SAFETY: every element up to `len`, which is within the capacity, has been written by `zeroed`.
    unsafe { out.set_len(len) };
    out
}

/// [`fill`] for two vectors at once, each with its length and piece size; both must come to the same number of pieces.
pub fn fill2<T: Real>(
    (len_a, piece_a): (usize, usize),
    (len_b, piece_b): (usize, usize),
    f: impl Fn(usize, &mut [T], &mut [T]) + Sync,
) -> (Vec<T>, Vec<T>) {
    let (mut a, mut b): (Vec<T>, Vec<T>) = (Vec::with_capacity(len_a), Vec::with_capacity(len_b));
    let pieces_a = a.spare_capacity_mut()[..len_a].par_chunks_mut(piece_a.max(1));
    let pieces_b = b.spare_capacity_mut()[..len_b].par_chunks_mut(piece_b.max(1));
    debug_assert_eq!(pieces_a.len(), pieces_b.len());
    let common = pieces_a.len().min(pieces_b.len());
    pieces_a.zip(pieces_b).enumerate().for_each(|(i, (a, b))| f(i, zeroed(a), zeroed(b)));
    // SAFETY: the elements of the first `common` pieces of both have been written by `zeroed`.
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

fn zeroed<T: Real>(fresh: &mut [MaybeUninit<T>]) -> &mut [T] {
    for x in fresh.iter_mut() {
        x.write(T::ZERO);
    }
    // SAFETY: all elements have just been written, and `MaybeUninit<T>` has the layout of `T`.
    unsafe { &mut *(std::ptr::from_mut(fresh) as *mut [T]) }
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
    fill(x.len() / group, len, |i, total: &mut [T]| {
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
