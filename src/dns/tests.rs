//! Queries against an index of a few services, in memory and over sockets.

use std::time::Duration;

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use k8s_openapi::api::core::v1::Service;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

use super::{
    answer::{self, Answer, answer},
    records::{Index, records},
    *,
};
use crate::informer::Key;

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn index() -> TestResult<Index> {
    let mut index = Index::default();
    let mut add = |name: &str, spec, slices: &[EndpointSlice]| -> TestResult {
        let metadata = json!({"name": name, "namespace": "shop"});
        let service: Service = serde_json::from_value(json!({"metadata": metadata, "spec": spec}))?;
        let slices: Vec<&EndpointSlice> = slices.iter().collect();
        let key = Key::new("shop", name);
        index.update(&key, records(&service, &slices, "cluster.local"));
        Ok(())
    };
    let dns = json!({"spec": {"clusterIP": "10.96.0.10"}, "metadata": {"name": "kube-dns", "namespace": "kube-system"}});
    let dns: Service = serde_json::from_value(dns)?;
    let key = Key::new("kube-system", "kube-dns");
    let web = json!({"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80}]});
    add("web", web, &[])?;
    let addresses: Vec<_> = (1..=100)
        .map(|n| json!({"addresses": [format!("10.0.1.{n}")]}))
        .collect();
    let db: EndpointSlice = serde_json::from_value(json!({
        "metadata": {}, "addressType": "IPv4", "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": ["10.0.0.1"], "hostname": "db-0"},
            {"addresses": ["10.0.0.2"]},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": false}},
        ],
    }))?;
    let many: EndpointSlice = serde_json::from_value(json!({
        "metadata": {}, "addressType": "IPv4", "endpoints": addresses,
    }))?;
    add("db", json!({"clusterIP": "None"}), &[db])?;
    add("many", json!({"clusterIP": "None"}), &[many])?;
    add("none", json!({"clusterIP": "None"}), &[])?;
    add(
        "near",
        json!({"type": "ExternalName", "externalName": "web.shop.svc.cluster.local"}),
        &[],
    )?;
    add(
        "lost",
        json!({"type": "ExternalName", "externalName": "nobody.shop.svc.cluster.local"}),
        &[],
    )?;
    add(
        "far",
        json!({"type": "ExternalName", "externalName": "example.org"}),
        &[],
    )?;
    index.update(&key, records(&dns, &[], "cluster.local"));
    Ok(index)
}

fn query(name: &str, kind: RecordType) -> TestResult<Message> {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(name)?, kind));
    Ok(query)
}

/// Sorted answers as text, or the response code.
fn shown(message: &Message) -> String {
    let mut lines: Vec<String> = message
        .answers
        .iter()
        .map(|record| match &record.data {
            RData::SRV(srv) => format!("{}:{}", srv.target, srv.port),
            data => data.to_string(),
        })
        .collect();
    lines.sort();
    match message.metadata.response_code {
        ResponseCode::NoError => lines.join(" "),
        code => format!("{code:?}"),
    }
}

const SOA: &str = "ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5";

/// A zone that has no Service yet has a SOA too, and a server without a Service has a name.
#[test]
fn the_zone_is_there_without_services() -> TestResult {
    for (name, kind, want) in [
        ("cluster.local.", RecordType::SOA, SOA),
        ("cluster.local.", RecordType::NS, "ns.dns.cluster.local."),
        ("ns.dns.cluster.local.", RecordType::A, ""),
    ] {
        let query = query(name, kind)?;
        let Answer::Reply(reply) = answer(&query, &Index::default(), "cluster.local") else {
            return Err(format!("{name} was not answered").into());
        };
        assert_eq!(shown(&reply), want, "{name} {kind}");
    }
    Ok(())
}

