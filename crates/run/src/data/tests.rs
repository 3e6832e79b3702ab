//! Sources as users write them, whole and broken, through the same doors as the executor.

use std::path::{Path, PathBuf};

use candle_core::Device;
use prunectl_model::{IGNORED, Labels};
use prunectl_prune::{Batches, Examples};
use prunectl_recipe::catalogue::Args;
use prunectl_recipe::plan::{DataDecl, DataExpr, DataSource, Share, Span, Value};

use super::*;
use crate::hub::Door;
use crate::tokenizer::Tokenizer;

/// A word-level tokenizer with BERT's template, and the truncation and fixed padding that a file may carry.
pub(crate) fn tokenizer() -> Tokenizer {
    let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "e", "f", "g", "h", "good", "bad"];
    let vocab: serde_json::Map<_, _> = words.iter().enumerate().map(|(i, w)| ((*w).to_owned(), i.into())).collect();
    let special = |i: usize| serde_json::json!({"id": i, "content": words[i], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let json = serde_json::json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": (0..5).map(special).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}, "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    });
    Tokenizer::from_bytes("test tokenizer", json.to_string().as_bytes(), &serde_json::Value::Null).expect("tokenizer")
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("folder"))
    }
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).expect("write");
        path
    }
}

fn decl(source: DataSource, fields: &[(&str, Value)]) -> DataDecl {
    let fields = Args(fields.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect());
    DataDecl { name: "d".into(), source, fields, span: Span::default() }
}

fn store_of(decls: &[DataDecl]) -> DataStore {
    DataStore::new(decls, &Door::cache_only())
}

fn all() -> DataExpr {
    DataExpr::Source { name: "d".into(), split: None }
}

fn open(source: DataSource, fields: &[(&str, Value)]) -> Result<Dataset, DataError> {
    store_of(&[decl(source, fields)]).resolve(&all())
}

fn documents(d: &Dataset) -> Vec<Document> {
    let s = d.select(Some(&tokenizer())).expect("rows");
    let one = |r: &select::RowRef| match r {
        select::RowRef::Stored { table, row } => s.table(*table).expect("table").document(*row as usize).expect("read").expect("document"),
        select::RowRef::Window { .. } => panic!("a window"),
    };
    s.rows.iter().map(one).collect()
}

fn texts(d: &Dataset) -> Vec<String> {
    documents(d).into_iter().map(|d| d.text).collect()
}

fn refused<T: std::fmt::Debug>(r: Result<T, DataError>, words: &[&str]) {
    let e = r.expect_err("refused").to_string();
    for w in words {
        assert!(e.contains(w), "{e:?} does not say {w:?}");
    }
}

fn spec(target: Option<Target>) -> BatchSpec {
    BatchSpec { target, need: Need::Required, max_length: 16, batch: 2, apart: false, vocabulary: 15, token_types: 2, device: Device::Cpu }
}

fn ids(b: &prunectl_model::Batch) -> Vec<Vec<u32>> {
    b.input_ids.to_vec2().expect("ids")
}

#[test]
fn csv_with_header_quotes_and_crlf() {
    let f = Folder::new();
    let p = f.file("a.csv", "\u{feff}sentence,label,id\r\n\"a, \"\"b\"\"\nc\",1,x\r\n\r\nd,0,y\r\n");
    let d = open(DataSource::Csv(p), &[]).expect("opens");
    assert_eq!(texts(&d), ["a, \"b\"\nc", "d"]);
    assert_eq!(documents(&d).iter().map(|d| d.label.clone()).collect::<Vec<_>>(), [Some(Label::Integer(1)), Some(Label::Integer(0))]);
    let s = d.select(None).expect("rows");
    assert_eq!((s.place(0).line, s.place(1).line), (2, 5));
}

#[test]
fn tsv_takes_quotes_as_text() {
    let f = Folder::new();
    let p = f.file("a.tsv", "sentence\tlabel\n\" a\t1\nit 's \"b\t0\n");
    assert_eq!(texts(&open(DataSource::Csv(p), &[]).expect("opens")), ["\" a", "it 's \"b"]);
}

