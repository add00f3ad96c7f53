//! The flags of the tutorial's `train_dreambooth.py`, under their own names and with its defaults.

use std::path::PathBuf;

use serde::Serialize;

/// `None` is a flag that was not given: the script's default, or the preset's or the starter's, fills it.
#[derive(clap::Args, Clone, Debug, Serialize)]
#[command(rename_all = "snake_case")]
pub struct TrainArgs {
    /// `starter`, a diffusers folder, or a .safetensors or .ckpt file
    #[arg(long, help_heading = "Model")]
    pub pretrained_model_name_or_path: String,
    /// A VAE in place of the base model's
    #[arg(long, help_heading = "Model")]
    pub pretrained_vae_name_or_path: Option<String>,
    /// Revision of a Hub model
    #[arg(long, help_heading = "Model")]
    pub revision: Option<String>,
    /// Another tokenizer
    #[arg(long, help_heading = "Model")]
    pub tokenizer_name: Option<String>,

    /// Folder of photos
    #[arg(long, help_heading = "Subject")]
    pub instance_data_dir: Option<PathBuf>,
    /// Folder of class images; missing ones are drawn
    #[arg(long, help_heading = "Subject")]
    pub class_data_dir: Option<PathBuf>,
    /// Such as "photo of zwx dog"
    #[arg(long, help_heading = "Subject")]
    pub instance_prompt: Option<String>,
    /// Such as "photo of a dog"
    #[arg(long, help_heading = "Subject")]
    pub class_prompt: Option<String>,
    /// JSON file with a list of the four above, in place of them
    #[arg(long, help_heading = "Subject")]
    pub concepts_list: Option<PathBuf>,
    /// Each photo's prompt is beside it, in NAME.EXT.txt
    #[arg(long, help_heading = "Subject")]
    pub read_prompts_from_txts: bool,
    /// Learn from pictures of the class too, so that it is not forgotten
    #[arg(long, help_heading = "Subject")]
    pub with_prior_preservation: bool,
    /// [script: 1.0]
    #[arg(long, help_heading = "Subject")]
    pub prior_loss_weight: Option<f64>,
    /// Per concept [script: 100]
    #[arg(long, help_heading = "Subject")]
    pub num_class_images: Option<u32>,

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
    #[arg(long, help_heading = "Photos")]
    pub not_cache_latents: bool,

    /// Fill flags that are not given: person, animal, object or style
    #[arg(long, value_enum, help_heading = "Training")]
    pub preset: Option<Preset>,
    /// Optimizer updates; without it, num_train_epochs counts. With strict_tutorial micro-batches
    #[arg(long, help_heading = "Training")]
    pub max_train_steps: Option<u32>,
    /// [script: 1]
    #[arg(long, help_heading = "Training")]
    pub num_train_epochs: Option<u32>,
    /// [script: 4]
    #[arg(long, help_heading = "Training")]
    pub train_batch_size: Option<u32>,
    /// [script: 1]
    #[arg(long, help_heading = "Training")]
    pub gradient_accumulation_steps: Option<u32>,
    #[arg(long, help_heading = "Training")]
    pub train_text_encoder: bool,
    /// [script: 5e-6]
    #[arg(long, help_heading = "Training")]
    pub learning_rate: Option<f64>,
    /// Multiply the learning rate by batch size and accumulation steps
    #[arg(long, help_heading = "Training")]
    pub scale_lr: bool,
    /// linear, cosine, cosine_with_restarts, polynomial, constant or constant_with_warmup [script: constant]
    #[arg(long, help_heading = "Training")]
    pub lr_scheduler: Option<String>,
    /// In optimizer updates [script: 500]
    #[arg(long, help_heading = "Training")]
    pub lr_warmup_steps: Option<u32>,
    #[arg(long, default_value_t = 0.9, help_heading = "Training")]
    pub adam_beta1: f64,
    #[arg(long, default_value_t = 0.999, help_heading = "Training")]
    pub adam_beta2: f64,
    #[arg(long, default_value_t = 1e-2, help_heading = "Training")]
    pub adam_weight_decay: f64,
    #[arg(long, default_value_t = 1e-8, help_heading = "Training")]
    pub adam_epsilon: f64,
    /// The script has this flag and does not use it; here gradients are clipped
    #[arg(long, default_value_t = 1.0, help_heading = "Training")]
    pub max_grad_norm: f64,
    /// Without it 1337, so that a run can be repeated
    #[arg(long, help_heading = "Training")]
    pub seed: Option<u64>,
    /// Keep the script's faults, which docs/strict-tutorial.md lists: gradients are not clipped, and more
    #[arg(long, help_heading = "Training")]
    pub strict_tutorial: bool,

