//! Data sets by their names on the Hub: GLUE, SQuAD, wikitext, C4 and LAMBADA, with the cards, folders and columns that they have there,
//! fetched by the binary from a server on this machine; and SQuAD's figures beside those of Hugging Face.

use std::path::PathBuf;

use prunectl_testkit::{COMMIT, Faults, Hub, Repo};
use serde_json::Value;

use crate::common::{prunectl, run, stderr, stdout};

fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

fn sets() -> Vec<Repo> {
    let file = |path: &str| std::fs::read(golden(path)).unwrap();
    let card = |configs: &str| format!("---\nlicense: other\nconfigs:\n{configs}---\n# A card\n").into_bytes();
    let config =
        |name: &str, split: &str, path: &str| format!("- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {path}\n");
    let lambada = "{\"text\": \"the boy had a ball and he was happy with his ball\"}\n{\"text\": \"the bear saw the fox\"}\n";
    vec![
        Repo::dataset(
            "nyu-mll/glue",
            vec![
                (
                    "README.md",
                    card(&(config("sst2", "validation", "sst2/validation-*") + &config("mrpc", "validation", "mrpc/validation-*"))),
                ),
                ("sst2/validation-00000-of-00001.parquet", file("sets/sst2.parquet")),
                ("mrpc/validation-00000-of-00001.parquet", file("sets/mrpc.parquet")),
            ],
        ),
        Repo::dataset(
            "rajpurkar/squad",
            vec![
                ("README.md", card(&config("plain_text", "validation", "plain_text/validation-*"))),
                ("plain_text/validation-00000-of-00001.parquet", file("squad/v1.parquet")),
            ],
        ),
        Repo::dataset(
            "Salesforce/wikitext",
            vec![
                ("README.md", card(&config("wikitext-2-raw-v1", "test", "wikitext-2-raw-v1/test-*"))),
                ("wikitext-2-raw-v1/test-00000-of-00001.parquet", file("sets/wikitext.parquet")),
            ],
        ),
        Repo::dataset(
            "allenai/c4",
            vec![
                ("README.md", card(&config("en", "train", "en/c4-train.*.json.gz"))),
                ("en/c4-train.00000-of-01024.json.gz", file("sets/c4-train.00000-of-01024.json.gz")),
                ("en/c4-train.00001-of-01024.json.gz", b"never asked for".to_vec()),
            ],
        ),
        Repo::dataset(
            "EleutherAI/lambada_openai",
            vec![
                (
                    "README.md",
                    card(&(config("default", "test", "data/lambada_test.jsonl") + &config("en", "test", "data/lambada_test_en.jsonl"))),
                ),
                ("data/lambada_test_en.jsonl", lambada.as_bytes().to_vec()),
            ],
        ),
    ]
}

const RECIPE: &str = r#"edition 2026

model bert  = builtin("tiny-bert")
model llama = builtin("tiny-llama")
model qa    = dir("QA")

data sst2    = hf("nyu-mll/glue", config = "sst2")
data mrpc    = hf("nyu-mll/glue", config = "mrpc")
data squad   = hf("rajpurkar/squad")
data wiki    = hf("Salesforce/wikitext", config = "wikitext-2-raw-v1")
data c4      = hf("allenai/c4", files = "en/c4-train.00000-of-01024.json.gz")
data lambada = hf("EleutherAI/lambada_openai", config = "en")

eval accuracy() of bert on sst2.validation as sst2_accuracy
eval f1() of bert on mrpc.validation as mrpc_f1
eval exact_match(length = 40 tokens, stride = 12 tokens) of qa on squad.validation as em
eval answer_f1(length = 40 tokens, stride = 12 tokens) of qa on squad.validation as f1
eval perplexity(window = 32 tokens) of llama on wiki.test as wiki_perplexity
eval perplexity(window = 32 tokens) of llama on c4.train.sample(3, seed = 1) as c4_perplexity
eval last_word() of llama on lambada.test as lambada_accuracy
"#;

#[test]
fn sets_of_the_hub_by_name_from_a_server_and_then_from_the_cache() {
    let hub = Hub::start(sets(), Faults::default());
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.prune"), RECIPE.replace("QA", &golden("squad").display().to_string())).unwrap();
    let metrics = |out: &str, offline: &str| -> Value {
        let done = prunectl(dir.path(), &["run", "a.prune", "--out", out, "-q"])
            .env("HF_ENDPOINT", &hub.endpoint)
            .env("HF_HUB_CACHE", dir.path().join("hub"))
            .env("HF_HUB_OFFLINE", offline)
            .output()
            .unwrap();
        assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
        serde_json::from_slice(&std::fs::read(dir.path().join(out).join("metrics.json")).unwrap()).unwrap()
    };
    let first = metrics("one", "0");
    for (name, examples) in [("sst2_accuracy", 4), ("mrpc_f1", 4), ("em", 40), ("lambada_accuracy", 2)] {
        assert_eq!(first[name]["examples"], examples, "{name}: {}", first[name]);
    }
    let expected: Value = serde_json::from_slice(&std::fs::read(golden("squad/expected.json")).unwrap()).unwrap();
    let near = |name: &str, of: &str| (first[name]["value"].as_f64().unwrap() - expected["v1"][of].as_f64().unwrap()).abs() < 1e-7;
    assert!(near("em", "exact_match") && near("f1", "f1"), "{first}");
    assert!(first["wiki_perplexity"]["value"].as_f64().unwrap() > 1.0 && first["c4_perplexity"]["value"].as_f64().unwrap() > 1.0);
    let asked = hub.log();
    assert!(!asked.iter().any(|l| l.contains("00001-of-01024")), "only what is needed: {asked:?}");
    let lock = std::fs::read_to_string(dir.path().join("one/recipe.lock")).unwrap();
    assert!(lock.contains(&format!("hf:rajpurkar/squad@{COMMIT}/plain_text/validation-00000-of-00001.parquet")), "{lock}");
    // The second time the network is not needed, and the figures are the same.
    assert_eq!(metrics("two", "1"), first);
    assert_eq!(hub.log().len(), asked.len());
}

