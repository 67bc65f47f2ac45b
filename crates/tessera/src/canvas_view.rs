//! A canvas as it fills, on a terminal: every token in the colour of the step that wrote it.

use std::io::IsTerminal;

use tessera_core::{Event, Position, TokenId, Vocabulary};

use crate::Globals;

/// What stands for a mask.
const MASK: &str = "\u{b7}";

/// Colours of the steps, early to late, of the 256-colour palette: from blue over green to yellow.
const COLOURS: [u8; 12] = [27, 33, 39, 45, 51, 50, 48, 46, 82, 118, 154, 190];

/// A place of the canvas.
#[derive(Debug, Clone, PartialEq)]
enum Cell {
    Mask,
    Given(String),
    /// From a rough answer.
    Guessed(String),
    Written {
        text: String,
        step: u32,
    },
}

/// Draws frames of a canvas. Each replaces the one before.
pub(crate) struct CanvasView<'a> {
    vocabulary: &'a dyn Vocabulary,
    prompt: usize,
    cells: Vec<Cell>,
    columns: usize,
    rows: usize,
    /// Lines of the last frame.
    lines: usize,
}

impl<'a> CanvasView<'a> {
    /// For an answer behind `prompt` tokens, of which those of `given` are known, on a terminal of this
    /// many columns and rows.
    pub(crate) fn new(
        vocabulary: &'a dyn Vocabulary,
        prompt: usize,
        given: &[(Position, TokenId)],
        (columns, rows): (usize, usize),
    ) -> Self {
        let size = (columns.max(8), rows.max(4));
        let mut view =
            Self { vocabulary, prompt, cells: Vec::new(), columns: size.0, rows: size.1, lines: 0 };
        for &(place, token) in given {
            let text = view.text(token);
            view.put(place as usize, Cell::Given(text));
        }
        view
    }

    /// The bytes that show what an event changed; nothing for most events.
    pub(crate) fn hear(&mut self, event: &Event<'_>) -> Option<String> {
        match event {
            Event::Primed { positions, tokens, length, .. } => {
                for (&position, &token) in positions.iter().zip(*tokens) {
                    let cell = Cell::Guessed(self.text(token));
                    self.put((position as usize).saturating_sub(self.prompt), cell);
                }
                self.cells.resize(length.saturating_sub(self.prompt), Cell::Mask);
                Some(self.frame(0))
            }
            Event::Denoised { step, positions, tokens, remasked, length, .. } => {
                for (&position, &token) in positions.iter().zip(*tokens) {
                    let cell = Cell::Written { text: self.text(token), step: *step };
                    self.put((position as usize).saturating_sub(self.prompt), cell);
                }
                for &position in *remasked {
                    self.put((position as usize).saturating_sub(self.prompt), Cell::Mask);
                }
                self.cells.resize(length.saturating_sub(self.prompt), Cell::Mask);
                Some(self.frame(*step))
            }
            // The text itself follows.
            Event::Committed { .. } if self.lines > 0 => Some(self.clear()),
            _ => None,
        }
    }

    fn put(&mut self, place: usize, cell: Cell) {
        if place >= self.cells.len() {
            self.cells.resize(place + 1, Cell::Mask);
        }
        self.cells[place] = cell;
    }

    /// A token on one line, without what would move the cursor.
    fn text(&self, token: TokenId) -> String {
        let text = String::from_utf8_lossy(self.vocabulary.bytes(token)).into_owned();
        let visible = |c: char| match c {
            '\n' => '\u{21b5}',
            c if c.is_control() => '\u{fffd}',
            c => c,
        };
        match self.vocabulary.is_end(token) {
            true => "\u{25a0}".to_owned(),
            false => text.chars().map(visible).collect(),
        }
    }

    /// Moves to the start of the last frame and erases it.
    fn clear(&mut self) -> String {
        let lines = std::mem::take(&mut self.lines);
        match lines {
            0 => String::new(),
            1 => "\r\x1b[J".to_owned(),
            n => format!("\r\x1b[{}A\x1b[J", n - 1),
        }
    }

