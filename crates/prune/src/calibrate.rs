//! Streaming statistics of activations: what layer-wise criteria read while calibration data passes. Memory does not grow with the data;
//! padding never counts; sums are in f64.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor};
use prunectl_model::{Batch, ModelError, Point, Tap};
use rayon::prelude::*;

/// 1 on real tokens, `[b, s, 1]` f64; None where all are real.
pub(crate) fn real_tokens(batch: &Batch) -> candle_core::Result<Option<Tensor>> {
    batch.keep.as_ref().map(|k| k.to_dtype(DType::F64)?.unsqueeze(2)).transpose()
}

/// What is summed over the rows of a matrix's input.
pub(crate) trait Statistic {
    /// Of an input of so many columns, before any row.
    fn new(columns: usize) -> Self;
    /// Adds the rows of `[rows, columns]`; padding is rows of zeros.
    fn add(&mut self, x: &Tensor, rows: Rows<'_>) -> candle_core::Result<()>;
}

/// What the rows of an input are.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// 1 where a row counts; None: all count.
    pub real: Option<&'a [u8]>,
    /// Rows of a sequence, those after one another; None where rows were picked out.
    pub sequence: Option<usize>,
}

impl Rows<'_> {
    fn counts(&self, row: usize) -> bool {
        self.real.is_none_or(|r| r.get(row).is_some_and(|k| *k != 0))
    }
}

/// Means and variances of each column, by Chan's pairwise form of Welford's method.
#[derive(Debug, Clone, Default)]
pub(crate) struct Moments {
    /// Rows that count.
    pub rows: f64,
    /// Of all rows.
    pub mean: Vec<f64>,
    /// Σ (x − mean)².
    pub squares: Vec<f64>,
    /// Sequences with a row that counts.
    pub sequences: f64,
    /// Mean over sequences of their means.
    pub sequence_mean: Vec<f64>,
    /// The published FLAP code's running fluctuation: its first sequence counts nothing, a sequence adds a sum, not a mean, around the
    /// mean that it has itself moved.
    pub published: Vec<f64>,
}

impl Statistic for Moments {
    fn new(columns: usize) -> Self {
        let zeros = || vec![0.0; columns];
        Self { rows: 0.0, mean: zeros(), squares: zeros(), sequences: 0.0, sequence_mean: zeros(), published: zeros() }
    }

    fn add(&mut self, x: &Tensor, rows: Rows<'_>) -> candle_core::Result<()> {
        let (n, columns) = x.dims2()?;
        let values = x.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        let length = rows.sequence.unwrap_or(n).max(1);
        for (sequence, values) in values.chunks((length * columns).max(1)).enumerate() {
            let own = || values.chunks(columns.max(1)).enumerate().filter(|(t, _)| rows.counts(sequence * length + t)).map(|(_, row)| row);
            let n = own().count() as f64;
            if n == 0.0 {
                continue;
            }
            let mut mean = vec![0.0; columns];
            own().for_each(|row| mean.iter_mut().zip(row).for_each(|(m, x)| *m += x / n));
            let around = |centre: &[f64]| {
                let mut sums = vec![0.0; columns];
                own().for_each(|row| sums.iter_mut().zip(row.iter().zip(centre)).for_each(|(s, (x, c))| *s += (x - c) * (x - c)));
                sums
            };
            let squares = around(&mean);
            let (before, all) = (self.rows, self.rows + n);
            for ((total, m2), (m, s)) in self.mean.iter_mut().zip(&mut self.squares).zip(mean.iter().zip(&squares)) {
                let apart = m - *total;
                *m2 += s + apart * apart * before * n / all;
                *total += apart * n / all;
            }
            self.rows = all;
            let k = self.sequences;
            self.sequence_mean.iter_mut().zip(&mean).for_each(|(total, m)| *total = (*total * k + m) / (k + 1.0));
            if k > 0.0 {
                for (f, s) in self.published.iter_mut().zip(around(&self.sequence_mean)) {
                    *f = *f * (k - 1.0) / k + s / (k + 1.0);
                }
            }
            self.sequences = k + 1.0;
        }
        Ok(())
    }
}

/// Σ x² of each column.
#[derive(Debug, Clone, Default)]
pub(crate) struct Squares(pub Vec<f64>);

impl Statistic for Squares {
    fn new(columns: usize) -> Self {
        Self(vec![0.0; columns])
    }

    fn add(&mut self, x: &Tensor, _: Rows<'_>) -> candle_core::Result<()> {
        let columns = self.0.len();
        if x.dtype() == DType::F64 {
            self.add_rows(x.flatten_all()?.to_vec1::<f64>()?.chunks(columns.max(1)));
            return Ok(());
        }
        let values = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let parts = values.par_chunks((ROWS_PER_PART * columns).max(1)).map(|rows| {
            let mut part = Self::new(columns);
            part.add_rows(rows.chunks(columns.max(1)));
            part.0
        });
        for part in parts.collect::<Vec<_>>() {
            self.0.iter_mut().zip(part).for_each(|(sum, square)| *sum += square);
        }
        Ok(())
    }
}

