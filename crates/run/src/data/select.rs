//! Which rows an expression names: samples, windows, mixtures.
//!
//! Rows are named here, not read. `.sample(n, seed)` draws documents without replacement and keeps the order in which they were drawn, so
//! that `sample(64)` is the beginning of `sample(128)`. `.sample(n, length, seed)` draws windows that begin anywhere in the token stream,
//! as the calibration sets of the pruning papers are made (SparseGPT, Frantar & Alistarh 2023, `datautils.py`). `.pack(length)` cuts the
//! stream into windows one after another; the rest that fills none is left out.

use std::collections::BTreeMap;
use std::sync::Arc;

use prunectl_recipe::plan::{DataExpr, Share};

use super::chat::Learn;
use super::draw::Draw;
use super::error::{DataError, Place};
use super::stream::LastStream;
use super::table::Table;
use crate::tokenizer::Tokenizer;

/// What a data expression names, its sources open.
#[derive(Debug, Clone)]
pub struct Dataset {
    expr: DataExpr,
    tables: BTreeMap<(String, Option<String>), Arc<Table>>,
    last: Arc<LastStream>,
}

/// A row, not read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowRef {
    Stored { table: u32, row: u32 },
    Window { stream: u32, start: u32 },
}

/// A token stream and the length of its windows.
#[derive(Debug, Clone)]
pub(crate) struct Windows {
    pub(crate) ids: Arc<Vec<u32>>,
    pub(crate) length: usize,
}

/// Rows in order, and what they are read from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    pub(crate) tables: Vec<Arc<Table>>,
    pub(crate) streams: Vec<Windows>,
    pub(crate) rows: Vec<RowRef>,
    /// Whether its documents are conversations, and which turns are learned from.
    pub(crate) chat: Option<Learn>,
}

/// What a row is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowKind {
    Documents,
    Tokens,
}

impl Selection {
    pub(crate) fn table(&self, table: u32) -> Option<&Table> {
        self.tables.get(table as usize).map(|t| &**t)
    }

    pub(crate) fn place(&self, row: usize) -> Place {
        match self.rows.get(row) {
            Some(RowRef::Stored { table, row }) => match self.table(*table) {
                Some(t) => t.place(*row as usize),
                None => Place { file: "data".into(), line: u64::from(*row) },
            },
            Some(RowRef::Window { start, .. }) => Place { file: "the token stream, token".into(), line: u64::from(*start) },
            None => Place { file: "data".into(), line: row as u64 },
        }
    }

    pub(crate) fn kind(&self) -> RowKind {
        match self.rows.first() {
            Some(RowRef::Stored { table, .. }) if self.table(*table).is_some_and(|t| t.tokens().is_none()) => RowKind::Documents,
            _ => RowKind::Tokens,
        }
    }

    fn windows(ids: Arc<Vec<u32>>, length: usize, starts: Vec<u32>) -> Self {
        let rows = starts.into_iter().map(|start| RowRef::Window { stream: 0, start }).collect();
        Self { tables: Vec::new(), streams: vec![Windows { ids, length }], rows, chat: None }
    }
}

/// Told a source's name and split.
type Visit<'a> = dyn FnMut(&str, Option<&str>) -> Result<(), DataError> + 'a;

