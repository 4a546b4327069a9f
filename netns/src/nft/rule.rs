//! Rules as byte code: each method adds one expression, in the order the kernel runs them.

use std::net::IpAddr;

use super::types::Verdict;
use crate::wire::Attrs;

/// One of sixteen registers of four bytes; a longer value fills the ones after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg(pub u8);

impl Reg {
    fn number(self) -> u32 {
        8 + u32::from(self.0)
    }
}

/// How a packet is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    TcpReset,
    /// Port unreachable, for a table of family `ip`.
    IcmpPort,
    /// Port unreachable, for a table of family `ip6`.
    Icmpv6Port,
}

/// What connection tracking says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracked {
    /// It fits no connection.
    Invalid,
    /// Both sides have been heard.
    Established,
    /// It belongs to an established one: an error message, say.
    Related,
    /// It is not looked at.
    Untracked,
}

impl Tracked {
    fn bit(self) -> u32 {
        match self {
            Self::Invalid => 1,
            Self::Established => 1 << 1,
            Self::Related => 1 << 2,
            Self::Untracked => 1 << 6,
        }
    }
}

/// A rule under construction.
#[derive(Clone, Debug, Default)]
pub struct Rule(pub(super) Attrs);

impl Rule {
    pub fn new() -> Self {
        Self::default()
    }

    fn expression(mut self, name: &str, fill: impl FnOnce(&mut Attrs)) -> Self {
        self.0.nest(1, |expression| {
            expression.str(1, name).nest(2, fill);
        });
        self
    }

    /// Loads bytes of the network header.
    pub fn network(self, to: Reg, offset: u32, length: u32) -> Self {
        self.payload(1, to, offset, length)
    }

    /// Loads [`Type::FrameHead`] in one go: receiver, sender, what the frame carries (of a tagged frame, that
    /// it is tagged), and the first byte of that. Four registers.
    pub fn frame_head(self, to: Reg) -> Self {
        self.payload(0, to, 0, 15)
    }

    /// Loads [`Type::FrameEnds`] in one go. Four registers.
    pub fn frame_ends(self, to: Reg) -> Self {
        self.payload(0, to, 0, 14)
    }

    pub fn destination_port(self, to: Reg) -> Self {
        self.payload(2, to, 2, 2)
    }

    pub fn source_v4(self, to: Reg) -> Self {
        self.network(to, 12, 4)
    }

    pub fn destination_v4(self, to: Reg) -> Self {
        self.network(to, 16, 4)
    }

    pub fn source_v6(self, to: Reg) -> Self {
        self.network(to, 8, 16)
    }

    pub fn destination_v6(self, to: Reg) -> Self {
        self.network(to, 24, 16)
    }

    /// Loads the type of an ICMP message.
    pub fn icmp_type(self, to: Reg) -> Self {
        self.payload(2, to, 0, 1)
    }

    fn payload(self, base: u32, to: Reg, offset: u32, length: u32) -> Self {
        self.expression("payload", |e| {
            e.be32(1, to.number())
                .be32(2, base)
                .be32(3, offset)
                .be32(4, length);
        })
    }

    pub fn protocol(self, to: Reg) -> Self {
        self.meta(16, to)
    }

    pub fn load_mark(self, to: Reg) -> Self {
        self.meta(3, to)
    }

    fn meta(self, key: u32, to: Reg) -> Self {
        self.expression("meta", |e| {
            e.be32(1, to.number()).be32(2, key);
        })
    }

    pub fn set_mark(self, from: Reg) -> Self {
        self.expression("meta", |e| {
            e.be32(2, 3).be32(3, from.number());
        })
    }

    /// Loads the name of the link the packet came in by: sixteen bytes, four registers.
    pub fn load_input_link(self, to: Reg) -> Self {
        self.meta(6, to)
    }

    /// The packet's queueing priority: room for a number between rules. IPv4 sets it anew where it forwards, and
    /// nobody else does.
    pub fn load_priority(self, to: Reg) -> Self {
        self.meta(2, to)
    }

    pub fn set_priority(self, from: Reg) -> Self {
        self.expression("meta", |e| {
            e.be32(2, 2).be32(3, from.number());
        })
    }

    /// Goes on only if the packet came in by (or leaves by) a link of this name, or (`not_`) by another one.
    pub fn input_link(self, name: &str) -> Self {
        self.link(6, name, true)
    }

    pub fn not_input_link(self, name: &str) -> Self {
        self.link(6, name, false)
    }

    pub fn output_link(self, name: &str) -> Self {
        self.link(7, name, true)
    }

