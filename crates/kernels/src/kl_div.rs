//! Kullback-Leibler divergence between softened distributions (Hinton et al. 2015, section 2): Σᵥ pᵥ (log pᵥ − log qᵥ),
//! p = softmax(teacher / T), q = softmax(student / T), straight from logits.
//! ∂/∂studentᵥ = g (qᵥ − pᵥ) / T; ∂/∂teacherᵥ = g pᵥ (log pᵥ − log qᵥ − KL) / T.

use std::sync::{Mutex, PoisonError};

use crate::cross_entropy::max_and_sum;
use crate::error::KernelError;
use crate::real::Real;
use crate::rows::{Fresh, Held, by_type, fill, fill2, for_each_piece, per_task, piece_of, slice, tensor};
use crate::simd::{self, multiversion};
use crate::{autograd, check, plain};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType};

const OP: &str = "kl_div";

/// student and teacher logits [.., v] → KL(teacher ‖ student) per row [n], in nats, n the rows of all leading dimensions. Not multiplied by
/// T²: the loss does that. The result is f32 (f64 for f64 logits). Differentiable in both; a class that the teacher rules out (−∞) counts
/// nothing.
///
/// On the CPU the gradient by the student is computed with the value, where only that is wanted: it takes the teacher's place in memory.
pub fn kl_div(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    check::float(OP, "student", student)?;
    check::like(OP, "teacher", teacher, student)?;
    check::shape(OP, "teacher", teacher, student.dims())?;
    check::positive(OP, "temperature", temperature)?;
    let v = check::last_dim(OP, "student", student)?;
    let n = student.dims().iter().rev().skip(1).product::<usize>();
    let work = plain::working_dtype(student.dtype());
    if n * v == 0 {
        return Tensor::zeros(n, work, student.device());
    }
    let (student, teacher) = (student.to_dtype(work)?, teacher.to_dtype(work)?);
    if !student.device().is_cpu() {
        return plain::kl_div(&student.reshape((n, v))?, &teacher.reshape((n, v))?, temperature);
    }
    let (student, teacher) = (student.contiguous()?, teacher.contiguous()?);
    if student.track_op() && !teacher.track_op() {
        student.apply_op1(Imitation { temperature, teacher: Mutex::new(Some(teacher)), gradient: Mutex::default() })
    } else {
        student.apply_op2(&teacher, KlDiv { temperature })
    }
}

/// What a row needs before its elements can be visited: log p − log q = (teacher − student) · rate + `offset`.
struct Pair<T> {
    student_max: T,
    student_sum: T,
    teacher_max: T,
    teacher_sum: T,
    offset: T,
}

#[inline(always)]
fn pair<T: Real>(student: &[T], teacher: &[T], rate: T) -> Pair<T> {
    let (student_max, student_sum) = max_and_sum(student, rate);
    let (teacher_max, teacher_sum) = max_and_sum(teacher, rate);
    let offset = (student_max - teacher_max) * rate + (student_sum.ln() - teacher_sum.ln());
    Pair { student_max, student_sum, teacher_max, teacher_sum, offset }
}

/// p · (log p − log q) with 0 · log 0 = 0
#[inline(always)]
fn weighted<T: Real>(p: T, difference: T) -> T {
    if p == T::ZERO { T::ZERO } else { p * difference }
}

#[inline(always)]
fn divergence<T: Real>(student: &[T], teacher: &[T], rate: T, pair: &Pair<T>) -> T {
    let (max, offset) = (pair.teacher_max, pair.offset);
    let sum = simd::sum2(student, teacher, |s, t| weighted(((t - max) * rate).exp(), (t - s) * rate + offset));
    sum / pair.teacher_sum
}

multiversion! {
    fn forward<T: Real>(student: &[T], teacher: &[T], kl: &mut Fresh<'_, T>, width: usize, rate: T) {
        for (student, teacher) in student.chunks_exact(width).zip(teacher.chunks_exact(width)) {
            kl.push(divergence(student, teacher, rate, &pair(student, teacher, rate)));
        }
    }
}

