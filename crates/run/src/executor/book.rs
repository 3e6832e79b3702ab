//! What a run found out: metrics, expectations, sweeps, curves, saved folders. `metrics.json` and the report are written from it.

use std::collections::BTreeMap;

use prunectl_prune::{Fitted, Rebuilt, Scores};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::report::FigureUnit;

/// One `eval`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// The metric's name: `accuracy`.
    pub metric: String,
    /// Its value; a share is a fraction of 1.
    #[serde(with = "number")]
    pub value: f64,
    /// Standard error, where there is one.
    #[serde(with = "optional_number", default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<f64>,
    /// How it was measured, in words.
    pub protocol: String,
    /// Scored tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Examples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub examples: Option<u64>,
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// The model's name.
    pub model: String,
    /// The data, as the recipe writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Whether the model was still as it was loaded.
    pub dense: bool,
    /// Further values by name, where the value sums up many.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, f64>,
    /// What whoever reads the value should be warned of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One `eval` with what only the report needs.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its recorded name.
    pub name: String,
    /// The call: `perplexity(window = 512 tokens)`.
    pub call: String,
    /// What is recorded.
    pub recorded: Recorded,
    /// Whether a larger value is a better model.
    pub higher_is_better: Option<bool>,
}

#[cfg(test)]
impl Row {
    /// A figure of the model `m`, for tests; what they care about they set.
    pub(crate) fn sample(name: &str, metric: &str, value: f64) -> Self {
        let recorded = Recorded {
            metric: metric.into(),
            value,
            stderr: None,
            protocol: String::new(),
            tokens: None,
            examples: None,
            device: "cpu".into(),
            model: "m".into(),
            data: None,
            dense: false,
            details: BTreeMap::new(),
            warnings: Vec::new(),
        };
        Self { name: name.into(), call: format!("{metric}()"), recorded, higher_is_better: Some(true) }
    }
}

/// One `expect`.
#[derive(Debug, Clone)]
pub struct Expected {
    /// As the recipe writes it.
    pub text: String,
    /// Its line.
    pub line: u32,
    /// Whether it held.
    pub passed: bool,
    /// With values instead of names.
    pub detail: String,
    /// `else "…"`.
    pub message: Option<String>,
}

/// One cell of a sweep.
#[derive(Debug, Clone)]
pub struct CellResult {
    /// One label per axis.
    pub labels: Vec<String>,
    /// Its metrics, by their names without the cell's suffix, in the order of their evals.
    pub values: Vec<(String, f64)>,
    /// How each of them is printed.
    pub units: BTreeMap<String, FigureUnit>,
    /// Parameters of the cell's (first) model.
    pub params: Option<u64>,
    /// The first `expect` that failed in it.
    pub failed: Option<String>,
}

impl CellResult {
    /// How a metric is printed.
    pub fn unit(&self, name: &str) -> FigureUnit {
        self.units.get(name).copied().unwrap_or_default()
    }
}

/// One sweep.
#[derive(Debug, Clone)]
pub struct SweepResult {
    /// Its `as` name.
    pub name: String,
    /// Its axes.
    pub axes: Vec<String>,
    /// Its cells, in order.
    pub cells: Vec<CellResult>,
    /// Its zero-cost proxies beside its other metrics.
    pub proxies: Vec<super::proxies::Proxy>,
}

/// Scores of a step, for the heatmap.
#[derive(Debug, Clone)]
pub struct Scored {
    /// The step's name.
    pub name: String,
    /// The criterion's call.
    pub criterion: String,
    /// The model.
    pub model: String,
    /// Each unit's last score before it went, or of the last round.
    pub scores: Scores,
    /// The model's unit map when it was scored.
    pub map: prunectl_prune::UnitMap,
}

/// A finished step, for the report.
#[derive(Debug, Clone)]
pub struct StepTime {
    /// Its line.
    pub line: u32,
    /// Its kind.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Milliseconds.
    pub elapsed_ms: u64,
}

