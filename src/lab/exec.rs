//! Programs that somebody runs on a host of a lab.

use std::{ffi::OsString, os::unix::process::ExitStatusExt, path::PathBuf};

use nix::sys::signal::Signal;
use tokio::{
    process::Command,
    runtime::Handle,
    signal::unix::{SignalKind, signal},
};

use super::{Error, Labs, Name, faults::living, plan::SWITCH};

/// Where a program looks for the cluster.
const KUBECONFIG: &str = "KUBECONFIG";

/// Runs a program on a host, with this one's input and output, and returns its exit code: 128 and the signal's number
/// for one that a signal has ended, as shells do it.
pub async fn exec(labs: &Labs, name: &Name, host: &str, command: &[OsString]) -> Result<u8, Error> {
    let lab = labs.find(name)?;
    let record = lab.made()?;
    if host != SWITCH {
        record.host(host)?;
    }
    let process = living(&lab, host)?;
    let Some((program, arguments)) = command.split_first() else {
        return Ok(0);
    };
    let failed = |source| Error::Run {
        program: format!("{} on {host}", program.display()),
        source,
    };
    let watch = |kind| signal(kind).map_err(failed);
    // What a terminal sends comes to the program too, and that says what becomes of it.
    let _terminal = [SignalKind::interrupt(), SignalKind::quit()]
        .into_iter()
        .map(watch)
        .collect::<Result<Vec<_>, _>>()?;
    let (mut terminate, mut hang_up) = (
        watch(SignalKind::terminate())?,
        watch(SignalKind::hangup())?,
    );

    let here: Option<PathBuf> = std::env::current_dir().ok();
    let runtime = Handle::current();
    let spawn = || {
        let _in = runtime.enter();
        let mut command = Command::new(program);
        command.args(arguments).env(KUBECONFIG, lab.kubeconfig());
        // The same folder, where the host sees it too.
        if let Some(here) = here.filter(|here| here.is_dir()) {
            command.current_dir(here);
        }
        command.spawn()
    };
    let mut child = process.run(spawn)?.map_err(failed)?;
    let forward = |child: &tokio::process::Child, signal| {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid {
            // It may have ended in this moment.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
        }
    };
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.map_err(failed)?,
            _ = terminate.recv() => forward(&child, Signal::SIGTERM),
            _ = hang_up.recv() => forward(&child, Signal::SIGHUP),
        }
    };
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    Ok(code
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX))
}
