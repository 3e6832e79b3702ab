//! Kullback-Leibler divergence between softened distributions (Hinton et al. 2015, section 2): Σᵥ pᵥ (log pᵥ − log qᵥ),
//! p = softmax(teacher / T), q = softmax(student / T), straight from logits.
//! ∂/∂studentᵥ = g (qᵥ − pᵥ) / T; ∂/∂teacherᵥ = g pᵥ (log pᵥ − log qᵥ − KL) / T.

use crate::cross_entropy::max_and_sum;
use crate::real::Real;
use crate::rows::{Fresh, Held, by_type, fill, per_task, piece_of, slice, tensor};
use crate::simd::{self, multiversion};
use crate::{autograd, check, plain};
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType};

const OP: &str = "kl_div";

/// student and teacher logits [n, v] → KL(teacher ‖ student) per row [n], in nats. Not multiplied by T²: the loss does that.
/// The result is f32 (f64 for f64 logits). Differentiable in both; a class that the teacher rules out (−∞) counts nothing.
pub fn kl_div(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    check::float(OP, "student", student)?;
    check::like(OP, "teacher", teacher, student)?;
    let (n, v) = student.dims2()?;
    check::shape(OP, "teacher", teacher, &[n, v])?;
    check::positive(OP, "temperature", temperature)?;
    let work = plain::working_dtype(student.dtype());
    if n * v == 0 {
        return Tensor::zeros(n, work, student.device());
    }
    let (student, teacher) = (student.to_dtype(work)?, teacher.to_dtype(work)?);
    if student.device().is_cpu() {
        student.contiguous()?.apply_op2(&teacher.contiguous()?, KlDiv { temperature })
    } else {
        plain::kl_div(&student, &teacher, temperature)
    }
}

/// What a row needs before its elements can be visited: log p − log q = (teacher − student) · rate + `offset`.
struct Pair<T> {
    teacher_max: T,
    teacher_sum: T,
    offset: T,
}

#[inline(always)]
fn pair<T: Real>(student: &[T], teacher: &[T], rate: T) -> Pair<T> {
    let (student_max, student_sum) = max_and_sum(student, rate);
    let (teacher_max, teacher_sum) = max_and_sum(teacher, rate);
    let offset = (student_max - teacher_max) * rate + (student_sum.ln() - teacher_sum.ln());
    Pair { teacher_max, teacher_sum, offset }
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

multiversion! {
    fn student_backward<T: Real>(student: &[T], teacher: &[T], dy: &[T], dx: &mut Fresh<'_, T>, width: usize, rate: T) {
        for ((student, teacher), &dy) in student.chunks_exact(width).zip(teacher.chunks_exact(width)).zip(dy) {
            let (student_max, teacher_max) = (simd::max(student), simd::max(teacher));
            let dx = dx.write(student.iter().map(|&v| ((v - student_max) * rate).exp()));
            let q_scale = dy * rate / simd::sum(dx, |v| v);
            let p_scale = dy * rate / simd::sum(teacher, |v| ((v - teacher_max) * rate).exp());
            for (dx, &t) in dx.iter_mut().zip(teacher) {
                *dx = *dx * q_scale - ((t - teacher_max) * rate).exp() * p_scale;
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

struct KlDiv {
    temperature: f64,
}

impl KlDiv {
    fn gradients<T: Real>(&self, student: &Tensor, teacher: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (_, width) = student.dims2()?;
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
        let (n, width) = student_layout.shape().dims2()?;
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
