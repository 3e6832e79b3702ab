//! Losses per example, so that means over tokens or examples come out the same whatever the batch.

use candle_core::Tensor;

use crate::error::Result;

/// The loss of a batch.
#[derive(Debug, Clone)]
pub struct LossOut {
    /// `[batch]`, in the graph: the sum over each example's scored tokens (or the example's one loss).
    pub per_example_sum: Tensor,
    /// Scored tokens of each example (1 for a class or a value).
    pub per_example_count: Vec<usize>,
}

impl LossOut {
    /// Scored tokens (or examples) of the batch.
    pub fn count(&self) -> usize {
        self.per_example_count.iter().sum()
    }

    /// Sum over all scored tokens: a scalar in the graph.
    pub fn sum(&self) -> Result<Tensor> {
        Ok(self.per_example_sum.sum_all()?)
    }

    /// Mean over all scored tokens: a scalar in the graph; 0 where nothing is scored.
    pub fn mean(&self) -> Result<Tensor> {
        Ok((self.sum()? / self.count().max(1) as f64)?)
    }

    /// `[batch]`, in the graph: the mean of each example.
    pub fn per_example_mean(&self) -> Result<Tensor> {
        let t = &self.per_example_sum;
        let inverse: Vec<f64> = self.per_example_count.iter().map(|n| 1.0 / (*n).max(1) as f64).collect();
        Ok((t * Tensor::new(inverse, t.device())?.to_dtype(t.dtype())?)?)
    }
}
