"""PyTorch on what `likeness-trainer bench` times, with random weights: a DreamBooth step with U-Net and text encoder trained and
clipping on, and drawing images with classifier-free guidance. For each a line for people, then a line of JSON.

    python3 scripts/peer.py [--arch sd15|starter] [--device cuda|cpu] [--rows N] [--threads N]

On a GPU: eager is bf16 autocast over f32 weights with AdamW (8 bits where bitsandbytes is installed), as the field's scripts do
it; graph is the same with fused AdamW, channels-last, captured whole in one CUDA graph: PyTorch at its best. Drawing is fp16, the
U-Net's call in a graph or eager. On a CPU everything is eager and f32.
"""

import argparse
import json
import statistics
import time

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

WARM_UP, TOKENS, GUIDANCE = 5, 77, 7.5
ARCHS = {
    "sd15": {
        "side": 64,
        "unet": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
    },
    "starter": {
        "side": 16,
        "unet": {
            "sample_size": 16,
            "block_out_channels": (64, 96, 128, 128),
            "layers_per_block": 1,
            "cross_attention_dim": 128,
            "attention_head_dim": 4,
            "norm_num_groups": 16,
        },
        "text": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4},
        "vae": {"block_out_channels": (32, 64, 96, 96), "layers_per_block": 1, "norm_num_groups": 16},
    },
}


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", choices=ARCHS, default="sd15")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--sampling_steps", type=int, default=24)
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


class Peer:
    def __init__(self, args):
        self.args, self.arch, self.device = args, ARCHS[args.arch], args.device
        self.side = self.arch["side"]

    def models(self):
        unet = UNet2DConditionModel(**self.arch["unet"])
        text = CLIPTextModel(CLIPTextConfig(vocab_size=49408, **self.arch["text"]))
        return [model.to(self.device).to(memory_format=torch.channels_last) for model in (unet, text)]

    def optimizer(self, parameters, graph):
        if self.device == "cuda" and not graph:
            try:
                import bitsandbytes

                return bitsandbytes.optim.AdamW8bit(parameters, lr=1e-6), "8-bit Adam"
            except ImportError:
                pass
        return torch.optim.AdamW(parameters, lr=1e-6, fused=True, capturable=graph), "fused AdamW"

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def timed(self, run, count, warm_up=WARM_UP):
        times = []
        for number in range(warm_up + count):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            if number >= warm_up:
                times.append((time.perf_counter() - start) * 1e3)
        return times

    def captured(self, work):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay

    def train(self, graph):
        torch.manual_seed(0)
        unet, text = [model.train() for model in self.models()]
        parameters = [*unet.parameters(), *text.parameters()]
        optimize, name = self.optimizer(parameters, graph)
        rows, side = self.args.rows, self.side
        noisy = torch.randn(rows, 4, side, side, device=self.device).to(memory_format=torch.channels_last)
        target = torch.randn_like(noisy)
        timesteps = torch.randint(0, 1000, (rows,), device=self.device)
        ids = torch.randint(0, 49408, (rows, TOKENS), device=self.device)
        autocast = torch.autocast("cuda", torch.bfloat16, enabled=self.device == "cuda", cache_enabled=not graph)

        def step():
            optimize.zero_grad(set_to_none=not graph)
            with autocast:
                predicted = unet(noisy, timesteps, text(ids)[0]).sample
            loss = torch.nn.functional.mse_loss(predicted.float(), target)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
            optimize.step()

        times = self.timed(self.captured(step) if graph else step, self.args.steps)
        self.tell(
            "train",
            f"{'graph' if graph else 'eager'}, {'bf16 autocast' if self.device == 'cuda' else 'f32'}, {name}",
            ms_per_step=statistics.median(times),
            min_ms=min(times),
        )

    @torch.no_grad()
    def sample(self, graph):
        torch.manual_seed(0)
        dtype = torch.float16 if self.device == "cuda" else torch.float32
        unet, text = [model.to(dtype).eval() for model in self.models()]
        vae = self.arch["vae"]
        levels = len(vae["block_out_channels"])
        ends = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
        vae = AutoencoderKL(latent_channels=4, **vae, **ends).to(self.device, dtype).to(memory_format=torch.channels_last).eval()
        rows, side = self.args.images, self.side
        ids = torch.randint(0, 49408, (2 * rows, TOKENS), device=self.device)
        both = torch.randn(2 * rows, 4, side, side, device=self.device, dtype=dtype).to(memory_format=torch.channels_last)
        timestep = torch.full((2 * rows,), 500, device=self.device)
        context = text(ids)[0]
        held = {}

        def predict():
            held["output"] = unet(both, timestep, context).sample

        call = self.captured(predict) if graph else predict

        def draw():
            context.copy_(text(ids)[0])
            x = torch.randn(rows, 4, side, side, device=self.device, dtype=dtype)
            for _ in range(self.args.sampling_steps):
                both.copy_(torch.cat([x, x]))
                call()
                without, given = held["output"].chunk(2)
                # DDIM's step is one such line.
                x = 0.99 * x + 0.01 * (without + GUIDANCE * (given - without))
            for row in range(rows):
                vae.decode(x[row : row + 1]).sample.float().cpu()

        times = self.timed(draw, 3, 1)
        self.tell("sample", f"{'graph' if graph else 'eager'}, {str(dtype)[6:]}", s_in_all=statistics.median(times) / 1e3)

    def tell(self, what, label, **figures):
        if self.device == "cuda":
            free, total = torch.cuda.mem_get_info()
            figures["peak_gib"] = (total - free) / 2**30
        words = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(f"PyTorch {torch.__version__}, {what}, {label}: {words}", flush=True)
        print(json.dumps({"peer": what, "label": label, **figures}), flush=True)


def main():
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True
    peer = Peer(args)
    for graph in (False, True) if args.device == "cuda" else (False,):
        for measure in (peer.train, peer.sample):
            measure(graph)
            if args.device == "cuda":
                torch.cuda.empty_cache()


main()
