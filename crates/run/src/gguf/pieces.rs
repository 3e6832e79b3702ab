//! The tensors of a file: their names, their shapes, and what of the model they hold.

use prunectl_model::{Blueprint, Head, Layout, NormKind, Pairs};

use super::arch::{Arch, Placed};

/// Factors that differ from 1 by less than this share are 1.
const UNIT: f64 = 1e-6;

/// Where a tensor's values come from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum From {
    /// One parameter.
    Slot(String),
    /// Its first rows.
    Rows(String, usize),
    /// Parameters of the same shape, one a leading index.
    Stack(Vec<String>),
    /// Parameters one below the other, each with a factor.
    Cat(Vec<(String, f64)>),
    /// One value.
    Fill(f32),
    /// These.
    Values(Vec<f32>),
}

/// What happens to the values on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing.
    None,
    /// The rows of each of so many heads go from halves to interleaved pairs.
    Interleave(usize),
    /// The first `turned` rows of each of so many heads go from interleaved pairs to halves.
    Halve {
        /// Heads.
        heads: usize,
        /// Rows of each that turn.
        turned: usize,
    },
    /// The norm's factor is 1 + w here, and stored whole there.
    PlusOne,
}

/// A tensor of the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Piece {
    pub name: String,
    pub shape: Vec<usize>,
    pub from: From,
    pub turn: Turn,
    /// Multiplies the values, after the turn.
    pub factor: f64,
}

/// Collects the tensors of an architecture.
pub(crate) struct Pieces<'a> {
    pub b: &'a Blueprint,
    pub arch: Arch,
    /// Layers of the model.
    pub layers: usize,
    pub list: Vec<Piece>,
}

