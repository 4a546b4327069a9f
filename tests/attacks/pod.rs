//! Programs of the test in a pod's network namespace: what a process in the pod could do with the
//! capabilities that it has, without a program in its image.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::lab::{Cluster, text, until};

/// A running pod that does nothing.
pub struct Pod<'a> {
    cluster: &'a Cluster,
    pub address: String,
    process: i32,
}

impl<'a> Pod<'a> {
    /// In the namespace `default`, with default capabilities.
    pub fn start(cluster: &'a Cluster, name: &str) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        // Nobody else on this machine sleeps as long.
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let seconds = format!("{}{number:03}", 10_000 + std::process::id());
        cluster.ok(&format!(
            "run {name} --image=busybox:1 --image-pull-policy=Never -- sleep {seconds}"
        ));
        cluster.ready(name);
        let mut process = None;
        until("the pod's process is there", || {
            process = find(&["sleep", &seconds]);
            process.is_some()
        });
        Self {
            cluster,
            address: cluster.field(&format!("pod/{name}"), ".status.podIP"),
            process: process.unwrap(),
        }
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.process))
            .args(["--net", "--", program]);
        command
    }

    /// A line of shell with the pod's network; its output.
    pub fn sh(&self, line: &str) -> String {
        let output = self.command("sh").args(["-c", line]).output().unwrap();
        assert!(output.status.success(), "{line}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub fn mac(&self) -> String {
        self.sh("ip -o link show eth0 | sed 's/.*ether //; s/ .*//'")
    }

    /// The host's end of the pod's wire: its name.
    pub fn wire(&self) -> String {
        let index = self.sh("ip -o link show eth0 | sed 's/.*eth0@if//; s/:.*//'");
        let line = format!("ip -o link | grep '^{index}:' | sed 's/^[0-9]*: //; s/@.*//'");
        self.cluster.host.sh(&line).trim().to_owned()
    }
}

/// The process with exactly this command line.
fn find(arguments: &[&str]) -> Option<i32> {
    let wanted: String = arguments.iter().map(|word| format!("{word}\0")).collect();
    std::fs::read_dir("/proc").unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        let found = std::fs::read(path.join("cmdline")).ok()?;
        (found == wanted.as_bytes()).then(|| path.file_name()?.to_str()?.parse().ok())?
    })
}

/// A script beside this file.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/attacks")
        .join(name)
}

/// A script that says `ready` and goes on; ended on drop.
pub struct Running {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        Self { child, output }
    }

    pub fn signal(&self, signal: Signal) {
        let process = Pid::from_raw(self.child.id().try_into().unwrap());
        kill(process, signal).unwrap();
    }

    /// What it says until it ends by itself.
    pub fn output(mut self) -> String {
        let mut text = String::new();
        self.output.read_to_string(&mut text).unwrap();
        text.trim().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
