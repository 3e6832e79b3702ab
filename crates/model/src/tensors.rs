//! Tensors by name, in memory or on the disk: what a model that is larger than memory is made of.
//!
//! A collection that has a [`Shelf`] puts tensors away when it is told to, and reads them when they are asked for. One without a shelf
//! keeps everything, and putting away does nothing: the code that streams a model is the code that runs one in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{DType, Device, Tensor};
use memmap2::{Mmap, MmapOptions};

use crate::error::{ModelError, Result};

/// Values turned into bytes at a time.
const CHUNK: usize = 1 << 18;

/// A tensor on the disk.
pub(crate) trait Away: fmt::Debug + Send + Sync {
    /// Its shape.
    fn shape(&self) -> &[usize];
    /// Reads it.
    fn read(&self) -> Result<Tensor>;
    /// Gives its room on the disk back, where it is a shelf's: it can't be read any more.
    fn release(&self) {}
}

/// A file without a name in some folder, into which tensors are put away. The system removes it with its last user.
pub struct Shelf {
    dir: PathBuf,
    file: Arc<File>,
    end: Mutex<u64>,
}

impl fmt::Debug for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shelf").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Shelf {
    /// An empty one in that folder.
    ///
    /// # Errors
    /// No file can be made there.
    pub fn new(dir: &Path) -> Result<Arc<Self>> {
        let file = tempfile::tempfile_in(dir).map_err(|source| ModelError::Io { path: dir.to_owned(), source })?;
        Ok(Arc::new(Self { dir: dir.to_owned(), file: Arc::new(file), end: Mutex::new(0) }))
    }

    /// Another one in the same folder, whose room is free again when its tensors are gone.
    ///
    /// # Errors
    /// No file can be made there.
    pub fn another(&self) -> Result<Arc<Self>> {
        Self::new(&self.dir)
    }

    /// Gives the room of what is not needed any more back to the file system, where it knows holes; elsewhere the file's end frees all.
    fn free(&self, place: &std::ops::Range<u64>) {
        #[cfg(target_os = "linux")]
        if !place.is_empty() {
            use rustix::fs::{FallocateFlags, fallocate};
            // Room that can't be given back now is free when the file goes.
            let _ = fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, place.start, place.end - place.start);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = place;
    }

    fn put(self: &Arc<Self>, tensor: &Tensor) -> Result<OnShelf> {
        let io = |source| ModelError::Io { path: self.dir.clone(), source };
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = *end;
        let mut out = self.file.as_ref();
        let flat = tensor.to_device(&Device::Cpu)?.flatten_all()?;
        let n = flat.elem_count();
        let mut bytes = Vec::with_capacity(CHUNK.min(n) * tensor.dtype().size_in_bytes());
        for start in (0..n).step_by(CHUNK) {
            bytes.clear();
            to_bytes(&flat.narrow(0, start, CHUNK.min(n - start))?, &mut bytes)?;
            out.write_all(&bytes).map_err(io)?;
            *end += bytes.len() as u64;
        }
        Ok(OnShelf {
            shelf: self.clone(),
            place: begin..*end,
            shape: tensor.dims().to_vec(),
            dtype: tensor.dtype(),
            device: tensor.device().clone(),
            released: AtomicBool::new(false),
        })
    }
}

/// Appends values as little-endian bytes.
fn to_bytes(part: &Tensor, into: &mut Vec<u8>) -> candle_core::Result<()> {
    macro_rules! append {
        ($type:ty) => {
            part.to_vec1::<$type>()?.iter().for_each(|x| into.extend_from_slice(&x.to_le_bytes()))
        };
    }
    match part.dtype() {
        DType::U8 => into.extend_from_slice(&part.to_vec1::<u8>()?),
        DType::F16 => append!(half::f16),
        DType::BF16 => append!(half::bf16),
        DType::F64 => append!(f64),
        _ => append!(f32),
    }
    Ok(())
}

/// A tensor that was put away.
#[derive(Debug)]
struct OnShelf {
    shelf: Arc<Shelf>,
    place: std::ops::Range<u64>,
    shape: Vec<usize>,
    dtype: DType,
    device: Device,
    released: AtomicBool,
}

impl Drop for OnShelf {
    fn drop(&mut self) {
        self.release();
    }
}

/// Part of a file, mapped as long as it is looked at: pages of a file count as memory in use while they are mapped.
pub(crate) fn map(file: &File, begin: u64, bytes: u64) -> io::Result<Mmap> {
    let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: the map is only read. Another process that cuts the file short while it is read ends this one with a bus error,
    // as with every reader that maps weights; reading them into memory instead would double the peak.
    unsafe { MmapOptions::new().offset(begin).len(bytes).map(file) }
}

impl Away for OnShelf {
    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn release(&self) {
        if !self.released.swap(true, Ordering::Relaxed) {
            self.shelf.free(&self.place);
        }
    }

