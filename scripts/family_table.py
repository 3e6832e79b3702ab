#!/usr/bin/env python3
"""Prints the table family × {logits, gradients, each site's invariant, transformers, candle-transformers, llama.cpp}, the worst error in
each cell, from the tests that find them:

    scripts/make-python-env.sh target/python-env --llama-cpp
    PRUNECTL_TEST_PYTHON=$PWD/target/python-env/bin/python scripts/family_table.py

Without PRUNECTL_TEST_PYTHON the columns of transformers and llama.cpp stay empty. CARGO names another cargo.

logits, gradients: against transformers, both spellings of the config. Sites: a gate of 0 against surgery (masking equals removing). The
loaders: the worst of every shape that the loader reads (dense, fewer heads or neurons in some or all layers, a sublayer or layer gone).
"""

import os
import re
import subprocess
import sys

SITES = ["Heads", "KvGroups", "Neurons", "Experts", "Attention", "Mlp", "Layers"]
LOADERS = {"transformers": "transformers:", "candle": "candle-transformers:", "llama.cpp": "llama.cpp:"}
NUMBER = re.compile(r"\d(?:\.\d+)?e-?\d+")


def run(*args):
    command = [*os.environ.get("CARGO", "cargo").split(), "test", "--release", *args, "--nocapture"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}")
    return done.stdout.splitlines()


def main():
    cells = {}

    def note(family, column, value):
        cells[family, column] = max(cells.get((family, column), 0.0), value)

    for line in run("-p", "prunectl-model", "--test", "network", "--", "equal", "every_site"):
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
    for line in run("-p", "prunectl", "--test", "suite", "--", "families::", "candle::", "llama_cpp_runs_every"):
        title = [name for name, start in LOADERS.items() if line.startswith(start + " worst")]
        loader = title[0] if title else loader
        words = line.split()
        if loader and words and not title and "|" not in line and NUMBER.search(line) and not line.startswith(("test ", " ")):
            for value in NUMBER.findall(line):
                note(words[0].split("@")[0], loader, float(value))
    columns = ["logits", "gradients", *SITES, *LOADERS]
    print(f"{'':18}" + "".join(f"{c:>13}" for c in columns))
    for family in sorted({f for f, _ in cells}):
        row = (f"{cells[family, c]:.1e}" if (family, c) in cells else "–" for c in columns)
        print(f"{family:18}" + "".join(f"{text:>13}" for text in row))


if __name__ == "__main__":
    main()
