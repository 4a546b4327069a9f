//! Whom a container runs as: names and numbers against the image's own passwd and group files.
//!
//! Pure: the files' texts come in. Numbers beyond 2147483647, negative ones and garbage are refused,
//! never read as 0.

use serde::{Deserialize, Serialize};

/// Largest user or group number that may be asked for; the kernel has other meanings above.
const LARGEST: u32 = i32::MAX as u32;

/// Supplementary groups; the kernel takes 65536, and people have a dozen.
const MOST_GROUPS: usize = 4096;
/// As long as a path may be.
const LONGEST_HOME: usize = 4096;

/// A user with everything that follows from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, the primary one among them.
    pub groups: Vec<u32>,
    /// From passwd; empty when the user is not listed there.
    pub home: String,
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or("");
        Some(Passwd {
            name,
            uid,
            gid,
            home,
        })
    })
}

/// Name, number and members.
fn groups(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

/// A number as people write it; `None` if it is a name.
fn number(text: &str) -> Result<Option<u32>, String> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(number) if number <= LARGEST => Ok(Some(number)),
        _ => Err(format!("{text} is not a number from 0 to {LARGEST}")),
    }
}

/// Resolves `user[:group]`. `given_group` overrides the group (runAsGroup), `more` are
/// supplementary groups of the pod; `merge` adds those the image lists the user in.
pub fn resolve(
    spec: &str,
    passwd_text: &str,
    group_text: &str,
    more: &[u32],
    merge: bool,
) -> Result<Resolved, String> {
    let (user, group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    if group == Some("") || (user.is_empty() && group.is_some()) {
        return Err(format!("user {spec:?} lacks a part"));
    }
    let user = if user.is_empty() { "0" } else { user };
    let listed = match number(user).map_err(|error| format!("user {spec:?}: {error}"))? {
        Some(uid) => passwd(passwd_text)
            .find(|entry| entry.uid == uid)
            .unwrap_or(Passwd {
                name: "",
                uid,
                gid: 0,
                home: "",
            }),
        None => passwd(passwd_text)
            .find(|entry| entry.name == user)
            .ok_or_else(|| {
                format!("unable to find user {user}: no matching entries in passwd file")
            })?,
    };
    if listed.uid > LARGEST {
        return Err(format!("user {spec:?}: {} is too large", listed.uid));
    }
    let gid = match group {
        None => listed.gid,
        Some(group) => {
            match number(group).map_err(|error| format!("group of {spec:?}: {error}"))? {
                Some(gid) => gid,
                None => groups(group_text)
                    .find(|(name, ..)| *name == group)
                    .map(|(_, gid, _)| gid)
                    .ok_or_else(|| {
                        format!("unable to find group {group}: no matching entries in group file")
                    })?,
            }
        }
    };
    let mut all = vec![gid];
    if merge && !listed.name.is_empty() {
        all.extend(
            groups(group_text)
                .filter(|(.., members)| members.split(',').any(|name| name == listed.name))
                .map(|(_, gid, _)| gid),
        );
    }
    all.extend(more);
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|gid| seen.insert(*gid));
    if all.len() > MOST_GROUPS {
        return Err(format!(
            "user {spec:?} is in more than {MOST_GROUPS} groups of the group file"
        ));
    }
    if listed.home.len() > LONGEST_HOME {
        return Err(format!(
            "user {spec:?} has a home of more than {LONGEST_HOME} bytes in the passwd file"
        ));
    }
    Ok(Resolved {
        uid: listed.uid,
        gid,
        groups: all,
        home: listed.home.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbad line\nweb:x:33:34:Web:/srv:/bin/no\nhuge:x:4294967295:1::/:\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nssl:x:50:web,other\nlog:x:60:other,web\n";

    #[test]
    fn users_and_groups() {
        for (spec, more, merge, want) in [
            ("", &[][..], true, (0, 0, vec![0], "/root")),
            ("0", &[7], true, (0, 0, vec![0, 7], "/root")),
            ("web", &[], true, (33, 34, vec![34, 50, 60], "/srv")),
            ("web", &[50, 9], true, (33, 34, vec![34, 50, 60, 9], "/srv")),
            ("web", &[9], false, (33, 34, vec![34, 9], "/srv")), // Strict
            ("33", &[], true, (33, 34, vec![34, 50, 60], "/srv")),
            ("33:ssl", &[], true, (33, 50, vec![50, 60], "/srv")),
            ("1000", &[], true, (1000, 0, vec![0], "")),
            ("1000:2000", &[], true, (1000, 2000, vec![2000], "")),
        ] {
            let found = resolve(spec, PASSWD, GROUP, more, merge).unwrap();
            let found = (found.uid, found.gid, found.groups, found.home.as_str());
            assert_eq!((found.0, found.1, found.2, found.3), want, "{spec}");
        }
    }

    #[test]
    fn refused() {
        let crowd: String = (0..5000)
            .map(|gid| format!("g{gid}:x:{gid}:web\n"))
            .collect();
        assert!(resolve("web", PASSWD, &crowd, &[], true).is_err());
        let palace = format!("king:x:5:5::/{}:\n", "a".repeat(5000));
        assert!(resolve("king", &palace, GROUP, &[], true).is_err());
        for spec in [
            "4294967296",
            "2147483648",
            "-1",
            "+1x:0",
            "1000:",
            ":5",
            "nobody-here",
            "0:no-such-group",
            "0:-5",
            "huge",
            "99999999999999999999",
        ] {
            assert!(
                resolve(spec, PASSWD, GROUP, &[], true).is_err(),
                "{spec} was taken"
            );
        }
    }
}