    fn read(&self) -> Result<Tensor> {
        if self.released.load(Ordering::Relaxed) {
            let source = io::Error::other("a tensor was asked for after its room was given back");
            return Err(ModelError::Io { path: self.shelf.dir.clone(), source });
        }
        if self.place.is_empty() {
            return Ok(Tensor::zeros(self.shape.as_slice(), self.dtype, &self.device)?);
        }
        let io = |source| ModelError::Io { path: self.shelf.dir.clone(), source };
        let bytes = map(&self.shelf.file, self.place.start, self.place.end - self.place.start).map_err(io)?;
        Ok(Tensor::from_raw_buffer(&bytes, self.dtype, &self.shape, &Device::Cpu)?.to_device(&self.device)?)
    }
}

/// Where a tensor is.
#[derive(Debug)]
enum Place {
    Here(Tensor),
    /// On the disk, and its values once somebody has asked for them.
    Away(Arc<dyn Away>, OnceLock<Tensor>),
}

impl Clone for Place {
    /// A copy of what is on the disk has not been read yet.
    fn clone(&self) -> Self {
        match self {
            Self::Here(tensor) => Self::Here(tensor.clone()),
            Self::Away(away, _) => Self::Away(away.clone(), OnceLock::new()),
        }
    }
}

impl Place {
    fn shape(&self) -> &[usize] {
        match self {
            Self::Here(tensor) => tensor.dims(),
            Self::Away(away, _) => away.shape(),
        }
    }

    fn held(&self) -> Option<&Tensor> {
        match self {
            Self::Here(tensor) => Some(tensor),
            Self::Away(_, read) => read.get(),
        }
    }

    /// Its values, kept from now on.
    fn hold(&self) -> Result<&Tensor> {
        match self {
            Self::Here(tensor) => Ok(tensor),
            Self::Away(away, read) => match read.get() {
                Some(tensor) => Ok(tensor),
                None => {
                    let tensor = away.read()?;
                    Ok(read.get_or_init(|| tensor))
                }
            },
        }
    }
}

/// Tensors by name. A clone shares them.
#[derive(Debug, Clone, Default)]
pub struct Tensors {
    places: BTreeMap<String, Place>,
    shelf: Option<Arc<Shelf>>,
}

impl Tensors {
    /// Empty, putting away where `shelf` says.
    pub fn on(shelf: Option<Arc<Shelf>>) -> Self {
        Self { places: BTreeMap::new(), shelf }
    }

    /// Empty, with a shelf of its own beside this one's, if this has one.
    ///
    /// # Errors
    /// No file can be made there.
    pub fn beside(&self) -> Result<Self> {
        Ok(Self::on(self.shelf.as_ref().map(|s| s.another()).transpose()?))
    }

    /// Where tensors are put away; None: everything stays in memory.
    pub fn shelf(&self) -> Option<&Arc<Shelf>> {
        self.shelf.as_ref()
    }

