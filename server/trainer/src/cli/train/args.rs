//! The flags of the tutorial's `train_dreambooth.py`, under their own names and with its defaults, and ours.

use std::path::PathBuf;

use app::background::AlphaBackground;
use app::recipe::{LrScheduler, MixedPrecision};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::presets::Presets;

/// `None` is a flag that was not given: the script's default, or the preset's or the starter's, fills it.
#[derive(clap::Args, Clone, Debug, Serialize)]
#[command(rename_all = "snake_case", args_override_self = true)]
pub struct TrainArgs {
    /// Take the flags of an earlier run from its args.json; what is typed beside it wins
    // Its flags are put into the command line before that is parsed (config_file.rs).
    #[serde(skip)]
    #[arg(long, visible_alias = "args", value_name = "FILE", help_heading = "Model")]
    pub config: Option<PathBuf>,
    /// `starter`, a diffusers folder, a .safetensors or .ckpt file, or a Hub id
    #[arg(long, help_heading = "Model")]
    pub pretrained_model_name_or_path: String,
    /// A VAE in place of the base model's
    #[arg(long, help_heading = "Model")]
    pub pretrained_vae_name_or_path: Option<String>,
    /// Branch, tag or commit of a Hub id; a missing `fp16` means 16-bit files of `main`
    #[arg(long, help_heading = "Model")]
    pub revision: Option<String>,
    /// Another tokenizer: a folder with vocab.json and merges.txt, or a Hub id
    #[arg(long, help_heading = "Model")]
    pub tokenizer_name: Option<String>,

    /// Folder of photos
    #[arg(long, help_heading = "Subject")]
    pub instance_data_dir: Option<PathBuf>,
    /// Such as "photo of zwx dog"
    #[arg(long, help_heading = "Subject")]
    pub instance_prompt: Option<String>,
    /// Folder of class images; missing ones are drawn
    #[arg(long, help_heading = "Subject")]
    pub class_data_dir: Option<PathBuf>,
    /// Such as "photo of a dog"
    #[arg(long, help_heading = "Subject")]
    pub class_prompt: Option<String>,
    /// Several subjects: a JSON file with a list of the four above, in place of them (or the list itself)
    #[arg(long, help_heading = "Subject")]
    pub concepts_list: Option<String>,
    /// Each photo's prompt is beside it, in NAME.EXT.txt or NAME.txt
    #[arg(long, help_heading = "Subject")]
    pub read_prompts_from_txts: bool,
    /// Learn from pictures of the class too, so that it is not forgotten [script: off]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Subject")]
    pub with_prior_preservation: Option<bool>,
    /// How much class images count beside photos [script: 1.0]
    #[arg(long, help_heading = "Subject")]
    pub prior_loss_weight: Option<f64>,
    /// Class images of each subject [script: 100]
    #[arg(long, help_heading = "Subject")]
    pub num_class_images: Option<u32>,
    /// How strictly class images follow their prompt; the script has 7.5 in its code
    #[arg(long, help_heading = "Subject")]
    pub class_guidance_scale: Option<f64>,

    /// Side of the training images in pixels [script: 512; starter: its own]
    #[arg(long, help_heading = "Photos")]
    pub resolution: Option<u32>,
    /// Cut the middle out instead of a random square
    #[arg(long, help_heading = "Photos")]
    pub center_crop: bool,
    /// Mirror half of the photos
    #[arg(long, help_heading = "Photos")]
    pub hflip: bool,
    /// Pad prompts to 77 tokens; always, unless strict_tutorial is given
    #[arg(long, help_heading = "Photos")]
    pub pad_tokens: bool,
    /// Of twelve photos or more, train on all but one, and measure with each round of samples how far it learns by heart
    #[arg(long, help_heading = "Photos")]
    pub holdout_photo: bool,
    /// Crop, mirror and encode photos anew for every step instead of once; slower
    #[arg(long, help_heading = "Photos")]
    pub not_cache_latents: bool,
    /// What transparent parts are laid on: white, black, gray, #rrggbb, or drop to let show what is below
    #[arg(long, default_value = "white", help_heading = "Photos")]
    pub alpha_background: AlphaBackground,

