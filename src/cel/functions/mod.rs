//! Functions that expressions may call: their names, overloads and implementations.
//!
//! Overloads carry the names that cel-go and Kubernetes give them: costs are looked up by them.

use std::{collections::HashMap, sync::OnceLock};

use super::{
    library,
    program::Meter,
    types::Type,
    value::{Evaluated, Value},
};

/// Computes a call. Called with as many arguments as the overload has parameters, none of them an
/// error, of whatever types: expressions may be dynamically typed.
pub(crate) type Call = for<'a> fn(&mut Meter<'a>, &[Value<'a>]) -> Evaluated<'a>;

/// One signature of a function.
pub(crate) struct Overload {
    pub id: &'static str,
    /// Called on a target, which is the first parameter.
    pub member: bool,
    pub parameters: Box<[Type]>,
    pub result: Type,
    pub call: Call,
    pub feature: Feature,
}

/// What must be switched on for an overload to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feature {
    Always,
    /// Understood where it is stored already; new expressions may not use it before the next
    /// version of Kubernetes, so that a roll back stays possible.
    Stored,
    /// Expressions that make patches.
    Patches,
}

pub(crate) struct Function {
    pub name: &'static str,
    pub overloads: Vec<Overload>,
}

/// All functions by name.
pub(crate) struct Functions {
    functions: HashMap<&'static str, Function>,
    feature: Feature,
}

impl Functions {
    /// The functions of Kubernetes 1.37.
    pub fn known() -> &'static Self {
        static KNOWN: OnceLock<Functions> = OnceLock::new();
        KNOWN.get_or_init(|| {
            let mut functions = Self {
                functions: HashMap::new(),
                feature: Feature::Always,
            };
            library::declare(&mut functions);
            functions
        })
    }

    pub fn get(&self, name: &str) -> Option<&Function> {
        self.functions.get(name)
    }

    /// Declares what follows as there only with `feature`.
    pub fn with(&mut self, feature: Feature) {
        self.feature = feature;
    }

    /// A function called as `name(..)`.
    pub fn global(
        &mut self,
        name: &'static str,
        id: &'static str,
        parameters: impl Into<Box<[Type]>>,
        result: Type,
        call: Call,
    ) {
        self.add(name, id, false, parameters.into(), result, call);
    }

    /// A function called as `target.name(..)`; the target is the first parameter.
    pub fn member(
        &mut self,
        name: &'static str,
        id: &'static str,
        parameters: impl Into<Box<[Type]>>,
        result: Type,
        call: Call,
    ) {
        self.add(name, id, true, parameters.into(), result, call);
    }

    fn add(
        &mut self,
        name: &'static str,
        id: &'static str,
        member: bool,
        parameters: Box<[Type]>,
        result: Type,
        call: Call,
    ) {
        let function = self.functions.entry(name).or_insert_with(|| Function {
            name,
            overloads: Vec::new(),
        });
        function.overloads.push(Overload {
            id,
            member,
            parameters,
            result,
            call,
            feature: self.feature,
        });
    }
}

impl Function {
    /// Operators have one implementation for all overloads, which looks at the values itself.
    pub fn is_operator(&self) -> bool {
        self.name.contains('_') && !self.name.contains(|c: char| c.is_ascii_alphabetic())
            || self.name.starts_with('@')
    }
}

impl Type {
    /// Whether a value may be one of this type. Of lists and maps only the first element is looked
    /// at.
    pub(crate) fn admits(&self, value: &Value<'_>) -> bool {
        match (self, value) {
            (Type::Dyn | Type::Parameter(_), _) => true,
            (Type::List(_), Value::List(list)) => match list.get(0) {
                Some(Ok(first)) => self.parameters()[0].admits(&first),
                Some(Err(_)) => false,
                None => true,
            },
            (Type::Map(_), Value::Map(map)) => match map.keys().first() {
                Some(key) => self.parameters()[0].admits(&key.to_value()),
                None => true,
            },
            (Type::Optional(_), Value::Optional(inner)) => match inner {
                Some(inner) => self.parameters()[0].admits(inner),
                None => true,
            },
            (Type::Library(library), value) => value.is_library(*library),
            (Type::Type(_), Value::Type(_)) => true,
            (Type::List(_) | Type::Map(_) | Type::Optional(_), _) => false,
            (ty, value) => *ty == value.type_value(),
        }
    }
}
