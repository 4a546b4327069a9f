//! Containers' log files: where they lie, rotation, removal.
//!
//! The supervisors write them; this renames, compresses and deletes. A rotated file is named
//! `<attempt>.log.<time>`, older ones end in `.gz`.
//! Always true: a pod's folder is removed only if it carries our mark, since other kubelets of this
//! machine may keep theirs beside it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::jiff::{Timestamp, fmt::strtime};
use tokio_util::sync::CancellationToken;

use crate::runtime::{Identity, Phase, Runtime, files};

const CHECK_EVERY: Duration = Duration::from_secs(10);
const MAX_BYTES: u64 = 10 << 20;
/// The one being written included.
const MAX_FILES: usize = 5;
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
        fs::create_dir_all(of_container)?;
        fs::File::create(folder.join(MARK)).map(drop)
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

/// Keeps logs of running containers in bounds until told to stop.
pub async fn rotate(runtime: Runtime, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(CHECK_EVERY) => {}
        }
        for pod in runtime.pods().await {
            for container in pod.containers {
                if matches!(container.phase, Phase::Running { .. })
                    && is_large(&container.log_path)
                    && rename(container.log_path.clone()).await
                    && let Err(error) = runtime.reopen_log(&container.id).await
                {
                    tracing::warn!(%error, container = container.name, "log not reopened");
                }
            }
        }
    }
}

fn is_large(log: &Path) -> bool {
    fs::metadata(log).is_ok_and(|data| data.len() > MAX_BYTES)
}

/// Makes room and moves the log aside; true if a new one must be opened.
async fn rename(log: PathBuf) -> bool {
    blocking(move || {
        let mut older = rotated(&log)?;
        // The one being written and the one about to be rotated count too.
        while older.len() > MAX_FILES - 2 {
            fs::remove_file(older.remove(0))?;
        }
        for file in older.iter().filter(|file| !is_compressed(file)) {
            compress(file)?;
        }
        let time = strtime::format("%Y%m%d-%H%M%S", Timestamp::now()).map_err(io::Error::other)?;
        fs::rename(&log, with_suffix(&log, &time))
    })
    .await
}

fn compress(file: &Path) -> io::Result<()> {
    let target = with_suffix(file, "gz");
    let partial = with_suffix(file, "tmp");
    let mut writer =
        flate2::write::GzEncoder::new(fs::File::create(&partial)?, flate2::Compression::fast());
    io::copy(&mut fs::File::open(file)?, &mut writer)?;
    writer.finish()?;
    fs::rename(partial, target)?;
    fs::remove_file(file)
}

fn is_compressed(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "gz")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// The rotated files of a log, oldest first.
fn rotated(log: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (log.parent(), log.file_name()) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut files = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
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
    async fn five_files_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("0.log");
        for time in [
            "20260101-000000",
            "20260101-000001.gz",
            "20260102-000000",
            "20260103-000000",
        ] {
            fs::write(with_suffix(&log, time), "old").unwrap();
        }
        fs::write(folder.path().join("1.log"), "another").unwrap();
        fs::write(&log, "now").unwrap();
        assert!(rename(log.clone()).await);
        let files = rotated(&log).unwrap();
        assert_eq!(files.len(), MAX_FILES - 1);
        assert!(files[..3].iter().all(|file| is_compressed(file)));
        assert_eq!(fs::read(&files[3]).unwrap(), b"now");
        assert!(!log.exists());
        remove_attempt(log.clone()).await;
        assert!(rotated(&log).unwrap().is_empty());
        assert!(folder.path().join("1.log").exists());
    }
}
