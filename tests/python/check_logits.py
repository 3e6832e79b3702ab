"""Loads folders that prunectl saved with unmodified transformers and compares what they compute.

    check_logits.py CASES.json

CASES.json: [{"name", "dir", "expected", "auto_class", "trust_remote_code", "caches"}], where `expected` is a safetensors file with
`input_ids`, `attention_mask`, `logits` (of a model without a head: the last hidden states), and for causal models optionally `generated`: the whole greedy continuation of `prompt`, tried
with each of `caches` as `use_cache`.
One JSON object a line on stdout: {"name", "loaded", "error", "difference", "missing", "generated"}.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
import transformers
from safetensors.torch import load_file

from cases import answer, brief

torch.set_num_threads(1)


def check(case):
    result = {"name": case["name"], "loaded": False, "error": None, "difference": None, "missing": None, "generated": None}
    auto_class = getattr(transformers, case["auto_class"])
    try:
        model, info = auto_class.from_pretrained(
            case["dir"],
            trust_remote_code=case["trust_remote_code"],
            output_loading_info=True,
            dtype=torch.float32,
            attn_implementation="eager",
        )
    except Exception as error:  # whatever a loader throws is its refusal
        result["error"] = brief(error)
        return result
    model.eval()
    result["loaded"] = True
    result["missing"] = sorted(str(k) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for k in info[kind])
    try:
        compare(model, load_file(case["expected"]), case.get("caches", [True, False]), result)
    except Exception as error:
        result["error"] = brief(error)
    return result


def compare(model, expected, caches, result):
    """Adds the largest relative difference of the logits, and whether the greedy texts are the same."""
    with torch.no_grad():
        keep = expected["attention_mask"]
        out = model(input_ids=expected["input_ids"], attention_mask=keep)
        if "start_logits" in out:
            logits = torch.stack([out.start_logits, out.end_logits], dim=-1)
        else:
            logits = out.logits if "logits" in out else out.last_hidden_state
    wanted = expected["logits"]
    error = (logits - wanted).abs()
    if wanted.dim() == 3:
        error = error * keep[..., None]
        wanted = wanted * keep[..., None]
    difference = (error.max() / wanted.abs().max()).item()
    result["difference"] = difference if difference == difference else "nan"
    if "generated" in expected:
        prompt, whole = expected["prompt"], expected["generated"]
        new = whole.shape[1] - prompt.shape[1]
        result["generated"] = True
        for use_cache in caches:
            with torch.no_grad():
                out = model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=new,
                    min_new_tokens=new,
                    do_sample=False,
                    use_cache=use_cache,
                )
            result["generated"] &= torch.equal(out, whole)


if __name__ == "__main__":
    answer(check)
