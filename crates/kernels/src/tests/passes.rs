//! Gradients that kernels hand over on their own.

use super::cases::{large, small};
use super::{arguments, flat, random, tensors, value_and_gradients};
use crate::{autograd, embedding, linear, rms_norm};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, Var};

/// Candle's own pass finds the same gradients, to the bit: nothing is taken out of it.
#[test]
fn outside_of_the_pass_candle_gets_every_gradient() {
    for case in small().into_iter().chain(large()) {
        let vars = arguments(&case, DType::F32);
        let (_, ours) = value_and_gradients(&case.fused, &vars).unwrap();
        let y = (case.fused)(&tensors(&vars)).unwrap();
        let weights = random(y.dims(), 99).to_dtype(y.dtype()).unwrap();
        let store = (&y * weights).unwrap().sum_all().unwrap().backward().unwrap();
        for (var, ours) in vars.iter().zip(&ours) {
            let theirs = store.get(var).cloned().unwrap_or(var.zeros_like().unwrap());
            // Adding to zero turns −0 into 0.
            assert!(flat(&theirs) == flat(ours), "{}", case.name);
        }
    }
}

fn var(shape: &[usize], seed: u64) -> Var {
    Var::from_tensor(&random(shape, seed)).unwrap()
}

/// A network that reads one table three times: by rows, as a factor, and by an operation of candle's own.
fn network(table: &Tensor, w: &Tensor) -> Result<Tensor> {
    let ids = Tensor::new(&[[1u32, 3, 1], [0, 4, 4]], &Device::Cpu)?;
    let x = rms_norm(&embedding(table, &ids)?, w, 1e-5, false)?;
    linear(&x, table, None)?.broadcast_add(&table.sqr()?.sum(1)?)
}

#[test]
fn all_uses_of_a_variable_add_up() {
    let (table, w) = (var(&[5, 4], 1), var(&[4], 2));
    let expected = network(&table, &w).unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let mut found = autograd::backward(&network(&table, &w).unwrap().sqr().unwrap().sum_all().unwrap()).unwrap();
    for variable in [&table, &w] {
        let error = super::distance(&found.take(variable).unwrap().unwrap(), expected.get(variable).unwrap());
        assert!(error < 1e-14, "{error:e}");
        assert!(found.take(variable).unwrap().is_none(), "a gradient is taken once");
    }
}

/// 3 y, a part of the graph that its argument stands for.
struct Part {
    y: Tensor,
    variables: Vec<Tensor>,
}

impl CustomOp1 for Part {
    fn name(&self) -> &'static str {
        "part"
    }

    fn cpu_fwd(&self, y: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((y.affine(layout, 3.0, 0.0)?, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        autograd::within(&self.y, &(dy * 3.0)?, self.variables.iter())?;
        Ok(None)
    }
}

#[test]
fn a_part_of_the_graph_joins_the_pass_around_it() {
    let (table, w) = (var(&[5, 4], 1), var(&[4], 2));
    let y = network(&table, &w).unwrap();
    let direct = ((&y * 3.0).unwrap().sqr().unwrap() + &y).unwrap().sum_all().unwrap();
    let mut expected = autograd::backward(&direct).unwrap();
    let part = || {
        let stand_in = Var::from_tensor(&y.detach()).unwrap();
        let part = Part { y: y.clone(), variables: tensors(&[table.clone(), w.clone()]) };
        (stand_in.apply_op1(part).unwrap().sqr().unwrap() + &y).unwrap().sum_all().unwrap()
    };
    let mut found = autograd::backward(&part()).unwrap();
    for variable in [&table, &w] {
        let error = super::distance(&found.take(variable).unwrap().unwrap(), &expected.take(variable).unwrap().unwrap());
        assert!(error < 1e-13, "{error:e}");
    }
    let outside = part().backward().unwrap_err().to_string();
    assert!(outside.contains("prunectl_kernels::autograd::backward"), "{outside}");
}

#[test]
fn an_id_beyond_the_table_is_told() {
    let error = embedding(&var(&[5, 4], 1), &Tensor::new(&[0u32, 5], &Device::Cpu).unwrap()).unwrap_err().to_string();
    assert!(error.contains("an id is 5") && error.contains("below 5"), "{error}");
}