    pub fn not_output_link(self, name: &str) -> Self {
        self.link(7, name, false)
    }

    fn link(self, key: u32, name: &str, equal: bool) -> Self {
        let mut padded = [0u8; 16];
        let length = name.len().min(15);
        padded[..length].copy_from_slice(&name.as_bytes()[..length]);
        let rule = self.meta(key, Reg(0));
        match equal {
            true => rule.equal(Reg(0), &padded),
            false => rule.not_equal(Reg(0), &padded),
        }
    }

    pub fn equal(self, register: Reg, value: &[u8]) -> Self {
        self.compare(0, register, value)
    }

    pub fn not_equal(self, register: Reg, value: &[u8]) -> Self {
        self.compare(1, register, value)
    }

    /// Goes on only if what is in the register is, as a number with the highest byte first, so large.
    pub fn at_least(self, register: Reg, value: &[u8]) -> Self {
        self.compare(5, register, value)
    }

    /// The same, so large at most.
    pub fn at_most(self, register: Reg, value: &[u8]) -> Self {
        self.compare(3, register, value)
    }

    fn compare(self, operation: u32, register: Reg, value: &[u8]) -> Self {
        self.expression("cmp", |e| {
            e.be32(1, register.number())
                .be32(2, operation)
                .nest(3, |data| {
                    data.bytes(1, value);
                });
        })
    }

    /// `register = (register & mask) ^ xor`.
    pub fn bitwise(self, register: Reg, mask: &[u8], xor: &[u8]) -> Self {
        self.expression("bitwise", |e| {
            e.be32(1, register.number())
                .be32(2, register.number())
                .be32(3, mask.len() as u32)
                .nest(4, |data| {
                    data.bytes(1, mask);
                })
                .nest(5, |data| {
                    data.bytes(1, xor);
                });
        })
    }

    /// Goes on only if the source address is inside (or, not `inside`, outside) the prefix.
    pub fn source_in(self, network: IpAddr, length: u8, inside: bool) -> Self {
        let rule = match network {
            IpAddr::V4(_) => self.source_v4(Reg(0)),
            IpAddr::V6(_) => self.source_v6(Reg(0)),
        };
        rule.in_prefix(network, length, inside)
    }

    /// The same for the destination address.
    pub fn destination_in(self, network: IpAddr, length: u8, inside: bool) -> Self {
        let rule = match network {
            IpAddr::V4(_) => self.destination_v4(Reg(0)),
            IpAddr::V6(_) => self.destination_v6(Reg(0)),
        };
        rule.in_prefix(network, length, inside)
    }

