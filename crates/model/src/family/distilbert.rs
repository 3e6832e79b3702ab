//! DistilBERT (Sanh et al., 2019): BERT's encoder without token types and pooler.

use super::bert::{Tables, classifier, encoder, masked_lm, span_or};
use super::config::{Source, activation};
use super::names::{Name, Names, plain};
use super::{Family, Keys, encode_head, no_layer_fields};
use crate::blueprint::*;
use crate::dims::LayerDims;
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "DistilBERT",
    model_types: &["distilbert"],
    architectures: &[
        ("DistilBertForMaskedLM", Task::MaskedLm),
        ("DistilBertForSequenceClassification", Task::Classification),
        ("DistilBertForQuestionAnswering", Task::QuestionAnswering),
        ("DistilBertModel", Task::Encoder),
    ],
    read,
    names,
    keys: Keys {
        layers: "n_layers",
        hidden: "dim",
        embedding: None,
        heads: "n_heads",
        kv_heads: None,
        head_dim: None,
        ffn: "hidden_dim",
        experts: None,
    },
    write_layers: no_layer_fields,
};

/// Not in its config.
const EPS: f64 = 1e-12;

fn read(source: &Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)> {
    let fields = &source.fields;
    let head = match source.task {
        Task::Classification => classifier(fields, Some(Activation::Relu))?,
        Task::QuestionAnswering => Head::Spans,
        Task::Encoder => encode_head(false),
        Task::MaskedLm | Task::CausalLm => masked_lm(fields, activation(fields, &["activation"], "gelu")?, EPS)?,
    };
    encoder(fields, head, EPS, PositionRule::Index, Tables { token_types: 0, width: None })
}

fn names(blueprint: &Blueprint) -> Names {
    let entries: &[Name] = &[
        plain("embeddings.token", "distilbert.embeddings.word_embeddings"),
        plain("embeddings.position", "distilbert.embeddings.position_embeddings"),
        plain("embeddings.norm", "distilbert.embeddings.LayerNorm"),
        plain("layers.{l}.attention.q", "distilbert.transformer.layer.{l}.attention.q_lin"),
        plain("layers.{l}.attention.k", "distilbert.transformer.layer.{l}.attention.k_lin"),
        plain("layers.{l}.attention.v", "distilbert.transformer.layer.{l}.attention.v_lin"),
        plain("layers.{l}.attention.o", "distilbert.transformer.layer.{l}.attention.out_lin"),
        plain("layers.{l}.norm1", "distilbert.transformer.layer.{l}.sa_layer_norm"),
        plain("layers.{l}.mlp.up", "distilbert.transformer.layer.{l}.ffn.lin1"),
        plain("layers.{l}.mlp.down", "distilbert.transformer.layer.{l}.ffn.lin2"),
        plain("layers.{l}.norm2", "distilbert.transformer.layer.{l}.output_layer_norm"),
        plain("pooler", "pre_classifier"),
        plain("classifier", span_or(blueprint, "classifier")),
        plain("head.transform", "vocab_transform"),
        plain("head.norm", "vocab_layer_norm"),
        plain("head", "vocab_projector"),
    ];
    Names { prefix: "distilbert.", entries: entries.to_vec() }
}
