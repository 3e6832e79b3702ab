//! Random scores: the floor that every method must beat.
//!
//! Each site draws from its own ChaCha8 stream, seeded by (seed, site), so a score does not depend on what else is scored or in
//! which order.

use candle_core::{Device, Tensor};
use prunectl_model::Transformer;
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Ty};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Criterion, Standing};
use crate::data::{Batches, Progress};
use crate::error::Result;
use crate::row::{ALL_SITES, criterion, param, within};
use crate::scores::Scores;
use crate::site::Sites;
use crate::units::count;

struct Random {
    seed: u64,
}

/// FNV-1a, so that the stream of a site depends on its name alone.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

fn draw(seed: u64, name: &str, n: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(hash(name));
    (0..n).map(|_| rng.random::<f32>()).collect()
}

impl Criterion for Random {
    fn score(&self, model: &Transformer, sites: &Sites, _: &mut dyn Batches, _: &dyn Progress) -> Result<Scores> {
        let mut out = Scores::default();
        for key in sites.units.keys() {
            out.sites.insert(*key, draw(self.seed, &key.to_string(), count(model, *key)?));
        }
        for slot in &sites.weights {
            let shape = model.params().require(slot)?.shape().clone();
            let values = draw(self.seed, slot, shape.elem_count());
            out.weights.insert(slot.clone(), Tensor::from_vec(values, shape, &Device::Cpu)?);
        }
        out.checked("random")
    }

    fn standing(&self) -> Standing {
        Standing::Chance
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(Random { seed: args.count("seed")? }))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: criterion(
        "random",
        "the baseline of every method",
        &[within(param("seed", Ty::Count, "0", "Another seed, another draw."), 0.0, 9e15)],
        ALL_SITES,
        "Uniform random scores in [0, 1): the floor that every method must beat.\n\n\
         Each site has its own stream, so a unit's score does not depend on what else is scored.\n\n\
         ```prune\nprune m.layers[*].attention.heads by 40% using random(seed = 1)\n```",
    ),
    build,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_draws_its_own_stream_in_zero_to_one() {
        let one = draw(0, "layers.0.mlp.neurons", 64);
        assert!(one.iter().all(|x| (0.0..1.0).contains(x)));
        assert_eq!(one, draw(0, "layers.0.mlp.neurons", 64));
        assert_ne!(one, draw(0, "layers.1.mlp.neurons", 64));
        assert_ne!(one, draw(1, "layers.0.mlp.neurons", 64));
    }
}