/// Rows that are summed up before they join the others.
const ROWS_PER_PART: usize = 64;

impl Squares {
    fn add_rows<'a, T: Copy + Into<f64> + 'a>(&mut self, rows: impl Iterator<Item = &'a [T]>) {
        for row in rows {
            for (sum, x) in self.0.iter_mut().zip(row) {
                let x: f64 = (*x).into();
                *sum += x * x;
            }
        }
    }
}

/// XᵀX in f64: its upper triangle, in strips of rows that each begin at the diagonal.
#[derive(Debug, Clone)]
pub(crate) struct Gram(Vec<Tensor>);

/// Rows of a strip.
const STRIP: usize = 192;

impl Gram {
    /// `[columns, columns]`; None before any row.
    pub fn whole(&self) -> candle_core::Result<Option<Tensor>> {
        let (Some(first), Some(whole)) = (self.0.first(), self.times(1.0)?) else { return Ok(None) };
        let n = first.dim(1)?;
        Tensor::from_vec(whole, (n, n), first.device()).map(Some)
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.0.first().and_then(|strip| strip.dims().get(1).copied()).unwrap_or(0)
    }

    /// The diagonal.
    pub fn diagonal(&self) -> candle_core::Result<Vec<f64>> {
        let mut out = Vec::with_capacity(self.columns());
        for strip in &self.0 {
            let rows = strip.to_vec2::<f64>()?;
            out.extend(rows.iter().enumerate().filter_map(|(i, row)| row.get(i)));
        }
        Ok(out)
    }

    /// All of it times a factor, row by row; None before any row.
    pub fn times(&self, factor: f64) -> candle_core::Result<Option<Vec<f64>>> {
        let n = self.columns();
        if self.0.is_empty() {
            return Ok(None);
        }
        let mut whole = vec![0.0; n * n];
        for (strip, top) in self.0.iter().zip((0..n).step_by(STRIP)) {
            for (row, values) in (top..).zip(strip.to_vec2::<f64>()?) {
                for (column, value) in (top..).zip(values) {
                    for at in [row * n + column, column * n + row] {
                        if let Some(x) = whole.get_mut(at) {
                            *x = value * factor;
                        }
                    }
                }
            }
        }
        Ok(Some(whole))
    }
}

impl Statistic for Gram {
    fn new(_: usize) -> Self {
        Self(Vec::new())
    }

    fn add(&mut self, x: &Tensor, _: Rows<'_>) -> candle_core::Result<()> {
        let x = x.to_dtype(DType::F64)?;
        let (columns, transposed) = (x.dim(1)?, x.t()?.contiguous()?);
        for (i, top) in (0..columns).step_by(STRIP).enumerate() {
            let product = transposed.narrow(0, top, STRIP.min(columns - top))?.matmul(&x.narrow(1, top, columns - top)?.contiguous()?)?;
            match self.0.get_mut(i) {
                Some(sum) => *sum = (&*sum + product)?,
                None => self.0.push(product),
            }
        }
        Ok(())
    }
}

/// Statistics of the inputs of each weight matrix, filled while batches pass.
pub(crate) struct Inputs<S> {
    /// By slot; matrices that read the same input share the first one's.
    sums: BTreeMap<String, S>,
    /// Slots that share, and whose.
    same: BTreeMap<String, String>,
    /// Sequences seen.
    pub sequences: usize,
    /// Only this layer is looked at.
    layer: Option<usize>,
    /// Only these inputs are looked at; None: all.
    only: Option<BTreeSet<String>>,
    /// Nobody reads what the block gives.
    ends: bool,
    gated: bool,
    keep: Option<Tensor>,
    real: Option<Vec<u8>>,
    length: Option<usize>,
    /// The MLP's input, `[b·s, hidden]`, padding zeroed, while experts run.
    mlp_input: Option<Tensor>,
    /// Rows of the expert that runs.
    rows: Option<Tensor>,
}

/// Whether a matrix is one expert's: it may be that no token of the data reaches it.
pub(crate) fn of_expert(slot: &str) -> bool {
    slot.contains(".experts.")
}

/// Σ x² of each input column of each weight matrix.
pub(crate) type InputSquares = Inputs<Squares>;

impl<S: Statistic> Inputs<S> {
    pub fn new(gated: bool, layer: Option<usize>) -> Self {
        Self {
            sums: BTreeMap::new(),
            same: BTreeMap::new(),
            sequences: 0,
            layer,
            only: None,
            ends: false,
            gated,
            keep: None,
            real: None,
            length: None,
            mlp_input: None,
            rows: None,
        }
    }

