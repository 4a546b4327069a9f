//! Who may use the kubelet's API.
//!
//! A certificate of the cluster's authority names its holder; a bearer token is reviewed by the
//! API server. What a user may is the API server's to say too (`nodes/<subresource>`), except for
//! the masters' group, to which the API server itself belongs: its streams work while it starts.
//! Always true: answers are kept for a short time and in bounded number; nobody is anonymous.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::{HeaderMap, StatusCode, header};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, api::PostParams};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use super::{answer::Answer, route::Right};
use crate::pki::Clients;

const MASTERS: &str = "system:masters";
const AUTHENTICATED: &str = "system:authenticated";
const TOKEN_LIFE: Duration = Duration::from_secs(2 * 60);
const ALLOWED_LIFE: Duration = Duration::from_secs(5 * 60);
const DENIED_LIFE: Duration = Duration::from_secs(30);
/// Entries of a cache.
const MAX_KEPT: usize = 1024;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct User {
    pub name: String,
    pub uid: Option<String>,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

type Decision = (User, &'static str, &'static str);

pub struct Auth {
    node: String,
    client: kube::Client,
    clients: Arc<Clients>,
    tokens: Kept<[u8; 32], Option<User>>,
    decisions: Kept<Decision, bool>,
}

impl Auth {
    pub fn new(node: String, client: kube::Client, clients: Arc<Clients>) -> Self {
        Self {
            node,
            client,
            clients,
            tokens: Kept::default(),
            decisions: Kept::default(),
        }
    }

    /// `shown`: the client's certificates, judged here. A bad one is as good as none: a token beside
    /// it counts.
    pub async fn check(
        &self,
        shown: Option<&[CertificateDer<'static>]>,
        headers: &HeaderMap,
        right: &Right,
    ) -> Result<(), Answer> {
        let user = match shown.and_then(|chain| self.holder(chain)) {
            Some(user) => Some(user),
            None => match bearer(headers) {
                Some(token) => self.review(token).await,
                None => None,
            },
        };
        let user = user.ok_or_else(|| Answer::new(StatusCode::UNAUTHORIZED, "Unauthorized"))?;
        if user.groups.iter().any(|group| group == MASTERS) {
            return Ok(());
        }
        for subresource in right.subresources {
            if self.allowed(&user, right.verb, subresource).await? {
                return Ok(());
            }
        }
        Err(Answer::new(
            StatusCode::FORBIDDEN,
            format!(
                "Forbidden (user={}, verb={}, resource=nodes, subresource(s)={:?})",
                user.name, right.verb, right.subresources
            ),
        ))
    }

    /// Common name and organizations of a good certificate, as user and groups.
    fn holder(&self, chain: &[CertificateDer<'static>]) -> Option<User> {
        let holder = match self.clients.holder(chain) {
            Ok(holder) => holder?,
            Err(why) => {
                tracing::debug!(%why, "certificate rejected");
                return None;
            }
        };
        let mut groups = holder.groups;
        groups.push(AUTHENTICATED.to_owned());
        Some(User {
            name: holder.user,
            groups,
            ..User::default()
        })
    }

    async fn review(&self, token: &str) -> Option<User> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.tokens.get(&key) {
            return known;
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: None,
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let status = match api.create(&PostParams::default(), &review).await {
            Ok(review) => review.status.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "review a token");
                return None;
            }
        };
        let named = status.user.filter(|_| status.authenticated == Some(true));
        let user = named.map(|user| User {
            name: user.username.unwrap_or_default(),
            uid: user.uid,
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        });
        self.tokens.put(key, user.clone(), TOKEN_LIFE);
        user
    }

    async fn allowed(
        &self,
        user: &User,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<bool, Answer> {
        let key = (user.clone(), verb, subresource);
        if let Some(known) = self.decisions.get(&key) {
            return Ok(known);
        }
        let attributes = ResourceAttributes {
            verb: Some(verb.to_owned()),
            version: Some("v1".to_owned()),
            resource: Some("nodes".to_owned()),
            subresource: Some(subresource.to_owned()),
            name: Some(self.node.clone()),
            ..ResourceAttributes::default()
        };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: user.uid.clone(),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()),
                resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let review = api
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| {
                tracing::warn!(%error, user = user.name, "review access");
                let name = &user.name;
                Answer::internal(format!(
                    "Authorization error (user={name}, verb={verb}, resource=nodes, \
                     subresource={subresource})"
                ))
            })?;
        let allowed = review.status.is_some_and(|status| status.allowed);
        let life = if allowed { ALLOWED_LIFE } else { DENIED_LIFE };
        self.decisions.put(key, allowed, life);
        Ok(allowed)
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Answers with an end.
struct Kept<K, V>(Mutex<HashMap<K, (V, Instant)>>);

impl<K, V> Default for Kept<K, V> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<K: Eq + Hash, V: Clone> Kept<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, end) = kept.get(key)?;
        (*end > Instant::now()).then(|| value.clone())
    }

    fn put(&self, key: K, value: V, life: Duration) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, (_, end)| *end > now);
        }
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(key, (value, now + life));
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::pki::{Leaf, Pki};

    #[tokio::test]
    async fn a_good_certificate_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let ours = Pki::open(&dir.path().join("ours")).unwrap();
        let theirs = Pki::open(&dir.path().join("theirs")).unwrap();
        let nobody = |_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("not asked"))
        };
        let client = kube::Client::new(tower::service_fn(nobody), "default");
        let auth = Auth::new("n".to_owned(), client, ours.clients().unwrap());
        let chain = |pki: &Pki| {
            let identity = pki.issue(&Leaf::client("jane", &["devs", "ops"])).unwrap();
            let (_, pem) =
                x509_parser::pem::parse_x509_pem(identity.certificate.as_bytes()).unwrap();
            [CertificateDer::from(pem.contents)]
        };
        let user = auth.holder(&chain(&ours)).unwrap();
        assert_eq!(user.name, "jane");
        assert_eq!(user.groups, ["devs", "ops", AUTHENTICATED]);
        assert_eq!(auth.holder(&chain(&theirs)), None);
    }

    #[test]
    fn bearer_tokens() {
        for (value, want) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Basic abc", None),
            ("Bearer ", None),
            ("abc", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            assert_eq!(bearer(&headers), want, "{value}");
        }
    }

    #[test]
    fn what_is_kept_ends_and_is_bounded() {
        let kept: Kept<usize, usize> = Kept::default();
        kept.put(1, 1, Duration::ZERO);
        assert_eq!(kept.get(&1), None);
        for number in 0..3 * MAX_KEPT {
            kept.put(number, number, ALLOWED_LIFE);
        }
        assert_eq!(kept.get(&(3 * MAX_KEPT - 1)), Some(3 * MAX_KEPT - 1));
        assert!(kept.0.lock().unwrap().len() <= MAX_KEPT);
    }
}
