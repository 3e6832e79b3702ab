//! Text to [`crate::ast`]: the only module that sees pest pairs. Each statement is parsed on its own, so that a mistake costs one
//! statement; what a broken one would have defined is remembered, so that its users are not reported, too.

mod expr;

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Once;

use pest::Parser;
use pest::iterators::{Pair, Pairs};

use crate::ast::{Block, Entry, Expr, ExprKind, Ident, PruneStmt, Recipe, Stmt, StmtKind};
use crate::diagnostic::Diagnostic;
use crate::lex::{self, Tok, Token};
use crate::plan::Span;
use crate::syntax_error;

#[derive(pest_derive::Parser)]
#[grammar = "../../grammar/prune.pest"]
struct Grammar;

/// Rule calls that one statement may take: far more than any statement of a sane length needs.
const CALL_LIMIT: usize = 200_000_000;
/// Mistakes reported of one text: nobody reads more.
const MAX_ERRORS: usize = 100;

/// Parses a whole text. Total: what is not understood becomes [`StmtKind::Broken`] and a diagnostic.
pub fn parse(text: &str, file: u32) -> (Recipe, Vec<Diagnostic>) {
    let mut lower = Lower::new(text, file, false);
    let recipe = lower.recipe();
    (recipe, lower.errors)
}

/// Like [`parse`], with every span 0..0: two such trees are equal if the texts mean the same.
pub fn parse_spanless(text: &str) -> (Recipe, Vec<Diagnostic>) {
    let mut lower = Lower::new(text, 0, true);
    let recipe = lower.recipe();
    (recipe, lower.errors)
}

/// Parses one expression: a `--set` value, or a default of the catalogue. Every span is `at`.
pub fn parse_expr(text: &str, at: Span) -> Option<Expr> {
    if lex::too_deep(text, &lex::tokens(text)).is_some() {
        return None;
    }
    let mut lower = Lower::new(text, 0, true);
    lower.blank = Some(at);
    let pair = lower.run(Rule::expression, 0..text.len()).ok()?;
    let expr = lower.expr(pair.into_inner().find(|p| p.as_rule() == Rule::expr)?, 0)?;
    lower.errors.is_empty().then_some(expr)
}

/// How a statement failed: where, and what the grammar would have taken there.
pub(crate) struct Failure {
    pub at: usize,
    pub expected: Vec<&'static str>,
}

struct Lower<'t> {
    text: &'t str,
    file: u32,
    /// Where the part that pest saw last begins: its positions count from there.
    base: usize,
    /// The span to give to everything, instead of the true one.
    blank: Option<Span>,
    /// Expressions in parentheses: `(a < b) < c` is no chain.
    grouped: HashSet<(u32, u32)>,
    errors: Vec<Diagnostic>,
    comments: Vec<Token>,
}

impl<'t> Lower<'t> {
    fn new(text: &'t str, file: u32, blank: bool) -> Self {
        static LIMIT: Once = Once::new();
        LIMIT.call_once(|| pest::set_call_limit(NonZeroUsize::new(CALL_LIMIT)));
        let blank = blank.then(Span::default);
        Self { text, file, base: 0, blank, grouped: HashSet::new(), errors: Vec::new(), comments: Vec::new() }
    }

    fn span(&self, range: Range<usize>) -> Span {
        self.blank.unwrap_or(Span { file: self.file, start: range.start as u32, end: range.end as u32 })
    }

    fn pair_span(&self, pair: &Pair<Rule>) -> Span {
        let span = pair.as_span();
        self.span(self.base + span.start()..self.base + span.end())
    }

