//! Words for what is wrong with a text before it has a meaning.

use crate::diagnostic::Diagnostic;
use crate::lex::{self, Tok, Token};
use crate::lower::Failure;
use crate::plan::Span;

fn span(file: u32, start: usize, end: usize) -> Span {
    Span { file, start: start as u32, end: end as u32 }
}

/// Mistakes that single tokens show: a string without an end, a character that has no place.
pub(crate) fn lexical(text: &str, tokens: &[Token], file: u32) -> Vec<Diagnostic> {
    let mut out = Vec::new();
    let mut last_junk = None;
    for t in tokens {
        match t.kind {
            Tok::Str(false) => {
                let at = span(file, t.start, t.end);
                let d = Diagnostic::error("P0004", "a string has no end on its line", at, "begins here");
                out.push(d.hint("close it with `\"`; a line break in a string is written `\\n`"));
            }
            Tok::Junk => {
                // A run of them is one mistake.
                if last_junk != Some(t.start) {
                    let c = t.text(text).escape_debug().to_string();
                    let at = span(file, t.start, t.end);
                    out.push(Diagnostic::error("P0002", format!("`{c}` has no place in a recipe"), at, "not a character of the language"));
                }
                last_junk = Some(t.end);
            }
            _ => {}
        }
    }
    out
}

/// An expression that recursion could not handle.
pub(crate) fn too_long(span: Span) -> Diagnostic {
    Diagnostic::error("P0003", "an expression has too many operators", span, "in this statement").hint("name parts of it with `let`")
}

/// `1 < 2 < 3`.
pub(crate) fn chained_comparison(span: Span) -> Diagnostic {
    Diagnostic::error("P0005", "comparisons can't be chained", span, "compares the result of a comparison")
        .hint("join two comparisons with `and`: `a < b and b < c`")
}

/// The nearest of some words, if one is near.
pub(crate) fn nearest<'w>(word: &str, among: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let limit = (word.chars().count() / 3).max(1);
    among
        .into_iter()
        .map(|w| (strsim::damerau_levenshtein(&word.to_lowercase(), &w.to_lowercase()), w))
        .filter(|(d, w)| *d <= limit || (w.len() >= 3 && word.len() >= 3 && (w.starts_with(word) || word.starts_with(w)) && *d <= 4))
        .min_by_key(|(d, w)| (*d, w.len()))
        .map(|(_, w)| w)
}

/// What stands at a place, for "found …".
fn found(text: &str, t: &Token) -> String {
    let word = t.text(text);
    match t.kind {
        Tok::Word if lex::STATEMENTS.contains(&word) || lex::CONNECTIVES.contains(&word) => format!("the keyword `{word}`"),
        Tok::Str(_) => "a string".to_owned(),
        _ => format!("`{}`", word.chars().take(40).collect::<String>()),
    }
}

/// Why the grammar refused a statement.
pub(crate) fn describe(text: &str, chunk: &[Token], failure: &Failure, file: u32) -> Diagnostic {
    let i = chunk.iter().position(|t| t.end > failure.at).unwrap_or(chunk.len());
    let end = chunk.last().map_or(failure.at, |t| t.end);
    let first = chunk.first();
    let head = first.map_or("", |t| t.text(text));
    // A statement that no keyword begins.
    if let Some(t) = first.filter(|t| i == 0 && t.kind == Tok::Word && !lex::STATEMENTS.contains(&head)) {
        let d = Diagnostic::error("P0008", format!("`{head}` begins no statement"), span(file, t.start, t.end), "not a statement");
        return match nearest(head, lex::STATEMENTS.iter().copied()) {
            Some(w) => Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(w),
            None => d.hint(format!("a statement begins with one of: {}", lex::STATEMENTS.join(", "))),
        };
    }
    if let Some(t) = unclosed(text, chunk) {
        let close = match t.text(text) {
            "(" => ")",
            "[" => "]",
            _ => "}",
        };
        return Diagnostic::error(
            "P0003",
            format!("`{}` is never closed", t.text(text)),
            span(file, t.start, t.end),
            format!("no `{close}` for this"),
        );
    }
    let mut expected: Vec<&str> = failure.expected.clone();
    expected.sort_unstable();
    expected.dedup();
    // Where a value fits, a list of everything that is a value helps nobody.
    if expected.contains(&"a value") {
        expected.retain(|e| !matches!(*e, "a name" | "a string" | "a unit" | "`name = value`"));
    }
    let expected = match expected.split_last() {
        None => String::new(),
        Some((last, [])) => format!("expected {last}"),
        Some((last, rest)) => format!("expected {} or {last}", rest.join(", ")),
    };
    let comma = |s: &str| if expected.is_empty() { s.to_owned() } else { format!("{s}, {expected}") };
    let Some(t) = chunk.get(i) else {
        let d = Diagnostic::error(
            "P0001",
            comma(&format!("the `{head}` statement ends too early")),
            span(file, end.saturating_sub(1).max(first.map_or(0, |t| t.start)), end),
            "ends here",
        );
        return d;
    };
    let at = span(file, t.start, t.end);
    let d = Diagnostic::error(
        "P0001",
        comma(&format!("{} can't stand here", found(text, t))),
        at,
        if expected.is_empty() { "not here".to_owned() } else { expected.clone() },
    );
    let word = t.text(text);
    if t.kind == Tok::Word && failure.expected.contains(&"a name") && (lex::STATEMENTS.contains(&word) || lex::CONNECTIVES.contains(&word))
    {
        return d.hint(format!("`{word}` is a keyword: choose another name, such as `{word}_`"));
    }
    let keywords: Vec<&str> = failure.expected.iter().filter_map(|e| e.strip_prefix('`')?.strip_suffix('`')).collect();
    if t.kind == Tok::Word
        && let Some(w) = nearest(word, keywords.iter().copied())
    {
        return Diagnostic { label: format!("did you mean `{w}`?"), ..d }.fix(w);
    }
    if word == "=" && chunk.get(i + 1).is_none_or(|n| n.text(text) == "=") {
        return d.hint("compare with `==`");
    }
    d
}

/// The innermost bracket that is open at the end, or that another kind of bracket closes.
fn unclosed(text: &str, chunk: &[Token]) -> Option<Token> {
    let mut open: Vec<(Token, &str)> = Vec::new();
    for t in chunk.iter().filter(|t| t.kind == Tok::Op) {
        match t.text(text) {
            "(" => open.push((*t, ")")),
            "[" => open.push((*t, "]")),
            "{" => open.push((*t, "}")),
            b @ (")" | "]" | "}") => match open.last() {
                Some((_, want)) if *want == b => {
                    open.pop();
                }
                Some((t, _)) if open.iter().any(|(_, want)| *want == b) => return Some(*t),
                _ => return None,
            },
            _ => {}
        }
    }
    open.last().map(|(t, _)| *t)
}
