#!/usr/bin/env python3
"""Sizes and speeds in llama.cpp of pruned Llamas beside the dense one.

    scripts/make-python-env.sh target/python-env --llama-cpp
    target/python-env/bin/python scripts/llama_cpp_speed.py DENSE PRUNED...       # folders that transformers reads
    target/python-env/bin/python scripts/llama_cpp_speed.py                       # an example that it makes itself

Each folder is exported with `prunectl export --format gguf` in each of --dtype, and run by llama-cpp-python: reading a prompt in one go, and
writing token by token. Models take turns within each of --repeats rounds, and the median counts, so that a machine that slows down slows all.

The example is a Llama with random weights (speed does not depend on them), as it is; with half of the neurons and of the key/value groups of
each layer gone; with the same number gone where a score wants it, so that layers differ (architecture `deci`); and with a third of its layers
gone. Widths are multiples of 32 there: other rows have no 8-bit type in llama.cpp and stay in 16 bits. On a machine that is busy with other
things give fewer --threads: those of llama.cpp wait for each other. --prunectl names the binary, target/release/prunectl otherwise.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import llama_cpp

CONFIG = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=4000, hidden_size=512, num_hidden_layers=9,
    num_attention_heads=8, num_key_value_heads=4, head_dim=64, intermediate_size=1408, hidden_act="silu", rms_norm_eps=1e-5,
    max_position_embeddings=1024, initializer_range=0.02, rope_theta=10000.0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
)  # fmt: skip
RECIPE = """edition 2026

model dense  = init("config.json", seed = 1)
model even   = copy(dense)
model ragged = copy(dense)
model short  = copy(dense)

save dense to "dense"
prune even.layers[*].{attention.kv_groups, mlp.neurons} by 50% each using random(seed = 1) { scope = layer }
compact even
save even to "even"
prune ragged.layers[*].attention.kv_groups by 50% using random(seed = 1) { scope = global  at_least = 1 group }
prune ragged.layers[*].mlp.neurons by 50% using random(seed = 1) { scope = global  align = 32 }
compact ragged
save ragged to "ragged"
prune short.layers[*] by 3 layers using random(seed = 1)
compact short
save short to "short"
"""


def example(prunectl, folder):
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(CONFIG, file)
    with open(os.path.join(folder, "example.prune"), "w", encoding="utf-8") as file:
        file.write(RECIPE)
    subprocess.run([prunectl, "run", "example.prune", "-q"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return [os.path.join(folder, name) for name in ("dense", "even", "ragged", "short")]


def export(prunectl, model, dtype, folder, index):
    path = os.path.join(folder, f"{index}-{dtype}.gguf")
    done = subprocess.run(
        [prunectl, "export", os.path.abspath(model), "--format", "gguf", "--dtype", dtype, "--out", path, "--json"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{model}: {done.stderr.strip()}")
    return path, json.loads(done.stdout)["architecture"]


def parameters(model):
    """Scalars in the folder's weight files, by their headers."""
    total = 0
    for name in os.listdir(model):
        if name.endswith(".safetensors"):
            with open(os.path.join(model, name), "rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            for tensor, entry in header.items():
                if tensor != "__metadata__":
                    count = 1
                    for n in entry["shape"]:
                        count *= n
                    total += count
    return total


class Subject:
    def __init__(self, name, model, path, architecture, args):
        self.name, self.architecture = name, architecture
        self.parameters, self.bytes = parameters(model), os.path.getsize(path)
        self.read, self.write = [], []
        self.llama = llama_cpp.Llama(
            path, n_ctx=args.prompt + args.tokens + 8, n_batch=args.prompt, n_threads=args.threads, n_threads_batch=args.threads, verbose=False
        )
        self.ids = [5 + (i * 37 + i * i * 5) % (self.llama.n_vocab() - 5) for i in range(args.prompt + args.tokens)]

    def measure(self, args):
        self.llama.reset()
        start = time.perf_counter()
        self.llama.eval(self.ids[: args.prompt])
        middle = time.perf_counter()
        for token in self.ids[args.prompt :]:
            self.llama.eval([token])
        end = time.perf_counter()
        self.read.append(args.prompt / (middle - start))
        self.write.append(args.tokens / (end - middle))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="folders; the first is the dense one")
    parser.add_argument("--dtype", nargs="+", default=["f16", "q8_0"], help="types of the GGUF files")
    parser.add_argument("--prompt", type=int, default=128, help="tokens that are read in one go")
    parser.add_argument("--tokens", type=int, default=64, help="tokens that are written one by one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prunectl", default="target/release/prunectl")
    args = parser.parse_args()
    prunectl = os.path.abspath(args.prunectl)
    with tempfile.TemporaryDirectory() as folder:
        models = args.models or example(prunectl, folder)
        print(f"llama.cpp {llama_cpp.__version__} (llama-cpp-python), {args.threads} threads, {args.prompt} tokens read, {args.tokens} written, "
              f"median of {args.repeats}")
        for dtype in args.dtype:
            subjects = []
            for index, model in enumerate(models):
                path, architecture = export(prunectl, model, dtype, folder, index)
                subjects.append(Subject(os.path.basename(os.path.normpath(model)), model, path, architecture, args))
            for _ in range(args.repeats):
                for subject in subjects:
                    subject.measure(args)
            dense = subjects[0]
            print(f"\n{dtype:10} {'':8} {'parameters':>12} {'MB':>8} {'reads tokens/s':>22} {'writes tokens/s':>22}")
            for s in subjects:
                cells = []
                for speed, base in ((s.read, dense.read), (s.write, dense.write)):
                    now, then = statistics.median(speed), statistics.median(base)
                    cells.append(f"{now:9.1f} ({now / then:5.2f} x)")
                print(f"{s.name[:10]:10} {s.architecture:8} {s.parameters:12,} {s.bytes / 1e6:8.1f} {cells[0]:>22} {cells[1]:>22}")


if __name__ == "__main__":
    main()
