//! Data sets of the Hub: which files a configuration's splits are made of, as `datasets` finds them without running anybody's code: the
//! configurations that the data card states, or else folders and file names.

use std::path::{Path, PathBuf};

use prunectl_recipe::plan::{DataDecl, DataSource, Value};

use super::error::DataError;
use super::fields::Fields;
use super::lines::LineTable;
use super::table::Body;
use super::{CSV, JSON, PARQUET, SPLITS, TEXT, ending};
use crate::hub::Door;

const CARD: &str = "README.md";

/// Splits with their files in the repository, in order.
type Splits = Vec<(String, Vec<String>)>;

fn text<'a>(decl: &'a DataDecl, field: &str) -> Option<&'a str> {
    match decl.fields.get(field) {
        Some(Value::Text(s) | Value::Word(s)) => Some(s),
        _ => None,
    }
}

/// The splits of `hf("org/set", config = …, files = …)`. Only the listing and the data card are looked at.
pub(super) fn splits(decl: &DataDecl, repo: &str, hub: &Door) -> Result<Splits, DataError> {
    let revision = text(decl, "revision");
    let listing = hub.dataset(repo, revision)?;
    let card = match listing.files.iter().any(|f| f == CARD) {
        true => {
            let path = hub.dataset_files(repo, revision, &[CARD.to_owned()])?.into_iter().next().unwrap_or_default();
            std::fs::read_to_string(&path).unwrap_or_default()
        }
        false => String::new(),
    };
    find(repo, &listing.files, &card, text(decl, "config"), text(decl, "files"))
}

/// Fetches the files of a split and opens them, one behind the other.
pub(super) fn open(decl: &DataDecl, files: &[String], fields: &Fields, hub: &Door) -> Result<Body, DataError> {
    let DataSource::Hub(repo) = &decl.source else {
        return Err(DataError::Empty { what: decl.name.clone(), hint: "it is not on the Hub".into() });
    };
    let revision = text(decl, "revision");
    let commit = hub.dataset(repo, revision)?.commit;
    let paths = hub.dataset_files(repo, revision, files)?;
    let mut tables = Vec::with_capacity(paths.len());
    for (name, path) in files.iter().zip(&paths) {
        let shown = PathBuf::from(format!("hf:{repo}@{commit}/{name}"));
        let kind = ending(Path::new(name));
        let is = |kinds: &[&str]| kinds.contains(&kind.as_str());
        if is(TEXT) && files.len() == 1 {
            return Body::text(path, &shown);
        }
        tables.push(if is(PARQUET) {
            LineTable::parquet(path, &shown, fields)?
        } else if is(CSV) {
            LineTable::delimited(path, &shown, fields)?
        } else if is(JSON) {
            LineTable::json(path, &shown, fields)?
        } else {
            let expected = "parquet, csv, tsv or json lines; or one file of text (`files = \"…\"`)".into();
            return Err(DataError::WrongFile { path: shown, found: format!("a .{kind} file"), expected });
        });
    }
    Ok(Body::Lines(tables))
}

/// What the data card states for a configuration: its name, and patterns by split.
#[derive(Debug, Clone, PartialEq)]
struct Stated {
    name: String,
    default: bool,
    data: Vec<(String, Vec<String>)>,
}

/// The `configs` of a data card's front matter; none if it has no such thing.
fn stated(card: &str) -> Vec<Stated> {
    let Some(front) = card.trim_start_matches('\u{feff}').strip_prefix("---").and_then(|c| c.split("\n---").next()) else {
        return Vec::new();
    };
    let Ok(front) = serde_yaml::from_str::<serde_json::Value>(front) else { return Vec::new() };
    let strings = |v: &serde_json::Value| -> Vec<String> {
        match v {
            serde_json::Value::String(s) => vec![s.clone()],
            serde_json::Value::Array(all) => all.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        }
    };
    let data = |v: &serde_json::Value| -> Vec<(String, Vec<String>)> {
        match v {
            serde_json::Value::Array(all) if all.iter().any(serde_json::Value::is_object) => {
                all.iter().filter_map(|v| Some((v.get("split")?.as_str()?.to_owned(), strings(v.get("path")?)))).collect()
            }
            // Without splits all of it is `train`.
            other => vec![("train".to_owned(), strings(other))],
        }
    };
    let one = |v: &serde_json::Value| {
        Some(Stated {
            name: v.get("config_name")?.as_str()?.to_owned(),
            default: v.get("default").and_then(serde_json::Value::as_bool).unwrap_or(false),
            data: data(v.get("data_files")?),
        })
    };
    front.get("configs").and_then(|c| c.as_array()).map_or_else(Vec::new, |all| all.iter().filter_map(one).collect())
}

