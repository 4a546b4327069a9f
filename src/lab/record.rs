//! What a lab is, on disk: all that `lab down` must know is in it before any of it is made.

use std::{fmt, fs, net::IpAddr, path::Path};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Error;
use crate::{
    addresses::family::{Family, PerFamily},
    format::{self, Unreadable},
    pki,
};

/// One lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub version: u32,
    pub stage: Stage,
    /// The machine's own end of the lab's network.
    pub link: String,
    /// One of each family that the lab has.
    pub range: PerFamily<IpNet>,
    pub hosts: Vec<Host>,
    /// For `vetch up` and `vetch agent` on every host.
    #[serde(default)]
    pub flags: Vec<String>,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    Making,
    Made,
    Removing,
}

/// One machine of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub name: String,
    pub role: Role,
    pub address: PerFamily<IpAddr>,
    /// The control group that its pods are in, which is the machine's.
    pub group: String,
    #[serde(default)]
    pub faults: Faults,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    Server,
    Node,
}

/// What is wrong with a host on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Faults {
    pub killed: bool,
    pub frozen: bool,
    pub cut: bool,
    /// Of each packet, both ways.
    pub delay_ms: u32,
    /// Of a hundred packets, both ways.
    pub lost_percent: u8,
}

impl fmt::Display for Faults {
    /// `up` where nothing is wrong.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.killed {
            return f.write_str("killed");
        }
        let mut wrong = Vec::new();
        if self.frozen {
            wrong.push("frozen".to_owned());
        }
        if self.cut {
            wrong.push("cut".to_owned());
        }
        if self.delay_ms > 0 {
            wrong.push(format!("delayed {} ms", self.delay_ms));
        }
        if self.lost_percent > 0 {
            wrong.push(format!("loses {} %", self.lost_percent));
        }
        match wrong.is_empty() {
            true => f.write_str("up"),
            false => f.write_str(&wrong.join(", ")),
        }
    }
}

impl Record {
    /// The latest format, and the oldest that is still read.
    const LATEST: u32 = 2;
    const OLDEST: u32 = 1;

    /// The format of a record with such addresses: programs that know version 1 alone know no IPv6.
    pub fn version(range: &PerFamily<IpNet>) -> u32 {
        match range.of(Family::V6) {
            Some(_) => Self::LATEST,
            None => Self::OLDEST,
        }
    }

    pub fn server(&self) -> Option<&Host> {
        self.hosts.iter().find(|host| host.role == Role::Server)
    }

    pub fn host(&self, name: &str) -> Result<&Host, Error> {
        let found = self.hosts.iter().find(|host| host.name == name);
        found.ok_or_else(|| Error::NoHost {
            host: name.to_owned(),
            hosts: self.hosts.iter().map(|host| host.name.clone()).collect(),
        })
    }

    /// Changes what is known to be wrong with a host.
    pub fn set_faults(&mut self, name: &str, faults: &Faults) {
        let found = self.hosts.iter_mut().find(|host| host.name == name);
        if let Some(host) = found {
            host.faults = faults.clone();
        }
    }

    /// `None` where there is none.
    pub fn load(path: &Path) -> Result<Option<Self>, Error> {
        let read = || format::parse(&fs::read(path)?, Self::OLDEST..=Self::LATEST);
        match format::patiently(read) {
            Ok(record) => Ok(Some(record)),
            Err(Unreadable::Absent) => Ok(None),
            Err(source) => Err(Error::Unreadable {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// All of it or nothing, also when the machine loses its power.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self).map_err(Error::Unwritable)?;
        Ok(pki::write_private(path, &text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_newer_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lab.json");
        assert_eq!(Record::load(&path).unwrap(), None);
        let range: PerFamily<IpNet> = "10.200.1.0/24,fd00::/64".parse().unwrap();
        let mut record = Record {
            version: Record::version(&range),
            stage: Stage::Making,
            link: "vlab0".into(),
            range,
            hosts: vec![Host {
                name: "server1".into(),
                role: Role::Server,
                address: "10.200.1.2,fd00::2".parse().unwrap(),
                group: "vetch-0".into(),
                faults: Faults::default(),
            }],
            flags: vec!["--swap=limited".into()],
        };
        let faults = Faults {
            cut: true,
            delay_ms: 20,
            ..Faults::default()
        };
        assert_eq!(record.hosts[0].faults.to_string(), "up");
        record.set_faults("server1", &faults);
        assert_eq!(record.hosts[0].faults.to_string(), "cut, delayed 20 ms");
        record.save(&path).unwrap();
        assert_eq!(Record::load(&path).unwrap(), Some(record.clone()));
        // Of IPv4 alone it is what it was before there were others.
        let only: PerFamily<IpNet> = "10.200.1.0/24".parse().unwrap();
        record.version = Record::version(&only);
        record.range = only;
        record.hosts[0].address = PerFamily::one("10.200.1.2".parse().unwrap());
        record.save(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for line in [
            "\"version\": 1,",
            "\"range\": \"10.200.1.0/24\",",
            "\"address\": \"10.200.1.2\",",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert_eq!(Record::load(&path).unwrap(), Some(record));
        fs::write(&path, r#"{"version": 99}"#).unwrap();
        let error = Record::load(&path).unwrap_err();
        assert!(matches!(error, Error::Unreadable { .. }), "{error}");
    }
}
