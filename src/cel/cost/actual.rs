//! What a call cost, by its arguments and its result.

use super::{CHARACTER, CHECK, LIST, PATTERN, compares, scaled};
use crate::cel::value::{LibraryValue, Value};

/// How the cost of a call is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum CallCost {
    Fixed(u64),
    /// All pairs of two lists, so many times.
    Pairs(u64),
    /// The elements of the result, a new list.
    NewList,
    Flatten,
    /// All pairs of the list that is this argument.
    SelfPairs(usize),
    /// Everything in the first argument once.
    Traversal,
    /// Characters of the first argument times a factor.
    Characters(f64),
    /// Characters of the second argument.
    SecondCharacters,
    /// Characters of the result, read and written.
    Written,
    /// Characters times the length of the pattern.
    Pattern,
    /// Characters times the length of a format's pattern.
    Format,
    Selector,
    /// Bytes of a network, and characters of what is parsed.
    ContainsIp {
        parsed: bool,
    },
    ContainsCidr {
        parsed: bool,
    },
    /// The elements of the second argument.
    SecondSize,
    /// The smaller of two sizes.
    Compare,
    /// As `Compare`; 1 for values of Kubernetes' libraries.
    Equals,
    /// Both sizes.
    Join,
    /// Product of both lengths.
    Search,
}

impl CallCost {
    /// The rule for a call. `overload` is known if only one fits the types.
    pub fn of(function: &str, overload: Option<&str>) -> Self {
        by_overload(overload)
            .or_else(|| by_function(function, overload))
            .unwrap_or_else(|| standard(overload))
    }

