//! GPT-2 (Radford et al., 2019): pre-norm decoder, learned positions; matrices lie as `[in, out]`, q, k and v in one.

use super::config::{Fields, Source, activation};
use super::llama::head;
use super::names::{How, Name, Names, QkvOrder, plain, stored};
use super::{Family, Keys, no_layer_fields};
use crate::blueprint::*;
use crate::dims::LayerDims;
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "GPT-2",
    model_types: &["gpt2"],
    architectures: &[
        ("GPT2LMHeadModel", Task::CausalLm),
        ("GPT2ForSequenceClassification", Task::Classification),
        ("GPT2Model", Task::Encoder),
    ],
    read,
    names: |_| names(),
    keys: Keys {
        layers: "n_layer",
        hidden: "n_embd",
        embedding: None,
        heads: "n_head",
        kv_heads: None,
        head_dim: None,
        ffn: "n_inner",
        experts: None,
    },
    write_layers: no_layer_fields,
};

/// The shape of decoders of GPT-2's time: as many key/value heads as query heads, plain MLPs with biases, LayerNorm.
pub(super) struct Plain {
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
}

impl Plain {
    /// A width for the MLP that configs may leave out: four times the hidden size.
    pub fn read(fields: &Fields<'_>, hidden: &str, layers: &str, heads: &str, ffn: &str) -> Result<Self> {
        let width = fields.width(&[hidden])?;
        let (heads, head_dim) = fields.heads_of(width, &[heads], None)?;
        let ffn = fields.width_or_none(&[ffn])?.unwrap_or(4 * width);
        Ok(Self { hidden: width, layers: fields.count(&[layers])?, heads, head_dim, ffn })
    }

    /// Pre-norm, causal, every bias there, scores scaled by 1/√head_dim, no positions.
    pub fn blueprint(&self, fields: &Fields<'_>, eps: f64, activation: Activation, head: Head) -> Result<Blueprint> {
        Ok(Blueprint {
            hidden: self.hidden,
            vocab: fields.width(&["vocab_size"])?,
            embeddings: Embeddings { width: self.hidden, positions: None, token_types: 0, norm_eps: None, scale: 1.0, project: None },
            norm: Norm { kind: NormKind::Layer, eps },
            layout: Layout::Pre,
            attention: Attention { causal: true, qkv_bias: true, o_bias: true, qk_norm: false, softcap: None },
            mlp: Mlp { activation, gated: false, up_bias: true, down_bias: true, router: None },
            layers: vec![LayerSpec { window: None, rotary: None, scale: (self.head_dim as f64).powf(-0.5) }; self.layers],
            rotary: Vec::new(),
            final_norm: true,
            head,
        })
    }

    /// The same dims in each layer.
    pub fn dims(&self) -> Vec<LayerDims> {
        let dims = LayerDims { q_heads: self.heads, kv_heads: self.heads, head_dim: self.head_dim, ffn: self.ffn, ..LayerDims::default() };
        vec![dims; self.layers]
    }
}

fn read(source: &Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)> {
    let fields = &source.fields;
    let shape = Plain::read(fields, "n_embd", "n_layer", "n_head", "n_inner")?;
    let eps = fields.positive_or(&["layer_norm_epsilon"], 1e-5)?;
    let head = head(source, fields.flag_or("tie_word_embeddings", true)?)?;
    let mut blueprint = shape.blueprint(fields, eps, activation(fields, &["activation_function"], "gelu_new")?, head)?;
    blueprint.embeddings.positions = Some(Positions { rows: fields.width(&["n_positions"])?, rule: PositionRule::Index });
    let scaled = fields.flag_or("scale_attn_weights", true)?;
    let by_layer = fields.flag_or("scale_attn_by_inverse_layer_idx", false)?;
    for (index, layer) in blueprint.layers.iter_mut().enumerate() {
        layer.scale = if scaled { layer.scale } else { 1.0 } / if by_layer { (index + 1) as f64 } else { 1.0 };
    }
    Ok((blueprint, shape.dims()))
}

fn names() -> Names {
    let entries: &[Name] = &[
        plain("embeddings.token", "transformer.wte"),
        plain("embeddings.position", "transformer.wpe"),
        plain("layers.{l}.norm1", "transformer.h.{l}.ln_1"),
        stored("layers.{l}.attention", "transformer.h.{l}.attn.c_attn", How::QkvTransposed(QkvOrder::Blocks)),
        stored("layers.{l}.attention.o", "transformer.h.{l}.attn.c_proj", How::Transposed),
        plain("layers.{l}.norm2", "transformer.h.{l}.ln_2"),
        stored("layers.{l}.mlp.up", "transformer.h.{l}.mlp.c_fc", How::Transposed),
        stored("layers.{l}.mlp.down", "transformer.h.{l}.mlp.c_proj", How::Transposed),
        plain("final_norm", "transformer.ln_f"),
        plain("head", "lm_head"),
        plain("classifier", "score"),
    ];
    Names { prefix: "transformer.", entries: entries.to_vec() }
}
