//! Where the Hub is, where its cache is and who we are there: the environment variables of Python's `huggingface_hub`, read as it reads them
//! (<https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables>).

use std::path::{Path, PathBuf};
use std::time::Duration;

/// An access token. It has no `Display`, and `Debug` hides it, so that it can't reach a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    fn new(text: &str) -> Option<Self> {
        let clean = text.trim();
        (!clean.is_empty() && clean.bytes().all(|b| b.is_ascii_graphic())).then(|| Self(clean.to_owned()))
    }

    /// The value of an `Authorization` header.
    pub(super) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What the environment says about the Hub.
#[derive(Debug, Clone)]
pub struct HubEnv {
    /// `HF_HUB_CACHE`, else `$HF_HOME/hub`: the folder that holds `models--org--name`.
    pub cache: PathBuf,
    /// `HF_TOKEN`, else the file at `HF_TOKEN_PATH` (default `$HF_HOME/token`).
    pub token: Option<Token>,
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// `HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`).
    pub offline: bool,
    /// Unless `HF_HUB_DISABLE_PROGRESS_BARS`.
    pub progress: bool,
    /// `HF_HUB_ETAG_TIMEOUT`: for an answer that has no body.
    pub etag_timeout: Duration,
    /// `HF_HUB_DOWNLOAD_TIMEOUT`: the longest silence in a body.
    pub download_timeout: Duration,
    /// The wait before the second try of a request, doubled before each one after it. No variable sets it.
    pub first_wait: Duration,
}

/// The public Hub.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

fn is_true(value: &str) -> bool {
    matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
}

/// `~` and `$NAME`, `${NAME}` in a path, as Python's `expanduser` and `expandvars` do.
fn expand(path: &str, get: &dyn Fn(&str) -> Option<String>, home: &Path) -> PathBuf {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    if let Some(tail) = rest.strip_prefix('~')
        && (tail.is_empty() || tail.starts_with('/'))
    {
        out.push_str(&home.to_string_lossy());
        rest = tail;
    }
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        let (name, len) = match tail.strip_prefix('{').and_then(|t| t.find('}').map(|end| (&t[..end], end + 2))) {
            Some(braced) => braced,
            None => {
                let end = tail.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(tail.len());
                (&tail[..end], end)
            }
        };
        match get(name).filter(|_| !name.is_empty()) {
            Some(value) => out.push_str(&value),
            None => out.push_str(&rest[at..at + 1 + len]),
        }
        rest = &tail[len..];
    }
    out.push_str(rest);
    PathBuf::from(out)
}

impl HubEnv {
    /// Reads this process's environment.
    pub fn read() -> Self {
        let home = std::env::home_dir().unwrap_or_else(|| PathBuf::from("."));
        Self::from_vars(&|name| std::env::var(name).ok(), &home)
    }

    /// Reads the environment that `get` gives. For paths an empty variable counts, as in Python: it means the working directory.
    pub fn from_vars(get: &dyn Fn(&str) -> Option<String>, home: &Path) -> Self {
        let set = |name: &str| get(name).filter(|v| !v.is_empty());
        let path = |text: String| expand(&text, get, home);
        let cache_home = get("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), path);
        let hf_home = get("HF_HOME").map_or_else(|| cache_home.join("huggingface"), path);
        let cache = get("HF_HUB_CACHE").or_else(|| get("HUGGINGFACE_HUB_CACHE")).map_or_else(|| hf_home.join("hub"), path);
        let token_path = get("HF_TOKEN_PATH").map_or_else(|| hf_home.join("token"), path);
        let token = if set("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|v| is_true(&v)) {
            None
        } else {
            set("HF_TOKEN")
                .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
                .as_deref()
                .and_then(Token::new)
                .or_else(|| std::fs::read_to_string(&token_path).ok().as_deref().and_then(Token::new))
        };
        // Zero means the default, as in Python.
        let seconds = |name: &str| Duration::from_secs(set(name).and_then(|v| v.trim().parse().ok()).filter(|s| *s > 0).unwrap_or(10));
        Self {
            cache,
            token,
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()).trim_end_matches('/').to_owned(),
            offline: set("HF_HUB_OFFLINE").or_else(|| set("TRANSFORMERS_OFFLINE")).is_some_and(|v| is_true(&v)),
            progress: !set("HF_HUB_DISABLE_PROGRESS_BARS").is_some_and(|v| is_true(&v)),
            etag_timeout: seconds("HF_HUB_ETAG_TIMEOUT"),
            download_timeout: seconds("HF_HUB_DOWNLOAD_TIMEOUT"),
            first_wait: Duration::from_secs(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(vars: &[(&str, &str)]) -> HubEnv {
        let vars: Vec<(String, String)> = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        HubEnv::from_vars(&|n| vars.iter().find(|(k, _)| k == n).map(|(_, v)| v.clone()), Path::new("/home/u"))
    }

    #[test]
    fn defaults_are_those_of_the_python_library() {
        let e = env(&[]);
        assert_eq!(e.cache, Path::new("/home/u/.cache/huggingface/hub"));
        assert_eq!((e.endpoint.as_str(), e.offline, e.progress, e.token), (DEFAULT_ENDPOINT, false, true, None));
    }

    #[test]
    fn each_variable_is_honoured() {
        assert_eq!(env(&[("XDG_CACHE_HOME", "/x")]).cache, Path::new("/x/huggingface/hub"));
        assert_eq!(env(&[("HF_HOME", "~/hf")]).cache, Path::new("/home/u/hf/hub"));
        assert_eq!(env(&[("HF_HOME", "$B/hf"), ("B", "/big")]).cache, Path::new("/big/hf/hub"));
        assert_eq!(env(&[("HF_HOME", "/a"), ("HF_HUB_CACHE", "${NONE}/c")]).cache, Path::new("${NONE}/c"));
        assert_eq!(env(&[("HF_ENDPOINT", "http://127.0.0.1:9/")]).endpoint, "http://127.0.0.1:9");
        for yes in ["1", "on", "Yes", "TRUE"] {
            assert!(env(&[("HF_HUB_OFFLINE", yes)]).offline);
        }
        assert!(!env(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert!(!env(&[("HF_HUB_DISABLE_PROGRESS_BARS", "1")]).progress);
        assert_eq!(env(&[("HF_HUB_DOWNLOAD_TIMEOUT", "3")]).download_timeout, Duration::from_secs(3));
    }

    #[test]
    fn a_token_is_cleaned_and_never_printed() {
        let e = env(&[("HF_TOKEN", " hf_secret\n")]);
        assert_eq!(e.token.as_ref().map(Token::bearer).as_deref(), Some("Bearer hf_secret"));
        assert!(!format!("{e:?}").contains("secret"));
        assert_eq!(env(&[("HF_TOKEN", "hf_x"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token, None);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t");
        std::fs::write(&file, "hf_file\n").unwrap();
        let e = env(&[("HF_TOKEN_PATH", file.to_str().unwrap())]);
        assert_eq!(e.token.map(|t| t.bearer()).as_deref(), Some("Bearer hf_file"));
    }
}
