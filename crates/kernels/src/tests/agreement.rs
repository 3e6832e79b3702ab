//! Values and gradients: f64 against finite differences and candle, f32 against candle in f64.

use super::cases::{large, small};
use super::{Op, arguments, distance, flat, random, tensors, value_and_gradients};
use candle_core::{DType, Device, Tensor, Var};

/// Central differences in f64 have an error of about step² · f‴ + 1e-16 / step: near 1e-9 for this step.
const STEP: f64 = 1e-5;

fn weighted_sum(op: &Op, arguments: &[Tensor]) -> f64 {
    let y = op(arguments).unwrap();
    flat(&y).iter().zip(flat(&random(y.dims(), 99))).map(|(y, w)| y * w).sum()
}

/// Gradient of Σ result · weights with respect to argument `which`, by moving each element up and down.
fn central_differences(op: &Op, vars: &[Var], which: usize) -> Tensor {
    let mut arguments = tensors(vars);
    let shape = arguments[which].shape().clone();
    let elements = flat(&arguments[which]);
    let mut moved = |i: usize, by: f64| {
        let mut elements = elements.clone();
        elements[i] += by;
        arguments[which] = Tensor::from_vec(elements, shape.clone(), &Device::Cpu).unwrap();
        weighted_sum(op, &arguments)
    };
    let slopes: Vec<f64> = (0..elements.len()).map(|i| (moved(i, STEP) - moved(i, -STEP)) / (2.0 * STEP)).collect();
    Tensor::from_vec(slopes, shape, &Device::Cpu).unwrap()
}

/// Every function that the crate offers has a case here, or no gradient.
#[test]
fn no_operation_is_forgotten() {
    // Masks are constants, an update is no function in a graph; the tests of these stand beside them.
    const WITHOUT_GRADIENT: [&str; 4] = ["adamw_step", "threshold_mask", "top_k_mask", "top_k_mask_rows"];
    // Tried as `Activation`, and as what `attention` uses.
    const UNDER_OTHER_NAMES: [&str; 6] = ["gelu_erf", "gelu_tanh", "quick_gelu", "relu", "silu", "attention_probs"];
    let names: Vec<String> = small().into_iter().map(|case| case.name).collect();
    let offered = include_str!("../lib.rs").lines().filter_map(|line| line.strip_prefix("pub use ")?.split_once("::"));
    let mut n = 0;
    for name in offered.flat_map(|(_, list)| list.trim_matches(['{', '}', ';']).split(", ")) {
        let name = name.trim_end_matches(['}', ';']);
        if name.starts_with(char::is_uppercase) || WITHOUT_GRADIENT.contains(&name) || UNDER_OTHER_NAMES.contains(&name) {
            continue;
        }
        n += 1;
        let short = name.trim_end_matches("_last_dim");
        assert!(names.iter().any(|case| case.starts_with(short)), "`{name}` has no case");
    }
    assert!(n >= 10, "{n}");
}

#[test]
fn f64_gradients_match_central_differences() {
    let mut worst = (0.0, String::new());
    for case in small() {
        let vars = arguments(&case, DType::F64);
        let (_, gradients) = value_and_gradients(&case.fused, &vars).unwrap();
        for (i, gradient) in gradients.iter().enumerate() {
            let error = distance(gradient, &central_differences(&case.fused, &vars, i));
            assert!(error < 1e-7, "{}, argument {i}: {error:e}", case.name);
            if error > worst.0 {
                worst = (error, case.name.clone());
            }
        }
    }
    println!("worst gradient error against central differences: {:e} in {}", worst.0, worst.1);
}

#[test]
fn f64_agrees_with_composed_operations() {
    for case in small().into_iter().chain(large()) {
        let vars = arguments(&case, DType::F64);
        let (y, gradients) = value_and_gradients(&case.fused, &vars).unwrap();
        let (expected, expected_gradients) = value_and_gradients(&case.plain, &vars).unwrap();
        assert!(distance(&y, &expected) < 1e-12, "{}: {:e}", case.name, distance(&y, &expected));
        for (gradient, expected) in gradients.iter().zip(&expected_gradients) {
            // Sums over 301 rows, in another order.
            assert!(distance(gradient, expected) < 1e-11, "{}: {:e}", case.name, distance(gradient, expected));
        }
    }
}

