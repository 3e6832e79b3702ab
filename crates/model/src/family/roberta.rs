//! RoBERTa (Liu et al., 2019) and XLM-R (Conneau et al., 2019): BERT's encoder; positions skip padding and start after its id.

use super::bert::{KEYS, Tables, classifier, encoder, encoder_names, masked_lm, span_or};
use super::config::Source;
use super::names::{Names, plain};
use super::{Family, encode_head, no_layer_fields};
use crate::blueprint::*;
use crate::dims::LayerDims;
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "RoBERTa",
    model_types: &["roberta"],
    architectures: &[
        ("RobertaForMaskedLM", Task::MaskedLm),
        ("RobertaForSequenceClassification", Task::Classification),
        ("RobertaForQuestionAnswering", Task::QuestionAnswering),
        ("RobertaModel", Task::Encoder),
    ],
    read,
    names,
    keys: KEYS,
    write_layers: no_layer_fields,
};

pub(super) const XLM: Family = Family {
    name: "XLM-R",
    model_types: &["xlm-roberta"],
    architectures: &[
        ("XLMRobertaForMaskedLM", Task::MaskedLm),
        ("XLMRobertaForSequenceClassification", Task::Classification),
        ("XLMRobertaForQuestionAnswering", Task::QuestionAnswering),
        ("XLMRobertaModel", Task::Encoder),
    ],
    read,
    names,
    keys: KEYS,
    write_layers: no_layer_fields,
};

fn read(source: &Source<'_>) -> Result<(Blueprint, Vec<LayerDims>)> {
    let fields = &source.fields;
    let eps = fields.positive_or(&["layer_norm_eps"], 1e-12)?;
    let head = match source.task {
        Task::Classification => classifier(fields, Some(Activation::Tanh))?,
        Task::QuestionAnswering => Head::Spans,
        Task::Encoder => encode_head((source.has_tensor)("pooler.dense.weight")),
        Task::MaskedLm | Task::CausalLm => masked_lm(fields, Activation::GeluErf, eps)?,
    };
    let pad = fields.width_or(&["pad_token_id"], 1)?;
    let rule = PositionRule::RankAmongNot { pad: pad as u32, base: pad };
    let tables = Tables { token_types: fields.width_or(&["type_vocab_size"], 2)?, width: None };
    encoder(fields, head, eps, rule, tables)
}

fn names(blueprint: &Blueprint) -> Names {
    let mut entries = encoder_names!("roberta.").to_vec();
    entries.extend([
        plain("head.transform", "lm_head.dense"),
        plain("head.norm", "lm_head.layer_norm"),
        plain("head.weight", "lm_head.decoder.weight"),
        plain("head.bias", "lm_head.bias"),
        plain("classifier", span_or(blueprint, "classifier.out_proj")),
    ]);
    let encodes = matches!(blueprint.head, Head::Encode { .. });
    entries.push(plain("pooler", if encodes { "roberta.pooler.dense" } else { "classifier.dense" }));
    Names { prefix: "roberta.", entries }
}
