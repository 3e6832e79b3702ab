"""Loads folders that prunectl saved with unmodified transformers and compares what they compute.

    check_logits.py CASES.json

CASES.json: [{"name", "dir", "expected", "auto_class", "trust_remote_code", "loads"}], where `expected` is a safetensors file with
`input_ids`, `attention_mask`, `logits`, and for causal models optionally `generated`: the whole greedy continuation of `prompt`.
One JSON object a line on stdout: {"name", "loaded", "error", "difference", "missing", "generated"}.
"""

import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
import transformers
from safetensors.torch import load_file

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
        result["error"] = f"{type(error).__name__}: {error}"[:500]
        return result
    model.eval()
    result["loaded"] = True
    result["missing"] = sorted(str(k) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for k in info[kind])
    expected = load_file(case["expected"])
    with torch.no_grad():
        keep = expected["attention_mask"]
        logits = model(input_ids=expected["input_ids"], attention_mask=keep).logits
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
        same = []
        for use_cache in (True, False):
            with torch.no_grad():
                out = model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=new,
                    min_new_tokens=new,
                    do_sample=False,
                    use_cache=use_cache,
                )
            same.append(torch.equal(out, whole))
        result["generated"] = all(same)
    return result


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        cases = json.load(file)
    for case in cases:
        print(json.dumps(check(case)), flush=True)


if __name__ == "__main__":
    main()
