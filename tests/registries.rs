//! Registries as people have them: Debian's docker-registry behind each form of `hosts.toml` and of
//! Docker's folders, each right and each wrong setting, and images from a folder at start.

#[path = "lab/mod.rs"]
mod lab;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use lab::{Cluster, Host, text};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

/// Of a host that is not loopback.
const ADDRESS: &str = "192.168.77.1";
const PLAIN: &str = "192.168.77.1:5001";
const CERTIFIED: &str = "192.168.77.1:5002";
const CLOSED: &str = "192.168.77.1:5003";
const LOOPBACK_TLS: &str = "127.0.0.1:5004";
const PREFIXED: &str = "192.168.77.1:5005";
const LOOPBACK_PLAIN: &str = "127.0.0.1:5006";
/// Nobody listens there.
const DOWN: &str = "192.168.77.1:5999";

/// `u` with the password `secret`.
const HTPASSWD: &str = "u:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// docker-registry, several times over the same images.
struct Registries {
    servers: Vec<Child>,
    dir: PathBuf,
}

impl Drop for Registries {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

impl Registries {
    fn start(cluster: &Cluster) -> Self {
        let dir = cluster.root.path().join("registries");
        fs::create_dir_all(&dir).unwrap();
        certificates(&dir);
        fs::write(dir.join("htpasswd"), HTPASSWD).unwrap();
        let mut registries = Self {
            servers: Vec::new(),
            dir,
        };
        let dir = registries.dir.display().to_string();
        let tls = format!("certificate: {dir}/server.pem, key: {dir}/server.key");
        let asks = format!("tls: {{ {tls}, clientcas: [{dir}/clients.pem] }}");
        let auth = format!("auth: {{ htpasswd: {{ realm: r, path: {dir}/htpasswd }} }}");
        for (address, http, more) in [
            (PLAIN, "", ""),
            (CERTIFIED, asks.as_str(), ""),
            (CLOSED, &format!("tls: {{ {tls} }}"), auth.as_str()),
            (LOOPBACK_TLS, &format!("tls: {{ {tls} }}"), ""),
            (PREFIXED, "prefix: /proxy/", ""),
            (LOOPBACK_PLAIN, "", ""),
        ] {
            registries.serve(&cluster.host, address, http, more);
        }
        cluster.host.sh(&format!(
            "skopeo copy -q --dest-tls-verify=false docker-archive:{} docker://{PLAIN}/team/busybox:1",
            lab::images().join("busybox.tar").display()
        ));
        registries
    }

    fn serve(&mut self, host: &Host, address: &str, http: &str, more: &str) {
        let (config, log) = (self.file(address, "yml"), self.file(address, "log"));
        let data = self.dir.join("data");
        let http = match http {
            "" => format!("addr: '{address}'"),
            more => format!("addr: '{address}', {more}"),
        };
        let text = format!(
            "version: 0.1\nlog: {{ level: warn }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\n\
             http: {{ {http} }}\n{more}\n",
            data.display()
        );
        fs::write(&config, text).unwrap();
        let log = fs::File::create(log).unwrap();
        let server = host
            .command("docker-registry")
            .arg("serve")
            .arg(config)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.servers.push(server);
        let port = address.replace(':', "/");
        lab::until(address, || {
            let probe = format!("exec 3<>/dev/tcp/{port}");
            let probe = host.command("bash").args(["-c", &probe]).output().unwrap();
            probe.status.success()
        });
    }

    fn file(&self, address: &str, ending: &str) -> PathBuf {
        self.dir
            .join(format!("{}.{ending}", address.replace(':', "_")))
    }

