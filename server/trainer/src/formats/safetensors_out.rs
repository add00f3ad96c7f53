//! Writing safetensors one tensor at a time. The library's own writer can't fail while it asks for a tensor's bytes,
//! which copying from a GPU can.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::atomic::Out;
use super::error::ModelError;
use super::single_file::{Outgoing, bytes_of};

/// What is made ready at a time, at least.
const LOT_BYTES: usize = 128 << 20;

/// The header is the library's, but for the metadata, which it would write in no certain order.
pub(super) fn write(
    path: &Path,
    out: &mut Out,
    outgoing: &[Outgoing],
    metadata: &BTreeMap<String, String>,
) -> Result<(), ModelError> {
    let unsound = |source| ModelError::Safetensors {
        path: path.into(),
        source,
    };
    let failed = |source| ModelError::Write {
        path: path.into(),
        source,
    };
    let mut sorted: Vec<(Dtype, &Outgoing)> = outgoing.iter().map(|t| (t.dtype.into(), t)).collect();
    // The widest type first keeps everything aligned; the library sorts so as well.
    sorted.sort_by(|(a, left), (b, right)| b.cmp(a).then(left.name.cmp(&right.name)));
    let mut infos = Vec::with_capacity(sorted.len());
    let mut offset = 0;
    for (dtype, tensor) in &sorted {
        let end = offset + tensor.shape.iter().product::<usize>() * tensor.dtype.size_in_bytes();
        infos.push((
            tensor.name.clone(),
            TensorInfo {
                dtype: *dtype,
                shape: tensor.shape.clone(),
                data_offsets: (offset, end),
            },
        ));
        offset = end;
    }
    let unwritten = |source: serde_json::Error| unsound(source.into());
    let mut header = serde_json::to_vec(&Metadata::new(None, infos).map_err(unsound)?).map_err(unwritten)?;
    if !metadata.is_empty() {
        let metadata = serde_json::to_string(metadata).map_err(unwritten)?;
        let comma = if outgoing.is_empty() { "" } else { "," };
        header.splice(1..1, format!("\"__metadata__\":{metadata}{comma}").into_bytes());
    }
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    out.write_all(&header).map_err(failed)?;
    // While one lot is written the next is made, by all other cores.
    let mut ready: Vec<Vec<u8>> = Vec::new();
    for lot in lots(&sorted).map(Some).chain([None]) {
        let make = || -> Result<Vec<Vec<u8>>, ModelError> {
            let tensors = lot.unwrap_or_default().par_iter();
            tensors.map(|(_, tensor)| bytes_of(path, tensor)).collect()
        };
        let write = || ready.iter().try_for_each(|bytes| out.write_all(bytes));
        let (written, made) = rayon::join(write, make);
        written.map_err(failed)?;
        ready = made?;
    }
    Ok(())
}

/// Tensors that come to [`LOT_BYTES`] together, and the one that goes beyond it.
fn lots<'a>(mut tensors: &'a [(Dtype, &'a Outgoing)]) -> impl Iterator<Item = &'a [(Dtype, &'a Outgoing)]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let full = tensors.iter().position(|(_, tensor)| {
            bytes += tensor.shape.iter().product::<usize>() * tensor.dtype.size_in_bytes();
            bytes >= LOT_BYTES
        });
        let (lot, rest) = tensors.split_at(full.map_or(tensors.len(), |last| last + 1));
        tensors = rest;
        (!lot.is_empty()).then_some(lot)
    })
}
