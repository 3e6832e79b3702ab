//! HRank: the rank of what a head writes.
//!
//! Lin et al., HRank: Filter Pruning using High-Rank Feature Map (2020), eq. 5: `E_x rank(o(x))`. A head's map is its context `[tokens,
//! head_dim]` over the real tokens of an example; the rank counts singular values above `tol` times the largest. A neuron's output is a
//! single column, whose rank is 0 or 1 and says nothing.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use prunectl_model::{Gates, ModelError, Point, Tap, Transformer};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind, Ty};
use rayon::prelude::*;

use super::Criterion;
use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::linalg::singular_values;
use crate::row::{CALIBRATION, criterion, needs_data, param, within};
use crate::scores::Scores;
use crate::site::{Key, Sites};
use crate::units::count;

const NAME: &str = "hrank";

struct HRank {
    tol: f64,
}

/// Σ over examples of ranks, by site.
struct Ranks {
    tol: f64,
    sums: BTreeMap<Key, Vec<f64>>,
    real: Option<Vec<Vec<u8>>>,
}

fn rank(rows: &[Vec<f64>], tol: f64) -> f64 {
    let values = singular_values(rows);
    let largest = values.iter().copied().fold(0.0, f64::max);
    // NaN counts as nothing but is seen: the sum becomes NaN, which no score may be.
    if values.iter().any(|v| v.is_nan()) {
        return f64::NAN;
    }
    values.iter().filter(|v| **v > tol * largest).count() as f64
}

impl Ranks {
    /// Adds an activation `[b, s, units · size]`.
    fn add(&mut self, key: Key, x: &Tensor) -> candle_core::Result<()> {
        let Some(sums) = self.sums.get_mut(&key) else { return Ok(()) };
        let units = sums.len();
        for (b, example) in x.to_dtype(DType::F64)?.flatten_from(2)?.to_vec3::<f64>()?.into_iter().enumerate() {
            let keep = self.real.as_ref().and_then(|r| r.get(b));
            let tokens: Vec<Vec<f64>> =
                example.into_iter().enumerate().filter(|(s, _)| keep.is_none_or(|k| k.get(*s) == Some(&1))).map(|(_, t)| t).collect();
            let size = tokens.first().map_or(0, Vec::len) / units.max(1);
            let of = |unit: usize| tokens.iter().map(|t| t.iter().skip(unit * size).take(size).copied().collect()).collect::<Vec<_>>();
            let ranks: Vec<f64> = (0..units).into_par_iter().map(|unit| rank(&of(unit), self.tol)).collect();
            sums.iter_mut().zip(ranks).for_each(|(sum, r)| *sum += r);
        }
        Ok(())
    }
}

impl Tap for Ranks {
    fn wants(&self, layer: usize, point: Point) -> bool {
        point == Point::HeadContext && [SiteKind::Heads, SiteKind::KvGroups].iter().any(|k| self.sums.contains_key(&Key::of(*k, layer)))
    }

    fn see(&mut self, layer: usize, _: Point, x: &Tensor) -> std::result::Result<(), ModelError> {
        self.add(Key::of(SiteKind::Heads, layer), x)?;
        self.add(Key::of(SiteKind::KvGroups, layer), x)?;
        Ok(())
    }
}

