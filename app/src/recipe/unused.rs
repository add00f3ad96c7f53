//! Settings that a recipe gives and that change nothing.

use super::{LrScheduler, RecipeDraft};

impl RecipeDraft {
    /// What was asked for and will have no effect, in a sentence each.
    pub fn unused(&self) -> Vec<String> {
        let usual = Self::default();
        let samples = &self.samples;
        let draws_samples = !samples.save_sample_prompt.trim().is_empty();
        let cases = [
            (
                self.lr_num_cycles != usual.lr_num_cycles && self.lr_scheduler != LrScheduler::CosineWithRestarts,
                "lr_num_cycles has no effect: only cosine_with_restarts has cycles",
            ),
            (
                self.lr_power != usual.lr_power && self.lr_scheduler != LrScheduler::Polynomial,
                "lr_power has no effect: only polynomial has a power",
            ),
            (
                self.text_encoder_learning_rate.is_some() && !self.train_text_encoder,
                "text_encoder_learning_rate has no effect without train_text_encoder",
            ),
            (
                self.stop_text_encoder_at.is_some() && !self.train_text_encoder,
                "stop_text_encoder_at has no effect without train_text_encoder",
            ),
            (
                self.train_text_encoder
                    && self
                        .stop_text_encoder_at
                        .is_some_and(|stop| stop >= self.max_train_steps),
                "stop_text_encoder_at has no effect: the run ends before that step",
            ),
            (
                draws_samples
                    && !samples.save_sample_negative_prompt.trim().is_empty()
                    && samples.save_guidance_scale <= 1.0,
                "save_sample_negative_prompt has no effect with a save_guidance_scale of 1 or less",
            ),
            (
                self.steps_per_update() > self.max_train_steps,
                "max_train_steps has no effect with strict_tutorial: gradient_accumulation_steps is more, so that no update \
                 is made and the model stays as it was",
            ),
            (
                self.lora_alpha.is_some() && self.lora_rank.is_none(),
                "lora_alpha has no effect without lora_rank: the model's own weights are trained",
            ),
            (
                self.ema_decay != usual.ema_decay && !self.use_ema,
                "ema_decay has no effect without use_ema",
            ),
            (
                self.strict_tutorial && self.adam.max_grad_norm != usual.adam.max_grad_norm,
                "max_grad_norm has no effect with strict_tutorial: the script does not clip",
            ),
            (
                self.strict_tutorial && self.alpha_background != usual.alpha_background,
                "alpha_background has no effect with strict_tutorial: the script lets show what is below",
            ),
        ];
        let told = cases.into_iter().filter(|(given, _)| *given);
        told.map(|(_, sentence)| sentence.to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_nothing_reads_is_told_and_one_that_is_read_is_not() {
        assert!(RecipeDraft::default().unused().is_empty());
        let mut draft = RecipeDraft {
            lr_num_cycles: 3,
            stop_text_encoder_at: Some(5),
            train_text_encoder: false,
            ..RecipeDraft::default()
        };
        let told = draft.unused();
        assert_eq!(told.len(), 2);
        assert!(told[0].starts_with("lr_num_cycles") && told[1].starts_with("stop_text_encoder_at"));
        draft.lr_scheduler = LrScheduler::CosineWithRestarts;
        draft.train_text_encoder = true;
        assert!(draft.unused().is_empty());

        draft.stop_text_encoder_at = Some(draft.max_train_steps);
        assert!(draft.unused()[0].contains("ends before"));
        draft.stop_text_encoder_at = None;
        draft.gradient_accumulation_steps = draft.max_train_steps + 1;
        assert!(draft.unused().is_empty(), "a step is an update");
        draft.strict_tutorial = true;
        assert!(draft.unused()[0].contains("no update is made"));
    }
}
