//! Running a plugin.
//!
//! Always true: a run ends by its deadline, keeps no more of what it is told than the limit, and leaves no process
//! of the plugin's process group, however it ends, also when whoever waits for it does so no more.

use std::{
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

use super::{
    plan::{Invocation, Verb},
    result,
};

/// What a plugin may write to one of its outputs, in bytes.
pub const MAX_OUTPUT: usize = 1 << 20;
/// What is still read after the plugin has ended, when somebody else holds its outputs open.
const LATE_OUTPUT: Duration = Duration::from_millis(200);
/// What is told of what a plugin complains.
const MAX_TOLD: usize = 1024;

/// Why a run came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("failed to find plugin {plugin:?} in path [{}]", list(folders))]
    NotFound {
        plugin: String,
        folders: Vec<PathBuf>,
    },
    #[error("start it")]
    Start(#[source] io::Error),
    #[error("wait for it")]
    Wait(#[source] io::Error),
    #[error("it had not ended after {0:?}, and was killed")]
    Late(Duration),
    #[error("it wrote more than {MAX_OUTPUT} bytes, and was killed")]
    Verbose,
    #[error("{0}")]
    Told(result::Failure),
    #[error("{status}{}", said(complaint))]
    Exit {
        status: ExitStatus,
        complaint: String,
    },
    #[error(transparent)]
    Garbage(#[from] result::Garbage),
}

/// A failed run, as everywhere in Kubernetes: `plugin type="bridge" failed (add): ...`.
#[derive(Debug, thiserror::Error)]
#[error("plugin type={plugin:?} failed ({})", verb.name().to_lowercase())]
pub struct Failed {
    pub plugin: String,
    pub verb: Verb,
    #[source]
    pub failure: Failure,
}

fn list(folders: &[PathBuf]) -> String {
    let folders: Vec<String> = folders
        .iter()
        .map(|one| one.display().to_string())
        .collect();
    folders.join(" ")
}

fn said(complaint: &str) -> String {
    match complaint.is_empty() {
        true => String::new(),
        false => format!(": {complaint}"),
    }
}

/// Runs the plugin to its end; what it has answered, if it went well.
pub async fn run(
    folders: &[PathBuf],
    invocation: &Invocation,
    deadline: Duration,
) -> Result<Vec<u8>, Failed> {
    let failed = |failure| Failed {
        plugin: invocation.plugin.clone(),
        verb: invocation.verb,
        failure,
    };
    let program = find(folders, &invocation.plugin).ok_or_else(|| {
        failed(Failure::NotFound {
            plugin: invocation.plugin.clone(),
            folders: folders.to_owned(),
        })
    })?;
    let run = run_program(&program, invocation, deadline);
    run.await.map_err(failed)
}

fn find(folders: &[PathBuf], plugin: &str) -> Option<PathBuf> {
    let mut all = folders.iter().map(|folder| folder.join(plugin));
    all.find(|program| program.is_file())
}

/// The plugin's process group, which goes with this. Until then the plugin must not be waited for: its number
/// could be another's.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        match killpg(self.0, Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => tracing::warn!(%error, "processes of a plugin may stay"),
        }
    }
}

async fn run_program(
    program: &Path,
    invocation: &Invocation,
    deadline: Duration,
) -> Result<Vec<u8>, Failure> {
    let mut child = Command::new(program)
        .env_clear()
        .envs(
            invocation
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        )
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(Failure::Start)?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let pid = Pid::from_raw(pid.ok_or_else(|| Failure::Start(io::ErrorKind::NotFound.into()))?);
    let group = Group(pid);
    let ended = tokio::time::timeout(deadline, heard(&mut child, pid, &invocation.input)).await;
    drop(group);
    let status = child.wait().await.map_err(Failure::Wait)?;
    let heard = ended.map_err(|_| Failure::Late(deadline))??;
    judged(status, heard)
}

/// What a plugin has said.
#[derive(Default)]
struct Heard {
    answer: Vec<u8>,
    complaint: Vec<u8>,
}

/// Tells the plugin its input and hears it to its end.
async fn heard(child: &mut Child, pid: Pid, input: &[u8]) -> Result<Heard, Failure> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let mut heard = Heard::default();
    let exit = {
        let tell = async {
            if let Some(mut stdin) = stdin {
                // One that does not listen says in the end what it lacks.
                let _ = stdin.write_all(input).await;
            }
            Ok(())
        };
        let outputs = async {
            tokio::try_join!(
                tell,
                read(stdout, &mut heard.answer),
                read(stderr, &mut heard.complaint),
            )
        };
        let mut outputs = std::pin::pin!(outputs);
        let exited = tokio::task::spawn_blocking(move || exited(pid));
        let mut exited = std::pin::pin!(exited);
        tokio::select! {
            all = &mut outputs => {
                all?;
                exited.await
            }
            exit = &mut exited => {
                // Who still holds the outputs goes with the group.
                if let Ok(all) = tokio::time::timeout(LATE_OUTPUT, outputs).await {
                    all?;
                }
                exit
            }
        }
    };
    exit.unwrap_or_else(|error| Err(error.into()))
        .map_err(Failure::Wait)?;
    Ok(heard)
}