    /// Fill flags that are not given with what suits a kind of subject (person, animal, object, style), a size of card (6gb, 8gb, 12gb, 16gb, 24gb), or both: person,12gb
    #[arg(long, help_heading = "Training")]
    pub preset: Option<Presets>,
    /// Optimizer updates; without it, num_train_epochs counts. With strict_tutorial micro-batches
    #[arg(long, help_heading = "Training")]
    pub max_train_steps: Option<u32>,
    /// Rounds through the data, when max_train_steps is not given [script: 1]
    #[arg(long, help_heading = "Training")]
    pub num_train_epochs: Option<u32>,
    /// Photos in a batch; with prior preservation as many class images beside them [script: 4]
    #[arg(long, help_heading = "Training")]
    pub train_batch_size: Option<u32>,
    /// Batches added up for one update [script: 1]
    #[arg(long, help_heading = "Training")]
    pub gradient_accumulation_steps: Option<u32>,
    /// Train the text encoder too [script: off; starter: on]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Training")]
    pub train_text_encoder: Option<bool>,
    /// A rate of its own for the text encoder
    #[arg(long, help_heading = "Training")]
    pub text_encoder_learning_rate: Option<f64>,
    /// After so many steps the text encoder stays as it is
    #[arg(long, help_heading = "Training")]
    pub stop_text_encoder_at: Option<u32>,
    /// Train low-rank additions of this rank to the attention (LoRA) in place of the weights; 4 to 32 are usual
    #[arg(long, help_heading = "Training")]
    pub lora_rank: Option<u32>,
    /// A LoRA counts alpha / rank times; by default once
    #[arg(long, help_heading = "Training")]
    pub lora_alpha: Option<f64>,
    /// How far a step moves the model [script: 5e-6; with lora_rank: 1e-4]
    #[arg(long, help_heading = "Training")]
    pub learning_rate: Option<f64>,
    /// Multiply the learning rate by batch size and accumulation steps
    #[arg(long, help_heading = "Training")]
    pub scale_lr: bool,
    /// linear, cosine, cosine_with_restarts, polynomial, constant or constant_with_warmup [script: constant]
    #[arg(long, value_parser = word::<LrScheduler>, help_heading = "Training")]
    pub lr_scheduler: Option<LrScheduler>,
    /// In optimizer updates [script: 500]
    #[arg(long, help_heading = "Training")]
    pub lr_warmup_steps: Option<u32>,
    /// Waves of cosine_with_restarts
    #[arg(long, default_value_t = 1, help_heading = "Training")]
    pub lr_num_cycles: u32,
    /// Exponent of polynomial
    #[arg(long, default_value_t = 1.0, help_heading = "Training")]
    pub lr_power: f64,
    /// Min-SNR weighting: nearly clean pictures count less; 5 is usual
    #[arg(long, help_heading = "Training")]
    pub snr_gamma: Option<f64>,
    /// Noise that shifts whole channels, so that brightness is learned too; alone it means 0.1
    #[arg(long, num_args = 0..=1, default_missing_value = "0.1", help_heading = "Training")]
    pub offset_noise: Option<f64>,
    /// How long the optimizer remembers directions
    #[arg(long, default_value_t = 0.9, help_heading = "Training")]
    pub adam_beta1: f64,
    /// How long the optimizer remembers sizes
    #[arg(long, default_value_t = 0.999, help_heading = "Training")]
    pub adam_beta2: f64,
    /// Pull of every weight towards zero
    #[arg(long, default_value_t = 1e-2, help_heading = "Training")]
    pub adam_weight_decay: f64,
    /// Keeps the optimizer from dividing by zero
    #[arg(long, default_value_t = 1e-8, help_heading = "Training")]
    pub adam_epsilon: f64,
    /// Gradients are clipped to this; the script has the flag and does not use it
    #[arg(long, default_value_t = 1.0, help_heading = "Training")]
    pub max_grad_norm: f64,
    /// Samples and result are of a running average of the weights
    #[arg(long, help_heading = "Training")]
    pub use_ema: bool,
    /// How long that average remembers, at most
    #[arg(long, default_value_t = 0.9999, help_heading = "Training")]
    pub ema_decay: f64,
    /// Without it 1337, so that a run can be repeated
    #[arg(long, help_heading = "Training")]
    pub seed: Option<u64>,
    /// Keep the script's faults, which docs/strict-tutorial.md lists: gradients are not clipped, and more
    #[arg(long, help_heading = "Training")]
    pub strict_tutorial: bool,