    pub fn compute(self, args: &[Value<'_>], result: Option<&Value<'_>>) -> u64 {
        let size = |index: usize| args.get(index).map_or(1, Value::size);
        let result_size = || result.map_or(1, Value::size);
        match self {
            Self::Fixed(cost) => cost,
            Self::Pairs(times) => size(0)
                .saturating_mul(size(1))
                .saturating_mul(times)
                .saturating_add(1),
            Self::NewList => result_size().saturating_add(1 + LIST),
            Self::Flatten => {
                let depth = match args.get(1) {
                    Some(Value::Int(depth)) => u64::try_from(*depth).unwrap_or(0),
                    _ => 1,
                };
                size(0).saturating_mul(depth).saturating_add(1 + LIST)
            }
            Self::SelfPairs(index) => self_pairs(args.get(index)),
            Self::Traversal => args.first().map_or(0, |first| traversal(first, 0)),
            Self::Characters(factor) => scaled(size(0), factor),
            Self::SecondCharacters => scaled(size(1), CHARACTER),
            Self::Written => scaled(result_size(), 2.0 * CHARACTER),
            Self::Pattern => pattern(size(0), size(1)),
            Self::Format => pattern(size(1), format_length(args)),
            Self::Selector => {
                let parsed = scaled(size(1), CHARACTER);
                let requirements = scaled(size(1), 0.5);
                LIST + parsed + requirements.saturating_mul(50)
            }
            Self::ContainsIp { parsed } => {
                scaled(2 * size(0), CHARACTER)
                    + if parsed {
                        scaled(size(1), CHARACTER)
                    } else {
                        0
                    }
            }
            Self::ContainsCidr { parsed } => {
                scaled(2 * size(0), CHARACTER)
                    + scaled(size(0), CHARACTER)
                    + 1
                    + if parsed {
                        scaled(size(1), CHARACTER)
                    } else {
                        0
                    }
            }
            Self::SecondSize => size(1),
            Self::Equals if matches!(args.first(), Some(Value::Library(_))) => 1,
            Self::Compare | Self::Equals => scaled(size(0).min(size(1)), CHARACTER),
            Self::Join => scaled(size(0).saturating_add(size(1)), CHARACTER),
            Self::Search => scaled(size(0), CHARACTER).saturating_mul(scaled(size(1), CHARACTER)),
        }
    }
}

fn by_overload(overload: Option<&str>) -> Option<CallCost> {
    let overload = overload?;
    Some(match overload {
        "list_sets_contains_list" | "list_sets_intersects_list" => CallCost::Pairs(1),
        "list_sets_equivalent_list" => CallCost::Pairs(2),
        "list_slice" | "lists_range" | "list_reverse" => CallCost::NewList,
        "list_flatten" | "list_flatten_int" => CallCost::Flatten,
        "list_distinct" => CallCost::SelfPairs(0),
        other if other.starts_with("list_") && other.ends_with("_sort") => CallCost::SelfPairs(0),
        other if other.ends_with("_sortByAssociatedKeys") => CallCost::SelfPairs(1),
        _ => return None,
    })
}

/// Kubernetes' own rules.
fn by_function(function: &str, overload: Option<&str>) -> Option<CallCost> {
    Some(match function {
        "check" => CallCost::Fixed(CHECK),
        "serviceAccount" | "path" | "group" | "resource" | "subresource" | "namespace" | "name"
        | "allowed" | "reason" | "error" | "errored" => CallCost::Fixed(1),
        "fieldSelector" | "labelSelector" => CallCost::Selector,
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "includes" => {
            CallCost::Traversal
        }
        "url"
        | "lowerAscii"
        | "upperAscii"
        | "substring"
        | "trim"
        | "jsonpatch.escapeKey"
        | "cidr"
        | "isIP"
        | "isCIDR"
        | "quantity"
        | "isQuantity"
        | "semver"
        | "isSemver" => CallCost::Characters(CHARACTER),
        "ip" if overload == Some("cidr_ip") => CallCost::Fixed(1),
        "ip" => CallCost::Characters(CHARACTER),
        "replace" | "split" | "ip.isCanonical" => CallCost::Characters(2.0 * CHARACTER),
        "join" => CallCost::Written,
        "find" | "findAll" => CallCost::Pattern,
        "masked"
        | "prefixLength"
        | "family"
        | "isUnspecified"
        | "isLoopback"
        | "isLinkLocalMulticast"
        | "isLinkLocalUnicast"
        | "isGlobalUnicast" => CallCost::Fixed(1),
        "containsIP" => CallCost::ContainsIp {
            parsed: overload == Some("cidr_contains_ip_string"),
        },
        "containsCIDR" => CallCost::ContainsCidr {
            parsed: overload == Some("cidr_contains_cidr_string"),
        },
        "validate" => CallCost::Format,
        "_==_" => CallCost::Equals,
        _ => return None,
    })
}

/// The rules of the language. Whatever is not named costs 1.
fn standard(overload: Option<&str>) -> CallCost {
    match overload.unwrap_or_default() {
        "starts_with_string" | "ends_with_string" => CallCost::SecondCharacters,
        "string_to_bytes" | "bytes_to_string" | "strings_quote" | "string_format" => {
            CallCost::Characters(CHARACTER)
        }
        "in_list" => CallCost::SecondSize,
        overload if compares(overload) => CallCost::Compare,
        "add_string" | "add_bytes" => CallCost::Join,
        "matches_string" => CallCost::Pattern,
        "contains_string" => CallCost::Search,
        _ => CallCost::Fixed(1),
    }
}

fn pattern(text: u64, pattern: u64) -> u64 {
    // One more character: an empty text does not make a pattern cheap.
    scaled(text.saturating_add(1), CHARACTER).saturating_mul(scaled(pattern, PATTERN))
}

fn format_length(args: &[Value<'_>]) -> u64 {
    match args.first() {
        Some(Value::Library(value)) => match &**value {
            LibraryValue::Format(format) => format.pattern_length,
            _ => 1,
        },
        _ => 1,
    }
}

fn self_pairs(list: Option<&Value<'_>>) -> u64 {
    let Some(Value::List(list)) = list else {
        return 1 + LIST;
    };
    let texts = matches!(list.get(0), Some(Ok(Value::String(_) | Value::Bytes(_))));
    let factor = if texts { 2.0 + CHARACTER } else { 2.0 };
    let size = list.len() as u64;
    let pairs = size.saturating_mul(size) as f64 * factor;
    (pairs as u64).saturating_add(1 + LIST)
}

/// Everything in a value once; texts are rounded down. Values are nested at most a few hundred
/// levels.
fn traversal(value: &Value<'_>, depth: usize) -> u64 {
    const MAX_DEPTH: usize = 400;
    if depth > MAX_DEPTH {
        return 1;
    }
    match value {
        Value::String(text) => (text.len() as f64 * CHARACTER) as u64,
        Value::Bytes(bytes) => (bytes.len() as f64 * CHARACTER) as u64,
        Value::List(list) => list.iter().fold(0, |sum: u64, item| {
            let cost = item.map_or(1, |item| traversal(&item, depth + 1));
            sum.saturating_add(cost)
        }),
        Value::Map(map) => {
            let entries = map.entries().unwrap_or_default();
            entries.iter().fold(0, |sum: u64, (key, value)| {
                let key = traversal(&key.to_value(), depth + 1);
                sum.saturating_add(key)
                    .saturating_add(traversal(value, depth + 1))
            })
        }
        _ => 1,
    }
}
