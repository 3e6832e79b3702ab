//! Ranking single weights.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::{Amount, Scope};
use rayon::prelude::*;

use super::{Request, Shape, amount_error, by_layer, wanted};
use crate::error::{PruneError, Result};
use crate::scores::Scores;
use crate::site::slot_layer;

/// One matrix while it is ranked.
struct Matrix {
    slot: String,
    columns: usize,
    scores: Vec<f32>,
    /// 1 = kept.
    keep: Vec<u8>,
    protected: bool,
    /// How many more weights may go.
    room: usize,
}

/// Keep masks of each selected matrix.
pub(super) fn select(scores: &Scores, request: &Request<'_>, shape: &Shape) -> Result<BTreeMap<String, Tensor>> {
    if request.align.is_some_and(|a| a > 1) {
        return Err(PruneError::Invalid {
            what: "`align` of weights",
            found: "a multiple".into(),
            expected: "no `align`: single weights have no count per layer; select units, or use `2 of 4`".into(),
        });
    }
    let mut matrices = load(scores, request, shape)?;
    match request.amount {
        Amount::NofM { removed, group } => {
            for m in &mut matrices {
                pattern(m, *removed as usize, *group as usize, request)?;
            }
        }
        amount => {
            let mut layers: Vec<Option<usize>> = matrices.iter().map(|m| slot_layer(&m.slot)).collect();
            layers.dedup();
            let per_layer = by_layer(amount, layers.len())?;
            for (i, layer) in layers.iter().enumerate() {
                let own = per_layer.as_ref().and_then(|a| a.get(i)).unwrap_or(amount);
                // Amounts by layer leave a global ranking nothing to choose between layers.
                let scope = if per_layer.is_some() && request.scope == Scope::Global { Scope::Layer } else { request.scope };
                let mut group: Vec<&mut Matrix> = matrices.iter_mut().filter(|m| slot_layer(&m.slot) == *layer).collect();
                match scope {
                    Scope::Global => {
                        rank(&mut matrices.iter_mut().collect::<Vec<_>>(), amount, request, "all selected weights")?;
                        break;
                    }
                    Scope::Layer => {
                        let what = layer.map_or_else(|| "weights outside the layers".to_owned(), |l| format!("weights of layer {l}"));
                        rank(&mut group, own, request, &what)?;
                    }
                    Scope::Matrix => {
                        for m in group {
                            let what = m.slot.clone();
                            rank(&mut [m], own, request, &what)?;
                        }
                    }
                    Scope::Row => {
                        for m in group {
                            rows(m, own, request)?;
                        }
                    }
                }
            }
        }
    }
    let mut out = BTreeMap::new();
    for m in matrices {
        let rows = m.keep.len() / m.columns.max(1);
        out.insert(m.slot, Tensor::from_vec(m.keep, (rows, m.columns), &Device::Cpu)?);
    }
    Ok(out)
}

/// The selected matrices in the order of ties: by layer, then by name.
fn load(scores: &Scores, request: &Request<'_>, shape: &Shape) -> Result<Vec<Matrix>> {
    let mut slots: Vec<&String> = request.sites.weights.iter().collect();
    slots.sort_by_key(|s| (slot_layer(s).map_or(usize::MAX, |l| l), s.as_str()));
    let mut out = Vec::with_capacity(slots.len());
    for slot in slots {
        let (rows, columns) = *shape.weights.get(slot).ok_or_else(|| PruneError::NoScores { key: slot.clone() })?;
        let t = scores.weights.read(slot)?.ok_or_else(|| PruneError::NoScores { key: slot.clone() })?;
        // −0 and 0 tie.
        let scores: Vec<f32> = t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?.into_iter().map(|s| s + 0.0).collect();
        if scores.len() != rows * columns {
            return Err(PruneError::ScoreShape { key: slot.clone(), found: scores.len(), expected: rows * columns });
        }
        let keep = match request.removed.weights.read(slot)? {
            Some(keep) => keep.to_dtype(DType::U8)?.flatten_all()?.to_vec1::<u8>()?,
            None => vec![1; scores.len()],
        };
        if keep.len() != scores.len() {
            return Err(PruneError::ScoreShape { key: slot.clone(), found: scores.len(), expected: keep.len() });
        }
        let (total, left) = (keep.len(), keep.iter().filter(|k| **k != 0).count());
        let floor = request.at_least.map_or(0, |a| a.of(total));
        if floor > left {
            return Err(PruneError::AtLeast { key: slot.clone(), wanted: floor, left, total });
        }
        let protected = request.protect.weights.contains(slot);
        out.push(Matrix { slot: slot.clone(), columns, scores, keep, protected, room: left - floor });
    }
    Ok(out)
}

