//! The texts that were compiled, and where their lines begin.

use crate::plan::Span;

/// Every text of a compilation, in the order of [`Span::file`]: the recipe, then what it `use`s.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    files: Vec<Source>,
}

/// One text.
#[derive(Debug, Clone)]
pub struct Source {
    /// The name that messages show.
    pub name: String,
    /// The text.
    pub text: String,
    /// Byte offset of each line's beginning.
    line_starts: Vec<u32>,
}

impl Sources {
    /// Adds a text and returns its [`Span::file`].
    pub fn add(&mut self, name: &str, text: &str) -> u32 {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i as u32 + 1)).collect();
        self.files.push(Source { name: name.to_owned(), text: text.to_owned(), line_starts });
        (self.files.len() - 1) as u32
    }

    /// The text that a span points into.
    pub fn get(&self, file: u32) -> Option<&Source> {
        self.files.get(file as usize)
    }

    /// What a span covers; empty if it lies outside.
    pub fn slice(&self, span: Span) -> &str {
        self.get(span.file).and_then(|f| f.text.get(span.start as usize..span.end as usize)).unwrap_or("")
    }

    /// Line and column of a byte, both from 1; columns count characters.
    pub fn line_col(&self, file: u32, byte: u32) -> (u32, u32) {
        self.get(file).map_or((1, 1), |f| f.line_col(byte))
    }
}

impl Source {
    /// Line and column of a byte, both from 1; columns count characters.
    pub fn line_col(&self, byte: u32) -> (u32, u32) {
        let line = self.line_starts.partition_point(|s| *s <= byte).max(1);
        let start = self.line_starts.get(line - 1).copied().unwrap_or(0);
        let column = self.text.get(start as usize..byte as usize).map_or(0, |s| s.chars().count());
        (line as u32, column as u32 + 1)
    }

    /// Byte range of a line (from 1), its end of line left out.
    pub fn line_range(&self, line: u32) -> std::ops::Range<usize> {
        let i = line.max(1) as usize - 1;
        let start = self.line_starts.get(i).map_or(self.text.len(), |s| *s as usize);
        let end = self.line_starts.get(i + 1).map_or(self.text.len(), |s| *s as usize - 1);
        start..end.max(start)
    }
}
