//! A selector against a model's facts: which units of which layers it names.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalogue::SiteKind;
use crate::diagnostic::Diagnostic;
use crate::facts::{Facts, Site, Units};
use crate::plan::{Indices, Part, Selector, Span};

/// Selected units by kind and layer, and selected matrices by layer.
#[derive(Default)]
struct Selection {
    units: BTreeMap<(SiteKind, Option<usize>), Units>,
    tensors: BTreeMap<Option<usize>, BTreeSet<String>>,
}

/// The sites that a selector names, by kind, then layer, units ascending, each unit once. Parts without units (the whole model,
/// embeddings, heads, adapters) give none.
///
/// # Errors
/// `P0205` when an index lies outside, `P0206` when nothing is selected, `P0208` when a glob matches no tensor; each names the nearest
/// legal thing.
pub fn expand(selector: &Selector, facts: &Facts) -> Result<Vec<Site>, Box<Diagnostic>> {
    let selection = select(selector, facts)?;
    let mut sites: Vec<Site> = selection
        .units
        .into_iter()
        .filter(|(_, u)| !u.is_empty())
        .map(|((kind, layer), u)| Site { kind, layer, units: u, tensors: Vec::new() })
        .collect();
    let weights = selection.tensors.into_iter().filter(|(_, t)| !t.is_empty());
    sites.extend(weights.map(|(layer, t)| Site { kind: SiteKind::Weights, layer, units: Units::new(), tensors: t.into_iter().collect() }));
    if sites.is_empty() && has_sites(selector) {
        let d = Diagnostic::error("P0206", "the selector matches nothing", span_of(selector), "nothing is left");
        return Err(Box::new(d.hint(nearest_sites(selector, facts))));
    }
    Ok(sites)
}

/// Whether the selector speaks of units at all.
fn has_sites(s: &Selector) -> bool {
    match s {
        Selector::Path { part, .. } => !matches!(part, Part::Model | Part::Embeddings | Part::Head | Part::Classifier | Part::Adapter(_)),
        Selector::Union(parts) => !parts.is_empty() && parts.iter().all(has_sites),
        Selector::Except(a, _) => has_sites(a),
    }
}

fn span_of(s: &Selector) -> Span {
    match s {
        Selector::Path { span, .. } => *span,
        Selector::Union(parts) => parts.first().map(span_of).unwrap_or_default(),
        Selector::Except(a, b) => {
            let (a, b) = (span_of(a), span_of(b));
            if a.file == b.file { Span { file: a.file, start: a.start.min(b.start), end: a.end.max(b.end) } } else { a }
        }
    }
}

/// Which layers have what an empty selector asked for.
fn nearest_sites(s: &Selector, facts: &Facts) -> String {
    let kind = match s {
        Selector::Path { part: Part::Units { kind, .. }, .. } => Some(*kind),
        _ => None,
    };
    let n = facts.layers.len();
    if n == 0 {
        return "the model has no layers".to_owned();
    }
    let with: Vec<usize> = kind.map(|k| (0..n).filter(|l| facts.units(k, *l) > 0).collect()).unwrap_or_default();
    match (kind, with.first(), with.last()) {
        (Some(k), Some(a), Some(b)) => format!("layers {a} to {b} have {}", word(k)),
        (Some(k), ..) => format!("no layer of this {} model has {}", facts.family, word(k)),
        _ => format!("the model has layers 0 to {}", n - 1),
    }
}

fn word(kind: SiteKind) -> &'static str {
    crate::check::kind_word(kind)
}

fn select(s: &Selector, facts: &Facts) -> Result<Selection, Box<Diagnostic>> {
    match s {
        Selector::Path { part, span, .. } => path(part, *span, facts),
        Selector::Union(parts) => {
            let mut out = Selection::default();
            for p in parts {
                let p = select(p, facts)?;
                for (k, u) in p.units {
                    *out.units.entry(k).or_default() |= u;
                }
                for (l, t) in p.tensors {
                    out.tensors.entry(l).or_default().extend(t);
                }
            }
            Ok(out)
        }
        Selector::Except(a, b) => {
            let mut out = select(a, facts)?;
            let b = select(b, facts)?;
            for ((kind, layer), units) in &b.units {
                if let Some(mine) = out.units.get_mut(&(*kind, *layer)) {
                    *mine = &*mine - units;
                }
                // Leaving out a layer or a sublayer leaves out what is in it.
                for ((other, l), mine) in &mut out.units {
                    if l == layer && contains(*kind, *other) {
                        mine.clear();
                    }
                }
                if let (Some(mine), Some(layer_facts)) = (out.tensors.get_mut(layer), layer.and_then(|l| facts.layers.get(l))) {
                    mine.retain(|t| !linears(layer_facts, Some(*kind)).contains(t));
                }
            }
            for (layer, tensors) in &b.tensors {
                if let Some(mine) = out.tensors.get_mut(layer) {
                    mine.retain(|t| !tensors.contains(t));
                }
            }
            Ok(out)
        }
    }
}

/// Whether units of one kind lie inside one of another.
fn contains(outer: SiteKind, inner: SiteKind) -> bool {
    use SiteKind::{Attention, Experts, Heads, KvGroups, Layers, Mlp, Neurons};
    match outer {
        Layers => matches!(inner, Attention | Mlp | Heads | KvGroups | Neurons | Experts),
        Attention => matches!(inner, Heads | KvGroups),
        Mlp => matches!(inner, Neurons | Experts),
        _ => false,
    }
}

