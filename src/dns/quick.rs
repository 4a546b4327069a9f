//! The usual queries, from bytes to bytes: one name's addresses, or that there are none. Pure, but for the order of
//! addresses, which is random.
//!
//! Always true: what is said here is what `answer.rs` says; whatever is not quite usual is left to it.

use std::net::IpAddr;

use hickory_proto::rr::RecordType;
use rand::seq::SliceRandom;

use super::{
    answer::{PAYLOAD, SOA_NUMBERS, TTL, is_ours, is_special, room},
    records::{Data, Found, Index},
};

const HEADER: usize = 12;
/// Of a name on the wire, and so of its text.
const LONGEST_NAME: usize = 255;
const LONGEST_LABEL: usize = 63;
const IN: u16 = 1;
const OPT: u16 = 41;
const SOA: u16 = 6;
/// Bits of the header's third and fourth byte.
const RESPONSE: u8 = 0x80;
const AUTHORITATIVE: u8 = 0x04;
const RECURSION_DESIRED: u8 = 0x01;
const RECURSION_AVAILABLE: u8 = 0x80;
const AUTHENTIC_OR_UNCHECKED: u8 = 0x30;
const NO_SUCH_NAME: u8 = 3;
/// A pointer to the question's name.
const TO_QUESTION: [u8; 2] = [0xc0, 12];
/// What an address takes, at least; more than fit into a datagram are left to `answer.rs`.
const MOST_ADDRESSES: usize = 64;

/// Appends the reply to `reply` and returns true, or leaves it as it was.
pub fn answer(query: &[u8], index: &Index, domain: &str, reply: &mut Vec<u8>) -> bool {
    let mut text = [0; LONGEST_NAME];
    let Some(question) = Question::read(query, &mut text) else {
        return false;
    };
    if !is_ours(question.name, domain) {
        // It may be an address of ours all the same, but nobody asks for addresses of those.
        return false;
    }
    let mut addresses = Addresses::default();
    let mut code = 0;
    match index.find(question.name) {
        Found::Records(records) => {
            for data in records {
                let taken = match data {
                    Data::Alias(_) => false,
                    Data::Address(address) if question.asks_for(*address) => {
                        addresses.push(*address)
                    }
                    _ => true,
                };
                if !taken {
                    return false;
                }
            }
        }
        Found::Empty => {}
        Found::Nothing if is_special(question.name, domain) => return false,
        Found::Nothing => code = NO_SUCH_NAME,
    }
    let begin = reply.len();
    question.write(code, addresses.count, reply);
    match addresses.count {
        0 => question.write_authority(domain, reply),
        _ => addresses.write(question.kind, reply),
    }
    question.write_options(reply);
    // It is for `answer.rs` to cut it.
    let fits = reply.len() - begin <= room(question.payload);
    if !fits {
        reply.truncate(begin);
    }
    fits
}

/// A query for the addresses of one name.
struct Question<'a> {
    query: &'a [u8],
    /// As the index has it.
    name: &'a str,
    /// Where the question ends in the query.
    end: usize,
    kind: RecordType,
    /// What the client can take, if it says so.
    payload: Option<u16>,
}

impl<'a> Question<'a> {
    /// `None` if there is more to it.
    fn read(query: &'a [u8], text: &'a mut [u8; LONGEST_NAME]) -> Option<Self> {
        let header = query.get(..HEADER)?;
        let usual = header[2] & !RECURSION_DESIRED == 0 && header[3] & !AUTHENTIC_OR_UNCHECKED == 0;
        if !usual || header[4..10] != [0, 1, 0, 0, 0, 0] {
            return None;
        }
        let (mut at, mut length) = (HEADER, 0);
        loop {
            let label = usize::from(*query.get(at)?);
            if label == 0 {
                break;
            }
            if label > LONGEST_LABEL || length + label + 3 > LONGEST_NAME {
                return None;
            }
            if length > 0 {
                text[length] = b'.';
                length += 1;
            }
            for byte in query.get(at + 1..at + 1 + label)? {
                if !byte.is_ascii_alphanumeric() && !matches!(byte, b'-' | b'_') {
                    return None;
                }
                text[length] = byte.to_ascii_lowercase();
                length += 1;
            }
            at += 1 + label;
        }
        let kind = RecordType::from(number(query, at + 1)?);
        if !matches!(kind, RecordType::A | RecordType::AAAA) || number(query, at + 3)? != IN {
            return None;
        }
        let end = at + 5;
        let payload = match (&header[10..], query.len() - end) {
            ([0, 0], 0) => None,
            ([0, 1], _) => Some(payload(&query[end..])?),
            _ => return None,
        };
        let text: &'a [u8] = text;
        let name = std::str::from_utf8(text.get(..length)?).ok()?;
        Some(Self {
            query,
            name,
            end,
            kind,
            payload,
        })
    }

