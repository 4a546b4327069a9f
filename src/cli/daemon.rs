//! What runs while the cluster is up: every part, put together and taken down in order.

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use kube::Client;
use nix::fcntl::{Flock, FlockArg};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::mpsc,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    ClusterAuthority, Error, agent,
    cluster_dns::ClusterDns,
    control::{self, Outcome, Reply, Request},
    demo, disable, image,
    node::{self, Node},
    node_address,
    node_args::Machine,
    node_role,
    notify::Notifier,
    paths::Paths,
    pod_encryption::{self, PodEncryption},
    preload, token,
};
use crate::{
    accepting,
    addresses::{
        family::{Family, PerFamily},
        pool::Pool,
    },
    apiserver::{
        admission::{self, Exemptions, ExternalIps, Late, ReservedAddress, ServiceConfig},
        authn::{Reference, Subject, TokenIssuer},
        request::User,
        special,
        start::{Config as ApiConfig, Handle, own_user},
    },
    controllers,
    informer::Informers,
    pki::{self, Identity, Leaf, Live, Pki, kubeconfig},
    runtime::image::Images,
    scheduler,
    store::embedded::{Embedded, Quota},
    supervision::{Parts, Policy},
};

const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

/// Where Events lie in the store.
const EVENTS: &str = "/registry/events/";

const LOCK_WITHIN: Duration = Duration::from_millis(500);
/// The same if that daemon is about to end.
const DYING_WITHIN: Duration = Duration::from_secs(10);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// All settings, checked before anything starts.
#[derive(Clone, Debug)]
pub struct Config {
    pub machine: Machine,
    pub port: u16,
    pub services: PerFamily<IpNet>,
    /// Of this node.
    pub pod_cidrs: PerFamily<IpNet>,
    /// How packets of pods go from machine to machine.
    pub pod_encryption: PodEncryption,
    /// Bytes that the store may hold.
    pub store_quota: usize,
    /// Whether Services may name addresses to take traffic for.
    pub external_ips: ExternalIps,
    /// Addresses for load balancers; it may have none.
    pub pool: Pool,
    /// From Pod Security.
    pub exemptions: Exemptions,
    /// Make the demo's application before saying that the cluster is ready.
    pub demo: bool,
}