/// Whether a path matches a pattern: `*` is any part of a name, `**` any folders, `?` one character.
fn matches(pattern: &str, path: &str) -> bool {
    fn parts(pattern: &[&str], path: &[&str]) -> bool {
        match (pattern.split_first(), path.split_first()) {
            (None, None) => true,
            (Some((&"**", rest)), _) => parts(rest, path) || path.split_first().is_some_and(|(_, tail)| parts(pattern, tail)),
            (Some((p, rest)), Some((n, tail))) => name(p.as_bytes(), n.as_bytes()) && parts(rest, tail),
            _ => false,
        }
    }
    /// One name, without recursion: on a mismatch the last `*` takes one character more.
    fn name(pattern: &[u8], text: &[u8]) -> bool {
        let (mut p, mut t, mut star) = (0, 0, None);
        while t < text.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    star = Some((p, t));
                    p += 1;
                }
                Some(c) if *c == b'?' || text.get(t) == Some(c) => {
                    p += 1;
                    t += 1;
                }
                _ => match star {
                    Some((at, taken)) => {
                        star = Some((at, taken + 1));
                        p = at + 1;
                        t = taken + 1;
                    }
                    None => return false,
                },
            }
        }
        pattern.get(p..).unwrap_or_default().iter().all(|c| *c == b'*')
    }
    parts(&pattern.split('/').collect::<Vec<_>>(), &path.split('/').collect::<Vec<_>>())
}

/// Whether `datasets` would take the file for data.
fn is_data(file: &str) -> bool {
    let kind = ending(Path::new(file));
    let hidden = file.split('/').any(|part| part.starts_with(['.', '_']));
    !hidden && file != CARD && [PARQUET, CSV, JSON, TEXT].iter().any(|k| k.contains(&kind.as_str())) && kind != "md"
}

/// Puts files into splits by the words of their names, the name itself before its folders.
fn by_name(files: &[String]) -> Splits {
    let split_of = |file: &str| {
        file.rsplit('/').find_map(|part| {
            let words: Vec<String> = part.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase).collect();
            SPLITS.iter().find(|(_, known)| words.iter().any(|w| known.contains(&w.as_str()))).map(|(name, _)| *name)
        })
    };
    let mut out: Splits = Vec::new();
    for file in files {
        // GLUE's `validation_matched-00000-of-00001.parquet` is a split of its own.
        let name = file.rsplit('/').next().unwrap_or(file);
        let shard = name.find("-0").filter(|i| name.get(i + 1..).is_some_and(|rest| rest.contains("-of-")));
        let split = match shard {
            Some(i) => name.get(..i).unwrap_or(name).to_owned(),
            None => split_of(file).unwrap_or("train").to_owned(),
        };
        match out.iter_mut().find(|(s, _)| *s == split) {
            Some((_, files)) => files.push(file.clone()),
            None => out.push((split, vec![file.clone()])),
        }
    }
    let place = |s: &str| SPLITS.iter().position(|(n, _)| *n == s).unwrap_or(SPLITS.len());
    out.sort_by_key(|(s, _)| place(s));
    out
}

