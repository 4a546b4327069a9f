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
    let issuer = Arc::new(TokenIssuer::new(pki.token_key(), DEFAULT_ISSUER).expect("a key"));
    let authenticator = Arc::new(Authenticator::new(issuer.clone(), objects.clone()));
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

#[tokio::test]
async fn a_certificate_names_user_and_groups() {
    let cluster = cluster();
    let leaf = Leaf::client("jane", &["devs", "ops"]);
    let identity = cluster.pki.issue(&leaf).expect("issued");
    use rustls::pki_types::pem::PemObject;
    let certificate =
        CertificateDer::from_pem_slice(identity.certificate.as_bytes()).expect("a certificate");
    let (parts, ()) = http::Request::new(()).into_parts();
    let chain = [certificate.into_owned()];
    let user = cluster
        .authenticator
        .authenticate(&parts, Some(&chain))
        .await
        .expect("known");
    assert_eq!(user.name, "jane");
    assert_eq!(user.groups, ["devs", "ops", AUTHENTICATED]);
    let nobody = cluster.authenticator.authenticate(&parts, None).await;
    assert_eq!(nobody.expect("anonymous"), anonymous());
    let bad = cluster.who("nonsense").await;
    assert_eq!(bad.expect_err("not anonymous").code, 401);
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
