//! Documents as questions: a context and the continuations that a model is asked about, in tokens.
//!
//! Context and continuation are tokenised together and cut where the context's own tokens end, as lm-evaluation-harness does: blanks at
//! the end of the context belong to the continuation, and the tokenizer's special tokens stand in front of the context.

use prunectl_prune::{Continuation, Question};
use rayon::prelude::*;

use super::document::{Document, Label};
use super::error::DataError;
use super::select::{Dataset, RowKind, RowRef};
use crate::tokenizer::Tokenizer;

/// What a question is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// `choices` of the data statement.
    Choices,
    /// The text's last word.
    LastWord,
}

/// What stands between a context and an option.
const DELIMITER: &str = " ";

impl Dataset {
    /// Every row as a question. Rows longer than `max_length` tokens lose their beginning; how many is told.
    pub fn questions(
        &self,
        tokenizer: Option<&Tokenizer>,
        ask: Ask,
        max_length: usize,
        vocabulary: usize,
    ) -> Result<(Vec<Question>, Option<String>), DataError> {
        let what = self.describe();
        let tokenizer = tokenizer.ok_or_else(|| DataError::NoTokenizer { what: what.clone() })?;
        tokenizer.fits(vocabulary)?;
        let selection = self.select(Some(tokenizer))?;
        if selection.kind() != RowKind::Documents {
            return Err(DataError::Mixed { what, found: "rows of tokens".into(), expected: "documents".into() });
        }
        let rows: Vec<usize> = (0..selection.rows.len()).collect();
        // All are made before the first error is looked at: which one is reported must not depend on which thread was first.
        let made: Vec<Result<(Question, bool), DataError>> = rows
            .into_par_iter()
            .map(|at| {
                let place = || selection.place(at);
                let document = match selection.rows.get(at) {
                    Some(RowRef::Stored { table, row }) => match selection.table(*table) {
                        Some(table) => table.document(*row as usize)?,
                        None => None,
                    },
                    _ => None,
                };
                let document =
                    document.ok_or_else(|| DataError::Empty { what: place().to_string(), hint: "there is no document".into() })?;
                let names: &[String] = match selection.rows.get(at) {
                    Some(RowRef::Stored { table, .. }) => selection.table(*table).map_or(&[], |t| &t.label_names),
                    _ => &[],
                };
                // Each option as the context that it is asked behind and what is scored.
                let (options, answer): (Vec<(String, String)>, usize) = match ask {
                    Ask::LastWord => {
                        let i = document.text.rfind(' ').filter(|i| *i > 0).ok_or_else(|| DataError::Empty {
                            what: place().to_string(),
                            hint: "its text has no word behind a blank".into(),
                        })?;
                        let (context, word) = document.text.split_at(i);
                        (vec![(context.to_owned(), word.to_owned())], 0)
                    }
                    Ask::Choices => {
                        if document.choices.len() < 2 {
                            let expected =
                                "two at least: say which columns hold them (`choices = [\"…\", \"…\"]`, or `[\"…\"]` for one with a list), or which benchmark's they are (`form = mmlu`)";
                            let found = format!("{} options", document.choices.len());
                            return Err(DataError::Mixed { what: place().to_string(), found, expected: expected.into() });
                        }
                        let answer = answer(&document, names).ok_or_else(|| DataError::LabelKind {
                            place: place(),
                            found: document.label.as_ref().map_or_else(|| "none".into(), ToString::to_string),
                            expected: format!("the right option: 0 to {}, its letter, or its text", document.choices.len() - 1),
                        })?;
                        let asked = |choice: &String| match &document.ending {
                            Some(ending) => (choice.clone(), format!("{DELIMITER}{ending}")),
                            None => (document.text.clone(), format!("{DELIMITER}{choice}")),
                        };
                        (document.choices.iter().map(asked).collect(), answer)
                    }
                };
                let mut cut = false;
                let mut made = Vec::with_capacity(options.len());
                for (i, (context, option)) in options.iter().enumerate() {
                    let shown = document.choices.get(i).unwrap_or(option);
                    let (mut ids, mut from) = tokens(tokenizer, context, option)?;
                    if ids.len() <= from {
                        let found = format!("option {i} has no token of its own");
                        return Err(DataError::Mixed { what: place().to_string(), found, expected: "text".into() });
                    }
                    // One token more than the model takes: nothing is predicted from the last.
                    let over = ids.len().saturating_sub(max_length.saturating_add(1));
                    if over > 0 {
                        ids.drain(..over);
                        from = from.saturating_sub(over).max(1);
                        cut = true;
                    }
                    made.push(Continuation { ids, from, characters: shown.chars().count(), bytes: shown.len() });
                }
                Ok((Question { options: made, answer, partial: document.ending.is_some() }, cut))
            })
            .collect();
        let mut out = Vec::with_capacity(made.len());
        let mut cut = 0;
        for one in made {
            let (question, was_cut) = one?;
            cut += usize::from(was_cut);
            out.push(question);
        }
        let note =
            (cut > 0).then(|| format!("{what}: {cut} of {} questions were over {max_length} tokens and lost their beginning", out.len()));
        Ok((out, note))
    }
}

