//! Keep-masks from scores: what stays when the lowest are dropped. Equal scores: the lowest index goes first. Scores are ordered by
//! `f32::total_cmp`, so a NaN has a place too, but callers are expected to have refused it.

use rayon::prelude::*;

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
        let rows = scores.par_chunks(width).zip(mask.par_chunks_mut(width));
        rows.for_each(|(row, mask)| drop_lowest(row, row.len().saturating_sub(keep), mask));
    }
    mask
}

/// 1 where the score is at least `threshold`.
pub fn threshold_mask(scores: &[f32], threshold: f32) -> Vec<u8> {
    scores.iter().map(|&s| u8::from(s >= threshold)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_go_and_of_equals_the_first() {
        assert_eq!(top_k_mask(&[3.0, 1.0, 1.0, 2.0, 1.0], 3), [1, 0, 0, 1, 1]);
        assert_eq!(top_k_mask(&[1.0; 4], 2), [0, 0, 1, 1]);
        assert_eq!(top_k_mask(&[-1.0, -2.0], 0), [0, 0]);
        assert_eq!(top_k_mask(&[-1.0, -2.0], 9), [1, 1]);
        assert!(top_k_mask(&[], 3).is_empty());
    }

    #[test]
    fn rows_are_ranked_alone_and_the_last_may_be_short() {
        assert_eq!(top_k_mask_rows(&[1.0, 2.0, 3.0, 9.0, 8.0, 7.0, 5.0], 3, 2), [0, 1, 1, 1, 1, 0, 1]);
        assert_eq!(top_k_mask_rows(&[1.0, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0, 1.0], 4, 2), [0, 0, 1, 1, 1, 1, 0, 0], "2:4");
        assert_eq!(top_k_mask_rows(&[1.0], 0, 1), [1]);
    }

    #[test]
    fn a_score_at_the_threshold_stays() {
        assert_eq!(threshold_mask(&[0.5, 0.4, 0.6], 0.5), [1, 0, 1]);
    }
}
