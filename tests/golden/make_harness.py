"""Multiple choice as lm-evaluation-harness scores it: a tiny random Llama on small documents of our own, each in the columns that its benchmark has on the
Hub, under the harness's own task definitions with only the place of the data changed. Writes harness/ in the working directory.

    pip install lm_eval torch transformers && python make_harness.py
"""

import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import lm_eval
import torch
import yaml
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)
torch.manual_seed(7)
OUT = Path("harness").absolute()
ROWS = 40
HOME = Path(lm_eval.__file__).parent / "tasks"

NAMES = "Tom Anna Ben Lily Max Mia Otto Ruth".split()
THINGS = "kettle lamp ladder basket drum coat rope boat".split()
PLACES = ["the shed", "the harbour", "a narrow lane", "the kitchen", "an old mill", "the station"]
DOES = ["carried it home", "painted it blue", "hid it under a bench", "sold it to a neighbour", "washed it twice", "forgot where it was"]
SUBJECTS = ["household_tools", "small_boats"]


def made(rng):
    pick = rng.choice

    def arc(i):
        n = 4 if i % 5 else 3
        letters = list("ABCD"[:n]) if i % 7 else [str(k + 1) for k in range(n)]
        texts = [f"{pick(NAMES)} {d}" for d in rng.sample(DOES, n)]
        question = f"What did the owner of the {pick(THINGS)} do at {pick(PLACES)}?"
        return {"id": str(i), "question": question, "choices": {"text": texts, "label": letters}, "answerKey": pick(letters)}

    def blimp(i):
        one, other = ("were", "was") if i % 2 else ("was", "were")
        good = f"{pick(NAMES)}{f' and {pick(NAMES)}' if i % 2 else ''} {one} near {pick(PLACES)}."
        return {"sentence_good": good, "sentence_bad": good.replace(f" {one} ", f" {other} "), "UID": "number", "pairID": str(i)}

    def hellaswag(i):
        mark = ["", "[header] ", "[substeps] "][i % 3]
        one = f"{mark}{pick(NAMES)} found a {pick(THINGS)} at {pick(PLACES)}."
        two = f"then {pick(NAMES)}" if i % 4 else ""
        if i % 6 == 0:
            one = one.replace(" at ", " [title] at ")
        endings = [f"{d}  and went away." if k % 2 else f"[step] {d}." for k, d in enumerate(rng.sample(DOES, 4))]
        return {"ind": i, "activity_label": f"Mending a {pick(THINGS)}", "ctx_a": one, "ctx_b": two, "ctx": f"{one} {two}", "endings": endings, "label": str(rng.randrange(4))}

    def mmlu(i):
        subject = SUBJECTS[i % 2]
        question = f"Who {pick(DOES)} after the {pick(THINGS)} was left in {pick(PLACES)}?" + (" " if i % 3 else "\n")
        return {"question": question, "subject": subject, "choices": rng.sample(NAMES, 4), "answer": rng.randrange(4)}

    def piqa(i):
        goal = f"How do you bring a {pick(THINGS)} to {pick(PLACES)}?"
        return {"goal": goal, "sol1": f"Ask {pick(NAMES)}, who {pick(DOES)}.", "sol2": f"Take it from {pick(PLACES)}.", "label": rng.randrange(2)}

    def winogrande(i):
        a, b = rng.sample(NAMES, 2)
        tail = [" was late.", " had a better idea.", "'s coat was wet, and nobody minded.", "."][i % 4]
        sentence = f"{a} gave {b} the {pick(THINGS)} at {pick(PLACES)} because _{tail}"
        return {"sentence": sentence, "option1": a, "option2": b, "answer": str(rng.randrange(2) + 1)}

    kinds = {"arc": arc, "blimp": blimp, "hellaswag": hellaswag, "mmlu": mmlu, "piqa": piqa, "winogrande": winogrande}
    return {name: [make(i) for i in range(ROWS)] for name, make in kinds.items()}


