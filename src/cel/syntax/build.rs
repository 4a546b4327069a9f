//! Makes nodes, numbers them and keeps the tree within its bounds.

use crate::cel::{
    ast::{Ast, Call, Comprehension, Entry, Expr, Id, Kind, List, Literal, Select, Struct},
    issue::Issues,
};

/// Deepest tree, macros expanded: evaluating recurses once for each level.
pub(crate) const MAX_DEPTH: u16 = 400;
/// Most nodes of a tree: `optMap` copies its target, so a chain of them doubles with each.
const MAX_NODES: usize = 100_000;

/// The tree would be too large; an issue was reported.
#[derive(Debug)]
pub(crate) struct Stop;

pub(crate) struct Builder {
    offsets: Vec<u32>,
    pub issues: Issues,
}

impl Builder {
    pub fn new(issues: Issues) -> Self {
        Self {
            offsets: Vec::new(),
            issues,
        }
    }

    pub fn finish(self, root: Result<Expr, Stop>) -> Result<Ast, Issues> {
        match root {
            Ok(root) if self.issues.is_empty() => Ok(Ast {
                root,
                offsets: self.offsets,
            }),
            _ => Err(self.issues),
        }
    }

    /// A number for something at `offset`.
    pub fn id(&mut self, offset: u32) -> Id {
        self.offsets.push(offset);
        // MAX_NODES bounds the length.
        Id::try_from(self.offsets.len() - 1).unwrap_or(Id::MAX)
    }

    pub fn offset(&self, id: Id) -> u32 {
        self.offsets.get(id as usize).copied().unwrap_or(0)
    }

    /// A node at `offset`.
    pub fn node(&mut self, offset: u32, kind: Kind) -> Result<Expr, Stop> {
        if self.offsets.len() >= MAX_NODES {
            self.issues.report_whole(format!(
                "expression is too large: more than {MAX_NODES} nodes after macros are expanded"
            ));
            return Err(Stop);
        }
        let depth = depth_below(&kind) + 1;
        if depth > MAX_DEPTH {
            self.issues.report_whole("max recursion depth exceeded");
            return Err(Stop);
        }
        let id = self.id(offset);
        Ok(Expr { id, depth, kind })
    }

    /// Reports a fault and gives a node that stands for what cannot be read.
    pub fn invalid(&mut self, offset: u32, message: impl Into<String>) -> Result<Expr, Stop> {
        self.issues.report(offset, message);
        self.node(offset, Kind::Invalid)
    }

    pub fn literal(&mut self, offset: u32, literal: Literal) -> Result<Expr, Stop> {
        self.node(offset, Kind::Literal(literal))
    }

    pub fn ident(&mut self, offset: u32, name: &str) -> Result<Expr, Stop> {
        self.node(offset, Kind::Ident(name.to_owned()))
    }

    pub fn select(
        &mut self,
        offset: u32,
        operand: Expr,
        field: &str,
        test: bool,
    ) -> Result<Expr, Stop> {
        let field = field.to_owned();
        let select = Select {
            operand,
            field,
            test,
        };
        self.node(offset, Kind::Select(Box::new(select)))
    }

    pub fn call(&mut self, offset: u32, function: &str, args: Vec<Expr>) -> Result<Expr, Stop> {
        let call = Call {
            function: function.to_owned(),
            target: None,
            args,
        };
        self.node(offset, Kind::Call(call))
    }

    pub fn member_call(
        &mut self,
        offset: u32,
        target: Expr,
        function: &str,
        args: Vec<Expr>,
    ) -> Result<Expr, Stop> {
        let call = Call {
            function: function.to_owned(),
            target: Some(Box::new(target)),
            args,
        };
        self.node(offset, Kind::Call(call))
    }

    pub fn list(&mut self, offset: u32, elements: Vec<Expr>) -> Result<Expr, Stop> {
        let optional = Vec::new();
        self.node(offset, Kind::List(List { elements, optional }))
    }

    pub fn comprehension(
        &mut self,
        offset: u32,
        comprehension: Comprehension,
    ) -> Result<Expr, Stop> {
        self.node(offset, Kind::Comprehension(Box::new(comprehension)))
    }

