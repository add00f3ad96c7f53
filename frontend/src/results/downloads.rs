//! The checkpoint files: size, checksum, and where to put them.

use app::api::ModelInfo;
use app::event::{ExportFile, ExportFormat};
use app::job::JobId;
use app::recipe::RecipeDraft;
use app::{command, words};
use leptos::prelude::*;

use crate::net::live::Live;
use crate::ui::CopyButton;

#[component]
pub fn Downloads(live: Live, job: JobId) -> impl IntoView {
    let job = StoredValue::new(job);
    let files = Memo::new(move |_| live.run.with(|run| run.exported.clone()));
    let none = move || files.with(Vec::is_empty);
    view! {
        <h2>"Checkpoint"</h2>
        <Show when=move || !none() fallback=move || view! { <NoFiles live /> }>
            <ul class="downloads">
                <For each=move || files.get() key=|file| (file.name.clone(), file.sha256.clone()) let:file>
                    <Download usual=files.with_untracked(|all| all.first() == Some(&file)) file job=job.get_value() />
                </For>
            </ul>
            <WhereToPutIt live />
        </Show>
    }
}

#[component]
fn NoFiles(live: Live) -> impl IntoView {
    let words = move || match live.state().is_over() {
        true => "No checkpoint was written.",
        false => "The files appear here when training ends or is stopped.",
    };
    view! { <p class="quiet">{words}</p> }
}

fn about(format: ExportFormat) -> (&'static str, &'static str) {
    match format {
        ExportFormat::Safetensors => (
            ".safetensors",
            "The usual choice, a whole model: holds numbers only, nothing that runs.",
        ),
        ExportFormat::Ckpt => (".ckpt", "The same weights for older programs."),
        ExportFormat::Lora => (
            "LoRA",
            "What was learned, alone: a small file, to be used with the base model.",
        ),
    }
}

#[component]
fn Download(file: ExportFile, job: JobId, usual: bool) -> impl IntoView {
    let (ending, why) = about(file.format);
    let href = format!("/api/jobs/{job}/export/{}", file.name);
    let size = words::bytes(file.bytes);
    let sum = file.sha256.clone();
    view! {
        <li class="download">
            <a class="button" class:button-strong=usual href=href download=file.name.clone()>{format!("Download {ending}")}</a>
            <span class="figures">{size}", 16-bit"</span>
            <p class="quiet">{why}</p>
            <p class="checksum">
                <span class="quiet">"sha256 "</span>
                <code title=sum.clone()>{sum.clone()}</code>
                <CopyButton text=Signal::stored(sum) label="Copy the sha256" />
            </p>
        </li>
    }
}

#[component]
fn WhereToPutIt(live: Live) -> impl IntoView {
    let named = move |format| {
        let of_format = |file: &&ExportFile| file.format == format;
        live.run
            .with(|run| run.exported.iter().find(of_format).map(|file| file.name.clone()))
    };
    let words = move || {
        let detail = live.detail.with(|d| d.ready().cloned())?;
        let base = &detail.recipe.pretrained_model_name_or_path;
        // Jobs of earlier versions don't say; what the server lists it knows.
        let listed = || {
            live.server.with(|s| {
                let model = |m: &&ModelInfo| m.pretrained_model_name_or_path == *base;
                s.ready()?.models.iter().find(model).map(|m| m.loads_in_webuis)
            })
        };
        let for_webuis = detail.loads_in_webuis.or_else(listed);
        let prompt = detail.recipe.concepts.first()?.instance_prompt.clone();
        let command = named(ExportFormat::Safetensors).map(|file| command::sample(&file, &prompt));
        let lora = named(ExportFormat::Lora);
        Some(view! {
            <WhereToPutTheModel for_webuis command />
            <p>"Then ask for it in your own words, with the caption inside: " <code>{prompt.clone()}</code></p>
            {lora.map(|file| view! { <WhereToPutTheLora recipe=RecipeDraft::clone(&detail.recipe) file for_webuis prompt /> })}
        })
    };
    view! {
        <h3>"Where to put it"</h3>
        {words}
    }
}

/// Without `for_webuis` it is not known whether they load it.
#[component]
fn WhereToPutTheModel(for_webuis: Option<bool>, command: Option<String>) -> impl IntoView {
    match for_webuis {
        Some(true) => view! {
            <p>"Into " <code>"models/Stable-diffusion/"</code> " of AUTOMATIC1111's WebUI or Forge, or " <code>"models/checkpoints/"</code> " of ComfyUI. Press refresh beside the checkpoint list there."</p>
        }
        .into_any(),
        Some(false) => view! {
            <p>"Only Likeness draws from it: it is smaller than Stable Diffusion, and other programs expect the full shape. For a checkpoint that works everywhere, choose a Stable Diffusion 1.5 model under Subject."</p>
            {command.map(|command| view! { <CommandLine command /> })}
        }
        .into_any(),
        None => view! {
            <p>"If its base model was a Stable Diffusion of the usual size: into " <code>"models/Stable-diffusion/"</code> " of AUTOMATIC1111's WebUI or Forge, or " <code>"models/checkpoints/"</code> " of ComfyUI. From a smaller one only Likeness draws."</p>
            {command.map(|command| view! { <CommandLine command /> })}
        }
        .into_any(),
    }
}

#[component]
fn WhereToPutTheLora(recipe: RecipeDraft, file: String, for_webuis: Option<bool>, prompt: String) -> impl IntoView {
    if for_webuis == Some(true) {
        let name = file.trim_end_matches(".safetensors").to_owned();
        return view! {
            <p>"The LoRA goes into " <code>"models/Lora/"</code> " of AUTOMATIC1111's WebUI or Forge, or " <code>"models/loras/"</code> " of ComfyUI. Choose the base model there, and write its name beside the caption: " <code>{format!("{prompt} <lora:{name}:1>")}</code></p>
        }
        .into_any();
    }
    view! {
        <p>"The LoRA is drawn with over its base model:"</p>
        <CommandLine command=command::sample_with_lora(&recipe, &file, &prompt) />
    }
    .into_any()
}

#[component]
fn CommandLine(command: String) -> impl IntoView {
    view! {
        <p class="command">
            <code>{command.clone()}</code>
            <CopyButton text=Signal::stored(command) label="Copy the command" />
        </p>
    }
}