/// What `reconstruct = …` of a prune did.
#[derive(Debug, Clone, PartialEq)]
pub struct Recovered {
    /// The step's name.
    pub name: String,
    /// `bias` or `least_squares`.
    pub method: String,
    /// The matrices that were fitted, in order.
    pub writers: Vec<Fitted>,
}

impl Recovered {
    /// By how much the residual stream behind the fitted matrices was off before and after, as a share of its square, their mean; None where
    /// nothing was fitted.
    pub fn lost(&self) -> Option<(f64, f64)> {
        let n = self.writers.len() as f64;
        let mean = |of: fn(&Fitted) -> f64| self.writers.iter().map(of).sum::<f64>() / n;
        (n > 0.0).then(|| (mean(|w| w.before), mean(|w| w.after)))
    }

    /// For the journal and `metrics.json`.
    pub fn to_json(&self) -> Value {
        json!({"method": self.method, "writers": self.writers})
    }
}

/// One `save`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedFolder {
    /// The model.
    pub model: String,
    /// Where.
    pub dir: String,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Loader and verdict, in words.
    pub loaders: Vec<(String, String)>,
    /// What the comparison found.
    pub verified: String,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Losses of a training.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Curve {
    /// The training's name.
    pub name: String,
    /// Parameters that trained; 0 of blocks that trained one by one.
    #[serde(default)]
    pub trained: u64,
    /// Step and loss.
    pub loss: Vec<(f64, f64)>,
    /// Step and share of the selected units that were masked; empty without a `prune` inside.
    #[serde(default)]
    pub sparsity: Vec<(f64, f64)>,
    /// Evals inside, by name: step and value.
    pub evals: BTreeMap<String, Vec<(f64, f64)>>,
}

/// Parameters and FLOPs of a model before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Parameters as loaded.
    pub params_before: u64,
    /// Parameters at the end; masked units count until they are compacted.
    pub params_after: u64,
    /// Weights that are zeros because they are masked.
    pub masked: u64,
    /// FLOPs of a sequence as loaded.
    pub flops_before: u64,
    /// FLOPs of a sequence at the end.
    pub flops_after: u64,
    /// Tokens of that sequence.
    pub flops_length_tokens: u64,
}

/// Everything that a run found out.
#[derive(Debug, Clone, Default)]
pub struct Book {
    /// Every `eval`, in order.
    pub rows: Vec<Row>,
    /// Every `expect`, in order.
    pub expectations: Vec<Expected>,
    /// Every sweep.
    pub sweeps: Vec<SweepResult>,
    /// Every scoring.
    pub scored: Vec<Scored>,
    /// Every finished step.
    pub steps: Vec<StepTime>,
    /// Every save.
    pub saves: Vec<SavedFolder>,
    /// Every training.
    pub curves: Vec<Curve>,
    /// Every `reconstruct = …` of a prune.
    pub recovered: Vec<Recovered>,
    /// Every `reconstruct` step's blocks, by its name.
    pub rebuilt: Vec<(String, Vec<Rebuilt>)>,
    /// How bounds were met, by the step's name, as the journal has it.
    pub bounds: Vec<(String, Value)>,
    /// Warnings, in order.
    pub warnings: Vec<String>,
    /// Models' sizes, by name.
    pub sizes: BTreeMap<String, Size>,
}

/// `acc[round=3]` → `acc`.
pub fn plain_name(name: &str) -> &str {
    name.split_once('[').map_or(name, |(plain, _)| plain)
}

