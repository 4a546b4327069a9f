//! SPDY/3 header blocks: names and values, deflated with the protocol's own dictionary.
//!
//! One deflate stream per direction lives as long as the connection, so blocks must be coded in
//! the order in which they are sent.
//! Source: SPDY Protocol, Draft 3, section 2.6.10 "Name/Value Header Block".

use std::sync::LazyLock;

use bytes::{Buf, BufMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::Error;

/// A block grows to no more than this when inflated.
const MAX_BLOCK_BYTES: usize = 64 * 1024;

/// In the dictionary these come first, each after its length as 32-bit number.
const DICTIONARY_WORDS: &str = "options|head|post|put|delete|trace|accept|accept-charset|\
accept-encoding|accept-language|accept-ranges|age|allow|authorization|cache-control|connection|\
content-base|content-encoding|content-language|content-length|content-location|content-md5|\
content-range|content-type|date|etag|expect|expires|from|host|if-match|if-modified-since|\
if-none-match|if-range|if-unmodified-since|last-modified|location|max-forwards|pragma|\
proxy-authenticate|proxy-authorization|range|referer|retry-after|server|te|trailer|\
transfer-encoding|upgrade|user-agent|vary|via|warning|www-authenticate|method|get|status|200 OK|\
version|HTTP/1.1|url|public|set-cookie|keep-alive|origin";

/// And these follow, without lengths.
const DICTIONARY_TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411\
412413414415416417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently\
400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error\
501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec \
00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,\
deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::with_capacity(1423);
    for word in DICTIONARY_WORDS.split('|') {
        put_string(&mut bytes, word);
    }
    bytes.extend_from_slice(DICTIONARY_TEXT.as_bytes());
    bytes
});

/// Names are in lower case; a name occurs once, several values are parted by NUL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The first value of a name given in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(known, _)| known == name)?;
        value.split('\0').next()
    }
}

/// The sending side's deflate stream.
pub struct Deflater(Compress);

impl Deflater {
    pub fn new() -> Result<Self, Error> {
        let mut compress = Compress::new(Compression::best(), true);
        compress
            .set_dictionary(&DICTIONARY)
            .map_err(|error| Error::Compression(error.to_string()))?;
        Ok(Self(compress))
    }

    pub fn deflate(&mut self, headers: &Headers) -> Result<Vec<u8>, Error> {
        let mut plain = Vec::new();
        plain.put_u32(length(headers.0.len()));
        for (name, value) in &headers.0 {
            put_string(&mut plain, name);
            put_string(&mut plain, value);
        }
        let (before, mut out) = (self.0.total_in(), Vec::with_capacity(plain.len() + 64));
        loop {
            let done = position(self.0.total_in() - before);
            self.0
                .compress_vec(&plain[done..], &mut out, FlushCompress::Sync)
                .map_err(|error| Error::Compression(error.to_string()))?;
            // Room left means that all was flushed.
            if position(self.0.total_in() - before) == plain.len() && out.len() < out.capacity() {
                return Ok(out);
            }
            out.reserve(256);
        }
    }
}

/// The receiving side's inflate stream.
pub struct Inflater(Decompress);

impl Inflater {
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    pub fn inflate(&mut self, block: &[u8]) -> Result<Headers, Error> {
        let (before, mut out) = (self.0.total_in(), Vec::with_capacity(1024));
        loop {
            let done = position(self.0.total_in() - before);
            let step = self
                .0
                .decompress_vec(&block[done..], &mut out, FlushDecompress::Sync);
            match step {
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&DICTIONARY)
                        .map_err(|error| Error::Compression(error.to_string()))?;
                    continue;
                }
                Err(error) => return Err(Error::Compression(error.to_string())),
            }
            let after = position(self.0.total_in() - before);
            if out.len() < out.capacity() {
                if after == block.len() {
                    return parse(&out);
                }
                if after == done {
                    return Err(Error::Compression("no progress".to_owned()));
                }
            }
            if out.len() > MAX_BLOCK_BYTES {
                return Err(Error::TooLong("header block"));
            }
            out.reserve(1024);
        }
    }
}

fn parse(mut block: &[u8]) -> Result<Headers, Error> {
    let count = number(&mut block)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let name = string(&mut block)?;
        headers.push((name.to_ascii_lowercase(), string(&mut block)?));
    }
    Ok(Headers(headers))
}

fn number(block: &mut &[u8]) -> Result<u32, Error> {
    block.try_get_u32().map_err(|_| Error::CutShort)
}

fn string(block: &mut &[u8]) -> Result<String, Error> {
    let length = number(block)? as usize;
    let (bytes, rest) = block.split_at_checked(length).ok_or(Error::CutShort)?;
    *block = rest;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.put_u32(length(text.len()));
    out.extend_from_slice(text.as_bytes());
}

fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn position(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_protocols() {
        assert_eq!(DICTIONARY.len(), 1423);
        // The identifier that every SPDY/3 stream carries (Adler-32 of the dictionary).
        let mut inflater = Inflater::new();
        let block = Deflater::new().unwrap().deflate(&Headers::default());
        let block = block.unwrap();
        assert_eq!(&block[2..6], &[0xe3, 0xc6, 0xa7, 0xc2]);
        assert_eq!(inflater.inflate(&block).unwrap(), Headers::default());
    }

    #[test]
    fn blocks_of_one_connection_follow_each_other() {
        let (mut deflater, mut inflater) = (Deflater::new().unwrap(), Inflater::new());
        let long = "x".repeat(5000);
        for (name, value) in [
            ("streamtype", "error"),
            ("streamtype", "stdin"),
            ("port", "80"),
            ("long", long.as_str()),
            ("many", "a\0b"),
        ] {
            let headers = Headers(vec![(name.to_owned(), value.to_owned())]);
            let block = deflater.deflate(&headers).unwrap();
            assert_eq!(inflater.inflate(&block).unwrap(), headers);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Inflater::new().inflate(b"\x01\x02\x03\x04").is_err());
        assert!(parse(&[0, 0, 0, 1, 0, 0]).is_err());
        assert!(parse(&[0xff, 0xff, 0xff, 0xff]).is_err());
    }
}
