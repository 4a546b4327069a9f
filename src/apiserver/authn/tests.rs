use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::*;
use crate::{
    apiserver::{
        special::{Call, Special},
        testing::{InMemory, row},
    },
    pki::{Leaf, Pki},
};

struct Cluster {
    pki: Pki,
    objects: Arc<InMemory>,
    issuer: Arc<TokenIssuer>,
    authenticator: Arc<Authenticator>,
}

fn cluster() -> Cluster {
    let dir = tempfile::tempdir().expect("a folder");
    let pki = Pki::open(dir.path()).expect("made");
    let objects = Arc::new(InMemory::default());
    for (plural, namespace, name, uid) in [
        ("serviceaccounts", "shop", "till", "sa-1"),
        ("secrets", "shop", "key", "secret-1"),
        ("nodes", "", "node-1", "node-1-uid"),
    ] {
        let metadata = json!({ "namespace": namespace, "name": name, "uid": uid });
        objects.put(plural, json!({ "metadata": metadata }));
    }
    objects.put("pods", pod("pod-1"));
    let issuer = Arc::new(TokenIssuer::new(pki.token_keys(), DEFAULT_ISSUER));
    // Its thread writes into the folder.
    pki.token_keys().signing().expect("a key");
    let clients = pki.clients().expect("an authority");
    let authenticator = Arc::new(Authenticator::new(issuer.clone(), clients, objects.clone()));
    Cluster {
        pki,
        objects,
        issuer,
        authenticator,
    }
}

fn pod(uid: &str) -> Value {
    json!({
        "metadata": { "namespace": "shop", "name": "web", "uid": uid },
        "spec": { "serviceAccountName": "till", "nodeName": "node-1" },
    })
}

impl Cluster {
    async fn request(&self, spec: Value) -> Result<Value, Status> {
        let call = Call {
            user: &anonymous(),
            resource: &row("", "serviceaccounts", "ServiceAccount"),
            subresource: Some("token"),
            namespace: "shop",
            name: "till",
            dry_run: false,
            objects: &*self.objects,
        };
        TokenRequests(self.issuer.clone())
            .create(&call, json!({ "spec": spec }))
            .await
    }

    async fn who(&self, token: &str) -> Result<User, Status> {
        let request = http::Request::builder().header("authorization", format!("Bearer {token}"));
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        self.authenticator.authenticate(&parts, None).await
    }
}

fn token(answer: &Value) -> String {
    answer["status"]["token"]
        .as_str()
        .expect("a token")
        .to_owned()
}

fn bound_to(kind: &str, name: &str) -> Value {
    json!({ "boundObjectRef": { "apiVersion": "v1", "kind": kind, "name": name } })
}

fn chain(pki: &Pki, leaf: &Leaf) -> [CertificateDer<'static>; 1] {
    use rustls::pki_types::pem::PemObject;
    let identity = pki.issue(leaf).expect("issued");
    let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes());
    [certificate.expect("a certificate").into_owned()]
}

#[tokio::test]
async fn a_certificate_names_user_and_groups() {
    let cluster = cluster();
    let (parts, ()) = http::Request::new(()).into_parts();
    for (name, groups) in [
        ("jane", &["devs", "ops"][..]),
        ("system:masters", &[]), // a name is no group
    ] {
        let chain = chain(&cluster.pki, &Leaf::client(name, groups));
        let known = cluster.authenticator.authenticate(&parts, Some(&chain));
        let user = known.await.expect("known");
        assert_eq!(user.name, name);
        assert_eq!(user.groups, [groups, &[AUTHENTICATED]].concat());
    }
    let nobody = cluster.authenticator.authenticate(&parts, None).await;
    assert_eq!(nobody.expect("anonymous"), anonymous());
    let bad = cluster.who("nonsense").await;
    assert_eq!(bad.expect_err("not anonymous").code, 401);
}

#[tokio::test]
async fn a_strangers_certificate_is_no_credential() {
    let (ours, theirs) = (cluster(), cluster());
    let masters = Leaf::client("root", &["system:masters"]);
    let chain = chain(&theirs.pki, &masters);
    let (parts, ()) = http::Request::new(()).into_parts();
    let refused = ours.authenticator.authenticate(&parts, Some(&chain)).await;
    assert_eq!(refused.expect_err("not anonymous").code, 401);
    // A good token beside it counts.
    let token = token(&ours.request(json!({})).await.expect("issued"));
    let request = http::Request::builder().header("authorization", format!("Bearer {token}"));
    let (parts, ()) = request.body(()).expect("a request").into_parts();
    let user = ours.authenticator.authenticate(&parts, Some(&chain)).await;
    assert_eq!(user.expect("known").name, "system:serviceaccount:shop:till");
}