#[test]
fn f32_is_close_to_f64() {
    let mut worst = [(0.0, String::new()), (0.0, String::new())];
    for case in small().into_iter().chain(large()) {
        let (vars, exact) = (arguments(&case, DType::F32), arguments(&case, DType::F32));
        let exact: Vec<Var> = exact.iter().map(|v| Var::from_tensor(&v.to_dtype(DType::F64).unwrap()).unwrap()).collect();
        let (y, gradients) = value_and_gradients(&case.fused, &vars).unwrap();
        let (expected, expected_gradients) = value_and_gradients(&case.plain, &exact).unwrap();
        let value = distance(&y, &expected);
        let slope = gradients.iter().zip(&expected_gradients).map(|(g, e)| distance(g, e)).fold(0.0, f64::max);
        // f32 rounds at 6e-8. A product of `linear` or `gated_linear` adds up to 331 terms of mean size 0.56 that may cancel: 6e-8 of their
        // sum is 1.1e-5.
        // Gradients with respect to weights add over 301 rows.
        let tolerance = if case.name.contains("linear") { 1.1e-5 } else { 3e-6 };
        assert!(value < tolerance && slope < 2e-5, "{}: {value:e}, gradient {slope:e}", case.name);
        for (worst, error) in worst.iter_mut().zip([value, slope]) {
            if error > worst.0 {
                *worst = (error, case.name.clone());
            }
        }
    }
    println!("worst f32 value {:e} in {}, gradient {:e} in {}", worst[0].0, worst[0].1, worst[1].0, worst[1].1);
}

#[test]
fn half_precision_is_f32_narrowed() {
    for dtype in [DType::F16, DType::BF16] {
        for case in small() {
            let narrow: Vec<Tensor> = tensors(&arguments(&case, DType::F32)).iter().map(|t| t.to_dtype(dtype).unwrap()).collect();
            let wide: Vec<Tensor> = narrow.iter().map(|t| t.to_dtype(DType::F32).unwrap()).collect();
            let (y, expected) = ((case.fused)(&narrow).unwrap(), (case.fused)(&wide).unwrap());
            // bf16 rounds at 2⁻⁹; the products of `linear` are candle's, which adds up f16 in f32.
            assert!(distance(&y, &expected) < 1e-2, "{} in {dtype:?}: {:e}", case.name, distance(&y, &expected));
        }
    }
}

#[test]
fn non_contiguous_arguments_change_nothing() {
    for case in small() {
        let vars = arguments(&case, DType::F64);
        let (y, gradients) = value_and_gradients(&case.fused, &vars).unwrap();
        // The same numbers in memory in another order: last two dimensions swapped, and an offset in front.
        let swapped: Vec<Tensor> = tensors(&vars)
            .iter()
            .map(|t| match t.rank() {
                1 => Tensor::cat(&[t, t], 0).unwrap().narrow(0, t.elem_count(), t.elem_count()).unwrap(),
                rank => t.transpose(rank - 2, rank - 1).unwrap().contiguous().unwrap().transpose(rank - 2, rank - 1).unwrap(),
            })
            .collect();
        let again = (case.fused)(&swapped).unwrap();
        assert!(distance(&again, &y) < 1e-14, "{}", case.name);
        let weights = random(y.dims(), 99);
        let store = (again * weights).unwrap().sum_all().unwrap().backward().unwrap();
        for (var, gradient) in vars.iter().zip(gradients) {
            assert!(distance(store.get(var).unwrap(), &gradient) < 1e-13, "{}", case.name);
        }
    }
}

#[test]
fn constants_get_no_gradient() {
    let (x, w) = (Var::from_tensor(&random(&[3, 4], 1)).unwrap(), random(&[2, 4], 2));
    let store = crate::linear(x.as_tensor(), &w, None).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(store.get(&w).is_none() && store.get(&x).is_some());
}
