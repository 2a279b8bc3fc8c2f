//! Tables, JSON and YAML on standard output.

use std::io::{self, Write};

use serde_json::Value;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table
    #[value(aliases = ["table", "text"])]
    Short,
    Json,
    Yaml,
}

/// Writes text.
pub(super) fn print(text: &str) -> io::Result<()> {
    io::stdout().lock().write_all(text.as_bytes())
}

/// Writes one document; only for the formats that are documents.
pub(super) fn print_document(value: &Value, format: Format) -> io::Result<()> {
    match format {
        Format::Yaml => print(&serde_saphyr::to_string(value).map_err(io::Error::other)?),
        Format::Json | Format::Short => print(&format!("{value:#}\n")),
    }
}

/// Rows with columns as wide as they must be; the first row is the heading.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 3));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_aligned() {
        let rows = [["NAME", "CDS"], ["edge~1", "SYNCED"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(super::table(&rows), "NAME     CDS\nedge~1   SYNCED\n");
    }
}
