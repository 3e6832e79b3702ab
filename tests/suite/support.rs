//! What tests need that not every machine has.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

static SKIPPED: AtomicUsize = AtomicUsize::new(0);

/// The interpreter that `PRUNECTL_TEST_PYTHON` names (`scripts/make-python-env.sh` makes one). Without it the proof is skipped, counted and
/// said; with `PRUNECTL_REQUIRE=python` it fails.
pub fn python(what: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("PRUNECTL_TEST_PYTHON").filter(|p| !p.is_empty()) {
        return Some(path.into());
    }
    let required = std::env::var("PRUNECTL_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|r| r.trim() == "python"),
        "PRUNECTL_REQUIRE asks for python, and PRUNECTL_TEST_PYTHON names none: {what}"
    );
    let n = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    // Past the harness's capture: a skip that nobody sees is a test that nobody has.
    let line = format!("SKIPPED ({n}): {what}: PRUNECTL_TEST_PYTHON is not set; scripts/make-python-env.sh makes an environment\n");
    use std::io::Write as _;
    let _ = std::io::stderr().write_all(line.as_bytes());
    None
}
