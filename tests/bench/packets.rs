//! Packets between two network namespaces, one at a time, by processes that share one processor: what a
//! packet costs on its way, and as little as possible of what waking another processor costs.

use std::{
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt::Linger};

use super::throughput::{enter, stay_on};

/// The same for all but what is sent.
const PORT: u16 = 5002;
const PATIENCE: Duration = Duration::from_secs(5);

/// Microseconds until a new connection to `to` stands, where one in `server` listens on `listen`; the median of
/// `count`.
pub fn connections(
    server: &Path,
    client: &Path,
    listen: SocketAddr,
    to: SocketAddr,
    count: usize,
) -> f64 {
    let listener = within(server, || TcpListener::bind(listen).unwrap());
    thread::scope(|scope| {
        scope.spawn(move || {
            stay_on(0);
            for _ in 0..count {
                drop(listener.accept().unwrap());
            }
        });
        let asking = scope.spawn(|| {
            enter(client);
            stay_on(0);
            let connect = |_| {
                let begun = Instant::now();
                let stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
                let took = begun.elapsed();
                // It is forgotten at once, so that ports do not run out.
                let at_once = nix::libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                setsockopt(&stream, Linger, &at_once).unwrap();
                took.as_secs_f64() * 1e6
            };
            median((0..count).map(connect).collect())
        });
        asking.join().unwrap()
    })
}

/// Whether one in `client` reaches this address, where nobody listens on that port.
pub fn is_reached(client: &Path, to: SocketAddr) -> bool {
    within(client, || match TcpStream::connect_timeout(&to, PATIENCE) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
    })
}

/// Microseconds that a datagram and its answer take, of a flow that is known; the median of `count`.
pub fn round_trips(server: &Path, client: &Path, address: std::net::IpAddr, count: usize) -> f64 {
    let at = SocketAddr::new(address, PORT);
    let answering = within(server, || UdpSocket::bind(at).unwrap());
    thread::scope(|scope| {
        scope.spawn(move || {
            stay_on(0);
            let mut buffer = [0; 64];
            while let Ok((length, from)) = answering.recv_from(&mut buffer) {
                if length == 0 {
                    return;
                }
                let _ = answering.send_to(&buffer[..length], from);
            }
        });
        let asking = scope.spawn(|| {
            enter(client);
            stay_on(0);
            let socket = UdpSocket::bind(SocketAddr::new([0, 0, 0, 0].into(), 0)).unwrap();
            socket.connect(at).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut buffer = [0; 64];
            let ask = |_| {
                let begun = Instant::now();
                socket.send(b"ping").unwrap();
                socket.recv(&mut buffer).unwrap();
                begun.elapsed().as_secs_f64() * 1e6
            };
            let took = median((0..count).map(ask).collect());
            socket.send(&[]).unwrap();
            took
        });
        asking.join().unwrap()
    })
}

fn within<T: Send>(space: &Path, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let working = scope.spawn(|| {
            enter(space);
            work()
        });
        working.join().unwrap()
    })
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
