//! Paired comparison: is the mean of differences at least so much, beyond the chance of the examples drawn?

/// The lower end of the one-sided confidence interval of the mean of `differences`: mean − z · s/√n, with the normal quantile z of
/// `confidence` (a fraction of 1) and the sample deviation s. −∞ for fewer than two values.
pub fn paired_lower_bound(differences: &[f64], confidence: f64) -> f64 {
    let n = differences.len() as f64;
    if differences.len() < 2 {
        return f64::NEG_INFINITY;
    }
    let mean = differences.iter().sum::<f64>() / n;
    let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0);
    mean - normal_quantile(confidence) * (variance / n).sqrt()
}

/// The standard normal quantile by bisection of the distribution function: 60 halvings of ±9 leave less than 1e-16.
fn normal_quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-9.0, 9.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if normal_cdf(middle) < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// Φ(x) = ½ + φ(x)·Σ x^(2k+1)/(1·3·…·(2k+1)): Marsaglia, Evaluating the Normal Distribution (2004), eq. 3.
fn normal_cdf(x: f64) -> f64 {
    let (mut sum, mut term, mut k) = (x, x, 1.0);
    while sum + term != sum && k < 500.0 {
        k += 2.0;
        term *= x * x / k;
        sum += term;
    }
    0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_the_tables() {
        // Tables to six digits.
        for (p, z) in [(0.5, 0.0), (0.95, 1.644_854), (0.975, 1.959_964), (0.99, 2.326_348), (0.05, -1.644_854)] {
            assert!((normal_quantile(p) - z).abs() < 1e-6, "{p}: {}", normal_quantile(p));
        }
    }

    #[test]
    fn the_bound_of_a_small_sample() {
        // Mean 0.5, s = 0.57735, n = 4: 0.5 − 1.644854 · 0.288675.
        let bound = paired_lower_bound(&[0.0, 1.0, 0.0, 1.0], 0.95);
        assert!((bound - 0.025_171).abs() < 1e-5, "{bound}");
        assert_eq!(paired_lower_bound(&[1.0], 0.95), f64::NEG_INFINITY);
        assert_eq!(paired_lower_bound(&[0.25; 10], 0.95), 0.25);
    }
}
