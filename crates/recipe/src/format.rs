//! `fmt`: the canonical spelling of a recipe. It works on tokens: blanks, indentation and alignment are its own, line breaks, comments
//! and every token are the author's. The result is compared with the original as a tree before it is given out.

use crate::diagnostic::Diagnostic;
use crate::lex::{self, CONNECTIVES, STATEMENTS, Tok, Token};
use crate::lower;

const INDENT: usize = 4;

/// The formatted text. Comments and meaning stay; formatting twice changes nothing more.
///
/// # Errors
/// The mistakes of a text that does not parse.
pub fn format(text: &str) -> Result<String, Vec<Diagnostic>> {
    let (_, errors) = lower::parse(text, 0);
    if !errors.is_empty() {
        return Err(errors);
    }
    let out = lay_out(text);
    // A layout that says something else is no layout: better none than a wrong one.
    let same = lower::parse_spanless(text) == lower::parse_spanless(&out);
    Ok(if same { out } else { text.to_owned() })
}

/// A line of the result before alignment.
#[derive(Default)]
struct Line {
    blank_before: bool,
    indent: usize,
    /// `let`, `model`, `data`, which are padded to one width; empty for a field.
    keyword: String,
    /// The name before an `=` that is aligned; without it the whole text is in `rest`.
    name: Option<String>,
    rest: String,
    comment: Option<String>,
}

impl Line {
    fn text(&self, keyword_width: usize, name_width: usize) -> String {
        let Some(name) = &self.name else { return self.rest.clone() };
        let head = if self.keyword.is_empty() { name.clone() } else { format!("{:keyword_width$} {name}", self.keyword) };
        let width = if self.keyword.is_empty() { name_width } else { keyword_width + 1 + name_width };
        format!("{head:width$} {}", self.rest)
    }
}

fn lay_out(text: &str) -> String {
    let tokens = lex::tokens(text);
    let code = lex::code(&tokens);
    let starts: Vec<usize> = lex::split(text, &code).into_iter().filter_map(|r| code.get(r.start)).map(|t| t.start).collect();
    let mut lines: Vec<Line> = Vec::new();
    // Open brackets: whether it is the first that its line left open (only that one indents), whether it is a fan's brace, the bracket.
    let mut open: Vec<(usize, bool, char)> = Vec::new();
    let mut current: Vec<Token> = Vec::new();
    let groups = {
        let mut groups: Vec<Vec<Token>> = Vec::new();
        for t in &tokens {
            let statement = starts.binary_search(&t.start).is_ok();
            if groups.is_empty() || t.breaks > 0 || statement {
                groups.push(Vec::new());
            }
            if let Some(g) = groups.last_mut() {
                g.push(*t);
            }
        }
        groups
    };
    for (number, group) in groups.into_iter().enumerate() {
        current.clear();
        current.extend(&group);
        let Some(first) = current.first().copied() else { continue };
        let mut line = Line { blank_before: number > 0 && first.breaks > 1, ..Line::default() };
        let closers = current.iter().take_while(|t| t.kind == Tok::Op && matches!(t.text(text), ")" | "]" | "}")).count();
        let kept = open.len().saturating_sub(closers);
        let levels = {
            let mut l: Vec<usize> = open.iter().take(kept).map(|(n, ..)| *n).collect();
            l.dedup();
            l.len()
        };
        let inside = open.last().map(|(_, _, b)| *b);
        let second = current.get(1).map_or("", |t| t.text(text));
        let word = first.text(text);
        let begins = starts.binary_search(&first.start).is_ok() || (first.kind == Tok::Word && STATEMENTS.contains(&word) && second != "=");
        let own_line = first.kind == Tok::Comment
            || closers > 0
            || begins
            || (inside == Some('{') && (second == "=" || word == ".."))
            || matches!(inside, Some('(' | '['));
        line.indent = INDENT * (levels + usize::from(!own_line));
        if let Some(last) = current.last().filter(|t| t.kind == Tok::Comment && current.len() > 1) {
            line.comment = Some(last.text(text).trim_end().to_owned());
            current.pop();
        }
        let (name_at, keyword) = match (word, current.get(2).map(|t| t.text(text))) {
            ("let" | "model" | "data", Some("=")) if begins => (Some(1), word),
            _ if second == "=" && first.kind == Tok::Word && inside == Some('{') => (Some(0), ""),
            _ => (None, ""),
        };
        let mut rest = String::new();
        let mut before: Option<(Token, bool)> = None;
        let skip = name_at.map_or(0, |n| n + 1);
        for (i, t) in current.iter().enumerate() {
            let fan = t.text(text) == "{" && before.is_some_and(|(b, _)| b.text(text) == ".");
            if i > skip || (skip == 0 && i > 0) {
                let next = current.get(i + 1).map_or("", |n| n.text(text));
                let in_fan = open.last().is_some_and(|(_, fan, b)| *fan && *b == '{') || fan;
                rest.push_str(gap(text, before, t, next, in_fan, open.len()));
            }
            if i >= skip {
                let shown = t.text(text).trim_end();
                if t.kind == Tok::Number { rest.extend(shown.chars().filter(|c| *c != ' ')) } else { rest.push_str(shown) }
            }
            if t.kind == Tok::Op {
                match t.text(text) {
                    b @ ("(" | "[" | "{") => open.push((number, fan, b.chars().next().unwrap_or('('))),
                    ")" | "]" | "}" => {
                        open.pop();
                    }
                    _ => {}
                }
            }
            let unary = t.text(text) == "-" && t.kind == Tok::Op && before.is_none_or(|(b, _)| !ends_value(text, &b));
            before = Some((*t, unary));
        }
        line.keyword = keyword.to_owned();
        line.name = name_at.and_then(|n| current.get(n)).map(|t| t.text(text).to_owned());
        line.rest = rest;
        lines.push(line);
    }
    join(&lines)
}

