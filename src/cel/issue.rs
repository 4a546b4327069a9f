//! What is wrong with an expression, printed as cel-go prints it: position, message, the line and a caret.

use std::fmt;

use super::source::{Location, Source};

/// More than these are counted, not kept.
const MAX_ISSUES: usize = 100;
/// A longer line is not quoted (bytes).
const MAX_SNIPPET: usize = 16384;

/// One fault of an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// `None` for what concerns the text as a whole, such as its size.
    pub location: Option<Location>,
    pub message: String,
}

/// Every fault of one expression, in the order of the text. Never empty when given to a caller.
#[derive(Clone, Debug)]
pub struct Issues {
    source: Source,
    issues: Vec<Issue>,
    total: usize,
}

impl Issues {
    pub(crate) fn new(source: &Source) -> Self {
        Self {
            source: source.clone(),
            issues: Vec::new(),
            total: 0,
        }
    }

    pub(crate) fn report(&mut self, offset: u32, message: impl Into<String>) {
        let location = Some(self.source.location(offset));
        self.push(location, message.into());
    }

    pub(crate) fn report_whole(&mut self, message: impl Into<String>) {
        self.push(None, message.into());
    }

    fn push(&mut self, location: Option<Location>, message: String) {
        self.total += 1;
        if self.issues.len() < MAX_ISSUES {
            self.issues.push(Issue { location, message });
            self.issues.sort_by_key(|issue| issue.location);
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.total > MAX_ISSUES
    }

    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// At most 100 of them.
    pub fn iter(&self) -> impl Iterator<Item = &Issue> {
        self.issues.iter()
    }
}

impl std::error::Error for Issues {}

impl fmt::Display for Issues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, issue) in self.issues.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write_issue(f, &self.source, issue)?;
        }
        if self.total > self.issues.len() {
            let more = self.total - self.issues.len();
            write!(f, "\n{more} more errors were truncated")?;
        }
        Ok(())
    }
}

fn write_issue(f: &mut fmt::Formatter<'_>, source: &Source, issue: &Issue) -> fmt::Result {
    let Some(location) = issue.location else {
        return write!(f, "ERROR: <input>:-1:0: {}", issue.message);
    };
    let Location { line, column } = location;
    write!(f, "ERROR: <input>:{line}:{}: {}", column + 1, issue.message)?;
    let Some(text) = source.line(line).filter(|text| text.len() <= MAX_SNIPPET) else {
        return Ok(());
    };
    write!(f, "\n | {}\n | ", text.replace('\t', " "))?;
    let mut rest = text.chars();
    for one in rest.by_ref().take(column as usize) {
        f.write_str(if one.is_ascii() { "." } else { "\u{ff0e}" })?;
    }
    let wide = rest.next().is_some_and(|one| !one.is_ascii());
    f.write_str(if wide { "\u{ff3e}" } else { "^" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_with_line_and_caret() {
        let mut issues = Issues::new(&Source::new("a +\n\tbé(c)"));
        issues.report(9, "second");
        issues.report(2, "first");
        issues.report_whole("all of it");
        let want = "ERROR: <input>:-1:0: all of it\n\
                    ERROR: <input>:1:3: first\n | a +\n | ..^\n\
                    ERROR: <input>:2:5: second\n |  bé(c)\n | ..\u{ff0e}.^";
        assert_eq!(issues.to_string(), want);
    }

    #[test]
    fn no_more_than_a_hundred() {
        let mut issues = Issues::new(&Source::new("a"));
        for _ in 0..103 {
            issues.report(0, "x");
        }
        assert!(
            issues
                .to_string()
                .ends_with("\n3 more errors were truncated")
        );
        assert_eq!(issues.iter().count(), MAX_ISSUES);
    }
}
