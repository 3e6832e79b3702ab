//! Scaled dot-product attention (Vaswani et al. 2017, eq. 1) with grouped key/value heads, a block of queries at a time: the
//! probabilities of a block live in the cache and are never stored. The backward pass computes them again.
//!
//! With P = softmax(S), S the (soft-capped) scores: ∂v = Pᵀ·∂o, ∂P = ∂o·vᵀ, ∂Sᵢ = Pᵢ (∂Pᵢ − Σⱼ Pᵢⱼ ∂Pᵢⱼ), ∂q = scale · ∂S·k, ∂k = scale · ∂Sᵀ·q.

use crate::error::KernelError;
use crate::matrix::{Matrix, multiply};
use crate::real::Real;
use crate::rows::{Held, by_type, sum_groups, tensor};
use crate::simd::{self, multiversion};
use crate::{autograd, check, plain};
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, WithDType};
use rayon::prelude::*;
use std::ops::Range;

const OP: &str = "attention";
/// Elements of a block of scores: half a megabyte of f32 stays in a core's second-level cache.
const BLOCK: usize = 128 * 1024;
/// Queries in a block, at least and at most: few would waste the matrix product, many the cores.
const QUERIES: Range<usize> = 16..64;

/// Which keys a query sees. Queries are the last `sq` of `sk` positions: query i stands at position i + sk − sq.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttnMask<'a> {
    /// A query sees no later key.
    pub causal: bool,
    /// A query at position p sees key j only if |p − j| < window.
    pub window: Option<usize>,
    /// u8 [b, sk]: 0 hides a key (padding) from every query.
    pub key_keep: Option<&'a Tensor>,
}

impl AttnMask<'_> {
    /// The keys that causality and the window leave to query `i`.
    pub(crate) fn keys_seen_by(&self, i: usize, sq: usize, sk: usize) -> Range<usize> {
        seen_by_position(self.causal, self.window, (i + sk).saturating_sub(sq), sk)
    }
}

fn seen_by_position(causal: bool, window: Option<usize>, at: usize, sk: usize) -> Range<usize> {
    let start = window.map_or(0, |w| (at + 1).saturating_sub(w));
    let end = if causal { at + 1 } else { window.map_or(sk, |w| at.saturating_add(w)) }.min(sk);
    if window == Some(0) { 0..0 } else { start.min(end)..end }
}

fn check(q: &Tensor, k: &Tensor, mask: &AttnMask<'_>, scale: f64, softcap: Option<f64>) -> Result<()> {
    check::float(OP, "q", q)?;
    check::like(OP, "k", k, q)?;
    let (b, hq, sq, d) = q.dims4()?;
    let (_, hkv, sk, _) = k.dims4()?;
    check::shape(OP, "k", k, &[b, hkv, sk, d])?;
    if hkv == 0 && hq > 0 || hkv > 0 && !hq.is_multiple_of(hkv) {
        let expected = format!("a divisor of the {hq} query heads");
        return Err(KernelError::Value { op: OP, what: "number of key heads", found: hkv.to_string(), expected }.into());
    }
    if (mask.causal || mask.window.is_some()) && sq > sk {
        let expected = format!("at most the {sk} keys under a causal or window mask");
        return Err(KernelError::Value { op: OP, what: "number of queries", found: sq.to_string(), expected }.into());
    }
    if let Some(keep) = mask.key_keep {
        if keep.dtype() != DType::U8 {
            return Err(KernelError::DType { op: OP, what: "key_keep", found: keep.dtype(), expected: "u8" }.into());
        }
        check::same_device(OP, "key_keep", keep, q)?;
        check::shape(OP, "key_keep", keep, &[b, sk])?;
    }
    if !scale.is_finite() {
        return Err(KernelError::Value { op: OP, what: "scale", found: scale.to_string(), expected: "a finite number".to_string() }.into());
    }
    softcap.map_or(Ok(()), |cap| check::positive(OP, "softcap", cap))
}