    fn error(&mut self, d: Diagnostic) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(d);
        }
    }

    fn recipe(&mut self) -> Recipe {
        let tokens = lex::tokens(self.text);
        if let Some(t) = lex::too_deep(self.text, &tokens) {
            let message = format!("brackets are nested deeper than {}", lex::MAX_DEPTH);
            let label = format!("bracket number {}", lex::MAX_DEPTH + 1);
            self.error(Diagnostic::error("P0003", message, self.span(t.start..t.end), label).hint("name parts of it with `let`"));
            return Recipe::default();
        }
        let lexical = syntax_error::lexical(self.text, &tokens, self.file);
        let bad_tokens: Vec<usize> = lexical.iter().map(|d| d.span.start as usize).collect();
        for d in lexical {
            self.error(d);
        }
        let code = lex::code(&tokens);
        self.comments = tokens.into_iter().filter(|t| t.kind == Tok::Comment).collect();
        let mut items = Vec::new();
        self.items(&code, &bad_tokens, &mut items);
        let first = code.first().map_or(self.text.len(), |t| t.start);
        Recipe { doc: self.doc_above(first), items }
    }

    /// The `##` lines right above a place.
    fn doc_above(&self, at: usize) -> String {
        let mut end = self.comments.partition_point(|c| c.start < at);
        let (mut lines, mut below) = (Vec::new(), at);
        while let Some(c) = end.checked_sub(1).and_then(|i| self.comments.get(i)) {
            let text = c.text(self.text);
            let between = self.text.get(c.end..below).unwrap_or("");
            let own_line = self
                .text
                .get(..c.start)
                .is_some_and(|t| t.trim_end_matches([' ', '\t']).is_empty() || t.trim_end_matches([' ', '\t']).ends_with('\n'));
            if !text.starts_with("##") || !own_line || between.matches('\n').count() != 1 || !between.trim().is_empty() {
                break;
            }
            lines.push(text.trim_start_matches('#').trim());
            below = c.start;
            end -= 1;
        }
        lines.reverse();
        lines.join("\n")
    }

    /// Parses the statements of a token range.
    fn items(&mut self, code: &[Token], bad: &[usize], out: &mut Vec<Stmt>) {
        let mut queue: Vec<Range<usize>> = lex::split(self.text, code);
        queue.reverse();
        while let Some(range) = queue.pop() {
            let chunk = &code[range.clone()];
            let (Some(first), Some(last)) = (chunk.first(), chunk.last()) else { continue };
            let bytes = first.start..last.end;
            match self.run(Rule::statement, bytes.clone()) {
                Ok(pair) => {
                    let before = self.errors.len();
                    match self.statement(pair) {
                        Some(stmt) => out.push(stmt),
                        None => {
                            if self.errors.len() == before {
                                self.error(syntax_error::too_long(self.span(bytes.clone())));
                            }
                            out.push(self.broken(chunk));
                        }
                    }
                }
                Err(failure) => {
                    // What stands before a line-initial mistake may be a whole statement: only the rest is broken.
                    let cut = chunk.iter().position(|t| t.start >= failure.at).unwrap_or(chunk.len());
                    if cut > 0 && cut < chunk.len() && chunk[cut].breaks > 0 {
                        let whole = first.start..chunk[cut - 1].end;
                        if let Some(stmt) = self.run(Rule::statement, whole).ok().and_then(|p| self.statement(p)) {
                            out.push(stmt);
                            queue.push(range.start + cut..range.end);
                            continue;
                        }
                    }
                    let before = self.errors.len();
                    let stmt = self.recover(chunk, bad).unwrap_or_else(|| self.broken(chunk));
                    let told = self.errors.len() > before || bad.iter().any(|b| bytes.contains(b));
                    if !told {
                        let d = syntax_error::describe(self.text, chunk, &failure, self.file);
                        self.error(d);
                    }
                    out.push(stmt);
                }
            }
        }
    }

    /// What is left of a broken statement: a `repeat`, `sweep` or `train` whose head is sound keeps its sound inside.
    fn recover(&mut self, chunk: &[Token], bad: &[usize]) -> Option<Stmt> {
        let first = chunk.first()?;
        let word = first.text(self.text);
        if !matches!(word, "repeat" | "sweep" | "train") {
            return None;
        }
        let mut depth = 0usize;
        let open = chunk.iter().position(|t| {
            let text = t.text(self.text);
            if t.kind == Tok::Op && matches!(text, "(" | "[") {
                depth += 1;
            } else if t.kind == Tok::Op && matches!(text, ")" | "]") {
                depth = depth.saturating_sub(1);
            }
            depth == 0 && t.kind == Tok::Op && text == "{"
        })?;
        let close = chunk.iter().rposition(|t| t.kind == Tok::Op && t.text(self.text) == "}").filter(|c| *c > open);
        let inside = chunk.get(open + 1..close.unwrap_or(chunk.len()))?;
        let head = first.start..chunk.get(open.checked_sub(1)?)?.end;
        let span = self.span(first.start..chunk.last()?.end);
        let doc = self.doc_above(first.start);
        let kind = if word == "train" {
            let pair = self.run(Rule::train_only, head).ok()?;
            let head = pair.into_inner().find(|p| p.as_rule() == Rule::train_head)?;
            let mut parts = self.parts(head)?;
            let mut entries = self.entries_by_step(inside, bad);
            // Something of it was lost: nothing is missing in what is left.
            entries.push(Entry::Step(Box::new(self.broken(&[]))));
            let block = Some(Block { span, entries });
            StmtKind::Train { model: parts.name(Rule::K_TRAIN)?, data: parts.expr(Rule::K_ON)?, length: parts.expr(Rule::K_FOR)?, block }
        } else {
            let rule = if word == "repeat" { Rule::repeat_only } else { Rule::sweep_only };
            let pair = self.run(rule, head).ok()?;
            let head = pair.into_inner().next()?;
            let mut kind = self.loop_kind(head)?;
            if let StmtKind::Repeat { body, .. } | StmtKind::Sweep { body, .. } = &mut kind {
                self.items(inside, bad, body);
            }
            kind
        };
        Some(Stmt { span, doc, kind })
    }

    /// The entries of a broken `train` block, cut at each `prune` and `eval` inside it.
    fn entries_by_step(&mut self, inside: &[Token], bad: &[usize]) -> Vec<Entry> {
        let mut entries = Vec::new();
        for range in lex::split(self.text, inside) {
            let Some((first, last)) = inside.get(range.clone()).and_then(|c| c.first().zip(c.last())) else { continue };
            let bytes = first.start..last.end;
            match self.run(Rule::entries_only, bytes.clone()) {
                Ok(pair) => entries.extend(self.entries(pair.into_inner())),
                Err(_) if bad.iter().any(|b| bytes.contains(b)) => {}
                Err(failure) => {
                    let d = syntax_error::describe(self.text, &inside[range.clone()], &failure, self.file);
                    self.error(d);
                    let broken = self.broken(&inside[range]);
                    entries.push(Entry::Step(Box::new(broken)));
                }
            }
        }
        entries
    }

    /// A statement that was not understood, with the names that it seems to define.
    fn broken(&self, chunk: &[Token]) -> Stmt {
        let text = |i: usize| chunk.get(i).map_or("", |t| t.text(self.text));
        let defines = (1..chunk.len())
            .filter(|&i| chunk[i].kind == Tok::Word && matches!(text(i - 1), "as" | "let" | "model" | "data" | "param" | "repeat"))
            .map(|i| Ident { name: text(i).to_owned(), span: self.span(chunk[i].start..chunk[i].end) })
            .collect();
        let range = chunk.first().map_or(0, |t| t.start)..chunk.last().map_or(0, |t| t.end);
        Stmt { span: self.span(range), doc: String::new(), kind: StmtKind::Broken { defines } }
    }

    /// Runs the grammar on a part of the text; the pair must be lowered before the next run.
    fn run(&mut self, rule: Rule, bytes: Range<usize>) -> Result<Pair<'t, Rule>, Failure> {
        let base = bytes.start;
        self.base = base;
        let part = self.text.get(bytes.clone()).unwrap_or("");
        match Grammar::parse(rule, part) {
            Ok(mut pairs) => pairs.next().ok_or(Failure { at: base, expected: Vec::new() }),
            Err(e) => {
                let at = match e.location {
                    pest::error::InputLocation::Pos(p) | pest::error::InputLocation::Span((p, _)) => base + p,
                };
                let expected = match e.variant {
                    pest::error::ErrorVariant::ParsingError { positives, .. } => positives.into_iter().filter_map(rule_words).collect(),
                    pest::error::ErrorVariant::CustomError { .. } => vec!["a shorter statement"],
                };
                Err(Failure { at, expected })
            }
        }
    }

    /// A parsed `statement`.
    fn statement(&mut self, pair: Pair<'t, Rule>) -> Option<Stmt> {
        let item = pair.into_inner().find(|p| p.as_rule() != Rule::EOI)?;
        self.item(item)
    }

    fn item(&mut self, item: Pair<'t, Rule>) -> Option<Stmt> {
        let span = self.pair_span(&item);
        let doc = self.doc_above(self.base + item.as_span().start());
        let rule = item.as_rule();
        let kind = match rule {
            Rule::repeat | Rule::sweep => {
                let mut inner = item.into_inner();
                let mut kind = self.loop_kind(inner.next()?)?;
                let steps = inner.next()?.into_inner().map(|p| self.item(p)).collect::<Option<Vec<_>>>()?;
                if let StmtKind::Repeat { body, .. } | StmtKind::Sweep { body, .. } = &mut kind {
                    *body = steps;
                }
                kind
            }
            Rule::train => {
                let mut inner = item.into_inner();
                let mut parts = self.parts(inner.next()?)?;
                let block = match inner.next() {
                    Some(b) => Some(self.block(b)?),
                    None => None,
                };
                StmtKind::Train {
                    model: parts.name(Rule::K_TRAIN)?,
                    data: parts.expr(Rule::K_ON)?,
                    length: parts.expr(Rule::K_FOR)?,
                    block,
                }
            }
            _ => {
                let parts = self.parts(item)?;
                simple_kind(rule, parts)?
            }
        };
        Some(Stmt { span, doc, kind })
    }

    /// `repeat` or `sweep` with an empty body.
    fn loop_kind(&mut self, head: Pair<'t, Rule>) -> Option<StmtKind> {
        if head.as_rule() == Rule::repeat_head {
            let mut parts = self.parts(head)?;
            return Some(StmtKind::Repeat { variable: parts.name(Rule::K_REPEAT)?, range: parts.expr(Rule::K_IN)?, body: Vec::new() });
        }
        let (mut axes, mut name) = (Vec::new(), None);
        for p in head.into_inner() {
            match p.as_rule() {
                Rule::axis => {
                    let mut inner = p.into_inner();
                    let axis = self.ident(&inner.next()?);
                    let values = inner.find(|p| p.as_rule() == Rule::expr)?;
                    axes.push((axis, self.expr(values, 0)?));
                }
                Rule::name => name = Some(self.ident(&p)),
                _ => {}
            }
        }
        Some(StmtKind::Sweep { axes, name, body: Vec::new() })
    }

    fn ident(&self, pair: &Pair<Rule>) -> Ident {
        Ident { name: pair.as_str().to_owned(), span: self.pair_span(pair) }
    }

    /// The children of a statement, each under the keyword before it.
    fn parts(&mut self, pair: Pair<'t, Rule>) -> Option<Parts> {
        let mut parts = Parts::default();
        let mut keyword = Rule::EOI;
        for p in pair.into_inner() {
            match p.as_rule() {
                Rule::name => parts.names.push((keyword, self.ident(&p))),
                Rule::word => parts.word = Some(self.ident(&p)),
                Rule::number => parts.number = Some(p.as_str().to_owned()),
                Rule::member => parts.member = Some(self.ident(&p.into_inner().next()?)),
                Rule::expr => {
                    // `param x: t = value`: the value stands under its own keyword.
                    let e = self.expr(p, 0)?;
                    parts.exprs.push((keyword, e));
                }
                Rule::string => {
                    let e = self.string(p);
                    parts.exprs.push((keyword, e));
                }
                Rule::call => {
                    let e = self.call(p)?;
                    parts.exprs.push((keyword, e));
                }
                Rule::block => parts.block = Some(self.block(p)?),
                rule => keyword = rule,
            }
        }
        Some(parts)
    }

    fn call(&mut self, pair: Pair<'t, Rule>) -> Option<Expr> {
        let span = self.pair_span(&pair);
        let mut inner = pair.into_inner();
        let name = self.ident(&inner.next()?);
        let callee = Expr { span: name.span, kind: ExprKind::Name(name.name) };
        Some(match inner.next() {
            Some(args) => {
                let args = self.args(args, 0)?;
                Expr { span, kind: ExprKind::Call(Box::new(callee), args) }
            }
            None => callee,
        })
    }

    fn block(&mut self, pair: Pair<'t, Rule>) -> Option<Block> {
        let span = self.pair_span(&pair);
        Some(Block { span, entries: self.entries_at(pair.into_inner(), 0)? })
    }

    fn entries(&mut self, pairs: Pairs<'t, Rule>) -> Vec<Entry> {
        self.entries_at(pairs, 0).unwrap_or_default()
    }

    fn entries_at(&mut self, pairs: Pairs<'t, Rule>, depth: usize) -> Option<Vec<Entry>> {
        let mut entries = Vec::new();
        for p in pairs {
            match p.as_rule() {
                Rule::field => {
                    let mut inner = p.into_inner();
                    let name = self.field_name(inner.next()?)?;
                    entries.push(Entry::Field(name, self.expr(inner.next()?, depth)?));
                }
                Rule::spread => entries.push(Entry::Spread(self.expr(p.into_inner().next()?, depth)?)),
                Rule::EOI => {}
                _ => entries.push(Entry::Step(Box::new(self.item(p)?))),
            }
        }
        Some(entries)
    }

    fn field_name(&self, pair: Pair<'t, Rule>) -> Option<Ident> {
        pair.into_inner().next().map(|w| self.ident(&w))
    }
}

