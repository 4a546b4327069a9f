//! The envelope around a protobuf object: `k8s\0` and an `Unknown` message.

use super::{
    Error,
    wire::{Reader, Value, put_bytes},
};

pub const MAGIC: &[u8; 4] = b"k8s\0";

/// What an envelope says and holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub api_version: String,
    pub kind: String,
    pub raw: &'a [u8],
    /// Empty: protobuf.
    pub content_type: String,
}

pub fn unwrap_envelope(bytes: &[u8]) -> Result<Envelope<'_>, Error> {
    let body = bytes
        .strip_prefix(MAGIC)
        .ok_or(Error::Wire("the body does not begin with the k8s envelope"))?;
    let mut envelope = Envelope::default();
    let mut reader = Reader::new(body);
    while let Some((number, value)) = reader.next()? {
        match (number, value) {
            (1, Value::Bytes(meta)) => {
                let mut meta = Reader::new(meta);
                while let Some((number, value)) = meta.next()? {
                    match (number, value) {
                        (1, Value::Bytes(text)) => envelope.api_version = utf8(text)?,
                        (2, Value::Bytes(text)) => envelope.kind = utf8(text)?,
                        _ => {}
                    }
                }
            }
            (2, Value::Bytes(raw)) => envelope.raw = raw,
            (3, Value::Bytes(encoding)) if !encoding.is_empty() => {
                return Err(Error::Wire("an encoded envelope is not supported"));
            }
            (4, Value::Bytes(text)) => envelope.content_type = utf8(text)?,
            _ => {}
        }
    }
    Ok(envelope)
}

pub fn wrap_envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut meta = Vec::new();
    put_bytes(&mut meta, 1, api_version.as_bytes());
    put_bytes(&mut meta, 2, kind.as_bytes());
    let mut out = Vec::with_capacity(raw.len() + meta.len() + 24);
    out.extend(MAGIC);
    put_bytes(&mut out, 1, &meta);
    put_bytes(&mut out, 2, raw);
    put_bytes(&mut out, 3, b"");
    put_bytes(&mut out, 4, b"");
    out
}

/// One event of a protobuf watch: a length of four bytes, big endian, then a bare `WatchEvent`.
pub fn watch_frame(event_type: &str, enveloped_object: &[u8]) -> Vec<u8> {
    let mut object = Vec::with_capacity(enveloped_object.len() + 8);
    put_bytes(&mut object, 1, enveloped_object);
    let mut event = Vec::with_capacity(object.len() + event_type.len() + 16);
    put_bytes(&mut event, 1, event_type.as_bytes());
    put_bytes(&mut event, 2, &object);
    let length = u32::try_from(event.len()).unwrap_or(u32::MAX);
    let mut out = Vec::with_capacity(event.len() + 4);
    out.extend(length.to_be_bytes());
    out.extend(event);
    out
}

fn utf8(bytes: &[u8]) -> Result<String, Error> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::Wire("text that is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let wrapped = wrap_envelope("apps/v1", "Deployment", b"raw");
        let envelope = unwrap_envelope(&wrapped).unwrap();
        assert_eq!(
            (
                envelope.api_version.as_str(),
                envelope.kind.as_str(),
                envelope.raw
            ),
            ("apps/v1", "Deployment", &b"raw"[..])
        );
        assert!(unwrap_envelope(b"{}").is_err());
        let frame = watch_frame("ADDED", &wrapped);
        assert_eq!(
            frame.len(),
            4 + u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize
        );
    }
}
