//! Hundreds of runs, killed at random moments and resumed. Minutes, so outside CI:
//!
//! ```text
//! PRUNECTL_KILLS=200 cargo test --release --test suite -- --ignored killed_at_random --nocapture
//! ```
//!
//! `PRUNECTL_KILLS_SEED` draws other moments. After each kill, whatever stands under a final name must be what an undisturbed run leaves
//! there (or its beginning, for what grows); after the last resume all bytes must be equal.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{prunectl, run, stderr};
use crate::kill::content;

/// Training with prunes inside, checkpoints, scores, a one-shot prune, a sweep, two saves.
pub const RECIPE: &str = r#"edition 2026

model m = init("builtin:tiny-llama", seed = 3)
data  d = builtin("tales")

let text = d.train.pack(32 tokens)
let few  = d.validation.take(8)

train m on text for 24 steps {
    batch            = 2
    optimizer        = adamw(lr = linear(0 -> 1e-3, for = 10%) then linear(1e-3 -> 0))
    loss             = next_token() + 0.01 * l1(scores)
    checkpoint_every = 2 steps

    prune m.layers[*].attention.kv_groups by cubic(0% -> 25%, during = 10%..50%) using magnitude() { every = 7 steps }
    prune m.layers[*].attention.linears.weights by cubic(0% -> 50%, during = 10%..50%) using movement() { every = 3 steps }
    eval loss() of m on few as val { every = 8 steps }
}
save m to "out/trained"
score m.layers[*].mlp.neurons using magnitude() as s

sweep amount over [25%, 50%] as grid {
    prune m.layers[*].mlp.neurons by amount using s
    eval loss() of m on few as swept
}

prune m.layers[*].mlp.neurons by 30% using magnitude() { scope = layer }
compact m
eval loss() of m on few as after
save m to "out/m"
"#;

/// Kills where `PRUNECTL_KILLS` says nothing.
const KILLS: usize = 200;

/// Moments: a xorshift generator (Marsaglia 2003) is random enough for them, and its seed can be given again.
struct Moments(u64);

