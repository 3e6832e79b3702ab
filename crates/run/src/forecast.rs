//! What a plan would do to its models, worked out from their configs and headers: which units a selector names, how many go, what is
//! left in each layer as far as the recipe decides it, and what only scores can decide as a range.

mod advice;
mod inside;
mod loads_in;
mod memory;
mod shapes;
mod teacher;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;

use prunectl_model::{Blueprint, Facts as ModelFile, Head, LayerDims, cost};
use prunectl_prune::{CRITERIA, CURVE_POINTS, Key, Sites, build, site};
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::diagnostic::Diagnostic;
use prunectl_recipe::plan::{Amount, Bound, CriterionRef, Goal, LimitValue, Plan, Prune, Scope, Selector, Step, StepKind, Value};
use prunectl_recipe::{Facts, Sources};
use serde::Serialize;

use crate::data::describe as describe_data;
use crate::executor::{kind_name, model_of, to_sites};
use crate::models::{DiskFacts, Known as ModelKnown, describe};
use crate::report::figure;
use crate::stock;
use crate::streaming;
use shapes::{after, inside, size_after};

/// Tokens of the sequence that FLOPs and the KV cache are stated for.
const LENGTH_TOKENS: usize = 128;
/// Bytes of a value in the KV cache (f16).
const CACHE_VALUE_BYTES: usize = 2;

/// Everything that can be said beforehand.
#[derive(Debug, Clone, Serialize)]
pub struct Forecast {
    /// Models in order of declaration.
    pub models: Vec<ModelForecast>,
    /// Steps in order; those of a `repeat` once for each round, those of a `sweep` once for each cell.
    pub steps: Vec<StepForecast>,
    /// The step that takes the most memory, estimated from above; `None` where a model is not at hand.
    pub peak: Option<Peak>,
    /// Models whose weights stay on the disk and pass through memory block by block.
    pub streamed: Vec<String>,
}

impl Forecast {
    /// Prunes that leave a shape which a loader in their `loads_in` can't read, and teachers that can't teach, each once.
    #[must_use]
    pub fn refused(&self) -> Vec<Diagnostic> {
        let mut out: Vec<Diagnostic> = Vec::new();
        for d in self.steps.iter().flat_map(|s| &s.refused) {
            if !out.iter().any(|known| known.span == d.span && known.message == d.message) {
                out.push(d.clone());
            }
        }
        out
    }
}

/// Where memory is highest.
#[derive(Debug, Clone, Serialize)]
pub struct Peak {
    /// Resident bytes of the process on the CPU, weights in f32.
    pub bytes: u64,
    /// The line and the step, `prune prune-1`; `None` where weights stay on the disk and it is the same throughout.
    pub at: Option<(u32, String)>,
}

/// One model.
#[derive(Debug, Clone, Serialize)]
pub struct ModelForecast {
    /// Its name.
    pub name: String,
    /// Where it comes from.
    pub source: String,
    /// What its config and headers say.
    pub known: Option<Known>,
    /// Why nothing is known.
    pub unknown: Option<String>,
}

/// What config and headers say, before and after.
#[derive(Debug, Clone, Serialize)]
pub struct Known {
    /// The config's `model_type`.
    pub family: String,
    /// What it is loaded for.
    pub task: String,
    /// Shapes by layer.
    pub layers: Vec<LayerForecast>,
    /// Width of the residual stream before.
    pub hidden: usize,
    /// The same after.
    pub hidden_after: usize,
    /// Layers left.
    pub layers_after: usize,
    /// Parameters before.
    pub parameters: u64,
    /// Least and most parameters after; `None` where only the run decides.
    pub parameters_after: Option<(u64, u64)>,
    /// FLOPs of a sequence before.
    pub flops: u64,
    /// Least and most after.
    pub flops_after: Option<(u64, u64)>,
    /// Tokens of that sequence.
    pub flops_length_tokens: usize,
    /// Bytes of keys and values for one sequence in f16, before and (least, most) after; of causal models.
    pub kv_cache_bytes: Option<(u64, (u64, u64))>,
    /// Bytes of the weight files.
    pub file_bytes: u64,
    /// Who will be able to read the result, where the shapes are decided by the recipe.
    pub loaders: Vec<String>,
}

