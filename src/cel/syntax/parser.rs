//! Tokens to tree: the grammar, by precedence climbing.

use super::{
    RESERVED,
    build::{Builder, Stop},
    literal,
    macros::{self, MacroCall},
    token::{Token, TokenKind},
};
use crate::cel::{
    ast::{Ast, Entry, Expr, Field, Kind, List, Literal, Struct, operator},
    issue::Issues,
};

/// How deep one grammar rule may be inside of itself, chains of operators included.
const MAX_NESTING: usize = 250;

pub(super) fn parse(text: &str, tokens: &[Token], issues: Issues) -> Result<Ast, Issues> {
    let mut parser = Parser {
        text,
        tokens,
        at: 0,
        nesting: [0; 4],
        build: Builder::new(issues),
    };
    let root = parser.start();
    parser.build.finish(root)
}

/// Grammar rules whose nesting is counted.
#[derive(Clone, Copy)]
enum Rule {
    Expression,
    Relation,
    Calculation,
    Member,
}

struct Parser<'t> {
    text: &'t str,
    tokens: &'t [Token],
    at: usize,
    nesting: [usize; 4],
    build: Builder,
}

type Parsed = Result<Expr, Stop>;

/// What may begin an expression.
const EXPRESSION: [TokenKind; 15] = [
    TokenKind::LeftBracket,
    TokenKind::LeftBrace,
    TokenKind::LeftParen,
    TokenKind::Dot,
    TokenKind::Minus,
    TokenKind::Not,
    TokenKind::True,
    TokenKind::False,
    TokenKind::Null,
    TokenKind::Float,
    TokenKind::Int,
    TokenKind::Uint,
    TokenKind::String,
    TokenKind::Bytes,
    TokenKind::Identifier,
];