#[tokio::test]
async fn a_pods_token_says_who_and_dies_with_the_pod() {
    let cluster = cluster();
    let answer = cluster
        .request(bound_to("Pod", "web"))
        .await
        .expect("issued");
    let token = token(&answer);
    let user = cluster.who(&token).await.expect("known");
    assert_eq!(user.name, "system:serviceaccount:shop:till");
    assert_eq!(user.uid.as_deref(), Some("sa-1"));
    let extra = |key: &str| user.extra[&format!("authentication.kubernetes.io/{key}")][0].clone();
    assert_eq!(extra("pod-name"), "web");
    assert_eq!(extra("pod-uid"), "pod-1");
    assert_eq!(extra("node-name"), "node-1");
    assert_eq!(extra("node-uid"), "node-1-uid");
    assert!(extra("credential-id").starts_with("JTI="));

    cluster.objects.put("pods", pod("pod-2")); // of the same name, but another one
    assert_eq!(cluster.who(&token).await.expect_err("dead").code, 401);
    cluster.objects.put("pods", pod("pod-1"));
    assert!(cluster.who(&token).await.is_ok());
    cluster.objects.remove("pods", "shop", "web");
    assert!(cluster.who(&token).await.is_err());
}

#[tokio::test]
async fn what_a_token_is_bound_to_must_live() {
    for (kind, name, plural, namespace) in [
        ("Secret", "key", "secrets", "shop"),
        ("Node", "node-1", "nodes", ""),
    ] {
        let cluster = cluster();
        let answer = cluster.request(bound_to(kind, name)).await.expect("issued");
        let token = token(&answer);
        assert!(cluster.who(&token).await.is_ok(), "{kind}");
        cluster.objects.remove(plural, namespace, name);
        assert!(cluster.who(&token).await.is_err(), "{kind}");
    }
    let cluster = cluster();
    let answer = cluster.request(json!({})).await.expect("issued");
    let token = token(&answer);
    assert!(cluster.who(&token).await.is_ok());
    cluster.objects.remove("serviceaccounts", "shop", "till");
    assert!(cluster.who(&token).await.is_err());
}

#[tokio::test]
async fn requests_that_are_refused() {
    let cluster = cluster();
    let with_uid = json!({ "boundObjectRef":
        { "apiVersion": "v1", "kind": "Pod", "name": "web", "uid": "another" } });
    for (spec, code) in [
        (json!({ "expirationSeconds": 599 }), 422),
        (json!({ "expirationSeconds": (1_i64 << 32) + 1 }), 422),
        (bound_to("Pod", "none"), 404),
        (bound_to("ConfigMap", "web"), 400),
        (with_uid, 409),
    ] {
        let refused = cluster.request(spec.clone()).await.expect_err("refused");
        assert_eq!(refused.code, code, "{spec}");
    }
    let mut foreign = pod("pod-1");
    foreign["spec"]["serviceAccountName"] = json!("other");
    cluster.objects.put("pods", foreign);
    let refused = cluster.request(bound_to("Pod", "web")).await;
    assert_eq!(refused.expect_err("refused").code, 400);
}

#[tokio::test]
async fn audiences_and_time() {
    let cluster = cluster();
    let answer = cluster
        .request(json!({ "audiences": ["vault"] }))
        .await
        .expect("issued");
    let token = token(&answer);
    assert!(cluster.who(&token).await.is_err(), "not meant for the API");
    let asked = ["vault".to_owned(), "other".to_owned()];
    let verified = cluster.authenticator.token(&token, &asked).await;
    assert_eq!(verified.expect("meant for it").audiences, ["vault"]);

    let subject = Subject {
        namespace: "shop".to_owned(),
        account: Reference {
            name: "till".to_owned(),
            uid: "sa-1".to_owned(),
        },
    };
    let long_ago = issuer::now() - 7200;
    let expired = cluster.issuer.issue_at(
        &subject,
        cluster.issuer.audiences(),
        3600,
        Bound::Nothing,
        long_ago,
    );
    let expired = expired.expect("issued");
    assert!(cluster.who(&expired.token).await.is_err());

    // A pod's projected token: replaced within the hour, good for a year.
    let pod = Bound::Pod {
        pod: Reference {
            name: "web".to_owned(),
            uid: "pod-1".to_owned(),
        },
        node: None,
    };
    let audiences = cluster.issuer.audiences();
    let projected = cluster
        .issuer
        .issue_at(&subject, audiences, 3607, pod, long_ago)
        .expect("issued");
    assert_eq!(projected.expires, long_ago + 3607);
    assert!(cluster.who(&projected.token).await.is_ok());
}

