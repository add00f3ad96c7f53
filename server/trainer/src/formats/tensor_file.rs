//! A file of tensors, whatever its container: names, types and shapes at once, values one tensor at a time, so that a
//! file of 4 GB needs 4 GB of memory and not 8.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use super::error::ModelError;
use super::torch_file;

/// Where the bytes are.
pub(super) enum Source {
    File(File),
    /// Unpacked from the executable.
    Memory(Vec<u8>),
}

impl Source {
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(buffer, offset),
            Self::Memory(bytes) => {
                let start = usize::try_from(offset).map_err(std::io::Error::other)?;
                let end = start.checked_add(buffer.len());
                let found = end.and_then(|end| bytes.get(start..end));
                buffer.copy_from_slice(found.ok_or(std::io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }

    pub fn len(&self) -> std::io::Result<u64> {
        Ok(match self {
            Self::File(file) => file.metadata()?.len(),
            Self::Memory(bytes) => bytes.len() as u64,
        })
    }
}

/// One tensor in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// In elements, one a dimension; torch files can hold views.
    pub(super) strides: Vec<usize>,
    /// Of the first element, in bytes from the start of the file.
    pub(super) offset: u64,
    /// Which of the shards it is in.
    pub(super) shard: usize,
}

impl Entry {
    /// Of a tensor that lies row-major and without gaps.
    pub(super) fn contiguous(dtype: DType, shape: Vec<usize>, offset: u64) -> Self {
        Self {
            dtype,
            strides: row_major(&shape),
            shape,
            offset,
            shard: 0,
        }
    }

    fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements from the first to the last, gaps included; `None` when that overflows.
    pub(super) fn span(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        let mut last = 0usize;
        for (&length, &stride) in self.shape.iter().zip(&self.strides) {
            last = last.checked_add((length - 1).checked_mul(stride)?)?;
        }
        last.checked_add(1)
    }
}

fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i]);
    }
    strides
}

/// An open file of tensors, or several that belong together.
pub struct TensorFile {
    pub(super) path: PathBuf,
    /// One a shard.
    pub(super) sources: Vec<Source>,
    pub(super) entries: BTreeMap<String, Entry>,
    /// Of a safetensors file.
    pub(super) metadata: BTreeMap<String, String>,
    /// Things beside the tensors, such as a step counter or an optimizer's state.
    pub(super) others: usize,
}

/// Largest header of a safetensors file, as its own library has it.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Whether a file of any name starts as safetensors do, with a sound length of the header and the header's brace. Torch's
/// zip has `PK` there, its older format a pickle: lengths that no header has.
fn looks_like_safetensors(file: &File) -> bool {
    let mut start = [0; 9];
    let Ok(()) = file.read_exact_at(&mut start, 0) else {
        return false;
    };
    let [length @ .., brace] = start;
    brace == b'{' && u64::from_le_bytes(length) <= MAX_HEADER_BYTES
}

