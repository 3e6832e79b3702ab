//! Metrics of the model alone: parameters, FLOPs, sparsity, latency.

use std::time::Instant;

use candle_core::{D, DType, Tensor};
use prunectl_model::{Batch, Gates, Transformer, cost};
use prunectl_recipe::catalogue::{ArgError, Args, Entry, Ty};

use super::{Inputs, Measured, Metric, Needs};
use crate::error::Result;
use crate::row::{metric, param, within};

struct Params;

impl Metric for Params {
    fn needs(&self) -> Needs {
        Needs::Nothing
    }
    fn higher_is_better(&self) -> Option<bool> {
        Some(false)
    }
    fn measure(&self, inputs: &mut Inputs<'_>) -> Result<Measured> {
        Ok(Measured {
            value: inputs.model.parameter_count() as f64,
            protocol: "scalars of all parameters, a tied head once; masked units count until they are compacted".into(),
            ..Measured::default()
        })
    }
}

struct Flops {
    length: usize,
}

impl Metric for Flops {
    fn needs(&self) -> Needs {
        Needs::Nothing
    }
    fn higher_is_better(&self) -> Option<bool> {
        Some(false)
    }
    fn measure(&self, inputs: &mut Inputs<'_>) -> Result<Measured> {
        let m = inputs.model;
        let per_token = cost::flops_per_token(m.blueprint(), m.dims(), self.length);
        Ok(Measured {
            value: per_token as f64 * self.length as f64,
            protocol: format!(
                "one forward pass of {} tokens, a multiply-add counts as 2, norms and activations are not counted",
                self.length
            ),
            ..Measured::default()
        })
    }
}

struct Sparsity;

impl Metric for Sparsity {
    fn needs(&self) -> Needs {
        Needs::Nothing
    }
    fn higher_is_better(&self) -> Option<bool> {
        None
    }
    fn measure(&self, inputs: &mut Inputs<'_>) -> Result<Measured> {
        let (mut zeros, mut all) = (0u64, 0u64);
        for layer in 0..inputs.model.n_layers() {
            for slot in inputs.model.linears(layer)? {
                let values = inputs.model.params().read(&slot)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
                all += values.len() as u64;
                zeros += values.iter().filter(|v| **v == 0.0).count() as u64;
            }
        }
        Ok(Measured {
            value: zeros as f64 / all.max(1) as f64,
            protocol: "share of exact zeros in the layers' weight matrices".into(),
            ..Measured::default()
        })
    }
}

struct Latency {
    batch: usize,
    length: usize,
    runs: usize,
    quantile: f64,
}

/// Forward passes before the clock counts.
const WARM_UP: usize = 2;

