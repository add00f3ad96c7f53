//! Reading what `torch.save` writes: the zip container, and the older one without.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::DType;

use super::error::ModelError;
use super::pickle::{self, Pickle, PickleError, Storage, Value};
use super::tensor_file::{Entry, Source, TensorFile};

/// More than any file of weights has to say about its tensors.
const MAX_PICKLE_BYTES: u64 = 256 << 20;
/// `torch.serialization.MAGIC_NUMBER`, 0x1950a86a20f9469cfc6c, as a pickled long.
const LEGACY_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Where a storage's elements start in the file, and how many bytes there are.
type Storages = HashMap<String, (u64, u64)>;

/// A failure without its file.
enum Problem {
    Io(std::io::Error),
    Unsound(String),
    Refused(String),
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<zip::result::ZipError> for Problem {
    fn from(error: zip::result::ZipError) -> Self {
        Self::Unsound(error.to_string())
    }
}

impl From<PickleError> for Problem {
    fn from(error: PickleError) -> Self {
        match error {
            PickleError::Refused(what) => Self::Refused(what),
            PickleError::Unsound(reason) => Self::Unsound(reason),
        }
    }
}

impl Problem {
    fn of(self, path: &Path) -> ModelError {
        let path = path.to_path_buf();
        match self {
            Self::Io(source) => ModelError::Read { path, source },
            Self::Unsound(reason) => ModelError::Torch { path, reason },
            Self::Refused(what) => ModelError::Refused { path, what },
        }
    }
}

/// Opens a `.ckpt`, `.bin`, `.pt` or `.pth`.
pub(super) fn open(path: PathBuf, mut file: File) -> Result<TensorFile, ModelError> {
    let opened = read(&mut file).map_err(|problem| problem.of(&path))?;
    let (entries, others, metadata) = opened;
    Ok(TensorFile {
        path,
        sources: vec![Source::File(file)],
        entries,
        metadata,
        others,
    })
}

type Opened = (BTreeMap<String, Entry>, usize, BTreeMap<String, String>);

fn read(file: &mut File) -> Result<Opened, Problem> {
    let mut start = [0; 4];
    file.read_exact(&mut start)?;
    if start == *b"PK\x03\x04" {
        let (pickle, storages, metadata) = read_zip(file)?;
        let (entries, others) = tensors(&pickle, &storages)?;
        return Ok((entries, others, metadata));
    }
    if start[0] == 0x80 {
        let (pickle, storages) = read_legacy(file)?;
        let (entries, others) = tensors(&pickle, &storages)?;
        return Ok((entries, others, BTreeMap::new()));
    }
    let reason = "it is neither torch's zip container nor its older format";
    Err(Problem::Unsound(reason.into()))
}

fn read_zip(file: &mut File) -> Result<(Pickle, Storages, BTreeMap<String, String>), Problem> {
    let mut zip = zip::ZipArchive::new(file)?;
    let index = zip
        .file_names()
        .find(|name| name.split('/').count() == 2 && name.ends_with("/data.pkl"))
        .map(str::to_owned)
        .ok_or_else(|| Problem::Unsound("no data.pkl in the zip container".into()))?;
    let root = index.trim_end_matches("data.pkl").to_owned();
    let mut pickled = Vec::new();
    zip.by_name(&index)?.take(MAX_PICKLE_BYTES).read_to_end(&mut pickled)?;
    let pickle = pickle::read(&pickled)?;

    let mut storages = Storages::new();
    for i in 0..zip.len() {
        let mut member = zip.by_index_raw(i)?;
        let name = member.name().to_owned();
        if name.strip_prefix(&root) == Some("byteorder") {
            let mut order = String::new();
            (&mut member).take(16).read_to_string(&mut order)?;
            if order.trim() != "little" {
                return Err(Problem::Unsound(format!("its byte order is {order}")));
            }
        }
        let Some(key) = name.strip_prefix(&root).and_then(|name| name.strip_prefix("data/")) else {
            continue;
        };
        if member.compression() != zip::CompressionMethod::Stored {
            return Err(Problem::Unsound(format!(
                "member {name} is compressed, which torch never does"
            )));
        }
        storages.insert(key.to_owned(), (member.data_start(), member.size()));
    }
    let metadata = serde_json::from_slice(zip.comment()).unwrap_or_default();
    Ok((pickle, storages, metadata))
}

fn read_legacy(file: &mut File) -> Result<(Pickle, Storages), Problem> {
    let source = file.try_clone()?;
    let length = source.metadata()?.len();
    let source = Source::File(source);
    let mut at = 0;
    let magic = next_pickle(&source, &mut at, length)?;
    if *magic.root() != Value::BigInt(LEGACY_MAGIC.to_vec()) {
        let reason = "it is a bare pickle, or of torch before 0.1.10";
        return Err(Problem::Unsound(reason.into()));
    }
    let _protocol = next_pickle(&source, &mut at, length)?;
    let system = next_pickle(&source, &mut at, length)?;
    if let Value::Dict(items) = system.root() {
        let little = items.iter().find(|(key, _)| system.text(*key) == Some("little_endian"));
        if little.is_some_and(|(_, value)| *system.get(*value) == Value::Bool(false)) {
            return Err(Problem::Unsound("its byte order is big".into()));
        }
    }
    let pickle = next_pickle(&source, &mut at, length)?;
    let keys = next_pickle(&source, &mut at, length)?;
    let Value::List(list) = keys.root() else {
        return Err(Problem::Unsound("no list of storages".into()));
    };
    let sizes = storage_sizes(&pickle);
    let mut storages = Storages::new();
    for &key in list {
        let key = keys.text(key).unwrap_or_default().to_owned();
        let mut count = [0; 8];
        source.read_at(&mut count, at)?;
        at += 8;
        let size = sizes.get(&key).copied().unwrap_or(0);
        let bytes = u64::from_le_bytes(count).saturating_mul(size);
        if bytes > length.saturating_sub(at) {
            return Err(Problem::Unsound(format!("storage {key} is longer than the file")));
        }
        storages.insert(key, (at, bytes));
        at += bytes;
    }
    Ok((pickle, storages))
}

/// Bytes an element of each storage has.
fn storage_sizes(pickle: &Pickle) -> HashMap<String, u64> {
    let storages = pickle.values().iter().filter_map(|value| match value {
        Value::Storage(storage) => Some(storage),
        _ => None,
    });
    storages
        .map(|storage| (storage.key.clone(), element_bytes(storage)))
        .collect()
}

/// Reads the pickle at `at` and moves on to what follows it.
fn next_pickle(source: &Source, at: &mut u64, length: u64) -> Result<Pickle, Problem> {
    // Its length is not written anywhere: try a little, then more.
    let rest = length.saturating_sub(*at).min(MAX_PICKLE_BYTES);
    let mut window = 64 << 10;
    loop {
        let mut bytes = vec![0; window.min(rest) as usize];
        source.read_at(&mut bytes, *at)?;
        match pickle::read(&bytes) {
            Ok(pickle) => {
                *at += pickle.length as u64;
                return Ok(pickle);
            }
            Err(PickleError::Unsound(_)) if window < rest => window *= 8,
            Err(error) => return Err(error.into()),
        }
    }
}

fn dtype(storage: &Storage) -> Option<DType> {
    Some(match storage.kind.as_str() {
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "FloatStorage" => DType::F32,
        "DoubleStorage" => DType::F64,
        "LongStorage" => DType::I64,
        "IntStorage" => DType::I32,
        "ShortStorage" => DType::I16,
        "ByteStorage" => DType::U8,
        _ => return None,
    })
}

fn element_bytes(storage: &Storage) -> u64 {
    // A BoolStorage has bytes too.
    dtype(storage).map_or(1, |dtype| dtype.size_in_bytes() as u64)
}

/// Tensors of the state dict, and the number of other things beside it.
fn tensors(pickle: &Pickle, storages: &Storages) -> Result<(BTreeMap<String, Entry>, usize), Problem> {
    let Value::Dict(top) = pickle.root() else {
        return Err(Problem::Unsound("it holds no dictionary of tensors".into()));
    };
    let inner = top.iter().find_map(|&(key, value)| {
        let is_state = pickle.text(key) == Some("state_dict");
        match pickle.get(value) {
            Value::Dict(dict) if is_state => Some(dict),
            _ => None,
        }
    });
    let mut others = inner.map_or(0, |_| top.len() - 1);
    let mut entries = BTreeMap::new();
    for &(key, value) in inner.unwrap_or(top) {
        let (Some(name), Value::Tensor(tensor)) = (pickle.text(key), pickle.get(value)) else {
            others += 1;
            continue;
        };
        let Some(dtype) = dtype(&tensor.storage) else {
            others += 1;
            continue;
        };
        let unsound = |what: &str| Problem::Unsound(format!("tensor `{name}` {what}"));
        let key = &tensor.storage.key;
        let (start, bytes) = *storages.get(key).ok_or_else(|| unsound("has no data"))?;
        let size = dtype.size_in_bytes() as u64;
        let mut entry = Entry::contiguous(dtype, tensor.shape.clone(), 0);
        // A dimension of one element is never walked; torch gives its stride in more ways than one.
        for ((stride, &given), &length) in entry.strides.iter_mut().zip(&tensor.strides).zip(&tensor.shape) {
            if length > 1 {
                *stride = given;
            }
        }
        let span = entry.span();
        let count = tensor
            .shape
            .iter()
            .try_fold(1usize, |count, &length| count.checked_mul(length));
        // A view that shows an element twice could ask for any amount of memory.
        if count.is_none() || count > span {
            return Err(unsound("is larger than its data"));
        }
        let end = span.and_then(|span| span.checked_add(tensor.offset));
        let fits = end
            .and_then(|end| (end as u64).checked_mul(size))
            .is_some_and(|end| end <= bytes);
        if !fits {
            return Err(unsound("reaches past the end of its data"));
        }
        entry.offset = start + tensor.offset as u64 * size;
        entries.insert(name.to_owned(), entry);
    }
    Ok((entries, others))
}