def model(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(OUT)
    config = LlamaConfig(
        vocab_size=360, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, initializer_range=0.4,
    )
    LlamaForCausalLM(config).save_pretrained(OUT)


def tasks(folder, documents):
    """The harness's own definitions, on local rows."""
    sources = {
        "arc": HOME / "arc/arc_easy.yaml", "blimp": HOME / "blimp/_template_yaml", "hellaswag": HOME / "hellaswag/hellaswag.yaml",
        "mmlu": HOME / "mmlu/default/_default_template_yaml", "piqa": HOME / "piqa/piqa.yaml", "winogrande": HOME / "winogrande/default.yaml",
    }

    class Loader(yaml.SafeLoader):
        pass

    class Function(str):
        pass

    Loader.add_constructor("!function", lambda loader, node: Function(node.value))
    yaml.SafeDumper.add_representer(Function, lambda dumper, f: dumper.represent_scalar("!function", str(f)))
    for name, source in sources.items():
        home = folder / name
        shutil.copytree(source.parent, home, ignore=shutil.ignore_patterns("*.yaml", "*_yaml", "__pycache__"))
        groups = {name: documents[name]}
        if name == "mmlu":
            groups = {f"mmlu_{s}": [d for d in documents["mmlu"] if d["subject"] == s] for s in SUBJECTS}
        for task, rows in groups.items():
            config = yaml.load(source.read_text(), Loader)
            for key in ("dataset_name", "training_split", "validation_split", "test_split", "fewshot_split", "fewshot_config", "tag", "should_decontaminate"):
                config.pop(key, None)
            data = home / f"{task}.jsonl"
            data.write_text("".join(json.dumps(row) + "\n" for row in rows))
            config.update(task=f"local_{task}", dataset_path="json", dataset_kwargs={"data_files": str(data)}, test_split="train")
            config["metric_list"] = [{"metric": "acc"}, {"metric": "acc_norm"}]
            if name == "mmlu":
                # As the harness writes it for each subject (mmlu/_generate_configs.py).
                about = " ".join(task.removeprefix("mmlu_").split("_"))
                config["description"] = f"The following are multiple choice questions (with answers) about {about}.\n\n"
            (home / f"{task}.yaml").write_text(yaml.dump(config, Dumper=yaml.SafeDumper))


def right(name, row):
    return {
        "arc": lambda: row["choices"]["label"].index(row["answerKey"]),
        "blimp": lambda: 0,
        "hellaswag": lambda: int(row["label"]),
        "mmlu": lambda: row["answer"],
        "piqa": lambda: row["label"],
        "winogrande": lambda: int(row["answer"]) - 1,
    }[name]()


def main():
    documents = made(random.Random(11))
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    model([json.dumps(row) for rows in documents.values() for row in rows])
    for name, rows in documents.items():
        (OUT / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    with tempfile.TemporaryDirectory() as folder:
        tasks(Path(folder), documents)
        names = [f"local_{n}" for n in documents if n != "mmlu"] + [f"local_mmlu_{s}" for s in SUBJECTS]
        manager = TaskManager(include_path=folder, include_defaults=False)
        arguments = f"pretrained={OUT},dtype=float32,add_bos_token=True"
        found = lm_eval.simple_evaluate(
            model="hf", model_args=arguments, tasks=names, task_manager=manager, num_fewshot=0, batch_size=1, device="cpu", bootstrap_iters=0, log_samples=True
        )
    expected = {}
    for name in documents:
        parts = [f"local_mmlu_{s}" for s in SUBJECTS] if name == "mmlu" else [f"local_{name}"]
        samples = [s for part in parts for s in found["samples"][part]]
        assert len(samples) == ROWS, name
        expected[name] = {m: sum(s[m] for s in samples) / ROWS for m in ("acc", "acc_norm")}
        # The mean log-likelihood of the right options: nearly equal prompts must not hide behind equal accuracies.
        expected[name]["log_likelihood"] = sum(s["filtered_resps"][right(name, s["doc"])][0] for s in samples) / ROWS
    expected["versions"] = {"lm_eval": lm_eval.__version__, "torch": torch.__version__}
    (OUT / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    json.dump(expected, sys.stdout, indent=1)


main()
