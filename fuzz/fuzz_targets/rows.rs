//! Any bytes as a csv, tsv, JSON lines or parquet file: an error with its place, or rows that can all be read; never a panic of ours.
//! The first byte chooses the format. (Damaged parquet files make the parquet crate panic; that panic is caught where it is called, so
//! the target switches the fuzzer's abort on panic off for that format alone.)
#![no_main]

use libfuzzer_sys::fuzz_target;
use prunectl_recipe::catalogue::Args;
use prunectl_recipe::plan::{DataDecl, DataExpr, DataSource, Span, Value};
use prunectl_run::data::DataStore;
use prunectl_run::hub::Door;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        path
    };
    let source = match kind % 4 {
        0 => DataSource::Csv(path("f.csv")),
        1 => DataSource::Csv(path("f.tsv")),
        2 => DataSource::Jsonl(path("f.jsonl")),
        _ => {
            std::panic::set_hook(Box::new(|_| {}));
            DataSource::Parquet(path("f.parquet"))
        }
    };
    let mut fields = Args::default();
    if kind & 0x10 != 0 {
        fields.0.insert("corrupt".into(), Value::Word("skip".into()));
    }
    if kind & 0x20 != 0 {
        fields.0.insert("choices".into(), Value::List(vec![Value::Text("text".into()), Value::Text("label".into())]));
    }
    let decl = DataDecl { name: "d".into(), source, fields, span: Span::default() };
    let store = DataStore::new(&[decl], &Door::cache_only());
    if let Ok(data) = store.resolve(&DataExpr::Source { name: "d".into(), split: None }) {
        assert!(data.count().is_some_and(|n| n > 0));
        assert!(store.files().iter().all(|f| f.sha256.len() == 64));
    }
});
