class Constant(nn.Module):
    """What a linear map without inputs is: its bias, or zeros."""

    def __init__(self, width, bias=False):
        super().__init__()
        self.width = width
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x):
        zeros = x.new_zeros(*x.shape[:-1], self.width)
        return zeros if self.bias is None else zeros + self.bias


class Nothing(nn.Module):
    """A map to zero features."""

    def forward(self, x):
        return x[..., :0]


class NoHeads(nn.Module):
    """Attention without heads. It still tells the cache how many tokens have passed: positions are counted there."""

    def __init__(self, index, output=None):
        super().__init__()
        self.index, self.output = index, output

    def forward(self, hidden_states, *args, past_key_values=None, layer_past=None, **kwargs):
        cache = past_key_values if past_key_values is not None else layer_past
        if cache is not None:
            batch, tokens = hidden_states.shape[:2]
            passed = hidden_states.new_zeros(batch, 1, tokens, 1)
            cache.update(passed, passed, self.index)
        nothing = hidden_states[..., :0]
        return (getattr(self, self.output)(nothing) if self.output else nothing), None


class Resharded(nn.Linear):
    """A fused projection whose file has `shards` blocks of q, v, k where the stock class cuts four, which need not divide its width: it
    is given the whole four times, and the first is taken."""

    shards = 4

    def forward(self, x):
        y = super().forward(x)
        y = y.unflatten(-1, (self.shards, 3, -1)).transpose(-3, -2).flatten(-3)
        return torch.cat([y] * 4, -1)


class LayerConfig:
    """The model's config as one layer sees it: some fields are the layer's own."""

    def __init__(self, config, **own):
        self.__dict__.update(own, shared=config)

    def __getattr__(self, name):
        if name == "shared":
            raise AttributeError(name)
        return getattr(self.shared, name)


def find(layer, part):
    """The module that holds a part of the layer, and the part's name in it."""
    *path, name = MODULES[part].split(".")
    for step in path:
        layer = getattr(layer, step)
    return layer, name


def put(layer, part, module):
    if part in MODULES:
        holder, name = find(layer, part)
        setattr(holder, name, module)


def resize(layer, part, inputs, outputs, bias):
    """Another size for a projection, where the family has it; `bias` is None where the stock class decides."""
    if part not in MODULES:
        return
    holder, name = find(layer, part)
    old = getattr(holder, name)
    if isinstance(old, Conv1D):
        setattr(holder, name, Conv1D(outputs, inputs))
    else:
        bias = old.bias is not None if bias is None else bias
        setattr(holder, name, type(old)(inputs, outputs, bias=bias))


def shape_attention(layer, index, hidden, dims, scale, biases):
    heads, kv_heads, size = dims["q_heads"], dims["kv_heads"], dims["head_dim"]
    fused = "attention.qkv" in MODULES
    holder = MODULES["attention.qkv" if fused else "attention.q"].rpartition(".")[0]
    outer, _, name = holder.rpartition(".")
    parent = layer.get_submodule(outer)
    if heads == 0:
        inside = MODULES["attention.o"].startswith(holder + ".")
        output = MODULES["attention.o"].rpartition(".")[2] if inside else None
        setattr(parent, name, NoHeads(index, output))
        put(layer, "attention.o", Constant(hidden, dims["attention_bias_left"]))
        if LAYOUT in ("pre", "sandwich", "parallel"):
            put(layer, "norm1", nn.Identity())
        if not dims["attention_bias_left"]:
            put(layer, "post_norm1", nn.Identity())
        return
    queries, keys = heads * size, kv_heads * size
    resize(layer, "attention.q", hidden, queries, biases.get("qkv"))
    resize(layer, "attention.k", hidden, keys, biases.get("qkv"))
    resize(layer, "attention.v", hidden, keys, biases.get("qkv"))
    resize(layer, "attention.qkv", hidden, queries + 2 * keys, biases.get("qkv"))
    resize(layer, "attention.o", queries, hidden, biases.get("o"))
    attention = getattr(parent, name)
    # Every name under which a stock class keeps a count or a width that its forward reads.
    counts = {
        "num_attention_heads": heads,
        "num_heads": heads,
        "n_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_kv_heads": kv_heads,
        "num_key_value_groups": heads // kv_heads,
        "head_dim": size,
        "head_size": size,
        "attention_head_size": size,
        "all_head_size": queries,
        "split_size": queries,
        "scaling": scale,
        "scale_attn": 1 / scale,
    }
    for attribute, value in counts.items():
        if hasattr(attention, attribute):
            setattr(attention, attribute, value)
    if hasattr(attention, "config"):
        attention.config = LayerConfig(attention.config, num_attention_heads=heads, num_key_value_heads=kv_heads)
    shards = next(n for n in (4, 3, 2, 1) if heads % n == 0)
    if SHARDED and shards != 4:
        projection = find(layer, "attention.qkv")
        resharded = Resharded(hidden, 3 * queries, bias=False)
        resharded.shards = shards
        setattr(*projection, resharded)
        attention.num_attention_heads = 4 * heads
        attention._split_heads = lambda x, *_, **named: x[..., 0, :].unflatten(-1, (heads, size))
        attention._merge_heads = lambda x, *_, **named: x.transpose(1, 2).flatten(-2)


