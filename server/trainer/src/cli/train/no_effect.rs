//! Flags that were given and change nothing in this run. Those of the recipe alone are told by the run itself.

use app::recipe::{HOLDOUT_LEAST_PHOTOS, LrScheduler, Recipe};
use trainer::base_model;

use super::args::TrainArgs;

/// A sentence for each, that says why. `args` are those that were typed, `photos` those of all subjects, and so many
/// `saves` is the run going to leave.
pub fn told(args: &TrainArgs, recipe: &Recipe, photos: usize, saves: usize) -> Vec<String> {
    let cases = [
        subjects(args, recipe, photos),
        training(args, recipe),
        speed(args, recipe),
        results(args, recipe, saves),
        never(args),
    ];
    let told = cases.into_iter().flatten().filter(|(given, _)| *given);
    told.map(|(_, sentence)| sentence.to_owned()).collect()
}

/// Whether a sentence holds.
type Case = (bool, &'static str);

fn subjects(args: &TrainArgs, recipe: &Recipe, photos: usize) -> Vec<Case> {
    let single = [args.instance_prompt.is_some(), args.instance_data_dir.is_some()];
    let of_class = [args.class_prompt.is_some(), args.class_data_dir.is_some()];
    let any_class = recipe
        .concepts
        .iter()
        .any(|c| c.class_prompt.is_some() || c.class_data_dir.is_some());
    vec![
        (
            recipe.prior.is_none() && (any_class || args.num_class_images.is_some()),
            "class prompt, class folder and --num_class_images have no effect without --with_prior_preservation: no class \
             images are drawn or trained on",
        ),
        (
            recipe.prior.is_none() && args.prior_loss_weight.is_some(),
            "--prior_loss_weight has no effect without --with_prior_preservation",
        ),
        (
            recipe.prior.is_none() && args.class_guidance_scale.is_some(),
            "--class_guidance_scale has no effect without --with_prior_preservation: no class images are drawn",
        ),
        (
            args.holdout_photo && recipe.strict_tutorial,
            "--holdout_photo has no effect with --strict_tutorial: the script trains on every photo",
        ),
        (
            args.holdout_photo && recipe.samples.save_sample_prompt.trim().is_empty(),
            "--holdout_photo has no effect without --save_sample_prompt: it is measured with each round of samples",
        ),
        (
            args.holdout_photo && photos < HOLDOUT_LEAST_PHOTOS,
            "--holdout_photo has no effect: of fewer than twelve photos none is spared",
        ),
        (
            args.concepts_list.is_some() && single.into_iter().chain(of_class).any(|given| given),
            "the flags of a single subject have no effect beside --concepts_list",
        ),
        (
            args.read_prompts_from_txts && recipe.concepts.iter().any(|c| !c.instance_prompt.is_empty()),
            "instance prompts have no effect with --read_prompts_from_txts: each photo has its own",
        ),
    ]
}

fn training(args: &TrainArgs, recipe: &Recipe) -> Vec<Case> {
    vec![
        (
            args.num_train_epochs.is_some() && args.max_train_steps.is_some(),
            "--num_train_epochs has no effect beside --max_train_steps",
        ),
        (
            args.scale_lr && recipe.train_batch_size == 1 && recipe.gradient_accumulation_steps == 1,
            "--scale_lr has no effect: batch size and accumulation steps are 1",
        ),
        (
            args.scale_lr && recipe.train_text_encoder && recipe.text_encoder_learning_rate.is_some(),
            "--scale_lr has no effect on --text_encoder_learning_rate, which is used as it is",
        ),
        (
            args.pad_tokens && !recipe.strict_tutorial,
            "--pad_tokens has no effect: prompts are padded anyway, unless --strict_tutorial is given",
        ),
        (
            args.lr_warmup_steps.is_some_and(|steps| steps > 0) && recipe.lr_scheduler == LrScheduler::Constant,
            "--lr_warmup_steps has no effect with --lr_scheduler constant; constant_with_warmup has one",
        ),
    ]
}

fn speed(args: &TrainArgs, recipe: &Recipe) -> Vec<Case> {
    vec![
        (
            recipe.low_memory && args.use_8bit_adam,
            "--use_8bit_adam has no effect beside --low_memory, which has 8-bit moments anyway",
        ),
        (
            recipe.low_memory && args.gradient_checkpointing,
            "--gradient_checkpointing has no effect beside --low_memory, which has it anyway",
        ),
        (
            args.checkpointing_steps
                .is_some_and(|steps| steps >= recipe.max_train_steps),
            "--checkpointing_steps has no effect: the run ends before the first state would be saved",
        ),
    ]
}

fn results(args: &TrainArgs, recipe: &Recipe, saves: usize) -> Vec<Case> {
    let draws_samples = !recipe.samples.save_sample_prompt.trim().is_empty();
    let of_samples = [
        args.n_save_sample.is_some(),
        args.save_sample_negative_prompt.is_some(),
        args.save_guidance_scale.is_some(),
        args.validation_steps.is_some(),
    ];
    vec![
        (
            !draws_samples && of_samples.contains(&true),
            "the sample flags have no effect without --save_sample_prompt: no samples are drawn",
        ),
        (
            args.save_infer_steps.is_some() && !draws_samples && recipe.prior.is_none(),
            "--save_infer_steps has no effect: neither samples nor class images are drawn",
        ),
        (
            args.sample_batch_size.is_some() && !draws_samples && recipe.prior.is_none(),
            "--sample_batch_size has no effect: neither samples nor class images are drawn",
        ),
        (
            args.save_min_steps > 0 && args.save_interval >= recipe.max_train_steps,
            "--save_min_steps has no effect: --save_interval leaves no model before the last",
        ),
        (
            (1..=args.save_interval).contains(&args.save_min_steps) && args.save_interval < recipe.max_train_steps,
            "--save_min_steps has no effect: by --save_interval the first model is not left before it",
        ),
        (
            args.keep_last.is_some_and(|keep| keep as usize >= saves),
            "--keep_last has no effect: no more models than that are left",
        ),
    ]
}

fn never(args: &TrainArgs) -> Vec<Case> {
    vec![
        (
            args.revision.is_some() && !base_model::is_on_hub(&args.pretrained_model_name_or_path),
            "--revision has no effect on a model that is not from the Hub",
        ),
        (
            args.logging_dir.is_some(),
            "--logging_dir has no effect: no TensorBoard files are written, every step is in .likeness/events.jsonl",
        ),
        (
            args.validation_epochs.is_some(),
            "--validation_epochs has no effect: samples are drawn after every --validation_steps",
        ),
        (
            args.validation_scheduler.is_some(),
            "--validation_scheduler has no effect: samples are drawn with DDIM, as the script draws them",
        ),
        (
            !args.validation_images.is_empty(),
            "--validation_images has no effect: samples start from noise",
        ),
        (
            args.push_to_hub || args.hub_token.is_some() || args.hub_model_id.is_some(),
            "the --push_to_hub flags have no effect, as in the script",
        ),
        (
            args.local_rank.is_some_and(|rank| rank >= 0),
            "--local_rank has no effect: one process trains",
        ),
    ]
}