/// TLS needs to know which cryptography to use before its first use anywhere.
pub fn install_crypto() {
    // A second call finds it installed, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Runs until asked to stop, by signal or through the control socket.
pub async fn run(config: Config, notifier: &Notifier) -> Result<(), Error> {
    install_crypto();
    raise_open_files();
    super::oom::be_spared();
    config.machine.paths.make()?;
    // Held to the process's very end: whoever waits for it then finds the store free as well.
    std::mem::forget(lock(&config.machine.paths, &config.machine.root_flag).await?);
    let listener = listen(config.port)?;
    let port = listener.local_addr()?.port();

    agent::refuse_member(&config.machine)?;

    say(notifier, "opening the store");
    // A flood of Events must not take the place of what they are about.
    let quota = Quota::new(config.store_quota).with_share(EVENTS, config.store_quota / 8);
    let store = Embedded::open_with(&config.machine.paths.state.join("store"), quota)?;
    let store = Arc::new(store);
    let pki = Pki::open(&config.machine.paths.state.join("pki"))?;
    let families: Vec<Family> = config.pod_cidrs.families().collect();
    let chosen = config.machine.described.addresses.as_ref();
    let addresses = node_address::addresses(&families, chosen)?;
    let address = *addresses.primary();

    say(notifier, "starting the API server");
    let api = ApiConfig {
        advertise: address,
        port,
        services: config.services,
    };
    // What the others need ends last: the store and its cache.
    let parts = Parts::default();
    let handle = Handle::with_parts(api, store, &pki, special::of_pods(), &parts).await?;
    let late = Arc::new(Late::default());
    let objects: Arc<dyn crate::apiserver::objects::Objects> = handle.server.clone();
    late.set(&objects);
    let services = ServiceConfig {
        cidrs: config.services.iter().copied().collect(),
        reserved_addresses: reserved_addresses(&config.services)?,
        node_ports: NODE_PORTS,
        reserved_ports: vec![port, config.machine.kubelet_port],
        external_ips: config.external_ips,
    };
    handle
        .start(admission::chain(late, services, config.exemptions.clone()))
        .await?;
    let services = config.services.iter().filter_map(node::gateway);
    let known_by: Vec<IpAddr> = addresses
        .iter()
        .chain(&node::LOOPBACK)
        .copied()
        .chain(services)
        .collect();
    let leaf = Leaf::api_server(&config.machine.name, &known_by, &[]);
    let tls = Arc::new(pki::server_config(&pki, leaf)?);
    let admin = keep_kubeconfig(&config.machine.paths, &pki, port)?;
    let node = node_config(&config, addresses, port);
    let identity = node::Identity::beside(&node, &handle, &pki)?;

    let running = parts.group();
    running.start_endless(
        "part/allocator",
        Policy::Restart,
        crate::allocator::keep_small,
    );
    running.start("part/certificate-renewal", Policy::Restart, {
        let pki = pki.clone();
        move |shutdown| pki::renew_in_time(pki.clone(), shutdown)
    });
    pod_encryption::keep(&running, handle.client(own_user()), config.pod_encryption).await;
    serve(&running, &handle, listener, tls)?;

    say(notifier, "starting scheduler and controllers");
    schedule(&running, &handle);
    let server = server_url(address, port);
    let invitation = invite(&handle, notifier, &server, address);
    let cluster_info = pki::cluster_info(&server, pki.ca_pem());
    let machine = &config.machine;
    let (pool, kubelet_port) = (config.pool.clone(), machine.kubelet_port);
    let balancing = disable::balancing(&machine.disabled, pool, port, kubelet_port);
    let informers = control_cluster(&running, &handle, &pki, cluster_info, &config, balancing);
    let name = &config.machine.name;
    node_role::keep(&running, handle.client(own_user()), informers.clone(), name);
    announce_dns(&running, &handle, informers, &config, &node).await?;

    let (state, run) = (
        config.machine.paths.state.clone(),
        config.machine.paths.runtime(),
    );
    let images = Images::open(state, run, config.machine.registries.clone()).await?;
    import_images(
        &running,
        handle.client(own_user()),
        &images,
        &config.machine,
    );
    let (stop, mut stopped) = mpsc::channel(1);
    answer_commands(&running, &config.machine.paths, &images, stop)?;

    say(notifier, "starting the node");
    let result = match Node::start(node, identity, images.clone(), &parts).await {
        Ok(node) => {
            let serving = Serving {
                handle: &handle,
                config: &config,
                images: &images,
                notifier,
                parts: &parts,
            };
            serving.until_the_end(node, invitation, &mut stopped).await
        }
        Err(error) => Err(error),
    };
    running.stop().await;
    let _ = std::fs::remove_file(config.machine.paths.control_socket());
    parts.stop().await;
    drop(admin); // renewed until here
    result
}

/// The API server's listener. Its socket stays open when it fails: connections wait meanwhile.
fn serve(
    parts: &Parts,
    handle: &Handle,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
) -> Result<(), Error> {
    let (handle, socket) = (handle.clone(), listener.into_std()?);
    parts.start("part/kube-apiserver", Policy::Restart, move |shutdown| {
        let (handle, tls) = (handle.clone(), tls.clone());
        let listener = socket.try_clone().and_then(TcpListener::from_std);
        async move {
            handle.serve(listener?, tls, shutdown).await;
            Ok::<(), std::io::Error>(())
        }
    });
    Ok(())
}

fn schedule(parts: &Parts, handle: &Handle) {
    let name = "system:kube-scheduler";
    let client = handle.client(User::internal(name, &[]));
    let informers = Informers::of("kube-scheduler", client, parts.clone()).beside_the_server();
    parts.start("part/kube-scheduler", Policy::Restart, move |shutdown| {
        let informers = informers.clone();
        async move {
            scheduler::run(informers, scheduler::Config::default(), shutdown).await;
            Ok::<(), Error>(())
        }
    });
}

fn control_cluster(
    parts: &Parts,
    handle: &Handle,
    pki: &Pki,
    cluster_info: String,
    config: &Config,
    balancing: controllers::Balancing,
) -> Informers {
    let name = "system:kube-controller-manager";
    let client = handle.client(User::internal(name, &[]));
    let informers =
        Informers::of("kube-controller-manager", client, parts.clone()).beside_the_server();
    let client_of = |account: &str| handle.client(User::service_account("kube-system", account));
    let cluster_range = |own: &IpNet| controllers::ClusterRange {
        range: node::cluster_cidr(own),
        node_prefix: own.prefix_len(),
    };
    let ranges = config.pod_cidrs;
    let config = controllers::Config {
        ca_pem: pki.ca_pem().to_owned(),
        cluster_info,
        make_token: token_maker(handle.issuer.clone()),
        authority: Arc::new(ClusterAuthority(pki.clone())),
        pod_ranges: controllers::Ranges {
            cluster: ranges.iter().map(cluster_range).collect(),
            first: (
                config.machine.name.clone(),
                ranges.iter().copied().collect(),
            ),
        },
        services: config.services,
        volumes: config.machine.paths.volumes(),
        balancing,
    };
    controllers::start(parts, &informers, client_of, &config);
    informers
}

/// Lets pods find the DNS of the nodes.
async fn announce_dns(
    parts: &Parts,
    handle: &Handle,
    informers: Informers,
    config: &Config,
    node: &node::Config,
) -> Result<(), Error> {
    let dns = ClusterDns {
        client: handle.client(own_user()),
        cluster_dns: node::cluster_dns(&config.services)?,
        own: (config.machine.name.clone(), node::dns_addresses(node)?),
    };
    if let Err(error) = dns.write().await {
        // What users have set up may refuse it; the node starts all the same.
        tracing::warn!(%error, "the cluster DNS is not announced, will retry");
    }
    let dns = Arc::new(dns);
    parts.start_endless("part/cluster-dns-service", Policy::Restart, move || {
        dns.clone().keep(informers.clone())
    });
    Ok(())
}

/// What other `vetch` commands ask.
pub(super) fn answer_commands(
    parts: &Parts,
    paths: &Paths,
    images: &Images,
    stop: mpsc::Sender<Pods>,
) -> Result<(), Error> {
    let (images, socket) = (
        images.clone(),
        control::bind(&paths.control_socket())?.into_std()?,
    );
    parts.start("part/control-socket", Policy::Restart, move |shutdown| {
        let (images, stop) = (images.clone(), stop.clone());
        let listener = socket.try_clone().and_then(UnixListener::from_std);
        async move {
            let serving = control::serve(listener?, move |request, progress| {
                answer(images.clone(), stop.clone(), request, progress)
            });
            shutdown.run_until_cancelled(serving).await;
            Ok::<(), std::io::Error>(())
        }
    });
    Ok(())
}

/// Beside the node's start: a pod that waits for one of the images starts when it has come.
pub(super) fn import_images(parts: &Parts, client: Client, images: &Images, machine: &Machine) {
    let (images, folder, node) = (images.clone(), machine.images.clone(), machine.name.clone());
    parts.start("part/image-import", Policy::Restart, move |shutdown| {
        let import = preload::import(images.clone(), folder.clone(), client.clone(), node.clone());
        async move {
            shutdown.run_until_cancelled(import).await;
            shutdown.cancelled().await;
            Ok::<(), std::io::Error>(())
        }
    });
}

/// Lets the controllers sign tokens for Secrets without knowing the key.
fn token_maker(issuer: Arc<TokenIssuer>) -> controllers::MakeToken {
    Arc::new(move |wanted| {
        let subject = Subject {
            namespace: wanted.namespace.to_owned(),
            account: Reference {
                name: wanted.account.to_owned(),
                uid: wanted.account_uid.to_owned(),
            },
        };
        let made = issuer.issue_for_secret(&subject, wanted.secret);
        made.map_err(|error| error.to_string())
    })
}

/// What is at hand while the node runs.
struct Serving<'a> {
    handle: &'a Handle,
    config: &'a Config,
    images: &'a Images,
    notifier: &'a Notifier,
    parts: &'a Parts,
}

