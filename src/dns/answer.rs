//! From a query to a reply. Pure, but for the order of addresses, which is random.

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
    },
};
use rand::seq::SliceRandom;

use super::records::{Data, Found, Index, undashed};

/// Seconds that others may remember an answer, and that there is none.
pub const TTL: u32 = 5;
const SCHEMA: &str = "1.1.0";
/// Who answers for the zone, before the zone's name: the Service, and the name that is there without it.
const DNS_SERVICE: &str = "kube-dns.kube-system.svc";
const NAME_SERVER: &str = "ns.dns";
/// What fits any path without fragments.
pub const PAYLOAD: u16 = 1232;
/// Serial, refresh, retry and expiry of the zone, which nobody copies, and for how long there is nothing.
pub const SOA_NUMBERS: [u32; 5] = [1, 7200, 1800, 86_400, TTL];

/// What to do with a query.
#[derive(Debug)]
pub enum Answer {
    Reply(Message),
    /// Not ours: ask upstream.
    Forward,
    /// An alias to a name outside: the reply lacks what upstream says of it.
    Chase {
        reply: Message,
        target: Name,
    },
}

/// Answers from the index alone.
pub fn answer(query: &Message, index: &Index, domain: &str) -> Answer {
    let mut reply = reply_to(query);
    if query.metadata.op_code != OpCode::Query {
        reply.metadata.response_code = ResponseCode::NotImp;
        return Answer::Reply(reply);
    }
    let [question] = query.queries.as_slice() else {
        reply.metadata.response_code = ResponseCode::FormErr;
        return Answer::Reply(reply);
    };
    if question.query_class() != DNSClass::IN {
        reply.metadata.response_code = ResponseCode::Refused;
        return Answer::Reply(reply);
    }
    let name = text(question.name());
    let ours = is_ours(&name, domain);
    let found = index.find(&name);
    if !ours && matches!(found, Found::Nothing | Found::Empty) {
        return Answer::Forward;
    }
    reply.metadata.authoritative = true;
    let kind = question.query_type();
    let owner = question.name().clone();
    match found {
        Found::Records(data) => {
            let mut addresses = Vec::new();
            for data in data {
                match data {
                    Data::Alias(target) => return alias(reply, owner, target, kind, index, domain),
                    Data::Address(address) if fits(kind, *address) => {
                        addresses.push(record(&owner, address_data(*address)));
                    }
                    Data::Service { port, target } if kind == RecordType::SRV => {
                        let Some(target_name) = parse(target) else {
                            continue;
                        };
                        let data = RData::SRV(SRV::new(0, 100, *port, target_name.clone()));
                        reply.add_answer(record(&owner, data));
                        reply.add_additionals(glue(index, target, &target_name));
                    }
                    Data::Pointer(target) if kind == RecordType::PTR => {
                        reply.add_answers(
                            parse(target).map(|target| record(&owner, RData::PTR(PTR(target)))),
                        );
                    }
                    _ => {}
                }
            }
            addresses.shuffle(&mut rand::rng());
            reply.add_answers(addresses);
        }
        Found::Empty | Found::Nothing => match special(&name, domain) {
            Some(Special::Version) if kind == RecordType::TXT => {
                let data = RData::TXT(TXT::new(vec![SCHEMA.into()]));
                reply.add_answer(record(&owner, data));
            }
            Some(Special::Pod(address)) if fits(kind, address) => {
                reply.add_answer(record(&owner, address_data(address)));
            }
            Some(Special::Zone) if kind == RecordType::SOA => {
                reply.add_answers(soa(domain));
            }
            Some(Special::Zone) if kind == RecordType::NS => {
                let server = format!("{DNS_SERVICE}.{domain}");
                let server = Some(server).filter(|server| index.find(server).is_there());
                let server = server.unwrap_or_else(|| format!("{NAME_SERVER}.{domain}"));
                if let Some(server_name) = parse(&server) {
                    reply.add_additionals(glue(index, &server, &server_name));
                    reply.add_answer(record(&owner, RData::NS(NS(server_name))));
                }
            }
            Some(Special::NameServer) => {
                let records = glue(index, &format!("{DNS_SERVICE}.{domain}"), &owner);
                reply.add_answers(records.into_iter().filter(|one| one.record_type() == kind));
            }
            Some(_) => {}
            None if matches!(found, Found::Empty) => {}
            None => {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
        },
    }
    if reply.answers.is_empty() {
        reply.add_authorities(soa(domain));
    }
    Answer::Reply(reply)
}

/// Names that exist without a Service.
enum Special {
    Version,
    Pod(IpAddr),
    /// The zone itself.
    Zone,
    /// Who answers for the zone, as its SOA has it.
    NameServer,
    /// There are names below.
    Empty,
}

fn special(name: &str, domain: &str) -> Option<Special> {
    if name == domain {
        return Some(Special::Zone);
    }
    let rest = name.strip_suffix(domain)?.strip_suffix('.')?;
    let mut labels = rest.split('.');
    let mut next = || labels.next();
    match [next(), next(), next(), next()] {
        [Some("dns-version"), None, ..] => Some(Special::Version),
        [Some("svc" | "pod" | "dns"), None, ..] => Some(Special::Empty),
        [Some("ns"), Some("dns"), None, _] => Some(Special::NameServer),
        [Some(address), Some(_namespace), Some("pod"), None] => undashed(address).map(Special::Pod),
        _ => None,
    }
}

/// Whether the name is there though no Service gives it.
pub fn is_special(name: &str, domain: &str) -> bool {
    special(name, domain).is_some()
}

pub fn is_ours(name: &str, domain: &str) -> bool {
    let rest = name.strip_suffix(domain);
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn alias(
    mut reply: Message,
    owner: Name,
    target: &str,
    kind: RecordType,
    index: &Index,
    domain: &str,
) -> Answer {
    let Some(target_name) = parse(target) else {
        reply.metadata.response_code = ResponseCode::ServFail;
        return Answer::Reply(reply);
    };
    reply.add_answer(record(&owner, RData::CNAME(CNAME(target_name.clone()))));
    if kind == RecordType::CNAME {
        return Answer::Reply(reply);
    }
    match index.find(target) {
        Found::Records(data) => {
            let addresses = data.filter_map(|data| match data {
                Data::Address(address) if fits(kind, *address) => {
                    Some(record(&target_name, address_data(*address)))
                }
                _ => None,
            });
            reply.add_answers(addresses);
            Answer::Reply(reply)
        }
        Found::Empty => Answer::Reply(reply),
        Found::Nothing if is_ours(target, domain) => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            reply.add_authorities(soa(domain));
            Answer::Reply(reply)
        }
        Found::Nothing => Answer::Chase {
            reply,
            target: target_name,
        },
    }
}

/// An empty reply that echoes the question.
pub fn reply_to(query: &Message) -> Message {
    let mut reply = Message::new(
        query.metadata.id,
        MessageType::Response,
        query.metadata.op_code,
    );
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD);
        reply.set_edns(edns);
    }
    reply
}

