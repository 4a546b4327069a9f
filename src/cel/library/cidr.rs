//! Kubernetes' networks.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::ip;
use crate::cel::{
    functions::Functions,
    program::Meter,
    types::{LibraryType, Type},
    value::{Cidr, EvalError, Evaluated, Ip, LibraryValue, Value, escaped},
};

const CIDR: Type = Type::Library(LibraryType::Cidr);
const IP: Type = Type::Library(LibraryType::Ip);

pub(super) fn declare(functions: &mut Functions) {
    use Type::{Bool, Int, String};
    let f = functions;
    f.global("cidr", "string_to_cidr", [String], CIDR, cidr);
    f.global("isCIDR", "is_cidr", [String], Bool, is_cidr);
    f.member(
        "containsIP",
        "cidr_contains_ip_string",
        [CIDR, String],
        Bool,
        contains_ip,
    );
    f.member(
        "containsIP",
        "cidr_contains_ip_ip",
        [CIDR, IP],
        Bool,
        contains_ip,
    );
    f.member(
        "containsCIDR",
        "cidr_contains_cidr_string",
        [CIDR, String],
        Bool,
        contains_cidr,
    );
    f.member(
        "containsCIDR",
        "cidr_contains_cidr",
        [CIDR, CIDR],
        Bool,
        contains_cidr,
    );
    f.member("ip", "cidr_ip", [CIDR], IP, address);
    f.member(
        "prefixLength",
        "cidr_prefix_length",
        [CIDR],
        Int,
        prefix_length,
    );
    f.member("masked", "cidr_masked", [CIDR], CIDR, masked);
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl Cidr {
    /// The address with the bits behind the prefix cleared.
    fn network(self) -> IpAddr {
        mask(self.address, self.bits)
    }

    fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && mask(address, self.bits) == self.network()
    }
}

fn mask(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(four) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(four.to_bits() & mask))
        }
        IpAddr::V6(six) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() & mask))
        }
    }
}

fn parse(text: &str) -> Result<Cidr, String> {
    let quoted = escaped(text);
    let broken = |why: String| {
        format!(
            "network address parse error during conversion from string: \
             netip.ParsePrefix({quoted}): {why}"
        )
    };
    let Some((address, bits)) = text.rsplit_once('/') else {
        return Err(broken("no '/'".to_owned()));
    };
    let address = ip::address(address).map_err(broken)?;
    if text.contains('%') {
        return Err(broken(
            "IPv6 zones cannot be present in a prefix".to_owned(),
        ));
    }
    let whole = bits.bytes().all(|byte| byte.is_ascii_digit()) && !bits.is_empty();
    if !whole || bits.len() > 1 && bits.starts_with('0') {
        return Err(broken(format!("bad bits after slash: {}", escaped(bits))));
    }
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits
        .parse()
        .ok()
        .filter(|bits| *bits <= most)
        .ok_or_else(|| broken(format!("prefix length out of range: {}", escaped(bits))))?;
    if ip::is_mapped(address) {
        return Err(format!("IPv4-mapped IPv6 address {quoted} is not allowed"));
    }
    Ok(Cidr { address, bits })
}

fn made(text: &str) -> Result<Cidr, EvalError> {
    parse(text).map_err(|why| {
        EvalError::new(format!(
            "network address parse error during conversion from string: {why}"
        ))
    })
}

fn the_cidr(value: &Value<'_>) -> Option<Cidr> {
    match value {
        Value::Library(value) => match &**value {
            LibraryValue::Cidr(cidr) => Some(*cidr),
            _ => None,
        },
        _ => None,
    }
}

fn target(name: &str, args: &[Value<'_>]) -> Result<Cidr, EvalError> {
    let first = args.first().and_then(the_cidr);
    first.ok_or_else(|| EvalError::no_overload_for(name, args))
}

fn cidr<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [Value::String(text)] => Ok(Value::library(LibraryValue::Cidr(made(text)?))),
        _ => Err(EvalError::no_overload_for("cidr", args)),
    }
}

fn is_cidr<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    match args {
        [Value::String(text)] => Ok(Value::Bool(parse(text).is_ok())),
        _ => Err(EvalError::no_overload_for("isCIDR", args)),
    }
}

fn contains_ip<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let cidr = target("containsIP", args)?;
    let address = match args {
        [_, Value::String(text)] => ip::parse(text).map_err(EvalError::new)?,
        [_, other] => ip::the_ip(other).ok_or_else(EvalError::no_such_overload)?,
        _ => return Err(EvalError::no_such_overload()),
    };
    Ok(Value::Bool(cidr.contains(address)))
}

fn contains_cidr<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let cidr = target("containsCIDR", args)?;
    let other = match args {
        [_, Value::String(text)] => made(text)?,
        [_, other] => the_cidr(other).ok_or_else(EvalError::no_such_overload)?,
        _ => return Err(EvalError::no_such_overload()),
    };
    let inside = cidr.bits <= other.bits && cidr.contains(other.address);
    Ok(Value::Bool(inside))
}

fn address<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let cidr = target("ip", args)?;
    Ok(Value::library(LibraryValue::Ip(Ip(cidr.address))))
}

fn prefix_length<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    Ok(Value::Int(i64::from(target("prefixLength", args)?.bits)))
}

fn masked<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let cidr = target("masked", args)?;
    let address = cidr.network();
    Ok(Value::library(LibraryValue::Cidr(Cidr { address, ..cidr })))
}
