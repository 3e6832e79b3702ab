//! Faults injected and what they came to, as one table:
//!
//! ```text
//! cargo test --release --test suite -- --ignored table_of_faults --nocapture
//! ```
//!
//! The rows of the Hub and of data show what the program says; those of runs are tests of their own, which hold that outcome.

use std::fs;
use std::path::Path;

use crate::common::{run, stderr, stdout};
use crate::{cli, hub, measure};
#[cfg(unix)]
use crate::{kill, kill_training};

/// A file that is wrong, and words that must be in what is said of it.
fn broken() -> Vec<(&'static str, &'static str, Vec<u8>, &'static [&'static str])> {
    let golden = |name: &str| fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)).unwrap();
    let (parquet, promises) = (golden("sets/sst2.parquet"), golden("parquet/promises.parquet"));
    let half = parquet[..parquet.len() / 2].to_vec();
    let mut flipped = parquet.clone();
    for byte in flipped.iter_mut().skip(40).step_by(61) {
        *byte ^= 0x55;
    }
    let mut gzip = golden("sets/c4-train.00000-of-01024.json.gz");
    gzip.truncate(gzip.len() - 12);
    vec![
        ("a csv row with too few cells", "d.csv", b"text,label\nthe fox was happy,1\nalone\n".to_vec(), &["d.csv", "line 3"]),
        ("a label that no class has", "d.csv", b"text,label\nthe fox was happy,1\nthe cat,maybe\n".to_vec(), &["d.csv", "3", "maybe"]),
        ("a quote that is never closed", "d.csv", b"text,label\n\"the fox,1\nthe cat,0\n".to_vec(), &["d.csv", "line 2"]),
        ("a byte that is not UTF-8", "d.csv", b"text,label\nthe fox,1\nthe \xff cat,0\n".to_vec(), &["d.csv", "3"]),
        (
            "a line that is no JSON",
            "d.jsonl",
            b"{\"text\": \"a\", \"label\": 1}\n{\"text\": \"b\", \"la\n".to_vec(),
            &["d.jsonl", "line 2"],
        ),
        (
            "a line without the field",
            "d.jsonl",
            b"{\"text\": \"a\", \"label\": 1}\n{\"txt\": \"b\"}\n".to_vec(),
            &["d.jsonl", "line 2", "`text`"],
        ),
        ("a gzip file that is cut", "d.jsonl.gz", gzip, &["d.jsonl.gz", "unpacked"]),
        ("a parquet file that is cut", "d.parquet", half, &["d.parquet"]),
        ("a parquet page that promises too many values", "d.parquet", promises, &["d.parquet", "lengths are for more"]),
        ("a parquet file with changed bytes", "d.parquet", flipped, &["d.parquet"]),
        ("an empty file", "d.csv", Vec::new(), &["d.csv", "no bytes"]),
    ]
}

fn data_rows() -> Vec<(&'static str, String)> {
    let dir = tempfile::tempdir().unwrap();
    let eval = |data: &str| run(dir.path(), &["eval", "builtin:tiny-bert", "--data", data, "--metric", "accuracy", "--json", "-q"]);
    let mut rows = Vec::new();
    for (fault, name, bytes, words) in broken() {
        fs::write(dir.path().join(name), bytes).unwrap();
        let out = eval(name);
        let told = stderr(&out);
        assert!(matches!(out.status.code(), Some(1 | 2)), "{fault}: {told}");
        assert!(words.iter().all(|w| told.contains(w)) && !told.contains("panicked"), "{fault}: {told}");
        let words = told.split("\n -->").next().unwrap_or_default().trim_start_matches("error: ");
        rows.push((fault, words.lines().map(str::trim).collect::<Vec<_>>().join(" · ")));
    }
    // Left out on request, and counted.
    fs::write(dir.path().join("d.jsonl"), "{\"text\": \"the fox was happy\", \"label\": 1}\nno JSON\n{\"text\": \"the cat\"\n").unwrap();
    let out =
        run(dir.path(), &["eval", "builtin:tiny-bert", "--data", "jsonl(\"d.jsonl\", corrupt = skip)", "--metric", "accuracy", "--json"]);
    assert!(out.status.success(), "{}", stderr(&out));
    let value: serde_json::Value = serde_json::from_str(&stdout(&out)).unwrap();
    assert_eq!(value["metrics"]["accuracy"]["examples"], 1);
    let told = stderr(&out);
    for words in ["d.jsonl: 2 of 3 rows can't be read", "line 2: not JSON", "line 3: not JSON", "left out"] {
        assert!(told.contains(words) && value["warnings"][0].as_str().is_some_and(|w| w.contains(words)), "{words}: {told}: {value}");
    }
    rows.push(("two lines that are no JSON, `corrupt = skip`", told.lines().map(str::trim).collect::<Vec<_>>().join(" · ")));
    rows
}

#[test]
fn faults_of_data_are_told_with_file_and_line() {
    for (fault, outcome) in data_rows() {
        println!("| data | {fault} | {outcome} |");
    }
}

/// What happens to a run, the test that holds it, and its outcome.
type Held = (&'static str, fn(), &'static str);

const HELD: &[Held] = &[
    ("an input that is not the locked one", measure::a_locked_run_refuses_what_has_changed, "refused, every difference told, status 2"),
    (
        "a training that no memory holds",
        cli::a_training_that_no_machine_holds_is_refused,
        "refused before a run directory is made, with the GiB needed and had",
    ),
];
#[cfg(unix)]
const HELD_ON_UNIX: &[Held] = &[
    (
        "SIGKILL after 1, 4, 8, 11, 15, 22 journal lines, and again while resuming",
        kill::killed_runs_resume_to_the_same_bytes,
        "resumed, every file byte-identical",
    ),
    (
        "SIGKILL in a training with prunes inside",
        kill_training::a_killed_training_resumes_to_the_same_bytes,
        "goes on from the checkpoint, byte-identical",
    ),
    (
        "no room on the disk, at three sizes",
        kill::a_run_that_finds_the_disk_full_goes_on_when_there_is_room,
        "status 2 with the resume command; resumed, byte-identical",
    ),
    ("Ctrl-C", kill::an_interrupted_run_prints_how_to_go_on, "status 130 with the resume command; resumed"),
    ("a second process in one run directory", kill::a_second_process_in_one_run_directory_is_refused, "refused, status 2"),
    ("an input changed between run and resume", kill::a_changed_input_is_refused, "refused with the file's name and both hashes, status 2"),
];
#[cfg(not(unix))]
const HELD_ON_UNIX: &[Held] = &[];

#[test]
#[ignore = "a report; its rows are held by tests of their own"]
fn table_of_faults() {
    println!("| where | fault | outcome |\n|---|---|---|");
    for (fault, outcome) in hub::fault_rows() {
        println!("| Hub | {fault} | {outcome} |");
    }
    for (fault, outcome) in data_rows() {
        println!("| data | {fault} | {outcome} |");
    }
    for (fault, held, outcome) in HELD.iter().chain(HELD_ON_UNIX) {
        held();
        println!("| run | {fault} | {outcome} |");
    }
}