/// softmax(scale · q·kᵀ, soft-capped, over the visible keys) · v.
///
/// q [b, hq, sq, d], k [b, hkv, sk, d], v [b, hkv, sk, dv] → [b, hq, sq, dv]; hkv divides hq, and query head i reads key head
/// i / (hq / hkv). `softcap` c turns a score s into c·tanh(s / c). A query that sees no key gives zeros and passes no gradient.
///
/// Arguments may be transposed views: they are read in place. On the CPU the result is itself a transposed view of a contiguous
/// [b, sq, hq, dv], so that `.transpose(1, 2)` followed by a flattening of the heads copies nothing.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &AttnMask<'_>, scale: f64, softcap: Option<f64>) -> Result<Tensor> {
    check(q, k, mask, scale, softcap)?;
    check::like(OP, "v", v, q)?;
    let (b, hkv, sk, _) = k.dims4()?;
    let dv = check::last_dim(OP, "v", v)?;
    check::shape(OP, "v", v, &[b, hkv, sk, dv])?;
    let (_, hq, sq, d) = q.dims4()?;
    if b * hq * sq * sk * d * dv == 0 {
        return Tensor::zeros((b, hq, sq, dv), q.dtype(), q.device());
    }
    let work = plain::working_dtype(q.dtype());
    let (wide_q, k, v) = (q.to_dtype(work)?, k.to_dtype(work)?, v.to_dtype(work)?);
    let context = if q.device().is_cpu() {
        let keep = mask.key_keep.map(|keep| keep.flatten_all()?.to_vec1::<u8>()).transpose()?;
        let op = Attention { causal: mask.causal, window: mask.window, keep, scale, softcap };
        wide_q.apply_op3(&k, &v, op)?.transpose(1, 2)?
    } else {
        plain::attention(&wide_q, &k, &v, mask, scale, softcap)?
    };
    context.to_dtype(q.dtype())
}

/// The probabilities that [`attention`] multiplies with v, materialised: q [b, hq, sq, d], k [b, hkv, sk, d] → [b, hq, sq, sk].
/// For criteria that read attention maps; composed of candle's operations, differentiable, not fast.
pub fn attention_probs(q: &Tensor, k: &Tensor, mask: &AttnMask<'_>, scale: f64, softcap: Option<f64>) -> Result<Tensor> {
    check(q, k, mask, scale, softcap)?;
    let (b, hq, sq, d) = q.dims4()?;
    let sk = k.dim(2)?;
    if b * hq * sq * sk * d == 0 {
        return Tensor::zeros((b, hq, sq, sk), q.dtype(), q.device());
    }
    let work = plain::working_dtype(q.dtype());
    plain::attention_probs(&q.to_dtype(work)?, &k.to_dtype(work)?, mask, scale, softcap)?.to_dtype(q.dtype())
}

struct Attention {
    causal: bool,
    window: Option<usize>,
    /// [b, sk]
    keep: Option<Vec<u8>>,
    scale: f64,
    softcap: Option<f64>,
}

#[derive(Clone, Copy)]
struct Sizes {
    b: usize,
    hq: usize,
    hkv: usize,
    sq: usize,
    sk: usize,
    d: usize,
    dv: usize,
}

impl Sizes {
    fn new(q: &Layout, k: &Layout, v: &Layout) -> Result<Self> {
        let ((b, hq, sq, d), (_, hkv, sk, _)) = (q.shape().dims4()?, k.shape().dims4()?);
        let (_, _, _, dv) = v.shape().dims4()?;
        Ok(Sizes { b, hq, hkv, sq, sk, d, dv })
    }

    fn queries_per_block(&self) -> usize {
        (BLOCK / self.sk.max(1)).clamp(QUERIES.start, QUERIES.end)
    }
}

