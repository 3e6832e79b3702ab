//! The mechanisms of the network. No family is named here: a `Blueprint` says which mechanisms a model has.

pub(crate) mod attention;
pub(crate) mod block;
pub(crate) mod cache;
pub(crate) mod embeddings;
pub(crate) mod heads;
pub(crate) mod mlp;
pub(crate) mod norm;
pub(crate) mod position;

use std::sync::Mutex;

use candle_core::{DType, Tensor};
use prunectl_kernels as kernels;

pub use cache::Cache;

use crate::blueprint::Activation;
use crate::error::{ModelError, Result};
use crate::params::Params;

/// What all blocks of one forward pass share: built once per batch.
#[derive(Debug, Clone)]
pub struct Context {
    pub(crate) batch: usize,
    pub(crate) seq: usize,
    /// u8 `[batch, seq]`; None where every token is real.
    pub(crate) keep: Option<Tensor>,
    /// Index of the last real token of each row, or of the one before that speaks for it.
    pub(crate) last: Vec<u32>,
    /// Whether these are the last real tokens: no real one stands behind them.
    pub(crate) ends: bool,
    /// cos and sin `[1, seq, dim / 2]` of each rotary table.
    pub(crate) rotary: Vec<(Tensor, Tensor)>,
    /// `[hidden]`: multiplies what is written to the residual stream.
    pub(crate) hidden_gate: Option<Tensor>,
}

impl Context {
    /// `(batch, seq)`.
    pub fn size(&self) -> (usize, usize) {
        (self.batch, self.seq)
    }

    /// u8 `[batch, seq]`, 1 on real tokens; None where every token is real.
    pub fn keep(&self) -> Option<&Tensor> {
        self.keep.as_ref()
    }

    /// The same context with gates on the channels of the residual stream.
    pub fn with_hidden_gate(mut self, gate: Option<Tensor>) -> Self {
        self.hidden_gate = gate;
        self
    }

    /// The context of a batch of `n` copies of the examples, one after the other.
    pub fn repeated(&self, n: usize) -> Result<Self> {
        let keep = self.keep.as_ref().map(|keep| Tensor::cat(&vec![keep; n], 0)).transpose()?;
        Ok(Self { batch: self.batch * n, keep, last: self.last.repeat(n), ..self.clone() })
    }

    pub(crate) fn gate_hidden(&self, x: Tensor) -> Result<Tensor> {
        match &self.hidden_gate {
            None => Ok(x),
            Some(gate) => Ok(x.broadcast_mul(gate)?),
        }
    }
}

/// What a block need not compute.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shortcuts<'a> {
    pub(crate) attention: Option<&'a Tensor>,
    pub(crate) mlp: Option<&'a Tensor>,
    /// Only these states are wanted.
    pub(crate) one: Option<&'a One>,
    /// Keys and values of the tokens before these; theirs are added.
    pub(crate) cache: Option<&'a Mutex<Cache>>,
}

impl<'a> Shortcuts<'a> {
    /// Tensors `[batch, seq, hidden]` that stand for the output of the attention sublayer's output projection, and for that of the MLP.
    pub fn new(attention: Option<&'a Tensor>, mlp: Option<&'a Tensor>) -> Self {
        Self { attention, mlp, ..Self::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.attention.is_none() && self.mlp.is_none() && self.one.is_none()
    }
}

/// One state of each example: all that a head of classes reads of the last block.
#[derive(Debug, Clone)]
pub(crate) struct One {
    /// u32 `[batch]`: its place in the sequence, and in all states one after the other.
    at: Tensor,
    rows: Tensor,
    /// The context of the states picked: a batch of sequences of one token.
    pub(crate) context: Context,
}

impl One {
    pub(crate) fn new(context: &Context, at: Vec<u32>, device: &candle_core::Device) -> Result<Self> {
        let rows: Vec<u32> = at.iter().zip(0u32..).map(|(at, row)| row * context.seq as u32 + at).collect();
        let (at, rows) = (Tensor::new(at, device)?, Tensor::new(rows, device)?);
        let context = Context { seq: 1, keep: None, last: vec![0; context.batch], ..context.clone() };
        Ok(Self { at, rows, context })
    }

