//! The client against a Hub on this machine: the cache it leaves, the token, and every fault with what it ends in.
//!
//! `cargo test --release --test suite hub_faults -- --nocapture` prints the table of faults.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prunectl_run::hub::{Client, Fetched, Hub, HubEnv, HubError, Kind, Listing, RepoId};
use prunectl_testkit::{COMMIT, Faults, Hub as Server, OTHER_COMMIT, Repo, Wanted};

use crate::common::{prunectl, stderr, stdout};

const WEIGHTS: &str = "model.safetensors";

fn body() -> Vec<u8> {
    (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn repo() -> Repo {
    Repo::model("org/name", [("config.json", b"{}".to_vec()), (WEIGHTS, body())])
}

fn serve(faults: Faults) -> Server {
    Server::start(vec![repo()], faults)
}

fn client_with(vars: &[(&str, &str)]) -> Client {
    let get = |name: &str| vars.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned());
    Client::new(HubEnv { first_wait: Duration::from_millis(2), ..HubEnv::from_vars(&get, Path::new("/nowhere")) })
}

fn client(endpoint: &str, cache: &Path) -> Client {
    client_with(&[
        ("HF_ENDPOINT", endpoint),
        ("HF_HUB_CACHE", &cache.to_string_lossy()),
        ("HF_TOKEN", "hf_secret"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "1"),
        ("HF_HUB_ETAG_TIMEOUT", "1"),
    ])
}

fn get(client: &Client) -> Result<Vec<Fetched>, HubError> {
    let repo = RepoId::new(Kind::Model, "org/name", None)?;
    let listing = client.list(&repo)?;
    client.fetch(&repo, &listing.commit, &listing.files, &())
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() { open.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found
}

/// What a fault ends in.
enum Outcome {
    /// The right file.
    Right,
    /// One error of this kind, and no file under a final name.
    Refused(fn(&HubError) -> bool),
}
use Outcome::{Refused, Right};

/// Every fault with what it must end in.
fn faults() -> Vec<(&'static str, Faults, Outcome)> {
    let none = Faults::default;
    let bytes = |times: usize, status: u16| Some((times, Wanted::Bytes, status));
    let facts = |times: usize, status: u16| Some((times, Wanted::Facts, status));
    vec![
        ("bytes in a store on another host", none(), Right),
        ("body cut three times", Faults { cut: (3, 30_000), ..none() }, Right),
        ("body cut, and the server knows no ranges", Faults { cut: (2, 60_000), no_range: true, ..none() }, Right),
        (
            "body cut for ever at the same place, no ranges",
            Faults { cut: (99, 500), no_range: true, ..none() },
            Refused(|e| matches!(e, HubError::Network { tries: 5, .. })),
        ),
        ("fewer bytes than announced, once", Faults { cut: (1, 0), ..none() }, Right),
        (
            "Content-Length too long",
            Faults { short: 7, ..none() },
            Refused(|e| matches!(e, HubError::Network { .. } | HubError::Protocol { .. })),
        ),
        ("no Content-Length (chunked)", Faults { no_length: true, ..none() }, Right),
        ("no Content-Length, and cut", Faults { no_length: true, cut: (1, 500), ..none() }, Right),
        (
            "X-Linked-Size one too short",
            Faults { size: Some(99_999), ..none() },
            Refused(|e| matches!(e, HubError::Damaged { what: "size", .. })),
        ),
        ("X-Linked-Size one too long", Faults { size: Some(100_001), ..none() }, Refused(|e| matches!(e, HubError::Protocol { .. }))),
        ("one byte flipped, once", Faults { flip: 1, ..none() }, Right),
        ("one byte flipped, always", Faults { flip: 99, ..none() }, Refused(|e| matches!(e, HubError::Damaged { what: "sha256", .. }))),
        (
            "stale entity tag: the file has another hash",
            Faults { etag: Some("ab".repeat(32)), ..none() },
            Refused(|e| matches!(e, HubError::Damaged { .. })),
        ),
        ("the file changes between two parts (If-Range)", Faults { older: 1, cut: (1, 30_000), ..none() }, Right),
        ("the range that is answered is another one", Faults { cut: (1, 30_000), shifted: 5, ..none() }, Right),
        ("416 without a reason", Faults { cut: (1, 30_000), unsatisfied: true, ..none() }, Right),
        ("slow, but it comes", Faults { drip: Some((Duration::from_millis(1), 2_000)), ..none() }, Right),
        ("silence in the middle of the body", Faults { drip: Some((Duration::from_secs(30), 60_000)), ..none() }, Right),
        (
            "one byte, then silence",
            Faults { drip: Some((Duration::from_secs(30), 1)), ..none() },
            Refused(|e| matches!(e, HubError::Network { .. })),
        ),
        ("500 three times", Faults { status: bytes(3, 500), ..none() }, Right),
        ("503 three times, on look-ups", Faults { status: facts(3, 503), ..none() }, Right),
        ("429 twice, with Retry-After", Faults { status: bytes(2, 429), ..none() }, Right),
        (
            "500 for ever",
            Faults { status: bytes(99, 500), ..none() },
            Refused(|e| matches!(e, HubError::Status { status: 500, tries: 5, .. })),
        ),
        (
            "429 for ever",
            Faults { status: facts(99, 429), ..none() },
            Refused(|e| matches!(e, HubError::Status { status: 429, tries: 5, .. })),
        ),
        ("signed address expires during the download", Faults { cut: (1, 30_000), expires: Some(1), ..none() }, Right),
        (
            "store refuses with 403 for ever",
            Faults { status: bytes(99, 403), ..none() },
            Refused(|e| matches!(e, HubError::Network { .. })),
        ),
        ("401, gated", Faults { refuse: Some((401, "GatedRepo")), ..none() }, Refused(|e| matches!(e, HubError::Gated { .. }))),
        ("403 without a word", Faults { refuse: Some((403, "")), ..none() }, Refused(|e| matches!(e, HubError::Gated { .. }))),
        (
            "401, private or missing",
            Faults { refuse: Some((401, "RepoNotFound")), ..none() },
            Refused(|e| matches!(e, HubError::RepoNotFound { .. })),
        ),
        (
            "404, no such repository",
            Faults { refuse: Some((404, "RepoNotFound")), ..none() },
            Refused(|e| matches!(e, HubError::RepoNotFound { .. })),
        ),
        (
            "404, no such revision",
            Faults { refuse: Some((404, "RevisionNotFound")), ..none() },
            Refused(|e| matches!(e, HubError::RevisionNotFound { .. })),
        ),
        (
            "404, no such file",
            Faults { listed: vec!["gone.json".into()], ..none() },
            Refused(|e| matches!(e, HubError::FileNotFound { .. })),
        ),
        (
            "another commit between look-up and file",
            Faults { commit: Some(OTHER_COMMIT.into()), ..none() },
            Refused(|e| matches!(e, HubError::Protocol { .. })),
        ),
        (
            "a login page with 200, on look-ups",
            Faults { page: Some((99, Wanted::Facts)), ..none() },
            Refused(|e| matches!(e, HubError::Protocol { .. })),
        ),
        ("a login page with 200, once, for bytes", Faults { page: Some((1, Wanted::Bytes)), ..none() }, Right),
        (
            "a login page with 200, always, for bytes",
            Faults { page: Some((99, Wanted::Bytes)), ..none() },
            Refused(|e| matches!(e, HubError::Network { .. })),
        ),
        (
            "redirects in a circle, on look-ups",
            Faults { circle: Some(Wanted::Facts), ..none() },
            Refused(|e| matches!(e, HubError::Protocol { .. })),
        ),
        (
            "redirects in a circle, for bytes",
            Faults { circle: Some(Wanted::Bytes), ..none() },
            Refused(|e| matches!(e, HubError::Protocol { .. })),
        ),
        ("a mirror that sends on to another host", Faults { moved: true, ..none() }, Right),
        ("files listed on pages of the tree", Faults { tree: Some(1), ..none() }, Right),
        (
            "`../` in an entity tag",
            Faults { etag: Some("../../evil".into()), ..none() },
            Refused(|e| matches!(e, HubError::Protocol { .. })),
        ),
        (
            "`../` in a file name",
            Faults { listed: vec!["../../evil".into()], ..none() },
            Refused(|e| matches!(e, HubError::Protocol { .. })),
        ),
        (
            "an absolute file name",
            Faults { listed: vec!["/tmp/evil".into()], ..none() },
            Refused(|e| matches!(e, HubError::Protocol { .. })),
        ),
        (
            "a backslash in a file name",
            Faults { listed: vec!["..\\evil".into()], ..none() },
            Refused(|e| matches!(e, HubError::Protocol { .. })),
        ),
        (
            "`../` in the tree",
            Faults { tree: Some(2), listed: vec!["a/../../evil".into()], ..none() },
            Refused(|e| matches!(e, HubError::Protocol { .. })),
        ),
    ]
}

/// Injects one fault; what it came to, in words.
fn injected(name: &str, fault: &Faults, outcome: &Outcome) -> String {
    let server = serve(fault.clone());
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("hub");
    let found = get(&client(&server.endpoint, &cache));
    let requests = server.log().len();
    for file in files_below(dir.path()) {
        assert!(file.starts_with(&cache), "{name}: {} lies outside the cache", file.display());
    }
    // Only the Hub that was named gets the token.
    let (ours, others) = if fault.moved { ("mirror", ["hub", "store"]) } else { ("hub", ["store", "mirror"]) };
    for line in server.log() {
        let to_others = others.iter().any(|o| line.starts_with(o));
        assert!(line.starts_with(ours) || to_others, "{name}: {line}");
        assert_eq!(line.ends_with("auth=true"), !to_others, "{name}: {line}");
    }
    let snapshot = cache.join("models--org--name/snapshots").join(COMMIT).join(WEIGHTS);
    match (outcome, found) {
        (Right, Ok(files)) => {
            let weights = files.iter().find(|f| f.name == WEIGHTS).unwrap();
            assert!(fs::read(&weights.path).unwrap() == body(), "{name}: wrong bytes");
            assert!(!files_below(&cache).iter().any(|f| f.to_string_lossy().ends_with(".incomplete")), "{name}");
            format!("the right file, {requests} requests")
        }
        (Refused(expected), Err(error)) => {
            assert!(expected(&error), "{name}: {error:?}");
            let words = error
                .to_string()
                .replace(&server.endpoint, "HUB")
                .replace(&server.store, "STORE")
                .replace(&*cache.to_string_lossy(), "CACHE");
            assert!(!words.contains("secret") && !words.contains("hush"), "{name}: {words}");
            assert!(
                fs::read(&snapshot).is_ok_and(|found| found == body()) || !snapshot.exists(),
                "{name}: a wrong file under its final name"
            );
            words
        }
        (Right, Err(error)) => panic!("{name}: {error}"),
        (Refused(_), Ok(_)) => panic!("{name}: no error"),
    }
}

/// The table's rows: fault, outcome.
pub fn fault_rows() -> Vec<(&'static str, String)> {
    let all = faults();
    std::thread::scope(|scope| {
        let started: Vec<_> = all.iter().map(|(name, fault, outcome)| (*name, scope.spawn(|| injected(name, fault, outcome)))).collect();
        started.into_iter().map(|(name, row)| (name, row.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))).collect()
    })
}

#[test]
fn hub_faults_end_in_the_right_file_or_a_clear_error() {
    println!("| fault | outcome |\n|---|---|");
    for (name, outcome) in fault_rows() {
        println!("| {name} | {outcome} |");
    }
}

#[test]
fn the_cache_has_pythons_layout() {
    let server = serve(Faults::default());
    let dir = tempfile::tempdir().unwrap();
    let got = get(&client(&server.endpoint, dir.path())).unwrap();
    assert_eq!(fs::read(&got[1].path).unwrap(), body());
    let root = dir.path().join("models--org--name");
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(got[1].path, root.join("snapshots").join(COMMIT).join(WEIGHTS));
    assert_eq!(fs::read_link(&got[1].path).unwrap(), PathBuf::from("../../blobs").join(got[1].etag.as_ref().unwrap()));
    // The second time nothing but the look-up is asked for, and without a network not even that.
    let before = server.log().len();
    assert_eq!(get(&client(&server.endpoint, dir.path())).unwrap(), got);
    assert_eq!(server.log().len(), before + 1);
    let cache = dir.path().to_string_lossy().into_owned();
    assert_eq!(get(&client_with(&[("HF_HUB_CACHE", &cache), ("HF_HUB_OFFLINE", "1")])).unwrap(), got);
}

#[test]
fn a_cut_body_goes_on_by_range() {
    let server = serve(Faults { cut: (3, 30_000), ..Faults::default() });
    let dir = tempfile::tempdir().unwrap();
    get(&client(&server.endpoint, dir.path())).unwrap();
    let log = server.log();
    for from in [30_000, 60_000, 90_000] {
        let asked = format!("range=bytes={from}- if-range=\"store-newer\"");
        assert!(log.iter().any(|l| l.contains(&asked)), "{asked}: {log:?}");
    }
    // What a run leaves that was killed, the next one goes on with.
    let half = tempfile::tempdir().unwrap();
    let blobs = half.path().join("models--org--name/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let tag = prunectl_run::files::sha256(&body());
    fs::write(blobs.join(format!("{tag}.incomplete")), &body()[..70_000]).unwrap();
    get(&client(&server.endpoint, half.path())).unwrap();
    assert_eq!(fs::read(blobs.join(&tag)).unwrap(), body());
    assert!(server.log().iter().any(|l| l.contains("range=bytes=70000-")));
}

#[test]
fn runs_share_one_cache() {
    let server = serve(Faults::default());
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(fs::read(&get(&client(&server.endpoint, dir.path())).unwrap()[1].path).unwrap(), body()));
        }
    });
    let fetched = server.log().iter().filter(|l| l.starts_with("store GET")).count();
    assert_eq!(fetched, 1, "the lock lets one run fetch and the others wait for it");
}

