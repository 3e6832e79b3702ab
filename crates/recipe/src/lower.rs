//! Text to [`crate::ast`]: the only file that sees pest pairs. Each statement is parsed on its own, so that a mistake costs one
//! statement; what a broken one would have defined is remembered, so that its users are not reported, too.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{LazyLock, Once};

use pest::Parser;
use pest::iterators::{Pair, Pairs};
use pest::pratt_parser::{Assoc, Op, PrattParser};

use crate::ast::{Arg, BinOp, Block, Entry, Expr, ExprKind, Ident, Index, Piece, PruneStmt, Recipe, Seg, Stmt, StmtKind, UnOp};
use crate::diagnostic::Diagnostic;
use crate::lex::{self, Tok, Token};
use crate::plan::Span;
use crate::syntax_error;

#[derive(pest_derive::Parser)]
#[grammar = "../../grammar/prune.pest"]
struct Grammar;

/// Rule calls that one statement may take: far more than any statement of a sane length needs.
const CALL_LIMIT: usize = 200_000_000;
/// Operators from the outside of an expression to its innermost value: recursion over expressions stays this shallow.
const MAX_OPERATORS: usize = 400;
/// Mistakes reported of one text: nobody reads more.
const MAX_ERRORS: usize = 100;

/// From loosest to tightest; the order is part of the language's contract.
static PRATT: LazyLock<PrattParser<Rule>> = LazyLock::new(|| {
    let left = |r| Op::infix(r, Assoc::Left);
    PrattParser::new()
        .op(Op::postfix(Rule::each))
        .op(left(Rule::then))
        .op(left(Rule::or))
        .op(left(Rule::and))
        .op(Op::prefix(Rule::not))
        .op(left(Rule::cmp))
        .op(left(Rule::union) | left(Rule::except))
        .op(left(Rule::range_in) | left(Rule::range_ex) | Op::prefix(Rule::upto) | Op::postfix(Rule::onward))
        .op(left(Rule::arrow))
        .op(left(Rule::add) | left(Rule::sub))
        .op(left(Rule::mul) | left(Rule::div))
        .op(left(Rule::of))
        .op(Op::prefix(Rule::neg))
        .op(Op::postfix(Rule::args) | Op::postfix(Rule::fan) | Op::postfix(Rule::member) | Op::postfix(Rule::index))
});

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

    fn args(&mut self, pair: Pair<'t, Rule>, depth: usize) -> Option<Vec<Arg>> {
        let mut out = Vec::new();
        for p in pair.into_inner() {
            out.push(if p.as_rule() == Rule::named_arg {
                let mut inner = p.into_inner();
                let name = self.field_name(inner.next()?)?;
                Arg { name: Some(name), value: self.expr(inner.next()?, depth)? }
            } else {
                Arg { name: None, value: self.expr(p, depth)? }
            });
        }
        Some(out)
    }

    fn index(&mut self, pair: Pair<'t, Rule>, depth: usize) -> Option<Seg> {
        let span = self.pair_span(&pair);
        if pair.clone().into_inner().next().is_some_and(|p| p.as_rule() == Rule::star) {
            return Some(Seg::Index(Index::All, span));
        }
        Some(Seg::Index(Index::Items(self.args(pair, depth)?), span))
    }

    /// An expression; `None` when it is nested too deep to be handled by recursion.
    fn expr(&mut self, pair: Pair<'t, Rule>, depth: usize) -> Option<Expr> {
        let pairs: Vec<Pair<'t, Rule>> = pair.into_inner().collect();
        let depth = depth + pairs.len();
        if depth > MAX_OPERATORS * 2 {
            return None;
        }
        // Values first: pest's closures can't share `self`.
        let mut nodes = HashMap::with_capacity(pairs.len());
        for p in &pairs {
            let node = match p.as_rule() {
                Rule::args => Node::Args(self.args(p.clone(), depth)?),
                Rule::index => Node::Seg(self.index(p.clone(), depth)?),
                Rule::member => Node::Seg(Seg::Member(self.ident(&p.clone().into_inner().next()?))),
                Rule::fan => Node::Seg(self.fan(p.clone(), depth)?),
                rule if is_primary(rule) => Node::Value(self.primary(p.clone(), depth)?),
                _ => continue,
            };
            nodes.insert(p.as_span().start(), node);
        }
        let nodes = RefCell::new(nodes);
        let chained: RefCell<Vec<Span>> = RefCell::new(Vec::new());
        let lost = Cell::new(false);
        let take = |p: &Pair<Rule>| nodes.borrow_mut().remove(&p.as_span().start());
        let nothing = |span| {
            lost.set(true);
            Expr { span, kind: ExprKind::Bool(false) }
        };
        let join = |a: Span, b: Span| Span { file: a.file, start: a.start.min(b.start), end: a.end.max(b.end) };
        let this = &*self;
        let expr = PRATT
            .map_primary(|p| match take(&p) {
                Some(Node::Value(e)) => e,
                _ => nothing(this.pair_span(&p)),
            })
            .map_prefix(|p, value| {
                let span = join(this.pair_span(&p), value.span);
                let value = Box::new(value);
                let kind = match p.as_rule() {
                    Rule::neg => ExprKind::Unary(UnOp::Neg, value),
                    Rule::not => ExprKind::Unary(UnOp::Not, value),
                    _ => ExprKind::UpTo { end: value, inclusive: p.as_str() == "..=" },
                };
                Expr { span, kind }
            })
            .map_postfix(|value, p| {
                let span = join(value.span, this.pair_span(&p));
                let kind = match (p.as_rule(), take(&p)) {
                    (Rule::each, _) => ExprKind::Each(Box::new(value)),
                    (Rule::onward, _) => ExprKind::Onward(Box::new(value)),
                    (_, Some(Node::Args(args))) => ExprKind::Call(Box::new(value), args),
                    (_, Some(Node::Seg(seg))) => ExprKind::Path(Box::new(value), seg),
                    _ => return nothing(span),
                };
                Expr { span, kind }
            })
            .map_infix(|a, p, b| {
                let op = bin_op(&p);
                if op.compares() && matches!(a.kind, ExprKind::Binary(o, ..) if o.compares()) {
                    let grouped = this.grouped.contains(&(a.span.start, a.span.end));
                    if !grouped {
                        chained.borrow_mut().push(join(a.span, b.span));
                    }
                }
                Expr { span: join(a.span, b.span), kind: ExprKind::Binary(op, Box::new(a), Box::new(b)) }
            })
            .parse(pairs.into_iter());
        if lost.get() {
            return None;
        }
        let chained = chained.into_inner();
        if chained.is_empty() {
            return Some(expr);
        }
        for span in chained {
            self.error(syntax_error::chained_comparison(span));
        }
        None
    }

    fn fan(&mut self, pair: Pair<'t, Rule>, depth: usize) -> Option<Seg> {
        let span = self.pair_span(&pair);
        let mut items = Vec::new();
        for item in pair.into_inner() {
            let mut segs = Vec::new();
            for p in item.into_inner() {
                segs.push(match p.as_rule() {
                    Rule::word => Seg::Member(self.ident(&p)),
                    Rule::member => Seg::Member(self.ident(&p.into_inner().next()?)),
                    _ => self.index(p, depth)?,
                });
            }
            items.push(segs);
        }
        Some(Seg::Fan(items, span))
    }

    fn number(&mut self, pair: &Pair<Rule>) -> f64 {
        let text: String = pair.as_str().chars().filter(|c| !matches!(c, '_' | '%' | ' ')).collect();
        match text.parse::<f64>() {
            Ok(x) if x.is_finite() => x,
            _ => {
                let span = self.pair_span(pair);
                self.error(Diagnostic::error("P0007", format!("`{}` is too large a number", pair.as_str().trim()), span, "does not fit"));
                0.0
            }
        }
    }

    fn primary(&mut self, pair: Pair<'t, Rule>, depth: usize) -> Option<Expr> {
        let span = self.pair_span(&pair);
        let kind = match pair.as_rule() {
            Rule::number => ExprKind::Number(self.number(&pair)),
            Rule::percent => ExprKind::Percent(self.number(&pair)),
            Rule::quantity => {
                let (mut value, mut unit) = (0.0, None);
                for p in pair.into_inner() {
                    match p.as_rule() {
                        Rule::number => value = self.number(&p),
                        Rule::scale => value *= scale(p.as_str()),
                        _ => unit = Some(self.ident(&p)),
                    }
                }
                ExprKind::Quantity(value, unit?)
            }
            Rule::ratio => {
                let (a, b) = pair.as_str().split_once(':')?;
                ExprKind::Ratio(a.parse().unwrap_or(u64::MAX), b.parse().unwrap_or(u64::MAX))
            }
            Rule::string => return Some(self.string(pair)),
            Rule::bool => ExprKind::Bool(pair.as_str() == "true"),
            Rule::name | Rule::each_word => ExprKind::Name(pair.as_str().to_owned()),
            Rule::list => {
                let items = pair.into_inner().map(|p| self.expr(p, depth + 1)).collect::<Option<Vec<_>>>()?;
                ExprKind::List(items)
            }
            Rule::record => ExprKind::Record(self.entries_at(pair.into_inner(), depth + 1)?),
            Rule::group => {
                let mut inner = self.expr(pair.into_inner().next()?, depth + 1)?;
                inner.span = span;
                self.grouped.insert((span.start, span.end));
                return Some(inner);
            }
            _ => return None,
        };
        Some(Expr { span, kind })
    }

    fn string(&mut self, pair: Pair<'t, Rule>) -> Expr {
        let span = self.pair_span(&pair);
        let mut pieces = Vec::new();
        for p in pair.into_inner() {
            let at = self.pair_span(&p);
            match p.as_rule() {
                Rule::interp => {
                    let names = p.as_str().trim_matches(['{', '}']).split('.').map(str::to_owned).collect();
                    pieces.push(Piece::Interp(names, at));
                }
                Rule::text => pieces.push(Piece::Text(unescape(p.as_str()))),
                _ => {
                    let d = Diagnostic::error("P0006", "a `{` in a string begins the name of a value", at, "no name and `}` follow");
                    self.error(d.hint("write `{name}` for a value, or `\\{` for a brace"));
                }
            }
        }
        Expr { span, kind: ExprKind::Str(pieces) }
    }
}

