//! Clusters of a process that is told to end are removed before it ends: their daemons are not its
//! children, and would go on.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, Once, PoisonError},
};

use tokio::signal::unix::{SignalKind, signal};

/// What removes what lies below a root folder, and who holds the namespaces of its host.
type Removal = (u32, &'static [&'static str]);

static CLUSTERS: Mutex<BTreeMap<PathBuf, Removal>> = Mutex::new(BTreeMap::new());
static WATCH: Once = Once::new();

fn clusters() -> MutexGuard<'static, BTreeMap<PathBuf, Removal>> {
    CLUSTERS.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn remove_then(root: &Path, holder: u32) {
    remove_by(&["reset", "--yes"], root, holder);
}

/// As [`remove_then`], by other commands of vetch than `reset`.
pub fn remove_by(command: &'static [&'static str], root: &Path, holder: u32) {
    WATCH.call_once(|| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_io().build().unwrap();
        // The handlers are there when this returns.
        let entered = runtime.enter();
        let mut terminate = signal(SignalKind::terminate()).unwrap();
        let mut interrupt = signal(SignalKind::interrupt()).unwrap();
        drop(entered);
        std::thread::spawn(move || {
            let number = runtime.block_on(async {
                tokio::select! {
                    _ = terminate.recv() => SignalKind::terminate(),
                    _ = interrupt.recv() => SignalKind::interrupt(),
                }
            });
            for (root, removal) in &*clusters() {
                remove(root, *removal);
            }
            std::process::exit(128 + number.as_raw_value());
        });
    });
    clusters().insert(root.to_owned(), (holder, command));
}

pub fn is_removed(root: &Path) {
    clusters().remove(root);
}

fn remove(root: &Path, (holder, command): Removal) {
    let reset = Command::new("nsenter")
        .arg(format!("--target={holder}"))
        .args(["--net", "--mount", "--"])
        .arg(super::program())
        .args(command)
        .arg("--root")
        .arg(root)
        .status();
    eprintln!("interrupted: {} was reset: {reset:?}", root.display());
    let _ = Command::new("kill").arg(holder.to_string()).status();
    let _ = std::fs::remove_dir_all(root);
}