    /// Joins the terms of a chain of `&&` or `||` into a balanced tree, each node at its operator.
    pub fn balanced(
        &mut self,
        function: &str,
        terms: Vec<Expr>,
        operators: &[u32],
    ) -> Result<Expr, Stop> {
        let mut terms = terms.into_iter();
        self.balance(function, &mut terms, operators)
    }

    /// Recursion is as deep as the logarithm of the number of terms.
    fn balance(
        &mut self,
        function: &str,
        terms: &mut impl Iterator<Item = Expr>,
        operators: &[u32],
    ) -> Result<Expr, Stop> {
        let middle = operators.len() / 2;
        let Some(&offset) = operators.get(middle) else {
            return terms.next().ok_or(Stop);
        };
        let left = self.balance(function, terms, &operators[..middle])?;
        let right = self.balance(function, terms, &operators[middle + 1..])?;
        self.call(offset, function, vec![left, right])
    }

    /// The same tree with numbers of its own.
    pub fn copy(&mut self, expr: &Expr) -> Result<Expr, Stop> {
        let offset = self.offset(expr.id);
        let kind = match &expr.kind {
            Kind::Literal(_) | Kind::Ident(_) | Kind::Invalid => expr.kind.clone(),
            Kind::Select(select) => {
                let operand = self.copy(&select.operand)?;
                return self.select(offset, operand, &select.field, select.test);
            }
            Kind::Call(call) => Kind::Call(Call {
                function: call.function.clone(),
                target: match &call.target {
                    Some(target) => Some(Box::new(self.copy(target)?)),
                    None => None,
                },
                args: self.copies(&call.args)?,
            }),
            Kind::List(list) => Kind::List(List {
                elements: self.copies(&list.elements)?,
                optional: list.optional.clone(),
            }),
            Kind::Map(entries) => Kind::Map(self.copy_entries(entries)?),
            Kind::Struct(one) => Kind::Struct(self.copy_struct(one)?),
            Kind::Comprehension(one) => Kind::Comprehension(Box::new(Comprehension {
                range: self.copy(&one.range)?,
                variable: one.variable.clone(),
                variable2: one.variable2.clone(),
                accumulator: one.accumulator.clone(),
                init: self.copy(&one.init)?,
                condition: self.copy(&one.condition)?,
                step: self.copy(&one.step)?,
                result: self.copy(&one.result)?,
            })),
        };
        self.node(offset, kind)
    }

    fn copies(&mut self, all: &[Expr]) -> Result<Vec<Expr>, Stop> {
        all.iter().map(|one| self.copy(one)).collect()
    }

    fn copy_entries(&mut self, entries: &[Entry]) -> Result<Vec<Entry>, Stop> {
        let copy = |entry: &Entry| {
            Ok(Entry {
                key: self.copy(&entry.key)?,
                value: self.copy(&entry.value)?,
                optional: entry.optional,
            })
        };
        entries.iter().map(copy).collect()
    }

    fn copy_struct(&mut self, one: &Struct) -> Result<Struct, Stop> {
        let mut fields = Vec::with_capacity(one.fields.len());
        for field in &one.fields {
            let mut copied = field.clone();
            copied.id = self.id(self.offset(field.id));
            copied.value = self.copy(&field.value)?;
            fields.push(copied);
        }
        Ok(Struct {
            name: one.name.clone(),
            fields,
        })
    }
}

fn depth_below(kind: &Kind) -> u16 {
    let deepest = |all: &[Expr]| all.iter().map(|one| one.depth).max().unwrap_or(0);
    match kind {
        Kind::Literal(_) | Kind::Ident(_) | Kind::Invalid => 0,
        Kind::Select(select) => select.operand.depth,
        Kind::Call(call) => {
            let target = call.target.as_ref().map_or(0, |target| target.depth);
            deepest(&call.args).max(target)
        }
        Kind::List(list) => deepest(&list.elements),
        Kind::Map(entries) => {
            let pairs = entries.iter().map(|one| one.key.depth.max(one.value.depth));
            pairs.max().unwrap_or(0)
        }
        Kind::Struct(one) => {
            let values = one.fields.iter().map(|field| field.value.depth);
            values.max().unwrap_or(0)
        }
        Kind::Comprehension(one) => [
            &one.range,
            &one.init,
            &one.condition,
            &one.step,
            &one.result,
        ]
        .map(|part| part.depth)
        .into_iter()
        .max()
        .unwrap_or(0),
    }
}
