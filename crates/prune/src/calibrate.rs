//! Streaming statistics of activations: what layer-wise criteria read while calibration data passes. Memory does not grow with the data;
//! padding never counts; sums are in f64.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor};
use prunectl_kernels::gram::add_column_products;
use prunectl_model::{Batch, ModelError, Point, Tap};
use rayon::prelude::*;

/// 1 on real tokens, `[b, s, 1]` f64; None where all are real.
pub(crate) fn real_tokens(batch: &Batch) -> candle_core::Result<Option<Tensor>> {
    batch.keep.as_ref().map(|k| k.to_dtype(DType::F64)?.unsqueeze(2)).transpose()
}

/// What is summed over the rows of a matrix's input.
pub(crate) trait Statistic: Sync {
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
        let values = host(x)?;
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

/// The elements of a tensor on the host, in f64, row by row.
pub(crate) fn host(x: &Tensor) -> candle_core::Result<Vec<f64>> {
    let x = x.flatten_all()?;
    if x.dtype() == DType::F64 {
        return x.to_vec1::<f64>();
    }
    let values = x.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    Ok(values.into_par_iter().with_min_len(VALUES_PER_TASK).map(f64::from).collect())
}

/// Values that are worth a task of their own.
pub(crate) const VALUES_PER_TASK: usize = 16 * 1024;

/// XᵀX in f64 on the host: its upper triangle, in strips of rows that each begin at the diagonal.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gram {
    columns: usize,
    strips: Vec<Vec<f64>>,
}

/// Rows of a strip.
const STRIP: usize = 192;

impl Gram {
    /// `[columns, columns]`; None before any row.
    pub fn whole(&self) -> candle_core::Result<Option<Tensor>> {
        let n = self.columns;
        self.times(1.0).map(|whole| Tensor::from_vec(whole, (n, n), &Device::Cpu)).transpose()
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Each row from the diagonal on.
    fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.strips.iter().zip((0..self.columns).step_by(STRIP)).flat_map(|(strip, top)| {
            let width = self.columns - top;
            strip.chunks(width).enumerate().filter_map(|(i, row)| row.get(i..))
        })
    }

    /// The diagonal.
    pub fn diagonal(&self) -> Vec<f64> {
        self.rows().filter_map(|row| row.first().copied()).collect()
    }

    /// All of it times a factor, row by row; None before any row.
    pub fn times(&self, factor: f64) -> Option<Vec<f64>> {
        let n = self.columns;
        if self.strips.is_empty() {
            return None;
        }
        let mut whole = vec![0.0; n * n];
        for (top, row) in self.rows().enumerate() {
            for (column, value) in (top..).zip(row) {
                for at in [top * n + column, column * n + top] {
                    if let Some(x) = whole.get_mut(at) {
                        *x = value * factor;
                    }
                }
            }
        }
        Some(whole)
    }
}

impl Statistic for Gram {
    fn new(_: usize) -> Self {
        Self::default()
    }

    fn add(&mut self, x: &Tensor, _: Rows<'_>) -> candle_core::Result<()> {
        let columns = x.dim(1)?;
        if self.strips.is_empty() {
            self.columns = columns;
            self.strips = (0..columns).step_by(STRIP).map(|top| vec![0.0; STRIP.min(columns - top) * (columns - top)]).collect();
        }
        if x.device().is_cpu() {
            let x = host(x)?;
            return self.strips.par_iter_mut().enumerate().try_for_each(|(i, sum)| {
                let top = i * STRIP;
                add_column_products(sum, &x, columns, top..(top + STRIP).min(columns), top..columns)
            });
        }
        let x = x.to_dtype(DType::F64)?;
        let transposed = x.t()?.contiguous()?;
        for (sum, top) in self.strips.iter_mut().zip((0..columns).step_by(STRIP)) {
            let product = transposed.narrow(0, top, STRIP.min(columns - top))?.matmul(&x.narrow(1, top, columns - top)?.contiguous()?)?;
            sum.iter_mut().zip(product.flatten_all()?.to_vec1::<f64>()?).for_each(|(sum, product)| *sum += product);
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
