//! What an expression may use: variables with their types, functions, types.

use std::{collections::HashMap, sync::Arc};

use super::{
    functions::{Feature, Function, Functions},
    schema::{ObjectType, Schema},
    types::{LibraryType, Type},
};

/// Name of the variable whose fields are a policy's composed variables.
pub(crate) const COMPOSED: &str = "variables";
const COMPOSED_TYPE: &str = "kubernetes.variables";

/// Where an expression comes from: what was stored by a newer version must still be understood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// A user writes it now. It may use what the version before understands too.
    #[default]
    New,
    /// It is in the store already. It may use all there is.
    Stored,
}

/// Variables, functions and types of a group of expressions. Made once, then shared.
///
/// ```text
/// let schema = Schema::from_json(&open_api, "selfType", true)?;
/// let environment = Environment::new(Origin::New)
///     .with_schema("self", &schema)
///     .with_schema("oldSelf", &schema);
/// let program = Program::compile(&environment, "self.replicas >= oldSelf.replicas")?;
/// ```
#[derive(Clone, Debug, Default)]
pub struct Environment {
    origin: Origin,
    patches: bool,
    variables: Vec<Variable>,
    by_name: Arc<HashMap<String, usize>>,
    composed: HashMap<String, Type>,
}

#[derive(Clone, Debug)]
struct Variable {
    name: String,
    ty: Type,
    schema: Option<Arc<Schema>>,
}

impl Environment {
    pub fn new(origin: Origin) -> Self {
        Self {
            origin,
            ..Self::default()
        }
    }

    /// A variable of a type. Types with a dot in their name (`authorizer.requestResource`) are one
    /// name.
    #[must_use]
    pub fn with_variable(self, name: &str, ty: Type) -> Self {
        self.with(name, ty, None)
    }

    /// A variable whose values are of a schema: its sizes are used to estimate costs.
    #[must_use]
    pub fn with_schema(self, name: &str, schema: &Arc<Schema>) -> Self {
        self.with(name, schema.to_type(), Some(Arc::clone(schema)))
    }

    /// A variable that may have no value: `oldSelf` of rules with `optionalOldSelf`.
    #[must_use]
    pub fn with_optional_schema(self, name: &str, schema: &Arc<Schema>) -> Self {
        let ty = Type::optional(schema.to_type());
        self.with(name, ty, Some(Arc::clone(schema)))
    }

    /// The types and functions with which mutating policies make patches: `Object{..}`,
    /// `JSONPatch{..}`, `jsonpatch.escapeKey`.
    #[must_use]
    pub fn with_patches(mut self) -> Self {
        self.patches = true;
        self
    }

    /// The variable `variables`, without fields yet.
    #[must_use]
    pub fn with_composition(self) -> Self {
        let ty = Type::Object(Arc::new(ObjectType::open(COMPOSED_TYPE)));
        self.with(COMPOSED, ty, None)
    }

    /// Adds a field to `variables`, for the expressions compiled from now on. `ty` is the output
    /// type of the variable's program; of objects it is not known what they are.
    pub fn compose(&mut self, name: &str, ty: &Type) {
        self.composed.insert(name.to_owned(), composed_type(ty));
    }

    /// The type of a field of `variables`.
    pub fn composed(&self, name: &str) -> Option<Type> {
        self.composed.get(name).cloned()
    }

    fn with(mut self, name: &str, ty: Type, schema: Option<Arc<Schema>>) -> Self {
        let variable = Variable {
            name: name.to_owned(),
            ty,
            schema,
        };
        match self.by_name.get(name) {
            Some(index) => self.variables[*index] = variable,
            None => {
                Arc::make_mut(&mut self.by_name).insert(name.to_owned(), self.variables.len());
                self.variables.push(variable);
            }
        }
        self
    }

    /// Number and type of a variable.
    pub(crate) fn variable(&self, name: &str) -> Option<(usize, Type)> {
        let index = *self.by_name.get(name)?;
        Some((index, self.variables.get(index)?.ty.clone()))
    }

    pub(crate) fn variable_name(&self, index: usize) -> &str {
        self.variables
            .get(index)
            .map_or("", |one| one.name.as_str())
    }

    /// Numbers of variables by their names.
    pub(crate) fn names(&self) -> Arc<HashMap<String, usize>> {
        Arc::clone(&self.by_name)
    }

    pub(crate) fn variable_count(&self) -> usize {
        self.variables.len()
    }

    pub(crate) fn schema(&self, name: &str) -> Option<&Arc<Schema>> {
        let index = *self.by_name.get(name)?;
        self.variables.get(index)?.schema.as_ref()
    }

    pub(crate) fn has(&self, feature: Feature) -> bool {
        match feature {
            Feature::Always => true,
            Feature::Stored => self.origin == Origin::Stored,
            Feature::Patches => self.patches,
        }
    }

    pub(crate) fn function(&self, name: &str) -> Option<&'static Function> {
        let function = Functions::known().get(name)?;
        let here = function.overloads.iter().any(|one| self.has(one.feature));
        here.then_some(function)
    }

    /// The type that a name stands for.
    pub(crate) fn type_named(&self, name: &str) -> Option<Type> {
        Some(match name {
            "bool" => Type::Bool,
            "bytes" => Type::Bytes,
            "double" => Type::Double,
            "google.protobuf.Duration" => Type::Duration,
            "google.protobuf.Timestamp" => Type::Timestamp,
            "int" => Type::Int,
            "list" => Type::list(Type::Dyn),
            "map" => Type::map(Type::Dyn, Type::Dyn),
            "null_type" => Type::Null,
            "string" => Type::String,
            "type" => Type::type_of(Type::Dyn),
            "uint" => Type::Uint,
            "optional_type" => Type::optional(Type::Dyn),
            "net.IP" => Type::Library(LibraryType::Ip),
            "net.CIDR" => Type::Library(LibraryType::Cidr),
            _ if self.patches => return patch_type(name),
            _ => return None,
        })
    }

    /// The type of a field of an object.
    pub(crate) fn field_type(&self, object: &ObjectType, field: &str) -> Option<Type> {
        if object.name() == COMPOSED_TYPE {
            return self.composed.get(field).cloned();
        }
        object.field_type(field)
    }
}

/// Objects that mutating policies make: named after the field they are for.
fn patch_type(name: &str) -> Option<Type> {
    if name == "JSONPatch" {
        let field = |name: &str, ty: Type| (name.to_owned(), Schema::scalar(ty));
        let fields = [
            field("op", Type::String),
            field("path", Type::String),
            field("from", Type::String),
            field("value", Type::Dyn),
        ];
        return Some(Type::Object(Arc::new(ObjectType::new(name, fields))));
    }
    let open = name == "Object" || name.starts_with("Object.");
    open.then(|| Type::Object(Arc::new(ObjectType::open(name))))
}

fn composed_type(ty: &Type) -> Type {
    match ty {
        Type::List(_) | Type::Map(_) => {
            let parameters: Vec<Type> = ty.parameters().iter().map(composed_type).collect();
            ty.with(parameters)
        }
        Type::Bool
        | Type::Bytes
        | Type::Double
        | Type::Duration
        | Type::Int
        | Type::Null
        | Type::String
        | Type::Timestamp
        | Type::Uint => ty.clone(),
        _ => Type::Dyn,
    }
}
