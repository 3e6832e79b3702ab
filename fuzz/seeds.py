"""Small files for the fuzzer to begin with: parquet in every codec and shape that data sets have, rows, and tokenizers of each kind.

    python fuzz/seeds.py fuzz/corpus        # needs pyarrow and tokenizers
"""

import gzip
import hashlib
import io
import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = sys.argv[1]
TEXTS = [
    "The cat sat by the window and watched the rain.",
    "A small boat, \"Wren\", left the harbour at dawn.",
    "½ cup of flour; naïve cooks use more.",
    "",
    "one two three four five six seven",
]


def keep(target, name, data):
    folder = os.path.join(OUT, target)
    os.makedirs(folder, exist_ok=True)
    data = data if isinstance(data, bytes) else data.encode()
    with open(os.path.join(folder, hashlib.sha1(data).hexdigest()[:8] + "-" + name), "wb") as out:
        out.write(data)


def parquet():
    n = len(TEXTS)
    table = pa.table(
        {
            "text": TEXTS,
            "label": pa.array([0, 1, None, 1, 0], pa.int64()),
            "score": pa.array([0.5, None, 1.5, 2.0, -1.0], pa.float32()),
            "ok": [True, False, None, True, False],
        }
    )
    squad = pa.table(
        {
            "question": TEXTS[:2],
            "context": TEXTS[:2],
            "answers": pa.array(
                [{"text": ["cat"], "answer_start": [4]}, {"text": [], "answer_start": []}],
                pa.struct([("text", pa.list_(pa.string())), ("answer_start", pa.list_(pa.int32()))]),
            ),
        }
    )
    quiz = pa.table({"question": TEXTS[:2], "choices": [["a", "b"], ["c", None]], "answer": ["A", "B"]})
    chat = pa.table({"messages": [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]] * 2})
    dictionary = pa.table({"text": pa.array(TEXTS).dictionary_encode(), "label": pa.array(["no", "yes", "no", "yes", "no"]).dictionary_encode()})
    odd = pa.table(
        {
            "text": pa.array(TEXTS, pa.large_string()),
            "day": pa.array([1, 2, 3, 4, 5], pa.date32()),
            "at": pa.array([1, 2, 3, 4, 5], pa.timestamp("us")),
            "at96": pa.array([1, 2, 3, 4, 5], pa.timestamp("ns")),
            "bytes": pa.array([b"a", b"b", None, b"", b"e"], pa.binary()),
            "fixed": pa.array([b"ab"] * n, pa.binary(2)),
            "dec": pa.array([1, 2, 3, 4, 5], pa.decimal128(10, 2)),
            "u8": pa.array([1, 2, 3, 4, 5], pa.uint8()),
            "u64": pa.array([1, 2, 3, 4, 2**63], pa.uint64()),
            "half": pa.array([0.5, 1, 2, 3, 4], pa.float16()),
            "map": pa.array([[("k", 1)]] * n, pa.map_(pa.string(), pa.int32())),
            "deep": pa.array([[[{"x": [1]}]]] * n),
        }
    )

    def write(name, table, **options):
        out = io.BytesIO()
        pq.write_table(table, out, **options)
        keep("parquet", name, out.getvalue())

    for codec in ("NONE", "SNAPPY", "GZIP", "ZSTD", "LZ4", "BROTLI"):
        write(f"{codec.lower()}.parquet", table, compression=codec)
    for name, other in (("squad", squad), ("quiz", quiz), ("chat", chat), ("dictionary", dictionary)):
        write(f"{name}.parquet", other, compression="NONE")
        write(f"{name}-snappy.parquet", other)
    write("odd.parquet", odd, compression="NONE", use_deprecated_int96_timestamps=True)
    write("v2-pages.parquet", table, data_page_version="2.0", compression="NONE")
    write("v2-pages-zstd.parquet", table, data_page_version="2.0", compression="ZSTD")
    write("plain.parquet", table, use_dictionary=False, compression="NONE", write_statistics=False)
    write("checksums.parquet", table, write_page_checksum=True, compression="NONE")
    write("index.parquet", table, write_page_index=True, compression="NONE")
    write("groups.parquet", pa.concat_tables([table] * 4), row_group_size=3, data_page_size=16, compression="NONE")
    write("empty.parquet", table.slice(0, 0), compression="NONE")
    for encoding in ("DELTA_BINARY_PACKED", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", "BYTE_STREAM_SPLIT"):
        column, kind = {
            "DELTA_BINARY_PACKED": ("label", pa.table({"text": TEXTS, "label": [1, 5, 2, 9, -4]})),
            "BYTE_STREAM_SPLIT": ("score", pa.table({"text": TEXTS, "score": pa.array([0.5, 1, 2, 3, 4], pa.float32())})),
        }.get(encoding, ("text", pa.table({"text": TEXTS})))
        write(f"{encoding.lower()}.parquet", kind, use_dictionary=False, column_encoding={column: encoding}, compression="NONE")


def rows():
    csv = 'text,label\n"a, b",1\n"two\nlines",0\n'
    lines = "".join(json.dumps(row) + "\n" for row in (
        {"text": "one", "label": 1},
        {"question": "Q?", "choices": ["a", "b"], "answer": "B"},
        {"question": "Where?", "context": "Here it is.", "answers": {"text": ["Here"], "answer_start": [0]}},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        {"ctx": "A man", "endings": ["sits", "flies"], "label": "0"},
        {"sentence_good": "a", "sentence_bad": "b"},
    ))
    for flags in (0x00, 0x10, 0x20, 0x30):
        keep("rows", "csv", bytes([flags]) + csv.encode())
        keep("rows", "csv.gz", bytes([flags]) + gzip.compress(csv.encode()))
        keep("rows", "bom.csv", bytes([flags]) + b"\xef\xbb\xbf" + csv.encode())
        keep("rows", "tsv", bytes([flags | 1]) + csv.replace(",", "\t").encode())
        keep("rows", "jsonl", bytes([flags | 2]) + lines.encode())
        for line in lines.splitlines(keepends=True):
            keep("rows", "line.jsonl", bytes([flags | 2]) + line.encode())
        keep("rows", "jsonl.gz", bytes([flags | 2]) + gzip.compress(lines.encode()))
        keep("rows", "txt", bytes([flags | 3]) + "\n\n".join(TEXTS).encode())


def tokenizers():
    special = ["<unk>", "<s>", "</s>", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]

    def save(name, tokenizer):
        keep("tokenizer", name + ".json", tokenizer.to_str())

    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=80, special_tokens=special, show_progress=False))
    save("bpe", bpe)
    bpe.post_processor = processors.ByteLevel(trim_offsets=True)
    save("bpe-post", bpe)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", 1)])
    bpe.enable_truncation(8)
    bpe.enable_padding(length=8)
    save("bpe-llama", bpe)
    split = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    split.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"), normalizers.NFKC()])
    split.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    split.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=60, special_tokens=special, show_progress=False))
    save("bpe-sentencepiece", split)
    word = Tokenizer(models.WordPiece(unk_token="<unk>"))
    word.normalizer = normalizers.BertNormalizer()
    word.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    word.post_processor = processors.BertProcessing(("[SEP]", 5), ("[CLS]", 4))
    word.decoder = decoders.WordPiece()
    word.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=80, special_tokens=special, show_progress=False))
    save("wordpiece", word)
    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.StripAccents()])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    unigram.train_from_iterator(TEXTS * 4, trainers.UnigramTrainer(vocab_size=40, special_tokens=special, unk_token="<unk>", show_progress=False))
    save("unigram", unigram)
    level = Tokenizer(models.WordLevel(unk_token="<unk>"))
    level.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(), pre_tokenizers.Punctuation()])
    level.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    level.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    save("wordlevel", level)
    pattern = Tokenizer(models.BPE())
    pattern.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pre_tokenizers_pattern(), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    pattern.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=70, show_progress=False))
    save("bpe-pattern", pattern)


def pre_tokenizers_pattern():
    from tokenizers import Regex

    return Regex(r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+| ?\p{L}+")


parquet()
rows()
tokenizers()
