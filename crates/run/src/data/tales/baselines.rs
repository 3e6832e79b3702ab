//! What models without any structure make of the tales: the floor that `assets/README.md` states beside the built-in models.
//! `cargo test --release -p prunectl-run baselines -- --nocapture` prints the figures.

use std::collections::HashMap;
use std::str::FromStr;

use tokenizers::Tokenizer;

use super::Split;
use super::vocabulary::{Layout, tokenizer_json};

/// Words of a tale, in lower case, without punctuation.
fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase)
}

/// Naive Bayes over words with add-one smoothing, fitted on the training tales, on the validation tales.
#[test]
fn single_words_hardly_tell_the_label() {
    let mut counts: HashMap<String, [f64; 2]> = HashMap::new();
    let mut totals = [0.0f64; 2];
    let mut tales = [0.0f64; 2];
    for tale in Split::Train.tales() {
        let label = tale.label as usize;
        tales[label] += 1.0;
        for word in words(&tale.text) {
            counts.entry(word).or_default()[label] += 1.0;
            totals[label] += 1.0;
        }
    }
    let vocabulary = counts.len() as f64;
    let log_odds = |word: &str| {
        let seen = counts.get(word).copied().unwrap_or_default();
        ((seen[1] + 1.0) / (totals[1] + vocabulary)).ln() - ((seen[0] + 1.0) / (totals[0] + vocabulary)).ln()
    };
    let prior = (tales[1] / tales[0]).ln();
    let (mut right, mut happy) = (0usize, 0usize);
    for tale in Split::Validation.tales() {
        let odds = prior + words(&tale.text).map(|w| log_odds(&w)).sum::<f64>();
        right += usize::from(u32::from(odds > 0.0) == tale.label);
        happy += usize::from(tale.label == 1);
    }
    let all = Split::Validation.size();
    let percent = |n: usize| 100.0 * n as f64 / all as f64;
    let (majority, bayes) = (percent(happy.max(all - happy)), percent(right));
    println!("validation accuracy: majority class {majority:.2} %, unigram naive Bayes {bayes:.2} %");
    assert!(bayes < 75.0, "words alone give {bayes:.2} %: the label needs no structure");
}

/// Perplexity of the distribution of single tokens, fitted on the training tales with add-one smoothing.
#[test]
fn single_tokens_hardly_foretell_the_text() {
    let tokenizer = Tokenizer::from_str(&tokenizer_json(Layout::Llama).to_string()).expect("a tokenizer");
    let ids = |text: &str| tokenizer.encode_fast(text, false).expect("tokens").get_ids().to_vec();
    let mut counts = vec![1.0f64; tokenizer.get_vocab_size(true)];
    for tale in Split::Train.tales().take(8_192) {
        for id in ids(&tale.text) {
            counts[id as usize] += 1.0;
        }
    }
    let total: f64 = counts.iter().sum();
    let (mut nll, mut tokens) = (0.0, 0usize);
    for tale in Split::Validation.tales() {
        for id in ids(&tale.text) {
            nll -= (counts[id as usize] / total).ln();
            tokens += 1;
        }
    }
    let perplexity = (nll / tokens as f64).exp();
    println!("validation perplexity of single tokens: {perplexity:.2} over {tokens} tokens");
    assert!(perplexity > 20.0, "single tokens give {perplexity:.2}: the text asks nothing of a language model");
}
