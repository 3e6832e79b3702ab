"""Random models of every family, and what transformers computes with them: other sizes, heads, ratios, biases, ties, spellings.

    make_variants.py OUT SEED

Each folder of OUT holds model.safetensors (f32 or bf16, in one file or in shards), three spellings of the same config (config.json by
save_pretrained, config_v4.json with the names of transformers 4, config_short.json without the fields that the config class fills in by
itself) and expected.safetensors with input_ids, attention_mask, token_type_ids, labels, logits, loss, hidden_states [layers, batch, seq,
hidden] (outputs of the blocks), and for each layer l head_grad.l [heads] and neuron_grad.l ([experts,] neurons): the loss by gates of 1 on
each head's context and on each neuron. A gate on the input of a matrix multiplies its columns, so these are sums over W * dL/dW.
One name a line on stdout.
"""

import json
import os
import random
import re
import sys
import zlib

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers as T
from safetensors.torch import save_file

T.utils.logging.set_verbosity_error()
T.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

# Where the matrices are that read heads and neurons, below a block.
READERS = {
    "bert": ("attention.output.dense", "output.dense"),
    "distilbert": ("attention.out_lin", "ffn.lin2"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gpt_neo": ("attn.attention.out_proj", "mlp.c_proj"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "codegen": ("attn.out_proj", "mlp.fc_out"),
    "opt": ("self_attn.out_proj", "fc2"),
    "falcon": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
}


class Draw:
    def __init__(self, *seed):
        self.rng = random.Random(zlib.crc32(":".join(map(str, seed)).encode()))

    def of(self, *options):
        return self.rng.choice(options)

    def size(self, least, most, step=1):
        return self.rng.randrange(least, most + 1, step)

    def heads(self, grouped, free=False, multiple=1):
        """Heads, key/value heads, the width of a head and the hidden size."""
        heads = self.of(*(h for h in (2, 3, 4, 5, 6, 7, 8, 9, 12) if h % multiple == 0))
        width = self.of(4, 6, 8, 10, 16)
        kv = self.of(*(k for k in range(1, heads + 1) if heads % k == 0)) if grouped else heads
        own = self.of(*(w for w in (2, 4, 6, 8, 12, 20) if w != width)) if free and self.of(True, False) else width
        return heads, kv, own, heads * width


def encoder(d, **more):
    heads, _, _, hidden = d.heads(False)
    return dict(
        vocab_size=d.size(64, 140), hidden_size=hidden, num_hidden_layers=d.size(2, 3), num_attention_heads=heads,
        intermediate_size=d.size(17, 90), max_position_embeddings=d.size(30, 70), type_vocab_size=d.of(1, 2, 3),
        hidden_act=d.of("gelu", "gelu_new", "relu", "silu"), layer_norm_eps=d.of(1e-12, 1e-5, 1e-3), **more,
    )  # fmt: skip


def long_rope(d, pairs):
    rising = lambda: [1.0 + d.size(0, 40) / 10 for _ in range(pairs)]
    return dict(rope_type="longrope", short_factor=rising(), long_factor=rising())


def decoder(d, free=True, ropes=("default", "linear", "dynamic", "llama3", "yarn", "longrope"), **more):
    heads, kv, width, hidden = d.heads(True, free)
    rope = dict(rope_type=d.of(*ropes), rope_theta=d.of(100.0, 10000.0, 500000.0))
    if width == 2 and rope["rope_type"] == "dynamic":
        # transformers divides by the width less 2.
        rope["rope_type"] = "default"
    if rope["rope_type"] != "default":
        rope["factor"] = d.of(2.0, 4.0, 8.0)
    if rope["rope_type"] == "llama3":
        rope.update(low_freq_factor=1.0, high_freq_factor=d.of(2.0, 4.0), original_max_position_embeddings=d.of(16, 32))
    if rope["rope_type"] == "yarn":
        rope.update(original_max_position_embeddings=d.of(16, 32, 64), **d.of({}, {}, dict(beta_fast=8.0, beta_slow=2.0), dict(truncate=False)))
        rope.update(d.of({}, dict(attention_factor=1.2), dict(mscale=1.0, mscale_all_dim=0.7)))
    if rope["rope_type"] == "longrope":
        rope.update(long_rope(d, width // 2), original_max_position_embeddings=d.of(8, 32))
    own = dict(head_dim=width) if free else {}
    return dict(
        vocab_size=d.size(64, 140), hidden_size=hidden, num_hidden_layers=d.size(2, 4), num_attention_heads=heads,
        num_key_value_heads=kv, intermediate_size=d.size(17, 90), max_position_embeddings=d.of(12, 64, 256), rope_parameters=rope,
        rms_norm_eps=d.of(1e-6, 1e-5, 1e-3), tie_word_embeddings=d.of(True, False), pad_token_id=0, bos_token_id=1, eos_token_id=2,
        **own, **more,
    )  # fmt: skip


def plain(d, multiple=1):
    heads, _, width, hidden = d.heads(False, multiple=multiple)
    more = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, vocab_size=d.size(64, 140), tie_word_embeddings=d.of(True, False))
    return heads, width, hidden, d.size(2, 3), d.of(None, d.size(17, 90)), more


def bert(d):
    return T.BertConfig(**encoder(d, pad_token_id=0, tie_word_embeddings=d.of(True, True, False)))


def roberta(d, cls=T.RobertaConfig):
    return cls(**encoder(d, pad_token_id=d.of(1, 1, 3), bos_token_id=0, eos_token_id=2))


def distilbert(d):
    heads, _, _, hidden = d.heads(False)
    return T.DistilBertConfig(
        vocab_size=d.size(64, 140), dim=hidden, n_layers=d.size(2, 3), n_heads=heads, hidden_dim=d.size(17, 90),
        max_position_embeddings=d.size(30, 70), activation=d.of("gelu", "relu"), sinusoidal_pos_embds=d.of(True, False), pad_token_id=0,
    )  # fmt: skip


def electra(d):
    fields = encoder(d, pad_token_id=0)
    return T.ElectraConfig(embedding_size=d.of(fields["hidden_size"], 16, 28, 50), **fields)


def gpt2(d):
    heads, _, hidden, layers, ffn, more = plain(d)
    return T.GPT2Config(
        n_embd=hidden, n_head=heads, n_layer=layers, n_inner=ffn, n_positions=d.size(30, 70),
        activation_function=d.of("gelu_new", "gelu", "relu"), scale_attn_weights=d.of(True, True, False),
        scale_attn_by_inverse_layer_idx=d.of(True, False), **more,
    )  # fmt: skip


def gpt_neo(d):
    heads, _, hidden, layers, ffn, more = plain(d)
    kinds = [d.of("global", "local") for _ in range(layers)]
    return T.GPTNeoConfig(
        hidden_size=hidden, num_heads=heads, num_layers=layers, intermediate_size=ffn, attention_types=[[[kind], 1] for kind in kinds],
        window_size=d.of(3, 5, 9), max_position_embeddings=d.size(30, 70), activation_function=d.of("gelu_new", "gelu"), **more,
    )  # fmt: skip


def gpt_neox(d):
    heads, width, hidden, layers, ffn, more = plain(d)
    turns = d.of(*range(1, width + 1))  # an odd number is rounded up to pairs
    return T.GPTNeoXConfig(
        hidden_size=hidden, num_attention_heads=heads, num_hidden_layers=layers, intermediate_size=ffn or 4 * hidden,
        max_position_embeddings=d.size(30, 70), use_parallel_residual=d.of(True, False), attention_bias=d.of(True, True, False),
        hidden_act=d.of("gelu", "gelu_new"), layer_norm_eps=d.of(1e-5, 1e-3),
        rope_parameters=dict(
            rope_theta=d.of(100.0, 10000.0), partial_rotary_factor=turns / width,
            **d.of(dict(rope_type="default"), dict(rope_type="linear", factor=4.0)),
        ), **more,
    )  # fmt: skip


def codegen(d):
    heads, width, hidden, layers, ffn, more = plain(d, multiple=4)
    rows = d.of(48, 64)
    return T.CodeGenConfig(
        n_embd=hidden, n_head=heads, n_layer=layers, n_inner=ffn, n_positions=rows, n_ctx=rows,
        rotary_dim=d.of(*range(2, width + 1, 2)), activation_function=d.of("gelu_new", "gelu"), **more,
    )  # fmt: skip


def opt(d):
    heads, _, hidden, layers, ffn, more = plain(d)
    return T.OPTConfig(
        hidden_size=hidden, num_attention_heads=heads, num_hidden_layers=layers, ffn_dim=ffn or 4 * hidden,
        max_position_embeddings=d.size(30, 70), do_layer_norm_before=d.of(True, False), word_embed_proj_dim=d.of(hidden, 14, 30),
        enable_bias=d.of(True, True, False), activation_function=d.of("relu", "gelu"), **dict(more, pad_token_id=1),
    )  # fmt: skip


def falcon(d):
    heads, _, hidden, layers, ffn, more = plain(d)
    grouped = d.of(True, False)
    kv = d.of(*(k for k in range(1, heads + 1) if heads % k == 0)) if grouped else None
    return T.FalconConfig(
        hidden_size=hidden, num_attention_heads=heads, num_hidden_layers=layers, ffn_hidden_size=ffn, new_decoder_architecture=grouped,
        num_kv_heads=kv, multi_query=d.of(True, False), parallel_attn=grouped or d.of(True, False), bias=d.of(True, False), alibi=False,
        num_ln_in_parallel_attn=d.of(None, 1, 2) if grouped else None, activation=d.of("gelu", "gelu", "relu"),
        rope_parameters=dict(rope_theta=d.of(100.0, 10000.0), **d.of(dict(rope_type="default"), dict(rope_type="linear", factor=4.0))), **more,
    )  # fmt: skip


def llama(d):
    return T.LlamaConfig(**decoder(d, attention_bias=d.of(True, False), mlp_bias=d.of(True, False)))


def mistral(d):
    return T.MistralConfig(**decoder(d, sliding_window=d.of(None, 3, 9)))


def qwen2(d):
    fields = decoder(d, free=False)
    slides = dict(use_sliding_window=d.of(True, False), sliding_window=d.of(4, 7), max_window_layers=d.of(0, 1, 2))
    return T.Qwen2Config(**fields, **slides)


def qwen3(d):
    slides = dict(use_sliding_window=d.of(True, False), sliding_window=d.of(4, 7), max_window_layers=d.of(0, 1, 2))
    return T.Qwen3Config(**decoder(d, attention_bias=d.of(True, False)), **slides)


def gemma2(d):
    return T.Gemma2Config(**decoder(
        d, ropes=("default",), sliding_window=d.of(3, 8), query_pre_attn_scalar=d.size(4, 30), attention_bias=d.of(True, False),
        attn_logit_softcapping=d.of(None, 4.0, 50.0), final_logit_softcapping=d.of(None, 5.0, 30.0),
    ))  # fmt: skip


def gemma3(d):
    fields = decoder(d, sliding_window=d.of(3, 8), query_pre_attn_scalar=d.size(4, 30), attention_bias=d.of(True, False),
                     attn_logit_softcapping=d.of(None, 4.0), final_logit_softcapping=d.of(None, 5.0))  # fmt: skip
    fields["rope_parameters"] = dict(
        full_attention=d.of(dict(rope_type="default", rope_theta=1e6), dict(rope_type="linear", factor=8.0, rope_theta=1e5)),
        sliding_attention=dict(rope_type="default", rope_theta=d.of(1e4, 100.0)),
    )
    return T.Gemma3TextConfig(**fields, sliding_window_pattern=d.of(2, 3, 6))


def phi3(d):
    fields = decoder(d, free=False, ropes=("default",), sliding_window=d.of(None, 4, 9))
    width, rope = fields["hidden_size"] // fields["num_attention_heads"], fields["rope_parameters"]
    turns = d.of(*range(2, width + 1, 2))
    rope["partial_rotary_factor"] = turns / width
    if d.of(True, False):
        rope.update(long_rope(d, turns // 2))
    return T.Phi3Config(**fields, original_max_position_embeddings=d.of(8, fields["max_position_embeddings"]))


def mixtral(d):
    experts = d.size(2, 6)
    return T.MixtralConfig(**decoder(
        d, ropes=("default", "linear"), num_local_experts=experts, num_experts_per_tok=d.size(1, min(3, experts)), sliding_window=d.of(None, 5),
    ))  # fmt: skip


def qwen3_moe(d):
    experts, fields = d.size(2, 6), decoder(d, ropes=("default", "linear"), attention_bias=d.of(True, False))
    layers = fields["num_hidden_layers"]
    return T.Qwen3MoeConfig(
        **fields, num_experts=experts, num_experts_per_tok=d.size(1, min(3, experts)), moe_intermediate_size=d.size(9, 40),
        norm_topk_prob=d.of(True, False), decoder_sparse_step=d.of(1, 1, 2), mlp_only_layers=d.of([], [], [d.size(0, layers - 1)]),
        use_sliding_window=d.of(True, False), sliding_window=d.of(4, 7), max_window_layers=d.of(0, 1),
    )  # fmt: skip


CAUSAL, ENCODER = ("ForCausalLM", "ForSequenceClassification"), ("ForMaskedLM", "ForSequenceClassification", "ForQuestionAnswering")
# Config, the stem of the classes, heads, and whose names the blocks have.
FAMILIES = {
    "bert": (bert, "Bert", ENCODER, "bert"),
    "roberta": (roberta, "Roberta", ENCODER, "bert"),
    "xlm_roberta": (lambda d: roberta(d, T.XLMRobertaConfig), "XLMRoberta", ENCODER, "bert"),
    "distilbert": (distilbert, "DistilBert", ENCODER, "distilbert"),
    "electra": (electra, "Electra", ENCODER, "bert"),
    "gpt2": (gpt2, "GPT2", ("LMHeadModel", "ForSequenceClassification"), "gpt2"),
    "gpt_neo": (gpt_neo, "GPTNeo", CAUSAL, "gpt_neo"),
    "gpt_neox": (gpt_neox, "GPTNeoX", CAUSAL, "gpt_neox"),
    "codegen": (codegen, "CodeGen", ("ForCausalLM",), "codegen"),
    "opt": (opt, "OPT", CAUSAL, "opt"),
    "falcon": (falcon, "Falcon", CAUSAL, "falcon"),
    "llama": (llama, "Llama", CAUSAL, "llama"),
    "mistral": (mistral, "Mistral", CAUSAL, "llama"),
    "qwen2": (qwen2, "Qwen2", CAUSAL, "llama"),
    "qwen3": (qwen3, "Qwen3", CAUSAL, "llama"),
    "gemma2": (gemma2, "Gemma2", CAUSAL, "llama"),
    "gemma3": (gemma3, "Gemma3", ("ForCausalLM",), "llama"),
    "phi3": (phi3, "Phi3", CAUSAL, "llama"),
    "mixtral": (mixtral, "Mixtral", CAUSAL, "llama"),
    "qwen3_moe": (qwen3_moe, "Qwen3Moe", CAUSAL, "llama"),
}


def older(config):
    """The same config as transformers 4 spells it."""
    c, kind = dict(config), config["model_type"]
    c["torch_dtype"] = c.pop("dtype", None)
    kinds = c.pop("layer_types", None)
    pattern = c.pop("_sliding_window_pattern", None)
    if kind == "gemma3_text":
        c["sliding_window_pattern"] = pattern
    elif kind == "gpt_neo":
        c["attention_layers"] = c.get("attention_layers")
    elif kinds and kind == "gemma2" and kinds != [("sliding" if i % 2 == 0 else "full") + "_attention" for i in range(len(kinds))]:
        c["layer_types"] = kinds
    rope = c.pop("rope_parameters", None)
    if rope is None:
        return c
    if kind == "gemma3_text":
        c["rope_local_base_freq"], rope = rope["sliding_attention"]["rope_theta"], rope["full_attention"]
    rope = dict(rope)
    theta, partial = rope.pop("rope_theta"), rope.pop("partial_rotary_factor", None)
    if kind == "gpt_neox":
        c["rotary_emb_base"], c["rotary_pct"] = theta, partial
    else:
        c["rope_theta"] = theta
        if partial is not None:
            c["partial_rotary_factor"] = partial
    if rope["rope_type"] == "longrope" and kind == "phi3":
        rope.pop("original_max_position_embeddings", None)
    if rope["rope_type"] in ("linear", "dynamic", "longrope") and kind != "gemma3_text":
        rope["type"] = rope.pop("rope_type")
    c["rope_scaling"] = None if rope.get("rope_type") == "default" else rope
    return c


def shorter(config, cls):
    """Without the fields that hold what the class fills in."""
    silent = cls().to_dict()
    # Counts and widths are never left to the class.
    stays = lambda k, v: k in ("model_type", "architectures", "rope_parameters", "layer_types") or type(v) is int
    return {k: v for k, v in config.items() if stays(k, v) or k not in silent or v != silent[k]}


def inputs_of(d, config, head, g):
    batch, seq = d.size(2, 4), d.size(9, 22)
    ids = torch.randint(6, config.vocab_size, (batch, seq), generator=g)
    keep = torch.ones(batch, seq, dtype=torch.long)
    causal = head in ("ForCausalLM", "LMHeadModel")
    for row in range(1, batch):
        pads = d.size(0, seq // 2)
        # Some batches of decoders are padded on the left.
        where = slice(0, pads) if causal and batch % 2 else slice(seq - pads, seq)
        ids[row, where], keep[row, where] = config.pad_token_id, 0
    if head == "ForSequenceClassification" and config.pad_token_id is not None and d.of(True, False):
        # A decoder's class takes the last token that is no padding by its id alone.
        ids[0, seq - 1] = config.pad_token_id
    inputs = dict(input_ids=ids, attention_mask=keep)
    if getattr(config, "type_vocab_size", 1) > 1:
        inputs["token_type_ids"] = torch.randint(0, config.type_vocab_size, (batch, seq), generator=g) * keep
    if head == "ForSequenceClassification":
        labels = torch.linspace(-1, 1, batch) if config.num_labels == 1 else torch.arange(batch) % config.num_labels
    elif head == "ForQuestionAnswering":
        labels = torch.tensor([[row % 3, 2 + row % 2] for row in range(batch)])
    else:
        labels = ids.masked_fill(keep == 0, -100)
        # Nothing is predicted from padding.
        labels[:, 1:] = labels[:, 1:].masked_fill(keep[:, :-1] == 0, -100)
    return inputs, labels


def blocks_of(model):
    """The list of blocks: the longest-named module list whose entries are whole layers."""
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)]
    return next(m for name, m in lists if re.fullmatch(r"(.*\.)?(layers?|h)", name))


def inner(block, path):
    for part in path.split("."):
        block = getattr(block, part, None)
    return block


def column_gradients(module):
    weight, grad = module.weight, module.weight.grad
    product = weight * grad
    return product.sum(1) if type(module).__name__ == "Conv1D" else product.sum(0)


def make(family, seed, out):
    build, stem, heads, names = FAMILIES[family]
    d = Draw(seed, family)
    head = d.of(*heads)
    config = build(d)
    if head == "ForSequenceClassification":
        config.num_labels = d.of(1, 2, 3, 5)
    config.architectures = [stem + head]
    cls = getattr(T, stem + head)
    dtype = d.of(torch.float32, torch.float32, torch.bfloat16)
    g = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{family}:weights".encode()))
    extra = dict(experts_implementation="eager") if "num_experts_per_tok" in config.to_dict() else {}
    model = cls._from_config(config, attn_implementation="eager", dtype=torch.float32, **extra)
    gemma = family.startswith("gemma")
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if p.dim() == 1 and name.endswith("weight"):
                p.uniform_(-0.5 if gemma else 0.5, 0.5 if gemma else 1.5, generator=g)
            else:
                p.normal_(0.0, 0.25, generator=g)
    folder = os.path.join(out, f"{family}-{seed}")
    model.to(dtype).save_pretrained(folder, **d.of({}, {"max_shard_size": "20KB"}))
    model = cls.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32, **extra).eval()
    config = model.config
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        written = json.load(file)
    spellings = {"config_v4.json": older(written), "config_short.json": shorter(written, type(config))}
    for name, spelling in spellings.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(spelling, file, indent=2)
    inputs, labels = inputs_of(d, config, head, g)
    spans = head == "ForQuestionAnswering"
    asked = dict(start_positions=labels[:, 0], end_positions=labels[:, 1]) if spans else dict(labels=labels)
    states, hooks, blocks = {}, [], blocks_of(model)
    for i, block in enumerate(blocks):
        def seen(module, args, result, i=i):
            states[i] = (result[0] if isinstance(result, tuple) else result).detach()

        hooks.append(block.register_forward_hook(seen))
    result = model(**inputs, **asked, **({"use_cache": False} if names not in ("bert", "distilbert") else {}))
    result.loss.backward()
    logits = torch.stack([result.start_logits, result.end_logits], -1) if spans else result.logits
    batch, seq = inputs["input_ids"].shape
    shaped = [states[i].reshape(batch, seq, -1) for i in range(len(blocks))]
    expected = dict(inputs, labels=labels, logits=logits.detach(), loss=result.loss.detach(), hidden_states=torch.stack(shaped))
    heads_of, neurons_of = READERS[names]
    for i, block in enumerate(blocks):
        by_column = column_gradients(inner(block, heads_of))
        expected[f"head_grad.{i}"] = by_column.reshape(config.num_attention_heads, -1).sum(1).detach()
        experts = inner(block, "mlp.experts")
        if experts is not None:
            by_neuron = (experts.down_proj * experts.down_proj.grad).sum(1)
        else:
            by_neuron = column_gradients(inner(block, neurons_of))
        expected[f"neuron_grad.{i}"] = by_neuron.detach()
    # What transformers itself makes of the other spellings, where it reads them.
    for name in spellings:
        other = T.AutoConfig.from_pretrained(os.path.join(folder, name))
        same = cls.from_pretrained(folder, config=other, attn_implementation="eager", dtype=torch.float32, **extra).eval()
        with torch.no_grad():
            again = same(**inputs)
        again = torch.stack([again.start_logits, again.end_logits], -1) if spans else again.logits
        if (again - logits).abs().max() > 1e-5 * logits.abs().max():
            sys.exit(f"{folder}: transformers reads another model out of {name}")
    save_file({k: v.contiguous() for k, v in expected.items()}, os.path.join(folder, "expected.safetensors"))
    print(f"{family}-{seed}", flush=True)


def main():
    out, seed = sys.argv[1], sys.argv[2]
    for family in sys.argv[3:] or FAMILIES:
        make(family, seed, out)


if __name__ == "__main__":
    main()
