//! Sensitivity curves: what a layer's units are worth to the loss, one layer at a time.
//!
//! Li et al., Pruning Filters for Efficient ConvNets (2017), fig. 2b. Heads (KV groups where keys and values are shared) and neurons of each
//! layer are masked alone, lowest scores first, at each of the given shares; the value is the mean loss over sites and shares minus the
//! dense loss, and every point is among the details.

use std::collections::BTreeMap;

use prunectl_recipe::catalogue::{ArgError, Args, Entry, Kind, Param, SiteKind, Ty};
use prunectl_recipe::plan::{Share, Unit, Value};

use super::{Inputs, Measured, Metric, Needs};
use crate::criterion::{CRITERIA, Criterion};
use crate::error::{PruneError, Result};
use crate::row::{metric, needs_data, param};
use crate::site::{Key, Sites};

const NAME: &str = "sensitivity";

struct Sensitivity {
    shares: Vec<Share>,
    criterion: Box<dyn Criterion>,
    name: String,
}

/// A parameter's default, as the checker would read it.
fn default(p: &Param) -> Option<Value> {
    let text = p.default?.trim();
    let number = |t: &str| t.trim().parse::<f64>().ok();
    match p.ty {
        Ty::Bool => Some(Value::Bool(text == "true")),
        Ty::Percent | Ty::ScheduledPercent => number(text.trim_end_matches('%')).map(|x| Value::Percent(Share::from_fraction(x / 100.0))),
        Ty::Tokens => number(text.trim_end_matches("tokens")).map(|x| Value::Quantity(x, Unit::Tokens)),
        Ty::OneOf(_) => Some(Value::Word(text.to_owned())),
        Ty::Count | Ty::Float | Ty::Scheduled => number(text).map(Value::Number),
        _ => None,
    }
}

/// Heads or KV groups, and neurons, of every layer that has them.
fn sites(model: &prunectl_model::Transformer) -> Sites {
    let mut out = Sites::default();
    for (layer, d) in model.dims().iter().enumerate() {
        let (kind, n) = if d.group_size() > 1 { (SiteKind::KvGroups, d.kv_heads) } else { (SiteKind::Heads, d.q_heads) };
        out.add(Key::of(kind, layer), 0..n);
        out.add(Key::of(SiteKind::Neurons, layer), 0..d.ffn * d.experts.max(1));
    }
    out.units.retain(|_, units| !units.is_empty());
    out
}

impl Metric for Sensitivity {
    fn needs(&self) -> Needs {
        Needs::Batches
    }

    fn higher_is_better(&self) -> Option<bool> {
        None
    }

    fn measure(&self, inputs: &mut Inputs<'_>) -> Result<Measured> {
        let missing = || PruneError::Missing { method: NAME, needs: "examples".into() };
        let data = inputs.batches.take().ok_or_else(missing)?;
        let sites = sites(inputs.model);
        let scores = self.criterion.score(inputs.model, &sites, data, inputs.progress)?;
        let (dense, curves) = crate::bound::one_by_one(inputs.model, &scores, &sites, &self.shares, data, inputs.progress)?;
        inputs.batches = Some(data);
        let mut details = BTreeMap::from([("dense".to_owned(), dense)]);
        let (mut sum, mut points) = (0.0, 0);
        for (key, curve) in curves {
            for (share, loss) in curve {
                details.insert(format!("{key} {}%", share.0 as f64 / 1e7), loss);
                sum += loss - dense;
                points += 1;
            }
        }
        let protocol = format!(
            "mean increase of the loss with the units of one layer masked, lowest {} first, over {points} sites and shares; details: the loss at each",
            self.name
        );
        Ok(Measured { value: sum / f64::from(points.max(1)), protocol, details, ..Measured::default() })
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    let shares: Vec<Share> = match args.get("amounts") {
        Some(Value::List(items)) => items.iter().filter_map(|i| if let Value::Percent(s) = i { Some(*s) } else { None }).collect(),
        _ => Vec::new(),
    };
    let wrong = |name: &str, found: &str, expected: String| ArgError { name: name.into(), found: found.to_owned(), expected };
    if shares.is_empty() {
        return Err(wrong("amounts", "no share", "a list such as [10%, 50%]".to_owned()));
    }
    let name = match args.get("criterion") {
        Some(Value::Text(name)) => name.clone(),
        _ => "magnitude".to_owned(),
    };
    let scores = |e: &&Entry<dyn Criterion>| e.spec.kind == Kind::Criterion && !e.spec.learns && !e.spec.turns && e.spec.name == name;
    let row = CRITERIA
        .iter()
        .find(scores)
        .ok_or_else(|| wrong("criterion", &name, "the name of a criterion that scores, such as \"magnitude\"".to_owned()))?;
    let defaults = row.spec.params.iter().filter_map(|p| Some((p.name.to_owned(), default(p)?)));
    let own = Args(defaults.collect());
    Ok(Box::new(Sensitivity { shares, criterion: (row.build)(&own)?, name }))
}

pub(super) const ENTRY: Entry<dyn Metric> = Entry {
    spec: needs_data(metric(
        NAME,
        "Li et al., Pruning Filters for Efficient ConvNets (2017), fig. 2b",
        &[
            param("amounts", Ty::List(&Ty::Percent), "[10%, 30%, 50%, 70%]", "Shares removed from one layer at a time."),
            param("criterion", Ty::Text, "\"magnitude\"", "The criterion that ranks the units, with its defaults."),
        ],
        "Loss against share removed, one layer at a time: the mean increase; every point is among the details in `metrics.json`.\n\n\
         Mind: heads (KV groups where they share keys and values) and neurons alone; nothing stays removed.\n\n\
         ```prune\neval sensitivity() of m on d.validation.take(32) as curves\n```",
    )),
    build,
};
