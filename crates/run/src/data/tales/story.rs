//! The grammar of a story: a hero with a name, a companion that is an animal, what happens to each, and how the hero feels in the end.
use super::words::{ANIMALS, BOYS, COLOURS, COUNTED, GIRLS, GLAD, GLUM, NUMBERS, PLACES, THINGS, WEATHER};
use super::{Dice, Split, Tale};

/// In percent: training stories without a companion, heroes whose feelings change, companions whose feelings change, contests at the end,
/// negated statements, weather that is there, things that tell who is meant.
const ALONE: u32 = 25;
const HERO_CHANGES: u32 = 20;
const COMPANION_CHANGES: u32 = 15;
const CONTEST: u32 = 15;
const NEGATED: u32 = 15;
const PRESENT: u32 = 85;
const BY_THING: u32 = 12;

const HERO: usize = 0;
const COMPANION: usize = 1;

/// Somebody who feels.
#[derive(Clone, Copy)]
struct Being {
    /// A name, or an animal.
    noun: &'static str,
    colour: &'static str,
    thing: &'static str,
    /// What weather they mind; different for each, so that no two sentences contradict each other.
    weather: &'static str,
}

/// A sentence is a list of words; its full stop is added on telling.
type Sentence = Vec<&'static str>;

struct World<'d> {
    dice: &'d mut Dice,
    cast: [Being; 2],
    girl: bool,
    preposition: &'static str,
    place: &'static str,
    alone: bool,
}

/// Tells the story that these dice give, with a cast and a place that belong to `split`.
pub(super) fn tell(dice: &mut Dice, split: Split) -> Tale {
    // Only training has heroes without a companion: without one a cast is too small to belong to one split alone.
    let alone = dice.chance(ALONE) && split == Split::Train;
    let girl = dice.coin();
    let (name, animal, (preposition, place)) = loop {
        let name = if girl { dice.pick(&GIRLS) } else { dice.pick(&BOYS) };
        let (animal, place) = (dice.pick(&ANIMALS), dice.pick(&PLACES));
        if split.owns(fingerprint(&[name, animal, place.1])) {
            break (name, animal, place);
        }
    };
    let (colours, things, weathers) = (dice.pick_two(&COLOURS), dice.pick_two(&THINGS), dice.pick_two(&WEATHER));
    let being = |noun, seat: usize| Being { noun, colour: colours[seat], thing: things[seat], weather: weathers[seat] };
    World { cast: [being(name, HERO), being(animal, COMPANION)], girl, preposition, place, alone, dice }.tell()
}

/// FNV-1a over the words, less its low bits, which are the worst mixed.
fn fingerprint(words: &[&str]) -> u32 {
    let bytes = words.iter().flat_map(|word| word.bytes().chain([b' ']));
    bytes.fold(2_166_136_261_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619)) >> 8
}

