//! The models inside the program: `builtin("tiny-bert")`, `builtin("tiny-llama")`.
//!
//! Their files lie in `assets/`, with what they score and how they were made (`assets/README.md`); nothing here knows what is in them.
//! The built-in data is made, not stored: [`crate::data::tales`].

use prunectl_model::Task;

/// A file of a model folder: its name and its bytes.
pub type ModelFile = (&'static str, &'static [u8]);

/// One file of `assets/`, under its own name.
macro_rules! asset {
    ($folder:literal, $file:literal) => {
        ($file, include_bytes!(concat!("../../../assets/", $folder, "/", $file)) as &[u8])
    };
}

const TINY_BERT: &[ModelFile] = &[
    asset!("tiny-bert", "config.json"),
    asset!("tiny-bert", "model.safetensors"),
    asset!("tiny-bert", "tokenizer.json"),
    asset!("tiny-bert", "tokenizer_config.json"),
];
/// The same shape and tokenizer, trained to guess hidden words.
const TINY_BERT_WORDS: &[ModelFile] = &[
    asset!("tiny-bert-mlm", "config.json"),
    asset!("tiny-bert-mlm", "model.safetensors"),
    asset!("tiny-bert", "tokenizer.json"),
    asset!("tiny-bert", "tokenizer_config.json"),
];
const TINY_LLAMA: &[ModelFile] = &[
    asset!("tiny-llama", "config.json"),
    asset!("tiny-llama", "generation_config.json"),
    asset!("tiny-llama", "model.safetensors"),
    asset!("tiny-llama", "tokenizer.json"),
    asset!("tiny-llama", "tokenizer_config.json"),
];

/// Name, task and files; the first row of a name is what it means without a task.
const MODELS: &[(&str, Task, &[ModelFile])] = &[
    ("tiny-bert", Task::Classification, TINY_BERT),
    ("tiny-bert", Task::MaskedLm, TINY_BERT_WORDS),
    ("tiny-llama", Task::CausalLm, TINY_LLAMA),
];

/// The files of a built-in model, as they would lie in its folder; `None` if there is no model of this name. A task picks the weights
/// that were trained for it; without one, or where none were, it is the model's first.
pub fn model_files(name: &str, task: Option<Task>) -> Option<&'static [ModelFile]> {
    let mut of_name = MODELS.iter().filter(|(known, ..)| *known == name);
    let first = of_name.clone().next();
    of_name.find(|(_, made_for, _)| Some(*made_for) == task).or(first).map(|(.., files)| *files)
}

/// One file of a built-in model.
pub fn model_file(name: &str, task: Option<Task>, file: &str) -> Option<&'static [u8]> {
    model_files(name, task)?.iter().find(|(known, _)| *known == file).map(|(_, bytes)| *bytes)
}

/// The names of the built-in models.
pub fn model_names() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|(name, ..)| *name).scan("", |last, name| Some((std::mem::replace(last, name) != name).then_some(name))).flatten()
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    #[test]
    fn every_model_has_a_config_and_a_tokenizer_that_fits_it() {
        for (name, task, _) in MODELS {
            let file = |file| model_file(name, Some(*task), file).expect("a file");
            let config: serde_json::Value = serde_json::from_slice(file("config.json")).expect("config.json is JSON");
            let tokenizer = std::str::from_utf8(file("tokenizer.json")).expect("UTF-8");
            let tokenizer = tokenizers::Tokenizer::from_str(tokenizer).expect("tokenizer.json");
            assert_eq!(config["vocab_size"].as_u64(), Some(tokenizer.get_vocab_size(true) as u64), "{name}");
        }
    }

    #[test]
    fn a_task_picks_the_files() {
        let architecture = |task| {
            let config = model_file("tiny-bert", task, "config.json").expect("a config");
            serde_json::from_slice::<serde_json::Value>(config).expect("JSON")["architectures"][0].clone()
        };
        assert_eq!(architecture(None), "BertForSequenceClassification");
        assert_eq!(architecture(Some(Task::MaskedLm)), "BertForMaskedLM");
        assert_eq!(architecture(Some(Task::Encoder)), "BertForSequenceClassification");
        assert_eq!(model_names().collect::<Vec<_>>(), ["tiny-bert", "tiny-llama"]);
        assert!(model_files("tiny-gpt", None).is_none());
    }
}
