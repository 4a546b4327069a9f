//! The log's bytes: records with length and checksum. Pure.
//!
//! Shape of one record, little endian:
//! `length u32, crc32 u32, then length bytes: kind u8, batch u64, revision u64, created u64,
//! expires u64, key length u32, key, value`.
//! `batch` counts syncs: records of one batch reached the disk together or not at all, which tells
//! a torn tail from damage in the middle.

use std::sync::Arc;

use bytes::Bytes;

use crate::store::Revision;

pub const MAGIC: &[u8; 8] = b"vetchkv1";
const HEADER: usize = 8;
const FIXED: usize = 1 + 8 * 4 + 4;
/// Longer than any value the store takes; a larger length is damage.
pub const MAX_RECORD: usize = 64 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Revisions up to this one may have been given out.
    Ceiling { batch: u64, revision: Revision },
    Put {
        batch: u64,
        revision: Revision,
        created: Revision,
        expires: u64,
        key: Arc<str>,
        value: Bytes,
    },
    Delete {
        batch: u64,
        revision: Revision,
        key: Arc<str>,
    },
}

impl Record {
    pub fn batch(&self) -> u64 {
        match self {
            Self::Ceiling { batch, .. } | Self::Put { batch, .. } | Self::Delete { batch, .. } => {
                *batch
            }
        }
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        let (kind, revision, created, expires, key, value): (u8, _, _, _, &str, &[u8]) = match self
        {
            Self::Ceiling { revision, .. } => (0, *revision, 0, 0, "", &[]),
            Self::Put {
                revision,
                created,
                expires,
                key,
                value,
                ..
            } => (1, *revision, *created, *expires, key, value),
            Self::Delete { revision, key, .. } => (2, *revision, 0, 0, key, &[]),
        };
        let start = out.len();
        out.extend([0; HEADER]);
        out.push(kind);
        for number in [self.batch(), revision, created, expires] {
            out.extend(number.to_le_bytes());
        }
        out.extend(u32::try_from(key.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend(key.as_bytes());
        out.extend(value);
        let body = &out[start + HEADER..];
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
        let crc = crc32fast::hash(body).to_le_bytes();
        out[start..start + 4].copy_from_slice(&length);
        out[start + 4..start + HEADER].copy_from_slice(&crc);
    }

    /// The record at the start of `bytes` and how long it is; `None` if there is no good one.
    pub fn decode(bytes: &Bytes) -> Option<(Self, usize)> {
        let length = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let crc = u32::from_le_bytes(bytes.get(4..HEADER)?.try_into().ok()?);
        if !(FIXED..=MAX_RECORD).contains(&length) || bytes.len() < HEADER + length {
            return None;
        }
        let body = bytes.slice(HEADER..HEADER + length);
        if crc32fast::hash(&body) != crc {
            return None;
        }
        let number = |index: usize| {
            let at = 1 + 8 * index;
            Some(u64::from_le_bytes(body.get(at..at + 8)?.try_into().ok()?))
        };
        let (batch, revision, created, expires) = (number(0)?, number(1)?, number(2)?, number(3)?);
        let key_length = u32::from_le_bytes(body.get(33..FIXED)?.try_into().ok()?) as usize;
        let key: Arc<str> = std::str::from_utf8(body.get(FIXED..FIXED + key_length)?)
            .ok()?
            .into();
        let record = match body.first()? {
            0 => Self::Ceiling { batch, revision },
            1 => Self::Put {
                batch,
                revision,
                created,
                expires,
                key,
                value: body.slice(FIXED + key_length..),
            },
            2 => Self::Delete {
                batch,
                revision,
                key,
            },
            _ => return None,
        };
        Some((record, HEADER + length))
    }
}

/// What a log's bytes hold.
#[derive(Debug)]
pub struct Scan {
    pub records: Vec<Record>,
    /// Bytes from the start that are good; what follows is free or a torn tail.
    pub good: usize,
}

/// Where a log is damaged other than by a torn tail.
#[derive(Debug, PartialEq, Eq)]
pub struct Damage {
    pub offset: usize,
    pub reason: &'static str,
}

/// Reads all records. Zeros may follow the last, and a tail that was never acknowledged may be torn
/// and is left out; anything else that cannot be read is damage, never skipped.
pub fn scan(bytes: &Bytes) -> Result<Scan, Damage> {
    if bytes.len() < MAGIC.len() {
        // A crash while the file was made; nothing was ever acknowledged from it.
        return Ok(Scan {
            records: Vec::new(),
            good: 0,
        });
    }
    if !bytes.starts_with(MAGIC) {
        return Err(Damage {
            offset: 0,
            reason: "not a store log",
        });
    }
    let (mut records, mut good) = (Vec::new(), MAGIC.len());
    while let Some((record, length)) = Record::decode(&bytes.slice(good..)) {
        records.push(record);
        good += length;
    }
    let batch = records.last().map_or(0, Record::batch);
    // No record begins in the zeros at the end.
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
    let later = (good + 1..=written)
        .filter_map(|at| Record::decode(&bytes.slice(at..)))
        .any(|(record, _)| record.batch() > batch + 1);
    if later {
        return Err(Damage {
            offset: good,
            reason: "a record is damaged and later ones are not",
        });
    }
    Ok(Scan { records, good })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(batch: u64, revision: u64) -> Record {
        Record::Put {
            batch,
            revision,
            created: 1,
            expires: 0,
            key: "k".into(),
            value: Bytes::from_static(b"v"),
        }
    }

    fn log(records: &[Record]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for record in records {
            record.encode(&mut bytes);
        }
        bytes
    }

    #[test]
    fn records_survive_the_trip() {
        let records = vec![
            Record::Ceiling {
                batch: 1,
                revision: 9,
            },
            put(1, 2),
            Record::Delete {
                batch: 2,
                revision: 3,
                key: "ü".into(),
            },
        ];
        let bytes = Bytes::from(log(&records));
        let scan = scan(&bytes).unwrap();
        assert_eq!((scan.records, scan.good), (records, bytes.len()));
    }

    #[test]
    fn a_tail_may_be_torn_anywhere() {
        let whole = log(&[put(1, 1), put(2, 2)]);
        let first = log(&[put(1, 1)]).len();
        for cut in 0..whole.len() {
            let scan = scan(&Bytes::copy_from_slice(&whole[..cut])).unwrap();
            assert_eq!(
                scan.records.len(),
                usize::from(cut >= first),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn zeros_after_the_last_record_are_free() {
        let mut bytes = log(&[put(1, 1), put(2, 2)]);
        let good = bytes.len();
        bytes.resize(good + 1000, 0);
        let free = scan(&Bytes::from(bytes.clone())).unwrap();
        assert_eq!((free.records.len(), free.good), (2, good));
        // Zeros where acknowledged records were are damage.
        bytes.truncate(good);
        let first = log(&[put(1, 1)]).len();
        bytes[first..].fill(0);
        bytes.extend(&log(&[put(3, 3)])[MAGIC.len()..]);
        assert_eq!(scan(&Bytes::from(bytes)).unwrap_err().offset, first);
    }

    #[test]
    fn damage_before_acknowledged_records_is_an_error() {
        let mut bytes = log(&[put(1, 1), put(2, 2), put(3, 3)]);
        let second = log(&[put(1, 1)]).len();
        bytes[second + 12] ^= 1;
        assert_eq!(
            scan(&Bytes::from(bytes.clone())).unwrap_err().offset,
            second
        );
        // In the last batch it may be a sync that never finished.
        bytes[second + 12] ^= 1;
        let third = log(&[put(1, 1), put(2, 2)]).len();
        bytes[third + 12] ^= 1;
        assert_eq!(scan(&Bytes::from(bytes)).unwrap().records.len(), 2);
        assert_eq!(
            scan(&Bytes::from_static(b"something else"))
                .unwrap_err()
                .offset,
            0
        );
    }
}
