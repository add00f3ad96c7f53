//! Names people recognise: of a job, of its downloads.

use std::hash::{BuildHasher, Hasher};

use app::event::{ExportFile, ExportFormat};
use app::job::{JobId, NotAJobId};
use app::recipe::RecipeDraft;

/// No letters or digits that look alike.
const ALPHABET: &[u8] = b"23456789abcdefghjkmnpqrstuvwxyz";

/// What a person knows the job by.
pub fn title(recipe: &RecipeDraft) -> String {
    recipe
        .concepts
        .first()
        .map_or_else(String::new, |c| c.instance_prompt.clone())
}

/// Such as `dog-x7k2`: the class noun, where there is one, and four random characters.
///
/// # Errors
/// Never, as the slug holds nothing else than a job name may.
pub fn job_id(recipe: &RecipeDraft) -> Result<JobId, NotAJobId> {
    let noun = slug(title(recipe).split_whitespace().last().unwrap_or_default(), 30);
    // The standard library's hasher takes its keys from the system's randomness.
    let mut random = std::hash::RandomState::new().build_hasher().finish();
    let mut tail = String::new();
    for _ in 0..4 {
        let count = ALPHABET.len() as u64;
        tail.push(char::from(ALPHABET[(random % count) as usize]));
        random /= count;
    }
    JobId::parse(&format!("{}-{tail}", if noun.is_empty() { "job" } else { &noun }))
}

/// Such as `zwx-dog-800.safetensors`: the subject, the step, and the extension of the file on disk. A LoRA says that it
/// is one, or it would take the whole model's name.
pub fn download(recipe: &RecipeDraft, step: u32, file: &ExportFile) -> String {
    let title = title(recipe);
    let subject = ["a photo of ", "photo of "]
        .iter()
        .find_map(|lead| title.strip_prefix(lead));
    let subject = slug(subject.unwrap_or(&title), 60);
    let extension = file.name.rsplit_once('.').map_or("bin", |(_, extension)| extension);
    let subject = if subject.is_empty() { "likeness" } else { &subject };
    let lora = if file.format == ExportFormat::Lora { "-lora" } else { "" };
    format!("{subject}-{step}{lora}.{extension}")
}

/// Lower-case ASCII letters, digits and single hyphens.
fn slug(text: &str, max: usize) -> String {
    let mut slug = String::new();
    for c in text.chars().map(|c| c.to_ascii_lowercase()) {
        if c.is_ascii_alphanumeric() {
            slug.push(c);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    slug.truncate(max);
    slug.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use app::recipe::Concept;

    fn recipe(instance_prompt: &str) -> RecipeDraft {
        RecipeDraft {
            concepts: vec![Concept {
                instance_prompt: instance_prompt.into(),
                ..Concept::default()
            }],
            ..RecipeDraft::default()
        }
    }

    #[test]
    fn jobs_are_named_after_their_subject() {
        let id = job_id(&recipe("photo of zwx Dog")).expect("good");
        assert!(id.as_str().starts_with("dog-"), "{id}");
        assert_eq!(id.as_str().len(), 8);
        assert!(job_id(&recipe("写真")).expect("good").as_str().starts_with("job-"));
        assert!(job_id(&recipe(&"x".repeat(99))).is_ok());
    }

    #[test]
    fn downloads_are_named_after_subject_and_step() {
        let file = |format| ExportFile {
            name: "model.safetensors".into(),
            format,
            bytes: 1,
            sha256: String::new(),
        };
        let name = |prompt| download(&recipe(prompt), 800, &file(ExportFormat::Safetensors));
        assert_eq!(name("photo of zwx dog"), "zwx-dog-800.safetensors");
        assert_eq!(name("Portrait: zwx \"man\"\r\n"), "portrait-zwx-man-800.safetensors");
        assert_eq!(name("写真"), "likeness-800.safetensors");
        let lora = download(&recipe("photo of zwx dog"), 800, &file(ExportFormat::Lora));
        assert_eq!(lora, "zwx-dog-800-lora.safetensors");
    }
}