/// The reply's bytes; over UDP cut, with the sign to come back by TCP, if the client cannot take
/// them.
pub fn encode(query: &Message, reply: &Message, udp: bool) -> Option<Vec<u8>> {
    let bytes = reply.to_vec().ok()?;
    let room = room(query.edns.as_ref().map(Edns::max_payload));
    match udp && bytes.len() > room {
        true => cut(reply, room),
        false => Some(bytes),
    }
}

/// How long a datagram may be for a client that says what it can take, or does not.
pub fn room(payload: Option<u16>) -> usize {
    payload
        .map_or(512, |payload| payload.clamp(512, PAYLOAD))
        .into()
}

/// As many answers as fit into `room` bytes, marked as cut: some resolvers take what they get and
/// never ask by TCP.
fn cut(reply: &Message, room: usize) -> Option<Vec<u8>> {
    let with = |count: usize| {
        let mut cut = reply.truncate();
        cut.add_answers(reply.answers.iter().take(count).cloned());
        cut.to_vec().ok().filter(|bytes| bytes.len() <= room)
    };
    // More answers never take fewer bytes.
    let (mut fits, mut bytes) = (0, with(0));
    let mut beyond = reply.answers.len();
    while beyond - fits > 1 {
        let middle = fits + (beyond - fits) / 2;
        match with(middle) {
            Some(more) => (fits, bytes) = (middle, Some(more)),
            None => beyond = middle,
        }
    }
    bytes
}

fn glue(index: &Index, target: &str, name: &Name) -> Vec<Record> {
    match index.find(target) {
        Found::Records(data) => data
            .filter_map(|data| match data {
                Data::Address(address) => Some(record(name, address_data(*address))),
                _ => None,
            })
            .collect(),
        Found::Empty | Found::Nothing => Vec::new(),
    }
}

fn soa(domain: &str) -> Option<Record> {
    let zone = parse(domain)?;
    let server = parse(&format!("{NAME_SERVER}.{domain}"))?;
    let mail = parse(&format!("hostmaster.{domain}"))?;
    let [serial, refresh, retry, expire, minimum] = SOA_NUMBERS;
    // The intervals are far below what an i32 holds.
    let [refresh, retry, expire] = [refresh, retry, expire].map(|seconds| seconds as i32);
    let data = SOA::new(server, mail, serial, refresh, retry, expire, minimum);
    Some(record(&zone, RData::SOA(data)))
}

fn fits(kind: RecordType, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => kind == RecordType::A,
        IpAddr::V6(_) => kind == RecordType::AAAA,
    }
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

fn parse(name: &str) -> Option<Name> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// As the index has it.
fn text(name: &Name) -> String {
    let mut text = name.to_ascii().to_ascii_lowercase();
    if text.ends_with('.') {
        text.pop();
    }
    text
}
