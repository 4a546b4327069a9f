//! Who may use the kubelet's API.
//!
//! A certificate of the cluster's authority names its holder; a bearer token is reviewed by the
//! API server. What a user may is the API server's to say too (`nodes/<subresource>`), except for
//! the masters' group, to which the API server itself belongs: its streams work while it starts.
//! Always true: answers are kept for a short time and in bounded number; nobody is anonymous.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::{Mutex, PoisonError},
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
    tokens: Kept<[u8; 32], Option<User>>,
    decisions: Kept<Decision, bool>,
}

impl Auth {
    pub fn new(node: String, client: kube::Client) -> Self {
        Self {
            node,
            client,
            tokens: Kept::default(),
            decisions: Kept::default(),
        }
    }

    /// `certificate`: the one that TLS has verified.
    pub async fn check(
        &self,
        certificate: Option<&CertificateDer<'_>>,
        headers: &HeaderMap,
        right: &Right,
    ) -> Result<(), Answer> {
        let user = match certificate {
            Some(certificate) => holder(certificate),
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

/// Common name and organizations of a certificate, as user and groups.
fn holder(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().last()?.as_str().ok()?.to_owned();
    let mut groups: Vec<String> = subject
        .iter_organization()
        .filter_map(|organization| Some(organization.as_str().ok()?.to_owned()))
        .collect();
    groups.push(AUTHENTICATED.to_owned());
    Some(User {
        name,
        groups,
        ..User::default()
    })
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

    #[test]
    fn a_certificate_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        let identity = pki.issue(&Leaf::client("jane", &["devs", "ops"])).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(identity.certificate.as_bytes()).unwrap();
        let user = holder(&CertificateDer::from(pem.contents)).unwrap();
        assert_eq!(user.name, "jane");
        assert_eq!(user.groups, ["devs", "ops", AUTHENTICATED]);
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
