//! `explain`: a page for each code.

mod pages;

pub use pages::PAGES;

/// What `prunectl explain P0207` shows.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// `P0207`.
    pub code: &'static str,
    /// One line.
    pub title: &'static str,
    /// Why it is a mistake, and what to do.
    pub cause: &'static str,
    /// Lines that give this code.
    pub bad: &'static str,
    /// The same, corrected.
    pub good: &'static str,
}

/// What examples of pages and of the reference leave out.
pub const PRELUDE: &str = "edition 2026\nmodel m = builtin(\"tiny-bert\")\ndata d = builtin(\"tales\")\n";

/// An example as a whole recipe: those that declare no model of their own get the [`PRELUDE`].
pub fn whole(example: &str) -> String {
    let complete = example.lines().any(|l| l.starts_with("edition ") || l.starts_with("model m "));
    if complete { example.to_owned() } else { format!("{PRELUDE}{example}") }
}

/// The page of a code, case ignored.
pub fn page(code: &str) -> Option<&'static Page> {
    PAGES.iter().find(|p| p.code.eq_ignore_ascii_case(code))
}

/// A page as Markdown.
pub fn markdown(page: &Page) -> String {
    format!(
        "# {}: {}\n\n{}\n\n## Wrong\n\n```prune\n{}```\n\n## Right\n\n```prune\n{}```\n",
        page.code, page.title, page.cause, page.bad, page.good
    )
}
