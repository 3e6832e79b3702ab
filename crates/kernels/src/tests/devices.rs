//! Values and gradients on other devices against the CPU's, where this build has one and the machine, too.

use super::cases::{large, small};
use super::{arguments, distance, value_and_gradients};
use candle_core::{DType, Device, Var};

/// A device adds up in another order, and CUDA's exponentials round otherwise: f32's 6e-8 over sums of a few hundred terms.
const CLOSE: f64 = 1e-4;

#[test]
fn devices_agree_with_the_cpu() {
    for (name, device) in [("cuda:0", Device::new_cuda(0)), ("metal", Device::new_metal(0))] {
        let Ok(device) = device else {
            println!("SKIPPED: no {name} in this build or on this machine");
            continue;
        };
        for case in small().into_iter().chain(large()) {
            let vars = arguments(&case, DType::F32);
            let there: Vec<Var> = vars.iter().map(|v| Var::from_tensor(&v.to_device(&device).unwrap()).unwrap()).collect();
            let (expected, expected_gradients) = value_and_gradients(&case.fused, &vars).unwrap();
            let (y, gradients) = value_and_gradients(&case.fused, &there).unwrap();
            assert!(distance(&y, &expected) < CLOSE, "{name}, {}: {:e}", case.name, distance(&y, &expected));
            for (gradient, expected) in gradients.iter().zip(&expected_gradients) {
                assert!(distance(gradient, expected) < CLOSE, "{name}, {}: {:e}", case.name, distance(gradient, expected));
            }
        }
    }
}
