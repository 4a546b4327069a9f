//! What Prometheus reads of a cluster: every endpoint is well-formed, has the names that dashboards ask
//! for, and moves with what happens.

mod lab;

use std::collections::{BTreeMap, BTreeSet};

use lab::Cluster;

/// Samples by name and labels, as they stand in the text.
#[derive(Debug)]
struct Page(BTreeMap<(String, String), f64>);

impl Page {
    /// Fails on what the format does not allow.
    fn parse(text: &str) -> Result<Self, String> {
        let (mut types, mut ended) = (BTreeMap::new(), BTreeSet::new());
        let (mut samples, mut current) = (BTreeMap::new(), String::new());
        if !text.is_empty() && !text.ends_with('\n') {
            return Err("the last line does not end".into());
        }
        for line in text.lines() {
            let wrong = |why: &str| format!("{why}: {line:?}");
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let name = rest.split(' ').next().unwrap_or_default();
                if name != current && !ended.insert(std::mem::replace(&mut current, name.into())) {
                    return Err(wrong("a family ended twice"));
                }
                if ended.contains(name) || types.contains_key(name) {
                    return Err(wrong("a family began twice"));
                }
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').ok_or_else(|| wrong("no type"))?;
                let known = ["counter", "gauge", "histogram"].contains(&kind);
                if !known
                    || name != current
                    || types.insert(name.to_owned(), kind.to_owned()).is_some()
                {
                    return Err(wrong("a type out of place"));
                }
            } else {
                let (name, labels, value) = sample(line).ok_or_else(|| wrong("no sample"))?;
                let of_family = match types.get(&current).map(String::as_str) {
                    Some("histogram") => ["_bucket", "_sum", "_count"]
                        .iter()
                        .any(|end| name == format!("{current}{end}")),
                    Some(_) => name == current,
                    None => false,
                };
                if !of_family {
                    return Err(wrong("a sample without its type before it"));
                }
                if samples.insert((name, labels), value).is_some() {
                    return Err(wrong("a series twice"));
                }
            }
        }
        for (family, _) in types.iter().filter(|(_, kind)| *kind == "histogram") {
            histogram(family, &samples)?;
        }
        Ok(Self(samples))
    }

    fn has(&self, name: &str) -> bool {
        self.0.keys().any(|(known, _)| known == name)
    }

    /// The sum of the samples that have all of these labels.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let fits = |(known, own): &(String, String)| {
            known == name && labels.iter().all(|label| own.contains(label))
        };
        let values = self.0.iter().filter(|(key, _)| fits(key));
        values.map(|(_, value)| value).sum()
    }
}

fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Name, labels and value; behind the value there may be a time.
fn sample(line: &str) -> Option<(String, String, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = String::new();
    if let Some(inner) = rest.strip_prefix('{') {
        let mut left = inner;
        let mut names = BTreeSet::new();
        loop {
            let (label, value) = left.split_once("=\"")?;
            if !is_name(label) || !names.insert(label) {
                return None;
            }
            let close = closing_quote(value)?;
            left = &value[close + 1..];
            match left.strip_prefix(',') {
                Some(more) => left = more,
                None => break,
            }
        }
        rest = left.strip_prefix('}')?;
        labels = inner[..inner.len() - left.len()].to_owned();
    }
    let mut words = rest.strip_prefix(' ')?.split(' ');
    let value = words.next()?.parse().ok()?;
    if let Some(time) = words.next() {
        time.parse::<i64>().ok()?;
    }
    (is_name(name) && words.next().is_none()).then(|| (name.to_owned(), labels, value))
}

/// Where a value ends; only `\\`, `\"` and `\n` are escapes.
fn closing_quote(value: &str) -> Option<usize> {
    let mut chars = value.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some(at),
            '\\' if !matches!(chars.next(), Some((_, '\\' | '"' | 'n'))) => return None,
            _ => {}
        }
    }
    None
}

