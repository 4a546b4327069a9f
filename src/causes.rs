//! An error with all that caused it, for a person to read.

use std::error::Error;

/// An error and its causes on one line, each said once.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Caused(&'static str, #[source] Option<Box<Caused>>);

    #[test]
    fn each_cause_is_said_once() {
        let disk = Caused("no space left", None);
        let write = Caused("write x: no space left", Some(Box::new(disk)));
        let save = Caused("save", Some(Box::new(write)));
        assert_eq!(causes(&save), "save: write x: no space left");
    }
}