#[test]
fn names_of_the_cluster() -> TestResult {
    let index = index()?;
    for (name, kind, want) in [
        ("web.shop.svc.cluster.local.", RecordType::A, "10.96.0.7"),
        ("WEB.shop.SVC.cluster.local.", RecordType::A, "10.96.0.7"),
        ("web.shop.svc.cluster.local.", RecordType::AAAA, ""), // no such family: no data
        (
            "_http._tcp.web.shop.svc.cluster.local.",
            RecordType::SRV,
            "web.shop.svc.cluster.local.:80",
        ),
        (
            "7.0.96.10.in-addr.arpa.",
            RecordType::PTR,
            "web.shop.svc.cluster.local.",
        ),
        (
            "db.shop.svc.cluster.local.",
            RecordType::A,
            "10.0.0.1 10.0.0.2",
        ),
        ("db-0.db.shop.svc.cluster.local.", RecordType::A, "10.0.0.1"),
        (
            "10-0-0-2.db.shop.svc.cluster.local.",
            RecordType::A,
            "10.0.0.2",
        ),
        (
            "_sql._tcp.db.shop.svc.cluster.local.",
            RecordType::SRV,
            "10-0-0-2.db.shop.svc.cluster.local.:5432 db-0.db.shop.svc.cluster.local.:5432",
        ),
        (
            "1.0.0.10.in-addr.arpa.",
            RecordType::PTR,
            "db-0.db.shop.svc.cluster.local.",
        ),
        (
            "near.shop.svc.cluster.local.",
            RecordType::A,
            "10.96.0.7 web.shop.svc.cluster.local.",
        ),
        // An alias to a name of the cluster is never asked upstream, whether there is such a name.
        ("lost.shop.svc.cluster.local.", RecordType::A, "NXDomain"),
        ("none.shop.svc.cluster.local.", RecordType::A, "NXDomain"),
        ("shop.svc.cluster.local.", RecordType::A, ""), // there are names below
        ("nowhere.svc.cluster.local.", RecordType::A, "NXDomain"),
        (
            "10-1-2-3.shop.pod.cluster.local.",
            RecordType::A,
            "10.1.2.3",
        ),
        ("dns-version.cluster.local.", RecordType::TXT, "1.1.0"),
        // As CoreDNS has them.
        ("Cluster.LOCAL.", RecordType::SOA, SOA),
        (
            "cluster.local.",
            RecordType::NS,
            "kube-dns.kube-system.svc.cluster.local.",
        ),
        ("cluster.local.", RecordType::A, ""),
        ("ns.dns.cluster.local.", RecordType::A, "10.96.0.10"),
        ("ns.dns.cluster.local.", RecordType::AAAA, ""),
        ("dns.cluster.local.", RecordType::A, ""),
        ("svc.cluster.local.", RecordType::SOA, ""),
        ("x.dns.cluster.local.", RecordType::A, "NXDomain"),
        (
            "web.shop.svc.cluster.local.cluster.local.",
            RecordType::A,
            "NXDomain",
        ),
    ] {
        let Answer::Reply(reply) = answer(&query(name, kind)?, &index, "cluster.local") else {
            return Err(format!("{name} was not answered").into());
        };
        assert_eq!(shown(&reply), want, "{name} {kind}");
        // No data and no name both come with the time they may be remembered.
        assert!(
            reply.answers.is_empty() != reply.authorities.is_empty() || name.starts_with("lost."),
            "{name}"
        );
    }
    let forwarded = answer(
        &query("example.org.", RecordType::A)?,
        &index,
        "cluster.local",
    );
    assert!(matches!(forwarded, Answer::Forward));
    let alias = query("far.shop.svc.cluster.local.", RecordType::A)?;
    let Answer::Chase { reply, target } = answer(&alias, &index, "cluster.local") else {
        return Err("the alias was not followed".into());
    };
    assert_eq!(
        (shown(&reply).as_str(), target.to_ascii().as_str()),
        ("example.org.", "example.org.")
    );
    Ok(())
}

/// All of a reply, but for the order of its answers and the case of names, which is that of the question where
/// a name is written by pointing there.
fn whole(bytes: &[u8]) -> TestResult<String> {
    let mut message = Message::from_vec(bytes)?;
    message
        .answers
        .sort_by_key(|record| record.data.to_string());
    let question = message.queries.first().map(|query| query.name().to_ascii());
    Ok(format!(
        "{question:?} {}",
        format!("{message:?}").to_lowercase()
    ))
}

