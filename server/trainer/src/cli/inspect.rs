//! `inspect`: a base model, or a VAE, as the page shows it. Of what the Hub has only the small files are downloaded, and of a
//! model on this disk no weights are read.

use std::path::Path;
use std::process::ExitCode;

use trainer::base_model::{self, LogWatch};
use trainer::formats::ModelError;
use trainer::{defaults, formats, hub};

#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct InspectArgs {
    /// `starter`, a diffusers folder, a .safetensors or .ckpt file, or a Hub id
    #[arg(long)]
    model: String,
    /// Branch, tag or commit of a Hub id
    #[arg(long)]
    revision: Option<String>,
    /// What to look for there: a whole model, or the VAE alone
    #[arg(long, value_enum, default_value = "model")]
    part: Part,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Part {
    Model,
    Vae,
}

pub fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let described = match args.part {
        Part::Model => describe(args).map(|model| serde_json::to_string(&model)),
        Part::Vae => describe_vae(args).map(|vae| serde_json::to_string(&vae)),
    };
    match described {
        Ok(info) => println!("{}", info?),
        Err(error) => {
            // For programs, which tell a missing token from a missing model by it.
            if let ModelError::Hub(refusal) = &error {
                let problem = serde_json::json!({ "code": refusal.code(), "message": refusal.to_string() });
                println!("{problem}");
            }
            return Err(error.into());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(args: &InspectArgs) -> Result<app::api::ModelInfo, ModelError> {
    let mut watch = LogWatch::default();
    if base_model::is_on_hub(&args.model) {
        let revision = args.revision.as_deref();
        let description = hub::describe(&args.model, revision, hub::Part::Model, &mut watch)?;
        let configs = formats::load_configs(&description.folder)?;
        return Ok(defaults::describe_remote(&args.model, revision, &configs, &description));
    }
    let configs = base_model::configs_of(&args.model, &mut watch)?;
    Ok(defaults::describe(&args.model, &configs))
}

fn describe_vae(args: &InspectArgs) -> Result<app::api::VaeInfo, ModelError> {
    if base_model::is_on_hub(&args.model) {
        let mut watch = LogWatch::default();
        let description = hub::describe(&args.model, args.revision.as_deref(), hub::Part::Vae, &mut watch)?;
        let config = formats::load_vae_config(&description.folder)?;
        return Ok(defaults::describe_vae(&args.model, &config, Some(&description)));
    }
    // A VAE is read; of a whole model in a file gigabytes stay unread.
    let config = match Path::new(&args.model).is_dir() {
        true => formats::load_vae(&args.model)?.config,
        false => formats::outline(&args.model)?.configs.vae,
    };
    Ok(defaults::describe_vae(&args.model, &config, None))
}