#[tokio::test]
async fn a_token_kept_in_a_secret_dies_with_it() {
    let cluster = cluster();
    let subject = Subject {
        namespace: "shop".to_owned(),
        account: Reference {
            name: "till".to_owned(),
            uid: "sa-1".to_owned(),
        },
    };
    let token = cluster
        .issuer
        .issue_for_secret(&subject, "kept")
        .expect("issued");
    assert!(cluster.who(&token).await.is_err(), "the secret is missing");
    cluster.objects.put(
        "secrets",
        json!({
            "metadata": { "namespace": "shop", "name": "kept" },
            "data": { "token": BASE64_STANDARD.encode(&token) },
        }),
    );
    let user = cluster.who(&token).await.expect("known");
    assert_eq!(user.name, "system:serviceaccount:shop:till");
}

#[tokio::test]
async fn a_strangers_signature_is_worth_nothing() {
    let (ours, theirs) = (cluster(), cluster());
    let answer = theirs.request(json!({})).await.expect("issued");
    assert!(ours.who(&token(&answer)).await.is_err());
}

#[tokio::test]
async fn reviews() {
    let cluster = cluster();
    let answer = cluster.request(json!({})).await.expect("issued");
    let call = Call {
        user: &User::internal("jane", &["devs"]),
        resource: &row("authentication.k8s.io", "tokenreviews", "TokenReview"),
        subresource: None,
        namespace: "",
        name: "",
        dry_run: false,
        objects: &*cluster.objects,
    };
    let reviews = TokenReviews(cluster.authenticator.clone());
    let review = |token: String| reviews.create(&call, json!({ "spec": { "token": token } }));
    let good = review(token(&answer)).await.expect("an answer");
    assert_eq!(good["status"]["authenticated"], true);
    assert_eq!(
        good["status"]["user"]["username"],
        "system:serviceaccount:shop:till"
    );
    let bad = review("nonsense".to_owned()).await.expect("an answer");
    assert!(bad["status"]["authenticated"].is_null());
    assert!(bad["status"]["error"].is_string());
    let who = SelfSubjectReviews.create(&call, json!({})).await;
    assert_eq!(
        who.expect("an answer")["status"]["userInfo"],
        json!({ "username": "jane", "groups": ["devs", "system:authenticated"] })
    );
}

mod forged {
    //! Tokens that somebody made of a good one, or without.

    use base64::prelude::BASE64_URL_SAFE_NO_PAD as URL;
    use jsonwebtoken::{Algorithm, EncodingKey, Header};

    use super::*;

    fn segment(value: &Value) -> String {
        URL.encode(value.to_string())
    }

    fn signed(header: Header, claims: &Value, key: &EncodingKey) -> String {
        jsonwebtoken::encode(&header, claims, key).expect("encoded")
    }

