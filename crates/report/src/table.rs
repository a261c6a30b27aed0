//! A small table that renders as aligned text, Markdown or CSV.

use unicode_width::UnicodeWidthStr;

/// Where a column's cells stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// One cell.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// Words.
    Text(String),
    /// A whole number.
    Count(usize),
    /// A percentage, shown with two decimals and no sign.
    Percent(f64),
    /// Mean and population standard deviation of a percentage.
    MeanStd(f64, f64),
    /// Not measured.
    Missing,
}

impl Cell {
    /// The percentage, or [`Cell::Missing`].
    pub fn percent(value: Option<f64>) -> Self {
        value.map_or(Self::Missing, Self::Percent)
    }

    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Count(count) => count.to_string(),
            Self::Percent(value) => format!("{value:.2}"),
            Self::MeanStd(mean, std) => format!("{mean:.2} ± {std:.2}"),
            Self::Missing => "–".to_owned(),
        }
    }

    /// One CSV field, with full precision.
    fn csv(&self) -> String {
        match self {
            Self::Text(text) => csv_field(text),
            Self::Percent(value) => value.to_string(),
            Self::MeanStd(mean, std) => csv_field(&format!("{mean} ± {std}")),
            Self::Missing => String::new(),
            Self::Count(count) => count.to_string(),
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// Titled columns and rows of cells.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    pub fn new(columns: &[(&str, Align)]) -> Self {
        let own = |(title, align): &(&str, Align)| ((*title).to_owned(), *align);
        Self { columns: columns.iter().map(own).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// If the row has not one cell a column.
    pub fn push(&mut self, row: Vec<Cell>) {
        assert_eq!(row.len(), self.columns.len(), "one cell a column");
        self.rows.push(row);
    }

    /// Columns padded with spaces, a line under the titles, no trailing spaces.
    pub fn to_text(&self) -> String {
        let cells = self.texts();
        let widths = self.widths(&cells);
        let titles: Vec<String> = self.columns.iter().map(|(title, _)| title.clone()).collect();
        let rule: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
        let mut lines = vec![self.line(&titles, &widths, "  "), rule.join("  ")];
        lines.extend(cells.iter().map(|row| self.line(row, &widths, "  ")));
        lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    /// As [`Self::to_text`]; a table wider than `columns` is turned on its side if that makes it narrower: a row's words become a
    /// column's title.
    pub fn to_fitted_text(&self, columns: usize) -> String {
        let width = |text: &str| text.lines().map(UnicodeWidthStr::width).max().unwrap_or(0);
        let upright = self.to_text();
        if width(&upright) <= columns {
            return upright;
        }
        let turned = self.turned().to_text();
        if width(&turned) < width(&upright) { turned } else { upright }
    }

    fn turned(&self) -> Self {
        let cells = self.texts();
        let titles = cells.iter().map(|row| (row[0].clone(), Align::Right));
        let corner = (self.columns[0].0.clone(), Align::Left);
        let row = |column: usize| {
            let values = cells.iter().map(|row| Cell::Text(row[column].clone()));
            std::iter::once(Cell::Text(self.columns[column].0.clone())).chain(values).collect()
        };
        Self {
            columns: std::iter::once(corner).chain(titles).collect(),
            rows: (1..self.columns.len()).map(row).collect(),
        }
    }

    /// A Markdown table, padded so that it reads well as text too.
    pub fn to_markdown(&self) -> String {
        let escape = |text: &String| text.replace('|', "\\|");
        let cells: Vec<Vec<String>> = self.texts().iter().map(|row| row.iter().map(escape).collect()).collect();
        let widths = self.widths(&cells);
        let titles: Vec<String> = self.columns.iter().map(|(title, _)| escape(title)).collect();
        let rule = self.columns.iter().zip(&widths).map(|((_, align), width)| match align {
            Align::Left => "-".repeat(*width),
            Align::Right => format!("{}:", "-".repeat(width.saturating_sub(1).max(1))),
        });
        let mut lines = vec![self.line(&titles, &widths, " | "), rule.collect::<Vec<_>>().join(" | ")];
        lines.extend(cells.iter().map(|row| self.line(row, &widths, " | ")));
        lines.iter().map(|line| format!("| {line} |\n")).collect()
    }

    /// Comma-separated values (RFC 4180 quoting, `\n` line ends) with full precision.
    pub fn to_csv(&self) -> String {
        let titles: Vec<String> = self.columns.iter().map(|(title, _)| csv_field(title)).collect();
        let rows = self.rows.iter().map(|row| row.iter().map(Cell::csv).collect::<Vec<_>>());
        std::iter::once(titles).chain(rows).map(|row| row.join(",") + "\n").collect()
    }

    fn texts(&self) -> Vec<Vec<String>> {
        self.rows.iter().map(|row| row.iter().map(Cell::text).collect()).collect()
    }

    fn widths(&self, cells: &[Vec<String>]) -> Vec<usize> {
        let width = |column: usize| {
            let cells = cells.iter().map(|row| row[column].width());
            cells.chain([self.columns[column].0.width()]).max().unwrap_or(0)
        };
        (0..self.columns.len()).map(width).collect()
    }

    fn line(&self, cells: &[String], widths: &[usize], separator: &str) -> String {
        let padded = cells.iter().zip(widths).zip(&self.columns).map(|((cell, width), (_, align))| {
            let padding = " ".repeat(width.saturating_sub(cell.width()));
            match align {
                Align::Left => cell.clone() + &padding,
                Align::Right => padding + cell,
            }
        });
        padded.collect::<Vec<_>>().join(separator)
    }
}

fn csv_field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(&[("Method", Align::Left), ("All", Align::Right)]);
        table.push(vec!["SimCLR".into(), Cell::Percent(75.546)]);
        table.push(vec!["日本, |x|".into(), Cell::MeanStd(9.0, 0.5)]);
        table.push(vec!["none".into(), Cell::Missing]);
        table
    }

    #[test]
    fn text_aligns_numbers_to_the_right_and_counts_wide_letters_twice() {
        let expected = "\
Method             All
─────────  ───────────
SimCLR           75.55
日本, |x|  9.00 ± 0.50
none                 –
";
        assert_eq!(sample().to_text(), expected);
    }

    #[test]
    fn a_table_too_wide_is_turned_on_its_side() {
        let mut table = Table::new(&[("", Align::Left), ("All", Align::Right), ("Verdict", Align::Left)]);
        table.push(vec!["SimCLR".into(), Cell::MeanStd(75.5, 0.25), "agrees with the paper".into()]);
        let upright = table.to_text();
        assert_eq!(table.to_fitted_text(43), upright);
        let turned = [
            "                        SimCLR",
            "───────  ─────────────────────",
            "All               75.50 ± 0.25",
            "Verdict  agrees with the paper\n",
        ];
        assert_eq!(table.to_fitted_text(42), turned.join("\n"));
        table.push(vec!["SDCLR".into(), Cell::Missing, "x".repeat(40).as_str().into()]);
        assert_eq!(table.to_fitted_text(42), table.to_text(), "on its side it would be wider still");
    }

    #[test]
    fn markdown_marks_the_alignment_and_escapes_bars() {
        let expected = "\
| Method      |         All |
| ----------- | ----------: |
| SimCLR      |       75.55 |
| 日本, \\|x\\| | 9.00 ± 0.50 |
| none        |           – |
";
        assert_eq!(sample().to_markdown(), expected);
    }

    #[test]
    fn csv_keeps_the_precision_and_quotes_commas() {
        assert_eq!(sample().to_csv(), "Method,All\nSimCLR,75.546\n\"日本, |x|\",9 ± 0.5\nnone,\n");
    }
}
