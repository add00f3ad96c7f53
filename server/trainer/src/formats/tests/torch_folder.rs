//! A diffusers folder with weights that torch wrote, from before safetensors.

use std::collections::BTreeMap;

use super::{repository, without_text_encoder, zip};
use crate::formats::{self, TensorFile};

#[test]
fn a_state_dict_of_torch_is_read() -> anyhow::Result<()> {
    let (folder, text_encoder) = without_text_encoder()?;
    let golden = TensorFile::open(&repository("golden/tiny-sd/text_encoder/model.safetensors"))?;
    // The fixture's storages: 0 holds 77 position ids, then come the weights in the order of their names.
    let mut storages: Vec<Vec<u8>> = vec![(0..77i64).flat_map(i64::to_le_bytes).collect()];
    for name in golden.entries().keys() {
        let values = golden.read(name)?.flatten_all()?.to_vec1::<half::f16>()?;
        storages.push(values.iter().flat_map(|value| value.to_le_bytes()).collect());
    }
    let pickled = std::fs::read(repository("fixtures/torch/text_encoder.pkl"))?;
    let names: Vec<String> = (0..storages.len()).map(|key| format!("data/{key}")).collect();
    let mut members: Vec<(&str, &[u8])> = vec![("data.pkl", &pickled), ("byteorder", b"little")];
    members.extend(names.iter().map(String::as_str).zip(storages.iter().map(Vec::as_slice)));
    members.push(("version", b"3\n"));
    zip(&text_encoder.join("pytorch_model.bin"), &members)?;

    let read = formats::load(&folder.path().to_string_lossy())?;
    let wanted = formats::load(&repository("golden/tiny-sd").to_string_lossy())?;
    let bits = |tensors: &formats::Tensors| -> candle_core::Result<BTreeMap<String, Vec<half::f16>>> {
        let tensors = tensors.iter();
        tensors
            .map(|(name, tensor)| Ok((name.clone(), tensor.flatten_all()?.to_vec1()?)))
            .collect()
    };
    assert!(bits(&read.text_encoder)? == bits(&wanted.text_encoder)?);
    Ok(())
}