/// One head of a [batch, heads, rows, columns] tensor of any strides.
fn head<'a, T>(data: &'a [T], layout: &Layout, batch: usize, head: usize) -> Result<Matrix<'a, T>> {
    let (_, _, rows, cols) = layout.shape().dims4()?;
    match *layout.stride() {
        [by_batch, by_head, row_stride, col_stride] => {
            let start = layout.start_offset() + batch * by_batch + head * by_head;
            Ok(Matrix { data, start, rows, cols, row_stride, col_stride })
        }
        _ => Err(KernelError::Value { op: OP, what: "rank", found: layout.shape().rank().to_string(), expected: "4".to_string() }.into()),
    }
}

multiversion! {
    /// Turns a row of scores into probabilities over `seen`, zero elsewhere; `keep` (empty: all) hides keys too.
    fn softmax_row<T: Real>(row: &mut [T], seen: Range<usize>, keep: &[u8]) {
        let (before, rest) = row.split_at_mut(seen.start);
        let (visible, after) = rest.split_at_mut(seen.end - seen.start);
        before.fill(T::ZERO);
        after.fill(T::ZERO);
        let keep = keep.get(seen).unwrap_or(&[]);
        if !keep.is_empty() {
            if keep.iter().all(|&k| k == 0) {
                visible.fill(T::ZERO);
                return;
            }
            for (s, &k) in visible.iter_mut().zip(keep) {
                *s = if k == 0 { T::NEG_INFINITY } else { *s };
            }
        }
        if !visible.is_empty() {
            let max = simd::max(visible);
            let sum = simd::map_sum_in_place(visible, |s| (s - max).exp());
            let scale = T::ONE / sum;
            for p in visible {
                *p *= scale;
            }
        }
    }
}

multiversion! {
    /// s ← cap · tanh(s / cap); `slope`, unless it is empty, receives the derivative.
    fn soft_cap<T: Real>(scores: &mut [T], slope: &mut [T], cap: T) {
        let rate = T::ONE / cap;
        if slope.is_empty() {
            for s in scores {
                *s = cap * (*s * rate).tanh();
            }
        } else {
            for (s, slope) in scores.iter_mut().zip(slope) {
                let t = (*s * rate).tanh();
                *s = cap * t;
                *slope = T::ONE - t * t;
            }
        }
    }
}

multiversion! {
    /// dp ← p (dp − Σ p dp), row by row
    fn softmax_backward<T: Real>(p: &[T], dp: &mut [T], width: usize) {
        for (p, dp) in p.chunks_exact(width).zip(dp.chunks_exact_mut(width)) {
            let dot = simd::sum2(p, dp, |p, dp| p * dp);
            for (dp, &p) in dp.iter_mut().zip(p) {
                *dp = p * (*dp - dot);
            }
        }
    }
}

multiversion! {
    fn scale_by<T: Real>(x: &mut [T], factor: &[T]) {
        for (x, &f) in x.iter_mut().zip(factor) {
            *x *= f;
        }
    }
}

impl Attention {
    /// The keys that any of the queries of a block sees by position; never empty for a block that has a query with keys.
    fn keys_of_block(&self, sizes: &Sizes, queries: &Range<usize>) -> Range<usize> {
        let seen = |i: usize| self.seen(sizes, i);
        let (first, last) = (seen(queries.start), seen(queries.end.saturating_sub(1)));
        first.start.min(last.start)..first.end.max(last.end)
    }

    fn seen(&self, sizes: &Sizes, query: usize) -> Range<usize> {
        seen_by_position(self.causal, self.window, (query + sizes.sk).saturating_sub(sizes.sq), sizes.sk)
    }

