//! Queries and answers as bytes, as far as they must be understood to be passed on and kept. Pure.
//!
//! Always true: what is sent upstream holds nothing of the client but its question and what it can take, so that
//! all who ask alike may have the same answer.

use std::time::Duration;

use super::super::answer::{PAYLOAD, room};

const HEADER: usize = 12;
const LONGEST_NAME: usize = 255;
const LONGEST_LABEL: u8 = 63;
/// Bits of the header's third and fourth byte.
const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const AUTHORITATIVE: u8 = 0x04;
const TRUNCATED: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;
const RECURSION_AVAILABLE: u8 = 0x80;
const AUTHENTIC: u8 = 0x20;
const UNCHECKED: u8 = 0x10;
const CODE: u8 = 0x0f;
/// Of an OPT record's flags.
const DNSSEC: u16 = 0x8000;
/// Types of records.
const SOA: u16 = 6;
const OPT: u16 = 41;
const ANY: u16 = 255;
/// Types that are no data: of transactions, and of transfers of zones.
const META: std::ops::RangeInclusive<u16> = 249..=254;
/// Response codes.
const NO_ERROR: u8 = 0;
const SERVER_FAILURE: u8 = 2;
const NO_SUCH_NAME: u8 = 3;
const NOT_IMPLEMENTED: u8 = 4;
const REFUSED: u8 = 5;

/// How a query came, and so how it goes on: what is too long for the one is for the other too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What the client says of the protocol's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Extensions {
    None,
    Plain,
    /// Signatures are wanted too.
    Dnssec,
}

/// All that an answer depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Name, type and class; in lower case.
    question: Box<[u8]>,
    /// Of the header: whether recursion, what was checked, and what was not, is wanted.
    flags: [u8; 2],
    extensions: Extensions,
}

impl Key {
    pub fn len(&self) -> usize {
        self.question.len()
    }
}

/// A query of a client.
#[derive(Clone, Debug)]
pub struct Asked {
    pub key: Key,
    id: [u8; 2],
    /// As the client spells it: some compare that with the answer.
    question: Box<[u8]>,
    /// How long an answer by UDP may be.
    room: usize,
}

impl Asked {
    /// `None` if it is not one plain question.
    pub fn read(query: &[u8]) -> Option<Self> {
        let header = query.get(..HEADER)?;
        let end = question_end(query)?;
        if number(query, 4)? != 1 || end > query.len() {
            return None;
        }
        let (mut payload, mut extensions) = (None, Extensions::None);
        let others = usize::from(number(query, 6)?) + usize::from(number(query, 8)?);
        let all = others + usize::from(number(query, 10)?);
        let mut at = end;
        for index in 0..all {
            let record = Record::read(query, at)?;
            if index >= others && record.kind == OPT {
                payload = Some(record.class);
                extensions = match record.ttl as u16 & DNSSEC {
                    0 => Extensions::Plain,
                    _ => Extensions::Dnssec,
                };
            }
            at = record.end;
        }
        let question: Box<[u8]> = query[HEADER..end].into();
        Some(Self {
            key: Key {
                question: question.to_ascii_lowercase().into(),
                flags: [
                    header[2] & RECURSION_DESIRED,
                    header[3] & (AUTHENTIC | UNCHECKED),
                ],
                extensions,
            },
            id: [header[0], header[1]],
            question,
            room: room(payload),
        })
    }

    fn kind(&self) -> u16 {
        let at = self.question.len() - 4;
        number(&self.question, at).unwrap_or_default()
    }

    /// What a server is asked, with this number.
    pub fn query(&self, id: [u8; 2]) -> Vec<u8> {
        let [third, fourth] = self.key.flags;
        self.message(id, [third, fourth], [0; 3], &[])
    }

    /// Header, question, and records: so many answers, authorities and others; and what is said of extensions.
    fn message(&self, id: [u8; 2], flags: [u8; 2], counts: [u16; 3], body: &[u8]) -> Vec<u8> {
        let length = HEADER + self.question.len() + body.len() + self.options().len();
        let mut message = Vec::with_capacity(length);
        message.extend(id);
        message.extend(flags);
        let [answers, authorities, others] = counts;
        let others = others + u16::from(!self.options().is_empty());
        for count in [1, answers, authorities, others] {
            message.extend(count.to_be_bytes());
        }
        message.extend(&self.question);
        message.extend(body);
        message.extend(self.options());
        message
    }

    /// An OPT record, if the client has one.
    fn options(&self) -> &'static [u8] {
        const fn options(flags: u16) -> [u8; 11] {
            let ([kind, payload], [high, low]) = (
                [OPT.to_be_bytes(), PAYLOAD.to_be_bytes()],
                flags.to_be_bytes(),
            );
            let [size, more] = payload;
            [0, kind[0], kind[1], size, more, 0, 0, high, low, 0, 0]
        }
        const OPTIONS: [[u8; 11]; 2] = [options(0), options(DNSSEC)];
        match self.key.extensions {
            Extensions::None => &[],
            Extensions::Plain => &OPTIONS[0],
            Extensions::Dnssec => &OPTIONS[1],
        }
    }
}

