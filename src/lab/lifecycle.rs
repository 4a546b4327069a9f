//! Making labs and removing them.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{StreamExt, stream};
use ipnet::IpNet;
use netns::host::Process;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{
    Error, Labs, Name, Wanted,
    daemons::{self, Starter},
    folder::{Lab, Locked},
    holder, network,
    plan::{self, Join, Life, SWITCH},
    record::{Host, Record, Role, Stage},
};
use crate::{addresses::family::PerFamily, causes::causes, logging, pki};

/// How many machines join at the same time: each takes a core for a moment.
pub const AT_ONCE: usize = 16;

/// One host, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub lab: String,
    pub host: String,
    pub address: String,
    pub state: String,
}

/// Cancelled by the signals that end a program.
pub fn interruption() -> Result<CancellationToken, Error> {
    let failed = |source| Error::Run {
        program: "the handlers of signals".to_owned(),
        source,
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let interrupted = CancellationToken::new();
    let cancelled = interrupted.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(interrupted)
}

/// Makes a lab, whose nodes are all Ready when this returns, or leaves nothing. `group` names the control group of
/// what runs below a root. Returns where the kubeconfig lies.
pub async fn up(
    labs: &Labs,
    name: &Name,
    wanted: &Wanted,
    program: PathBuf,
    group: impl Fn(&Path) -> String,
) -> Result<PathBuf, Error> {
    let starter = Starter {
        program,
        interrupted: interruption()?,
    };
    let locked = labs.create(name)?;
    let made = match begin(labs, &locked, wanted, group) {
        Ok(record) => make(&locked, record, &starter).await,
        Err(error) => Err(error),
    };
    match made {
        Ok(()) => Ok(locked.lab.kubeconfig()),
        Err(error) => {
            take_back(&locked);
            Err(error)
        }
    }
}

/// Removes what was made before something failed.
fn take_back(locked: &Locked) {
    if let Err(left) = remove(locked) {
        let (flags, left) = (&locked.lab.flags, causes(&left));
        logging::note(format_args!(
            "something of it is left, and `vetch lab down{flags}` removes it: {left}"
        ));
    }
}

/// Chooses all that must be unique, and writes it down.
fn begin(
    labs: &Labs,
    locked: &Locked,
    wanted: &Wanted,
    group: impl Fn(&Path) -> String,
) -> Result<Record, Error> {
    let _choosing = labs.choosing()?;
    let mut taken = network::taken()?;
    for other in labs.all()? {
        // One whose record cannot be read has its route still.
        if let Ok(Some(record)) = Record::load(&other.record_path()) {
            taken.extend(record.range.iter());
        }
    }
    let folder = &locked.lab.dir;
    let range = plan::free_ranges(folder, wanted.ip_family, &taken)?;
    let record = plan::record(folder, range, wanted, group);
    locked.save(&record)?;
    Ok(record)
}

async fn make(locked: &Locked, mut record: Record, starter: &Starter) -> Result<(), Error> {
    let lab = &locked.lab;
    let holders = lab.holders();
    fs::create_dir(&holders).map_err(Error::io("create", holders))?;
    let switch = Arc::new(make_switch(&starter.program, lab, &record)?);
    let of = |role| {
        let hosts = record.hosts.iter().filter(move |host| host.role == role);
        hosts.cloned().collect::<Vec<Host>>()
    };
    let nodes = of(Role::Node);
    let mut join = None;
    let mut processes = Vec::new();
    for server in of(Role::Server) {
        let process = make_host(&starter.program, lab, &switch, &server, &record.range)?;
        let (program, lab_of_nodes) = (starter.program.clone(), lab.clone());
        let (switch, hosts, range) = (switch.clone(), nodes.clone(), record.range);
        let make = move |host: &Host| make_host(&program, &lab_of_nodes, &switch, host, &range);
        // Beside the server's start.
        let others = tokio::task::spawn_blocking(move || hosts.iter().map(make).collect());
        let started = starter.start(lab, &process, &server, None, &record.flags);
        let (started, others) = tokio::join!(started, others);
        let others: Result<Vec<Process>, Error> = others.unwrap_or_else(|panicked| {
            Err(Error::Run {
                program: "the hosts".to_owned(),
                source: panicked.into(),
            })
        });
        let said: String = started?;
        join = Join::find(&said);
        processes = others?;
    }
    if !nodes.is_empty() && join.is_none() {
        return Err(Error::Failed {
            host: "the server".to_owned(),
            said: "it made no token that other machines could join with".to_owned(),
        });
    }
    let join = join.as_ref();
    let starts = nodes.iter().zip(&processes).map(async |(host, process)| {
        let started = starter.start(lab, process, host, join, &record.flags);
        let started = started.await;
        if started.is_err() {
            // The others are in vain.
            starter.interrupted.cancel();
        }
        started.map(drop)
    });
    let started = stream::iter(starts).buffer_unordered(AT_ONCE);
    all_done(started.collect().await)?;
    let names: Vec<String> = record.hosts.iter().map(|host| host.name.clone()).collect();
    starter.wait_until_ready(lab, &record, &names).await?;
    if let Some(server) = record.server() {
        let kubeconfig = daemons::server_kubeconfig(lab, server)?;
        pki::write_private(&lab.kubeconfig(), &kubeconfig)?;
    }
    record.stage = Stage::Made;
    locked.save(&record)
}

/// The first failure, if there is one; what others failed for because of it says less.
pub fn all_done(results: Vec<Result<(), Error>>) -> Result<(), Error> {
    let errors = results.into_iter().filter_map(Result::err);
    let (vain, first): (Vec<Error>, Vec<Error>) =
        errors.partition(|error| matches!(error, Error::Interrupted));
    match first.into_iter().chain(vain).next() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// The network of the lab.
pub fn make_switch(program: &Path, lab: &Lab, record: &Record) -> Result<Process, Error> {
    let switch = holder::start(program, &lab.holder(SWITCH), SWITCH, None)?;
    network::make_switch(&switch, record)?;
    Ok(switch)
}

/// A machine of the lab, without anything that runs.
pub fn make_host(
    program: &Path,
    lab: &Lab,
    switch: &Process,
    host: &Host,
    range: &PerFamily<IpNet>,
) -> Result<Process, Error> {
    let run = lab.root(&host.name).join("run");
    let process = holder::start(program, &lab.holder(&host.name), &host.name, Some(&run))?;
    network::wire(switch, &process, host, range)?;
    Ok(process)
}

/// Removes a lab with all that it has on the machine, whatever state it is in.
pub fn down(labs: &Labs, name: &Name) -> Result<(), Error> {
    remove(&labs.open(name)?)
}

fn remove(locked: &Locked) -> Result<(), Error> {
    let lab = &locked.lab;
    if let Some(mut record) = Record::load(&lab.record_path())? {
        record.stage = Stage::Removing;
        locked.save(&record)?;
        network::remove_link(&record.link)?;
        let hosts = record.hosts.iter().map(|host| host.name.as_str());
        let files: Vec<PathBuf> = hosts.chain([SWITCH]).map(|host| lab.holder(host)).collect();
        holder::kill(&files)?;
        for host in &record.hosts {
            remove_group(host)?;
        }
    }
    // Without a record nothing was made but files.
    locked.remove_files()
}

/// What the pods of a host were in, once they are dead.
pub fn remove_group(host: &Host) -> Result<(), Error> {
    let hierarchy = cgroups::Hierarchy::detect()?;
    let group = cgroups::Group::open(&hierarchy, &host.group)?;
    group.kill_all()?;
    Ok(group.remove()?)
}

/// All hosts of all labs, or of one.
pub fn list(labs: &Labs, only: Option<&Name>) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for lab in labs.all()? {
        if only.is_some_and(|only| *only != lab.name) {
            continue;
        }
        let row = |host: &str, address: Option<PerFamily<IpAddr>>, state: String| Row {
            lab: lab.name.to_string(),
            host: host.to_owned(),
            address: address.map_or_else(|| "-".to_owned(), |address| address.to_string()),
            state,
        };
        match lab.made() {
            Ok(record) => {
                for host in &record.hosts {
                    let state = state(host, daemons::life(&lab, host)?);
                    rows.push(row(&host.name, Some(host.address), state));
                }
            }
            // It was removed in this moment.
            Err(Error::NoLab { .. }) => {}
            Err(Error::HalfMade { .. }) => rows.push(row("-", None, "half made".to_owned())),
            Err(error) => rows.push(row("-", None, causes(&error))),
        }
    }
    Ok(rows)
}

fn state(host: &Host, life: Life) -> String {
    match life {
        _ if host.faults.killed => host.faults.to_string(),
        Life::None => "off".to_owned(),
        Life::Bare => "without a daemon".to_owned(),
        Life::Daemon => host.faults.to_string(),
    }
}