/// Removes the lowest of all these matrices together.
fn rank(matrices: &mut [&mut Matrix], amount: &Amount, request: &Request<'_>, what: &str) -> Result<()> {
    let total: usize = matrices.iter().map(|m| m.keep.len()).sum();
    let gone: usize = matrices.iter().map(|m| m.keep.iter().filter(|k| **k == 0).count()).sum();
    let full = count(amount, total, gone)?;
    let possible: usize = matrices.iter().filter(|m| !m.protected).map(|m| m.room.min(m.keep.iter().filter(|k| **k != 0).count())).sum();
    if full > possible {
        return Err(cannot(what, full, possible, request));
    }
    let mut want = request.step.map_or(full, |s| full.min(s.of(total).max(1)));
    // A matrix that would lose more than it may loses its lowest, and the others are ranked again for the rest: what taking the lowest
    // one at a time, passing over full matrices, comes to.
    let mut open: Vec<usize> = (0..matrices.len()).filter(|i| matrices.get(*i).is_some_and(|m| !m.protected)).collect();
    while want > 0 && !open.is_empty() {
        let pool = open.iter().filter_map(|i| matrices.get(*i)).map(|m| (m.scores.as_slice(), m.keep.as_slice()));
        let cut = Cut::of(pool, want);
        let counts: Vec<usize> = {
            let mut ties = cut.ties;
            open.iter().filter_map(|i| matrices.get(*i)).map(|m| cut.count(&m.scores, &m.keep, &mut ties)).collect()
        };
        let full: Vec<usize> =
            open.iter().zip(&counts).filter(|(i, n)| matrices.get(**i).is_some_and(|m| **n > m.room)).map(|(i, _)| *i).collect();
        let now = if full.is_empty() { open.clone() } else { full.clone() };
        if full.is_empty() {
            let mut ties = cut.ties;
            for i in &now {
                if let Some(m) = matrices.get_mut(*i) {
                    cut.apply(&m.scores, &mut m.keep, &mut ties);
                }
            }
            break;
        }
        for i in &now {
            if let Some(m) = matrices.get_mut(*i) {
                let own = Cut::of([(m.scores.as_slice(), m.keep.as_slice())].into_iter(), m.room);
                let mut ties = own.ties;
                own.apply(&m.scores, &mut m.keep, &mut ties);
                want -= m.room;
                m.room = 0;
            }
        }
        open.retain(|i| !full.contains(i));
    }
    Ok(())
}

/// Each row loses its own share.
fn rows(m: &mut Matrix, amount: &Amount, request: &Request<'_>) -> Result<()> {
    let columns = m.columns.max(1);
    let (slot, protected) = (&m.slot, m.protected);
    let rows = m.scores.par_chunks(columns).zip(m.keep.par_chunks_mut(columns)).enumerate();
    let lost = rows.map(|(row, (scores, keep))| {
        let gone = keep.iter().filter(|k| **k == 0).count();
        let full = count(amount, columns, gone)?;
        let possible = if protected { 0 } else { columns - gone };
        if full > possible {
            return Err(cannot(&format!("row {row} of {slot}"), full, possible, request));
        }
        let want = request.step.map_or(full, |s| full.min(s.of(columns).max(1)));
        let cut = Cut::of([(scores, &*keep)].into_iter(), want);
        let mut ties = cut.ties;
        cut.apply(scores, keep, &mut ties);
        Ok(want)
    });
    let lost: usize = lost.collect::<Result<Vec<_>>>()?.into_iter().sum();
    if lost > m.room {
        return Err(cannot(&m.slot, lost, m.room, request));
    }
    Ok(())
}

