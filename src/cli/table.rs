//! Columns of text.

use std::io::{self, Write};

/// Between two columns.
const GAP: usize = 3;

/// Writes a head and rows, each column as wide as its widest cell. What others wrote must not move the cursor
/// of whoever reads it.
pub fn write<const N: usize>(
    out: &mut dyn Write,
    head: &[&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> io::Result<()> {
    let head = head.map(str::to_owned);
    let rows = rows.into_iter().map(|row| row.map(|cell| printable(&cell)));
    let lines: Vec<[String; N]> = [head].into_iter().chain(rows).collect();
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0) + GAP
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    for line in &lines {
        let cells = line.iter().zip(&widths);
        let text: String = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        writeln!(out, "{}", text.trim_end())?;
    }
    Ok(())
}

/// Text of somebody else on one line.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|one| if one.is_control() { ' ' } else { one })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut out = Vec::new();
        let rows = [["a", "long\u{1b}[2J"], ["longer", ""]];
        let rows = rows.map(|row| row.map(str::to_owned));
        write(&mut out, &["NAME", "B"], rows).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "NAME     B\na        long [2J\nlonger\n");
    }
}
