//! Which servers there are, as the node's resolv.conf names them, and which of them is asked first.

use std::{
    fs::{self, File},
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

/// As many as a resolv.conf may name.
pub const MOST: usize = 3;
/// So much of the file is read.
const FILE: u64 = 64 << 10;
const READ_AGAIN: Duration = Duration::from_secs(1);
const PORT: u16 = 53;

/// The servers, as the file names them at the time of asking.
#[derive(Debug)]
pub struct Servers {
    file: PathBuf,
    /// Our own addresses: asking them would never end.
    own: Vec<IpAddr>,
    port: u16,
    looked: Option<Instant>,
    seen: Option<Stamp>,
    addresses: Vec<SocketAddr>,
    /// The last ones that there were.
    known: Vec<SocketAddr>,
    generation: u64,
    /// Who answered last goes first: one that is dead holds up few.
    good: Option<SocketAddr>,
}

/// By which a change of the file is seen.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    length: u64,
    changed: Option<SystemTime>,
}

impl Servers {
    pub fn new(file: PathBuf, own: Vec<IpAddr>) -> Self {
        Self {
            file,
            own,
            port: PORT,
            looked: None,
            seen: None,
            addresses: Vec::new(),
            known: Vec::new(),
            generation: 0,
            good: None,
        }
    }

    /// On another port.
    #[cfg(test)]
    pub fn on(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// Rises when there are other servers, whose answers may be others too.
    pub fn generation(&mut self, now: Instant) -> u64 {
        self.look(now);
        self.generation
    }

    /// In the order in which they are asked.
    pub fn in_turn(&mut self, now: Instant) -> Vec<SocketAddr> {
        self.look(now);
        in_turn(&self.addresses, self.good)
    }

    pub fn answered(&mut self, server: SocketAddr) {
        self.good = Some(server);
    }

    fn look(&mut self, now: Instant) {
        if self.looked.is_some_and(|at| now < at + READ_AGAIN) {
            return;
        }
        self.looked = Some(now);
        let stamp = fs::metadata(&self.file).ok().map(|metadata| Stamp {
            file: (metadata.dev(), metadata.ino()),
            length: metadata.len(),
            changed: metadata.modified().ok(),
        });
        if stamp.is_some() && stamp == self.seen {
            return;
        }
        self.seen = stamp;
        let text = self.read().unwrap_or_else(|error| {
            tracing::debug!(file = %self.file.display(), %error, "no servers upstream");
            String::new()
        });
        self.addresses = parse(&text, &self.own, self.port);
        // A file that is being written names none for a moment.
        if !self.addresses.is_empty() && self.addresses != self.known {
            self.known.clone_from(&self.addresses);
            self.generation += 1;
        }
    }

    fn read(&self) -> io::Result<String> {
        let mut bytes = Vec::new();
        File::open(&self.file)?.take(FILE).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// As they are listed, but the good one first.
fn in_turn(addresses: &[SocketAddr], good: Option<SocketAddr>) -> Vec<SocketAddr> {
    let (first, others): (Vec<_>, Vec<_>) = addresses
        .iter()
        .partition(|address| good == Some(**address));
    [first, others].concat()
}

/// The `nameserver` lines of a resolv.conf.
fn parse(text: &str, own: &[IpAddr], port: u16) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|address| address.trim().parse().ok())
        .filter(|address| !own.contains(address))
        .map(|address| SocketAddr::new(address, port))
        .take(MOST)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(last: u8) -> SocketAddr {
        ([192, 0, 2, last], PORT).into()
    }

    #[test]
    fn servers_of_a_resolv_conf() {
        let own = [IpAddr::from([10, 0, 0, 1])];
        let text = "search a b\nnameserver 10.0.0.1\nnameserver  192.0.2.1\n#nameserver 9.9.9.9\n";
        assert_eq!(parse(text, &own, PORT), [server(1)]);
        let many = "nameserver 192.0.2.1\n".repeat(100);
        assert_eq!(parse(&many, &own, PORT).len(), MOST);
    }

    #[test]
    fn who_answered_last_goes_first() {
        let [one, two, three] = [1, 2, 3].map(server);
        let all = [one, two, three];
        for (good, want) in [
            (None, [one, two, three]),
            (Some(one), [one, two, three]),
            (Some(three), [three, one, two]),
            (Some(server(9)), [one, two, three]), // no longer listed
        ] {
            assert_eq!(in_turn(&all, good), want, "{good:?}");
        }
    }

    #[test]
    fn other_servers_are_another_generation() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        let mut servers = Servers::new(file.clone(), Vec::new());
        let mut now = Instant::now();
        for (text, addresses, generation) in [
            (None, vec![], 0),
            (Some("nameserver 192.0.2.1\n"), vec![server(1)], 1),
            (Some("nameserver 192.0.2.1\nsearch a\n"), vec![server(1)], 1),
            (Some("# being written\n"), vec![], 1),
            (Some("nameserver 192.0.2.1\n"), vec![server(1)], 1),
            (Some("nameserver 192.0.2.2\n"), vec![server(2)], 2),
            (None, vec![], 2),
        ] {
            match text {
                Some(text) => fs::write(&file, text).unwrap(),
                None => drop(fs::remove_file(&file)),
            }
            now += READ_AGAIN;
            assert_eq!(servers.in_turn(now), addresses, "{text:?}");
            assert_eq!(servers.generation(now), generation, "{text:?}");
        }
        fs::write(&file, "nameserver 192.0.2.3\n").unwrap();
        assert_eq!(servers.in_turn(now), []); // too early to look
    }
}
