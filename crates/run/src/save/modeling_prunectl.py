"""Loads a model whose layers differ in their numbers of heads and neurons.

`prunectl` writes this file beside weights that no stock class can hold. It subclasses the stock classes of
transformers and, before weights are read, gives each layer the shape that `config.prunectl["layer_dims"]` lists:

    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("path/to/folder", trust_remote_code=True)

Nothing else is changed: attention, caching and generation are the stock ones.
"""

import torch
from torch import nn
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
)


class Constant(nn.Module):
    """What a linear map without inputs is: its bias, or zeros."""

    def __init__(self, width, bias):
        super().__init__()
        self.width = width
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x):
        if self.bias is None:
            return x.new_zeros(*x.shape[:-1], self.width)
        return self.bias.expand(*x.shape[:-1], self.width)


class Nothing(nn.Module):
    """A map to zero features."""

    def forward(self, x, *args, **kwargs):
        return x[..., :0]


class NoHeads(nn.Module):
    """Attention without heads. It still tells the cache how many tokens have passed: positions are counted there."""

    def __init__(self, layer_idx, project):
        super().__init__()
        self.layer_idx = layer_idx
        if project is not None:
            self.o_proj = project

    def forward(self, hidden_states, *args, past_key_values=None, **kwargs):
        if past_key_values is not None:
            batch, tokens = hidden_states.shape[:2]
            passed = hidden_states.new_zeros(batch, 1, tokens, 1)
            past_key_values.update(passed, passed, self.layer_idx)
        project = getattr(self, "o_proj", None)
        empty = hidden_states[..., :0]
        return (empty if project is None else project(empty)), None


def linear(old, inputs, outputs):
    """A linear map of another size, with or without bias as the old one."""
    if (old.in_features, old.out_features) == (inputs, outputs):
        return old
    return nn.Linear(inputs, outputs, bias=old.bias is not None, device=old.weight.device, dtype=old.weight.dtype)


def shape_bert(layer, index, dims):
    attention, hidden = layer.attention, layer.output.dense.out_features
    width = dims["q_heads"] * dims["head_dim"]
    if dims["q_heads"] == 0:
        attention.self = NoHeads(index, None)
        attention.output.dense = Constant(hidden, dims["attention_bias_left"])
    else:
        inner = attention.self
        for name in ("query", "key", "value"):
            setattr(inner, name, linear(getattr(inner, name), hidden, width))
        inner.num_attention_heads = dims["q_heads"]
        inner.attention_head_size = dims["head_dim"]
        inner.all_head_size = width
        inner.scaling = dims["head_dim"] ** -0.5
        attention.output.dense = linear(attention.output.dense, width, hidden)
    if dims["ffn"] == 0:
        layer.intermediate = Nothing()
        layer.output.dense = Constant(hidden, dims["mlp_bias_left"])
    else:
        layer.intermediate.dense = linear(layer.intermediate.dense, hidden, dims["ffn"])
        layer.output.dense = linear(layer.output.dense, dims["ffn"], hidden)


def shape_llama(layer, index, dims):
    attention, mlp = layer.self_attn, layer.mlp
    hidden = attention.o_proj.out_features
    if dims["q_heads"] == 0:
        layer.self_attn = NoHeads(index, Constant(hidden, dims["attention_bias_left"]))
        layer.input_layernorm = nn.Identity()
    else:
        queries, keys = dims["q_heads"] * dims["head_dim"], dims["kv_heads"] * dims["head_dim"]
        attention.q_proj = linear(attention.q_proj, hidden, queries)
        attention.k_proj = linear(attention.k_proj, hidden, keys)
        attention.v_proj = linear(attention.v_proj, hidden, keys)
        attention.o_proj = linear(attention.o_proj, queries, hidden)
        attention.head_dim = dims["head_dim"]
        attention.num_key_value_groups = dims["q_heads"] // dims["kv_heads"]
        attention.scaling = dims["head_dim"] ** -0.5
    if dims["ffn"] == 0:
        mlp.gate_proj, mlp.up_proj = Nothing(), Nothing()
        mlp.down_proj = Constant(hidden, dims["mlp_bias_left"])
        layer.post_attention_layernorm = nn.Identity()
    else:
        mlp.gate_proj = linear(mlp.gate_proj, hidden, dims["ffn"])
        mlp.up_proj = linear(mlp.up_proj, hidden, dims["ffn"])
        mlp.down_proj = linear(mlp.down_proj, dims["ffn"], hidden)


def bert_layers(model):
    return getattr(model, "bert", model).encoder.layer


def llama_layers(model):
    return getattr(model, "model", model).layers


class Pruned:
    """Put before a stock class: gives the layers their own shapes as soon as they exist."""

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        layers, shapes = self.find_layers(), config.prunectl["layer_dims"]
        if len(layers) != len(shapes):
            raise ValueError(f"config.prunectl lists {len(shapes)} layers, the model has {len(layers)}")
        for index, (layer, dims) in enumerate(zip(layers, shapes)):
            self.shape_layer(layer, index, dims)


class PrunedBert(Pruned):
    find_layers = bert_layers
    shape_layer = staticmethod(shape_bert)


class PrunedLlama(Pruned):
    find_layers = llama_layers
    shape_layer = staticmethod(shape_llama)


class PrunedBertModel(PrunedBert, BertModel):
    pass


class PrunedBertForMaskedLM(PrunedBert, BertForMaskedLM):
    pass


class PrunedBertForQuestionAnswering(PrunedBert, BertForQuestionAnswering):
    pass


class PrunedBertForSequenceClassification(PrunedBert, BertForSequenceClassification):
    pass


class PrunedBertForTokenClassification(PrunedBert, BertForTokenClassification):
    pass


class PrunedLlamaModel(PrunedLlama, LlamaModel):
    pass


class PrunedLlamaForCausalLM(PrunedLlama, LlamaForCausalLM):
    pass


class PrunedLlamaForSequenceClassification(PrunedLlama, LlamaForSequenceClassification):
    pass
