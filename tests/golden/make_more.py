#!/usr/bin/env python3
"""Golden numbers for what the golden pack lacks: XLM-R, question answering, base encoders with a pooler, decoders that classify.

    python make_more.py --out families        # needs torch and transformers, no network

The folders and tensors are those of the pack (its README is the reference): config.json and model.safetensors by save_pretrained, and
expected.safetensors with input_ids, attention_mask, token_type_ids?, labels, logits, loss; of XLM-R, which has no pack of its own, also
head_gate_grad [layers, heads] and ffn_gate_grad [layers, neurons]. Weights are random, none of them 0 or 1.
"""

import argparse
import os
import zlib

import torch
import transformers
from safetensors.torch import save_file

SEED = 20240611
BATCH, SEQ, PADS = 3, 20, [0, 4, 9]

SHAPE = dict(vocab_size=72, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)
ENCODER = dict(SHAPE, max_position_embeddings=32, type_vocab_size=2, pad_token_id=0)
DECODER = dict(SHAPE, max_position_embeddings=256, num_key_value_heads=2, pad_token_id=0, num_labels=3)
T = transformers
LONG = dict(rope_type="longrope", short_factor=[1.0, 1.1, 1.4, 2.0], long_factor=[1.2, 2.0, 5.0, 9.0])

CASES = {
    "xlm_roberta_mlm": (T.XLMRobertaForMaskedLM, T.XLMRobertaConfig(**dict(ENCODER, max_position_embeddings=34, type_vocab_size=1, pad_token_id=1)), "tokens"),
    "roberta_cls": (T.RobertaForSequenceClassification, T.RobertaConfig(**dict(ENCODER, max_position_embeddings=34, type_vocab_size=1, pad_token_id=1, num_labels=3)), "classes"),
    "electra_mlm": (T.ElectraForMaskedLM, T.ElectraConfig(**dict(ENCODER, embedding_size=16)), "tokens"),
    "bert_qa": (T.BertForQuestionAnswering, T.BertConfig(**ENCODER), "spans"),
    "bert_regression": (T.BertForSequenceClassification, T.BertConfig(**dict(ENCODER, num_labels=1)), "values"),
    "bert_encoder": (T.BertModel, T.BertConfig(**ENCODER), None),
    "llama_cls": (T.LlamaForSequenceClassification, T.LlamaConfig(**DECODER), "classes"),
    "falcon_grouped": (T.FalconForCausalLM, T.FalconConfig(vocab_size=72, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_kv_heads=2, new_decoder_architecture=True, bias=True, ffn_hidden_size=40, pad_token_id=0, bos_token_id=1, eos_token_id=2), "tokens"),
    "falcon_serial": (T.FalconForCausalLM, T.FalconConfig(vocab_size=72, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, multi_query=False, parallel_attn=False, alibi=False, bias=True, ffn_hidden_size=40, pad_token_id=0, bos_token_id=1, eos_token_id=2), "tokens"),
    "gpt_neox_serial": (T.GPTNeoXForCausalLM, T.GPTNeoXConfig(**dict(SHAPE, max_position_embeddings=32, use_parallel_residual=False, pad_token_id=0)), "tokens"),
    "llama_linear": (T.LlamaForCausalLM, T.LlamaConfig(**dict(DECODER, rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=10000.0))), "tokens"),
    "llama_dynamic": (T.LlamaForCausalLM, T.LlamaConfig(**dict(DECODER, max_position_embeddings=12, rope_parameters=dict(rope_type="dynamic", factor=4.0, rope_theta=10000.0))), "tokens"),
    "opt_narrow_cls": (T.OPTForSequenceClassification, T.OPTConfig(vocab_size=72, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=40, max_position_embeddings=32, word_embed_proj_dim=16, pad_token_id=1, bos_token_id=2, eos_token_id=2, num_labels=3), "classes"),
    "llama_yarn": (T.LlamaForCausalLM, T.LlamaConfig(**dict(DECODER, rope_parameters=dict(rope_type="yarn", factor=4.0, rope_theta=500.0, original_max_position_embeddings=64, beta_fast=16.0, beta_slow=2.0, attention_factor=1.3, truncate=False))), "tokens"),
    "qwen3_yarn": (T.Qwen3ForCausalLM, T.Qwen3Config(**dict(DECODER, head_dim=12, rope_parameters=dict(rope_type="yarn", factor=8.0, rope_theta=10000.0, original_max_position_embeddings=32))), "tokens"),
    "phi3_longrope_short": (T.Phi3ForCausalLM, T.Phi3Config(**dict(DECODER, max_position_embeddings=1024, original_max_position_embeddings=256, rope_parameters=dict(LONG, rope_theta=10000.0))), "tokens"),
    "phi3_longrope_long": (T.Phi3ForCausalLM, T.Phi3Config(**dict(DECODER, original_max_position_embeddings=12, rope_parameters=dict(LONG, rope_theta=10000.0, partial_rotary_factor=1.0))), "tokens"),
    "qwen3_moe_mixed": (T.Qwen3MoeForCausalLM, T.Qwen3MoeConfig(**dict(DECODER, num_hidden_layers=3, head_dim=8, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2, norm_topk_prob=False, mlp_only_layers=[1], decoder_sparse_step=1)), "tokens"),
}