impl Pieces<'_> {
    fn add(&mut self, name: String, shape: &[usize], from: From, turn: Turn) {
        self.list.push(Piece { name, shape: shape.to_vec(), from, turn, factor: 1.0 });
    }

    /// Multiplies what was added last.
    fn scale_last(&mut self, factor: f64) {
        if let Some(piece) = self.list.last_mut() {
            piece.factor = factor;
        }
    }

    fn norm(&mut self, name: &str, slot: Option<&str>, width: usize) {
        let plus_one = self.b.norm.kind == NormKind::RmsOffsetOne;
        match slot {
            Some(slot) => {
                let turn = if plus_one { Turn::PlusOne } else { Turn::None };
                self.add(format!("{name}.weight"), &[width], From::Slot(format!("{slot}.weight")), turn);
                if self.b.norm.kind == NormKind::Layer {
                    self.add(format!("{name}.bias"), &[width], From::Slot(format!("{slot}.bias")), Turn::None);
                }
            }
            // Before zeros: anything will do.
            None => self.add(format!("{name}.weight"), &[width], From::Fill(1.0), Turn::None),
        }
    }

    /// A bias of the model; zeros where the model has none and the architecture wants one.
    fn bias(&mut self, name: String, width: usize, has: bool, wanted: bool, slot: String) {
        match (has, wanted) {
            (true, _) => self.add(name, &[width], From::Slot(slot), Turn::None),
            (false, true) => self.add(name, &[width], From::Fill(0.0), Turn::None),
            (false, false) => {}
        }
    }

    /// Whether the architecture wants biases in attention and MLP.
    fn wants_biases(&self) -> bool {
        matches!(self.arch, Arch::Gpt2 | Arch::GptNeox | Arch::Phi2)
    }

    /// What stands beside the layers.
    pub(crate) fn model(&mut self, factors: Vec<(&str, Vec<f32>)>, context: usize) {
        let (b, hidden) = (self.b, self.b.hidden);
        let slot = |name: &str| From::Slot(name.into());
        self.add("token_embd.weight".into(), &[b.vocab, hidden], slot("embeddings.token.weight"), Turn::None);
        if let Some(p) = &b.embeddings.positions {
            let rows = context.min(p.rows);
            self.add("position_embd.weight".into(), &[rows, hidden], From::Rows("embeddings.position.weight".into(), rows), Turn::None);
        }
        self.norm("output_norm", Some("final_norm"), hidden);
        let (tied, bias) = match b.head {
            Head::Tokens { tied, bias, .. } => (tied, bias),
            _ => (true, false),
        };
        // Some architectures read the embedding where this is not there, some want it.
        if !tied || matches!(self.arch, Arch::GptNeox | Arch::Phi2) {
            let from = if tied { "embeddings.token.weight" } else { "head.weight" };
            self.add("output.weight".into(), &[b.vocab, hidden], slot(from), Turn::None);
        }
        self.bias("output.bias".into(), b.vocab, bias, self.arch == Arch::Phi2, "head.bias".into());
        for (name, values) in factors {
            self.add(format!("{name}.weight"), &[values.len()], From::Values(values), Turn::None);
        }
    }

    /// One layer, the file's `to`-th.
    pub(crate) fn layer(&mut self, to: usize, layer: &Placed<'_>) {
        let (b, hidden, d) = (self.b, self.b.hidden, layer.dims);
        let (s, t) = (format!("layers.{}", layer.index), format!("blk.{to}"));
        let (norm1, norm2) = (format!("{s}.norm1"), format!("{s}.norm2"));
        if self.arch == Arch::Falcon && b.layout == Layout::Parallel {
            // Its second norm is the attention's.
            self.norm(&format!("{t}.attn_norm"), Some(&norm2), hidden);
            self.norm(&format!("{t}.attn_norm_2"), Some(&norm1), hidden);
        } else if layer.heads > 0 {
            self.norm(&format!("{t}.attn_norm"), (d.q_heads > 0).then_some(norm1.as_str()), hidden);
        }
        if layer.heads > 0 {
            self.attention(&s, &t, layer);
        }
        if d.has_attention() && b.layout == Layout::Sandwich {
            self.norm(&format!("{t}.post_attention_norm"), Some(&format!("{s}.post_norm1")), hidden);
        }
        if !matches!(self.arch, Arch::Falcon | Arch::Phi2) {
            let shared = b.layout == Layout::ParallelOneNorm;
            let slot = if shared { norm1 } else { norm2 };
            self.norm(&format!("{t}.ffn_norm"), (d.ffn > 0).then_some(slot.as_str()), hidden);
        }
        self.mlp(&s, &t, layer);
        if d.has_mlp() && b.layout == Layout::Sandwich {
            self.norm(&format!("{t}.post_ffw_norm"), Some(&format!("{s}.post_norm2")), hidden);
        }
    }

    fn attention(&mut self, s: &str, t: &str, layer: &Placed<'_>) {
        let (a, hidden, d) = (&self.b.attention, self.b.hidden, layer.dims);
        let (queries, keys) = (layer.heads * d.head_dim, layer.kv_heads * d.head_dim);
        // What a model's own factor on scores is more than the architecture's goes into its queries.
        let own = self.b.layers.get(layer.index).map_or(1.0, |l| l.scale) / self.arch.scale(self.layers, hidden, d);
        let factor = if (own - 1.0).abs() < UNIT { 1.0 } else { own };
        let on_queries = if a.qk_norm { 1.0 } else { factor };
        if matches!(self.arch, Arch::Gpt2 | Arch::GptNeox | Arch::Falcon | Arch::OpenElm) {
            let all = |leaf: &str, there: bool| match there {
                true => {
                    From::Cat([("q", on_queries), ("k", 1.0), ("v", 1.0)].map(|(n, f)| (format!("{s}.attention.{n}.{leaf}"), f)).to_vec())
                }
                false => From::Fill(0.0),
            };
            let rows = queries + 2 * keys;
            self.add(format!("{t}.attn_qkv.weight"), &[rows, hidden], all("weight", d.q_heads > 0), Turn::None);
            if a.qkv_bias || self.wants_biases() {
                self.add(format!("{t}.attn_qkv.bias"), &[rows], all("bias", a.qkv_bias), Turn::None);
            }
        } else {
            let table = self.b.layers.get(layer.index).and_then(|l| l.rotary).and_then(|r| self.b.rotary.get(r));
            // `llama` and `deci` turn neighbouring entries of a head, the others entries half a head apart.
            let turn = |heads: usize| match table {
                _ if heads == 0 => Turn::None,
                _ if matches!(self.arch, Arch::Llama | Arch::Deci) => Turn::Interleave(heads),
                Some(r) if r.pairs == Pairs::Interleaved => Turn::Halve { heads, turned: r.dim },
                _ => Turn::None,
            };
            for (name, rows, turn) in [("q", queries, turn(layer.heads)), ("k", keys, turn(layer.kv_heads)), ("v", keys, Turn::None)] {
                for (leaf, shape) in [("weight", vec![rows, hidden]), ("bias", vec![rows])] {
                    let from = match (leaf, d.q_heads) {
                        ("bias", _) if !a.qkv_bias => continue,
                        (_, 0) => From::Fill(0.0),
                        _ => From::Slot(format!("{s}.attention.{name}.{leaf}")),
                    };
                    self.add(format!("{t}.attn_{name}.{leaf}"), &shape, from, turn);
                    if name == "q" {
                        self.scale_last(on_queries);
                    }
                }
            }
        }
        if a.qk_norm {
            let slot = |name: &str| (d.q_heads > 0).then(|| format!("{s}.attention.{name}"));
            self.norm(&format!("{t}.attn_q_norm"), slot("q_norm").as_deref(), d.head_dim);
            self.scale_last(factor);
            self.norm(&format!("{t}.attn_k_norm"), slot("k_norm").as_deref(), d.head_dim);
        }
        let from = if d.q_heads > 0 { From::Slot(format!("{s}.attention.o.weight")) } else { From::Fill(0.0) };
        self.add(format!("{t}.attn_output.weight"), &[hidden, queries], from, Turn::None);
        let has = a.o_bias && d.has_attention();
        self.bias(format!("{t}.attn_output.bias"), hidden, has, self.wants_biases(), format!("{s}.attention.o.bias"));
    }

    fn mlp(&mut self, s: &str, t: &str, layer: &Placed<'_>) {
        let (m, hidden, d) = (&self.b.mlp, self.b.hidden, layer.dims);
        let names: &[&str] = if m.gated { &["gate", "up", "down"] } else { &["up", "down"] };
        if d.experts > 0 {
            self.add(format!("{t}.ffn_gate_inp.weight"), &[d.experts, hidden], From::Slot(format!("{s}.mlp.router.weight")), Turn::None);
            for name in names {
                let shape = if *name == "down" { [d.experts, hidden, d.ffn] } else { [d.experts, d.ffn, hidden] };
                let all = (0..d.experts).map(|e| format!("{s}.mlp.experts.{e}.{name}.weight")).collect();
                self.add(format!("{t}.ffn_{name}_exps.weight"), &shape, From::Stack(all), Turn::None);
            }
            return;
        }
        for name in names {
            let (shape, bias, width) = match *name {
                "down" => ([hidden, layer.ffn], m.down_bias && d.has_mlp(), hidden),
                _ => ([layer.ffn, hidden], m.up_bias && d.ffn > 0, layer.ffn),
            };
            let from = if d.ffn > 0 { From::Slot(format!("{s}.mlp.{name}.weight")) } else { From::Fill(0.0) };
            self.add(format!("{t}.ffn_{name}.weight"), &shape, from, Turn::None);
            self.bias(format!("{t}.ffn_{name}.bias"), width, bias, self.wants_biases(), format!("{s}.mlp.{name}.bias"));
        }
    }
}