/// The command that makes another machine a node.
type Invitation = AbortOnDropHandle<Option<String>>;

/// Makes it beside the node's start, for who has asked for the daemon and waits for it to be ready.
fn invite(handle: &Handle, notifier: &Notifier, server: &str, address: IpAddr) -> Invitation {
    // Nobody reaches what is on this machine alone.
    let wanted = notifier.is_heard() && !address.is_loopback();
    let (client, server) = (handle.client(own_user()), server.to_owned());
    AbortOnDropHandle::new(tokio::spawn(async move {
        if !wanted {
            return None;
        }
        match token::for_joining(client).await {
            Ok(token) => Some(token::join_command(&server, &token)),
            // What users have set up may refuse it.
            Err(error) => {
                tracing::warn!(%error, "there is no token for other machines");
                None
            }
        }
    }))
}

impl Serving<'_> {
    /// From the node's start to the end that somebody asks for. A node that does not come up ends the
    /// daemon, and so does a part without which it must not go on.
    async fn until_the_end(
        &self,
        node: Node,
        invitation: Invitation,
        stopped: &mut mpsc::Receiver<Pods>,
    ) -> Result<(), Error> {
        let result = tokio::select! {
            end = wait_for_end(stopped) => end,
            error = self.welcome(&node, invitation) => Err(error),
            failure = self.parts.fatal() => Err(failure.into()),
        };
        say(self.notifier, "stopping");
        node.stop().await;
        match result? {
            Pods::Keep => Ok(()),
            Pods::Remove => node.remove_pods().await,
        }
    }

    /// Tells when the cluster can be used; resolves when it cannot. What users have set up may refuse
    /// the node, or be lacking yet: that is said, and they can change it, so the cluster is up all the same.
    async fn welcome(&self, node: &Node, invitation: Invitation) -> Error {
        let client = self.handle.client(own_user());
        let mut told = false;
        let (readiness, invitation) = tokio::join!(node.ready(client.clone()), invitation);
        if let Ok(Some(command)) = invitation {
            self.notifier.join(&command);
        }
        let name = &self.config.machine.name;
        let obstacle = match readiness {
            Ok(readiness) => readiness.obstacle(name),
            Err(error) => return error,
        };
        if let Some(line) = obstacle {
            tracing::warn!("{line}");
            self.notifier.status(&line);
            self.notifier.ready();
            greet(self.config);
            told = true;
            if let Err(error) = node.ready_at_last(client).await {
                return error;
            }
            tracing::info!("node {name} is ready");
        }
        if self.config.demo
            && let Err(error) = self.demo().await
        {
            return error;
        }
        if !told {
            self.notifier.ready();
            greet(self.config);
        }
        std::future::pending().await
    }

    async fn demo(&self) -> Result<(), Error> {
        say(self.notifier, "starting the demo");
        let user = User::internal("kubernetes-admin", &["system:masters"]);
        let demo = demo::deploy(&self.handle.client(user), self.images).await?;
        let line = format!("{} answers: {}", demo.url, demo.answer);
        say(self.notifier, &line);
        Ok(())
    }
}

