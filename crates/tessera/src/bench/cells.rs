//! The cells of a benchmark: their names, and which of them a run measures.

use std::fmt;

use tessera_core::entry::nearest;

/// One thing to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cell {
    /// One pass over this many tokens from an empty cache.
    Prefill(usize),
    /// Passes of one row after this many tokens.
    Decode(usize),
    /// One pass of `rows` rows after `context` tokens.
    Rows { rows: usize, context: usize },
}

/// Row counts of a pass that checks a draft.
const ROWS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Context of the row cells.
const ROWS_CONTEXT: usize = 256;

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefill(n) => write!(f, "prefill{n}"),
            Self::Decode(c) => write!(f, "decode{c}"),
            Self::Rows { rows, context } => write!(f, "rows{rows}@{context}"),
        }
    }
}

impl Cell {
    /// Every cell, or those of a quick run (nothing at a context of 4096).
    pub(crate) fn all(quick: bool) -> Vec<Self> {
        let contexts: &[usize] = if quick { &[0, 1024] } else { &[0, 1024, 4096] };
        let mut cells = vec![Self::Prefill(512)];
        cells.extend(contexts.iter().map(|&c| Self::Decode(c)));
        cells.extend(ROWS.map(|rows| Self::Rows { rows, context: ROWS_CONTEXT }));
        cells
    }

    /// Reads a cell's name; any size is fine, not only the standard ones.
    pub(crate) fn parse(name: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<usize>().ok().filter(|&n| n <= 1 << 20);
        let cell = if let Some(n) = name.strip_prefix("prefill") {
            number(n).filter(|&n| n > 0).map(Self::Prefill)
        } else if let Some(c) = name.strip_prefix("decode") {
            number(c).map(Self::Decode)
        } else if let Some((rows, context)) =
            name.strip_prefix("rows").and_then(|rest| rest.split_once('@'))
        {
            let rows = number(rows).filter(|&n| n > 0);
            rows.zip(number(context)).map(|(rows, context)| Self::Rows { rows, context })
        } else {
            None
        };
        cell.ok_or_else(|| {
            let names: Vec<String> = Self::all(false).iter().map(Self::to_string).collect();
            let near = nearest(name, names.iter().map(String::as_str));
            match near.first() {
                Some(near) => format!("no cell is called `{name}`; did you mean `{near}`?"),
                None => format!("no cell is called `{name}`; the cells are {}", names.join(", ")),
            }
        })
    }

    /// Tokens of the stream that the cell reads, when decoding makes `steps` passes.
    pub(crate) fn tokens(self, steps: usize) -> usize {
        match self {
            Self::Prefill(n) => n,
            Self::Decode(c) => c + steps,
            Self::Rows { rows, context } => rows + context,
        }
    }

    /// Whether larger numbers are better: tokens per second, as opposed to milliseconds.
    pub(crate) fn is_rate(self) -> bool {
        !matches!(self, Self::Rows { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_as_the_cells_they_name() {
        for cell in Cell::all(false) {
            assert_eq!(Cell::parse(&cell.to_string()), Ok(cell));
        }
        assert_eq!(Cell::all(false).len(), 11);
        assert!(!Cell::all(true).contains(&Cell::Decode(4096)));
        assert_eq!(Cell::parse("rows3@17"), Ok(Cell::Rows { rows: 3, context: 17 }));
    }

    #[test]
    fn wrong_names_are_refused_with_the_nearest() {
        assert!(Cell::parse("prefil512").unwrap_err().contains("`prefill512`"));
        for bad in ["", "decode", "prefill0", "rows0@1", "rows1", "decode-1", "prefill99999999"] {
            assert!(Cell::parse(bad).is_err(), "{bad}");
        }
    }
}
