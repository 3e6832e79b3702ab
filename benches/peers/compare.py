"""Times the jobs of benches/jobs.rs against PyTorch, alternating in one run, and prints one table of ratios.

    cargo bench --bench jobs --no-run          # its last line names the binary
    python benches/peers/compare.py --bin target/release/deps/jobs-… --torch-python PYTHON [--runs 5] [JOB …]

Both sides hold the same weights and the same token ids, use the same number of threads and take turns, a pause in between, so that
neither's idle threads disturb the other. A ratio is time(PyTorch) / time(ours), above 1: ours is faster. `wall` compares the medians,
`cpu` the processor seconds that both sides spent (which other programs on the machine disturb less). Results must agree to 1e-3 of the
largest value, or the ratio is void. `GFLOP/s` counts the matrix products that the job needs, and `peak` is their share of what the
machine's fastest product reaches alone: the rest is everything else.
"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BERT = {
    "model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 30522, "hidden_size": 384,
    "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536, "max_position_embeddings": 512, "hidden_act": "gelu",
    "type_vocab_size": 2, "layer_norm_eps": 1e-12,
}
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "rope_theta": 100000.0, "hidden_act": "silu",
}
# job: (config, batch, tokens of a row, batches, goal)
JOBS = {
    "heads": (BERT, 16, 128, 8, 1.2),
    "ablate": (BERT, 16, 128, 1, 2.0),
    "ppl": (LLAMA, 1, 512, 8, 1.2),
    "train": (LLAMA, 4, 128, 4, 1.2),
    "wanda": (LLAMA, 1, 512, 16, 1.5),
    "sparsegpt": (LLAMA, 1, 512, 16, 1.2),
}
TICKS = os.sysconf("SC_CLK_TCK")
# Longer than OpenMP's threads go on spinning after a parallel region.
PAUSE_S = 0.3


class Side:
    def __init__(self, command, env):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.elapsed, self.cpu, self.result = [], [], None

    def stat(self, name):
        with open(f"/proc/{self.process.pid}/{name}") as file:
            return file.read()

    def cpu_s(self):
        fields = self.stat("stat").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def turn(self):
        time.sleep(PAUSE_S)
        before = self.cpu_s()
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.cpu.append(self.cpu_s() - before)
        self.elapsed.append(answer["elapsed_ms"])
        self.result = answer["result"]

    def peak_mb(self):
        line = next(l for l in self.stat("status").splitlines() if l.startswith("VmHWM"))
        return int(line.split()[1]) / 1024

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def gflop(job, config, batch, seq, batches):
    """Operations of the matrix products that a job can't do without, in billions: 2 for each pair of factors."""
    d, layers, f = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    bert, heads, tokens = job in ("heads", "ablate"), config["num_attention_heads"], batch * seq
    kv = d if bert else d // heads * config["num_key_value_heads"]
    attention, mlp = 2 * d * d + 2 * d * kv, (2 if bert else 3) * d * f
    # Scores and contexts; causal ones are half.
    mixing = 2 * seq * d / (1 if bert else 2)
    block, logits = attention + mlp + mixing, 0 if bert else d * config["vocab_size"]
    # What differs of the inputs of a block's projections: of q, k, v; of o; of gate and up; of down.
    inputs = [d, d, d, f]
    # A classifier reads one state of each example: its last block needs keys and values of all tokens, and little else.
    last = 2 * d * d
    pairs = {
        # Gradients by activations only; attention computes its scores again and four products of their size.
        "heads": (layers - 1) * (2 * (attention + mlp) + 3.5 * mixing) + 2 * last,
        # For each head the rest of its block and the blocks behind it.
        "ablate": (layers - 1) * block + last + sum(heads * ((layers - 2 - l) * block + d * d + mlp + last) for l in range(layers - 1)),
        "ppl": layers * block + logits,
        # The teacher's pass, the student's, and two products in the backward pass.
        "train": layers * block + logits + 3 * (layers * (attention + mlp) + logits) + 3.5 * layers * mixing,
        # The dense blocks' pass and the pruned ones'.
        "wanda": 2 * layers * block,
        "sparsegpt": 2 * layers * block + layers * sum(n * n / 2 for n in inputs),
    }[job] * tokens * batches
    if job == "sparsegpt":
        # Factor, inverse, its factor; and what each column leaves to those behind it.
        outputs = [d + 2 * kv, d, 2 * f, d]
        pairs += layers * sum(n**3 / 2 + m * n * n / 2 for n, m in zip(inputs, outputs))
    return 2e-9 * pairs


