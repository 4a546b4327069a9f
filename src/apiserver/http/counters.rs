//! Counts of requests, in the words of `/metrics`.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use super::path::ResourcePath;
use crate::apiserver::registry::Scope;

/// Upper bounds of the histogram, in seconds.
const BUCKETS: [f64; 12] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 2.0, 5.0, 15.0, 60.0,
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
}

#[derive(Debug, Default)]
struct Latency {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    seconds: f64,
}

#[derive(Debug, Default)]
pub struct Counters {
    totals: Mutex<BTreeMap<(Labels, u16), u64>>,
    latencies: Mutex<BTreeMap<Labels, Latency>>,
    reading: AtomicI64,
    writing: AtomicI64,
}

/// A request under way, counted until dropped.
pub(super) struct Inflight<'a>(&'a AtomicI64);

impl Drop for Inflight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Labels {
    /// `verb`: as authorization names it.
    pub fn new(path: Option<&ResourcePath>, verb: &str) -> Self {
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
        }
    }

    fn text(&self) -> String {
        format!(
            "component=\"apiserver\",group=\"{}\",resource=\"{}\",scope=\"{}\",subresource=\"{}\",verb=\"{}\",version=\"{}\"",
            self.group, self.resource, self.scope, self.subresource, self.verb, self.version
        )
    }
}

fn streams(path: &ResourcePath) -> bool {
    let names = ["log", "exec", "attach", "portforward", "proxy"];
    path.subresource
        .as_deref()
        .is_some_and(|name| names.contains(&name))
}

impl Counters {
    pub(super) fn begin(&self, labels: &Labels) -> Inflight<'_> {
        let counter = match labels.verb {
            "POST" | "PUT" | "PATCH" | "DELETE" | "DELETECOLLECTION" => &self.writing,
            _ => &self.reading,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        Inflight(counter)
    }

    pub(super) fn answered(&self, labels: Labels, code: u16, took: Duration) {
        // What is held open on purpose says nothing about speed.
        if !matches!(labels.verb, "WATCH" | "CONNECT") {
            let mut latencies = self
                .latencies
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let latency = latencies.entry(labels.clone()).or_default();
            let seconds = took.as_secs_f64();
            latency.count += 1;
            latency.seconds += seconds;
            for (bound, count) in BUCKETS.iter().zip(&mut latency.buckets) {
                *count += u64::from(seconds <= *bound);
            }
        }
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        *totals.entry((labels, code)).or_default() += 1;
    }

    /// Prometheus text.
    pub(super) fn write(&self, out: &mut String) {
        // Writing to a String cannot fail.
        let _ = self.try_write(out);
    }

    fn try_write(&self, out: &mut String) -> std::fmt::Result {
        out.push_str("# HELP apiserver_request_total Requests answered, by verb, resource and code.\n# TYPE apiserver_request_total counter\n");
        for ((labels, code), count) in &*self.totals.lock().unwrap_or_else(PoisonError::into_inner)
        {
            writeln!(
                out,
                "apiserver_request_total{{code=\"{code}\",{}}} {count}",
                labels.text()
            )?;
        }
        out.push_str("# HELP apiserver_request_duration_seconds Time to answer, without watches and streams.\n# TYPE apiserver_request_duration_seconds histogram\n");
        for (labels, latency) in &*self
            .latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
        {
            let name = "apiserver_request_duration_seconds";
            let labels = labels.text();
            for (bound, count) in BUCKETS.iter().zip(&latency.buckets) {
                writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}")?;
            }
            writeln!(
                out,
                "{name}_bucket{{{labels},le=\"+Inf\"}} {}",
                latency.count
            )?;
            writeln!(out, "{name}_sum{{{labels}}} {}", latency.seconds)?;
            writeln!(out, "{name}_count{{{labels}}} {}", latency.count)?;
        }
        out.push_str("# HELP apiserver_current_inflight_requests Requests being answered.\n# TYPE apiserver_current_inflight_requests gauge\n");
        for (kind, counter) in [("mutating", &self.writing), ("readOnly", &self.reading)] {
            let count = counter.load(Ordering::Relaxed);
            writeln!(
                out,
                "apiserver_current_inflight_requests{{request_kind=\"{kind}\"}} {count}"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_answered_is_told() {
        let counters = Counters::default();
        let labels = Labels::new(None, "get");
        {
            let _one = counters.begin(&labels);
            let mut text = String::new();
            counters.write(&mut text);
            assert!(
                text.contains("inflight_requests{request_kind=\"readOnly\"} 1"),
                "{text}"
            );
        }
        counters.answered(labels.clone(), 200, Duration::from_millis(30));
        counters.answered(labels, 200, Duration::from_secs(90));
        let mut text = String::new();
        counters.write(&mut text);
        assert!(text.contains("verb=\"GET\",version=\"\"} 2"), "{text}");
        assert!(text.contains("le=\"0.05\"} 1"), "{text}");
        assert!(text.contains("le=\"+Inf\"} 2"), "{text}");
        assert!(text.contains("request_kind=\"readOnly\"} 0"), "{text}");
    }
}