impl Parser<'_> {
    fn start(&mut self) -> Parsed {
        let root = self.expression()?;
        self.close(TokenKind::End)?;
        Ok(root)
    }

    // --- Tokens ---

    fn token(&self) -> Token {
        self.ahead(0)
    }

    fn ahead(&self, by: usize) -> Token {
        let last = self.tokens.len() - 1; // the end token is always there
        self.tokens[(self.at + by).min(last)]
    }

    fn kind(&self) -> TokenKind {
        self.token().kind
    }

    fn next(&mut self) -> Token {
        let token = self.token();
        self.at += 1;
        token
    }

    fn accept(&mut self, kind: TokenKind) -> Option<Token> {
        (self.kind() == kind).then(|| self.next())
    }

    fn text(&self, token: Token) -> &str {
        match token.kind {
            TokenKind::End => "<EOF>",
            _ => &self.text[token.start as usize..token.end as usize],
        }
    }

    fn syntax_error(&mut self, token: Token, message: String) -> Stop {
        let message = format!("Syntax error: {message}");
        self.build.issues.report(token.start, message);
        Stop
    }

    /// The token here does not fit and cannot be left out.
    fn mismatch(&mut self, expected: &[TokenKind]) -> Stop {
        let token = self.token();
        // Looking for an expression, the original passes over what is none, and finds the end.
        let end = self.ahead(1);
        let finds_end = token.kind != TokenKind::End && end.kind == TokenKind::End;
        let tokens = [
            Some(token),
            (finds_end && expected == EXPRESSION).then_some(end),
        ];
        for token in tokens.into_iter().flatten() {
            let found = quoted(self.text(token));
            let list = set(expected);
            self.syntax_error(
                token,
                format!("mismatched input '{found}' expecting {list}"),
            );
        }
        Stop
    }

    /// Leaves one token out if the one after it fits, as ANTLR does; else stops.
    fn repair(&mut self, expected: &[TokenKind]) -> Result<(), Stop> {
        let token = self.token();
        if token.kind == TokenKind::End || !expected.contains(&self.ahead(1).kind) {
            return Err(self.mismatch(expected));
        }
        let found = quoted(self.text(token));
        let list = set(expected);
        self.syntax_error(
            token,
            format!("extraneous input '{found}' expecting {list}"),
        );
        self.at += 1;
        Ok(())
    }

    fn expect(&mut self, kind: TokenKind) -> Result<Token, Stop> {
        if self.kind() != kind {
            self.repair(&[kind])?;
        }
        Ok(self.next())
    }

    /// A closing token, which is also named as missing where the text could go on without it.
    fn close(&mut self, kind: TokenKind) -> Result<(), Stop> {
        if self.kind() == TokenKind::End && kind == TokenKind::RightParen {
            let token = self.token();
            return Err(self.syntax_error(token, format!("missing {kind} at '<EOF>'")));
        }
        self.expect(kind).map(|_| ())
    }

    // --- Bounds ---

    fn enter(&mut self, rule: Rule) -> Result<(), Stop> {
        let nesting = &mut self.nesting[rule as usize];
        *nesting += 1;
        if *nesting <= MAX_NESTING {
            return Ok(());
        }
        let message = format!("expression recursion limit exceeded: {MAX_NESTING}");
        self.build.issues.report_whole(message);
        Err(Stop)
    }

    // --- Expressions ---

    fn expression(&mut self) -> Parsed {
        self.enter(Rule::Expression)?;
        if !EXPRESSION.contains(&self.kind()) {
            self.repair(&EXPRESSION)?;
        }
        let condition = self.binary(OR)?;
        let expr = match self.accept(TokenKind::Question) {
            None => condition,
            Some(question) => {
                let yes = self.operand(OR)?;
                self.expect(TokenKind::Colon)?;
                let no = self.expression()?;
                let args = vec![condition, yes, no];
                self.build
                    .call(question.start, operator::CONDITIONAL, args)?
            }
        };
        self.nesting[Rule::Expression as usize] -= 1;
        Ok(expr)
    }

    /// Operators that bind at least as tightly as `least`, by precedence climbing.
    fn binary(&mut self, least: u8) -> Parsed {
        let nesting = self.nesting;
        let mut left = self.unary()?;
        while let Some((function, binds)) = binary_operator(self.kind()) {
            if binds < least {
                break;
            }
            if binds <= AND {
                left = self.chain(left, function, binds)?;
                continue;
            }
            self.enter(if binds == RELATION {
                Rule::Relation
            } else {
                Rule::Calculation
            })?;
            let token = self.next();
            let right = self.operand(binds + 1)?;
            left = self.build.call(token.start, function, vec![left, right])?;
        }
        self.nesting = nesting;
        Ok(left)
    }

    /// Something that must begin like an expression.
    fn operand(&mut self, least: u8) -> Parsed {
        if !EXPRESSION.contains(&self.kind()) {
            self.repair(&EXPRESSION)?;
        }
        self.binary(least)
    }

    /// A chain of `||`, or one of `&&`, balanced: it may have any length.
    fn chain(&mut self, first: Expr, function: &str, binds: u8) -> Parsed {
        let kind = self.kind();
        let mut terms = vec![first];
        let mut operators = Vec::new();
        while let Some(token) = self.accept(kind) {
            operators.push(token.start);
            terms.push(self.operand(binds + 1)?);
        }
        self.build.balanced(function, terms, &operators)
    }

    fn unary(&mut self) -> Parsed {
        let kind = self.kind();
        if !matches!(kind, TokenKind::Not | TokenKind::Minus) {
            return self.member(None);
        }
        let first = self.token();
        let mut count = 0;
        while self.accept(kind).is_some() {
            count += 1;
        }
        let numeral = matches!(self.kind(), TokenKind::Int | TokenKind::Float);
        if kind == TokenKind::Minus && count == 1 && numeral {
            return self.member(Some(first));
        }
        if kind == TokenKind::Minus && self.kind() == TokenKind::End {
            let end = self.token();
            self.syntax_error(end, "no viable alternative at input '-'".to_owned());
            return Err(self.mismatch(&EXPRESSION));
        }
        if !EXPRESSION.contains(&self.kind()) || matches!(self.kind(), TokenKind::Not) {
            self.repair(&EXPRESSION)?;
        }
        let operand = self.member(None)?;
        if count % 2 == 0 {
            return Ok(operand);
        }
        let function = match kind {
            TokenKind::Not => operator::NOT,
            _ => operator::NEGATE,
        };
        self.build.call(first.start, function, vec![operand])
    }

    /// A primary and all that is selected, called and indexed on it. `sign` is a literal's minus.
    fn member(&mut self, sign: Option<Token>) -> Parsed {
        let nesting = self.nesting;
        let mut expr = self.primary(sign)?;
        loop {
            let token = self.token();
            expr = match token.kind {
                TokenKind::Dot => self.select(expr)?,
                TokenKind::LeftBracket => self.index(expr)?,
                _ => break,
            };
            self.enter(Rule::Member)?;
        }
        self.nesting = nesting;
        Ok(expr)
    }

    fn select(&mut self, operand: Expr) -> Parsed {
        let dot = self.next();
        let optional = self.accept(TokenKind::Question).is_some();
        let name = self.token();
        match name.kind {
            TokenKind::Identifier | TokenKind::EscapedIdentifier => {}
            _ => return Err(self.no_field(dot, name)),
        }
        self.at += 1;
        let callable = !optional && name.kind == TokenKind::Identifier;
        if callable && self.kind() == TokenKind::LeftParen {
            let open = self.next();
            let args = self.arguments()?;
            let function = self.text(name).to_owned();
            return self.call(open, function, Some(operand), args);
        }
        let field = self.text(name).trim_matches('`').to_owned();
        if optional {
            let field = Literal::String(field.into());
            let field = self.build.literal(name.start, field)?;
            let args = vec![operand, field];
            return self.build.call(dot.start, operator::OPTIONAL_SELECT, args);
        }
        self.build.select(dot.start, operand, &field, false)
    }

    fn no_field(&mut self, dot: Token, name: Token) -> Stop {
        let keyword = matches!(
            name.kind,
            TokenKind::True | TokenKind::False | TokenKind::Null
        );
        let message = if keyword {
            format!("mismatched input {} expecting IDENTIFIER", name.kind)
        } else {
            let last = if name.kind == TokenKind::End {
                dot
            } else {
                name
            };
            let input = quoted(&self.text[dot.start as usize..last.end as usize]);
            format!("no viable alternative at input '{input}'")
        };
        self.syntax_error(name, message)
    }

    fn index(&mut self, operand: Expr) -> Parsed {
        let open = self.next();
        let function = match self.accept(TokenKind::Question) {
            Some(_) => operator::OPTIONAL_INDEX,
            None => operator::INDEX,
        };
        let index = self.expression()?;
        self.expect(TokenKind::RightBracket)?;
        self.build.call(open.start, function, vec![operand, index])
    }

    fn primary(&mut self, sign: Option<Token>) -> Parsed {
        let token = self.token();
        match token.kind {
            TokenKind::LeftParen => {
                self.at += 1;
                let inner = self.expression()?;
                self.close(TokenKind::RightParen)?;
                Ok(inner)
            }
            TokenKind::LeftBracket => self.list(),
            TokenKind::LeftBrace => self.map(),
            TokenKind::Dot | TokenKind::Identifier => self.name(),
            _ => self.constant(token, sign),
        }
    }

    fn constant(&mut self, token: Token, sign: Option<Token>) -> Parsed {
        let start = sign.unwrap_or(token).start;
        let text = self.text(token);
        let literal = match token.kind {
            TokenKind::True => Ok(Literal::Bool(true)),
            TokenKind::False => Ok(Literal::Bool(false)),
            TokenKind::Null => Ok(Literal::Null),
            TokenKind::Int => literal::int(text, sign.is_some())
                .map(Literal::Int)
                .ok_or("invalid int literal"),
            TokenKind::Uint => literal::uint(text)
                .map(Literal::Uint)
                .ok_or("invalid uint literal"),
            TokenKind::Float => literal::double(text, sign.is_some())
                .map(Literal::Double)
                .ok_or("invalid double literal"),
            TokenKind::String => literal::string(text),
            TokenKind::Bytes => literal::bytes(text),
            _ => return Err(self.mismatch(&EXPRESSION)),
        };
        self.at += 1;
        match literal {
            Ok(literal) => self.build.literal(start, literal),
            Err(message) => self.build.invalid(start, message),
        }
    }

    /// A variable, a call of a global function, or an object that is made.
    fn name(&mut self) -> Parsed {
        let dot = self.accept(TokenKind::Dot);
        let first = self.token();
        match (dot, first.kind) {
            (_, TokenKind::Identifier) => self.at += 1,
            (Some(dot), _) => return Err(self.no_field(dot, first)),
            (None, _) => return Err(self.mismatch(&EXPRESSION)),
        }
        let start = dot.unwrap_or(first).start;
        if let Some(name) = self.struct_name(dot, first) {
            return self.structure(name);
        }
        let id = self.text(first).to_owned();
        let called = self.accept(TokenKind::LeftParen);
        let args = match called {
            Some(_) => self.arguments()?,
            None => Vec::new(),
        };
        if RESERVED.contains(&id.as_str()) {
            let message = format!("reserved identifier: {id}");
            return self.build.invalid(start, message);
        }
        let name = if dot.is_some() { format!(".{id}") } else { id };
        match called {
            Some(open) => self.call(open, name, None, args),
            None => self.build.ident(first.start, &name),
        }
    }

    /// The name before a `{`, if the tokens here are one; they are taken then.
    fn struct_name(&mut self, dot: Option<Token>, first: Token) -> Option<String> {
        let mut name = String::from(if dot.is_some() { "." } else { "" });
        name.push_str(self.text(first));
        let mut by = 0;
        while self.ahead(by).kind == TokenKind::Dot
            && self.ahead(by + 1).kind == TokenKind::Identifier
        {
            name.push('.');
            name.push_str(self.text(self.ahead(by + 1)));
            by += 2;
        }
        if self.ahead(by).kind != TokenKind::LeftBrace {
            return None;
        }
        self.at += by;
        Some(name)
    }

    fn arguments(&mut self) -> Result<Vec<Expr>, Stop> {
        let mut args = Vec::new();
        if self.accept(TokenKind::RightParen).is_some() {
            return Ok(args);
        }
        if !EXPRESSION.contains(&self.kind()) {
            let mut expected = EXPRESSION.to_vec();
            expected.push(TokenKind::RightParen);
            self.repair(&expected)?;
            if self.accept(TokenKind::RightParen).is_some() {
                return Ok(args);
            }
        }
        args.push(self.expression()?);
        while self.accept(TokenKind::Comma).is_some() {
            args.push(self.expression()?);
        }
        self.close(TokenKind::RightParen)?;
        Ok(args)
    }

    fn call(
        &mut self,
        open: Token,
        function: String,
        target: Option<Expr>,
        args: Vec<Expr>,
    ) -> Parsed {
        let call = MacroCall {
            offset: open.start,
            target,
            args,
        };
        match macros::expand(&mut self.build, &function, call)? {
            Ok(expanded) => Ok(expanded),
            Err(MacroCall { target, args, .. }) => match target {
                Some(target) => self.build.member_call(open.start, target, &function, args),
                None => self.build.call(open.start, &function, args),
            },
        }
    }

    // --- Aggregates ---

    /// Whether an aggregate ends here (its closing token is taken). `first` tells whether nothing
    /// was read yet; `starts` is what a further element begins with.
    fn ends(&mut self, close: TokenKind, first: bool, starts: &[TokenKind]) -> Result<bool, Stop> {
        if self.accept(close).is_some() {
            return Ok(true);
        }
        if first {
            if self.kind() == TokenKind::Comma {
                self.at += 1;
                self.expect(close)?;
                return Ok(true);
            }
            if !starts.contains(&self.kind()) {
                let mut expected = starts.to_vec();
                expected.extend([close, TokenKind::Comma]);
                self.repair(&expected)?;
                return Ok(self.accept(close).is_some());
            }
            return Ok(false);
        }
        if self.accept(TokenKind::Comma).is_none() {
            self.repair(&[close, TokenKind::Comma])?;
            return self.ends(close, false, starts);
        }
        // A comma may be the last before the end.
        Ok(self.accept(close).is_some())
    }

    fn list(&mut self) -> Parsed {
        let open = self.next();
        let starts = with(&EXPRESSION, &[TokenKind::Question]);
        let mut elements = Vec::new();
        let mut optional = Vec::new();
        while !self.ends(TokenKind::RightBracket, elements.is_empty(), &starts)? {
            optional.push(self.accept(TokenKind::Question).is_some());
            elements.push(self.expression()?);
        }
        if !optional.contains(&true) {
            optional.clear();
        }
        self.build
            .node(open.start, Kind::List(List { elements, optional }))
    }

    fn map(&mut self) -> Parsed {
        let open = self.next();
        let starts = with(&EXPRESSION, &[TokenKind::Question]);
        let mut entries = Vec::new();
        while !self.ends(TokenKind::RightBrace, entries.is_empty(), &starts)? {
            let optional = self.accept(TokenKind::Question).is_some();
            let key = self.expression()?;
            self.expect(TokenKind::Colon)?;
            let value = self.expression()?;
            entries.push(Entry {
                key,
                value,
                optional,
            });
        }
        self.build.node(open.start, Kind::Map(entries))
    }

    fn structure(&mut self, name: String) -> Parsed {
        let open = self.next();
        let starts = [
            TokenKind::Question,
            TokenKind::Identifier,
            TokenKind::EscapedIdentifier,
        ];
        let mut fields = Vec::new();
        while !self.ends(TokenKind::RightBrace, fields.is_empty(), &starts)? {
            let optional = self.accept(TokenKind::Question).is_some();
            let token = self.token();
            if !starts[1..].contains(&token.kind) {
                return Err(self.mismatch(&starts[1..]));
            }
            self.at += 1;
            let field = self.text(token).trim_matches('`').to_owned();
            let colon = self.expect(TokenKind::Colon)?;
            let value = self.expression()?;
            fields.push(Field {
                id: self.build.id(colon.start),
                name: field,
                value,
                optional,
            });
        }
        self.build
            .node(open.start, Kind::Struct(Struct { name, fields }))
    }
}

