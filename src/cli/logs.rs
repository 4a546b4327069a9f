//! `vetch logs`: what the daemon has to say. (Pods' logs: `kubectl logs`.)

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{Error, paths::RootArg};

/// How often the log is looked at where the kernel has no watch to give: its users have a number of them.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Show the daemon's own log
#[derive(clap::Args)]
pub struct Logs {
    #[command(flatten)]
    root: RootArg,
    /// Go on as more is written
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines
    #[arg(long, value_name = "N")]
    tail: Option<usize>,
}

impl Logs {
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode, Error> {
        let path = self.root.paths()?.daemon_log();
        let mut file = File::open(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => format!(
                "{} is not there: only a daemon started with --detach writes it; one in the foreground prints it",
                path.display()
            ),
            _ => format!("open {}: {error}", path.display()),
        })?;
        // Watched before it is read, so that nothing falls between.
        let watch = self.follow.then(|| watch(&path).ok());
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        out.write_all(last_lines(&text, self.tail))?;
        if let Some(watch) = watch {
            follow(&mut file, watch.as_ref(), out)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn watch(path: &Path) -> nix::Result<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    inotify.add_watch(path, AddWatchFlags::IN_MODIFY)?;
    Ok(inotify)
}

/// Writes what is added, until the reader goes away.
fn follow(file: &mut File, watch: Option<&Inotify>, out: &mut dyn Write) -> std::io::Result<()> {
    loop {
        out.flush()?;
        match watch {
            Some(watch) => drop(watch.read_events()?),
            None => std::thread::sleep(LOOK_EVERY),
        }
        if file.metadata()?.len() < file.stream_position()? {
            file.seek(SeekFrom::Start(0))?;
        }
        std::io::copy(file, out)?;
    }
}

fn last_lines(text: &[u8], count: Option<usize>) -> &[u8] {
    let Some(count) = count else {
        return text;
    };
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let start = match count.checked_sub(1) {
        None => text.len(),
        Some(skip) => {
            let mut ends = body
                .iter()
                .enumerate()
                .rev()
                .filter(|(_, byte)| **byte == b'\n');
            ends.nth(skip).map_or(0, |(index, _)| index + 1)
        }
    };
    text.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines() {
        for (count, want) in [
            (None, "a\nb\nc\n"),
            (Some(0), ""),
            (Some(1), "c\n"),
            (Some(2), "b\nc\n"),
            (Some(9), "a\nb\nc\n"),
        ] {
            assert_eq!(
                last_lines(b"a\nb\nc\n", count),
                want.as_bytes(),
                "{count:?}"
            );
        }
    }
}
