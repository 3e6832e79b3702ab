//! How many rows fit at once, where a step does not say.

use prunectl_model::{Blueprint, Head, LayerDims};

/// The largest part of a machine's memory that the activations of a step may take.
const SHARE: f64 = 0.25;
/// More rows at once than this win nothing on a CPU or a GPU.
const MOST: usize = 64;

/// Tokens of a row where nothing says how long rows are: documents are rarely longer.
pub const USUAL_TOKENS: usize = 512;

/// What decides how many rows fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoBatch {
    /// Tokens of the longest row.
    pub length: usize,
    /// Width of the residual stream, or of a layer's heads together where that is more.
    pub hidden: usize,
    /// Widest FFN, of all experts together.
    pub ffn: usize,
    /// Query heads whose attention weights are stored: on the CPU none.
    pub heads: usize,
    /// Layers.
    pub layers: usize,
    /// Logits at each token: the vocabulary, or 0 where a row has one set of labels.
    pub vocabulary: usize,
    /// Whether a backward pass follows, so that every layer's activations stay.
    pub backward: bool,
}

impl AutoBatch {
    /// Of rows of `length` tokens through a network of this shape.
    pub fn new(blueprint: &Blueprint, dims: &[LayerDims], length: usize, backward: bool, on_cpu: bool) -> Self {
        let most = |of: fn(&LayerDims) -> usize| dims.iter().map(of).max().unwrap_or(0);
        Self {
            length,
            hidden: blueprint.hidden.max(most(|d| d.q_heads * d.head_dim)),
            ffn: most(|d| d.ffn * d.experts.max(1)),
            heads: if on_cpu { 0 } else { most(|d| d.q_heads) },
            layers: dims.len(),
            vocabulary: if matches!(blueprint.head, Head::Tokens { .. }) { blueprint.vocab } else { 0 },
            backward,
        }
    }

    /// Bytes of activations for one row in f32: residual stream, q/k/v and context, FFN, stored attention weights, logits; with a
    /// backward pass their copies in the graph and the gradients that are alive at once. An estimate from above for this network, held
    /// against measured peaks; it decides a batch, never a result.
    pub fn row_bytes(&self) -> u64 {
        self.bytes(if self.backward { self.block() * self.layers.max(1) as u64 } else { 2 * self.block() })
    }

    /// The same where the backward pass builds the blocks again: their inputs, and one block with its gradients.
    pub fn recomputed_row_bytes(&self) -> u64 {
        self.bytes(self.length as u64 * self.hidden as u64 * self.layers as u64 + 2 * self.block())
    }

    fn block(&self) -> u64 {
        let (s, wide, narrow) = if self.backward { (self.length as u64, 12, 5) } else { (self.length as u64, 8, 3) };
        s * (wide * self.hidden as u64 + narrow * self.ffn as u64) + 2 * self.heads as u64 * s * s
    }

    /// Beside what blocks keep: logits, and their gradient and log-probabilities.
    fn bytes(&self, kept: u64) -> u64 {
        let logits = if self.backward { 3 } else { 2 };
        4 * (kept + logits * self.length as u64 * self.vocabulary as u64)
    }

    /// The largest power of two of rows, at most 64, whose activations fit a quarter of `memory_bytes`; at least 1.
    pub fn rows(&self, memory_bytes: u64) -> usize {
        let fit = (memory_bytes as f64 * SHARE / self.row_bytes().max(1) as f64) as usize;
        let fit = fit.clamp(1, MOST);
        1 << fit.ilog2()
    }
}

/// The memory that this process may use: the machine's, or its control group's where that is less. It does not depend on what else runs,
/// so that a run repeated on a machine takes the same batches. 4 GiB where it can't be found out.
pub fn memory_bytes() -> u64 {
    const UNKNOWN: u64 = 4 << 30;
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map_or(UNKNOWN, |kib| kib * 1024);
    let group = number("/sys/fs/cgroup/memory.max").or_else(|| number("/sys/fs/cgroup/memory/memory.limit_in_bytes"));
    group.filter(|g| *g > 0).map_or(total, |g| g.min(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits_memory() {
        let small = AutoBatch { length: 64, hidden: 64, ffn: 256, heads: 4, layers: 4, vocabulary: 0, backward: false };
        assert_eq!(small.rows(8 << 30), 64);
        let large = AutoBatch { length: 2048, hidden: 4096, ffn: 11008, heads: 32, layers: 32, vocabulary: 128_256, backward: false };
        let rows = large.rows(64 << 30);
        assert!(rows >= 1 && (rows as u64) * large.row_bytes() <= (64 << 30) / 4, "{rows}");
        assert_eq!(AutoBatch { backward: true, ..large }.rows(1 << 30), 1);
        let trained = AutoBatch { backward: true, ..large };
        assert!(trained.recomputed_row_bytes() < trained.row_bytes() && trained.recomputed_row_bytes() > large.row_bytes());
        assert!(memory_bytes() > 1 << 20);
    }
}
