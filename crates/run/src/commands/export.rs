//! `prunectl export DIR`: a saved model in another format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use prunectl_model::{LoadOptions, load};
use serde::Serialize;

use crate::cli::DONE;
use crate::commands::{print, print_json};
use crate::error::{Error, Result};
use crate::gguf::{self, Quantization};
use crate::save::record::{RecipeRef, RunRecord, SourceRef};
use crate::save::{self, Assets, CardFacts, Layout, PruneRecord, SHARD_BYTES, SaveRequest};
use crate::session::{Dtype, Options};

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One file for llama.cpp.
    Gguf,
    /// A folder in the Hugging Face layout.
    Hf,
    /// A folder for vLLM's Llama with a shape of its own for each layer (`DeciLMForCausalLM`).
    Vllm,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct Export {
    /// A model folder: config.json and safetensors files.
    pub dir: PathBuf,
    /// What is written.
    #[arg(long, value_enum)]
    pub format: Format,
    /// The file or folder to be made; by default the folder's name in the working directory, with the type and an ending.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Type of the weights, by default the folder's own. f32, f16 or bf16; in a GGUF file also q8_0, q5_1, q5_0, q4_1, q4_0, q6_k, q5_k, q4_k, q3_k or q2_k.
    #[arg(long)]
    pub dtype: Option<String>,
    /// `padded` writes removed units as zeros, in the original shape, which every loader of the family reads.
    #[arg(long, value_parser = ["compact", "padded"], default_value = "compact")]
    pub layout: String,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Exported {
    path: PathBuf,
    format: &'static str,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    architecture: Option<String>,
    difference: f64,
    rounding: f64,
    loaders: Vec<String>,
    warnings: Vec<String>,
}

impl Export {
    /// Writes the file or folder, and prints what was proven of it.
    pub fn run(&self, options: &Options) -> Result<u8> {
        super::folder::check(&self.dir)?;
        let model = load(&self.dir, &LoadOptions::default())?;
        let record = PruneRecord::read(&self.dir)?;
        let padded = Layout::parse(&self.layout).unwrap_or_default();
        let refused = |what: String, remedy: &str| Err(Error::Usage { message: format!("{what}; {remedy}") });
        let name = self.dir.canonicalize().ok().and_then(|d| d.file_name().map(|n| n.to_string_lossy().into_owned()));
        let name = name.unwrap_or_else(|| "model".into());
        if padded == Layout::Padded && record.is_none() {
            return refused(
                format!("{} has no prune.json, so nobody knows where its removed units were", self.dir.display()),
                "leave --layout out",
            );
        }
        let record = record.unwrap_or_else(|| unpruned(&self.dir, &model));
        let card = CardFacts {
            title: name.clone(),
            task: model.origin().task.to_string(),
            dense_params: model.blueprint().parameter_count(&record.original),
            params: model.parameter_count(),
            ..CardFacts::default()
        };
        let request = |target, dtype| SaveRequest {
            target,
            layout: padded,
            dtype,
            assets: Assets::Folder(&self.dir),
            record: &record,
            card: &card,
            shard_bytes: SHARD_BYTES,
        };
        let bad = |e: String| Error::Usage { message: format!("--dtype: {e}{}", self.dtype_hint()) };
        let done = match self.format {
            Format::Gguf => {
                let own = Quantization::of(model.origin().stored_dtype);
                let quantization = self.dtype.as_deref().map(str::parse).transpose().map_err(bad)?.unwrap_or(own);
                let path = self.out.clone().unwrap_or_else(|| PathBuf::from(format!("{name}-{}.gguf", quantization.word())));
                let shaped = save::shaped(&model, &request(&path, None))?;
                let written = gguf::export(&shaped, &path, &name, quantization, Assets::Folder(&self.dir))?;
                Exported {
                    format: "gguf",
                    bytes: written.bytes,
                    loaders: vec![format!("llama.cpp: architecture `{}`", written.architecture)],
                    architecture: Some(written.architecture),
                    difference: written.verified.difference,
                    rounding: written.verified.rounding,
                    warnings: written.warnings,
                    path,
                }
            }
            Format::Hf | Format::Vllm => {
                let vllm = self.format == Format::Vllm;
                let word = if vllm { "vllm" } else { "hf" };
                let dtype = self.dtype.as_deref().map(|d| d.parse::<Dtype>().map(|d| d.0)).transpose().map_err(bad)?;
                let path = self.out.clone().unwrap_or_else(|| PathBuf::from(format!("{name}-{word}")));
                if path.exists() {
                    return refused(
                        format!("{} is there already, and export writes over nothing", path.display()),
                        "give another name with --out",
                    );
                }
                let request = request(&path, dtype);
                let saved = if vllm { save::write_blocks(&model, &request)? } else { save::write(&model, &request)? };
                Exported {
                    format: word,
                    bytes: saved.weight_bytes,
                    architecture: None,
                    difference: saved.verified.difference,
                    rounding: saved.verified.rounding,
                    loaders: saved.loaders.iter().map(ToString::to_string).collect(),
                    warnings: saved.warnings,
                    path,
                }
            }
        };
        for warning in &done.warnings {
            options.ui.warn(warning);
        }
        if options.json {
            print_json(&done)?;
            return DONE;
        }
        let mut text = format!("{}\n", done.path.display());
        if options.ui.verbosity >= 0 {
            text += &format!(
                "{} bytes; read back, the logits differ by {:.1e} from the model with weights rounded alike, by {:.1e} from the folder's\n",
                done.bytes, done.difference, done.rounding
            );
            for loader in &done.loaders {
                text += &format!("{loader}\n");
            }
        }
        print(&text)?;
        DONE
    }
}

impl Export {
    /// What was meant by a type that is not there.
    fn dtype_hint(&self) -> String {
        let asked = self.dtype.as_deref().unwrap_or_default().to_lowercase();
        // llama.cpp's mixtures: `q4_k_m` has some matrices in a finer type.
        let plain = asked.strip_suffix("_m").or_else(|| asked.strip_suffix("_s")).or_else(|| asked.strip_suffix("_l"));
        let known = |word: &str| Quantization::words().contains(&word);
        match plain.filter(|p| known(p)) {
            Some(plain) if self.format == Format::Gguf => format!("; `{plain}` has that type in every matrix"),
            _ if self.format != Format::Gguf && known(&asked) => "; with --format gguf it is there".into(),
            _ => String::new(),
        }
    }
}

/// The record of a folder that prunectl did not write.
pub(crate) fn unpruned(dir: &Path, model: &prunectl_model::Transformer) -> PruneRecord {
    let run = RunRecord {
        recipe: RecipeRef { name: "export".into(), sha256: String::new() },
        prunectl: env!("CARGO_PKG_VERSION").into(),
        model: SourceRef { name: "model".into(), source: format!("dir:{}", dir.display()), revision: None, sha256: BTreeMap::new() },
        data: Vec::new(),
        metrics: serde_json::Map::new(),
        shapes: model.dims().to_vec(),
    };
    PruneRecord::after(None, run, "compact", model.dims().to_vec(), (0..model.n_layers()).collect(), Vec::new())
}
