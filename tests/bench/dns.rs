//! Queries to the cluster's DNS, which has many names: how many for a second of the daemon's processor, and how
//! long one takes while there are some all the time.

use std::{
    collections::VecDeque,
    io::{IoSlice, IoSliceMut},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Node;
use kube::{Api, api::ListParams};
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, sendmmsg};

use super::{bulk, lab::until, sides, throughput::stay_on, usage};

const SERVICES: usize = 10_000;
/// Each may ask 4000 times a second.
const CLIENTS: u8 = 120;
/// Queries that one client waits for.
const WINDOW: usize = 4;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(4);
/// For how long one takes: so many a second.
const PACE: u32 = 10_000;

pub fn asked() {
    let cluster = sides::roomy();
    let range = sides::on(&cluster, async |client| {
        bulk::services(&client, 0..SERVICES, 1).await;
        let nodes: Api<Node> = Api::all(client);
        let nodes = nodes.list(&ListParams::default()).await.unwrap();
        let range = nodes.items[0].spec.as_ref().unwrap().pod_cidr.clone();
        range.unwrap().parse::<ipnet::Ipv4Net>().unwrap()
    });
    let number = |last: u8| Ipv4Addr::from_bits(range.network().to_bits() + u32::from(last));
    // The host has the upper half of its pods' addresses itself.
    let line = format!("ip route add local {}/25 dev lo", number(128));
    cluster.host.sh(&line);
    let server = SocketAddr::new(number(1).into(), 53);
    sides::within(&cluster.host, || {
        stay_on(1);
        let mut clients: Vec<Client> = (0..CLIENTS)
            .map(|client| Client::new(number(129 + client), server, client))
            .collect();
        until("the last name is known", || clients[0].knows(SERVICES - 1));
        let daemon = cluster.daemon();
        let mut figures = Vec::new();
        for _ in 0..ROUNDS {
            let (before, begun) = (usage::processor(daemon), Instant::now());
            let answers = saturate(&mut clients);
            let spent = usage::processor(daemon) - before;
            let rate = |time: Duration| answers as f64 / time.as_secs_f64() / 1e3;
            figures.push((rate(spent), rate(begun.elapsed())));
        }
        figures.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (most, (per_second, wall)) = (figures[ROUNDS - 1].0, figures[ROUNDS / 2]);
        println!(
            "{:<44} p50 {per_second:>8.1} k/core-s  best {most:>8.1} k/core-s  ({wall:.1} k/s) n={ROUNDS} (goal 150)",
            format!("dns/{SERVICES}: answers"),
        );
        let (before, begun) = (usage::processor(daemon), Instant::now());
        let figures = paced(&mut clients);
        let spent = usage::processor(daemon) - before;
        let mut figures: Vec<f64> = figures.iter().map(|one| one.as_secs_f64() * 1e6).collect();
        figures.sort_by(f64::total_cmp);
        let at = |part: usize| figures[figures.len() * part / 1000];
        println!(
            "{:<44} p50 {:>8.0} us  p99 {:>8.0} us  p99.9 {:>8.0} us  n={} ({:.1} % of a core)",
            format!("dns/{SERVICES}: one of {PACE} a second"),
            at(500),
            at(990),
            at(999),
            figures.len(),
            spent.as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0,
        );
    });
}

/// As many as can be, each asked as soon as one is answered; returns how many were.
fn saturate(clients: &mut [Client]) -> usize {
    let begun = Instant::now();
    for client in &mut *clients {
        client.send(WINDOW);
    }
    let mut answers = 0;
    while begun.elapsed() < ROUND {
        let got: usize = clients.iter_mut().map(Client::turn).sum();
        answers += got;
        if got == 0 {
            thread::yield_now();
        }
    }
    thread::sleep(Duration::from_millis(50));
    let rest = clients.iter_mut().map(|client| client.receive(WINDOW));
    answers + rest.sum::<usize>()
}

/// How long each took, of so many a second.
fn paced(clients: &mut [Client]) -> Vec<Duration> {
    let begun = Instant::now();
    let mut waiting: VecDeque<(usize, Instant)> = VecDeque::new();
    let (mut figures, mut sent) = (Vec::new(), 0);
    while begun.elapsed() < ROUND {
        while begun.elapsed() >= sent * Duration::from_secs(1) / PACE {
            let at = sent as usize % clients.len();
            clients[at].send(1);
            waiting.push_back((at, Instant::now()));
            sent += 1;
        }
        // Its own client's answers come in order.
        while let Some((at, since)) = waiting.front() {
            if clients[*at].receive(1) == 0 {
                assert!(since.elapsed() < Duration::from_secs(1), "no answer");
                break;
            }
            figures.push(since.elapsed());
            waiting.pop_front();
        }
        thread::yield_now();
    }
    figures
}

/// A pod that asks, as the daemon sees it.
struct Client {
    socket: UdpSocket,
    /// Queries, each for another name.
    queries: Vec<Vec<u8>>,
    next: usize,
    headers: [MultiHeaders<()>; 2],
    buffers: Vec<[u8; 512]>,
}

impl Client {
    fn new(address: Ipv4Addr, server: SocketAddr, number: u8) -> Self {
        let socket = UdpSocket::bind(SocketAddr::new(address.into(), 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_nonblocking(true).unwrap();
        let services = (0..SERVICES).skip(number.into()).step_by(CLIENTS.into());
        let headers = || MultiHeaders::preallocate(WINDOW, None);
        Self {
            socket,
            queries: services.map(query).collect(),
            next: 0,
            headers: [headers(), headers()],
            buffers: vec![[0; 512]; WINDOW],
        }
    }

    /// Whether the name of this Service has an address.
    fn knows(&mut self, service: usize) -> bool {
        self.socket.send(&query(service)).unwrap();
        thread::sleep(Duration::from_millis(20));
        self.receive(1) == 1 && u16::from_be_bytes([self.buffers[0][6], self.buffers[0][7]]) == 1
    }

    fn send(&mut self, count: usize) {
        let queries = (0..count).map(|step| {
            let at = (self.next + step) % self.queries.len();
            [IoSlice::new(&self.queries[at])]
        });
        let queries: Vec<_> = queries.collect();
        let (fd, to) = (self.socket.as_raw_fd(), vec![None; count]);
        let sent = sendmmsg(
            fd,
            &mut self.headers[0],
            &queries,
            to,
            [],
            MsgFlags::empty(),
        );
        assert_eq!(sent.unwrap().count(), count);
        self.next += count;
    }

    /// Takes up to so many answers; how many there were.
    fn receive(&mut self, most: usize) -> usize {
        let fd = self.socket.as_raw_fd();
        let mut buffers: Vec<_> = self.buffers[..most]
            .iter_mut()
            .map(|buffer| [IoSliceMut::new(buffer)])
            .collect();
        let flags = MsgFlags::MSG_DONTWAIT;
        match recvmmsg(fd, &mut self.headers[1], buffers.iter_mut(), flags, None) {
            Ok(received) => received.count(),
            Err(nix::errno::Errno::EAGAIN) => 0,
            Err(error) => panic!("{error}"),
        }
    }

    /// Asks once for each answer that is there.
    fn turn(&mut self) -> usize {
        let got = self.receive(WINDOW);
        if got > 0 {
            self.send(got);
        }
        got
    }
}

/// For the address of a Service, without EDNS, as the C library asks.
fn query(service: usize) -> Vec<u8> {
    let mut query = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in [&*bulk::name(service), "default", "svc", "cluster", "local"] {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}