/// How old an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    New,
    Seconds(u32),
    /// Older than it may become, but there is no other.
    Stale,
}

/// Seconds that others may remember an answer that is too old.
const STALE_TTL: u32 = 30;

/// For how long an answer may be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    Records(Duration),
    /// That there is no such name, or nothing of that kind.
    Absence(Duration),
    /// The server could not tell.
    Failure,
    Not,
}

/// An answer of a server, without what belongs to whom it was for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    flags: [u8; 2],
    /// Answers, authorities, others.
    counts: [u16; 3],
    /// All records. Names in it point to where they stand after header and question.
    body: Box<[u8]>,
    /// Where each record's time stands in `body`.
    ttls: Box<[u16]>,
    lifetime: Lifetime,
}

impl Said {
    /// `None` if it cannot be read to its end. That it is the answer to the query was seen before.
    pub fn read(answer: &[u8], asked: &Asked) -> Option<Self> {
        let header = answer.get(..HEADER)?;
        let flags = [
            header[2] & (AUTHORITATIVE | TRUNCATED),
            header[3] & (RECURSION_AVAILABLE | AUTHENTIC | CODE),
        ];
        let mut said = Self {
            flags,
            counts: [0; 3],
            body: Box::default(),
            ttls: Box::default(),
            lifetime: Lifetime::Not,
        };
        if number(answer, 4)? == 1 {
            let counts = [number(answer, 6)?, number(answer, 8)?, number(answer, 10)?];
            let begin = HEADER + asked.question.len();
            match said.take_records(answer, begin, counts, asked.kind()) {
                Some(()) => {}
                // It may end anywhere; the client comes back for the whole.
                None if said.is_cut() => {
                    said.counts = [0; 3];
                }
                None => return None,
            }
        }
        if said.failed() {
            said.lifetime = Lifetime::Failure;
        }
        Some(said)
    }

    /// That no server says anything.
    pub fn silence() -> Self {
        Self {
            flags: [0, RECURSION_AVAILABLE | SERVER_FAILURE],
            counts: [0; 3],
            body: Box::default(),
            ttls: Box::default(),
            lifetime: Lifetime::Failure,
        }
    }

    fn take_records(
        &mut self,
        answer: &[u8],
        begin: usize,
        counts: [u16; 3],
        wanted: u16,
    ) -> Option<()> {
        let (mut at, mut ttls, mut shortest) = (begin, Vec::new(), u32::MAX);
        let (mut has_answer, mut absence) = (false, None);
        'all: for (section, count) in counts.into_iter().enumerate() {
            for taken in 0..count {
                let record = Record::read(answer, at)?;
                if record.kind == OPT {
                    // The upper half of a code is an error that is not the client's.
                    (record.ttl >> 24 == 0).then_some(())?;
                    // What follows is a courtesy too, as all others are.
                    self.counts[section] = taken;
                    break 'all;
                }
                has_answer |= section == 0 && (record.kind == wanted || wanted == ANY);
                if section == 1 && record.kind == SOA {
                    absence = number32(answer, record.end.checked_sub(4)?);
                }
                // Who sees the upper half is told of a time that is over (RFC 2181, 8).
                let ttl = i32::try_from(record.ttl).map_or(0, |_| record.ttl);
                shortest = shortest.min(ttl);
                ttls.push(u16::try_from(record.ttl_at - begin).ok()?);
                at = record.end;
            }
            self.counts[section] = count;
        }
        self.body = answer.get(begin..at)?.into();
        self.ttls = ttls.into();
        let code = self.flags[1] & CODE;
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        self.lifetime = match (code, absence) {
            _ if self.is_cut() || META.contains(&wanted) => Lifetime::Not,
            (NO_ERROR, _) if has_answer => Lifetime::Records(seconds(shortest)),
            // RFC 2308, 5; without a SOA it may not be remembered.
            (NO_ERROR | NO_SUCH_NAME, Some(minimum)) => {
                Lifetime::Absence(seconds(shortest.min(minimum)))
            }
            _ => Lifetime::Not,
        };
        Some(())
    }

    /// That the server cannot tell; another one may.
    pub fn failed(&self) -> bool {
        matches!(
            self.flags[1] & CODE,
            SERVER_FAILURE | NOT_IMPLEMENTED | REFUSED
        )
    }

    fn is_cut(&self) -> bool {
        self.flags[0] & TRUNCATED != 0
    }

    pub fn lifetime(&self) -> Lifetime {
        self.lifetime
    }

    /// Of memory.
    pub fn bytes(&self) -> usize {
        self.body.len() + 2 * self.ttls.len()
    }

    /// The reply to a client that asked this.
    pub fn reply(&self, asked: &Asked, age: Age, transport: Transport) -> Vec<u8> {
        let [recursion, unchecked] = [asked.key.flags[0], asked.key.flags[1] & UNCHECKED];
        let mut flags = [
            RESPONSE | recursion | self.flags[0],
            unchecked | self.flags[1],
        ];
        if age != Age::New {
            flags[0] &= !AUTHORITATIVE;
        }
        let begin = HEADER + asked.question.len();
        let whole = begin + self.body.len() + asked.options().len();
        let (counts, end) = match transport {
            Transport::Udp if whole > asked.room => {
                flags[0] |= TRUNCATED;
                let (answers, end) = self.that_fit(asked.room - begin - asked.options().len());
                ([answers, 0, 0], end)
            }
            Transport::Udp | Transport::Tcp => (self.counts, self.body.len()),
        };
        let mut message = asked.message(asked.id, flags, counts, &self.body[..end]);
        for at in self.ttls.iter().map(|at| usize::from(*at)) {
            if at + 4 > end {
                break;
            }
            let field = &mut message[begin + at..begin + at + 4];
            let mut ttl = [0; 4];
            ttl.copy_from_slice(field);
            let ttl = u32::from_be_bytes(ttl);
            let left = match age {
                Age::New => ttl,
                Age::Seconds(age) => ttl.saturating_sub(age),
                Age::Stale => STALE_TTL.min(ttl),
            };
            field.copy_from_slice(&left.to_be_bytes());
        }
        message
    }

    /// As many whole answers as fit, and where they end: some resolvers take what they get and never ask by TCP.
    fn that_fit(&self, room: usize) -> (u16, usize) {
        let answers = &self.ttls[..usize::from(self.counts[0])];
        let ends = answers.iter().map_while(|at| {
            let at = usize::from(*at) + 4;
            Some(at + 2 + usize::from(number(&self.body, at)?))
        });
        let mut fitting = (0, 0);
        for end in ends.take_while(|end| *end <= room) {
            fitting = (fitting.0 + 1, end);
        }
        fitting
    }
}

