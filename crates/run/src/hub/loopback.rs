//! The client against a server on this machine that speaks the Hub's protocol, and its faults.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha1::Digest as _;

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the servers do wrong, by request count where it matters.
#[derive(Clone, Default)]
struct Faults {
    /// The first so many GETs of bytes end after this many bytes.
    cut: (usize, usize),
    /// The first so many GETs of bytes answer this status.
    status: (usize, u16),
    /// The first so many GETs of bytes have a byte flipped.
    flip: usize,
    /// Ranges are ignored.
    no_range: bool,
    /// HEADs and look-ups answer this status with this `X-Error-Code`.
    refuse: Option<(u16, &'static str)>,
    /// The entity tag sent instead of the right one.
    etag: Option<String>,
    /// The length announced instead of the right one.
    size: Option<usize>,
    /// The name listed instead of the file's.
    listed: Option<String>,
    /// Bytes come one at a time with this pause.
    drip: Option<Duration>,
}

struct Server {
    hub: String,
    log: Arc<Mutex<Vec<String>>>,
}

/// A Hub on one port and a store for large files on another; both serve `body` as `model.safetensors` and `{}` as `config.json`.
fn serve(body: Vec<u8>, faults: Faults) -> Server {
    let hub = TcpListener::bind("127.0.0.1:0").unwrap();
    let store = TcpListener::bind("127.0.0.1:0").unwrap();
    let (hub_at, store_at) = (format!("http://{}", hub.local_addr().unwrap()), format!("http://{}", store.local_addr().unwrap()));
    let log = Arc::new(Mutex::new(Vec::new()));
    let gets = Arc::new(Mutex::new(0usize));
    for (listener, is_hub) in [(hub, true), (store, false)] {
        let (log, gets, body, faults, store_at) = (log.clone(), gets.clone(), body.clone(), faults.clone(), store_at.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, gets, body, faults, store_at) = (log.clone(), gets.clone(), body.clone(), faults.clone(), store_at.clone());
                std::thread::spawn(move || answer(stream, is_hub, &store_at, &body, &faults, &log, &gets));
            }
        });
    }
    Server { hub: hub_at, log }
}

