//! Strings and bytes, borrowed from JSON or from a program, or made.

use std::{ops::Deref, sync::Arc};

#[derive(Clone, Debug)]
pub enum Text<'a> {
    Borrowed(&'a str),
    Shared(Arc<str>),
}

#[derive(Clone, Debug)]
pub enum Blob<'a> {
    Borrowed(&'a [u8]),
    Shared(Arc<[u8]>),
}

impl Text<'_> {
    /// Length as expressions count it.
    pub(crate) fn characters(&self) -> u64 {
        if self.is_ascii() {
            self.len() as u64
        } else {
            self.chars().count() as u64
        }
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

impl Deref for Blob<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}
