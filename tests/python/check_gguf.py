"""Runs GGUF files that prunectl wrote in llama.cpp (through llama-cpp-python) and compares what they compute.

    check_gguf.py CASES.json

CASES.json: [{"name", "gguf", "expected", "texts", "speed"}], where `expected` is a safetensors file with `prompt` [n], `logits`
[n, vocab] and `generated`, the whole greedy continuation; `texts` is a list of [text, ids]; with `speed` that many tokens are timed.
One JSON object a line on stdout: {"name", "loaded", "error", "difference", "generated", "texts", "tokens_per_s"}.
"""

import time

import llama_cpp
import numpy as np
from safetensors.numpy import load_file

from cases import answer, brief


def check(case):
    result = {"name": case["name"], "loaded": False, "error": None, "difference": None, "generated": None, "texts": None, "tokens_per_s": None}
    try:
        expected = load_file(case["expected"])
        whole, prompt = expected["generated"].tolist(), expected["prompt"].tolist()
        model = llama_cpp.Llama(
            case["gguf"],
            n_ctx=max(len(whole), case.get("speed", 0), 32) + 8,
            logits_all=True,
            n_threads=1,
            n_threads_batch=1,
            type_k=0,
            type_v=0,
            verbose=False,
        )
        result["loaded"] = True
        model.eval(prompt)
        logits, wanted = np.array(model.scores[: len(prompt)]), expected["logits"]
        result["difference"] = float(np.abs(logits - wanted).max() / np.abs(wanted).max())
        ids = list(prompt)
        while len(ids) < len(whole):
            best = int(model.scores[len(ids) - 1].argmax())
            ids.append(best)
            model.eval([best])
        result["generated"] = ids == whole
        result["texts"] = all(model.tokenize(text.encode(), add_bos=True, special=False) == ids for text, ids in case["texts"])
        if case.get("speed"):
            model.reset()
            model.eval(prompt[:1])
            start = time.perf_counter()
            for i in range(case["speed"]):
                model.eval([whole[i % len(whole)]])
            result["tokens_per_s"] = case["speed"] / (time.perf_counter() - start)
    except Exception as error:  # whatever a loader throws is its refusal
        result["error"] = brief(error)
    return result


if __name__ == "__main__":
    answer(check)