    /// `[batch, seq, width]` to `[batch, 1, width]`.
    pub(crate) fn pick(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.flatten_to(1)?.index_select(&self.rows, 0)?.unsqueeze(1)?)
    }

    /// Their rows of a rotary table, `[1, seq, pairs]` to `[batch, 1, pairs]`.
    pub(crate) fn positions(&self, table: &Tensor) -> Result<Tensor> {
        Ok(table.squeeze(0)?.index_select(&self.at, 0)?.unsqueeze(1)?)
    }
}

/// y = xWᵀ + b with the parameters of that stem; the bias where there is one, with the adapter where there is one.
pub(crate) fn linear(params: &Params, stem: &str, x: &Tensor) -> Result<Tensor> {
    crate::adapter::linear(params, stem, x)
}

impl Activation {
    /// Element by element.
    pub(crate) fn apply(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self.kernel() {
            Some(kernel) => kernel.apply(x)?,
            None => x.tanh()?,
        })
    }

    /// The kernel's name of it, if it has one.
    pub(crate) fn kernel(self) -> Option<kernels::Activation> {
        Some(match self {
            Self::GeluErf => kernels::Activation::GeluErf,
            Self::GeluTanh => kernels::Activation::GeluTanh,
            Self::QuickGelu => kernels::Activation::QuickGelu,
            Self::Silu => kernels::Activation::Silu,
            Self::Relu => kernels::Activation::Relu,
            Self::Tanh => return None,
        })
    }

    /// act(gate)·up.
    pub(crate) fn gated(self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        Ok(match self.kernel() {
            Some(kernel) => kernels::gated(kernel, gate, up)?,
            None => gate.tanh()?.mul(up)?,
        })
    }
}

/// z ← cap·tanh(z / cap).
pub(crate) fn softcap(x: Tensor, cap: Option<f64>) -> Result<Tensor> {
    match cap {
        None => Ok(x),
        Some(cap) => Ok(((x / cap)?.tanh()? * cap)?),
    }
}

/// A gate, shared (`inner`) or one for each example (`[batch, inner…]`), as `[1 or batch, 1…, inner…]` of the rank of what it multiplies.
pub(crate) fn spread_gate(what: &str, gate: &Tensor, batch: usize, inner: &[usize], rank: usize, dtype: DType) -> Result<Tensor> {
    let found = gate.dims();
    let lead = if found == inner {
        1
    } else if found.first() == Some(&batch) && found.get(1..) == Some(inner) {
        batch
    } else {
        return Err(ModelError::Mismatch {
            what: format!("shape of the gates on {what}"),
            found: format!("{found:?}"),
            expected: format!("{inner:?}, or that with the batch size {batch} in front"),
        });
    };
    let mut shape = vec![1; rank];
    let inner_start = rank - inner.len();
    if let Some(first) = shape.first_mut() {
        *first = lead;
    }
    for (slot, n) in shape.iter_mut().skip(inner_start).zip(inner) {
        *slot = *n;
    }
    Ok(gate.to_dtype(dtype)?.reshape(shape)?)
}

/// A gate on a whole sublayer, `[1]` or `[batch]`, as `[1 or batch, 1, 1]`.
pub(crate) fn spread_scalar_gate(what: &str, gate: &Tensor, batch: usize, dtype: DType) -> Result<Tensor> {
    let n = gate.elem_count();
    if gate.rank() > 1 || (n != 1 && n != batch) {
        return Err(ModelError::Mismatch {
            what: format!("shape of the gate on {what}"),
            found: format!("{:?}", gate.dims()),
            expected: format!("[1] or [{batch}]"),
        });
    }
    Ok(gate.to_dtype(dtype)?.reshape((n, 1, 1))?)
}
