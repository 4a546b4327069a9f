//! Logs, exec, attach and port-forward from stock kubectl to a container: through the API server,
//! the kubelet's API and the runtime, each the real one. Only the pod's worker is left out.
//!
//! `VETCH_TEST_KUBECTL` names kubectl, `VETCH_TEST_OLD_KUBECTL` one that knows no WebSocket.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, SinkExt, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use oci_spec::runtime::{ProcessBuilder, Spec, SpecBuilder};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};
use tokio_util::sync::{CancellationToken, DropGuard};
use vetch::{
    addresses::family::PerFamily,
    apiserver::{
        admission::{self, Late, ServiceConfig},
        objects::Objects,
        request::User,
        special,
        start::{Config, Handle, own_user},
    },
    kubelet::{Pods, server::Server},
    pki::{self, Identity, Leaf, Pki},
    runtime::{self, ContainerConfig, Io, PodConfig, Rootfs, Runtime},
    store::embedded::Embedded,
};

const DEADLINE: Duration = Duration::from_secs(30);
const UID: &str = "6f1d3c52-7a0e-4a8e-9d61-0c5b2f6f7a11";
const MAIN: &str = "echo started; echo last; exec httpd -f -p 8080 -h /www";
const ECHO: &str = "while read line; do echo got $line; done; echo over";

/// What of kubectl speaks which protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    WebSocket,
    Spdy,
    Old,
}

impl Client {
    fn all() -> Vec<Self> {
        let mut all = vec![Self::WebSocket, Self::Spdy];
        if std::env::var_os("VETCH_TEST_OLD_KUBECTL").is_some() {
            all.push(Self::Old);
        }
        all
    }

    fn command(self, lab: &Lab) -> Command {
        let name = match self {
            Self::Old => "VETCH_TEST_OLD_KUBECTL",
            _ => "VETCH_TEST_KUBECTL",
        };
        let program = std::env::var_os(name).unwrap_or_else(|| "kubectl".into());
        let mut command = Command::new(program);
        command
            .env("HOME", &lab.dir)
            .env("KUBECONFIG", lab.dir.join("kubeconfig"));
        if self == Self::Spdy {
            command
                .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")
                .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");
        }
        command
    }
}

/// The node's pod, and the UID by which the API asks for it: the runtime has another.
struct OnePod(Arc<Pod>, String);

impl Pods for OnePod {
    fn pod_by_uid(&self, uid: &str) -> Option<Arc<Pod>> {
        (uid == self.1).then(|| self.0.clone())
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let metadata = &self.0.metadata;
        let named = metadata.namespace.as_deref() == Some(namespace)
            && metadata.name.as_deref() == Some(name);
        named.then(|| self.0.clone())
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        vec![self.0.clone()]
    }
}

