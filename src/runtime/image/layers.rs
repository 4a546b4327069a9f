//! The unpacked layers on disk, one folder per uncompressed digest, each made once.

use std::{
    cell::Cell,
    collections::HashMap,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
};

use sha2::{Digest, Sha256};

use super::{
    Error,
    unpack::{self, Limits},
};
use crate::runtime::files::{self, Scratch};

/// Every compressed stream may grow to this much.
const FREE_GROWTH: u64 = 4 << 30;
/// Above that, it may grow to so many times its compressed size.
const MOST_GROWTH: u64 = 100;

/// `layers/<hex of diff id>`, with `tmp/` beside it for the unfinished.
#[derive(Debug)]
pub struct Layers {
    dir: PathBuf,
    tmp: PathBuf,
    /// One lock per layer being made, so that pulls that share it make it once.
    making: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Layers {
    /// Takes the folder over; what a crash left unfinished is removed.
    pub fn open(images_dir: &Path) -> Result<Self, Error> {
        let (dir, tmp) = (images_dir.join("layers"), images_dir.join("tmp"));
        // What cannot be removed is in nobody's way.
        if let Err(error) = files::remove_tree(&tmp) {
            tracing::warn!(path = %tmp.display(), %error, "unfinished layers were not removed");
        }
        for path in [&dir, &tmp] {
            std::fs::create_dir_all(path).map_err(|source| Error::Io {
                action: "create",
                path: path.clone(),
                source,
            })?;
        }
        Ok(Self {
            dir,
            tmp,
            making: Mutex::default(),
        })
    }

    /// Where the layer is, or will be. Only for checked digests.
    pub fn path(&self, diff_id: &str) -> PathBuf {
        self.dir.join(diff_id.trim_start_matches("sha256:"))
    }

    pub fn has(&self, diff_id: &str) -> bool {
        self.path(diff_id).exists()
    }

    /// Held while a layer is made; whoever gets it second finds the layer there.
    pub async fn lock(&self, diff_id: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
            making.retain(|_, lock| Arc::strong_count(lock) > 1);
            making.entry(diff_id.to_owned()).or_default().clone()
        };
        lock.lock_owned().await
    }

    /// Unpacks the stream (tar, or gzip or zstd around it) as the layer `diff_id`. Blocking.
    /// The folder appears only when all of it is there and has the right digest.
    ///
    /// Errors: [`Error::Malformed`] names the layer, the entry and what is wrong with it.
    pub fn make(&self, diff_id: &str, reader: impl Read) -> Result<(), Error> {
        self.make_within(diff_id, reader, Limits::default())
    }

    fn make_within(&self, diff_id: &str, reader: impl Read, limits: Limits) -> Result<(), Error> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io {
                action,
                path,
                source,
            }
        };
        let malformed = |reason: String| Error::Malformed {
            what: format!("layer {diff_id}"),
            reason,
        };
        let staging =
            Scratch::new(&self.tmp, "layer.").map_err(io("create a folder in", &self.tmp))?;
        let folder = staging.path().join("diff");
        std::fs::create_dir(&folder).map_err(io("create", &folder))?;
        set_mode_755(&folder).map_err(io("set the mode of", &folder))?;
        let plain = decompress(reader).map_err(|error| malformed(error.to_string()))?;
        let mut hashing = Hashing {
            inner: plain,
            hash: Sha256::new(),
        };
        unpack::unpack(&mut hashing, &folder, limits)
            .map_err(|error| malformed(format!("unpack {error}")))?;
        let found = format!("sha256:{}", hex(&hashing.hash.finalize()));
        if found != diff_id {
            return Err(malformed(format!("its content has the digest {found}")));
        }
        sync_filesystem(&folder).map_err(io("sync", &folder))?;
        let place = self.path(diff_id);
        match std::fs::rename(&folder, &place) {
            Err(_) if place.exists() => Ok(()),
            result => result.map_err(io("rename to", &place)),
        }
    }

    /// Removes every layer that `used` does not name.
    pub fn retain(&self, used: impl Fn(&str) -> bool) -> Result<(), Error> {
        let io = |source| Error::Io {
            action: "read",
            path: self.dir.clone(),
            source,
        };
        for entry in std::fs::read_dir(&self.dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            if used(&format!("sha256:{}", name.to_string_lossy())) {
                continue;
            }
            // First out of sight, then away: a crash in between leaves no half layer.
            let doomed = self.tmp.join(&name);
            std::fs::rename(entry.path(), &doomed).map_err(|source| Error::Io {
                action: "remove",
                path: entry.path(),
                source,
            })?;
            files::remove_tree(&doomed).map_err(|source| Error::Io {
                action: "remove",
                path: doomed,
                source,
            })?;
        }
        Ok(())
    }
}

