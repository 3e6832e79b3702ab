//! Models by their declarations: where their files are, what their configs say, and how they are loaded.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use candle_core::{DType, Device};
use prunectl_model::{Facts as ModelFile, Head, LayerDims, LoadOptions, Shelf, Task, Transformer};
use prunectl_recipe::plan::{DataDecl, ModelDecl, ModelSource};
use prunectl_recipe::{Facts, LayerFacts, ModelFacts};

use crate::builtin;
use crate::error::{Error, Result};
use crate::files::sha256_file;
use crate::hub::Door;
use crate::session::Dtype;
use crate::tokenizer::Tokenizer;

/// A model as it was loaded.
#[derive(Debug)]
pub struct Loaded {
    /// The network.
    pub model: Transformer,
    /// Its tokenizer, where the folder has one.
    pub tokenizer: Option<Tokenizer>,
    /// Where its files are.
    pub files: Place,
}

/// Where a model's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a folder.
    Folder(PathBuf),
    /// Inside the program.
    Builtin(&'static [builtin::ModelFile]),
    /// Only a config: the weights are random.
    Config(PathBuf),
}

/// A model's source as locks, records and messages name it.
pub fn describe(source: &ModelSource) -> String {
    match source {
        ModelSource::Hub { repo, revision: None } => format!("hf:{repo}"),
        ModelSource::Hub { repo, revision: Some(r) } => format!("hf:{repo}@{r}"),
        ModelSource::Dir(path) => format!("dir:{}", path.display()),
        ModelSource::Builtin(name) => format!("builtin:{name}"),
        ModelSource::Init { config, seed } => format!("init:{}#{seed}", config.display()),
        ModelSource::Copy(of) => format!("copy:{of}"),
    }
}

fn task_of(decl: &ModelDecl) -> Result<Option<Task>> {
    let Some(word) = &decl.task else { return Ok(None) };
    let known = || Error::Refused { what: format!("task `{word}` is not known"), remedy: format!("use {}", Task::WORDS.join(", ")) };
    Task::parse(word).map(Some).ok_or_else(known)
}

fn dtype_of(decl: &ModelDecl, asked: Option<Dtype>) -> Result<DType> {
    if let Some(dtype) = asked {
        return Ok(dtype.0);
    }
    let Some(word) = &decl.dtype else { return Ok(DType::F32) };
    word.parse::<Dtype>()
        .map(|d| d.0)
        .map_err(|e| Error::Refused { what: format!("dtype of `{}`: {e}", decl.name), remedy: "leave it out for f32".to_owned() })
}

/// What a declaration says of the head. A recipe that names its task wants a head for it, whatever the files hold.
fn options_of(decl: &ModelDecl) -> Result<LoadOptions> {
    let labels = decl.labels.and_then(|n| usize::try_from(n).ok());
    Ok(LoadOptions { task: task_of(decl)?, labels, fresh_head: decl.task.is_some(), ..LoadOptions::default() })
}

/// A config that lies in a built-in model: `init("builtin:tiny-bert")`.
fn builtin_config(config: &Path) -> Option<&str> {
    config.to_str()?.rsplit('/').next()?.strip_prefix("builtin:")
}

fn builtin_files(name: &str, task: Option<Task>) -> Result<&'static [builtin::ModelFile]> {
    builtin::model_files(name, task).ok_or_else(|| Error::Refused {
        what: format!("there is no built-in model `{name}`"),
        remedy: format!("use {}", builtin::model_names().collect::<Vec<_>>().join(", ")),
    })
}

/// A built-in model's files in a folder that lives as long as `work`: the loader reads folders only.
fn with_builtin<T>(files: &[builtin::ModelFile], work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let folder = tempfile::Builder::new().prefix("prunectl-").tempdir().map_err(Error::io("create", std::env::temp_dir()))?;
    for (name, bytes) in files {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).map_err(Error::io("write", &path))?;
    }
    work(folder.path())
}

