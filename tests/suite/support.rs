//! What tests need that not every machine has.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

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

/// A file or folder of the reference data, below the folder that `PRUNECTL_SHARED` names.
pub fn shared(path: &str, what: &str) -> Option<PathBuf> {
    let found = std::env::var_os("PRUNECTL_SHARED").map(|root| PathBuf::from(root).join(path)).filter(|p| p.exists());
    if found.is_none() {
        skip(what, "shared", &format!("PRUNECTL_SHARED names no folder with {path}"));
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
    use std::io::Write as _;
    let _ = std::io::stderr().write_all(line.as_bytes());
}
