//! `inspect`: a base model as the page shows it. Of a model of the Hub only the small files are downloaded, and of one on
//! this disk no weights are read.

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
}

pub fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    match describe(args) {
        Ok(info) => println!("{}", serde_json::to_string(&info)?),
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
        let description = hub::describe(&args.model, revision, &mut watch)?;
        let configs = formats::load_configs(&description.folder)?;
        return Ok(defaults::describe_remote(&args.model, revision, &configs, &description));
    }
    let configs = base_model::configs_of(&args.model, &mut watch)?;
    Ok(defaults::describe(&args.model, &configs))
}