fn find(repo: &str, files: &[String], card: &str, config: Option<&str>, only: Option<&str>) -> Result<Splits, DataError> {
    let what = format!("hf(\"{repo}\")");
    let mut data: Vec<String> = files.iter().filter(|f| is_data(f)).cloned().collect();
    data.sort();
    let nothing = |hint: String| DataError::Empty { what: what.clone(), hint };
    if let Some(only) = only {
        let chosen: Vec<String> = files.iter().filter(|f| matches(only, f)).cloned().collect();
        return match chosen.is_empty() {
            true => Err(nothing(format!("no file of it matches `{only}`; it has {}", some_of(files)))),
            false => Ok(by_name(&chosen)),
        };
    }
    let stated = stated(card);
    let names: Vec<String> = stated.iter().map(|s| s.name.clone()).collect();
    if !stated.is_empty() {
        let chosen = match config {
            Some(config) => stated.iter().find(|s| s.name == config),
            None => match stated.as_slice() {
                [one] => Some(one),
                several => several.iter().find(|s| s.default || s.name == "default"),
            },
        };
        let Some(chosen) = chosen else {
            return Err(match config {
                Some(config) => {
                    DataError::Argument { what, found: format!("config = \"{config}\""), expected: format!("one of {}", names.join(", ")) }
                }
                None => DataError::Argument {
                    what,
                    found: "no configuration".into(),
                    expected: format!("`config = \"…\"`, one of {}", names.join(", ")),
                },
            });
        };
        let of = |patterns: &[String]| {
            data.iter().filter(|f| patterns.iter().any(|p| matches(p.trim_start_matches("./"), f))).cloned().collect()
        };
        let splits: Splits = chosen.data.iter().map(|(split, patterns)| (split.clone(), of(patterns))).collect();
        let splits: Splits = splits.into_iter().filter(|(_, files): &(String, Vec<String>)| !files.is_empty()).collect();
        return match splits.is_empty() {
            true => Err(nothing(format!("none of its files matches what its card states for `{}`", chosen.name))),
            false => Ok(splits),
        };
    }
    // A configuration without a card is a folder.
    if let Some(config) = config.filter(|c| *c != "default") {
        data.retain(|f| f.split('/').rev().skip(1).any(|part| part == config));
        if data.is_empty() {
            return Err(DataError::Argument {
                what,
                found: format!("config = \"{config}\""),
                expected: format!("a folder of that name with parquet, csv or json lines; it has {}", some_of(files)),
            });
        }
    }
    match data.is_empty() {
        true => Err(nothing(format!(
            "it has no parquet, csv, json lines or text; it has {}. Sets that a script makes are at `revision = \"refs/convert/parquet\"`",
            some_of(files)
        ))),
        false => Ok(by_name(&data)),
    }
}

fn some_of(files: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut out: Vec<String> = files.iter().take(SHOWN).map(|f| format!("`{f}`")).collect();
    if files.len() > SHOWN {
        out.push(format!("{} more", files.len() - SHOWN));
    }
    if out.is_empty() { "no files".into() } else { out.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(files: &[&str]) -> Vec<String> {
        files.iter().map(|f| (*f).to_owned()).collect()
    }

    #[test]
    fn patterns() {
        for (pattern, path, is) in [
            ("data/train-*", "data/train-00000-of-00001.parquet", true),
            ("data/train-*", "data/sub/train-0.parquet", false),
            ("**/*.parquet", "a/b/c.parquet", true),
            ("**/*.parquet", "c.parquet", true),
            ("en/c4-train.0000?-of-*.json.gz", "en/c4-train.00003-of-01024.json.gz", true),
            ("*", "a/b", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
        ] {
            assert_eq!(matches(pattern, path), is, "{pattern} {path}");
        }
    }

    #[test]
    fn cards_folders_and_names_give_splits() {
        let files = names(&[
            ".gitattributes",
            "README.md",
            "sst2/test-00000-of-00001.parquet",
            "sst2/train-00000-of-00001.parquet",
            "mnli/validation_matched-00000-of-00001.parquet",
        ]);
        let card = "---\nlicense: other\nconfigs:\n- config_name: sst2\n  data_files:\n  - split: train\n    path: sst2/train-*\n  - split: test\n    path: sst2/test-*\n- config_name: mnli\n  data_files:\n  - split: validation_matched\n    path: mnli/validation_matched-*\n---\n# GLUE\n";
        let splits = |config, card| find("g", &files, card, config, None).map(|s| s.into_iter().map(|(n, _)| n).collect::<Vec<_>>());
        assert_eq!(splits(Some("sst2"), card).unwrap(), ["train", "test"]);
        assert_eq!(splits(Some("mnli"), card).unwrap(), ["validation_matched"]);
        let e = splits(None, card).unwrap_err().to_string();
        assert!(e.contains("one of sst2, mnli"), "{e}");
        // Without a card: folders and names.
        assert_eq!(splits(Some("sst2"), "").unwrap(), ["train", "test"]);
        assert_eq!(splits(Some("mnli"), "").unwrap(), ["validation_matched"]);
        assert!(splits(Some("cola"), "").unwrap_err().to_string().contains("config = \"cola\""));
        let one = find("c4", &names(&["en/c4-train.00000-of-01024.json.gz"]), "", None, Some("en/*-train.00000*")).unwrap();
        assert_eq!(one, [("train".to_owned(), names(&["en/c4-train.00000-of-01024.json.gz"]))]);
        assert!(find("x", &names(&["set.py"]), "", None, None).unwrap_err().to_string().contains("refs/convert/parquet"));
    }
}