/// One layer before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LayerForecast {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_groups: usize,
    /// Neurons, of each expert in a mixture.
    pub neurons: usize,
    /// Routed experts; 0 for a dense MLP.
    pub experts: usize,
    /// Query heads left.
    pub heads_after: Range,
    /// Key/value heads left.
    pub kv_groups_after: Range,
    /// Neurons left.
    pub neurons_after: Range,
    /// Experts left.
    pub experts_after: Range,
}

/// Least and most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Range {
    /// Least.
    pub least: usize,
    /// Most.
    pub most: usize,
}

impl Range {
    /// Whether it is that number and no other.
    pub fn is(self, n: usize) -> bool {
        self.least == n && self.most == n
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.least == self.most { write!(f, "{}", self.least) } else { write!(f, "{}–{}", self.least, self.most) }
    }
}

/// One step.
#[derive(Debug, Clone, Serialize)]
pub struct StepForecast {
    /// Its line.
    pub line: u32,
    /// `prune`, `eval`, ….
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// What it does, in words.
    pub notes: Vec<String>,
    /// Passes over its data.
    pub passes: Option<u64>,
    /// Resident bytes of the process while it runs, estimated from above; `None` where a model is not at hand.
    pub memory_bytes: Option<u64>,
    /// Loaders of its `loads_in` that can't read what it leaves; teachers with other tokens.
    #[serde(skip)]
    refused: Vec<Diagnostic>,
}

/// A model while the steps are walked.
#[derive(Debug, Clone)]
struct Sim {
    file: Rc<ModelFile>,
    /// The same in the form that selectors are expanded against.
    facts: Rc<Facts>,
    /// Units masked or gone by kind, over all layers.
    gone: BTreeMap<SiteKind, usize>,
    /// Least and most units gone of each site.
    ranges: BTreeMap<Key, (usize, usize)>,
    /// Something happened whose effect on shapes isn't worked out here.
    vague: bool,
    /// Whether masked units have been taken out since the last prune.
    compacted: bool,
    /// A head that shared the table of embeddings has a matrix of its own.
    untied: bool,
    /// Adapters that it carries, as far as the steps say it.
    adapters: BTreeSet<String>,
    /// It is saved in the original shape only.
    padded: bool,
    /// Bytes of memory that batches are made for.
    budget: u64,
}

/// Works the plan out.
pub fn forecast(plan: &Plan, sources: &Sources, models: &DiskFacts, memory: Option<u64>) -> Forecast {
    let budget = streaming::budget(memory);
    let mut sims: BTreeMap<String, Sim> = BTreeMap::new();
    let mut why: BTreeMap<String, String> = BTreeMap::new();
    let padded = loads_in::padded(plan);
    for decl in &plan.models {
        match models.known(decl) {
            Ok(ModelKnown { file, facts }) => {
                let sim = Sim {
                    file,
                    facts,
                    gone: BTreeMap::new(),
                    ranges: BTreeMap::new(),
                    vague: false,
                    compacted: false,
                    untied: false,
                    adapters: BTreeSet::new(),
                    padded: padded.contains(&decl.name),
                    budget,
                };
                sims.insert(decl.name.clone(), sim);
            }
            Err(e) => {
                why.insert(decl.name.clone(), e);
            }
        }
    }
    let mut steps = Vec::new();
    let resident = if why.is_empty() { memory::resident(plan, &sims) } else { None };
    walk(&plan.steps, &mut sims, sources, resident, &mut steps);
    advice::advise(plan, &sims, sources, models.hub(), &mut steps);
    let on_disk = |sim: &&Sim| sim.file.file_bytes > 0 && streaming::streams(plan, &sim.file, budget);
    let streamed_bytes = sims.values().filter(on_disk).map(|sim| streaming::peak(plan, &sim.file, budget)).max();
    let streamed = sims.iter().filter(|(_, sim)| on_disk(sim)).map(|(name, _)| name.clone()).collect();
    let models = plan.models.iter().map(|decl| ModelForecast {
        name: decl.name.clone(),
        source: describe(&decl.source),
        known: sims.get(&decl.name).map(known),
        unknown: why.get(&decl.name).cloned(),
    });
    let highest = steps.iter().filter_map(|s| Some((s.memory_bytes?, s))).max_by_key(|(bytes, s)| (*bytes, std::cmp::Reverse(s.line)));
    let peak = match streamed_bytes {
        Some(bytes) => Some(Peak { bytes, at: None }),
        None => highest.map(|(bytes, s)| Peak { bytes, at: Some((s.line, format!("{} {}", s.kind, s.name))) }),
    };
    Forecast { models: models.collect(), steps, peak, streamed }
}

