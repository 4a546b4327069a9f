use super::*;

fn read(text: &str) -> Result<File, String> {
    parse(text, Path::new("/c/r")).map_err(|error| error.to_string())
}

fn only(text: &str) -> Host {
    read(text).unwrap().hosts.remove(0)
}

#[test]
fn addresses() {
    for (text, scheme, authority, path) in [
        ("https://m.example", Scheme::Https, "m.example", "/v2"),
        ("m.example:5000", Scheme::Https, "m.example:5000", "/v2"),
        ("http://10.0.0.1:80/", Scheme::Http, "10.0.0.1:80", "/v2"),
        ("https://M.example/v2/", Scheme::Https, "m.example", "/v2"),
        ("https://m/v2/proxy", Scheme::Https, "m", "/v2/proxy/v2"),
        ("https://m//a", Scheme::Https, "m", "/a/v2"),
        ("https://[::1]:5000", Scheme::Https, "[::1]:5000", "/v2"),
    ] {
        let url = only(&format!("[host.{text:?}]")).url.unwrap();
        let got = (url.scheme, url.authority.as_str(), url.path.as_str());
        assert_eq!(got, (scheme, authority, path), "{text}");
    }
    for (text, path) in [
        ("https://m/v2/proxy", "/v2/proxy"),
        ("https://m", ""),
        ("https://m/", ""),
    ] {
        let url = only(&format!("[host.{text:?}]\noverride_path = true")).url;
        assert_eq!(url.unwrap().path, path, "{text}");
    }
}

#[test]
fn everything_that_a_host_may_say() {
    let file = read(
        r#"
        server = "https://up.example"
        ca = "up.pem"
        [host."http://b.example"]
          capabilities = ["pull"]
        [host."https://a.example"]
          capabilities = ["pull", "resolve", "PUSH"]
          ca = ["/etc/ca.pem", "own.pem"]
          client = [["c.cert", "c.key"], ["both.pem", ""], "one.pem"]
          skip_verify = true
          dial_timeout = "1m2.5s"
          [host."https://a.example".header]
            x-one = "1"
            x-two = ["2", "3"]
        "#,
    )
    .unwrap();
    let names: Vec<String> = file
        .hosts
        .iter()
        .map(|host| host.url.clone().unwrap().authority)
        .collect();
    // In the order of the file, not of the alphabet.
    assert_eq!(names, ["b.example", "a.example"]);
    assert_eq!(file.server.tls.ca, [PathBuf::from("/c/r/up.pem")]);
    assert!(!file.hosts[0].capabilities.resolve);
    let host = &file.hosts[1];
    assert_eq!(host.capabilities, Capabilities::default());
    assert_eq!(host.dial_timeout, Some(Duration::from_millis(62_500)));
    let pair = |certificate: &str, key: Option<&str>| ClientFiles {
        certificate: certificate.into(),
        key: key.map(PathBuf::from),
    };
    assert_eq!(
        host.tls,
        Tls {
            ca: vec!["/etc/ca.pem".into(), "/c/r/own.pem".into()],
            client: vec![
                pair("/c/r/c.cert", Some("/c/r/c.key")),
                pair("/c/r/both.pem", None),
                pair("/c/r/one.pem", None),
            ],
            skip_verify: true,
        }
    );
    let headers: Vec<_> = host
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect();
    assert_eq!(headers, [("x-one", "1"), ("x-two", "2"), ("x-two", "3")]);
}

#[test]
fn an_empty_file_is_the_registry_itself() {
    let file = read("").unwrap();
    assert!(file.hosts.is_empty());
    assert_eq!(file.server, Host::default());
}

#[test]
fn what_is_wrong_is_said_with_its_key() {
    let many: String = (0..=MOST_HOSTS)
        .map(|n| format!("[host.\"h{n}\"]\n"))
        .collect();
    for (text, want) in [
        ("server = 1", "server: must be a string, not integer"),
        (
            "sever = \"x\"",
            "sever: unknown key; known are capabilities",
        ),
        (
            "[host.\"https://m\"]\nskip_verfy = true",
            "host.\"https://m\".skip_verfy: unknown key",
        ),
        (
            "[host.\"https://m\"]\nskip_verify = \"yes\"",
            "host.\"https://m\".skip_verify: must be true or false, not string",
        ),
        (
            "[host.\"https://m\"]\ncapabilities = [\"read\"]",
            "\"read\" is none of pull, resolve, push",
        ),
        (
            "[host.\"https://m\"]\ncapabilities = \"pull\"",
            "must be an array of strings, not string",
        ),
        ("[host.\"ftp://m\"]", "must begin with https:// or http://"),
        ("[host.\"https://u:p@m\"]", "must hold no user name"),
        ("[host.\"https://m?x=1\"]", "neither a query"),
        ("[host.\"https://\"]", "is not a URL"),
        ("[host.\"https://m/../x\"]", "'.' or '..'"),
        ("[host.\"\"]", "must be a URL"),
        ("host = 1", "host: must be tables"),
        ("host.x = 1", "host.\"x\": must be a table"),
        ("ca = 1", "ca: must be a file's path"),
        ("ca = \"\"", "ca: an empty path"),
        ("client = [[\"a\", \"b\", \"c\"]]", "a pair must be"),
        ("client = [1]", "client: must be pairs"),
        ("dial_timeout = \"soon\"", "must be a duration"),
        ("dial_timeout = \"0s\"", "must be a duration"),
        ("dial_timeout = \"10h\"", "at most 300s"),
        ("[header]\n\"a b\" = \"x\"", "not the name of a header"),
        ("[header]\na = \"x\\ny\"", "not the value of a header"),
        ("[header]\nhost = \"x\"", "cannot be set"),
        (
            "[host.\"http://m\"]\nca = \"x\"",
            "ca and client are for https:// only",
        ),
        ("a = \n", "line 1: "),
        ("\n\n[host", "line 3: "),
        (&many, "more than 64 hosts"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(want), "{text}: {error}");
    }
}
