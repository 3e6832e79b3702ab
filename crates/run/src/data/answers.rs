//! Documents as questions about contexts, in windows: SQuAD and what looks like it.

use prunectl_prune::{Asked, Window};
use rayon::prelude::*;

use super::document::{Answer, Document};
use super::error::{DataError, Place};
use super::select::{Dataset, RowKind, RowRef};
use crate::tokenizer::Tokenizer;

/// How a context that is too long is cut into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Tokens of a window at most, question and special tokens included.
    pub length: usize,
    /// Tokens of the context that neighbours share.
    pub stride: usize,
}

impl Windows {
    /// As BERT's authors had them (Devlin et al. 2018), for a model that takes so many tokens.
    pub(super) fn usual(longest: usize) -> Self {
        let length = longest.min(384);
        Self { length, stride: 128.min(length / 3) }
    }
}

/// The question, the context and the right answers of a row.
fn parts<'d>(document: &'d Document, place: &dyn Fn() -> Place) -> Result<(&'d str, &'d str, &'d [Answer]), DataError> {
    match (&document.pair, &document.answers) {
        (Some(context), Some(answers)) => Ok((document.text.trim_start(), context, answers)),
        (pair, _) => Err(DataError::Mixed {
            what: place().to_string(),
            found: if pair.is_none() { "one text" } else { "a pair of texts without answers" }.into(),
            expected: "a question, a context and answers: the columns question, context and answers, or `text`, `text_pair` and `answers` \
                       in the data statement"
                .into(),
        }),
    }
}

/// The bytes of the context that an answer covers; an error where they are not its text.
fn stretch(context: &str, answer: &Answer, place: &dyn Fn() -> Place) -> Result<(usize, usize), DataError> {
    let from = context.char_indices().map(|(at, _)| at).chain(std::iter::once(context.len())).nth(answer.start);
    let found = from.and_then(|from| Some((from, context.get(from..)?))).filter(|(_, rest)| rest.starts_with(&answer.text));
    match found {
        Some((from, _)) => Ok((from, from + answer.text.len())),
        None => Err(DataError::LabelKind {
            place: place(),
            found: format!("the answer `{}` at character {}", answer.text, answer.start),
            expected: "the context to have these very characters there".into(),
        }),
    }
}

/// First and last token of the stretch, where all of it lies in the window.
fn tokens(window: &Window, (from, to): (usize, usize)) -> Option<(usize, usize)> {
    let inside = || window.places.iter().enumerate().filter_map(|(i, p)| p.map(|p| (i, p)));
    let (first, last) = (inside().next()?.1.0, inside().next_back()?.1.1);
    if from < first || to > last {
        return None;
    }
    let start = inside().take_while(|(_, (begin, _))| *begin <= from).last()?.0;
    let end = inside().find(|(_, (_, end))| *end >= to)?.0;
    Some((start, end.max(start)))
}

/// One window of a row to learn from: the first that holds the first answer, with its tokens; where there is no answer, or none of the
/// windows holds it, the first window and its first token.
pub(super) fn to_learn(
    tokenizer: &Tokenizer,
    document: &Document,
    windows: Windows,
    place: &dyn Fn() -> Place,
) -> Result<(Window, (usize, usize), bool), DataError> {
    let (question, context, answers) = parts(document, place)?;
    let all = tokenizer.windows(question, context, windows.length, windows.stride)?;
    let cut = all.len() > 1;
    if let Some(answer) = answers.first() {
        let bytes = stretch(context, answer, place)?;
        if let Some((window, at)) = all.iter().find_map(|w| Some((w, tokens(w, bytes)?))) {
            return Ok((window.clone(), at, cut));
        }
    }
    let first = all.into_iter().next().unwrap_or_default();
    Ok((first, (0, 0), cut))
}

