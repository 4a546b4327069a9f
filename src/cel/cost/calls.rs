//! What calls may cost at most.

use super::{
    CHARACTER, CHECK, LIST, PATTERN, STRUCT, compares,
    estimate::{Argument, Estimator, Place},
    range::{CostEstimate, Size},
};
use crate::cel::{
    ast::{Expr, Kind, Literal},
    types::{LibraryType, Type},
};

/// A call of one overload.
pub(super) struct Estimate<'x, 'c> {
    pub estimator: &'x mut Estimator<'c>,
    pub expr: &'c Expr,
    pub function: &'static str,
    pub overload: &'static str,
    pub target: Option<&'x Argument<'c, 'c>>,
    pub args: &'x [Argument<'c, 'c>],
    /// Of the arguments.
    pub costs: &'x [CostEstimate],
}

/// What it costs, its arguments included, and how large the result may be.
pub(super) struct CallEstimate {
    pub cost: CostEstimate,
    pub size: Option<Size>,
}

/// Without the arguments.
struct Own(CostEstimate, Option<Size>);

fn own(cost: CostEstimate) -> Option<Own> {
    Some(Own(cost, None))
}

fn sized(cost: CostEstimate, size: Size) -> Option<Own> {
    Some(Own(cost, Some(size)))
}