/// One record's fixed part.
struct Record {
    kind: u16,
    class: u16,
    ttl: u32,
    ttl_at: usize,
    end: usize,
}

impl Record {
    /// The one that begins there, if it is whole.
    fn read(bytes: &[u8], at: usize) -> Option<Self> {
        let at = name_end(bytes, at)?;
        let end = at + 10 + usize::from(number(bytes, at + 8)?);
        (end <= bytes.len()).then_some(())?;
        Some(Self {
            kind: number(bytes, at)?,
            class: number(bytes, at + 2)?,
            ttl: number32(bytes, at + 4)?,
            ttl_at: at + 4,
            end,
        })
    }
}

/// Where the name that begins there ends, pointers not followed.
fn name_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = *bytes.get(at)?;
        at += match length {
            0 => return Some(at + 1),
            1..=LONGEST_LABEL => 1 + usize::from(length),
            0xc0.. => return Some(at + 2),
            _ => return None,
        };
    }
}

/// Where the first question ends, whose name is spelled out.
fn question_end(query: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        let length = *query.get(at)?;
        at += 1;
        match length {
            0 => break,
            1..=LONGEST_LABEL => at += usize::from(length),
            _ => return None,
        }
    }
    (at - HEADER <= LONGEST_NAME).then_some(at + 4)
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Whether this is a response with the query's number, of its kind, to its question.
pub fn answers(answer: &[u8], query: &[u8]) -> bool {
    let (Some(header), Some(asked)) = (answer.get(..HEADER), query.get(..HEADER)) else {
        return false;
    };
    let same_kind = header[2] & RESPONSE != 0 && header[2] & OPCODE == asked[2] & OPCODE;
    if header[..2] != asked[..2] || !same_kind {
        return false;
    }
    let Some(end) = question_end(query) else {
        return false;
    };
    match (&header[4..6], answer.get(HEADER..end)) {
        // Servers that cannot read a question leave it out of the error.
        ([0, 0], _) => header[3] & CODE != 0,
        ([0, 1], Some(question)) => question.eq_ignore_ascii_case(&query[HEADER..end]),
        _ => false,
    }
}

/// Header and question of an answer, with the sign to come back by TCP.
pub fn cut(answer: &[u8], query: &[u8]) -> Vec<u8> {
    let end = question_end(query).unwrap_or(HEADER);
    let mut cut = answer[..end.min(answer.len())].to_vec();
    cut[2] |= TRUNCATED;
    cut[6..HEADER].fill(0);
    cut
}

#[cfg(test)]
mod tests;