/// Whoever had one of these would be taken for the API server or the cluster DNS by every pod.
fn reserved_addresses(services: &PerFamily<IpNet>) -> Result<Vec<ReservedAddress>, Error> {
    let kept = |address, namespace, name| ReservedAddress {
        address,
        namespace,
        name,
    };
    let dns = node::cluster_dns(services)?;
    let api = services.iter().filter_map(node::gateway);
    Ok(api
        .map(|address| kept(address, "default", "kubernetes"))
        .chain(dns.iter().map(|dns| kept(*dns, "kube-system", "kube-dns")))
        .collect())
}

fn node_config(config: &Config, addresses: PerFamily<IpAddr>, api_port: u16) -> node::Config {
    node::Config {
        paths: config.machine.paths.clone(),
        name: config.machine.name.clone(),
        addresses,
        pod_cidrs: config.pod_cidrs,
        services: config.services,
        api_port: Some(api_port),
        kubelet_port: config.machine.kubelet_port,
        limits: config.machine.limits,
        resources: config.machine.resources.clone(),
        description: config.machine.described.description.clone(),
        enforces_policies: config.machine.enforces_policies(),
        cni: config.machine.cni.clone(),
    }
}

async fn answer(
    images: Images,
    stop: mpsc::Sender<Pods>,
    request: Request,
    progress: mpsc::Sender<Reply>,
) -> Result<Outcome, Error> {
    match request {
        Request::Stop { pods } => {
            let pods = match pods {
                true => Pods::Remove,
                false => Pods::Keep,
            };
            stop.send(pods).await?;
            Ok(Outcome::Nothing)
        }
        #[cfg(feature = "test-hooks")]
        Request::Provoke { part, how } => {
            crate::supervision::hooks::provoke(&part, how);
            Ok(Outcome::Nothing)
        }
        request => {
            let told: crate::runtime::image::Progress = Arc::new(move |done, total| {
                // Progress that nobody has read yet is replaced by later progress.
                let _ = progress.try_send(Reply::Progress { done, total });
            });
            image::handle(&images, request, told).await
        }
    }
}

/// What becomes of the pods when the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pods {
    Keep,
    Remove,
}

