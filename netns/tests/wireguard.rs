//! WireGuard links between namespaces of the tests' own, on kernels that have them.

use std::{
    collections::BTreeSet,
    error::Error,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::Duration,
};

use netns::{
    Namespace,
    route::{self, Prefix, RouteKind, Veth, WantedRoute},
    wireguard::{self, Change, Peer, PrivateKey, PublicKey, Socket},
};

type TestResult<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const PORT: u16 = 51871;

fn allowed(range: &str, length: u8) -> TestResult<BTreeSet<(IpAddr, u8)>> {
    Ok([(range.parse()?, length)].into())
}

/// Makes the link `wg0` with a key of this byte's; its public key.
fn link(byte: u8) -> TestResult<PublicKey> {
    route::Socket::open()?.apply(vec![route::Change::add_wireguard("wg0", 1420)])?;
    let private_key = PrivateKey::clamped([byte; 32]);
    let mut socket = Socket::open()?;
    assert_eq!(socket.device("wg0")?.public_key, None);
    let device = Change::Device {
        private_key: private_key.clone(),
        port: PORT,
    };
    socket.apply("wg0", &[device])?;
    let found = socket.device("wg0")?;
    assert_eq!((found.private_key, found.port), (Some(private_key), PORT));
    Ok(found.public_key.ok_or("no public key")?)
}

#[test]
#[ignore = "needs root"]
fn a_kernel_without_it_says_so() -> TestResult {
    if wireguard::is_supported() {
        return Ok(());
    }
    Namespace::create()?.run(|| -> TestResult {
        assert!(Socket::open().is_err_and(|error| error.is_absent()));
        let added = route::Socket::open()?.apply(vec![route::Change::add_wireguard("wg0", 1420)]);
        assert_eq!(added.unwrap_err().errno(), Some(libc::EOPNOTSUPP));
        Ok(())
    })?
}

#[test]
#[ignore = "needs root"]
fn peers_are_as_they_were_set() -> TestResult {
    if !wireguard::is_supported() {
        println!(
            "skipped: this kernel has no WireGuard; `vagrant/qemu/run crates` has one that does"
        );
        return Ok(());
    }
    Namespace::create()?.run(|| -> TestResult {
        link(7)?;
        let peer = |number: u16| -> TestResult<Peer> {
            let [high, low] = number.to_be_bytes();
            let mut key = [9; 32];
            (key[0], key[1]) = (high, low);
            let mut allowed = allowed(&format!("10.{}.{low}.0", 100 + high), 24)?;
            allowed.insert((format!("fd42:0:0:{number:x}::").parse()?, 64));
            Ok(Peer {
                key: PublicKey(key),
                endpoint: Some(SocketAddr::new([192, 0, 2, low].into(), PORT)),
                allowed,
            })
        };
        // More than one answer holds.
        let mut wanted = (0..1000).map(peer).collect::<TestResult<Vec<_>>>()?;
        let mut socket = Socket::open()?;
        let changes: Vec<Change> = wanted.iter().cloned().map(Change::Peer).collect();
        socket.apply("wg0", &changes)?;
        let mut found = socket.device("wg0")?.peers;
        found.sort_by_key(|peer| peer.key);
        assert_eq!(found, wanted);
        // One goes, and another one gets its network and keeps where it is.
        let gone = wanted.remove(0);
        wanted[0].allowed.extend(gone.allowed);
        let changed = Peer {
            endpoint: None,
            ..wanted[0].clone()
        };
        socket.apply("wg0", &[Change::Remove(gone.key), Change::Peer(changed)])?;
        let mut found = socket.device("wg0")?.peers;
        found.sort_by_key(|peer| peer.key);
        assert_eq!(found, wanted);
        Ok(())
    })?
}