def gate_gradients(model, inputs, labels):
    """Gradients of the loss by gates of 1 on the context of each head and on each neuron, of an encoder like BERT's."""
    layers, heads = model.base_model.encoder.layer, model.config.num_attention_heads
    gates = {
        "head_gate_grad": torch.ones(len(layers), heads, requires_grad=True),
        "ffn_gate_grad": torch.ones(len(layers), model.config.intermediate_size, requires_grad=True),
    }
    hooks = []
    for i, layer in enumerate(layers):
        def on_heads(module, args, i=i):
            split = args[0].unflatten(-1, (heads, -1)) * gates["head_gate_grad"][i][:, None]
            return (split.flatten(-2), *args[1:])

        def on_neurons(module, args, i=i):
            return (args[0] * gates["ffn_gate_grad"][i], *args[1:])

        hooks.append(layer.attention.output.dense.register_forward_pre_hook(on_heads))
        hooks.append(layer.output.dense.register_forward_pre_hook(on_neurons))
    model(**inputs, labels=labels).loss.backward()
    for hook in hooks:
        hook.remove()
    return {name: gate.grad for name, gate in gates.items()}


def make(name, cls, config, labels_of, out):
    config.architectures = [cls.__name__]
    g = torch.Generator().manual_seed(zlib.crc32(f"{SEED}:{name}".encode()))
    torch.manual_seed(0)
    model = cls._from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for key, p in sorted(model.named_parameters()):
            if p.dim() == 1 and key.endswith("weight"):
                p.uniform_(0.5, 1.5, generator=g)
            else:
                p.normal_(0.0, 0.2, generator=g)
    folder = os.path.join(out, name)
    os.makedirs(folder, exist_ok=True)
    model.save_pretrained(folder)
    for leftover in ("generation_config.json",):
        if os.path.exists(os.path.join(folder, leftover)):
            os.remove(os.path.join(folder, leftover))
    model = cls.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()

    ids = torch.randint(6, config.vocab_size, (BATCH, SEQ), generator=g)
    keep = torch.ones(BATCH, SEQ, dtype=torch.long)
    for row, n in enumerate(PADS):
        if n:
            ids[row, SEQ - n:] = config.pad_token_id
            keep[row, SEQ - n:] = 0
    save = dict(input_ids=ids, attention_mask=keep)
    if labels_of == "tokens":
        save["labels"] = ids.masked_fill(keep == 0, -100)
    elif labels_of == "classes":
        save["labels"] = torch.arange(BATCH) % config.num_labels
    elif labels_of == "values":
        save["labels"] = torch.linspace(-1, 1, BATCH)
    elif labels_of == "spans":
        save["labels"] = torch.tensor([[1, 4], [2, 2], [0, 5]])
    inputs = dict(input_ids=ids, attention_mask=keep)
    if getattr(config, "type_vocab_size", 0) == 2:
        inputs["token_type_ids"] = save["token_type_ids"] = (torch.arange(SEQ) > 6).long().repeat(BATCH, 1) * keep
    with torch.no_grad():
        if labels_of == "spans":
            r = model(**inputs, start_positions=save["labels"][:, 0], end_positions=save["labels"][:, 1])
            save["logits"], save["loss"] = torch.stack([r.start_logits, r.end_logits], -1), r.loss
        elif labels_of is None:
            r = model(**inputs)
            weight = keep[..., None].float()
            save["mean"] = (r.last_hidden_state * weight).sum(1) / weight.sum(1)
            save["pooler"] = r.pooler_output
        else:
            r = model(**inputs, labels=save["labels"])
            save["logits"], save["loss"] = r.logits, r.loss
    if name == "xlm_roberta_mlm":
        save.update(gate_gradients(model, inputs, save["labels"]))
    save_file({k: v.contiguous() for k, v in save.items()}, os.path.join(folder, "expected.safetensors"), metadata={"family": name})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="more")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    for name, (cls, config, labels_of) in CASES.items():
        make(name, cls, config, labels_of, args.out)
        print(name)