/// Visits every source that an expression names, and refuses arguments that make no sense whatever the data.
pub(crate) fn check(expr: &DataExpr, source: &mut Visit<'_>) -> Result<(), DataError> {
    let positive = |what: &str, n: u64| match n {
        0 => Err(DataError::Argument { what: describe(expr), found: format!("{what} = 0"), expected: "at least 1".into() }),
        _ => Ok(()),
    };
    match expr {
        DataExpr::Source { name, split } => source(name, split.as_deref()),
        DataExpr::Sample { of, n, length, .. } => {
            positive("n", *n)?;
            length.map_or(Ok(()), |l| positive("length", l))?;
            check(of, source)
        }
        DataExpr::Pack { of, tokens } => {
            positive("tokens", *tokens)?;
            check(of, source)
        }
        DataExpr::Take { of, n } => {
            positive("n", *n)?;
            check(of, source)
        }
        DataExpr::Chat { of, .. } => check(of, source),
        DataExpr::Mix(parts) => {
            let sum: i128 = parts.iter().map(|(s, _)| i128::from(s.0)).sum();
            if sum != i128::from(Share::ONE.0) || parts.iter().any(|(s, _)| s.0 <= 0) {
                let found = parts.iter().map(|(s, _)| format!("{}%", s.fraction() * 100.0)).collect::<Vec<_>>().join(" + ");
                return Err(DataError::Argument { what: describe(expr), found, expected: "positive shares that add up to 100%".into() });
            }
            parts.iter().try_for_each(|(_, e)| check(e, source))
        }
    }
}

/// An expression as it would be written in a recipe.
pub fn describe(expr: &DataExpr) -> String {
    match expr {
        DataExpr::Source { name, split: None } => name.clone(),
        DataExpr::Source { name, split: Some(split) } => format!("{name}.{split}"),
        DataExpr::Sample { of, n, length: None, seed } => format!("{}.sample({n}, seed = {seed})", describe(of)),
        DataExpr::Sample { of, n, length: Some(l), seed } => {
            format!("{}.sample({n}, length = {l} tokens, seed = {seed})", describe(of))
        }
        DataExpr::Pack { of, tokens } => format!("{}.pack({tokens} tokens)", describe(of)),
        DataExpr::Take { of, n } => format!("{}.take({n})", describe(of)),
        DataExpr::Chat { of, model, loss } => format!("{}.chat({model}, loss = {loss})", describe(of)),
        DataExpr::Mix(parts) => {
            let parts: Vec<String> = parts.iter().map(|(s, e)| format!("{}% of {}", s.fraction() * 100.0, describe(e))).collect();
            format!("mix({})", parts.join(", "))
        }
    }
}

/// Tokens of a row, where the expression says them.
pub fn row_tokens(expr: &DataExpr) -> Option<u64> {
    match expr {
        DataExpr::Source { .. } => None,
        DataExpr::Sample { length: Some(tokens), .. } | DataExpr::Pack { tokens, .. } => Some(*tokens),
        DataExpr::Sample { of, length: None, .. } | DataExpr::Take { of, .. } | DataExpr::Chat { of, .. } => row_tokens(of),
        DataExpr::Mix(parts) => parts.iter().map(|(_, part)| row_tokens(part)).collect::<Option<Vec<_>>>()?.into_iter().max(),
    }
}

/// Rows, where the expression says them.
pub fn row_count(expr: &DataExpr) -> Option<u64> {
    match expr {
        DataExpr::Sample { n, .. } | DataExpr::Take { n, .. } => Some(*n),
        DataExpr::Chat { of, .. } => row_count(of),
        DataExpr::Source { .. } | DataExpr::Pack { .. } | DataExpr::Mix(_) => None,
    }
}

impl Dataset {
    pub(crate) fn new(expr: DataExpr, tables: BTreeMap<(String, Option<String>), Arc<Table>>, last: Arc<LastStream>) -> Self {
        Self { expr, tables, last }
    }

    /// The expression, as it would be written in a recipe.
    pub fn describe(&self) -> String {
        describe(&self.expr)
    }

    /// Whether a step needs the model's tokenizer to use it.
    pub fn needs_tokenizer(&self) -> bool {
        self.tables.values().any(|t| t.tokens().is_none())
    }

    /// The number of rows, where it is known without tokenising.
    pub fn count(&self) -> Option<usize> {
        count(&self.expr, &self.tables)
    }

    /// The rows, in order; windows are cut from the token stream here, which needs a tokenizer unless the source holds tokens.
    pub(crate) fn select(&self, tokenizer: Option<&Tokenizer>) -> Result<Selection, DataError> {
        let selection = self.eval(&self.expr, tokenizer)?;
        match selection.rows.is_empty() {
            false => Ok(selection),
            true => Err(DataError::Empty { what: self.describe(), hint: "it names no rows".into() }),
        }
    }