struct Lab {
    /// Kept by the test, which removes the pod before it.
    dir: PathBuf,
    runtime: Runtime,
    api: SocketAddr,
    kubelet: SocketAddr,
    admin: Identity,
    ca_pem: String,
    _stop: DropGuard,
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

impl Lab {
    async fn new(runtime: Runtime, dir: &Path) -> Self {
        let store = Arc::new(Embedded::open(&dir.join("store")).unwrap());
        let pki = Pki::open(&dir.join("pki")).unwrap();
        let services: PerFamily<ipnet::IpNet> = "10.96.0.0/16".parse().unwrap();
        let (listener_of_api, api) = listener().await;
        let (listener_of_kubelet, kubelet) = listener().await;
        let config = Config {
            advertise: api.ip(),
            port: api.port(),
            services,
        };
        let handle = Handle::new(config, store, &pki, special::of_pods())
            .await
            .unwrap();
        let late = Arc::new(Late::default());
        let objects: Arc<dyn Objects> = handle.server.clone();
        late.set(&objects);
        let ports = ServiceConfig {
            cidrs: services.iter().copied().collect(),
            reserved_addresses: Vec::new(),
            node_ports: 30000..=32767,
            reserved_ports: Vec::new(),
            external_ips: vetch::apiserver::admission::ExternalIps::default(),
        };
        handle
            .start(admission::chain(
                late,
                ports,
                admission::Exemptions::default(),
            ))
            .await
            .unwrap();
        let stop = CancellationToken::new();
        let leaf = Leaf::api_server("n1", &[api.ip()], &[]);
        let tls = Arc::new(pki::server_config(&pki, leaf).unwrap());
        let (serving, stopped) = (handle.clone(), stop.clone());
        tokio::spawn(async move { serving.serve(listener_of_api, tls, stopped).await });

        let admin = pki
            .issue(&Leaf::client("admin", &["system:masters"]))
            .unwrap();
        let text = pki::kubeconfig(&format!("https://{api}"), pki.ca_pem(), &admin);
        std::fs::write(dir.join("kubeconfig"), text).unwrap();

        let (pod, uid) = Self::add_objects(&handle, kubelet).await;
        let serving = pki
            .issue(&Leaf::kubelet_serving("n1", &[kubelet.ip()]))
            .unwrap();
        let tls = pki::server_config_with(pki.ca_pem(), pki::Held::new(serving).unwrap()).unwrap();
        let server = Server {
            node: "n1".to_owned(),
            pods: Arc::new(OnePod(Arc::new(pod), uid)),
            runtime: runtime.clone(),
            log_dir: dir.join("log"),
            client: handle.client(User::internal("system:node:n1", &["system:nodes"])),
            clients: pki.clients().unwrap(),
        };
        tokio::spawn(server.serve(listener_of_kubelet, Arc::new(tls), stop.clone()));
        Self {
            dir: dir.to_owned(),
            runtime,
            api,
            kubelet,
            admin,
            ca_pem: pki.ca_pem().to_owned(),
            _stop: stop.drop_guard(),
        }
    }

    async fn add_objects(handle: &Handle, kubelet: SocketAddr) -> (Pod, String) {
        let client = handle.client(own_user());
        let create = PostParams::default();
        let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(client.clone());
        let node = object(json!({"metadata": {"name": "n1"}}));
        nodes.create(&create, &node).await.unwrap();
        let status = json!({"status": {
            "addresses": [{"type": "InternalIP", "address": kubelet.ip()}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet.port()}},
        }});
        let (patch, status) = (PatchParams::default(), Patch::Merge(status));
        nodes.patch_status("n1", &patch, &status).await.unwrap();
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
            Api::default_namespaced(client.clone());
        let account = object(json!({"metadata": {"name": "default"}}));
        accounts.create(&create, &account).await.unwrap();
        let pods: Api<Pod> = Api::default_namespaced(client);
        let pod = object(json!({"metadata": {"name": "p"}, "spec": {
            "nodeName": "n1",
            "automountServiceAccountToken": false,
            "containers": [
                {"name": "main", "image": "busybox"},
                {"name": "echo", "image": "busybox", "stdin": true, "stdinOnce": true},
                {"name": "late", "image": "busybox"},
            ],
        }}));
        pods.create(&create, &pod).await.unwrap();
        let status = Patch::Merge(json!({"status": {"phase": "Running"}}));
        let mut pod: Pod = pods.patch_status("p", &patch, &status).await.unwrap();
        let uid = pod.metadata.uid.replace(UID.to_owned());
        (pod, uid.unwrap_or_default())
    }

    /// Runs kubectl with words separated by blanks.
    async fn kubectl(&self, client: Client, line: &str, input: &[u8]) -> Output {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.kubectl_with(client, &words, input).await
    }

    async fn kubectl_with(&self, client: Client, words: &[&str], input: &[u8]) -> Output {
        let mut command = client.command(self);
        command.args(words);
        run(command, input.to_vec()).await
    }

