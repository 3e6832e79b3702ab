//! Files of rows: JSON lines, and text separated by commas or tabs. Opening reads the file once, checks every row and keeps where each
//! begins; the texts are read again where they are used.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;

use super::document::{Answer, Document, Label};
use super::error::{BadRows, DataError, Place};
use super::fields::{Column, Corrupt, Fields, Layout};
use super::file::{FileRecord, RawFile, utf8};
use super::forms::Form;

/// A row longer than this is taken for a file of another format.
const LARGEST_ROW_BYTES: u64 = 1 << 30;
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Where a row is.
#[derive(Debug, Clone, Copy)]
struct RowSpan {
    offset: u64,
    bytes: u32,
    line: u32,
}

#[derive(Debug)]
enum Format {
    Json { layout: Layout<String>, form: Option<Form> },
    Delimited { layout: Layout<usize>, separator: u8, quoting: bool },
}

/// An open file of rows.
#[derive(Debug)]
pub(crate) struct LineTable {
    file: RawFile,
    format: Format,
    rows: Vec<RowSpan>,
    labels: Vec<Option<Label>>,
    /// Rows left out because the recipe said so.
    pub(crate) skipped: BadRows,
    pub(crate) record: FileRecord,
}

/// Equal labels share one string.
#[derive(Default)]
struct Interner(BTreeSet<Arc<str>>);

impl Interner {
    fn intern(&mut self, label: Option<Label>) -> Option<Label> {
        let Some(Label::Text(t)) = label else { return label };
        if let Some(known) = self.0.get(&t) {
            return Some(Label::Text(known.clone()));
        }
        self.0.insert(t.clone());
        Some(Label::Text(t))
    }
}

impl LineTable {
    /// Opens a file of one JSON object a line. Blank lines are no rows.
    pub(crate) fn json(path: &Path, shown: &Path, fields: &Fields) -> Result<Self, DataError> {
        Self::json_lines(RawFile::open(path, shown)?, fields)
    }

    /// Opens a parquet file; its rows count from 1, as lines do.
    pub(crate) fn parquet(path: &Path, shown: &Path, fields: &Fields) -> Result<Self, DataError> {
        Self::json_lines(RawFile::parquet(path, shown)?, fields)
    }

    fn json_lines(file: RawFile, fields: &Fields) -> Result<Self, DataError> {
        let path = &file.path().to_owned();
        let (mut scan, mut line, mut rows, mut labels, mut bad) = (file.scan(), Vec::new(), Vec::new(), Vec::new(), BadRows::default());
        let (mut layout, mut interner) = (None, Interner::default());
        let (mut offset, mut number) = (0u64, 0u32);
        loop {
            line.clear();
            let read = std::io::Read::take(&mut scan, LARGEST_ROW_BYTES).read_until(b'\n', &mut line).map_err(|e| file.io(e))? as u64;
            if read == 0 {
                break;
            }
            number = number.saturating_add(1);
            let start = offset + if offset == 0 && line.starts_with(BOM) { BOM.len() as u64 } else { 0 };
            let content = line.get((start - offset) as usize..).unwrap_or_default();
            let end = offset + read;
            let first = layout.is_none();
            offset = end;
            if first && content.trim_ascii_start().starts_with(b"[") {
                return Err(DataError::WrongFile {
                    path: path.to_owned(),
                    found: "a JSON list".into(),
                    expected: "JSON lines, one object a line (`jq -c '.[]' file.json > file.jsonl`)".into(),
                });
            }
            if content.trim_ascii().is_empty() {
                continue;
            }
            bad.of += 1;
            if read == LARGEST_ROW_BYTES {
                let found = format!("a line of over {LARGEST_ROW_BYTES} bytes");
                return Err(DataError::WrongFile { path: path.to_owned(), found, expected: "one JSON object a line".into() });
            }
            if let Err(e) = std::str::from_utf8(content) {
                let at = start + e.valid_up_to() as u64;
                if fields.corrupt == Corrupt::Stop {
                    return Err(DataError::NotUtf8 { path: path.to_owned(), offset: at, line: u64::from(number) });
                }
                bad.add(u64::from(number), format!("byte {at} of the file is not UTF-8"));
                continue;
            }
            let object = match serde_json::from_slice::<serde_json::Value>(content.trim_ascii_end()) {
                Ok(serde_json::Value::Object(object)) => object,
                Ok(_) => {
                    bad.add(u64::from(number), "not a JSON object".into());
                    continue;
                }
                Err(e) => {
                    bad.add(u64::from(number), format!("not JSON: {}", without_line(&e)));
                    continue;
                }
            };
            let layout = match &layout {
                Some(l) => l,
                None if fields.form.is_some() => layout.insert(Layout::empty()),
                None => {
                    let names: Vec<String> = object.keys().cloned().collect();
                    layout.insert(json_layout(path, fields, &names)?)
                }
            };
            match json_document(layout, fields.form, &object) {
                Ok(document) => {
                    labels.push(interner.intern(document.label));
                    rows.push(RowSpan { offset: start, bytes: (end - start) as u32, line: number });
                }
                Err(why) => bad.add(u64::from(number), why),
            }
        }
        let record = file.record(scan);
        let layout = layout.unwrap_or_else(Layout::empty);
        Self { file, format: Format::Json { layout, form: fields.form }, rows, labels, skipped: bad, record }.checked(fields)
    }

