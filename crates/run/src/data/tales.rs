//! `builtin("tales")`: a seeded generator of short stories, each with a label (does the hero end happy?).
//!
//! Everything is drawn with integer arithmetic from ChaCha8, one stream per story, so a story depends on nothing but its
//! split and its index: any platform, order or number of threads gives the same bytes. No story is stored anywhere.
//!
//! The label needs several skills at once: which sentences speak of the hero and which of the animal beside them (names, pronouns,
//! "the one with the kite"), which came last, negation, counting, and the outcome of a contest. The text itself asks a language
//! model for agreement, counting and recall over distance.
#[cfg(test)]
mod baselines;
mod story;
pub mod vocabulary;
mod words;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// The names of the classes, by label.
pub const LABELS: [&str; 2] = ["sad", "happy"];

/// Changing this changes every story, and makes the built-in models and their figures obsolete.
const SEED: [u8; 32] = *b"prunectl tales, edition 2026 (1)";

/// Casts and places are dealt to the splits in shares of an eighth.
const SHARES: u32 = 8;

/// One story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tale {
    /// A paragraph of English sentences.
    pub text: String,
    /// Index into [`LABELS`].
    pub label: u32,
}

/// A part of the data. Splits share no combination of cast and place, hence no story.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    Train,
    Validation,
    Test,
}

impl Split {
    pub const ALL: [Split; 3] = [Split::Train, Split::Validation, Split::Test];

    /// The name that a recipe uses.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Validation => "validation",
            Split::Test => "test",
        }
    }

    /// The split of this name, if there is one.
    pub fn from_name(name: &str) -> Option<Split> {
        Split::ALL.into_iter().find(|split| split.name() == name)
    }

    /// Number of stories.
    pub fn size(self) -> usize {
        match self {
            Split::Train => 40_000,
            Split::Validation | Split::Test => 4_096,
        }
    }

    /// The story at `index`; `None` past the end.
    pub fn tale(self, index: usize) -> Option<Tale> {
        (index < self.size()).then(|| story::tell(&mut Dice::new(self, index as u64), self))
    }

    /// All stories, made one by one as they are asked for.
    pub fn tales(self) -> impl ExactSizeIterator<Item = Tale> + Clone {
        (0..self.size()).map(move |index| story::tell(&mut Dice::new(self, index as u64), self))
    }

    /// Whether a cast and place with this fingerprint belong here.
    fn owns(self, fingerprint: u32) -> bool {
        let share = fingerprint % SHARES;
        match self {
            Split::Train => share > 1,
            Split::Validation => share == 0,
            Split::Test => share == 1,
        }
    }
}

/// The integer draws of one story.
struct Dice(ChaCha8Rng);

impl Dice {
    fn new(split: Split, index: u64) -> Dice {
        let mut rng = ChaCha8Rng::from_seed(SEED);
        rng.set_stream((split as u64) << 32 | index);
        Dice(rng)
    }

    /// Uniform in `0..n` (multiply-shift: the bias of n / 2³² does not matter here); 0 when `n` is 0.
    fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.0.next_u32()) * u64::from(n)) >> 32) as u32
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 1
    }

    /// True in `percent` of 100 draws.
    fn chance(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }

    /// One of a table of words; tables are never empty.
    fn pick<T: Copy, const N: usize>(&mut self, table: &[T; N]) -> T {
        const { assert!(N > 0) };
        table[self.below(N as u32) as usize]
    }

    /// Two different entries.
    fn pick_two<T: Copy + PartialEq, const N: usize>(&mut self, table: &[T; N]) -> [T; 2] {
        const { assert!(N > 1) };
        let first = self.below(N as u32);
        let second = (first + 1 + self.below(N as u32 - 1)) % N as u32;
        [table[first as usize], table[second as usize]]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_tale_depends_on_its_split_and_index_alone() {
        let all: Vec<Tale> = Split::Validation.tales().collect();
        assert_eq!(all.len(), Split::Validation.size());
        for index in [0, 1, 77, 4_095] {
            assert_eq!(Split::Validation.tale(index).as_ref(), all.get(index));
        }
        assert_eq!(Split::Validation.tale(4_096), None);
    }

    /// Guards the bytes: the built-in models were trained on exactly these stories.
    #[test]
    fn the_first_tales_are_these() {
        let first = |split: Split| split.tale(0).map(|tale| tale.text);
        assert_eq!(
            first(Split::Train).as_deref(),
            Some("Rosa was in the forest. Rosa had a black lamp. The girl was happy. She looked angry. Rosa left the forest.")
        );
        assert_eq!(
            first(Split::Validation).as_deref(),
            Some(
                "Tom was at the school with a fox. The boy had a yellow hat and the fox had a green lamp. There was much rain and the one with the lamp hated it. He did not look angry. Tom wanted two apples. Tom found one apple. The fox left the school."
            )
        );
        assert_eq!(
            first(Split::Test).as_deref(),
            Some(
                "Mia was at the school with a fox. She had a blue ball and the fox had a yellow boat. The fox was gloomy. Mia was proud. The fox wanted four apples. The fox found five apples. There was no fog and she liked it. The girl left the school."
            )
        );
    }

    #[test]
    fn splits_share_no_tale() {
        let mut seen: HashSet<String> = HashSet::new();
        for split in Split::ALL {
            let texts: HashSet<String> = split.tales().map(|tale| tale.text).collect();
            assert!(texts.len() * 100 > split.size() * 99, "{}: {} different tales", split.name(), texts.len());
            assert!(seen.is_disjoint(&texts), "{} repeats a tale of another split", split.name());
            seen.extend(texts);
        }
    }

    #[test]
    fn labels_are_balanced() {
        for split in Split::ALL {
            let happy = split.tales().filter(|tale| tale.label == 1).count();
            let percent = 100 * happy / split.size();
            assert!((47..=53).contains(&percent), "{}: {percent} % happy", split.name());
        }
    }
}
