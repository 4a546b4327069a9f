//! Which types fit which, and what type variables stand for.

use crate::cel::types::Type;

/// What is known of type variables. Changes can be taken back.
#[derive(Default)]
pub(super) struct Substitution {
    bound: Vec<Option<Type>>,
    /// Former values, newest last.
    trail: Vec<(u32, Option<Type>)>,
}

impl Substitution {
    pub fn variable(&mut self) -> Type {
        self.bound.push(None);
        // The number of nodes is bounded, and so is that of variables.
        Type::Variable(u32::try_from(self.bound.len() - 1).unwrap_or(u32::MAX))
    }

    fn find(&self, variable: u32) -> Option<&Type> {
        self.bound.get(variable as usize)?.as_ref()
    }

    fn bind(&mut self, variable: u32, to: Type) {
        if let Some(place) = self.bound.get_mut(variable as usize) {
            self.trail.push((variable, place.replace(to)));
        }
    }

    fn roll_back(&mut self, mark: usize) {
        while self.trail.len() > mark {
            if let Some((variable, former)) = self.trail.pop() {
                self.bound[variable as usize] = former;
            }
        }
    }

    /// Whether a value of one type fits where the other is wanted; what variables stand for is
    /// remembered only if it does.
    pub fn assignable(&mut self, one: &Type, two: &Type) -> bool {
        self.all_assignable(std::slice::from_ref(one), std::slice::from_ref(two))
    }

    pub fn all_assignable(&mut self, one: &[Type], two: &[Type]) -> bool {
        let mark = self.trail.len();
        let fits = self.lists(one, two);
        if !fits {
            self.roll_back(mark);
        }
        fits
    }

    fn lists(&mut self, one: &[Type], two: &[Type]) -> bool {
        one.len() == two.len() && one.iter().zip(two).all(|(one, two)| self.fits(one, two))
    }

    fn fits(&mut self, one: &Type, two: &Type) -> bool {
        if let Type::Variable(variable) = two {
            let (valid, known) = self.substitutes(one, *variable);
            if valid || known {
                return valid;
            }
        }
        if let Type::Variable(variable) = one {
            return self.substitutes(two, *variable).0;
        }
        if one.is_dyn_or_error() || two.is_dyn_or_error() {
            return true;
        }
        match (one, two) {
            (Type::Null, other) | (other, Type::Null) => is_nullable(other),
            (Type::Type(_), Type::Type(_)) => true,
            (Type::List(_), Type::List(_))
            | (Type::Map(_), Type::Map(_))
            | (Type::Optional(_), Type::Optional(_)) => {
                self.lists(one.parameters(), two.parameters())
            }
            _ => one == two,
        }
    }

    /// Whether `ty` may stand for the variable, and whether something did already.
    fn substitutes(&mut self, ty: &Type, variable: u32) -> (bool, bool) {
        if *ty == Type::Variable(variable) {
            return (true, true);
        }
        if let Some(known) = self.find(variable).cloned() {
            if *ty == known {
                return (true, true);
            }
            if !self.fits(ty, &known) {
                return (false, true);
            }
            let general = most_general(ty, &known);
            if self.is_free_of(variable, &general) {
                self.bind(variable, general);
            }
            return (true, true);
        }
        let free = self.is_free_of(variable, ty);
        if free {
            self.bind(variable, ty.clone());
        }
        (free, false)
    }

    /// Whether the variable does not occur in a type, so that it may stand for it.
    fn is_free_of(&self, variable: u32, within: &Type) -> bool {
        match within {
            Type::Variable(other) if *other == variable => false,
            Type::Variable(other) => match self.find(*other) {
                Some(known) => self.is_free_of(variable, known),
                None => true,
            },
            other => other
                .parameters()
                .iter()
                .all(|one| self.is_free_of(variable, one)),
        }
    }

    /// The type with variables replaced by what they stand for.
    pub fn apply(&self, ty: &Type) -> Type {
        self.replace(ty, false)
    }

    /// The same, and what is still unknown may be anything.
    pub fn apply_finally(&self, ty: &Type) -> Type {
        self.replace(ty, true)
    }

    fn replace(&self, ty: &Type, finally: bool) -> Type {
        match ty {
            Type::Variable(variable) => match self.find(*variable) {
                Some(known) => self.replace(known, finally),
                None if finally => Type::Dyn,
                None => ty.clone(),
            },
            other if other.parameters().is_empty() => other.clone(),
            other => {
                let parameters = other.parameters().iter();
                let replaced: Vec<Type> =
                    parameters.map(|one| self.replace(one, finally)).collect();
                other.with(replaced)
            }
        }
    }
}

/// A signature's type with its parameters replaced by variables.
pub(super) fn instantiate(ty: &Type, variables: &[Type]) -> Type {
    match ty {
        Type::Parameter(index) => variables
            .get(usize::from(*index))
            .cloned()
            .unwrap_or(Type::Dyn),
        other if other.parameters().is_empty() => other.clone(),
        other => {
            let parameters = other.parameters().iter();
            let replaced: Vec<Type> = parameters.map(|one| instantiate(one, variables)).collect();
            other.with(replaced)
        }
    }
}

/// How many parameters a signature has, counted by the highest one.
pub(super) fn parameters_of(ty: &Type) -> usize {
    match ty {
        Type::Parameter(index) => usize::from(*index) + 1,
        other => other
            .parameters()
            .iter()
            .map(parameters_of)
            .max()
            .unwrap_or(0),
    }
}

fn is_nullable(ty: &Type) -> bool {
    matches!(
        ty,
        Type::Null
            | Type::Optional(_)
            | Type::Library(_)
            | Type::Object(_)
            | Type::Duration
            | Type::Timestamp
    )
}

/// The more general of two types that fit each other.
pub(super) fn most_general(one: &Type, two: &Type) -> Type {
    if is_as_general(one, two) {
        one.clone()
    } else {
        two.clone()
    }
}

fn is_as_general(one: &Type, two: &Type) -> bool {
    if one.is_dyn() || one.is_parameter() {
        return true;
    }
    if two.is_dyn() || two.is_parameter() || !one.same_kind(two) {
        return false;
    }
    match one {
        Type::Optional(_) | Type::List(_) | Type::Map(_) => one
            .parameters()
            .iter()
            .zip(two.parameters())
            .all(|(one, two)| is_as_general(one, two)),
        Type::Type(_) => true,
        _ => one == two,
    }
}