    /// Opens a csv or tsv file.
    pub(crate) fn delimited(path: &Path, shown: &Path, fields: &Fields) -> Result<Self, DataError> {
        let file = RawFile::open(path, shown)?;
        let path = shown;
        let named = plain_name(path);
        let tabs = named.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv") || e.eq_ignore_ascii_case("tab"));
        let separator = fields.separator.unwrap_or(if tabs { b'\t' } else { b',' });
        // text/tab-separated-values knows no quotes, and the GLUE files hold unbalanced ones.
        let quoting = fields.quoting.unwrap_or(!tabs);
        let columns = [&fields.text, &fields.pair, &fields.label, &fields.messages].into_iter().flatten().chain(&fields.choices);
        let by_number = columns.into_iter().any(|c| matches!(c, Column::Index(_)));
        let header = fields.header.unwrap_or(!by_number);

        let (mut rows, mut labels, mut bad, mut interner) = (Vec::new(), Vec::new(), BadRows::default(), Interner::default());
        let mut reader = builder(separator, quoting).from_reader(file.scan());
        let mut cells = csv::ByteRecord::new();
        let mut layout: Option<(Layout<usize>, usize)> = None;
        let mut start = 0u64;
        loop {
            let more = reader.read_byte_record(&mut cells).map_err(|e| csv_error(&file, e))?;
            if !more {
                break;
            }
            let end = reader.position().byte();
            let (span, counted) = (start..end, cells.position().map_or(0, csv::Position::line));
            let line = || counted + skipped_lines(&file, span.start, end);
            start = end;
            if span.end - span.start >= LARGEST_ROW_BYTES {
                let found = format!("a row of over {LARGEST_ROW_BYTES} bytes at line {} (is a quote never closed?)", line());
                return Err(DataError::WrongFile { path: path.to_owned(), found, expected: "rows of text".into() });
            }
            let (known, width) = match &layout {
                Some(l) => l,
                None => {
                    let names: Vec<String> = cells.iter().map(|c| String::from_utf8_lossy(c).into_owned()).collect();
                    let found = delimited_layout(path, fields, &names, header)?;
                    let known = layout.insert((found, names.len()));
                    if header {
                        continue;
                    }
                    known
                }
            };
            bad.of += 1;
            if cells.len() != *width {
                bad.add(line(), format!("found {} columns, expected {width}", cells.len()));
                continue;
            }
            let wanted = [known.text, known.pair, known.label, known.messages].into_iter().flatten().chain(known.choices.iter().copied());
            if let Some(broken) = wanted.into_iter().filter_map(|i| cells.get(i)).find(|c| std::str::from_utf8(c).is_err()) {
                if fields.corrupt == Corrupt::Stop {
                    return Err(not_utf8(&file, span, counted));
                }
                bad.add(line(), format!("`{}` is not UTF-8", String::from_utf8_lossy(broken).chars().take(20).collect::<String>()));
                continue;
            }
            if quoting && end >= file.bytes() && unclosed(&file.read(span.start, (span.end - span.start) as usize)?) {
                bad.add(line(), "a quote in this row is never closed, so the row takes in the rest of the file".into());
                continue;
            }
            labels.push(
                interner
                    .intern(known.label.and_then(|i| cells.get(i)).and_then(|c| std::str::from_utf8(c).ok()).and_then(Label::from_cell)),
            );
            rows.push(RowSpan {
                offset: span.start,
                bytes: (span.end - span.start) as u32,
                line: u32::try_from(counted).unwrap_or(u32::MAX),
            });
        }
        let record = file.record(reader.into_inner());
        let layout = layout.map_or_else(Layout::empty, |(l, _)| l);
        Self { file, format: Format::Delimited { layout, separator, quoting }, rows, labels, skipped: bad, record }.checked(fields)
    }

