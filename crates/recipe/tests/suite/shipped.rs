//! The recipes that ship. That each of them passes `check` is a test of the program, which has the whole catalogue.

use crate::common::{Files, Twelve, catalogue};
use prunectl_recipe::compile;
use prunectl_recipe::plan::StepKind;

pub fn shipped() -> Vec<(String, String)> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let mut out = Vec::new();
    for dir in [root.clone(), root.join("common")] {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "prune") {
                let name = path.strip_prefix(root.parent().unwrap()).unwrap().display().to_string();
                out.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    out.sort();
    out
}

#[test]
fn the_first_recipe_has_its_steps_in_order() {
    let (name, text) = shipped().into_iter().find(|(n, _)| n.ends_with("bert_heads.prune")).unwrap();
    let plan = compile(&text, &name, &[], &Files, &catalogue(), &Twelve).result.unwrap();
    let names: Vec<&str> = plan.steps.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["bert", "before", "prune-1", "compact-1", "after", "expect-1", "save-1"]);
    assert!(matches!(&plan.steps[6].kind, StepKind::Save { to, .. } if to == "out/bert-heads"));
    assert_eq!(plan.name, "bert_heads");
}
