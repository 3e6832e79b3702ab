"""Reads folders that `prunectl export --format vllm` wrote as vLLM's `DeciLMForCausalLM` does, by what its source says of `block_configs`:
query heads from the config, key/value heads = query heads // n_heads_in_group, FFN width from ffn_mult where it is there, sublayers that
are `no_op` left out. The layers are made of transformers' Llama parts. vLLM itself is not run.

    check_blocks.py CASES.json

CASES.json: [{"name", "dir", "expected"}], where `expected` is a safetensors file with `input_ids` and `logits`.
One JSON object a line on stdout: {"name", "error", "difference", "missing"}.
"""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb

from cases import answer, brief

torch.set_num_threads(1)


def width(ffn, hidden):
    if hasattr(ffn, "ffn_mult"):
        n = int(2 * ffn.ffn_mult * hidden / 3)
        return n if n % 256 == 0 else n + 256 - n % 256
    return ffn.intermediate_size


class Layer(nn.Module):
    def __init__(self, config, block):
        super().__init__()
        hidden, heads, size = config.hidden_size, config.num_attention_heads, config.head_dim
        self.block, self.size = block, size
        o_bias = qkv_bias = config.attention_bias
        if hasattr(config, "qkv_bias"):
            qkv_bias = config.qkv_bias
        if not block.attention.no_op:
            kv_heads = heads // block.attention.n_heads_in_group
            self.self_attn = nn.ModuleDict({
                "q_proj": nn.Linear(hidden, heads * size, bias=qkv_bias),
                "k_proj": nn.Linear(hidden, kv_heads * size, bias=qkv_bias),
                "v_proj": nn.Linear(hidden, kv_heads * size, bias=qkv_bias),
                "o_proj": nn.Linear(heads * size, hidden, bias=o_bias),
            })
            self.input_layernorm = LlamaRMSNorm(hidden, config.rms_norm_eps)
        if not block.ffn.no_op:
            n = width(block.ffn, hidden)
            self.mlp = nn.ModuleDict({
                "gate_proj": nn.Linear(hidden, n, bias=config.mlp_bias),
                "up_proj": nn.Linear(hidden, n, bias=config.mlp_bias),
                "down_proj": nn.Linear(n, hidden, bias=config.mlp_bias),
            })
            self.post_attention_layernorm = LlamaRMSNorm(hidden, config.rms_norm_eps)

    def forward(self, x, cos_sin):
        if not self.block.attention.no_op:
            y = self.input_layernorm(x)
            q, k, v = (self.self_attn[f"{n}_proj"](y).unflatten(-1, (-1, self.size)).transpose(1, 2) for n in "qkv")
            q, k = apply_rotary_pos_emb(q, k, *cos_sin)
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + self.self_attn["o_proj"](y.transpose(1, 2).flatten(2))
        if not self.block.ffn.no_op:
            y = self.post_attention_layernorm(x)
            x = x + self.mlp["down_proj"](functional.silu(self.mlp["gate_proj"](y)) * self.mlp["up_proj"](y))
        return x


def check(case):
    result = {"name": case["name"], "error": None, "difference": None, "missing": None}
    try:
        config = AutoConfig.from_pretrained(case["dir"], trust_remote_code=True)
        assert config.architectures == ["DeciLMForCausalLM"] and config.model_type == "nemotron-nas"
        assert len(config.block_configs) == config.num_hidden_layers
        model = nn.ModuleDict({
            "embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size),
            "layers": nn.ModuleList(Layer(config, block) for block in config.block_configs),
            "norm": LlamaRMSNorm(config.hidden_size, config.rms_norm_eps),
        })
        tensors = load_file(Path(case["dir"]) / "model.safetensors")
        head = tensors.pop("lm_head.weight", None)
        assert (head is None) == config.tie_word_embeddings
        found = model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items()}, strict=False)
        result["missing"] = [*found.missing_keys, *found.unexpected_keys]
        expected = load_file(case["expected"])
        ids = expected["input_ids"]
        turns = LlamaConfig(head_dim=config.head_dim, rope_parameters=config.rope_parameters, max_position_embeddings=64)
        with torch.no_grad():
            x = model["embed_tokens"](ids)
            cos_sin = LlamaRotaryEmbedding(turns)(x, torch.arange(ids.shape[1])[None])
            for layer in model["layers"]:
                x = layer(x, cos_sin)
            logits = functional.linear(model["norm"](x), model["embed_tokens"].weight if head is None else head)
        wanted = expected["logits"]
        result["difference"] = ((logits - wanted).abs().max() / wanted.abs().max()).item()
    except Exception as error:
        result["error"] = brief(error)
    return result


if __name__ == "__main__":
    answer(check)
