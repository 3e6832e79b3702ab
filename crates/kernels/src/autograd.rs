//! Backward passes that hand the gradients of variables straight to their caller.
//!
//! candle adds every gradient that an operation returns to fresh zeros, on one thread. The gradients of a model's weights are as large as
//! the model, so those passes over memory are a tenth of a training step. Inside of [`backward`] the kernels of this crate keep the
//! gradients of variables out of candle's store: the first one is taken as it is, further ones are added in place. What candle's own
//! operations find for a variable is joined with it at the end.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::backprop::GradStore;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Device, InplaceOp1, Layout, MetalStorage, Result, Shape, Tensor, TensorId, WithDType,
};

use crate::check;
use crate::error::KernelError;
use crate::real::Real;
use crate::rows::{Held, for_each_piece, per_task, piece_of};
use crate::simd::multiversion;

const OP: &str = "backward";

/// Gradients that one backward pass has found so far, by the variable.
type Found = HashMap<TensorId, Tensor>;

/// Receives a variable and its whole gradient.
pub type Receiver<'r> = dyn FnMut(&Tensor, Tensor) -> Result<()> + 'r;

/// A backward pass under way.
struct Frame {
    found: Found,
    /// Valid while the frame stands.
    receiver: Option<*mut Receiver<'static>>,
}

// Passes under way on this thread, the innermost last: a block that is differentiated on its own inside of an outer pass, or another
// computation that this thread took on while it waited for the parts of a kernel.
thread_local!(static PASSES: RefCell<Vec<Frame>> = const { RefCell::new(Vec::new()) });

/// Takes its frame off the list, also when an operation panics.
struct Pass;

impl Pass {
    fn begin(receiver: Option<*mut Receiver<'static>>) -> Self {
        PASSES.with_borrow_mut(|passes| passes.push(Frame { found: Found::new(), receiver }));
        Pass
    }

    fn end(self) -> Found {
        PASSES.with_borrow_mut(|passes| passes.last_mut().map(|frame| std::mem::take(&mut frame.found))).unwrap_or_default()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        PASSES.with_borrow_mut(Vec::pop);
    }
}

/// Gradients by variables.
#[derive(Debug, Default)]
pub struct Gradients {
    /// By the kernels.
    found: Found,
    /// By candle's operations, of one pass.
    store: Option<GradStore>,
}

impl Gradients {
    /// Takes the gradient by a variable; None where nothing depends on it.
    ///
    /// # Errors
    /// The device ran out of memory while two parts of it were added.
    pub fn take(&mut self, variable: &Tensor) -> Result<Option<Tensor>> {
        let rest = self.store.as_mut().and_then(|store| store.remove(variable));
        match (self.found.remove(&variable.id()), rest) {
            (Some(sum), Some(rest)) => accumulate(sum, &rest).map(Some),
            (found, rest) => Ok(found.or(rest)),
        }
    }
}

/// ∂loss / ∂variable for all variables that the scalar `loss` depends on.
///
/// # Errors
/// Those of the operations' backward passes.
pub fn backward(loss: &Tensor) -> Result<Gradients> {
    run(loss, None)
}

/// [`backward`], in which `receive` gets gradients as soon as an operation calls [`complete`] for them; what is left is returned.
///
/// # Errors
/// Those of the operations' backward passes and of `receive`.
pub fn backward_with<'r>(loss: &Tensor, receive: &mut Receiver<'r>) -> Result<Gradients> {
    let receive: *mut Receiver<'r> = receive;
    // SAFETY: only the lifetime changes. The frame that holds the pointer is gone when `run` returns, and until then `receive` is borrowed.
    let receive = unsafe { std::mem::transmute::<*mut Receiver<'r>, *mut Receiver<'static>>(receive) };
    run(loss, Some(receive))
}

fn run(loss: &Tensor, receiver: Option<*mut Receiver<'static>>) -> Result<Gradients> {
    let pass = Pass::begin(receiver);
    let store = loss.backward()?;
    Ok(Gradients { found: pass.end(), store: Some(store) })
}

/// Said from inside an operation's `bwd`: nothing will be added to the gradient by `variable` any more, and nothing will read it.
///
/// # Errors
/// Those of the receiver of the pass under way, if it has one.
pub fn complete(variable: &Tensor) -> Result<()> {
    // Out of the frame while it runs: it can't be called from within itself.
    let found = PASSES.with_borrow_mut(|passes| {
        let frame = passes.last_mut()?;
        let gradient = frame.receiver.and_then(|_| frame.found.remove(&variable.id()))?;
        Some((frame.receiver.take()?, gradient))
    });
    let Some((receiver, gradient)) = found else { return Ok(()) };
    // SAFETY: the frame stands, so `backward_with` has not returned, and this is the only use of what it borrowed.
    let result = unsafe { (*receiver)(variable, gradient) };
    PASSES.with_borrow_mut(|passes| {
        if let Some(frame) = passes.last_mut() {
            frame.receiver = Some(receiver);
        }
    });
    result
}

