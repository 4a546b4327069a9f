//! Counts of requests, in the words of `/metrics`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use super::path::ResourcePath;
use crate::{
    apiserver::{query::Query, registry::Scope},
    exposition::{self, Histogram, Kind, Page},
};

/// Upper bounds of the histogram in seconds, as in the original.
const BUCKETS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0,
    10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
];

/// What requests are told apart by.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Labels {
    verb: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: String,
    scope: &'static str,
    /// "" or "All".
    dry_run: &'static str,
}

/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Counters(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    totals: Mutex<BTreeMap<(Labels, u16), u64>>,
    latencies: Mutex<BTreeMap<Labels, Histogram<{ BUCKETS.len() }>>>,
    /// Held open on purpose; without those of which there is none now.
    held: Mutex<BTreeMap<Labels, u64>>,
    reading: AtomicI64,
    writing: AtomicI64,
}

/// A request under way, counted until dropped.
pub(super) struct Inflight {
    counters: Arc<Shared>,
    counted: Counted,
}

/// As what a request under way counts.
#[derive(Clone, Debug)]
enum Counted {
    Reading,
    Writing,
    Held(Labels),
}

impl Inflight {
    /// It goes on after the answer has begun.
    pub fn is_held(&self) -> bool {
        matches!(self.counted, Counted::Held(_))
    }
}

impl Drop for Inflight {
    fn drop(&mut self) {
        match &self.counted {
            Counted::Reading => {
                self.counters.reading.fetch_sub(1, Ordering::Relaxed);
            }
            Counted::Writing => {
                self.counters.writing.fetch_sub(1, Ordering::Relaxed);
            }
            Counted::Held(labels) => {
                let mut held = lock(&self.counters.held);
                match held.get_mut(labels) {
                    Some(count) if *count > 1 => *count -= 1,
                    _ => {
                        held.remove(labels);
                    }
                }
            }
        }
    }
}

impl Labels {
    /// `verb`: as authorization names it.
    pub fn new(path: Option<&ResourcePath>, verb: &str, query: &Query) -> Self {
        let dry_run = match query.all("dryRun").any(|value| value == "All") {
            true => "All",
            false => "",
        };
        let verb = match verb {
            "get" => "GET",
            "list" => "LIST",
            "watch" => "WATCH",
            "create" | "post" => "POST",
            "update" | "put" => "PUT",
            "patch" => "PATCH",
            "delete" => "DELETE",
            "deletecollection" => "DELETECOLLECTION",
            _ => "OTHER",
        };
        let Some(path) = path else {
            return Self {
                verb,
                dry_run,
                ..Self::default()
            };
        };
        Self {
            verb: if streams(path) { "CONNECT" } else { verb },
            group: path.row.group,
            version: path.row.version,
            resource: path.row.plural,
            // Only what exists, or else clients could make as many series as they like.
            subresource: match &path.subresource {
                Some(name) if streams(path) || name == "status" || name == "scale" => name.clone(),
                Some(_) => "other".to_owned(),
                None => String::new(),
            },
            scope: match (&path.name, path.row.scope) {
                (Some(_), _) => "resource",
                (None, Scope::Namespaced) if !path.namespace.is_empty() => "namespace",
                _ => "cluster",
            },
            dry_run,
        }
    }

    fn is_held(&self) -> bool {
        matches!(self.verb, "WATCH" | "CONNECT")
    }

    fn pairs(&self) -> [(&str, &str); 7] {
        [
            ("component", "apiserver"),
            ("group", self.group),
            ("resource", self.resource),
            ("scope", self.scope),
            ("subresource", &self.subresource),
            ("verb", self.verb),
            ("version", self.version),
        ]
    }

    /// As a sample has them, with `more` behind.
    fn with(&self, more: &[(&str, &str)]) -> exposition::Labels {
        exposition::Labels::of(&[&self.pairs()[..], more].concat())
    }
}