    /// Probabilities of the block's queries over `keys`, into `p` [queries, keys]; `slope` as in [`soft_cap`].
    #[expect(clippy::too_many_arguments, reason = "one block's inputs, outputs and place")]
    fn probabilities<T: Real>(
        &self,
        sizes: &Sizes,
        batch: usize,
        queries: &Range<usize>,
        keys: &Range<usize>,
        q: Matrix<'_, T>,
        k: Matrix<'_, T>,
        p: &mut [T],
        slope: &mut [T],
    ) -> Result<()> {
        let width = keys.len();
        multiply(p, width, q, k.transposed(), T::of(self.scale), false)?;
        if let Some(cap) = self.softcap {
            soft_cap(p, slope, T::of(cap));
        }
        let keep =
            self.keep.as_deref().and_then(|keep| keep.get(batch * sizes.sk + keys.start..batch * sizes.sk + keys.end)).unwrap_or(&[]);
        for (query, row) in queries.clone().zip(p.chunks_exact_mut(width.max(1))) {
            let seen = self.seen(sizes, query);
            let start = seen.start.saturating_sub(keys.start).min(width);
            softmax_row(row, start..seen.end.saturating_sub(keys.start).clamp(start, width), keep);
        }
        Ok(())
    }

    /// → [b, sq, hq, dv]
    fn forward<T: Real>(
        &self,
        sizes: Sizes,
        (q, ql): (&[T], &Layout),
        (k, kl): (&[T], &Layout),
        (v, vl): (&[T], &Layout),
    ) -> Result<Vec<T>> {
        let Sizes { b, hq, hkv, sq, dv, .. } = sizes;
        let per_block = sizes.queries_per_block();
        // A task is a block of queries of one example, all heads: that is one contiguous piece of the result.
        let mut out = vec![T::ZERO; b * sq * hq * dv];
        let examples = out.chunks_mut(sq * hq * dv).enumerate();
        let tasks: Vec<_> =
            examples.flat_map(|(batch, out)| out.chunks_mut(per_block * hq * dv).enumerate().map(move |t| (batch, t))).collect();
        tasks.into_par_iter().try_for_each(|(batch, (block, out))| {
            let start = block * per_block;
            let queries = start..start + out.len() / (hq * dv);
            let keys = self.keys_of_block(&sizes, &queries);
            if keys.is_empty() {
                return Ok(());
            }
            let mut p = vec![T::ZERO; queries.len() * keys.len()];
            for h in 0..hq {
                let at = h / (hq / hkv);
                let q = head(q, ql, batch, h)?.narrow(queries.start, queries.len());
                let k = head(k, kl, batch, at)?.narrow(keys.start, keys.len());
                let v = head(v, vl, batch, at)?.narrow(keys.start, keys.len());
                self.probabilities(&sizes, batch, &queries, &keys, q, k, &mut p, &mut [])?;
                let out = out.get_mut(h * dv..).unwrap_or_default();
                multiply(out, hq * dv, Matrix::packed(&p, keys.len()), v, T::ONE, false)?;
            }
            Ok::<(), candle_core::Error>(())
        })?;
        Ok(out)
    }

    fn gradients<T: Real>(&self, q: &Tensor, k: &Tensor, v: &Tensor, d_out: &Tensor) -> Result<[Tensor; 3]> {
        let d_out = d_out.transpose(1, 2)?; // [b, hq, sq, dv]
        let sizes = Sizes::new(q.layout(), k.layout(), v.layout())?;
        let Sizes { b, hq, hkv, sq, sk, d, dv } = sizes;
        let (held_q, held_k) = (Held::new(OP, q), Held::new(OP, k));
        let (held_v, held_o) = (Held::new(OP, v), Held::new(OP, &d_out));
        let (qs, ks) = (held_q.cpu()?.as_slice::<T>()?, held_k.cpu()?.as_slice::<T>()?);
        let (vs, os) = (held_v.cpu()?.as_slice::<T>()?, held_o.cpu()?.as_slice::<T>()?);
        // A task is one query head of one example. Query heads that share a key head add up afterwards, in order.
        let mut dq = vec![T::ZERO; b * hq * sq * d];
        let mut dk = vec![T::ZERO; b * hq * sk * d];
        let mut d_v = vec![T::ZERO; b * hq * sk * dv];
        let tasks = dq.par_chunks_mut(sq * d).zip(dk.par_chunks_mut(sk * d)).zip(d_v.par_chunks_mut(sk * dv)).enumerate();
        tasks.try_for_each(|(task, ((dq, dk), d_v))| {
            let (batch, h) = (task / hq, task % hq);
            let at = h / (hq / hkv);
            let q = head(qs, q.layout(), batch, h)?;
            let k = head(ks, k.layout(), batch, at)?;
            let v = head(vs, v.layout(), batch, at)?;
            let o = head(os, d_out.layout(), batch, h)?;
            self.head_gradients(&sizes, batch, [q, k, v, o], [dq, dk, d_v])
        })?;
        let group = hq / hkv;
        Ok([tensor(dq, q)?, tensor(sum_groups(dk, group, sk * d), k)?, tensor(sum_groups(d_v, group, sk * dv), v)?])
    }