/// Differentiates a part of the graph that ends on its own, from inside an operation's `bwd`: Σ dy ⊙ ∂y / ∂variable for `variables`, all
/// that `y` depends on, joins what the pass under way has found; `dy` has the shape of `y`.
///
/// # Errors
/// Those of the operations' backward passes; shapes that differ; no pass of [`backward`] is under way on this thread.
pub fn within<'t>(y: &Tensor, dy: &Tensor, variables: impl Iterator<Item = &'t Tensor>) -> Result<()> {
    check::shape(OP, "the gradient", dy, y.dims())?;
    let mut store = y.apply_op1(Seed(dy.detach()))?.backward()?;
    for variable in variables {
        if keep(variable, store.remove(variable))?.is_some() {
            let (found, expected) = ("another backward pass".into(), "one of prunectl_kernels::autograd::backward".into());
            return Err(KernelError::Value { op: OP, what: "what differentiates a block", found, expected }.into());
        }
    }
    Ok(())
}

/// What an operation's `bwd` returns for an operand: nothing for a variable whose gradient the pass under way has taken. The gradient
/// shares its storage with no other tensor: what comes next is added in its place.
pub(crate) fn keep(operand: &Tensor, gradient: Option<Tensor>) -> Result<Option<Tensor>> {
    let Some(gradient) = gradient else { return Ok(None) };
    if !collects(operand) {
        return Ok(Some(gradient));
    }
    let sum = match take(operand) {
        Some(sum) => accumulate(sum, &gradient)?,
        None => gradient,
    };
    put(operand, sum);
    Ok(None)
}

/// Whether the pass under way takes the gradient by that operand.
pub(crate) fn collects(operand: &Tensor) -> bool {
    operand.is_variable() && PASSES.with_borrow(|passes| !passes.is_empty())
}

/// What the pass under way has found for a variable so far, which nobody else holds.
pub fn take(variable: &Tensor) -> Option<Tensor> {
    PASSES.with_borrow_mut(|passes| passes.last_mut()?.found.remove(&variable.id()))
}

/// Gives back what [`take`] gave, with more added.
pub(crate) fn put(variable: &Tensor, gradient: Tensor) {
    PASSES.with_borrow_mut(|passes| passes.last_mut()?.found.insert(variable.id(), gradient));
}

/// sum + x, in the place of `sum` where it can be.
fn accumulate(sum: Tensor, x: &Tensor) -> Result<Tensor> {
    match sum.dtype() {
        DType::F32 => accumulate_in::<f32>(sum, x),
        DType::F64 => accumulate_in::<f64>(sum, x),
        _ => sum + x,
    }
}

multiversion! {
    fn add_to<T: Real>(sum: &mut [T], x: &[T]) {
        for (sum, &x) in sum.iter_mut().zip(x) {
            *sum += x;
        }
    }
}

fn accumulate_in<T: Real>(sum: Tensor, x: &Tensor) -> Result<Tensor> {
    let shape = sum.shape().clone();
    let x = x.contiguous()?;
    match into_vec::<T>(&sum)? {
        Some(mut values) => {
            let held = Held::new(OP, &x);
            let x = held.slice::<T>()?;
            for_each_piece(&mut values, per_task(1), |i, sum| add_to(sum, piece_of(x, i, per_task(1), sum.len())));
            Tensor::from_vec(values, shape, &Device::Cpu)
        }
        None => sum + x,
    }
}

/// Takes the buffer out of a CPU tensor, which must share its storage with no tensor that is still read; None for other devices, types
/// and for views.
///
/// # Errors
/// The storage is in use.
pub fn into_vec<T: WithDType>(t: &Tensor) -> Result<Option<Vec<T>>> {
    let buffer = Buffer(Mutex::new(None));
    t.inplace_op1(&buffer)?;
    Ok(buffer.0.into_inner().unwrap_or_else(PoisonError::into_inner))
}

struct Buffer<T>(Mutex<Option<Vec<T>>>);

impl<T: WithDType> InplaceOp1 for Buffer<T> {
    fn name(&self) -> &'static str {
        "take values"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let whole = storage.as_slice::<T>().is_ok_and(|values| layout.contiguous_offsets() == Some((0, values.len())));
        if whole {
            let empty = T::to_cpu_storage_owned(Vec::new());
            let values = T::cpu_storage_data(std::mem::replace(storage, empty))?;
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(values);
        }
        Ok(())
    }

    fn cuda_fwd(&self, _: &mut CudaStorage, _: &Layout) -> Result<()> {
        Ok(())
    }

    fn metal_fwd(&self, _: &mut MetalStorage, _: &Layout) -> Result<()> {
        Ok(())
    }
}

/// A scalar whose gradient by its argument is the given tensor: where a backward pass begins.
struct Seed(Tensor);

impl Seed {
    /// Any one element: nobody reads the scalar.
    fn first<S: BackendStorage>(storage: &S, layout: &Layout) -> Result<(S, Shape)> {
        let scalar = Shape::from(());
        let one = Layout::contiguous_with_offset(scalar.clone(), layout.start_offset());
        Ok((storage.to_dtype(&one, storage.dtype())?, scalar))
    }
}

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Self::first(storage, layout)
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        Self::first(storage, layout)
    }

    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        Self::first(storage, layout)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}
