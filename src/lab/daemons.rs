//! What runs on the hosts of a lab: this program, started as a user would start it.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use futures::future::join_all;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::wait::await_condition,
};
use netns::host::Process;
use nix::fcntl::{Flock, FlockArg};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    runtime::Handle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Error, Labs, Name,
    folder::Lab,
    holder,
    plan::{self, Join, Life},
    record::{Host, Record},
};
use crate::backoff::Backoff;

/// `vetch up` and `vetch agent` give up on their own before.
const START_WITHIN: Duration = Duration::from_secs(120);
const READY_WITHIN: Duration = Duration::from_secs(120);
/// Between two tries to reach a server that does not answer.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How many lines of a failed command are repeated.
const LINES: usize = 5;

/// Who starts daemons, and until when.
#[derive(Clone, Debug)]
pub struct Starter {
    pub program: PathBuf,
    /// Cancelled once somebody wants no lab any more.
    pub interrupted: CancellationToken,
}

impl Starter {
    /// Starts the daemon of a host, and waits until it says that it is ready. Returns what it printed.
    pub async fn start(
        &self,
        lab: &Lab,
        process: &Process,
        host: &Host,
        join: Option<&Join>,
        flags: &[String],
    ) -> Result<String, Error> {
        let arguments = plan::arguments(&lab.root(&host.name), host, join, flags);
        let output = self.run(process, &host.name, &arguments).await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(Error::Failed {
                host: host.name.clone(),
                said: last_lines(&text(&output.stderr)),
            }),
        }
    }

    async fn run(
        &self,
        process: &Process,
        host: &str,
        arguments: &[String],
    ) -> Result<Output, Error> {
        let failed = |source| Error::Run {
            program: format!("{} on {host}", self.program.display()),
            source,
        };
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let runtime = Handle::current();
        let spawn = || {
            let _in = runtime.enter();
            command.spawn()
        };
        let mut child = process.run(spawn)?.map_err(failed)?;
        let end = timeout(START_WITHIN, output_of(&mut child));
        let error = match self.interrupted.run_until_cancelled(end).await {
            Some(Ok(output)) => return output.map_err(failed),
            Some(Err(_)) => Error::Late {
                what: format!("the start of {host}"),
                longest: START_WITHIN,
            },
            None => Error::Interrupted,
        };
        // A host ends only once all its processes were waited for by whoever has started them.
        let _ = child.kill().await;
        Err(error)
    }

    /// Waits until all these nodes are Ready, as this machine sees it.
    pub async fn wait_until_ready(
        &self,
        lab: &Lab,
        record: &Record,
        hosts: &[String],
    ) -> Result<(), Error> {
        let Some(server) = record.server() else {
            return Ok(());
        };
        let client = client(&server_kubeconfig(lab, server)?).await;
        let client = client.map_err(|error| Error::NoCluster(*server.address.primary(), error))?;
        let ready = join_all(hosts.iter().map(|host| {
            let client = client.clone();
            async move {
                let within = timeout(READY_WITHIN, ready(client, host)).await;
                within.err().map(|_| host.clone())
            }
        }));
        let Some(late) = self.interrupted.run_until_cancelled(ready).await else {
            return Err(Error::Interrupted);
        };
        let late: Vec<String> = late.into_iter().flatten().collect();
        match late.is_empty() {
            true => Ok(()),
            false => Err(Error::NotReady {
                hosts: late,
                longest: READY_WITHIN,
            }),
        }
    }
}

/// All that it says until it ends.
async fn output_of(child: &mut Child) -> io::Result<Output> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (status, stdout, stderr) = tokio::try_join!(child.wait(), read(stdout), read(stderr))?;
    Ok(Output {
        status,
        stdout,
        stderr,
    })
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut said = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut said).await?;
    }
    Ok(said)
}

/// Resolves when that node is Ready.
async fn ready(client: Client, host: &str) {
    let nodes: Api<Node> = Api::all(client);
    let mut wait = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    while let Err(error) = await_condition(nodes.clone(), host, is_ready).await {
        tracing::debug!(%error, host, "whether the node is ready is not known");
        tokio::time::sleep(wait.next_wait()).await;
    }
}

fn is_ready(node: Option<&Node>) -> bool {
    let conditions = node.and_then(|node| node.status.as_ref()?.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|one| one.type_ == "Ready" && one.status == "True")
}

async fn client(kubeconfig: &str) -> Result<Client, Box<dyn std::error::Error + Send + Sync>> {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// The administrator's kubeconfig, as it is of use on this machine and on every host.
pub fn kubeconfig(labs: &Labs, name: &Name) -> Result<String, Error> {
    let lab = labs.find(name)?;
    let record = lab.made()?;
    match record.server() {
        Some(server) => server_kubeconfig(&lab, server),
        None => Err(lab.missing()),
    }
}

pub fn server_kubeconfig(lab: &Lab, server: &Host) -> Result<String, Error> {
    let path = lab.root(&server.name).join("etc/admin.kubeconfig");
    let text = fs::read_to_string(&path).map_err(Error::io("read", path))?;
    Ok(plan::from_outside(&text, *server.address.primary()))
}

/// What there is of a host.
pub fn life(lab: &Lab, host: &Host) -> Result<Life, Error> {
    let Some(process) = holder::find(&lab.holder(&host.name))? else {
        return Ok(Life::None);
    };
    let Ok(file) = File::open(lock_file(lab, &process, host)) else {
        return Ok(Life::Bare);
    };
    // A daemon has it for itself as long as it lives.
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(Life::Bare),
        Err(_) => Ok(Life::Daemon),
    }
}

/// The daemon's process; `None` where none runs.
pub fn daemon(lab: &Lab, holder: &Process, host: &Host) -> Result<Option<Process>, Error> {
    let path = lock_file(lab, holder, host);
    let inner = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        inner => inner.map_err(Error::io("read", path))?,
    };
    let Ok(inner) = inner.trim().parse() else {
        return Ok(None);
    };
    let space = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let wanted = space(&holder.pid().to_string());
    let all = fs::read_dir("/proc").map_err(Error::io("list", "/proc"))?;
    let names = all.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let numbers = names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let found = numbers.filter(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status"));
        status.is_ok_and(|status| plan::is_called(&status, inner)) && space(pid) == wanted
    });
    let pid = found.filter_map(|pid| pid.parse().ok()).next();
    match pid.map(Process::open).transpose() {
        Err(error) if error.is_absent() => Ok(None),
        process => Ok(process?),
    }
}

/// Seen from outside of the host, where something is mounted.
fn lock_file(lab: &Lab, holder: &Process, host: &Host) -> PathBuf {
    let mut path = OsString::from(format!("/proc/{}/root", holder.pid()));
    path.push(lab.root(&host.name));
    Path::new(&path).join("run/vetch.lock")
}

fn last_lines(said: &str) -> String {
    let lines: Vec<&str> = said.lines().collect();
    let from = lines.len().saturating_sub(LINES);
    lines.get(from..).unwrap_or_default().join("\n")
}