    fn asks_for(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => self.kind == RecordType::A,
            IpAddr::V6(_) => self.kind == RecordType::AAAA,
        }
    }

    /// The header and the question, as it was asked.
    fn write(&self, code: u8, answers: usize, reply: &mut Vec<u8>) {
        let query = self.query;
        reply.extend([
            query[0],
            query[1],
            RESPONSE | AUTHORITATIVE | query[2] & RECURSION_DESIRED,
            RECURSION_AVAILABLE | code,
        ]);
        let answers = answers as u16; // MOST_ADDRESSES at most
        let authorities = u16::from(answers == 0);
        let options = u16::from(self.payload.is_some());
        for count in [1, answers, authorities, options] {
            reply.extend(count.to_be_bytes());
        }
        reply.extend(&query[HEADER..self.end]);
    }

    /// The zone's SOA, by which others know for how long there is nothing.
    fn write_authority(&self, domain: &str, reply: &mut Vec<u8>) {
        // The question ends with the domain, the root, and four bytes.
        let zone = (self.end - 4 - 1 - (domain.len() + 1)) as u16; // a name ends below 0x4000
        let zone = (0xc000 | zone).to_be_bytes();
        reply.extend(zone);
        for number in [SOA, IN] {
            reply.extend(number.to_be_bytes());
        }
        reply.extend(TTL.to_be_bytes());
        let names: [&[u8]; 4] = [b"\x02ns\x03dns", &zone, b"\x0ahostmaster", &zone];
        let length = names.iter().map(|part| part.len()).sum::<usize>() + 5 * 4;
        reply.extend((length as u16).to_be_bytes());
        for part in names {
            reply.extend(part);
        }
        for number in SOA_NUMBERS {
            reply.extend(number.to_be_bytes());
        }
    }

    fn write_options(&self, reply: &mut Vec<u8>) {
        if self.payload.is_some() {
            reply.push(0);
            reply.extend(OPT.to_be_bytes());
            reply.extend(PAYLOAD.to_be_bytes());
            reply.extend([0; 6]);
        }
    }
}

/// What a client can take, of an OPT record of the first version without options.
fn payload(record: &[u8]) -> Option<u16> {
    let usual = record.len() == 11 && record[0] == 0 && number(record, 1)? == OPT;
    // The upper half of the code, and the version; then flags, which are echoed by nobody.
    let plain = usual && record[5..7] == [0, 0] && record[7..11] == [0; 4];
    plain.then(|| number(record, 3)).flatten()
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

struct Addresses {
    all: [IpAddr; MOST_ADDRESSES],
    count: usize,
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            all: [IpAddr::from([0, 0, 0, 0]); MOST_ADDRESSES],
            count: 0,
        }
    }
}

impl Addresses {
    /// `false` if there are too many.
    fn push(&mut self, address: IpAddr) -> bool {
        let Some(free) = self.all.get_mut(self.count) else {
            return false;
        };
        *free = address;
        self.count += 1;
        true
    }

    fn write(&mut self, kind: RecordType, reply: &mut Vec<u8>) {
        let addresses = &mut self.all[..self.count];
        if addresses.len() > 1 {
            addresses.shuffle(&mut rand::rng());
        }
        for address in addresses {
            reply.extend(TO_QUESTION);
            for number in [u16::from(kind), IN] {
                reply.extend(number.to_be_bytes());
            }
            reply.extend(TTL.to_be_bytes());
            match address {
                IpAddr::V4(address) => {
                    reply.extend([0, 4]);
                    reply.extend(address.octets());
                }
                IpAddr::V6(address) => {
                    reply.extend([0, 16]);
                    reply.extend(address.octets());
                }
            }
        }
    }
}
