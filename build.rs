//! Tells the program what it is built of: commit, tree, date, compiler; and the linker how to write
//! relocations.
//!
//! Reproducible: the date is that of the commit, or `SOURCE_DATE_EPOCH`; a source tree without git
//! says no commit. A debug build keeps what it saw when this script last ran, and calls itself
//! `dirty`: that commit and what came since. So a commit does not cost developers a rebuild.

use std::{env, path::Path, process::Command};

fn main() {
    let debug = env::var("PROFILE").is_ok_and(|profile| profile == "debug");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    if !debug {
        // As soon as anything is said, only what is named counts.
        let log = output("git", &["rev-parse", "--git-path", "logs/HEAD"]);
        let sources = [
            "src",
            "proto",
            "netns",
            "cgroups",
            "Cargo.toml",
            "Cargo.lock",
        ];
        for path in sources.into_iter().chain(log.as_deref()) {
            if Path::new(path).exists() {
                println!("cargo:rerun-if-changed={path}");
            }
        }
    }
    let commit = output("git", &["rev-parse", "--verify", "HEAD"]);
    let changes = output(
        "git",
        &["status", "--porcelain", "--untracked-files=no", "--", "."],
    );
    let tree = match (&commit, changes) {
        (None, _) => "archive",
        (Some(_), Some(changes)) if changes.is_empty() && !debug => "clean",
        _ => "dirty",
    };
    let epoch = env::var("SOURCE_DATE_EPOCH").ok();
    let seconds = epoch.or_else(|| output("git", &["log", "-1", "--format=%ct"]));
    let compiler = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let compiler = output(&compiler, &["--version"]).unwrap_or_else(|| "rustc".to_owned());
    for (name, value) in [
        ("COMMIT", commit.unwrap_or_default()),
        ("TREE", tree.to_owned()),
        ("SECONDS", seconds.unwrap_or_else(|| "0".to_owned())),
        ("COMPILER", compiler),
    ] {
        println!("cargo:rustc-env=VETCH_BUILD_{name}={value}");
    }
    if c_library_is_from(2, 36) {
        // In the usual form they take three megabytes, which every start reads; packed, a hundredth.
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Whether the C library that is linked in is glibc of that version or newer: an older one does not
/// understand packed relocations, and the program would not start.
fn c_library_is_from(major: u32, minor: u32) -> bool {
    let cross = env::var("HOST").ok() != env::var("TARGET").ok();
    let told = output("getconf", &["GNU_LIBC_VERSION"]).filter(|_| !cross);
    let version = told.as_deref().and_then(|told| {
        let (major, minor) = told.strip_prefix("glibc ")?.split_once('.')?;
        let minor = minor.split('.').next()?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    });
    version.is_some_and(|version| version >= (major, minor))
}

/// What a program prints, if it is there and succeeds.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
