//! The unpacked layers on disk, one folder per uncompressed digest, each made once.

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use sha2::{Digest, Sha256};

use super::{Error, unpack};

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
        match std::fs::remove_dir_all(&tmp) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Io {
                    action: "clear",
                    path: tmp,
                    source,
                });
            }
            _ => {}
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
    pub fn make(&self, diff_id: &str, reader: impl Read) -> Result<(), Error> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io {
                action,
                path,
                source,
            }
        };
        let staging = tempfile::Builder::new()
            .prefix("layer.")
            .tempdir_in(&self.tmp)
            .map_err(io("create a folder in", &self.tmp))?;
        let folder = staging.path().join("diff");
        std::fs::create_dir(&folder).map_err(io("create", &folder))?;
        set_mode_755(&folder).map_err(io("set the mode of", &folder))?;
        let plain = decompress(reader).map_err(io("read the layer for", &folder))?;
        let mut hashing = Hashing {
            inner: plain,
            hash: Sha256::new(),
        };
        unpack::unpack(&mut hashing, &folder).map_err(io("unpack the layer to", &folder))?;
        let found = format!("sha256:{}", hex(&hashing.hash.finalize()));
        if found != diff_id {
            return Err(Error::Malformed {
                what: format!("layer {diff_id}"),
                reason: format!("its content has the digest {found}"),
            });
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
            std::fs::remove_dir_all(&doomed).map_err(|source| Error::Io {
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
pub fn decompress<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut reader = BufReader::with_capacity(64 << 10, reader);
    let start = reader.fill_buf()?;
    if start.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(reader)));
    }
    if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let mut decoder = zstd::Decoder::with_buffer(reader)?;
        decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(reader))
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
}
