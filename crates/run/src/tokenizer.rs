//! Tokenizers in the Hugging Face layout (`tokenizer.json`).
//!
//! A tokenizer.json may carry truncation and padding to a fixed length, and the `tokenizers` crate obeys both where Hugging Face's Python
//! classes override them. Here they are switched off on reading: rows are padded to the longest of their batch and cut by the rule that
//! the run prints. Special tokens are added as the file's post-processor says.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use prunectl_prune::Window;
use sha2::{Digest, Sha256};
use tokenizers::{PostProcessor, TruncationDirection, TruncationParams, TruncationStrategy};

use crate::caught::quietly;

/// Why a tokenizer can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The operating system refused.
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: std::io::Error },
    /// Not a tokenizer.json.
    #[error("{origin} is not a tokenizer that this version reads: {why}")]
    Unreadable { origin: String, why: String },
    /// A folder with an older format only.
    #[error("{} has {found} but no tokenizer.json; make one with `AutoTokenizer.from_pretrained(\"{}\").save_pretrained(\"{}\")` in Python", dir.display(), dir.display(), dir.display())]
    OldFormat { dir: PathBuf, found: String },
    /// More tokens than the embedding has rows.
    #[error(
        "{origin} gives token ids up to {largest} (`{token}`), and the model's embedding has {rows} rows: this is not the model's tokenizer, or the embedding was cut"
    )]
    Vocabulary { origin: String, largest: u32, token: String, rows: usize },
    /// A limit that leaves no room for text.
    #[error("rows of at most {limit} tokens leave no room for text: {origin} adds {added} special tokens")]
    NoRoom { origin: String, limit: usize, added: usize },
    /// Masked language modelling without a mask token.
    #[error("{origin} has no mask token ([MASK], <mask>): masked-token loss needs one")]
    NoMaskToken { origin: String },
    /// A text could not be tokenised.
    #[error("{origin} could not tokenise a text: {why}")]
    Encode { origin: String, why: String },
}

/// One row in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// 0 in the first text, 1 in the second; `None` if all are 0.
    pub types: Option<Vec<u32>>,
    /// Whether tokens had to be cut off.
    pub cut: bool,
}

/// Token ids, and of each the bytes of the text that it covers: from, to.
pub type Spanned = (Vec<u32>, Vec<(usize, usize)>);

