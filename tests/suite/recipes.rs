//! Every recipe that ships, and every fixture, through the whole front end with the real catalogue.

use std::path::{Path, PathBuf};

use prunectl_recipe::diagnostic::{Diagnostic, Severity};
use prunectl_recipe::plan::ModelDecl;
use prunectl_recipe::{Compiled, Facts, Loader, ModelFacts, compile, render};

struct Disk;

impl Loader for Disk {
    fn load(&self, path: &Path) -> Result<String, String> {
        std::fs::read_to_string(path).map_err(|e| e.to_string())
    }
}

/// Every model looks like a BERT of 12 layers of 12 heads.
struct Twelve;

impl ModelFacts for Twelve {
    fn facts(&self, _: &ModelDecl) -> Option<Facts> {
        Some(Facts::uniform("bert", 12, 12, 12, 3072, 768))
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn recipes_below(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(recipes_below(&path));
        } else if path.extension().is_some_and(|e| e == "prune") {
            out.push(path);
        }
    }
    out.sort();
    out
}

fn run(path: &Path, facts: &dyn ModelFacts) -> Compiled {
    let text = std::fs::read_to_string(path).unwrap();
    let shown = path.strip_prefix(root()).unwrap_or(path).display().to_string();
    compile(&text, &shown, &[], &Disk, &prunectl_prune::catalogue(), facts)
}

fn rendered(diagnostics: &[Diagnostic], c: &Compiled) -> String {
    render::render(diagnostics, &c.sources, false)
}

#[test]
fn every_shipped_recipe_passes_check_without_a_warning() {
    let all = recipes_below(&root().join("recipes"));
    assert!(all.len() >= 7, "recipes are missing: {all:?}");
    for path in all {
        for facts in [&() as &dyn ModelFacts, &Twelve] {
            let c = run(&path, facts);
            match &c.result {
                Ok(plan) => assert!(plan.warnings.is_empty(), "{}:\n{}", path.display(), rendered(&plan.warnings, &c)),
                Err(d) => panic!("{}:\n{}", path.display(), rendered(d, &c)),
            }
        }
    }
}

/// Compares a text with the file that holds what is expected; `PRUNECTL_BLESS=1` writes it.
fn expect_file(path: &Path, text: &str) {
    if std::env::var_os("PRUNECTL_BLESS").is_some() {
        std::fs::write(path, text).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    assert!(expected == text, "{} is out of date (PRUNECTL_BLESS=1 rewrites it); now:\n{text}", path.display());
}

#[test]
fn fixtures_give_their_plans_and_their_mistakes() {
    let dir = root().join("tests/recipes");
    for path in recipes_below(&dir.join("ok")) {
        let c = run(&path, &Twelve);
        match &c.result {
            Ok(plan) => expect_file(&path.with_extension("plan"), &format!("{plan:#?}\n")),
            Err(d) => panic!("{}:\n{}", path.display(), rendered(d, &c)),
        }
    }
    for path in recipes_below(&dir.join("err")) {
        let c = run(&path, &Twelve);
        match &c.result {
            Ok(_) => panic!("{} has no mistake", path.display()),
            Err(d) => {
                assert!(d.iter().any(|d| d.severity == Severity::Error));
                expect_file(&path.with_extension("stderr"), &rendered(d, &c));
            }
        }
    }
}

/// Compiles an example of a page with the real catalogue.
fn checks(example: &str) {
    let text = prunectl_recipe::explain::whole(example);
    // The model of twelve layers is dense.
    let facts: &dyn ModelFacts = if text.contains(".experts") { &() } else { &Twelve };
    let c = compile(&text, "example.prune", &[], &Disk, &prunectl_prune::catalogue(), facts);
    if let Err(d) = &c.result {
        panic!("{example}\n{}", rendered(d, &c));
    }
}

/// `prunectl explain X` of whatever scores, prunes or quantises shows X at work.
#[test]
fn every_criterion_and_quantiser_has_an_example_that_checks() {
    let rows = prunectl_prune::CRITERIA.iter().map(|e| &e.spec);
    for spec in rows.chain(prunectl_prune::QUANTIZERS.iter().map(|e| &e.spec)) {
        let page = prunectl_recipe::reference::method_page(spec);
        let examples = prunectl_recipe::reference::examples(&page);
        assert!(examples.iter().any(|e| e.contains(&format!("{}(", spec.name))), "the page of {} has no example", spec.name);
        examples.iter().for_each(|example| checks(example));
    }
}

#[test]
fn the_language_reference_is_up_to_date_and_its_examples_compile() {
    let catalogue = prunectl_prune::catalogue();
    let page = prunectl_recipe::reference::reference(&catalogue);
    for example in prunectl_recipe::reference::examples(&page) {
        checks(&example);
    }
    expect_file(&root().join("docs/language.md"), &page);
}
