//! What a lab consists of, and what must be done to it. Pure: no clock, no I/O.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sha2::{Digest, Sha256};

use super::{
    Error,
    record::{Faults, Host, Record, Role, Stage},
};
use crate::{
    addresses::{
        family::{Family, PerFamily},
        ranges::{nth, overlap},
    },
    hex::hex,
};

/// The lab that is meant when none is named.
pub const USUAL_NAME: &str = "default";
/// The host that is the link between the others.
pub const SWITCH: &str = "switch";
/// How many machines a lab may have.
pub const MOST_HOSTS: u8 = 100;

/// What a lab is called: a DNS label of at most 32 bytes, so that the sockets in its folder have names that the
/// kernel takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(Box<str>);

/// Why a text is no lab's name.
#[derive(Debug, thiserror::Error)]
#[error(
    "must be 1 to {LONGEST} lower-case letters, digits and '-', with a letter first and no '-' last"
)]
pub struct BadName;

const LONGEST: usize = 32;

impl FromStr for Name {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let bytes = text.as_bytes();
        let good = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
        let ends = bytes.first().is_some_and(u8::is_ascii_lowercase)
            && bytes.last().is_some_and(|byte| *byte != b'-');
        match ends && bytes.len() <= LONGEST && bytes.iter().all(good) {
            true => Ok(Self(text.into())),
            false => Err(BadName),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How many machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    servers: u8,
    nodes: u8,
}

/// Why there can be no lab of that size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSize {
    #[error("a lab needs a server: --servers 1")]
    NoServer,
    #[error("a cluster has one server so far: --servers 1, and as many --nodes as you like")]
    SeveralServers,
    #[error("a lab has at most {MOST_HOSTS} machines, its server among them")]
    TooMany,
}

impl Size {
    /// Servers are nodes too; `nodes` come in addition.
    pub fn new(servers: u8, nodes: u8) -> Result<Self, BadSize> {
        match servers {
            0 => Err(BadSize::NoServer),
            1 if nodes < MOST_HOSTS => Ok(Self { servers, nodes }),
            1 => Err(BadSize::TooMany),
            _ => Err(BadSize::SeveralServers),
        }
    }
}

/// Which addresses the machines, pods and Services of a lab have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpFamily {
    Ipv4,
    Ipv6,
    /// Both, IPv4 first.
    Dual,
}

impl IpFamily {
    fn families(self) -> PerFamily<Family> {
        match self {
            Self::Ipv4 => PerFamily::one(Family::V4),
            Self::Ipv6 => PerFamily::one(Family::V6),
            Self::Dual => PerFamily::DUAL,
        }
    }
}

/// What somebody wants to have.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub size: Size,
    pub ip_family: IpFamily,
    /// For `vetch up` and `vetch agent` on every host.
    pub flags: Vec<String>,
}

/// What of a lab is on the machine itself, by its folder.
pub fn link(folder: &Path) -> String {
    format!("vlab{}", hex(&tag(folder)))
}

fn tag(folder: &Path) -> [u8; 4] {
    let digest = Sha256::digest(folder.as_os_str().as_encoded_bytes());
    [digest[0], digest[1], digest[2], digest[3]]
}

/// The whole lab, of which nothing is there yet. `group` names the control group of what runs below a root.
pub fn record(
    folder: &Path,
    range: PerFamily<IpNet>,
    wanted: &Wanted,
    group: impl Fn(&Path) -> String,
) -> Record {
    let servers = (1..=wanted.size.servers).map(|number| (Role::Server, number));
    let nodes = (1..=wanted.size.nodes).map(|number| (Role::Node, number));
    // The first address is the machine's.
    let addresses = (2..=u8::MAX).map_while(|number| {
        let address = range.try_map(|range| nth(range, number).ok_or(()));
        address.ok()
    });
    let hosts = servers.chain(nodes).zip(addresses);
    let hosts = hosts.map(|((role, number), address)| {
        let name = match role {
            Role::Server => format!("server{number}"),
            Role::Node => format!("node{number}"),
        };
        Host {
            group: group(&folder.join(&name)),
            name,
            role,
            address,
            faults: Faults::default(),
        }
    });
    Record {
        version: Record::version(&range),
        stage: Stage::Making,
        link: link(folder),
        range,
        hosts: hosts.collect(),
        flags: wanted.flags.clone(),
    }
}

