"""Times every fused kernel against PyTorch's own operation, alternating in one run, and prints one table of ratios.

    cargo bench --bench kernels --no-run       # its last line names the binary
    python benches/peers/compare_kernels.py --bin target/release/deps/kernels-… --torch-python PYTHON [--runs 5] [KERNEL …]

As compare.py does with whole jobs: a ratio is time(PyTorch) / time(ours), of the medians; results must agree to 1e-3.
"""
import argparse
import json
import os
import statistics
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))
KERNELS = (
    "softmax gelu_erf gelu_tanh silu layer_norm rms_norm swiglu add cross_entropy kl_div attention_bert attention_padded attention_causal "
    "rope gate embedding linear adamw top_k top_k_rows"
).split()
# No gradient: what is chosen, and an optimiser's step.
FORWARD_ONLY = {"adamw", "top_k", "top_k_rows"}
# Longer than OpenMP's threads go on spinning after a parallel region.
PAUSE_S = 0.3


def ask(side, line):
    time.sleep(PAUSE_S)
    side.stdin.write(line + "\n")
    side.stdin.flush()
    return json.loads(side.stdout.readline())


def compare(kernel, what, sides, a):
    line = f"{kernel} {what} {a.repeats}"
    answers = [[ask(side, line) for side in sides] for _ in range(a.runs + 1)]
    # The first turn of each warms caches and allocators up.
    theirs, ours = (statistics.median(turn[i]["elapsed_ms"] for turn in answers[1:]) for i in (0, 1))
    expected, found = (answers[-1][i]["result"] for i in (0, 1))
    scale = max(max(map(abs, expected)), 1.0)
    wrong = max(abs(x - y) for x, y in zip(found, expected)) / scale
    verdict = "ok" if wrong <= 1e-3 else "VOID"
    print(f"| {kernel:<16} | {what:<8} | {theirs:8.2f} | {ours:8.2f} | {theirs / ours:5.2f} | {wrong:.0e} {verdict} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=", ".join(KERNELS) + "; all if none is named")
    parser.add_argument("--bin", required=True)
    parser.add_argument("--torch-python", required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=40, help="calls in a turn")
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    threads = str(a.threads)
    env = {**os.environ, "RAYON_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
    commands = [[a.torch_python, os.path.join(HERE, "torch_kernels.py"), "--threads", threads], [a.bin]]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": env}
    sides = [subprocess.Popen(command, **pipe) for command in commands]
    print("| kernel           | pass     | torch ms |  ours ms | ratio | error |")
    print("|------------------|----------|---------:|---------:|------:|-------|", flush=True)
    for kernel in a.kernels or KERNELS:
        for what in ["forward"] if kernel in FORWARD_ONLY else ["forward", "gradient"]:
            compare(kernel, what, sides, a)
    for side in sides:
        side.stdin.close()
        side.wait()


if __name__ == "__main__":
    main()