/// What a flat expression's pair became.
enum Node {
    Value(Expr),
    Args(Vec<Arg>),
    Seg(Seg),
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

fn is_primary(rule: Rule) -> bool {
    matches!(
        rule,
        Rule::quantity
            | Rule::percent
            | Rule::ratio
            | Rule::number
            | Rule::string
            | Rule::bool
            | Rule::each_word
            | Rule::list
            | Rule::record
            | Rule::group
            | Rule::name
    )
}

fn scale(text: &str) -> f64 {
    match text {
        "K" => 1e3,
        "M" => 1e6,
        _ => 1e9,
    }
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some(other) => out.push(other),
            None => {}
        }
    }
    out
}

fn bin_op(pair: &Pair<Rule>) -> BinOp {
    match pair.as_rule() {
        Rule::then => BinOp::Then,
        Rule::or => BinOp::Or,
        Rule::and => BinOp::And,
        Rule::union => BinOp::Union,
        Rule::except => BinOp::Except,
        Rule::range_in => BinOp::RangeIn,
        Rule::range_ex => BinOp::Range,
        Rule::arrow => BinOp::Arrow,
        Rule::add => BinOp::Add,
        Rule::sub => BinOp::Sub,
        Rule::mul => BinOp::Mul,
        Rule::div => BinOp::Div,
        Rule::of => BinOp::Of,
        _ => match pair.as_str() {
            ">=" => BinOp::Ge,
            "<=" => BinOp::Le,
            "==" => BinOp::Eq,
            "!=" => BinOp::Ne,
            ">" => BinOp::Gt,
            _ => BinOp::Lt,
        },
    }
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
        | Rule::each_word => "a value",
        Rule::expr | Rule::neg | Rule::not | Rule::upto => "a value",
        Rule::block | Rule::body => "`{`",
        Rule::EOI => "the end of the statement",
        Rule::unit => "a unit",
        Rule::axis => "`name over [\u{2026}]`",
        _ => return None,
    })
}
