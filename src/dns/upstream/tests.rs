//! Real servers on addresses of the loopback: some answer, some are slow, silent or gone.

use std::{
    fs,
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering},
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::*;

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What a server does with a query.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Answers,
    /// After so many milliseconds.
    Slow(u64),
    Silent,
    CannotTell,
    /// Its socket is closed.
    Gone,
}

struct Fake {
    manner: Mutex<Manner>,
    ttl: u32,
    /// Queries that came.
    count: AtomicUsize,
}

/// Servers 127.0.0.1, 127.0.0.2..., who say their number.
struct Net {
    upstream: Upstream,
    servers: Vec<Arc<Fake>>,
    folder: TempDir,
    _tasks: JoinSet<()>,
}

impl Net {
    async fn new(manners: &[Manner], ttl: u32) -> TestResult<Self> {
        let first = UdpSocket::bind("127.0.0.1:0").await?;
        let port = first.local_addr()?.port();
        drop(first);
        let (mut tasks, mut servers) = (JoinSet::new(), Vec::new());
        for (number, manner) in (1..).zip(manners) {
            let address = SocketAddr::from(([127, 0, 0, number], port));
            let server = Arc::new(Fake {
                manner: Mutex::new(*manner),
                ttl,
                count: AtomicUsize::new(0),
            });
            servers.push(server.clone());
            if *manner != Manner::Gone {
                let udp = Arc::new(UdpSocket::bind(address).await?);
                let tcp = TcpListener::bind(address).await?;
                tasks.spawn(server.clone().serve_udp(udp, number));
                tasks.spawn(server.serve_tcp(tcp, number));
            }
        }
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("resolv.conf");
        let net = Self {
            upstream: Upstream::of(Servers::new(file, Vec::new()).on(port)),
            servers,
            folder,
            _tasks: tasks,
        };
        net.name_servers(1..=manners.len())?;
        Ok(net)
    }

    fn name_servers(&self, numbers: impl Iterator<Item = usize>) -> TestResult {
        let lines: String = numbers
            .map(|number| format!("nameserver 127.0.0.{number}\n"))
            .collect();
        Ok(fs::write(self.folder.path().join("resolv.conf"), lines)?)
    }

    fn count(&self, number: usize) -> usize {
        self.servers[number - 1].count.load(Ordering::SeqCst)
    }

    fn make(&self, number: usize, manner: Manner) {
        *lock(&self.servers[number - 1].manner) = manner;
    }

    /// The last byte of the first address, or the response code; its time; and how long it took.
    async fn ask(&self, name: &str) -> TestResult<(String, u32, Duration)> {
        self.ask_by(name, Transport::Udp).await
    }

    async fn ask_by(&self, name: &str, by: Transport) -> TestResult<(String, u32, Duration)> {
        let begun = Instant::now();
        let asked = asked(7, name)?;
        let asking = self.upstream.ask(&asked, by, CLIENT);
        let reply = Message::from_vec(&timeout(Duration::from_secs(6), asking).await?)?;
        let said = match reply.answers.first().map(|record| &record.data) {
            Some(RData::A(A(address))) => address.octets()[3].to_string(),
            _ => reply.metadata.response_code.to_string(),
        };
        let ttl = reply.answers.first().map_or(0, |record| record.ttl);
        Ok((said, ttl, begun.elapsed()))
    }
}