/// A frame's own word decides how much memory its window takes: 8 MiB, as RFC 8878 recommends.
const MAX_ZSTD_WINDOW_LOG: u32 = 23;

/// The tar stream inside, told by its first bytes: media types are often wrong.
///
/// A stream that grows too much, or needs too much memory to be read, ends in an error.
pub fn decompress<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let taken = Rc::new(Cell::new(0));
    let counted = Counted {
        inner: reader,
        taken: taken.clone(),
    };
    let mut reader = BufReader::with_capacity(64 << 10, counted);
    let start = reader.fill_buf()?;
    if start.starts_with(&[0x1f, 0x8b]) {
        let inner = flate2::bufread::MultiGzDecoder::new(reader);
        return Ok(Box::new(Growing::new(inner, taken)));
    }
    if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let mut inner = zstd::Decoder::with_buffer(reader)?;
        inner.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
        return Ok(Box::new(Growing::new(inner, taken)));
    }
    Ok(Box::new(reader))
}

/// Says how much was read.
struct Counted<R> {
    inner: R,
    taken: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.taken.set(self.taken.get() + n as u64);
        Ok(n)
    }
}

/// A decompressed stream that may not be too large for what it was made of.
struct Growing<R> {
    inner: R,
    given: u64,
    /// Compressed bytes that were read.
    taken: Rc<Cell<u64>>,
    free: u64,
}

impl<R> Growing<R> {
    fn new(inner: R, taken: Rc<Cell<u64>>) -> Self {
        Self {
            inner,
            given: 0,
            taken,
            free: FREE_GROWTH,
        }
    }
}

impl<R: Read> Read for Growing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.given += n as u64;
        let most = self.free.max(self.taken.get().saturating_mul(MOST_GROWTH));
        if self.given > most {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the compressed stream grows to more than {MOST_GROWTH} times its size"),
            ));
        }
        Ok(n)
    }
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        Ok(n)
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn set_mode_755(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}

/// A layer has thousands of files; one sync of the filesystem is far cheaper than one each.
fn sync_filesystem(path: &Path) -> io::Result<()> {
    let dir = std::fs::File::open(path)?;
    Ok(nix::unistd::syncfs(&dir)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn tar() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        builder
            .append_data(&mut header, "file", b"hi".as_slice())
            .unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_window_that_takes_much_memory_is_refused() {
        for (log, want) in [
            (MAX_ZSTD_WINDOW_LOG, true),
            (MAX_ZSTD_WINDOW_LOG + 1, false),
        ] {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(log).unwrap();
            encoder.write_all(&tar()).unwrap();
            let stream = encoder.finish().unwrap();
            let mut plain = Vec::new();
            let read =
                decompress(stream.as_slice()).and_then(|mut stream| stream.read_to_end(&mut plain));
            assert_eq!(read.is_ok(), want, "{log}");
        }
    }

    #[test]
    #[ignore = "needs root"]
    fn each_compression_unpacks_and_a_wrong_digest_leaves_nothing() {
        let plain = tar();
        let diff_id = format!("sha256:{}", hex(&Sha256::digest(&plain)));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let zstd = zstd::encode_all(plain.as_slice(), 1).unwrap();
        for stream in [plain, gzip.finish().unwrap(), zstd] {
            let dir = tempfile::tempdir().unwrap();
            let layers = Layers::open(dir.path()).unwrap();
            let wrong = format!("sha256:{}", "0".repeat(64));
            assert!(matches!(
                layers.make(&wrong, stream.as_slice()),
                Err(Error::Malformed { .. })
            ));
            assert!(!layers.has(&wrong));
            layers.make(&diff_id, stream.as_slice()).unwrap();
            assert_eq!(
                std::fs::read(layers.path(&diff_id).join("file")).unwrap(),
                b"hi"
            );
            assert_eq!(
                std::fs::read_dir(dir.path().join("tmp")).unwrap().count(),
                0
            );
            layers.retain(|_| false).unwrap();
            assert!(!layers.has(&diff_id));
        }
    }

    #[test]
    fn a_stream_that_grows_too_much_is_refused() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&vec![0; 8 << 20]).unwrap();
        let bomb = gzip.finish().unwrap();
        let taken = Rc::new(Cell::new(0));
        let read = |free| {
            let inner = Counted {
                inner: bomb.as_slice(),
                taken: taken.clone(),
            };
            let inner = flate2::bufread::MultiGzDecoder::new(BufReader::new(inner));
            let mut growing = Growing::new(inner, taken.clone());
            growing.free = free;
            io::copy(&mut growing, &mut io::sink())
        };
        assert_eq!(read(FREE_GROWTH).unwrap(), 8 << 20);
        taken.set(0);
        let error = read(1 << 20).unwrap_err().to_string();
        assert!(error.contains("more than 100 times"), "{error}");
    }
}