#[cfg(unix)]
#[test]
fn a_link_in_the_cache_is_not_followed_out_of_it() {
    let server = Server::start(vec![Repo::model("org/name", [("sub/config.json", b"{}".to_vec())])], Faults::default());
    let dir = tempfile::tempdir().unwrap();
    let (cache, outside) = (dir.path().join("hub"), dir.path().join("outside"));
    let snapshot = cache.join("models--org--name/snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, snapshot.join("sub")).unwrap();
    let error = get(&client(&server.endpoint, &cache)).unwrap_err();
    assert!(matches!(&error, HubError::Link { .. }) && error.to_string().contains("remove the link"), "{error}");
    assert!(files_below(&outside).is_empty());
}

#[test]
fn a_hub_that_is_down_or_refuses_leaves_the_cache_to_work_with() {
    let dir = tempfile::tempdir().unwrap();
    let first = serve(Faults::default());
    let got = get(&client(&first.endpoint, dir.path())).unwrap();
    let repo = RepoId::new(Kind::Model, "org/name", None).unwrap();
    for fault in [
        Faults { status: Some((99, Wanted::Facts, 503)), ..Faults::default() },
        Faults { refuse: Some((401, "RepoNotFound")), ..Faults::default() },
        Faults { refuse: Some((403, "GatedRepo")), ..Faults::default() },
    ] {
        let server = serve(fault);
        let client = client(&server.endpoint, dir.path());
        let Listing { commit, files, stale } = client.list(&repo).unwrap();
        assert!(commit == COMMIT && files.len() == 2 && stale.is_some());
        assert_eq!(client.fetch(&repo, &commit, &files, &()).unwrap(), got);
    }
    // A revision that is gone is not covered up.
    let server = serve(Faults { refuse: Some((404, "RevisionNotFound")), ..Faults::default() });
    assert!(matches!(client(&server.endpoint, dir.path()).list(&repo), Err(HubError::RevisionNotFound { .. })));
}

/// A model as the Hub would have it, from the one inside the program.
fn tiny_llama(dir: &Path) -> Repo {
    let recipe = "edition 2026\nmodel m = builtin(\"tiny-llama\")\nsave m to \"m\"\n";
    fs::write(dir.join("a.prune"), recipe).unwrap();
    let out = prunectl(dir, &["run", "a.prune", "-q"]).output().unwrap();
    assert!(out.status.success(), "{}", stderr(&out));
    let names = ["config.json", "generation_config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"];
    let mut files: Vec<_> = names.into_iter().filter_map(|n| Some((n, fs::read(dir.join("m").join(n)).ok()?))).collect();
    files.push(("pytorch_model.bin", vec![0; 1 << 20]));
    Repo::model("org/tiny", files)
}

#[test]
fn a_plan_reads_headers_and_a_run_the_files_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let repo = tiny_llama(dir.path());
    let weights = repo.files[WEIGHTS].len();
    let header = 8 + u64::from_le_bytes(repo.files[WEIGHTS][..8].try_into().unwrap()) as usize;
    let small: usize = repo.files.iter().filter(|(n, _)| n.ends_with(".json")).map(|(_, b)| b.len()).sum();
    let server = Server::start(vec![repo], Faults::default());
    let hub = |args: &[&str]| {
        let mut command = prunectl(dir.path(), args);
        command.env("HF_ENDPOINT", &server.endpoint).env("HF_HUB_CACHE", dir.path().join("hub")).env("HF_HUB_OFFLINE", "0");
        let out = command.env("HF_TOKEN", "hf_secret").output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", stderr(&out));
        assert!(!stdout(&out).contains("hf_secret") && !stderr(&out).contains("hf_secret"));
        out
    };
    let out = hub(&["plan", "hf:org/tiny", "--to", "params <= 80% of dense", "--json"]);
    let value: serde_json::Value = serde_json::from_str(&stdout(&out)).unwrap();
    let limit = &value["fit"]["limits"][0];
    assert!(limit["after"].as_f64() <= limit["limit"].as_f64(), "{value}");
    // The header's length, the header, the small files and the description: no weights.
    let sent = server.sent();
    assert!(sent < header + 8 + small + 2000 && sent < weights / 4, "{sent} bytes for a header of {header} and {small} of small files");
    println!("plan hf:org/tiny fetched {sent} bytes of {weights} and more: a header of {header}, small files of {small}");
    let metrics = |out: &std::process::Output| serde_json::from_str::<serde_json::Value>(&stdout(out)).unwrap()["metrics"].clone();
    let eval =
        |model: &str| ["eval", model, "--data", "builtin:tales", "--rows", "8", "--metric", "loss", "--json", "-q"].map(str::to_owned);
    let as_args = |args: &[String; 10]| hub(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let there = metrics(&as_args(&eval("hf:org/tiny")));
    assert_eq!(there["loss"]["value"], metrics(&as_args(&eval("m")))["loss"]["value"]);
    assert!(!server.log().iter().any(|l| l.contains("pytorch_model.bin")), "only the files that are needed");
    // No token in what a run leaves.
    fs::write(dir.path().join("hub.prune"), "edition 2026\nmodel m = hf(\"org/tiny\")\nsave m to \"copy\"\n").unwrap();
    hub(&["run", "hub.prune", "--out", "r"]);
    hub(&["lock", "hub.prune"]);
    for file in files_below(dir.path()) {
        assert!(!String::from_utf8_lossy(&fs::read(&file).unwrap()).contains("hf_secret"), "{}", file.display());
    }
    let lock = fs::read_to_string(dir.path().join("hub.lock")).unwrap();
    assert!(lock.contains(COMMIT) && lock.contains("tokenizer.json"), "{lock}");
}

#[test]
fn what_the_program_says_when_the_hub_refuses() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.prune"), "edition 2026\nmodel m = hf(\"org/name\")\neval params() of m as n\n").unwrap();
    let said = |faults: Faults, token: Option<&str>| {
        let server = serve(faults);
        let mut command = prunectl(dir.path(), &["run", "a.prune", "--out", "r"]);
        command.env("HF_ENDPOINT", &server.endpoint).env("HF_HOME", dir.path().join("home")).env("HF_HUB_OFFLINE", "0");
        command.env_remove("HF_HUB_CACHE").env_remove("HF_TOKEN").envs(token.map(|t| ("HF_TOKEN", t)));
        let out = command.output().unwrap();
        assert!(matches!(out.status.code(), Some(1 | 2)), "{out:?}");
        stderr(&out)
    };
    let refuse = |status, code| Faults { refuse: Some((status, code)), ..Faults::default() };
    let cases = [
        (refuse(401, "GatedRepo"), None, ["accept its terms", "set HF_TOKEN"]),
        (refuse(403, "GatedRepo"), Some("hf_secret"), ["accept its terms", "check that the token in HF_TOKEN"]),
        (refuse(401, "RepoNotFound"), None, ["check the spelling", "if it is private, set HF_TOKEN"]),
        (refuse(404, "RevisionNotFound"), None, ["no revision `main`", "commits/main"]),
    ];
    for (faults, token, words) in cases {
        let text = said(faults, token);
        assert!(words.iter().all(|w| text.contains(w)) && !text.contains("hf_secret"), "{words:?}: {text}");
    }
}

