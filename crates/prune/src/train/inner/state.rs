//! What a resume needs of the `prune`s inside a training: what they learned, what they decided, how far they are.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use super::super::{TrainState, Trainer};
use crate::decision::Decision;
use crate::error::{PruneError, Result};
use crate::learned::Values;
use crate::scores::Scores;
use crate::selection::Shape;
use crate::site::Key;
use crate::surgery;

/// Where their tensors stand in a training's state: `prunes/0/…`.
const PRUNES: &str = "prunes";

impl Trainer<'_> {
    /// Adds what a resume needs.
    pub(in crate::train) fn save_inner(&self, tensors: &mut BTreeMap<String, Tensor>) -> Result<()> {
        let flat = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu);
        for (i, inner) in self.inner.iter().enumerate() {
            let stem = format!("{PRUNES}/{i}");
            for (name, values) in &inner.learned.params {
                tensors.insert(format!("{stem}/params/{name}"), flat(values)?);
            }
            for (name, values) in &inner.learned.aux {
                tensors.insert(format!("{stem}/aux/{name}"), flat(values)?);
            }
            for (name, memory) in &inner.memories {
                for (buffer, values) in memory {
                    tensors.insert(format!("{stem}/{buffer}/{name}"), flat(values)?);
                }
            }
            if let Some(asked) = inner.asked {
                tensors.insert(format!("{stem}/asked"), Tensor::from_slice(&[asked], 1, &Device::Cpu)?);
            }
            if let Some((decision, scores)) = &inner.decision {
                for (name, t) in decision.to_tensors(&inner.shape)? {
                    tensors.insert(format!("{stem}/keep/{name}"), t);
                }
                for (name, t) in scores_to_tensors(scores)? {
                    tensors.insert(format!("{stem}/scores/{name}"), t);
                }
            }
        }
        Ok(())
    }

    /// The inverse of `save_inner`.
    pub(in crate::train) fn load_inner(&mut self, state: &TrainState) -> Result<()> {
        let mut inner = std::mem::take(&mut self.inner);
        let buffers = self.spec.optimizer.buffers();
        for (i, own) in inner.iter_mut().enumerate() {
            let stem = format!("{PRUNES}/{i}/");
            let (mut keeps, mut scores) = (BTreeMap::new(), BTreeMap::new());
            for (name, t) in &state.tensors {
                let Some((part, name)) = name.strip_prefix(&stem).map(|n| n.split_once('/').unwrap_or((n, ""))) else { continue };
                let name = name.to_owned();
                match part {
                    "params" => restore(&mut own.learned.params, name, t)?,
                    "aux" => {
                        own.learned.aux.insert(name, t.to_vec1()?);
                    }
                    "asked" => own.asked = t.to_vec1::<f64>()?.first().copied(),
                    "keep" => {
                        keeps.insert(name, t.clone());
                    }
                    "scores" => {
                        scores.insert(name, t.clone());
                    }
                    buffer => {
                        if let Some(buffer) = buffers.iter().find(|b| **b == buffer) {
                            own.memories.entry(name).or_default().insert(buffer, t.to_vec1()?);
                        }
                    }
                }
            }
            if own.asked.is_none() {
                continue;
            }
            let decision = Decision::from_tensors(&keeps)?;
            own.gone = own.layout.gone(&decision)?;
            if own.prune.learner().is_none() {
                surgery::mask(&mut self.model, &mut self.removed, &decision)?;
            }
            own.decision = Some((decision, scores_from_tensors(scores)?));
        }
        self.inner = inner;
        self.hold()?;
        self.hide(self.step, false)
    }
}

fn restore(params: &mut Values, name: String, t: &Tensor) -> Result<()> {
    let found = t.elem_count();
    let expected = params.get(&name).map(Vec::len);
    if expected != Some(found) {
        let expected = expected.map_or_else(|| "no such scores".to_owned(), |n| n.to_string());
        return Err(PruneError::State { what: format!("learned scores `{name}`"), found: found.to_string(), expected });
    }
    params.insert(name, t.to_dtype(DType::F32)?.to_vec1()?);
    Ok(())
}

fn scores_to_tensors(scores: &Scores) -> Result<BTreeMap<String, Tensor>> {
    let mut out: BTreeMap<String, Tensor> = scores.weights.iter().map(|(name, t)| (name.clone(), t.clone())).collect();
    for (key, values) in &scores.sites {
        out.insert(key.to_string(), Tensor::from_slice(values, values.len(), &Device::Cpu)?);
    }
    Ok(out)
}

fn scores_from_tensors(tensors: BTreeMap<String, Tensor>) -> Result<Scores> {
    let mut out = Scores::default();
    for (name, t) in tensors {
        match Key::parse(&name) {
            Some(key) => {
                out.sites.insert(key, t.to_vec1()?);
            }
            None => {
                out.weights.insert(name, t);
            }
        }
    }
    Ok(out)
}

impl Decision {
    /// Keep masks by site (u8 `[units]`) and by slot (u8 `[out, in]`): a decision as tensors, for checkpoints.
    pub fn to_tensors(&self, shape: &Shape) -> Result<BTreeMap<String, Tensor>> {
        let mut out: BTreeMap<String, Tensor> = self.weights.iter().map(|(name, t)| (name.clone(), t.clone())).collect();
        for (key, kept) in &self.sites {
            let keep: Vec<u8> = (0..shape.count(*key)).map(|u| u8::from(kept.binary_search(&u).is_ok())).collect();
            let n = keep.len();
            out.insert(key.to_string(), Tensor::from_vec(keep, n, &Device::Cpu)?);
        }
        Ok(out)
    }

    /// The inverse of [`Decision::to_tensors`].
    pub fn from_tensors(tensors: &BTreeMap<String, Tensor>) -> Result<Self> {
        let mut out = Self::default();
        for (name, t) in tensors {
            match Key::parse(name) {
                Some(key) => {
                    let keep = t.to_vec1::<u8>()?;
                    out.sites.insert(key, keep.iter().enumerate().filter(|(_, k)| **k != 0).map(|(u, _)| u).collect());
                }
                None => {
                    out.weights.insert(name.clone(), t.clone());
                }
            }
        }
        Ok(out)
    }
}