    fn checked(self, fields: &Fields) -> Result<Self, DataError> {
        if self.skipped.count > 0 && fields.corrupt == Corrupt::Stop {
            return Err(DataError::Corrupt { path: self.file.path().to_owned(), rows: self.skipped });
        }
        if self.rows.is_empty() {
            let hint = match self.skipped.count {
                0 => "the file has no rows".to_owned(),
                n => format!("all of its {n} rows are corrupt; the first, line {}", first_bad(&self.skipped)),
            };
            return Err(DataError::Empty { what: self.file.path().display().to_string(), hint });
        }
        Ok(self)
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn label(&self, row: usize) -> Option<&Label> {
        self.labels.get(row)?.as_ref()
    }

    pub(crate) fn place(&self, row: usize) -> Place {
        let skipped = |r: &RowSpan| skipped_lines(&self.file, r.offset, r.offset + u64::from(r.bytes));
        let line = self.rows.get(row).map_or(0, |r| u64::from(r.line) + skipped(r));
        Place { file: self.file.path().display().to_string(), line }
    }

    /// Reads one row again.
    pub(crate) fn document(&self, row: usize) -> Result<Document, DataError> {
        let changed = || self.file.changed();
        let span = self.rows.get(row).ok_or_else(changed)?;
        let bytes = self.file.read(span.offset, span.bytes as usize)?;
        let label = self.labels.get(row).cloned().flatten();
        match &self.format {
            Format::Json { layout, form } => {
                let object: serde_json::Map<_, _> = serde_json::from_slice(&bytes).map_err(|_| changed())?;
                let document = json_document(layout, *form, &object).map_err(|_| changed())?;
                Ok(Document { label, ..document })
            }
            Format::Delimited { layout, separator, quoting } => {
                let mut reader = builder(*separator, *quoting).buffer_capacity(bytes.len().max(1)).from_reader(bytes.as_slice());
                let mut cells = csv::ByteRecord::new();
                reader.read_byte_record(&mut cells).map_err(|_| changed())?;
                let cell = |i: usize| utf8(cells.get(i).ok_or_else(changed)?.to_vec()).map_err(|_| changed());
                Ok(Document {
                    text: layout.text.map(cell).transpose()?.unwrap_or_default(),
                    pair: layout.pair.map(cell).transpose()?,
                    label,
                    choices: layout.choices.iter().map(|i| cell(*i)).collect::<Result<_, _>>()?,
                    messages: layout.messages.map(cell).transpose()?,
                    ..Document::default()
                })
            }
        }
    }
}

fn first_bad(bad: &BadRows) -> String {
    bad.first.first().map_or_else(String::new, |r| format!("{}: {}", r.line, r.why))
}

/// serde_json counts lines within the text that it was given, which is one line.
fn without_line(e: &serde_json::Error) -> String {
    let text = e.to_string();
    match text.rfind(" at line ") {
        Some(i) => format!("{} at column {}", &text[..i], e.column()),
        None => text,
    }
}

fn json_layout(path: &Path, fields: &Fields, names: &[String]) -> Result<Layout<String>, DataError> {
    let absent = |c: &Column| DataError::NoColumn {
        path: path.to_owned(),
        field: c.to_string(),
        found: names.to_vec(),
        hint: "Name it: `text = \"…\"`, and where there are any `text_pair`, `label`".into(),
    };
    let layout = fields.layout(names).map_err(|c| absent(&c))?;
    let name = |c: Column| match c {
        Column::Name(n) => Ok(n),
        c @ Column::Index(_) => Err(absent(&c)),
    };
    layout.map(name)
}

fn json_document(
    layout: &Layout<String>,
    form: Option<Form>,
    object: &serde_json::Map<String, serde_json::Value>,
) -> Result<Document, String> {
    if let Some(form) = form {
        return form.document(object);
    }
    // `choices.text` is a field of a field, unless a field has that very name.
    let get = |name: &str| {
        object.get(name).or_else(|| {
            let (outer, inner) = name.split_once('.')?;
            inner.split('.').try_fold(object.get(outer)?, |v, part| v.get(part))
        })
    };
    let text = |name: &str| match get(name) {
        Some(serde_json::Value::String(s)) => Ok(s.clone()),
        Some(v) => Err(format!("field `{name}` is {}; expected a string", kind(v))),
        None => Err(format!("no field `{name}`")),
    };
    let label = match layout.label.as_deref().and_then(|n| Some((n, get(n)?))) {
        Some((name, v)) => Label::from_json(v).map_err(|found| format!("field `{name}` is {found}; expected a number or a name"))?,
        None => None,
    };
    let choices = match layout.choices.as_slice() {
        [one] => match get(one) {
            Some(serde_json::Value::Array(items)) => items
                .iter()
                .map(|v| v.as_str().map(str::to_owned).ok_or_else(|| format!("field `{one}` has {} among its texts", kind(v))))
                .collect::<Result<Vec<_>, _>>()?,
            Some(v) => return Err(format!("field `{one}` is {}; expected a list of texts", kind(v))),
            None => return Err(format!("no field `{one}`")),
        },
        several => several.iter().map(|n| text(n)).collect::<Result<_, _>>()?,
    };
    let messages = match &layout.messages {
        None => None,
        Some(name) => match get(name) {
            Some(v @ serde_json::Value::Array(_)) => Some(v.to_string()),
            Some(v) => return Err(format!("field `{name}` is {}; expected a list of turns", kind(v))),
            None => return Err(format!("no field `{name}`")),
        },
    };
    let answers = match &layout.answers {
        None => None,
        Some(name) => {
            Some(Answer::all_from_json(get(name).unwrap_or(&serde_json::Value::Null)).map_err(|why| format!("field `{name}` {why}"))?)
        }
    };
    Ok(Document {
        answers,
        text: layout.text.as_deref().map(text).transpose()?.unwrap_or_default(),
        pair: layout.pair.as_deref().map(text).transpose()?,
        label,
        choices,
        ending: None,
        messages,
    })
}

/// A file's name without the ending of its packing: `a.csv.gz` → `a.csv`.
pub(super) fn plain_name(path: &Path) -> std::path::PathBuf {
    match path.extension().and_then(|e| e.to_str()) {
        Some("gz" | "zst") => path.with_extension(""),
        _ => path.to_owned(),
    }
}

fn kind(v: &serde_json::Value) -> &'static str {
    match v {
        serde_json::Value::Null => "null",
        serde_json::Value::Bool(_) => "true or false",
        serde_json::Value::Number(_) => "a number",
        serde_json::Value::String(_) => "a string",
        serde_json::Value::Array(_) => "a list",
        serde_json::Value::Object(_) => "an object",
    }
}

