//! LLM.int8(): matrices of int8 with a scale for each output, multiplied by activations of int8 with a scale for each token; columns of the
//! activations that hold an outlier stay as they are.
//!
//! Dettmers et al., LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale (2022), eq. 5-8, as the authors' library computes it:
//! `y = (q_x q_wᵀ)·s_x s_w / 127² + x[:, O]·(q_w[:, O] s_w / 127)ᵀ + b`, O the columns with an entry of magnitude ≥ threshold. The paper's
//! eq. 8 multiplies outliers by 16-bit weights; a stored int8 matrix does not have them, so here, as in the library, they meet the int8
//! weights. A token's scale is its largest magnitude below the threshold. [`Int8::half`] is the paper's form: outliers meet the weights as
//! 16-bit numbers, which are what is stored, and a token's scale leaves outlier columns out.
//!
//! Where we deviate: the library looks for outlier columns in whatever is multiplied at once, so its results depend on the batch; here a column
//! belongs to its sequence (in a mixture's experts to its token), and padding never counts. The products are summed in floating point: the
//! parameters hold `q_w·s_w / 127`, so a model of int8 saves room in its files and not in memory.

use candle_core::{DType, Device, Tensor};

use prunectl_kernels as kernels;

use crate::error::{ModelError, Result};
use crate::transformer::Transformer;

/// The largest code.
const MOST: f64 = 127.0;
/// How far a weight may be from a code before it is no int8 value: rounding of `q·(s / 127)` in f32, far below half a code.
const NEAR: f64 = 1e-3;

/// How a model multiplies by int8.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Int8 {
    /// Magnitude from which a column of the input is an outlier's; 0: none is.
    pub threshold: f64,
    /// Outliers meet 16-bit weights: the parameters are those, and codes are worked out when they are multiplied by.
    pub half: bool,
}

/// What a matrix is multiplied by.
pub(crate) struct Rounded {
    /// Values of int8; outlier columns as they are, or zeros where they are `apart`.
    pub x: Tensor,
    /// Outlier columns alone, for 16-bit weights.
    apart: Option<Tensor>,
}

impl Rounded {
    /// As it is.
    pub fn plain(x: Tensor) -> Self {
        Self { x, apart: None }
    }
}

/// A matrix as int8.
#[derive(Debug, Clone, PartialEq)]
pub struct Codes {
    /// Row by row.
    pub codes: Vec<i8>,
    /// Each row's largest magnitude; a row of zeros has 0.
    pub scales: Vec<f32>,
    /// The largest distance of a weight from its code, in codes: 0.5 at most, next to nothing where the matrix held int8 values already.
    pub farthest: f64,
}

/// `round(127·w / max|row|)`, half to even.
pub fn codes(w: &Tensor) -> Result<Codes> {
    let rows = w.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
    let mut out = Codes { codes: Vec::with_capacity(w.elem_count()), scales: Vec::with_capacity(rows.len()), farthest: 0.0 };
    for row in rows {
        let scale = f64::from(row.iter().fold(0.0, |m: f64, x| m.max(x.abs())) as f32);
        for x in row {
            let exact = if scale > 0.0 { MOST * x / scale } else { 0.0 };
            out.farthest = out.farthest.max((exact - exact.round_ties_even()).abs());
            out.codes.push(exact.round_ties_even().clamp(-MOST, MOST) as i8);
        }
        out.scales.push(scale as f32);
    }
    Ok(out)
}

/// `q·s / 127`, f32 `[scales, columns]`.
pub(crate) fn values(codes: impl Iterator<Item = i8>, scales: &[f32], columns: usize) -> Result<Tensor> {
    let steps: Vec<f32> = scales.iter().map(|s| (f64::from(*s) / MOST) as f32).collect();
    let all: Vec<f32> = codes.enumerate().map(|(i, q)| f32::from(q) * steps.get(i / columns.max(1)).copied().unwrap_or_default()).collect();
    Ok(Tensor::from_vec(all, (scales.len(), columns), &Device::Cpu)?)
}

