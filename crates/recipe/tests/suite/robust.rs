//! Whatever the bytes: no panic, no long wait, and one typo costs one statement.

use std::time::Instant;

use proptest::prelude::*;

use crate::common::{PRELUDE, codes, compiled};

#[test]
fn deep_nesting_is_refused_at_once() {
    for open in ["(", "[", "{", "f(", "repeat i in 1..=2 {"] {
        let text = format!("{PRELUDE}let x = {}", open.repeat(100_000));
        let start = Instant::now();
        assert_eq!(codes(&text), ["P0003"]);
        assert!(start.elapsed().as_millis() < 500, "{open}: {:?}", start.elapsed());
    }
}

#[test]
fn long_operator_chains_are_refused_not_overflowed() {
    for op in ["-", "not "] {
        assert_eq!(codes(&format!("{PRELUDE}let x = {}1", op.repeat(100_000))), ["P0003"]);
    }
    for op in [" + 1", ".a", "[0]", "()", " then 1", " each", " | 1"] {
        assert_eq!(codes(&format!("{PRELUDE}let x = 1{}", op.repeat(100_000))), ["P0003"], "{op}");
    }
}

/// Time that this thread really computed: tests run beside each other, and beside other work. `None` where the system does not tell.
fn cpu_ns() -> Option<u64> {
    std::fs::read_to_string("/proc/thread-self/schedstat").ok()?.split(' ').next()?.parse().ok()
}

#[test]
fn a_megabyte_is_parsed_at_once() {
    let line = "prune m.layers[*].attention.heads by 1% using magnitude() { scope = global }\n";
    let text = format!("{PRELUDE}{}", line.repeat(1_000_000 / line.len()));
    assert!(compiled(&text).result.is_ok());
    let run = || {
        let (start, cpu) = (Instant::now(), cpu_ns());
        let (_, errors) = prunectl_recipe::lower::parse(&text, 0);
        assert!(errors.is_empty());
        match (cpu, cpu_ns()) {
            (Some(a), Some(b)) => u128::from((b - a) / 1_000_000),
            _ => start.elapsed().as_millis(),
        }
    };
    let best = (0..3).map(|_| run()).min().unwrap();
    println!("{} bytes parsed in {best} ms", text.len());
    assert!(best < 1000 || cfg!(debug_assertions), "{best} ms");
}

#[test]
fn a_line_of_a_megabyte_is_one_clear_message() {
    let text = format!("{PRELUDE}let x = \"{}\nlet y = zz\n", "a".repeat(1_000_000));
    let c = compiled(&text);
    let shown = prunectl_recipe::render::render(&c.result.unwrap_err(), &c.sources, false);
    assert!(shown.len() < 2000 && shown.contains("P0004") && shown.contains("zz"), "{}", shown.len());
}

#[test]
fn doubling_lets_and_strings_end() {
    let mut text = format!("{PRELUDE}let a0 = \"x\"\n");
    for i in 1..200 {
        text.push_str(&format!("let a{i} = \"{{a{}}}{{a{}}}\"\n", i - 1, i - 1));
    }
    text.push_str("save m to a199\n");
    assert!(codes(&text).contains(&"P0508"));
}

#[test]
fn nested_loops_are_bounded() {
    let text = format!(
        "{PRELUDE}{}eval accuracy() of m on d.test as acc{}",
        "repeat i in 1..=9000 { ".to_string() + "repeat j in 1..=9000 { ",
        " }".repeat(2)
    );
    assert!(codes(&text).contains(&"P0508"));
}

#[test]
fn one_typo_costs_one_statement() {
    let good = "eval accuracy() of m on d.test as acc\nprune m.layers[*].attention.head by 40% using magnitude()\nexpect acc >= nothing\n";
    for typo in [
        "let a = (1 + \n",
        "prun x by 1% using y()\n",
        "let = 3\n",
        "eval accuracy( of m on d.test as zzz\n",
        "train m on d.train for 3 epochs {\n",
        "let b = [1, 2\n",
        "let q = \"open\n",
        "§\n",
        "let as = 3\n",
        "prune m.layers[*] by 10% using\n",
    ] {
        let text = format!("{PRELUDE}{typo}{good}");
        let found = codes(&text);
        assert_eq!(found.len(), 3, "{typo}: {found:?}");
        assert_eq!(&found[1..], ["P0207", "P0101"], "{typo}: {found:?}");
    }
}

#[test]
fn a_typo_inside_a_loop_costs_one_statement_of_it() {
    let text = format!(
        "{PRELUDE}repeat i in 1..=3 {{\n    let a = f(x\n    eval accuracy() of m on d.test as acc\n    prune m.layers[*].attention.head by 40% using magnitude()\n}}\nexpect acc >= 1\n"
    );
    assert_eq!(codes(&text), ["P0003", "P0207"]);
    let text = format!(
        "{PRELUDE}train m on d.train for 3 epochs {{\n    optimizer = adamw(lr = 1e-4\n    prune m.layers[*].attention.head by 40% using magnitude()\n}}\n"
    );
    assert!(codes(&text).contains(&"P0207"), "{:?}", codes(&text));
}

#[test]
fn what_a_broken_statement_defines_is_not_reported_again() {
    assert_eq!(
        codes(&format!("{PRELUDE}let probe = d.train.sample(\nprune m.layers[*].attention.heads by 40% using loss_delta(on = probe)\n")),
        ["P0003"]
    );
    assert_eq!(codes(&format!("{PRELUDE}eval accuracy() of mm on d.test as acc\nexpect acc >= 80%\n")), ["P0101"]);
}

const WORDS: &[&str] = &[
    "edition",
    "2026",
    "model",
    "m",
    "=",
    "builtin",
    "(",
    ")",
    "\"tiny-bert\"",
    "data",
    "d",
    "prune",
    "by",
    "using",
    "[",
    "]",
    "{",
    "}",
    "*",
    ".",
    "..",
    "..=",
    "->",
    "40%",
    "heads",
    "layers",
    "attention",
    "train",
    "for",
    "3",
    "epochs",
    "let",
    "x",
    ",",
    "|",
    "except",
    "then",
    "cubic",
    "each",
    "of",
    "repeat",
    "in",
    "sweep",
    "over",
    "as",
    "eval",
    "accuracy",
    "on",
    "expect",
    "<=",
    "-",
    "not",
    "save",
    "to",
    "\n",
    "2:4",
    "frozen",
    "\"{x}\"",
    "use",
    "param",
    ":",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 64 } else { 1500 }))]

    #[test]
    fn random_text_never_panics(text in "\\PC*") {
        let c = compiled(&text);
        if let Err(d) = &c.result {
            prunectl_recipe::render::render(d, &c.sources, true);
        }
        let _ = prunectl_recipe::format::format(&text);
    }

    #[test]
    fn random_tokens_never_panic(tokens in proptest::collection::vec(proptest::sample::select(WORDS), 0..80)) {
        let text = format!("{PRELUDE}{}", tokens.join(" "));
        let c = compiled(&text);
        if let Err(d) = &c.result {
            prunectl_recipe::render::render(d, &c.sources, false);
        }
        if let Ok(once) = prunectl_recipe::format::format(&text) {
            prop_assert_eq!(prunectl_recipe::format::format(&once).unwrap(), once);
        }
    }
}
