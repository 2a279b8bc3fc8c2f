//! `--data`: rows of a CSV file, whose values stand where a request says `{{column}}`.

use std::fs;
use std::path::Path;

use super::setup::SetupError;

/// A file that has been understood (RFC 4180).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    path: String,
    pub columns: Vec<String>,
    /// Line of the file, and as many values as there are columns.
    pub rows: Vec<(usize, Vec<String>)>,
}

/// Why a text is no table: where, and what is wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {what}")]
pub struct BadTable {
    pub line: usize,
    pub column: usize,
    pub what: String,
}

impl Table {
    /// The table in the file `path`.
    ///
    /// Errors: the file cannot be read, or is no CSV with a line of names first.
    pub fn read(path: &Path) -> Result<Table, SetupError> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|source| SetupError::File { path: name.clone(), source })?;
        let (columns, rows) = parse(&text).map_err(|error| SetupError::Data { path: name.clone(), error })?;
        Ok(Table { path: name, columns, rows })
    }

    /// `template` with the values of `row`.
    ///
    /// Errors: it names a column that does not exist.
    pub fn fill(&self, template: &str, row: &[String]) -> Result<String, SetupError> {
        let mut out = String::with_capacity(template.len());
        let mut rest = template;
        while let Some((before, after)) = rest.split_once("{{") {
            let Some((name, after)) = after.split_once("}}") else { break };
            let known = self.columns.iter().position(|column| column == name.trim());
            let value = known.and_then(|at| row.get(at)).ok_or_else(|| SetupError::Column {
                name: name.to_owned(),
                path: self.path.clone(),
                columns: self.columns.join(", "),
            })?;
            out.push_str(before);
            out.push_str(value);
            rest = after;
        }
        out.push_str(rest);
        Ok(out)
    }

    /// `what` is wrong with the row at `line`.
    pub fn bad(&self, line: usize, what: String) -> SetupError {
        SetupError::Data { path: self.path.clone(), error: BadTable { line, column: 1, what } }
    }
}

type Rows = Vec<(usize, Vec<String>)>;

/// Names of the columns, and the rows.
pub fn parse(text: &str) -> Result<(Vec<String>, Rows), BadTable> {
    let mut records = records(text.trim_start_matches('\u{feff}'))?.into_iter();
    let bad = |line, what: &str| BadTable { line, column: 1, what: what.to_owned() };
    let Some((_, columns)) = records.next() else {
        return Err(bad(1, "the names of the columns are wanted first, as: user,item"));
    };
    let columns: Vec<String> = columns.iter().map(|name| name.trim().to_owned()).collect();
    if columns.iter().any(String::is_empty) {
        return Err(bad(1, "a column without a name"));
    }
    let mut rows = Vec::new();
    for (line, values) in records {
        if values.len() != columns.len() {
            let what = format!("{} values where there are {} columns", values.len(), columns.len());
            return Err(BadTable { line, column: 1, what });
        }
        rows.push((line, values));
    }
    if rows.is_empty() { Err(bad(2, "a row with values is wanted")) } else { Ok((columns, rows)) }
}

/// The records with the line at which each begins; empty lines are none.
fn records(text: &str) -> Result<Rows, BadTable> {
    let mut records = Vec::new();
    let mut record: Vec<String> = Vec::new();
    let mut value = String::new();
    let (mut line, mut column, mut begun) = (1, 0, 1);
    // Inside quotes; behind the quote that ended them.
    let (mut quoted, mut closed) = (None, false);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        column += 1;
        let bad = |what: &str| BadTable { line, column, what: what.to_owned() };
        match (character, quoted.is_some()) {
            ('"', true) if characters.peek() == Some(&'"') => {
                characters.next();
                column += 1;
                value.push('"');
            }
            ('"', true) => (quoted, closed) = (None, true),
            ('"', false) if value.is_empty() && !closed => quoted = Some((line, column)),
            ('"', false) => return Err(bad("a quote in the middle of a value; double it, and quote the whole value")),
            (',', false) => {
                record.push(std::mem::take(&mut value));
                closed = false;
            }
            ('\r', false) if characters.peek() == Some(&'\n') => {}
            ('\n', false) => {
                if !record.is_empty() || !value.is_empty() || closed {
                    record.push(std::mem::take(&mut value));
                    records.push((begun, std::mem::take(&mut record)));
                }
                closed = false;
                (line, column) = (line + 1, 0);
                begun = line;
            }
            (_, false) if closed => return Err(bad("more text behind a quoted value")),
            (other, _) => {
                value.push(other);
                if other == '\n' {
                    (line, column) = (line + 1, 0);
                }
            }
        }
    }
    if let Some((line, column)) = quoted {
        return Err(BadTable { line, column, what: "a quote that does not end".to_owned() });
    }
    if !record.is_empty() || !value.is_empty() || closed {
        record.push(value);
        records.push((begun, record));
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_understood() {
        let text = "user, item\r\nann,1\n\n\"a \"\"b\"\", c\n2\",\"\"\nlast,9";
        let (columns, rows) = parse(text).unwrap();
        assert_eq!(columns, ["user", "item"]);
        let expected = [(2, ["ann", "1"]), (4, ["a \"b\", c\n2", ""]), (6, ["last", "9"])];
        assert_eq!(rows, expected.map(|(line, values)| (line, values.map(str::to_owned).to_vec())));
    }

    #[test]
    fn errors_say_where_and_how() {
        for (text, expected) in [
            ("", "1:1: the names of the columns are wanted first, as: user,item"),
            ("a,b\n", "2:1: a row with values is wanted"),
            ("a,\n1,2", "1:1: a column without a name"),
            ("a,b\n1,2\n1", "3:1: 1 values where there are 2 columns"),
            ("a\nx\"y", "2:2: a quote in the middle of a value"),
            ("a\n\"x\"y", "2:4: more text behind a quoted value"),
            ("a\nx\n\"y\nz", "3:1: a quote that does not end"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }

    #[test]
    fn templates_are_filled() {
        let table = Table { path: "f.csv".to_owned(), columns: vec!["a".to_owned(), "b".to_owned()], rows: Vec::new() };
        let row = ["1".to_owned(), "{{a}}".to_owned()];
        assert_eq!(table.fill("x{{a}}-{{ b }}}} {{", &row).unwrap(), "x1-{{a}}}} {{");
        let error = table.fill("{{c}}", &row).unwrap_err().to_string();
        assert_eq!(error, "`{{c}}`: f.csv has no such column; it has: a, b");
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "(?s)[a\",\r\n ]{0,60}") {
            if let Ok((columns, rows)) = parse(&text) {
                assert!(rows.iter().all(|(_, values)| values.len() == columns.len()));
            }
        }
    }
}
