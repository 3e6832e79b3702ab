"""Makes tests/golden/adamw: 50 AdamW steps of PyTorch on the tiny Llama beside it, in float64, gradients clipped.

Run in an environment with torch, transformers and safetensors:  python tests/golden/make_adamw.py
"""

import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
# At 1e-3 PyTorch in f32 is already 4 % off itself in f64 (gradient norm, step 47): rounding is amplified where gradients vanish.
STEPS, LR, DECAY, CLIP, BATCH, LENGTH = 50, 3e-4, 0.01, 1.0, 4, 16

torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(HERE / "methods/models/llama-tiny", attn_implementation="eager").double()
# Special tokens stay out: PyTorch gives the row of the padding token no gradient.
ids = torch.randint(3, model.config.vocab_size, (BATCH, LENGTH))
optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY)
losses, norms = [], []
for _ in range(STEPS):
    loss = model(input_ids=ids, labels=ids).loss
    optimizer.zero_grad()
    loss.backward()
    norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())
    optimizer.step()
    losses.append(loss.item())

out = HERE / "adamw"
out.mkdir(exist_ok=True)
tensors = {name: p.detach().float().contiguous() for name, p in model.named_parameters()}
tensors |= {"input_ids": ids, "losses": torch.tensor(losses, dtype=torch.float64), "norms": torch.tensor(norms, dtype=torch.float64)}
save_file(tensors, out / "expected.safetensors")
case = {
    "model": "../methods/models/llama-tiny",
    "steps": STEPS,
    "lr": LR,
    "weight_decay": DECAY,
    "clip": CLIP,
    "torch": torch.__version__,
    "formula": "torch.optim.AdamW in float64, every parameter decays; one batch of all examples in each step; loss = mean next-token cross-entropy",
}
(out / "case.json").write_text(json.dumps(case, indent=1) + "\n")
print("loss", losses[0], "->", losses[-1])