/// Sequences of activations rounded to int8, outlier columns of each sequence untouched. `keep` is 1 where a row counts. 1 where a value
/// stands in such a column.
fn round(x: &mut [f64], length: usize, width: usize, how: Int8, keep: Option<&[u8]>) -> Vec<u8> {
    let outlier = |v: f64| how.threshold > 0.0 && v.abs() >= how.threshold;
    let mut marks = Vec::with_capacity(x.len());
    for (sequence, rows) in x.chunks_mut((length * width).max(1)).enumerate() {
        let counts = |row: usize| keep.is_none_or(|k| k.get(sequence * length + row) != Some(&0));
        let mut apart = vec![false; width];
        for (_, row) in rows.chunks(width.max(1)).enumerate().filter(|(r, _)| counts(*r)) {
            apart.iter_mut().zip(row).for_each(|(a, v)| *a |= outlier(*v));
        }
        for row in rows.chunks_mut(width.max(1)) {
            let counts = |(v, apart): &(&f64, &bool)| if how.half { !**apart } else { !outlier(**v) };
            let scale = row.iter().zip(&apart).filter(counts).fold(0.0, |m: f64, (v, _)| m.max(v.abs()));
            marks.extend(apart.iter().map(|a| u8::from(*a)));
            for (v, apart) in row.iter_mut().zip(&apart) {
                if !apart && scale > 0.0 {
                    *v = (MOST * *v / scale).round_ties_even().clamp(-MOST, MOST) * scale / MOST;
                }
            }
        }
    }
    marks
}

impl Transformer {
    /// How a model of int8 multiplies.
    pub fn int8(&self) -> Option<Int8> {
        self.int8
    }

    /// Whether that slot is a matrix of int8 values.
    pub fn is_int8(&self, slot: &str) -> bool {
        self.int8.is_some_and(|how| !how.half)
            && (0..self.n_layers()).any(|l| self.linears(l).is_ok_and(|names| names.iter().any(|n| n == slot)))
    }

    /// The model with the matrices of its layers as int8 values, multiplying activations of int8; embeddings, head, norms, biases and routers
    /// stay. In files their rows are outputs, also where the family's own files hold matrices as `[in, out]` (GPT-2's).
    ///
    /// With `half` the matrices become 16-bit numbers: those of the type on disk where that has 16 bits, else f16.
    pub fn to_int8(&self, how: Int8) -> Result<Self> {
        let mut model = Self { int8: Some(how), ..self.clone() };
        let half = if self.origin.stored_dtype == DType::BF16 { DType::BF16 } else { DType::F16 };
        for layer in 0..self.n_layers() {
            for slot in self.linears(layer)? {
                let w = self.params.require(&slot)?;
                if how.half {
                    model.params.set(slot, w.to_dtype(half)?.to_dtype(self.dtype)?);
                    continue;
                }
                let (_, columns) = w.dims2()?;
                let found = codes(w)?;
                let rounded = values(found.codes.into_iter(), &found.scales, columns)?;
                model.params.set(slot, rounded.to_dtype(self.dtype)?.to_device(&self.device)?);
            }
        }
        Ok(model)
    }

    /// `xWᵀ + b` by the parameters of that stem.
    pub(crate) fn times(&self, stem: &str, x: &Rounded) -> Result<Tensor> {
        let Some(apart) = &x.apart else { return crate::net::linear(&self.params, stem, &x.x) };
        let w = self.params.require(&format!("{stem}.weight"))?;
        let found = codes(&w.detach())?;
        let rounded = values(found.codes.into_iter(), &found.scales, w.dim(1)?)?.to_dtype(self.dtype)?.to_device(&self.device)?;
        let bias = self.params.get(&format!("{stem}.bias"));
        Ok((kernels::linear(&x.x, &rounded, bias)? + kernels::linear(apart, w, None)?)?)
    }

