//! The API server's `/metrics` and `/metrics/slis`.

use std::collections::BTreeMap;

use super::{Frontend, health};
use crate::{
    apiserver::status,
    exposition::{Kind, Labels, Page, process},
};

pub(super) fn metrics(frontend: &Frontend) -> String {
    let mut page = Page::new();
    let (cache, rows) = (&frontend.server.cache, frontend.server.rows.all());
    let stored = rows
        .iter()
        .filter(|row| row.convert.is_none() && row.verbs.contains(&"list"));
    page.family(
        "apiserver_storage_objects",
        Kind::Gauge,
        "[STABLE] Number of stored objects at the time of last check split by kind.",
        stored.map(|row| {
            let resource = status::qualified(row.group, row.plural);
            let count = cache.kind(row.storage).count();
            (Labels::of(&[("resource", &resource)]), count as f64)
        }),
    );
    page.single(
        "etcd_revision",
        Kind::Gauge,
        "The revision that clients are shown.",
        cache.revision() as f64,
    );
    let usage = cache.store().usage();
    page.family(
        "apiserver_storage_size_bytes",
        Kind::Gauge,
        "[STABLE] Size of the storage database file physically allocated in bytes.",
        [(
            Labels::of(&[("storage_cluster_id", "etcd-0")]),
            usage.used_bytes as f64,
        )],
    );
    page.single(
        "etcd_server_quota_backend_bytes",
        Kind::Gauge,
        "Current backend storage quota size in bytes.",
        usage.quota_bytes as f64,
    );
    page.family(
        "vetch_part_restarts_total",
        Kind::Counter,
        "How often a part of the daemon was started again.",
        frontend.parts.report().into_iter().map(|part| {
            let labels = Labels::of(&[("part", &part.name)]);
            (labels, part.restarts as f64)
        }),
    );
    frontend.counters.write(&mut page);
    process::write(&mut page);
    page.into_text()
}

pub(super) async fn slis(frontend: &Frontend) -> String {
    let mut samples = BTreeMap::new();
    for endpoint in ["healthz", "livez", "readyz"] {
        let checks = health::Checks::look(frontend, endpoint).await;
        samples.extend(checks.states().map(|(name, well)| {
            let labels = Labels::of(&[("name", name), ("type", endpoint)]);
            (labels, f64::from(u8::from(well)))
        }));
    }
    let mut page = Page::new();
    page.family(
        "kubernetes_healthcheck",
        Kind::Gauge,
        "[STABLE] This metric records the result of all healthchecks.",
        samples,
    );
    page.into_text()
}
