//! Sets of completion indexes, written as `1,3-5,7`. Pure.

use std::{collections::BTreeSet, fmt};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes(pub BTreeSet<i32>);

impl Indexes {
    /// Reads the form of a Job's status; what is not of that form, or not below `below`, is left
    /// out.
    pub fn parse(text: &str, below: i32) -> Self {
        let mut set = BTreeSet::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
                set.extend(first.max(0)..=last.min(below - 1));
            }
        }
        Self(set)
    }

    pub fn count(&self) -> i32 {
        i32::try_from(self.0.len()).unwrap_or(i32::MAX)
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while rest.next_if_eq(&(last + 1)).is_some() {
                last += 1;
            }
            match last - first {
                0 => write!(f, "{separator}{first}")?,
                1 => write!(f, "{separator}{first},{last}")?,
                _ => write!(f, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        // Source: documentation of `completedIndexes` in the Job API.
        for (text, count) in [("", 0), ("1", 1), ("1,3-5,7", 5), ("0,1", 2), ("0-2", 3)] {
            let indexes = Indexes::parse(text, 100);
            assert_eq!(indexes.count(), count, "{text}");
            assert_eq!(indexes.to_string(), text);
        }
        assert_eq!(Indexes::parse("0-9", 3).to_string(), "0-2");
    }
}