impl Book {
    /// `metrics.json`: every recorded name, the plain names of those inside `repeat` and `sweep` (the last), `model`, `reconstruct` where
    /// matrices were fitted or blocks trained, and `proxies` of every sweep that measured zero-cost proxies.
    pub fn metrics(&self) -> Value {
        let mut out = Map::new();
        for row in &self.rows {
            let value = serde_json::to_value(&row.recorded).unwrap_or(Value::Null);
            let plain = plain_name(&row.name);
            if plain != row.name {
                out.insert(plain.to_owned(), value.clone());
            }
            out.insert(row.name.clone(), value);
        }
        let sizes = self.sizes.iter().map(|(name, s)| {
            let value = json!({
                "parameters": {"before": s.params_before, "after": s.params_after, "masked": s.masked},
                "flops": {"before": s.flops_before, "after": s.flops_after, "length_tokens": s.flops_length_tokens},
            });
            (name.clone(), value)
        });
        out.insert("model".to_owned(), Value::Object(sizes.collect()));
        let fitted = self.recovered.iter().map(|r| (r.name.clone(), r.to_json()));
        let rebuilt = self.rebuilt.iter().map(|(name, blocks)| (name.clone(), json!({"method": "blocks", "blocks": blocks})));
        let recovered: Map<String, Value> = fitted.chain(rebuilt).collect();
        if !recovered.is_empty() {
            out.insert("reconstruct".to_owned(), Value::Object(recovered));
        }
        let proxies: Map<String, Value> =
            self.sweeps.iter().filter(|s| !s.proxies.is_empty()).map(|s| (s.name.clone(), json!(s.proxies))).collect();
        if !proxies.is_empty() {
            out.insert("proxies".to_owned(), Value::Object(proxies));
        }
        Value::Object(out)
    }
}

/// How a metric's value is printed.
pub fn unit_of(metric: &str) -> FigureUnit {
    match metric {
        "accuracy" | "f1" | "sparsity" | "choice" | "last_word" | "exact_match" | "answer_f1" => FigureUnit::Percent,
        "params" | "flops" => FigureUnit::Count,
        "memory" => FigureUnit::Bytes,
        "latency" => FigureUnit::Milliseconds,
        "generation" => FigureUnit::TokensPerSecond,
        _ => FigureUnit::Plain,
    }
}

/// JSON has no infinities: a perplexity that overflowed is written as a string, not as null.
mod number {
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(f64),
        Text(String),
    }

    pub fn serialize<S: Serializer>(x: &f64, s: S) -> Result<S::Ok, S::Error> {
        if x.is_finite() { s.serialize_f64(*x) } else { s.serialize_str(&x.to_string()) }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
        match Either::deserialize(d)? {
            Either::Number(x) => Ok(x),
            Either::Text(t) => t.parse().map_err(serde::de::Error::custom),
        }
    }
}

mod optional_number {
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    struct Wrapped(#[serde(with = "super::number")] f64);

    pub fn serialize<S: Serializer>(x: &Option<f64>, s: S) -> Result<S::Ok, S::Error> {
        match x {
            Some(x) => super::number::serialize(x, s),
            None => s.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<f64>, D::Error> {
        Ok(Option::<Wrapped>::deserialize(d)?.map(|w| w.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(value: f64) -> Recorded {
        Recorded {
            metric: "perplexity".into(),
            value,
            stderr: Some(0.1),
            protocol: String::new(),
            tokens: Some(3),
            examples: None,
            device: "cpu".into(),
            model: "m".into(),
            data: None,
            dense: true,
            details: BTreeMap::new(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn values_come_back_to_the_same_bits() {
        for value in [0.1 + 0.2, 1.0 / 3.0, 4.794_231_987_654_321, f64::INFINITY, 5e-324, 123_456_789.123_456_79] {
            let text = serde_json::to_string(&recorded(value)).unwrap();
            let back: Recorded = serde_json::from_str(&text).unwrap();
            assert_eq!(back.value.to_bits(), value.to_bits(), "{text}");
        }
    }

    #[test]
    fn plain_names_are_the_last() {
        let mut book = Book::default();
        for (name, value) in [("acc[round=1]", 0.5), ("acc[round=2]", 0.6)] {
            book.rows.push(Row { name: name.into(), call: String::new(), recorded: recorded(value), higher_is_better: None });
        }
        let m = book.metrics();
        assert_eq!(m["acc"]["value"], 0.6);
        assert_eq!(m["acc[round=1]"]["value"], 0.5);
        assert!(m["model"].is_object());
    }
}
