//! Differentiable fused tensor operations over candle tensors.
//!
//! On the CPU each kernel is one parallel, vectorised pass with a hand-written backward; on CUDA and Metal it is composed of candle's
//! own operations, which have kernels and gradients there. f32 is the fast path and f64 the exact one (gradient checks); f16 and bf16
//! are computed in f32 and narrowed. Results are the same bits for any number of threads: where work is cut changes no sum, and sums
//! across rows add fixed-size partial sums in order.
//!
//! This crate knows tensors and no models: no family, no file, no text.

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod autograd;
mod check;
pub mod cross_entropy;
pub mod embedding;
pub mod error;
pub mod gate;
pub mod gated;
pub mod gated_linear;
pub mod gram;
pub mod kl_div;
pub mod layer_norm;
pub mod linear;
mod matrix;
pub mod memory;
mod plain;
mod real;
pub mod residual;
pub mod rms_norm;
pub mod rope;
mod rows;
mod simd;
pub mod softmax;
#[cfg(test)]
mod tests;
pub mod threads;
pub mod top_k;
pub mod vector;

pub use activation::{Activation, gelu_erf, gelu_tanh, quick_gelu, relu, silu};
pub use adamw::{AdamW, adamw_step};
pub use attention::{AttnMask, attention, attention_probs};
pub use cross_entropy::cross_entropy;
pub use embedding::embedding;
pub use error::KernelError;
pub use gate::gate;
pub use gated::gated;
pub use gated_linear::gated_linear;
pub use kl_div::kl_div;
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use residual::add;
pub use rms_norm::rms_norm;
pub use rope::{RopeStyle, rope};
pub use softmax::softmax_last_dim;
pub use top_k::{threshold_mask, top_k_mask, top_k_mask_rows};