/// Context and continuation in tokens, and the first token of the continuation.
fn tokens(tokenizer: &Tokenizer, context: &str, continuation: &str) -> Result<(Vec<u32>, usize), DataError> {
    if context.is_empty() {
        let ids = tokenizer.encode_plain(continuation)?;
        let Some(start) = tokenizer.start() else { return Ok((ids, 1)) };
        if ids.first() == Some(&start) {
            return Ok((ids, 1));
        }
        return Ok((std::iter::once(start).chain(ids).collect(), 1));
    }
    let kept = context.trim_end();
    let blanks = context.get(kept.len()..).unwrap_or_default();
    let prefix = tokenizer.prefix();
    let whole = tokenizer.encode_plain(&format!("{kept}{blanks}{continuation}"))?;
    let from = prefix.len() + tokenizer.encode_plain(kept)?.len();
    let ids: Vec<u32> = prefix.iter().copied().chain(whole).collect();
    Ok((ids, from.max(1)))
}

/// Which option is right: by number from 0, by letter, by its text, by the names in the data statement; the first where no label stands.
fn answer(document: &Document, names: &[String]) -> Option<usize> {
    let n = document.choices.len();
    let within = |i: usize| Some(i).filter(|i| *i < n);
    let by_text = |t: &str| {
        let named = || names.iter().position(|x| x == t);
        let same = || document.choices.iter().position(|c| c == t);
        let letter = || match t.as_bytes() {
            [c @ b'A'..=b'Z'] => within(usize::from(c - b'A')),
            _ => None,
        };
        named().and_then(within).or_else(same).or_else(letter)
    };
    match &document.label {
        None => Some(0),
        Some(Label::Integer(i)) if !names.is_empty() => by_text(&i.to_string()),
        Some(Label::Integer(i)) => usize::try_from(*i).ok().and_then(within),
        Some(Label::Real(_)) => None,
        Some(Label::Text(t)) => by_text(t).or_else(|| t.parse().ok().and_then(within)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::tokenizer;

    #[test]
    fn the_right_option_by_number_letter_and_text() {
        let of = |label: Option<Label>, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            answer(&Document { choices: vec!["yes".into(), "no".into()], label, ..Document::default() }, &names)
        };
        assert_eq!(of(None, &[]), Some(0));
        assert_eq!((of(Some(Label::Integer(1)), &[]), of(Some(Label::Integer(2)), &[])), (Some(1), None));
        assert_eq!((of(Some(Label::Text("B".into())), &[]), of(Some(Label::Text("no".into())), &[])), (Some(1), Some(1)));
        assert_eq!((of(Some(Label::Integer(2)), &["1", "2"]), of(Some(Label::Text("C".into())), &[])), (Some(1), None));
        assert_eq!(of(Some(Label::Text("1".into())), &[]), Some(1));
    }

    #[test]
    fn the_continuation_begins_where_the_contexts_tokens_end() {
        let t = tokenizer();
        // [CLS] in front, as the tokenizer says.
        assert_eq!(tokens(&t, "a b ", " c d").unwrap(), (vec![2, 5, 6, 7, 8], 3));
        // No context, and no BOS either: the first token is context only.
        assert_eq!(tokens(&t, "", "a b").unwrap(), (vec![5, 6], 1));
    }
}
