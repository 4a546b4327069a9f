//! Device nodes and which of them a container may use.
//!
//! The usual nodes (null, zero, full, random, urandom, tty, ptmx, console) are the runtime's, as
//! the OCI specification asks; here are the cgroup's rules and a privileged container's nodes.

use std::{
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

/// Major and minor numbers of nodes every container may read and write; `None`: all of a major.
const COMMON: [(i64, Option<i64>); 9] = [
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(1)), // console
    (5, Some(2)), // ptmx
    (136, None),  // pts
];
/// Nodes, links and places that every container has of its own.
const OWN: [&str; 12] = [
    "console", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "tty", "urandom",
    "zero",
];
/// A folder tree this deep below /dev is not real.
const DEPTH: usize = 8;

/// Deny all, then allow: any node may be made, few may be used. Privileged containers use all.
pub fn rules(privileged: bool) -> Vec<LinuxDeviceCgroup> {
    let rule = |allow, typ, major, minor, access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow)
            .set_typ(Some(typ))
            .set_major(major)
            .set_minor(minor)
            .set_access(Some(access.into()));
        rule
    };
    let (all, character, block) = (LinuxDeviceType::A, LinuxDeviceType::C, LinuxDeviceType::B);
    if privileged {
        return vec![rule(true, all, None, None, "rwm")];
    }
    let mut rules = vec![
        rule(false, all, None, None, "rwm"),
        rule(true, character, None, None, "m"),
        rule(true, block, None, None, "m"),
    ];
    rules.extend(COMMON.map(|(major, minor)| rule(true, character, Some(major), minor, "rwm")));
    rules
}

/// The nodes below /dev. One that vanishes meanwhile is left out.
pub fn of_the_host() -> Vec<LinuxDevice> {
    let mut found = Vec::new();
    collect(Path::new("/dev"), DEPTH, &mut found);
    found
}

fn collect(folder: &Path, depth: usize, found: &mut Vec<LinuxDevice>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let own = path
            .strip_prefix("/dev")
            .is_ok_and(|name| OWN.iter().any(|own| name == Path::new(own)));
        let Ok(meta) = entry.metadata() else { continue };
        let kind = meta.file_type();
        if own {
            continue;
        } else if kind.is_dir() && depth > 0 {
            collect(&path, depth - 1, found);
        } else if kind.is_char_device() || kind.is_block_device() {
            let number = meta.rdev();
            let mut device = LinuxDevice::default();
            device
                .set_path(path)
                .set_typ(match kind.is_char_device() {
                    true => LinuxDeviceType::C,
                    false => LinuxDeviceType::B,
                })
                .set_major(i64::from(nix::libc::major(number)))
                .set_minor(i64::from(nix::libc::minor(number)))
                .set_file_mode(Some(meta.mode() & 0o7777))
                .set_uid(Some(meta.uid()))
                .set_gid(Some(meta.gid()));
            found.push(device);
        }
    }
}
