//! The unpacked layers on disk, one folder per uncompressed digest, each made once.

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest, Sha256};

use super::{
    Error, parents,
    unpack::{self, Limits},
};
use crate::{
    hex::hex,
    runtime::files::{self, Scratch},
};

/// Every compressed stream may grow to this much.
const FREE_GROWTH: u64 = 4 << 30;
/// Above that, it may grow to so many times its compressed size.
const MOST_GROWTH: u64 = 100;

/// `layers/<hex of diff id>`, with `tmp/` beside it for the unfinished.
#[derive(Debug)]
pub struct Layers {
    dir: PathBuf,
    tmp: PathBuf,
    /// Lists of layers' folders without an entry.
    plain: PathBuf,
    /// One lock per layer being made, so that pulls that share it make it once.
    making: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Folder names of layers that stay although no image has them, or will have them soon; how often
    /// each was asked for. Locked while layers are put out of the way.
    pinned: Mutex<HashMap<String, usize>>,
}

/// Keeps layers, those there are and those that are being made, while it is held.
#[derive(Debug)]
pub struct Pins {
    layers: Arc<Layers>,
    names: Vec<String>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut pinned = self.layers.pinned();
        for name in &self.names {
            if let Some(count) = pinned.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    pinned.remove(name);
                }
            }
        }
    }
}

/// The name of the folder of parents of an image with these layers.
fn parents_name(diff_ids: &[String]) -> String {
    let ids = diff_ids.iter().map(|id| folder_name(id));
    let stack: Vec<&str> = ids.collect();
    format!("parents-{}", hex(&Sha256::digest(stack.join("\n"))))
}

/// The name of a layer's folder.
fn folder_name(diff_id: &str) -> &str {
    diff_id.trim_start_matches("sha256:")
}

impl Layers {
    /// Takes the folder over; what a crash left unfinished is removed.
    pub fn open(images_dir: &Path) -> Result<Self, Error> {
        let (dir, tmp) = (images_dir.join("layers"), images_dir.join("tmp"));
        let plain = images_dir.join("parents");
        // What cannot be removed is in nobody's way.
        if let Err(error) = files::remove_tree(&tmp) {
            tracing::warn!(path = %tmp.display(), %error, "unfinished layers were not removed");
        }
        for path in [&dir, &tmp, &plain] {
            std::fs::create_dir_all(path).map_err(|source| Error::Io {
                action: "create",
                path: path.clone(),
                source,
            })?;
        }
        Ok(Self {
            dir,
            tmp,
            plain,
            making: Mutex::default(),
            pinned: Mutex::default(),
        })
    }

    /// Where the layer is, or will be. Only for checked digests.
    pub fn path(&self, diff_id: &str) -> PathBuf {
        self.dir.join(folder_name(diff_id))
    }

