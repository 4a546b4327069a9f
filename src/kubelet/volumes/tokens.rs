//! Service account tokens: asked for when a pod needs one, and anew at 80 % of their life.
//!
//! Bound to the pod: when it is gone, its tokens are worth nothing. Who asks for one asks again when
//! it is [`Tokens::due`], and when the clock was set: one from the future is good for nobody.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection},
};
use kube::{Api, Client, api::PostParams};

use super::user::User;

/// What is asked for if the pod does not say.
const LIFE_SECONDS: i64 = 3600;
/// However long a token lives, it is renewed after this.
const AGE_MOST: Duration = Duration::from_secs(24 * 3600);
/// When renewing failed, and the old one is still good.
const RETRY: Duration = Duration::from_secs(60);

/// What makes a token another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    account: String,
    audience: String,
    seconds: i64,
}

#[derive(Clone, Debug)]
struct Token {
    text: String,
    /// When it was asked for, or last seen to be the best there is.
    issued: SystemTime,
    expires: SystemTime,
    /// When to ask for the next one.
    renew: SystemTime,
}

impl Token {
    /// When to ask for the next one, seen from `now`: at once if the clock was ahead when this one was
    /// issued, for then it is not valid yet.
    fn renew_at(&self, now: SystemTime) -> SystemTime {
        match self.issued > now {
            true => now,
            false => self.renew,
        }
    }
}

type OfPod = HashMap<Key, Token>;

/// Cheap to clone.
#[derive(Clone)]
pub struct Tokens {
    client: Client,
    now: fn() -> SystemTime,
    /// By UID.
    pods: Arc<Mutex<HashMap<String, OfPod>>>,
}

impl Tokens {
    pub fn new(client: Client) -> Self {
        Self {
            client,
            now: SystemTime::now,
            pods: Arc::default(),
        }
    }

    /// A token that is good for a while yet.
    pub async fn get(
        &self,
        user: &User,
        pod: &Pod,
        wanted: &ServiceAccountTokenProjection,
    ) -> Result<String, String> {
        let account = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.service_account_name.clone());
        let key = Key {
            account: account
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| "default".into()),
            audience: wanted.audience.clone().unwrap_or_default(),
            seconds: wanted.expiration_seconds.unwrap_or(LIFE_SECONDS),
        };
        let uid = user.uid();
        let held = self.lock().get(uid).and_then(|of| of.get(&key).cloned());
        let now = (self.now)();
        if let Some(token) = held.as_ref().filter(|token| now < token.renew_at(now)) {
            return Ok(token.text.clone());
        }
        let token = match (self.request(pod, &key).await, held) {
            (Ok(token), _) => token,
            (Err(error), Some(old)) if now < old.expires => {
                tracing::warn!(pod = uid, %error, "renewing a service account token");
                Token {
                    issued: old.issued.min(now),
                    renew: (now + RETRY).min(old.expires),
                    ..old
                }
            }
            (Err(error), _) => return Err(format!("failed to fetch token: {error}")),
        };
        let text = token.text.clone();
        self.keep(user, key, token);
        Ok(text)
    }

    /// How long until the first of its tokens must be asked for anew.
    pub fn due(&self, user: &User) -> Option<Duration> {
        let now = (self.now)();
        let pods = self.lock();
        let tokens = pods.get(user.uid())?.values();
        let due = tokens.map(|token| token.renew_at(now));
        let left = due.min()?.duration_since(now);
        Some(left.unwrap_or_default())
    }

    /// The user, which is marked as released, has no tokens any more.
    pub fn release(&self, user: &User) {
        self.lock().remove(user.uid());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, OfPod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn request(&self, pod: &Pod, key: &Key) -> Result<Token, String> {
        let meta = &pod.metadata;
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: (!key.audience.is_empty()).then(|| vec![key.audience.clone()]),
                expiration_seconds: Some(key.seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: meta.name.clone(),
                    uid: meta.uid.clone(),
                }),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let asked = (self.now)();
        let answer = accounts
            .create_token_request(&key.account, &PostParams::default(), &request)
            .await
            .map_err(|error| error.to_string())?;
        let status = answer.status.unwrap_or_default();
        let text = status
            .token
            .filter(|text| !text.is_empty())
            .ok_or("the answer holds no token")?;
        let expires = status
            .expiration_timestamp
            .map(|time| SystemTime::from(time.0));
        let expires = expires.ok_or("the answer does not say how long the token lives")?;
        let life = expires.duration_since(asked).unwrap_or_default();
        Ok(Token {
            text,
            issued: asked,
            expires,
            renew: asked + (life * 4 / 5).min(AGE_MOST),
        })
    }

    fn keep(&self, user: &User, key: Key, token: Token) {
        let mut pods = self.lock();
        // Looked at while the tokens are held, which its release waits for.
        if !user.is_released() {
            let of = pods.entry(user.uid().to_owned()).or_default();
            of.insert(key, token);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicBool, AtomicU64, Ordering},
        time::UNIX_EPOCH,
    };

    use serde_json::json;

    use super::*;

    const HOUR: u64 = 3600;
    static NOW: AtomicU64 = AtomicU64::new(0);
    static REFUSES: AtomicBool = AtomicBool::new(false);

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOW.load(Ordering::SeqCst))
    }

    fn set(hour: u64) {
        NOW.store(1_800_000_000 + hour * HOUR, Ordering::SeqCst);
    }

    /// An API server on the same clock, whose tokens live an hour and say when they were issued.
    async fn issue(
        _: http::Request<kube::client::Body>,
    ) -> Result<http::Response<kube::client::Body>, Infallible> {
        let ends = NOW.load(Ordering::SeqCst) + HOUR;
        let expires = jiff::Timestamp::from_second(ends.cast_signed()).unwrap();
        let hour = (ends - HOUR - 1_800_000_000) / HOUR;
        let token = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
            "spec": {"audiences": []},
            "status": {"token": format!("of hour {hour}"), "expirationTimestamp": expires.to_string()},
        });
        let code = match REFUSES.load(Ordering::SeqCst) {
            true => 503,
            false => 200,
        };
        let body = kube::client::Body::from(token.to_string().into_bytes());
        Ok(http::Response::builder().status(code).body(body).unwrap())
    }

    #[tokio::test]
    async fn a_token_of_a_clock_that_was_ahead_is_asked_for_anew() {
        let client = Client::new(tower::service_fn(issue), "default");
        let tokens = Tokens {
            now,
            ..Tokens::new(client)
        };
        let user = User::new("uid");
        let (pod, wanted) = (Pod::default(), ServiceAccountTokenProjection::default());
        let get = async || tokens.get(&user, &pod, &wanted).await.unwrap();
        set(10);
        assert_eq!(get().await, "of hour 10");
        assert_eq!(get().await, "of hour 10", "it is kept");
        let due = tokens.due(&user).unwrap();
        assert_eq!(due, Duration::from_secs(HOUR * 4 / 5));
        // Set back by eight hours.
        set(2);
        assert_eq!(tokens.due(&user), Some(Duration::ZERO));
        assert_eq!(get().await, "of hour 2");
        assert_eq!(tokens.due(&user), Some(due));
        // And once more, while nobody issues tokens: tried again soon, and not all the time.
        set(1);
        REFUSES.store(true, Ordering::SeqCst);
        assert_eq!(get().await, "of hour 2");
        assert_eq!(tokens.due(&user), Some(RETRY));
        REFUSES.store(false, Ordering::SeqCst);
        // Set on: it is old.
        set(5);
        assert_eq!(tokens.due(&user), Some(Duration::ZERO));
        assert_eq!(get().await, "of hour 5");
    }
}