/// Returns once the process has ended; its number stays its own.
fn exited(pid: Pid) -> io::Result<()> {
    loop {
        match waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Err(Errno::EINTR) => {}
            // Whoever has given up waiting has had it reaped.
            Ok(_) | Err(Errno::ECHILD) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

async fn read(output: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) -> Result<(), Failure> {
    let Some(output) = output else { return Ok(()) };
    let most = MAX_OUTPUT as u64 + 1;
    // A read that fails is an output that has ended.
    let _ = output.take(most).read_to_end(into).await;
    match into.len() > MAX_OUTPUT {
        true => Err(Failure::Verbose),
        false => Ok(()),
    }
}

fn judged(status: ExitStatus, heard: Heard) -> Result<Vec<u8>, Failure> {
    if status.success() {
        return Ok(heard.answer);
    }
    if let Some(told) = result::failure(&heard.answer) {
        return Err(Failure::Told(told));
    }
    let complaint = match heard.complaint.is_empty() {
        true => heard.answer,
        false => heard.complaint,
    };
    Err(Failure::Exit {
        status,
        complaint: shown(&complaint),
    })
}

/// The end of what a plugin said, on one line.
fn shown(said: &[u8]) -> String {
    let from = said.len().saturating_sub(MAX_TOLD);
    let text = String::from_utf8_lossy(said.get(from..).unwrap_or_default());
    let is_plain = |character: char| !character.is_control();
    let plain = text
        .chars()
        .map(|one| if is_plain(one) { one } else { ' ' });
    let plain: String = plain.collect();
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, time::Instant};

    use super::*;
    use crate::causes::causes;

    fn plugin(folder: &Path, script: &str) -> Invocation {
        let path = folder.join("plugin");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Invocation {
            plugin: "plugin".into(),
            verb: Verb::Add,
            environment: vec![
                ("PATH", "/usr/bin:/bin".into()),
                ("CNI_COMMAND", "ADD".into()),
            ],
            input: vec![b'x'; 200_000],
        }
    }

    async fn outcome(script: &str, deadline: Duration) -> String {
        let folder = tempfile::tempdir().unwrap();
        let invocation = plugin(folder.path(), script);
        match run(&[folder.path().to_owned()], &invocation, deadline).await {
            Ok(answer) => String::from_utf8(answer).unwrap(),
            Err(error) => causes(&error),
        }
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn what_plugins_come_to() {
        for (script, want) in [
            ("wc -c", "200000"),
            ("cat >/dev/null; env | sort | head -3", "CNI_COMMAND=ADD"),
            // It need not read what it is told.
            ("echo fine", "fine"),
            (
                r#"echo '{"code": 11, "msg": "try later", "details": "busy"}'; exit 1"#,
                "plugin type=\"plugin\" failed (add): try later; busy (code 11)",
            ),
            ("exit 1", "failed (add): exit status: 1"),
            (
                "echo oh no >&2; echo indeed >&2; exit 3",
                "failed (add): exit status: 3: oh no indeed",
            ),
            (
                "echo garbage; exit 1",
                "failed (add): exit status: 1: garbage",
            ),
            ("kill -9 $$", "failed (add): signal: 9 (SIGKILL)"),
            ("cat /dev/zero", "wrote more than 1048576 bytes"),
            ("cat /dev/zero >&2", "wrote more than 1048576 bytes"),
        ] {
            let got = outcome(script, LONG).await;
            assert!(got.contains(want), "{script}: {got}");
        }
        let folder = tempfile::tempdir().unwrap();
        let invocation = plugin(folder.path(), "");
        let empty = tempfile::tempdir().unwrap();
        let error = run(&[empty.path().to_owned()], &invocation, LONG).await;
        let error = causes(&error.unwrap_err());
        let want = "failed to find plugin \"plugin\" in path [/";
        assert!(error.contains(want), "{error}");
        fs::set_permissions(
            folder.path().join("plugin"),
            fs::Permissions::from_mode(0o644),
        )
        .unwrap();
        let error = run(&[folder.path().to_owned()], &invocation, LONG).await;
        assert!(matches!(error.unwrap_err().failure, Failure::Start(_)));
    }

    fn is_running(marker: &str) -> bool {
        fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(marker)
        })
    }

    async fn gone(marker: &str) {
        let end = Instant::now() + LONG;
        while is_running(marker) {
            assert!(Instant::now() < end, "{marker} still runs");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn nothing_stays_of_a_plugin() {
        let marker = |number: u32| format!("{}.{number}", 900_000_000 + std::process::id());
        // One that hangs, with its children.
        let one = marker(1);
        let script = format!("sleep {one} & sleep {one}");
        let got = outcome(&script, Duration::from_millis(300)).await;
        assert!(got.contains("had not ended after 300ms"), "{got}");
        gone(&one).await;
        // One that ends and leaves a child with its outputs.
        let two = marker(2);
        let began = Instant::now();
        let got = outcome(&format!("sleep {two} & echo done"), LONG).await;
        assert_eq!(got.trim(), "done");
        assert!(began.elapsed() < LONG / 2);
        gone(&two).await;
        // One that nobody waits for any more.
        let three = marker(3);
        let folder = tempfile::tempdir().unwrap();
        let invocation = plugin(folder.path(), &format!("sleep {three} & sleep {three}"));
        let folders = [folder.path().to_owned()];
        let run = run(&folders, &invocation, LONG);
        let started = async {
            let end = Instant::now() + LONG;
            while !is_running(&three) {
                assert!(Instant::now() < end, "it did not start");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            got = run => panic!("{got:?}"),
            () = started => {}
        }
        gone(&three).await;
    }
}
