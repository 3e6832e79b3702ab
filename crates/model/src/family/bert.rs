//! BERT (Devlin et al., 2018): post-norm encoder, learned positions, token types.

use super::config::{Fields, Source, activation};
use super::names::{Names, plain};
use super::{Family, Keys, encode_head, labels_of, no_layer_fields};
use crate::blueprint::*;
use crate::dims::LayerDims;
use crate::error::Result;

/// The names of BERT's encoder below a prefix.
macro_rules! encoder_names {
    ($prefix:literal) => {
        [
            plain("embeddings.token", concat!($prefix, "embeddings.word_embeddings")),
            plain("embeddings.position", concat!($prefix, "embeddings.position_embeddings")),
            plain("embeddings.token_type", concat!($prefix, "embeddings.token_type_embeddings")),
            plain("embeddings.norm", concat!($prefix, "embeddings.LayerNorm")),
            plain("embeddings.project", concat!($prefix, "embeddings_project")),
            plain("layers.{l}.attention.q", concat!($prefix, "encoder.layer.{l}.attention.self.query")),
            plain("layers.{l}.attention.k", concat!($prefix, "encoder.layer.{l}.attention.self.key")),
            plain("layers.{l}.attention.v", concat!($prefix, "encoder.layer.{l}.attention.self.value")),
            plain("layers.{l}.attention.o", concat!($prefix, "encoder.layer.{l}.attention.output.dense")),
            plain("layers.{l}.norm1", concat!($prefix, "encoder.layer.{l}.attention.output.LayerNorm")),
            plain("layers.{l}.mlp.up", concat!($prefix, "encoder.layer.{l}.intermediate.dense")),
            plain("layers.{l}.mlp.down", concat!($prefix, "encoder.layer.{l}.output.dense")),
            plain("layers.{l}.norm2", concat!($prefix, "encoder.layer.{l}.output.LayerNorm")),
        ]
    };
}
pub(super) use encoder_names;

pub(super) const FAMILY: Family = Family {
    name: "BERT",
    model_types: &["bert"],
    architectures: &[
        ("BertForMaskedLM", Task::MaskedLm),
        ("BertForPreTraining", Task::MaskedLm),
        ("BertForSequenceClassification", Task::Classification),
        ("BertForQuestionAnswering", Task::QuestionAnswering),
        ("BertModel", Task::Encoder),
    ],
    read,
    names,
    keys: KEYS,
    write_layers: no_layer_fields,
};

pub(super) const KEYS: Keys = Keys {
    layers: "num_hidden_layers",
    hidden: "hidden_size",
    embedding: None,
    heads: "num_attention_heads",
    kv_heads: None,
    head_dim: None,
    ffn: "intermediate_size",
    experts: None,
};

fn read(source: &Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)> {
    let fields = &source.fields;
    let eps = fields.positive_or(&["layer_norm_eps"], 1e-12)?;
    let head = match source.task {
        Task::Classification => classifier(fields, Some(Activation::Tanh))?,
        Task::QuestionAnswering => Head::Spans,
        Task::Encoder => encode_head((source.has_tensor)("pooler.dense.weight")),
        Task::MaskedLm | Task::CausalLm => masked_lm(fields, activation(fields, &["hidden_act"], "gelu")?, eps)?,
    };
    encoder(fields, head, eps, PositionRule::Index, Tables { token_types: fields.width_or(&["type_vocab_size"], 2)?, width: None })
}

/// The head of masked language modelling: dense, activation, LayerNorm, the embedding's matrix, a bias.
pub(super) fn masked_lm(fields: &Fields<'_>, activation: Activation, eps: f64) -> Result<Head> {
    let tied = fields.flag_or("tie_word_embeddings", true)?;
    Ok(Head::Tokens { tied, bias: true, transform: Some((activation, eps)), project: false, softcap: None })
}

/// A classifier on the first token.
pub(super) fn classifier(fields: &Fields<'_>, dense: Option<Activation>) -> Result<Head> {
    let (labels, regression) = labels_of(fields)?;
    Ok(Head::Sequence { labels, regression, pick: Pick::First, dense, bias: true })
}

/// Embedding tables of an encoder.
pub(super) struct Tables {
    /// Rows of the token types; 0: none.
    pub token_types: usize,
    /// Width, where a projection follows.
    pub width: Option<usize>,
}

/// The encoder of BERT and its kin; the names of fields are BERT's or, after them, DistilBERT's.
pub(super) fn encoder(
    fields: &Fields<'_>,
    head: Head,
    eps: f64,
    rule: PositionRule,
    tables: Tables,
) -> Result<(Blueprint, Vec<LayerDims>)> {
    fields.refuse_flag("is_decoder", "this family as a decoder", "use the encoder, or a decoder family")?;
    if let Some(other) = fields.text(&["position_embedding_type"])?.filter(|kind| *kind != "absolute") {
        return Err(fields.unsupported(format!("position_embedding_type `{other}`"), "`absolute` is"));
    }
    let hidden = fields.width(&["hidden_size", "dim"])?;
    let layers = fields.count(&["num_hidden_layers", "n_layers"])?;
    let (heads, head_dim) = fields.heads_of(hidden, &["num_attention_heads", "n_heads"], None)?;
    let width = tables.width.unwrap_or(hidden);
    let blueprint = Blueprint {
        hidden,
        vocab: fields.width(&["vocab_size"])?,
        embeddings: Embeddings {
            width,
            positions: Some(Positions { rows: fields.width(&["max_position_embeddings"])?, rule }),
            token_types: tables.token_types,
            norm_eps: Some(eps),
            scale: 1.0,
            project: (width != hidden).then_some(Projection::Sum),
        },
        norm: Norm { kind: NormKind::Layer, eps },
        layout: Layout::Post,
        attention: Attention { causal: false, qkv_bias: true, o_bias: true, qk_norm: false, softcap: None },
        mlp: Mlp {
            activation: activation(fields, &["hidden_act", "activation"], "gelu")?,
            gated: false,
            up_bias: true,
            down_bias: true,
            router: None,
        },
        layers: vec![LayerSpec { window: None, rotary: None, scale: (head_dim as f64).powf(-0.5) }; layers],
        rotary: Vec::new(),
        final_norm: false,
        head,
    };
    let dims = LayerDims {
        q_heads: heads,
        kv_heads: heads,
        head_dim,
        ffn: fields.width(&["intermediate_size", "hidden_dim"])?,
        ..LayerDims::default()
    };
    Ok((blueprint, vec![dims; layers]))
}

fn names(blueprint: &Blueprint) -> Names {
    let mut entries = encoder_names!("bert.").to_vec();
    entries.extend([
        plain("pooler", "bert.pooler.dense"),
        plain("head.transform", "cls.predictions.transform.dense"),
        plain("head.norm", "cls.predictions.transform.LayerNorm"),
        plain("head.weight", "cls.predictions.decoder.weight"),
        plain("head.bias", "cls.predictions.bias"),
        plain("classifier", span_or(blueprint, "classifier")),
    ]);
    Names { prefix: "bert.", entries }
}

/// The classifier's name, or that of the span head.
pub(super) fn span_or(blueprint: &Blueprint, classifier: &'static str) -> &'static str {
    if blueprint.head == Head::Spans { "qa_outputs" } else { classifier }
}
