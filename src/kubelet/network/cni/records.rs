//! Which pods are on networks, on disk: without it nobody would know what DEL must be told.
//!
//! Owns a folder with a file for each pod. Forced to disk: what plugins have given out outlives a power cut, as
//! addresses on record do.
//! Always true: a record is there before the first plugin is run for the pod, and goes after the last has
//! taken it back. Blocking.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{config::Network, plan::Attachment};
use crate::{
    addresses::family::PerFamily,
    format::{self, Unreadable},
    runtime::files,
};

/// Raised with every change that an older reader would misunderstand; see [`crate::format`].
const VERSION: u32 = 1;
const OLDEST: u32 = 1;
/// A record has a configuration and a result, neither of which is larger than [`super::exec::MAX_OUTPUT`].
const MAX_BYTES: u64 = 8 << 20;
const EXTENSION: &str = "json";

/// A pod's network, with all that DEL must be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    pub pod: Attachment,
    /// The configuration that ADD was told.
    pub network: Network,
    /// Where its plugins are.
    pub programs: Vec<PathBuf>,
    pub state: State,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum State {
    /// Plugins have begun with it, or have begun to take it back.
    Changing { result: Option<Value> },
    Added {
        addresses: PerFamily<std::net::IpAddr>,
        result: Value,
    },
}

impl Record {
    pub fn new(pod: Attachment, network: Network, programs: Vec<PathBuf>) -> Self {
        Self {
            version: VERSION,
            pod,
            network,
            programs,
            state: State::Changing { result: None },
        }
    }

    /// What ADD has answered.
    pub fn result(&self) -> Option<&Value> {
        match &self.state {
            State::Changing { result } => result.as_ref(),
            State::Added { result, .. } => Some(result),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error {
        action,
        path,
        source,
    }
}

#[derive(Clone, Debug)]
pub struct Records {
    folder: PathBuf,
}

impl Records {
    pub fn open(folder: &Path) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(failed("create", folder))?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// Whether there may be some, without a look at what they say.
    pub fn exist(folder: &Path) -> bool {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names = entries.map(|entry| entry.path());
        names.any(|path| path.extension().is_some_and(|one| one == EXTENSION))
    }

    /// All of them. One that cannot be read is set aside: its pod's network stays as it is. One that was set
    /// aside by another program and is understood here is taken back.
    pub fn load(&self) -> Result<Vec<Record>, Error> {
        let folder = &self.folder;
        let mut records = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed("read", folder))? {
            let path = entry.map_err(failed("read", folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.unwrap_or_default();
            if name.ends_with(&format!(".{EXTENSION}.{}", format::ASIDE)) {
                if let Ok(record) = read(&path) {
                    let back = path.with_extension("");
                    fs::rename(&path, &back).map_err(failed("rename", &path))?;
                    records.push(record);
                }
            } else if name.ends_with(&format!(".{EXTENSION}")) {
                match read(&path) {
                    Ok(record) => records.push(record),
                    Err(Unreadable::Absent) => {}
                    Err(Unreadable::Busy(error)) => return Err(failed("read", &path)(error)),
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "no record of a pod's network, set aside");
                        format::set_aside(&path).map_err(failed("set aside", &path))?;
                    }
                }
            } else if name.ends_with(".new") {
                // Cut short while it was written.
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(records)
    }

    pub fn put(&self, record: &Record) -> Result<(), Error> {
        let path = self.path(&record.pod.uid);
        let aside = path.with_extension("new");
        let text = serde_json::to_vec(record).map_err(io::Error::from);
        let text = text.map_err(failed("write", &path))?;
        let write = || {
            let mut file = File::create(&aside)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&aside, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(failed("write", &path))
    }

    pub fn delete(&self, uid: &str) -> Result<(), Error> {
        let path = self.path(uid);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// UIDs are checked before: they name no other folder.
    fn path(&self, uid: &str) -> PathBuf {
        self.folder.join(format!("{uid}.{EXTENSION}"))
    }
}

fn read(path: &Path) -> Result<Record, Unreadable> {
    format::patiently(|| {
        let bytes = files::read_at_most(path, MAX_BYTES)?;
        format::parse(&bytes, OLDEST..=VERSION)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::config, *};

    fn record(uid: &str) -> Record {
        let file =
            json!({"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "b", "x": [1]}]});
        let described = config::parse(&serde_json::to_vec(&file).unwrap()).unwrap();
        let pod = Attachment {
            uid: uid.into(),
            namespace: "n".into(),
            name: "p".into(),
            container_id: "c".into(),
            netns: "/n/c".into(),
            ports: Vec::new(),
            bandwidth: Default::default(),
            ranges: vec!["10.42.0.0/24".parse().unwrap()],
        };
        Record::new(pod, described.agreed(&[]).unwrap(), vec!["/b".into()])
    }

    #[test]
    fn records_outlive_the_program() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!Records::exist(folder.path()));
        let records = Records::open(folder.path()).unwrap();
        let mut one = record("one");
        records.put(&one).unwrap();
        one.state = State::Added {
            addresses: "10.42.0.2,fd42::2".parse().unwrap(),
            result: json!({"cniVersion": "1.0.0"}),
        };
        records.put(&one).unwrap();
        fs::write(folder.path().join("two.new"), "{").unwrap();
        fs::write(folder.path().join("three.json"), "{").unwrap();
        let mut later = serde_json::to_value(record("four")).unwrap();
        later["version"] = 2.into();
        fs::write(folder.path().join("four.json"), later.to_string()).unwrap();
        let aside = serde_json::to_vec(&record("five")).unwrap();
        fs::write(folder.path().join("five.json.unreadable"), aside).unwrap();
        let mut found = records.load().unwrap();
        found.sort_by_key(|record| record.pod.uid.clone());
        assert_eq!(found, [record("five"), one]);
        assert!(Records::exist(folder.path()));
        let mut names: Vec<String> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "five.json",
                "four.json.unreadable",
                "one.json",
                "three.json.unreadable"
            ]
        );
        records.delete("one").unwrap();
        records.delete("one").unwrap();
        records.delete("five").unwrap();
        assert!(records.load().unwrap().is_empty());
    }
}