fn answer(mut stream: TcpStream, is_hub: bool, store: &str, body: &[u8], faults: &Faults, log: &Mutex<Vec<String>>, gets: &Mutex<usize>) {
    let mut raw = Vec::new();
    let mut byte = [0; 1];
    while !raw.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        raw.push(byte[0]);
    }
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(&raw).unwrap();
    let (method, path) = (request.method.unwrap().to_owned(), request.path.unwrap().to_owned());
    let header = |name: &str| {
        request.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name)).map(|h| String::from_utf8_lossy(h.value).into_owned())
    };
    let from = header("range").and_then(|r| r.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().ok()).unwrap_or(0);
    log.lock().unwrap().push(format!(
        "{} {method} {path} from={from} auth={}",
        if is_hub { "hub" } else { "store" },
        header("authorization").is_some()
    ));
    let mut send = |head: String, data: &[u8]| {
        let _ = stream.write_all(format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").as_bytes());
        let _ = stream.write_all(data);
    };
    if is_hub && let Some((status, code)) = faults.refuse {
        return send(format!("{status} No\r\nX-Error-Code: {code}\r\nContent-Length: 0"), b"");
    }
    if is_hub && path.starts_with("/api/models/org/name/revision/") {
        let listed = faults.listed.clone().unwrap_or_else(|| "model.safetensors".into());
        let json = format!(r#"{{"sha":"{COMMIT}","siblings":[{{"rfilename":"config.json"}},{{"rfilename":"{listed}"}}],"private":false}}"#);
        return send(format!("200 OK\r\nContent-Length: {}", json.len()), json.as_bytes());
    }
    if is_hub && path.ends_with("config.json") {
        let mut h = sha1::Sha1::default();
        h.update(b"blob 2\0{}");
        let tag: String = h.finalize().iter().map(|b| format!("{b:02x}")).collect();
        let data: &[u8] = if method == "HEAD" { b"" } else { b"{}" };
        return send(format!("200 OK\r\nX-Repo-Commit: {COMMIT}\r\nETag: \"{tag}\"\r\nContent-Length: 2"), data);
    }
    let sha: String = sha2::Sha256::digest(body).iter().map(|b| format!("{b:02x}")).collect();
    if is_hub {
        let (tag, size) = (faults.etag.clone().unwrap_or(sha), faults.size.unwrap_or(body.len()));
        return send(
            format!(
                "302 Found\r\nX-Repo-Commit: {COMMIT}\r\nX-Linked-Etag: \"{tag}\"\r\nX-Linked-Size: {size}\r\nLocation: {store}/lfs?Signature=hush\r\nContent-Length: 0"
            ),
            b"",
        );
    }
    let n = {
        let mut g = gets.lock().unwrap();
        *g += 1;
        *g
    };
    if n <= faults.status.0 {
        return send(format!("{} No\r\nRetry-After: 0\r\nContent-Length: 0", faults.status.1), b"");
    }
    let mut data = body.to_vec();
    if n <= faults.flip
        && let Some(last) = data.last_mut()
    {
        *last ^= 1;
    }
    let from = if faults.no_range { 0 } else { from };
    if from >= data.len() {
        return send("416 Range\r\nContent-Length: 0".into(), b"");
    }
    let rest = &data[from..];
    let head = if from > 0 {
        format!("206 Partial\r\nContent-Range: bytes {from}-{}/{}\r\nContent-Length: {}", data.len() - 1, data.len(), rest.len())
    } else {
        format!("200 OK\r\nContent-Length: {}", rest.len())
    };
    if let Some(pause) = faults.drip {
        send(head, b"");
        for b in rest {
            std::thread::sleep(pause);
            if stream.write_all(&[*b]).is_err() {
                return;
            }
        }
        return;
    }
    let shown = if n <= faults.cut.0 { &rest[..faults.cut.1.min(rest.len())] } else { rest };
    send(head, shown);
}

fn client(server: &Server, cache: &Path) -> Client {
    let vars = [
        ("HF_ENDPOINT", server.hub.clone()),
        ("HF_HUB_CACHE", cache.to_string_lossy().into_owned()),
        ("HF_TOKEN", "hf_secret".to_owned()),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "2".to_owned()),
    ];
    Client::new(HubEnv::from_vars(&|n| vars.iter().find(|(k, _)| *k == n).map(|(_, v)| v.clone()), Path::new("/nowhere"))).impatient()
}

