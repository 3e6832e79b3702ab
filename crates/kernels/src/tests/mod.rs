//! Every kernel against candle's own operations, finite differences, other thread counts, other devices and hostile input.

mod agreement;
mod cases;
mod devices;
mod edges;
mod passes;
mod threads;

use crate::autograd;
use candle_core::{DType, Device, Result, Tensor, Var};
use rand::{Rng, SeedableRng};

pub type Op = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>;

/// A kernel, the same thing in candle's operations, and the arguments it is tried with.
pub struct Case {
    pub name: String,
    pub shapes: Vec<Vec<usize>>,
    pub fused: Op,
    pub plain: Op,
}

/// Numbers from [-1.5, 1.5), the same for a seed on every machine.
pub fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let numbers: Vec<f64> = (0..shape.iter().product()).map(|_| rng.random_range(-1.5..1.5)).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

pub fn arguments(case: &Case, dtype: DType) -> Vec<Var> {
    let seeds = 1u64..;
    case.shapes.iter().zip(seeds).map(|(s, seed)| Var::from_tensor(&random(s, seed).to_dtype(dtype).unwrap()).unwrap()).collect()
}

pub fn tensors(vars: &[Var]) -> Vec<Tensor> {
    vars.iter().map(|v| v.as_tensor().clone()).collect()
}

/// The result, and the gradient of Σ result · (random weights) with respect to each argument.
pub fn value_and_gradients(op: &Op, vars: &[Var]) -> Result<(Tensor, Vec<Tensor>)> {
    let y = op(&tensors(vars))?;
    let weights = random(y.dims(), 99).to_dtype(y.dtype())?.to_device(y.device())?;
    let mut found = autograd::backward(&(&y * weights)?.sum_all()?)?;
    let gradients = vars.iter().map(|v| Ok(found.take(v)?.unwrap_or(v.zeros_like()?))).collect::<Result<_>>()?;
    Ok((y.detach(), gradients))
}

pub fn flat(x: &Tensor) -> Vec<f64> {
    x.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest |a − b| / (1 + |b|); shapes must be equal and NaN nowhere.
pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let far = |(a, b): (f64, f64)| if a == b { 0.0 } else { (a - b).abs() / (1.0 + b.abs()) };
    let distances: Vec<f64> = flat(a).into_iter().zip(flat(b)).map(far).collect();
    assert!(distances.iter().all(|d| !d.is_nan()), "NaN in a result");
    distances.into_iter().fold(0.0, f64::max)
}