    fn in_prefix(self, network: IpAddr, length: u8, inside: bool) -> Self {
        let mut value = match network {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let mask: Vec<u8> = (0..value.len())
            .map(|byte| {
                let bits = usize::from(length).saturating_sub(byte * 8).min(8);
                (0xff00u16 >> bits) as u8
            })
            .collect();
        for (byte, mask) in value.iter_mut().zip(&mask) {
            *byte &= mask;
        }
        let zero = vec![0; mask.len()];
        let rule = self.bitwise(Reg(0), &mask, &zero);
        match inside {
            true => rule.equal(Reg(0), &value),
            false => rule.not_equal(Reg(0), &value),
        }
    }

    /// Goes on only if the packet's connection is in one of these states.
    pub fn connection_in(self, states: &[Tracked]) -> Self {
        const STATE: u32 = 0;
        let mask = states.iter().fold(0, |mask, state| mask | state.bit());
        self.expression("ct", |e| {
            e.be32(1, Reg(0).number()).be32(2, STATE);
        })
        .bitwise(Reg(0), &mask.to_ne_bytes(), &[0; 4])
        .not_equal(Reg(0), &[0; 4])
    }

    /// Goes on only if the TCP segment, which the packet must be, begins no connection.
    pub fn no_first_segment(self) -> Self {
        const FIN_SYN_RST_ACK: u8 = 0x17;
        const SYN: u8 = 0x02;
        self.payload(2, Reg(0), 13, 1)
            .bitwise(Reg(0), &[FIN_SYN_RST_ACK], &[0])
            .not_equal(Reg(0), &[SYN])
    }

    /// Goes on only if the connection's destination was rewritten.
    pub fn status_dnat(self) -> Self {
        const STATUS: u32 = 2;
        const DNAT: u32 = 1 << 5;
        self.expression("ct", |e| {
            e.be32(1, Reg(0).number()).be32(2, STATUS);
        })
        .bitwise(Reg(0), &DNAT.to_ne_bytes(), &[0; 4])
        .not_equal(Reg(0), &[0; 4])
    }

    /// Goes on only if the packet's destination is (or its source, by `source_local`) an address
    /// of this machine.
    pub fn destination_local(self) -> Self {
        self.address_type(2, true)
    }

    pub fn source_local(self, local: bool) -> Self {
        self.address_type(1, local)
    }

    fn address_type(self, flags: u32, local: bool) -> Self {
        let rule = self.expression("fib", |e| {
            e.be32(1, Reg(0).number()).be32(2, 3).be32(3, flags);
        });
        let kind = u32::from(libc::RTN_LOCAL).to_ne_bytes();
        match local {
            true => rule.equal(Reg(0), &kind),
            false => rule.not_equal(Reg(0), &kind),
        }
    }

    pub fn immediate(self, to: Reg, value: &[u8]) -> Self {
        self.expression("immediate", |e| {
            e.be32(1, to.number()).nest(2, |data| {
                data.bytes(1, value);
            });
        })
    }

    pub fn verdict(self, verdict: &Verdict) -> Self {
        self.expression("immediate", |e| {
            e.be32(1, 0).nest(2, |data| verdict.encode(data));
        })
    }

    /// Goes on only if the set has the key.
    pub fn in_set(self, set: &str, key: Reg) -> Self {
        self.expression("lookup", |e| {
            e.str(1, set).be32(2, key.number());
        })
    }

    /// Goes on only if the set does not have the key.
    pub fn not_in_set(self, set: &str, key: Reg) -> Self {
        const INVERTED: u32 = 1;
        self.expression("lookup", |e| {
            e.str(1, set).be32(2, key.number()).be32(5, INVERTED);
        })
    }

    /// Goes on only if the map has the key; its value comes into `to`.
    pub fn look_up(self, map: &str, key: Reg, to: Reg) -> Self {
        self.expression("lookup", |e| {
            e.str(1, map).be32(2, key.number()).be32(3, to.number());
        })
    }

    /// Does what the verdict map says for the key, if anything.
    pub fn verdict_of(self, map: &str, key: Reg) -> Self {
        self.expression("lookup", |e| {
            e.str(1, map).be32(2, key.number()).be32(3, 0);
        })
    }

    /// One of so many numbers from `first` on, by chance.
    pub fn random(self, to: Reg, count: u32, first: u32) -> Self {
        self.expression("numgen", |e| {
            e.be32(1, to.number()).be32(2, count).be32(3, 1);
            if first > 0 {
                e.be32(4, first);
            }
        })
    }

    /// Adds the key with its value to a dynamic map, or renews it.
    pub fn remember(self, map: &str, key: Reg, value: Reg, timeout_ms: u64) -> Self {
        self.expression("dynset", |e| {
            e.str(1, map)
                .be32(3, 1)
                .be32(4, key.number())
                .be32(5, value.number())
                .be64(6, timeout_ms);
        })
    }

    /// Rewrites the destination to the address and port in these registers. Ends the rule.
    pub fn destination_nat(self, ipv6: bool, address: Reg, port: Reg) -> Self {
        let family = match ipv6 {
            true => libc::AF_INET6,
            false => libc::AF_INET,
        } as u32;
        self.expression("nat", |e| {
            e.be32(1, 1)
                .be32(2, family)
                .be32(3, address.number())
                .be32(5, port.number());
        })
    }

    /// Rewrites the source to an address of the link the packet leaves by. Ends the rule.
    pub fn masquerade(self) -> Self {
        const FULLY_RANDOM: u32 = 1 << 4;
        self.expression("masq", |e| {
            e.be32(1, FULLY_RANDOM);
        })
    }

    pub fn reject(self, how: Reject) -> Self {
        let (kind, code) = match how {
            Reject::TcpReset => (1, 0),
            Reject::IcmpPort => (0, 3),
            Reject::Icmpv6Port => (0, 4),
        };
        self.expression("reject", |e| {
            e.be32(1, kind).u8(2, code);
        })
    }

    pub fn counter(self) -> Self {
        self.expression("counter", |_| {})
    }

    /// Goes on for so many packets a second, after the first `burst`.
    pub fn at_most_per_second(self, packets: u64, burst: u32) -> Self {
        self.expression("limit", |e| {
            e.be64(1, packets).be64(2, 1).be32(3, burst).be32(4, 0);
        })
    }

    /// Writes a line about the packet to the kernel's log. `prefix`: at most 127 bytes.
    pub fn log(self, prefix: &str) -> Self {
        const INFO: u32 = 6;
        self.expression("log", |e| {
            e.str(2, prefix).be32(5, INFO);
        })
    }
}
