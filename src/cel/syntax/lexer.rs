//! Text to tokens. Linear, and without recursion.

use super::token::{Token, TokenKind};
use crate::cel::issue::Issues;

/// Tokens of `text`, an end token last. What is no token is reported and passed over.
pub(crate) fn tokens(text: &str, issues: &mut Issues) -> Vec<Token> {
    let mut lexer = Lexer {
        text,
        bytes: text.as_bytes(),
        at: 0,
    };
    let mut found = Vec::new();
    while lexer.skip_blank() {
        let start = lexer.at;
        match lexer.token() {
            Ok(kind) => found.push(Token {
                kind,
                start: offset(start),
                end: offset(lexer.at),
            }),
            Err(end) => {
                let shown = shown(&text[start..end]);
                let message = format!("Syntax error: token recognition error at: '{shown}'");
                issues.report(offset(start), message);
                lexer.at = end;
                if issues.is_full() {
                    break;
                }
            }
        }
    }
    found.push(Token {
        kind: TokenKind::End,
        start: offset(text.len()),
        end: offset(text.len()),
    });
    found
}

/// Texts are bounded far below 4 GiB before they come here.
fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

fn shown(text: &str) -> String {
    text.replace('\n', "\\n")
        .replace('\r', "\\r")
        .replace('\t', "\\t")
}

struct Lexer<'t> {
    text: &'t str,
    bytes: &'t [u8],
    at: usize,
}

