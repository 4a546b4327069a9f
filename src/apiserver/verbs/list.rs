//! GET on a collection.

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::apiserver::{
    cache::{self, Object},
    query::{Query, invalid_option},
    registry::Resource,
    response::Page,
    selector::{Selection, Selector},
    server::ApiServer,
    status::{Cause, CauseType, Details, Reason, Status},
};
use crate::store::{self, Range};

/// How long a list waits for a revision that is not there yet.
const FUTURE: Duration = Duration::from_secs(3);

#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub selector: Selector,
    pub limit: usize,
    pub next: Option<Continue>,
    pub version: Version,
}

/// Which state of the world is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    #[default]
    Latest,
    Any,
    AtLeast(u64),
    Exactly(u64),
}

/// Where a page goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continue {
    /// 0: at the latest revision, after the first snapshot was compacted.
    revision: u64,
    after: String,
}

impl ListOptions {
    pub fn parse(row: &Resource, selection: Selection, query: &Query) -> Result<Self, Status> {
        let selector = Selector::new(row, selection)?;
        let limit = query.number("limit")?.unwrap_or(0);
        let next = query
            .get("continue")
            .filter(|text| !text.is_empty())
            .map(Continue::parse)
            .transpose()?;
        let version = query.get("resourceVersion").unwrap_or_default();
        let matching = query.get("resourceVersionMatch").unwrap_or_default();
        if query.get("sendInitialEvents").is_some() {
            let message = "Forbidden: sendInitialEvents is forbidden for list".to_owned();
            return Err(invalid_option(
                "sendInitialEvents",
                CauseType::FieldValueForbidden,
                message,
            ));
        }
        if next.is_some() && !matches!(version, "" | "0") {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let version = parse_version(version, matching, next.is_some(), limit)?;
        Ok(Self {
            selector,
            limit,
            next,
            version,
        })
    }
}

fn parse_version(
    version: &str,
    matching: &str,
    continues: bool,
    limit: usize,
) -> Result<Version, Status> {
    let forbidden = |why: &str| {
        Err(invalid_option(
            "resourceVersionMatch",
            CauseType::FieldValueForbidden,
            format!("Forbidden: {why}"),
        ))
    };
    let number = match version {
        "" => None,
        text => Some(text.parse::<u64>().map_err(|_| {
            Status::bad_request(format!(
                "Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
            ))
        })?),
    };
    match (matching, number) {
        ("", None) => Ok(Version::Latest),
        ("", Some(0)) => Ok(Version::Any),
        ("", Some(revision)) if limit > 0 => Ok(Version::Exactly(revision)),
        ("", Some(revision)) => Ok(Version::AtLeast(revision)),
        (_, _) if continues => forbidden("resourceVersionMatch is forbidden for continue"),
        (_, None) => {
            forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided")
        }
        ("NotOlderThan", Some(0)) => Ok(Version::Any),
        ("NotOlderThan", Some(revision)) => Ok(Version::AtLeast(revision)),
        ("Exact", Some(0)) => {
            forbidden("resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"")
        }
        ("Exact", Some(revision)) => Ok(Version::Exactly(revision)),
        (other, _) => {
            let message = format!(
                "Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\""
            );
            Err(invalid_option(
                "resourceVersionMatch",
                CauseType::FieldValueNotSupported,
                message,
            ))
        }
    }
}

impl Continue {
    fn parse(text: &str) -> Result<Self, Status> {
        let bad = || Status::bad_request("continue key is not valid");
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| bad())?;
        let token: Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
        let revision = token["rv"].as_u64().ok_or_else(bad)?;
        let after = token["start"].as_str().ok_or_else(bad)?.to_owned();
        Ok(Self { revision, after })
    }

    fn text(revision: u64, after: &str) -> String {
        BASE64_URL_SAFE_NO_PAD
            .encode(json!({"v": "meta.k8s.io/v1", "rv": revision, "start": after}).to_string())
    }
}

/// Waits for a revision of the future for a while.
pub async fn await_revision(server: &ApiServer, revision: u64) -> Result<u64, Status> {
    match tokio::time::timeout(FUTURE, server.cache.reached(revision)).await {
        Ok(reached) => Ok(reached),
        Err(_) => {
            let current = server.cache.revision();
            let message = format!("Too large resource version: {revision}, current: {current}");
            let mut status = Status::new(Reason::Timeout, message.clone());
            let cause = Cause {
                reason: CauseType::ResourceVersionTooLarge,
                message: "Too large resource version".to_owned(),
                field: String::new(),
            };
            status.details = Some(Details {
                causes: vec![cause],
                retry_after_seconds: Some(1),
                ..Details::default()
            });
            Err(status)
        }
    }
}

pub async fn list(
    server: &ApiServer,
    row: &'static Resource,
    namespace: &str,
    options: &ListOptions,
) -> Result<Page, Status> {
    let prefix = cache::key(row.storage, namespace, "");
    let after = options.next.as_ref().map_or("", |next| next.after.as_str());
    let mut wanted = options.version;
    if let Some(next) = &options.next {
        wanted = if next.revision == 0 {
            Version::Latest
        } else {
            Version::Exactly(next.revision)
        };
    }
    let current = match wanted {
        Version::Latest => server.cache.caught_up().await,
        Version::Any => server.cache.revision(),
        Version::AtLeast(revision) | Version::Exactly(revision) => {
            await_revision(server, revision).await?
        }
    };
    let kind = server.cache.kind(row.storage);
    // Objects and revision are read at once: changes come in all the time.
    let (objects, last) = kind.snapshot(&prefix, after);
    let (objects, revision) = match wanted {
        Version::Exactly(revision) if last > revision => (
            past(server, row, &prefix, after, revision, options).await?,
            revision,
        ),
        // Nothing of this kind changed since: the cache still is that snapshot.
        Version::Exactly(revision) => (objects, revision),
        // A change that came in between is in the objects: the revision must not be less.
        _ => (objects, current.max(last)),
    };
    let mut matching = server.shown_all(row, objects).await?;
    matching.retain(|object| options.selector.matches(row, object));
    Ok(page(matching, revision, options, wanted))
}

/// The state at an older revision, out of the store's history.
async fn past(
    server: &ApiServer,
    row: &Resource,
    prefix: &str,
    after: &str,
    revision: u64,
    options: &ListOptions,
) -> Result<Vec<Arc<Object>>, Status> {
    let range = Range {
        prefix: prefix.to_owned(),
        after: after.to_owned(),
        limit: 0,
        at: Some(revision),
    };
    let slice = server
        .cache
        .store()
        .range(range)
        .await
        .map_err(|error| match error {
            store::Error::Compacted { .. } => expired(options),
            other => Status::internal(other),
        })?;
    let root = cache::key(row.storage, "", "");
    let make = |entry: &store::Entry| {
        let rest = entry.key.strip_prefix(&*root).unwrap_or_default();
        Object::new(
            entry.key.clone(),
            rest,
            &entry.value.bytes(),
            entry.mod_revision,
        )
        .map(Arc::new)
    };
    slice
        .entries
        .iter()
        .map(make)
        .collect::<Result<_, _>>()
        .map_err(Status::internal)
}

/// 410. A page's token gets a fresh one, for going on with what is there now.
fn expired(options: &ListOptions) -> Status {
    let message = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results.";
    let mut status = Status::new(Reason::Expired, message);
    if let Some(next) = &options.next {
        status.next = Continue::text(0, &next.after);
    }
    status
}

fn page(
    mut objects: Vec<Arc<Object>>,
    revision: u64,
    options: &ListOptions,
    wanted: Version,
) -> Page {
    // With resourceVersion 0 the limit does not count.
    let limit = if options.limit == 0 || wanted == Version::Any {
        usize::MAX
    } else {
        options.limit
    };
    let all = objects.len();
    objects.truncate(limit);
    let more = all > objects.len();
    let next = match objects.last() {
        Some(last) if more => Continue::text(revision, &last.key),
        _ => String::new(),
    };
    let remaining = (more && options.selector.is_empty()).then(|| all - objects.len());
    Page {
        objects,
        revision,
        next,
        remaining,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_version_is_asked_for() {
        for (version, matching, continues, limit, want) in [
            ("", "", false, 0, Some(Version::Latest)),
            ("0", "", false, 5, Some(Version::Any)),
            ("7", "", false, 0, Some(Version::AtLeast(7))),
            ("7", "", false, 5, Some(Version::Exactly(7))),
            ("7", "NotOlderThan", false, 5, Some(Version::AtLeast(7))),
            ("7", "Exact", false, 0, Some(Version::Exactly(7))),
            ("0", "Exact", false, 0, None),
            ("", "Exact", false, 0, None),
            ("7", "Nonsense", false, 0, None),
            ("x", "", false, 0, None),
            ("0", "NotOlderThan", true, 0, None),
        ] {
            assert_eq!(
                parse_version(version, matching, continues, limit).ok(),
                want,
                "{version} {matching}"
            );
        }
    }

    /// After a compaction a list goes on with what is there now: page, what came before it and what
    /// remains are all of it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_list_goes_on_after_a_compaction() {
        let server = crate::apiserver::testing::Server::start().await;
        for at in 0..7 {
            let map = json!({"metadata": {"name": format!("m{at}")}});
            server
                .create("configmaps", "default", map)
                .await
                .expect("made");
        }
        let server = &server.handle.server;
        let row = server.rows.by_plural("configmaps").expect("served");
        let options = |next: &str| ListOptions {
            limit: 2,
            next: Some(Continue::parse(next).expect("a token")),
            ..ListOptions::default()
        };
        let all = ListOptions::default();
        let whole = list(server, row, "default", &all).await.expect("a list");
        let total = whole.objects.len();
        let first = ListOptions {
            limit: 2,
            ..ListOptions::default()
        };
        let first = list(server, row, "default", &first).await.expect("a page");
        assert_eq!(first.remaining, Some(total - 2));
        let asked = options(&first.next);
        let mut next = expired(&asked).next;
        let mut seen = 2;
        while !next.is_empty() {
            let page = list(server, row, "default", &options(&next))
                .await
                .expect("a page");
            seen += page.objects.len();
            assert_eq!(seen + page.remaining.unwrap_or(0), total);
            next = page.next;
        }
        assert_eq!(seen, total);
    }

    #[test]
    fn tokens_come_back() {
        let token = Continue::parse(&Continue::text(5, "/registry/pods/a/b")).unwrap();
        assert_eq!(
            token,
            Continue {
                revision: 5,
                after: "/registry/pods/a/b".to_owned()
            }
        );
        assert!(Continue::parse("%%%").is_err());
    }
}
