"""Proves exports of full size in other people's loaders. `make prove-exports` runs it; it needs torch, diffusers,
transformers and stable-diffusion-cpp-python, about 9 GB of disk and 12 GB of memory, and no network.

    python tests/exports/prove.py LIKENESS FOLDER

Random weights of Stable Diffusion 1.5's architecture, as a diffusers folder whose VAE has the attention names of 2022,
go through `LIKENESS convert` in its four forms. Each file must hold the golden list of keys and shapes exactly, give every
weight back bit for bit, and load strictly in diffusers; the halves must also draw a picture in stable-diffusion.cpp, the
same from .safetensors and .ckpt.
"""

import json
import pathlib
import re
import subprocess
import sys
import zipfile

import safetensors
import safetensors.torch
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TINY = REPOSITORY / "tests/golden/tiny-sd"
KEYS = REPOSITORY / "tests/golden/convert/sd15_keys.json"
# What AUTOMATIC1111's first safe loader let pass.
MEMBER = re.compile(r"archive/(data/\d+|version|data\.pkl)")


def say(words):
    print(words, flush=True)


def expect(is_so, words):
    if not is_so:
        sys.exit(f"not so: {words}")


def networks():
    """Stable Diffusion 1.5's, in f32, which is what training leaves."""
    unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            projection_dim=768, hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=49407,
        )
    )
    return {"unet": unet, "vae": vae, "text_encoder": text}


def make_base(folder, rows):
    torch.manual_seed(15)
    models = networks()
    for name, model in models.items():
        model.save_pretrained(folder / name)
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    old = {path: legacy for _, _, network, path, _, legacy in rows if network == "vae" and legacy}
    tensors = safetensors.torch.load_file(file)
    expect(set(old) <= set(tensors), "the VAE has the attention that had other names")
    safetensors.torch.save_file({old.get(path, path): tensor for path, tensor in tensors.items()}, file)
    for small in ["tokenizer", "scheduler"]:
        (folder / small).mkdir(exist_ok=True)
        for source in (TINY / small).iterdir():
            (folder / small / source.name).write_bytes(source.read_bytes())
    (folder / "model_index.json").write_bytes((TINY / "model_index.json").read_bytes())
    return {name: dict(model.state_dict()) for name, model in models.items()}


def opened(file):
    if file.suffix == ".safetensors":
        with safetensors.safe_open(file, "pt") as tensors:
            expect(not tensors.metadata(), f"{file.name} has no metadata")
        return safetensors.torch.load_file(file)
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            expect(MEMBER.fullmatch(member.filename), f"{member.filename} passes AUTOMATIC1111's rule")
            expect(member.compress_type == zipfile.ZIP_STORED, f"{member.filename} is stored as it is")
    whole = torch.load(file, map_location="cpu", weights_only=True)
    expect(list(whole) == ["state_dict"], f"{file.name} holds state_dict alone")
    return dict(whole["state_dict"])


def check_tensors(file, rows, base, dtype):
    tensors = opened(file)
    expect(len(tensors) == len(rows), f"{file.name} holds {len(rows)} tensors, not {len(tensors)}")
    for key, shape, network, path, _, _ in rows:
        expect(key in tensors, f"{file.name} has {key}")
        got = tensors.pop(key)
        expect(list(got.shape) == shape and got.dtype == dtype, f"{key} is {shape} {dtype}")
        wanted = base[network][path].to(dtype).reshape(shape)
        expect(torch.equal(got, wanted), f"{key} is what was trained, to the bit")
    expect(not tensors, f"{file.name} has nothing else")


def check_diffusers(file, folder, base):
    pipeline = StableDiffusionPipeline.from_single_file(
        str(file), config=str(folder), local_files_only=True, torch_dtype=torch.float16, safety_checker=None
    )
    for name in base:
        tensors = getattr(pipeline, name).state_dict()
        expect(set(tensors) == set(base[name]), f"diffusers loads all of the {name} and nothing else")
        for path, tensor in tensors.items():
            expect(torch.equal(tensor, base[name][path].half()), f"{name}.{path} comes back to the bit")


def draw(file):
    from stable_diffusion_cpp import StableDiffusion

    model = StableDiffusion(model_path=str(file), verbose=False)
    images = model.generate_image(prompt="photo of zwx dog", width=64, height=64, sample_steps=2, seed=3, cfg_scale=1.0)
    model.close()
    return images[0].tobytes()


def main():
    likeness, scratch = sys.argv[1], pathlib.Path(sys.argv[2])
    rows = json.loads(KEYS.read_text())["rows"]
    folder = scratch / "base"
    folder.mkdir(parents=True)
    say("making random weights of Stable Diffusion 1.5's size")
    base = make_base(folder, rows)
    pictures = {}
    for name, dtype, flags in [
        ("half.safetensors", torch.float16, ["--half", "--use_safetensors"]),
        ("half.ckpt", torch.float16, ["--half"]),
        ("full.safetensors", torch.float32, ["--use_safetensors"]),
        ("full.ckpt", torch.float32, []),
    ]:
        file = scratch / name
        command = [likeness, "convert", "--model_path", folder, "--checkpoint_path", file, *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        check_tensors(file, rows, base, dtype)
        say(f"{name}: {len(rows)} keys and shapes as the golden list has them, every number to the bit")
        check_diffusers(file, folder, base)
        say(f"{name}: loads in diffusers, nothing missing, nothing left over")
        if dtype == torch.float16:
            pictures[name] = draw(file)
            say(f"{name}: draws in stable-diffusion.cpp")
        file.unlink()
    first, second = pictures.values()
    expect(first == second and len(set(first)) > 1, "stable-diffusion.cpp draws the same picture from both")
    say("stable-diffusion.cpp draws the same picture from .safetensors and .ckpt")


if __name__ == "__main__":
    main()
