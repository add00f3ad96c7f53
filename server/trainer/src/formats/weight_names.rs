//! How diffusers and transformers name a network's weights: in one file or in shards, 32 or 16 bits, safetensors or
//! torch's pickle.

/// One of the forms that a network's weights may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightName {
    /// All in one.
    pub file: String,
    /// Says which shard each tensor is in.
    pub index: String,
    shard_start: String,
    ending: &'static str,
}

impl WeightName {
    fn new(stem: &str, ending: &'static str, fp16: bool) -> Self {
        let variant = if fp16 { ".fp16" } else { "" };
        Self {
            file: format!("{stem}{variant}.{ending}"),
            index: format!("{stem}.{ending}.index{variant}.json"),
            shard_start: format!("{stem}{variant}-"),
            ending,
        }
    }

    /// Whether `name` is one of its shards, such as `model-00001-of-00002.safetensors`.
    pub fn is_shard(&self, name: &str) -> bool {
        let middle = name
            .strip_prefix(&self.shard_start)
            .and_then(|rest| rest.strip_suffix(self.ending))
            .and_then(|rest| rest.strip_suffix('.'));
        middle.is_some_and(|middle| middle.contains("-of-"))
    }
}

/// Forms of the weights of `network` (`unet`, `vae` or `text_encoder`), best first: safetensors before pickle, and 32
/// bits before 16 unless `fp16_first`.
pub fn weight_names(network: &str, fp16_first: bool) -> Vec<WeightName> {
    let (safe, pickled) = match network {
        "text_encoder" => ("model", "pytorch_model"),
        _ => ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    };
    let mut names = Vec::new();
    for (stem, ending) in [(safe, "safetensors"), (pickled, "bin")] {
        for fp16 in [fp16_first, !fp16_first] {
            names.push(WeightName::new(stem, ending, fp16));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_known_by_their_name() {
        let names = weight_names("unet", false);
        assert!(names[0].is_shard("diffusion_pytorch_model-00001-of-00002.safetensors"));
        assert!(!names[0].is_shard("diffusion_pytorch_model.fp16-00001-of-00002.safetensors"));
        assert!(!names[0].is_shard("diffusion_pytorch_model.safetensors"));
        assert_eq!(names[1].index, "diffusion_pytorch_model.safetensors.index.fp16.json");
        assert_eq!(weight_names("text_encoder", true)[2].file, "pytorch_model.fp16.bin");
    }
}