impl World<'_> {
    fn tell(&mut self) -> Tale {
        let mut sentences = vec![self.opening()];
        let belongings = self.belongings();
        sentences.push(belongings);
        let mut happy = self.dice.coin();
        let change = self.dice.chance(HERO_CHANGES);
        let mut mine = Vec::new();
        if change {
            mine.extend(self.event(HERO, !happy));
        }
        mine.extend(self.event(HERO, happy));
        let mut theirs = Vec::new();
        if !self.alone {
            let pleased = self.dice.coin();
            if self.dice.chance(COMPANION_CHANGES) {
                theirs.extend(self.event(COMPANION, !pleased));
            }
            theirs.extend(self.event(COMPANION, pleased));
        }
        // Each keeps its order; which speaks next is drawn.
        while !mine.is_empty() || !theirs.is_empty() {
            let from = if theirs.is_empty() || (!mine.is_empty() && self.dice.coin()) { &mut mine } else { &mut theirs };
            sentences.push(from.remove(0));
        }
        if !self.alone && self.dice.chance(CONTEST) {
            happy = self.dice.coin();
            let contest = self.contest(happy);
            sentences.push(contest);
        }
        let home = self.going_home();
        sentences.push(home);
        Tale { text: render(&sentences), label: u32::from(happy) }
    }

    /// "Mia was at the market with a dog"
    fn opening(&mut self) -> Sentence {
        let mut words = vec![self.cast[HERO].noun, "was", self.preposition, "the", self.place];
        if !self.alone {
            words.extend(["with", "a", self.cast[COMPANION].noun]);
        }
        words
    }

    /// "She had a red ball and the dog had a blue kite", in either order.
    fn belongings(&mut self) -> Sentence {
        let first = if self.alone || self.dice.coin() { HERO } else { COMPANION };
        let mut words = Vec::new();
        for who in [first, 1 - first].into_iter().take(if self.alone { 1 } else { 2 }) {
            if !words.is_empty() {
                words.push("and");
            }
            words.extend(self.refer_plainly(who));
            words.extend(["had", "a", self.cast[who].colour, self.cast[who].thing]);
        }
        words
    }

    /// One or two sentences after which `who` is `happy`.
    fn event(&mut self, who: usize, happy: bool) -> Vec<Sentence> {
        match self.dice.below(20) {
            0..=9 => vec![self.mood(who, happy)],
            10..=14 => vec![self.weather(who, happy)],
            _ => self.count(who, happy),
        }
    }

    /// "Mia was not sad"
    fn mood(&mut self, who: usize, happy: bool) -> Sentence {
        let negated = self.dice.chance(NEGATED);
        let mut words = self.refer(who);
        words.extend(match (self.dice.coin(), negated) {
            (true, false) => &["was"][..],
            (true, true) => &["was", "not"],
            (false, false) => &["looked"],
            (false, true) => &["did", "not", "look"],
        });
        words.push(if happy != negated { self.dice.pick(&GLAD) } else { self.dice.pick(&GLUM) });
        words
    }

    /// "The dog wanted three apples", "it found two": happy with as many as were wanted.
    fn count(&mut self, who: usize, happy: bool) -> Vec<Sentence> {
        let (one, many) = self.dice.pick(&COUNTED);
        let wanted = 2 + self.dice.below(3);
        let found = if happy { wanted + self.dice.below(3) } else { 1 + self.dice.below(wanted - 1) };
        let mut wish = self.refer(who);
        wish.extend(["wanted", number(wanted), many]);
        let mut find = self.refer(who);
        find.extend(["found", number(found), if found == 1 { one } else { many }]);
        vec![wish, find]
    }

    /// "There was no rain and Mia did not like it"
    fn weather(&mut self, who: usize, happy: bool) -> Sentence {
        let (present, negated) = (self.dice.chance(PRESENT), self.dice.chance(NEGATED));
        let likes = present == happy;
        let mut words = vec!["there", "was", if present { "much" } else { "no" }, self.cast[who].weather, "and"];
        words.extend(self.refer(who));
        words.extend(match (negated, likes) {
            (true, true) => &["did", "not", "hate", "it"][..],
            (true, false) => &["did", "not", "like", "it"],
            (false, true) => &["liked", "it"],
            (false, false) => &["hated", "it"],
        });
        words
    }

    /// "Mia did not lose to the dog"
    fn contest(&mut self, hero_wins: bool) -> Sentence {
        let negated = self.dice.chance(NEGATED);
        let subject = if self.dice.coin() { HERO } else { COMPANION };
        let wins = ((subject == HERO) == hero_wins) != negated;
        let mut words = self.refer(subject);
        words.extend(match (negated, wins) {
            (true, true) => &["did", "not", "win", "against"][..],
            (true, false) => &["did", "not", "lose", "to"],
            (false, true) => &["won", "against"],
            (false, false) => &["lost", "to"],
        });
        let object = self.refer(1 - subject);
        words.extend(match object.as_slice() {
            ["she"] => vec!["her"],
            ["he"] => vec!["him"],
            _ => object,
        });
        words
    }

    /// "He left the market", "The dog took the red ball home"
    fn going_home(&mut self) -> Sentence {
        let who = if self.alone || self.dice.coin() { HERO } else { COMPANION };
        let mut words = self.refer_plainly(who);
        if self.dice.coin() {
            words.extend(["left", "the", self.place]);
        } else {
            words.extend(["took", "the", self.cast[who].colour, self.cast[who].thing, "home"]);
        }
        words
    }

    fn refer_plainly(&mut self, who: usize) -> Sentence {
        if who == COMPANION {
            return vec!["the", self.cast[COMPANION].noun];
        }
        match (self.dice.below(10), self.girl) {
            (0..=3, _) => vec![self.cast[HERO].noun],
            (4..=7, true) => vec!["she"],
            (4..=7, false) => vec!["he"],
            (_, true) => vec!["the", "girl"],
            (_, false) => vec!["the", "boy"],
        }
    }

    /// As [`Self::refer_plainly`], or by what they carry: "the one with the kite".
    fn refer(&mut self, who: usize) -> Sentence {
        if self.dice.chance(BY_THING) { vec!["the", "one", "with", "the", self.cast[who].thing] } else { self.refer_plainly(who) }
    }
}

fn number(n: u32) -> &'static str {
    NUMBERS.get(n as usize).copied().unwrap_or("many")
}

/// Sentences as a paragraph: a capital first, a full stop last.
fn render(sentences: &[Sentence]) -> String {
    let mut text = String::with_capacity(320);
    for sentence in sentences {
        if !text.is_empty() {
            text.push(' ');
        }
        let mut words = sentence.iter();
        if let Some(first) = words.next() {
            let mut letters = first.chars();
            text.extend(letters.next().map(|c| c.to_ascii_uppercase()));
            text.push_str(letters.as_str());
        }
        for word in words {
            text.push(' ');
            text.push_str(word);
        }
        text.push('.');
    }
    text
}