/// ∂KL/∂student of a row, times `scale`
#[inline(always)]
fn student_gradient<T: Real>(student: &[T], teacher: &[T], dx: &mut Fresh<'_, T>, rate: T, pair: &Pair<T>, scale: T) {
    let (q_scale, p_scale) = (scale * rate / pair.student_sum, scale * rate / pair.teacher_sum);
    let (student_max, teacher_max) = (pair.student_max, pair.teacher_max);
    let difference = |(&s, &t): (&T, &T)| ((s - student_max) * rate).exp() * q_scale - ((t - teacher_max) * rate).exp() * p_scale;
    dx.write(student.iter().zip(teacher).map(difference));
}

multiversion! {
    fn forward_with_gradient<T: Real>(
        student: &[T], teacher: &[T], kl: &mut Fresh<'_, T>, dx: &mut Fresh<'_, T>, width: usize, rate: T
    ) {
        for (student, teacher) in student.chunks_exact(width).zip(teacher.chunks_exact(width)) {
            let pair = pair(student, teacher, rate);
            kl.push(divergence(student, teacher, rate, &pair));
            student_gradient(student, teacher, dx, rate, &pair, T::ONE);
        }
    }
}

multiversion! {
    fn student_backward<T: Real>(student: &[T], teacher: &[T], dy: &[T], dx: &mut Fresh<'_, T>, width: usize, rate: T) {
        for ((student, teacher), &dy) in student.chunks_exact(width).zip(teacher.chunks_exact(width)).zip(dy) {
            student_gradient(student, teacher, dx, rate, &pair(student, teacher, rate), dy);
        }
    }
}

multiversion! {
    fn scale_rows<T: Real>(x: &mut [T], dy: &[T], width: usize) {
        for (x, &dy) in x.chunks_exact_mut(width).zip(dy) {
            for x in x {
                *x *= dy;
            }
        }
    }
}

multiversion! {
    fn teacher_backward<T: Real>(student: &[T], teacher: &[T], dy: &[T], dx: &mut Fresh<'_, T>, width: usize, rate: T) {
        for ((student, teacher), &dy) in student.chunks_exact(width).zip(teacher.chunks_exact(width)).zip(dy) {
            let pair = pair(student, teacher, rate);
            let kl = divergence(student, teacher, rate, &pair);
            let scale = dy * rate / pair.teacher_sum;
            dx.write(student.iter().zip(teacher).map(|(&s, &t)| {
                let p = ((t - pair.teacher_max) * rate).exp();
                scale * weighted(p, (t - s) * rate + pair.offset - kl)
            }));
        }
    }
}

/// (student, teacher, ∂y, ∂x, width, 1 / temperature)
type RowsBackward<T> = fn(&[T], &[T], &[T], &mut Fresh<'_, T>, usize, T);

fn width_of(layout: &Layout) -> usize {
    layout.dims().last().copied().unwrap_or(1).max(1)
}

struct KlDiv {
    temperature: f64,
}

impl KlDiv {
    fn gradients<T: Real>(&self, student: &Tensor, teacher: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = width_of(student.layout());
        let rows = per_task(width);
        let rate = T::of(1.0 / self.temperature);
        let (held_s, held_t, dy) = (Held::new(OP, student), Held::new(OP, teacher), Held::new(OP, dy));
        let (s, t, dy) = (held_s.slice::<T>()?, held_t.slice::<T>()?, dy.slice::<T>()?);
        let run = |kernel: RowsBackward<T>| {
            fill(s.len(), rows * width, |i, dx: &mut Fresh<'_, T>| {
                let at = |x| piece_of(x, i, rows * width, dx.len());
                let (s, t, dy) = (at(s), at(t), piece_of(dy, i, rows, dx.len() / width.max(1)));
                kernel(s, t, dy, dx, width, rate);
            })
        };
        let d_student = student.track_op().then(|| tensor(run(student_backward::<T>), student)).transpose()?;
        let d_teacher = teacher.track_op().then(|| tensor(run(teacher_backward::<T>), teacher)).transpose()?;
        Ok((d_student, d_teacher))
    }
}