/// A tokenizer; cloning is cheap.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    json: Arc<Vec<u8>>,
    origin: String,
    pad: u32,
    mask: Option<u32>,
    prefix: Vec<u32>,
    special: Arc<Vec<u32>>,
    largest: (u32, String),
    limit: Option<usize>,
    /// BOS, or EOS where there is none.
    start: Option<u32>,
    /// The words of BOS and EOS, for templates.
    marks: (String, String),
    template: Option<Arc<str>>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("origin", &self.origin).field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// The tokenizer in a model's folder; `None` if there is none of any kind, which is legal with pre-tokenised data.
    pub fn open(dir: &Path) -> Result<Option<Self>, TokenizerError> {
        let path = dir.join("tokenizer.json");
        let json = match std::fs::read(&path) {
            Ok(json) => json,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                const OLD: [&str; 5] = ["vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"];
                return match OLD.iter().find(|f| dir.join(f).is_file()) {
                    Some(found) => Err(TokenizerError::OldFormat { dir: dir.to_owned(), found: (*found).to_owned() }),
                    None => Ok(None),
                };
            }
            Err(error) => return Err(TokenizerError::Io { path, error }),
        };
        let side = |name: &str| -> serde_json::Value {
            let bytes = std::fs::read(dir.join(name)).unwrap_or_default();
            serde_json::from_slice(&bytes).unwrap_or_default()
        };
        let mut this = Self::build(&path.display().to_string(), json, &side("config.json"), &side("tokenizer_config.json"))?;
        if let Ok(template) = std::fs::read_to_string(dir.join("chat_template.jinja")) {
            this.template = Some(template.into());
        }
        Ok(Some(this))
    }

    /// A tokenizer from the bytes of a tokenizer.json, as built-in models carry it, with the model's config for its padding token.
    pub fn from_bytes(origin: &str, json: &[u8], config: &serde_json::Value) -> Result<Self, TokenizerError> {
        Self::build(origin, json.to_vec(), config, &serde_json::Value::Null)
    }

    fn build(
        origin: &str,
        json: Vec<u8>,
        config: &serde_json::Value,
        tokenizer_config: &serde_json::Value,
    ) -> Result<Self, TokenizerError> {
        let unreadable = |why: String| TokenizerError::Unreadable { origin: origin.to_owned(), why };
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(&json)).map_err(unreadable)?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| unreadable(e.to_string()))?;

        let largest = inner.get_vocab(true).into_iter().map(|(token, id)| (id, token)).max();
        let largest = largest.ok_or_else(|| unreadable("its vocabulary is empty".into()))?;
        let mut special: Vec<u32> = inner.get_added_tokens_decoder().iter().filter(|(_, t)| t.special).map(|(id, _)| *id).collect();
        special.sort_unstable();

        // Special tokens are a string, or an object that holds it.
        let named = |key: &str| -> Option<u32> {
            let v = tokenizer_config.get(key)?;
            inner.token_to_id(v.as_str().or_else(|| v.get("content")?.as_str())?)
        };
        let any = |names: &[&str]| names.iter().find_map(|n| inner.token_to_id(n));
        let id = |key: &str| config.get(key)?.as_u64().and_then(|i| u32::try_from(i).ok()).filter(|i| *i <= largest.0);
        // Padded places are never attended to nor scored, so any id that the embedding has will do.
        let pad = id("pad_token_id").or_else(|| named("pad_token")).or_else(|| any(&["[PAD]", "<pad>"])).unwrap_or(0);
        let mask = named("mask_token").or_else(|| any(&["[MASK]", "<mask>"]));
        let start = named("bos_token").or_else(|| id("bos_token_id")).or_else(|| named("eos_token")).or_else(|| id("eos_token_id"));
        let word = |key: &str| match tokenizer_config.get(key) {
            Some(serde_json::Value::String(s)) => s.clone(),
            Some(v) => v.get("content").and_then(|c| c.as_str()).unwrap_or_default().to_owned(),
            None => id(&format!("{key}_id")).and_then(|i| inner.id_to_token(i)).unwrap_or_default(),
        };
        let marks = (word("bos_token"), word("eos_token"));
        // One template, or several by name, of which `default` is meant.
        let template = tokenizer_config.get("chat_template").and_then(|t| match t {
            serde_json::Value::Array(all) => {
                let default = all.iter().find(|t| t.get("name").and_then(|n| n.as_str()) == Some("default"))?;
                default.get("template")?.as_str().map(Arc::from)
            }
            t => t.as_str().map(Arc::from),
        });
        let prefix = guarded(|| prefix_of(&inner)).map_err(unreadable)?;
        Ok(Self {
            inner: Arc::new(inner),
            json: Arc::new(json),
            origin: origin.to_owned(),
            pad,
            mask,
            prefix,
            special: Arc::new(special),
            largest,
            limit: None,
            start,
            marks,
            template,
        })
    }

    /// Refuses a tokenizer that can give ids without a row in the embedding.
    pub fn fits(&self, embedding_rows: usize) -> Result<(), TokenizerError> {
        let (largest, token) = self.largest.clone();
        if (largest as usize) < embedding_rows {
            return Ok(());
        }
        Err(TokenizerError::Vocabulary { origin: self.origin.clone(), largest, token, rows: embedding_rows })
    }

    /// The same tokenizer, cutting rows to `limit` tokens with their special tokens: from the end, of a pair the longer text first.
    pub fn limited(&self, limit: usize) -> Result<Self, TokenizerError> {
        if self.limit == Some(limit) {
            return Ok(self.clone());
        }
        let added = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(true).max(p.added_tokens(false)));
        if limit <= added {
            return Err(TokenizerError::NoRoom { origin: self.origin.clone(), limit, added });
        }
        let mut inner = (*self.inner).clone();
        let rule = TruncationParams {
            max_length: limit,
            strategy: TruncationStrategy::LongestFirst,
            direction: TruncationDirection::Right,
            stride: 0,
        };
        inner.with_truncation(Some(rule)).map_err(|e| TokenizerError::Unreadable { origin: self.origin.clone(), why: e.to_string() })?;
        Ok(Self { inner: Arc::new(inner), limit: Some(limit), ..self.clone() })
    }

    /// A text, or a pair, with its special tokens.
    pub fn encode(&self, text: &str, pair: Option<&str>) -> Result<Encoded, TokenizerError> {
        let input: tokenizers::EncodeInput<'_> = match pair {
            Some(pair) => (text, pair).into(),
            None => text.into(),
        };
        let encoding = guarded(|| self.inner.encode_fast(input, true)).map_err(|why| self.trouble(why))?;
        let types = encoding.get_type_ids();
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            types: types.iter().any(|t| *t != 0).then(|| types.to_vec()),
            cut: !encoding.get_overflowing().is_empty(),
        })
    }

    /// A question and a context, with special tokens, in windows of at most `limit` tokens: the question whole in each, the context in
    /// pieces of which neighbours share `stride` tokens.
    ///
    /// # Errors
    /// No room for a piece beside the question and `stride`.
    pub fn windows(&self, question: &str, context: &str, limit: usize, stride: usize) -> Result<Vec<Window>, TokenizerError> {
        let added = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(true));
        let inner = self.unlimited()?;
        let plain = |text: &str| guarded(|| inner.encode(text, false)).map_err(|why| self.trouble(why));
        let (asked, mut piece) = (plain(question)?, plain(context)?);
        let taken = added + asked.len();
        if limit <= taken + stride {
            return Err(TokenizerError::NoRoom { origin: self.origin.clone(), limit, added: taken + stride });
        }
        // Cut here and not by the library's own rule for pairs, which loses pieces behind the second.
        piece.truncate(limit - taken, stride, TruncationDirection::Right);
        let rest = piece.take_overflowing();
        let window = |piece: tokenizers::Encoding| {
            let e = guarded(|| inner.post_process(asked.clone(), Some(piece), true)).map_err(|why| self.trouble(why))?;
            let types = e.get_type_ids();
            let of_context = e.get_sequence_ids().into_iter().map(|s| s == Some(1));
            let places = e.get_offsets().iter().zip(of_context).map(|(place, inside)| inside.then_some(*place)).collect();
            Ok(Window { ids: e.get_ids().to_vec(), types: types.iter().any(|t| *t != 0).then(|| types.to_vec()), places })
        };
        std::iter::once(piece).chain(rest).map(window).collect()
    }

    /// A text without special tokens, never cut.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        // Cutting is a property of the tokenizer; only one without a limit may serve here.
        debug_assert!(self.limit.is_none());
        Ok(guarded(|| self.inner.encode_fast(text, false)).map_err(|why| self.trouble(why))?.get_ids().to_vec())
    }

    /// A text without special tokens of the tokenizer's own, never cut, with the bytes that each token covers: for templates, which write
    /// special tokens out.
    pub fn encode_with_offsets(&self, text: &str) -> Result<Spanned, TokenizerError> {
        let unlimited = if self.limit.is_some() { Some(self.unlimited()?) } else { None };
        let inner = unlimited.as_ref().map_or(&*self.inner, |t| t);
        let encoding = guarded(|| inner.encode(text, false)).map_err(|why| self.trouble(why))?;
        Ok((encoding.get_ids().to_vec(), encoding.get_offsets().to_vec()))
    }

    fn unlimited(&self) -> Result<tokenizers::Tokenizer, TokenizerError> {
        let mut inner = (*self.inner).clone();
        inner.with_truncation(None).map_err(|e| TokenizerError::Unreadable { origin: self.origin.clone(), why: e.to_string() })?;
        Ok(inner)
    }

    /// Text of tokens; special tokens are left out on request.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TokenizerError> {
        guarded(|| self.inner.decode(ids, skip_special_tokens)).map_err(|why| self.trouble(why))
    }

    fn trouble(&self, why: String) -> TokenizerError {
        TokenizerError::Encode { origin: self.origin.clone(), why }
    }

    /// The special tokens that this tokenizer puts in front of a text: BOS, `[CLS]`, or nothing.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }
    /// What stands in front of a text without context: BOS, or EOS where there is none.
    pub fn start(&self) -> Option<u32> {
        self.start
    }
    /// The words of BOS and EOS; empty where there are none.
    pub fn marks(&self) -> (&str, &str) {
        (&self.marks.0, &self.marks.1)
    }
    /// The chat template.
    pub fn template(&self) -> Option<&str> {
        self.template.as_deref()
    }
    /// The same tokenizer with a chat template.
    #[cfg(test)]
    pub(crate) fn with_template(mut self, template: &str) -> Self {
        self.template = Some(template.into());
        self
    }
    /// The id for padded places.
    pub fn pad(&self) -> u32 {
        self.pad
    }
    /// The mask token, or an error that says that there is none.
    pub fn mask(&self) -> Result<u32, TokenizerError> {
        self.mask.ok_or_else(|| TokenizerError::NoMaskToken { origin: self.origin.clone() })
    }
    /// Whether an id is a special token ([CLS], BOS, padding, …).
    pub fn is_special(&self, id: u32) -> bool {
        self.special.binary_search(&id).is_ok()
    }
    /// One more than the largest id that it can give.
    pub fn vocabulary(&self) -> usize {
        self.largest.0 as usize + 1
    }
    /// The tokenizer.json, byte for byte, for `save`.
    pub fn json(&self) -> &[u8] {
        &self.json
    }
    /// SHA-256 of the tokenizer.json, in hexadecimal.
    pub fn sha256(&self) -> String {
        hex(&Sha256::digest(self.json.as_slice()))
    }
    /// Where it was read.
    pub fn origin(&self) -> &str {
        &self.origin
    }
    /// The rule by which rows are cut, in words.
    pub fn rule(&self) -> String {
        match self.limit {
            Some(limit) => format!("rows over {limit} tokens are cut at the end (of a pair, the longer text first)"),
            None => "rows are not cut".into(),
        }
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The library answers some damaged files with a panic, when it reads them or when it uses them.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match quietly(work) {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(_) => Err("its parts do not fit one another".to_owned()),
    }
}

