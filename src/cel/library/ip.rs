//! Kubernetes' IP addresses.

use std::{fmt, net::IpAddr};

use crate::cel::{
    functions::{Call, Functions},
    program::Meter,
    types::{LibraryType, Type},
    value::{EvalError, Evaluated, Ip, LibraryValue, Value, escaped},
};

const IP: Type = Type::Library(LibraryType::Ip);

pub(super) fn declare(functions: &mut Functions) {
    use Type::{Bool, Int, String};
    functions.global("ip", "string_to_ip", [String], IP, ip);
    functions.global("isIP", "is_ip", [String], Bool, is_ip);
    functions.global(
        "ip.isCanonical",
        "ip_is_canonical",
        [String],
        Bool,
        is_canonical,
    );
    functions.member("family", "ip_family", [IP], Int, family);
    let questions: [(&'static str, &'static str, Call); 5] = [
        ("isUnspecified", "ip_is_unspecified", |_, args| {
            ask("isUnspecified", args, |ip| ip.is_unspecified())
        }),
        ("isLoopback", "ip_is_loopback", |_, args| {
            ask("isLoopback", args, |ip| ip.is_loopback())
        }),
        (
            "isLinkLocalMulticast",
            "ip_is_link_local_multicast",
            |_, args| ask("isLinkLocalMulticast", args, is_link_local_multicast),
        ),
        (
            "isLinkLocalUnicast",
            "ip_is_link_local_unicast",
            |_, args| ask("isLinkLocalUnicast", args, is_link_local_unicast),
        ),
        ("isGlobalUnicast", "ip_is_global_unicast", |_, args| {
            ask("isGlobalUnicast", args, is_global_unicast)
        }),
    ];
    for (name, id, call) in questions {
        functions.member(name, id, [IP], Bool, call);
    }
}

impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An address without zone that is no IPv4 address in IPv6's clothes.
pub(super) fn parse(text: &str) -> Result<IpAddr, String> {
    let quoted = escaped(text);
    let address = address(text).map_err(|why| {
        format!("IP Address {quoted} parse error during conversion from string: {why}")
    })?;
    if text.contains('%') {
        return Err(format!(
            "IP address {quoted} with zone value is not allowed"
        ));
    }
    if is_mapped(address) {
        return Err(format!("IPv4-mapped IPv6 address {quoted} is not allowed"));
    }
    Ok(address)
}

pub(super) fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(six) if six.to_ipv4_mapped().is_some())
}

/// Any address, with the words of Go's net/netip for what is none.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    let (bare, zone) = match text.split_once('%') {
        Some((bare, zone)) => (bare, Some(zone)),
        None => (text, None),
    };
    let quoted = escaped(text);
    let at = |why: &str, rest: &str| match rest {
        "" => format!("ParseAddr({quoted}): {why}"),
        rest => format!("ParseAddr({quoted}): {why} (at {})", escaped(rest)),
    };
    match (bare.find(['.', ':']), zone) {
        (None, _) => return Err(at("unable to parse IP", "")),
        (Some(first), _) if bare.as_bytes()[first] == b'.' => {
            return match bare.parse() {
                Ok(four) if zone.is_none() => Ok(IpAddr::V4(four)),
                _ => {
                    let (why, rest) = why_not_four(text);
                    Err(at(why, rest))
                }
            };
        }
        (_, Some("")) => return Err(at("zone must be a non-empty string", "")),
        _ => {}
    }
    bare.parse().map(IpAddr::V6).map_err(|_| {
        let (why, rest) = why_not_six(bare);
        at(why, rest)
    })
}