    fn pinned(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps these layers. To be asked for before one looks whether they are there.
    pub fn pin(self: &Arc<Self>, diff_ids: &[String]) -> Pins {
        let names: Vec<String> = { diff_ids.iter() }
            .map(|diff_id| folder_name(diff_id).to_owned())
            .chain([parents_name(diff_ids)])
            .collect();
        let mut pinned = self.pinned();
        for name in &names {
            *pinned.entry(name.clone()).or_default() += 1;
        }
        Pins {
            layers: self.clone(),
            names,
        }
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
        let plain = unpack::unpack(&mut hashing, &folder, limits)
            .map_err(|error| malformed(format!("unpack {error}")))?;
        let found = format!("sha256:{}", hex(&hashing.hash.finalize()));
        if found != diff_id {
            return Err(malformed(format!("its content has the digest {found}")));
        }
        sync_filesystem(&folder).map_err(io("sync", &folder))?;
        let list = self.plain.join(folder_name(diff_id));
        if !plain.is_empty() {
            parents::save(&list, &plain).map_err(io("write", &list))?;
        }
        let place = self.path(diff_id);
        match std::fs::rename(&folder, &place) {
            Err(_) if place.exists() => Ok(()),
            result => result.map_err(io("rename to", &place)),
        }
    }

    /// The stack of an image's layers, lowest first, as they are mounted. All are there.
    pub fn stack(&self, diff_ids: &[String]) -> Vec<PathBuf> {
        let visible = self.visible(diff_ids).iter();
        let mut stack: Vec<PathBuf> = visible.map(|id| self.path(id)).collect();
        let parents = self.dir.join(parents_name(diff_ids));
        if parents.exists() {
            stack.push(parents);
        }
        stack
    }

    /// Without those that a layer above hides as a whole.
    fn visible<'a>(&self, diff_ids: &'a [String]) -> &'a [String] {
        let hides = |id: &String| parents::hides_all(&self.path(id));
        let first = diff_ids.iter().rposition(hides).unwrap_or(0);
        diff_ids.get(first..).unwrap_or_default()
    }

    /// Makes what the stack of these layers needs besides them (`parents.rs`). Blocking; the caller
    /// has pinned them.
    pub fn complete(&self, diff_ids: &[String]) -> Result<(), Error> {
        let place = self.dir.join(parents_name(diff_ids));
        let layer = |diff_id: &String| {
            let plain = parents::load(&self.plain.join(folder_name(diff_id)))?;
            let dir = self.path(diff_id);
            Ok(parents::Layer { dir, plain })
        };
        let made = || -> io::Result<()> {
            let visible = self.visible(diff_ids).iter();
            let layers: Vec<_> = visible.map(layer).collect::<io::Result<_>>()?;
            if place.exists() || layers.iter().all(|layer| layer.plain.is_empty()) {
                return Ok(());
            }
            let staging = Scratch::new(&self.tmp, "parents.")?;
            let folder = staging.path().join("diff");
            std::fs::create_dir(&folder)?;
            set_mode_755(&folder)?;
            if !parents::make(&layers, &folder)? {
                return Ok(());
            }
            sync_filesystem(&folder)?;
            match std::fs::rename(&folder, &place) {
                Err(_) if place.exists() => Ok(()),
                result => result,
            }
        };
        made().map_err(|source| Error::Io {
            action: "make",
            path: place.clone(),
            source,
        })
    }

    /// Puts every layer out of the way that no image of `images` (diff ids of each) has, nobody has pinned and
    /// no container uses, and returns where they lie now, to be removed. `users` is asked for the
    /// folders that containers use, only if it matters; if it does not know, all stay.
    ///
    /// The caller sees to it that no image is recorded meanwhile. Blocking.
    pub fn unused(
        &self,
        images: &[Vec<String>],
        users: impl FnOnce(&Path) -> Option<HashSet<String>>,
    ) -> Result<Vec<PathBuf>, Error> {
        // First the pins, then the containers: whoever starts one unpins after it is recorded.
        let before: HashSet<String> = self.pinned().keys().cloned().collect();
        let of_images: HashSet<&str> = images.iter().flatten().map(|id| folder_name(id)).collect();
        let parents: HashSet<String> = images.iter().map(|ids| parents_name(ids)).collect();
        let mut candidates = self.names()?;
        candidates.retain(|name| {
            !of_images.contains(name.as_str()) && !parents.contains(name) && !before.contains(name)
        });
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        let Some(used) = users(&self.dir) else {
            return Ok(Vec::new());
        };
        candidates.retain(|name| !used.contains(name));
        let pinned = self.pinned();
        candidates.retain(|name| !pinned.contains_key(name));
        // First out of sight, then away: a crash in between leaves no half layer.
        let put_away = |name: String| {
            let (from, to) = (self.dir.join(&name), self.tmp.join(&name));
            std::fs::rename(&from, &to).map_err(|source| Error::Io {
                action: "remove",
                path: from,
                source,
            })?;
            // A layer without its list counts as one that has entries for all.
            let _ = std::fs::remove_file(self.plain.join(&name));
            Ok(to)
        };
        candidates.into_iter().map(put_away).collect()
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let io = |source| Error::Io {
            action: "read",
            path: self.dir.clone(),
            source,
        };
        let entries = std::fs::read_dir(&self.dir).map_err(io)?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect::<io::Result<_>>().map_err(io)
    }
}

/// Removes folders that were put out of the way. Blocking.
pub fn remove_all(paths: Vec<PathBuf>) -> Result<(), Error> {
    for path in paths {
        files::remove_tree(&path).map_err(|source| Error::Io {
            action: "remove",
            path,
            source,
        })?;
    }
    Ok(())
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
            let layers = Arc::new(layers);
            let sweep = |users: &'static [&str]| {
                let unused = layers.unused(&[], |_| {
                    Some(users.iter().map(|name| (*name).to_owned()).collect())
                });
                remove_all(unused.unwrap()).unwrap();
            };
            let pins = layers.pin(std::slice::from_ref(&diff_id));
            sweep(&[]);
            assert!(layers.has(&diff_id), "it is pinned");
            drop(pins);
            let unused = layers.unused(&[], |_| None);
            assert!(unused.unwrap().is_empty(), "nobody knows who uses it");
            assert!(layers.has(&diff_id));
            sweep(&[]);
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