impl Fake {
    async fn reply(&self, query: &[u8], number: u8, udp: bool) -> Option<Vec<u8>> {
        self.count.fetch_add(1, Ordering::SeqCst);
        let query = Message::from_vec(query).ok()?;
        let manner = *lock(&self.manner);
        let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
        reply.add_queries(query.queries.iter().cloned());
        match manner {
            Manner::Silent | Manner::Gone => return None,
            Manner::CannotTell => reply.metadata.response_code = ResponseCode::ServFail,
            Manner::Slow(time) => sleep(Duration::from_millis(time)).await,
            Manner::Answers => {}
        }
        if manner != Manner::CannotTell {
            let name = query.queries.first()?.name().clone();
            let is_long = name.to_ascii().starts_with("long.");
            let count = if is_long { 50 } else { 1 };
            let data = || RData::A(A::new(192, 0, 2, number));
            let records = (0..count).map(|_| Record::from_rdata(name.clone(), self.ttl, data()));
            match udp && is_long {
                true => reply.metadata.truncation = true,
                false => drop(reply.add_answers(records)),
            }
        }
        reply.to_vec().ok()
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>, number: u8) {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let (server, socket, query) = (self.clone(), socket.clone(), buffer[..length].to_vec());
            tokio::spawn(async move {
                if let Some(reply) = server.reply(&query, number, true).await {
                    let _ = socket.send_to(&reply, from).await;
                }
            });
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener, number: u8) {
        while let Ok((mut stream, _)) = listener.accept().await {
            let server = self.clone();
            tokio::spawn(async move {
                let length = stream.read_u16().await.ok()?;
                let mut query = vec![0; length.into()];
                stream.read_exact(&mut query).await.ok()?;
                let reply = server.reply(&query, number, false).await?;
                stream.write_u16(reply.len() as u16).await.ok()?;
                stream.write_all(&reply).await.ok()
            });
        }
    }
}

fn asked(id: u16, name: &str) -> TestResult<Asked> {
    let mut query = Message::query();
    query.metadata.id = id;
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name)?, RecordType::A));
    Ok(Asked::read(&query.to_vec()?).ok_or("not a question")?)
}