/// How tightly operators bind.
const OR: u8 = 0;
const AND: u8 = 1;
const RELATION: u8 = 2;
const SUM: u8 = 3;
const PRODUCT: u8 = 4;

/// The function of an operator between two operands, and how tightly it binds.
fn binary_operator(kind: TokenKind) -> Option<(&'static str, u8)> {
    Some(match kind {
        TokenKind::Or => (operator::OR, OR),
        TokenKind::And => (operator::AND, AND),
        TokenKind::Less => (operator::LESS, RELATION),
        TokenKind::LessEquals => (operator::LESS_EQUALS, RELATION),
        TokenKind::Greater => (operator::GREATER, RELATION),
        TokenKind::GreaterEquals => (operator::GREATER_EQUALS, RELATION),
        TokenKind::Equals => (operator::EQUALS, RELATION),
        TokenKind::NotEquals => (operator::NOT_EQUALS, RELATION),
        TokenKind::In => (operator::IN, RELATION),
        TokenKind::Plus => (operator::ADD, SUM),
        TokenKind::Minus => (operator::SUBTRACT, SUM),
        TokenKind::Star => (operator::MULTIPLY, PRODUCT),
        TokenKind::Slash => (operator::DIVIDE, PRODUCT),
        TokenKind::Percent => (operator::MODULO, PRODUCT),
        _ => return None,
    })
}

fn with(some: &[TokenKind], more: &[TokenKind]) -> Vec<TokenKind> {
    [some, more].concat()
}

/// A set of tokens as messages show it.
fn set(kinds: &[TokenKind]) -> String {
    let mut sorted = kinds.to_vec();
    sorted.sort_unstable();
    let names: Vec<String> = sorted.iter().map(TokenKind::to_string).collect();
    match names.as_slice() {
        [one] => one.clone(),
        _ => format!("{{{}}}", names.join(", ")),
    }
}

fn quoted(text: &str) -> String {
    text.replace('\n', "\\n")
        .replace('\r', "\\r")
        .replace('\t', "\\t")
}
