//! Plugins that a daemon before this one has left running when it died: they would go on changing what this one
//! takes back. They are known by the pod that they were told of, as are the plugins that they run themselves.
//! Blocking.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::ffi::OsStrExt,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const VARIABLE: &[u8] = b"CNI_CONTAINERID=";
/// A process that was killed and does not go by then is in the kernel's hands.
const WITHIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Kills every process that was told of one of these pods, and returns when they are gone.
pub fn kill_those_of(container_ids: &BTreeSet<String>) {
    if container_ids.is_empty() {
        return;
    }
    let end = Instant::now() + WITHIN;
    loop {
        let theirs: Vec<i32> = processes()
            .filter(|pid| is_of(*pid, container_ids))
            .collect();
        if theirs.is_empty() || Instant::now() > end {
            return;
        }
        for pid in theirs {
            tracing::warn!(
                pid,
                "ending a plugin that a daemon before this one has left running"
            );
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => tracing::warn!(pid, %error, "it is not ended"),
            }
        }
        // They are nobody's children here, and what they have started meanwhile must be found too.
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let name = entry.file_name();
        std::str::from_utf8(name.as_bytes()).ok()?.parse().ok()
    })
}

fn is_of(pid: i32, container_ids: &BTreeSet<String>) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let mut variables = environment.split(|byte| *byte == 0);
    variables.any(|variable| {
        let id = variable.strip_prefix(VARIABLE);
        let id = id.and_then(|id| std::str::from_utf8(id).ok());
        id.is_some_and(|id| container_ids.contains(id))
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_those_of_our_pods_are_ended() {
        let id = format!("straggler-{}", std::process::id());
        let start = |id: &str| {
            let mut command = Command::new("sleep");
            command.arg("1000").env("CNI_CONTAINERID", id);
            command.spawn().unwrap()
        };
        let (mut ours, mut others) = (start(&id), start(&format!("{id}-other")));
        kill_those_of(&BTreeSet::new());
        assert!(ours.try_wait().unwrap().is_none());
        kill_those_of(&[id].into());
        assert!(!ours.wait().unwrap().success());
        assert!(others.try_wait().unwrap().is_none());
        others.kill().unwrap();
        others.wait().unwrap();
    }
}
