//! SPDY/3.1 frames, from bytes and to bytes. Pure; no socket in sight.
//!
//! Always true: a decoder never holds more than one control frame; data goes on as it comes, in
//! as many pieces as it comes in.
//! Source: SPDY Protocol, Draft 3.1, section 2.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use super::{
    Error,
    headers::{Deflater, Headers, Inflater},
};

const VERSION: u16 = 3;
const CONTROL: u32 = 0x8000_0000;
const FIN: u8 = 1;
const HEADER_BYTES: usize = 8;
/// A control frame holds hardly more than a few headers.
const MAX_CONTROL_BYTES: usize = 64 * 1024;

mod kind {
    pub const SYN_STREAM: u16 = 1;
    pub const SYN_REPLY: u16 = 2;
    pub const RST_STREAM: u16 = 3;
    pub const SETTINGS: u16 = 4;
    pub const PING: u16 = 6;
    pub const GOAWAY: u16 = 7;
    pub const HEADERS: u16 = 8;
    pub const WINDOW_UPDATE: u16 = 9;
}

/// Why a stream is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset(pub u32);

impl Reset {
    pub const PROTOCOL_ERROR: Self = Self(1);
    pub const INVALID_STREAM: Self = Self(2);
    pub const REFUSED_STREAM: Self = Self(3);
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    SynReply {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    RstStream {
        stream: u32,
        status: Reset,
    },
    /// Identifier and value.
    Settings(Vec<(u32, u32)>),
    Ping(u32),
    GoAway {
        last_stream: u32,
        status: u32,
    },
    Headers {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
    Data {
        stream: u32,
        bytes: Bytes,
        fin: bool,
    },
}

/// What is left of a data frame whose head was read.
struct Rest {
    stream: u32,
    bytes: usize,
    fin: bool,
}

/// Bytes to frames.
pub struct FrameDecoder {
    inflater: Inflater,
    rest: Option<Rest>,
}

impl FrameDecoder {
    pub fn new() -> Self {
        Self {
            inflater: Inflater::new(),
            rest: None,
        }
    }

    fn data(&mut self, buffer: &mut BytesMut) -> Option<Frame> {
        let mut rest = self.rest.take()?;
        let bytes = buffer.split_to(buffer.len().min(rest.bytes)).freeze();
        rest.bytes -= bytes.len();
        let (stream, whole) = (rest.stream, rest.bytes == 0);
        let fin = rest.fin && whole;
        let nothing = bytes.is_empty() && !whole;
        if !whole {
            self.rest = Some(rest);
        }
        (!nothing).then_some(Frame::Data { stream, bytes, fin })
    }

    fn control(&mut self, kind: u16, flags: u8, mut body: &[u8]) -> Result<Option<Frame>, Error> {
        let fin = flags & FIN != 0;
        let frame = match kind {
            kind::SYN_STREAM => {
                let stream = stream(&mut body)?;
                // Associated stream, priority and slot: nobody here asks.
                body = body.get(6..).ok_or(Error::CutShort)?;
                Frame::SynStream {
                    stream,
                    headers: self.inflater.inflate(body)?,
                    fin,
                }
            }
            kind::SYN_REPLY => Frame::SynReply {
                stream: stream(&mut body)?,
                headers: self.inflater.inflate(body)?,
                fin,
            },
            kind::HEADERS => Frame::Headers {
                stream: stream(&mut body)?,
                headers: self.inflater.inflate(body)?,
                fin,
            },
            kind::RST_STREAM => Frame::RstStream {
                stream: stream(&mut body)?,
                status: Reset(number(&mut body)?),
            },
            kind::SETTINGS => {
                let count = number(&mut body)?;
                let mut settings = Vec::new();
                for _ in 0..count {
                    let id = number(&mut body)? & 0x00ff_ffff;
                    settings.push((id, number(&mut body)?));
                }
                Frame::Settings(settings)
            }
            kind::PING => Frame::Ping(number(&mut body)?),
            kind::GOAWAY => Frame::GoAway {
                last_stream: stream(&mut body)?,
                status: number(&mut body)?,
            },
            kind::WINDOW_UPDATE => Frame::WindowUpdate {
                stream: stream(&mut body)?,
                delta: stream(&mut body)?,
            },
            // The protocol asks that unknown ones be skipped.
            _ => return Ok(None),
        };
        Ok(Some(frame))
    }
}

impl Decoder for FrameDecoder {
    type Item = Frame;
    type Error = Error;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, Error> {
        loop {
            if self.rest.is_some() {
                return Ok(self.data(buffer));
            }
            if buffer.len() < HEADER_BYTES {
                return Ok(None);
            }
            let mut head = &buffer[..HEADER_BYTES];
            let (first, second) = (head.get_u32(), head.get_u32());
            let (flags, length) = ((second >> 24) as u8, (second & 0x00ff_ffff) as usize);
            if first & CONTROL == 0 {
                buffer.advance(HEADER_BYTES);
                self.rest = Some(Rest {
                    stream: first,
                    bytes: length,
                    fin: flags & FIN != 0,
                });
                continue;
            }
            let (version, kind) = (((first & !CONTROL) >> 16) as u16, first as u16);
            if version != VERSION {
                return Err(Error::Version(version));
            }
            if length > MAX_CONTROL_BYTES {
                return Err(Error::TooLong("control frame"));
            }
            if buffer.len() < HEADER_BYTES + length {
                return Ok(None);
            }
            let frame = buffer.split_to(HEADER_BYTES + length);
            if let Some(frame) = self.control(kind, flags, &frame[HEADER_BYTES..])? {
                return Ok(Some(frame));
            }
        }
    }
}

/// Frames to bytes.
pub struct FrameEncoder(Deflater);

impl FrameEncoder {
    pub fn new() -> Result<Self, Error> {
        Ok(Self(Deflater::new()?))
    }
}

impl Encoder<Frame> for FrameEncoder {
    type Error = Error;

    fn encode(&mut self, frame: Frame, out: &mut BytesMut) -> Result<(), Error> {
        let mut body = Vec::new();
        let (kind, fin) = match frame {
            Frame::Data { stream, bytes, fin } => {
                if bytes.len() > 0x00ff_ffff {
                    return Err(Error::TooLong("data frame"));
                }
                out.reserve(HEADER_BYTES + bytes.len());
                out.put_u32(stream & !CONTROL);
                out.put_u32(flags_and_length(fin, bytes.len()));
                out.extend_from_slice(&bytes);
                return Ok(());
            }
            Frame::SynStream {
                stream,
                headers,
                fin,
            } => {
                body.put_u32(stream);
                body.put_slice(&[0; 6]);
                body.extend(self.0.deflate(&headers)?);
                (kind::SYN_STREAM, fin)
            }
            Frame::SynReply {
                stream,
                headers,
                fin,
            } => {
                body.put_u32(stream);
                body.extend(self.0.deflate(&headers)?);
                (kind::SYN_REPLY, fin)
            }
            Frame::Headers {
                stream,
                headers,
                fin,
            } => {
                body.put_u32(stream);
                body.extend(self.0.deflate(&headers)?);
                (kind::HEADERS, fin)
            }
            Frame::RstStream { stream, status } => {
                body.put_u32(stream);
                body.put_u32(status.0);
                (kind::RST_STREAM, false)
            }
            Frame::Settings(settings) => {
                body.put_u32(u32::try_from(settings.len()).unwrap_or(u32::MAX));
                for (id, value) in settings {
                    body.put_u32(id);
                    body.put_u32(value);
                }
                (kind::SETTINGS, false)
            }
            Frame::Ping(id) => {
                body.put_u32(id);
                (kind::PING, false)
            }
            Frame::GoAway {
                last_stream,
                status,
            } => {
                body.put_u32(last_stream);
                body.put_u32(status);
                (kind::GOAWAY, false)
            }
            Frame::WindowUpdate { stream, delta } => {
                body.put_u32(stream);
                body.put_u32(delta);
                (kind::WINDOW_UPDATE, false)
            }
        };
        if body.len() > MAX_CONTROL_BYTES {
            return Err(Error::TooLong("control frame"));
        }
        out.put_u32(CONTROL | u32::from(VERSION) << 16 | u32::from(kind));
        out.put_u32(flags_and_length(fin, body.len()));
        out.extend_from_slice(&body);
        Ok(())
    }
}

/// `length` was checked to fit 24 bits.
fn flags_and_length(fin: bool, length: usize) -> u32 {
    let flags = if fin { u32::from(FIN) << 24 } else { 0 };
    flags | (length as u32 & 0x00ff_ffff)
}

fn number(body: &mut &[u8]) -> Result<u32, Error> {
    body.try_get_u32().map_err(|_| Error::CutShort)
}

/// A stream's number, without the reserved bit.
fn stream(body: &mut &[u8]) -> Result<u32, Error> {
    Ok(number(body)? & !CONTROL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Headers(pairs.iter().map(own).collect())
    }

    fn frames() -> Vec<Frame> {
        vec![
            Frame::SynStream {
                stream: 1,
                headers: headers(&[("streamtype", "error")]),
                fin: false,
            },
            Frame::SynReply {
                stream: 1,
                headers: headers(&[]),
                fin: false,
            },
            Frame::Headers {
                stream: 1,
                headers: headers(&[("a", "b"), ("c", "d")]),
                fin: true,
            },
            Frame::RstStream {
                stream: 3,
                status: Reset::REFUSED_STREAM,
            },
            Frame::Settings(vec![(4, 100), (7, 65536)]),
            Frame::Ping(7),
            Frame::GoAway {
                last_stream: 9,
                status: 0,
            },
            Frame::WindowUpdate {
                stream: 1,
                delta: 32768,
            },
            Frame::Data {
                stream: 5,
                bytes: Bytes::from_static(b"hello"),
                fin: false,
            },
            Frame::Data {
                stream: 5,
                bytes: Bytes::new(),
                fin: true,
            },
        ]
    }

    fn encoded() -> BytesMut {
        let (mut encoder, mut bytes) = (FrameEncoder::new().unwrap(), BytesMut::new());
        for frame in frames() {
            encoder.encode(frame, &mut bytes).unwrap();
        }
        bytes
    }

    #[test]
    fn frames_survive_the_wire() {
        let (mut bytes, mut decoder) = (encoded(), FrameDecoder::new());
        let mut got = Vec::new();
        while let Some(frame) = decoder.decode(&mut bytes).unwrap() {
            got.push(frame);
        }
        assert_eq!(got, frames());
        assert!(bytes.is_empty());
    }

    #[test]
    fn a_byte_at_a_time_is_the_same_but_data_comes_in_pieces() {
        let mut decoder = FrameDecoder::new();
        let (mut buffer, mut got, mut text) = (BytesMut::new(), Vec::new(), Vec::new());
        for byte in encoded() {
            buffer.put_u8(byte);
            while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                match frame {
                    Frame::Data { bytes, .. } => text.extend_from_slice(&bytes),
                    frame => got.push(frame),
                }
            }
        }
        let control = |frame: &Frame| !matches!(frame, Frame::Data { .. });
        assert_eq!(
            got,
            frames().into_iter().filter(control).collect::<Vec<_>>()
        );
        assert_eq!(text, b"hello");
    }

    #[test]
    fn as_it_stands_on_the_wire() {
        let mut encoder = FrameEncoder::new().unwrap();
        for (frame, want) in [
            (Frame::Ping(1), &[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1][..]),
            (
                Frame::Data {
                    stream: 3,
                    bytes: Bytes::from_static(b"x"),
                    fin: true,
                },
                &[0, 0, 0, 3, 1, 0, 0, 1, b'x'],
            ),
            (
                Frame::WindowUpdate {
                    stream: 1,
                    delta: 256,
                },
                &[0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 1, 0],
            ),
        ] {
            let mut bytes = BytesMut::new();
            encoder.encode(frame, &mut bytes).unwrap();
            assert_eq!(&bytes[..], want);
        }
    }

    #[test]
    fn nonsense_ends_the_connection_and_the_unknown_is_skipped() {
        let decode = |bytes: &[u8]| FrameDecoder::new().decode(&mut BytesMut::from(bytes));
        assert!(matches!(
            decode(&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]),
            Err(Error::Version(2))
        ));
        assert!(matches!(
            decode(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]),
            Err(Error::TooLong(_))
        ));
        assert!(matches!(
            decode(&[0x80, 3, 0, 6, 0, 0, 0, 2, 0, 0]),
            Err(Error::CutShort)
        ));
        let unknown = [
            0x80, 3, 0, 77, 0, 0, 0, 1, 9, 0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 5,
        ];
        assert_eq!(decode(&unknown).unwrap(), Some(Frame::Ping(5)));
    }
}
