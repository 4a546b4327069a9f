//! Protobuf's wire format: tags, varints, length-delimited bytes.

use super::Error;

/// Nesting deeper than this is refused: nobody writes it, and it would overflow the stack.
pub const MAX_DEPTH: usize = 100;

/// A field's value as it lies on the wire.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// Walks the fields of one message.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next field's number and value.
    pub fn next(&mut self) -> Result<Option<(u32, Value<'a>)>, Error> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number =
            u32::try_from(tag >> 3).map_err(|_| Error::Wire("a field number over 32 bits"))?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.take()?)),
            2 => {
                let length = usize::try_from(self.varint()?)
                    .map_err(|_| Error::Wire("a length over the address space"))?;
                let (bytes, rest) = self
                    .rest
                    .split_at_checked(length)
                    .ok_or(Error::Wire("cut in the middle of a field"))?;
                self.rest = rest;
                Value::Bytes(bytes)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.take()?)),
            _ => return Err(Error::Wire("an unknown wire type")),
        };
        Ok(Some((number, value)))
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self
                .rest
                .split_first()
                .ok_or(Error::Wire("cut in the middle of a number"))?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::Wire("a number over 64 bits"))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (bytes, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(Error::Wire("cut in the middle of a number"))?;
        self.rest = rest;
        Ok(*bytes)
    }
}

pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn put_number(out: &mut Vec<u8>, field: u32, value: u64) {
    put_varint(out, u64::from(field) << 3);
    put_varint(out, value);
}

pub fn put_double(out: &mut Vec<u8>, field: u32, value: f64) {
    put_varint(out, u64::from(field) << 3 | 1);
    out.extend(value.to_le_bytes());
}

pub fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    put_varint(out, u64::from(field) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_cuts() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = Vec::new();
            put_number(&mut bytes, 5, value);
            let mut reader = Reader::new(&bytes);
            assert!(matches!(reader.next(), Ok(Some((5, Value::Varint(read)))) if read == value));
            assert!(matches!(reader.next(), Ok(None)));
        }
        for bad in [&[0x08][..], &[0x0a, 5, 1], &[0x0b], &[0x09, 1], &[0xff; 11]] {
            assert!(Reader::new(bad).next().is_err(), "{bad:?}");
        }
    }
}
