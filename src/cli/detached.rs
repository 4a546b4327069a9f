//! A daemon in the background: the same command again, in a session of its own.

use std::{
    fs::File,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    process::{Command, Stdio},
    time::Duration,
};

use super::{
    Error,
    notify::{Listener, Message, VARIABLE},
    paths::Paths,
};
use crate::logging;

/// Longer than between two looks of an idle node, so that each look finds the threads of the one before.
const KEEP_THREADS: Duration = Duration::from_secs(30);

/// Runs a daemon to its end.
pub fn run_daemon(daemon: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(KEEP_THREADS)
        .build()?;
    let result = runtime.block_on(daemon);
    // Tasks that still wait for something must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Starts the same command again in a session of its own and waits until it is ready. Returns the command
/// that makes another machine a node, if it said one.
pub fn start(paths: &Paths) -> Result<Option<String>, Error> {
    paths.make()?;
    let notices = tempfile::tempdir_in(&paths.run)?;
    let socket = notices.path().join("notify");
    let listener = Listener::bind(&socket)?;
    let log = File::options()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(paths.daemon_log())?;
    let before = log.metadata()?.len();
    let arguments = std::env::args_os()
        .skip(1)
        .filter(|argument| argument != "--detach");
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .env(VARIABLE, &socket)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()?;
    let (ended, end) = std::sync::mpsc::channel();
    let told = ended.clone();
    std::thread::spawn(move || {
        while let Ok(message) = listener.recv() {
            if told.send(Some(message)).is_err() {
                return;
            }
        }
    });
    std::thread::spawn(move || {
        let _ = child.wait();
        let _ = ended.send(None);
    });
    let mut join = None;
    loop {
        match end.recv()? {
            Some(Message::Status(status)) => logging::note(format_args!("{status} ...")),
            Some(Message::Join(command)) => join = Some(command),
            Some(Message::Ready) => return Ok(join),
            None => return Err(failure(paths, before)),
        }
    }
}

/// What the daemon said last before it ended.
fn failure(paths: &Paths, before: u64) -> Error {
    let text = std::fs::read(paths.daemon_log()).unwrap_or_default();
    let said = text
        .get(usize::try_from(before).unwrap_or(0)..)
        .unwrap_or_default();
    let said = String::from_utf8_lossy(said);
    let last = said.lines().last().unwrap_or_default();
    format!("it did not start: {}", last.trim_start_matches("vetch: ")).into()
}