impl Metric for Latency {
    fn needs(&self) -> Needs {
        Needs::Nothing
    }
    fn higher_is_better(&self) -> Option<bool> {
        Some(false)
    }
    fn measure(&self, inputs: &mut Inputs<'_>) -> Result<Measured> {
        let batch = Batch::new(made_up(inputs.model, self.batch, self.length)?);
        let mut times = Vec::with_capacity(self.runs);
        for run in 0..self.runs + WARM_UP {
            inputs.progress.check()?;
            let start = Instant::now();
            // Reading one value waits for the device.
            inputs.model.forward(&batch, &Gates::default(), &mut ())?.flatten_all()?.get(0)?.to_dtype(DType::F32)?.to_scalar::<f32>()?;
            if run >= WARM_UP {
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
        times.sort_by(f64::total_cmp);
        let at = |share: f64| quantile(&times, share);
        Ok(Measured {
            value: at(self.quantile),
            protocol: format!(
                "milliseconds of one forward pass, batch {}, {} tokens: {} of {} after {WARM_UP} to warm up (10 % {:.2}, 50 % {:.2}, 90 % {:.2}, 99 % {:.2}), {} threads",
                self.batch,
                self.length,
                if self.quantile == 0.5 { "median".to_owned() } else { format!("{} % quantile", self.quantile * 100.0) },
                self.runs,
                at(0.1),
                at(0.5),
                at(0.9),
                at(0.99),
                rayon::current_num_threads()
            ),
            tokens: Some((self.batch * self.length) as u64),
            ..Measured::default()
        })
    }
}

/// The value below which that share of sorted values lies, between neighbours in proportion.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share.clamp(0.0, 1.0) * sorted.len().saturating_sub(1) as f64;
    let low = place.floor();
    let at = |i: f64| sorted.get(i as usize).copied().unwrap_or_default();
    at(low) + (at(place.ceil()) - at(low)) * (place - low)
}

struct Generation {
    batch: usize,
    prompt: usize,
    tokens: usize,
    runs: usize,
}

impl Generation {
    /// Milliseconds from the prompt's end to the last token: each is the likeliest behind those before it.
    fn once(&self, model: &Transformer) -> Result<f64> {
        let mut cache = model.cache()?;
        let mut logits = model.extend(&made_up(model, self.batch, self.prompt)?, &mut cache)?;
        let start = Instant::now();
        for _ in 0..self.tokens {
            let next: Tensor = logits.argmax_keepdim(D::Minus1)?; // u32 [batch, 1]
            logits = model.extend(&next, &mut cache)?;
        }
        // Reading one value waits for the device.
        logits.flatten_all()?.get(0)?.to_dtype(DType::F32)?.to_scalar::<f32>()?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }
}

impl Metric for Generation {
    fn needs(&self) -> Needs {
        Needs::Nothing
    }
    fn higher_is_better(&self) -> Option<bool> {
        Some(true)
    }
    fn measure(&self, inputs: &mut Inputs<'_>) -> Result<Measured> {
        let mut times = Vec::with_capacity(self.runs);
        for run in 0..self.runs + 1 {
            inputs.progress.check()?;
            let time = self.once(inputs.model)?;
            // The first one warms up.
            if run > 0 {
                times.push(time);
            }
        }
        times.sort_by(f64::total_cmp);
        let speed = |ms: f64| (self.batch * self.tokens) as f64 / ms * 1e3;
        let at = |share: f64| speed(quantile(&times, share));
        Ok(Measured {
            value: at(0.5),
            protocol: format!(
                "tokens a second of greedy generation with a KV cache, behind {} tokens whose reading does not count, batch {}, {} tokens each: median of {} after 1 to warm up (slowest 10 % {:.1}, fastest 10 % {:.1}), {} threads",
                self.prompt,
                self.batch,
                self.tokens,
                self.runs,
                at(0.9),
                at(0.1),
                rayon::current_num_threads()
            ),
            tokens: Some((self.batch * self.tokens) as u64),
            ..Measured::default()
        })
    }
}

/// Tokens that no text has: speed does not depend on which they are.
fn made_up(model: &Transformer, batch: usize, length: usize) -> Result<Tensor> {
    let vocab = model.blueprint().vocab.max(1);
    let ids: Vec<u32> = (0..batch * length).map(|i| (i * 7919 % vocab) as u32).collect();
    Ok(Tensor::from_vec(ids, (batch, length), model.device())?)
}

struct Memory {
    batch: usize,
    length: usize,
}

impl Metric for Memory {
    fn needs(&self) -> Needs {
        Needs::Nothing
    }
    fn higher_is_better(&self) -> Option<bool> {
        Some(false)
    }
    fn measure(&self, inputs: &mut Inputs<'_>) -> Result<Measured> {
        let m = inputs.model;
        let each = m.dtype().size_in_bytes();
        let weights = m.parameter_count() * each as u64;
        let causal = m.blueprint().attention.causal;
        let cache = if causal { cost::kv_cache_bytes(m.blueprint(), m.dims(), self.batch, self.length, each) } else { 0 };
        Ok(Measured {
            value: (weights + cache) as f64,
            protocol: format!(
                "arithmetic: weights {weights} bytes and KV cache {cache} bytes at {each} bytes a value, batch {}, {} tokens; activations not counted",
                self.batch, self.length
            ),
            ..Measured::default()
        })
    }
}

fn params(_: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    Ok(Box::new(Params))
}

fn flops(args: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    Ok(Box::new(Flops { length: args.count("length")? as usize }))
}

fn sparsity(_: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    Ok(Box::new(Sparsity))
}

fn memory(args: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    Ok(Box::new(Memory { batch: args.count("batch")? as usize, length: args.count("length")? as usize }))
}

fn latency(args: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    Ok(Box::new(Latency {
        batch: args.count("batch")? as usize,
        length: args.count("length")? as usize,
        runs: args.count("runs")? as usize,
        quantile: args.float("quantile")?,
    }))
}

fn generation(args: &Args) -> std::result::Result<Box<dyn Metric>, ArgError> {
    let count = |name: &str| args.count(name).map(|n| n as usize);
    Ok(Box::new(Generation { batch: count("batch")?, prompt: count("prompt")?, tokens: count("tokens")?, runs: count("runs")? }))
}

pub(super) const PARAMS: Entry<dyn Metric> = Entry {
    spec: metric(
        "params",
        "arithmetic over the parameters",
        &[],
        "Number of scalars; a tied head counts once. Masked units count until they are compacted.",
    ),
    build: params,
};
pub(super) const FLOPS: Entry<dyn Metric> = Entry {
    spec: metric(
        "flops",
        "arithmetic over the network's shapes",
        &[within(param("length", Ty::Tokens, "128 tokens", "Tokens of the sequence."), 1.0, 1e9)],
        "Floating-point operations of one forward pass over a sequence; a multiply-add counts as 2.",
    ),
    build: flops,
};
pub(super) const SPARSITY: Entry<dyn Metric> = Entry {
    spec: metric("sparsity", "arithmetic over the parameters", &[], "Share of exact zeros in the layers' weight matrices."),
    build: sparsity,
};
pub(super) const LATENCY: Entry<dyn Metric> = Entry {
    spec: metric(
        "latency",
        "median wall time",
        &[
            within(param("batch", Ty::Count, "1", "Sequences at once."), 1.0, 1e6),
            within(param("length", Ty::Tokens, "128 tokens", "Tokens of each sequence."), 1.0, 1e9),
            within(param("runs", Ty::Count, "20", "Timed passes."), 1.0, 1e6),
            within(param("quantile", Ty::Percent, "50%", "The quantile of their times that is the value."), 0.0, 100.0),
        ],
        "Milliseconds of one forward pass, in this process, on this machine, after passes to warm up; the protocol states four quantiles.\n\nMind: masked units cost as much as live ones until they are compacted.",
    ),
    build: latency,
};
pub(super) const GENERATION: Entry<dyn Metric> = Entry {
    spec: metric(
        "generation",
        "median wall time",
        &[
            within(param("batch", Ty::Count, "1", "Sequences at once."), 1.0, 1e6),
            within(
                param("prompt", Ty::Tokens, "128 tokens", "Tokens before the first generated one; reading them does not count."),
                1.0,
                1e9,
            ),
            within(param("tokens", Ty::Tokens, "32 tokens", "Tokens generated in each sequence."), 1.0, 1e9),
            within(param("runs", Ty::Count, "5", "Timed texts."), 1.0, 1e6),
        ],
        "Tokens a second of a causal language model that continues a text, one token after the other with a KV cache, in this process, on this machine.\n\nMind: masked units cost as much as live ones until they are compacted.",
    ),
    build: generation,
};
pub(super) const MEMORY: Entry<dyn Metric> = Entry {
    spec: metric(
        "memory",
        "arithmetic over the network's shapes",
        &[
            within(param("batch", Ty::Count, "1", "Sequences at once."), 1.0, 1e6),
            within(param("length", Ty::Tokens, "2048 tokens", "Tokens of each sequence."), 1.0, 1e9),
        ],
        "Bytes of weights and KV cache while generating, in the type that the model computes in. Masked units count until they are compacted.",
    ),
    build: memory,
};

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let times = [1.0, 2.0, 4.0];
        assert_eq!([0.0, 0.5, 0.75, 1.0].map(|q| quantile(&times, q)), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!((quantile(&[], 0.5), quantile(&[7.0], 0.9)), (0.0, 7.0));
    }
}
