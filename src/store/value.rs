//! An entry's bytes as they are kept in memory: large ones compressed.
//!
//! Definitions of resources and charts' releases are text of hundreds of kilobytes that is read rarely, and
//! each change leaves the former one in the history; compressed they take an eighth.

use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Smaller ones are kept as they are: they are read often, and there is little to gain.
const SMALL: usize = 16 << 10;
/// Compressed is kept what becomes smaller than one part of so many.
const WORTH: usize = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value(Form);

impl Default for Value {
    fn default() -> Self {
        Self(Form::Plain(Bytes::new()))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    Plain(Bytes),
    /// A deflate stream without a header.
    Compressed {
        bytes: Bytes,
        /// Of what was compressed.
        length: usize,
    },
}

impl Value {
    /// Takes about 4 ms for each megabyte that is compressed.
    pub fn new(plain: Bytes) -> Self {
        let compressed = match plain.len() > SMALL {
            true => compress(&plain),
            false => None,
        };
        Self(match compressed {
            Some(bytes) => Form::Compressed {
                bytes,
                length: plain.len(),
            },
            None => Form::Plain(plain),
        })
    }

    pub fn is_compressed(&self) -> bool {
        matches!(self.0, Form::Compressed { .. })
    }

    /// How many bytes it is.
    pub fn size(&self) -> usize {
        match &self.0 {
            Form::Plain(bytes) => bytes.len(),
            Form::Compressed { length, .. } => *length,
        }
    }

    /// How many bytes of memory it takes.
    pub fn memory(&self) -> usize {
        match &self.0 {
            Form::Plain(bytes) | Form::Compressed { bytes, .. } => bytes.len(),
        }
    }

    /// What it is: shared, or made anew where it is compressed.
    pub fn bytes(&self) -> Bytes {
        match &self.0 {
            Form::Plain(bytes) => bytes.clone(),
            Form::Compressed { bytes, length } => decompress(bytes, *length),
        }
    }
}

/// `None` where it is not worth it.
fn compress(plain: &[u8]) -> Option<Bytes> {
    // It never grows: what does not fit is left as it is.
    let mut out = Vec::with_capacity(plain.len() / WORTH);
    let status = Compress::new(Compression::fast(), false).compress_vec(
        plain,
        &mut out,
        FlushCompress::Finish,
    );
    matches!(status, Ok(Status::StreamEnd)).then(|| out.into_boxed_slice().into())
}

fn decompress(compressed: &[u8], length: usize) -> Bytes {
    let mut out = Vec::with_capacity(length);
    let status =
        Decompress::new(false).decompress_vec(compressed, &mut out, FlushDecompress::Finish);
    if !matches!(status, Ok(Status::StreamEnd)) || out.len() != length {
        // Nobody but `compress` has made these bytes, and they never left this process's memory.
        tracing::error!(?status, "a compressed value in memory is damaged");
    }
    out.into()
}

/// Bytes that cannot be compressed.
#[cfg(test)]
pub fn noise(count: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_values_are_compressed_where_it_is_worth_it() {
        let text =
            |count: usize| b"description: what it is. ".repeat(count / 25 + 1)[..count].to_vec();
        for (plain, is_compressed) in [
            (Vec::new(), false),
            (text(SMALL), false),
            (text(SMALL + 1), true),
            (text(3 << 19), true),
            (noise(1 << 20), false),
            ([noise(SMALL), text(1 << 20)].concat(), true),
        ] {
            let value = Value::new(plain.clone().into());
            assert_eq!(value.is_compressed(), is_compressed, "{}", plain.len());
            assert_eq!(value.memory() < plain.len(), is_compressed);
            assert_eq!(value.size(), plain.len());
            assert!(
                value.bytes() == plain,
                "{} bytes came back otherwise",
                plain.len()
            );
        }
    }
}
