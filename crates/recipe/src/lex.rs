//! Tokens, for what a grammar does badly: refusing deep nesting before the parser runs, cutting a text into statements so that one
//! typo costs one statement, reading `##` lines, and formatting. The grammar stays the authority on what is a recipe.

/// Brackets may be nested this deep.
pub const MAX_DEPTH: usize = 128;

/// Words that begin a statement.
pub const STATEMENTS: &[&str] = &[
    "edition",
    "use",
    "param",
    "model",
    "data",
    "let",
    "score",
    "prune",
    "compact",
    "reconstruct",
    "train",
    "attach",
    "fuse",
    "snapshot",
    "rewind",
    "reinit",
    "quantize",
    "repeat",
    "sweep",
    "adopt",
    "eval",
    "expect",
    "save",
];

/// Words that connect, and never name a thing.
pub const CONNECTIVES: &[&str] = &[
    "by", "using", "on", "for", "of", "as", "to", "into", "in", "over", "from", "where", "each", "else", "then", "or", "and", "not",
    "except", "true", "false",
];

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tok {
    Word,
    /// A number, its `%` included.
    Number,
    /// A string; `false`: it has no end on its line.
    Str(bool),
    /// An operator or a bracket.
    Op,
    /// `# …` without its end of line.
    Comment,
    /// A character that has no place in a recipe.
    Junk,
}

/// A token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    pub kind: Tok,
    pub start: usize,
    pub end: usize,
    /// Line breaks between the previous token and this one, comments counted as tokens.
    pub breaks: usize,
}

impl Token {
    /// What it covers.
    pub fn text<'t>(&self, text: &'t str) -> &'t str {
        text.get(self.start..self.end).unwrap_or("")
    }
}

fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

fn number_end(b: &[u8], mut i: usize) -> usize {
    let digits = |mut j: usize, under: bool| {
        while b.get(j).is_some_and(|c| c.is_ascii_digit() || (under && *c == b'_')) {
            j += 1;
        }
        j
    };
    i = digits(i, true);
    if b.get(i) == Some(&b'.') && b.get(i + 1).is_some_and(u8::is_ascii_digit) {
        i = digits(i + 1, false);
    }
    if matches!(b.get(i), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(b.get(i + 1), Some(b'+' | b'-')));
        if b.get(i + 1 + sign).is_some_and(u8::is_ascii_digit) {
            i = digits(i + 1 + sign, false);
        }
    }
    let mut j = i;
    while b.get(j) == Some(&b' ') {
        j += 1;
    }
    if b.get(j) == Some(&b'%') { j + 1 } else { i }
}

fn string_end(b: &[u8], mut i: usize) -> (usize, bool) {
    i += 1;
    while let Some(c) = b.get(i) {
        match c {
            b'"' => return (i + 1, true),
            b'\n' => return (i, false),
            b'\\' if b.get(i + 1).is_some_and(|c| *c != b'\n') => i += 2,
            _ => i += 1,
        }
    }
    (b.len(), false)
}

/// All tokens, comments included. Total, whatever the text.
pub fn tokens(text: &str) -> Vec<Token> {
    let b = text.as_bytes();
    let (mut out, mut i, mut breaks) = (Vec::new(), 0, 0);
    while let Some(&c) = b.get(i) {
        if c == b'\n' {
            breaks += 1;
        }
        if matches!(c, b' ' | b'\t' | b'\r' | b'\n') {
            i += 1;
            continue;
        }
        let start = i;
        let kind = if c == b'#' {
            while b.get(i).is_some_and(|c| *c != b'\n') {
                i += 1;
            }
            Tok::Comment
        } else if c.is_ascii_digit() {
            i = number_end(b, i);
            Tok::Number
        } else if is_word(c) {
            while b.get(i).is_some_and(|c| is_word(*c)) {
                i += 1;
            }
            Tok::Word
        } else if c == b'"' {
            let (end, closed) = string_end(b, i);
            i = end;
            Tok::Str(closed)
        } else {
            let rest = &b[i..];
            let op = ["..=", "..", "->", "<=", ">=", "==", "!="].iter().find(|o| rest.starts_with(o.as_bytes()));
            if let Some(op) = op {
                i += op.len();
                Tok::Op
            } else if b"()[]{}.,:=+-*/|<>".contains(&c) {
                i += 1;
                Tok::Op
            } else {
                i += text.get(i..).and_then(|t| t.chars().next()).map_or(1, char::len_utf8);
                Tok::Junk
            }
        };
        // A string may end in the middle of a character only if the text does: it is UTF-8, so it can't.
        out.push(Token { kind, start, end: i, breaks });
        breaks = 0;
    }
    out
}