#[test]
fn questions_without_an_answer_are_scored_as_hugging_faces_are() {
    let dir = tempfile::tempdir().unwrap();
    let (model, data) = (golden("squad").display().to_string(), golden("squad/v2.jsonl").display().to_string());
    let metric = |name: &str| format!("{name}(length = 40 tokens, stride = 12 tokens)");
    let (em, f1) = (metric("exact_match"), metric("answer_f1"));
    let out = run(dir.path(), &["eval", &model, "--data", &data, "--metric", &em, "--metric", &f1, "--metric", "loss", "--json", "-q"]);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    let found: Value = serde_json::from_str(&stdout(&out)).unwrap();
    let expected: Value = serde_json::from_slice(&std::fs::read(golden("squad/expected.json")).unwrap()).unwrap();
    for (name, of) in [("exact_match", "exact_match"), ("answer_f1", "f1")] {
        let (a, b) = (found["metrics"][name]["value"].as_f64().unwrap(), expected["v2"][of].as_f64().unwrap());
        assert!((a - b).abs() < 1e-7, "{name}: {a}, Hugging Face has {b}");
    }
    let protocol = found["metrics"]["answer_f1"]["protocol"].as_str().unwrap();
    assert!(protocol.contains(&format!("{} windows", expected["v2"]["windows"])) && protocol.contains("empty answer"), "{protocol}");
    assert!(found["metrics"]["loss"]["value"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_question_answering_model_is_pruned_trained_and_saved() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = format!(
        "edition 2026\nmodel m = dir(\"{}\")\ndata d = jsonl(\"{}\")\nprune m.layers[*].attention.heads by 25% using loss_delta(on = d) {{ scope = global }}\n\
         train m on d for 3 steps {{ batch = 4  optimizer = adamw(lr = 1e-4)  loss = task() }}\ncompact m\n\
         eval answer_f1(length = 40 tokens, stride = 12 tokens) of m on d as f1\nsave m to \"out/squad\"\n",
        golden("squad").display(),
        golden("squad/v2.jsonl").display()
    );
    std::fs::write(dir.path().join("a.prune"), recipe).unwrap();
    let out = run(dir.path(), &["run", "a.prune", "-q"]);
    assert_eq!((out.status.code(), stdout(&out).trim()), (Some(0), "out/squad"), "{}", stderr(&out));
}

/// Benchmarks of multiple choice in their own columns: `acc` and `acc_norm` of lm-evaluation-harness on the same documents
/// (`tests/golden/make_harness.py`), and the log-likelihood of the right options, which would tell a prompt that is a blank longer.
#[test]
fn multiple_choice_equals_lm_evaluation_harness() {
    let dir = tempfile::tempdir().unwrap();
    let expected: Value = serde_json::from_slice(&std::fs::read(golden("harness/expected.json")).unwrap()).unwrap();
    let model = golden("harness").display().to_string();
    for form in ["arc", "blimp", "hellaswag", "mmlu", "piqa", "winogrande"] {
        let data = format!("jsonl(\"{}\", form = {form})", golden(&format!("harness/{form}.jsonl")).display());
        let metrics = ["--metric", "choice", "--metric", "choice(length = characters)"];
        let out = run(dir.path(), &[&["eval", &model, "--data", &data], &metrics[..], &["--json", "-q"]].concat());
        assert_eq!(out.status.code(), Some(0), "{form}: {}", stderr(&out));
        let found: Value = serde_json::from_str(&stdout(&out)).unwrap();
        let (acc, norm) = (&found["metrics"]["choice"], &found["metrics"]["choice_2"]);
        println!(
            "{form}: acc {}, acc_norm {}, log-likelihood {}; the harness: {}",
            acc["value"], norm["value"], acc["details"]["log-likelihood"], expected[form]
        );
        assert_eq!((&acc["value"], &norm["value"]), (&expected[form]["acc"], &expected[form]["acc_norm"]), "{form}");
        let (a, b) = (acc["details"]["log-likelihood"].as_f64().unwrap(), expected[form]["log_likelihood"].as_f64().unwrap());
        // f32 in another order.
        assert!((a / b - 1.0).abs() < 1e-5, "{form}: {a}, the harness has {b}");
        assert_eq!(acc["examples"], 40);
        assert_eq!(acc["protocol"].as_str().unwrap().contains("partial evaluation"), form == "winogrande");
    }
    // A set without answers, and columns of another form.
    let data = format!("jsonl(\"{}\", form = winogrande)", golden("harness/mmlu.jsonl").display());
    let out = run(dir.path(), &["eval", &model, "--data", &data, "--metric", "choice", "-q"]);
    assert_eq!(out.status.code(), Some(2), "{}", stderr(&out));
    assert!(stderr(&out).contains("mmlu.jsonl") && stderr(&out).contains("line 1: no field `sentence`"), "{}", stderr(&out));
}