impl<'c> Estimate<'_, 'c> {
    pub fn compute(mut self) -> CallEstimate {
        let args = self.costs.iter();
        let args = args.fold(CostEstimate::default(), |sum, cost| sum.plus(*cost));
        let own = self
            .by_overload()
            .or_else(|| self.by_function())
            .or_else(|| self.standard());
        match own {
            Some(Own(cost, size)) => CallEstimate {
                cost: cost.plus(args),
                size,
            },
            None => self.operator(args),
        }
    }

    fn arg(&self, index: usize) -> Option<Size> {
        self.args.get(index).map(Argument::size_or_unknown)
    }

    fn target_size(&self) -> Option<Size> {
        self.target.map(Argument::size_or_unknown)
    }

    /// A literal argument that is a number, else something.
    fn number(&self, index: usize, otherwise: u64) -> u64 {
        match self.args.get(index).map(|arg| &arg.expr.kind) {
            Some(Kind::Literal(Literal::Int(number))) => u64::try_from(*number).unwrap_or(0),
            _ => otherwise,
        }
    }

    /// Rules of cel-go's extensions.
    fn by_overload(&self) -> Option<Own> {
        let pairs = |times: f64| {
            let product = self.arg(0)?.times(self.arg(1)?);
            own(product.scaled(times).plus(CostEstimate::fixed(1)))
        };
        let new_list = |factor: f64, size: Size| {
            sized(
                size.scaled(factor).plus(CostEstimate::fixed(1 + LIST)),
                size,
            )
        };
        let self_pairs = |list: Size| {
            let texts = self.overload.contains("string") || self.overload.contains("bytes");
            let sorts = self.overload.contains("sort");
            let factor = if texts && sorts { 2.0 + CHARACTER } else { 2.0 };
            new_list(factor, list.times(list))
        };
        match self.overload {
            "list_sets_contains_list" | "list_sets_intersects_list" => pairs(1.0),
            "list_sets_equivalent_list" => pairs(2.0),
            "list_slice" => {
                let end = self.number(1, self.target_size()?.max);
                let length = end.wrapping_sub(self.number(0, 0));
                new_list(1.0, Size::fixed(length))
            }
            "lists_range" => new_list(1.0, Size::fixed(self.number(0, u64::MAX))),
            "list_reverse" => new_list(1.0, self.target_size()?),
            "list_flatten" => new_list(1.0, self.target_size()?),
            "list_flatten_int" => {
                let depth = self.number(0, u64::MAX);
                new_list(depth as f64, self.target_size()?)
            }
            "list_distinct" => self_pairs(self.target_size()?),
            other if other.ends_with("_sort") => self_pairs(self.target_size()?),
            other if other.ends_with("_sortByAssociatedKeys") => self_pairs(self.arg(0)?),
            _ => None,
        }
    }

    /// Rules of Kubernetes' libraries.
    fn by_function(&self) -> Option<Own> {
        let one = || own(CostEstimate::fixed(1));
        let read_arg = || own(self.arg(0)?.scaled(CHARACTER));
        match self.function {
            "check" => own(CostEstimate::fixed(CHECK)),
            "serviceAccount" | "path" | "group" | "resource" | "subresource" | "namespace"
            | "name" | "allowed" | "reason" | "error" | "errored" => one(),
            "fieldSelector" | "labelSelector" => self.selector(),
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "includes" => {
                self.traversal()
            }
            "url" | "jsonpatch.escapeKey" => {
                let size = self.arg(0)?;
                sized(size.scaled(CHARACTER), size)
            }
            "lowerAscii" | "upperAscii" | "substring" | "trim" => {
                let size = self.target_size()?;
                sized(size.scaled(CHARACTER), size)
            }
            "replace" => self.replace(),
            "split" => {
                let size = self.target_size()?;
                let most = self.number(1, size.max);
                sized(size.scaled(2.0 * CHARACTER), Size::between(0, most))
            }
            "join" => self.join(),
            "find" | "findAll" => {
                let size = self.target_size()?;
                let cost = pattern(size, self.arg(0)?);
                sized(cost, Size::between(0, size.max))
            }
            "ip" if self.overload == "cidr_ip" => one(),
            "cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver"
            | "isSemver" => read_arg(),
            "ip.isCanonical" => own(self.arg(0)?.scaled(2.0 * CHARACTER)),
            "masked"
            | "prefixLength"
            | "family"
            | "isUnspecified"
            | "isLoopback"
            | "isLinkLocalMulticast"
            | "isLinkLocalUnicast"
            | "isGlobalUnicast" => one(),
            "containsIP" | "containsCIDR" => self.contains_network(),
            "validate" => {
                let read = self.arg(0)?.scaled(CHARACTER);
                own(read.scaled(128.0 * PATTERN))
            }
            "format.named" | "sign" | "asInteger" | "isInteger" | "asApproximateFloat"
            | "isGreaterThan" | "isLessThan" | "compareTo" | "add" | "sub" | "major" | "minor"
            | "patch" | "getScheme" | "getHostname" | "getHost" | "getPort" | "getEscapedPath"
            | "getQuery" => one(),
            "_==_" => self.library_equality(),
            _ => None,
        }
    }

    fn selector(&self) -> Option<Own> {
        let length = self.arg(0)?;
        let requirements = length.scaled(0.5).scaled((LIST + STRUCT) as f64);
        own(CostEstimate::fixed(LIST)
            .plus(length.scaled(CHARACTER))
            .plus(requirements))
    }

    fn traversal(&self) -> Option<Own> {
        let target = self.target?;
        let count = target.size_or_unknown();
        let Some(element) = target.ty.parameters().first() else {
            return match self.function {
                "includes" => own(count),
                // A text.
                _ => own(count.scaled(CHARACTER)),
            };
        };
        let mut each = CostEstimate::fixed(1);
        if matches!(element, Type::String | Type::Bytes) {
            each = each.plus(self.element_size(target).scaled(CHARACTER));
        }
        own(count.times(each))
    }

    /// The size that the schema gives the elements of a list.
    fn element_size(&self, list: &Argument<'_, 'c>) -> Size {
        if matches!(list.place, Place::Nowhere) {
            return Size::UNKNOWN;
        }
        let place = self.estimator.step(list.place, "@items");
        self.estimator.schema_size(place).unwrap_or(Size::UNKNOWN)
    }

    fn replace(&self) -> Option<Own> {
        let size = self.target_size()?;
        let (old, new) = (self.arg(0)?, self.arg(1)?);
        let divided = |size: u64, by: u64| (size as f64 / by as f64).ceil() as u64;
        let (mut count, mut kept) = (Size::default(), Size::default());
        // The longest result.
        if old.min == 0 {
            count.max = size.max.saturating_add(1);
            kept.max = size.max;
        } else if new.max <= old.min {
            kept.max = size.max;
        } else {
            count.max = divided(size.max, old.min);
        }
        // The shortest result.
        if old.max == 0 {
            count.min = size.min.saturating_add(1);
            kept.min = size.min;
        } else if old.max <= new.min {
            kept.min = size.min;
        } else {
            count.min = divided(size.min, old.max);
        }
        sized(size.scaled(2.0 * CHARACTER), count.times(new).plus(kept))
    }

    fn join(&self) -> Option<Own> {
        let target = self.target?;
        let count = target.size_or_unknown();
        let mut size = Size::default();
        if !target.ty.parameters().is_empty() {
            size = count.times(self.element_size(target));
        }
        if let Some(separator) = self.arg(0) {
            let gaps = Size::between(count.min.saturating_sub(1), count.max.saturating_sub(1));
            size = size.plus(separator.times(gaps));
        }
        sized(size.scaled(CHARACTER), size)
    }

    fn contains_network(&self) -> Option<Own> {
        let bytes = Size::between(4, 16);
        let mut cost = bytes.plus(bytes).scaled(CHARACTER);
        if self.function == "containsCIDR" {
            cost = cost
                .plus(bytes.scaled(CHARACTER))
                .plus(CostEstimate::fixed(1));
        }
        if self.overload.ends_with("_string") {
            cost = cost.plus(self.arg(0)?.scaled(CHARACTER));
        }
        own(cost)
    }

    fn library_equality(&self) -> Option<Own> {
        let [one, two] = self.args else { return None };
        let (Type::Library(left), Type::Library(right)) = (one.ty, two.ty) else {
            return None;
        };
        if left != right {
            return None;
        }
        let cost = match left {
            LibraryType::Format => CostEstimate::between(1, 64).scaled(CHARACTER),
            LibraryType::Url => {
                let most = two.size.map_or(1, |size| size.max);
                CostEstimate::between(1, most).scaled(CHARACTER)
            }
            _ => CostEstimate::fixed(1),
        };
        own(cost)
    }

    /// Rules of the language for functions.
    fn standard(&self) -> Option<Own> {
        let read = |size: Size| size.scaled(CHARACTER);
        match self.overload {
            "string_format" => own(read(self.target_size()?)),
            "string_to_bytes" => {
                let size = self.arg(0)?;
                sized(
                    read(size),
                    Size::between(size.min, size.max.wrapping_mul(4)),
                )
            }
            "bytes_to_string" => {
                let size = self.arg(0)?;
                sized(read(size), Size::between(size.min / 4, size.max))
            }
            "strings_quote" => {
                let size = self.arg(0)?;
                let longest = size.max.wrapping_mul(2).wrapping_add(2);
                sized(read(size), Size::between(size.min.wrapping_add(2), longest))
            }
            "starts_with_string" | "ends_with_string" => own(read(self.arg(0)?)),
            "in_list" => own(self.arg(1)?),
            "matches_string" => own(pattern(self.target_size()?, self.arg(0)?)),
            "contains_string" => own(read(self.target_size()?).times(read(self.arg(0)?))),
            overload if compares(overload) => {
                let most = self.arg(0)?.max.min(self.arg(1)?.max);
                own(read(Size::between(most.min(1), most)))
            }
            _ => None,
        }
    }

    /// Operators, whose arguments do not simply add up; anything else costs 1.
    fn operator(&mut self, args: CostEstimate) -> CallEstimate {
        let id = self.expr.id;
        match (self.overload, self.args, self.costs) {
            ("logical_and" | "logical_or", _, [left, right]) => CallEstimate {
                cost: CostEstimate {
                    min: left.min,
                    max: left.plus(*right).max,
                },
                size: None,
            },
            ("conditional", [_, yes, no], [condition, if_true, if_false]) => {
                self.estimator.union_of_entries(id, yes.expr, no.expr);
                CallEstimate {
                    cost: condition.plus(if_true.or(*if_false)),
                    size: Some(yes.size_or_unknown().or(no.size_or_unknown())),
                }
            }
            ("add_string" | "add_bytes" | "add_list", [left, right], _) => {
                let size = left.size_or_unknown().plus(right.size_or_unknown());
                self.estimator.union_of_entries(id, left.expr, right.expr);
                let own = match self.overload {
                    "add_list" => CostEstimate::fixed(1),
                    _ => size.scaled(CHARACTER),
                };
                CallEstimate {
                    cost: own.plus(args),
                    size: Some(size),
                }
            }
            _ => CallEstimate {
                cost: args.plus(CostEstimate::fixed(1)),
                size: None,
            },
        }
    }
}

fn pattern(text: Size, pattern: Size) -> CostEstimate {
    // One more character: an empty text does not make a pattern cheap.
    let read = text.plus(Size::fixed(1)).scaled(CHARACTER);
    read.times(pattern.scaled(PATTERN))
}