/// How much longer the root of a host is than its sockets can have it.
pub fn too_long(root: &Path) -> Option<usize> {
    /// What the kernel takes, without the closing zero.
    const SOCKET: usize = 107;
    let longest = root.join("run/.tmpXXXXXX/notify");
    let over = longest.as_os_str().len().checked_sub(SOCKET)?;
    (over > 0).then_some(over)
}

/// Ranges for a lab that meet none of those that are taken, one of each family.
pub fn free_ranges(
    folder: &Path,
    ip_family: IpFamily,
    taken: &[IpNet],
) -> Result<PerFamily<IpNet>, Error> {
    let free = |family: &Family| {
        let family = *family;
        free_range(folder, family, taken).ok_or(Error::NoRange { family })
    };
    ip_family.families().try_map(free)
}

/// Labs below different folders start to look at different places, so that two that are made in the same moment
/// hardly ever take the same.
fn free_range(folder: &Path, family: Family, taken: &[IpNet]) -> Option<IpNet> {
    /// Shorter prefixes are ways out, such as the two halves of everything that a VPN sets.
    const WAY_OUT: u8 = 8;
    let is_free = |range: &IpNet| {
        let mut others = taken.iter().filter(|other| other.prefix_len() >= WAY_OUT);
        !others.any(|other| overlap(range, other))
    };
    match family {
        Family::V4 => ranges_v4(folder).map(IpNet::V4).find(is_free),
        Family::V6 => ranges_v6(folder).map(IpNet::V6).find(is_free),
    }
}

/// Where nothing well known lies: clusters have pods in 10.42.0.0/16 and services in 10.96.0.0/12, Docker begins
/// with 172.17.0.0/16, and networks at home with 192.168.0.0/24.
const POOLS: [(u8, u8); 3] = [(10, 200), (172, 30), (192, 168)];

fn ranges_v4(folder: &Path) -> impl Iterator<Item = Ipv4Net> {
    let [first, ..] = tag(folder);
    let all = POOLS
        .into_iter()
        .flat_map(move |pool| (0..=u8::MAX).map(move |part| (pool, first.wrapping_add(part))));
    all.map(|((a, b), part)| Ipv4Net::new_assert(Ipv4Addr::new(a, b, part, 0), 24))
}

/// Unique local addresses (RFC 4193): the global ID follows from the folder, and the subnets are tried in turn.
fn ranges_v6(folder: &Path) -> impl Iterator<Item = Ipv6Net> {
    let [a, b, c, d] = tag(folder).map(u16::from);
    (0..=u8::MAX).map(move |part| {
        let network = Ipv6Addr::new(0xfd00 | a, b << 8 | c, d, part.into(), 0, 0, 0, 0);
        Ipv6Net::new_assert(network, 64)
    })
}

/// Where ranges are taken from, for messages.
pub fn pools(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.200.0.0/16, 172.30.0.0/16 and 192.168.0.0/16",
        Family::V6 => "this lab's part of fd00::/8",
    }
}

/// The addresses of the machine in the lab.
pub fn machine_address(range: &PerFamily<IpNet>) -> PerFamily<IpAddr> {
    range.map(|range| nth(range, 1).unwrap_or(range.network()))
}

/// The end of a link: of all in a lab each has a hardware address of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Switch,
    Host,
}