#[test]
fn usual_queries_are_answered_as_all_others() -> TestResult {
    let (index, domain) = (index()?, "cluster.local");
    let mut quick = Vec::new();
    for (name, is_usual) in [
        ("web.shop.svc.cluster.local.", true),
        ("WeB.shop.SVC.Cluster.LOCAL.", true),
        ("db.shop.svc.cluster.local.", true),
        ("shop.svc.cluster.local.", true),
        ("nowhere.svc.cluster.local.", true),
        ("web.shop.svc.cluster.local.cluster.local.", true),
        ("_http._tcp.web.shop.svc.cluster.local.", true),
        ("10-1-2-3.a.shop.pod.cluster.local.", true),
        ("many.shop.svc.cluster.local.", false), // too long, but for those who can take it
        ("near.shop.svc.cluster.local.", false),
        ("10-1-2-3.shop.pod.cluster.local.", false),
        ("cluster.local.", true), // there are names below
        ("svc.cluster.local.", true),
        ("pod.cluster.local.", false),
        ("example.org.", false),
        ("xcluster.local.", false),
        (".", false),
        ("7.0.96.10.in-addr.arpa.", false),
        ("*.cluster.local.", false),
    ] {
        for (kind, is_usual) in [
            (RecordType::A, is_usual),
            (RecordType::AAAA, is_usual),
            (RecordType::SRV, false),
        ] {
            for payload in [None, Some(0), Some(512), Some(1232), Some(4096)] {
                let mut query = query(name, kind)?;
                query.metadata.id = 0x1234;
                query.metadata.recursion_desired = payload.is_some();
                query.edns = payload.map(|payload| {
                    let mut edns = hickory_proto::op::Edns::new();
                    edns.set_max_payload(payload);
                    edns
                });
                let bytes = query.to_vec()?;
                quick.clear();
                let done = quick::answer(&bytes, &index, domain, &mut quick);
                let about = format!("{name} {kind} {payload:?}");
                // The absence of IPv6 addresses is short.
                let is_short = name.starts_with("many.") && kind == RecordType::AAAA;
                assert_eq!(done, is_usual || is_short, "{about}");
                if done {
                    let Answer::Reply(reply) = answer(&query, &index, domain) else {
                        return Err(format!("{about}: not answered").into());
                    };
                    let reply = answer::encode(&query, &reply, true).ok_or("not encoded")?;
                    assert_eq!(whole(&quick)?, whole(&reply)?, "{about}");
                }
                // What is cut short or has more to it is not usual.
                for length in 0..bytes.len() {
                    quick.clear();
                    assert!(!quick::answer(&bytes[..length], &index, domain, &mut quick));
                    assert!(quick.is_empty());
                }
                let longer = [&bytes[..], &[0]].concat();
                assert!(!quick::answer(&longer, &index, domain, &mut quick));
            }
        }
    }
    Ok(())
}

#[test]
fn a_service_that_goes_takes_its_names_along() -> TestResult {
    let mut index = index()?;
    for name in ["web", "db", "many", "far", "near", "lost"] {
        index.update(&Key::new("shop", name), Records::new());
    }
    assert!(
        index
            .find("kube-dns.kube-system.svc.cluster.local")
            .is_there()
    );
    for name in [
        "web.shop.svc.cluster.local",
        "shop.svc.cluster.local",
        "7.0.96.10.in-addr.arpa",
    ] {
        let found = index.find(name);
        assert!(
            matches!(found, records::Found::Nothing),
            "{name}: {found:?}"
        );
    }
    Ok(())
}

const PATIENCE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn long_answers_come_by_tcp_and_silence_upstream_is_a_failure() -> TestResult {
    let folder = tempfile::tempdir()?;
    let upstream = Upstream::new(folder.path().join("none"), Vec::new());
    let server = Arc::new(Server::new(
        "cluster.local".into(),
        upstream,
        vec!["127.0.0.0/8".parse()?],
    ));
    *server.index_mut() = index()?;
    let (udp, tcp) = (
        UdpSocket::bind("127.0.0.1:0").await?,
        tokio::net::TcpListener::bind("127.0.0.1:0").await?,
    );
    let (udp_address, tcp_address) = (udp.local_addr()?, tcp.local_addr()?);
    let mut tasks = JoinSet::new();
    tasks.spawn(server.clone().udp(udp));
    tasks.spawn(server.clone().tcp(tcp));

    let client = UdpSocket::bind("127.0.0.1:0").await?;
    let ask = async |name: &str| -> TestResult<Message> {
        client
            .send_to(&query(name, RecordType::A)?.to_vec()?, udp_address)
            .await?;
        let mut buffer = vec![0; 4096];
        let length = tokio::time::timeout(PATIENCE, client.recv(&mut buffer)).await??;
        Ok(Message::from_vec(&buffer[..length])?)
    };
    assert_eq!(
        shown(&ask("web.shop.svc.cluster.local.").await?),
        "10.96.0.7"
    );
    assert_eq!(shown(&ask("example.org.").await?), "ServFail");
    let cut = ask("many.shop.svc.cluster.local.").await?;
    // 12 bytes of header, 33 of question, 16 for each answer.
    assert!(cut.metadata.truncation);
    assert_eq!(cut.answers.len(), (512 - 12 - 33) / 16);

    let bytes = query("many.shop.svc.cluster.local.", RecordType::A)?.to_vec()?;
    let mut stream = tokio::net::TcpStream::connect(tcp_address).await?;
    stream.write_u16(bytes.len() as u16).await?;
    stream.write_all(&bytes).await?;
    let mut reply = vec![
        0;
        tokio::time::timeout(PATIENCE, stream.read_u16())
            .await??
            .into()
    ];
    stream.read_exact(&mut reply).await?;
    assert_eq!(Message::from_vec(&reply)?.answers.len(), 100);
    Ok(())
}

