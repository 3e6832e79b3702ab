//! An open source, or one split of it: rows that can be read in any order.

use std::path::Path;

use super::document::{Document, Label};
use super::error::{BadRows, DataError, Place};
use super::file::{FileRecord, RawFile, utf8};
use super::lines::LineTable;
use super::tokens::TokenTable;

/// An open source.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) body: Body,
    /// `labels = […]` of the data statement.
    pub(crate) label_names: Vec<String>,
}

/// What it is made of.
#[derive(Debug)]
pub(crate) enum Body {
    /// Files of rows, one behind the other.
    Lines(Vec<LineTable>),
    /// One document, byte for byte.
    Text {
        file: RawFile,
        record: FileRecord,
    },
    Memory {
        name: String,
        documents: Vec<Document>,
    },
    Tokens(TokenTable),
}

/// The file that holds a row, and the row's number in it.
fn locate(tables: &[LineTable], row: usize) -> Option<(&LineTable, usize)> {
    let mut row = row;
    for table in tables {
        if row < table.len() {
            return Some((table, row));
        }
        row -= table.len();
    }
    None
}

impl Body {
    pub(crate) fn text(path: &Path, shown: &Path) -> Result<Self, DataError> {
        let file = RawFile::open(path, shown)?;
        let mut scan = file.scan();
        let mut all = Vec::new();
        std::io::Read::read_to_end(&mut scan, &mut all).map_err(|e| file.io(e))?;
        let record = file.record(scan);
        if let Err((offset, bytes)) = utf8(all) {
            let before = bytes.get(..offset).unwrap_or_default();
            let line = 1 + before.iter().filter(|b| **b == b'\n').count() as u64;
            return Err(DataError::NotUtf8 { path: shown.to_owned(), offset: offset as u64, line });
        }
        Ok(Self::Text { file, record })
    }
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        match &self.body {
            Body::Lines(t) => t.iter().map(LineTable::len).sum(),
            Body::Text { .. } => 1,
            Body::Memory { documents, .. } => documents.len(),
            Body::Tokens(t) => t.len(),
        }
    }

    pub(crate) fn place(&self, row: usize) -> Place {
        match &self.body {
            Body::Lines(t) => match locate(t, row) {
                Some((table, row)) => table.place(row),
                None => Place { file: "data".into(), line: row as u64 },
            },
            Body::Text { file, .. } => Place { file: file.path().display().to_string(), line: 1 },
            Body::Memory { name, .. } => Place { file: name.clone(), line: row as u64 + 1 },
            Body::Tokens(t) => t.place(row),
        }
    }

    /// The label of a document.
    pub(crate) fn label(&self, row: usize) -> Option<&Label> {
        match &self.body {
            Body::Lines(t) => locate(t, row).and_then(|(t, row)| t.label(row)),
            Body::Memory { documents, .. } => documents.get(row)?.label.as_ref(),
            Body::Text { .. } | Body::Tokens(_) => None,
        }
    }

    /// The document in a row; `None` where rows are tokens.
    pub(crate) fn document(&self, row: usize) -> Result<Option<Document>, DataError> {
        match &self.body {
            Body::Lines(t) => locate(t, row).map(|(t, row)| t.document(row)).transpose(),
            Body::Text { file, .. } => {
                let bytes = file.read(0, usize::try_from(file.bytes()).unwrap_or(usize::MAX))?;
                let text = utf8(bytes).map_err(|_| file.changed())?;
                Ok(Some(Document { text, ..Document::default() }))
            }
            Body::Memory { documents, .. } => Ok(documents.get(row).cloned()),
            Body::Tokens(_) => Ok(None),
        }
    }

    pub(crate) fn tokens(&self) -> Option<&TokenTable> {
        match &self.body {
            Body::Tokens(t) => Some(t),
            _ => None,
        }
    }

    /// The files that it was read from.
    pub(crate) fn records(&self) -> Vec<&FileRecord> {
        match &self.body {
            Body::Lines(t) => t.iter().map(|t| &t.record).collect(),
            Body::Text { record, .. } => vec![record],
            Body::Tokens(t) => vec![&t.record],
            Body::Memory { .. } => Vec::new(),
        }
    }

    /// Rows that were left out, by file.
    pub(crate) fn skipped(&self) -> Vec<(&FileRecord, &BadRows)> {
        match &self.body {
            Body::Lines(t) => t.iter().filter(|t| t.skipped.count > 0).map(|t| (&t.record, &t.skipped)).collect(),
            _ => Vec::new(),
        }
    }
}