fn delimited_layout(path: &Path, fields: &Fields, names: &[String], header: bool) -> Result<Layout<usize>, DataError> {
    let absent = |c: &Column| DataError::NoColumn {
        path: path.to_owned(),
        field: c.to_string(),
        found: names.iter().map(|n| n.chars().take(40).collect()).collect(),
        hint: match header {
            true => format!(
                "Name it: `text = \"…\"`, `text_pair`, `label`; if the first row is data already, give columns by number: `text = 0{}`",
                if names.len() > 1 { ", label = 1" } else { "" }
            ),
            false => format!("The rows have {} columns; they count from 0, and without a header they have no names", names.len()),
        },
    };
    let layout = fields.layout(if header || names.is_empty() { names } else { &[] });
    let layout = match layout {
        // Without a header the names are data; columns are then known by number alone.
        Err(_) if !header => {
            let number = |c: &Option<Column>| match c {
                Some(Column::Index(i)) if *i < names.len() => Ok(Some(Column::Index(*i))),
                Some(c) => Err(absent(c)),
                None => Ok(None),
            };
            let choices = fields.choices.iter().map(|c| number(&Some(c.clone()))).collect::<Result<Vec<_>, _>>()?;
            let choices: Vec<Column> = choices.into_iter().flatten().collect();
            let (text, messages) = (number(&fields.text)?, number(&fields.messages)?);
            if text.is_none() && messages.is_none() && choices.is_empty() {
                return Err(absent(&Column::Name("text".into())));
            }
            Layout { text, pair: number(&fields.pair)?, label: number(&fields.label)?, choices, messages, answers: None }
        }
        other => other.map_err(|c| absent(&c))?,
    };
    let index = |c: Column| match &c {
        Column::Index(i) => Ok(*i),
        Column::Name(n) => names.iter().position(|x| x == n).ok_or_else(|| absent(&c)),
    };
    layout.map(index)
}

