"""Opens adapter folders with unmodified peft, and makes one.

    check_peft.py check CASES.json      CASES.json: [{"name", "base", "adapter", "fused", "auto_class"}]
    check_peft.py make BASE ADAPTER AUTO_CLASS RANK MODULE...

`check` loads `base` with transformers, `adapter` on it with peft, and compares the logits with those of `fused`, loaded with transformers.
One JSON object a line on stdout: {"name", "error", "difference", "moved"}; `moved` is how far the adapter takes the logits from the base's.
`make` writes an adapter with random weights in both matrices.
"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from cases import answer, brief

torch.set_num_threads(1)


def load(case, folder):
    auto_class = getattr(transformers, case["auto_class"])
    return auto_class.from_pretrained(case[folder], trust_remote_code=True, dtype=torch.float32, attn_implementation="eager").eval()


def logits(model, vocabulary):
    ids = torch.randint(5, vocabulary, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def check(case):
    result = {"name": case["name"], "error": None, "difference": None, "moved": None}
    try:
        base = load(case, "base")
        vocabulary = base.config.vocab_size
        before = logits(base, vocabulary)
        adapted = logits(PeftModel.from_pretrained(base, case["adapter"]).eval(), vocabulary)
        fused = logits(load(case, "fused"), vocabulary)
        result["difference"] = ((adapted - fused).abs().max() / fused.abs().max()).item()
        result["moved"] = ((adapted - before).abs().max() / before.abs().max()).item()
    except Exception as error:  # whatever peft throws is its refusal
        result["error"] = brief(error)
    return result


def make(base, adapter, auto_class, rank, modules):
    torch.manual_seed(0)
    model = load({"base": base, "auto_class": auto_class}, "base")
    config = LoraConfig(r=int(rank), lora_alpha=3.0, target_modules=modules, init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(adapter)


if sys.argv[1] == "make":
    make(sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5], sys.argv[6:])
else:
    answer(check, sys.argv[2])