    fn frame(&mut self, last: u32) -> String {
        let mut out = self.clear();
        let (mut column, mut lines, mut colour) = (0, 1, None);
        let most = self.rows - 1;
        'cells: for cell in &self.cells {
            let (text, wanted) = match cell {
                Cell::Mask => (MASK, None),
                Cell::Given(text) => (text.as_str(), Some("\x1b[1m".to_owned())),
                Cell::Guessed(text) => (text.as_str(), Some("\x1b[2m".to_owned())),
                Cell::Written { text, step } => (text.as_str(), Some(shade(*step, last))),
            };
            if wanted != colour {
                out.push_str(if colour.is_some() { "\x1b[0m" } else { "" });
                out.push_str(wanted.as_deref().unwrap_or_default());
                colour = wanted;
            }
            for c in text.chars() {
                if column == self.columns {
                    if lines == most {
                        break 'cells;
                    }
                    out.push_str("\r\n");
                    (column, lines) = (0, lines + 1);
                }
                out.push(c);
                column += 1;
            }
        }
        out.push_str(if colour.is_some() { "\x1b[0m" } else { "" });
        self.lines = lines;
        out
    }
}

/// Columns and rows of the terminal that stdout is, if a moving picture is wanted there: not under
/// `--json`, `--quiet` or `NO_COLOR`.
pub(crate) fn terminal(globals: &Globals) -> Option<(usize, usize)> {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    if globals.json || globals.quiet || plain || !std::io::stdout().is_terminal() {
        return None;
    }
    let (rows, columns) = console::Term::stdout().size();
    Some((usize::from(columns), usize::from(rows)))
}

/// The colour of a token of step `step` while `last` is the newest: the newest is the last colour.
fn shade(step: u32, last: u32) -> String {
    let at = (step as usize * (COLOURS.len() - 1)).checked_div(last as usize);
    format!("\x1b[38;5;{}m", COLOURS[at.unwrap_or(COLOURS.len() - 1).min(COLOURS.len() - 1)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_testkit::Words;

    fn step<'a>(step: u32, fills: (&'a [u32], &'a [u32]), remasked: &'a [u32]) -> Event<'a> {
        let (positions, tokens) = fills;
        Event::Denoised {
            choice: 0,
            step,
            positions,
            tokens,
            remasked,
            length: 8,
            masks: 0,
            nats: 0.0,
        }
    }

    fn shown(frame: Option<String>) -> String {
        frame.unwrap().replace('\x1b', "^").replace('\r', "<")
    }

    #[test]
    fn a_canvas_fills_in_the_colours_of_its_steps() {
        let words = Words::new(["a", "b\nc", "wide word "]);
        let mut view = CanvasView::new(&words, 2, &[(1, 0)], (8, 24));
        let frames = [
            shown(view.hear(&step(0, (&[2, 5], &[1, 0]), &[]))),
            shown(view.hear(&step(1, (&[4], &[words.end()]), &[5]))),
            shown(view.hear(&step(2, (&[5, 6, 7], &[0, 2, 0]), &[]))),
            shown(view.hear(&Event::Committed { choice: 0, tokens: &[], text: "x" })),
        ];
        insta::assert_snapshot!(frames.join("\n---\n"), @r"
        ^[38;5;190mb↵c^[0m^[1ma^[0m·^[38;5;190ma^[0m··
        ---
        <^[J^[38;5;27mb↵c^[0m^[1ma^[0m^[38;5;190m■^[0m···
        ---
        <^[J^[38;5;27mb↵c^[0m^[1ma^[0m^[38;5;50m■^[0m^[38;5;190mawi<
        de word <
        a^[0m
        ---
        <^[2A^[J
        ");
        // Nothing is left to erase, and other events show nothing.
        assert_eq!(view.hear(&Event::Committed { choice: 0, tokens: &[], text: "x" }), None);
        assert_eq!(view.hear(&Event::Step { rows: 1, committed: 1 }), None);
    }

    #[test]
    fn a_frame_never_scrolls() {
        let words = Words::new(["abcdefgh"]);
        let mut view = CanvasView::new(&words, 0, &[], (8, 4));
        let tokens = [0; 8];
        let frame = view.hear(&step(0, (&[0, 1, 2, 3, 4, 5, 6, 7], &tokens), &[])).unwrap();
        assert_eq!((frame.matches("\r\n").count(), view.lines), (2, 3));
    }
}