#[tokio::test]
async fn strangers_and_long_queries_are_not_answered() -> TestResult {
    let folder = tempfile::tempdir()?;
    let upstream = Upstream::new(folder.path().join("none"), Vec::new());
    let clients = vec!["127.0.0.1/32".parse()?];
    let server = Arc::new(Server::new("cluster.local".into(), upstream, clients));
    *server.index_mut() = index()?;
    let udp = UdpSocket::bind("127.0.0.1:0").await?;
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let (udp_address, tcp_address) = (udp.local_addr()?, tcp.local_addr()?);
    let mut tasks = JoinSet::new();
    tasks.spawn(server.clone().udp(udp));
    tasks.spawn(server.clone().tcp(tcp));

    // Queries are taken in order, so that the stranger would have its answer before the client.
    let bytes = query("web.shop.svc.cluster.local.", RecordType::A)?.to_vec()?;
    let stranger = UdpSocket::bind("127.0.0.2:0").await?;
    let client = UdpSocket::bind("127.0.0.1:0").await?;
    stranger.send_to(&bytes, udp_address).await?;
    client.send_to(&bytes, udp_address).await?;
    let mut buffer = vec![0; 4096];
    tokio::time::timeout(PATIENCE, client.recv(&mut buffer)).await??;
    assert!(stranger.try_recv(&mut buffer).is_err());

    let by_tcp = async |from: &str, length: u16| -> TestResult<usize> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(from.parse()?)?;
        let mut stream = socket.connect(tcp_address).await?;
        stream.write_u16(length).await?;
        stream.write_all(&bytes).await?;
        let mut byte = [0];
        // Reset or closed: no answer either way.
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut byte)).await?;
        Ok(read.unwrap_or(0))
    };
    let length = bytes.len() as u16;
    assert_eq!(by_tcp("127.0.0.1:0", length).await?, 1);
    assert_eq!(by_tcp("127.0.0.2:0", length).await?, 0);
    assert_eq!(by_tcp("127.0.0.1:0", 4097).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_connection_without_a_query_is_closed() -> TestResult {
    let folder = tempfile::tempdir()?;
    let upstream = Upstream::new(folder.path().join("none"), Vec::new());
    let clients = vec!["127.0.0.1/32".parse()?];
    let idle = Duration::from_millis(300);
    let server = Server::new("cluster.local".into(), upstream, clients).with_idle(idle);
    let server = Arc::new(server);
    *server.index_mut() = index()?;
    // Little is under way at once.
    let listening = tokio::net::TcpSocket::new_v4()?;
    listening.set_send_buffer_size(2048)?;
    listening.bind("127.0.0.1:0".parse()?)?;
    let listener = listening.listen(8)?;
    let address = listener.local_addr()?;
    let mut tasks = JoinSet::new();
    tasks.spawn(server.tcp(listener));

    // Nothing at all; half a query; and a query, after which the time begins anew.
    let bytes = query("web.shop.svc.cluster.local.", RecordType::A)?.to_vec()?;
    let whole = [&u16::try_from(bytes.len())?.to_be_bytes()[..], &bytes].concat();
    for (said, answered) in [(&whole[..0], false), (&whole[..9], false), (&whole, true)] {
        let mut stream = TcpStream::connect(address).await?;
        tokio::time::sleep(idle / 2).await;
        stream.write_all(said).await?;
        let begun = Instant::now();
        let mut reply = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut reply)).await??;
        assert_eq!(!reply.is_empty(), answered, "{}", said.len());
        assert!(!answered || begun.elapsed() >= idle);
    }

    // A client that takes no replies.
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(2048)?;
    let mut stream = socket.connect(address).await?;
    let flooding = async { while stream.write_all(&whole).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, flooding).await?;
    Ok(())
}