    /// What a registry was asked for.
    fn asked(&self, address: &str) -> String {
        fs::read_to_string(self.file(address, "log")).unwrap()
    }
}

/// An authority for the servers, one for clients, and what they sign.
fn certificates(dir: &Path) {
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let (servers, clients) = (authority("servers"), authority("clients"));
    fs::write(dir.join("servers.pem"), servers.pem()).unwrap();
    fs::write(dir.join("clients.pem"), clients.pem()).unwrap();
    for (name, issuer, usage) in [
        ("server", &servers, ExtendedKeyUsagePurpose::ServerAuth),
        ("client", &clients, ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let mut params =
            CertificateParams::new(vec![ADDRESS.to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, issuer).unwrap();
        fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

/// What is configured for one registry, in place of what was before.
fn configure(cluster: &Cluster, registry: &str, files: &[(&str, &str)]) {
    let dir = cluster.root.path().join("etc/certs.d").join(registry);
    let _ = fs::remove_dir_all(&dir);
    if files.is_empty() {
        return;
    }
    fs::create_dir_all(&dir).unwrap();
    for (name, text) in files {
        fs::write(dir.join(name), text).unwrap();
    }
}

/// Pulls with `vetch image`; what it said, and whether it succeeded.
fn pull(cluster: &Cluster, registry: &str, more: &[&str]) -> (bool, String) {
    let name = format!("{registry}/team/busybox:1");
    let output = cluster.vetch(&[&["image", "pull", &name], more].concat());
    (output.status.success(), text(&output))
}

/// Pulls, which succeeds; what it said.
fn pulled(cluster: &Cluster, registry: &str) -> String {
    let (good, said) = pull(cluster, registry, &[]);
    assert!(good, "{registry}: {said}");
    // The next one comes from the registry again.
    let name = format!("{registry}/team/busybox:1");
    assert!(cluster.vetch(&["image", "rm", &name]).status.success());
    said
}

fn refused(cluster: &Cluster, registry: &str, want: &[&str]) {
    let (good, said) = pull(cluster, registry, &[]);
    assert!(!good, "{registry}: {said}");
    let mut rest = said.as_str();
    for want in want {
        let at = rest.find(want);
        let at = at.unwrap_or_else(|| panic!("{registry}: {want:?} in order in {said}"));
        rest = &rest[at + want.len()..];
    }
}

#[test]
#[ignore = "needs root"]
fn hosts_files_of_every_form() {
    let cluster = Cluster::started();
    let registries = Registries::start(&cluster);
    let server = |address: &str| format!("server = \"http://{address}\"\n");
    let host = |url: &str| format!("[host.\"{url}\"]\n");

    // TLS first on loopback, plain HTTP only there.
    pulled(&cluster, LOOPBACK_TLS);
    pulled(&cluster, LOOPBACK_PLAIN);
    let asked = format!("GET https://{PLAIN}/v2/team/busybox/manifests/1: ");
    refused(&cluster, PLAIN, &[&asked, "it does not speak TLS"]);
    configure(&cluster, PLAIN, &[("hosts.toml", &server(PLAIN))]);
    pulled(&cluster, PLAIN);

    // A mirror comes first, and learns whose image it is.
    let mirror = server(PREFIXED) + &host(&format!("http://{PLAIN}"));
    configure(&cluster, "upstream.test", &[("hosts.toml", &mirror)]);
    pulled(&cluster, "upstream.test");
    let log = registries.asked(PLAIN);
    assert!(
        log.contains("/v2/team/busybox/manifests/1?ns=upstream.test"),
        "{log}"
    );
    assert!(!registries.asked(PREFIXED).contains("upstream.test"));

    // A mirror that is down or has nothing is passed over; the change holds at once.
    for bad in [
        host(&format!("http://{DOWN}")),
        host(&format!("http://{PLAIN}/elsewhere")),
    ] {
        let text = server(PLAIN) + &bad;
        configure(&cluster, "upstream.test", &[("hosts.toml", &text)]);
        let said = pulled(&cluster, "upstream.test");
        assert!(
            said.contains("Connection refused") || said.contains("answers 404"),
            "{said}"
        );
        assert!(
            said.contains("manifests/1?ns=upstream.test: 200 OK"),
            "{said}"
        );
    }

    // Nobody has it: each host, in order.
    let text = host(&format!("http://{DOWN}")) + &host(&format!("http://{PLAIN}/elsewhere"));
    configure(&cluster, "upstream.test", &[("hosts.toml", &text)]);
    refused(
        &cluster,
        "upstream.test",
        &[
            &format!("GET http://{DOWN}/v2/team/busybox/manifests/1?ns=upstream.test: "),
            "Connection refused",
            &format!("GET http://{PLAIN}/elsewhere/v2/team/busybox/manifests/1?ns=upstream.test: "),
            "the registry answers 404",
            "GET https://upstream.test/v2/team/busybox/manifests/1: ",
        ],
    );

    // Paths: with /v2 after them, and as they are written.
    for url in [
        host(&format!("http://{PREFIXED}/proxy")),
        host(&format!("http://{PREFIXED}/proxy/v2/")) + "override_path = true\n",
    ] {
        configure(&cluster, "upstream.test", &[("hosts.toml", &url)]);
        pulled(&cluster, "upstream.test");
    }

    // The default for all others.
    let text = host(&format!("http://{PLAIN}"));
    configure(&cluster, "_default", &[("hosts.toml", &text)]);
    pulled(&cluster, "other.test");
    assert!(registries.asked(PLAIN).contains("?ns=other.test"));
    configure(&cluster, "_default", &[]);

    // A mirror that only serves content by digest does not say what a tag is.
    let text = host(&format!("http://{PLAIN}")) + "capabilities = [\"pull\"]\n";
    configure(&cluster, "upstream.test", &[("hosts.toml", &text)]);
    refused(&cluster, "upstream.test", &["GET https://upstream.test/"]);

    // A wrong file names itself, the key and what helps; the pod's event says so too.
    let text = host(&format!("http://{PLAIN}")) + "skip_verfy = true\n";
    configure(&cluster, "upstream.test", &[("hosts.toml", &text)]);
    let want = [
        "certs.d/upstream.test/hosts.toml: ",
        "skip_verfy: unknown key; known are ",
    ];
    refused(&cluster, "upstream.test", &want);
    let said = failure(
        &cluster,
        "wrong",
        "upstream.test/team/busybox:1",
        "",
        want[1],
    );
    assert!(said.contains(want[0]), "{said}");
}

#[test]
#[ignore = "needs root"]
fn certificates_and_credentials() {
    let cluster = Cluster::started();
    let registries = Registries::start(&cluster);
    let read = |name: &str| fs::read_to_string(registries.dir.join(name)).unwrap();
    let (servers, clients) = (read("servers.pem"), read("clients.pem"));
    let (certificate, key) = (read("client.pem"), read("client.key"));

    // A private authority, and a client's certificate: in Docker's form, then in containerd's.
    refused(&cluster, CERTIFIED, &["UnknownIssuer", "name it with `ca`"]);
    configure(&cluster, CERTIFIED, &[("wrong.crt", &clients)]);
    refused(&cluster, CERTIFIED, &["UnknownIssuer"]);
    configure(&cluster, CERTIFIED, &[("ca.crt", "nonsense")]);
    refused(&cluster, CERTIFIED, &["ca.crt: it holds no certificate"]);
    configure(&cluster, CERTIFIED, &[("ca.crt", &servers)]);
    refused(
        &cluster,
        CERTIFIED,
        &["CertificateRequired", "it wants a certificate of ours"],
    );
    let files = [
        ("ca.crt", servers.as_str()),
        ("us.cert", &certificate),
        ("us.key", &key),
    ];
    configure(&cluster, CERTIFIED, &files);
    pulled(&cluster, CERTIFIED);
    let host = format!("[host.\"https://{CERTIFIED}\"]\n");
    let pair = "client = [[\"us.cert\", \"us.key\"]]\n";
    for ca in [
        "ca = \"ca.crt\"\n",
        "ca = [\"ca.crt\"]\n",
        "skip_verify = true\n",
    ] {
        let text = format!("{host}{ca}{pair}");
        let files = [("hosts.toml", text.as_str()), files[0], files[1], files[2]];
        configure(&cluster, "upstream.test", &files);
        pulled(&cluster, "upstream.test");
    }
    let text = format!("{host}ca = \"missing.pem\"\n");
    configure(&cluster, "upstream.test", &[("hosts.toml", &text)]);
    refused(&cluster, "upstream.test", &["missing.pem: No such file"]);

    // Credentials: typed, of the node, of a pod; wrong ones and none.
    configure(&cluster, CLOSED, &[("ca.crt", &servers)]);
    refused(
        &cluster,
        CLOSED,
        &[
            "access denied",
            "401 Unauthorized",
            "asked without credentials",
        ],
    );
    let (good, said) = pull(&cluster, CLOSED, &["--username=u", "--password=secret"]);
    assert!(good, "{said}");
    let (good, said) = pull(&cluster, CLOSED, &["--username=u", "--password=wrong"]);
    assert!(!good && said.contains("asked as user \"u\""), "{said}");
    assert!(!said.contains("wrong"), "{said}");
    let image = format!("{CLOSED}/team/busybox:1");
    let secret = |name: &str, password: &str| {
        cluster.ok(&format!(
            "create secret docker-registry {name} --docker-server=https://{CLOSED} \
             --docker-username=u --docker-password={password}"
        ));
    };
    secret("good", "secret");
    secret("bad", "other");
    let said = failure(&cluster, "denied", &image, "bad", "access denied");
    for want in [
        format!("GET https://{CLOSED}/v2/team/busybox/manifests/1: "),
        "401 Unauthorized".to_owned(),
        "asked as user \"u\"".to_owned(),
    ] {
        assert!(said.contains(&want), "{want}: {said}");
    }
    // The good one is tried after the bad one.
    cluster.apply(&pod("let-in", &image, "bad}, {name: good"));
    cluster.wait("get pod let-in -o jsonpath={.status.phase}", "Running");
    cluster.ok("delete pod let-in denied --now");

    let config = cluster.root.path().join("etc/config.json");
    // u:secret
    let auths = format!("{{\"auths\": {{\"{CLOSED}\": {{\"auth\": \"dTpzZWNyZXQ=\"}}}}}}");
    fs::write(&config, auths).unwrap();
    pulled(&cluster, CLOSED);
    fs::write(&config, "{\"auths\": nonsense").unwrap();
    refused(&cluster, CLOSED, &["etc/config.json: line 1", "not JSON"]);
}

fn pod(name: &str, image: &str, secret: &str) -> String {
    let secrets = match secret {
        "" => String::new(),
        secret => format!("  imagePullSecrets: [{{name: {secret}}}]\n"),
    };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n{secrets}  containers:\n  \
         - {{name: c, image: '{image}', imagePullPolicy: Always, command: [sleep, infinity]}}\n"
    )
}

/// A pod whose image does not come; what its event says.
fn failure(cluster: &Cluster, name: &str, image: &str, secret: &str, want: &str) -> String {
    cluster.apply(&pod(name, image, secret));
    let line = format!(
        "get events --field-selector involvedObject.name={name},reason=Failed \
         -o jsonpath={{.items[*].message}}"
    );
    let want = |said: &str| said.contains("Failed to pull image") && said.contains(want);
    cluster.wait_for(&line, want)
}

#[test]
#[ignore = "needs root"]
fn images_from_a_folder() {
    let cluster = Cluster::new();
    let folder = cluster.root.path().join("images");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("a-bad.tar"), "no archive").unwrap();
    fs::write(folder.join("README"), "no archive either").unwrap();
    let busybox = lab::images().join("busybox.tar");
    fs::copy(&busybox, folder.join("busybox.tar")).unwrap();
    let read = |name: &str| fs::read(lab::images().join(name)).unwrap();
    let echo = zstd::encode_all(read("echo.tar").as_slice(), 1).unwrap();
    fs::write(folder.join("echo.tar.zst"), echo).unwrap();
    cluster.host.sh(&format!(
        "gzip -1 -c {}/user.tar > {}/user.tar.gz",
        lab::images().display(),
        folder.display()
    ));
    cluster.up();
    cluster.apply(&pod("never", "busybox:1", "").replace("Always", "Never"));
    cluster.wait("get pod never -o jsonpath={.status.phase}", "Running");
    let line =
        "get events -A --field-selector reason=ImageImportFailed -o jsonpath={.items[*].message}";
    cluster.wait_for(line, |said| {
        said.contains("a-bad.tar: ") && said.contains("not an image archive")
    });
    lab::until("the others are imported", || {
        text(&cluster.vetch(&["image", "ls"])).contains("busybox:user")
    });
    // Not read again, unless an image has gone.
    cluster.ok("delete pod never --now");
    assert!(
        cluster
            .vetch(&["image", "rm", "busybox:user"])
            .status
            .success()
    );
    assert!(cluster.vetch(&["down"]).status.success());
    let before = cluster.daemon_log().len();
    cluster.up();
    lab::until("the image is back", || {
        text(&cluster.vetch(&["image", "ls"])).contains("busybox:user")
    });
    let log = cluster.daemon_log();
    let log = &log[before..];
    assert!(
        log.contains("imported docker.io/library/busybox:user"),
        "{log}"
    );
    assert!(
        !log.contains("imported docker.io/library/busybox:1"),
        "{log}"
    );
}