    fn eval(&self, expr: &DataExpr, tokenizer: Option<&Tokenizer>) -> Result<Selection, DataError> {
        let fewer = |found: usize, expected: String| DataError::Argument {
            what: describe(expr),
            found: format!("there are {found} rows"),
            expected,
        };
        match expr {
            DataExpr::Source { name, split } => {
                let table = self.tables.get(&(name.clone(), split.clone())).cloned();
                let table = table.ok_or_else(|| DataError::UnknownData { name: describe(expr), known: Vec::new() })?;
                // An index of more rows than this would not fit in memory beforehand.
                let rows = u32::try_from(table.len()).unwrap_or(u32::MAX);
                Ok(Selection {
                    chat: None,
                    tables: vec![table],
                    streams: Vec::new(),
                    rows: (0..rows).map(|row| RowRef::Stored { table: 0, row }).collect(),
                })
            }
            DataExpr::Take { of, n } => {
                let mut s = self.eval(of, tokenizer)?;
                if (s.rows.len() as u64) < *n {
                    return Err(fewer(
                        s.rows.len(),
                        format!("at least {n}: take fewer, or cut a long text into rows, `.pack(256 tokens)`"),
                    ));
                }
                s.rows.truncate(*n as usize);
                Ok(s)
            }
            DataExpr::Sample { of, n, length: None, seed } => {
                let mut s = self.eval(of, tokenizer)?;
                if (s.rows.len() as u64) < *n {
                    return Err(fewer(s.rows.len(), format!("at least {n}: rows are drawn without replacement")));
                }
                Draw::new(*seed, b"sample\0\0", 0).choose(&mut s.rows, *n as usize);
                Ok(s)
            }
            DataExpr::Sample { of, n, length: Some(length), seed } => {
                let (ids, length) = self.window_stream(expr, of, *length, tokenizer)?;
                let mut draw = Draw::new(*seed, b"windows\0", 0);
                let starts = (0..*n).map(|_| draw.below((ids.len() - length + 1) as u64) as u32).collect();
                Ok(Selection::windows(ids, length, starts))
            }
            DataExpr::Pack { of, tokens } => {
                let (ids, length) = self.window_stream(expr, of, *tokens, tokenizer)?;
                let starts = (0..ids.len() / length).map(|i| (i * length) as u32).collect();
                Ok(Selection::windows(ids, length, starts))
            }
            DataExpr::Mix(parts) => {
                let parts = parts.iter().map(|(s, e)| Ok((*s, self.eval(e, tokenizer)?))).collect::<Result<Vec<_>, DataError>>()?;
                mix(&describe(expr), parts)
            }
            DataExpr::Chat { of, loss, .. } => {
                let s = self.eval(of, tokenizer)?;
                if s.kind() != RowKind::Documents {
                    let expected = "rows with the turns of a conversation".into();
                    return Err(DataError::Mixed { what: describe(expr), found: "rows of tokens".into(), expected });
                }
                Ok(Selection { chat: Some(Learn::parse(loss)), ..s })
            }
        }
    }