/// Paths and bytes of a cache, links as what they name.
fn layout(cache: &Path) -> BTreeMap<String, String> {
    let of = |path: &Path| match fs::read_link(path) {
        Ok(to) => format!("-> {}", to.display()),
        Err(_) => prunectl_run::files::sha256(&fs::read(path).unwrap()),
    };
    let name = |path: &Path| path.strip_prefix(cache).unwrap().display().to_string();
    files_below(cache).iter().map(|f| (name(f), of(f))).collect()
}

/// Python's `huggingface_hub` and this program on one cache: each uses what the other has put there.
#[test]
fn pythons_library_and_the_program_share_a_cache() {
    let Some(python) = prunectl_testkit::python("pythons_library_and_the_program_share_a_cache") else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/hub_cache.py");
    let server = serve(Faults::default());
    let asks = |cache: &Path, what: &str| {
        let mut command = std::process::Command::new(&python);
        command.arg(&script).arg(what).env("HF_ENDPOINT", &server.endpoint).env("HF_HUB_CACHE", cache).env("HF_TOKEN", "hf_secret");
        let out = command.env_remove("HF_HUB_OFFLINE").env("HF_HUB_DISABLE_TELEMETRY", "1").output().unwrap();
        assert!(out.status.success(), "{what}: {}", stderr(&out));
        stdout(&out).trim().to_owned()
    };
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    // Fetched by Python, found here.
    asks(&theirs, "snapshot");
    let before = server.log().len();
    let got = get(&client(&server.endpoint, &theirs)).unwrap();
    assert_eq!(fs::read(&got[1].path).unwrap(), body());
    let asked = server.log().split_off(before);
    assert!(asked.len() == 1 && asked[0].contains("/api/models/"), "nothing is downloaded twice: {asked:?}");
    // Fetched here, found by Python: online without a request for bytes, and offline.
    get(&client(&server.endpoint, &ours)).unwrap();
    let before = server.log().len();
    for what in ["snapshot", "file", "offline"] {
        let path = PathBuf::from(asks(&ours, what));
        assert_eq!(fs::canonicalize(path).unwrap(), fs::canonicalize(got_in(&ours)).unwrap(), "{what}");
    }
    let asked = server.log().split_off(before);
    assert!(!asked.iter().any(|l| l.contains(" GET ") && l.contains("/resolve/") || l.starts_with("store")), "{asked:?}");
    // The same files under the same names; Python keeps its list of the tree and a tag for backup programs besides.
    let (mut a, mut b) = (layout(&ours), layout(&theirs));
    for all in [&mut a, &mut b] {
        all.retain(|name, _| !name.contains("/trees/") && !name.ends_with("CACHEDIR.TAG") && !name.starts_with(".locks"));
    }
    assert_eq!(a, b);
    // Both wait for one lock: while Python holds it nothing is fetched here.
    let third = dir.path().join("third");
    let mut holder = std::process::Command::new(&python);
    let tag = prunectl_run::files::sha256(&body());
    let mut holder =
        holder.arg(&script).arg("hold").arg(&tag).env("HF_HUB_CACHE", &third).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.take().unwrap()), &mut line).unwrap();
    assert_eq!(line.trim(), "held");
    let began = std::time::Instant::now();
    get(&client(&server.endpoint, &third)).unwrap();
    assert!(began.elapsed() > Duration::from_millis(300), "the lock that Python holds was waited for");
    assert!(holder.wait().unwrap().success());
}