    /// Looks at the inputs of these matrices only.
    pub fn only(self, slots: &BTreeSet<String>) -> Self {
        Self { only: Some(slots.clone()), ..self }
    }

    /// For passes through one block whose output nobody reads: it is not computed further than to the last input.
    pub fn inputs_only(self) -> Self {
        Self { ends: true, ..self }
    }

    /// Before each batch.
    pub fn begin(&mut self, batch: &Batch) -> candle_core::Result<()> {
        self.sequences += batch.size().map_or(0, |(b, _)| b);
        self.length = batch.size().ok().map(|(_, s)| s);
        self.keep = real_tokens(batch)?;
        self.real = batch.keep.as_ref().map(|k| k.flatten_all()?.to_vec1()).transpose()?;
        Ok(())
    }

    /// The matrix whose entry holds the statistic of this one's input: matrices that read the same input share one.
    pub fn source<'a>(&'a self, slot: &'a str) -> &'a str {
        self.same.get(slot).map_or(slot, String::as_str)
    }

    /// The statistic of a matrix's input, if the data reached it.
    pub fn get(&self, slot: &str) -> Option<&S> {
        self.sums.get(self.source(slot))
    }

    fn add(&mut self, slots: &[String], x: &Tensor, rows: Rows<'_>) -> candle_core::Result<()> {
        if self.only.as_ref().is_some_and(|only| !slots.iter().any(|s| only.contains(s))) {
            return Ok(());
        }
        let Some((first, others)) = slots.split_first() else { return Ok(()) };
        for other in others {
            self.same.entry(other.clone()).or_insert_with(|| first.clone());
        }
        if !self.sums.contains_key(first) {
            self.sums.insert(first.clone(), S::new(x.dim(1)?));
        }
        match self.sums.get_mut(first) {
            Some(sum) => sum.add(x, rows),
            None => Ok(()),
        }
    }

    /// `[b, s, …]` to `[b·s, width]`, padding zeroed.
    fn flat(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = x.flatten_from(2)?;
        let x = match &self.keep {
            Some(keep) => x.broadcast_mul(&keep.to_dtype(x.dtype())?)?,
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
        let real = self.real.clone();
        let all = Rows { real: real.as_deref(), sequence: self.length };
        match point {
            Point::AttentionInput => {
                let x = self.flat(x)?;
                self.add(&["q", "k", "v"].map(|n| format!("{p}.attention.{n}.weight")), &x, all)
            }
            Point::HeadContext => {
                let x = self.flat(x)?;
                self.add(&[format!("{p}.attention.o.weight")], &x, all)
            }
            Point::MlpInput => {
                let x = self.flat(x)?;
                self.mlp_input = Some(x.clone());
                self.add(&self.up_slots(&format!("{p}.mlp")), &x, all)
            }
            Point::Intermediate => {
                let x = self.flat(x)?;
                self.add(&[format!("{p}.mlp.down.weight")], &x, all)
            }
            Point::ExpertRows(e) => {
                if let Some(input) = self.mlp_input.clone() {
                    let own = input.index_select(x, 0)?;
                    let real = chosen(real.as_deref(), x)?;
                    self.add(&self.up_slots(&format!("{p}.mlp.experts.{e}")), &own, Rows { real: real.as_deref(), sequence: None })?;
                }
                self.rows = Some(x.clone());
                Ok(())
            }
            Point::ExpertIntermediate(e) => {
                let mut own = x.clone();
                let real = match &self.rows {
                    Some(rows) => chosen(real.as_deref(), rows)?,
                    None => None,
                };
                if let (Some(keep), Some(rows)) = (&self.keep, &self.rows) {
                    own = own.broadcast_mul(&keep.to_dtype(own.dtype())?.flatten_to(1)?.index_select(rows, 0)?)?;
                }
                self.add(&[format!("{p}.mlp.experts.{e}.down.weight")], &own, Rows { real: real.as_deref(), sequence: None })
            }
            _ => Ok(()),
        }
    }
}

/// Which of the rows at `indices` count.
fn chosen(real: Option<&[u8]>, indices: &Tensor) -> candle_core::Result<Option<Vec<u8>>> {
    let Some(real) = real else { return Ok(None) };
    let indices = indices.to_dtype(DType::U32)?.to_vec1::<u32>()?;
    Ok(Some(indices.iter().map(|i| real.get(*i as usize).copied().unwrap_or(0)).collect()))
}

impl<S: Statistic> Tap for Inputs<S> {
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

    fn ends_at(&self, _: usize, point: Point) -> bool {
        self.ends && point == Point::Intermediate
    }

    fn see(&mut self, layer: usize, point: Point, x: &Tensor) -> Result<(), ModelError> {
        Ok(self.record(layer, point, &x.detach())?)
    }
}
