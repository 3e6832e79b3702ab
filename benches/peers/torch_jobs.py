"""The jobs of benches/jobs.rs as a script with PyTorch and transformers would do them.

    python torch_jobs.py JOB --config CONFIG.json --batch N --seq N --batches N [--save DIR] [--threads N] [--once]

Builds the model of CONFIG with random weights, writes it and uniform token ids to DIR (model in the Hugging Face layout, ids in
tokens.safetensors), then runs the job once for each line on stdin and prints one JSON line each time.
"""
import argparse
import copy
import json
import sys
import time

START = time.perf_counter()
import torch
import torch.nn.functional as F
import transformers


def loss_of(model, ids):
    logits = model(input_ids=ids).logits
    if logits.dim() == 2:
        return F.cross_entropy(logits, ids[:, 0] % logits.shape[-1])
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def head_sites(model):
    """(projection whose input is the heads' outputs, number of heads), layer by layer."""
    heads = model.config.num_attention_heads
    for name, module in model.named_modules():
        if name.endswith("attention.output.dense") or name.endswith("self_attn.o_proj"):
            yield module, heads


class Gated:
    """Multiplies the heads' outputs in front of a projection by `gate` [heads] or [batch, heads]."""

    def __init__(self, projection, gate):
        self.gate = gate
        self.hook = projection.register_forward_pre_hook(self.apply)

    def apply(self, _, args):
        x, gate = args[0], self.gate
        shape = (*gate.shape[:-1], 1, gate.shape[-1], 1) if gate.dim() == 2 else (gate.shape[-1], 1)
        return ((x.unflatten(-1, (gate.shape[-1], -1)) * gate.view(shape)).flatten(-2),)

    def remove(self):
        self.hook.remove()


def heads(model, batches):
    for p in model.parameters():
        p.requires_grad_(False)
    sites = list(head_sites(model))
    total = [torch.zeros(n) for _, n in sites]
    for ids in batches:
        gates = [Gated(m, torch.ones(len(ids), n, requires_grad=True)) for m, n in sites]
        # The mean over the batch times its size: each example's own gradient.
        grads = torch.autograd.grad(loss_of(model, ids), [g.gate for g in gates])
        for t, g in zip(total, grads):
            t += g.abs().sum(0)
        for g in gates:
            g.remove()
    return torch.cat(total).tolist()


@torch.no_grad()
def ablate(model, batches):
    out = []
    dense = [loss_of(model, ids).item() for ids in batches]
    for projection, n in head_sites(model):
        for head in range(n):
            gate = torch.ones(n)
            gate[head] = 0
            gated = Gated(projection, gate)
            out.append(sum(loss_of(model, ids).item() - d for ids, d in zip(batches, dense)))
            gated.remove()
    return out


@torch.no_grad()
def ppl(model, batches):
    return [sum(loss_of(model, ids).item() for ids in batches)]


forward = ppl


