//! A small HTML writer: text is escaped by every method that takes text, so a page can't be broken from inside the data.

use std::fmt::Write as _;

/// A page in the making.
#[derive(Debug, Default)]
pub(super) struct Html(String);

/// `&`, `<`, `>`, both quotes; control characters that HTML forbids become the replacement character.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\r' => {}
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

impl Html {
    /// Markup of our own; never data.
    pub(super) fn raw(&mut self, markup: &str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Data, escaped.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.0.push_str(&escape(text));
        self
    }

    /// `<tag attrs>text</tag>`, the text escaped.
    pub(super) fn el(&mut self, tag: &str, attrs: &str, text: &str) -> &mut Self {
        let space = if attrs.is_empty() { "" } else { " " };
        let _ = write!(self.0, "<{tag}{space}{attrs}>{}</{tag}>", escape(text));
        self
    }

    /// `<tag attrs>` … `</tag>` around what `inside` writes.
    pub(super) fn within(&mut self, tag: &str, attrs: &str, inside: impl FnOnce(&mut Self)) -> &mut Self {
        let space = if attrs.is_empty() { "" } else { " " };
        let _ = write!(self.0, "<{tag}{space}{attrs}>");
        inside(self);
        let _ = write!(self.0, "</{tag}>");
        self
    }

    /// A table that scrolls on its own when the page is too narrow. Column heads that start with `#` hold numbers.
    pub(super) fn table(&mut self, class: &str, caption: &str, heads: &[&str], rows: impl FnOnce(&mut Self)) -> &mut Self {
        let label = format!("class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{}\"", escape(caption));
        self.within("div", &label, |h| {
            let attrs = if class.is_empty() { String::new() } else { format!("class=\"{class}\"") };
            h.within("table", &attrs, |h| {
                h.el("caption", "", caption);
                h.within("thead", "", |h| {
                    h.within("tr", "", |h| {
                        for head in heads {
                            match head.strip_prefix('#') {
                                Some(number) => h.el("th", "scope=\"col\" class=\"n\"", number),
                                None => h.el("th", "scope=\"col\"", head),
                            };
                        }
                    });
                });
                h.within("tbody", "", rows);
            });
        })
    }

    /// A number's cell.
    pub(super) fn number(&mut self, text: &str) -> &mut Self {
        self.el("td", "class=\"n\"", text)
    }

    /// The page.
    pub(super) fn finish(self) -> String {
        self.0
    }
}