#[test]
fn columns_by_number_without_a_header() {
    let f = Folder::new();
    let p = f.file("stsb.csv", "a b,\"c, d\",5.0\ne,f,2.4\n");
    let n = |x: f64| Value::Number(x);
    let d = open(DataSource::Csv(p.clone()), &[("text", n(0.0)), ("text_pair", n(1.0)), ("label", n(2.0))]).expect("opens");
    let docs = documents(&d);
    assert_eq!((docs[0].text.as_str(), docs[0].pair.as_deref()), ("a b", Some("c, d")));
    assert_eq!(docs.iter().map(|d| d.label.clone()).collect::<Vec<_>>(), [Some(Label::Real(5.0)), Some(Label::Real(2.4))]);
    let mut b = d.batches(Some(&tokenizer()), spec(Some(Target::Values))).expect("batches");
    let batch = b.next().expect("reads").expect("one");
    assert_eq!(ids(&batch), [[2, 5, 6, 3, 7, 1, 8, 3], [2, 9, 3, 10, 3, 0, 0, 0]]);
    assert_eq!(batch.token_type_ids.expect("types").to_vec2::<u32>().expect("types"), [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0, 0]]);
    let Some(Labels::Values(v)) = batch.labels else { panic!("values") };
    assert_eq!(v.to_vec1::<f32>().expect("values"), [5.0, 2.4]);

    refused(open(DataSource::Csv(p.clone()), &[]), &["no column `text`", "`a b`", "text = 0, label = 1"]);
    refused(open(DataSource::Csv(p.clone()), &[("text", n(7.0))]), &["no column `7`", "3 columns"]);
    refused(open(DataSource::Csv(p), &[("text", Value::Text("nope".into()))]), &["no column `nope`", "5.0"]);
}

#[test]
fn jsonl_with_named_fields_and_named_labels() {
    let f = Folder::new();
    let p = f.file("a.jsonl", "\u{feff}{\"body\": \"a\\nb\", \"y\": \"good\"}\r\n\n{\"body\": \"c\", \"y\": \"bad\"}");
    let text = |s: &str| Value::Text(s.into());
    let named = [("text", text("body")), ("label", text("y"))];
    let d = open(DataSource::Jsonl(p.clone()), &named).expect("opens");
    assert_eq!(texts(&d), ["a\nb", "c"]);
    let classes = |d: &Dataset, c: Classes| {
        let mut b = d.batches(Some(&tokenizer()), spec(Some(Target::Classes(c))))?;
        match Examples::batch(&mut b, &[1, 0]).expect("batch").labels {
            Some(Labels::Classes(t)) => Ok::<_, DataError>(t.to_vec1::<i64>().expect("classes")),
            _ => panic!("classes"),
        }
    };
    refused(classes(&d, Classes::new(2)), &["a.jsonl:1: no label is called `good`", "labels = ["]);
    let d = open(DataSource::Jsonl(p), &[named[0].clone(), named[1].clone(), ("labels", Value::List(vec![text("bad"), text("good")]))])
        .expect("opens");
    assert_eq!(classes(&d, Classes::new(2)).expect("classes"), [0, 1]);
}

#[test]
fn corrupt_rows_stop_or_are_counted() {
    let f = Folder::new();
    let p = f.file(
        "a.jsonl",
        "{\"text\": \"a\"}\nnot json\n[1]\n{\"text\": 3}\n{\"other\": 1}\n{\"text\": \"b\", \"label\": [1]}\n{\"text\": \"b\"}\n",
    );
    let e = open(DataSource::Jsonl(p.clone()), &[]).expect_err("refused").to_string();
    assert!(e.contains("4 of 7 rows can't be read") && e.contains("line 2: not JSON: expected ident at column 2"), "{e}");
    assert!(e.contains("line 3: not a JSON object") && e.contains("line 4: field `text` is a number; expected a string"), "{e}");
    let skip = [("corrupt", Value::Word("skip".into()))];
    let store = store_of(&[decl(DataSource::Jsonl(p), &skip)]);
    assert_eq!(store.resolve(&all()).expect("opens").count(), Some(3));
    let skipped = store.skipped();
    assert_eq!((skipped.len(), skipped[0].1.count, skipped[0].1.of), (1, 4, 7));
    assert_eq!(store.files()[0].sha256.len(), 64);

    let p = f.file("a.csv", "text,label\na,1\nb\nc,0,9\nd,1\n");
    refused(open(DataSource::Csv(p), &[]), &["2 of 4 rows", "line 3: found 1 columns, expected 2", "line 4: found 3"]);
    let p = f.file("q.csv", "label,text\n1,a\n1,\"b\n1,c\n0,d\n");
    refused(open(DataSource::Csv(p), &[]), &["line 3", "never closed"]);
}