def shape_mlp(layer, hidden, dims, top_k, biases):
    ffn, experts = dims["ffn"], dims["experts"]
    if ffn == 0:
        if hasattr(getattr(layer, "mlp", None), "experts"):
            layer.mlp = Constant(hidden)
        else:
            for part in ("mlp.gate", "mlp.up", "mlp.gate_up"):
                put(layer, part, Nothing())
            put(layer, "mlp.down", Constant(hidden, dims["mlp_bias_left"]))
        if LAYOUT in ("pre", "sandwich", "parallel"):
            put(layer, "norm2", nn.Identity())
        if not dims["mlp_bias_left"]:
            put(layer, "post_norm2", nn.Identity())
    elif experts:
        router, inner = layer.mlp.gate, layer.mlp.experts
        router.num_experts = inner.num_experts = experts
        router.top_k = min(top_k, experts)
        inner.intermediate_dim = ffn
        router.weight = nn.Parameter(router.weight.new_empty(experts, hidden))
        inner.gate_up_proj = nn.Parameter(inner.gate_up_proj.new_empty(experts, 2 * ffn, hidden))
        inner.down_proj = nn.Parameter(inner.down_proj.new_empty(experts, hidden, ffn))
        if ffn % 8 or hidden % 8:
            # torch's grouped product takes rows of whole 16 bytes only.
            inner.config = LayerConfig(inner.config, _experts_implementation="eager")
    else:
        resize(layer, "mlp.gate", hidden, ffn, biases.get("up"))
        resize(layer, "mlp.up", hidden, ffn, biases.get("up"))
        resize(layer, "mlp.gate_up", hidden, 2 * ffn, biases.get("up"))
        resize(layer, "mlp.down", ffn, hidden, biases.get("down"))


class Pruned:
    """Put before a stock class: gives the layers their own shapes as soon as they exist."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # transformers looks by name for the way in which tensors are renamed and fused on loading.
        stock = cls.__mro__[2].__name__
        name = cls.config_class.model_type if stock.endswith("Model") else stock
        mapping = get_checkpoint_conversion_mapping(name)
        if mapping is not None:
            register_checkpoint_conversion_mapping(cls.__name__, mapping, overwrite=True)

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        own = config.prunectl
        base = getattr(self, self.base_model_prefix, self)
        layers = base.get_submodule(LAYERS)
        if not len(layers) == len(own["layer_dims"]) == len(own["layers"]):
            raise ValueError(f"config.prunectl lists {len(own['layer_dims'])} layers, the model has {len(layers)}")
        biases = own.get("biases") or {}
        if "head_dim" in own and hasattr(base, "rotary_emb"):
            # Some classes take the width of a head to be that of the hidden states by their number.
            base.rotary_emb = type(base.rotary_emb)(LayerConfig(config, head_dim=own["head_dim"]))
        if "embedding_scale" in own:
            embedding = base.get_input_embeddings()
            embedding.scalar_embed_scale = own["embedding_scale"]
            embedding.embed_scale.fill_(own["embedding_scale"])
        for index, (layer, dims, spec) in enumerate(zip(layers, own["layer_dims"], own["layers"])):
            shape_attention(layer, index, config.hidden_size, dims, spec["scale"], biases)
            shape_mlp(layer, config.hidden_size, dims, getattr(config, "num_experts_per_tok", None), biases)
            if LAYOUT == "parallel_one_norm" and dims["q_heads"] == 0 and dims["ffn"] == 0:
                put(layer, "norm1", nn.Identity())
