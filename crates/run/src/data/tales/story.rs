//! The grammar of a story: a cast, a thread for each character that settles how they feel, and whom the tale asks about.
use super::words::{BOYS, COLOURS, COUNTED, GIRLS, GLAD, GLUM, NUMBERS, PLACES, THINGS, WEATHER};
use super::{Dice, Split, Tale};

/// Characters in a story, unless one is alone.
const CAST: usize = 2;
/// In percent: stories of one character, of a boy and a girl, told with names only, contests among the others, negated statements, weather that is there, people called after what they
/// carry. Short stories and an
/// uneven share of negations leave a first signal in single words, from which training finds the rest.
const ALONE: u32 = 25;
const BOTH_KINDS: u32 = 85;
const CONTEST: u32 = 20;
const PLAIN: u32 = 40;
const NEGATED: u32 = 30;
const PRESENT: u32 = 65;
const BY_THING: u32 = 10;
/// The form of question that names only the one asked about.
const ASK_PLAINLY: u32 = 3;

#[derive(Clone, Copy)]
struct Person {
    name: &'static str,
    girl: bool,
    colour: &'static str,
    thing: &'static str,
    happy: bool,
    /// What weather they mind, if they do; different for each, so that no two sentences contradict each other.
    weather: &'static str,
}

/// A sentence is a list of words; its full stop is added on telling.
type Sentence = Vec<&'static str>;

struct World<'d> {
    dice: &'d mut Dice,
    cast: [Person; CAST],
    preposition: &'static str,
    place: &'static str,
    /// Only the first of the cast appears.
    alone: bool,
    /// People are always called by their names.
    plain: bool,
    /// "She" and "the boy" mean one person each: there is at most one of a kind.
    distinct: bool,
}

/// Tells the story that these dice give, with a cast and a place that belong to `split`.
pub(super) fn tell(dice: &mut Dice, split: Split) -> Tale {
    let alone = dice.chance(ALONE);
    let (names, girls, (preposition, place)) = loop {
        let both_kinds = dice.chance(BOTH_KINDS);
        let first_girl = dice.coin();
        let girls = [first_girl, first_girl != both_kinds];
        let (boys, sisters) = (dice.pick_two(&BOYS), dice.pick_two(&GIRLS));
        let names = match girls {
            [true, true] => sisters,
            [false, false] => boys,
            [true, false] => [sisters[0], boys[0]],
            [false, true] => [boys[0], sisters[0]],
        };
        let place = dice.pick(&PLACES);
        if split.owns(fingerprint(&[names[0], if alone { "" } else { names[1] }, place.1])) {
            break (names, girls, place);
        }
    };
    let colours = dice.pick_two(&COLOURS);
    let things = dice.pick_two(&THINGS);
    let weathers = dice.pick_two(&WEATHER);
    let plain = dice.chance(PLAIN);
    let mut person = |seat: usize| Person {
        name: names[seat],
        girl: girls[seat],
        colour: colours[seat],
        thing: things[seat],
        happy: dice.coin(),
        weather: weathers[seat],
    };
    let cast = [person(0), person(1)];
    World { distinct: alone || cast[0].girl != cast[1].girl, alone, plain, dice, cast, preposition, place }.tell()
}

/// FNV-1a over the words, less its low bits, which are the worst mixed.
fn fingerprint(words: &[&str]) -> u32 {
    let bytes = words.iter().flat_map(|word| word.bytes().chain([b' ']));
    bytes.fold(2_166_136_261_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619)) >> 8
}

