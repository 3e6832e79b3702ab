//! How far predictions agree with the truth: arithmetic on lists of numbers.

/// Standard error of a mean.
pub(crate) fn stderr(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    if n < 2.0 {
        return 0.0;
    }
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (variance / n).sqrt()
}

/// Ranks from 1; equal values share the mean of their ranks.
pub(super) fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    let at = |i: &usize| values.get(*i).copied().unwrap_or_default();
    order.sort_by(|a, b| at(a).total_cmp(&at(b)));
    let mut out = vec![0.0; values.len()];
    let mut rank = 0;
    for tie in order.chunk_by(|a, b| at(a) == at(b)) {
        let mean = rank as f64 + (tie.len() as f64 + 1.0) / 2.0;
        rank += tie.len();
        for i in tie {
            if let Some(r) = out.get_mut(*i) {
                *r = mean;
            }
        }
    }
    out
}

/// Pearson's correlation; None where a side is constant.
pub(super) fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    let n = a.len() as f64;
    let (ma, mb) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let mut cov = 0.0;
    let (mut va, mut vb) = (0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        cov += (x - ma) * (y - mb);
        va += (x - ma).powi(2);
        vb += (y - mb).powi(2);
    }
    (va > 0.0 && vb > 0.0).then(|| cov / (va * vb).sqrt())
}

/// Spearman's ρ; None where a side is constant or there are fewer than two values.
pub fn rank_correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    if a.len() < 2 || a.len() != b.len() {
        return None;
    }
    pearson(&ranks(a), &ranks(b))
}

/// F1 of one class.
pub(super) fn f1(predicted: &[f64], truth: &[f64], class: f64) -> f64 {
    let (mut hit, mut said, mut is) = (0.0, 0.0, 0.0);
    for (p, t) in predicted.iter().zip(truth) {
        said += f64::from(u8::from(*p == class));
        is += f64::from(u8::from(*t == class));
        hit += f64::from(u8::from(*p == class && *t == class));
    }
    if said + is > 0.0 { 2.0 * hit / (said + is) } else { 0.0 }
}

/// Matthews' correlation over any number of classes (Gorodkin 2004, eq. 8), with c right ones of s, t_k and p_k examples that are and are
/// called k: (c·s − Σ t_k p_k) / √((s² − Σ p_k²)(s² − Σ t_k²)). 0 where a side is constant.
pub(super) fn matthews(predicted: &[f64], truth: &[f64]) -> f64 {
    let mut classes: Vec<f64> = predicted.iter().chain(truth).copied().collect();
    classes.sort_by(f64::total_cmp);
    classes.dedup();
    let count = |side: &[f64], class: f64| side.iter().filter(|x| **x == class).count() as f64;
    let (s, c) = (truth.len() as f64, predicted.iter().zip(truth).filter(|(p, t)| p == t).count() as f64);
    let (mut tp, mut pp, mut tt) = (0.0, 0.0, 0.0);
    for class in classes {
        let (p, t) = (count(predicted, class), count(truth, class));
        tp += t * p;
        pp += p * p;
        tt += t * t;
    }
    let spread = (s * s - pp) * (s * s - tt);
    if spread > 0.0 { (c * s - tp) / spread.sqrt() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::{f1, matthews, pearson, ranks, stderr};

    #[test]
    fn ties_share_their_mean_rank() {
        assert_eq!(ranks(&[10.0, 20.0, 10.0, 30.0]), [1.5, 3.0, 1.5, 4.0]);
    }

    #[test]
    fn correlation_by_hand() {
        let r = pearson(&[1.0, 2.0, 3.0], &[1.0, 3.0, 2.0]);
        assert_eq!(r, Some(0.5));
        assert_eq!(pearson(&[1.0, 1.0], &[0.0, 1.0]), None);
    }

    #[test]
    fn f1_by_hand() {
        // 1 hit, 2 said, 3 are: 2·1/(2 + 3)
        assert!((f1(&[1.0, 1.0, 0.0, 0.0], &[1.0, 0.0, 1.0, 1.0], 1.0) - 0.4).abs() < 1e-12);
    }

    #[test]
    fn standard_error_by_hand() {
        assert!((stderr(&[1.0, 3.0]) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn matthews_by_hand() {
        // Two classes: tp 2, tn 1, fp 1, fn 0: (2·1 − 1·0)/√(3·2·2·1).
        let r = matthews(&[1.0, 1.0, 1.0, 0.0], &[1.0, 1.0, 0.0, 0.0]);
        assert!((r - 2.0 / 12f64.sqrt()).abs() < 1e-12, "{r}");
        // Three classes, all right; and a constant side.
        assert!((matthews(&[0.0, 1.0, 2.0], &[0.0, 1.0, 2.0]) - 1.0).abs() < 1e-12);
        assert_eq!(matthews(&[1.0, 1.0], &[0.0, 1.0]), 0.0);
    }
}
