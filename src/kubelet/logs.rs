//! Containers' log files: where they lie, compression, removal.
//!
//! The supervisors write them and keep them in bounds (`runtime/log_writer.rs`); this compresses what
//! they have moved aside (`<attempt>.log.<time>`), and deletes. Always true:
//! - A pod's folder is removed only if it carries our mark, since other kubelets of this machine may
//!   keep theirs beside it.
//! - Logs are for root alone.
//! - Nothing waits for a compression; one runs at a time, most of it asleep.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::jiff::{Timestamp, fmt::strtime};
use tokio_util::sync::CancellationToken;

use crate::{
    runtime::{Identity, MAX_LOG_BYTES, Phase, Runtime, files, rotated_logs as rotated},
    ticks,
};

const CHECK_EVERY: Duration = Duration::from_secs(10);
/// A log that is so large is of a supervisor that does not rotate by itself: one from before an
/// update.
const NOT_ROTATED_BYTES: u64 = 2 * MAX_LOG_BYTES;
/// After each piece of a compression, so many times as long as it took is slept.
const REST: u32 = 4;
const PIECE: usize = 256 << 10;
/// How much of a log tells why a container failed.
const TAIL_BYTES: u64 = 2048;
const TAIL_LINES: usize = 80;

/// The folder that log collectors know; each log has a link there if the logs lie where they look.
const SYSTEM: &str = "/var/log";
const LINKS: &str = "/var/log/containers";
/// In the folder of every pod of ours.
const MARK: &str = ".vetch";

/// The pods' folders lie in it.
pub fn folder(log_dir: &Path) -> PathBuf {
    log_dir.join("pods")
}

/// The folder of all logs of one pod.
pub fn pod_folder(log_dir: &Path, identity: &Identity) -> PathBuf {
    let Identity {
        uid,
        namespace,
        name,
    } = identity;
    folder(log_dir).join(format!("{namespace}_{name}_{uid}"))
}

pub fn path(log_dir: &Path, identity: &Identity, container: &str, attempt: u32) -> PathBuf {
    pod_folder(log_dir, identity)
        .join(container)
        .join(format!("{attempt}.log"))
}

/// Makes the folder for a log.
pub async fn make_folder(log_dir: &Path, identity: &Identity, log: &Path) -> io::Result<()> {
    let folder = pod_folder(log_dir, identity);
    let of_container = log.parent().unwrap_or(&folder).to_owned();
    let make = move || {
        fs::create_dir_all(folder.parent().unwrap_or(&folder))?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(of_container)?;
        // One that an older version made is open to all.
        set_mode(&folder, 0o700)?;
        let mut mark = fs::OpenOptions::new();
        mark.write(true).create(true).truncate(false).mode(0o600);
        mark.open(folder.join(MARK)).map(drop)
    };
    tokio::task::spawn_blocking(make)
        .await
        .unwrap_or_else(|error| Err(error.into()))
}

/// Links the log to where collectors look.
pub async fn link(log_dir: &Path, identity: &Identity, container: &str, id: &str, log: PathBuf) {
    if log_dir != Path::new(SYSTEM) {
        return;
    }
    let name = format!("{}{container}-{id}.log", link_prefix(identity));
    blocking(move || {
        fs::create_dir_all(LINKS)?;
        std::os::unix::fs::symlink(log, Path::new(LINKS).join(name))
    })
    .await;
}

fn link_prefix(identity: &Identity) -> String {
    format!("{}_{}_", identity.name, identity.namespace)
}

