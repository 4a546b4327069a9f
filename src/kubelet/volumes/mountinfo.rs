//! What is mounted where, from `/proc/self/mountinfo`.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub point: PathBuf,
    /// Sends its mounts to others.
    pub shared: bool,
    /// Receives the mounts of another.
    pub slave: bool,
}

/// All mounts, in the order in which they lie on top of each other.
pub fn read() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// The mount that the path lies on.
pub fn containing(path: &Path) -> io::Result<Option<Mount>> {
    let path = fs::canonicalize(path)?;
    let mounts = read()?.into_iter().rev();
    let above = mounts.filter(|mount| path.starts_with(&mount.point));
    // The last of the longest: reversed, `max_by_key` would give the first mounted.
    let longest = above.reduce(|best, next| {
        let longer = next.point.components().count() > best.point.components().count();
        if longer { next } else { best }
    });
    Ok(longest)
}

/// Whether a file system of its own begins there; binds of the same one are not seen.
pub fn is_mount_point(folder: &Path) -> io::Result<bool> {
    let parent = folder.parent().unwrap_or(folder);
    Ok(fs::metadata(folder)?.dev() != fs::metadata(parent)?.dev())
}

/// `36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw`
fn parse(text: &[u8]) -> Vec<Mount> {
    let lines = text.split(|byte| *byte == b'\n');
    let mount = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let point = unescape(fields.nth(4)?);
        let optional: Vec<_> = fields.skip(1).take_while(|field| *field != b"-").collect();
        let has = |prefix: &[u8]| optional.iter().any(|field| field.starts_with(prefix));
        Some(Mount {
            point: PathBuf::from(OsString::from_vec(point)),
            shared: has(b"shared:"),
            slave: has(b"master:"),
        })
    };
    lines.filter_map(mount).collect()
}

/// Blanks and backslashes are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let digits = (first == b'\\').then(|| after.get(..3)).flatten();
        let code = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(code);
                rest = &after[3..];
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let text = b"36 35 98:0 / / rw shared:1 - ext4 /dev/x rw\n\
            37 36 0:5 / /a\\040b/\\303\\251\\134c rw,nosuid shared:2 master:1 - tmpfs tmpfs rw\n\
            38 36 0:6 / /c rw - tmpfs tmpfs rw\n";
        let mounts = parse(text);
        let shown: Vec<_> = mounts
            .iter()
            .map(|one| (one.point.to_str().unwrap(), one.shared, one.slave))
            .collect();
        assert_eq!(
            shown,
            [
                ("/", true, false),
                ("/a b/é\\c", true, true),
                ("/c", false, false)
            ]
        );
    }
}