fn walk(steps: &[Step], sims: &mut BTreeMap<String, Sim>, sources: &Sources, resident: Option<u64>, out: &mut Vec<StepForecast>) {
    for step in steps {
        match &step.kind {
            StepKind::Repeat { rounds, .. } => rounds.iter().for_each(|r| walk(r, sims, sources, resident, out)),
            StepKind::Sweep { cells, .. } => {
                for cell in cells {
                    let mut own = sims.clone();
                    walk(&cell.steps, &mut own, sources, resident, out);
                }
            }
            StepKind::Adopt { model, .. } => {
                if let Some(sim) = sims.get_mut(model) {
                    sim.vague = true;
                }
                out.push(plain(step, vec!["takes the model of one cell".to_owned()]));
            }
            _ => {
                let extra = memory::of(step, sims);
                let memory_bytes = resident.zip(extra).map(|(resident, extra)| resident + extra);
                out.push(StepForecast { memory_bytes, ..one(step, sims, sources) });
            }
        }
    }
}

fn plain(step: &Step, notes: Vec<String>) -> StepForecast {
    let (kind, name) = (kind_name(&step.kind), step.name.clone());
    StepForecast { line: step.line, kind, name, notes, passes: None, memory_bytes: None, refused: Vec::new() }
}

fn one(step: &Step, sims: &mut BTreeMap<String, Sim>, sources: &Sources) -> StepForecast {
    let call = |span| sources.slice(span).split_whitespace().collect::<Vec<_>>().join(" ");
    match &step.kind {
        StepKind::Prune(prune) => {
            let (notes, passes) = prune_notes(prune, sims, sources);
            let refused = sims.get(model_of(&prune.selector)).map(|sim| loads_in::check(prune, step, sim)).unwrap_or_default();
            StepForecast { passes, refused, ..plain(step, notes) }
        }
        StepKind::Score { selector, criterion, .. } => {
            let sites = sites_of(selector, sims);
            let notes = vec![sites.as_ref().map_or_else(|| "of a model that is not at hand".to_owned(), named)];
            let passes = sites.and_then(|s| passes(criterion, &s, None, 0));
            StepForecast { passes, ..plain(step, notes) }
        }
        StepKind::Compact { model } => {
            if let Some(sim) = sims.get_mut(model) {
                sim.compacted = true;
            }
            plain(step, vec!["masked units become smaller tensors".to_owned()])
        }
        StepKind::Eval { metric, data, .. } => {
            let on = data.as_ref().map(|d| format!(" on {}", describe_data(d))).unwrap_or_default();
            plain(step, vec![format!("{}{on}", call(metric.span))])
        }
        StepKind::Train(train) => {
            let mut notes = vec![format!("on {} for {}", describe_data(&train.data), length(train.length))];
            if let Some(of) = train.options.get("flops_of") {
                notes.push(format!("times the FLOPs of {} over its own, which the run finds", named_model(of)));
            }
            let mut refused = teacher::of_losses(train, sims);
            refused.extend(inside::check(train, step, sims));
            for prune in &train.prunes {
                notes.extend(prune_notes(&at_the_end(prune), sims, sources).0);
                refused.extend(sims.get(model_of(&prune.selector)).map(|sim| loads_in::check(prune, step, sim)).unwrap_or_default());
            }
            if memory::recomputes(train) {
                notes.push("blocks are computed again in the backward pass".to_owned());
            }
            StepForecast { refused, ..plain(step, notes) }
        }
        StepKind::Reconstruct { selector, teacher, data, length: each, .. } => {
            let of = sites_of(selector, sims).map_or_else(|| "blocks of a model that is not at hand".to_owned(), |s| named(&s));
            let refused = teacher::of_blocks(teacher, model_of(selector), step, sims);
            StepForecast {
                refused,
                ..plain(step, vec![format!("{of}, each trained alone on {} for {}", describe_data(data), length(*each))])
            }
        }
        StepKind::Attach { adapter, selector, name } => {
            if let Some(sim) = sims.get_mut(model_of(selector)) {
                sim.adapters.insert(name.clone());
            }
            let of = sites_of(selector, sims)
                .map_or_else(|| "a model that is not at hand".to_owned(), |s| format!("{} matrices", s.weights.len()));
            plain(step, vec![format!("{} on {of}; only adapters train, unless `only` says more", call(adapter.span))])
        }
        StepKind::Fuse { adapter, model } => {
            if let Some(sim) = sims.get_mut(model) {
                sim.adapters.remove(adapter);
            }
            plain(step, vec![format!("its update becomes part of the weights of {model}")])
        }
        // What a snapshot carries is not followed here.
        StepKind::Rewind { model, schedule_only: false, .. } => {
            if let Some(sim) = sims.get_mut(model) {
                sim.adapters.clear();
            }
            plain(step, Vec::new())
        }
        StepKind::Save { to, layout, .. } => {
            plain(step, vec![format!("to {to}{}", if layout == "padded" { ", removed units as zeros" } else { "" })])
        }
        StepKind::Expect { .. } => plain(step, vec![call(step.span)]),
        _ => plain(step, Vec::new()),
    }
}

