//! Kernel settings under `/proc/sys` of the calling thread's network namespace.

use std::{fs, io, path::PathBuf};

use crate::Error;

/// Reads e.g. `net/ipv4/ip_forward`; `None` where the kernel has no such setting.
pub fn read(name: &str) -> Result<Option<String>, Error> {
    let path = path(name);
    match fs::read_to_string(&path) {
        Ok(value) => Ok(Some(value.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Path {
            action: "read the setting",
            path,
            source,
        }),
    }
}

pub fn write(name: &str, value: &str) -> Result<(), Error> {
    let path = path(name);
    fs::write(&path, value).map_err(|source| Error::Path {
        action: "write the setting",
        path,
        source,
    })
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name)
}
