//! ELECTRA (Clark et al., 2020): BERT's encoder; embeddings may be narrower than the residual stream.

use super::bert::{KEYS, Tables, classifier, encoder, encoder_names, masked_lm, span_or};
use super::config::Source;
use super::names::{Names, plain};
use super::{Family, Keys, encode_head, no_layer_fields};
use crate::blueprint::*;
use crate::dims::LayerDims;
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "ELECTRA",
    model_types: &["electra"],
    architectures: &[
        ("ElectraForMaskedLM", Task::MaskedLm),
        ("ElectraForSequenceClassification", Task::Classification),
        ("ElectraForQuestionAnswering", Task::QuestionAnswering),
        ("ElectraModel", Task::Encoder),
    ],
    read,
    names,
    keys: Keys { embedding: Some("embedding_size"), ..KEYS },
    write_layers: no_layer_fields,
};

fn read(source: &Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)> {
    let fields = &source.fields;
    let eps = fields.positive_or(&["layer_norm_eps"], 1e-12)?;
    let head = match source.task {
        Task::Classification => classifier(fields, Some(Activation::GeluErf))?,
        Task::QuestionAnswering => Head::Spans,
        Task::Encoder => encode_head(false),
        Task::MaskedLm | Task::CausalLm => masked_lm(fields, Activation::GeluErf, eps)?,
    };
    let width = Some(fields.width(&["embedding_size"])?);
    let tables = Tables { token_types: fields.width_or(&["type_vocab_size"], 2)?, width };
    encoder(fields, head, eps, PositionRule::Index, tables)
}

fn names(blueprint: &Blueprint) -> Names {
    let mut entries = encoder_names!("electra.").to_vec();
    entries.extend([
        plain("pooler", "classifier.dense"),
        plain("classifier", span_or(blueprint, "classifier.out_proj")),
        plain("head.transform", "generator_predictions.dense"),
        plain("head.norm", "generator_predictions.LayerNorm"),
        plain("head", "generator_lm_head"),
    ]);
    Names { prefix: "electra.", entries }
}
