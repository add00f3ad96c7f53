"""PyTorch on the step that `likeness-trainer-cuda bench train` times: SD 1.5 with random weights at 512x512, U-Net and text
encoder trained, clipping on. One line a variant, ms: median, fastest; and GiB as the driver counts them.

    python3 scripts/peer.py [ROWS]

eager: bf16 autocast over f32 weights, AdamW (8 bits where bitsandbytes is installed), as the field's scripts do it.
graph: the same step with fused AdamW, channels-last, captured whole in one CUDA graph: PyTorch at its best.
"""

import statistics
import sys
import time

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 2
STEPS, WARM_UP = 30, 5
DEVICE = "cuda"


def models():
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    text = CLIPTextModel(
        CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    )
    return [model.to(DEVICE).train().to(memory_format=torch.channels_last) for model in (unet, text)]


def optimizer(parameters, graph):
    if not graph:
        try:
            import bitsandbytes

            return bitsandbytes.optim.AdamW8bit(parameters, lr=1e-6), "8-bit Adam"
        except ImportError:
            pass
    return torch.optim.AdamW(parameters, lr=1e-6, fused=True, capturable=graph), "fused AdamW"


def measure(graph):
    torch.manual_seed(0)
    unet, text = models()
    parameters = [*unet.parameters(), *text.parameters()]
    optimize, name = optimizer(parameters, graph)
    noisy = torch.randn(ROWS, 4, 64, 64, device=DEVICE).to(memory_format=torch.channels_last)
    target = torch.randn_like(noisy)
    timesteps = torch.randint(0, 1000, (ROWS,), device=DEVICE)
    ids = torch.randint(0, 49408, (ROWS, 77), device=DEVICE)

    def step():
        optimize.zero_grad(set_to_none=not graph)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=not graph):
            context = text(ids)[0]
            predicted = unet(noisy, timesteps, context).sample
        loss = torch.nn.functional.mse_loss(predicted.float(), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimize.step()
        return loss

    run = step
    if graph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            step()
        run = captured.replay
    times = []
    for number in range(WARM_UP + STEPS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if number >= WARM_UP:
            times.append((time.perf_counter() - start) * 1e3)
    free, total = torch.cuda.mem_get_info()
    label = "graph" if graph else "eager"
    print(
        f"{label}, bf16 autocast, {name}: {statistics.median(times):.1f} ms, best {min(times):.1f}; "
        f"{(total - free) / 2**30:.2f} GiB, {torch.cuda.max_memory_allocated() / 2**30:.2f} of it tensors",
        flush=True,
    )


def main():
    torch.backends.cudnn.benchmark = True
    print(f"PyTorch {torch.__version__} on {torch.cuda.get_device_name()}, {ROWS} rows", flush=True)
    for graph in (False, True):
        measure(graph)
        torch.cuda.empty_cache()


main()
