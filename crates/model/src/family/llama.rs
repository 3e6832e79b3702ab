//! Llama 1 to 3.x (Touvron et al., 2023): pre-norm decoder, RMS norm, rotary, gated MLP, grouped key/value heads.

use super::config::{Fields, Source, Turns, activation};
use super::names::{Name, Names, plain};
use super::{Family, Keys, encode_head, labels_of, no_layer_fields};
use crate::blueprint::*;
use crate::dims::LayerDims;
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "Llama",
    model_types: &["llama"],
    architectures: &[
        ("LlamaForCausalLM", Task::CausalLm),
        ("LlamaForSequenceClassification", Task::Classification),
        ("LlamaModel", Task::Encoder),
    ],
    read,
    names: |_| names(),
    keys: KEYS,
    write_layers: no_layer_fields,
};

pub(super) const KEYS: Keys = Keys {
    layers: "num_hidden_layers",
    hidden: "hidden_size",
    embedding: None,
    heads: "num_attention_heads",
    kv_heads: Some("num_key_value_heads"),
    head_dim: Some("head_dim"),
    ffn: "intermediate_size",
    experts: None,
};

fn read(source: &Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)> {
    let bias = source.fields.flag_or("attention_bias", false)?;
    let (mut blueprint, dims) = decoder(source, &Silent::LLAMA)?;
    blueprint.attention.qkv_bias = bias;
    blueprint.attention.o_bias = bias;
    let mlp_bias = source.fields.flag_or("mlp_bias", false)?;
    blueprint.mlp.up_bias = mlp_bias;
    blueprint.mlp.down_bias = mlp_bias;
    Ok((blueprint, dims))
}

/// What holds where a config is silent: the defaults of the family's config class.
pub(super) struct Silent {
    /// The field with the name of the activation.
    pub activation_key: &'static str,
    pub activation: &'static str,
    pub tied: bool,
    pub eps: f64,
    /// Key/value heads of a config without the field; as many as query heads where this is none, or the field is null.
    pub kv_heads: Option<usize>,
    /// Width of a head of a config without the field; the hidden size by the heads where this is none, or the field is null.
    pub head_dim: Option<usize>,
    pub turns: Turns,
}

impl Silent {
    pub const LLAMA: Self = Self {
        activation_key: "hidden_act",
        activation: "silu",
        tied: false,
        eps: 1e-6,
        kv_heads: None,
        head_dim: None,
        turns: Turns::WHOLE,
    };
}

/// The decoder of Llama and its kin: no biases, no windows, one rotary table.
pub(super) fn decoder(source: &Source<'_>, silent: &Silent) -> Result<(Blueprint, Vec<LayerDims>)> {
    let fields = &source.fields;
    let hidden = fields.width(&["hidden_size"])?;
    let layers = fields.count(&["num_hidden_layers"])?;
    let (heads, head_dim) = fields.heads_of(hidden, &["num_attention_heads"], silent.head_dim)?;
    let kv_heads = fields.nullable_width_or("num_key_value_heads", silent.kv_heads)?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(fields.error("num_key_value_heads", format!("a divisor of num_attention_heads, {heads}")));
    }
    let blueprint = Blueprint {
        hidden,
        vocab: fields.width(&["vocab_size"])?,
        embeddings: Embeddings { width: hidden, positions: None, token_types: 0, norm_eps: None, scale: 1.0, project: None },
        norm: Norm { kind: NormKind::Rms, eps: fields.positive_or(&["rms_norm_eps"], silent.eps)? },
        layout: Layout::Pre,
        attention: Attention { causal: true, qkv_bias: false, o_bias: false, qk_norm: false, softcap: None },
        mlp: Mlp {
            activation: activation(fields, &[silent.activation_key], silent.activation)?,
            gated: true,
            up_bias: false,
            down_bias: false,
            router: None,
        },
        layers: vec![LayerSpec { window: None, rotary: Some(0), scale: (head_dim as f64).powf(-0.5) }; layers],
        rotary: vec![fields.rotary(head_dim, Pairs::Half, silent.turns)?],
        final_norm: true,
        head: head(source, fields.flag_or("tie_word_embeddings", silent.tied)?)?,
    };
    let dims = LayerDims { q_heads: heads, kv_heads, head_dim, ffn: fields.width(&["intermediate_size"])?, ..LayerDims::default() };
    Ok((blueprint, vec![dims; layers]))
}

/// The head of a causal decoder for a task.
pub(super) fn head(source: &Source<'_>, tied: bool) -> Result<Head> {
    Ok(match source.task {
        Task::Classification => last_token_classifier(&source.fields)?,
        Task::Encoder => encode_head(false),
        Task::CausalLm | Task::MaskedLm | Task::QuestionAnswering => {
            Head::Tokens { tied, bias: false, transform: None, project: false, softcap: None }
        }
    })
}

fn last_token_classifier(fields: &Fields<'_>) -> Result<Head> {
    let (labels, regression) = labels_of(fields)?;
    let pad = fields.get(&["pad_token_id"]).and_then(|(_, id)| u32::try_from(id.as_u64()?).ok());
    Ok(Head::Sequence { labels, regression, pick: Pick::Last { pad }, dense: None, bias: false })
}

/// The names of Llama's files, which most decoders after it share.
pub(super) fn names() -> Names {
    let entries: &[Name] = &[
        plain("embeddings.token", "model.embed_tokens"),
        plain("layers.{l}.norm1", "model.layers.{l}.input_layernorm"),
        plain("layers.{l}.attention.q", "model.layers.{l}.self_attn.q_proj"),
        plain("layers.{l}.attention.k", "model.layers.{l}.self_attn.k_proj"),
        plain("layers.{l}.attention.v", "model.layers.{l}.self_attn.v_proj"),
        plain("layers.{l}.attention.o", "model.layers.{l}.self_attn.o_proj"),
        plain("layers.{l}.attention.q_norm", "model.layers.{l}.self_attn.q_norm"),
        plain("layers.{l}.attention.k_norm", "model.layers.{l}.self_attn.k_norm"),
        plain("layers.{l}.norm2", "model.layers.{l}.post_attention_layernorm"),
        plain("layers.{l}.mlp.gate", "model.layers.{l}.mlp.gate_proj"),
        plain("layers.{l}.mlp.up", "model.layers.{l}.mlp.up_proj"),
        plain("layers.{l}.mlp.down", "model.layers.{l}.mlp.down_proj"),
        plain("final_norm", "model.norm"),
        plain("head", "lm_head"),
        plain("classifier", "score"),
    ];
    Names { prefix: "model.", entries: entries.to_vec() }
}
