//! What runs while the cluster is up: every part, put together and taken down in order.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

use ipnet::IpNet;
use nix::fcntl::{Flock, FlockArg};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    Error,
    control::{self, Outcome, Reply, Request},
    demo, image,
    notify::Notifier,
    paths::Paths,
};
use crate::{
    apiserver::{
        admission::{self, Late, ServiceConfig},
        request::User,
        special,
        start::{Config as ApiConfig, Handle},
    },
    controllers,
    informer::Informers,
    pki::{self, Leaf, Pki, kubeconfig},
    runtime::image::Images,
    scheduler,
    store::embedded::Embedded,
};

const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

/// All settings, checked before anything starts.
#[derive(Clone, Debug)]
pub struct Config {
    pub paths: Paths,
    pub port: u16,
    pub services: IpNet,
    /// How the user would spell `--root` again, for messages.
    pub root_flag: String,
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
    make_folders(&config.paths)?;
    let _lock = lock(&config.paths, &config.root_flag)?;
    let listener = listen(config.port).await?;
    let port = listener.local_addr()?.port();

    say(notifier, "opening the store");
    let store = Arc::new(Embedded::open(&config.paths.state.join("store"))?);
    let pki = Pki::open(&config.paths.state.join("pki"))?;
    let address = node_address();

    say(notifier, "starting the API server");
    let api = ApiConfig {
        advertise: address,
        port,
        services: config.services,
    };
    let handle = Handle::new(api, store, &pki, special::of_pods()).await?;
    let late = Arc::new(Late::default());
    let objects: Arc<dyn crate::apiserver::objects::Objects> = handle.server.clone();
    late.set(&objects);
    let services = ServiceConfig {
        cidrs: vec![config.services],
        node_ports: NODE_PORTS,
    };
    handle.start(admission::chain(late, services)).await?;
    let service = config
        .services
        .hosts()
        .next()
        .ok_or_else(|| format!("--service-cidr {} has no address", config.services))?;
    let leaf = Leaf::api_server(
        &hostname(),
        &[address, IpAddr::V4(Ipv4Addr::LOCALHOST), service],
        &[],
    );
    let tls = Arc::new(pki::server_config(&pki, leaf)?);
    write_kubeconfig(&config.paths, &pki, port)?;

    let shutdown = CancellationToken::new();
    let serving = tokio::spawn({
        let (handle, shutdown) = (handle.clone(), shutdown.clone());
        async move { handle.serve(listener, tls, shutdown).await }
    });

    say(notifier, "starting scheduler and controllers");
    let scheduling = tokio::spawn(scheduler::run(
        Informers::new(handle.client(User::internal("system:kube-scheduler", &[]))),
        scheduler::Config::default(),
        shutdown.clone(),
    ));
    let controlling = tokio::spawn(controllers::run(
        Informers::new(handle.client(User::internal(
            "system:kube-controller-manager",
            &["system:masters"],
        ))),
        controllers::Config {
            ca_pem: pki.ca_pem().to_owned(),
        },
        shutdown.clone(),
    ));

    let images = Images::open(config.paths.state.clone()).await?;
    let (stop, mut stopped) = mpsc::channel(1);
    let answering_images = images.clone();
    let control = control::bind(&config.paths.control_socket())?;
    let answering = tokio::spawn(control::serve(control, move |request, progress| {
        answer(answering_images.clone(), stop.clone(), request, progress)
    }));

    if config.demo {
        say(notifier, "starting the demo");
        let client = handle.client(User::internal("kubernetes-admin", &["system:masters"]));
        let demo = demo::deploy(&client, &images).await?;
        say(notifier, &format!("{} answers: {}", demo.url, demo.answer));
    }
    notifier.ready();
    greet(&config, port);
    wait_for_end(&mut stopped).await?;
    say(notifier, "stopping");
    shutdown.cancel();
    let _ = tokio::join!(serving, scheduling, controlling);
    answering.abort();
    let _ = std::fs::remove_file(config.paths.control_socket());
    Ok(())
}

async fn answer(
    images: Images,
    stop: mpsc::Sender<()>,
    request: Request,
    progress: mpsc::Sender<Reply>,
) -> Result<Outcome, Error> {
    match request {
        // There is no node in this version, hence no pods to remove.
        Request::Stop { pods: _ } => {
            stop.send(()).await?;
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

async fn wait_for_end(stopped: &mut mpsc::Receiver<()>) -> Result<(), Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = stopped.recv() => {}
    }
    Ok(())
}

fn say(notifier: &Notifier, what: &str) {
    tracing::info!("{what}");
    notifier.status(what);
}

fn greet(config: &Config, port: u16) {
    tracing::info!(
        port,
        "the control plane is up; this version has no node, so pods stay Pending. Use it with: export KUBECONFIG={}",
        config.paths.kubeconfig().display()
    );
}

fn make_folders(paths: &Paths) -> Result<(), Error> {
    for path in paths.all() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| format!("create {}: {error}", path.display()))?;
    }
    Ok(())
}

/// One daemon per root. The lock goes with the process, however it ends.
fn lock(paths: &Paths, root_flag: &str) -> Result<Flock<std::fs::File>, Error> {
    let path = paths.lock();
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path)?;
    let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        let pid = std::fs::read_to_string(&path).unwrap_or_default();
        format!("vetch is already running on this root (process {}); stop it with `vetch down{root_flag}`", pid.trim())
    })?;
    lock.set_len(0)?;
    write!(lock, "{}", std::process::id())?;
    Ok(lock)
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

async fn listen(port: u16) -> Result<TcpListener, Error> {
    TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port)))
        .await
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                format!("port {port} is taken by another program; choose another with --port")
                    .into()
            }
            _ => format!("listen on port {port}: {error}").into(),
        })
}

/// The address by which others reach this machine: that of the default route, else loopback.
/// Connecting a UDP socket sends nothing; it only asks the kernel for a route.
fn node_address() -> IpAddr {
    let ask = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    ask().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn hostname() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "localhost".to_owned())
        .to_lowercase()
}

fn write_kubeconfig(paths: &Paths, pki: &Pki, port: u16) -> Result<(), Error> {
    let admin = pki.identity(
        "admin",
        &Leaf::client("kubernetes-admin", &["system:masters"]),
    )?;
    let text = kubeconfig(&format!("https://127.0.0.1:{port}"), pki.ca_pem(), &admin);
    write_private(&paths.kubeconfig(), text.as_bytes())
}

/// Mode 0600 from the first byte on, and whole or not at all.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}