    /// The stream that windows are cut from, with their length; it holds at least one and no more tokens than a u32 counts.
    fn window_stream(
        &self,
        expr: &DataExpr,
        of: &DataExpr,
        length: u64,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<(Arc<Vec<u32>>, usize), DataError> {
        let ids = self.last.of(&self.eval(of, tokenizer)?, &describe(of), tokenizer)?;
        let argument = |found: String, expected: String| DataError::Argument { what: describe(expr), found, expected };
        let fits = usize::try_from(length).ok().filter(|l| *l <= ids.len());
        let length = fits.ok_or_else(|| {
            argument(format!("the stream of `{}` has {} tokens", describe(of), ids.len()), format!("at least one window of {length}"))
        })?;
        match u32::try_from(ids.len()) {
            Ok(_) => Ok((ids, length)),
            Err(_) => Err(argument(
                format!("the stream of `{}` has {} tokens", describe(of), ids.len()),
                format!("at most {}: take a part of the documents first, `.sample(n)` or `.take(n)`", u32::MAX),
            )),
        }
    }
}

fn count(expr: &DataExpr, tables: &BTreeMap<(String, Option<String>), Arc<Table>>) -> Option<usize> {
    match expr {
        DataExpr::Source { name, split } => tables.get(&(name.clone(), split.clone())).map(|t| t.len()),
        DataExpr::Sample { n, .. } | DataExpr::Take { n, .. } => usize::try_from(*n).ok(),
        DataExpr::Pack { .. } | DataExpr::Chat { .. } => None,
        DataExpr::Mix(parts) => {
            let counts = parts.iter().map(|(s, e)| Some((*s, count(e, tables)?))).collect::<Option<Vec<_>>>()?;
            Some(mix_counts(&counts).iter().sum())
        }
    }
}

/// How many rows each part gives: as many as keep the shares without repeating a row.
fn mix_counts(parts: &[(Share, usize)]) -> Vec<usize> {
    let whole = |(s, n): &(Share, usize)| *n as i128 * i128::from(Share::ONE.0) / i128::from(s.0.max(1));
    let total = usize::try_from(parts.iter().map(whole).min().unwrap_or(0)).unwrap_or(usize::MAX);
    parts.iter().map(|(s, n)| s.of(total).min(*n)).collect()
}

/// Rows of each part in its own order, spread evenly: next comes the part that is furthest behind its share, the first of equals.
fn mix(what: &str, parts: Vec<(Share, Selection)>) -> Result<Selection, DataError> {
    let kinds: Vec<RowKind> = parts.iter().map(|(_, s)| s.kind()).collect();
    if kinds.windows(2).any(|k| k.first() != k.last()) {
        return Err(DataError::Mixed {
            what: what.to_owned(),
            found: "documents beside rows of tokens".into(),
            expected: "one kind: `.pack(…)` the documents".into(),
        });
    }
    let chat = parts.first().and_then(|(_, s)| s.chat);
    if parts.iter().any(|(_, s)| s.chat != chat) {
        return Err(DataError::Mixed {
            what: what.to_owned(),
            found: "conversations beside texts, or learned from otherwise".into(),
            expected: "one kind: `.chat(…)` on every part, with the same `loss`".into(),
        });
    }
    let counts = mix_counts(&parts.iter().map(|(s, p)| (*s, p.rows.len())).collect::<Vec<_>>());
    let shares: Vec<Share> = parts.iter().map(|(s, _)| *s).collect();
    let mut out = Selection { chat, ..Selection::default() };
    let mut queues = Vec::new();
    for ((_, part), n) in parts.into_iter().zip(&counts) {
        let (tables, streams) = (out.tables.len() as u32, out.streams.len() as u32);
        queues.push(part.rows.into_iter().take(*n).map(move |r| match r {
            RowRef::Stored { table, row } => RowRef::Stored { table: table + tables, row },
            RowRef::Window { stream, start } => RowRef::Window { stream: stream + streams, start },
        }));
        out.tables.extend(part.tables);
        out.streams.extend(part.streams);
    }
    let mut taken = vec![0i128; queues.len()];
    for step in 1..=counts.iter().sum::<usize>() as i128 {
        let behind = |i: usize| {
            let (share, taken) = (shares.get(i).map_or(0, |s| s.0), taken.get(i).copied().unwrap_or(0));
            i128::from(share) * step - i128::from(Share::ONE.0) * taken
        };
        // `max_by_key` takes the last of equals; reversed, that is the first part.
        let open = (0..queues.len()).rev().filter(|i| queues.get(*i).is_some_and(|q| q.len() > 0));
        let Some(next) = open.max_by_key(|i| behind(*i)) else { break };
        if let (Some(queue), Some(taken)) = (queues.get_mut(next), taken.get_mut(next)) {
            out.rows.extend(queue.next());
            *taken += 1;
        }
    }
    Ok(out)
}