fn is_keyword(word: &str) -> bool {
    (STATEMENTS.contains(&word) || CONNECTIVES.contains(&word)) && !matches!(word, "true" | "false" | "each")
}

/// Whether a value may end with the token: a `-` behind it subtracts.
fn ends_value(text: &str, t: &Token) -> bool {
    match t.kind {
        Tok::Word => !is_keyword(t.text(text)),
        Tok::Number | Tok::Str(_) => true,
        _ => matches!(t.text(text), ")" | "]" | "}"),
    }
}

/// What stands between two tokens of a line.
fn gap(text: &str, before: Option<(Token, bool)>, t: &Token, next: &str, fan: bool, depth: usize) -> &'static str {
    let Some((b, unary)) = before else { return "" };
    let (p, n) = (b.text(text), t.text(text));
    let both_words = t.kind == Tok::Word && !matches!(b.kind, Tok::Op);
    if matches!(n, ")" | "]" | "," | ".") && t.kind == Tok::Op || b.kind == Tok::Op && matches!(p, "(" | "[" | ".") || unary {
        return "";
    }
    if n == ":" || p == ":" && t.kind == Tok::Number {
        return "";
    }
    if t.kind == Tok::Op && matches!(n, "..=" | "..") {
        return if matches!(p, "{" | ",") { " " } else { "" };
    }
    if b.kind == Tok::Op && matches!(p, "..=" | "..") {
        return "";
    }
    if fan && (p == "{" || n == "}") || p == "{" && n == "}" {
        return "";
    }
    if matches!(n, "(" | "[") && t.kind == Tok::Op {
        let call = match b.kind {
            Tok::Word => !is_keyword(p),
            Tok::Op => matches!(p, ")" | "]" | "}"),
            _ => false,
        };
        return if call { "" } else { " " };
    }
    if b.kind == Tok::Number && t.kind == Tok::Word && matches!(n, "K" | "M" | "B") && next != "=" {
        return "";
    }
    // The next field on the same line.
    if depth > 0 && t.kind == Tok::Word && next == "=" && (both_words && !is_keyword(p) || matches!(p, ")" | "]" | "}")) {
        return "  ";
    }
    " "
}

/// Pads names before `=` and trailing comments, run by run.
fn join(lines: &[Line]) -> String {
    let mut out = String::new();
    let aligned = |a: &Line, b: &Line| {
        b.name.is_some() && a.name.is_some() && !b.blank_before && a.indent == b.indent && a.keyword.is_empty() == b.keyword.is_empty()
    };
    let mut widths = vec![(0, 0); lines.len()];
    let mut i = 0;
    while i < lines.len() {
        let mut j = i + 1;
        while lines.get(j).is_some_and(|l| aligned(&lines[j - 1], l)) {
            j += 1;
        }
        let run = &lines[i..j];
        let keyword = run.iter().map(|l| l.keyword.len()).max().unwrap_or(0);
        let name = run.iter().filter_map(|l| l.name.as_ref()).map(String::len).max().unwrap_or(0);
        widths[i..j].fill((keyword, name));
        i = j;
    }
    let texts: Vec<String> =
        lines.iter().zip(&widths).map(|(l, (k, n))| format!("{:indent$}{}", "", l.text(*k, *n), indent = l.indent)).collect();
    let mut i = 0;
    while i < lines.len() {
        let mut j = i + 1;
        while lines[i].comment.is_some() && lines.get(j).is_some_and(|l| l.comment.is_some() && !l.blank_before) {
            j += 1;
        }
        let width = texts[i..j].iter().map(|t| t.chars().count()).max().unwrap_or(0);
        for (line, text) in lines[i..j].iter().zip(&texts[i..j]) {
            if line.blank_before {
                out.push('\n');
            }
            match &line.comment {
                Some(c) => out.push_str(&format!("{text:width$}  {c}")),
                None => out.push_str(text.trim_end()),
            }
            out.push('\n');
        }
        i = j;
    }
    out
}
