//! Every tensor of a model, by its configuration: path in diffusers, name in the original single-file layout, shape.
//!
//! One walk gives both names, so that a tensor can't be known under one and forgotten under the other. The original
//! layout is CompVis' `ldm`; `tests/golden/convert/sd15_keys.json` holds all 1130 rows of Stable Diffusion 1.5.

use crate::models::config::{TextEncoderConfig, UNetConfig, VaeConfig};

/// Prefixes of the three models in a single file.
pub const UNET_PREFIX: &str = "model.diffusion_model.";
pub const VAE_PREFIX: &str = "first_stage_model.";
pub const TEXT_ENCODER_PREFIX: &str = "cond_stage_model.transformer.";

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// In diffusers (U-Net, VAE) or transformers (text encoder).
    pub path: String,
    /// In a single file, prefix included.
    pub original: String,
    /// In diffusers.
    pub shape: Vec<usize>,
    /// A linear weight [c, c] there that is a 1x1 convolution [c, c, 1, 1] in the original: the VAE's attention.
    pub is_conv_in_original: bool,
}

impl Parameter {
    pub fn original_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if self.is_conv_in_original {
            shape.extend([1, 1]);
        }
        shape
    }
}

/// Collects parameters; `path` and `original` are what the next ones start with.
struct Walk {
    parameters: Vec<Parameter>,
    prefix: &'static str,
}

impl Walk {
    fn new(prefix: &'static str) -> Self {
        let parameters = Vec::new();
        Self { parameters, prefix }
    }

    fn add(&mut self, path: String, original: String, shape: &[usize]) {
        self.parameters.push(Parameter {
            path,
            original: [self.prefix, &original].concat(),
            shape: shape.to_vec(),
            is_conv_in_original: false,
        });
    }

    /// `weight` of this shape and `bias` of its first dimension.
    fn layer(&mut self, path: &str, original: &str, weight: &[usize]) {
        self.add(format!("{path}.weight"), format!("{original}.weight"), weight);
        self.add(format!("{path}.bias"), format!("{original}.bias"), &weight[..1]);
    }

    fn norm(&mut self, path: &str, original: &str, channels: usize) {
        self.layer(path, original, &[channels]);
    }

    fn conv(&mut self, path: &str, original: &str, out: usize, input: usize, side: usize) {
        self.layer(path, original, &[out, input, side, side]);
    }
}

fn has_attention(block_type: &str) -> bool {
    block_type.starts_with("CrossAttn")
}

/// Tensors of `UNet2DConditionModel`.
pub fn unet(config: &UNetConfig) -> Vec<Parameter> {
    let mut walk = Walk::new(UNET_PREFIX);
    let channels = &config.block_out_channels;
    let (Some(&first), Some(&last)) = (channels.first(), channels.last()) else {
        return walk.parameters;
    };
    let (blocks, layers) = (channels.len(), config.layers_per_block);
    let time = 4 * first;
    walk.conv("conv_in", "input_blocks.0.0", first, config.in_channels, 3);
    walk.layer("time_embedding.linear_1", "time_embed.0", &[time, first]);
    walk.layer("time_embedding.linear_2", "time_embed.2", &[time, time]);

    let mut input = first;
    for (i, (&out, block_type)) in channels.iter().zip(&config.down_block_types).enumerate() {
        for j in 0..layers {
            let original = format!("input_blocks.{}", (layers + 1) * i + j + 1);
            let path = format!("down_blocks.{i}");
            let from = if j == 0 { input } else { out };
            walk.unet_resnet(
                &format!("{path}.resnets.{j}"),
                &format!("{original}.0"),
                from,
                out,
                time,
            );
            if has_attention(block_type) {
                walk.transformer(&format!("{path}.attentions.{j}"), &format!("{original}.1"), out, config);
            }
        }
        if i + 1 < blocks {
            let original = format!("input_blocks.{}.0.op", (layers + 1) * (i + 1));
            walk.conv(&format!("down_blocks.{i}.downsamplers.0.conv"), &original, out, out, 3);
        }
        input = out;
    }

    walk.unet_resnet("mid_block.resnets.0", "middle_block.0", last, last, time);
    walk.transformer("mid_block.attentions.0", "middle_block.1", last, config);
    walk.unet_resnet("mid_block.resnets.1", "middle_block.2", last, last, time);

    let upwards: Vec<usize> = channels.iter().rev().copied().collect();
    for (i, (&out, block_type)) in upwards.iter().zip(&config.up_block_types).enumerate() {
        let before = upwards[i.saturating_sub(1)];
        let last_skip = upwards[(i + 1).min(blocks - 1)];
        let attends = has_attention(block_type);
        for j in 0..=layers {
            let original = format!("output_blocks.{}", (layers + 1) * i + j);
            let path = format!("up_blocks.{i}");
            // The skip of the last layer comes from the block above.
            let skip = if j == layers { last_skip } else { out };
            let from = skip + if j == 0 { before } else { out };
            walk.unet_resnet(
                &format!("{path}.resnets.{j}"),
                &format!("{original}.0"),
                from,
                out,
                time,
            );
            if attends {
                walk.transformer(&format!("{path}.attentions.{j}"), &format!("{original}.1"), out, config);
            }
        }
        if i + 1 < blocks {
            let slot = if attends { 2 } else { 1 };
            let original = format!("output_blocks.{}.{slot}.conv", (layers + 1) * i + layers);
            walk.conv(&format!("up_blocks.{i}.upsamplers.0.conv"), &original, out, out, 3);
        }
    }
    walk.norm("conv_norm_out", "out.0", first);
    walk.conv("conv_out", "out.2", config.out_channels, first, 3);
    walk.parameters
}