/// The tokens that are no comments; the line breaks around a comment go to the token behind it.
pub fn code(tokens: &[Token]) -> Vec<Token> {
    let mut breaks = 0;
    let mut out = Vec::with_capacity(tokens.len());
    for t in tokens {
        breaks += t.breaks;
        if t.kind != Tok::Comment {
            out.push(Token { breaks, ..*t });
            breaks = 0;
        }
    }
    out
}

/// The first bracket that is nested deeper than [`MAX_DEPTH`].
pub fn too_deep(text: &str, tokens: &[Token]) -> Option<Token> {
    let mut depth = 0usize;
    for t in tokens.iter().filter(|t| t.kind == Tok::Op) {
        match t.text(text) {
            "(" | "[" | "{" => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Some(*t);
                }
            }
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// Whether the token is a statement's keyword by its surroundings: not behind `.`, not before `=`.
fn begins(text: &str, code: &[Token], i: usize) -> bool {
    let Some(t) = code.get(i).filter(|t| t.kind == Tok::Word) else { return false };
    if !STATEMENTS.contains(&t.text(text)) || code.get(i + 1).is_some_and(|n| n.text(text) == "=") {
        return false;
    }
    let Some(before) = i.checked_sub(1).and_then(|p| code.get(p)) else { return true };
    let before = before.text(text);
    if before == "." {
        return false;
    }
    // `as score`: a keyword where a name should stand is that statement's mistake, not the next one's beginning.
    t.breaks > 0
        || !(CONNECTIVES.contains(&before) && !matches!(before, "each" | "true" | "false") || STATEMENTS.contains(&before) || before == "=")
}

fn indent(text: &str, at: usize) -> usize {
    let line = text.get(..at).unwrap_or("").rfind('\n').map_or(0, |n| n + 1);
    at - line
}

/// Cuts the tokens (without comments) of `code` into statements: half-open ranges of token indices, which together cover all of them.
/// A statement begins at a statement keyword outside all brackets; a bracket that never closes ends at a line-initial keyword.
pub fn split(text: &str, code: &[Token]) -> Vec<std::ops::Range<usize>> {
    let mut starts = vec![0];
    let mut open: Vec<(usize, u8)> = Vec::new();
    let (mut i, mut retries) = (0, 0);
    while i <= code.len() {
        if i == code.len() {
            retries += 1;
            // Something is still open at the end: close it at the first keyword that can't be inside, and look again from there.
            let Some(&(at, bracket)) = open.first() else { break };
            let begin = starts.last().copied().unwrap_or(0);
            let own = code.get(begin).map_or(0, |t| indent(text, t.start));
            let resume = (at + 1..code.len())
                .find(|&j| code[j].breaks > 0 && begins(text, code, j) && (bracket != b'{' || indent(text, code[j].start) <= own));
            open.clear();
            match resume {
                // So many open brackets are no typos: from here on brackets are not looked at, which keeps the time linear.
                Some(j) if retries > MAX_DEPTH => {
                    starts.extend((j..code.len()).filter(|&k| code[k].breaks > 0 && begins(text, code, k)));
                    break;
                }
                Some(j) => {
                    starts.push(j);
                    i = j + 1;
                    continue;
                }
                None => break,
            }
        }
        let t = code[i];
        match (t.kind, t.text(text)) {
            (Tok::Op, b @ ("(" | "[" | "{")) => open.push((i, b.as_bytes()[0])),
            (Tok::Op, b @ (")" | "]" | "}")) => {
                let want = match b {
                    ")" => b'(',
                    "]" => b'[',
                    _ => b'{',
                };
                // A bracket that closes an outer one closes what was left open inside; a stray one closes nothing.
                if let Some(p) = open.iter().rposition(|(_, o)| *o == want) {
                    open.truncate(p);
                }
            }
            (Tok::Word, _) if open.is_empty() && i > 0 && begins(text, code, i) && starts.last() != Some(&i) => {
                starts.push(i);
            }
            _ => {}
        }
        i += 1;
    }
    let ends = starts.iter().skip(1).copied().chain([code.len()]);
    starts.iter().copied().zip(ends).map(|(a, b)| a..b).filter(|r| !r.is_empty()).collect()
}
