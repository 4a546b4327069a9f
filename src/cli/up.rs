//! `vetch up`.

use std::{
    fs::File,
    io::Write,
    num::NonZeroU32,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use ipnet::IpNet;

use super::{
    Error, check,
    daemon::{self, Config},
    need_root,
    node::{self, PodLimits, Ranges},
    node_name,
    notify::{Listener, Message, Notifier, VARIABLE},
    paths::{Paths, RootArg},
    registries::Registries,
    reservations::Reservations,
};
use crate::{
    apiserver::admission::{Exemptions, ExternalIps},
    kubelet::container::SwapBehavior,
    logging,
};

/// Longer than between two looks of an idle node, so that each look finds the threads of the one before.
const KEEP_THREADS: Duration = Duration::from_secs(30);

/// Start the cluster on this machine
#[derive(clap::Args)]
pub struct Up {
    #[command(flatten)]
    root: RootArg,
    /// Go to the background once the cluster can be used
    #[arg(long)]
    detach: bool,
    /// Port of the API server
    #[arg(long, default_value_t = 6443, value_name = "PORT")]
    port: u16,
    /// Start a small application too, and show how it answers
    #[arg(long)]
    demo: bool,
    /// Range of service addresses [default: 10.96.0.0/12; a part of it below another --root]
    #[arg(long, value_name = "CIDR")]
    service_cidr: Option<IpNet>,
    /// Range of this node's pod addresses [default: 10.42.0.0/24; another /24 below another --root]
    #[arg(long, value_name = "CIDR")]
    pod_cidr: Option<IpNet>,
    /// This node's name [default: the one it had before, or the host's]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Port of the node's own API; 0 for any that is free
    #[arg(long, default_value_t = 10250, value_name = "PORT")]
    kubelet_port: u16,
    /// How many processes and threads a pod may have [default: as many as the node]
    #[arg(long, value_name = "N")]
    pod_pids_limit: Option<NonZeroU32>,
    /// How much all objects may take; writes that add to them are refused beyond
    #[arg(long, default_value = "256Mi", value_name = "SIZE", value_parser = size)]
    store_quota: usize,
    /// Refuse Services that name external addresses to take traffic for
    #[arg(long)]
    deny_service_external_ips: bool,
    /// How much swap pods may use whose annotations do not say so themselves
    #[arg(long, value_enum, default_value_t = Swap::None, value_name = "HOW")]
    swap: Swap,
    #[command(flatten)]
    reservations: Reservations,
    #[command(flatten)]
    registries: Registries,
    /// Exempt from Pod Security: namespace=NAME, user=NAME or runtime-class=NAME; may be repeated
    #[arg(long, value_name = "WHAT=NAME", value_parser = exemption)]
    pod_security_exempt: Vec<Exemption>,
}

/// One exemption from Pod Security.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Exemption {
    Namespace(String),
    User(String),
    RuntimeClass(String),
}

fn exemption(text: &str) -> Result<Exemption, String> {
    let (what, name) = text.split_once('=').unwrap_or((text, ""));
    let name = name.to_owned();
    match what {
        _ if name.is_empty() => Err("must be WHAT=NAME".to_owned()),
        "namespace" => Ok(Exemption::Namespace(name)),
        "user" => Ok(Exemption::User(name)),
        "runtime-class" => Ok(Exemption::RuntimeClass(name)),
        other => Err(format!(
            "{other:?} is not one of namespace, user, runtime-class"
        )),
    }
}

fn exemptions(given: &[Exemption]) -> Exemptions {
    let mut all = Exemptions::default();
    for one in given.iter().cloned() {
        match one {
            Exemption::Namespace(name) => all.namespaces.push(name),
            Exemption::User(name) => all.users.push(name),
            Exemption::RuntimeClass(name) => all.runtime_classes.push(name),
        }
    }
    all
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Swap {
    /// No swap
    None,
    /// Burstable pods get of the swap what their request is of the memory
    Limited,
}

impl From<Swap> for SwapBehavior {
    fn from(swap: Swap) -> Self {
        match swap {
            Swap::None => Self::NoSwap,
            Swap::Limited => Self::LimitedSwap,
        }
    }
}

impl Up {
    pub fn run(self) -> Result<ExitCode, Error> {
        need_root("up")?;
        let paths = self.root.paths()?;
        let resources = self.reservations.settings()?;
        let registries = self.registries.settings(&paths)?;
        let images = self.registries.images(&paths)?;
        if let Some(obstacles) = check::obstacles() {
            return Err(obstacles.into());
        }
        let recorded = node::recorded_name(&paths)?;
        let given = self.node_name.as_deref();
        let node_name = node_name::choose(given, recorded.as_deref(), &daemon::hostname())?;
        if self.detach {
            return self.start_detached(&paths);
        }
        logging::start();
        let ranges = Ranges::of(&paths);
        let config = Config {
            paths,
            port: self.port,
            services: self.service_cidr.unwrap_or(ranges.services),
            pod_cidr: self.pod_cidr.unwrap_or(ranges.pods),
            node_name,
            kubelet_port: self.kubelet_port,
            limits: PodLimits {
                swap: self.swap.into(),
                processes: self.pod_pids_limit,
            },
            store_quota: self.store_quota,
            resources,
            registries,
            images,
            external_ips: match self.deny_service_external_ips {
                true => ExternalIps::Denied,
                false => ExternalIps::Allowed,
            },
            exemptions: exemptions(&self.pod_security_exempt),
            root_flag: self.root.flag(),
            demo: self.demo,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_keep_alive(KEEP_THREADS)
            .build()?;
        let notifier = Notifier::from_env();
        let result = runtime.block_on(daemon::run(config, &notifier));
        // Tasks that still wait for something must not keep the process.
        runtime.shutdown_timeout(Duration::from_secs(1));
        result?;
        Ok(ExitCode::SUCCESS)
    }

    /// Starts the same command again in a session of its own and waits until it is ready.
    fn start_detached(&self, paths: &Paths) -> Result<ExitCode, Error> {
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
        loop {
            match end.recv()? {
                Some(Message::Status(status)) => logging::note(format_args!("{status} ...")),
                Some(Message::Ready) => {
                    let kubeconfig = paths.kubeconfig();
                    let kubeconfig = kubeconfig.display();
                    writeln!(
                        std::io::stdout(),
                        "The cluster is up.\n  export KUBECONFIG={kubeconfig}\n  kubectl get nodes"
                    )?;
                    return Ok(ExitCode::SUCCESS);
                }
                None => return Err(failure(paths, before)),
            }
        }
    }
}

/// A size as Kubernetes writes it: `256Mi`.
fn size(text: &str) -> Result<usize, String> {
    /// Less would not hold what every cluster has.
    const LEAST: usize = 16 << 20;
    let quantity = proto::quantity::Quantity::parse(text).map_err(|error| error.to_string())?;
    match usize::try_from(quantity.value()) {
        Ok(bytes) if bytes >= LEAST => Ok(bytes),
        _ => Err("must be at least 16Mi".to_owned()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exemptions_are_told_apart() {
        let given: Vec<Exemption> = ["namespace=kube-system", "user=jane", "runtime-class=vm"]
            .into_iter()
            .map(|text| exemption(text).unwrap())
            .collect();
        let all = exemptions(&given);
        assert_eq!(all.namespaces, ["kube-system"]);
        assert_eq!(all.users, ["jane"]);
        assert_eq!(all.runtime_classes, ["vm"]);
        for bad in ["kube-system", "namespace=", "group=x"] {
            assert!(exemption(bad).is_err(), "{bad}");
        }
    }
}
