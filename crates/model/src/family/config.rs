//! Reading `config.json`: every field checked, every complaint with its name.

use std::path::Path;

use serde_json::{Map, Value};

use crate::blueprint::{Pairs, Rotary, RotaryScaling, Task};
use crate::error::{ModelError, Result};

/// Largest width, vocabulary or count of positions that is taken for real.
const MAX_WIDTH: usize = 1 << 24;
/// Largest number of layers, heads or experts that is taken for real.
const MAX_COUNT: usize = 1 << 13;

/// The rotary embedding of a config that is silent about it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turns {
    /// The base.
    pub theta: f64,
    /// The share of a head that turns.
    pub partial: f64,
    /// The context before scaling; `max_position_embeddings` where this is none.
    pub original: Option<usize>,
}

impl Turns {
    /// Of most families.
    pub const WHOLE: Self = Self { theta: 10_000.0, partial: 1.0, original: None };
}

/// A config, or an object inside it.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    path: &'a Path,
    parent: Option<&'a str>,
    map: &'a Map<String, Value>,
}

/// What a family's reader is given.
pub(crate) struct Source<'a> {
    /// The config.
    pub fields: Fields<'a>,
    /// What the model is read for.
    pub task: Task,
    /// Whether the weight files have a tensor of that name.
    pub has_tensor: &'a dyn Fn(&str) -> bool,
}

