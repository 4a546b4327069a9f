//! Certificate requests, certificates and tokens.

use std::{path::PathBuf, process::Output};

use crate::{
    harness::Health,
    lab::{Cluster, text, until},
};

/// A cluster, a folder for keys, and what openssl and curl are told of it.
struct Lab {
    cluster: Cluster,
    folder: PathBuf,
}

impl Lab {
    fn started() -> Self {
        let cluster = Cluster::started();
        let folder = cluster.root.path().join("keys");
        std::fs::create_dir(&folder).unwrap();
        Self { cluster, folder }
    }

    /// A line of shell on the host, in the folder of keys.
    fn sh(&self, line: &str) -> String {
        let folder = self.folder.display();
        self.cluster.host.sh(&format!("cd {folder} && {line}"))
    }

    /// A signing request of a new key, as the API takes it.
    fn request(&self, name: &str, subject: &str, alternative: &str, key: &str) -> String {
        let extension = match alternative {
            "" => String::new(),
            names => format!("-addext subjectAltName={names}"),
        };
        // A request may ask to be an authority; it is not given that.
        self.sh(&format!(
            "openssl req -new -nodes -newkey {key} -keyout {name}.key -subj '{subject}' \
             {extension} -addext basicConstraints=critical,CA:TRUE -out {name}.csr 2>/dev/null \
             && base64 -w0 {name}.csr"
        ))
    }

    fn manifest(&self, name: &str, signer: &str, usages: &str, request: &str) -> String {
        format!(
            "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\n\
             metadata: {{name: {name}}}\nspec: {{request: {request}, signerName: {signer}, \
             expirationSeconds: 3600, usages: [{usages}], username: root, groups: [system:masters]}}\n"
        )
    }

    /// kubectl as somebody else, with a manifest.
    fn apply_as(&self, user: &str, manifest: &str) -> Output {
        let file = self.folder.join("manifest.yaml");
        std::fs::write(&file, manifest).unwrap();
        let file = file.display();
        self.cluster.kubectl(&format!("create -f {file} {user}"))
    }

    fn conditions(&self, name: &str) -> String {
        let path = "{range .status.conditions[*]}{.type}/{.reason}: {.message};{end}";
        let path = format!("jsonpath={path}");
        self.cluster.ok_with(&["get", "csr", name, "-o", &path])
    }

    fn issued(&self, name: &str) -> String {
        let line = format!("get csr {name} -o jsonpath={{.status.certificate}}");
        let encoded = self.cluster.wait_for(&line, |got| !got.is_empty());
        std::fs::write(self.folder.join(format!("{name}.b64")), encoded).unwrap();
        self.sh(&format!(
            "base64 -d {name}.b64 > {name}.crt; openssl x509 -in {name}.crt -noout -text"
        ))
    }

    /// The status and body that curl gets from a port of this host.
    fn curl(&self, arguments: &str, port: u16, path: &str) -> String {
        self.sh(&format!(
            "curl -sk -m 10 -w ' %{{http_code}}' {arguments} https://127.0.0.1:{port}{path} || true"
        ))
    }
}

const CLIENT: &str = "'client auth', 'digital signature'";

