#!/usr/bin/env python3
"""Prints the table family × {logits, gradients, each site's invariant, transformers, candle-transformers, llama.cpp, vLLM}, the worst error
in each cell, from the tests that find them:

    scripts/make-python-env.sh target/python-env --llama-cpp
    PRUNECTL_TEST_PYTHON=$PWD/target/python-env/bin/python scripts/family_table.py

Without PRUNECTL_TEST_PYTHON the columns of transformers, llama.cpp and vLLM stay empty. CARGO names another cargo; `--variants` gives a row
to each model of a family.

logits, gradients: against transformers, both spellings of the config. Sites: a gate of 0 against surgery (masking equals removing); for
hidden channels, surgery against a network that was cut by hand, bit for bit; for single weights and N:M, the saved file against the
original and the decision's masks, bit for bit. The loaders: the worst of every shape that the loader reads
(dense, fewer heads, neurons, experts, hidden channels or weights, a sublayer or layer gone). vLLM: its per-layer blocks as an independent
reader computes them that follows vLLM's source; vLLM is not run. Where a cell of a loader is empty, the reason stands below.
"""

import json
import os
import re
import subprocess
import sys

FAMILIES = [
    "bert", "roberta", "xlm_roberta", "distilbert", "electra", "gpt2", "gpt_neo", "gpt_neox", "codegen", "opt", "falcon", "llama", "mistral",
    "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "mixtral", "qwen3_moe",
]  # fmt: skip
SITES = ["Heads", "KvGroups", "Neurons", "Experts", "Attention", "Mlp", "Layers", "Hidden", "Weights", "NofM"]
LOADERS = {"transformers": "transformers:", "candle": "candle-transformers:", "llama.cpp": "llama.cpp:"}
VLLM = "vLLM*"
# What candle's table marks as off it loads and computes wrongly; the loader table refuses those.
NUMBER = re.compile(r"\d(?:\.\d+)?e-?\d+(?! off)")
REASON = re.compile(r"  (\S.*?): (.*)")


def run(*args):
    command = [*os.environ.get("CARGO", "cargo").split(), "test", "--release", *args, "--nocapture"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}")
    return done.stdout.splitlines()


def main():
    variants = "--variants" in sys.argv[1:]
    cells, reasons = {}, {}

    def family_of(name):
        name = name.split("@")[0].split(",")[0]
        return name if variants else max((f for f in FAMILIES if name == f or name.startswith(f + "_")), key=len, default=name)

    def note(name, column, value):
        key = family_of(name), column
        cells[key] = max(cells.get(key, 0.0), value)

    for line in run("-p", "prunectl-model", "--test", "network", "--", "equal", "every_site", "hidden_channels"):
        words = line.split()
        if len(words) > 3 and words[1].startswith("config"):
            column = {"logits": "logits", "head_gate_grad": "gradients", "ffn_gate_grad": "gradients"}.get(words[2])
            if column:
                note(words[0], column, float(words[3]))
        elif len(words) == 4 and words[0] == "site":
            note(words[1], words[2], float(words[3]))
        elif len(words) > 2 and words[1] == "logits":
            note(words[0], "logits", float(words[2]))
        elif "gradients of head gates" in line:
            for value in NUMBER.findall(line):
                note(words[0], "gradients", float(value))
    loader = None
    tests = ["families::", "candle::", "llama_cpp_runs_every", "vllm::", "sites::", "--test-threads=1"]
    for line in run("-p", "prunectl", "--test", "suite", "--", *tests):
        # The first line that a test prints stands behind its name.
        words = line.rpartition(" ... ")[2].split()
        if len(words) == 4 and words[0] in ("site", "read"):
            note(words[1], words[2] if words[0] == "site" else "transformers", float(words[3]))
            continue
        title = [name for name, start in LOADERS.items() if line.startswith(start + " worst")]
        if title or line.startswith(("refused", "test ")):
            loader = title[0] if title else "llama.cpp" if line == "refused" else None
        elif line.startswith('{"name"'):
            found = json.loads(line)
            if "generated" not in found and found["difference"] is not None:
                note(found["name"].split("-")[0], VLLM, found["difference"])
        elif loader and (reason := REASON.fullmatch(line)):
            for name in re.findall(r"([\w@]+)-dense", reason[1]):
                why = reason[2].removeprefix("llama.cpp can't run this model: ").removeprefix("* ")
                reasons.setdefault((family_of(name), loader), {})[why] = None
        elif loader and line.strip():
            for value in NUMBER.findall(line[20:]):
                note(line[:20].strip(), loader, float(value))
    columns = ["logits", "gradients", *SITES, *LOADERS, VLLM]
    rows = [f for f in FAMILIES if any(key[0] == f for key in cells)]
    rows += sorted({key[0] for key in cells} - set(rows))
    print(f"{'':16}" + "".join(f"{c:>13}" for c in columns))
    for family in rows:
        row = (f"{cells[family, c]:.1e}" if (family, c) in cells else "–" for c in columns)
        print(f"{family:16}" + "".join(f"{text:>13}" for text in row))
    print("\n* vLLM: an independent reader that follows its source; unverified by running it. Only Llama-shaped models have per-layer blocks.")
    print("llama.cpp: causal language models.")
    for loader in LOADERS:
        for family in rows:
            if (family, loader) not in cells and (family, loader) in reasons:
                print(f"{loader}, {family}: {'; '.join(reasons[family, loader])}")


if __name__ == "__main__":
    main()