/// What Go says of an IPv4 address that is none, and where.
fn why_not_four(text: &str) -> (&'static str, &str) {
    let bytes = text.as_bytes();
    let (mut value, mut digits, mut fields) = (0_u32, 0, 0);
    for (index, byte) in bytes.iter().enumerate() {
        match byte {
            b'0'..=b'9' => {
                if digits == 1 && value == 0 {
                    return ("IPv4 field has octet with leading zero", "");
                }
                value = value * 10 + u32::from(byte - b'0');
                digits += 1;
                if value > 255 {
                    return ("IPv4 field has value >255", "");
                }
            }
            b'.' => {
                if index == 0 || index + 1 == bytes.len() || bytes[index - 1] == b'.' {
                    return ("IPv4 field must have at least one digit", &text[index..]);
                }
                if fields == 3 {
                    return ("IPv4 address too long", "");
                }
                fields += 1;
                (value, digits) = (0, 0);
            }
            _ => {
                return (
                    "unexpected character",
                    text.get(index..).unwrap_or_default(),
                );
            }
        }
    }
    ("IPv4 address too short", "")
}

/// What Go says of an IPv6 address that is none, and where.
fn why_not_six(text: &str) -> (&'static str, &str) {
    let mut rest = text;
    let mut ellipsis = false;
    if let Some(after) = rest.strip_prefix("::") {
        ellipsis = true;
        rest = after;
    }
    let mut fields = 0;
    while fields < 8 && !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_hexdigit())
            .unwrap_or(rest.len());
        if end == 0 {
            return (
                "each colon-separated field must have at least one digit",
                rest,
            );
        }
        if end > 4 {
            return ("each group must have 4 or less digits", rest);
        }
        let after = &rest[end..];
        if after.starts_with('.') {
            return ("invalid IPv4 address at the end of an IPv6 address", rest);
        }
        fields += 1;
        if after.is_empty() {
            rest = after;
            break;
        }
        let Some(after) = after.strip_prefix(':') else {
            return ("unexpected character, want colon", after);
        };
        if after.is_empty() {
            return ("colon must be followed by more characters", &rest[end..]);
        }
        rest = after;
        if let Some(after) = rest.strip_prefix(':') {
            if ellipsis {
                return ("multiple :: in address", rest);
            }
            ellipsis = true;
            rest = after;
        }
    }
    match rest {
        "" => ("address string too short", ""),
        rest => ("trailing garbage after address", rest),
    }
}

pub(super) fn the_ip(value: &Value<'_>) -> Option<IpAddr> {
    match value {
        Value::Library(value) => match &**value {
            LibraryValue::Ip(ip) => Some(ip.0),
            _ => None,
        },
        _ => None,
    }
}

fn ip<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::String(text)] = args else {
        return Err(EvalError::no_overload_for("ip", args));
    };
    let address = parse(text).map_err(EvalError::new)?;
    Ok(Value::library(LibraryValue::Ip(Ip(address))))
}

fn is_ip<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [Value::String(text)] => Ok(Value::Bool(parse(text).is_ok())),
        _ => Err(EvalError::no_overload_for("isIP", args)),
    }
}

fn is_canonical<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::String(text)] = args else {
        return Err(EvalError::no_overload_for("ip.isCanonical", args));
    };
    let address = parse(text).map_err(EvalError::new)?;
    Ok(Value::Bool(address.to_string() == **text))
}

fn family<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args.first().and_then(the_ip) {
        Some(IpAddr::V4(_)) => Ok(Value::Int(4)),
        Some(IpAddr::V6(_)) => Ok(Value::Int(6)),
        None => Err(EvalError::no_overload_for("family", args)),
    }
}

fn ask<'a>(name: &str, args: &[Value<'a>], question: fn(IpAddr) -> bool) -> Evaluated<'a> {
    match args.first().and_then(the_ip) {
        Some(address) => Ok(Value::Bool(question(address))),
        None => Err(EvalError::no_overload_for(name, args)),
    }
}

fn is_link_local_multicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => four.octets()[..3] == [224, 0, 0],
        IpAddr::V6(six) => six.segments()[0] & 0xff0f == 0xff02,
    }
}

fn is_link_local_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => four.is_link_local(),
        IpAddr::V6(six) => six.is_unicast_link_local(),
    }
}

/// As Go has it: private addresses too.
fn is_global_unicast(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(four) if four.is_broadcast());
    !(broadcast
        || address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || is_link_local_unicast(address))
}