fn streams(path: &ResourcePath) -> bool {
    let names = ["log", "exec", "attach", "portforward", "proxy"];
    path.subresource
        .as_deref()
        .is_some_and(|name| names.contains(&name))
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Counters {
    pub(super) fn begin(&self, labels: &Labels) -> Inflight {
        let counted = match labels.verb {
            _ if labels.is_held() => Counted::Held(labels.clone()),
            "POST" | "PUT" | "PATCH" | "DELETE" | "DELETECOLLECTION" => Counted::Writing,
            _ => Counted::Reading,
        };
        match &counted {
            Counted::Reading => {
                self.0.reading.fetch_add(1, Ordering::Relaxed);
            }
            Counted::Writing => {
                self.0.writing.fetch_add(1, Ordering::Relaxed);
            }
            Counted::Held(labels) => {
                *lock(&self.0.held).entry(labels.clone()).or_default() += 1;
            }
        }
        Inflight {
            counters: self.0.clone(),
            counted,
        }
    }

    pub(super) fn answered(&self, labels: Labels, code: u16, took: Duration) {
        // What is held open on purpose says nothing about speed.
        if !labels.is_held() {
            let mut latencies = lock(&self.0.latencies);
            let latency = latencies.entry(labels.clone()).or_default();
            latency.observe(&BUCKETS, took);
        }
        *lock(&self.0.totals).entry((labels, code)).or_default() += 1;
    }

    pub(super) fn write(&self, page: &mut Page) {
        page.family(
            "apiserver_request_total",
            Kind::Counter,
            "[STABLE] Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code.",
            lock(&self.0.totals).iter().map(|((labels, code), count)| {
                let code = code.to_string();
                let more = [("code", code.as_str()), ("dry_run", labels.dry_run)];
                (labels.with(&more), *count as f64)
            }),
        );
        page.histograms(
            "apiserver_request_duration_seconds",
            "[STABLE] Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.",
            &BUCKETS,
            lock(&self.0.latencies).iter().map(|(labels, latency)| {
                (labels.with(&[("dry_run", labels.dry_run)]), latency.clone())
            }),
        );
        page.family(
            "apiserver_longrunning_requests",
            Kind::Gauge,
            "[STABLE] Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component. Not all requests are tracked this way.",
            lock(&self.0.held)
                .iter()
                .map(|(labels, count)| (labels.with(&[]), *count as f64)),
        );
        let under_way = [("mutating", &self.0.writing), ("readOnly", &self.0.reading)];
        page.family(
            "apiserver_current_inflight_requests",
            Kind::Gauge,
            "[STABLE] Maximal number of currently used inflight request limit of this apiserver per request kind in last second.",
            under_way.map(|(kind, counter)| {
                let labels = exposition::Labels::of(&[("request_kind", kind)]);
                (labels, counter.load(Ordering::Relaxed) as f64)
            }),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(counters: &Counters) -> String {
        let mut page = Page::new();
        counters.write(&mut page);
        page.into_text()
    }

    #[test]
    fn what_was_answered_is_told() {
        let counters = Counters::default();
        let labels = Labels::new(None, "get", &Query::parse("dryRun=All"));
        {
            let _one = counters.begin(&labels);
            let text = text(&counters);
            let line = "inflight_requests{request_kind=\"readOnly\"} 1";
            assert!(text.contains(line), "{text}");
        }
        counters.answered(labels.clone(), 200, Duration::from_millis(30));
        counters.answered(labels, 200, Duration::from_secs(90));
        let text = text(&counters);
        for line in [
            "verb=\"GET\",version=\"\",code=\"200\",dry_run=\"All\"} 2\n",
            "le=\"0.05\"} 1\n",
            "le=\"+Inf\"} 2\n",
            "request_kind=\"readOnly\"} 0\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }

    #[test]
    fn what_is_held_open_is_no_reading_and_leaves_no_series() {
        let counters = Counters::default();
        let labels = Labels::new(None, "watch", &Query::parse("dryRun=Some"));
        let (one, two) = (counters.begin(&labels), counters.begin(&labels));
        assert!(one.is_held());
        let line = "apiserver_longrunning_requests{component=\"apiserver\",group=\"\",resource=\"\",scope=\"\",subresource=\"\",verb=\"WATCH\",version=\"\"}";
        let (first, reading) = (text(&counters), "request_kind=\"readOnly\"} 0\n");
        assert!(
            first.contains(&format!("{line} 2\n")) && first.contains(reading),
            "{first}"
        );
        drop(one);
        assert!(text(&counters).contains(&format!("{line} 1\n")));
        drop(two);
        assert!(!text(&counters).contains("longrunning"));
    }
}