/// A token's kind, or where the text that is none ends.
type Lexed = Result<TokenKind, usize>;

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    /// Passes blanks and comments; false at the end of the text.
    fn skip_blank(&mut self) -> bool {
        loop {
            match self.peek(0) {
                b' ' | b'\t' | b'\r' | b'\n' | 0x0c => self.at += 1,
                b'/' if self.peek(1) == b'/' => {
                    let rest = &self.text[self.at..];
                    self.at += rest.find('\n').unwrap_or(rest.len());
                }
                _ => return self.at < self.bytes.len(),
            }
        }
    }

    fn token(&mut self) -> Lexed {
        match self.peek(0) {
            b'0'..=b'9' => Ok(self.number()),
            b'.' if self.peek(1).is_ascii_digit() => Ok(self.number()),
            b'"' | b'\'' => self.string(0, false, TokenKind::String),
            b'r' | b'R' if is_quote(self.peek(1)) => self.string(1, true, TokenKind::String),
            b'b' | b'B' if is_quote(self.peek(1)) => self.string(1, false, TokenKind::Bytes),
            b'b' | b'B' if matches!(self.peek(1), b'r' | b'R') && is_quote(self.peek(2)) => {
                self.string(2, true, TokenKind::Bytes)
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => Ok(self.word()),
            b'`' => self.escaped(),
            _ => self.symbol(),
        }
    }

    fn symbol(&mut self) -> Lexed {
        use TokenKind::*;
        let (kind, length) = match (self.peek(0), self.peek(1)) {
            (b'=', b'=') => (Equals, 2),
            (b'!', b'=') => (NotEquals, 2),
            (b'<', b'=') => (LessEquals, 2),
            (b'>', b'=') => (GreaterEquals, 2),
            (b'&', b'&') => (And, 2),
            (b'|', b'|') => (Or, 2),
            (b'<', _) => (Less, 1),
            (b'>', _) => (Greater, 1),
            (b'[', _) => (LeftBracket, 1),
            (b']', _) => (RightBracket, 1),
            (b'{', _) => (LeftBrace, 1),
            (b'}', _) => (RightBrace, 1),
            (b'(', _) => (LeftParen, 1),
            (b')', _) => (RightParen, 1),
            (b'.', _) => (Dot, 1),
            (b',', _) => (Comma, 1),
            (b'-', _) => (Minus, 1),
            (b'!', _) => (Not, 1),
            (b'?', _) => (Question, 1),
            (b':', _) => (Colon, 1),
            (b'+', _) => (Plus, 1),
            (b'*', _) => (Star, 1),
            (b'/', _) => (Slash, 1),
            (b'%', _) => (Percent, 1),
            // Half of a token: the character that does not go on belongs to what is reported.
            (b'=' | b'&' | b'|', _) => return Err(self.after(self.at + 1)),
            _ => return Err(self.after(self.at)),
        };
        self.at += length;
        Ok(kind)
    }

    /// Where the character at `at` ends.
    fn after(&self, at: usize) -> usize {
        let length = self.text[at..].chars().next().map_or(0, char::len_utf8);
        at + length
    }

    fn digits(&mut self, from: usize, is_digit: fn(&u8) -> bool) -> usize {
        let rest = self.bytes.get(from..).unwrap_or_default();
        from + rest.iter().take_while(|byte| is_digit(byte)).count()
    }

    fn number(&mut self) -> TokenKind {
        if self.peek(0) == b'0' && self.peek(1) == b'x' && self.peek(2).is_ascii_hexdigit() {
            self.at = self.digits(self.at + 2, u8::is_ascii_hexdigit);
            return self.maybe_unsigned();
        }
        let mut end = self.digits(self.at, u8::is_ascii_digit);
        let mut float = false;
        let byte = |at: usize| self.bytes.get(at).copied().unwrap_or(0);
        if byte(end) == b'.' && byte(end + 1).is_ascii_digit() {
            float = true;
            end = self.digits(end + 1, u8::is_ascii_digit);
        }
        let byte = |at: usize| self.bytes.get(at).copied().unwrap_or(0);
        if matches!(byte(end), b'e' | b'E') {
            let signed = usize::from(matches!(byte(end + 1), b'+' | b'-'));
            if byte(end + 1 + signed).is_ascii_digit() {
                float = true;
                end = self.digits(end + 1 + signed, u8::is_ascii_digit);
            }
        }
        self.at = end;
        if float {
            TokenKind::Float
        } else {
            self.maybe_unsigned()
        }
    }

    fn maybe_unsigned(&mut self) -> TokenKind {
        if matches!(self.peek(0), b'u' | b'U') {
            self.at += 1;
            TokenKind::Uint
        } else {
            TokenKind::Int
        }
    }

    fn word(&mut self) -> TokenKind {
        let start = self.at;
        self.at = self.digits(self.at, |byte| {
            byte.is_ascii_alphanumeric() || *byte == b'_'
        });
        match &self.text[start..self.at] {
            "in" => TokenKind::In,
            "true" => TokenKind::True,
            "false" => TokenKind::False,
            "null" => TokenKind::Null,
            _ => TokenKind::Identifier,
        }
    }

    /// `` `a.b/c-d` ``: a field whose name is no identifier.
    fn escaped(&mut self) -> Lexed {
        let end = self.digits(self.at + 1, |byte| {
            byte.is_ascii_alphanumeric() || b"_.-/ ".contains(byte)
        });
        if end == self.at + 1 || self.bytes.get(end) != Some(&b'`') {
            return Err(if end < self.bytes.len() {
                self.after(end)
            } else {
                end
            });
        }
        self.at = end + 1;
        Ok(TokenKind::EscapedIdentifier)
    }

    fn string(&mut self, prefix: usize, raw: bool, kind: TokenKind) -> Lexed {
        let quote = self.peek(prefix);
        let open = self.at + prefix;
        let triple = self.bytes[open..].starts_with(&[quote; 3]);
        let mut at = open + if triple { 3 } else { 1 };
        while let Some(byte) = self.bytes.get(at).copied() {
            if byte == quote && (!triple || self.bytes[at..].starts_with(&[quote; 3])) {
                self.at = at + if triple { 3 } else { 1 };
                return Ok(kind);
            }
            match byte {
                b'\n' | b'\r' if !triple => return Err(at + 1),
                b'\\' if !raw => at = self.escape(at)?,
                _ => at += 1,
            }
        }
        // An unfinished triple quote is an empty string and a lone quote.
        if triple {
            self.at = open + 2;
            return Ok(kind);
        }
        Err(self.bytes.len())
    }

    /// Where the escape sequence at `at` ends, or where it stops being one.
    fn escape(&self, at: usize) -> Result<usize, usize> {
        let byte = |ahead: usize| self.bytes.get(at + ahead).copied().unwrap_or(0);
        let (length, is_digit): (usize, fn(&u8) -> bool) = match byte(1) {
            b'a' | b'b' | b'f' | b'n' | b'r' | b't' | b'v' => return Ok(at + 2),
            b'"' | b'\'' | b'\\' | b'?' | b'`' => return Ok(at + 2),
            b'x' | b'X' => (2, u8::is_ascii_hexdigit),
            b'u' => (4, u8::is_ascii_hexdigit),
            b'U' => (8, u8::is_ascii_hexdigit),
            b'0'..=b'3' => (2, |byte| matches!(byte, b'0'..=b'7')),
            _ => return Err(self.stop(at + 1)),
        };
        for ahead in 2..2 + length {
            if !is_digit(&byte(ahead)) {
                return Err(self.stop(at + ahead));
            }
        }
        Ok(at + 2 + length)
    }

    fn stop(&self, at: usize) -> usize {
        if at < self.bytes.len() {
            self.after(at)
        } else {
            self.bytes.len()
        }
    }
}

fn is_quote(byte: u8) -> bool {
    matches!(byte, b'"' | b'\'')
}