def error(ours, theirs):
    """The largest difference as a share of the largest value."""
    if len(ours) != len(theirs):
        return float("inf")
    return max(abs(a - b) for a, b in zip(ours, theirs)) / max(max(map(abs, theirs)), 1e-30)


def compare(job, a, folder):
    config, batch, seq, batches, goal = JOBS[job]
    batches = a.batches or batches
    if a.layers:
        config = {**config, "num_hidden_layers": a.layers}
    model = os.path.join(folder, job)
    os.makedirs(model, exist_ok=True)
    path = os.path.join(model, "wanted.json")
    with open(path, "w") as file:
        json.dump(config, file)
    sizes = ["--batch", str(batch), "--seq", str(seq), "--batches", str(batches)]
    threads = str(a.threads)
    env = {**os.environ, "RAYON_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
    peer = [a.torch_python, os.path.join(HERE, "torch_jobs.py"), job, "--config", path, "--save", model, "--threads", threads]
    theirs = Side(peer + sizes, env)
    theirs.process.stdout.readline()  # the model is saved
    ours = Side([a.bin, job, "--model", model] + sizes, env)
    for turn in range(a.runs + 1):
        theirs.turn()
        ours.turn()
    # The first turn of each warms caches and allocators up.
    medians = [statistics.median(s.elapsed[1:]) for s in (theirs, ours)]
    cpus = [statistics.median(s.cpu[1:]) for s in (theirs, ours)]
    pairs = sorted(t / o for t, o in zip(theirs.elapsed[1:], ours.elapsed[1:]))
    wrong = error(ours.result, theirs.result)
    rate = gflop(job, config, batch, seq, batches) / medians[1] * 1e3
    share = f"{rate / a.peak:4.0%}" if a.peak else "   ?"
    print(
        f"| {job:<9} | {medians[0]:8.0f} | {medians[1]:8.0f} | {medians[0] / medians[1]:5.2f} | {pairs[0]:4.2f}-{pairs[-1]:4.2f}"
        f" | {cpus[0] / max(cpus[1], 1e-9):5.2f} | {goal:4.1f} | {batch * seq * batches / medians[1] * 1e3:8.0f} | {rate:7.0f} | {share}"
        f" | {theirs.peak_mb():6.0f} | {ours.peak_mb():6.0f} | {wrong:.0e} {'ok' if wrong <= 1e-3 else 'VOID'} |",
        flush=True,
    )
    theirs.end()
    ours.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=", ".join(JOBS) + "; all if none is named")
    parser.add_argument("--bin", required=True)
    parser.add_argument("--torch-python", required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, help="fewer layers than the job has, for a quick look")
    parser.add_argument("--batches", type=int, help="another number of batches than the job has")
    parser.add_argument("--limits", help="the binary of benches/limits.rs: what share of the machine's matrix product a job reaches")
    parser.add_argument("--keep", help="folder for models and ids; a temporary one if left out")
    a = parser.parse_args()
    a.peak = None
    if a.limits:
        env = {**os.environ, "RAYON_NUM_THREADS": str(a.threads)}
        limits = json.loads(subprocess.run([a.limits, "--bench"], capture_output=True, text=True, check=True, env=env).stdout)
        a.peak = limits["gflop_s"]
        print(json.dumps(limits) + "\n")
    print("| job       | torch ms |  ours ms | wall  | range     | cpu   | goal | tokens/s | GFLOP/s | peak | t. MiB | o. MiB | error |")
    print("|-----------|---------:|---------:|------:|-----------|------:|-----:|---------:|--------:|-----:|-------:|-------:|-------|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for job in a.jobs or JOBS:
            compare(job, a, a.keep or temporary)


if __name__ == "__main__":
    main()
