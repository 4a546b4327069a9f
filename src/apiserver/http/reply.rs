//! Objects and lists as the bytes of an answer: negotiated, compressed, with warnings.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::mpsc;

use super::{
    Body, Incoming, answer, full, header_text,
    inflight::{Memory, REQUEST_TIMEOUT},
};
use crate::apiserver::{
    authz::MASTERS,
    encode::{self, Encoded, Include},
    negotiate::{self, CUSTOM, CUSTOM_WATCHES, OBJECTS, WATCHES},
    registry::Resource,
    response::BoxError,
    status::Status,
    write::Written,
};

impl Incoming {
    pub(super) fn wanted(&self, offer: negotiate::Offer) -> Result<negotiate::Wanted, Status> {
        let browser = || {
            let agent = header_text(&self.headers, &header::USER_AGENT).unwrap_or_default();
            ["curl", "Wget", "Mozilla/5.0"]
                .iter()
                .any(|known| agent.starts_with(known))
        };
        // The one switch that the original reads in another way.
        let pretty = match self.query.get("pretty").unwrap_or_default() {
            "" => browser(),
            text => matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True"),
        };
        let accept = header_text(&self.headers, &header::ACCEPT);
        let wanted = negotiate::negotiate(accept, pretty, offer)?;
        Ok(negotiate::Wanted {
            owners: self.component.is_none() || self.is_administrator(),
            ..wanted
        })
    }

    /// Whoever may do everything is shown everything, also inside this process.
    fn is_administrator(&self) -> bool {
        self.user.groups.iter().any(|group| group == MASTERS)
    }

    pub(super) fn include(&self) -> Result<Include, Status> {
        Include::parse(self.query.get("includeObject"))
    }
}

pub(super) fn offer(row: &Resource) -> negotiate::Offer {
    match row.custom {
        Some(_) => CUSTOM,
        None => OBJECTS,
    }
}

pub(super) fn watch_offer(row: &Resource) -> negotiate::Offer {
    match row.custom {
        Some(_) => CUSTOM_WATCHES,
        None => WATCHES,
    }
}

pub(super) fn one(
    incoming: &Incoming,
    row: &'static Resource,
    code: u16,
    written: Written,
) -> Result<Response<Body>, Status> {
    let encoded = encode::object(
        row,
        &written.object,
        incoming.wanted(offer(row))?,
        incoming.include()?,
    )?;
    Ok(respond(incoming, code, encoded, &written.warnings))
}

/// Larger answers are compressed for those who ask.
const COMPRESS_OVER: usize = 128 << 10;

pub(super) fn respond(
    incoming: &Incoming,
    code: u16,
    encoded: Encoded,
    warnings: &[String],
) -> Response<Body> {
    let gzip = encoded.bytes.len() > COMPRESS_OVER
        && header_text(&incoming.headers, &header::ACCEPT_ENCODING)
            .is_some_and(|accepted| accepted.contains("gzip"));
    let compressed = gzip.then(|| compress(&encoded.bytes)).flatten();
    let response = match compressed {
        Some(bytes) => {
            let mut response = answer(code, encoded.content_type, full(bytes));
            response
                .headers_mut()
                .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response
                .headers_mut()
                .insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
            response
        }
        None => answer(code, encoded.content_type, full(encoded.bytes)),
    };
    warned(response, warnings)
}

pub(super) fn warned(mut response: Response<Body>, warnings: &[String]) -> Response<Body> {
    for warning in warnings {
        let text = format!("299 - {}", serde_json::Value::from(warning.as_str()));
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    response
}

fn compress(bytes: &[u8]) -> Option<Vec<u8>> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok()
}

/// Pieces of an answer that wait for a slow client.
const WAITING_PIECES: usize = 2;
const PIECE: usize = 64 << 10;

/// An answer made piece by piece. Who does not take it in the time of a request gets no more of it:
/// what it is made of is not kept for longer.
pub(super) fn in_pieces(
    incoming: &Incoming,
    content_type: &'static str,
    pieces: impl Iterator<Item = Bytes> + Send + 'static,
) -> Response<Body> {
    let gzip = header_text(&incoming.headers, &header::ACCEPT_ENCODING)
        .is_some_and(|accepted| accepted.contains("gzip"));
    let (sender, receiver) = mpsc::channel(WAITING_PIECES);
    let complete = Arc::new(AtomicBool::new(false));
    let done = complete.clone();
    let pieces: Box<dyn Iterator<Item = Bytes> + Send> = match gzip {
        true => Box::new(Compressed::new(pieces)),
        false => Box::new(pieces),
    };
    tokio::spawn(async move {
        let sending = async {
            for piece in pieces {
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
            done.store(true, Ordering::Release);
        };
        let _ = tokio::time::timeout(REQUEST_TIMEOUT, sending).await;
    });
    let frames = futures::stream::unfold(Some(receiver), move |receiver| {
        let complete = complete.clone();
        async move {
            let mut receiver = receiver?;
            match receiver.recv().await {
                Some(piece) => Some((Ok(Frame::data(piece)), Some(receiver))),
                None if complete.load(Ordering::Acquire) => None,
                // An end here would look as if the list were whole.
                None => Some((
                    Err(BoxError::from("the answer was not taken in time")),
                    None,
                )),
            }
        }
    });
    let mut response = answer(200, content_type, StreamBody::new(frames).boxed_unsync());
    if gzip {
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    response
}

/// Bytes in pieces, with what they hold until the last has gone.
pub(super) fn cut(mut bytes: Bytes, memory: Option<Memory>) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let _held = &memory;
        let piece = bytes.split_to(PIECE.min(bytes.len()));
        (!piece.is_empty()).then_some(piece)
    })
}

/// Pieces compressed one after the other.
struct Compressed<I> {
    pieces: I,
    encoder: Option<flate2::write::GzEncoder<Vec<u8>>>,
}

impl<I: Iterator<Item = Bytes>> Compressed<I> {
    fn new(pieces: I) -> Self {
        let level = flate2::Compression::fast();
        Self {
            pieces,
            encoder: Some(flate2::write::GzEncoder::new(Vec::new(), level)),
        }
    }
}

impl<I: Iterator<Item = Bytes>> Iterator for Compressed<I> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        use std::io::Write;
        loop {
            let encoder = self.encoder.as_mut()?;
            let Some(piece) = self.pieces.next() else {
                // A vector takes every write.
                return self.encoder.take()?.finish().ok().map(Bytes::from);
            };
            encoder.write_all(&piece).ok()?;
            if !encoder.get_ref().is_empty() {
                return Some(std::mem::take(encoder.get_mut()).into());
            }
        }
    }
}

/// A body that holds something of its request, its place say, until it has gone out.
pub(super) fn keeping(body: Body, kept: impl Send + Unpin + 'static) -> Body {
    Keeping { body, _kept: kept }.boxed_unsync()
}

struct Keeping<K> {
    body: Body,
    _kept: K,
}

impl<K: Unpin> http_body::Body for Keeping<K> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn pieces_compressed_are_one_text() {
        let text: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
        let pieces = cut(text.clone().into(), None);
        let compressed: Vec<u8> = Compressed::new(pieces).flatten().collect();
        let mut read = Vec::new();
        flate2::read::GzDecoder::new(&*compressed)
            .read_to_end(&mut read)
            .expect("whole");
        assert!(read == text);
    }
}
