//! Netlink's wire format: messages, attributes and nests, written and read.
//!
//! Owns alignment and lengths; knows no protocol. Everything is in host byte order except where a
//! name says `be`, as the kernel has it.

use rtnetlink::packet_core::Emitable;

/// `nlmsghdr`: length, type, flags, sequence, port.
pub const HEADER: usize = 16;
const NESTED: u16 = libc::NLA_F_NESTED as u16;
const KIND_MASK: u16 = !(libc::NLA_F_NESTED as u16 | libc::NLA_F_NET_BYTEORDER as u16);

/// Attributes under construction; every message and nest is one.
#[derive(Clone, Debug, Default)]
pub struct Attrs(pub Vec<u8>);

impl Attrs {
    /// Adds one attribute with these bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        // A nest never grows past 64 KiB: callers split lists (see `nft::Batch::add_elements`).
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.pad();
        self
    }

    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.bytes(kind, &[value])
    }

    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A string with its closing zero byte.
    pub fn str(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.bytes(kind | NESTED, &[]);
        fill(self);
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// One message, complete except for its sequence number.
#[derive(Clone, Debug)]
pub struct Message {
    pub kind: u16,
    pub flags: u16,
    /// The fixed header of the protocol and the attributes after it.
    pub body: Attrs,
    /// For errors: what the message does, e.g. `add link eth0`.
    pub what: String,
}

impl Message {
    pub fn new(kind: u16, flags: i32, fixed: &[u8], what: impl Into<String>) -> Self {
        Self {
            kind,
            flags: (flags | libc::NLM_F_REQUEST) as u16,
            body: Attrs(fixed.to_vec()),
            what: what.into(),
        }
    }

    /// A message that a library lays out.
    pub fn emit(kind: u16, flags: i32, body: &impl Emitable, what: impl Into<String>) -> Self {
        let mut bytes = vec![0; body.buffer_len()];
        body.emit(&mut bytes);
        Self::new(kind, flags, &bytes, what)
    }

    pub fn append_to(&self, out: &mut Vec<u8>, sequence: u32) {
        let length = (HEADER + self.body.0.len()) as u32;
        out.extend_from_slice(&length.to_ne_bytes());
        out.extend_from_slice(&self.kind.to_ne_bytes());
        out.extend_from_slice(&self.flags.to_ne_bytes());
        out.extend_from_slice(&sequence.to_ne_bytes());
        out.extend_from_slice(&0u32.to_ne_bytes());
        out.extend_from_slice(&self.body.0);
    }
}

/// Has the message at this place of a datagram be acknowledged.
pub fn ask_for_answer(datagram: &mut [u8], at: usize) {
    let flags = u16_at(datagram, at + 6).unwrap_or_default() | libc::NLM_F_ACK as u16;
    if let Some(place) = datagram.get_mut(at + 6..at + 8) {
        place.copy_from_slice(&flags.to_ne_bytes());
    }
}

/// One message as received.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// Of a notice: the socket that brought the change about.
    pub port: u32,
    pub body: &'a [u8],
}

/// The messages of one datagram; stops at the first that is cut short.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(datagram, 0)? as usize;
        let body = datagram.get(HEADER..length)?;
        let message = Received {
            kind: u16_at(datagram, 4)?,
            flags: u16_at(datagram, 6)?,
            sequence: u32_at(datagram, 8)?,
            port: u32_at(datagram, 12)?,
            body,
        };
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        Some(message)
    })
}

/// Kind and value of each attribute; stops at the first that is cut short.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u16_at(bytes, 0)? as usize;
        let kind = u16_at(bytes, 2)? & KIND_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A string attribute without its closing zero byte.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut message = Message::new(7, libc::NLM_F_ACK, &[1, 2, 3, 4], "test");
        message.body.str(1, "abc").nest(2, |nest| {
            nest.bytes(3, &9u32.to_ne_bytes()).u8(4, 5);
        });
        let mut bytes = Vec::new();
        message.append_to(&mut bytes, 42);
        message.append_to(&mut bytes, 43);
        let read: Vec<_> = messages(&bytes).collect();
        assert_eq!(
            read.iter().map(|m| m.sequence).collect::<Vec<_>>(),
            [42, 43]
        );
        let attrs = &read[0].body[4..];
        assert_eq!(attribute(attrs, 1).map(text).as_deref(), Some("abc"));
        let nest = attribute(attrs, 2).unwrap_or_default();
        assert_eq!(u32_at(attribute(nest, 3).unwrap_or_default(), 0), Some(9));
        assert_eq!(attribute(nest, 4), Some(&[5u8][..]));
    }

    #[test]
    fn a_cut_message_ends_the_list() {
        let mut bytes = Vec::new();
        Message::new(7, 0, &[0; 8], "test").append_to(&mut bytes, 1);
        bytes.truncate(bytes.len() - 1);
        assert_eq!(messages(&bytes).count(), 0);
    }
}
