//! Expressions: values first, then one Pratt parser over the flat rule.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::LazyLock;

use pest::iterators::Pair;
use pest::pratt_parser::{Assoc, Op, PrattParser};

use super::{Lower, Rule};
use crate::ast::{Arg, BinOp, Expr, ExprKind, Index, Piece, Seg, UnOp};
use crate::diagnostic::Diagnostic;
use crate::plan::Span;
use crate::syntax_error;

/// Operators from the outside of an expression to its innermost value: recursion over expressions stays this shallow.
const MAX_OPERATORS: usize = 400;
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

impl<'t> Lower<'t> {
    pub(super) fn args(&mut self, pair: Pair<'t, Rule>, depth: usize) -> Option<Vec<Arg>> {
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
    pub(super) fn expr(&mut self, pair: Pair<'t, Rule>, depth: usize) -> Option<Expr> {
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
            Rule::name | Rule::word_value => ExprKind::Name(pair.as_str().to_owned()),
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

    pub(super) fn string(&mut self, pair: Pair<'t, Rule>) -> Expr {
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

fn is_primary(rule: Rule) -> bool {
    matches!(
        rule,
        Rule::quantity
            | Rule::percent
            | Rule::ratio
            | Rule::number
            | Rule::string
            | Rule::bool
            | Rule::word_value
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
