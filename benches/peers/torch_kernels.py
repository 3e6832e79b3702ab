"""The kernels of benches/kernels.rs in PyTorch's own operations: the same lines on stdin, the same answers."""
import argparse
import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

ROWS, WIDTH, VOCABULARY = 2048, 3072, 49152
X = (ROWS, WIDTH)
BERT = [(16, 4, 128, 64)] * 3


def sines(shape, phase):
    count = int(np.prod(shape))
    return torch.from_numpy(np.sin((np.arange(count) + 1.0) * 0.7 + phase).astype(np.float32)).reshape(shape)


def probe(x):
    x = x.detach().double().flatten().numpy()
    return float(x @ np.cos((np.arange(len(x)) + 1.0) * 0.3))


def angles():
    rate = 10_000.0 ** (-torch.arange(32, dtype=torch.float64) / 32)
    half = (torch.arange(512, dtype=torch.float64)[:, None] * rate).float()
    return torch.cat([half, half], -1)


COS, SIN = angles().cos(), angles().sin()
KEEP = (torch.arange(128)[None] < 64 + 4 * torch.arange(16)[:, None])[:, None, None]
TARGETS = torch.arange(512) * 7


def rope(x):
    """As transformers' models do it."""
    first, second = x.chunk(2, -1)
    return x * COS + torch.cat([-second, first], -1) * SIN


def kl_div(s, t):
    s, t = F.log_softmax(s / 2, -1), F.softmax(t / 2, -1)
    return F.kl_div(s, t, reduction="none").sum(-1)


# name: (shapes of the operands, operation)
OF_TENSORS = {
    "softmax": ([X], lambda x: x.softmax(-1)),
    "gelu_erf": ([X], F.gelu),
    "gelu_tanh": ([X], lambda x: F.gelu(x, approximate="tanh")),
    "silu": ([X], F.silu),
    "layer_norm": ([X, (WIDTH,), (WIDTH,)], lambda x, w, b: F.layer_norm(x, (WIDTH,), w, b, 1e-5)),
    "rms_norm": ([X, (WIDTH,)], lambda x, w: F.rms_norm(x, (WIDTH,), w, 1e-5)),
    "swiglu": ([X, X], lambda g, u: F.silu(g) * u),
    "add": ([X, X], torch.add),
    "cross_entropy": ([(512, VOCABULARY)], lambda x: F.cross_entropy(x, TARGETS, reduction="none")),
    "kl_div": ([(512, VOCABULARY)] * 2, kl_div),
    "attention_bert": (BERT, lambda q, k, v: F.scaled_dot_product_attention(q, k, v)),
    "attention_padded": (BERT, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=KEEP)),
    "attention_causal": (
        [(1, 9, 512, 64), (1, 3, 512, 64), (1, 3, 512, 64)],
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
    ),
    "rope": ([(4, 9, 512, 64)], rope),
    "gate": ([(4, ROWS // 4, WIDTH), (1, WIDTH)], lambda x, g: x * g[:, None]),
    "embedding": ([(VOCABULARY, 576)], lambda table: F.embedding(torch.arange(ROWS) * 7919 % VOCABULARY, table)),
    "linear": ([(ROWS, 768), (WIDTH, 768), (WIDTH,)], F.linear),
}


def timed(repeats, call):
    start = time.perf_counter()
    for _ in range(repeats):
        out = call()
    return (time.perf_counter() - start) * 1e3 / repeats, out


def top_k(x, keep):
    """A mask of the largest, over the last dimension."""
    return torch.zeros_like(x, dtype=torch.uint8).scatter_(-1, x.topk(keep, -1, sorted=False).indices, 1)


def of_buffers(name, repeats):
    x = sines((ROWS * WIDTH,), 0.0)
    if name == "adamw":
        p = torch.nn.Parameter(x)
        p.grad = sines((ROWS * WIDTH,), 1.0)
        optimizer = torch.optim.AdamW([p], lr=1e-3, weight_decay=0.01)
        ms, _ = timed(repeats, optimizer.step)
        return ms, [probe(p)]
    x, keep = (x, x.numel() // 2) if name == "top_k" else (x.reshape(X), WIDTH // 2)
    ms, mask = timed(repeats, lambda: top_k(x, keep))
    return ms, [probe(mask)]


def measure(name, gradient, repeats):
    if name not in OF_TENSORS:
        return of_buffers(name, repeats)
    shapes, operation = OF_TENSORS[name]
    operands = [sines(shape, float(i)).requires_grad_(gradient) for i, shape in enumerate(shapes)]
    if not gradient:
        with torch.no_grad():
            ms, y = timed(repeats, lambda: operation(*operands))
        return ms, [probe(y)]

    def call():
        y = operation(*operands)
        return torch.autograd.grad(y, operands, torch.ones_like(y))

    ms, gradients = timed(repeats, call)
    return ms, [probe(g) for g in gradients]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    for line in sys.stdin:
        name, what, repeats = line.split()
        ms, result = measure(name, what == "gradient", int(repeats))
        print(json.dumps({"elapsed_ms": ms, "result": result}), flush=True)


main()
