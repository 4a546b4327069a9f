//! The text of an expression, and where in it something is.

use std::sync::Arc;

/// An expression's text. Positions are byte offsets; lines and columns are worked out when asked for.
#[derive(Clone, Debug)]
pub struct Source {
    text: Arc<str>,
}

/// A place in the text as people count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// From 1 on.
    pub line: u32,
    /// From 0 on, in characters.
    pub column: u32,
}

impl Source {
    pub fn new(text: &str) -> Self {
        Self { text: text.into() }
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// The place of the byte at `offset`; an offset past the end counts as the end.
    pub fn location(&self, offset: u32) -> Location {
        let offset = self.text.len().min(offset as usize);
        let end = (0..=offset)
            .rev()
            .find(|at| self.text.is_char_boundary(*at));
        let end = end.unwrap_or(0);
        let before = &self.text[..end];
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Location {
            line: count(before.matches('\n').count()) + 1,
            column: count(before[start..].chars().count()),
        }
    }

    /// The text of a line, without its end.
    pub fn line(&self, line: u32) -> Option<&str> {
        self.text.split('\n').nth(line.checked_sub(1)? as usize)
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let source = Source::new("a\n bé+\n");
        for (offset, line, column) in [(0, 1, 0), (1, 1, 1), (2, 2, 0), (6, 2, 3), (99, 3, 0)] {
            let found = source.location(offset);
            assert_eq!(
                (found.line, found.column),
                (line, column),
                "offset {offset}"
            );
        }
        assert_eq!(source.line(2), Some(" bé+"));
        assert_eq!(source.line(0), None);
        assert_eq!(source.line(9), None);
    }
}