/// Names of a layer's matrices, of one sublayer or of both.
fn linears(layer: &crate::facts::LayerFacts, within: Option<SiteKind>) -> Vec<String> {
    match within {
        Some(SiteKind::Attention) => layer.attention_linears.clone(),
        Some(SiteKind::Mlp) => layer.mlp_linears.clone(),
        None | Some(SiteKind::Layers) => layer.attention_linears.iter().chain(&layer.mlp_linears).cloned().collect(),
        _ => Vec::new(),
    }
}

fn path(part: &Part, span: Span, facts: &Facts) -> Result<Selection, Box<Diagnostic>> {
    let mut out = Selection::default();
    match part {
        Part::Units { layers, kind, units } => {
            for l in positions(layers, facts.layers.len(), "layer", span)? {
                let n = facts.units(*kind, l);
                let chosen = match kind {
                    SiteKind::Layers => Units::from_iter([l]),
                    // Counts differ from layer to layer: an index may be outside in one where it is inside in others.
                    _ => positions(units, n, word(*kind), span)
                        .map_err(|d| Box::new(d.hint(format!("layer {l} has {n} {}", word(*kind)))))?,
                };
                *out.units.entry((*kind, Some(l))).or_default() |= chosen;
            }
        }
        Part::Linears { layers, within } | Part::Weights { layers, within } => {
            for l in positions(layers, facts.layers.len(), "layer", span)? {
                if let Some(layer) = facts.layers.get(l) {
                    out.tensors.entry(Some(l)).or_default().extend(linears(layer, *within));
                }
            }
        }
        Part::Hidden => {
            out.units.insert((SiteKind::Hidden, None), below(facts.hidden));
        }
        Part::Tensors(glob) => {
            let names = || facts.tensors.iter().map(|(name, _)| name.as_str());
            let matched: BTreeSet<String> =
                facts.tensors.iter().filter(|(name, _)| glob_matches(glob, name)).flat_map(|(_, slots)| slots.clone()).collect();
            if matched.is_empty() && !facts.tensors.is_empty() {
                let nearest = crate::syntax_error::nearest(&glob.replace('*', ""), names());
                let example = nearest.or(names().next()).unwrap_or("");
                let d = Diagnostic::error("P0208", format!("no matrix of the model's files matches `{glob}`"), span, "matches nothing");
                return Err(Box::new(d.hint(format!("they hold matrices such as `{example}`"))));
            }
            out.tensors.entry(None).or_default().extend(matched);
        }
        Part::Model | Part::Embeddings | Part::Head | Part::Classifier | Part::Adapter(_) => {}
    }
    Ok(out)
}

/// 0 to `n - 1`.
fn below(n: usize) -> Units {
    n.checked_sub(1).map_or_else(Units::new, |last| Units::from(0..=last))
}

/// The positions that indices name among `n`.
fn positions(indices: &Indices, n: usize, what: &str, span: Span) -> Result<Units, Box<Diagnostic>> {
    let Indices::Some(ranges) = indices else { return Ok(below(n)) };
    let len = n as i64;
    let mut out = Units::new();
    for (start, end) in ranges {
        let single = match (start, end) {
            (Some(a), Some(b)) => a + 1 == *b,
            (Some(-1), None) => true,
            _ => false,
        };
        let resolve = |i: i64| if i < 0 { len + i } else { i };
        let a = start.map_or(0, resolve);
        let b = end.map_or(len, resolve);
        let outside = |i: i64| {
            let plural = if what.ends_with('s') { what.to_owned() } else { format!("{what}s") };
            let legal = if n == 0 { format!("there are no {plural}") } else { format!("{plural} are 0 to {}, or -1 to -{n}", n - 1) };
            let d = Diagnostic::error("P0205", format!("there is no {} {i}", what.trim_end_matches('s')), span, format!("of {n}"));
            Box::new(d.hint(legal))
        };
        if single && !(0..len).contains(&a) {
            return Err(outside(start.unwrap_or(0)));
        }
        if a < 0 || (a > len) || (start.is_some() && a == len && n > 0) {
            return Err(outside(start.unwrap_or(0)));
        }
        if b > len {
            return Err(outside(end.unwrap_or(0) - 1));
        }
        if a < b {
            out.ranges_insert(a as usize..=b as usize - 1);
        }
    }
    if out.is_empty() && n > 0 {
        let d = Diagnostic::error("P0206", format!("no {what} lies in the range"), span, "matches nothing");
        return Err(Box::new(d.hint(format!("there are {n}: 0 to {}", n - 1))));
    }
    Ok(out)
}

/// `*` matches any run of characters, `?` one; everything else itself. Linear in practice: one point to come back to.
fn glob_matches(glob: &str, text: &str) -> bool {
    let (g, t): (Vec<char>, Vec<char>) = (glob.chars().collect(), text.chars().collect());
    let (mut i, mut j, mut star, mut mark) = (0, 0, None, 0);
    while j < t.len() {
        match g.get(i) {
            Some('*') => {
                star = Some(i);
                mark = j;
                i += 1;
            }
            Some(c) if *c == '?' || Some(c) == t.get(j) => {
                i += 1;
                j += 1;
            }
            _ => match star {
                Some(s) => {
                    i = s + 1;
                    mark += 1;
                    j = mark;
                }
                None => return false,
            },
        }
    }
    g.iter().skip(i).all(|c| *c == '*')
}