fn got_in(cache: &Path) -> PathBuf {
    cache.join("models--org--name/snapshots").join(COMMIT).join(WEIGHTS)
}

/// Where Python's library looks under many settings of the environment: made by `tests/python/hub_env.py`, checked again where Python is.
#[test]
fn the_environment_is_read_as_python_reads_it() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/hub/env.json");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/hub_env.py");
    let home = Path::new("/home/u");
    let cases: Vec<serde_json::Value> = serde_json::from_slice(&fs::read(&golden).unwrap()).unwrap();
    assert!(cases.len() > 30);
    for case in &cases {
        let vars: BTreeMap<String, String> = serde_json::from_value(case["set"].clone()).unwrap();
        let env = HubEnv::from_vars(&|n| vars.get(n).cloned(), home);
        let token = env.token.as_ref().map(|_| "present");
        let found = serde_json::json!({
            "cache": env.cache, "endpoint": env.endpoint, "offline": env.offline, "progress": env.progress, "token": token,
            "etag_timeout": env.etag_timeout.as_secs(), "download_timeout": env.download_timeout.as_secs(),
        });
        assert_eq!(found, case["python"], "{vars:?}");
    }
    let Some(python) = prunectl_testkit::python("the_environment_is_read_as_python_reads_it") else { return };
    let out = std::process::Command::new(python).arg(script).output().unwrap();
    assert!(out.status.success(), "{}", stderr(&out));
    let again: Vec<serde_json::Value> = serde_json::from_str(&stdout(&out)).unwrap();
    assert_eq!(again, cases, "{} is out of date", golden.display());
}