    async fn add_container(&self, name: &str, script: &str, stdin: bool) -> String {
        let folder = self.dir.join(format!("log/default_p_{UID}/{name}"));
        std::fs::create_dir_all(&folder).unwrap();
        let config = ContainerConfig {
            name: name.to_owned(),
            attempt: 0,
            annotations: Default::default(),
            rootfs: Rootfs::Layers(vec![self.dir.join("root")]),
            oci: spec(script),
            io: Io {
                tty: false,
                stdin,
                stdin_once: stdin,
                log_path: folder.join("0.log"),
            },
            user: None,
            must_not_be_root: false,
        };
        self.runtime.run_container(UID, config).await.unwrap()
    }
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn spec(script: &str) -> Spec {
    let args = ["sh", "-c", script].map(str::to_owned);
    let process = ProcessBuilder::default()
        .args(args)
        .env(["PATH=/bin".to_owned(), "HOME=/".to_owned()])
        .cwd("/")
        .build()
        .unwrap();
    SpecBuilder::default().process(process).build().unwrap()
}

async fn run(mut command: Command, input: Vec<u8>) -> Output {
    let running = tokio::task::spawn_blocking(move || {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::spawn(move || stdin.write_all(&input));
        child.wait_with_output().unwrap()
    });
    tokio::time::timeout(DEADLINE, running)
        .await
        .expect("in time")
        .unwrap()
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn busybox(root: &Path) {
    for folder in ["bin", "www", "tmp", "proc", "dev", "sys", "etc"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "cat", "httpd", "stty", "tty", "tar", "sleep", "seq", "rm", "mkdir",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    std::fs::write(root.join("www/page"), "x".repeat(300_000) + "end").unwrap();
}

fn pod() -> PodConfig {
    PodConfig {
        identity: runtime::Identity {
            uid: UID.to_owned(),
            namespace: "default".to_owned(),
            name: "p".to_owned(),
        },
        annotations: Default::default(),
        hostname: "p".to_owned(),
        host_network: false,
        host_pid: false,
        host_ipc: false,
        share_processes: false,
        sysctls: Default::default(),
        cgroup: format!("pod{UID}"),
        resources: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn from_kubectl_to_a_container() {
    let dir = tempfile::tempdir().unwrap();
    busybox(&dir.path().join("root"));
    let group = format!("vetch-test-streams-{}", std::process::id());
    let config = runtime::Config {
        state_dir: dir.path().join("state"),
        run_dir: dir.path().join("run"),
        cgroup_root: group.clone(),
    };
    let program = PathBuf::from(env!("CARGO_BIN_EXE_vetch"));
    let runtime = Runtime::open_with_program(config, program).await.unwrap();
    runtime.create_pod(pod()).await.unwrap();
    let body = async {
        let lab = Lab::new(runtime.clone(), dir.path()).await;
        let netns = runtime.netns(UID).await.unwrap().unwrap();
        netns::Namespace::from(netns).run(lo_up).unwrap();
        lab.add_container("main", MAIN, false).await;
        lab.add_container("echo", ECHO, true).await;
        for client in Client::all() {
            exec(&lab, client).await;
            terminal(&lab, client).await;
            forward(&lab, client).await;
        }
        forward_over_channels(&lab).await;
        logs(&lab).await;
        attach(&lab).await;
        strangers(&lab).await;
    };
    let done = std::panic::AssertUnwindSafe(body).catch_unwind().await;
    runtime.remove_pod(UID).await.unwrap();
    let hierarchy = cgroups::Hierarchy::detect().unwrap();
    cgroups::Group::open(&hierarchy, &group)
        .unwrap()
        .remove()
        .unwrap();
    if let Err(panic) = done {
        std::panic::resume_unwind(panic);
    }
}

fn lo_up() {
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    assert!(up.unwrap().success());
}

async fn exec(lab: &Lab, client: Client) {
    let script = "echo out; echo err >&2; exit 7";
    let words = ["exec", "p", "-c", "main", "--", "sh", "-c", script];
    let output = lab.kubectl_with(client, &words, b"").await;
    let (out, err) = said(&output);
    assert_eq!(out, "out\n", "{client:?} {err}");
    assert_eq!(
        err, "err\ncommand terminated with exit code 7\n",
        "{client:?}"
    );
    assert_eq!(output.status.code(), Some(7), "{client:?}");

    let long: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let output = lab.kubectl(client, "exec -i p -c main -- cat", &long).await;
    assert!(output.status.success(), "{client:?} {:?}", said(&output).1);
    assert!(
        output.stdout == long,
        "{client:?}: {} bytes",
        output.stdout.len()
    );

    let output = lab.kubectl(client, "exec p -c main -- nothing", b"").await;
    let (_, err) = said(&output);
    assert!(
        !output.status.success() && err.contains("nothing"),
        "{client:?} {err}"
    );
    let output = lab.kubectl(client, "exec p -c late -- sh", b"").await;
    let (_, err) = said(&output);
    assert!(
        err.contains("container not found (\"late\")"),
        "{client:?} {err}"
    );
}

async fn terminal(lab: &Lab, client: Client) {
    let inside = "tty; until [ \"$(stty size)\" = \"40 100\" ]; do :; done; echo sized";
    let kubectl = client.command(lab);
    let program = kubectl.get_program().to_str().unwrap().to_owned();
    let outer =
        format!("stty rows 40 cols 100; exec {program} exec -it p -c main -- sh -c '{inside}'");
    let mut command = Command::new("script");
    command.args(["-qec", &outer, "/dev/null"]);
    command.env("SHELL", "/bin/sh");
    for (name, value) in kubectl.get_envs() {
        command.env(name, value.unwrap());
    }
    let (out, _) = said(&run(command, Vec::new()).await);
    assert!(
        out.contains("/dev/pts/") && out.contains("sized"),
        "{client:?} {out}"
    );
}

/// kubectl's port-forward, until it is dropped.
struct Forwarding {
    child: std::process::Child,
    port: u16,
    errors: std::sync::mpsc::Receiver<String>,
    /// Kept open: kubectl ends when nobody listens.
    _output: BufReader<std::process::ChildStdout>,
}

impl Forwarding {
    fn start(lab: &Lab, client: Client, port: u16) -> Self {
        let mut child = client
            .command(lab)
            .args(["port-forward", "p", &format!(":{port}")])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        let (sender, errors) = std::sync::mpsc::channel();
        let told = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in told.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let port = line
            .split(' ')
            .nth(2)
            .and_then(|address| address.rsplit(':').next());
        let port = port.and_then(|port| port.parse().ok());
        Self {
            port: port.unwrap_or_else(|| panic!("{client:?} {line:?}")),
            child,
            errors,
            _output: output,
        }
    }

    fn get(&self) -> Vec<u8> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.write_all(b"GET /page HTTP/1.0\r\n\r\n").unwrap();
        let mut page = Vec::new();
        let _ = stream.read_to_end(&mut page);
        page
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn forward(lab: &Lab, client: Client) {
    tokio::task::block_in_place(|| {
        let forwarding = Forwarding::start(lab, client, 8080);
        for _ in 0..3 {
            let page = forwarding.get();
            let told: Vec<String> = forwarding.errors.try_iter().collect();
            let size = page.len();
            assert!(page.ends_with(b"xend"), "{client:?}: {size} bytes {told:?}");
        }
        let nobody = Forwarding::start(lab, client, 9);
        assert!(nobody.get().is_empty());
        let told = nobody.errors.recv_timeout(DEADLINE).unwrap();
        assert!(told.contains("refused"), "{client:?} {told}");
    });
}

/// Port-forward without SPDY, as the `kube` crate does it.
async fn forward_over_channels(lab: &Lab) {
    let path = "/api/v1/namespaces/default/pods/p/portforward?ports=8080";
    let mut request = format!("wss://{}{path}", lab.api)
        .into_client_request()
        .unwrap();
    let protocols = "v5.channel.k8s.io,v4.channel.k8s.io".parse().unwrap();
    request
        .headers_mut()
        .insert("sec-websocket-protocol", protocols);
    let mut tls = pki::client_config(&lab.ca_pem, Some(&lab.admin)).unwrap();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = TcpStream::connect(lab.api).await.unwrap();
    let name = lab.api.ip().to_string().try_into().unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(tls))
        .connect(name, stream)
        .await;
    let (mut socket, response) = tokio_tungstenite::client_async(request, stream.unwrap())
        .await
        .unwrap();
    assert_eq!(
        response.headers()["sec-websocket-protocol"],
        "v4.channel.k8s.io"
    );
    for channel in [0, 1] {
        let first = socket.next().await.unwrap().unwrap();
        assert_eq!(
            first.into_data(),
            [&[channel][..], &8080u16.to_le_bytes()].concat()
        );
    }
    let request = Message::binary(&b"\0GET /page HTTP/1.0\r\n\r\n"[..]);
    socket.send(request).await.unwrap();
    let mut page = Vec::new();
    while let Some(Ok(Message::Binary(bytes))) = socket.next().await {
        assert_eq!(bytes[0], 0);
        page.extend_from_slice(&bytes[1..]);
    }
    assert!(page.ends_with(b"xend"), "{} bytes", page.len());
}

async fn logs(lab: &Lab) {
    for (line, want) in [
        ("logs p -c main --tail=1", "last\n"),
        ("logs p -c main --tail=1 --limit-bytes=2", "la"),
        ("logs p -c main --since=1h --tail=1", "last\n"),
    ] {
        let output = lab.kubectl(Client::WebSocket, line, b"").await;
        assert_eq!(said(&output), (want.to_owned(), String::new()), "{line}");
    }
    let output = lab
        .kubectl(Client::WebSocket, "logs p -c main --timestamps", b"")
        .await;
    let (out, _) = said(&output);
    let stamped = |line: &str| {
        let time = line.split(' ').next().unwrap_or_default();
        time.parse::<jiff::Timestamp>().is_ok()
    };
    assert!(out.contains(" started\n"), "{out}");
    assert!(out.lines().all(stamped), "{out}");
    for (line, want) in [
        (
            "logs p -c late",
            "container \"late\" in pod \"p\" is waiting to start: ContainerCreating",
        ),
        (
            "logs p -c main -p",
            "previous terminated container \"main\" in pod \"p\" not found",
        ),
        ("logs p -c none", "container none is not valid for pod p"),
    ] {
        let (_, err) = said(&lab.kubectl(Client::WebSocket, line, b"").await);
        assert!(err.contains(want), "{line}: {err}");
    }
}

/// Follows the log while attached, until the container ends for want of input.
async fn attach(lab: &Lab) {
    let (followed, attached) = tokio::join!(
        lab.kubectl(Client::WebSocket, "logs -f p -c echo", b""),
        lab.kubectl(Client::WebSocket, "attach -i p -c echo", b"one\ntwo\n"),
    );
    let (out, err) = said(&attached);
    assert!(out.contains("got one\ngot two\nover\n"), "{out} {err}");
    assert_eq!(said(&followed).0, "got one\ngot two\nover\n");
}

async fn strangers(lab: &Lab) {
    for (path, want) in [("healthz", "401"), ("pods", "401"), ("logs/", "404")] {
        let mut curl = Command::new("curl");
        let url = format!("https://{}/{path}", lab.kubelet);
        curl.args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", &url]);
        assert_eq!(said(&run(curl, Vec::new()).await).0, want, "{path}");
    }
    let line = "get --raw /api/v1/nodes/n1/proxy/runningpods/";
    let (out, err) = said(&lab.kubectl(Client::WebSocket, line, b"").await);
    let list: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out} {err}"));
    assert_eq!(
        (&list["kind"], &list["items"][0]["metadata"]["name"]),
        (&json!("PodList"), &json!("p"))
    );
}
