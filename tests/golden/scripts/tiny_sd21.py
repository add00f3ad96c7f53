"""Makes tests/golden/tiny-sd21/: a small pipeline of Stable Diffusion 2.1's structure with random weights, and what
diffusers computes with it. Run it with torch, diffusers and transformers of MANIFEST.md's versions:

    python tests/golden/scripts/tiny_sd21.py CONVERTER

CONVERTER is huggingface/diffusers' scripts/convert_diffusers_to_original_stable_diffusion.py. Weights and inputs come
from one seed, so the same versions give the same files.
"""

import hashlib
import json
import math
import pathlib
import shutil
import subprocess
import sys
import tempfile

import safetensors.torch
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

HERE = pathlib.Path(__file__).resolve().parent.parent
OUT = HERE / "tiny-sd21"
SEED = 2121
PROMPTS = ["photo of zwx dog", "photo of a dog"]


def networks():
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16, 24, 24),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=2,
        cross_attention_dim=8,
        # Another count in each block, so that one in the place of another shows.
        attention_head_dim=[2, 4, 3, 6],
        use_linear_projection=True,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=8,
            intermediate_size=32,
            # OpenCLIP's 24 less the last.
            num_hidden_layers=23,
            num_attention_heads=2,
            hidden_act="gelu",
            projection_dim=8,
        )
    )
    return {"unet": unet, "vae": vae, "text_encoder": text_encoder}


def fill(model, generator):
    """Random weights whose outputs are neither constant nor huge, exact in f16."""
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=generator)
        is_norm = "norm" in name and p.dim() == 1
        if is_norm and name.endswith("weight"):
            value = 1 + 0.25 * noise
        elif is_norm or name.endswith("bias"):
            value = 0.15 * noise
        elif "embedding.weight" in name and "time" not in name:
            value = 0.7 * noise
        else:
            fan_in = p[0].numel()
            gain = 1.4 if any(part in name for part in ("to_q", "to_k", "q_proj", "k_proj")) else 0.8
            value = noise * gain / math.sqrt(fan_in)
        p.data = value.half().float()


def relmax(a, b):
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def compute(models, inputs, double):
    dtype = torch.float64 if double else torch.float32
    # transformers makes its causal mask in the default type.
    torch.set_default_dtype(dtype)
    models = {name: model.to(dtype) for name, model in models.items()}
    x = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    unet, vae, text = models["unet"], models["vae"], models["text_encoder"]
    out = {}
    with torch.no_grad():
        states = text(x["input_ids"]).last_hidden_state
        out["text.last_hidden_state"] = states
        out["unet.out"] = unet(x["sample"], x["unet_timesteps"], states).sample
        out["unet.odd.out"] = unet(x["odd_sample"], 500, states[:1]).sample
        latents = vae.encode(x["image"]).latent_dist
        out["vae.mean"], out["vae.logvar"] = latents.mean, latents.logvar
        out["vae.decoded"] = vae.decode(x["z"]).sample
    # One step of train_dreambooth.py with prior preservation: row 0 is the instance, row 1 its class.
    scheduler = DDPMScheduler.from_config(SCHEDULER)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(dtype)
    noisy = scheduler.add_noise(x["latents"], x["noise"], x["timesteps"])
    target = scheduler.get_velocity(x["latents"], x["noise"], x["timesteps"])
    prediction = unet(noisy, x["timesteps"], text(x["input_ids"]).last_hidden_state).sample
    mse = torch.nn.functional.mse_loss
    instance, prior = mse(prediction[:1], target[:1]), mse(prediction[1:], target[1:])
    loss = instance + prior
    loss.backward()
    out["train.noisy"], out["train.target"], out["train.prediction"] = noisy, target, prediction.detach()
    losses = {"loss": loss.item(), "instance_loss": instance.item(), "prior_loss": prior.item()}
    grads = {}
    for which in ("unet", "text_encoder"):
        for name, p in models[which].named_parameters():
            grads[f"{which}.{name}"] = p.grad.detach().clone()
            p.grad = None
    losses["grad_norm"] = math.sqrt(sum(g.double().square().sum().item() for g in grads.values()))
    return out, losses, grads


SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.15.0",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "trained_betas": None,
}


def main():
    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = False
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(SEED)
    models = networks()
    shutil.rmtree(OUT, ignore_errors=True)
    for name, model in models.items():
        model.eval()
        fill(model, generator)
        model.half().save_pretrained(OUT / name)
        model.float()
    (OUT / "scheduler").mkdir()
    (OUT / "scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=2))
    (OUT / "tokenizer").mkdir()
    tokenizer = json.loads((HERE / "tiny-sd/tokenizer/tokenizer_config.json").read_text())
    # As stabilityai/stable-diffusion-2-1 has it.
    tokenizer["pad_token"] = "!"
    (OUT / "tokenizer/tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2))
    index = json.loads((HERE / "tiny-sd/model_index.json").read_text())
    (OUT / "model_index.json").write_text(json.dumps(index, indent=2))

    draw = lambda *shape: torch.randn(shape, generator=generator)
    ids = torch.zeros(2, 77, dtype=torch.int64)
    words = {"photo": 1125, "of": 539, "a": 320, "dog": 1929}
    for row, prompt in enumerate(PROMPTS):
        # zwx is two tokens; any two rare ids serve here.
        tokens = [49406]
        for word in prompt.split():
            tokens += [words[word]] if word in words else [3562, 87]
        tokens.append(49407)
        ids[row, : len(tokens)] = torch.tensor(tokens)
    inputs = {
        "input_ids": ids,
        "sample": draw(2, 4, 16, 16),
        "unet_timesteps": torch.tensor([981, 20]),
        "odd_sample": draw(1, 4, 10, 14),
        "image": torch.rand((1, 3, 64, 40), generator=generator) * 2 - 1,
        "z": draw(1, 4, 8, 5),
        "latents": draw(2, 4, 8, 8),
        "noise": draw(2, 4, 8, 8),
        "timesteps": torch.tensor([741, 112]),
    }
    exact, _, _ = compute(models, inputs, True)
    out, losses, grads = compute(models, inputs, False)
    losses["f32_against_f64"] = {name: relmax(out[name], exact[name]) for name in out}
    safetensors.torch.save_file({k: v.contiguous() for k, v in {**inputs, **out}.items()}, OUT / "golden.safetensors")

    stored, table = {}, {}
    for name, grad in grads.items():
        table[name] = {"norm": grad.double().norm().item(), "sum": grad.double().sum().item()}
        if name.endswith("token_embedding.weight"):
            rows = grad.abs().sum(1).nonzero().flatten()
            stored[name + "#rows"], stored[name + "#values"] = rows, grad[rows]
        else:
            stored[name + "#stride7"] = grad.flatten()[::7].contiguous()
    safetensors.torch.save_file(stored, OUT / "gradients.safetensors")
    (OUT / "train.json").write_text(json.dumps({**losses, "gradients": table}, indent=0))

    with tempfile.TemporaryDirectory() as scratch:
        single = pathlib.Path(scratch) / "tiny-sd21.safetensors"
        command = [sys.executable, sys.argv[1], "--model_path", OUT, "--checkpoint_path", single, "--half", "--use_safetensors"]
        subprocess.run(command, check=True)
        keys = {}
        for name, tensor in safetensors.torch.load_file(single).items():
            digest = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
            keys[name] = [list(tensor.shape), str(tensor.dtype).removeprefix("torch."), digest]
    (OUT / "single_file.json").write_text(json.dumps(keys, indent=0))


if __name__ == "__main__":
    main()