pub(super) async fn wait_for_end(stopped: &mut mpsc::Receiver<Pods>) -> Result<Pods, Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok(Pods::Keep),
        _ = interrupt.recv() => Ok(Pods::Keep),
        pods = stopped.recv() => Ok(pods.unwrap_or(Pods::Keep)),
    }
}

/// As many descriptors as the process may have. Containers get limits of their own.
pub(super) fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

pub(super) fn say(notifier: &Notifier, what: &str) {
    tracing::info!("{what}");
    notifier.status(what);
}

fn greet(config: &Config) {
    tracing::info!(
        "the cluster is up. Use it with: export KUBECONFIG={}",
        config.machine.paths.kubeconfig().display()
    );
}

/// One daemon per root. The lock goes with the process, however it ends.
pub(super) async fn lock(paths: &Paths, root_flag: &str) -> Result<Flock<std::fs::File>, Error> {
    let path = paths.lock();
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path)?;
    let begun = tokio::time::Instant::now();
    let mut lock = loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => break lock,
            Err((back, _)) if begun.elapsed() < LOCK_WITHIN => file = back,
            Err((back, _)) => {
                let pid = std::fs::read_to_string(&path).unwrap_or_default();
                let pid = pid.trim();
                if begun.elapsed() < DYING_WITHIN && is_dying(pid) {
                    file = back;
                    tokio::time::sleep(LOCK_RETRY).await;
                    continue;
                }
                return Err(format!("vetch is already running on this root (process {pid}); stop it with `vetch down{root_flag}`").into());
            }
        }
        tokio::time::sleep(LOCK_RETRY).await;
    };
    lock.set_len(0)?;
    write!(lock, "{}", std::process::id())?;
    Ok(lock)
}

/// Whether a process has been killed, or ends by itself: on a busy machine it takes a while to let go.
fn is_dying(pid: &str) -> bool {
    const EXITING: u64 = 0x4;
    const KILLED: u64 = 1 << (libc::SIGKILL - 1);
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true; // it is gone, or was when it wrote
    };
    // After the name, which may hold anything: state, parent, group, session, terminal and its group,
    // flags; 21 others; the signals that wait.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let has = |index: usize, bit: u64| {
        let field = fields.get(index).and_then(|field| field.parse().ok());
        field.is_some_and(|field: u64| field & bit != 0)
    };
    matches!(fields.first(), Some(&"Z" | &"X")) || has(6, EXITING) || has(28, KILLED)
}

/// Waits until the daemon has let go of its lock.
pub fn wait_until_stopped(paths: &Paths) -> Result<(), Error> {
    let file = match std::fs::File::open(paths.lock()) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    Flock::lock(file, FlockArg::LockExclusive)
        .map(drop)
        .map_err(|(_, errno)| errno.into())
}

fn listen(port: u16) -> Result<TcpListener, Error> {
    accepting::listen_everywhere(port).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!("port {port} is taken by another program; choose another with --port").into()
        }
        _ => format!("listen on port {port}: {error}").into(),
    })
}

/// Where other machines reach the API server.
fn server_url(address: IpAddr, port: u16) -> String {
    format!("https://{}", SocketAddr::new(address, port))
}

/// Writes the administrator's kubeconfig, now and whenever its certificate is renewed.
fn keep_kubeconfig(paths: &Paths, pki: &Pki, port: u16) -> Result<Arc<Live>, Error> {
    let leaf = Leaf::client("kubernetes-admin", &["system:masters"]);
    let admin = pki.live("admin", leaf)?;
    let (path, ca_pem) = (paths.kubeconfig(), pki.ca_pem().to_owned());
    let write = move |admin: &Identity| {
        let text = kubeconfig(&format!("https://127.0.0.1:{port}"), &ca_pem, admin);
        write_private(&path, text.as_bytes())
    };
    write(&admin.identity())?;
    admin.on_renewal(move |identity| {
        if let Err(error) = write(identity) {
            tracing::warn!(%error, "the renewed kubeconfig was not written");
        }
    });
    Ok(admin)
}

/// Mode 0600 from the first byte on, and whole or not at all.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_killed_is_waited_for() {
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let pid = child.id().to_string();
        assert!(!is_dying(&pid));
        child.kill().unwrap();
        // It is not reaped: whatever holds on to it now does so for long.
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while !is_dying(&pid) {
            assert!(std::time::Instant::now() < end, "it lives on");
        }
        child.wait().unwrap();
        assert!(is_dying(&pid));
        assert!(!is_dying(&std::process::id().to_string()));
    }
}
