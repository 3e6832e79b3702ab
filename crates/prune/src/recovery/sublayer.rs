//! What a sublayer reads last and what it leaves in the residual stream.

use candle_core::{DType, Tensor};
use prunectl_model::{Layout, ModelError, Point, Tap};

/// A sublayer whose writer can be fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Part {
    /// Attention, written by `o`.
    Attention,
    /// A dense MLP, written by `down`.
    Mlp,
}

impl Part {
    /// The stem of the matrix that writes to the residual stream.
    pub fn writer(self, layer: usize) -> String {
        match self {
            Self::Attention => format!("layers.{layer}.attention.o"),
            Self::Mlp => format!("layers.{layer}.mlp.down"),
        }
    }
}

/// What one block did with one batch: filled while the block runs. Tensors are `[batch, seq, …]`, in the graph where the block is.
#[derive(Debug, Default)]
pub(super) struct Seen {
    input: Option<Tensor>,
    context: Option<Tensor>,
    attention: Option<Tensor>,
    mlp_input: Option<Tensor>,
    intermediate: Option<Tensor>,
    mlp: Option<Tensor>,
    output: Option<Tensor>,
}

impl Seen {
    /// The input of a sublayer's writer, `[tokens, width]` f64.
    pub fn writer_input(&self, part: Part) -> candle_core::Result<Option<Tensor>> {
        let seen = match part {
            Part::Attention => &self.context,
            Part::Mlp => &self.intermediate,
        };
        seen.as_ref().map(|x| x.detach().to_dtype(DType::F64)?.flatten_from(2)?.flatten_to(1)).transpose()
    }

    /// The residual stream behind a sublayer, before a norm that follows it, `[batch, seq, hidden]`. Where a norm stands between the writer
    /// and the stream (sandwich), what the writer gave.
    pub fn stream(&self, part: Part, layout: Layout) -> candle_core::Result<Option<Tensor>> {
        let sum = |a: &Option<Tensor>, b: &Option<Tensor>| match (a, b) {
            (Some(a), Some(b)) => (a + b).map(Some),
            _ => Ok(None),
        };
        match (layout, part) {
            (Layout::Sandwich, Part::Attention) => Ok(self.attention.clone()),
            (Layout::Sandwich, Part::Mlp) => Ok(self.mlp.clone()),
            (_, Part::Attention) => sum(&self.input, &self.attention),
            (Layout::Post, Part::Mlp) => sum(&self.mlp_input, &self.mlp),
            (_, Part::Mlp) => Ok(self.output.clone()),
        }
    }
}

impl Tap for Seen {
    fn wants(&self, _: usize, point: Point) -> bool {
        matches!(
            point,
            Point::BlockInput
                | Point::HeadContext
                | Point::AttentionOutput
                | Point::MlpInput
                | Point::Intermediate
                | Point::MlpOutput
                | Point::BlockOutput
        )
    }

    fn see(&mut self, _: usize, point: Point, x: &Tensor) -> Result<(), ModelError> {
        let place = match point {
            Point::BlockInput => &mut self.input,
            Point::HeadContext => &mut self.context,
            Point::AttentionOutput => &mut self.attention,
            Point::MlpInput => &mut self.mlp_input,
            Point::Intermediate => &mut self.intermediate,
            Point::MlpOutput => &mut self.mlp,
            Point::BlockOutput => &mut self.output,
            _ => return Ok(()),
        };
        *place = Some(x.clone());
        Ok(())
    }
}