#[test]
#[ignore = "needs root"]
fn two_hosts_talk_by_it_over_both_families() -> TestResult {
    if !wireguard::is_supported() {
        println!(
            "skipped: this kernel has no WireGuard; `vagrant/qemu/run crates` has one that does"
        );
        return Ok(());
    }
    for outer in ["192.0.2", "fd00:"] {
        let hosts = [Namespace::create()?, Namespace::create()?];
        let veth = Veth {
            name: "up0",
            peer_name: "up0",
            peer_netns: hosts[1].as_fd(),
            mac: [2, 0, 0, 0, 0, 1],
            peer_mac: [2, 0, 0, 0, 0, 2],
            mtu: 1500,
            master: None,
        };
        hosts[0].run(|| route::Socket::open()?.apply(vec![route::Change::add_veth(&veth)]))??;
        let at = |number: usize| match outer {
            "fd00:" => format!("fd00::{number}"),
            start => format!("{start}.{number}"),
        };
        let mut keys = Vec::new();
        for (number, host) in (1..).zip(&hosts) {
            keys.push(host.run(|| -> TestResult<_> {
                let mut socket = route::Socket::open()?;
                let up0 = socket.link("up0")?.index;
                let length = if outer == "fd00:" { 64 } else { 24 };
                socket.apply(vec![
                    route::Change::set_up(up0),
                    route::Change::add_address(up0, Prefix::new(at(number).parse()?, length)),
                ])?;
                link(number as u8)
            })??);
        }
        for (number, host) in (1..).zip(&hosts) {
            let other = 3 - number;
            host.run(|| -> TestResult {
                let peer = Peer {
                    key: keys[other - 1],
                    endpoint: Some(SocketAddr::new(at(other).parse()?, PORT)),
                    allowed: allowed(&format!("10.7.{other}.0"), 24)?,
                };
                Socket::open()?.apply("wg0", &[Change::Peer(peer)])?;
                let mut socket = route::Socket::open()?;
                let wg0 = socket.link("wg0")?;
                assert_eq!((wg0.kind.as_deref(), wg0.mtu), (Some("wireguard"), 1420));
                let own = Prefix::host(format!("10.7.{number}.0").parse()?);
                socket.apply(vec![
                    route::Change::add_address(wg0.index, own),
                    route::Change::set_up(wg0.index),
                ])?;
                let route = WantedRoute {
                    to: Prefix::new(format!("10.7.{other}.0").parse()?, 24),
                    link: wg0.index,
                    kind: RouteKind::Tunnel,
                };
                assert_eq!(socket.ensure_routes(&[route])?, [route.to]);
                assert_eq!(socket.ensure_routes(&[route])?, []);
                assert_eq!(socket.routes_via(false)?.len(), 1);
                Ok(())
            })??;
        }
        let listener = hosts[1].run(|| UdpSocket::bind("10.7.2.0:7"))??;
        listener.set_read_timeout(Some(Duration::from_secs(20)))?;
        let sender = hosts[0].run(|| UdpSocket::bind("0.0.0.0:0"))??;
        sender.send_to(b"hello", "10.7.2.0:7")?;
        let mut heard = [0; 16];
        let (length, from) = listener.recv_from(&mut heard)?;
        assert_eq!(&heard[..length], b"hello");
        // As the kernel chooses the sender's address.
        assert_eq!(from.ip(), IpAddr::from([10, 7, 1, 0]));
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_port_is_one_links() -> TestResult {
    if !wireguard::is_supported() {
        println!(
            "skipped: this kernel has no WireGuard; `vagrant/qemu/run crates` has one that does"
        );
        return Ok(());
    }
    Namespace::create()?.run(|| -> TestResult {
        let _taken = UdpSocket::bind(("0.0.0.0", PORT))?;
        link(7)?;
        let mut socket = route::Socket::open()?;
        let index = socket.link("wg0")?.index;
        let up = socket.apply(vec![route::Change::set_up(index)]);
        assert_eq!(up.unwrap_err().errno(), Some(libc::EADDRINUSE));
        Ok(())
    })?
}