impl Criterion for HRank {
    fn needs_data(&self) -> bool {
        true
    }

    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        if let Some(kind) = sites.kinds().into_iter().find(|k| !matches!(k, SiteKind::Heads | SiteKind::KvGroups)) {
            return Err(PruneError::Site { method: NAME, kind, hint: "it scores heads and KV groups, whose outputs are matrices" });
        }
        let mut ranks = Ranks { tol: self.tol, sums: BTreeMap::new(), real: None };
        for key in sites.units.keys() {
            let d = key.layer.and_then(|l| model.dims().get(l)).copied().unwrap_or_default();
            if d.head_dim < 2 {
                return Err(PruneError::Site {
                    method: NAME,
                    kind: key.kind,
                    hint: "heads of one entry have rank 0 or 1; use `activation_norm`",
                });
            }
            ranks.sums.insert(*key, vec![0.0; count(model, *key)?]);
        }
        let (mut examples, mut done) = (0usize, 0);
        data.reset()?;
        while let Some(batch) = data.next()? {
            progress.check()?;
            ranks.real = batch.keep.as_ref().map(|k| k.to_vec2()).transpose()?;
            model.hidden(&batch, &Gates::default(), &mut ranks)?;
            examples += batch.size()?.0;
            done += 1;
            progress.advance(done, data.len_hint().map_or(done, |n| n as u64), NAME);
        }
        if examples == 0 {
            return Err(PruneError::NoData { method: NAME, batches: done as usize });
        }
        let mean = |sums: Vec<f64>| sums.into_iter().map(|s| (s / examples as f64) as f32).collect();
        Scores { sites: ranks.sums.into_iter().map(|(k, s)| (k, mean(s))).collect(), ..Scores::default() }.checked(NAME)
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(HRank { tol: args.float("tol")? }))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: needs_data(criterion(
        "hrank",
        "Lin et al., HRank: Filter Pruning using High-Rank Feature Map (2020), eq. 5",
        &[CALIBRATION, within(param("tol", Ty::Float, "1e-3", "Singular values below tol · the largest do not count."), 0.0, 1.0)],
        &[SiteKind::Heads, SiteKind::KvGroups],
        "Mean numerical rank of a unit's output matrix: `E_x rank([tokens, head_dim])`.\n\n\
         Mind: random activations have full rank and tie; the default tolerance of other libraries (machine epsilon) counts rounding noise as rank. \
         Needs head_dim > 1; a neuron's output is one column, so neurons are not scored.\n\n\
         ```prune\nscore m.layers[*].attention.heads using hrank(on = d.train.sample(64, seed = 0)) as s\n```",
    )),
    build,
};

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use candle_core::Device;

    use super::*;

    /// Recorded maps `[b, heads, tokens, head_dim]` through the tap that the criterion uses.
    #[test]
    fn equals_the_authors_ranks() {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/methods/12_hrank");
        let load = |file: &str| candle_core::safetensors::load(dir.join(file), &Device::Cpu).unwrap();
        let (inputs, expected) = (load("inputs.safetensors"), load("expected.safetensors"));
        let flat = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let key = Key::of(SiteKind::Heads, 0);
        let mut all = Ranks { tol: 16.0 * f64::from(f32::EPSILON), sums: [(key, vec![0.0; 8])].into(), real: None };
        let (mut examples, mut worst) = (0, 0f64);
        for batch in 0..2 {
            let maps = &inputs[&format!("maps.{batch}")];
            all.see(0, Point::HeadContext, &maps.transpose(1, 2).unwrap().contiguous().unwrap()).unwrap();
            examples += maps.dim(0).unwrap();
            let (mut values, mut ranks, mut coarse) = (Vec::new(), Vec::new(), Vec::new());
            for map in maps.flatten_to(1).unwrap().to_dtype(DType::F64).unwrap().to_vec3::<f64>().unwrap() {
                let mut own = singular_values(&map);
                own.sort_by(|a, b| b.total_cmp(a));
                values.extend(own);
                ranks.push(rank(&map, all.tol));
                coarse.push(rank(&map, 1e-3));
            }
            assert_eq!(ranks, flat(&expected[&format!("rank.default.{batch}")]));
            assert_eq!(coarse, flat(&expected[&format!("rank.rtol1e-3.{batch}")]));
            for (a, b) in values.iter().zip(flat(&expected[&format!("singular_values.{batch}")])) {
                assert!((a - b).abs() <= 2.3e-4 + 1e-4 * b, "{a} {b}");
                worst = worst.max((a - b).abs());
            }
            for (a, b) in all.sums[&key].iter().zip(flat(&expected[&format!("average_rank.after_batch{batch}")])) {
                assert!((a / examples as f64 - b).abs() <= 7.4e-5 + 1e-5 * b, "{a} {b}");
            }
        }
        println!("golden 12_hrank: ranks exact, worst error of a singular value {worst:.1e}");
    }

    #[test]
    fn by_hand() {
        assert_eq!(rank(&[vec![1.0, 2.0], vec![2.0, 4.0]], 1e-3), 1.0);
        assert_eq!(rank(&[vec![1.0, 0.0], vec![0.0, 0.5]], 1e-3), 2.0);
        // A third of the largest, and nothing at all.
        assert_eq!(rank(&[vec![3.0, 0.0], vec![0.0, 1.0]], 0.5), 1.0);
        assert_eq!(rank(&[vec![0.0, 0.0]], 1e-3), 0.0);
    }
}