#[test]
fn bytes_that_are_not_text() {
    let f = Folder::new();
    refused(open(DataSource::Text(f.file("a.txt", b"ab\ncd\xff")), &[]), &["byte 5 (line 2)", "iconv"]);
    refused(open(DataSource::Csv(f.file("a.csv", b"text,label\na,1\nb\xe9,0\n")), &[]), &["byte 16 (line 3) is not UTF-8"]);
    refused(open(DataSource::Jsonl(f.file("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\xe9\"}\n")), &[]), &["byte 24 (line 2)"]);
    refused(open(DataSource::Jsonl(f.file("a.json", "[{\"text\": \"a\"}]")), &[]), &["a JSON list", "jq"]);
    refused(open(DataSource::Jsonl(f.file("a.jsonl.gz", [0x1f, 0x8b, 8, 0])), &[]), &["a.jsonl.gz", "can't be unpacked"]);
    refused(open(DataSource::Csv(f.file("a.parquet", "PAR1....")), &[]), &["a parquet file"]);
    refused(open(DataSource::Text(f.0.path().join("none.txt")), &[]), &["none.txt", "No such file"]);
}

#[test]
fn nothing_in_a_file() {
    let f = Folder::new();
    refused(open(DataSource::Text(f.file("a.txt", "")), &[]), &["is empty"]);
    refused(open(DataSource::Csv(f.file("a.csv", "text,label\n")), &[]), &["is empty: the file has no rows"]);
    refused(open(DataSource::Csv(f.file("b.csv", "\n\n")), &[]), &["is empty"]);
    refused(open(DataSource::Jsonl(f.file("a.jsonl", "\n \n")), &[]), &["is empty"]);
    let skip = [("corrupt", Value::Word("skip".into()))];
    refused(open(DataSource::Jsonl(f.file("b.jsonl", "x\n")), &skip), &["all of its 1 rows are corrupt"]);
}

#[test]
fn a_line_of_a_megabyte() {
    let f = Folder::new();
    let long = "a ".repeat(500_000);
    let d = open(DataSource::Jsonl(f.file("a.jsonl", format!("{{\"text\": \"{long}\"}}\n{{\"text\": \"b\"}}\n"))), &[]).expect("opens");
    let mut b = d.batches(Some(&tokenizer()), spec(Some(Target::NextToken))).expect("batches");
    assert_eq!(ids(&b.next().expect("reads").expect("one"))[0].len(), 16);
    assert!(b.notes()[0].contains("1 of 2 rows were cut; rows over 16 tokens are cut at the end"), "{:?}", b.notes());
    let d = open(DataSource::Csv(f.file("a.csv", format!("text\n{long}\nb\n"))), &[]).expect("opens");
    assert_eq!(texts(&d)[0].len(), 1_000_000);
}

#[test]
fn folders_have_splits() {
    let f = Folder::new();
    f.file("train-20k.tsv", "sentence\tlabel\na\t1\n");
    f.file("dev.tsv", "sentence\tlabel\nb\t1\n");
    f.file("README.md", "x");
    let decls = [decl(DataSource::Csv(f.0.path().to_owned()), &[])];
    assert_eq!(splits(&decls[0], &Door::cache_only()), Some(vec!["train".into(), "validation".into()]));
    let store = store_of(&decls);
    let split = |s: &str| DataExpr::Source { name: "d".into(), split: Some(s.into()) };
    assert_eq!(texts(&store.resolve(&split("validation")).expect("opens")), ["b"]);
    assert_eq!(texts(&store.resolve(&split("dev")).expect("opens")), ["b"]);
    refused(store.resolve(&split("test")), &["no split `test`", "`d.train`, `d.validation`"]);
    refused(store.resolve(&all()), &["has splits; say which"]);
    f.file("valid.csv", "text\nx\n");
    refused(store.check(&split("train")), &["2 files for the split `validation`"]);
    let one = store_of(&[decl(DataSource::Csv(f.file("x.csv", "text\nx\n")), &[])]);
    refused(one.resolve(&split("train")), &["has no split `train`; it is one file"]);
    let empty = Folder::new();
    refused(open(DataSource::Text(empty.0.path().to_owned()), &[]), &["a folder without .txt"]);
}

#[test]
fn what_is_not_there_yet_is_refused_before_reading() {
    // Without a network and without a cache.
    let hub = store_of(&[decl(DataSource::Hub("no-such/set".into()), &[("config", Value::Text("mnli".into()))])]);
    refused(hub.check(&all()), &["no-such/set"]);
    let f = Folder::new();
    let store = store_of(&[decl(DataSource::Text(f.file("a.txt", "a")), &[])]);
    let chat = DataExpr::Chat { of: Box::new(all()), model: "m".into(), loss: "assistant".into() };
    store.check(&chat).expect("conversations are read row by row");
    refused(store.resolve(&chat).expect("opens").stream(Some(&tokenizer()), 15), &["conversations", "a stream of tokens has no turns"]);
    refused(store.check(&DataExpr::Source { name: "e".into(), split: None }), &["no data is called `e`; declared: `d`"]);
    refused(open(DataSource::Builtin("stories".into()), &[]), &["no built-in data is called `stories`; there is: `tales`"]);
}