impl World<'_> {
    fn tell(&mut self) -> Tale {
        let asked = self.someone();
        let mut sentences = vec![self.question(asked), self.opening()];
        sentences.extend(self.belongings());
        sentences.extend(self.threads());
        sentences.push(self.going_home());
        Tale { text: render(&sentences), label: u32::from(self.cast[asked].happy) }
    }

    /// "Mia and Tom were at the market"
    fn opening(&mut self) -> Sentence {
        let mut words = vec![self.cast[0].name];
        words.extend(if self.alone { vec!["was"] } else { vec!["and", self.cast[1].name, "were"] });
        words.extend([self.preposition, "the", self.place]);
        words
    }

    /// "Mia had a red ball and Tom had a blue kite", in either order.
    fn belongings(&mut self) -> Vec<Sentence> {
        let first = self.someone();
        let mut words = Vec::new();
        for who in [first, 1 - first].into_iter().take(if self.alone { 1 } else { CAST }) {
            if !words.is_empty() {
                words.push("and");
            }
            // The item cannot name its owner before it is introduced.
            if !self.plain && self.distinct && self.dice.coin() {
                words.push(self.pronoun(who));
            } else {
                words.push(self.cast[who].name);
            }
            words.extend(["had", "a", self.cast[who].colour, self.cast[who].thing]);
        }
        vec![words]
    }

    fn threads(&mut self) -> Vec<Sentence> {
        if self.alone {
            return self.thread(0);
        }
        if self.dice.chance(CONTEST) {
            let winner = usize::from(self.dice.coin());
            self.cast[winner].happy = true;
            self.cast[1 - winner].happy = false;
            let contest = self.contest(winner);
            return vec![contest];
        }
        let mut mine = self.thread(0);
        let mut theirs = self.thread(1);
        // Each thread keeps its order; which speaks next is drawn.
        let mut told = Vec::new();
        while !mine.is_empty() || !theirs.is_empty() {
            let from = if theirs.is_empty() || (!mine.is_empty() && self.dice.coin()) { &mut mine } else { &mut theirs };
            told.push(from.remove(0));
        }
        told
    }

    fn thread(&mut self, who: usize) -> Vec<Sentence> {
        match self.dice.below(20) {
            0..=8 => vec![self.mood(who)],
            9..=13 => vec![self.weather(who)],
            _ => self.count(who),
        }
    }

    /// "Mia was not sad"
    fn mood(&mut self, who: usize) -> Sentence {
        let negated = self.dice.chance(NEGATED);
        let mut words = self.refer(who);
        words.extend(match (self.dice.coin(), negated) {
            (true, false) => &["was"][..],
            (true, true) => &["was", "not"],
            (false, false) => &["looked"],
            (false, true) => &["did", "not", "look"],
        });
        let word = if self.cast[who].happy != negated { self.dice.pick(&GLAD) } else { self.dice.pick(&GLUM) };
        words.push(word);
        words
    }

    /// "Tom wanted three apples", "he found four but lost one": happy with as many as were wanted.
    fn count(&mut self, who: usize) -> Vec<Sentence> {
        let (one, many) = self.dice.pick(&COUNTED);
        let turn = self.dice.below(4);
        // With these ranges both endings are possible for every wish, so the draw below ends.
        let wanted = 2 + u32::from(turn == 1) + self.dice.below(3);
        let (found, change) = loop {
            let (found, change) = (1 + self.dice.below(6), 1 + self.dice.below(2));
            let total = match turn {
                0 => found.saturating_sub(change),
                1 => found + change,
                _ => found,
            };
            if (total >= wanted) == self.cast[who].happy {
                break (found, change);
            }
        };
        let mut wish = self.refer(who);
        wish.extend(["wanted", number(wanted), many]);
        let mut find = self.refer(who);
        find.extend(["found", number(found), if found == 1 { one } else { many }]);
        match turn {
            0 => find.extend(["but", "lost", number(change)]),
            1 => find.extend(["and", "then", number(change), "more"]),
            _ => {}
        }
        vec![wish, find]
    }

    /// "There was no rain and Mia did not like it"
    fn weather(&mut self, who: usize) -> Sentence {
        let weather = self.cast[who].weather;
        let (present, negated) = (self.dice.chance(PRESENT), self.dice.chance(NEGATED));
        let likes = present == self.cast[who].happy;
        let mut words = vec!["there", "was", if present { "much" } else { "no" }, weather, "and"];
        words.extend(self.refer(who));
        if negated {
            words.extend(["did", "not", if likes { "hate" } else { "like" }, "it"]);
        } else {
            words.extend([if likes { "liked" } else { "hated" }, "it"]);
        }
        words
    }

    /// "Mia did not lose to the one with the blue kite"
    fn contest(&mut self, winner: usize) -> Sentence {
        let negated = self.dice.chance(NEGATED);
        let subject = usize::from(self.dice.coin());
        let mut words = self.refer(subject);
        let wins = (subject == winner) != negated;
        if negated {
            words.extend(["did", "not"]);
        }
        words.extend(match (wins, negated) {
            (true, false) => ["won", "against"],
            (true, true) => ["win", "against"],
            (false, false) => ["lost", "to"],
            (false, true) => ["lose", "to"],
        });
        words.extend(self.refer_as_object(1 - subject));
        words
    }

    /// "Ask about her", "Ask about her and not Tom", "Do not ask about the one with the kite"
    fn question(&mut self, asked: usize) -> Sentence {
        let other = 1 - asked;
        let form = if self.alone { ASK_PLAINLY } else { self.dice.below(7) };
        match form {
            0 => {
                let mut words = vec!["do", "not", "ask", "about"];
                words.extend(self.refer_as_object(other));
                words
            }
            1 => {
                let mut words = vec!["ask", "about"];
                words.extend(self.refer_as_object(asked));
                words.extend(["and", "not"]);
                words.extend(self.refer_as_object(other));
                words
            }
            _ => {
                let mut words = vec!["ask", "about"];
                words.extend(self.refer_as_object(asked));
                words
            }
        }
    }

    /// "He left the market", "The girl took the red ball home"
    fn going_home(&mut self) -> Sentence {
        let who = self.someone();
        let mut words = self.refer_without_thing(who);
        if self.dice.coin() {
            words.extend(["left", "the", self.place]);
        } else {
            words.extend(["took", "the", self.cast[who].colour, self.cast[who].thing, "home"]);
        }
        words
    }

    /// One of those who appear.
    fn someone(&mut self) -> usize {
        if self.alone { 0 } else { usize::from(self.dice.coin()) }
    }

    fn pronoun(&self, who: usize) -> &'static str {
        if self.cast[who].girl { "she" } else { "he" }
    }

    fn refer_without_thing(&mut self, who: usize) -> Sentence {
        if self.plain || !self.distinct {
            return vec![self.cast[who].name];
        }
        match self.dice.below(10) {
            0..=4 => vec![self.cast[who].name],
            5..=8 => vec![self.pronoun(who)],
            _ => vec!["the", if self.cast[who].girl { "girl" } else { "boy" }],
        }
    }

    fn refer(&mut self, who: usize) -> Sentence {
        if !self.plain && self.dice.chance(BY_THING) { self.by_thing(who) } else { self.refer_without_thing(who) }
    }

    fn by_thing(&self, who: usize) -> Sentence {
        vec!["the", "one", "with", "the", self.cast[who].thing]
    }

    fn refer_as_object(&mut self, who: usize) -> Sentence {
        let words = self.refer(who);
        match words.as_slice() {
            ["she"] => vec!["her"],
            ["he"] => vec!["him"],
            _ => words,
        }
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