impl Walk {
    fn unet_resnet(&mut self, path: &str, original: &str, input: usize, out: usize, time: usize) {
        self.norm(&format!("{path}.norm1"), &format!("{original}.in_layers.0"), input);
        self.conv(
            &format!("{path}.conv1"),
            &format!("{original}.in_layers.2"),
            out,
            input,
            3,
        );
        let emb_layers = format!("{original}.emb_layers.1");
        self.layer(&format!("{path}.time_emb_proj"), &emb_layers, &[out, time]);
        self.norm(&format!("{path}.norm2"), &format!("{original}.out_layers.0"), out);
        self.conv(
            &format!("{path}.conv2"),
            &format!("{original}.out_layers.3"),
            out,
            out,
            3,
        );
        if input != out {
            let skip_connection = format!("{original}.skip_connection");
            self.conv(&format!("{path}.conv_shortcut"), &skip_connection, out, input, 1);
        }
    }

    /// `Transformer2DModel` of one block. Its names are the same on both sides.
    fn transformer(&mut self, path: &str, original: &str, channels: usize, config: &UNetConfig) {
        let c = channels;
        let both = |name: &str| (format!("{path}.{name}"), format!("{original}.{name}"));
        let (ours, theirs) = both("norm");
        self.norm(&ours, &theirs, c);
        for name in ["proj_in", "proj_out"] {
            let (ours, theirs) = both(name);
            if config.use_linear_projection {
                self.layer(&ours, &theirs, &[c, c]);
            } else {
                self.conv(&ours, &theirs, c, c, 1);
            }
        }
        for norm in ["norm1", "norm2", "norm3"] {
            let (ours, theirs) = both(&format!("transformer_blocks.0.{norm}"));
            self.norm(&ours, &theirs, c);
        }
        for (attention, context) in [("attn1", c), ("attn2", config.cross_attention_dim)] {
            for (name, from) in [("to_q", c), ("to_k", context), ("to_v", context)] {
                let (ours, theirs) = both(&format!("transformer_blocks.0.{attention}.{name}.weight"));
                self.add(ours, theirs, &[c, from]);
            }
            let (ours, theirs) = both(&format!("transformer_blocks.0.{attention}.to_out.0"));
            self.layer(&ours, &theirs, &[c, c]);
        }
        // GEGLU doubles the four-fold width; its second half gates the first.
        let (ours, theirs) = both("transformer_blocks.0.ff.net.0.proj");
        self.layer(&ours, &theirs, &[8 * c, c]);
        let (ours, theirs) = both("transformer_blocks.0.ff.net.2");
        self.layer(&ours, &theirs, &[c, 4 * c]);
    }
}

/// Tensors of `AutoencoderKL`.
pub fn vae(config: &VaeConfig) -> Vec<Parameter> {
    let mut walk = Walk::new(VAE_PREFIX);
    let channels = &config.block_out_channels;
    let (Some(&first), Some(&last)) = (channels.first(), channels.last()) else {
        return walk.parameters;
    };
    let (blocks, layers, latent) = (channels.len(), config.layers_per_block, config.latent_channels);

    walk.conv("encoder.conv_in", "encoder.conv_in", first, config.in_channels, 3);
    let mut input = first;
    for (i, &out) in channels.iter().enumerate() {
        for j in 0..layers {
            let path = format!("encoder.down_blocks.{i}.resnets.{j}");
            let from = if j == 0 { input } else { out };
            walk.vae_resnet(&path, &format!("encoder.down.{i}.block.{j}"), from, out);
        }
        if i + 1 < blocks {
            let path = format!("encoder.down_blocks.{i}.downsamplers.0.conv");
            walk.conv(&path, &format!("encoder.down.{i}.downsample.conv"), out, out, 3);
        }
        input = out;
    }
    walk.vae_middle("encoder", last);
    walk.norm("encoder.conv_norm_out", "encoder.norm_out", last);
    walk.conv("encoder.conv_out", "encoder.conv_out", 2 * latent, last, 3);
    walk.conv("quant_conv", "quant_conv", 2 * latent, 2 * latent, 1);

    walk.conv("post_quant_conv", "post_quant_conv", latent, latent, 1);
    walk.conv("decoder.conv_in", "decoder.conv_in", last, latent, 3);
    walk.vae_middle("decoder", last);
    let mut input = last;
    for (i, &out) in channels.iter().rev().enumerate() {
        // The original counts its levels from the picture's side.
        let level = blocks - 1 - i;
        for j in 0..=layers {
            let path = format!("decoder.up_blocks.{i}.resnets.{j}");
            let from = if j == 0 { input } else { out };
            walk.vae_resnet(&path, &format!("decoder.up.{level}.block.{j}"), from, out);
        }
        if i + 1 < blocks {
            let path = format!("decoder.up_blocks.{i}.upsamplers.0.conv");
            walk.conv(&path, &format!("decoder.up.{level}.upsample.conv"), out, out, 3);
        }
        input = out;
    }
    walk.norm("decoder.conv_norm_out", "decoder.norm_out", first);
    walk.conv("decoder.conv_out", "decoder.conv_out", config.out_channels, first, 3);
    walk.parameters
}