fn lines(f: &Folder, n: usize) -> DataStore {
    let rows: String = (0..n).map(|i| format!("{{\"text\": \"{} {i}\"}}\n", ["a", "b", "c"][i % 3])).collect();
    store_of(&[decl(DataSource::Jsonl(f.file("n.jsonl", rows)), &[])])
}

#[test]
fn samples_and_takes() {
    let f = Folder::new();
    let store = lines(&f, 50);
    let sample =
        |n: u64, seed: u64| texts(&store.resolve(&DataExpr::Sample { of: Box::new(all()), n, length: None, seed }).expect("opens"));
    // Recorded: the same documents on every platform.
    assert_eq!(sample(4, 0), ["b 13", "a 0", "c 2", "a 18"]);
    assert_eq!(sample(4, 0), sample(50, 0)[..4]);
    assert_ne!(sample(4, 0), sample(4, 1));
    let take = |n| store.resolve(&DataExpr::Take { of: Box::new(all()), n }).and_then(|d| d.select(None)).map(|s| s.rows.len());
    assert_eq!(take(7).expect("rows"), 7);
    refused(take(51), &["d.take(51): there are 50 rows; expected at least 51"]);
    refused(take(0), &["n = 0"]);
}

#[test]
fn windows_of_the_stream() {
    let f = Folder::new();
    let store = store_of(&[decl(DataSource::Text(f.file("a.txt", "a b c d e f g h a b c")), &[])]);
    let t = tokenizer();
    let pack = |tokens| DataExpr::Pack { of: Box::new(all()), tokens };
    let stream = store.resolve(&all()).and_then(|d| d.stream(Some(&t), 15)).expect("stream");
    assert_eq!((stream.prefix.as_slice(), stream.ids.as_slice()), (&[2u32][..], &[5, 6, 7, 8, 9, 10, 11, 12, 5, 6, 7][..]));
    let d = store.resolve(&pack(5)).expect("opens");
    let mut b = d.batches(Some(&t), spec(Some(Target::NextToken))).expect("batches");
    assert_eq!((b.rows(), b.tokens_hint()), (2, Some(10)));
    let batch = b.next().expect("reads").expect("one");
    assert_eq!(ids(&batch), [[2, 5, 6, 7, 8], [9, 10, 11, 12, 5]]);
    assert!(batch.keep.is_none());
    refused(store.resolve(&pack(13)).and_then(|d| d.select(Some(&t))), &["has 12 tokens; expected at least one window of 13"]);
    refused(store.resolve(&pack(5)).and_then(|d| d.select(None)), &["no tokenizer"]);
    let mut small = spec(None);
    small.max_length = 4;
    refused(d.batches(Some(&t), small), &["5 tokens; the model takes at most 4"]);

    let windows = |seed| {
        let e = DataExpr::Sample { of: Box::new(all()), n: 4, length: Some(3), seed };
        let d = store.resolve(&e).expect("opens");
        let mut b = d.batches(Some(&t), spec(Some(Target::NextToken))).expect("batches");
        ids(&Examples::batch(&mut b, &[0, 1, 2, 3]).expect("batch"))
    };
    let whole = [vec![2], stream.ids.clone()].concat();
    assert!(windows(0).iter().all(|w| whole.windows(3).any(|x| x == w)));
    assert_eq!(windows(0), windows(0));
    assert_ne!(windows(0), windows(1));
    let per_row = DataExpr::Sample { of: Box::new(all()), n: 4, length: Some(3), seed: 0 };
    refused(
        store.resolve(&per_row).and_then(|d| d.batches(Some(&t), spec(Some(Target::Classes(Classes::new(2)))))),
        &["windows of a token stream have none"],
    );
}

#[test]
fn segments_equal_one_text_where_words_end_at_the_seams() {
    let f = Folder::new();
    let rows: String = (0..3000).map(|_| format!("{{\"text\": \"{}\"}}\n", "a b c d ".repeat(100))).collect();
    let store = store_of(&[decl(DataSource::Jsonl(f.file("n.jsonl", rows)), &[])]);
    let t = tokenizer();
    let d = store.resolve(&all()).expect("opens");
    let whole = d.stream(Some(&t), 15).expect("stream");
    let segments = stream::in_segments(&d.select(None).expect("rows"), "d", Some(&t)).expect("segments");
    assert_eq!(segments[0], 2);
    assert!(segments[1..] == whole.ids);
}

