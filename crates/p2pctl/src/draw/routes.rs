//! The verdict matrix beside the devices of a picture.

use std::collections::BTreeMap;

use iommu_group::Sbdf;

use super::layout::{Layout, ROW};
use super::palette;
use super::picture::{LEGEND_STEP, Request};
use super::svg::{Font, Rect, Svg};
use crate::command::matrix::{Cell, Matrix};

/// Width of a column.
const COLUMN: i32 = 26;
/// Height above the first row, for the column names.
const HEAD: i32 = 14;

/// The matrix of a picture, and the rows of its devices.
pub(super) struct Routes<'a> {
    matrix: &'a Matrix,
    /// Vertical centre of each function's row; functions that are not drawn have none.
    rows: BTreeMap<Sbdf, i32>,
    names: BTreeMap<Sbdf, String>,
    left: i32,
}

impl<'a> Routes<'a> {
    /// Places the matrix to the right of the devices.
    pub(super) fn place(layout: &Layout<'_>, request: &Request<'a>, left: i32) -> Self {
        let mut rows = BTreeMap::new();
        layout.walk(&mut |node| {
            if node.is_endpoint() && node.virtual_functions.is_none() {
                rows.insert(node.function.sbdf(), node.y);
            }
        });
        let names = rows
            .keys()
            .map(|sbdf| (*sbdf, request.names.of(*sbdf)))
            .collect();
        Self {
            matrix: request.matrix,
            rows,
            names,
            left,
        }
    }

    /// Whether the matrix has no pairs.
    fn is_empty(&self) -> bool {
        self.matrix.functions.len() < 2
    }

    fn columns(&self) -> impl Iterator<Item = (Sbdf, i32)> {
        let left = self.left + COLUMN / 2;
        let middles = (0_i32..).map(move |index| left + index * COLUMN);
        self.matrix.functions.iter().copied().zip(middles)
    }

    /// The right edge.
    pub(super) fn right(&self) -> i32 {
        if self.is_empty() {
            return self.left;
        }
        self.columns()
            .last()
            .map_or(self.left, |(_, x)| x + COLUMN / 2)
    }

    pub(super) fn draw(&self, svg: &mut Svg) {
        if self.is_empty() {
            return;
        }
        let top = self.rows.values().min().copied().unwrap_or(0) - ROW / 2;
        for (column, x) in self.columns() {
            let name = self.names.get(&column).cloned().unwrap_or_default();
            svg.upright(x + 4, top + HEAD - 16, Font::new(10, palette::FAINT), &name);
        }
        for (from, cells) in self.matrix.functions.iter().zip(&self.matrix.cells) {
            let Some(y) = self.rows.get(from).copied() else {
                continue;
            };
            svg.rect(Rect {
                x: self.left,
                y: y - ROW / 2 + 5,
                width: self.right() - self.left,
                height: ROW - 10,
                radius: 4,
                fill: palette::PANEL,
                stroke: "none",
            });
            for (cell, (to, x)) in cells.iter().zip(self.columns()) {
                let name = |sbdf| self.names.get(sbdf).cloned().unwrap_or_default();
                svg.open(&format!(
                    "{} → {}: {}",
                    name(from),
                    name(&to),
                    cell.meaning()
                ));
                mark(svg, x, y, *cell);
                svg.close();
            }
        }
    }

    /// The legend of the signs. Returns its bottom edge.
    pub(super) fn legend(&self, svg: &mut Svg, top: i32) -> i32 {
        let mut y = top;
        if self.is_empty() {
            return y;
        }
        let ink = Font::new(11, palette::INK);
        let x = super::layout::MARGIN;
        svg.text(x, y, ink, "at the right, who may reach whom: from the device of the row to the device of the column");
        y += LEGEND_STEP;
        for cell in self.matrix.used() {
            mark(svg, x + 8, y - 4, cell);
            svg.text(x + 24, y, ink, cell.meaning());
            y += LEGEND_STEP;
        }
        y
    }
}

fn mark(svg: &mut Svg, x: i32, y: i32, cell: Cell) {
    let colour = palette::ink(cell.tone());
    match cell {
        Cell::Direct => svg.circle(x, y, 7, colour, colour),
        Cell::DirectTranslated => {
            svg.circle(x, y, 7, "#ffffff", colour);
            svg.circle(x, y, 3, colour, colour);
        }
        Cell::ThroughIommu => svg.circle(x, y, 7, "#ffffff", colour),
        other => svg.text(
            x,
            y + 4,
            Font::new(12, colour).middle(),
            &other.sign().to_string(),
        ),
    }
}