    /// Every name, in order.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.places.keys()
    }

    /// Whether there is a tensor of that name.
    pub fn contains_key(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The shape of that tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.places.get(name).map(Place::shape)
    }

    /// Number of scalars.
    pub fn count(&self) -> u64 {
        self.places.values().map(|p| p.shape().iter().product::<usize>() as u64).sum()
    }

    /// The tensor of that name; one on the disk is read, and stays in memory until it is put away. None, too, where it can't be read:
    /// [`Self::read`] and [`Self::bring`] say why.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.places.get(name)?.hold().ok()
    }

    /// The same, with the reason where it can't be read.
    ///
    /// # Errors
    /// It is on the disk and can't be read.
    pub fn hold(&self, name: &str) -> Result<Option<&Tensor>> {
        self.places.get(name).map(Place::hold).transpose()
    }

    /// The tensor of that name; one on the disk is read and not kept.
    ///
    /// # Errors
    /// It is on the disk and can't be read.
    pub fn read(&self, name: &str) -> Result<Option<Tensor>> {
        match self.places.get(name) {
            None => Ok(None),
            Some(place) => match (place.held(), place) {
                (Some(tensor), _) => Ok(Some(tensor.clone())),
                (None, Place::Away(away, _)) => away.read().map(Some),
                (None, Place::Here(tensor)) => Ok(Some(tensor.clone())),
            },
        }
    }

    /// Adds or replaces a tensor in memory.
    pub fn insert(&mut self, name: String, tensor: Tensor) {
        self.places.insert(name, Place::Here(tensor));
    }

    /// Adds or replaces a tensor on the disk.
    pub(crate) fn insert_away(&mut self, name: String, away: Arc<dyn Away>) {
        self.places.insert(name, Place::Away(away, OnceLock::new()));
    }

    /// Takes over another collection's tensor under a name of this one, wherever it is.
    pub fn share(&mut self, name: impl Into<String>, other: &Self, theirs: &str) {
        if let Some(place) = other.places.get(theirs) {
            self.places.insert(name.into(), place.clone());
        }
    }

    /// Adds another collection's tensors, wherever they are.
    pub fn extend(&mut self, other: Self) {
        self.places.extend(other.places);
    }

    /// The same, put away where there is a shelf.
    ///
    /// # Errors
    /// The disk is full.
    pub fn store(&mut self, other: Self) -> Result<()> {
        let mut own = Self { places: other.places, shelf: self.shelf.clone() };
        own.put_away("")?;
        self.extend(own);
        Ok(())
    }

    /// Gives the room of a tensor that was put away back to the disk; it can't be read any more, by clones neither.
    pub fn release(&self, name: &str) {
        if let Some(Place::Away(away, _)) = self.places.get(name) {
            away.release();
        }
    }

    /// Takes a tensor out.
    pub fn remove(&mut self, name: &str) {
        self.places.remove(name);
    }

    /// Keeps the tensors whose names are wanted.
    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.places.retain(|name, _| wanted(name));
    }

    /// Names and tensors of those that are in memory: all, where nothing was put away.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        self.places.iter().filter_map(|(name, place)| Some((name, place.held()?)))
    }

    /// Reads those on the disk whose names begin so, and keeps them in memory.
    ///
    /// # Errors
    /// One can't be read.
    pub fn bring(&self, prefix: &str) -> Result<()> {
        self.range(prefix).try_for_each(|(_, place)| place.hold().map(|_| ()))
    }

    /// What does not begin with `other`, and everything that begins with `own`, the latter in memory.
    ///
    /// # Errors
    /// One can't be read.
    pub(crate) fn view(&self, own: &str, other: &str) -> Result<Self> {
        let mut out = Self::on(self.shelf.clone());
        for (name, place) in &self.places {
            if name.starts_with(own) {
                let tensor = match (place.held(), place) {
                    (Some(tensor), _) | (None, Place::Here(tensor)) => tensor.clone(),
                    (None, Place::Away(away, _)) => away.read()?,
                };
                out.insert(name.clone(), tensor);
            } else if !name.starts_with(other) {
                out.places.insert(name.clone(), place.clone());
            }
        }
        Ok(out)
    }

    fn range(&self, prefix: &str) -> impl Iterator<Item = (&String, &Place)> {
        self.places.range(prefix.to_owned()..).take_while(move |(name, _)| name.starts_with(prefix))
    }

    /// Writes those whose names begin so to the shelf, where there is one and they are not there yet; their memory is free afterwards.
    ///
    /// # Errors
    /// The disk is full.
    pub fn put_away(&mut self, prefix: &str) -> Result<()> {
        let Some(shelf) = &self.shelf else { return Ok(()) };
        for (_, place) in self.places.range_mut(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix)) {
            *place = match place {
                Place::Here(tensor) => Place::Away(Arc::new(shelf.put(tensor)?), OnceLock::new()),
                Place::Away(away, _) => Place::Away(away.clone(), OnceLock::new()),
            };
        }
        Ok(())
    }
}

impl From<BTreeMap<String, Tensor>> for Tensors {
    fn from(tensors: BTreeMap<String, Tensor>) -> Self {
        tensors.into_iter().collect()
    }
}

impl FromIterator<(String, Tensor)> for Tensors {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(tensors: I) -> Self {
        Self { places: tensors.into_iter().map(|(name, tensor)| (name, Place::Here(tensor))).collect(), shelf: None }
    }
}

impl<K: Into<String>, const N: usize> From<[(K, Tensor); N]> for Tensors {
    fn from(tensors: [(K, Tensor); N]) -> Self {
        tensors.into_iter().map(|(name, tensor)| (name.into(), tensor)).collect()
    }
}

impl<'t> IntoIterator for &'t Tensors {
    type Item = (&'t String, &'t Tensor);
    type IntoIter = Box<dyn Iterator<Item = Self::Item> + 't>;

    /// As [`Tensors::iter`].
    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

impl<Q: AsRef<str> + ?Sized> std::ops::Index<&Q> for Tensors {
    type Output = Tensor;

    /// The tensor of that name.
    ///
    /// # Panics
    /// There is none, as with a map. Code that a user's input reaches asks with [`Tensors::get`] or [`Tensors::read`].
    fn index(&self, name: &Q) -> &Tensor {
        match self.get(name.as_ref()) {
            Some(tensor) => tensor,
            None => panic!("no tensor `{}`", name.as_ref()),
        }
    }
}

impl Tensors {
    /// The tensors of [`Self::iter`].
    pub fn values(&self) -> impl Iterator<Item = &Tensor> {
        self.iter().map(|(_, tensor)| tensor)
    }
}