/// Locally administered, and the same whenever the link is made again.
pub fn mac(address: IpAddr, end: End) -> netns::route::Mac {
    let [a, b, c, d] = match address {
        IpAddr::V4(address) => address.octets(),
        // Those that differ between the hosts of a lab.
        IpAddr::V6(address) => (u128::from(address) as u32).to_be_bytes(),
    };
    let end = match end {
        End::Switch => 1,
        End::Host => 0,
    };
    [0x02, end, a, b, c, d]
}

/// What a machine joins the cluster by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    pub server: String,
    pub token: String,
}

impl Join {
    /// From the command that `vetch up --detach` prints for other machines.
    pub fn find(said: &str) -> Option<Self> {
        let line = said.lines().find(|line| line.contains("vetch agent"))?;
        let mut words = line.split_whitespace();
        let mut after = |flag| words.find(|word| *word == flag).and_then(|_| words.next());
        Some(Self {
            server: after("--server")?.to_owned(),
            token: after("--token")?.to_owned(),
        })
    }
}

/// What `vetch` is started with on a host.
pub fn arguments(root: &Path, host: &Host, join: Option<&Join>, flags: &[String]) -> Vec<String> {
    let command = match host.role {
        Role::Server => "up",
        Role::Node => "agent",
    };
    let root = root.display().to_string();
    let mut words = vec![
        command,
        "--detach",
        "--root",
        &root,
        "--node-name",
        &host.name,
    ];
    if let Some(join) = join {
        words.extend(["--server", &join.server, "--token", &join.token]);
    }
    let words = words.into_iter().map(str::to_owned);
    let ranges = match host.role {
        Role::Server => cluster_ranges(&host.address),
        Role::Node => Vec::new(),
    };
    words.chain(ranges).chain(flags.iter().cloned()).collect()
}

/// The ranges of pods and Services of a cluster whose machines have such addresses: nothing where its usual ones
/// are of these families.
fn cluster_ranges(machine: &PerFamily<IpAddr>) -> Vec<String> {
    if machine.of(Family::V6).is_none() {
        return Vec::new();
    }
    let ranges = |v4: &str, v6: &str| {
        let of = |family| match family {
            Family::V4 => v4.to_owned(),
            Family::V6 => v6.to_owned(),
        };
        machine.families().map(of).collect::<Vec<_>>().join(",")
    };
    vec![
        format!("--pod-cidr={}", ranges("10.42.0.0/24", "fd42::/64")),
        format!("--service-cidr={}", ranges("10.96.0.0/16", "fd96::/112")),
    ]
}

/// One thing to do for a host that shall work again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// New namespaces, and the link to the lab's network.
    MakeHost,
    SetLinkUp,
    LetPacketsPass,
    ContinueDaemon,
    StartDaemon,
}

/// What is there of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Nothing: it was killed, or the machine was started anew.
    None,
    /// Namespaces without a daemon.
    Bare,
    Daemon,
}

/// What heals a host, in this order.
pub fn healing(life: Life, faults: &Faults) -> Vec<Step> {
    if life == Life::None {
        // Its faults went with it.
        return vec![Step::MakeHost, Step::StartDaemon];
    }
    let disturbed = faults.delay_ms > 0 || faults.lost_percent > 0;
    [
        (faults.cut, Step::SetLinkUp),
        (disturbed, Step::LetPacketsPass),
        (faults.frozen, Step::ContinueDaemon),
        (life == Life::Bare, Step::StartDaemon),
    ]
    .into_iter()
    .filter_map(|(needed, step)| needed.then_some(step))
    .collect()
}

/// The process whose number in its innermost namespace is `inner`, by the lines of its `/proc/PID/status`.
pub fn is_called(status: &str, inner: i32) -> bool {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let last = numbers.and_then(|numbers| numbers.split_whitespace().last());
    last.and_then(|last| last.parse().ok()) == Some(inner)
}

/// The administrator's kubeconfig of a server as it is of use from outside of it.
pub fn from_outside(kubeconfig: &str, server: IpAddr) -> String {
    let server = match server {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    kubeconfig.replace("https://127.0.0.1:", &format!("https://{server}:"))
}

#[cfg(test)]
mod tests;