def train(model, batches):
    student = copy.deepcopy(model)
    optimizer, total = torch.optim.AdamW(student.parameters(), lr=1e-4), 0.0
    for ids in batches:
        with torch.no_grad():
            theirs = model(input_ids=ids).logits
        ours = student(input_ids=ids).logits
        kl = F.kl_div(F.log_softmax(ours / 2, -1), F.softmax(theirs / 2, -1), reduction="batchmean") * 4 / ids.shape[1]
        task = F.cross_entropy(ours[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss = 0.5 * kl + 0.5 * task
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
    return [total]


class Halt(Exception):
    pass


def first_inputs(blocks, model, batches):
    """Inputs of the first block, and the keyword arguments that all blocks share."""
    seen, shared = [], {}

    def stop(_, args, kwargs):
        kwargs = dict(kwargs)
        seen.append(args[0] if args else kwargs.pop("hidden_states"))
        shared.update(kwargs)
        raise Halt

    hook = blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
    for ids in batches:
        try:
            model(input_ids=ids)
        except Halt:
            pass
    hook.remove()
    return seen, shared


def wanda_matrix(weight, squares):
    order = (weight.abs() * squares.sqrt()).argsort(1)
    weight.scatter_(1, order[:, : weight.shape[1] // 2], 0)


def sparsegpt_matrix(weight, gram, block=128):
    gram.diagonal().add_(0.01 * gram.diagonal().mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(gram)), upper=True)
    columns = weight.shape[1]
    for start in range(0, columns, block):
        end = min(start + block, columns)
        w, u = weight[:, start:end], upper[start:end, start:end]
        errors = torch.zeros_like(w)
        saliency = w**2 / u.diagonal() ** 2
        drop = saliency <= saliency.flatten().kthvalue(saliency.numel() // 2).values
        for c in range(end - start):
            error = torch.where(drop[:, c], w[:, c] / u[c, c], torch.zeros(()))
            w[:, c:] -= error[:, None] * u[c, c:][None]
            w[:, c].masked_fill_(drop[:, c], 0)
            errors[:, c] = error
        weight[:, end:] -= errors @ upper[start:end, end:]


def layerwise(model, batches, kind):
    pruned = copy.deepcopy(model)
    blocks = pruned.model.layers
    # A cache among the arguments that blocks share would grow with every call, and change what attention sees.
    pruned.config.use_cache = False
    inputs, shared = first_inputs(blocks, pruned, batches)

    def run(block, x):
        out = block(x, **shared)
        return out[0] if isinstance(out, tuple) else out

    for block in blocks:
        linears = [m for m in block.modules() if isinstance(m, torch.nn.Linear)]
        wide = {m: (m.in_features, m.in_features) if kind == "sparsegpt" else (m.in_features,) for m in linears}
        stats = {m: torch.zeros(*shape) for m, shape in wide.items()}

        def see(m, args):
            x = args[0].flatten(0, -2)
            stats[m] += x.T @ x if kind == "sparsegpt" else x.pow(2).sum(0)

        hooks = [m.register_forward_pre_hook(see) for m in linears]
        for x in inputs:
            run(block, x)
        for hook in hooks:
            hook.remove()
        for m in linears:
            (sparsegpt_matrix if kind == "sparsegpt" else wanda_matrix)(m.weight.data, stats[m])
        inputs = [run(block, x) for x in inputs]
    return pruned


def state_of(pruned, batches):
    weights = [m.weight for b in pruned.model.layers for m in b.modules() if isinstance(m, torch.nn.Linear)]
    zeros = sum((w == 0).sum().item() for w in weights) / sum(w.numel() for w in weights)
    return [zeros, loss_of(pruned, batches[0]).item()]


def run(job, model, batches):
    start = time.perf_counter()
    if job in ("wanda", "sparsegpt"):
        with torch.no_grad():
            pruned = layerwise(model, batches, job)
            elapsed = time.perf_counter() - start
            return state_of(pruned, batches), elapsed
    return globals()[job](model, batches), time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=["heads", "ablate", "ppl", "forward", "train", "wanda", "sparsegpt"])
    parser.add_argument("--config", required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--save")
    parser.add_argument("--once", action="store_true")
    a = parser.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with open(a.config) as file:
        config = transformers.AutoConfig.for_model(**json.load(file))
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    model = getattr(transformers, config.architectures[0])(config).eval()
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, config.vocab_size, (a.batches * a.batch, a.seq), generator=draw)
    batches = list(ids.split(a.batch))
    if a.save:
        from safetensors.torch import save_file

        model.save_pretrained(a.save)
        tensors = {"input_ids": ids}
        if "Classification" in config.architectures[0]:
            tensors["labels"] = (ids[:, 0] % config.num_labels).contiguous()
        save_file(tensors, a.save + "/tokens.safetensors")
    start_ms = (time.perf_counter() - START) * 1e3
    print(json.dumps({"ready": True}), flush=True)
    for _ in ["once"] if a.once else sys.stdin:
        result, elapsed = run(a.job, model, batches)
        print(json.dumps({"job": a.job, "result": result, "elapsed_ms": elapsed * 1e3, "start_ms": start_ms, "torch": torch.__version__}), flush=True)


main()