#[test]
#[ignore = "needs root"]
fn approved_requests_are_signed_and_no_others() {
    let lab = Lab::started();
    let health = Health::watch(&lab.cluster);
    let api_client = "kubernetes.io/kube-apiserver-client";
    let cluster = &lab.cluster;

    // A user: signed once approved, for what was asked, and not as an authority.
    let request = lab.request(
        "jane",
        "/CN=jane/O=devs",
        "",
        "ec -pkeyopt ec_paramgen_curve:P-256",
    );
    let output = lab.apply_as("", &lab.manifest("jane", api_client, CLIENT, &request));
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(
        cluster.field("csr/jane", ".spec.username"),
        "kubernetes-admin"
    );
    cluster.ok("certificate approve jane");
    let certificate = lab.issued("jane");
    for line in [
        "O = devs, CN = jane",
        "CA:FALSE",
        "TLS Web Client Authentication",
    ] {
        assert!(certificate.contains(line), "{line}: {certificate}");
    }
    let lives = lab.sh("openssl x509 -in jane.crt -noout -checkend 3000; openssl x509 -in jane.crt -noout -checkend 3700 || true");
    assert!(
        lives.contains("will not expire") && lives.contains("will expire"),
        "{lives}"
    );
    let who = lab.curl(
        "--cert jane.crt --key jane.key -H 'Content-Type: application/json' -d '{}'",
        6443,
        "/apis/authentication.k8s.io/v1/selfsubjectreviews",
    );
    assert!(
        who.contains("\"jane\"") && who.contains("\"devs\""),
        "{who}"
    );

    // Full power is not to be had this way, nor in any other encoding of the name.
    let request = lab.request("root", "/CN=root/O=system:masters", "", "rsa:2048");
    let output = lab.apply_as("", &lab.manifest("root", api_client, CLIENT, &request));
    let refused = "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed";
    assert!(text(&output).contains(refused), "{}", text(&output));

    // Approved by mistake: the signer says why it does not sign.
    for (name, signer, subject, names, usages, why) in [
        (
            "serve",
            api_client,
            "/CN=x",
            "",
            "'server auth'",
            "invalid usage for client certificate: server auth",
        ),
        (
            "kubelet",
            "kubernetes.io/kube-apiserver-client-kubelet",
            "/CN=system:node:n/O=system:masters",
            "",
            CLIENT,
            "subject organization is not system:nodes",
        ),
        (
            "serving",
            "kubernetes.io/kubelet-serving",
            "/CN=system:node:n/O=system:nodes",
            "",
            "'server auth', 'digital signature'",
            "DNS or IP subjectAltName is required",
        ),
    ] {
        let request = lab.request(name, subject, names, "rsa:2048");
        let output = lab.apply_as("", &lab.manifest(name, signer, usages, &request));
        assert!(output.status.success(), "{}", text(&output));
        cluster.ok(&format!("certificate approve {name}"));
        let want = format!("Failed/SignerValidationFailure: {why};");
        until(&format!("{name} fails"), || {
            lab.conditions(name).contains(&want)
        });
        assert_eq!(
            cluster.field(&format!("csr/{name}"), ".status.certificate"),
            ""
        );
    }

    // A kubelet's serving certificate.
    let signer = "kubernetes.io/kubelet-serving";
    let request = lab.request(
        "node",
        "/O=system:nodes/CN=system:node:n",
        "DNS:n,IP:192.0.2.1",
        "rsa:2048",
    );
    let manifest = lab.manifest(
        "node",
        signer,
        "'server auth', 'digital signature', 'key encipherment'",
        &request,
    );
    assert!(lab.apply_as("", &manifest).status.success());
    cluster.ok("certificate approve node");
    let certificate = lab.issued("node");
    assert!(
        certificate.contains("DNS:n, IP Address:192.0.2.1"),
        "{certificate}"
    );

    // Denied ones are not signed, and neither word is taken back.
    let request = lab.request("denied", "/CN=x", "", "rsa:2048");
    assert!(
        lab.apply_as("", &lab.manifest("denied", api_client, CLIENT, &request))
            .status
            .success()
    );
    cluster.ok("certificate deny denied");
    let output = cluster.kubectl("certificate approve denied");
    assert!(!output.status.success(), "{}", text(&output));
    for (name, part) in [
        ("denied", "status"),
        ("denied", "approval"),
        ("jane", "approval"),
    ] {
        let patch = r#"{"status":{"conditions":[]}}"#;
        let output = cluster.kubectl_with(&[
            "patch",
            "csr",
            name,
            "--subresource",
            part,
            "--type=merge",
            "-p",
            patch,
        ]);
        assert!(
            text(&output).contains("updates may not remove a condition of type"),
            "{}",
            text(&output)
        );
    }
    health.assert();
}