/// A `prune` inside `train` as what it comes to when the training is over.
fn at_the_end(prune: &Prune) -> Prune {
    let mut prune = prune.clone();
    if let Goal::By(Amount::Scheduled { schedule, each }) = &prune.goal {
        let share = prunectl_recipe::plan::Share::from_fraction(prunectl_prune::schedule::last_value(schedule));
        prune.goal = Goal::By(Amount::Share { share, each: *each });
    }
    prune
}

fn named_model(value: &Value) -> String {
    match value {
        Value::Model(name) | Value::Name(name) => name.clone(),
        Value::Frozen { model, .. } => format!("frozen({model})"),
        other => format!("{other:?}"),
    }
}

fn length(when: prunectl_recipe::plan::When) -> String {
    use prunectl_recipe::plan::When;
    match when {
        When::Share(x) => format!("{}% of the training", x * 100.0),
        When::Steps(n) => format!("{n} steps"),
        When::Epochs(n) => format!("{n} epochs"),
        When::Tokens(n) => format!("{n} tokens"),
    }
}

/// The units that a selector names on the model as it is loaded.
fn sites_of(selector: &Selector, sims: &BTreeMap<String, Sim>) -> Option<Sites> {
    let sim = sims.get(model_of(selector))?;
    prunectl_recipe::expand(selector, &sim.facts).ok().map(|s| to_sites(&s))
}

/// `48 heads in 4 layers, 12 matrices`.
fn named(sites: &Sites) -> String {
    let mut parts: Vec<String> = sites
        .kinds()
        .into_iter()
        .filter(|k| *k != SiteKind::Weights)
        .map(|kind| {
            let layers = sites.of_kind(kind).filter(|(k, _)| k.layer.is_some()).count();
            let of = if layers > 0 { format!(" in {layers} layers") } else { String::new() };
            format!("{} {}{of}", sites.count(kind), site::plural(kind))
        })
        .collect();
    if !sites.weights.is_empty() {
        parts.push(format!("single weights of {} matrices", sites.weights.len()));
    }
    parts.join(", ")
}