#[test]
fn mixtures() {
    let f = Folder::new();
    let a: String = (0..10).map(|i| format!("{{\"text\": \"a{i}\"}}\n")).collect();
    let b: String = (0..10).map(|i| format!("{{\"text\": \"b{i}\"}}\n")).collect();
    let named = |n: &str, p| DataDecl { name: n.into(), ..decl(DataSource::Jsonl(p), &[]) };
    let store = store_of(&[named("a", f.file("a.jsonl", a)), named("b", f.file("b.jsonl", b))]);
    let source = |n: &str| DataExpr::Source { name: n.into(), split: None };
    let mix = |p: i64, q: i64| DataExpr::Mix(vec![(Share(p * 10_000_000), source("a")), (Share(q * 10_000_000), source("b"))]);
    let d = store.resolve(&mix(70, 30)).expect("opens");
    assert_eq!(d.count(), Some(13));
    assert_eq!(texts(&d), ["a0", "b0", "a1", "a2", "a3", "b1", "a4", "a5", "b2", "a6", "a7", "b3", "a8"]);
    refused(store.check(&mix(70, 40)), &["70% + 40%", "add up to 100%"]);
    let packed = DataExpr::Pack { of: Box::new(source("a")), tokens: 2 };
    let uneven = DataExpr::Mix(vec![(Share(500_000_000), packed), (Share(500_000_000), source("b"))]);
    refused(store.resolve(&uneven).and_then(|d| d.select(Some(&tokenizer()))), &["documents beside rows of tokens"]);
}

#[test]
fn the_batch_does_not_change_the_rows() {
    let f = Folder::new();
    let rows: String = (0..700).map(|i| format!("{{\"text\": \"{}\", \"label\": {}}}\n", "a b ".repeat(1 + i % 6), i % 2)).collect();
    let d = open(DataSource::Jsonl(f.file("n.jsonl", rows)), &[]).expect("opens");
    let t = tokenizer();
    let read = |batch: usize| {
        let mut b = d.batches(Some(&t), BatchSpec { batch, ..spec(Some(Target::Classes(Classes::new(2)))) }).expect("batches");
        let mut out = Vec::new();
        for pass in 0..2 {
            b.reset().expect("reset");
            while let Some(batch) = b.next().expect("reads") {
                let Some(Labels::Classes(l)) = &batch.labels else { panic!("classes") };
                let l = l.to_vec1::<i64>().expect("classes");
                let keep = batch.keep.as_ref().map(|k| k.to_vec2::<u8>().expect("keep"));
                for (i, row) in ids(&batch).into_iter().enumerate() {
                    let n = keep.as_ref().map_or(row.len(), |k| k[i].iter().map(|k| *k as usize).sum());
                    out.push((pass, row[..n].to_vec(), l[i]));
                    assert!(row[n..].iter().all(|id| *id == 0));
                }
            }
        }
        (out, b.count_tokens().expect("count"))
    };
    let one = read(1);
    assert_eq!(one.0.len(), 1400);
    assert_eq!(one.0[..700].iter().map(|(_, r, _)| r.len() as u64).sum::<u64>(), one.1);
    for batch in [2, 7, 300, 1000] {
        assert!(read(batch) == one, "batch {batch}");
    }
}

#[test]
fn next_token_labels_ignore_padding() {
    let f = Folder::new();
    let d = open(DataSource::Jsonl(f.file("n.jsonl", "{\"text\": \"a b\"}\n{\"text\": \"c\"}\n")), &[]).expect("opens");
    let mut b = d.batches(Some(&tokenizer()), spec(Some(Target::NextToken))).expect("batches");
    let batch = b.next().expect("reads").expect("one");
    assert_eq!(batch.keep.as_ref().expect("keep").to_vec2::<u8>().expect("keep"), [[1, 1, 1, 1], [1, 1, 1, 0]]);
    let Some(Labels::Tokens(l)) = batch.labels else { panic!("tokens") };
    assert_eq!(l.to_vec2::<i64>().expect("labels"), [[2, 5, 6, 3], [2, 7, 3, IGNORED]]);
    assert!(b.next().expect("reads").is_none());
}

