//! `fmt` is stable and keeps what is said.

use prunectl_recipe::format::format;

use crate::shipped::shipped;

#[test]
fn shipped_recipes_are_formatted() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (name, text) in shipped() {
        let out = format(&text).unwrap();
        assert_eq!(format(&out).unwrap(), out, "{name} changes twice");
        if std::env::var_os("PRUNECTL_BLESS").is_some() {
            std::fs::write(root.join(&name), &out).unwrap();
        } else {
            assert_eq!(out, text, "{name} is not formatted (PRUNECTL_BLESS=1 rewrites it)");
        }
    }
}

#[test]
fn blanks_are_its_own_and_words_are_the_authors() {
    let text = "edition   2026\nmodel m=builtin( \"tiny-bert\" ) # a\ndata tales =builtin(\"tales\")# b\n\n\n\nprune m . layers[ 1 .. -1 ].{ attention.heads,mlp.neurons }\nby 50 %each\nusing magnitude( norm=l1 ){at_least=25%\nscope = global  align=2 }\ncompact m";
    let want = "edition 2026\nmodel m     = builtin(\"tiny-bert\")  # a\ndata  tales = builtin(\"tales\")      # b\n\nprune m.layers[1..-1].{attention.heads, mlp.neurons}\n    by 50% each\n    using magnitude(norm = l1) { at_least = 25%\n    scope = global  align = 2 }\ncompact m\n";
    assert_eq!(format(text).unwrap(), want);
}

#[test]
fn a_broken_text_is_refused_with_its_mistakes() {
    assert_eq!(format("edition 2026\nprune prune\n").unwrap_err().len(), 1);
}