    /// no (32 bits), fp16, bf16, or auto: 16 bits on a GPU and, with --strict_tutorial, 32; a CPU computes in 32 whatever this says [default: auto] [script: no]
    #[arg(long, value_parser = word::<MixedPrecision>, help_heading = "Speed and memory")]
    pub mixed_precision: Option<MixedPrecision>,
    /// Compute some of each step twice to need less memory
    #[arg(long, help_heading = "Speed and memory")]
    pub gradient_checkpointing: bool,
    /// Keep the optimizer's memory in 8 bits
    #[arg(long, help_heading = "Speed and memory")]
    pub use_8bit_adam: bool,
    /// Train in 6 GiB: weights in bf16 alone and rounded by chance, 8-bit moments, each weight changed within the backward and
    /// its gradient clipped by its own norm, not by that of all; with gradient checkpointing
    #[arg(long, help_heading = "Speed and memory")]
    pub low_memory: bool,
    /// Train as if the device had only so many GiB of memory; a run that needs more is refused before it starts
    #[arg(long, value_name = "GIB", help_heading = "Speed and memory")]
    pub memory_limit: Option<f64>,
    /// Class images and samples drawn in one batch [script: 4]
    #[arg(long, help_heading = "Speed and memory")]
    pub sample_batch_size: Option<u32>,
    /// cpu or cuda; by default what this build is for
    #[arg(long, help_heading = "Speed and memory")]
    pub device: Option<String>,

    /// Folder for the models, one below it a save
    #[arg(long, default_value = "text-inversion-model", help_heading = "Results")]
    pub output_dir: PathBuf,
    /// A model is left after every so many steps, and after the last
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Results")]
    pub save_interval: u32,
    /// None is left before this step
    #[arg(long, default_value_t = 0, help_heading = "Results")]
    pub save_min_steps: u32,
    /// Write the models' weights in 16 bits, half the size; the script writes 32
    #[arg(long, help_heading = "Results")]
    pub save_fp16: bool,
    /// Keep only so many of the last models
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Results")]
    pub keep_last: Option<u32>,
    /// Samples are drawn with this at every save
    #[arg(long, visible_alias = "validation_prompt", help_heading = "Results")]
    pub save_sample_prompt: Option<String>,
    /// What samples should not show
    #[arg(long, help_heading = "Results")]
    pub save_sample_negative_prompt: Option<String>,
    /// Samples at every save [script: 4]
    #[arg(long, visible_alias = "num_validation_images", help_heading = "Results")]
    pub n_save_sample: Option<u32>,
    /// Samples also after every so many steps, without a model
    #[arg(long, help_heading = "Results")]
    pub validation_steps: Option<u32>,
    /// How strictly samples follow their prompt [script: 7.5]
    #[arg(long, help_heading = "Results")]
    pub save_guidance_scale: Option<f64>,
    /// Sampling steps, also of class images [script: 20]
    #[arg(long, help_heading = "Results")]
    pub save_infer_steps: Option<u32>,
    /// Steps between lines about the progress, where it is not a terminal
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Results")]
    pub log_interval: u32,

    /// The training state is saved after every so many steps; a run that was cut off goes on from there. When this is not given, after every 100 or, of a large model, less often
    #[arg(long, help_heading = "Going on")]
    pub checkpointing_steps: Option<u32>,
    /// Keep so many of the last saved states, after the end too; each that is due is saved then
    #[arg(long, help_heading = "Going on")]
    pub checkpoints_total_limit: Option<u32>,
    /// Go on from a saved state, also of another recipe: `latest`, a file, or the folder of a run
    #[arg(long, help_heading = "Going on")]
    pub resume_from_checkpoint: Option<String>,

    /// No TensorBoard files are written; every step is in .likeness/events.jsonl [script: logs]
    #[arg(long, help_heading = "Without effect")]
    pub logging_dir: Option<String>,
    /// Samples are drawn by steps: --validation_steps
    #[arg(long, help_heading = "Without effect")]
    pub validation_epochs: Option<u32>,
    /// Samples are drawn with DDIM, as the script draws them
    #[arg(long, help_heading = "Without effect")]
    pub validation_scheduler: Option<String>,
    /// Samples start from noise and not from pictures
    #[serde(skip)]
    #[arg(long, num_args = 1.., help_heading = "Without effect")]
    pub validation_images: Vec<PathBuf>,
    /// The script does not use it either
    #[arg(long, help_heading = "Without effect")]
    pub push_to_hub: bool,
    // A secret: it must not reach args.json.
    #[serde(skip)]
    /// The script does not use it either
    #[arg(long, help_heading = "Without effect")]
    pub hub_token: Option<String>,
    /// The script does not use it either
    #[arg(long, help_heading = "Without effect")]
    pub hub_model_id: Option<String>,
    /// One process trains [script: -1]
    #[arg(long, help_heading = "Without effect", allow_hyphen_values = true)]
    pub local_rank: Option<i32>,
}

/// One of an enum's words, as in recipe.json.
fn word<T: DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    serde_json::from_value(text.into())
}