/// Buckets rise with their bounds, and the last is the count.
fn histogram(family: &str, samples: &BTreeMap<(String, String), f64>) -> Result<(), String> {
    let mut buckets: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for ((name, labels), count) in samples {
        if *name == format!("{family}_bucket") {
            let (own, bound) = labels.rsplit_once("le=\"").ok_or("a bucket without le")?;
            let bound = bound
                .trim_end_matches('"')
                .parse()
                .map_err(|_| labels.clone())?;
            let own = own.trim_end_matches(',');
            buckets.entry(own).or_default().push((bound, *count));
        }
    }
    for (labels, mut of) in buckets {
        of.sort_by(|a, b| a.0.total_cmp(&b.0));
        let rising = of.windows(2).all(|pair| pair[0].1 <= pair[1].1);
        let last = of.last().filter(|(bound, _)| bound.is_infinite());
        let of_family = |end: &str| samples.get(&(format!("{family}{end}"), labels.to_owned()));
        let count = of_family("_count");
        if !rising || last.map(|(_, count)| count) != count || of_family("_sum").is_none() {
            return Err(format!("{family}{{{labels}}}: {of:?}, count {count:?}"));
        }
    }
    Ok(())
}

#[test]
fn the_parser_finds_what_is_wrong() {
    let head = "# HELP a h\n# TYPE a counter\n";
    let histogram = "# HELP h h\n# TYPE h histogram\n";
    for (text, good) in [
        (format!("{head}a 1\n"), true),
        (format!("{head}a{{b=\"x\\\"\",c=\"\"}} 1.5 1700\n"), true),
        (format!("{head}a 1"), false),
        ("a 1\n".to_owned(), false),
        (format!("{head}a 1\na 2\n"), false),
        (format!("{head}a 1\n{head}a{{b=\"\"}} 2\n"), false),
        (format!("{head}a{{b=\"x}} 1\n"), false),
        (format!("{head}a{{b=\"\\x\"}} 1\n"), false),
        (format!("{head}a{{b=\"\",b=\"\"}} 1\n"), false),
        (format!("{head}a one\n"), false),
        (
            format!(
                "{histogram}h_bucket{{le=\"1\"}} 1\nh_bucket{{le=\"+Inf\"}} 2\nh_sum 3\nh_count 2\n"
            ),
            true,
        ),
        (
            format!(
                "{histogram}h_bucket{{le=\"1\"}} 3\nh_bucket{{le=\"+Inf\"}} 2\nh_sum 3\nh_count 2\n"
            ),
            false,
        ),
        (
            format!("{histogram}h_bucket{{le=\"+Inf\"}} 2\nh_sum 3\nh_count 3\n"),
            false,
        ),
    ] {
        let parsed = Page::parse(&text);
        assert_eq!(parsed.is_ok(), good, "{text}\n{parsed:?}");
    }
}

fn read(cluster: &Cluster, path: &str) -> Page {
    let text = cluster.ok(&format!("get --raw {path}"));
    Page::parse(&text).unwrap_or_else(|why| panic!("{path}: {why}"))
}