    /// What a matrix of int8 is multiplied by: x `[.., width]` as int8 values, outliers apart; x itself where the model is not of int8. The
    /// gradient passes as if nothing was rounded.
    pub(crate) fn int8_input(&self, x: &Tensor, keep: Option<&Tensor>) -> Result<Rounded> {
        let Some(how) = self.int8 else { return Ok(Rounded::plain(x.clone())) };
        // [b, s, ..] or, of an expert, [rows, ..].
        let length = if x.rank() > 2 { x.dim(1)? } else { 1 };
        let lead = if x.rank() > 2 { x.dim(0)? * length } else { x.dim(0)? };
        let width = x.elem_count() / lead.max(1);
        let keep = keep.filter(|_| x.rank() > 2).map(|k| k.flatten_all()?.to_vec1::<u8>()).transpose()?;
        let plain = x.detach();
        let mut values = plain.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        let marks = round(&mut values, length, width, how, keep.as_deref());
        let mut rounded = Tensor::from_vec(values, x.shape().clone(), &Device::Cpu)?.to_dtype(x.dtype())?.to_device(x.device())?;
        if x.track_op() {
            rounded = (x + (rounded - plain)?.detach())?;
        }
        if !how.half {
            return Ok(Rounded::plain(rounded));
        }
        let marks = Tensor::from_vec(marks, x.shape().clone(), &Device::Cpu)?.to_dtype(x.dtype())?.to_device(x.device())?;
        let apart = rounded.mul(&marks)?;
        Ok(Rounded { x: (rounded - &apart)?, apart: Some(apart) })
    }
}

/// An error where a matrix that should hold int8 values does not any more.
pub fn check_codes(slot: &str, found: &Codes) -> Result<()> {
    if found.farthest <= NEAR {
        return Ok(());
    }
    Err(ModelError::Mismatch {
        what: format!("`{slot}` of a model of int8"),
        found: format!("a weight {:.3} codes from the nearest", found.farthest),
        expected: "int8 values: something changed the weights after `quantize`, which comes last".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows (1, −0.5, 0) and zeros: 127·(−0.5) = −63.5 goes to the even −64.
    #[test]
    fn codes_by_hand() {
        let w = Tensor::new(&[[1f32, -0.5, 0.0], [0.0, 0.0, 0.0]], &Device::Cpu).unwrap();
        let found = codes(&w).unwrap();
        assert_eq!((found.codes, found.scales), (vec![127, -64, 0, 0, 0, 0], vec![1.0, 0.0]));
        assert_eq!(found.farthest, 0.5);
    }

    /// Column 1 holds an outlier in the first row, so both rows keep it; a row's scale is its largest entry below the threshold.
    #[test]
    fn outlier_columns_stay_by_hand() {
        let mut x = [1.0, 8.0, 0.5, 2.0, 1.0, -1.0];
        let how = Int8 { threshold: 6.0, half: false };
        assert_eq!(round(&mut x, 2, 3, how, None), [0, 1, 0, 0, 1, 0]);
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        near(x[0], 1.0);
        assert_eq!((x[1], x[4]), (8.0, 1.0));
        near(x[2], 64.0 / 127.0);
        near(x[5], -64.0 * 2.0 / 127.0);
        // The outlier of a padding row is nobody's.
        let mut x = [8.0, 1.0, 0.5, 0.25];
        round(&mut x, 2, 2, how, Some(&[0, 1]));
        near(x[2], 0.5);
        near(x[3], 64.0 * 0.5 / 127.0);
        // The paper's scale: 5 stands in the outlier's column, so the second row's is 1, not 5.
        let mut x = [8.0, 1.0, 5.0, 1.0];
        round(&mut x, 2, 2, Int8 { half: true, ..how }, None);
        assert_eq!(x, [8.0, 1.0, 5.0, 1.0]);
        let mut x = [8.0, 1.0, 5.0, 1.0];
        round(&mut x, 2, 2, how, None);
        near(x[3], 25.0 * 5.0 / 127.0);
    }
}
