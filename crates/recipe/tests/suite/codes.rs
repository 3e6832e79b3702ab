//! Codes, their pages and their examples hold together.

use std::collections::BTreeSet;

use prunectl_recipe::explain::{PAGES, page, whole};
use prunectl_recipe::{compile, render};

use crate::common::{Files, Twelve, catalogue};

/// `# prunectl run … --set a=b` in an example.
fn settings(example: &str) -> Vec<(String, String)> {
    let line = example.lines().find_map(|l| l.split_once("--set ")).map(|(_, s)| s.trim());
    line.and_then(|s| s.split_once('=')).map(|(a, b)| (a.to_owned(), b.to_owned())).into_iter().collect()
}

/// Codes of an example, each once, and what the terminal shows.
fn found(example: &str) -> (BTreeSet<&'static str>, String) {
    let text = whole(example);
    let c = compile(&text, "recipe.prune", &settings(example), &Files, &catalogue(), &Twelve);
    let diagnostics = match c.result {
        Ok(plan) => plan.warnings,
        Err(d) => d,
    };
    (diagnostics.iter().map(|d| d.code).collect(), render::render(&diagnostics, &c.sources, false))
}

#[test]
fn bad_examples_give_their_code_and_good_ones_nothing() {
    let mut wrong = String::new();
    for p in PAGES {
        let (codes, shown) = found(p.bad);
        if codes != BTreeSet::from([p.code]) {
            wrong.push_str(&format!("bad example of {}: {codes:?}\n{shown}\n", p.code));
        }
        let (codes, shown) = found(p.good);
        if !codes.is_empty() {
            wrong.push_str(&format!("good example of {}: {codes:?}\n{shown}\n", p.code));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// An option that nothing would read is a mistake: left out without a word it would seem to have done something.
#[test]
fn options_without_use_are_told() {
    let inside = |options: &str| {
        format!("train m on d.train for 20 steps {{\n    optimizer = adamw(lr = 1e-4)\n    prune m.layers[*].mlp.neurons {options}\n}}\n")
    };
    for (example, code, hint) in [
        (inside("by 40% using magnitude() { rescore = 10% }"), "P0408", "every"),
        (inside("by 40% using magnitude() { inputs = dense }"), "P0408", "inputs"),
        (inside("to params <= 60% of dense using magnitude() { on = d.train }"), "P0310", "by cubic"),
        ("prune m.layers[*].mlp.neurons by 40% using magnitude() { on = d.train }\n".to_owned(), "P0408", "reconstruct"),
        ("prune m.layers[*].mlp.neurons by 40% using magnitude() { seed = 3 }\n".to_owned(), "P0408", "takes"),
        ("model c = copy(m) { dtype = bf16 }\neval params() of c as n\n".to_owned(), "P0408", "no options"),
        ("model c = builtin(\"tiny-bert\") { revision = \"v1\" }\neval params() of c as n\n".to_owned(), "P0408", "takes"),
        (
            "eval loss() of m on d.test as val\ntrain m on d.train for 20 steps { optimizer = adamw(lr = 1e-4)  keep = lowest(val) }\n"
                .to_owned(),
            "P0512",
            "in its block",
        ),
        (
            "eval loss() of m on d.test as val\ntrain m on d.train for 20 steps { optimizer = adamw(lr = 1e-4)  stop = stale(val, after = 2) }\n"
                .to_owned(),
            "P0512",
            "in its block",
        ),
    ] {
        let (codes, shown) = found(&example);
        assert_eq!(codes, BTreeSet::from([code]), "{example}{shown}");
        assert!(shown.contains(hint), "{example}{shown}");
    }
    for fine in [
        inside("by cubic(0% -> 40%) using magnitude() { every = 5 steps }"),
        "prune m.layers[*].mlp.neurons by 40% using magnitude() { on = d.train  reconstruct = bias }\n".to_owned(),
        "prune m.layers[*].mlp.neurons to params <= 60% of dense using magnitude() { on = d.train }\ncompact m\n".to_owned(),
    ] {
        let (codes, shown) = found(&fine);
        assert!(codes.is_empty(), "{fine}{shown}");
    }
}

#[test]
fn every_code_has_a_page_and_every_page_a_code() {
    fn sources(dir: &std::path::Path, out: &mut String) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !path.ends_with("explain") {
                    sources(&path, out);
                }
            } else {
                out.push_str(&std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut text = String::new();
    sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
    let used: BTreeSet<&str> =
        text.match_indices("\"P0").filter_map(|(i, _)| text.get(i + 1..i + 6).filter(|_| text.get(i + 6..i + 7) == Some("\""))).collect();
    let pages: BTreeSet<&str> = PAGES.iter().map(|p| p.code).collect();
    assert_eq!(used, pages);
    assert_eq!(pages.len(), PAGES.len(), "a code has two pages");
    assert!(PAGES.windows(2).all(|w| w[0].code < w[1].code), "pages are sorted");
    assert_eq!(page("p0207").map(|p| p.code), Some("P0207"));
}

/// What the terminal shows for the bad example of every code; `PRUNECTL_BLESS=1` writes it again.
#[test]
fn messages_are_as_they_were_read_last() {
    let shown: String = PAGES.iter().map(|p| format!("==== {}\n{}\n", p.code, found(p.bad).1.trim_end())).collect();
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/codes.stderr");
    if std::env::var_os("PRUNECTL_BLESS").is_some() {
        std::fs::write(&path, &shown).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == shown, "{} is out of date (PRUNECTL_BLESS=1 rewrites it); now:\n{shown}", path.display());
}

/// What was done to a model's weights is followed into rounds, cells, copies and snapshots.
#[test]
fn what_was_done_to_weights_is_remembered() {
    let cut = |model: &str| format!("prune {model}.layers[*].linears.weights by 10% using magnitude()\n");
    let (prune, quantize) = (cut("m"), "quantize m using int8()\n");
    let slice = "prune m.hidden by 20% using slice(on = d.train)\n";
    let (before, back) = ("snapshot m as early\n", "rewind m to early\n");
    for (text, expected) in [
        (format!("{quantize}repeat i in 1..=2 {{\n{prune}}}\n"), &["P0414"][..]),
        (format!("repeat i in 1..=2 {{\n{prune}{quantize}}}\n"), &["P0414", "P0414"]),
        (format!("sweep share over [10%, 20%] {{\n{prune}{quantize}}}\n"), &[]),
        (format!("{quantize}model c = copy(m)\n{}", cut("c")), &["P0414"]),
        (format!("model c = copy(m)\n{quantize}{}", cut("c")), &[]),
        (format!("{before}{quantize}{back}{prune}"), &[]),
        (format!("{quantize}{before}{back}{prune}"), &["P0414"]),
        ("save m to \"out/m\" { dtype = q8_0 }\n".to_owned(), &["P0414"]),
        ("save m to \"out/m\" { format = gguf  dtype = q8_0 }\n".to_owned(), &[]),
        ("score m.hidden using slice(on = d.train) as s\n".to_owned(), &["P0414"]),
        (format!("{before}{slice}{back}compact m\n"), &["P0514"]),
        (format!("{before}{slice}rewind m.schedule to early\ncompact m\n"), &[]),
        (format!("{slice}{before}{back}compact m\n"), &[]),
        (format!("{before}sweep share over [10%, 20%] {{\n{slice}compact m\n}}\n{prune}{back}"), &[]),
    ] {
        assert_eq!(crate::common::codes(&format!("{}{text}", crate::common::PRELUDE)), expected, "{text}");
    }
}