/// The children of a statement.
#[derive(Default)]
struct Parts {
    names: Vec<(Rule, Ident)>,
    exprs: Vec<(Rule, Expr)>,
    word: Option<Ident>,
    number: Option<String>,
    member: Option<Ident>,
    block: Option<Block>,
}

impl Parts {
    fn opt_name(&mut self, key: Rule) -> Option<Ident> {
        let i = self.names.iter().position(|(k, _)| *k == key)?;
        Some(self.names.swap_remove(i).1)
    }
    fn name(&mut self, key: Rule) -> Option<Ident> {
        self.opt_name(key)
    }
    fn expr(&mut self, key: Rule) -> Option<Expr> {
        let i = self.exprs.iter().position(|(k, _)| *k == key)?;
        Some(self.exprs.swap_remove(i).1)
    }
}

/// Every statement whose parts are told apart by the keyword before them.
fn simple_kind(rule: Rule, mut p: Parts) -> Option<StmtKind> {
    Some(match rule {
        Rule::edition => StmtKind::Edition(p.number?),
        Rule::use_ => StmtKind::Use { path: p.expr(Rule::K_USE)?, name: p.name(Rule::K_AS)? },
        Rule::param => {
            StmtKind::Param { name: p.name(Rule::K_PARAM)?, value: p.expr(Rule::K_PARAM)?, range: p.expr(Rule::K_IN), ty: p.word? }
        }
        Rule::model => StmtKind::Model { name: p.name(Rule::K_MODEL)?, value: p.expr(Rule::K_MODEL)?, block: p.block },
        Rule::data => StmtKind::Data { name: p.name(Rule::K_DATA)?, value: p.expr(Rule::K_DATA)?, block: p.block },
        Rule::let_ => StmtKind::Let { name: p.name(Rule::K_LET)?, value: p.expr(Rule::K_LET)? },
        Rule::score => StmtKind::Score {
            selector: p.expr(Rule::K_SCORE)?,
            using: p.expr(Rule::K_USING),
            from: p.expr(Rule::K_FROM),
            name: p.opt_name(Rule::K_AS),
            block: p.block,
        },
        Rule::prune => StmtKind::Prune(PruneStmt {
            selector: p.expr(Rule::K_PRUNE)?,
            by: p.expr(Rule::K_BY),
            to: p.expr(Rule::K_TO),
            using: p.expr(Rule::K_USING)?,
            block: p.block,
        }),
        Rule::compact => StmtKind::Compact { model: p.name(Rule::K_COMPACT)?, block: p.block },
        Rule::reconstruct => StmtKind::Reconstruct {
            selector: p.expr(Rule::K_RECONSTRUCT)?,
            teacher: p.expr(Rule::K_FROM)?,
            data: p.expr(Rule::K_ON)?,
            length: p.expr(Rule::K_FOR)?,
            block: p.block,
        },
        Rule::attach => {
            StmtKind::Attach { adapter: p.expr(Rule::K_ATTACH)?, selector: p.expr(Rule::K_TO)?, name: p.name(Rule::K_AS)?, block: p.block }
        }
        Rule::fuse => StmtKind::Fuse { adapter: p.name(Rule::K_FUSE)?, model: p.name(Rule::K_INTO)?, block: p.block },
        Rule::snapshot => StmtKind::Snapshot { model: p.name(Rule::K_SNAPSHOT)?, name: p.name(Rule::K_AS)?, block: p.block },
        Rule::rewind => StmtKind::Rewind { model: p.name(Rule::K_REWIND)?, to: p.name(Rule::K_TO)?, member: p.member, block: p.block },
        Rule::reinit => StmtKind::Reinit { model: p.name(Rule::K_REINIT)?, block: p.block },
        Rule::quantize => StmtKind::Quantize { model: p.name(Rule::K_QUANTIZE)?, method: p.expr(Rule::K_USING)?, block: p.block },
        Rule::adopt => StmtKind::Adopt {
            model: p.name(Rule::K_ADOPT)?,
            grid: p.name(Rule::K_FROM)?,
            filter: p.expr(Rule::K_WHERE),
            rank: p.expr(Rule::K_BY)?,
            block: p.block,
        },
        Rule::eval => StmtKind::Eval {
            metric: p.expr(Rule::K_EVAL)?,
            of: p.expr(Rule::K_OF),
            on: p.expr(Rule::K_ON),
            name: p.opt_name(Rule::K_AS),
            block: p.block,
        },
        Rule::expect => StmtKind::Expect { expr: p.expr(Rule::K_EXPECT)?, message: p.expr(Rule::K_ELSE), block: p.block },
        Rule::save => StmtKind::Save { model: p.name(Rule::K_SAVE)?, to: p.expr(Rule::K_TO)?, block: p.block },
        _ => return None,
    })
}

