use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Duration, Instant},
};

use super::*;
use crate::runtime::image::Credentials;

/// A registry on loopback: one answer per request, by path; what the requests said.
fn server(answer: fn(&str, &mut TcpStream)) -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, heads) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, sender) = (stream.unwrap(), sender.clone());
            std::thread::spawn(move || {
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let lines = lines.map_while(Result::ok);
                let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                let Some(path) = head.first().and_then(|line| line.split(' ').nth(1)) else {
                    return;
                };
                let path = path.to_owned();
                let _ = sender.send(head.join("\n"));
                answer(&path, &mut stream);
            });
        }
    });
    (port, heads)
}

fn say(stream: &mut TcpStream, status: &str, headers: &str, body: &str) {
    let length = body.len();
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    );
}

/// Sends the same until the other side has had enough.
fn endless(stream: &mut TcpStream, start: &str, piece: &str, pause: Duration) {
    if stream.write_all(start.as_bytes()).is_err() {
        return;
    }
    while stream.write_all(piece.as_bytes()).is_ok() {
        std::thread::sleep(pause);
    }
}

const OPEN_END: &str = "HTTP/1.1 200 OK\r\n\r\n";

fn quick() -> Patience {
    Patience {
        connect: Duration::from_secs(2),
        head: Duration::from_millis(500),
        document: Duration::from_secs(5),
        window: Duration::from_millis(300),
        least: 1000,
    }
}

async fn ask(port: u16, repository: &str, credentials: &Credentials) -> Result<Digest, Error> {
    let registry = format!("127.0.0.1:{port}");
    let name = Name::parse(&format!("{registry}/{repository}")).unwrap();
    let settings = Arc::new(Settings::default());
    let hosts = settings.hosts(&registry).unwrap();
    let keyring = Keyring::given(credentials.clone());
    let registry = Registry::new(&name, hosts, settings, &keyring, quick()).await?;
    let (_, digest) = registry.manifest(name.version(), None).await?;
    Ok(digest)
}