fn body() -> Vec<u8> {
    (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn get(client: &Client) -> Result<Vec<Fetched>, HubError> {
    let repo = RepoId::new(Kind::Model, "org/name", None)?;
    let listing = client.list(&repo)?;
    client.fetch(&repo, &listing.commit, &listing.files, &())
}

fn no_leftovers(cache: &Path) {
    let mut open = vec![cache.to_owned()];
    while let Some(dir) = open.pop() {
        for e in std::fs::read_dir(dir).unwrap().flatten() {
            if e.path().is_dir() {
                open.push(e.path());
            } else {
                assert!(!e.file_name().to_string_lossy().ends_with(".incomplete"), "{:?}", e.path());
            }
        }
    }
}

#[test]
fn the_cache_has_pythons_layout_and_the_token_stays_with_the_hub() {
    let server = serve(body(), Faults::default());
    let dir = tempfile::tempdir().unwrap();
    let got = get(&client(&server, dir.path())).unwrap();
    assert_eq!(std::fs::read(&got[1].path).unwrap(), body());
    let root = dir.path().join("models--org--name");
    assert_eq!(std::fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(got[1].path, root.join("snapshots").join(COMMIT).join("model.safetensors"));
    let target = std::fs::read_link(&got[1].path).unwrap();
    assert_eq!(target, PathBuf::from("../../blobs").join(got[1].etag.as_ref().unwrap()));
    no_leftovers(dir.path());
    let log = server.log.lock().unwrap().clone();
    assert!(log.iter().filter(|l| l.starts_with("hub")).all(|l| l.ends_with("auth=true")), "{log:?}");
    assert!(log.iter().filter(|l| l.starts_with("store")).all(|l| l.ends_with("auth=false")), "{log:?}");

    // The second time nothing but the look-up is asked for, and without a network not even that.
    let before = server.log.lock().unwrap().len();
    assert_eq!(get(&client(&server, dir.path())).unwrap(), got);
    assert_eq!(server.log.lock().unwrap().len(), before + 1);
    let vars = [("HF_HUB_CACHE", dir.path().to_string_lossy().into_owned()), ("HF_HUB_OFFLINE", "1".to_owned())];
    let offline = Client::new(HubEnv::from_vars(&|n| vars.iter().find(|(k, _)| *k == n).map(|(_, v)| v.clone()), Path::new("/nowhere")));
    assert_eq!(get(&offline).unwrap(), got);
}

#[test]
fn a_cut_body_goes_on_by_range() {
    let server = serve(body(), Faults { cut: (3, 30_000), ..Faults::default() });
    let dir = tempfile::tempdir().unwrap();
    let got = get(&client(&server, dir.path())).unwrap();
    assert_eq!(std::fs::read(&got[1].path).unwrap(), body());
    let log = server.log.lock().unwrap().clone();
    assert!(log.iter().any(|l| l.contains("from=90000")), "{log:?}");
}

#[test]
fn a_server_without_ranges_and_faults_that_pass_still_give_the_right_file() {
    for faults in [
        Faults { cut: (1, 500), no_range: true, ..Faults::default() },
        Faults { status: (3, 503), ..Faults::default() },
        Faults { status: (2, 429), ..Faults::default() },
        Faults { flip: 1, ..Faults::default() },
    ] {
        let server = serve(body(), faults);
        let dir = tempfile::tempdir().unwrap();
        let got = get(&client(&server, dir.path())).unwrap();
        assert_eq!(std::fs::read(&got[1].path).unwrap(), body());
        no_leftovers(dir.path());
    }
}

#[test]
fn faults_that_stay_end_in_one_clear_error_and_no_file() {
    type Check = fn(&HubError) -> bool;
    let cases: Vec<(Faults, Check)> = vec![
        (Faults { flip: 99, ..Faults::default() }, |e| matches!(e, HubError::Damaged { what: "sha256", .. })),
        (Faults { status: (99, 500), ..Faults::default() }, |e| matches!(e, HubError::Status { status: 500, tries: 5, .. })),
        (Faults { status: (99, 429), ..Faults::default() }, |e| matches!(e, HubError::Status { status: 429, .. })),
        (Faults { size: Some(99_999), ..Faults::default() }, |e| matches!(e, HubError::Damaged { what: "size", .. })),
        (Faults { size: Some(100_001), ..Faults::default() }, |e| matches!(e, HubError::Protocol { .. })),
        (Faults { etag: Some("../../evil".into()), ..Faults::default() }, |e| matches!(e, HubError::Protocol { .. })),
        (Faults { listed: Some("../../evil".into()), ..Faults::default() }, |e| matches!(e, HubError::Protocol { .. })),
        (Faults { refuse: Some((401, "GatedRepo")), ..Faults::default() }, |e| matches!(e, HubError::Gated { .. })),
        (Faults { refuse: Some((403, "")), ..Faults::default() }, |e| matches!(e, HubError::Gated { .. })),
        (Faults { refuse: Some((401, "RepoNotFound")), ..Faults::default() }, |e| matches!(e, HubError::RepoNotFound { .. })),
        (Faults { refuse: Some((404, "RevisionNotFound")), ..Faults::default() }, |e| matches!(e, HubError::RevisionNotFound { .. })),
        (Faults { drip: Some(Duration::from_secs(30)), ..Faults::default() }, |e| matches!(e, HubError::Network { .. })),
    ];
    for (i, (faults, expected)) in cases.into_iter().enumerate() {
        let server = serve(body(), faults);
        let dir = tempfile::tempdir().unwrap();
        let error = get(&client(&server, dir.path())).unwrap_err();
        assert!(expected(&error), "case {i}: {error:?}");
        let words = error.to_string();
        assert!(!words.contains("secret") && !words.contains("hush"), "case {i}: {words}");
        assert!(!dir.path().join("models--org--name/snapshots").join(COMMIT).join("model.safetensors").exists(), "case {i}");
    }
}

#[test]
fn two_runs_share_one_cache() {
    let server = serve(body(), Faults::default());
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(std::fs::read(&get(&client(&server, dir.path())).unwrap()[1].path).unwrap(), body()));
        }
    });
    let fetched = server.log.lock().unwrap().iter().filter(|l| l.starts_with("store GET")).count();
    assert_eq!(fetched, 1, "the lock lets one run fetch and the others wait for it");
}
