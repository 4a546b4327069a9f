//! `/livez`, `/readyz` and `/healthz`: what is looked at, and the answers in the form of the original.
//!
//! Always true: a check says of what it names how that is now. The parts of the daemon are checks too.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use http::{HeaderValue, Response, header};

use super::{Body, Frontend, answer, full};
use crate::apiserver::{cache, query::Query};

const TEXT: &str = "text/plain; charset=utf-8";

/// What the log was told last of each endpoint: probes come every second, and what they find is the same
/// for long.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<BTreeMap<String, String>>);

impl Told {
    /// `failed`: the checks that failed, nothing if all is well.
    fn is_news(&self, endpoint: &str, failed: &str) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = told.insert(endpoint.to_owned(), failed.to_owned());
        before.unwrap_or_default() != failed
    }
}

/// What was found when all was looked at.
#[derive(Debug)]
pub(super) struct Checks {
    endpoint: String,
    /// By name; `None`: it is well.
    found: Vec<(String, Option<String>)>,
}

impl Checks {
    pub async fn look(frontend: &Frontend, endpoint: &str) -> Self {
        // The process answers, and what it logs is seen.
        let mut found = vec![("ping".to_owned(), None), ("log".to_owned(), None)];
        for part in frontend.parts.look().await {
            let mut why = part.down.map(|reason| reason.to_string());
            let is_cache = &*part.name == cache::PART && why.is_none();
            if is_cache && !frontend.server.cache.follows().await {
                why = Some("it does not show what is written".to_owned());
            }
            found.push((part.name.to_string(), why));
        }
        // By the names under which the original's users look for them.
        let known = found.iter().find(|(name, _)| name == cache::PART);
        let store = known.and_then(|(_, why)| why.clone());
        let named = match endpoint {
            "readyz" => &["etcd", "etcd-readiness", "informer-sync"][..],
            _ => &["etcd"][..],
        };
        for name in named {
            match found.iter_mut().find(|(check, _)| check == name) {
                // A part has this name, too: one check tells of both.
                Some((_, why)) => *why = why.take().or_else(|| store.clone()),
                None => found.push(((*name).to_owned(), store.clone())),
            }
        }
        Self {
            endpoint: endpoint.to_owned(),
            found,
        }
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.found.iter().map(|(name, _)| name.as_str())
    }

    /// Each check, and whether it is well.
    pub fn states(&self) -> impl Iterator<Item = (&str, bool)> {
        self.found
            .iter()
            .map(|(name, why)| (name.as_str(), why.is_none()))
    }

    /// One check; `None`: there is none of that name.
    pub fn one(&self, name: &str) -> Option<Response<Body>> {
        let (_, why) = self.found.iter().find(|(check, _)| check == name)?;
        Some(match why {
            None => well("ok"),
            Some(why) => unwell(&format!("internal server error: {name}: {why}\n")),
        })
    }

    pub fn all(&self, query: &Query, told: &Told) -> Response<Body> {
        let excluded: Vec<&str> = query.all("exclude").collect();
        let endpoint = &self.endpoint;
        let (mut text, mut failed) = (String::new(), Vec::new());
        for (name, why) in &self.found {
            let line = match why {
                _ if excluded.contains(&name.as_str()) => format!("[+]{name} excluded: ok\n"),
                None => format!("[+]{name} ok\n"),
                Some(_) => {
                    failed.push(name.as_str());
                    // Anybody may ask; the log says more.
                    format!("[-]{name} failed: reason withheld\n")
                }
            };
            text.push_str(&line);
        }
        let unknown = excluded
            .iter()
            .filter(|name| !self.found.iter().any(|(check, _)| check == *name));
        let unknown: Vec<String> = unknown.map(|name| format!("{name:?}")).collect();
        if !unknown.is_empty() {
            let unknown = unknown.join(", ");
            text.push_str(&format!(
                "warn: some health checks cannot be excluded: no matches for {unknown}\n"
            ));
        }
        let failed = failed.join(",");
        let is_news = excluded.is_empty() && told.is_news(endpoint, &failed);
        if !failed.is_empty() {
            if is_news {
                tracing::info!(failed, "{endpoint} check failed");
            }
            text.push_str(&format!("{endpoint} check failed\n"));
            return unwell(&text);
        }
        if is_news {
            tracing::info!("{endpoint} check passed");
        }
        text.push_str(&format!("{endpoint} check passed\n"));
        match query.get("verbose") {
            Some(_) => well(&text),
            None => well("ok"),
        }
    }
}

fn well(text: &str) -> Response<Body> {
    answer(200, TEXT, full(text.to_owned()))
}

fn unwell(text: &str) -> Response<Body> {
    let mut response = answer(500, TEXT, full(text.to_owned()));
    let nosniff = HeaderValue::from_static("nosniff");
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn said(response: Response<Body>) -> (u16, String) {
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body");
        (code, String::from_utf8_lossy(&body.to_bytes()).into_owned())
    }

    #[test]
    fn the_log_is_told_of_changes() {
        let told = Told::default();
        let steps = [("", false), ("a", true), ("a", false), ("a,b", true)];
        for (failed, news) in steps.into_iter().chain([("", true), ("", false)]) {
            assert_eq!(told.is_news("livez", failed), news, "{failed}");
        }
        assert!(told.is_news("readyz", "a"));
    }

    #[tokio::test]
    async fn the_answers_are_those_of_the_original() {
        let checks = Checks {
            endpoint: "livez".into(),
            found: vec![
                ("ping".into(), None),
                ("part/dns".into(), Some("panic: a defect".into())),
            ],
        };
        for (query, want) in [
            (
                "",
                (
                    500,
                    "[+]ping ok\n[-]part/dns failed: reason withheld\nlivez check failed\n",
                ),
            ),
            ("exclude=part/dns", (200, "ok")),
            (
                "verbose&exclude=part/dns&exclude=x",
                (
                    200,
                    "[+]ping ok\n[+]part/dns excluded: ok\nwarn: some health checks cannot be excluded: no matches for \"x\"\nlivez check passed\n",
                ),
            ),
        ] {
            let said = said(checks.all(&Query::parse(query), &Told::default())).await;
            assert_eq!((said.0, said.1.as_str()), want, "{query}");
        }
        let one = async |name| said(checks.one(name).expect("a check")).await;
        assert_eq!(one("ping").await, (200, "ok".into()));
        let why = "internal server error: part/dns: panic: a defect\n";
        assert_eq!(one("part/dns").await, (500, why.into()));
        assert!(checks.one("part").is_none());
    }
}
