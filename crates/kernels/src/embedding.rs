//! Rows of a table: yᵢ = table[idᵢ]; ∂table[id] = Σ ∂yᵢ over idᵢ = id. The gradient touches the rows that were looked up alone, where it
//! is added to one that is there already: that of a tied output projection, or of the batch before.

use crate::error::KernelError;
use crate::real::Real;
use crate::rows::{Fresh, Held, by_type, fill, per_task, piece_of, slice, tensor};
use crate::{autograd, check};
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType};

const OP: &str = "embedding";

/// table [v, d], ids u32 of any shape, each below v → [.., d].
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    check::float(OP, "table", table)?;
    let (_, width) = table.dims2()?;
    if ids.dtype() != DType::U32 {
        return Err(KernelError::DType { op: OP, what: "ids", found: ids.dtype(), expected: "u32" }.into());
    }
    check::same_device(OP, "ids", ids, table)?;
    if table.device().is_cpu() && matches!(table.dtype(), DType::F32 | DType::F64) && table.elem_count() > 0 {
        return table.contiguous()?.apply_op2(&ids.contiguous()?, Embedding);
    }
    let mut dims = ids.dims().to_vec();
    dims.push(width);
    table.index_select(&ids.flatten_all()?, 0)?.reshape(dims)
}

struct Embedding;

impl Embedding {
    fn gradient<T: Real>(table: &Tensor, ids: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (rows, width) = table.dims2()?;
        let before = autograd::collects(table).then(|| autograd::take(table)).flatten();
        let before = before.map(|sum| autograd::into_vec::<T>(&sum)).transpose()?.flatten();
        let mut sum = before.unwrap_or_else(|| vec![T::ZERO; rows * width]);
        let (ids, dys) = (Held::new(OP, ids), Held::new(OP, dy));
        for (&id, dy) in ids.slice::<u32>()?.iter().zip(dys.slice::<T>()?.chunks_exact(width)) {
            let from = id as usize * width;
            for (sum, &dy) in sum.iter_mut().skip(from).take(width).zip(dy) {
                *sum += dy;
            }
        }
        tensor(sum, table)
    }
}

impl CustomOp2 for Embedding {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout, ids: &CpuStorage, ids_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let ids = slice::<u32>(OP, ids, ids_layout)?;
        if let Some(bad) = ids.iter().find(|&&id| id as usize >= rows) {
            let expected = format!("a row of the table, below {rows}");
            return Err(KernelError::Value { op: OP, what: "an id", found: bad.to_string(), expected }.into());
        }
        let mut dims = ids_layout.dims().to_vec();
        dims.push(width);
        by_type!(OP, table, T => {
            let table = slice::<T>(OP, table, layout)?;
            let rows = per_task(width);
            let y = fill(ids.len() * width, rows * width, |i, y: &mut Fresh<'_, T>| {
                for &id in piece_of(ids, i, rows, rows) {
                    y.write(piece_of(table, id as usize, width, width).iter().copied());
                }
            });
            Ok((T::to_cpu_storage_owned(y), Shape::from(dims)))
        })
    }

    fn bwd(&self, table: &Tensor, ids: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        if !table.track_op() {
            return Ok((None, None));
        }
        let dy = dy.contiguous()?;
        let gradient = match dy.dtype() {
            DType::F64 => Self::gradient::<f64>(table, ids, &dy)?,
            _ => Self::gradient::<f32>(table, ids, &dy)?,
        };
        Ok((autograd::keep(table, Some(gradient))?, None))
    }
}
