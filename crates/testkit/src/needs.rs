//! What tests need that not every machine has.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

static SKIPPED: AtomicUsize = AtomicUsize::new(0);

/// The interpreter that `PRUNECTL_TEST_PYTHON` names (`scripts/make-python-env.sh` makes one). Without it the proof is skipped, counted and
/// said; with `PRUNECTL_REQUIRE=python` it fails.
pub fn python(what: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PRUNECTL_TEST_PYTHON").filter(|p| !p.is_empty());
    if path.is_none() {
        skip(what, "python", "PRUNECTL_TEST_PYTHON is not set; scripts/make-python-env.sh makes an environment");
    }
    path.map(PathBuf::from)
}

/// A file or folder of the reference data: below the folder that `PRUNECTL_SHARED` names, or else `shared` beside the repository. Without
/// it the proof is skipped, counted and said; with `PRUNECTL_REQUIRE=shared` it fails.
pub fn shared(path: &str, what: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let root = std::env::var_os("PRUNECTL_SHARED").filter(|p| !p.is_empty()).map_or_else(beside, PathBuf::from);
    let found = Some(root.join(path)).filter(|p| p.exists());
    if found.is_none() {
        skip(what, "shared", &format!("{path} is not below {} (PRUNECTL_SHARED names another folder)", root.display()));
    }
    found
}

/// Counts and says a skip; a failure where `PRUNECTL_REQUIRE` lists `need`.
pub fn skip(what: &str, need: &str, why: &str) {
    let required = std::env::var("PRUNECTL_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|r| r.trim() == need), "PRUNECTL_REQUIRE asks for {need}: {what}: {why}");
    let n = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    // Past the harness's capture: a skip that nobody sees is a test that nobody has.
    let line = format!("SKIPPED ({n}): {what}: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// What a script of `tests/python` answers to cases, one JSON object each.
pub fn ask(python: &Path, script: &str, folder: &Path, cases: &[Value]) -> Vec<Value> {
    let list = folder.join("cases.json");
    std::fs::write(&list, Value::from(cases.to_vec()).to_string()).expect("written");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python").join(script);
    // Code beside weights is cached here, not in the home of whoever runs the tests.
    let output = Command::new(python).arg(path).arg(&list).env("HF_MODULES_CACHE", folder.join("modules")).output().expect("Python starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{script}: {said}\n{}", String::from_utf8_lossy(&output.stderr));
    let answers: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(answers.len(), cases.len(), "{script}: {said}");
    answers
}
