//! The same for what a criterion prunes itself, block by block or in rounds: its decision and the weights that it updates depend neither on
//! the batch nor on threads, degenerate inputs give finite weights, and NaN is an error that says where.

use std::collections::BTreeSet;

use candle_core::{DType, Tensor};
use prunectl_model::Transformer;
use prunectl_prune::{CRITERIA, Decision, InMemory, Removed, Request, Sites};
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::{Amount, Scope, Share};

use crate::common::build;
use crate::holds::{
    BATCH_TOLERANCE, SEQUENCES, arguments, batches, degenerate, in_pool, names_no_place, networks, plenty_and_few, rows, with_nan,
};

/// One kind of site at a time, under the criterion's own scope and within each layer.
struct Case {
    name: &'static str,
    sites: Sites,
    scope: Scope,
}

/// Every row that prunes itself on that network.
fn cases(model: &Transformer) -> Vec<Case> {
    let mut out = Vec::new();
    for (name, sites) in rows(model) {
        let criterion = build(CRITERIA, name, &arguments(name));
        if criterion.layerwise().is_none() {
            continue;
        }
        for kind in sites.kinds() {
            let mut own = Sites::default();
            if kind == SiteKind::Weights {
                for layer in 0..model.n_layers() {
                    own.weights.extend(model.linears(layer).unwrap());
                }
            } else {
                own.units = sites.of_kind(kind).map(|(k, u)| (k, u.clone())).collect();
            }
            let default = criterion.default_scope(kind);
            out.push(Case { name, sites: own.clone(), scope: default });
            if kind != SiteKind::Hidden && default != Scope::Layer {
                out.push(Case { name, sites: own, scope: Scope::Layer });
            }
        }
    }
    out
}

/// The pruned layers and what was decided.
struct Pruned {
    parameters: Vec<(String, Vec<f64>)>,
    decision: Decision,
}

impl Case {
    fn prune(&self, model: &Transformer, data: &mut InMemory) -> prunectl_prune::Result<Pruned> {
        let criterion = build(CRITERIA, self.name, &arguments(self.name));
        let amount = Amount::Share { share: Share::from_fraction(0.5), each: false };
        let none = Removed::default();
        let request = Request::plain(&self.sites, &amount, self.scope, &none);
        let (mut model, mut removed) = (model.clone(), Removed::default());
        let (decision, _) = criterion.layerwise().unwrap().prune(&mut model, &mut removed, &request, data, &())?;
        let flat = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let parameters = model.params().iter().map(|(slot, t)| (slot.to_owned(), flat(t))).collect();
        Ok(Pruned { parameters, decision })
    }

    /// None where the criterion refuses the kind by name.
    fn try_prune(&self, model: &Transformer, data: &mut InMemory) -> Option<Pruned> {
        match self.prune(model, data) {
            Ok(pruned) => Some(pruned),
            Err(prunectl_prune::PruneError::Site { .. }) => None,
            Err(prunectl_prune::PruneError::Invalid { what, .. }) if what.starts_with("network that") => None,
            // A scope that the kind does not have.
            Err(prunectl_prune::PruneError::Scope { .. }) if self.scope == Scope::Layer => None,
            Err(e) => panic!("{} ({:?}, {:?}): {e}", self.name, self.sites.kinds(), self.scope),
        }
    }
}

fn every_row_that_prunes_is_in(seen: &BTreeSet<&str>) {
    for row in CRITERIA.iter().filter(|e| !e.spec.learns) {
        let prunes = build(CRITERIA, row.spec.name, &arguments(row.spec.name)).layerwise().is_some();
        assert!(!prunes || seen.contains(row.spec.name), "nothing was held of {}", row.spec.name);
    }
}

#[test]
fn prunes_depend_neither_on_the_batch_nor_on_threads() {
    let mut seen = BTreeSet::new();
    for (model, classes) in networks() {
        let wide = model.to_dtype(DType::F64).unwrap();
        for case in cases(&model) {
            let name = case.name;
            let Some(one) = case.try_prune(&wide, &mut batches(1, classes)) else { continue };
            let many = case.prune(&wide, &mut batches(SEQUENCES, classes)).unwrap();
            assert_eq!(one.decision.sites, many.decision.sites, "{name}");
            for ((slot, a), (_, b)) in one.parameters.iter().zip(&many.parameters) {
                let scale = a.iter().fold(0f64, |m, v| m.max(v.abs())).max(1e-30);
                for (i, (a, b)) in a.iter().zip(b).enumerate() {
                    assert!((a - b).abs() / scale <= BATCH_TOLERANCE, "{name}: {slot}, entry {i}: {a} one by one, {b} in a batch");
                }
            }
            let bits = |threads: usize| -> Vec<(String, Vec<u64>)> {
                let run = || case.prune(&model, &mut batches(8, classes)).unwrap().parameters;
                in_pool(threads, run).into_iter().map(|(k, v)| (k, v.iter().map(|x| x.to_bits()).collect())).collect()
            };
            assert!(bits(1) == bits(2), "{name}");
            seen.insert(name);
        }
    }
    every_row_that_prunes_is_in(&seen);
}

/// Half goes all the same, and what stays is finite.
#[test]
fn prunes_of_what_is_degenerate_are_defined() {
    let mut seen = BTreeSet::new();
    for (dense, classes) in networks() {
        for (what, model) in degenerate(&dense) {
            for case in cases(&model) {
                for mut data in plenty_and_few(classes) {
                    let Some(pruned) = case.try_prune(&model, &mut data) else { continue };
                    for (slot, values) in &pruned.parameters {
                        assert!(values.iter().all(|v| v.is_finite()), "{} of {what}: {slot}", case.name);
                        if case.sites.weights.contains(slot) && matches!(case.scope, Scope::Row | Scope::Matrix) {
                            let zeros = values.iter().filter(|v| **v == 0.0).count();
                            assert!(zeros + values.len().isqrt() >= values.len() / 2, "{} of {what}: {slot}: {zeros} zeros", case.name);
                        }
                    }
                    for (key, kept) in &pruned.decision.sites {
                        assert!(kept.windows(2).all(|w| w[0] < w[1]), "{} of {what}: {key}", case.name);
                    }
                    seen.insert(case.name);
                }
            }
        }
    }
    every_row_that_prunes_is_in(&seen);
}

#[test]
fn a_prune_of_a_model_that_gives_nan_says_where() {
    let (mut seen, mut wrong) = (BTreeSet::new(), Vec::new());
    for (dense, classes) in networks() {
        let model = with_nan(&dense);
        for case in cases(&dense) {
            if case.try_prune(&dense, &mut batches(8, classes)).is_none() {
                continue;
            }
            match case.prune(&model, &mut batches(8, classes)) {
                Ok(_) => wrong.push(format!("{} pruned", case.name)),
                Err(e) => wrong.extend(names_no_place(case.name, &e)),
            }
            seen.insert(case.name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    every_row_that_prunes_is_in(&seen);
}
