//! The reference's own examples compile without a mistake or warning.

use prunectl_recipe::explain::whole;
use prunectl_recipe::reference::{examples, reference};
use prunectl_recipe::{compile, render};

use crate::common::{Files, Twelve, catalogue};

#[test]
fn its_examples_compile() {
    let catalogue = catalogue();
    let page = reference(&catalogue);
    let all = examples(&page);
    assert!(all.len() >= 8, "{}", all.len());
    for e in all {
        let c = compile(&whole(&e), "recipe.prune", &[], &Files, &catalogue, &Twelve);
        match &c.result {
            Ok(plan) => assert!(plan.warnings.is_empty(), "{e}\n{}", render::render(&plan.warnings, &c.sources, false)),
            Err(d) => panic!("{e}\n{}", render::render(d, &c.sources, false)),
        }
    }
}
