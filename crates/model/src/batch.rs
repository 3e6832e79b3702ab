//! What goes into a forward pass.

use candle_core::{DType, Device, Tensor};

use crate::error::{ModelError, Result};

/// Label of a token that is not scored.
pub const IGNORED: i64 = -100;

/// A batch of token sequences, right- or left-padded to one length.
#[derive(Debug, Clone)]
pub struct Batch {
    /// u32 `[batch, seq]`.
    pub input_ids: Tensor,
    /// u8 `[batch, seq]`, 1 on real tokens (`attention_mask`). None: all are real.
    pub keep: Option<Tensor>,
    /// u32 `[batch, seq]`. None: all 0.
    pub token_type_ids: Option<Tensor>,
    /// What the loss compares with.
    pub labels: Option<Labels>,
}

/// Labels of a batch.
#[derive(Debug, Clone)]
pub enum Labels {
    /// i64 `[batch, seq]`, −100 ignored. Not shifted: a causal loss shifts them.
    Tokens(Tensor),
    /// i64 `[batch]`.
    Classes(Tensor),
    /// f32 `[batch]`.
    Values(Tensor),
    /// i64 `[batch, 2]`: first and last token of an answer.
    Spans(Tensor),
}

impl Batch {
    /// A batch without padding, token types or labels.
    pub fn new(input_ids: Tensor) -> Self {
        Self { input_ids, keep: None, token_type_ids: None, labels: None }
    }

    /// `(batch, seq)`.
    pub fn size(&self) -> Result<(usize, usize)> {
        Ok(self.input_ids.dims2()?)
    }

    /// Some rows of the batch, in the order given.
    pub fn rows(&self, rows: &[u32]) -> Result<Self> {
        let device = self.input_ids.device();
        let index = Tensor::new(rows, device)?;
        let pick = |t: &Tensor| t.contiguous()?.index_select(&index, 0);
        let labels = match &self.labels {
            None => None,
            Some(Labels::Tokens(t)) => Some(Labels::Tokens(pick(t)?)),
            Some(Labels::Classes(t)) => Some(Labels::Classes(pick(t)?)),
            Some(Labels::Values(t)) => Some(Labels::Values(pick(t)?)),
            Some(Labels::Spans(t)) => Some(Labels::Spans(pick(t)?)),
        };
        Ok(Self {
            input_ids: pick(&self.input_ids)?,
            keep: self.keep.as_ref().map(pick).transpose()?,
            token_type_ids: self.token_type_ids.as_ref().map(pick).transpose()?,
            labels,
        })
    }

    /// The same on another device.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let labels = match &self.labels {
            None => None,
            Some(Labels::Tokens(t)) => Some(Labels::Tokens(t.to_device(device)?)),
            Some(Labels::Classes(t)) => Some(Labels::Classes(t.to_device(device)?)),
            Some(Labels::Values(t)) => Some(Labels::Values(t.to_device(device)?)),
            Some(Labels::Spans(t)) => Some(Labels::Spans(t.to_device(device)?)),
        };
        Ok(Self {
            input_ids: self.input_ids.to_device(device)?,
            keep: self.keep.as_ref().map(|t| t.to_device(device)).transpose()?,
            token_type_ids: self.token_type_ids.as_ref().map(|t| t.to_device(device)).transpose()?,
            labels,
        })
    }

    /// The place of each row's last real token that is not `pad`; where there is none, of its last real token.
    pub fn last(&self, pad: Option<u32>) -> Result<Vec<u32>> {
        let (b, s) = self.size()?;
        let keep = self.host_keep()?;
        let ids = pad.map(|_| self.input_ids.to_dtype(DType::U32)?.to_vec2::<u32>()).transpose()?;
        let place = |row: usize| {
            let real = |at: &usize| keep.as_ref().and_then(|k| k.get(row)?.get(*at)).is_none_or(|k| *k != 0);
            let other = |at: &usize| ids.as_ref().and_then(|ids| ids.get(row)?.get(*at).copied()) != pad;
            let last = (0..s).rev().find(|at| real(at) && (pad.is_none() || other(at)));
            last.or_else(|| (0..s).rev().find(real)).unwrap_or(0) as u32
        };
        Ok((0..b).map(place).collect())
    }

    /// Token ids on the host, row by row, each checked against the vocabulary.
    pub(crate) fn checked_ids(&self, vocab: usize) -> Result<Vec<Vec<u32>>> {
        let ids = self.input_ids.to_dtype(DType::U32)?.to_vec2::<u32>()?;
        for (row, tokens) in ids.iter().enumerate() {
            if let Some((position, &id)) = tokens.iter().enumerate().find(|(_, id)| **id as usize >= vocab) {
                return Err(ModelError::TokenOutOfRange { id, row, position, vocab });
            }
        }
        Ok(ids)
    }

    /// `keep` on the host; None where every token is real.
    pub(crate) fn host_keep(&self) -> Result<Option<Vec<Vec<u8>>>> {
        let Some(keep) = &self.keep else { return Ok(None) };
        let (b, s) = self.size()?;
        if keep.dims() != [b, s] {
            return Err(ModelError::Mismatch {
                what: "shape of the attention mask".into(),
                found: format!("{:?}", keep.dims()),
                expected: format!("[{b}, {s}]"),
            });
        }
        let keep = keep.to_dtype(DType::U8)?.to_vec2::<u8>()?;
        Ok(keep.iter().flatten().any(|k| *k == 0).then_some(keep))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_token_is_real_and_no_padding() {
        let ids = Tensor::new(&[[7_u32, 8, 9, 0], [0, 7, 8, 9], [0, 0, 0, 0], [7, 8, 9, 9]], &Device::Cpu).unwrap();
        let keep = Tensor::new(&[[1_u8, 1, 1, 1], [0, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]], &Device::Cpu).unwrap();
        let all = Batch::new(ids);
        assert_eq!(all.last(None).unwrap(), [3, 3, 3, 3]);
        assert_eq!(all.last(Some(0)).unwrap(), [2, 3, 3, 3]);
        let masked = Batch { keep: Some(keep), ..all };
        assert_eq!(masked.last(None).unwrap(), [3, 3, 1, 1]);
        assert_eq!(masked.last(Some(0)).unwrap(), [2, 3, 1, 1]);
    }
}
