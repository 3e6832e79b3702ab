//! LLM.int8(): matrices of int8 with a scale for each output, multiplied by activations of int8 with a scale for each token; columns of the
//! activations that hold an outlier stay as they are.
//!
//! Dettmers et al., LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale (2022), eq. 5-8, as the authors' library computes it:
//! `y = (q_x q_wᵀ)·s_x s_w / 127² + x[:, O]·(q_w[:, O] s_w / 127)ᵀ + b`, O the columns with an entry of magnitude ≥ threshold. The paper's
//! eq. 8 multiplies outliers by 16-bit weights; a stored int8 matrix does not have them, so here, as in the library, they meet the int8
//! weights. A token's scale is its largest magnitude below the threshold.
//!
//! Where we deviate: the library looks for outlier columns in whatever is multiplied at once, so its results depend on the batch; here a column
//! belongs to its sequence (in a mixture's experts to its token), and padding never counts. The products are summed in floating point: the
//! parameters hold `q_w·s_w / 127`, so a model of int8 saves room in its files and not in memory.

use candle_core::{DType, Device, Tensor};

use crate::error::{ModelError, Result};
use crate::transformer::Transformer;

/// The largest code.
const MOST: f64 = 127.0;
/// How far a weight may be from a code before it is no int8 value: rounding of `q·(s / 127)` in f32, far below half a code.
const NEAR: f64 = 1e-3;

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

/// Sequences of activations rounded to int8, outlier columns of each sequence untouched. `keep` is 1 where a row counts.
fn round(x: &mut [f64], length: usize, width: usize, threshold: f64, keep: Option<&[u8]>) {
    let outlier = |v: f64| threshold > 0.0 && v.abs() >= threshold;
    for (sequence, rows) in x.chunks_mut((length * width).max(1)).enumerate() {
        let counts = |row: usize| keep.is_none_or(|k| k.get(sequence * length + row) != Some(&0));
        let mut apart = vec![false; width];
        for (_, row) in rows.chunks(width.max(1)).enumerate().filter(|(r, _)| counts(*r)) {
            apart.iter_mut().zip(row).for_each(|(a, v)| *a |= outlier(*v));
        }
        for row in rows.chunks_mut(width.max(1)) {
            let scale = row.iter().filter(|v| !outlier(**v)).fold(0.0, |m: f64, v| m.max(v.abs()));
            for (v, apart) in row.iter_mut().zip(&apart) {
                if !apart && scale > 0.0 {
                    *v = (MOST * *v / scale).round_ties_even().clamp(-MOST, MOST) * scale / MOST;
                }
            }
        }
    }
}

impl Transformer {
    /// The outlier threshold of a model of int8.
    pub fn int8(&self) -> Option<f64> {
        self.int8
    }

    /// Whether that slot is a matrix of int8 values.
    pub fn is_int8(&self, slot: &str) -> bool {
        self.int8.is_some() && (0..self.n_layers()).any(|l| self.linears(l).is_ok_and(|names| names.iter().any(|n| n == slot)))
    }

    /// The model with the matrices of its layers as int8 values, multiplying activations of int8; embeddings, head, norms, biases and routers
    /// stay. In files their rows are outputs, also where the family's own files hold matrices as `[in, out]` (GPT-2's).
    pub fn to_int8(&self, threshold: f64) -> Result<Self> {
        let mut model = Self { int8: Some(threshold), ..self.clone() };
        for layer in 0..self.n_layers() {
            for slot in self.linears(layer)? {
                let w = self.params.require(&slot)?;
                let (_, columns) = w.dims2()?;
                let found = codes(w)?;
                let rounded = values(found.codes.into_iter(), &found.scales, columns)?;
                model.params.set(slot, rounded.to_dtype(self.dtype)?.to_device(&self.device)?);
            }
        }
        Ok(model)
    }

    /// What a matrix of int8 is multiplied by: x `[.., width]` as int8 values, outliers apart; x itself where the model is not of int8. The
    /// gradient passes as if nothing was rounded.
    pub(crate) fn int8_input(&self, x: &Tensor, keep: Option<&Tensor>) -> Result<Tensor> {
        let Some(threshold) = self.int8 else { return Ok(x.clone()) };
        // [b, s, ..] or, of an expert, [rows, ..].
        let length = if x.rank() > 2 { x.dim(1)? } else { 1 };
        let lead = if x.rank() > 2 { x.dim(0)? * length } else { x.dim(0)? };
        let width = x.elem_count() / lead.max(1);
        let keep = keep.filter(|_| x.rank() > 2).map(|k| k.flatten_all()?.to_vec1::<u8>()).transpose()?;
        let plain = x.detach();
        let mut values = plain.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        round(&mut values, length, width, threshold, keep.as_deref());
        let rounded = Tensor::from_vec(values, x.shape().clone(), &Device::Cpu)?.to_dtype(x.dtype())?.to_device(x.device())?;
        if !x.track_op() {
            return Ok(rounded);
        }
        Ok((x + (rounded - plain)?.detach())?)
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
        round(&mut x, 2, 3, 6.0, None);
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        near(x[0], 1.0);
        assert_eq!((x[1], x[4]), (8.0, 1.0));
        near(x[2], 64.0 / 127.0);
        near(x[5], -64.0 * 2.0 / 127.0);
        // The outlier of a padding row is nobody's.
        let mut x = [8.0, 1.0, 0.5, 0.25];
        round(&mut x, 2, 2, 6.0, Some(&[0, 1]));
        near(x[2], 0.5);
        near(x[3], 64.0 * 0.5 / 127.0);
    }
}