#[test]
#[ignore = "needs root"]
fn approving_and_signing_need_a_right_on_the_signer() {
    let lab = Lab::started();
    let cluster = &lab.cluster;
    cluster.ok("create clusterrole csr --verb=create,get,update,patch --resource=certificatesigningrequests.certificates.k8s.io,certificatesigningrequests.certificates.k8s.io/approval,certificatesigningrequests.certificates.k8s.io/status");
    cluster.ok("create clusterrolebinding csr --clusterrole=csr --user=mallory");
    let request = lab.request("mine", "/CN=mallory2", "", "rsa:2048");
    let signer = "kubernetes.io/kube-apiserver-client";
    let output = lab.apply_as(
        "--as=mallory",
        &lab.manifest("mine", signer, CLIENT, &request),
    );
    assert!(output.status.success(), "{}", text(&output));
    // Who asks is who asked, whatever the body said.
    assert_eq!(cluster.field("csr/mine", ".spec.username"), "mallory");
    assert!(
        !cluster
            .field("csr/mine", ".spec.groups")
            .contains("masters")
    );

    let refused = |verb: &str, arguments: &[&str]| {
        let output = cluster.kubectl_with(&[arguments, &["--as=mallory"]].concat());
        let want = format!("user not permitted to {verb} requests with signerName \"{signer}\"");
        assert!(
            text(&output).contains(&want),
            "{arguments:?}: {}",
            text(&output)
        );
    };
    refused("approve", &["certificate", "approve", "mine"]);
    refused("approve", &["certificate", "deny", "mine"]);
    let failed = r#"{"status":{"conditions":[{"type":"Failed","status":"True"}]}}"#;
    refused(
        "sign",
        &[
            "patch",
            "csr",
            "mine",
            "--subresource=status",
            "--type=merge",
            "-p",
            failed,
        ],
    );
    let ca = lab.sh(&format!(
        "base64 -w0 {}/lib/pki/ca.crt",
        cluster.root.path().display()
    ));
    let certificate = format!(r#"{{"status":{{"certificate":"{}"}}}}"#, ca.trim());
    refused(
        "sign",
        &[
            "patch",
            "csr",
            "mine",
            "--subresource=status",
            "--type=merge",
            "-p",
            &certificate,
        ],
    );
    // What is approved cannot be changed on the way: not who asked, not what for.
    for part in ["", "--subresource=approval", "--subresource=status"] {
        let patch = r#"{"spec":{"username":"root","signerName":"example.com/own"}}"#;
        let mut arguments = vec!["patch", "csr", "mine", "--type=merge", "-p", patch];
        arguments.extend((!part.is_empty()).then_some(part));
        cluster.kubectl_with(&arguments);
        assert_eq!(
            cluster.field("csr/mine", ".spec.username"),
            "mallory",
            "{part}"
        );
        assert_eq!(
            cluster.field("csr/mine", ".spec.signerName"),
            signer,
            "{part}"
        );
    }

    // With the right on the domain it works.
    cluster.apply(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: approver}\n\
         rules: [{apiGroups: [certificates.k8s.io], resources: [signers], verbs: [approve], \
         resourceNames: ['kubernetes.io/*']}]\n",
    );
    cluster.ok("create clusterrolebinding approver --clusterrole=approver --user=mallory");
    cluster.ok("certificate approve mine --as=mallory");
    lab.issued("mine");

    // A kubelet's own is approved for who has the right to it, and for nobody else.
    let kubelet = "kubernetes.io/kube-apiserver-client-kubelet";
    let request = lab.request("boot", "/O=system:nodes/CN=system:node:n", "", "rsa:2048");
    let output = lab.apply_as(
        "--as=mallory",
        &lab.manifest("boot", kubelet, CLIENT, &request),
    );
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(lab.conditions("boot"), "");
    cluster.ok("create clusterrolebinding boot --clusterrole=system:certificates.k8s.io:certificatesigningrequests:nodeclient --user=mallory");
    until("boot is approved", || {
        lab.conditions("boot")
            .contains("AutoApproved: Auto approving kubelet client certificate")
    });
    lab.issued("boot");
}