impl Dataset {
    /// Every row as a question about its context.
    pub fn asked(&self, tokenizer: Option<&Tokenizer>, windows: Windows, vocabulary: usize) -> Result<Vec<Asked>, DataError> {
        let what = self.describe();
        let tokenizer = tokenizer.ok_or_else(|| DataError::NoTokenizer { what: what.clone() })?;
        tokenizer.fits(vocabulary)?;
        let selection = self.select(Some(tokenizer))?;
        if selection.kind() != RowKind::Documents {
            return Err(DataError::Mixed { what, found: "rows of tokens".into(), expected: "questions and contexts".into() });
        }
        let rows: Vec<usize> = (0..selection.rows.len()).collect();
        // All are made before the first error is looked at: which one is reported must not depend on which thread was first.
        let made: Vec<Result<Asked, DataError>> = rows
            .into_par_iter()
            .map(|at| {
                let place = || selection.place(at);
                let document = match selection.rows.get(at) {
                    Some(RowRef::Stored { table, row }) => {
                        selection.table(*table).map(|t| t.document(*row as usize)).transpose()?.flatten()
                    }
                    _ => None,
                };
                let document =
                    document.ok_or_else(|| DataError::Empty { what: place().to_string(), hint: "there is no document".into() })?;
                let (question, context, answers) = parts(&document, &place)?;
                Ok(Asked {
                    windows: tokenizer.windows(question, context, windows.length, windows.stride)?,
                    context: context.to_owned(),
                    answers: answers.iter().map(|a| a.text.clone()).collect(),
                })
            })
            .collect();
        made.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::tokenizer;

    fn place() -> Place {
        Place { file: "q.jsonl".into(), line: 3 }
    }

    fn document(answers: &[(&str, usize)]) -> Document {
        let answers = answers.iter().map(|(text, start)| Answer { text: (*text).to_owned(), start: *start }).collect();
        Document { text: " a b".into(), pair: Some("c d ä e f g h".into()), answers: Some(answers), ..Document::default() }
    }

    #[test]
    fn a_long_context_is_cut_into_windows_that_overlap() {
        // [CLS] a b [SEP] … [SEP]: five tokens of eight are taken, three are left for the context, of which one is shared.
        let windows = tokenizer().windows("a b", "c d ä e f g h", 8, 1).unwrap();
        let text = "c d ä e f g h";
        let words = |w: &Window| w.places.iter().flatten().map(|(a, b)| &text[*a..*b]).collect::<Vec<_>>();
        assert_eq!(windows.iter().map(words).collect::<Vec<_>>(), [vec!["c", "d", "ä"], vec!["ä", "e", "f"], vec!["f", "g", "h"]]);
        let many = tokenizer().windows("a", &"b c d e ".repeat(20), 8, 2).unwrap();
        assert_eq!((many.len(), many.iter().map(|w| w.places.iter().flatten().count()).sum::<usize>()), (39, 39 * 4));
        assert!(windows.iter().all(|w| w.ids.len() == 8 && w.ids[..4] == [2, 5, 6, 3] && w.types.as_ref().unwrap()[4..] == [1; 4]));
        assert!(tokenizer().windows("a b", "c", 8, 3).unwrap_err().to_string().contains("no room"));
    }

    #[test]
    fn the_window_that_holds_the_answer_is_learnt_from() {
        let windows = Windows { length: 8, stride: 1 };
        let learn = |answers: &[(&str, usize)]| to_learn(&tokenizer(), &document(answers), windows, &place);
        // Characters, not bytes: `e f` begins at character 6, byte 7.
        let (window, at, cut) = learn(&[("e f", 6)]).unwrap();
        assert_eq!((at, cut), ((5, 6), true));
        assert_eq!(window.places[5], Some((7, 8)));
        // No window holds `d ä e f` whole, and no answer at all: the first token.
        assert_eq!(learn(&[("d ä e f", 2)]).unwrap().1, (0, 0));
        assert_eq!(learn(&[]).unwrap().1, (0, 0));
        let wrong = learn(&[("e f", 5)]).unwrap_err().to_string();
        assert!(wrong.contains("q.jsonl:3") && wrong.contains("at character 5"), "{wrong}");
        let none = Document { answers: None, ..document(&[]) };
        assert!(to_learn(&tokenizer(), &none, windows, &place).unwrap_err().to_string().contains("without answers"));
    }
}