/// Of every `group` consecutive inputs, `removed` go: those already gone first, then the lowest, then the first.
fn pattern(m: &mut Matrix, removed: usize, group: usize, request: &Request<'_>) -> Result<()> {
    if group == 0 || removed > group || !m.columns.is_multiple_of(group) {
        return Err(PruneError::Amount {
            found: format!("{removed} of {group}"),
            expected: format!("a group that divides the {} inputs of `{}`", m.columns, m.slot),
        });
    }
    if m.protected && removed > 0 {
        return Err(cannot(&m.slot, m.keep.len() / group * removed, 0, request));
    }
    let mut lost = 0;
    for (scores, keep) in m.scores.chunks(group).zip(m.keep.chunks_mut(group)) {
        let gone = keep.iter().filter(|k| **k == 0).count();
        let want = removed.saturating_sub(gone);
        let cut = Cut::of([(scores, &*keep)].into_iter(), want);
        let mut ties = cut.ties;
        cut.apply(scores, keep, &mut ties);
        lost += want;
    }
    if lost > m.room {
        return Err(cannot(&m.slot, lost, m.room, request));
    }
    Ok(())
}

fn count(amount: &Amount, total: usize, gone: usize) -> Result<usize> {
    match amount {
        // A weight is a parameter.
        Amount::OfParams(share) => wanted(&Amount::Share { share: *share, each: true }, total, gone, SiteKind::Weights),
        Amount::Scheduled { .. } => Err(amount_error(amount, "the share of one moment: schedules belong inside `train`")),
        amount => wanted(amount, total, gone, SiteKind::Weights),
    }
}

/// How many more weights of one matrix go, `gone` of its `total` being gone already: for methods that choose them their own way.
pub(crate) fn to_go(slot: &str, amount: &Amount, request: &Request<'_>, total: usize, gone: usize) -> Result<usize> {
    let want = count(amount, total, gone)?;
    let (left, floor) = (total - gone.min(total), request.at_least.map_or(0, |a| a.of(total)));
    if floor > left {
        return Err(PruneError::AtLeast { key: slot.to_owned(), wanted: floor, left, total });
    }
    let possible = if request.protect.weights.contains(slot) { 0 } else { left - floor };
    if want > possible {
        return Err(cannot(slot, want, possible, request));
    }
    Ok(want)
}

fn cannot(what: &str, wanted: usize, possible: usize, request: &Request<'_>) -> PruneError {
    let reason = match (request.at_least.is_some(), request.protect.is_empty()) {
        (true, true) => "`at_least`",
        (true, false) => "`at_least` and `protect`",
        (false, _) => "`protect`",
    };
    PruneError::CannotRemove { what: what.to_owned(), wanted, possible, reason: reason.into() }
}

/// Where the lowest `n` end: everything below the bar, and so many of those equal to it, in order.
struct Cut {
    bar: f32,
    ties: usize,
}

impl Cut {
    fn of<'a>(pool: impl Iterator<Item = (&'a [f32], &'a [u8])>, n: usize) -> Self {
        let live =
            |(scores, keep): (&'a [f32], &'a [u8])| scores.iter().zip(keep).filter(|(_, k)| **k != 0).map(|(s, _)| *s).collect::<Vec<_>>();
        let mut values: Vec<f32> = pool.flat_map(live).collect();
        if n == 0 || values.is_empty() {
            return Self { bar: f32::NEG_INFINITY, ties: 0 };
        }
        let n = n.min(values.len());
        let (below, bar, _) = values.select_nth_unstable_by(n - 1, f32::total_cmp);
        let bar = *bar;
        let ties = n - below.iter().filter(|v| **v < bar).count();
        Self { bar, ties }
    }

    fn count(&self, scores: &[f32], keep: &[u8], ties: &mut usize) -> usize {
        let mut n = 0;
        for (score, _) in scores.iter().zip(keep).filter(|(_, k)| **k != 0) {
            if *score < self.bar {
                n += 1;
            } else if *score == self.bar && *ties > 0 {
                *ties -= 1;
                n += 1;
            }
        }
        n
    }

    fn apply(&self, scores: &[f32], keep: &mut [u8], ties: &mut usize) {
        for (score, keep) in scores.iter().zip(keep).filter(|(_, k)| **k != 0) {
            if *score < self.bar {
                *keep = 0;
            } else if *score == self.bar && *ties > 0 {
                *ties -= 1;
                *keep = 0;
            }
        }
    }
}
