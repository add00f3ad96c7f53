//! The checkpoint files: size, checksum, and where to put them.

use app::event::{ExportFile, ExportFormat};
use app::job::JobId;
use app::words;
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
                    <Download file job=job.get_value() />
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
            "What was learned, alone: a few megabytes, to be used with the base model.",
        ),
    }
}

#[component]
fn Download(file: ExportFile, job: JobId) -> impl IntoView {
    let (ending, why) = about(file.format);
    let href = format!("/api/jobs/{job}/export/{}", file.name);
    let size = words::bytes(file.bytes);
    let sum = file.sha256.clone();
    view! {
        <li class="download">
            <a class="button button-strong" href=href download=file.name.clone()>{format!("Download {ending}")}</a>
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
    // What the server says of the base model; a path it does not list is a full-size model.
    let base = move || {
        live.detail
            .with(|d| d.ready().map(|d| d.recipe.pretrained_model_name_or_path.clone()))
    };
    let for_webuis = move || {
        let base = base()?;
        let listed = live.server.with(|s| {
            let models = &s.ready()?.models;
            models
                .iter()
                .find(|m| m.pretrained_model_name_or_path == base)
                .map(|m| m.loads_in_webuis)
        });
        Some(listed.unwrap_or(base != app::recipe::STARTER))
    };
    let prompt = move || {
        live.detail
            .with(|d| Some(d.ready()?.recipe.concepts.first()?.instance_prompt.clone()))
    };
    let lora = move || {
        live.run.with(|run| {
            let file = run.exported.iter().find(|file| file.format == ExportFormat::Lora)?;
            file.name.strip_suffix(".safetensors").map(str::to_owned)
        })
    };
    view! {
        <h3>"Where to put it"</h3>
        {move || match for_webuis() {
            Some(true) => view! {
                <p>"Into " <code>"models/Stable-diffusion/"</code> " of AUTOMATIC1111's WebUI or Forge, or " <code>"models/checkpoints/"</code> " of ComfyUI. Press refresh beside the checkpoint list there."</p>
            }.into_any(),
            Some(false) => view! {
                <p>"This one was trained from the starter model. Only Likeness draws from it: other programs expect the full Stable Diffusion shape. For a checkpoint that works everywhere, choose a Stable Diffusion 1.5 model under Subject."</p>
            }.into_any(),
            None => ().into_any(),
        }}
        <p>"Then ask for it in your own words, with the caption inside: " <code>{prompt}</code></p>
        {move || lora().map(|name| view! { <WhereToPutTheLora name for_webuis=for_webuis() == Some(true) prompt=prompt() /> })}
    }
}

/// `name` is that of the file without its ending.
#[component]
fn WhereToPutTheLora(name: String, for_webuis: bool, prompt: Option<String>) -> impl IntoView {
    let caption = prompt.unwrap_or_default();
    match for_webuis {
        true => view! {
            <p>"The LoRA goes into " <code>"models/Lora/"</code> " of AUTOMATIC1111's WebUI or Forge, or " <code>"models/loras/"</code> " of ComfyUI. Choose the base model there, and write its name beside the caption: " <code>{format!("{caption} <lora:{name}:1>")}</code></p>
        }
        .into_any(),
        false => view! {
            <p>"The LoRA is drawn with by " <code>{format!("likeness sample --model starter --lora {name}.safetensors --prompt \"{caption}\"")}</code></p>
        }
        .into_any(),
    }
}