    /// One head's ∂q, ∂k and ∂v, a block of queries at a time.
    fn head_gradients<T: Real>(
        &self,
        sizes: &Sizes,
        batch: usize,
        [q, k, v, o]: [Matrix<'_, T>; 4],
        [dq, dk, d_v]: [&mut [T]; 3],
    ) -> Result<()> {
        let Sizes { sq, d, dv, .. } = *sizes;
        let per_block = sizes.queries_per_block();
        let scale = T::of(self.scale);
        for (block, dq) in dq.chunks_mut(per_block * d).enumerate() {
            let start = block * per_block;
            let queries = start..(start + per_block).min(sq);
            let keys = self.keys_of_block(sizes, &queries);
            if keys.is_empty() {
                continue;
            }
            let size = queries.len() * keys.len();
            let mut p = vec![T::ZERO; size];
            let mut slope = vec![T::ZERO; if self.softcap.is_some() { size } else { 0 }];
            let (q, o) = (q.narrow(queries.start, queries.len()), o.narrow(queries.start, queries.len()));
            let (k, v) = (k.narrow(keys.start, keys.len()), v.narrow(keys.start, keys.len()));
            self.probabilities(sizes, batch, &queries, &keys, q, k, &mut p, &mut slope)?;
            let (dk, d_v) = (dk.get_mut(keys.start * d..).unwrap_or_default(), d_v.get_mut(keys.start * dv..).unwrap_or_default());
            multiply(d_v, dv, Matrix::packed(&p, keys.len()).transposed(), o, T::ONE, true)?;
            let mut ds = vec![T::ZERO; size];
            multiply(&mut ds, keys.len(), o, v.transposed(), T::ONE, false)?;
            softmax_backward(&p, &mut ds, keys.len());
            scale_by(&mut ds, &slope);
            let ds = Matrix::packed(&ds, keys.len());
            multiply(dq, d, ds, k, scale, false)?;
            multiply(dk, d, ds.transposed(), q, scale, true)?;
        }
        Ok(())
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = Sizes::new(q_layout, k_layout, v_layout)?;
        by_type!(OP, q, T => {
            let (q, k, v) = (q.as_slice::<T>()?, k.as_slice::<T>()?, v.as_slice::<T>()?);
            let out = self.forward(sizes, (q, q_layout), (k, k_layout), (v, v_layout))?;
            Ok((T::to_cpu_storage_owned(out), Shape::from((sizes.b, sizes.sq, sizes.hq, sizes.dv))))
        })
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dq, dk, dv] = match d_out.dtype() {
            DType::F64 => self.gradients::<f64>(q, k, v, d_out)?,
            _ => self.gradients::<f32>(q, k, v, d_out)?,
        };
        Ok((autograd::keep(q, Some(dq))?, autograd::keep(k, Some(dk))?, autograd::keep(v, Some(dv))?))
    }
}
