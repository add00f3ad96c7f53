//! The command that draws with what a job made, to be pasted into a shell.

use crate::recipe::RecipeDraft;

/// With the whole model in `file`.
pub fn sample(file: &str, prompt: &str) -> String {
    let (file, prompt) = (quoted(file), quoted(prompt));
    format!("likeness sample --model {file} --prompt {prompt}")
}

/// With the LoRA in `file`, over the base model that it was trained on.
pub fn sample_with_lora(recipe: &RecipeDraft, file: &str, prompt: &str) -> String {
    let (base, file, prompt) = (
        quoted(&recipe.pretrained_model_name_or_path),
        quoted(file),
        quoted(prompt),
    );
    let revision = recipe.revision.as_deref().map(quoted);
    let revision = revision.map_or_else(String::new, |name| format!(" --revision {name}"));
    format!("likeness sample --model {base}{revision} --lora {file} --prompt {prompt}")
}

/// As one word of a POSIX shell, with quotes only where it needs them.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_names_the_model_that_was_trained_and_survives_a_shell() {
        let mut recipe = RecipeDraft {
            pretrained_model_name_or_path: "/models/my dog's.safetensors".into(),
            ..RecipeDraft::default()
        };
        assert_eq!(
            sample_with_lora(&recipe, "zwx-dog-40-lora.safetensors", "photo of zwx dog"),
            r"likeness sample --model '/models/my dog'\''s.safetensors' --lora zwx-dog-40-lora.safetensors --prompt 'photo of zwx dog'"
        );
        recipe.pretrained_model_name_or_path = "owner/tiny".into();
        recipe.revision = Some("v2".into());
        assert_eq!(
            sample_with_lora(&recipe, "a.safetensors", "zwx"),
            "likeness sample --model owner/tiny --revision v2 --lora a.safetensors --prompt zwx"
        );
        assert_eq!(
            sample("a.ckpt", "$HOME"),
            "likeness sample --model a.ckpt --prompt '$HOME'"
        );
    }
}
