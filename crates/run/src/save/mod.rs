//! `save`: a folder that other programs load, proven before it is reported.
//!
//! The weights, their config, the tokenizer's files, `prune.json` and a model card are written beside the target, opened again by the
//! model crate and compared, logits against logits, with the model in memory; only then does the folder take its name.

mod assets;
mod blocks;
mod card;
mod config;
mod error;
pub(crate) mod folder;
mod padded;
mod peft;
pub mod record;
mod remote;
#[cfg(test)]
mod tests;
pub(crate) mod verify;
mod weights;

use std::path::{Path, PathBuf};

use candle_core::DType;
use prunectl_model::{Origin, Transformer, checkpoint_parts, int8_tensors};
use serde::{Deserialize, Serialize};

pub use assets::Assets;
pub use blocks::write_blocks;
pub use card::CardFacts;
pub use error::SaveError;
pub use folder::check_target;
pub use peft::{adapter_files, check_adapter, read_adapter, write_adapter};
pub use record::PruneRecord;
pub use remote::REMOTE_CODE_FILE;
pub use verify::Verified;
pub use weights::SHARD_BYTES;

use crate::stock::{self, LoaderVerdict};

/// What becomes of removed units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// They are gone: smaller files, and per-layer counts where layers differ.
    #[default]
    Compact,
    /// They are zeros in the original shape: as large as before, and stock everywhere.
    Padded,
}

impl Layout {
    /// The word in a recipe.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "compact" => Some(Self::Compact),
            "padded" => Some(Self::Padded),
            _ => None,
        }
    }

    /// The word in a recipe.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Compact => "compact",
            Self::Padded => "padded",
        }
    }
}

/// What to save, and where.
#[derive(Debug, Clone, Copy)]
pub struct SaveRequest<'a> {
    /// The folder to be made.
    pub target: &'a Path,
    /// What becomes of removed units.
    pub layout: Layout,
    /// The weights' dtype; `None`: as the model had it on disk.
    pub dtype: Option<DType>,
    /// Tokenizer files and what else stands beside the weights.
    pub assets: Assets<'a>,
    /// What `prune.json` says. With [`Layout::Padded`] its `original`, `layers` and `sites` tell where the zeros go.
    pub record: &'a PruneRecord,
    /// What the model card says.
    pub card: &'a CardFacts,
    /// Split the weights beyond this; [`SHARD_BYTES`].
    pub shard_bytes: u64,
}

/// A folder that was written and proven.
#[derive(Debug, Clone, Serialize)]
pub struct Saved {
    /// Where.
    pub dir: PathBuf,
    /// Name and bytes of each file.
    pub files: Vec<(String, u64)>,
    /// Bytes of the weight files alone.
    pub weight_bytes: u64,
    /// Who can read it.
    pub loaders: Vec<LoaderVerdict>,
    /// What the comparison found.
    pub verified: Verified,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// The model in the shapes that are written.
pub(crate) fn shaped(model: &Transformer, request: &SaveRequest<'_>) -> Result<Transformer, SaveError> {
    match request.layout {
        Layout::Compact => Ok(model.clone()),
        Layout::Padded => padded::pad(model, request.record),
    }
}

/// `prune.json` and the model card.
pub(crate) fn write_record(draft: &mut folder::Draft, request: &SaveRequest<'_>, loaders: &[LoaderVerdict]) -> Result<(), SaveError> {
    let mut record = request.record.clone();
    record.layout = request.layout.word().into();
    let json = serde_json::to_value(&record).map_err(|e| SaveError::BadRecord { path: request.target.into(), reason: e.to_string() })?;
    draft.write_bytes(record::RECORD_FILE, &weights::pretty(&json))?;
    draft.write_bytes("README.md", card::text(request.card, &record, loaders).as_bytes())?;
    Ok(())
}

/// Writes the folder, opens it again, compares the logits with `model`'s, and only then puts it in its place.
///
/// `model` keeps its masks as zeros in the weights: unstructured masks are always stock.
///
/// # Errors
/// Nothing is left behind, and a folder that was there before is untouched.
pub fn write(model: &Transformer, request: &SaveRequest<'_>) -> Result<Saved, SaveError> {
    folder::check_target(request.target, &request.record.run.recipe.name)?;
    let origin: &Origin = model.origin();
    let dtype = request.dtype.unwrap_or(origin.stored_dtype);
    let shaped = shaped(model, request)?;
    let (mut config, parts) = checkpoint_parts(&shaped)?;
    let no_remote_code = remote::obstacle(&shaped);
    let (loaders, model_type, taken) = {
        let target = stock::Target {
            model_type: &origin.model_type,
            blueprint: shaped.blueprint(),
            dims: shaped.dims(),
            own: config.get(prunectl_model::OWN_KEY),
            no_remote_code: no_remote_code.as_deref(),
        };
        (stock::loaders(&target), stock::saved_as(&target).to_owned(), stock::takes_counts(&target))
    };
    let mut warnings = Vec::new();
    if model_type != origin.model_type {
        config::rename(&mut config, &model_type);
        warnings.push(format!(
            "written as a `{model_type}`, which computes the same: the class of `{}` refuses this number of heads",
            origin.model_type
        ));
    }
    config::finish(&mut config, dtype);
    config::spell_for_candle(&mut config, shaped.blueprint(), shaped.dims());
    let mut draft = folder::Draft::beside(request.target)?;
    if loaders.iter().any(|l| matches!(l.verdict, stock::Verdict::RemoteCode { .. })) {
        remote::add(&mut config, &shaped, taken, &mut draft)?;
    } else if let Some(fields) = config.as_object_mut() {
        // Of the folder that this model was opened from.
        fields.shift_remove("auto_map");
    }
    draft.write_bytes("config.json", &weights::pretty(&config))?;
    weights::write_weights(&mut draft, &parts, &int8_tensors(&shaped)?, dtype, request.shard_bytes)?;
    assets::write(&mut draft, request.assets, &config, &shaped)?;
    write_record(&mut draft, request, &loaders)?;

    let verified = verify::compare(draft.path(), model, dtype)?;
    if let Some(text) = verified.warning() {
        warnings.push(text);
    }
    if model.int8().is_some_and(|how| how.half) {
        warnings.push(
            "the matrices are the 16-bit ones that outliers meet: prunectl works int8 out of them; other loaders multiply by them unrounded, \
             transformers until it is told load_in_8bit with llm_int8_has_fp16_weight"
                .into(),
        );
    } else if model.int8().is_some() {
        warnings.push("the matrices are int8 in bitsandbytes' layout: prunectl reads them; transformers needs bitsandbytes to".into());
    }
    let files = draft.publish()?;
    let weight_bytes = files.iter().filter(|(name, _)| name.ends_with(".safetensors")).map(|(_, bytes)| bytes).sum();
    Ok(Saved { dir: request.target.into(), files, weight_bytes, loaders, verified, warnings })
}
