//! Keep-masks from scores: what stays when the lowest are dropped. Equal scores: the lowest index goes first. Scores are ordered by
//! `f32::total_cmp`, so a NaN has a place too, but callers are expected to have refused it.

/// 1 for the `keep` highest scores, 0 for the rest. Linear time on average.
pub fn top_k_mask(scores: &[f32], keep: usize) -> Vec<u8> {
    let drop = scores.len().saturating_sub(keep);
    let mut mask = vec![1u8; scores.len()];
    drop_lowest(scores, drop, &mut mask);
    mask
}

fn drop_lowest(scores: &[f32], drop: usize, mask: &mut [u8]) {
    if drop == 0 {
        return;
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    if drop < scores.len() {
        order.select_nth_unstable_by(drop, |&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
    }
    for &i in order.iter().take(drop) {
        mask[i] = 0;
    }
}

/// Row by row, rows of `width` scores (the last one may be shorter): 1 for each row's `keep` highest.
pub fn top_k_mask_rows(scores: &[f32], width: usize, keep: usize) -> Vec<u8> {
    let mut mask = vec![1u8; scores.len()];
    if width > 0 {
        for (row, mask) in scores.chunks(width).zip(mask.chunks_mut(width)) {
            drop_lowest(row, row.len().saturating_sub(keep), mask);
        }
    }
    mask
}

/// 1 where the score is at least `threshold`.
pub fn threshold_mask(scores: &[f32], threshold: f32) -> Vec<u8> {
    scores.iter().map(|&s| u8::from(s >= threshold)).collect()
}
