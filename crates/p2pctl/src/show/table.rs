//! Tables.

use super::{Line, Text};

/// Rows of cells below an optional header. A row with a single cell spans all columns. The last column gets the
/// remaining width and is wrapped to it.
#[derive(Debug, Default)]
pub(crate) struct Table {
    head: Vec<Line>,
    rows: Vec<Vec<Line>>,
    right: Vec<usize>,
}

/// Gap between columns.
const GAP: usize = 2;
/// Minimum width of the last column. The table may exceed the requested width because of it.
const LEAST: usize = 16;

impl Table {
    pub(crate) fn new<const N: usize>(head: [&str; N]) -> Self {
        Self {
            head: head.iter().map(|h| Line::new().dim(h)).collect(),
            ..Self::default()
        }
    }

    /// Aligns a column to the right.
    pub(crate) fn right(mut self, column: usize) -> Self {
        self.right.push(column);
        self
    }

    pub(crate) fn row(&mut self, cells: Vec<Line>) {
        self.rows.push(cells);
    }

    /// Renders the table in at most `width` columns if possible. Empty columns are left out.
    pub(crate) fn render(&self, width: usize) -> Text {
        let widths = self.widths();
        let last = widths.iter().rposition(|w| *w > 0).unwrap_or(0);
        let before: usize = widths
            .iter()
            .take(last)
            .filter(|w| **w > 0)
            .map(|w| w + GAP)
            .sum();
        let room = width.saturating_sub(before).max(LEAST);
        let mut text = Text::new();
        let head = (!self.head.is_empty()).then_some(&self.head);
        for row in head.into_iter().chain(&self.rows) {
            if let [whole] = row.as_slice() {
                text.push(whole.clone());
                continue;
            }
            let mut line = Line::new();
            let mut tail = Vec::new().into_iter();
            for (column, (cell, cell_width)) in row.iter().zip(&widths).enumerate() {
                if *cell_width == 0 {
                    continue;
                }
                if column == last {
                    tail = cell.wrap(room).into_iter();
                    line = line.then(&tail.next().unwrap_or_default());
                } else if self.right.contains(&column) {
                    let lead = cell_width.saturating_sub(cell.width());
                    line = line.plain(" ".repeat(lead)).then(cell).plain("  ");
                } else {
                    let end = line.width() + cell_width + GAP;
                    line = line.then(cell).pad(end);
                }
            }
            text.push(line);
            for part in tail {
                text.push(Line::new().pad(before).then(&part));
            }
        }
        text
    }

    /// The width of each column; 0 for an empty one.
    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        (0..columns)
            .map(|column| {
                let widest = |rows: &[Vec<Line>]| {
                    let rows = rows.iter().filter(|row| row.len() > 1);
                    let cells = rows.filter_map(|row| row.get(column));
                    cells.map(Line::width).max().unwrap_or(0)
                };
                match widest(&self.rows) {
                    0 => 0,
                    content => content.max(self.head.get(column).map_or(0, Line::width)),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["GROUP", "FUNCTION", "EMPTY", "DRIVER"]).right(0);
        for (group, function, driver) in [
            ("6", "03:00.0", "vfio-pci"),
            ("", "03:00.1", ""),
            ("12", "04:00.0", "a driver of many words"),
        ] {
            table.row(vec![
                group.into(),
                function.into(),
                Line::new(),
                driver.into(),
            ]);
        }
        table
    }

    #[test]
    fn columns_are_as_wide_as_they_need_and_empty_ones_are_gone() {
        assert_eq!(
            table().render(80).render(false),
            "\
GROUP  FUNCTION  DRIVER
    6  03:00.0   vfio-pci
       03:00.1
   12  04:00.0   a driver of many words
"
        );
    }

    #[test]
    fn the_last_column_is_broken() {
        assert_eq!(
            table().render(34).render(false),
            "\
GROUP  FUNCTION  DRIVER
    6  03:00.0   vfio-pci
       03:00.1
   12  04:00.0   a driver of many
                 words
"
        );
    }
}