/// How a message names what a rule would have matched; `None` for what is not worth naming.
fn rule_words(rule: Rule) -> Option<&'static str> {
    Some(match rule {
        Rule::K_BY => "`by`",
        Rule::K_USING => "`using`",
        Rule::K_ON => "`on`",
        Rule::K_FOR => "`for`",
        Rule::K_AS => "`as`",
        Rule::K_TO => "`to`",
        Rule::K_INTO => "`into`",
        Rule::K_IN => "`in`",
        Rule::K_OVER => "`over`",
        Rule::K_FROM => "`from`",
        Rule::K_WHERE => "`where`",
        Rule::K_ELSE => "`else`",
        Rule::name => "a name",
        Rule::word => "a word",
        Rule::field_name => "`field =`",
        Rule::named_arg => "`name = value`",
        Rule::string => "a string",
        Rule::number
        | Rule::quantity
        | Rule::percent
        | Rule::ratio
        | Rule::list
        | Rule::record
        | Rule::group
        | Rule::bool
        | Rule::word_value => "a value",
        Rule::expr | Rule::neg | Rule::not | Rule::upto => "a value",
        Rule::block | Rule::body => "`{`",
        Rule::EOI => "the end of the statement",
        Rule::unit => "a unit",
        Rule::axis => "`name over [\u{2026}]`",
        _ => return None,
    })
}
