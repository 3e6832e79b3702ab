//! A recipe as it was written: names unresolved, units unchecked.

use crate::plan::Span;

/// A name and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Ident {
    /// The name.
    pub name: String,
    /// Its place.
    pub span: Span,
}

/// A whole text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recipe {
    /// The `##` lines above `edition`.
    pub doc: String,
    /// Statements in order.
    pub items: Vec<Stmt>,
}

/// A statement.
#[derive(Debug, Clone, PartialEq)]
pub struct Stmt {
    /// From its keyword to its last token.
    pub span: Span,
    /// The `##` lines above it, joined by newlines.
    pub doc: String,
    /// What it says.
    pub kind: StmtKind,
}

/// What a statement says.
#[derive(Debug, Clone, PartialEq)]
pub enum StmtKind {
    Edition(String),
    Use {
        path: Expr,
        name: Ident,
    },
    Param {
        name: Ident,
        ty: Ident,
        value: Expr,
        range: Option<Expr>,
    },
    Model {
        name: Ident,
        value: Expr,
        block: Option<Block>,
    },
    Data {
        name: Ident,
        value: Expr,
        block: Option<Block>,
    },
    Let {
        name: Ident,
        value: Expr,
    },
    Score {
        selector: Expr,
        using: Option<Expr>,
        from: Option<Expr>,
        name: Option<Ident>,
        block: Option<Block>,
    },
    Prune(PruneStmt),
    Compact {
        model: Ident,
        block: Option<Block>,
    },
    Reconstruct {
        selector: Expr,
        teacher: Expr,
        data: Expr,
        length: Expr,
        block: Option<Block>,
    },
    Train {
        model: Ident,
        data: Expr,
        length: Expr,
        block: Option<Block>,
    },
    Attach {
        adapter: Expr,
        selector: Expr,
        name: Ident,
        block: Option<Block>,
    },
    Fuse {
        adapter: Ident,
        model: Ident,
        block: Option<Block>,
    },
    Snapshot {
        model: Ident,
        name: Ident,
        block: Option<Block>,
    },
    Rewind {
        model: Ident,
        member: Option<Ident>,
        to: Ident,
        block: Option<Block>,
    },
    Reinit {
        model: Ident,
        block: Option<Block>,
    },
    Quantize {
        model: Ident,
        method: Expr,
        block: Option<Block>,
    },
    Repeat {
        variable: Ident,
        range: Expr,
        body: Vec<Stmt>,
    },
    Sweep {
        axes: Vec<(Ident, Expr)>,
        name: Option<Ident>,
        body: Vec<Stmt>,
    },
    Adopt {
        model: Ident,
        grid: Ident,
        filter: Option<Expr>,
        rank: Expr,
        block: Option<Block>,
    },
    Eval {
        metric: Expr,
        of: Option<Expr>,
        on: Option<Expr>,
        name: Option<Ident>,
        block: Option<Block>,
    },
    Expect {
        expr: Expr,
        message: Option<Expr>,
        block: Option<Block>,
    },
    Save {
        model: Ident,
        to: Expr,
        block: Option<Block>,
    },
    /// A statement that was not understood (its mistake is reported): the names that it would have defined.
    Broken {
        defines: Vec<Ident>,
    },
}

/// A `prune`.
#[derive(Debug, Clone, PartialEq)]
pub struct PruneStmt {
    pub selector: Expr,
    pub by: Option<Expr>,
    pub to: Option<Expr>,
    pub using: Expr,
    pub block: Option<Block>,
}

/// `{ … }` behind a statement.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    pub span: Span,
    pub entries: Vec<Entry>,
}

/// A line of a block or a record.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// `name = value`.
    Field(Ident, Expr),
    /// `..common.finetune`.
    Spread(Expr),
    /// `prune …` or `eval …` inside `train`.
    Step(Box<Stmt>),
}

/// An expression.
#[derive(Debug, Clone, PartialEq)]
pub struct Expr {
    pub span: Span,
    pub kind: ExprKind,
}

/// What an expression says.
#[derive(Debug, Clone, PartialEq)]
pub enum ExprKind {
    Bool(bool),
    Number(f64),
    /// 40 for `40%`.
    Percent(f64),
    /// The number with K, M or B multiplied out where a unit follows; the unit as written.
    Quantity(f64, Ident),
    /// `2:4`, which is no amount.
    Ratio(u64, u64),
    Str(Vec<Piece>),
    Name(String),
    Call(Box<Expr>, Vec<Arg>),
    Path(Box<Expr>, Seg),
    List(Vec<Expr>),
    Record(Vec<Entry>),
    Unary(UnOp, Box<Expr>),
    Binary(BinOp, Box<Expr>, Box<Expr>),
    /// `50% each`.
    Each(Box<Expr>),
    /// `a..` in an index.
    Onward(Box<Expr>),
    /// `..b`, `..=b` in an index.
    UpTo {
        end: Box<Expr>,
        inclusive: bool,
    },
}

/// A part of a string.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    Text(String),
    /// `{name}` or `{module.name}`.
    Interp(Vec<String>, Span),
}

/// A step along a path.
#[derive(Debug, Clone, PartialEq)]
pub enum Seg {
    Member(Ident),
    Index(Index, Span),
    /// `.{a, b.c}`.
    Fan(Vec<Vec<Seg>>, Span),
}

/// What stands in `[ ]` behind a value.
#[derive(Debug, Clone, PartialEq)]
pub enum Index {
    All,
    Items(Vec<Arg>),
}

/// An argument.
#[derive(Debug, Clone, PartialEq)]
pub struct Arg {
    pub name: Option<Ident>,
    pub value: Expr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnOp {
    Neg,
    Not,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BinOp {
    Then,
    Or,
    And,
    Ge,
    Le,
    Eq,
    Ne,
    Gt,
    Lt,
    Union,
    Except,
    RangeIn,
    Range,
    Arrow,
    Add,
    Sub,
    Mul,
    Div,
    Of,
}

impl BinOp {
    /// As it is written.
    pub fn text(self) -> &'static str {
        match self {
            BinOp::Then => "then",
            BinOp::Or => "or",
            BinOp::And => "and",
            BinOp::Ge => ">=",
            BinOp::Le => "<=",
            BinOp::Eq => "==",
            BinOp::Ne => "!=",
            BinOp::Gt => ">",
            BinOp::Lt => "<",
            BinOp::Union => "|",
            BinOp::Except => "except",
            BinOp::RangeIn => "..=",
            BinOp::Range => "..",
            BinOp::Arrow => "->",
            BinOp::Add => "+",
            BinOp::Sub => "-",
            BinOp::Mul => "*",
            BinOp::Div => "/",
            BinOp::Of => "of",
        }
    }

    /// Whether it compares.
    pub fn compares(self) -> bool {
        matches!(self, BinOp::Ge | BinOp::Le | BinOp::Eq | BinOp::Ne | BinOp::Gt | BinOp::Lt)
    }
}