fn prune_notes(prune: &Prune, sims: &mut BTreeMap<String, Sim>, sources: &Sources) -> (Vec<String>, Option<u64>) {
    let name = model_of(&prune.selector).to_owned();
    let Some(sites) = sites_of(&prune.selector, sims) else { return (vec!["of a model that is not at hand".to_owned()], None) };
    let protect = prune.protect.as_ref().and_then(|p| sites_of(p, sims)).unwrap_or_default();
    let Some(sim) = sims.get_mut(&name) else { return (Vec::new(), None) };
    let mut notes = vec![named(&sites)];
    sim.compacted = false;
    let amount = match &prune.goal {
        Goal::By(amount) => amount,
        Goal::To(bound) => return bound_notes(bound, prune, &sites, sim, notes, sources),
    };
    let mut total_removed = 0;
    for kind in sites.kinds().into_iter().filter(|k| *k != SiteKind::Weights) {
        let n = sites.count(kind);
        let before = sim.gone.get(&kind).copied().unwrap_or(0);
        let Some(asked) = target(amount, n, before) else {
            sim.vague = true;
            notes.push(format!("{}: what goes is decided by the run", site::plural(kind)));
            continue;
        };
        // So many leave a layer together, where each group of it must keep as many.
        let dims = &sim.file.dims;
        let together = |key: Key| key.layer.and_then(|l| dims.get(l)).map_or(1, |d| site::together(kind, d));
        let step = sites.of_kind(kind).map(|(key, _)| together(key)).fold(0, gcd).max(1);
        let target = before + asked.saturating_sub(before) / step * step;
        total_removed += target.saturating_sub(before);
        sim.gone.insert(kind, target.max(before));
        let layered = prune.scope == Some(Scope::Layer);
        let mut spread = Vec::new();
        for (key, units) in sites.of_kind(kind) {
            let count = units.len() as usize;
            let guarded = protect.units.get(&key).map_or(0, |protected| (units & protected).len() as usize);
            let keep = match &prune.at_least {
                Some(Value::Percent(share)) => {
                    count - prunectl_recipe::plan::Share(prunectl_recipe::plan::Share::ONE.0 - share.0).of(count)
                }
                Some(v) => v.as_u64().unwrap_or(0) as usize,
                None => 0,
            };
            let most = count.saturating_sub(keep.max(guarded)).min(target);
            let range = if layered {
                let before = sim.ranges.get(&key).map_or(0, |r| r.0);
                let own = self::target(amount, count, before).unwrap_or(0);
                let own = before + own.saturating_sub(before) / together(key) * together(key);
                (own, own)
            } else {
                (0, most)
            };
            spread.push((key, range));
        }
        // What the other layers can't give must come from this one.
        let capacity: usize = spread.iter().map(|(_, r)| r.1).sum();
        for (key, (least, most)) in &spread {
            let least = if layered { *least } else { target.saturating_sub(capacity - most) };
            let old = sim.ranges.get(key).copied().unwrap_or((0, 0));
            sim.ranges.insert(*key, (least.max(old.0), (*most).max(old.1)));
        }
        if layered {
            let sum: usize = spread.iter().map(|(_, r)| r.0).sum();
            sim.gone.insert(kind, sum);
            notes.push(format!("{sum} of {n} {} go, each layer on its own", site::plural(kind)));
        } else {
            notes.push(format!("{target} of {n} {} go", site::plural(kind)));
        }
        if step > 1 {
            let groups = if kind == SiteKind::Heads { "KV group" } else { "expert" };
            let gone = sim.gone.get(&kind).copied().unwrap_or(0);
            let rounded = if gone < asked { format!(", the nearest legal count below {asked}") } else { String::new() };
            notes.push(format!("equally many leave each {groups} of a layer, {step} {} at a time{rounded}", site::plural(kind)));
        }
    }
    if !sites.weights.is_empty() {
        notes.push(match amount {
            Amount::Share { share, .. } => format!("{}% of their weights become zeros", share.fraction() * 100.0),
            Amount::NofM { removed, group } => format!("of every {group} consecutive weights {removed} become zeros"),
            _ => "weights become zeros".to_owned(),
        });
    }
    if let CriterionRef::Method(m) = &prune.criterion {
        let tied = matches!(sim.file.blueprint.head, Head::Tokens { tied: true, .. });
        if tied && build(CRITERIA, &m.name, &m.args).is_ok_and(|criterion| criterion.unties_head()) {
            sim.untied = true;
            notes.push("the head gets a matrix of its own".to_owned());
        }
        notes.push(format!("using {}", sources.slice(m.span).split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    let mut passes = passes(&prune.criterion, &sites, prune.rescore, total_removed);
    if let Some(method) = prune.options.word("reconstruct").ok().filter(|w| *w != "none") {
        let sublayers = [&[SiteKind::Heads, SiteKind::KvGroups][..], &[SiteKind::Neurons]];
        let fitted = sublayers.iter().filter(|kinds| kinds.iter().any(|k| sites.count(*k) > 0)).count() as u64;
        // Each sublayer's statistics, and the way to the next block, are a forward pass of the dense and one of the pruned model.
        let own = 2 * (fitted + 1);
        let by = if method == "bias" { "their writers get biases" } else { "their writers are fitted by least squares" };
        notes.push(format!("{by}, block by block, in {own} passes over {}", fitted_on(prune)));
        passes = passes.map(|n| n + own);
    }
    (notes, passes)
}

/// The data of `reconstruct`.
fn fitted_on(prune: &Prune) -> String {
    let own = match &prune.criterion {
        CriterionRef::Method(m) => m.args.get("on"),
        _ => None,
    };
    match prune.options.get("on").or(own) {
        Some(Value::Data(d)) => describe_data(d),
        _ => "the data".to_owned(),
    }
}

/// What a bound asks for; a shape decides what is left, limits only the run.
fn bound_notes(
    bound: &Bound,
    prune: &Prune,
    sites: &Sites,
    sim: &mut Sim,
    mut notes: Vec<String>,
    sources: &Sources,
) -> (Vec<String>, Option<u64>) {
    let scoring = passes(&prune.criterion, sites, None, 0);
    let limits = match bound {
        Bound::Limits(limits) => limits,
        Bound::Shape(wanted) => {
            for (kind, n) in wanted {
                let mut gone = 0;
                for (key, units) in sites.of_kind(*kind) {
                    let own = (units.len() as usize).saturating_sub(*n as usize);
                    gone += own;
                    let old = sim.ranges.get(&key).copied().unwrap_or((0, 0));
                    sim.ranges.insert(key, (own.max(old.0), own.max(old.1)));
                }
                sim.gone.insert(*kind, gone);
                let each = if matches!(kind, SiteKind::Layers | SiteKind::Hidden) { "" } else { " in each layer" };
                notes.push(format!("{n} {} stay{each}, {gone} of {} go", site::plural(*kind), sites.count(*kind)));
            }
            return (notes, scoring);
        }
    };
    sim.vague = true;
    for limit in limits {
        let dense = match limit.metric.name.as_str() {
            "params" => Some(sim.file.parameters as f64),
            "flops" => {
                let length = limit.metric.args.count("length").ok().and_then(|n| usize::try_from(n).ok());
                length.map(|n| cost::flops(&sim.file.blueprint, &sim.file.dims, n) as f64)
            }
            _ => None,
        };
        let text = sources.slice(limit.metric.span).split_whitespace().collect::<Vec<_>>().join(" ");
        let unit = crate::executor::unit_of(&limit.metric.name);
        notes.push(match (limit.value, dense) {
            (LimitValue::Absolute(most), _) => format!("{text} at most {}", figure(most, unit)),
            (LimitValue::OfDense(share), Some(dense)) => {
                format!("{text} at most {} of {}", figure((dense * share.fraction()).floor(), unit), figure(dense, unit))
            }
            (LimitValue::OfDense(share), None) => {
                format!("{text} at most {}% of what the run measures of the dense model", share.0 as f64 / 1e7)
            }
        });
    }
    let curves = sites.units.values().filter(|u| !u.is_empty()).count();
    notes.push(format!("met from {curves} sensitivity curves of {CURVE_POINTS} points: how much each layer gives is decided by the run"));
    // The dense loss, the curves, and the loss of the result and of the uniform baseline.
    (notes, scoring.map(|n| n + (curves * CURVE_POINTS) as u64 + 3))
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Units gone after a prune of `n` selected ones of which `before` were gone; `None` where only the run knows.
fn target(amount: &Amount, n: usize, before: usize) -> Option<usize> {
    match amount {
        Amount::Share { share, .. } => Some(share.of(n)),
        Amount::OfRemaining { share, .. } => Some(before + share.of(n.saturating_sub(before))),
        Amount::Units { n: units, .. } => usize::try_from(*units).ok().map(|u| u.min(n)),
        Amount::OfParams(_) | Amount::NofM { .. } | Amount::PerLayer(_) | Amount::AcrossLayers { .. } | Amount::Scheduled { .. } => None,
    }
}

/// Passes over the criterion's data: `None` where it has none.
fn passes(criterion: &CriterionRef, sites: &Sites, rescore: Option<prunectl_recipe::plan::Share>, removed: usize) -> Option<u64> {
    let CriterionRef::Method(method) = criterion else { return Some(0) };
    let criterion = build(CRITERIA, &method.name, &method.args).ok()?;
    if !criterion.needs_data() {
        return Some(0);
    }
    let units: usize = sites.kinds().into_iter().map(|k| sites.count(k)).sum();
    let Some(share) = rescore else { return Some(criterion.passes(units)) };
    let step = share.of(units).max(1);
    let rounds = removed.div_ceil(step);
    Some((0..rounds).map(|round| criterion.passes(units.saturating_sub(round * step))).sum())
}

fn known(sim: &Sim) -> Known {
    let file = &sim.file;
    let length = LENGTH_TOKENS;
    let flops = |b: &Blueprint, dims: &[LayerDims]| cost::flops_per_token(b, dims, length) * length as u64;
    let cache = |b: &Blueprint, dims: &[LayerDims]| cost::kv_cache_bytes(b, dims, 1, length, CACHE_VALUE_BYTES);
    let (least, most) = (after(sim, true), after(sim, false));
    let (fewest, fullest) = (inside(sim, true), inside(sim, false));
    // Layers that may go have nothing left then.
    let may_go = sim.compacted && sim.layers_gone() > 0;
    let range = |least: usize, most: usize| Range { least: if may_go { 0 } else { least }, most };
    let layers: Vec<LayerForecast> = file
        .dims
        .iter()
        .zip(fewest.iter().zip(&fullest))
        .map(|(before, (least, most))| LayerForecast {
            heads: before.q_heads,
            kv_groups: before.kv_heads,
            neurons: before.ffn,
            experts: before.experts,
            heads_after: range(least.q_heads, most.q_heads),
            kv_groups_after: range(least.kv_heads, most.kv_heads),
            neurons_after: range(least.ffn, most.ffn),
            experts_after: range(least.experts, most.experts),
        })
        .collect();
    let decided = least == most && !sim.vague;
    let loaders = match decided {
        true => {
            let (blueprint, dims) = (&most.blueprint, &most.dims);
            let target = stock::Target { model_type: &file.model_type, blueprint, dims, own: None, no_remote_code: None };
            stock::loaders(&target).iter().map(ToString::to_string).collect()
        }
        false => vec![
            "which loaders read the result depends on how many units each layer keeps; `layout = padded` is stock everywhere".to_owned(),
        ],
    };
    Known {
        family: file.model_type.clone(),
        task: file.task.to_string(),
        layers,
        hidden: file.blueprint.hidden,
        hidden_after: most.blueprint.hidden,
        layers_after: most.dims.len(),
        parameters: file.parameters,
        parameters_after: size_after(sim, &least, &most, Blueprint::parameter_count),
        flops: flops(&file.blueprint, &file.dims),
        flops_after: size_after(sim, &least, &most, flops),
        flops_length_tokens: length,
        kv_cache_bytes: file
            .blueprint
            .attention
            .causal
            .then(|| (cache(&file.blueprint, &file.dims), (cache(&least.blueprint, &least.dims), cache(&most.blueprint, &most.dims)))),
        file_bytes: file.file_bytes,
        loaders,
    }
}

/// A parameter's value as the recipe would write it.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Bool(b) => b.to_string(),
        Value::Number(x) => x.to_string(),
        Value::Percent(s) => format!("{}%", s.fraction() * 100.0),
        Value::Points(x) => format!("{x} pp"),
        Value::Quantity(x, unit) => format!("{x} {}", format!("{unit:?}").to_lowercase()),
        Value::Text(s) => format!("\"{s}\""),
        Value::Word(s) => s.clone(),
        Value::Path(p) => format!("\"{}\"", p.display()),
        other => format!("{other:?}"),
    }
}