/// Loads what a declaration names; with a shelf, the weights of a folder stay in their files. A `copy(…)` is the executor's.
pub fn load(decl: &ModelDecl, device: &Device, dtype: Option<Dtype>, hub: &Door, shelf: Option<Arc<Shelf>>) -> Result<Loaded> {
    let options = LoadOptions { dtype: dtype_of(decl, dtype)?, device: device.clone(), shelf, ..options_of(decl)? };
    match &decl.source {
        ModelSource::Dir(path) => from_folder(path.clone(), &options),
        ModelSource::Hub { repo, revision } => from_folder(hub.model(repo, revision.as_deref())?, &options),
        ModelSource::Builtin(name) => {
            let files = builtin_files(name, options.task)?;
            let (model, tokenizer) = with_builtin(files, |dir| Ok((prunectl_model::load(dir, &options)?, Tokenizer::open(dir)?)))?;
            Ok(Loaded { model, tokenizer, files: Place::Builtin(files) })
        }
        ModelSource::Init { config, seed } => match builtin_config(config) {
            Some(name) => {
                let files = builtin_files(name, options.task)?;
                let made = |dir: &Path| Ok((prunectl_model::init(&dir.join("config.json"), *seed, &options)?, Tokenizer::open(dir)?));
                let (model, tokenizer) = with_builtin(files, made)?;
                Ok(Loaded { model, tokenizer, files: Place::Builtin(files) })
            }
            None => {
                let model = prunectl_model::init(config, *seed, &options)?;
                let tokenizer = config.parent().map(Tokenizer::open).transpose()?.flatten();
                Ok(Loaded { model, tokenizer, files: Place::Config(config.clone()) })
            }
        },
        ModelSource::Copy(of) => Err(Error::Internal(format!("`copy({of})` was asked of the loader"))),
    }
}

fn from_folder(path: PathBuf, options: &LoadOptions) -> Result<Loaded> {
    let model = prunectl_model::load(&path, options)?;
    Ok(Loaded { model, tokenizer: Tokenizer::open(&path)?, files: Place::Folder(path) })
}

/// What config and headers say, no weight read; of a model on the Hub that is not in the cache only these are fetched.
pub fn read_facts(decl: &ModelDecl, hub: &Door) -> Result<ModelFile> {
    let options = options_of(decl)?;
    let task = options.task;
    match &decl.source {
        ModelSource::Dir(path) => Ok(ModelFile::read_for(path, &options)?),
        ModelSource::Builtin(name) => {
            let files = builtin_files(name, task)?;
            if !files.iter().any(|(file, _)| file.ends_with(".safetensors")) {
                let what = format!("builtin(\"{name}\") has no weights in this build");
                return Err(Error::Refused {
                    what,
                    remedy: format!("train it with recipes/builtin, or write init(\"builtin:{name}\") for random ones"),
                });
            }
            with_builtin(files, |dir| Ok(ModelFile::read_for(dir, &options)?))
        }
        ModelSource::Init { config, .. } => match builtin_config(config) {
            Some(name) => with_builtin(builtin_files(name, task)?, |dir| Ok(ModelFile::of_config_for(&dir.join("config.json"), &options)?)),
            None => Ok(ModelFile::of_config_for(config, &options)?),
        },
        ModelSource::Hub { repo, revision } => Ok(ModelFile::read_for(hub.headers(repo, revision.as_deref())?.path(), &options)?),
        ModelSource::Copy(of) => Err(Error::Internal(format!("`copy({of})` was asked of the loader"))),
    }
}

/// Files of a model that decide what it computes, with their hashes.
pub fn hashes(decl: &ModelDecl, hub: &Door) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    let folder = match &decl.source {
        ModelSource::Dir(dir) => Some(dir.clone()),
        ModelSource::Hub { repo, revision } => {
            out.insert("commit".to_owned(), hub.commit(repo, revision.as_deref())?);
            Some(hub.model(repo, revision.as_deref())?)
        }
        _ => None,
    };
    match &decl.source {
        ModelSource::Dir(_) | ModelSource::Hub { .. } => {
            let dir = &folder.unwrap_or_default();
            let mut names: Vec<String> = std::fs::read_dir(dir)
                .map_err(Error::io("read", dir))?
                .flatten()
                .filter_map(|e| e.file_name().into_string().ok())
                .filter(|n| {
                    n.ends_with(".safetensors") || n.ends_with(".safetensors.index.json") || n == "config.json" || n == "tokenizer.json"
                })
                .collect();
            names.sort();
            for name in names {
                out.insert(name.clone(), sha256_file(&dir.join(&name))?);
            }
        }
        ModelSource::Builtin(name) => {
            for (file, bytes) in builtin_files(name, task_of(decl)?)? {
                out.insert((*file).to_owned(), crate::files::sha256(bytes));
            }
        }
        ModelSource::Init { config, .. } if builtin_config(config).is_none() => {
            out.insert(config.display().to_string(), sha256_file(config)?);
        }
        ModelSource::Init { .. } | ModelSource::Copy(_) => {}
    }
    Ok(out)
}