/// Removes the links that lead into a folder that is no more.
fn unlink(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(LINKS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if fs::read_link(&path).is_ok_and(|log| log.starts_with(folder) && !log.exists()) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Removes a log with its rotated files; one that is gone is fine.
pub async fn remove_attempt(log: PathBuf) {
    blocking(move || {
        for file in rotated(&log)? {
            fs::remove_file(file)?;
        }
        ignore_missing(fs::remove_file(&log))?;
        unlink(log.parent().unwrap_or(&log))
    })
    .await;
}

pub async fn remove_pod(log_dir: &Path, identity: &Identity) {
    let folder = pod_folder(log_dir, identity);
    blocking(move || {
        files::remove_tree(&folder)?;
        unlink(&folder)
    })
    .await;
}

/// Removes the folders of our pods that are not `live`.
pub async fn remove_orphans(log_dir: &Path, live: Vec<String>) {
    let folder = folder(log_dir);
    blocking(move || {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let uid = name.rsplit('_').next().unwrap_or_default();
            let ours = entry.path().join(MARK).exists();
            if ours && !live.iter().any(|live| live == uid) {
                files::remove_tree(&entry.path())?;
                unlink(&entry.path())?;
            }
        }
        Ok(())
    })
    .await;
}

/// Takes from others what older versions let them read: the folders and files of all our pods.
pub async fn close_to_others(log_dir: &Path) {
    let folder = folder(log_dir);
    blocking(move || {
        for entry in fs::read_dir(folder)? {
            let pod = entry?.path();
            if !pod.join(MARK).exists() {
                continue;
            }
            if let Err(error) = close(&pod) {
                tracing::warn!(%error, folder = %pod.display(), "others may read these logs");
            }
        }
        Ok(())
    })
    .await;
}

/// The folder first: from then on nobody gets at what is in it.
fn close(folder: &Path) -> io::Result<()> {
    ignore_missing(set_mode(folder, 0o700))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            close(&entry.path())?;
        } else if kind.is_file() {
            ignore_missing(set_mode(&entry.path(), 0o600))?;
        }
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Compresses what lies beside logs until told to stop.
pub async fn compress_rotated(runtime: Runtime, shutdown: CancellationToken) {
    // Folders whose content was seen: a change of it changes the folder's time.
    let mut seen: HashMap<PathBuf, SystemTime> = HashMap::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = ticks::sleep(CHECK_EVERY) => {}
        }
        let mut logs = Vec::new();
        for pod in runtime.pods().await {
            for container in pod.containers {
                let log = container.log_path;
                if !matches!(container.phase, Phase::Running { .. }) {
                    continue;
                }
                match state(&log) {
                    State::Kept => {}
                    State::Large => rotate(&runtime, &container.id, log.clone()).await,
                    State::Missing => reopen(&runtime, &container.id).await,
                }
                logs.push(log);
            }
        }
        let before = std::mem::take(&mut seen);
        for log in logs {
            let Some(folder) = log.parent().map(Path::to_owned) else {
                continue;
            };
            let changed = fs::metadata(&folder)
                .and_then(|found| found.modified())
                .ok();
            let Some(changed) = changed else { continue };
            if before.get(&folder) != Some(&changed) {
                let stop = shutdown.clone();
                blocking(move || compress_beside(&log, &stop)).await;
            }
            seen.insert(folder, changed);
        }
    }
}

/// What must be done about the log of a running container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Kept,
    /// Its supervisor does not rotate.
    Large,
    /// Moved away, and whoever did that has died before it was opened anew; or removed by somebody.
    Missing,
}

fn state(log: &Path) -> State {
    match fs::metadata(log) {
        Ok(data) if data.len() > NOT_ROTATED_BYTES => State::Large,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Without its folder it cannot be opened: the pod is going.
            match log.parent().is_some_and(Path::is_dir) {
                true => State::Missing,
                false => State::Kept,
            }
        }
        _ => State::Kept,
    }
}

async fn reopen(runtime: &Runtime, id: &str) {
    if let Err(error) = runtime.reopen_log(id).await {
        tracing::warn!(%error, container = id, "log not reopened");
    }
}

/// Moves a log aside for a supervisor that does not.
async fn rotate(runtime: &Runtime, id: &str, log: PathBuf) {
    let aside = move || {
        let time = strtime::format("%Y%m%d-%H%M%S", Timestamp::now()).map_err(io::Error::other)?;
        fs::rename(&log, with_suffix(&log, &time))
    };
    if blocking(aside).await {
        reopen(runtime, id).await;
    }
}

