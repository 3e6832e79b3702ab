//! Runs that survive: the process is killed at several moments, resumed, and must end in the bytes of a run that nobody disturbed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::{QUICK, prunectl, run, stderr, stdout};
use crate::many_kills::{RECIPE, nothing_wrong};

/// Lines that the journal may grow to before the process is killed; the journal of the quick recipe has more.
const KILLS: [usize; 6] = [1, 4, 8, 11, 15, 22];

/// Content of everything that a run leaves but its journal and report, which tell times.
pub fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(dir: &Path, base: &Path, out: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, base, out);
            } else {
                out.insert(path.strip_prefix(base).unwrap().display().to_string(), fs::read(&path).unwrap());
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(dir, dir, &mut out);
    out.retain(|name, _| !["journal.jsonl", "report.html", ".lock"].contains(&name.as_str()));
    out
}

fn lines(journal: &Path) -> usize {
    fs::read(journal).map_or(0, |t| t.iter().filter(|b| **b == b'\n').count())
}

/// Starts the recipe and kills it with SIGKILL as soon as its journal has so many lines. False if it ended before.
pub fn killed_after(dir: &Path, args: &[&str], journal: &Path, n: usize) -> bool {
    let mut child = prunectl(dir, args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let clock = Instant::now();
    while clock.elapsed() < Duration::from_secs(120) {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if lines(journal) >= n {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    true
}

#[test]
pub fn killed_runs_resume_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    fs::write(d.join("quick.prune"), QUICK).unwrap();
    let out = run(d, &["run", "quick.prune", "--out", "whole"]);
    assert!(out.status.success(), "{}", stderr(&out));
    let expected = content(&d.join("whole"));
    let saved = content(&d.join("out/quick"));
    let mut kills = 0;
    for n in KILLS {
        fs::remove_dir_all(d.join("out")).unwrap();
        let name = format!("cut-{n}");
        if killed_after(d, &["run", "quick.prune", "--out", &name], &d.join(&name).join("journal.jsonl"), n) {
            kills += 1;
            // Killed again while it resumes, then left alone.
            let journal = d.join(&name).join("journal.jsonl");
            let again = lines(&journal) + 3;
            killed_after(d, &["resume", &name], &journal, again);
            let out = run(d, &["resume", &name]);
            let ended = stderr(&out).contains("has ended");
            assert!(out.status.success() || ended, "killed after {n} lines: {}", stderr(&out));
        }
        let found = content(&d.join(&name));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "killed after {n} lines");
        for (file, bytes) in &expected {
            assert!(found.get(file) == Some(bytes), "killed after {n} lines: {file} differs");
        }
        for (file, bytes) in content(&d.join("out/quick")) {
            assert!(saved.get(&file) == Some(&bytes), "killed after {n} lines: out/quick/{file} differs");
        }
    }
    assert!(kills >= 4, "only {kills} of {} runs lived long enough to be killed", KILLS.len());
}

#[test]
fn finished_steps_are_reused_and_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    fs::write(d.join("quick.prune"), QUICK).unwrap();
    let journal = d.join("r/journal.jsonl");
    assert!(killed_after(d, &["run", "quick.prune", "--out", "r"], &journal, 12));
    assert!(run(d, &["resume", "r"]).status.success());
    let text = fs::read_to_string(&journal).unwrap();
    let after = text.split("\"event\":\"resume\"").nth(1).expect("a resume event");
    let reused = after.lines().filter(|l| l.contains("\"reused\":true")).count();
    assert!(reused >= 1 && after.contains("before the interruption"), "{after}");
}

#[test]
pub fn a_changed_input_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    fs::write(d.join("d.csv"), (0..64).fold("text,label\n".to_owned(), |t, i| t + &format!("a story of {i} birds,{}\n", i % 2))).unwrap();
    let recipe = QUICK
        .replace("builtin(\"tales\")", "csv(\"d.csv\", text = \"text\", label = \"label\")")
        .replace("d.train", "d")
        .replace("d.validation", "d");
    fs::write(d.join("quick.prune"), recipe).unwrap();
    let journal = d.join("r/journal.jsonl");
    assert!(killed_after(d, &["run", "quick.prune", "--out", "r"], &journal, 9));
    let text = fs::read_to_string(d.join("d.csv")).unwrap();
    fs::write(d.join("d.csv"), text.replace("63 birds", "99 birds")).unwrap();
    let out = run(d, &["resume", "r"]);
    assert_eq!(out.status.code(), Some(2), "{}", stderr(&out));
    assert!(stderr(&out).contains("changed since the run began") && stderr(&out).contains("d.csv"), "{}", stderr(&out));
}

#[test]
pub fn a_second_process_in_one_run_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    fs::write(d.join("quick.prune"), QUICK).unwrap();
    let journal = d.join("r/journal.jsonl");
    let mut first = prunectl(d, &["run", "quick.prune", "--out", "r"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while lines(&journal) < 3 && first.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let second = run(d, &["resume", "r"]);
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(second.status.code(), Some(2), "{}", stderr(&second));
    assert!(stderr(&second).contains("another prunectl is working"), "{}", stderr(&second));
}

#[test]
pub fn an_interrupted_run_prints_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    fs::write(d.join("quick.prune"), QUICK).unwrap();
    let journal = d.join("r/journal.jsonl");
    let child = prunectl(d, &["run", "quick.prune", "--out", "r"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while lines(&journal) < 5 {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(130), "{}", stderr(&out));
    assert!(stderr(&out).contains("prunectl resume r"), "{}", stderr(&out));
    assert!(fs::read_to_string(&journal).unwrap().contains("interrupted"));
    let out = run(d, &["resume", "r"]);
    assert!(out.status.success() && stdout(&out).contains("report"), "{}", stderr(&out));
}

/// The disk is full: no file may grow over a limit, which the system enforces as it does an end of space, in the middle of a write.
#[test]
pub fn a_run_that_finds_the_disk_full_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    fs::write(d.join("t.prune"), RECIPE).unwrap();
    let whole = run(d, &["run", "t.prune", "--out", "whole"]);
    assert!(whole.status.success(), "{}", stderr(&whole));
    let (expected, saved) = (content(&d.join("whole")), content(&d.join("out")));
    // Blocks of 512 bytes: the weights but no checkpoint, and more.
    for blocks in [1000, 1400, 2400] {
        fs::remove_dir_all(d.join("out")).unwrap();
        let _ = fs::remove_dir_all(d.join("cut"));
        let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" run t.prune --out cut");
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &limited, env!("CARGO_BIN_EXE_prunectl")]).current_dir(d).env("NO_COLOR", "1").env("HF_HUB_OFFLINE", "1");
        let out = shell.output().unwrap();
        let told = stderr(&out);
        assert_eq!(out.status.code(), Some(2), "{blocks}: {told}");
        assert!(told.contains("room") && told.contains("prunectl resume cut"), "{blocks}: {told}");
        nothing_wrong(&d.join("cut"), &d.join("out"), &expected, &saved).unwrap();
        let out = run(d, &["resume", "cut"]);
        assert!(out.status.success(), "{blocks}: {}", stderr(&out));
        for (found, whole) in [(content(&d.join("cut")), &expected), (content(&d.join("out")), &saved)] {
            assert_eq!(found.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>(), "{blocks}");
            let differs = whole.iter().find(|(name, bytes)| found.get(*name) != Some(*bytes));
            assert!(differs.is_none(), "{blocks}: {} differs", differs.unwrap().0);
        }
    }
}
