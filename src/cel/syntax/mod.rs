//! Text to tree: lexer, parser and macros.
//!
//! Always true:
//! - Time and memory are linear in the text; its size, nesting and number of nodes are bounded.
//! - Whatever the text, the parser returns: a tree, or at least one issue.
//!
//! The grammar is that of cel-go; so are the words and positions of messages, except that
//! parsing stops at the first token that cannot be repaired by leaving it out.

mod build;
mod lexer;
mod literal;
mod macros;
mod macros_bind;
mod parser;
#[cfg(test)]
mod tests;
mod token;

use super::{ast::Ast, issue::Issues, source::Source};

/// Longest text that is parsed, in characters.
const MAX_CHARACTERS: usize = 100_000;

/// Words that are no variables. They may be fields and member functions.
pub(crate) const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Parses `source`, macros expanded.
pub(crate) fn parse(source: &Source) -> Result<Ast, Issues> {
    let mut issues = Issues::new(source);
    // Counting characters is linear; four bytes each is the most they can have.
    let length = source.text().chars().count();
    if length > MAX_CHARACTERS {
        issues.report_whole(format!(
            "expression code point size exceeds limit: size: {length}, limit {MAX_CHARACTERS}"
        ));
        return Err(issues);
    }
    let tokens = lexer::tokens(source.text(), &mut issues);
    parser::parse(source.text(), &tokens, issues)
}