    #[tokio::test]
    async fn tokens_are_refused() {
        let (cluster, stranger) = (cluster(), cluster());
        let good = token(&cluster.request(json!({})).await.expect("issued"));
        assert!(cluster.who(&good).await.is_ok());
        let [head, body, signature] = good.split('.').collect::<Vec<_>>()[..] else {
            panic!("three parts")
        };
        let decode = |part: &str| -> Value {
            serde_json::from_slice(&URL.decode(part).expect("base64")).expect("JSON")
        };
        let (header, claims) = (decode(head), decode(body));
        assert_eq!(header["alg"], "RS256");
        let ours = cluster.pki.token_keys().signing().expect("a key");
        let theirs = stranger.pki.token_keys().signing().expect("a key");
        let with_id = |algorithm, id: &str| {
            let mut header = Header::new(algorithm);
            header.kid = Some(id.to_owned());
            header
        };
        let rsa = |key: &crate::pki::TokenKey| {
            EncodingKey::from_rsa_pem(key.private_pem.as_bytes()).expect("a key")
        };
        let by_us = |change: fn(&mut Value)| {
            let mut claims = claims.clone();
            change(&mut claims);
            signed(with_id(Algorithm::RS256, &ours.id), &claims, &rsa(&ours))
        };
        let mut named = with_id(Algorithm::RS256, &theirs.id);
        named.jku = Some("https://127.0.0.1/keys".to_owned());
        named.x5u = named.jku.clone();
        named.x5c = Some(vec![URL.encode(&theirs.public_pem)]);
        named.jwk = serde_json::from_value(theirs.jwk.clone()).ok();
        let mut other = claims.clone();
        other["sub"] = json!("system:serviceaccount:kube-system:default");
        let unsigned = |algorithm: &str| {
            let mut header = header.clone();
            header["alg"] = json!(algorithm);
            format!("{}.{body}.", segment(&header))
        };
        let shared = |secret: &str| {
            let key = EncodingKey::from_secret(secret.as_bytes());
            signed(with_id(Algorithm::HS256, &ours.id), &claims, &key)
        };
        for (what, token) in [
            ("no algorithm", unsigned("none")),
            ("no algorithm, spelt otherwise", unsigned("nOnE")),
            ("the public key as a secret", shared(&ours.public_pem)),
            (
                "the public key as a secret, without an end",
                shared(ours.public_pem.trim()),
            ),
            (
                "a stranger's key",
                signed(
                    with_id(Algorithm::RS256, &theirs.id),
                    &claims,
                    &rsa(&theirs),
                ),
            ),
            (
                "a stranger's key by our name",
                signed(with_id(Algorithm::RS256, &ours.id), &claims, &rsa(&theirs)),
            ),
            (
                "a stranger's key without a name",
                signed(Header::new(Algorithm::RS256), &claims, &rsa(&theirs)),
            ),
            (
                "a key that the token brings along",
                signed(named, &claims, &rsa(&theirs)),
            ),
            (
                "another algorithm of our key",
                signed(with_id(Algorithm::RS512, &ours.id), &claims, &rsa(&ours)),
            ),
            (
                "our key by a stranger's name",
                signed(with_id(Algorithm::RS256, &theirs.id), &claims, &rsa(&ours)),
            ),
            (
                "another's claims",
                format!("{head}.{}.{signature}", segment(&other)),
            ),
            (
                "a part of the signature",
                format!("{head}.{body}.{}", &signature[..40]),
            ),
            ("no signature", format!("{head}.{body}")),
            ("a fourth part", format!("{good}.{signature}")),
            (
                "another issuer",
                by_us(|claims| claims["iss"] = json!("https://example.com")),
            ),
            (
                "another audience",
                by_us(|claims| claims["aud"] = json!(["vault"])),
            ),
            ("no audience", by_us(|claims| claims["aud"] = json!([]))),
            (
                "expired",
                by_us(|claims| claims["exp"] = json!(issuer::now() - 60)),
            ),
            (
                "not yet",
                by_us(|claims| claims["nbf"] = json!(issuer::now() + 600)),
            ),
            (
                "another uid",
                by_us(|claims| claims["kubernetes.io"]["serviceaccount"]["uid"] = json!("x")),
            ),
            (
                "without an account",
                by_us(|claims| claims["kubernetes.io"] = json!({})),
            ),
            (
                "a token that asks for a group",
                by_us(|claims| claims["iss"] = json!("kubernetes/serviceaccount")),
            ),
            (
                "a megabyte",
                format!("{head}.{}.{signature}", "A".repeat(1 << 20)),
            ),
            ("a megabyte of one part", "A".repeat(1 << 20)),
        ] {
            let refused = cluster.who(&token).await.expect_err(what);
            assert_eq!(refused.code, 401, "{what}");
        }
    }

    #[tokio::test]
    async fn an_older_clusters_tokens_go_on() {
        let dir = tempfile::tempdir().expect("a folder");
        let old = rcgen::KeyPair::generate().expect("a key").serialize_pem();
        std::fs::write(dir.path().join("sa.key"), &old).expect("written");
        let pki = Pki::open(dir.path()).expect("opened");
        let issuer = Arc::new(TokenIssuer::new(pki.token_keys(), DEFAULT_ISSUER));
        let fresh = cluster();
        let clients = pki.clients().expect("an authority");
        let authenticator = Arc::new(Authenticator::new(
            issuer.clone(),
            clients,
            fresh.objects.clone(),
        ));
        let cluster = Cluster {
            pki,
            issuer,
            authenticator,
            ..fresh
        };
        let new = token(&cluster.request(json!({})).await.expect("issued"));
        let claims: Value = serde_json::from_slice(
            &URL.decode(new.split('.').nth(1).expect("claims"))
                .expect("base64"),
        )
        .expect("JSON");
        let keys = jwks(&cluster.issuer).expect("keys");
        let key = &keys["keys"][1];
        assert_eq!(
            (&keys["keys"][0]["alg"], &key["alg"]),
            (&json!("RS256"), &json!("ES256"))
        );
        let mut header = Header::new(Algorithm::ES256);
        header.kid = key["kid"].as_str().map(str::to_owned);
        let old = signed(
            header,
            &claims,
            &EncodingKey::from_ec_pem(old.as_bytes()).expect("a key"),
        );
        for token in [&new, &old] {
            assert!(cluster.who(token).await.is_ok(), "{token}");
        }
        let discovered = openid_configuration(&cluster.issuer).expect("a document");
        assert_eq!(
            discovered["id_token_signing_alg_values_supported"],
            json!(["RS256", "ES256"])
        );
    }

    #[tokio::test]
    async fn a_token_that_nobody_would_take_is_not_made() {
        let cluster = cluster();
        let many: Vec<String> = (0..2000).map(|n| format!("https://{n:0>40}")).collect();
        let refused = cluster.request(json!({ "audiences": many })).await;
        assert_eq!(refused.expect_err("too large").code, 422);
    }
}