#[test]
#[ignore = "needs root"]
fn strange_credentials_are_refused_in_words() {
    let lab = Lab::started();
    let health = Health::watch(&lab.cluster);
    // Another authority, whose certificates have our names: of version 1 and 3, and expired.
    lab.sh(
        "openssl req -x509 -nodes -newkey rsa:2048 -keyout ca.key -subj /CN=kubernetes -out ca.crt 2>/dev/null; \
         openssl req -new -nodes -newkey rsa:2048 -keyout c.key -subj /O=system:masters/CN=root -out c.csr 2>/dev/null; \
         openssl x509 -req -in c.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out one.crt 2>/dev/null; \
         echo extendedKeyUsage=clientAuth > ext; \
         openssl x509 -req -in c.csr -CA ca.crt -CAkey ca.key -extfile ext -out three.crt 2>/dev/null; \
         openssl req -x509 -nodes -key c.key -subj /O=system:masters/CN=root -out own.crt 2>/dev/null",
    );
    for certificate in ["one.crt", "three.crt", "own.crt"] {
        let shown = format!("--cert {certificate} --key c.key");
        for (port, path) in [(6443, "/api"), (6443, "/readyz"), (10250, "/pods")] {
            let answer = lab.curl(&shown, port, path);
            assert!(
                answer.contains("Unauthorized") && answer.ends_with(" 401"),
                "{port}{path}: {answer}"
            );
        }
    }
    // A good token beside a strange certificate counts.
    let token = lab.cluster.ok("create token default");
    let answer = lab.curl(
        &format!(
            "--cert three.crt --key c.key -H 'Authorization: Bearer {}'",
            token.trim()
        ),
        6443,
        "/api",
    );
    assert!(answer.ends_with(" 200"), "{answer}");

    // Tokens are RS256, and verifiers find the key.
    let head = lab.sh(&format!(
        "echo '{}' | cut -d. -f1 | base64 -d 2>/dev/null || true",
        token.trim()
    ));
    assert!(head.contains("RS256"), "{head}");
    let keys = lab.cluster.ok("get --raw /openid/v1/jwks");
    let kid = head
        .split("\"kid\":\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .unwrap();
    assert!(keys.contains(kid) && keys.contains("\"RSA\""), "{keys}");
    let discovered = lab
        .cluster
        .ok("get --raw /.well-known/openid-configuration");
    assert!(discovered.contains("[\"RS256\"]"), "{discovered}");
    let token = token.trim();
    let cut = &token[..token.len() - 8];
    let repeated = |times: usize| "A".repeat(times);
    // The last two do not fit into the head of a request; curl itself sends no longer one by HTTP/2.
    for (version, bad, status) in [
        ("--http2", "x.y.z", 401),
        ("--http1.1", "x.y.z", 401),
        ("--http2", cut, 401),
        ("--http2", &repeated(30_000), 401),
        ("--http1.1", &repeated(60_000), 401),
        ("--http2", &repeated(60_000), 431),
        ("--http1.1", &repeated(70_000), 431),
    ] {
        let header = format!("{version} -H 'Authorization: Bearer {bad}'");
        let answer = lab.curl(&header, 6443, "/api");
        assert!(
            answer.ends_with(&format!(" {status}")),
            "{version} {bad:.20}, {} bytes: {answer}",
            bad.len()
        );
    }
    health.assert();
}

#[test]
#[ignore = "needs root"]
fn answers_without_bodies_and_writes_to_wrong_places() {
    let lab = Lab::started();
    let cluster = &lab.cluster;
    // curl fails on a body where there may be none.
    let token = cluster.ok("create token default");
    for (port, path) in [
        (6443, "/api"),
        (6443, "/readyz"),
        (6443, "/version"),
        (6443, "/nothing"),
        (10250, "/pods"),
        (10250, "/healthz"),
    ] {
        for version in ["--http2", "--http1.1"] {
            let line = format!(
                "curl -sSIk -m 10 {version} -H 'Authorization: Bearer {}' https://127.0.0.1:{port}{path}",
                token.trim()
            );
            let head = lab.sh(&line);
            assert!(head.starts_with("HTTP/"), "{port}{path}: {head}");
        }
    }

    let refused = |arguments: &[&str], want: &str| {
        let said = text(&cluster.kubectl_with(arguments));
        assert!(said.contains(want), "{arguments:?}: {said}");
    };
    cluster.ok("create configmap here --from-literal=a=b");
    // kubectl clears a resourceVersion before it creates, unless it is not to read the file.
    let file = lab.folder.join("again.json");
    let again = cluster.ok("get configmap here -o json");
    let again = again.replace("\"name\": \"here\"", "\"name\": \"again\"");
    std::fs::write(&file, again).unwrap();
    let configmaps = "/api/v1/namespaces/default/configmaps";
    refused(
        &[
            "create",
            "--raw",
            configmaps,
            "-f",
            &file.display().to_string(),
        ],
        "Error from server (BadRequest): resourceVersion should not be set on objects to be created",
    );
    for (patch, want) in [
        (
            r#"{"metadata":{"namespace":"kube-system"}}"#,
            "the namespace of the object (kube-system) does not match the namespace on the request (default)",
        ),
        (
            r#"{"metadata":{"name":"there"}}"#,
            "the name of the object (there) does not match the name on the URL (here)",
        ),
        (r#"{"metadata":{"name":null}}"#, "name must be provided"),
        (
            r#"{"metadata":{"uid":"00000000-0000-0000-0000-000000000000"}}"#,
            "metadata.uid: Invalid value",
        ),
        (
            r#"{"metadata":{"deletionTimestamp":"2026-01-01T00:00:00Z"}}"#,
            "metadata.deletionTimestamp: Invalid value",
        ),
        (r#"{"kind":"Secret"}"#, "does not match the expected kind"),
        (
            r#"{"apiVersion":"v2"}"#,
            "does not match the expected apiVersion",
        ),
    ] {
        refused(
            &["patch", "configmap", "here", "--type=merge", "-p", patch],
            want,
        );
    }
    // What is the server's stays as it was.
    let before = cluster.field("configmap/here", ".metadata.creationTimestamp");
    cluster.ok_with(&["patch", "configmap", "here", "--type=merge", "-p", r#"{"metadata":{"creationTimestamp":"2001-01-01T00:00:00Z","generation":9,"selfLink":"/x"}}"#]);
    assert_eq!(
        cluster.field("configmap/here", ".metadata.creationTimestamp"),
        before
    );
    assert_eq!(cluster.field("configmap/here", ".metadata.generation"), "");
}

#[test]
#[ignore = "needs root"]
fn a_certificate_that_ends_is_issued_anew() {
    let lab = Lab::started();
    let cluster = &lab.cluster;
    let pki = cluster.root.path().join("lib/pki");
    assert!(cluster.vetch(&["down"]).status.success());
    // `openssl x509` cannot set when a certificate begins.
    std::fs::write(
        lab.folder.join("ca.cnf"),
        "[ca]\ndefault_ca = own\n\
         [own]\ndatabase = index\nnew_certs_dir = .\ndefault_md = sha256\nrand_serial = yes\n\
         unique_subject = no\npolicy = names\nx509_extensions = usage\n\
         [names]\norganizationName = optional\ncommonName = supplied\n\
         [usage]\nextendedKeyUsage = clientAuth\n",
    )
    .unwrap();
    // The administrator's, and the API server's for kubelets: expired, and good for one more day.
    for (name, subject, from, to) in [
        (
            "admin",
            "/O=system:masters/CN=kubernetes-admin",
            "-366 days",
            "-1 day",
        ),
        (
            "kube-apiserver-kubelet-client",
            "/O=system:masters/CN=kube-apiserver-kubelet-client",
            "-364 days",
            "+1 day",
        ),
    ] {
        let pki = pki.display();
        let date = |when: &str| format!("$(date -u -d '{when}' +%Y%m%d%H%M%SZ)");
        lab.sh(&format!(
            ": > index && openssl req -new -key {pki}/{name}.key -subj '{subject}' -out old.csr && \
             openssl ca -config ca.cnf -batch -notext -cert {pki}/ca.crt -keyfile {pki}/ca.key -in old.csr \
             -startdate {} -enddate {} -out {pki}/{name}.crt 2>ca.log || {{ cat ca.log >&2; false; }}",
            date(from),
            date(to)
        ));
    }
    cluster.up();
    cluster.ok("get nodes");
    for name in ["admin", "kube-apiserver-kubelet-client"] {
        lab.sh(&format!(
            "openssl x509 -in {}/{name}.crt -noout -checkend 20000000",
            pki.display()
        ));
    }
}