fn names(page: &Page, wanted: &[&str]) {
    let missing: Vec<_> = wanted.iter().filter(|name| !page.has(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

const PROCESS: [&str; 7] = [
    "kubernetes_build_info",
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
];

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}] # a test machine's disk may be nearly full
  containers:
  - name: c
    image: busybox:1
    command: [sleep, '1000']
    resources: {limits: {cpu: 500m}}
    readinessProbe: {exec: {command: [sh, -c, 'test -e /ready']}, periodSeconds: 1}
";

#[test]
#[ignore = "needs root"]
fn the_api_server() {
    let cluster = Cluster::started();
    let before = read(&cluster, "/metrics");
    names(&before, &PROCESS);
    names(
        &before,
        &[
            "apiserver_current_inflight_requests",
            "apiserver_longrunning_requests",
            "apiserver_request_duration_seconds_bucket",
            "apiserver_request_total",
            "apiserver_storage_objects",
        ],
    );
    cluster.ok("create quota dry --hard=pods=9 --dry-run=server");
    cluster.ok("create quota wet --hard=pods=9");
    // What does not exist makes no series.
    cluster.kubectl("get --raw /apis/none.example/v1/anythings");
    let after = read(&cluster, "/metrics");
    let created = [
        "resource=\"resourcequotas\"",
        "verb=\"POST\"",
        "code=\"201\"",
    ];
    for dry in ["dry_run=\"\"", "dry_run=\"All\""] {
        let labels = [&created[..], &[dry]].concat();
        let moved = |page: &Page| page.sum("apiserver_request_total", &labels);
        assert_eq!(moved(&after) - moved(&before), 1.0, "{dry}");
    }
    let stored = |page: &Page| page.sum("apiserver_storage_objects", &["\"resourcequotas\""]);
    assert_eq!(stored(&after) - stored(&before), 1.0);
    let labels = |page: &Page| {
        page.0
            .keys()
            .any(|(_, labels)| labels.contains("anythings"))
    };
    assert!(!labels(&after));
    let watches = ["verb=\"WATCH\""];
    assert!(after.sum("apiserver_longrunning_requests", &watches) > 0.0);

    let slis = read(&cluster, "/metrics/slis");
    for kind in ["healthz", "livez", "readyz"] {
        let labels = ["name=\"etcd\"", &format!("type=\"{kind}\"")];
        assert_eq!(slis.sum("kubernetes_healthcheck", &labels), 1.0, "{kind}");
    }
}

#[test]
#[ignore = "needs root"]
fn the_kubelet() {
    let cluster = Cluster::started();
    cluster.import("busybox");
    let node = cluster.ok("get nodes -o jsonpath={.items[0].metadata.name}");
    let path = |below: &str| format!("/api/v1/nodes/{node}/proxy/metrics{below}");
    let before = read(&cluster, &path(""));
    names(&before, &PROCESS);
    cluster.wait(
        "get serviceaccount default -o name",
        "serviceaccount/default",
    );
    cluster.apply(POD);

    // The probe fails first, then not.
    let probed = |result: &str| {
        let labels = ["pod=\"p\"", "probe_type=\"Readiness\"", result];
        read(&cluster, &path("/probes")).sum("prober_probe_total", &labels)
    };
    lab::until("a probe fails", || probed("result=\"failed\"") > 0.0);
    cluster.ok("exec p -- touch /ready");
    cluster.ready("p");
    lab::until("a probe succeeds", || probed("result=\"successful\"") > 0.0);
    assert!(read(&cluster, &path("/probes")).has("prober_probe_duration_seconds_bucket"));

    let after = read(&cluster, &path(""));
    let running = |page: &Page| {
        let containers = ["container_state=\"running\""];
        let pods = page.sum("kubelet_running_pods", &[]);
        (pods, page.sum("kubelet_running_containers", &containers))
    };
    let (was, is) = (running(&before), running(&after));
    assert_eq!((is.0 - was.0, is.1 - was.1), (1.0, 1.0));
    assert_eq!(after.sum("kubelet_node_name", &[&node]), 1.0);
    for (name, operation) in [
        ("kubelet_runtime_operations_total", "run_podsandbox"),
        (
            "kubelet_runtime_operations_duration_seconds_count",
            "start_container",
        ),
    ] {
        let moved = after.sum(name, &[operation]) - before.sum(name, &[operation]);
        assert_eq!(moved, 1.0, "{name} {operation}");
    }

    let cadvisor = read(&cluster, &path("/cadvisor"));
    let row = ["container=\"c\"", "namespace=\"default\"", "pod=\"p\""];
    for name in [
        "container_cpu_usage_seconds_total",
        "container_last_seen",
        "container_memory_rss",
        "container_memory_usage_bytes",
        "container_memory_working_set_bytes",
        "container_start_time_seconds",
        "container_threads",
    ] {
        assert!(cadvisor.sum(name, &row) > 0.0, "{name}");
    }
    names(
        &cadvisor,
        &[
            "container_cpu_cfs_periods_total",
            "container_cpu_cfs_throttled_periods_total",
            "container_cpu_cfs_throttled_seconds_total",
            "container_memory_cache",
            "container_network_receive_packets_dropped_total",
            "container_network_receive_packets_total",
            "container_network_transmit_bytes_total",
            "container_network_transmit_packets_dropped_total",
            "container_network_transmit_packets_total",
            "container_oom_events_total",
            "machine_cpu_cores",
            "machine_memory_bytes",
        ],
    );
    assert!(cadvisor.sum("container_cpu_usage_seconds_total", &["id=\"/\""]) > 0.0);

    // Series go with their pod.
    cluster.ok("delete pod p");
    lab::until("the probes' series are gone", || {
        !read(&cluster, &path("/probes")).has("prober_probe_total")
    });
    read(&cluster, &path("/resource"));
}