#[test]
fn masked_tokens() {
    let f = Folder::new();
    let rows: String = (0..400).map(|_| "{\"text\": \"a b c d e f g h a b\"}\n").collect();
    let d = open(DataSource::Jsonl(f.file("n.jsonl", rows)), &[]).expect("opens");
    let t = tokenizer();
    let read = |batch, epoch| {
        let target = Target::MaskedToken { probability: 0.15, seed: 3 };
        let mut b = d.batches(Some(&t), BatchSpec { batch, ..spec(Some(target)) }).expect("batches");
        b.set_epoch(epoch);
        let (mut rows, mut labels) = (Vec::new(), Vec::new());
        while let Some(batch) = b.next().expect("reads") {
            let Some(Labels::Tokens(l)) = &batch.labels else { panic!("tokens") };
            labels.extend(l.to_vec2::<i64>().expect("labels"));
            rows.extend(ids(&batch));
        }
        (rows, labels)
    };
    let (rows, labels) = read(8, 0);
    assert!(read(64, 0) == (rows.clone(), labels.clone()));
    assert!(read(64, 1) != (rows.clone(), labels.clone()));
    let plain = [2u32, 5, 6, 7, 8, 9, 10, 11, 12, 5, 6, 3];
    let (mut chosen, mut masks, mut same) = (0, 0, 0);
    for (row, labels) in rows.iter().zip(&labels) {
        assert_eq!((labels[0], labels[11]), (IGNORED, IGNORED));
        for i in 0..12 {
            match labels[i] {
                IGNORED => assert_eq!(row[i], plain[i]),
                l => {
                    assert_eq!(l, i64::from(plain[i]));
                    (chosen, masks, same) = (chosen + 1, masks + usize::from(row[i] == 4), same + usize::from(row[i] == plain[i]));
                }
            }
        }
    }
    // 4,000 tokens: 600 ± 23 chosen, of them 480 + 4 masks; five standard deviations.
    assert!((490..710).contains(&chosen), "{chosen}");
    assert!((0.72..0.90).contains(&(masks as f64 / chosen as f64)), "{masks} of {chosen}");
    assert!(same > 20, "{same}");
}

fn token_file(path: &Path, tensors: &[(&str, safetensors::Dtype, &[usize], Vec<u8>)]) {
    let views = tensors.iter().map(|(n, d, s, b)| (*n, safetensors::tensor::TensorView::new(*d, s.to_vec(), b).expect("view")));
    std::fs::write(path, safetensors::serialize(views, None).expect("serialises")).expect("write");
}