/// The newest stays as it is: a reader may be at it.
fn compress_beside(log: &Path, stop: &CancellationToken) -> io::Result<()> {
    let mut files = rotated(log)?;
    files.pop();
    for file in files {
        if is_partial(&file) {
            // Nobody else compresses, so it was left behind.
            ignore_missing(fs::remove_file(file))?;
        } else if !is_compressed(&file) {
            match compress(&file, stop) {
                // The supervisor has deleted it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
        if stop.is_cancelled() {
            break;
        }
    }
    Ok(())
}

/// Slowly, for whatever pods do comes first.
fn compress(file: &Path, stop: &CancellationToken) -> io::Result<()> {
    let partial = with_suffix(file, "tmp");
    let compressed = write_compressed(file, &partial, stop);
    // A file that is gone must not come back in another form.
    if compressed.is_err() || stop.is_cancelled() || !file.exists() {
        ignore_missing(fs::remove_file(&partial))?;
        return compressed;
    }
    fs::rename(partial, with_suffix(file, "gz"))?;
    fs::remove_file(file)
}

fn write_compressed(file: &Path, to: &Path, stop: &CancellationToken) -> io::Result<()> {
    let mut reader = fs::File::open(file)?;
    let target = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(to)?;
    let mut writer = flate2::write::GzEncoder::new(target, flate2::Compression::fast());
    let mut piece = vec![0; PIECE];
    while !stop.is_cancelled() {
        let begun = Instant::now();
        match reader.read(&mut piece)? {
            0 => break,
            count => writer.write_all(piece.get(..count).unwrap_or_default())?,
        }
        std::thread::sleep(begun.elapsed() * REST);
    }
    writer.finish().map(drop)
}

fn is_compressed(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "gz")
}

fn is_partial(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "tmp")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// The text of the log's last lines, without times and stream names.
pub async fn tail(log: PathBuf) -> String {
    let read = move || -> io::Result<String> {
        use io::{Read, Seek};
        let mut file = fs::File::open(log)?;
        // Each line carries about 40 bytes of its own; read enough to have them to spare.
        let length = file.metadata()?.len();
        file.seek(io::SeekFrom::Start(length.saturating_sub(8 * TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(8 * TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(last_lines(&String::from_utf8_lossy(&bytes)))
    };
    let read = tokio::task::spawn_blocking(read).await;
    read.ok().and_then(Result::ok).unwrap_or_default()
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let text = lines[lines.len().saturating_sub(TAIL_LINES)..]
        .iter()
        .filter_map(|line| {
            let mut words = line.splitn(4, ' ').skip(2);
            let end = if words.next()? == "P" { "" } else { "\n" };
            Some(format!("{}{end}", words.next()?))
        })
        .collect::<String>();
    let limit = usize::try_from(TAIL_BYTES).unwrap_or(usize::MAX);
    let mut start = text.len().saturating_sub(limit);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}

/// False if it failed; that is logged, and nothing depends on it.
async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> bool {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => false,
        Ok(Err(error)) => {
            tracing::warn!(%error, "log files");
            false
        }
        Err(_) => false,
    }
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_not_there_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("0.log");
        assert_eq!(state(&log), State::Missing);
        fs::write(&log, "line").unwrap();
        assert_eq!(state(&log), State::Kept);
        let file = fs::File::options().write(true).open(&log).unwrap();
        file.set_len(NOT_ROTATED_BYTES + 1).unwrap();
        assert_eq!(state(&log), State::Large);
        assert_eq!(state(&folder.path().join("none/0.log")), State::Kept);
    }

    #[test]
    fn the_last_lines_without_their_heads() {
        let log =
            "2026-01-01T00:00:00.1Z stdout F first line\n2026-01-01T00:00:00.2Z stderr F boom\n";
        assert_eq!(last_lines(log), "first line\nboom\n");
        assert_eq!(last_lines("t stdout P unended\n"), "unended");
        let long = format!("t stdout F {}\n", "é".repeat(2000));
        assert!(last_lines(&long).len() <= 2048);
        let many: String = (0..100).map(|i| format!("t stdout F {i}\n")).collect();
        assert_eq!(last_lines(&many).lines().count(), 80);
    }

    #[tokio::test]
    async fn only_what_is_ours_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let identity = |uid: &str| Identity {
            uid: uid.into(),
            namespace: "n".into(),
            name: "p".into(),
        };
        for uid in ["live", "gone"] {
            let log = path(root.path(), &identity(uid), "c", 0);
            make_folder(root.path(), &identity(uid), &log)
                .await
                .unwrap();
        }
        let foreign = pod_folder(root.path(), &identity("foreign"));
        fs::create_dir_all(&foreign).unwrap();
        remove_orphans(root.path(), vec!["live".into()]).await;
        assert!(foreign.exists());
        assert!(pod_folder(root.path(), &identity("live")).exists());
        assert!(!pod_folder(root.path(), &identity("gone")).exists());
    }

    #[tokio::test]
    async fn what_lies_aside_is_compressed_but_for_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("0.log");
        for time in [
            "20260101-000000",
            "20260101-000001.gz",
            "20260102-000000.000000001",
            "20260102-000000.000000002.tmp",
            "20260103-000000",
        ] {
            fs::write(with_suffix(&log, time), "old").unwrap();
        }
        fs::write(folder.path().join("1.log"), "another").unwrap();
        fs::write(&log, "now").unwrap();
        compress_beside(&log, &CancellationToken::new()).unwrap();
        let names = |files: Vec<PathBuf>| -> Vec<String> {
            let names = files.iter().filter_map(|file| file.file_name()?.to_str());
            names.map(str::to_owned).collect()
        };
        assert_eq!(
            names(rotated(&log).unwrap()),
            [
                "0.log.20260101-000000.gz",
                "0.log.20260101-000001.gz",
                "0.log.20260102-000000.000000001.gz",
                "0.log.20260103-000000",
            ]
        );
        let compressed = with_suffix(&log, "20260101-000000.gz");
        let mode = fs::metadata(&compressed).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut text = String::new();
        flate2::read::GzDecoder::new(fs::File::open(compressed).unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "old");
        // One that was told to stop leaves nothing half done.
        fs::write(with_suffix(&log, "20250101-000000"), "old").unwrap();
        let stopped = CancellationToken::new();
        stopped.cancel();
        compress_beside(&log, &stopped).unwrap();
        assert_eq!(rotated(&log).unwrap().len(), 5);
        remove_attempt(log.clone()).await;
        assert!(rotated(&log).unwrap().is_empty());
        assert!(folder.path().join("1.log").exists());
    }

    #[tokio::test]
    async fn logs_are_for_root_alone() {
        let root = tempfile::tempdir().unwrap();
        let identity = Identity {
            uid: "u".into(),
            namespace: "n".into(),
            name: "p".into(),
        };
        let folder = pod_folder(root.path(), &identity);
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let log = path(root.path(), &identity, "c", 0);
        make_folder(root.path(), &identity, &log).await.unwrap();
        for folder in [folder.as_path(), log.parent().unwrap()] {
            let mode = fs::metadata(folder).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{}", folder.display());
        }
    }

    #[tokio::test]
    async fn logs_of_older_versions_are_closed_to_others() {
        let root = tempfile::tempdir().unwrap();
        let identity = |uid: &str| Identity {
            uid: uid.into(),
            namespace: "n".into(),
            name: "p".into(),
        };
        let [ours, foreign] =
            ["ours", "foreign"].map(|uid| pod_folder(root.path(), &identity(uid)));
        for folder in [&ours, &foreign] {
            fs::create_dir_all(folder.join("c")).unwrap();
            set_mode(folder, 0o755).unwrap();
            set_mode(&folder.join("c"), 0o755).unwrap();
            for log in [
                "c/0.log",
                "c/0.log.20260101-000000",
                "c/0.log.20250101-000000.gz",
            ] {
                fs::write(folder.join(log), "text").unwrap();
                set_mode(&folder.join(log), 0o644).unwrap();
            }
        }
        fs::write(ours.join(MARK), "").unwrap();
        // What a link leads to is not ours.
        std::os::unix::fs::symlink(foreign.join("c/0.log"), ours.join("c/link")).unwrap();
        close_to_others(root.path()).await;
        for (folder, [dirs, files]) in [(&ours, [0o700, 0o600]), (&foreign, [0o755, 0o644])] {
            for (path, want) in [
                ("", dirs),
                ("c", dirs),
                ("c/0.log", files),
                ("c/0.log.20260101-000000", files),
                ("c/0.log.20250101-000000.gz", files),
            ] {
                let path = folder.join(path);
                let mode = fs::metadata(&path).unwrap().permissions().mode();
                assert_eq!(mode & 0o777, want, "{}", path.display());
            }
        }
    }
}
