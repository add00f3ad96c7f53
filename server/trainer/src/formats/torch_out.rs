//! Writing what `torch.save({"state_dict": tensors})` writes, in the form that WebUIs' safe loaders accept: a zip named
//! `archive` inside, nothing compressed, pickle protocol 2.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use candle_core::DType;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::atomic::Out;
use super::error::ModelError;
use super::single_file::{Outgoing, bytes_of};

/// As torch aligns them.
const ALIGNMENT_BYTES: u16 = 64;
/// Items of a dictionary between two MARKs, as Python pickles them.
const BATCH: usize = 1000;

pub(super) fn write(
    path: &Path,
    out: &mut Out,
    outgoing: &[Outgoing],
    metadata: &BTreeMap<String, String>,
) -> Result<(), ModelError> {
    let failed = |e: zip::result::ZipError| ModelError::Write {
        path: path.into(),
        source: e.into(),
    };
    let io = |source| ModelError::Write {
        path: path.into(),
        source,
    };
    let mut zip = ZipWriter::new(out);
    // No time of day: the same model gives the same bytes.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(zip::DateTime::default())
        .with_alignment(ALIGNMENT_BYTES);
    zip.start_file("archive/data.pkl", options).map_err(failed)?;
    zip.write_all(&pickle(outgoing)).map_err(io)?;
    for (key, tensor) in outgoing.iter().enumerate() {
        zip.start_file(format!("archive/data/{key}"), options).map_err(failed)?;
        zip.write_all(&bytes_of(path, tensor)?).map_err(io)?;
    }
    zip.start_file("archive/version", options).map_err(failed)?;
    zip.write_all(b"3\n").map_err(io)?;
    if !metadata.is_empty() {
        // Loaders look at the members alone.
        let comment = serde_json::to_vec(metadata).map_err(|source| ModelError::Json {
            path: path.into(),
            source,
        })?;
        zip.set_raw_comment(comment.into());
    }
    zip.finish().map_err(failed)?;
    Ok(())
}

/// `{"state_dict": {name: tensor, ...}}` byte for byte as Python pickles it: what was said before is said by number.
fn pickle(outgoing: &[Outgoing]) -> Vec<u8> {
    let mut pickler = Pickler::default();
    pickler.bytes.extend(b"\x80\x02}");
    pickler.remember();
    pickler.text("state_dict");
    pickler.bytes.push(b'}');
    pickler.remember();
    let mut batches = outgoing.chunks(BATCH).peekable();
    let mut key = 0;
    while let Some(batch) = batches.next() {
        let alone = outgoing.len() == 1;
        if !alone {
            pickler.bytes.push(b'(');
        }
        for tensor in batch {
            pickler.text(&tensor.name);
            pickler.tensor(tensor, key);
            key += 1;
        }
        pickler.bytes.push(if alone { b's' } else { b'u' });
        if batch.len() == BATCH && batches.peek().is_none() {
            // Python looks for more after a full batch.
            pickler.bytes.extend(b"(u");
        }
    }
    pickler.bytes.extend(b"s.");
    pickler.bytes
}

#[derive(Default)]
struct Pickler {
    bytes: Vec<u8>,
    remembered: u32,
    /// Globals and constant texts, by the number they are remembered as.
    constants: BTreeMap<&'static str, u32>,
}

impl Pickler {
    fn remember(&mut self) -> u32 {
        let number = self.remembered;
        match u8::try_from(number) {
            Ok(short) => self.bytes.extend([b'q', short]),
            Err(_) => {
                self.bytes.push(b'r');
                self.bytes.extend(number.to_le_bytes());
            }
        }
        self.remembered += 1;
        number
    }

    fn recall(&mut self, number: u32) {
        match u8::try_from(number) {
            Ok(short) => self.bytes.extend([b'h', short]),
            Err(_) => {
                self.bytes.push(b'j');
                self.bytes.extend(number.to_le_bytes());
            }
        }
    }

    fn text(&mut self, text: &str) {
        self.bytes.push(b'X');
        self.bytes.extend((text.len() as u32).to_le_bytes());
        self.bytes.extend(text.as_bytes());
        self.remember();
    }

    /// Says a constant, the second time by its number alone.
    fn constant(&mut self, constant: &'static str, say: impl FnOnce(&mut Self)) {
        if let Some(&number) = self.constants.get(constant) {
            self.recall(number);
            return;
        }
        say(self);
        self.constants.insert(constant, self.remembered - 1);
    }

    fn global(&mut self, constant: &'static str) {
        self.constant(constant, |pickler| {
            let (module, name) = constant.rsplit_once('.').unwrap_or(("", constant));
            pickler.bytes.push(b'c');
            pickler.bytes.extend(format!("{module}\n{name}\n").as_bytes());
            pickler.remember();
        });
    }