impl Walk {
    fn vae_resnet(&mut self, path: &str, original: &str, input: usize, out: usize) {
        for (layer, from) in [(1, input), (2, out)] {
            self.norm(&format!("{path}.norm{layer}"), &format!("{original}.norm{layer}"), from);
            let (ours, theirs) = (format!("{path}.conv{layer}"), format!("{original}.conv{layer}"));
            self.conv(&ours, &theirs, out, from, 3);
        }
        if input != out {
            let nin_shortcut = format!("{original}.nin_shortcut");
            self.conv(&format!("{path}.conv_shortcut"), &nin_shortcut, out, input, 1);
        }
    }

    fn vae_middle(&mut self, half: &str, channels: usize) {
        let (path, original) = (format!("{half}.mid_block"), format!("{half}.mid"));
        for j in 0..2 {
            let theirs = format!("{original}.block_{}", j + 1);
            self.vae_resnet(&format!("{path}.resnets.{j}"), &theirs, channels, channels);
        }
        let (path, original) = (format!("{path}.attentions.0"), format!("{original}.attn_1"));
        self.norm(&format!("{path}.group_norm"), &format!("{original}.norm"), channels);
        for (ours, theirs) in VAE_ATTENTION {
            let at = self.parameters.len();
            let (ours, theirs) = (format!("{path}.{ours}"), format!("{original}.{theirs}"));
            self.layer(&ours, &theirs, &[channels, channels]);
            self.parameters[at].is_conv_in_original = true;
        }
    }
}

const VAE_ATTENTION: [(&str, &str); 4] = [("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")];

/// The VAE attention's names before diffusers 0.17, which published `vae/` folders still have, made the present ones.
pub fn present_vae_path(path: &str) -> String {
    let Some((before, rest)) = path.split_once(".mid_block.attentions.0.") else {
        return path.into();
    };
    let renamed = [
        ("query.", "to_q."),
        ("key.", "to_k."),
        ("value.", "to_v."),
        ("proj_attn.", "to_out.0."),
    ]
    .into_iter()
    .find_map(|(old, new)| Some([new, rest.strip_prefix(old)?].concat()));
    let rest = renamed.unwrap_or_else(|| rest.into());
    format!("{before}.mid_block.attentions.0.{rest}")
}

/// Tensors of `CLIPTextModel`. The original of SD 1.x is transformers' own; see `open_clip` for 2.x.
pub fn text_encoder(config: &TextEncoderConfig) -> Vec<Parameter> {
    let mut walk = Walk::new(TEXT_ENCODER_PREFIX);
    let width = config.hidden_size;
    let table = |walk: &mut Walk, name: &str, rows: usize| {
        let path = format!("text_model.embeddings.{name}.weight");
        walk.add(path.clone(), path, &[rows, width]);
    };
    table(&mut walk, "token_embedding", config.vocab_size);
    table(&mut walk, "position_embedding", config.max_position_embeddings);
    for i in 0..config.num_hidden_layers {
        let layer = |name: &str| format!("text_model.encoder.layers.{i}.{name}");
        for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            let path = layer(&format!("self_attn.{projection}"));
            walk.layer(&path, &path, &[width, width]);
        }
        for norm in ["layer_norm1", "layer_norm2"] {
            walk.norm(&layer(norm), &layer(norm), width);
        }
        let inner = config.intermediate_size;
        walk.layer(&layer("mlp.fc1"), &layer("mlp.fc1"), &[inner, width]);
        walk.layer(&layer("mlp.fc2"), &layer("mlp.fc2"), &[width, inner]);
    }
    let last = "text_model.final_layer_norm";
    walk.norm(last, last, width);
    walk.parameters
}