fn i64s(v: &[i64]) -> Vec<u8> {
    v.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[test]
fn token_files() {
    use safetensors::Dtype::{F32, I64};
    let f = Folder::new();
    let p = f.0.path().join("t.safetensors");
    let input = ("input_ids", I64, &[2usize, 3][..], i64s(&[5, 6, 7, 8, 9, 0]));
    let keep = ("attention_mask", I64, &[2usize, 3][..], i64s(&[1, 1, 1, 1, 1, 0]));
    let types = ("token_type_ids", I64, &[2usize, 3][..], i64s(&[0, 1, 1, 0, 0, 0]));

    token_file(&p, &[input.clone(), keep.clone(), types, ("labels", I64, &[2], i64s(&[1, 0]))]);
    let d = open(DataSource::Tokens(p.clone()), &[]).expect("opens");
    assert!(!d.needs_tokenizer());
    let mut b = d.batches(None, spec(Some(Target::Classes(Classes::new(2))))).expect("batches");
    let batch = b.next().expect("reads").expect("one");
    assert_eq!(ids(&batch), [[5, 6, 7], [8, 9, 0]]);
    assert_eq!(batch.token_type_ids.expect("types").to_vec2::<u32>().expect("types"), [[0, 1, 1], [0, 0, 0]]);
    assert_eq!(d.stream(None, 15).expect("stream").ids, [5, 6, 7, 8, 9]);
    assert_eq!(b.count_tokens().expect("count"), 5);
    refused(d.batches(None, spec(Some(Target::Classes(Classes::new(1))))), &["t.safetensors, row:0: label 1 is out of range"]);
    refused(d.batches(None, spec(Some(Target::NextToken))), &["one label for each row"]);

    // Without labels a causal model predicts its own input, padding left out.
    token_file(&p, &[input.clone(), keep.clone()]);
    let d = open(DataSource::Tokens(p.clone()), &[]).expect("opens");
    let mut b = d.batches(None, spec(Some(Target::NextToken))).expect("batches");
    let Some(Labels::Tokens(l)) = b.next().expect("reads").expect("one").labels else { panic!("tokens") };
    assert_eq!(l.to_vec2::<i64>().expect("labels"), [[5, 6, 7], [8, 9, IGNORED]]);
    refused(d.batches(None, spec(Some(Target::Values))), &["row:0 has no label"]);
    let optional = BatchSpec { need: Need::Optional, ..spec(Some(Target::Values)) };
    assert!(d.batches(None, optional).expect("batches").next().expect("reads").expect("one").labels.is_none());
    let narrow = BatchSpec { vocabulary: 9, ..spec(None) };
    assert!(
        d.batches(None, narrow)
            .expect("batches")
            .next()
            .expect_err("refused")
            .to_string()
            .contains("token id 9 is out of range; the model's embedding has 9 rows")
    );

    token_file(&p, &[input.clone(), ("labels", I64, &[2, 3], i64s(&[IGNORED, 6, 7, IGNORED, 9, IGNORED]))]);
    let d = open(DataSource::Tokens(p.clone()), &[]).expect("opens");
    let mut b = d.batches(None, spec(Some(Target::NextToken))).expect("batches");
    let Some(Labels::Tokens(l)) = b.next().expect("reads").expect("one").labels else { panic!("tokens") };
    assert_eq!(l.to_vec2::<i64>().expect("labels"), [[IGNORED, 6, 7], [IGNORED, 9, IGNORED]]);

    let floats: Vec<u8> = [0.5f32, 2.5].iter().flat_map(|x| x.to_le_bytes()).collect();
    token_file(&p, &[input.clone(), ("labels", F32, &[2], floats.clone())]);
    let d = open(DataSource::Tokens(p.clone()), &[]).expect("opens");
    let Some(Labels::Values(v)) =
        Examples::batch(&mut d.batches(None, spec(Some(Target::Values))).expect("batches"), &[1]).expect("batch").labels
    else {
        panic!("values")
    };
    assert_eq!(v.to_vec1::<f32>().expect("values"), [2.5]);

    token_file(&p, &[("tokens", I64, &[2, 3], i64s(&[0; 6]))]);
    refused(open(DataSource::Tokens(p.clone()), &[]), &["no tensor `input_ids`; found: tokens"]);
    token_file(&p, &[input.clone(), ("attention_mask", I64, &[2], i64s(&[1, 1]))]);
    refused(open(DataSource::Tokens(p.clone()), &[]), &["`attention_mask` has shape [2]; expected [2, 3]"]);
    token_file(&p, &[("input_ids", F32, &[1, 2], floats)]);
    refused(open(DataSource::Tokens(p.clone()), &[]), &["`input_ids` holds F32"]);
    token_file(&p, &[("input_ids", I64, &[1, 2], i64s(&[1, -1]))]);
    let d = open(DataSource::Tokens(p.clone()), &[]).expect("opens");
    assert!(d.batches(None, spec(None)).expect("batches").next().expect_err("refused").to_string().contains("token id -1"));
    for bytes in [&b"short"[..], &[0xff; 16], &[8, 0, 0, 0, 0, 0, 0, 0, b'{', b'}'], &(1u64 << 63).to_le_bytes()] {
        refused(open(DataSource::Tokens(f.file("bad.safetensors", bytes)), &[]), &["not a safetensors file"]);
    }
}

#[test]
fn labels_are_checked_before_a_step_begins() {
    let f = Folder::new();
    let d = open(DataSource::Csv(f.file("a.csv", "text,label\na,0\nb,2\nc,\n")), &[]).expect("opens");
    let t = tokenizer();
    refused(d.batches(Some(&t), spec(Some(Target::Classes(Classes::new(2))))), &["a.csv:3: label 2 is out of range", "0 to 1"]);
    refused(d.batches(Some(&t), spec(Some(Target::Classes(Classes::new(3))))), &["a.csv:4 has no label"]);
    let mut narrow = spec(None);
    narrow.vocabulary = 10;
    refused(d.batches(Some(&t), narrow), &["token ids up to 14 (`bad`)", "10 rows"]);
    refused(d.batches(None, spec(None)), &["no tokenizer"]);
    refused(d.batches(Some(&t), BatchSpec { max_length: 3, ..spec(None) }), &["3 special tokens"]);
}

#[test]
fn a_file_that_shrinks_is_noticed() {
    let f = Folder::new();
    let p = f.file("a.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
    let d = open(DataSource::Jsonl(p.clone()), &[]).expect("opens");
    std::fs::OpenOptions::new().write(true).open(&p).and_then(|f| f.set_len(14)).expect("cut");
    let mut b = d.batches(Some(&tokenizer()), spec(None)).expect("batches");
    assert!(b.next().expect_err("refused").to_string().contains("changed while it was being read (now 14 bytes, 28 when it was opened)"));
}

/// A parquet file with a text, a list of texts, and a class.
fn parquet_file(f: &Folder, name: &str, rows: &[(&str, &[&str], i64)]) -> PathBuf {
    use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use ::parquet::file::properties::WriterProperties;
    use ::parquet::file::writer::SerializedFileWriter;
    let schema = "message m { required binary text (UTF8); required group endings (LIST) { repeated group list { required binary element (UTF8); } } required int64 label; }";
    let schema = ::parquet::schema::parser::parse_message_type(schema).expect("schema");
    let properties = WriterProperties::builder().set_compression(::parquet::basic::Compression::SNAPPY).build();
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema.into(), properties.into()).expect("writer");
    let mut group = writer.next_row_group().expect("group");
    let array = |s: &&str| ByteArray::from(*s);
    let texts: Vec<ByteArray> = rows.iter().map(|r| array(&r.0)).collect();
    let endings: Vec<ByteArray> = rows.iter().flat_map(|r| r.1.iter().map(array)).collect();
    let labels: Vec<i64> = rows.iter().map(|r| r.2).collect();
    let levels: Vec<i16> = rows.iter().flat_map(|r| (0..r.1.len()).map(|i| i16::from(i > 0))).collect();
    let mut column = group.next_column().expect("column").expect("text");
    column.typed::<ByteArrayType>().write_batch(&texts, None, None).expect("text");
    column.close().expect("closed");
    let mut column = group.next_column().expect("column").expect("endings");
    column.typed::<ByteArrayType>().write_batch(&endings, Some(&vec![1; levels.len()]), Some(&levels)).expect("endings");
    column.close().expect("closed");
    let mut column = group.next_column().expect("column").expect("label");
    column.typed::<Int64Type>().write_batch(&labels, None, None).expect("label");
    column.close().expect("closed");
    group.close().expect("group closed");
    writer.close().expect("written");
    f.file(name, bytes)
}

#[test]
fn parquet_rows_are_read_as_any_others() {
    let f = Folder::new();
    let p = parquet_file(&f, "a.parquet", &[("a b", &["c", "d e"], 1), ("f\n", &["g"], 0)]);
    let choices = ("choices", Value::List(vec![Value::Text("endings".into())]));
    let d = open(DataSource::Parquet(p.clone()), &[choices]).expect("opens");
    let rows = documents(&d);
    assert_eq!(
        (rows[0].text.as_str(), rows[0].label.clone(), rows[0].choices.clone()),
        ("a b", Some(Label::Integer(1)), vec!["c".to_owned(), "d e".to_owned()])
    );
    assert_eq!((rows[1].text.as_str(), rows[1].choices.len()), ("f\n", 1));
    // The lock has the file itself, not what was unpacked from it.
    let store = store_of(&[decl(DataSource::Parquet(p.clone()), &[])]);
    store.resolve(&all()).expect("opens");
    assert_eq!(store.files()[0].sha256, crate::files::sha256(&std::fs::read(&p).expect("bytes")));
    let whole = std::fs::read(&p).expect("bytes");
    for cut in [4, 8, whole.len() / 2, whole.len() - 5] {
        let broken = f.file("b.parquet", &whole[..cut]);
        refused(open(DataSource::Parquet(broken), &[]), &["b.parquet", "a whole parquet file"]);
    }
    refused(open(DataSource::Jsonl(p), &[]), &["found a parquet file", "parquet(\""]);
    refused(open(DataSource::Parquet(f.file("c.parquet", "text")), &[]), &["no parquet file"]);
}

#[test]
fn packed_files_are_unpacked() {
    use std::io::Write as _;
    let f = Folder::new();
    let plain = "text\tlabel\na, b\t1\nc\t0\n";
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(plain.as_bytes()).expect("packs");
    let gz = gz.finish().expect("packs");
    let d = open(DataSource::Csv(f.file("a.tsv.gz", &gz)), &[]).expect("opens");
    assert_eq!(texts(&d), ["a, b", "c"]);
    let d = open(DataSource::Csv(f.file("a.tsv.zst", zstd::encode_all(plain.as_bytes(), 1).expect("packs"))), &[]).expect("opens");
    assert_eq!(texts(&d), ["a, b", "c"]);
    refused(open(DataSource::Csv(f.file("cut.tsv.gz", &gz[..gz.len() - 9])), &[]), &["cut.tsv.gz", "can't be unpacked"]);
}

#[test]
fn an_encoder_gets_the_texts_of_a_pair_as_rows() {
    let f = Folder::new();
    let p = f.file("p.csv", "sentence1,sentence2,score\na b,c,2.5\nd,e f g,1\n");
    let d = open(DataSource::Csv(p), &[]).expect("opens");
    let mut b = d.batches(Some(&tokenizer()), BatchSpec { apart: true, ..spec(Some(Target::Values)) }).expect("batches");
    let batch = b.next().expect("reads").expect("one");
    assert_eq!(ids(&batch), [[2, 5, 6, 3, 0], [2, 8, 3, 0, 0], [2, 7, 3, 0, 0], [2, 9, 10, 11, 3]]);
    assert!(matches!(batch.labels, Some(Labels::Values(t)) if t.to_vec1::<f32>().expect("values") == [2.5, 1.0]));
    let single = open(DataSource::Csv(f.file("s.csv", "text,score\na,1\n")), &[]).expect("opens");
    let mut b = single.batches(Some(&tokenizer()), BatchSpec { apart: true, ..spec(Some(Target::Values)) }).expect("batches");
    assert!(b.next().expect_err("refused").to_string().contains("text_pair"));
}
