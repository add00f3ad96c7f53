//! Rounds of samples while training: always from the same seeds, so that rounds compare.

use std::ops::ControlFlow;

use app::event::EventKind;

use super::Run;
use super::error::TrainError;
use super::learner::Learner;
use crate::pipeline::{self, SampleRequest};
use crate::schedulers::SamplerKind;

/// Draws the round of `step`; with `keep` set, images that are on disk already are only told again. `Break` when
/// asked to stop.
///
/// # Errors
/// When drawing or writing fails.
pub fn round(
    run: &Run,
    learner: &mut Learner,
    step: u32,
    side_px: u32,
    keep: bool,
) -> Result<ControlFlow<()>, TrainError> {
    let plan = &run.recipe.samples;
    let request = SampleRequest {
        prompt: plan.save_sample_prompt.clone(),
        negative_prompt: plan.save_sample_negative_prompt.clone(),
        guidance_scale: plan.save_guidance_scale,
        num_inference_steps: plan.save_infer_steps as usize,
        sampler: SamplerKind::Ddim,
        karras: false,
        width_px: side_px as usize,
        height_px: side_px as usize,
        clip_skip: 1,
    };
    let file = |index: u32| format!("samples/{step}/{index}.png");
    let preview = |index: u32| format!("samples/{step}/{index}.preview.jpg");
    let seed = |index: u32| run.recipe.seed.wrapping_add(u64::from(index));
    let is_there = |index: u32| {
        let there = |name: String| run.folder.join(name).is_file();
        keep && there(file(index)) && there(preview(index))
    };
    let tell = |index: u32| {
        run.emit(EventKind::Sample {
            step,
            index,
            count: plan.n_save_sample,
            prompt: request.prompt.clone(),
            seed: seed(index),
            width: side_px,
            height: side_px,
            file: file(index),
            preview: preview(index),
        })
    };
    let (there, missing): (Vec<u32>, Vec<u32>) = (0..plan.n_save_sample).partition(|index| is_there(*index));
    there.into_iter().try_for_each(tell)?;
    for group in missing.chunks(run.recipe.sample_batch_size as usize) {
        let seeds: Vec<u64> = group.iter().map(|index| seed(*index)).collect();
        let mut progress = |_done: usize, _of: usize| run.go_on();
        let Some(pictures) = learner.pipeline().draw(&request, &seeds, &mut progress)? else {
            return Ok(ControlFlow::Break(()));
        };
        for (index, picture) in group.iter().zip(pictures) {
            if !picture.finite {
                run.warn(
                    "black_sample",
                    format!("sample {index} after step {step} is black: the model gave no numbers"),
                )?;
            }
            pipeline::save_png(&picture.rgb, &run.folder.join(file(*index)))?;
            pipeline::save_preview(&picture.rgb, &run.folder.join(preview(*index)))?;
            tell(*index)?;
        }
    }
    Ok(ControlFlow::Continue(()))
}