impl Moments {
    fn share(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Starts the command and kills it at that moment. False if it ended before.
fn killed_at(dir: &Path, args: &[&str], moment: Duration) -> bool {
    let clock = Instant::now();
    let mut child = prunectl(dir, args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while clock.elapsed() < moment {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_micros(500).min(moment.saturating_sub(clock.elapsed())));
    }
    child.kill().unwrap();
    !child.wait().unwrap().success()
}

/// A safetensors file is as long as its header says.
fn whole_safetensors(bytes: &[u8]) -> bool {
    let whole = || {
        let length = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?) as usize;
        let header: BTreeMap<String, Value> = serde_json::from_slice(bytes.get(8..8 + length)?).ok()?;
        let end = |t: &Value| t["data_offsets"][1].as_u64();
        Some(header.iter().filter(|(name, _)| *name != "__metadata__").filter_map(|(_, t)| end(t)).max().unwrap_or(0) as usize + 8 + length)
    };
    whole() == Some(bytes.len())
}

/// What stands there after a kill: under a final name nothing but what belongs there.
pub fn nothing_wrong(
    run: &Path,
    out: &Path,
    expected: &BTreeMap<String, Vec<u8>>,
    saved: &BTreeMap<String, Vec<u8>>,
) -> Result<(), String> {
    if !run.exists() {
        return Ok(());
    }
    for (name, bytes) in content(run) {
        let last = name.rsplit('/').next().unwrap_or_default();
        if last.ends_with(".partial") || last.starts_with('.') {
            continue;
        }
        let fine = if name == "metrics.json" {
            let found: Option<BTreeMap<String, Value>> = serde_json::from_slice(&bytes).ok();
            let whole: BTreeMap<String, Value> = serde_json::from_slice(&expected[&name]).unwrap();
            // A cell's or a round's value also stands under its plain name, until the next one's does.
            let known = |k: &str, v: &Value| whole.iter().any(|(w, x)| x == v && (w == k || w.starts_with(&format!("{k}["))));
            found.is_some_and(|f| f.iter().filter(|(k, _)| *k != "model").all(|(k, v)| known(k, v)))
        } else if last.ends_with(".safetensors") && name.starts_with("checkpoints/") {
            whole_safetensors(&bytes)
        } else if name.starts_with("checkpoints/") {
            !last.ends_with(".json") || serde_json::from_slice::<Value>(&bytes).is_ok()
        } else {
            expected.get(&name) == Some(&bytes)
        };
        if !fine {
            return Err(format!("{name} is readable and wrong, or of no run"));
        }
    }
    // Every line that ends is whole; the last may be cut where it never was flushed.
    let journal = fs::read_to_string(run.join("journal.jsonl")).unwrap_or_default();
    if let Some(torn) = journal.split_inclusive('\n').filter(|l| l.ends_with('\n')).find(|l| serde_json::from_str::<Value>(l).is_err()) {
        return Err(format!("a journal line is torn: {torn}"));
    }
    // A saved folder is whole or not there.
    for folder in ["trained", "m"] {
        if out.join(folder).exists() {
            let (found, whole) = (content(&out.join(folder)), |n: &String| n.starts_with(&format!("{folder}/")));
            let of: BTreeMap<String, Vec<u8>> =
                saved.iter().filter(|(n, _)| whole(n)).map(|(n, b)| (n[folder.len() + 1..].to_owned(), b.clone())).collect();
            if found != of {
                return Err(format!("out/{folder} is there and not whole"));
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "minutes; run it by name, as the file's first lines say"]
fn runs_killed_at_random_moments_resume_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    fs::write(d.join("t.prune"), RECIPE).unwrap();
    let clock = Instant::now();
    let whole = run(d, &["run", "t.prune", "--out", "whole"]);
    assert!(whole.status.success(), "{}", stderr(&whole));
    let time = clock.elapsed();
    let (expected, saved) = (content(&d.join("whole")), content(&d.join("out")));
    let goal = from_env("PRUNECTL_KILLS", KILLS as u64) as usize;
    let mut moments = Moments(from_env("PRUNECTL_KILLS_SEED", 20_261_121).max(1));
    let (mut kills, mut runs, mut twice, mut before, mut ended) = (0, 0, 0, 0, 0);
    while kills < goal {
        runs += 1;
        fs::remove_dir_all(d.join("out")).unwrap();
        let cut = d.join("cut");
        let _ = fs::remove_dir_all(&cut);
        let check = |when: &str, moment: Duration| {
            if let Err(e) = nothing_wrong(&cut, &d.join("out"), &expected, &saved) {
                panic!("run {runs}, {when} killed after {moment:?}: {e}; the folder is {}", d.display());
            }
        };
        let moment = time.mul_f64(moments.share() * 1.02);
        let mut alive = !killed_at(d, &["run", "t.prune", "--out", "cut"], moment);
        ended += usize::from(alive);
        while !alive {
            kills += 1;
            check("the run", moment);
            if !cut.join("journal.jsonl").exists() {
                // Killed before there was anything to resume.
                before += 1;
                let again = run(d, &["run", "t.prune", "--out", "cut"]);
                assert!(again.status.success(), "run {runs}: {}", stderr(&again));
                break;
            }
            // Every other time it is killed again while it resumes.
            if moments.share() < 0.5 {
                let moment = time.mul_f64(moments.share());
                alive = !killed_at(d, &["resume", "cut"], moment);
                twice += usize::from(!alive);
                if !alive {
                    check("the resumed run", moment);
                    continue;
                }
            }
            let resumed = run(d, &["resume", "cut"]);
            let done = resumed.status.success() || stderr(&resumed).contains("has ended");
            assert!(done, "run {runs}, killed after {moment:?}: {}", stderr(&resumed));
            break;
        }
        let found = content(&cut);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "run {runs}, killed after {moment:?}");
        let differs = expected.iter().find(|(name, bytes)| found.get(*name) != Some(bytes));
        assert!(differs.is_none(), "run {runs}, killed after {moment:?}: {} differs", differs.unwrap().0);
        let now = content(&d.join("out"));
        let names = |of: &BTreeMap<String, Vec<u8>>| of.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&now), names(&saved), "run {runs}, killed after {moment:?}: what it saved");
        assert!(now == saved, "run {runs}, killed after {moment:?}: what it saved differs");
    }
    println!(
        "{kills} kills in {runs} runs ({twice} of them while resuming, {before} before there was a run directory; {ended} runs ended before \
         their moment), an undisturbed run takes {:.2} s: all {} files of each run directory and all {} saved files byte-identical, none \
         readable and wrong at any moment",
        time.as_secs_f64(),
        expected.len(),
        saved.len()
    );
}
