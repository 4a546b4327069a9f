//! Objects and lists as the bytes of an answer: negotiated, compressed, with warnings.

use http::{HeaderValue, Response, header};

use super::{Body, Incoming, answer, full, header_text};
use crate::apiserver::{
    encode::{self, Encoded, Include},
    negotiate::{self, CUSTOM, CUSTOM_WATCHES, OBJECTS, WATCHES},
    registry::Resource,
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
        let pretty = match self.query.get("pretty") {
            Some(_) => self.query.flag("pretty"),
            None => browser(),
        };
        negotiate::negotiate(header_text(&self.headers, &header::ACCEPT), pretty, offer)
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