    /// no, fp16 or bf16
    #[arg(long, help_heading = "Speed and memory")]
    pub mixed_precision: Option<String>,
    #[arg(long, help_heading = "Speed and memory")]
    pub gradient_checkpointing: bool,
    #[arg(long, help_heading = "Speed and memory")]
    pub use_8bit_adam: bool,
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
    #[arg(long, default_value_t = 10_000, help_heading = "Results")]
    pub save_interval: u32,
    /// None is left before this step
    #[arg(long, default_value_t = 0, help_heading = "Results")]
    pub save_min_steps: u32,
    /// Samples are drawn with this at every save
    #[arg(long, visible_alias = "validation_prompt", help_heading = "Results")]
    pub save_sample_prompt: Option<String>,
    #[arg(long, help_heading = "Results")]
    pub save_sample_negative_prompt: Option<String>,
    /// [script: 4]
    #[arg(long, visible_alias = "num_validation_images", help_heading = "Results")]
    pub n_save_sample: Option<u32>,
    #[arg(long, default_value_t = 7.5, help_heading = "Results")]
    pub save_guidance_scale: f64,
    /// Sampling steps, also of class images [script: 20]
    #[arg(long, help_heading = "Results")]
    pub save_infer_steps: Option<u32>,
    /// The training state is saved after every so many steps; a run that was cut off goes on from there
    #[arg(long, default_value_t = 100, help_heading = "Results")]
    pub checkpointing_steps: u32,

    // From today's diffusers and the field.
    /// Go on from a saved state, also of another recipe: `latest`, a file, or the folder of a run
    #[arg(long, help_heading = "Results")]
    pub resume_from_checkpoint: Option<String>,
    /// Keep so many of the last saved states, after the end too
    #[arg(long, help_heading = "Results")]
    pub checkpoints_total_limit: Option<u32>,
    /// Samples also after every so many steps, without a model
    #[arg(long, help_heading = "Results")]
    pub validation_steps: Option<u32>,
    /// Waves of cosine_with_restarts
    #[arg(long, default_value_t = 1, help_heading = "Training")]
    pub lr_num_cycles: u32,
    /// Exponent of polynomial
    #[arg(long, default_value_t = 1.0, help_heading = "Training")]
    pub lr_power: f64,
    /// A rate of its own for the text encoder
    #[arg(long, help_heading = "Training")]
    pub text_encoder_learning_rate: Option<f64>,
    /// After so many steps the text encoder stays as it is
    #[arg(long, help_heading = "Training")]
    pub stop_text_encoder_at: Option<u32>,
    /// Min-SNR weighting; 5 is usual
    #[arg(long, help_heading = "Training")]
    pub snr_gamma: Option<f64>,
    /// Noise that shifts whole channels; alone it means 0.1
    #[arg(long, num_args = 0..=1, default_missing_value = "0.1", help_heading = "Training")]
    pub offset_noise: Option<f64>,
    /// Samples and result are of a running average of the weights
    #[arg(long, help_heading = "Training")]
    pub use_ema: bool,
    /// How long that average remembers, at most
    #[arg(long, default_value_t = 0.9999, help_heading = "Training")]
    pub ema_decay: f64,

    #[arg(long, hide = true)]
    pub logging_dir: Option<String>,
    #[arg(long, hide = true)]
    pub log_interval: Option<u32>,
    #[arg(long, hide = true)]
    pub push_to_hub: bool,
    // A secret: it must not reach args.json.
    #[serde(skip)]
    #[arg(long, hide = true)]
    pub hub_token: Option<String>,
    #[arg(long, hide = true)]
    pub hub_model_id: Option<String>,
    #[arg(long, hide = true, allow_hyphen_values = true)]
    pub local_rank: Option<i32>,
}

/// A kind of subject, with settings that suit it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    Person,
    Animal,
    Object,
    Style,
}
