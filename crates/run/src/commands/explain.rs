//! `prunectl explain CODE|METHOD`.

use clap::Args;
use prunectl_recipe::explain::{PAGES, markdown, page};
use prunectl_recipe::reference::method_page;
use serde_json::json;

use crate::cli::DONE;
use crate::commands::{print, print_json};
use crate::compile::catalogue;
use crate::error::{Error, Result};
use crate::session::Options;

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// An error code (P0207) or the name of a method (wanda, accuracy, …); without one, everything that there is to explain.
    pub topic: Option<String>,
}

impl Explain {
    /// Prints the page.
    pub fn run(&self, options: &Options) -> Result<u8> {
        let catalogue = catalogue();
        let Some(topic) = &self.topic else {
            let mut text = "Codes\n".to_owned();
            for page in PAGES {
                text += &format!("  {}  {}\n", page.code, page.title);
            }
            let mut names: Vec<&str> = catalogue.iter().map(|s| s.name).collect();
            names.dedup();
            if options.json {
                let codes: Vec<_> = PAGES.iter().map(|p| json!({"code": p.code, "title": p.title})).collect();
                print_json(&json!({"codes": codes, "methods": names}))?;
                return DONE;
            }
            text += &format!("Methods\n  {}\n", names.join(", "));
            print(&text)?;
            return DONE;
        };
        if let Some(page) = page(topic) {
            if options.json {
                print_json(&json!({"code": page.code, "title": page.title, "cause": page.cause, "bad": page.bad, "good": page.good}))?;
            } else {
                print(&markdown(page))?;
            }
            return DONE;
        }
        let rows: Vec<_> = catalogue.iter().filter(|s| s.name == topic).collect();
        if rows.is_empty() {
            return Err(Error::Usage {
                message: format!("there is nothing to explain about `{topic}`{}; `prunectl explain` lists what there is", nearest(topic)),
            });
        }
        let pages: Vec<String> = rows.iter().map(|s| method_page(s)).collect();
        if options.json {
            let all: Vec<_> = rows.iter().zip(&pages).map(|(s, page)| json!({"name": s.name, "source": s.source, "page": page})).collect();
            print_json(&all)?;
            return DONE;
        }
        print(&format!("{}\n", pages.join("\n").trim_end()))?;
        DONE
    }
}

/// `: did you mean …?` by edit distance.
fn nearest(topic: &str) -> String {
    const FURTHEST: usize = 3;
    let catalogue = catalogue();
    let names = catalogue.iter().map(|s| s.name).chain(PAGES.iter().map(|p| p.code));
    names
        .map(|n| (strsim::damerau_levenshtein(&n.to_lowercase(), &topic.to_lowercase()), n))
        .min()
        .filter(|(d, _)| *d <= FURTHEST)
        .map(|(_, n)| format!(": did you mean `{n}`?"))
        .unwrap_or_default()
}
