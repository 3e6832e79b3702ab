//! Empty tensors, NaN, huge values, rows without a visible key, and refused arguments.

use super::cases::small;
use super::{Case, arguments, distance, flat, random, tensors, value_and_gradients};
use crate::real::Real;
use crate::{Activation, AttnMask, RopeStyle, plain};
use candle_core::{DType, Device, Tensor, Var};

#[test]
fn empty_tensors_pass_through() {
    let none = Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap();
    let (w, wide) = (Tensor::ones(4, DType::F32, &Device::Cpu).unwrap(), Tensor::ones((3, 4), DType::F32, &Device::Cpu).unwrap());
    assert_eq!(crate::softmax_last_dim(&none).unwrap().dims(), [0, 4]);
    assert_eq!(crate::layer_norm(&none, &w, None, 1e-5).unwrap().dims(), [0, 4]);
    assert_eq!(crate::rms_norm(&none, &w, 1e-5, false).unwrap().dims(), [0, 4]);
    assert_eq!(crate::silu(&none).unwrap().dims(), [0, 4]);
    assert_eq!(crate::gated(Activation::Silu, &none, &none).unwrap().dims(), [0, 4]);
    assert_eq!(crate::linear(&none, &wide, None).unwrap().dims(), [0, 3]);
    assert_eq!(crate::add(&none, &none).unwrap().dims(), [0, 4]);
    assert_eq!(crate::gate(&none.reshape((0, 2, 4)).unwrap(), &none).unwrap().dims(), [0, 2, 4]);
    assert_eq!(crate::kl_div(&none, &none, 1.0).unwrap().dims(), [0]);
    assert_eq!(crate::cross_entropy(&none, &Tensor::zeros(0, DType::U32, &Device::Cpu).unwrap()).unwrap().dims(), [0]);
    let no_heads = Tensor::zeros((2, 0, 5, 4), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(crate::attention(&no_heads, &no_heads, &no_heads, &AttnMask::default(), 1.0, None).unwrap().dims(), [2, 0, 5, 4]);
    let table = Tensor::zeros((1, 5, 2), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(crate::rope(&no_heads, &table, &table, RopeStyle::Half, 4).unwrap().dims(), [2, 0, 5, 4]);
}

/// A NaN in the first element of the first argument shows in the result, in f32 and in f64.
#[test]
fn nan_is_not_hidden() {
    let touched = |case: &Case, dtype| {
        let mut t = tensors(&arguments(case, dtype));
        let mut elements = flat(&t[0]);
        elements[0] = f64::NAN;
        t[0] = Tensor::from_vec(elements, t[0].shape(), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        flat(&(case.fused)(&t).unwrap()).iter().any(|y| y.is_nan())
    };
    for case in small() {
        // There, the first query sees nothing.
        let hidden = case.name.starts_with("attention nothing visible") || case.name.starts_with("attention window 0");
        for dtype in [DType::F32, DType::F64] {
            assert_eq!(touched(&case, dtype), !hidden, "{} in {dtype:?}", case.name);
        }
    }
}

#[test]
fn large_values_give_numbers() {
    let x = Tensor::new(&[[1e30f32, -1e30, 0.0, 88.0], [-88.0, 104.0, -200.0, 3e38]], &Device::Cpu).unwrap();
    for act in [Activation::GeluErf, Activation::GeluTanh, Activation::Silu, Activation::Relu, Activation::QuickGelu] {
        let var = Var::from_tensor(&x).unwrap();
        let y = act.apply(&var).unwrap();
        let expected = x.relu().unwrap();
        assert!(distance(&y.detach(), &expected) < 1e-6, "{act:?}: {y}");
        let slope = y.sum_all().unwrap().backward().unwrap().get(&var).unwrap().clone();
        let step = x.gt(0f32).unwrap().to_dtype(DType::F32).unwrap();
        let at_zero = x.eq(0f32).unwrap().to_dtype(DType::F32).unwrap();
        let half = if act == Activation::Relu { 0.0 } else { 0.5 };
        assert!(distance(&slope, &(step + (at_zero * half).unwrap()).unwrap()) < 1e-6, "{act:?}: {slope}");
    }
    assert_eq!(flat(&crate::softmax_last_dim(&x).unwrap()), [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    let nll = crate::cross_entropy(&x, &Tensor::new(&[0u32, 1], &Device::Cpu).unwrap()).unwrap();
    assert_eq!(flat(&nll), [0.0, f64::from(3e38f32 - 104.0)]);
}

#[test]
fn queries_that_see_nothing_give_zeros_and_no_gradient() {
    let case = small().into_iter().find(|c| c.name == "attention nothing visible").unwrap();
    let (y, gradients) = value_and_gradients(&case.fused, &arguments(&case, DType::F32)).unwrap();
    assert!(flat(&y.get(0).unwrap()).iter().all(|&y| y == 0.0), "the first example hides all its keys");
    for gradient in gradients {
        assert!(flat(&gradient.get(0).unwrap()).iter().all(|&g| g == 0.0));
    }
    assert!(flat(&y.get(1).unwrap()).iter().any(|&y| y != 0.0));
}

#[test]
fn masked_teacher_classes_count_nothing() {
    let student = Tensor::new(&[[0.5f64, 1.0, 2.0]], &Device::Cpu).unwrap();
    let teacher = Tensor::new(&[[1.0f64, f64::NEG_INFINITY, 1.0]], &Device::Cpu).unwrap();
    let kl = flat(&crate::kl_div(&student, &teacher, 1.0).unwrap())[0];
    let total: f64 = [0.5f64, 1.0, 2.0].iter().map(|x| x.exp()).sum();
    let expected = 0.5 * (0.5f64.ln() - 0.5 + total.ln()) + 0.5 * (0.5f64.ln() - 2.0 + total.ln());
    assert!((kl - expected).abs() < 1e-14, "{kl} is not {expected}");
}

/// (ours, reference in f64) over a range: the largest error in units in the last place, and absolutely.
fn errors(range: (f64, f64), ours: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> (f64, f64) {
    const STEPS: u32 = 400_000;
    let mut worst = (0.0f64, 0.0f64);
    for i in 0..=STEPS {
        let x = (range.0 + (range.1 - range.0) * f64::from(i) / f64::from(STEPS)) as f32;
        let (y, expected) = (f64::from(ours(x)), exact(f64::from(x)));
        let ulp = f64::from((expected as f32).abs().max(f32::MIN_POSITIVE)) * f64::from(f32::EPSILON);
        worst = (worst.0.max((y - expected).abs() / ulp), worst.1.max((y - expected).abs()));
    }
    worst
}

#[test]
fn the_fast_functions_keep_their_stated_errors() {
    let exp = errors((-86.9, 88.7), <f32 as Real>::exp, f64::exp);
    let tanh = errors((-12.0, 12.0), <f32 as Real>::tanh, f64::tanh);
    let cdf = errors((-6.0, 6.0), |x| x.normal().0, |x| x.normal().0);
    let tail = errors((-9.0, 0.0), |x| x.normal().0, |x| x.normal().0);
    let near = errors((-1.0, 0.0), |x| x.normal().0, |x| x.normal().0);
    println!("exp {exp:?}, tanh {tanh:?}, Φ {cdf:?}, its lower tail {tail:?}, near 0 {near:?} (units in the last place, absolute)");
    assert!(exp.0 < 2.0 && tanh.0 < 4.0 && cdf.1 < 3e-7 && tail.0 * f64::from(f32::EPSILON) < 3e-6);
    assert!(near.0 * f64::from(f32::EPSILON) < 5e-7);
    assert_eq!(<f32 as Real>::exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(<f32 as Real>::exp(-1000.0), 0.0);
    assert_eq!(<f32 as Real>::exp(f32::INFINITY), f32::INFINITY);
    assert_eq!(<f32 as Real>::exp(0.0), 1.0);
    assert!(<f32 as Real>::exp(f32::NAN).is_nan() && f32::NAN.normal().0.is_nan() && Real::tanh(f32::NAN).is_nan());
}

#[test]
fn wrong_arguments_are_refused_with_their_values() {
    let message = |r: candle_core::Result<Tensor>| r.unwrap_err().to_string();
    let x = random(&[2, 3], 1);
    let targets = Tensor::new(&[0u32, 3], &Device::Cpu).unwrap();
    assert!(message(crate::cross_entropy(&x, &targets)).contains("a target is 3, expected a class below 3"));
    assert!(message(crate::rms_norm(&x, &random(&[2], 1), 1e-6, false)).contains("weight has shape [2], expected [3]"));
    assert!(message(crate::linear(&x, &random(&[4, 2], 1), None)).contains("x has shape [2, 3], expected [2, 2]"));
    assert!(message(crate::silu(&targets)).contains("x is U32"));
    assert!(message(crate::gated(Activation::Silu, &x, &x.to_dtype(DType::F32).unwrap())).contains("up is F32, expected F64"));
    assert!(message(crate::add(&x, &random(&[2, 2], 1))).contains("y has shape [2, 2], expected [2, 3]"));
    assert!(message(crate::gate(&x.unsqueeze(0).unwrap(), &random(&[1, 2], 1))).contains("g has shape [1, 2], expected [1, 3]"));
    assert!(message(crate::kl_div(&x, &x, 0.0)).contains("temperature is 0"));
    let (q, k) = (random(&[1, 3, 2, 4], 1), random(&[1, 2, 2, 4], 1));
    assert!(message(crate::attention(&q, &k, &k, &AttnMask::default(), 1.0, None)).contains("a divisor of the 3 query heads"));
    let tables = random(&[1, 2, 1], 1);
    assert!(message(crate::rope(&q, &tables, &tables, RopeStyle::Half, 3)).contains("rotary_dim is 3"));
}

#[test]
fn attention_probabilities_are_those_that_attention_uses() {
    let (q, k, v) = (random(&[2, 4, 5, 3], 1), random(&[2, 2, 5, 3], 2), random(&[2, 2, 5, 3], 3));
    let mask = AttnMask { causal: true, ..AttnMask::default() };
    let probs = crate::attention_probs(&q, &k, &mask, 0.5, Some(4.0)).unwrap();
    assert!(distance(&probs.sum(3).unwrap(), &Tensor::ones((2, 4, 5), DType::F64, &Device::Cpu).unwrap()) < 1e-14);
    let expected = plain::attention(&q, &k, &v, &mask, 0.5, Some(4.0)).unwrap();
    assert!(distance(&crate::attention(&q, &k, &v, &mask, 0.5, Some(4.0)).unwrap(), &expected) < 1e-14);
}
