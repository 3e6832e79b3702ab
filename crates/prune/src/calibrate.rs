//! Streaming statistics of activations: what layer-wise criteria read while calibration data passes. Memory does not grow with the data;
//! padding never counts; sums are in f64.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use prunectl_model::{Batch, ModelError, Point, Tap};

/// 1 on real tokens, `[b, s, 1]` f64; None where all are real.
pub(crate) fn real_tokens(batch: &Batch) -> candle_core::Result<Option<Tensor>> {
    batch.keep.as_ref().map(|k| k.to_dtype(DType::F64)?.unsqueeze(2)).transpose()
}

/// Σ x² of each input column of each weight matrix, by slot.
#[derive(Default)]
pub(crate) struct InputSquares {
    /// By slot, `[in]`.
    pub sums: BTreeMap<String, Vec<f64>>,
    /// Sequences seen.
    pub sequences: usize,
    /// Only this layer is looked at.
    pub layer: Option<usize>,
    gated: bool,
    keep: Option<Tensor>,
    /// The MLP's input, `[b·s, hidden]`, padding zeroed, while experts run.
    mlp_input: Option<Tensor>,
    /// Rows of the expert that runs.
    rows: Option<Tensor>,
}

impl InputSquares {
    pub fn new(gated: bool, layer: Option<usize>) -> Self {
        Self { gated, layer, ..Self::default() }
    }

    /// Before each batch.
    pub fn begin(&mut self, batch: &Batch) -> candle_core::Result<()> {
        self.sequences += batch.size().map_or(0, |(b, _)| b);
        self.keep = real_tokens(batch)?;
        Ok(())
    }

    fn add(&mut self, slots: &[String], x: &Tensor) -> candle_core::Result<()> {
        let squares = x.sqr()?.sum(0)?.to_vec1::<f64>()?;
        for slot in slots {
            let sums = self.sums.entry(slot.clone()).or_insert_with(|| vec![0.0; squares.len()]);
            for (sum, square) in sums.iter_mut().zip(&squares) {
                *sum += square;
            }
        }
        Ok(())
    }

    /// `[b, s, …]` to `[b·s, width]` in f64, padding zeroed.
    fn flat(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = x.to_dtype(DType::F64)?.flatten_from(2)?;
        let x = match &self.keep {
            Some(keep) => x.broadcast_mul(keep)?,
            None => x,
        };
        x.flatten_to(1)
    }

    fn up_slots(&self, stem: &str) -> Vec<String> {
        let names: &[&str] = if self.gated { &["gate", "up"] } else { &["up"] };
        names.iter().map(|n| format!("{stem}.{n}.weight")).collect()
    }

    fn record(&mut self, layer: usize, point: Point, x: &Tensor) -> candle_core::Result<()> {
        let p = format!("layers.{layer}");
        match point {
            Point::AttentionInput => {
                let x = self.flat(x)?;
                self.add(&["q", "k", "v"].map(|n| format!("{p}.attention.{n}.weight")), &x)
            }
            Point::HeadContext => {
                let x = self.flat(x)?;
                self.add(&[format!("{p}.attention.o.weight")], &x)
            }
            Point::MlpInput => {
                let x = self.flat(x)?;
                self.mlp_input = Some(x.clone());
                self.add(&self.up_slots(&format!("{p}.mlp")), &x)
            }
            Point::Intermediate => {
                let x = self.flat(x)?;
                self.add(&[format!("{p}.mlp.down.weight")], &x)
            }
            Point::ExpertRows(e) => {
                if let Some(input) = self.mlp_input.clone() {
                    let own = input.index_select(x, 0)?;
                    self.add(&self.up_slots(&format!("{p}.mlp.experts.{e}")), &own)?;
                }
                self.rows = Some(x.clone());
                Ok(())
            }
            Point::ExpertIntermediate(e) => {
                let mut own = x.to_dtype(DType::F64)?;
                if let (Some(keep), Some(rows)) = (&self.keep, &self.rows) {
                    own = own.broadcast_mul(&keep.flatten_to(1)?.index_select(rows, 0)?)?;
                }
                self.add(&[format!("{p}.mlp.experts.{e}.down.weight")], &own)
            }
            _ => Ok(()),
        }
    }
}

impl Tap for InputSquares {
    fn wants(&self, layer: usize, point: Point) -> bool {
        self.layer.is_none_or(|l| l == layer)
            && matches!(
                point,
                Point::AttentionInput
                    | Point::HeadContext
                    | Point::MlpInput
                    | Point::Intermediate
                    | Point::ExpertRows(_)
                    | Point::ExpertIntermediate(_)
            )
    }

    fn see(&mut self, layer: usize, point: Point, x: &Tensor) -> Result<(), ModelError> {
        Ok(self.record(layer, point, &x.detach())?)
    }
}