/// What the checker asks about a network that is loaded.
pub fn facts_of(model: &Transformer) -> Result<Facts> {
    let mut layers = Vec::with_capacity(model.n_layers());
    for (i, dims) in model.dims().iter().enumerate() {
        layers.push(layer_facts(dims, model.linears(i)?));
    }
    let slots = model.params().slots().map(str::to_owned).collect();
    let matrices = prunectl_model::file_matrices(model)?;
    Ok(facts(&model.origin().model_type, layers, model.blueprint().hidden, slots, matrices, &model.blueprint().head))
}

/// What the checker asks about a checkpoint whose config and headers were read.
fn facts_from_file(file: &ModelFile) -> Facts {
    let slots: Vec<String> = file.blueprint.slots(&file.dims).into_iter().map(|s| s.name).collect();
    let linear = |s: &str| {
        (s.starts_with("attention.") || s.starts_with("mlp.")) && s.ends_with(".weight") && !s.contains("norm") && !s.contains("router")
    };
    let mut linears = vec![Vec::new(); file.dims.len()];
    for slot in &slots {
        let inside = slot.strip_prefix("layers.").and_then(|s| s.split_once('.')).filter(|(_, part)| linear(part));
        if let Some(own) = inside.and_then(|(layer, _)| linears.get_mut(layer.parse::<usize>().ok()?)) {
            own.push(slot.clone());
        }
    }
    let layers = file.dims.iter().zip(linears).map(|(d, linears)| layer_facts(d, linears)).collect();
    // What has no names can't be loaded either, and that is told then.
    let matrices = file.matrices().unwrap_or_default();
    facts(&file.model_type, layers, file.blueprint.hidden, slots, matrices, &file.blueprint.head)
}

fn layer_facts(dims: &LayerDims, linears: Vec<String>) -> LayerFacts {
    let (attention_linears, mlp_linears) = linears.into_iter().partition(|slot| slot.contains(".attention."));
    LayerFacts {
        heads: dims.q_heads,
        kv_groups: dims.kv_heads,
        neurons: dims.ffn * dims.experts.max(1),
        experts: dims.experts,
        attention_linears,
        mlp_linears,
    }
}

fn facts(
    family: &str,
    layers: Vec<LayerFacts>,
    hidden: usize,
    slots: Vec<String>,
    tensors: Vec<(String, Vec<String>)>,
    head: &Head,
) -> Facts {
    let embeddings = slots.into_iter().filter(|s| s.starts_with("embeddings.") && s.ends_with(".weight") && !s.contains("norm")).collect();
    Facts {
        family: family.to_owned(),
        layers,
        hidden,
        tensors,
        head: matches!(head, Head::Tokens { .. }),
        classifier: matches!(head, Head::Sequence { .. }),
        embeddings,
    }
}

/// What config and headers of one model say.
#[derive(Debug, Clone)]
pub struct Known {
    /// As the network has it.
    pub file: Rc<ModelFile>,
    /// As selectors are expanded against it.
    pub facts: Rc<Facts>,
}

/// Brings configs and splits to the compiler, and configs to the forecast: each is read once. What can't be read is unknown to the
/// compiler: the error is told when the model is loaded.
#[derive(Debug)]
pub struct DiskFacts {
    hub: Door,
    known: RefCell<BTreeMap<String, std::result::Result<Known, String>>>,
}

impl DiskFacts {
    /// Facts of files on this machine and, through `hub`, of its repositories.
    pub fn new(hub: Door) -> Self {
        Self { hub, known: RefCell::default() }
    }

    /// Where they come from.
    pub fn hub(&self) -> &Door {
        &self.hub
    }

    /// What is known of a model, or why nothing is.
    pub fn known(&self, decl: &ModelDecl) -> std::result::Result<Known, String> {
        if let Some(known) = self.known.borrow().get(&decl.name) {
            return known.clone();
        }
        let found = match &decl.source {
            ModelSource::Copy(of) => self.known.borrow().get(of).cloned().unwrap_or_else(|| Err(String::new())),
            _ => read_facts(decl, &self.hub).map_err(|e| e.to_string()).map(|file| {
                let facts = Rc::new(facts_from_file(&file));
                Known { file: Rc::new(file), facts }
            }),
        };
        self.known.borrow_mut().insert(decl.name.clone(), found.clone());
        found
    }
}

impl ModelFacts for DiskFacts {
    fn facts(&self, decl: &ModelDecl) -> Option<Facts> {
        self.known(decl).ok().map(|known| (*known.facts).clone())
    }

    fn splits(&self, decl: &DataDecl) -> Option<Vec<String>> {
        crate::data::splits(decl, &self.hub)
    }
}