impl<'a> Fields<'a> {
    /// The top of a config file.
    pub fn top(path: &'a Path, value: &'a Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self { path, parent: None, map }),
            other => Err(ModelError::Config {
                path: path.to_owned(),
                field: "(the whole file)".into(),
                found: brief(other),
                expected: "a JSON object".into(),
            }),
        }
    }

    /// An error about a field.
    pub fn error(&self, name: &str, expected: impl Into<String>) -> ModelError {
        let found = self.map.get(name).map_or_else(|| "nothing".to_owned(), brief);
        let field = self.parent.map_or_else(|| name.to_owned(), |p| format!("{p}.{name}"));
        ModelError::Config { path: self.path.to_owned(), field, found, expected: expected.into() }
    }

    /// A refusal of a mechanism.
    pub fn unsupported(&self, what: impl Into<String>, hint: impl Into<String>) -> ModelError {
        ModelError::Unsupported { path: self.path.to_owned(), what: what.into(), hint: hint.into() }
    }

    /// The value of the first of these names that is there and not null.
    pub fn get(&self, names: &[&'a str]) -> Option<(&'a str, &'a Value)> {
        names.iter().find_map(|name| self.map.get(*name).filter(|v| !v.is_null()).map(|v| (*name, v)))
    }

    fn whole(&self, names: &[&'a str], least: usize, most: usize) -> Result<Option<usize>> {
        let Some((name, value)) = self.get(names) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (least..=most).contains(&n) => Ok(Some(n)),
            _ => Err(self.error(name, format!("a whole number in {least}..={most}"))),
        }
    }

    fn required<T>(&self, names: &[&'a str], value: Option<T>, expected: &str) -> Result<T> {
        value.ok_or_else(|| self.error(names.first().copied().unwrap_or_default(), expected))
    }

    /// A width, vocabulary or count of positions, at least 1.
    pub fn width(&self, names: &[&'a str]) -> Result<usize> {
        self.required(names, self.whole(names, 1, MAX_WIDTH)?, "a whole number, at least 1")
    }

    /// The same where it may be absent.
    pub fn width_or_none(&self, names: &[&'a str]) -> Result<Option<usize>> {
        self.whole(names, 1, MAX_WIDTH)
    }

    /// The same where 0 is meaningful.
    pub fn width_or(&self, names: &[&'a str], default: usize) -> Result<usize> {
        Ok(self.whole(names, 0, MAX_WIDTH)?.unwrap_or(default))
    }

    /// A number of layers, heads or experts, at least 1.
    pub fn count(&self, names: &[&'a str]) -> Result<usize> {
        self.required(names, self.whole(names, 1, MAX_COUNT)?, "a whole number, at least 1")
    }

    /// The same where it may be absent.
    pub fn count_or_none(&self, names: &[&'a str]) -> Result<Option<usize>> {
        self.whole(names, 1, MAX_COUNT)
    }

    /// A finite number.
    pub fn number_or_none(&self, names: &[&'a str]) -> Result<Option<f64>> {
        let Some((name, value)) = self.get(names) else { return Ok(None) };
        match value.as_f64().filter(|x| x.is_finite()) {
            Some(x) => Ok(Some(x)),
            None => Err(self.error(name, "a number")),
        }
    }

    /// A finite number above 0.
    pub fn positive_or_none(&self, names: &[&'a str]) -> Result<Option<f64>> {
        match (self.number_or_none(names)?, self.get(names)) {
            (Some(x), Some((name, _))) if x <= 0.0 => Err(self.error(name, "a number above 0")),
            (x, _) => Ok(x),
        }
    }

    /// A finite number above 0, with the default that the family's own config has.
    pub fn positive_or(&self, names: &[&'a str], default: f64) -> Result<f64> {
        Ok(self.positive_or_none(names)?.unwrap_or(default))
    }

    /// A number that may be null (None), with the default for a config without the field.
    pub fn nullable_width_or(&self, name: &'a str, default: Option<usize>) -> Result<Option<usize>> {
        if self.map.contains_key(name) { self.width_or_none(&[name]) } else { Ok(default) }
    }

    /// The same for a number above 0.
    pub fn nullable_positive_or(&self, name: &'a str, default: Option<f64>) -> Result<Option<f64>> {
        if self.map.contains_key(name) { self.positive_or_none(&[name]) } else { Ok(default) }
    }

    /// The window of each layer by `layer_types`, where the config has it.
    pub fn windows(&self, layers: usize, window: Option<usize>) -> Result<Option<Vec<Option<usize>>>> {
        let Some(kinds) = self.texts("layer_types")? else { return Ok(None) };
        if kinds.len() != layers {
            return Err(self.error("layer_types", format!("{layers} entries, one a layer")));
        }
        let window_of = |kind: &&str| match *kind {
            "full_attention" => Ok(None),
            "sliding_attention" => {
                window.map(Some).ok_or_else(|| self.error("sliding_window", "a width: `layer_types` has sliding layers"))
            }
            other => Err(self.unsupported(format!("layer type `{other}`"), "full_attention and sliding_attention are")),
        };
        kinds.iter().map(window_of).collect::<Result<_>>().map(Some)
    }

    /// true or false.
    pub fn flag_or(&self, name: &'a str, default: bool) -> Result<bool> {
        match self.get(&[name]) {
            None => Ok(default),
            Some((_, Value::Bool(b))) => Ok(*b),
            Some(_) => Err(self.error(name, "true or false")),
        }
    }

    /// A string.
    pub fn text(&self, names: &[&'a str]) -> Result<Option<&'a str>> {
        match self.get(names) {
            None => Ok(None),
            Some((_, Value::String(s))) => Ok(Some(s)),
            Some((name, _)) => Err(self.error(name, "a string")),
        }
    }

    /// An object.
    pub fn object(&self, name: &'a str) -> Result<Option<Self>> {
        match self.get(&[name]) {
            None => Ok(None),
            Some((_, Value::Object(map))) => Ok(Some(Self { path: self.path, parent: Some(name), map })),
            Some(_) => Err(self.error(name, "an object")),
        }
    }

    /// A list of strings.
    pub fn texts(&self, name: &'a str) -> Result<Option<Vec<&'a str>>> {
        match self.get(&[name]) {
            None => Ok(None),
            Some((_, Value::Array(list))) => {
                let texts: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
                texts.map(Some).ok_or_else(|| self.error(name, "a list of strings"))
            }
            Some(_) => Err(self.error(name, "a list of strings")),
        }
    }

    /// A list of indices.
    pub fn indices(&self, name: &'a str) -> Result<Vec<usize>> {
        match self.get(&[name]) {
            None => Ok(Vec::new()),
            Some((_, Value::Array(list))) => {
                let indices: Option<Vec<usize>> = list.iter().map(|v| v.as_u64().and_then(|n| usize::try_from(n).ok())).collect();
                indices.ok_or_else(|| self.error(name, "a list of layer indices"))
            }
            Some(_) => Err(self.error(name, "a list of layer indices")),
        }
    }

    /// Number of classes: `id2label`, or `num_labels`; transformers' default is 2.
    pub fn labels(&self) -> Result<usize> {
        if let Some(labels) = self.object("id2label")? {
            return Ok(labels.map.len().max(1));
        }
        Ok(self.count_or_none(&["num_labels"])?.unwrap_or(2))
    }

    /// Refuses a field that asks for something.
    pub fn refuse_flag(&self, name: &'a str, what: &str, hint: &str) -> Result<()> {
        if self.flag_or(name, false)? { Err(self.unsupported(format!("{what} (`{name}` is true)"), hint)) } else { Ok(()) }
    }

    /// Attention heads and the width of one, where the config may state it; `silent` where it has no such field.
    pub fn heads_of(&self, hidden: usize, names: &[&'a str], silent: Option<usize>) -> Result<(usize, usize)> {
        let heads = self.count(names)?;
        let own = match self.object(super::OWN_KEY)? {
            Some(own) => own.width_or_none(&["head_dim"])?,
            None => None,
        };
        let head_dim = match own.map_or_else(|| self.nullable_width_or("head_dim", silent), |n| Ok(Some(n)))? {
            Some(n) => n,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let name = names.iter().find(|n| self.map.contains_key(**n)).copied().unwrap_or_default();
                return Err(self.error(name, format!("a divisor of the hidden size {hidden}, or a field `head_dim`")));
            }
        };
        Ok((heads, head_dim))
    }

    /// The rotary embedding in either spelling: `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4), which also
    /// transformers 5 prefers where both are there.
    pub fn rotary(&self, head_dim: usize, pairs: Pairs, silent: Turns) -> Result<Rotary> {
        let said = match self.scaling_object()? {
            Some(scaling) => Some(scaling),
            None => self.object("rope_parameters")?,
        };
        self.rotary_from(said.as_ref(), said.as_ref(), head_dim, pairs, silent)
    }

    /// `rope_scaling`, where it says something.
    pub fn scaling_object(&self) -> Result<Option<Self>> {
        Ok(self.object("rope_scaling")?.filter(|p| !p.map.is_empty()))
    }

    /// The same with the objects given: some families have several.
    pub fn rotary_from(
        &self,
        parameters: Option<&Self>,
        scaling: Option<&Self>,
        head_dim: usize,
        pairs: Pairs,
        silent: Turns,
    ) -> Result<Rotary> {
        let own = |name: &'a str| parameters.map_or(Ok(None), |p| p.positive_or_none(&[name]));
        let theta = own("rope_theta")?.map_or_else(|| self.positive_or(&["rotary_emb_base", "rope_theta"], silent.theta), Ok)?;
        let partial =
            own("partial_rotary_factor")?.map_or_else(|| self.positive_or(&["rotary_pct", "partial_rotary_factor"], silent.partial), Ok)?;
        let over = (head_dim as f64 * partial) as usize;
        // An odd share is rounded up to pairs, as in transformers.
        let dim = over + over % 2;
        if over == head_dim && dim != over {
            return Err(self.error("head_dim", format!("an even width, whose entries turn in pairs; heads are {head_dim} wide")));
        }
        if dim == 0 || dim > head_dim {
            return Err(self.error("partial_rotary_factor", format!("a share that turns pairs of the head's {head_dim} entries")));
        }
        let scaling = match scaling {
            None => RotaryScaling::None,
            Some(p) => self.rotary_scaling(p, dim, silent)?,
        };
        if over != dim && matches!(scaling, RotaryScaling::Yarn { .. } | RotaryScaling::Long { .. }) {
            let hint = format!("a share that turns an even number of the head's {head_dim} entries is");
            return Err(self.unsupported(format!("rotary scaling `{}` over {over} entries of a head", scaling.name()), hint));
        }
        Ok(Rotary { theta, dim, over, pairs, scaling })
    }

    fn rotary_scaling(&self, p: &Self, dim: usize, silent: Turns) -> Result<RotaryScaling> {
        const ORIGINAL: &str = "original_max_position_embeddings";
        let factor = || -> Result<f64> { p.required(&["factor"], p.positive_or_none(&["factor"])?, "a number above 0") };
        // Beside the object it has precedence, as in transformers.
        let original = || -> Result<usize> {
            match (self.width_or_none(&[ORIGINAL])?, p.width_or_none(&[ORIGINAL])?, silent.original) {
                (Some(n), ..) | (None, _, Some(n)) | (None, Some(n), None) => Ok(n),
                (None, None, None) => self.width(&["max_position_embeddings"]),
            }
        };
        let ratio = |original: usize| -> Result<f64> { Ok(self.width(&["max_position_embeddings"])? as f64 / original as f64) };
        let kind = p.text(&["rope_type", "type"])?.unwrap_or("default");
        Ok(match kind {
            "default" => RotaryScaling::None,
            "linear" => RotaryScaling::Linear { factor: factor()? },
            "dynamic" => RotaryScaling::Dynamic { factor: factor()?, original: self.width(&["max_position_embeddings"])? },
            "llama3" => {
                let need = |name: &'a str| p.required(&[name], p.positive_or_none(&[name])?, "a number above 0");
                let (low, high) = (need("low_freq_factor")?, need("high_freq_factor")?);
                if high <= low {
                    return Err(p.error("high_freq_factor", format!("a number above low_freq_factor, {low}")));
                }
                RotaryScaling::Ramp { factor: factor()?, low, high, original: original()? }
            }
            // Early Phi-3 has both of these words for it.
            "longrope" | "su" => p.long_rope(original()?, ratio, dim)?,
            "yarn" if p.get(&["short_factor"]).is_some() => p.long_rope(original()?, ratio, dim)?,
            "yarn" => p.yarn(original()?, ratio)?,
            other => {
                return Err(self.unsupported(
                    format!("rotary scaling `{other}` (rope_type)"),
                    "the types default, linear, dynamic, llama3, yarn and longrope are; an approximation would be silently wrong",
                ));
            }
        })
    }

    /// The same fields, defaults and formulas as transformers'.
    fn yarn(&self, original: usize, ratio: impl Fn(usize) -> Result<f64>) -> Result<RotaryScaling> {
        let factor = self.positive_or_none(&["factor"])?.map_or_else(|| ratio(original), Ok)?;
        // Peng et al., eq. 22, whose square root of the temperature is in q and in k.
        let growth = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
        let scales = (self.number_or_none(&["mscale"])?, self.number_or_none(&["mscale_all_dim"])?);
        let inferred = match scales {
            (Some(of), Some(all)) if of != 0.0 && all != 0.0 => growth(of) / growth(all),
            _ => growth(1.0),
        };
        Ok(RotaryScaling::Yarn {
            factor,
            fast: self.positive_or(&["beta_fast"], 32.0)?,
            slow: self.positive_or(&["beta_slow"], 1.0)?,
            original,
            truncate: self.flag_or("truncate", true)?,
            attention: self.positive_or(&["attention_factor"], inferred)?,
        })
    }

    /// The same.
    fn long_rope(&self, original: usize, ratio: impl Fn(usize) -> Result<f64>, dim: usize) -> Result<RotaryScaling> {
        let factor = self.positive_or_none(&["factor"])?.map_or_else(|| ratio(original), Ok)?;
        let inferred = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
        let attention = self.positive_or(&["attention_factor"], inferred)?;
        let divisors = |name: &'a str| -> Result<Vec<f64>> {
            let list = self.get(&[name]).and_then(|(_, value)| value.as_array());
            let numbers: Option<Vec<f64>> = list.map(|l| l.iter().filter_map(Value::as_f64).filter(|x| *x > 0.0).collect());
            let whole = |n: &Vec<f64>| n.len() == dim / 2 && list.is_some_and(|l| l.len() == n.len());
            numbers.filter(whole).ok_or_else(|| self.error(name, format!("{} numbers above 0, one for each pair that turns", dim / 2)))
        };
        Ok(RotaryScaling::Long { short: divisors("short_factor")?, long: divisors("long_factor")?, original, attention })
    }
}

/// A value as it fits into a message.
fn brief(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{}…", text.get(..cut).unwrap_or_default()),
        None => text,
    }
}

/// The activation of that name in transformers.
pub(crate) fn activation(fields: &Fields<'_>, names: &[&'static str], default: &str) -> Result<crate::blueprint::Activation> {
    use crate::blueprint::Activation;
    let word = fields.text(names)?.unwrap_or(default);
    Ok(match word {
        "gelu" | "gelu_python" => Activation::GeluErf,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_python_tanh" => Activation::GeluTanh,
        "quick_gelu" => Activation::QuickGelu,
        "silu" | "swish" => Activation::Silu,
        "relu" => Activation::Relu,
        "tanh" => Activation::Tanh,
        other => {
            let field = names.first().copied().unwrap_or_default();
            return Err(fields.unsupported(
                format!("activation `{other}` (`{field}`)"),
                "gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, quick_gelu, silu, relu and tanh are",
            ));
        }
    })
}