/// Whichever server is not well, others answer soon; and then they are asked first.
#[tokio::test]
async fn one_server_that_is_not_well_holds_up_nobody() -> TestResult {
    use Manner::{Answers, CannotTell, Gone, Silent, Slow};
    for (manners, first, least, most) in [
        (vec![Answers, Answers], "1", 0, 200),
        (vec![Gone, Answers], "2", 0, 200), // the kernel says so at once
        (vec![CannotTell, Answers], "2", 0, 200),
        (vec![Silent, Answers], "2", 250, 600),
        (vec![Slow(3000), Answers], "2", 250, 600),
        (vec![Slow(350), Silent], "1", 350, 700), // it is waited for all the same
        (vec![Silent, Silent, Answers], "3", 500, 900),
        (vec![Silent, Gone, Answers], "3", 500, 900),
        (vec![CannotTell, Gone], "Server Failure", 0, 200),
        (vec![Gone, Gone], "Server Failure", 0, 200),
        (vec![], "Server Failure", 0, 200),
    ] {
        let net = Net::new(&manners, 60).await?;
        let (said, _, took) = net.ask("first.example.").await?;
        assert_eq!(said, first, "{manners:?}");
        let range = Duration::from_millis(least)..Duration::from_millis(most);
        assert!(range.contains(&took), "{manners:?}: {took:?}");
        if manners.contains(&Answers) {
            for number in 0..5 {
                let (said, _, took) = net.ask(&format!("n{number}.example.")).await?;
                assert_eq!(said, first, "{manners:?}");
                assert!(took < Duration::from_millis(200), "{manners:?}: {took:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_query_that_is_lost_is_sent_again() -> TestResult {
    let net = Net::new(&[Manner::Silent], 60).await?;
    let (asked, ()) = tokio::join!(net.ask("a.example."), async {
        sleep(Duration::from_millis(500)).await;
        net.make(1, Manner::Answers);
    });
    let (said, _, took) = asked?;
    assert_eq!((said.as_str(), net.count(1)), ("1", 2));
    assert!(took < Duration::from_millis(1500), "{took:?}");
    Ok(())
}

#[tokio::test]
async fn an_answer_is_fetched_once_until_its_time_is_over() -> TestResult {
    let net = Net::new(&[Manner::Answers], 2).await?;
    for _ in 0..5 {
        assert_eq!(net.ask("a.example.").await?.1, 2);
    }
    assert_eq!(net.count(1), 1);
    sleep(Duration::from_millis(1100)).await;
    assert_eq!(net.ask("A.Example.").await?.1, 1);
    assert_eq!(net.count(1), 1);
    sleep(Duration::from_millis(1000)).await;
    assert_eq!(net.ask("a.example.").await?.1, 2);
    assert_eq!(net.count(1), 2);
    Ok(())
}

/// Many who ask the same wait for one query, each for its own reply; it goes on as long as one of them waits.
#[tokio::test]
async fn those_who_ask_the_same_wait_together() -> TestResult {
    let net = Net::new(&[Manner::Slow(200)], 0).await?;
    let mut waiting = Vec::new();
    for id in 0..50u16 {
        let name = if id % 2 == 0 {
            "a.example."
        } else {
            "A.Example."
        };
        let (upstream, asked) = (net.upstream.clone(), asked(id, name)?);
        waiting.push(tokio::spawn(async move {
            upstream.ask(&asked, Transport::Udp, CLIENT).await
        }));
    }
    sleep(Duration::from_millis(50)).await;
    assert_eq!(lock(&net.upstream.0.flights).all.len(), 1);
    for gone in &waiting[..25] {
        gone.abort(); // the one that began it is among them
    }
    for (id, waiting) in (0..50u16).zip(waiting).skip(25) {
        let reply = Message::from_vec(&waiting.await?)?;
        let name = if id % 2 == 0 {
            "a.example."
        } else {
            "A.Example."
        };
        assert_eq!(reply.metadata.id, id);
        assert_eq!(reply.queries[0].name().to_ascii(), name);
        assert_eq!(reply.answers.len(), 1);
    }
    assert_eq!(net.count(1), 1);
    assert!(lock(&net.upstream.0.flights).all.is_empty());

    // Where nobody waits any more, nothing goes on.
    let asked = asked(1, "b.example.")?;
    let asking = net.upstream.ask(&asked, Transport::Udp, CLIENT);
    assert!(timeout(Duration::from_millis(50), asking).await.is_err());
    assert!(lock(&net.upstream.0.flights).all.is_empty());
    Ok(())
}

#[tokio::test]
async fn old_answers_are_better_than_none() -> TestResult {
    let net = Net::new(&[Manner::Answers, Manner::Answers], 1).await?;
    net.ask("a.example.").await?;
    sleep(Duration::from_millis(1100)).await;
    net.make(1, Manner::Silent);
    assert_eq!(net.ask("a.example.").await?.0, "2"); // the other one has a new one
    sleep(Duration::from_millis(1100)).await;
    net.make(2, Manner::CannotTell);
    let (said, ttl, took) = net.ask("a.example.").await?;
    assert_eq!((said.as_str(), ttl), ("2", 1));
    assert!(took < Duration::from_millis(2300), "{took:?}");
    let (said, _, took) = net.ask("a.example.").await?;
    assert_eq!(said, "2");
    assert!(took < Duration::from_millis(100), "{took:?}");
    // What nobody knew is a failure, which is remembered for a moment.
    net.make(1, Manner::CannotTell);
    let before = net.count(2);
    for _ in 0..5 {
        assert_eq!(net.ask("b.example.").await?.0, "Server Failure");
    }
    assert_eq!(net.count(2), before + 1);
    Ok(())
}

#[tokio::test]
async fn other_servers_are_asked_for_everything_anew() -> TestResult {
    let net = Net::new(&[Manner::Answers, Manner::Answers], 60).await?;
    assert_eq!(net.ask("a.example.").await?.0, "1");
    net.name_servers([2].into_iter())?;
    sleep(Duration::from_millis(1100)).await;
    assert_eq!(net.ask("a.example.").await?.0, "2");
    Ok(())
}

#[tokio::test]
async fn what_is_cut_is_not_kept_and_the_whole_is_cut_for_others() -> TestResult {
    let net = Net::new(&[Manner::Answers], 60).await?;
    for _ in 0..2 {
        assert_eq!(net.ask("long.example.").await?.0, "No Error");
    }
    assert_eq!(net.count(1), 2);
    let (said, ..) = net.ask_by("long.example.", Transport::Tcp).await?;
    assert_eq!((said.as_str(), net.count(1)), ("1", 3));
    let asked = asked(1, "long.example.")?;
    for (transport, count) in [(Transport::Udp, (512 - 12 - 18) / 16), (Transport::Tcp, 50)] {
        let reply = net.upstream.remembered(&asked, transport).ok_or("gone")?;
        let reply = Message::from_vec(&reply)?;
        assert_eq!(reply.answers.len(), count);
        assert_eq!(reply.metadata.truncation, transport == Transport::Udp);
    }
    assert_eq!(net.count(1), 3);
    Ok(())
}
