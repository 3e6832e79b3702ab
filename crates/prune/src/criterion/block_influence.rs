//! Block influence: how much a layer turns the residual stream.
//!
//! Men et al., ShortGPT: Layers in Large Language Models are More Redundant Than You Expect (2024), eq. 1: `BI = 1 − E cos(x_in, x_out)`
//! over tokens. The unofficial code sums (`quirk = "reference"`). A token whose state is zero on either side counts as unturned half
//! way, cos = 0.5, as in that code.

use candle_core::{DType, Tensor};
use prunectl_model::Transformer;
use prunectl_recipe::catalogue::{ArgError, Args, Entry, SiteKind};

use super::Criterion;
use crate::data::{Batches, Progress};
use crate::error::{PruneError, Result};
use crate::row::{CALIBRATION, QUIRK, criterion, needs_data};
use crate::scores::Scores;
use crate::site::{Key, Sites};

const NAME: &str = "block_influence";
/// The cosine of a pair with a zero vector.
const UNDEFINED_COSINE: f64 = 0.5;

struct BlockInfluence {
    sum: bool,
}

/// Cosine of each row of two `[rows, width]`.
fn cosines(a: &Tensor, b: &Tensor) -> Result<Vec<f64>> {
    let (a, b) = (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
    let dot = a.mul(&b)?.sum(1)?.to_vec1::<f64>()?;
    let (na, nb) = (a.sqr()?.sum(1)?.to_vec1::<f64>()?, b.sqr()?.sum(1)?.to_vec1::<f64>()?);
    let norms = na.iter().zip(&nb).map(|(a, b)| (a * b).sqrt());
    Ok(dot.iter().zip(norms).map(|(d, n)| if n == 0.0 { UNDEFINED_COSINE } else { d / n }).collect())
}

impl Criterion for BlockInfluence {
    fn needs_data(&self) -> bool {
        true
    }

    fn score(&self, model: &Transformer, sites: &Sites, data: &mut dyn Batches, progress: &dyn Progress) -> Result<Scores> {
        if let Some(kind) = sites.kinds().into_iter().find(|k| *k != SiteKind::Layers) {
            return Err(PruneError::Site { method: NAME, kind, hint: "it scores whole layers: `m.layers[*]`" });
        }
        let mut sums = vec![0.0; model.n_layers()];
        let (mut tokens, mut done) = (0usize, 0);
        data.reset()?;
        while let Some(batch) = data.next()? {
            progress.check()?;
            let real: Option<Vec<u8>> = batch.keep.as_ref().map(|k| k.flatten_all()?.to_vec1()).transpose()?;
            let counts = |i: usize| real.as_ref().is_none_or(|r| r.get(i).is_some_and(|k| *k != 0));
            tokens += (0..batch.input_ids.elem_count()).filter(|i| counts(*i)).count();
            let (mut x, context) = model.embed(&batch)?;
            for (layer, sum) in sums.iter_mut().enumerate() {
                let y = model.block(layer, &x, &context, None, &mut ())?;
                let turned = cosines(&x.flatten_to(1)?, &y.flatten_to(1)?)?;
                *sum += turned.iter().enumerate().filter(|(i, _)| counts(*i)).map(|(_, c)| 1.0 - c).sum::<f64>();
                x = y;
            }
            done += 1;
            progress.advance(done, data.len_hint().map_or(done, |n| n as u64), NAME);
        }
        if tokens == 0 {
            return Err(PruneError::NoData { method: NAME, batches: done as usize });
        }
        let n = if self.sum { 1.0 } else { tokens as f64 };
        let scores = sums.iter().map(|s| (s / n) as f32).collect();
        Scores { sites: [(Key::of(SiteKind::Layers, 0), scores)].into(), ..Scores::default() }.checked(NAME)
    }
}

fn build(args: &Args) -> std::result::Result<Box<dyn Criterion>, ArgError> {
    Ok(Box::new(BlockInfluence { sum: args.word("quirk")? == "reference" }))
}

pub(super) const ENTRY: Entry<dyn Criterion> = Entry {
    spec: needs_data(criterion(
        "block_influence",
        "Men et al., ShortGPT: Layers in Large Language Models are More Redundant Than You Expect (2024), eq. 1",
        &[CALIBRATION, QUIRK],
        &[SiteKind::Layers],
        "How much a layer turns the residual stream: `1 − E cos(x_in, x_out)` over the tokens that count.\n\n\
         Mind: the last layer's output is taken before the final norm. The unofficial code sums over tokens (`quirk = \"reference\"`).\n\n\
         ```prune\nprune m.layers[*] by 1 layers using block_influence(on = d.train.sample(64, seed = 0))\n```",
    )),
    build,
};

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// (1, 0) turned by 90°, by nothing, and against a vector of zeros.
    #[test]
    fn by_hand() {
        let x = Tensor::new(&[[1f32, 0.0], [1.0, 0.0], [1.0, 0.0]], &Device::Cpu).unwrap();
        let y = Tensor::new(&[[0f32, 2.0], [3.0, 0.0], [0.0, 0.0]], &Device::Cpu).unwrap();
        assert_eq!(cosines(&x, &y).unwrap(), [0.0, 1.0, 0.5]);
    }
}