/// What stands before the tokens of a plain text when special tokens are asked for.
fn prefix_of(inner: &tokenizers::Tokenizer) -> tokenizers::Result<Vec<u32>> {
    const PROBES: [&str; 4] = ["a", "the", "0", "."];
    for probe in PROBES {
        let plain = inner.encode_fast(probe, false)?;
        let full = inner.encode_fast(probe, true)?;
        let (plain, full) = (plain.get_ids(), full.get_ids());
        if plain.is_empty() {
            continue;
        }
        if let Some(start) = full.windows(plain.len()).position(|w| w == plain) {
            return Ok(full[..start].to_vec());
        }
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use crate::data::tests::tokenizer;

    #[test]
    fn cutting_and_padding_of_the_file_are_off() {
        let t = tokenizer();
        let e = t.encode("a b c d e", None).expect("encodes");
        assert_eq!((e.ids.as_slice(), e.types.is_none(), e.cut), (&[2u32, 5, 6, 7, 8, 9, 3][..], true, false));
        assert_eq!((t.prefix(), t.pad(), t.mask().ok(), t.vocabulary()), (&[2u32][..], 0, Some(4), 15));
        assert_eq!(t.encode_plain("a b").expect("encodes"), [5, 6]);
        assert_eq!(t.decode(&[2, 5, 6, 3], true).expect("decodes"), "a b");
        assert!(t.is_special(4) && !t.is_special(5));
    }

    #[test]
    fn rows_are_cut_from_the_end_and_of_a_pair_the_longer_first() {
        let t = tokenizer().limited(6).expect("limit");
        let e = t.encode("a b c d e", None).expect("encodes");
        assert_eq!((e.ids.as_slice(), e.cut), (&[2u32, 5, 6, 7, 8, 3][..], true));
        let e = t.encode("a b c d", Some("g")).expect("encodes");
        assert_eq!((e.ids.as_slice(), e.types.as_deref(), e.cut), (&[2u32, 5, 6, 3, 11, 3][..], Some(&[0u32, 0, 0, 0, 1, 1][..]), true));
        assert!(!t.encode("a b", Some("g")).expect("encodes").cut);
        assert_eq!(
            t.limited(3).expect_err("refused").to_string(),
            "rows of at most 3 tokens leave no room for text: test tokenizer adds 3 special tokens"
        );
    }

    #[test]
    fn what_is_not_a_tokenizer_is_refused() {
        let t = tokenizer();
        assert!(t.fits(15).is_ok());
        let e = t.fits(14).expect_err("refused").to_string();
        assert!(e.contains("up to 14 (`bad`)") && e.contains("14 rows"), "{e}");
        // The library panics on a decoder of no kind that it knows.
        let odd = String::from_utf8(t.json().to_vec()).expect("text").replacen('{', "{\"decoder\": 3,", 1);
        let e = super::Tokenizer::from_bytes("x", odd.as_bytes(), &serde_json::Value::Null).expect_err("refused").to_string();
        assert!(e.starts_with("x is not a tokenizer that this version reads"), "{e}");
        let e = super::Tokenizer::from_bytes("x", b"{\"model\": 3}", &serde_json::Value::Null).expect_err("refused").to_string();
        assert!(e.starts_with("x is not a tokenizer that this version reads"), "{e}");
        let dir = tempfile::tempdir().expect("folder");
        assert!(super::Tokenizer::open(dir.path()).expect("legal").is_none());
        std::fs::write(dir.path().join("vocab.txt"), "a").expect("write");
        assert!(super::Tokenizer::open(dir.path()).expect_err("refused").to_string().contains("vocab.txt but no tokenizer.json"));
    }
}