fn builder(separator: u8, quoting: bool) -> csv::ReaderBuilder {
    let mut builder = csv::ReaderBuilder::new();
    builder.has_headers(false).flexible(true).delimiter(separator).quoting(quoting);
    builder
}

/// Line ends between where a row was counted to begin and its first character: blank lines, and the second half of the CRLF before it.
fn skipped_lines(file: &RawFile, start: u64, end: u64) -> u64 {
    const LOOK: u64 = 4096;
    let bytes = file.read(start, (end - start).min(LOOK) as usize).unwrap_or_default();
    bytes.iter().take_while(|b| matches!(b, b'\n' | b'\r')).filter(|b| **b == b'\n').count() as u64
}

fn csv_error(file: &RawFile, e: csv::Error) -> DataError {
    match e.into_kind() {
        csv::ErrorKind::Io(e) => file.io(e),
        // A byte reader with a flexible width has no other kind of error.
        other => file.io(std::io::Error::other(format!("{other:?}"))),
    }
}

fn not_utf8(file: &RawFile, span: std::ops::Range<u64>, line: u64) -> DataError {
    let bytes = file.read(span.start, (span.end - span.start) as usize).unwrap_or_default();
    let (offset, line) = match std::str::from_utf8(&bytes) {
        Err(e) => {
            let before = bytes.get(..e.valid_up_to()).unwrap_or_default();
            (span.start + e.valid_up_to() as u64, line + before.iter().filter(|b| **b == b'\n').count() as u64)
        }
        Ok(_) => (span.start, line),
    };
    DataError::NotUtf8 { path: file.path().to_owned(), offset, line }
}

/// Whether a row of several lines has quotes that don't pair up: a doubled quote inside a quoted cell counts twice, so a closed row has
/// an even number.
fn unclosed(row: &[u8]) -> bool {
    let row = row.trim_ascii();
    row.contains(&b'\n') && row.iter().filter(|b| **b == b'"').count() % 2 == 1
}