    fn integer(&mut self, value: usize) {
        if let Ok(byte) = u8::try_from(value) {
            self.bytes.extend([b'K', byte]);
        } else if let Ok(short) = u16::try_from(value) {
            self.bytes.push(b'M');
            self.bytes.extend(short.to_le_bytes());
        } else if let Ok(int) = i32::try_from(value) {
            self.bytes.push(b'J');
            self.bytes.extend(int.to_le_bytes());
        } else {
            // LONG1, two's complement
            self.bytes.extend([0x8a, 9]);
            self.bytes.extend((value as u64).to_le_bytes());
            self.bytes.push(0);
        }
    }

    fn sizes(&mut self, sizes: &[usize]) {
        match sizes.len() {
            0 => {
                self.bytes.push(b')');
                return;
            }
            1..=3 => {}
            _ => self.bytes.push(b'('),
        }
        for &size in sizes {
            self.integer(size);
        }
        self.bytes.push(match sizes.len() {
            1 => 0x85,
            2 => 0x86,
            3 => 0x87,
            _ => b't',
        });
        self.remember();
    }

    /// `_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`
    fn tensor(&mut self, tensor: &Outgoing, key: usize) {
        let storage = match tensor.dtype {
            DType::F16 => "torch.HalfStorage",
            DType::BF16 => "torch.BFloat16Storage",
            DType::F64 => "torch.DoubleStorage",
            _ => "torch.FloatStorage",
        };
        self.global("torch._utils._rebuild_tensor_v2");
        self.bytes.extend(b"((");
        self.constant("storage", |pickler| pickler.text("storage"));
        self.global(storage);
        self.text(&key.to_string());
        self.constant("cpu", |pickler| pickler.text("cpu"));
        self.integer(tensor.shape.iter().product());
        self.bytes.push(b't');
        self.remember();
        self.bytes.push(b'Q');
        self.integer(0);
        self.sizes(&tensor.shape);
        let mut strides = vec![1; tensor.shape.len()];
        for i in (1..strides.len()).rev() {
            strides[i - 1] = strides[i] * tensor.shape[i];
        }
        self.sizes(&strides);
        self.bytes.push(0x89);
        self.global("collections.OrderedDict");
        self.bytes.extend(b")R");
        self.remember();
        self.bytes.push(b't');
        self.remember();
        self.bytes.push(b'R');
        self.remember();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use candle_core::{Device, Tensor};

    use super::*;
    use crate::formats::TensorFile;
    use crate::formats::pickle::{self, Value};

    #[test]
    fn any_number_of_tensors_of_mixed_types_is_read_back() -> anyhow::Result<()> {
        // A type that comes first among later tensors is remembered by a number that no byte holds.
        let kinds = [(DType::F32, "FloatStorage"), (DType::F16, "HalfStorage")];
        let one = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
        for count in [1, 2, 1000, 1001, 1130] {
            let kind = |i: usize| kinds[usize::from(i > count / 2)];
            let outgoing = (0..count).map(|i| Outgoing {
                name: format!("tensor.{i}"),
                dtype: kind(i).0,
                shape: vec![i + 1, 3],
                tensor: one.clone(),
            });
            let written = pickle(&outgoing.collect::<Vec<_>>());
            let read = pickle::read(&written).map_err(|e| anyhow::anyhow!("{count}: {e:?}"))?;
            assert_eq!(read.length, written.len(), "{count}");
            let Value::Dict(top) = read.root() else {
                anyhow::bail!("{count}: no dictionary")
            };
            assert_eq!(read.text(top[0].0), Some("state_dict"), "{count}");
            let Value::Dict(tensors) = read.get(top[0].1) else {
                anyhow::bail!("{count}: no state dict")
            };
            assert_eq!(tensors.len(), count);
            for (i, &(name, tensor)) in tensors.iter().enumerate() {
                assert_eq!(read.text(name), Some(format!("tensor.{i}").as_str()));
                let Value::Tensor(tensor) = read.get(tensor) else {
                    anyhow::bail!("{count}: {i} is no tensor")
                };
                let storage = &tensor.storage;
                assert_eq!(
                    (storage.kind.as_str(), &storage.key),
                    (kind(i).1, &i.to_string()),
                    "{count}"
                );
                assert_eq!(
                    (&tensor.shape, storage.count),
                    (&vec![i + 1, 3], 3 * (i + 1)),
                    "{count}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn a_pickle_is_the_one_that_torch_writes_byte_for_byte() -> anyhow::Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/convert/sample.half.ckpt");
        let file = TensorFile::open(&path)?;
        let mut outgoing = Vec::new();
        for (name, entry) in file.entries() {
            outgoing.push(Outgoing {
                name: name.clone(),
                dtype: entry.dtype,
                shape: entry.shape.clone(),
                tensor: file.read(name)?,
            });
        }
        let mut wanted = Vec::new();
        let mut zip = zip::ZipArchive::new(std::fs::File::open(&path)?)?;
        zip.by_name("sample.half/data.pkl")?.read_to_end(&mut wanted)?;
        assert!(pickle(&outgoing) == wanted);
        Ok(())
    }
}