impl TensorFile {
    /// Its name or its first bytes say which container it is.
    ///
    /// # Errors
    /// A file that can't be read, or is neither safetensors nor a torch file of weights alone.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = File::open(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => ModelError::NotFound(path.into()),
            _ => ModelError::Read {
                path: path.into(),
                source,
            },
        })?;
        let is_named = path.extension().is_some_and(|extension| extension == "safetensors");
        if is_named || looks_like_safetensors(&file) {
            Self::safetensors(path.into(), Source::File(file))
        } else {
            torch_file::open(path.into(), file)
        }
    }

    /// A safetensors file in memory; `path` is its name in errors.
    pub(super) fn embedded(path: PathBuf, bytes: Vec<u8>) -> Result<Self, ModelError> {
        Self::safetensors(path, Source::Memory(bytes))
    }

    fn safetensors(path: PathBuf, source: Source) -> Result<Self, ModelError> {
        let read = |source| ModelError::Read {
            path: path.clone(),
            source,
        };
        let unsound = |source| ModelError::Safetensors {
            path: path.clone(),
            source,
        };
        let length = source.len().map_err(read)?;
        let mut first = [0; 8];
        source.read_at(&mut first, 0).map_err(read)?;
        let header_bytes = u64::from_le_bytes(first);
        if header_bytes > MAX_HEADER_BYTES.min(length.saturating_sub(8)) {
            return Err(unsound(safetensors::SafeTensorError::HeaderTooLarge));
        }
        let mut header = vec![0; 8 + header_bytes as usize];
        source.read_at(&mut header, 0).map_err(read)?;
        // The library's own reader wants the data too; it calls a header alone an incomplete file.
        let header: safetensors::tensor::Metadata = serde_json::from_slice(&header[8..])
            .map_err(|e| unsound(safetensors::SafeTensorError::InvalidHeaderDeserialization(e)))?;
        let data = 8 + header_bytes;
        if data + header.data_len() as u64 != length {
            return Err(unsound(safetensors::SafeTensorError::MetadataIncompleteBuffer));
        }
        let mut entries = BTreeMap::new();
        let mut others = 0;
        for (name, info) in header.tensors() {
            // No part of the models is of a type that candle does not have.
            let Ok(dtype) = DType::try_from(info.dtype) else {
                others += 1;
                continue;
            };
            let offset = data + info.data_offsets.0 as u64;
            entries.insert(name, Entry::contiguous(dtype, info.shape.clone(), offset));
        }
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self {
            path,
            sources: vec![source],
            entries,
            metadata,
            others,
        })
    }

    /// Opens the shards that an index file (`*.index.json`) names, as one.
    ///
    /// # Errors
    /// An index or shard that can't be read, and a tensor that is not in the shard it should be in.
    pub(super) fn sharded(index: &Path) -> Result<Self, ModelError> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = std::fs::read(index).map_err(|source| ModelError::Read {
            path: index.into(),
            source,
        })?;
        let Index { weight_map } = serde_json::from_slice(&text).map_err(|source| ModelError::Json {
            path: index.into(),
            source,
        })?;
        let mut whole = Self {
            path: index.into(),
            sources: Vec::new(),
            entries: BTreeMap::new(),
            metadata: BTreeMap::new(),
            others: 0,
        };
        let names: BTreeSet<&String> = weight_map.values().collect();
        for name in names {
            let shard = Self::open(&index.with_file_name(name))?;
            let missing = weight_map
                .iter()
                .find(|(tensor, file)| *file == name && !shard.entries.contains_key(*tensor));
            if let Some((tensor, _)) = missing {
                return Err(ModelError::Missing {
                    path: shard.path,
                    tensor: tensor.clone(),
                    others: 0,
                });
            }
            let number = whole.sources.len();
            whole.sources.extend(shard.sources);
            whole.others += shard.others;
            for (tensor, entry) in shard.entries {
                whole.entries.insert(tensor, Entry { shard: number, ..entry });
            }
        }
        Ok(whole)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The values of one tensor, on the CPU, as stored.
    ///
    /// # Errors
    /// A tensor that is not there, or a file that ends early.
    pub fn read(&self, name: &str) -> Result<Tensor, ModelError> {
        let entry = self.entries.get(name).ok_or_else(|| ModelError::Missing {
            path: self.path.clone(),
            tensor: name.into(),
            others: 0,
        })?;
        let wrong = |source| ModelError::Tensor {
            path: self.path.clone(),
            tensor: name.into(),
            source: Box::new(source),
        };
        let size = entry.dtype.size_in_bytes();
        let gapless = entry.strides == row_major(&entry.shape);
        if gapless && entry.dtype == DType::F32 && cfg!(target_endian = "little") {
            let mut values = vec![0f32; entry.count()];
            // SAFETY: these are the bytes of the values, any of which make an f32.
            let bytes = unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), values.len() * size) };
            self.sources[entry.shard]
                .read_at(bytes, entry.offset)
                .map_err(|e| wrong(e.into()))?;
            return Tensor::from_vec(values, entry.shape.as_slice(), &Device::Cpu).map_err(wrong);
        }
        let span = entry.span().unwrap_or(usize::MAX);
        let mut bytes = vec![0; span.saturating_mul(size)];
        self.sources[entry.shard]
            .read_at(&mut bytes, entry.offset)
            .map_err(|e| wrong(e.into()))?;
        if !gapless && entry.count() > 0 {
            bytes = gather(&bytes, entry, size);
        }
        Tensor::from_raw_buffer(&bytes, entry.dtype, &entry.shape, &Device::Cpu).map_err(wrong)
    }
}

/// A view's elements in row-major order.
fn gather(bytes: &[u8], entry: &Entry, size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(entry.count() * size);
    let mut index = vec![0usize; entry.shape.len()];
    for _ in 0..entry.count() {
        let at: usize = index.iter().zip(&entry.strides).map(|(i, stride)| i * stride).sum();
        out.extend_from_slice(&bytes[at * size..(at + 1) * size]);
        for (i, &length) in index.iter_mut().zip(&entry.shape).rev() {
            *i += 1;
            if *i < length {
                break;
            }
            *i = 0;
        }
    }
    out
}