fn hostile(path: &str, stream: &mut TcpStream) {
    let part = |number| path.split('/').nth(number).unwrap_or_default();
    let many = "x".repeat(64 << 10);
    let redirect = |stream: &mut TcpStream, to: &str| {
        say(
            stream,
            "307 Temporary Redirect",
            &format!("Location: {to}\r\n"),
            "",
        );
    };
    let challenge = |stream: &mut TcpStream, realm: &str| {
        let header = format!("WWW-Authenticate: Bearer realm=\"{realm}\"\r\n");
        say(stream, "401 Unauthorized", &header, "");
    };
    let me = stream.local_addr().unwrap();
    match part(2) {
        "endless" => endless(stream, OPEN_END, &many, Duration::ZERO),
        "trickle" => endless(stream, OPEN_END, " ", Duration::from_millis(20)),
        "silent" => std::thread::sleep(Duration::from_secs(30)),
        "head" => endless(stream, "HTTP/1.1 200 OK\r\nx: ", &many, Duration::ZERO),
        "headers" => endless(stream, "HTTP/1.1 200 OK\r\n", "x: y\r\n", Duration::ZERO),
        "error" => endless(stream, "HTTP/1.1 500 Oh\r\n\r\n", &many, Duration::ZERO),
        "said" => {
            let body = format!(
                r#"{{"errors":[{{"message":"no\nway {}"}}]}}"#,
                &many[..50_000]
            );
            say(stream, "429 Too Many Requests", "", &body);
        }
        "loop" => redirect(stream, path),
        "nowhere" => say(stream, "302 Found", "", ""),
        "port" => redirect(stream, "http://127.0.0.1:10248/healthz"),
        "tls" => redirect(stream, "https://127.0.0.1:6443/"),
        "mapped" => redirect(stream, "https://[::ffff:127.0.0.1]:6443/"),
        "metadata" => redirect(stream, "https://169.254.169.254/latest/meta-data"),
        "private" => redirect(stream, "https://10.0.0.1/"),
        "decimal" => redirect(stream, "https://2130706433:6443/"),
        "any" => redirect(stream, "https://0.0.0.0:6443/"),
        "user" => redirect(stream, &format!("http://u:p@{me}/x")),
        "realm" => challenge(stream, "https://127.0.0.1:6443/token"),
        "plain-realm" => challenge(stream, "http://127.0.0.1:10248/token"),
        "token" => challenge(stream, &format!("http://{me}/endless-token")),
        "short-token" => challenge(stream, &format!("http://{me}/no-token")),
        "closed" => challenge(stream, &format!("http://{me}/good-token")),
        "basic" => say(
            stream,
            "401 Unauthorized",
            "WWW-Authenticate: Basic realm=x\r\n",
            "",
        ),
        "absent" => say(stream, "404 Not Found", "", "secret of another service"),
        "html" => say(
            stream,
            "200 OK",
            "",
            "<html>secret of another service</html>",
        ),
        _ if path.starts_with("/endless-token") => {
            endless(stream, OPEN_END, &many, Duration::ZERO);
        }
        _ if path.starts_with("/good-token") => say(stream, "200 OK", "", r#"{"token":"t0k"}"#),
        _ => say(stream, "200 OK", "", "{}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_registry_gets_nowhere() {
    let (port, _) = server(hostile);
    for (repository, want) in [
        ("endless", "it sends more than 4194304 bytes"),
        ("trickle", "too slowly"),
        ("silent", "does not answer within"),
        ("head", "head"),
        ("headers", "head"),
        ("error", "the registry answers 500"),
        (
            "said",
            "the registry answers 429 Too Many Requests: no way x",
        ),
        ("loop", "redirects more than 5 times"),
        ("nowhere", "to no address"),
        ("port", "only HTTPS is allowed there"),
        ("tls", "a loopback address, which is refused"),
        ("mapped", "a loopback address, which is refused"),
        ("metadata", "a link-local address, which is refused"),
        ("private", "a private address, which is refused"),
        ("decimal", "invalid dns name"),
        ("any", "an unspecified address, which is refused"),
        ("user", "a user name in the address is refused"),
        ("realm", "a loopback address, which is refused"),
        ("plain-realm", "only HTTPS is allowed there"),
        ("token", "it sends more than 1048576 bytes"),
        ("short-token", "it answers without a token"),
        ("basic", "access denied"),
        ("absent", "not found"),
        ("html", "expected value"),
        ("empty", "neither an index nor a manifest"),
    ] {
        let begun = Instant::now();
        let error = ask(port, repository, &Credentials::Anonymous).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains(want), "{repository}: {error}");
        assert!(!error.contains("secret"), "{repository}: {error}");
        assert!(error.len() < 1200, "{repository}: {error}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{repository}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_go_to_the_registry_and_its_tokens_back_to_it() {
    let (port, heads) = server(hostile);
    let credentials = Credentials::Basic {
        username: "u".to_owned(),
        password: "p".to_owned(),
    };
    let error = ask(port, "closed", &credentials).await.unwrap_err();
    let error = error.to_string();
    assert!(error.contains("access denied"), "{error}");
    assert!(error.contains("asked as user \"u\""), "{error}");
    let heads: Vec<String> = heads.try_iter().collect();
    let sent = |head: &String, what: &str| head.to_lowercase().contains(what);
    // With the password, and then without one.
    assert_eq!(heads.len(), 6, "{heads:?}");
    assert!(!sent(&heads[0], "authorization"), "{heads:?}");
    assert!(
        sent(&heads[1], "/good-token?scope=repository%3aclosed%3apull"),
        "{heads:?}"
    );
    assert!(sent(&heads[1], "authorization: basic dtpw"), "{heads:?}");
    assert!(sent(&heads[2], "authorization: bearer t0k"), "{heads:?}");
    assert!(!sent(&heads[4], "authorization"), "{heads:?}");
}

/// Pulls `r.example/closed` as a `hosts.toml` has it; the credentials are for `places`.
async fn ask_configured(toml: &str, places: &str, image: &str) -> Result<Digest, Error> {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("_default");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("hosts.toml"), toml).unwrap();
    let settings = Settings {
        dirs: vec![dir.path().to_owned()],
        credentials: None,
    };
    let name = Name::parse(image).unwrap();
    let hosts = settings.hosts(name.registry()).unwrap();
    let of = |host: &Host| host.credentials_for(name.registry(), name.path());
    let targets: Vec<String> = hosts.iter().map(of).collect();
    let mut keyring = Keyring::default();
    let form = crate::runtime::image::keyring::Form::Cfg;
    keyring.add(places.as_bytes(), form, &targets).unwrap();
    let registry = Registry::new(&name, hosts, Arc::new(settings), &keyring, quick()).await?;
    let (_, digest) = registry.manifest(name.version(), None).await?;
    Ok(digest)
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_a_registry_do_not_go_to_its_mirrors() {
    let (mirror, of_mirror) = server(hostile);
    let (plain, of_plain) = server(hostile);
    let toml = format!(
        "server = \"http://127.0.0.1:{plain}\"\n[host.\"http://127.0.0.1:{mirror}\"]\n\
         [host.\"http://127.0.0.1:{mirror}\".header]\nx-own = \"h\"\n"
    );
    let registry = format!("127.0.0.1:{plain}");
    let auths = format!(r#"{{"{registry}": {{"username": "u", "password": "p"}}}}"#);
    let image = format!("{registry}/closed:1");
    let error = ask_configured(&toml, &auths, &image).await.unwrap_err();
    let error = error.to_string();
    let (first, second) = error.split_once("; ").unwrap();
    let asked = format!(
        "GET http://127.0.0.1:{mirror}/v2/closed/manifests/1?ns=127.0.0.1%3A{plain}: \
         the registry answers 401"
    );
    assert!(first.contains(&asked), "{error}");
    assert!(first.contains("asked without credentials"), "{error}");
    assert!(second.contains("asked as user \"u\""), "{error}");
    let lower = |heads: mpsc::Receiver<String>| -> Vec<String> {
        heads.try_iter().map(|head| head.to_lowercase()).collect()
    };
    let (of_mirror, of_plain) = (lower(of_mirror), lower(of_plain));
    let basic = |heads: &[String]| heads.iter().any(|head| head.contains("basic"));
    assert!(
        !basic(&of_mirror) && basic(&of_plain),
        "{of_mirror:?} {of_plain:?}"
    );
    let own = |heads: &[String]| heads.iter().all(|head| head.contains("x-own: h"));
    assert!(own(&of_mirror) && !own(&of_plain), "{of_mirror:?}");
    // Those for the mirror go to the mirror.
    let auths = format!(r#"{{"127.0.0.1:{mirror}": {{"username": "m", "password": "p"}}}}"#);
    let error = ask_configured(&toml, &auths, &image).await.unwrap_err();
    assert!(error.to_string().contains("asked as user \"m\""), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_token_is_posted_to_the_server_for_tokens() {
    let (port, heads) = server(hostile);
    let toml = format!("server = \"http://127.0.0.1:{port}\"\n");
    let auths = format!(r#"{{"127.0.0.1:{port}": {{"identitytoken": "i"}}}}"#);
    let image = format!("127.0.0.1:{port}/closed:1");
    let error = ask_configured(&toml, &auths, &image).await.unwrap_err();
    assert!(
        error.to_string().contains("asked with an identity token"),
        "{error}"
    );
    let heads: Vec<String> = heads.try_iter().collect();
    assert!(heads[1].starts_with("POST /good-token"), "{heads:?}");
    assert!(
        heads[2]
            .to_lowercase()
            .contains("authorization: bearer t0k"),
        "{heads:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_host_does_not_have_the_next_one_has() {
    let (port, _) = server(|path, stream| match path.contains("ns=") {
        true => say(stream, "404 Not Found", "", ""),
        false => {
            let manifest = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
            say(stream, "200 OK", "", manifest);
        }
    });
    let image = format!("127.0.0.1:{port}/a:1");
    for bad in [
        // Has nothing, is not there, is no registry.
        format!("http://localhost:{port}"),
        "http://127.0.0.1:1".to_owned(),
        "https://nowhere.invalid".to_owned(),
    ] {
        let toml = format!("server = \"http://127.0.0.1:{port}\"\n[host.\"{bad}\"]\n");
        let found = ask_configured(&toml, "{}", &image).await;
        assert!(found.is_ok(), "{bad}: {found:?}");
    }
    let toml = "[host.\"http://127.0.0.1:1\"]\ncapabilities = [\"pull\"]\n";
    let toml = format!("capabilities = [\"pull\"]\n{toml}");
    let error = ask_configured(&toml, "{}", &image).await.unwrap_err();
    assert!(
        error.to_string().contains("see the capabilities"),
        "{error}"
    );
}