impl CustomOp2 for KlDiv {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        student: &CpuStorage,
        student_layout: &Layout,
        teacher: &CpuStorage,
        teacher_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = width_of(student_layout);
        let n = student_layout.shape().elem_count() / width;
        let rows = per_task(width);
        by_type!(OP, student, T => {
            let (s, t) = (slice::<T>(OP, student, student_layout)?, slice::<T>(OP, teacher, teacher_layout)?);
            let kl = fill(n, rows, |i, kl: &mut Fresh<'_, T>| {
                let at = |x| piece_of(x, i, rows * width, kl.len() * width);
                let (s, t) = (at(s), at(t));
                forward(s, t, kl, width, <T as Real>::of(1.0 / self.temperature));
            });
            Ok((T::to_cpu_storage_owned(kl), Shape::from(n)))
        })
    }

    fn bwd(&self, student: &Tensor, teacher: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let (d_student, d_teacher) = match dy.dtype() {
            DType::F64 => self.gradients::<f64>(student, teacher, &dy)?,
            _ => self.gradients::<f32>(student, teacher, &dy)?,
        };
        Ok((autograd::keep(student, d_student)?, autograd::keep(teacher, d_teacher)?))
    }
}

/// The student's side alone.
struct Imitation {
    temperature: f64,
    /// Leaves with the forward pass.
    teacher: Mutex<Option<Tensor>>,
    /// ∂KL/∂student, from the forward pass to the backward pass.
    gradient: Mutex<Option<Tensor>>,
}

/// Nobody writes a part of what these hold.
fn take<T>(held: &Mutex<Option<T>>) -> Option<T> {
    held.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl Imitation {
    fn forward<T: Real>(&self, student: &[T], teacher: &Tensor, width: usize) -> Result<Vec<T>> {
        let rows = per_task(width);
        let held = Held::new(OP, teacher);
        let all = held.slice::<T>()?;
        let rate = T::of(1.0 / self.temperature);
        let (kl, dx) = fill2((student.len() / width, rows), (student.len(), rows * width), |i, kl, dx| {
            let at = |x| piece_of(x, i, rows * width, dx.len());
            let (s, t) = (at(student), at(all));
            forward_with_gradient(s, t, kl, dx, width, rate);
        });
        *self.gradient.lock().unwrap_or_else(PoisonError::into_inner) = Some(tensor(dx, teacher)?);
        Ok(kl)
    }

    fn scaled<T: Real>(gradient: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let width = width_of(gradient.layout());
        let rows = per_task(width);
        let dys = Held::new(OP, dy);
        let dy = dys.slice::<T>()?;
        let mut dx = autograd::into_vec::<T>(gradient)?.unwrap_or_default();
        for_each_piece(&mut dx, rows * width, |i, dx| scale_rows(dx, piece_of(dy, i, rows, dx.len() / width), width));
        tensor(dx, gradient)
    }
}

impl CustomOp1 for Imitation {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, student: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = width_of(layout);
        let teacher = take(&self.teacher).ok_or_else(|| missing("teacher", "used up by an earlier forward pass"))?;
        by_type!(OP, student, T => {
            let kl = self.forward(slice::<T>(OP, student, layout)?, &teacher, width)?;
            Ok((T::to_cpu_storage_owned(kl), Shape::from(layout.shape().elem_count() / width)))
        })
    }

    fn bwd(&self, student: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let gradient = take(&self.gradient).ok_or_else(|| missing("gradient", "used up by an earlier backward pass"))?;
        let dy = dy.contiguous()?;
        let dx = match dy.dtype() {
            DType::F64 => Self::scaled::<f64>(&gradient, &dy)?,
            _ => Self::scaled::<f32>(&gradient, &dy)?,
        };
        autograd::keep(student, Some(dx))
    }
}

fn missing(what: &'static str, found: &str) -> candle_core::Error {
    KernelError::Value { op: OP, what, found: found.to_string(), expected: "one pass over each graph".to_string() }.into()
}
