//! The models inside the program: `builtin("tiny-bert")`, `builtin("tiny-llama")`.
//!
//! Their files lie in `assets/`, with what they score and how they were made (`assets/README.md`); nothing here knows what is in them.
//! The built-in data is made, not stored: [`crate::data::tales`].

/// A file of a model folder: its name and its bytes.
pub type ModelFile = (&'static str, &'static [u8]);

/// One file of `assets/`, under its own name.
macro_rules! asset {
    ($folder:literal, $file:literal) => {
        ($file, include_bytes!(concat!("../../../assets/", $folder, "/", $file)) as &[u8])
    };
}

const MODELS: &[(&str, &[ModelFile])] = &[
    (
        "tiny-bert",
        &[asset!("tiny-bert", "config.json"), asset!("tiny-bert", "tokenizer.json"), asset!("tiny-bert", "tokenizer_config.json")],
    ),
    (
        "tiny-llama",
        &[
            asset!("tiny-llama", "config.json"),
            asset!("tiny-llama", "generation_config.json"),
            asset!("tiny-llama", "tokenizer.json"),
            asset!("tiny-llama", "tokenizer_config.json"),
        ],
    ),
];

/// The files of a built-in model, as they would lie in its folder; `None` if there is no model of this name.
pub fn model_files(name: &str) -> Option<&'static [ModelFile]> {
    MODELS.iter().find(|(known, _)| *known == name).map(|(_, files)| *files)
}

/// One file of a built-in model.
pub fn model_file(name: &str, file: &str) -> Option<&'static [u8]> {
    model_files(name)?.iter().find(|(known, _)| *known == file).map(|(_, bytes)| *bytes)
}

/// The names of the built-in models.
pub fn model_names() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    #[test]
    fn every_model_has_a_config_and_a_tokenizer_that_fits_it() {
        for name in model_names() {
            let config: serde_json::Value =
                serde_json::from_slice(model_file(name, "config.json").expect("a config")).expect("config.json is JSON");
            let text = std::str::from_utf8(model_file(name, "tokenizer.json").expect("a tokenizer")).expect("UTF-8");
            let tokenizer = tokenizers::Tokenizer::from_str(text).expect("tokenizer.json");
            assert_eq!(config["vocab_size"].as_u64(), Some(tokenizer.get_vocab_size(true) as u64), "{name}");
        }
    }

    #[test]
    fn an_unknown_model_is_none() {
        assert!(model_files("tiny-gpt").is_none());
    }
}
