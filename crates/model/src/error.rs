//! What can go wrong between a checkpoint on disk and a forward pass. Every variant says what was found, what was expected and the way out.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A tensor operation failed (shapes, memory, device).
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),

    /// A file could not be read or mapped.
    #[error("{path}: {}", unread(source), path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// JSON that is not JSON.
    #[error("{path}: not valid JSON: {source}", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The place and the reason.
        source: serde_json::Error,
    },

    /// A field of a config is missing or makes no sense.
    #[error("{path}: field `{field}`: found {found}, expected {expected}", path = path.display())]
    Config {
        /// The config file.
        path: PathBuf,
        /// The field, with its parents joined by dots.
        field: String,
        /// What stands there.
        found: String,
        /// What may stand there.
        expected: String,
    },

    /// The config asks for a mechanism that this network does not have. It is never approximated.
    #[error("{path}: {what} is not supported: {hint}", path = path.display())]
    Unsupported {
        /// The config file.
        path: PathBuf,
        /// The mechanism, by the name that the config gives it.
        what: String,
        /// What would work.
        hint: String,
    },

    /// The folder holds no weights that can be read.
    #[error("{path}: no safetensors weights here: found {found}; {hint}", path = path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// What is there in their place.
        found: String,
        /// How to get them.
        hint: String,
    },

    /// A safetensors file whose header lies or whose data is cut short.
    #[error("{path}: broken safetensors file: {place}: found {found}, expected {expected}; download or copy the file again", path = path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The tensor, or the part of the file.
        place: String,
        /// What stands there.
        found: String,
        /// What should.
        expected: String,
    },

    /// A tensor that the config implies is not in the files.
    #[error("{path}: tensor `{tensor}` is missing ({expected}); the weights do not belong to this config.json, or to the task {task}", path = path.display())]
    MissingTensor {
        /// The file or folder.
        path: PathBuf,
        /// Its name in the file.
        tensor: String,
        /// Its shape.
        expected: String,
        /// The task that was asked for.
        task: String,
    },

    /// A tensor of the wrong shape or type.
    #[error("{path}: tensor `{tensor}`: found {found}, expected {expected} from config.json", path = path.display())]
    TensorMismatch {
        /// The file.
        path: PathBuf,
        /// Its name in the file.
        tensor: String,
        /// Shape or type that it has.
        found: String,
        /// Shape or type that it should have.
        expected: String,
    },

    /// NaN or an infinity in a weight.
    #[error("{path}: tensor `{tensor}`: entry {index} is {value}; such weights make every result meaningless: get an intact checkpoint", path = path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Its name in the file.
        tensor: String,
        /// Flat index of the first such entry.
        index: usize,
        /// The value.
        value: f64,
    },

    /// A parameter that the network needs is not among `Params`.
    #[error("parameter `{slot}` is missing from the model's parameters")]
    MissingSlot {
        /// The canonical name.
        slot: String,
    },

    /// A token id that the embedding has no row for.
    #[error(
        "token id {id} at row {row}, position {position}: the model's vocabulary ends at {vocab}; the tokenizer does not belong to this model"
    )]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Row in the batch.
        row: usize,
        /// Position in the row.
        position: usize,
        /// Number of embedding rows.
        vocab: usize,
    },

    /// A label that the head has no output for.
    #[error("label {label} of example {row}: the model has {classes} outputs (labels are 0..{classes}, or −100 to ignore a token)")]
    LabelOutOfRange {
        /// The label.
        label: i64,
        /// Row in the batch.
        row: usize,
        /// Number of outputs.
        classes: usize,
    },

    /// Labels that this head can't use.
    #[error("the model's head gives {head}, the batch has {labels}")]
    WrongLabels {
        /// What the head gives.
        head: String,
        /// What the batch has.
        labels: String,
    },

    /// A sequence longer than the learned positions.
    #[error("a sequence of {found} tokens: the model has {available} learned positions; cut the text or use a smaller window")]
    TooLong {
        /// Tokens in the sequence.
        found: usize,
        /// The longest that fits.
        available: usize,
    },

    /// Cached keys that were turned by angles which a longer text does not have.
    #[error(
        "generating beyond {available} tokens (asked for {found}): there the rotary angles of this model change (`dynamic` or `longrope` \
         scaling), and the keys in the cache have the old ones; generate up to {available}, or begin with a longer text"
    )]
    CacheTurned {
        /// Tokens asked for.
        found: usize,
        /// The most with these angles.
        available: usize,
    },

    /// A layer index past the end.
    #[error("layer {layer}: the model has layers 0..{layers}")]
    NoSuchLayer {
        /// The index.
        layer: usize,
        /// Number of layers.
        layers: usize,
    },

    /// Units that do not exist, are not ascending, or are a kind that the layer does not have.
    #[error("{kind} of {place}: found units {found}, expected ascending indices in 0..{available}")]
    Units {
        /// Kind of unit.
        kind: String,
        /// The layer, or the model.
        place: String,
        /// What was asked for.
        found: String,
        /// How many there are.
        available: usize,
    },

    /// A set of kept units that gives no legal shape.
    #[error("layer {layer}: keeping {found} leaves no legal shape: {expected}")]
    Uneven {
        /// The layer.
        layer: usize,
        /// Counts per group or expert.
        found: String,
        /// What would be legal.
        expected: String,
    },

    /// Two tensors that should agree do not.
    #[error("{what}: found {found}, expected {expected}")]
    Mismatch {
        /// What was compared.
        what: String,
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
    },
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, ModelError>;

/// The system's words, with the way out where a file is not there.
fn unread(e: &std::io::Error) -> String {
    match e.kind() {
        std::io::ErrorKind::NotFound => {
            format!("{e}; a model is a folder with config.json and model.safetensors, or with shards and their index")
        }
        _ => e.to_string(),
    }
}
