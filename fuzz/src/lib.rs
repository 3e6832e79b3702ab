//! What the targets share.

use std::path::PathBuf;

use prunectl_recipe::catalogue::Args;
use prunectl_recipe::plan::{DataDecl, DataExpr, DataSource, Span, Value};
use prunectl_run::data::DataStore;
use prunectl_run::hub::Door;

/// A file with those bytes, in a folder that goes with the first of the pair.
pub fn written(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).expect("written");
    (dir, path)
}

/// Opens a source as a recipe would: an error, or rows that are counted and have a hash.
pub fn open(source: DataSource, skip: bool, choices: bool) {
    let mut fields = Args::default();
    if skip {
        fields.0.insert("corrupt".into(), Value::Word("skip".into()));
    }
    if choices {
        fields.0.insert("choices".into(), Value::List(vec![Value::Text("text".into()), Value::Text("label".into())]));
    }
    let decl = DataDecl { name: "d".into(), source, fields, span: Span::default() };
    let store = DataStore::new(&[decl], &Door::cache_only());
    match store.resolve(&DataExpr::Source { name: "d".into(), split: None }) {
        Ok(data) => {
            assert!(data.count().is_some_and(|n| n > 0));
            assert!(store.files().iter().all(|f| f.sha256.len() == 64));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
