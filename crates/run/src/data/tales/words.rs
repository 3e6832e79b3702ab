//! The words of the world. Every table holds single tokens.

pub(super) const GIRLS: [&str; 4] = ["Mia", "Anna", "Ella", "Rosa"];
pub(super) const BOYS: [&str; 4] = ["Tom", "Ben", "Max", "Leo"];

/// Preposition and place.
pub(super) const PLACES: [(&str, &str); 8] = [
    ("in", "garden"),
    ("at", "market"),
    ("in", "forest"),
    ("at", "harbour"),
    ("in", "castle"),
    ("at", "school"),
    ("on", "farm"),
    ("on", "beach"),
];

pub(super) const ANIMALS: [&str; 6] = ["dog", "cat", "bird", "horse", "goat", "fox"];

pub(super) const COLOURS: [&str; 6] = ["red", "blue", "green", "yellow", "white", "black"];
pub(super) const THINGS: [&str; 8] = ["ball", "kite", "hat", "lamp", "drum", "book", "cup", "boat"];

/// Singular and plural of what can be counted.
pub(super) const COUNTED: [(&str, &str); 6] =
    [("apple", "apples"), ("shell", "shells"), ("coin", "coins"), ("nut", "nuts"), ("egg", "eggs"), ("stone", "stones")];
pub(super) const NUMBERS: [&str; 9] = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight"];

pub(super) const GLAD: [&str; 4] = ["happy", "glad", "cheerful", "proud"];
pub(super) const GLUM: [&str; 4] = ["sad", "gloomy", "upset", "angry"];

pub(super) const WEATHER: [&str; 4] = ["rain", "snow", "wind", "fog"];
