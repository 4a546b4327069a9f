//! Lines of a container's log file, as the runtime writes them: `<time> <stream> <P|F> <text>`. Pure.

use jiff::Timestamp;

/// What of a log is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub timestamps: bool,
    pub since: Option<Timestamp>,
    pub tail: Option<u64>,
    pub limit_bytes: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line<'a> {
    time: &'a str,
    /// The text goes on in the next line.
    partial: bool,
    text: &'a [u8],
}

impl<'a> Line<'a> {
    /// `line` without the line break.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?;
        let stream = parts.next()?;
        if !matches!(stream, b"stdout" | b"stderr") {
            return None;
        }
        // More tags may follow after colons.
        let tag = parts.next()?.split(|byte| *byte == b':').next()?;
        let partial = match tag {
            b"P" => true,
            b"F" => false,
            _ => return None,
        };
        let text = parts.next().unwrap_or_default();
        Some(Self {
            time,
            partial,
            text,
        })
    }
}

/// What a line of the file is to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Not written to its end, or nothing of a log.
    Nothing,
    /// Its text goes on in the file's next line, if there is one.
    Part,
    /// It ends a line of the log.
    End,
}

/// `line` with its line break.
pub fn share(line: &[u8]) -> Share {
    let line = line.strip_suffix(b"\n").and_then(Line::parse);
    match line {
        None => Share::Nothing,
        Some(line) if line.partial => Share::Part,
        Some(_) => Share::End,
    }
}

/// Whether more is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum More {
    Wanted,
    Enough,
}

/// Turns lines of the file into what the client reads.
pub struct Formatter {
    timestamps: bool,
    since: Option<Timestamp>,
    left: Option<u64>,
    /// The last line of the file was a partial one.
    inside: bool,
}

impl Formatter {
    pub fn new(wanted: &Wanted) -> Self {
        Self {
            timestamps: wanted.timestamps,
            since: wanted.since,
            left: wanted.limit_bytes,
            inside: false,
        }
    }

    /// `line` without the line break. One that is none of a log is left out.
    pub fn put(&mut self, line: &[u8], out: &mut Vec<u8>) -> More {
        let Some(line) = Line::parse(line) else {
            return More::Wanted;
        };
        if let Some(since) = self.since {
            // Each by itself: times do not only rise, for clocks are set.
            if { line.time.parse::<Timestamp>() }.is_ok_and(|time| time < since) {
                return More::Wanted;
            }
        }
        let start = out.len();
        if self.timestamps && !self.inside {
            out.extend_from_slice(line.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(line.text);
        if !line.partial {
            out.push(b'\n');
        }
        self.inside = line.partial;
        let Some(left) = &mut self.left else {
            return More::Wanted;
        };
        let room = usize::try_from(*left).unwrap_or(usize::MAX);
        out.truncate(start.saturating_add(room));
        *left -= (out.len() - start) as u64;
        match left {
            0 => More::Enough,
            _ => More::Wanted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &[&str] = &[
        "2026-01-01T00:00:01.000000001Z stdout F one",
        "2026-01-01T00:00:02.5Z stdout P tw",
        "2026-01-01T00:00:02.6Z stdout F o",
        "nonsense",
        "2026-01-01T00:00:03Z stderr F ",
        "2026-01-01T00:00:04Z stderr F:x three  four",
    ];

    fn format(wanted: Wanted) -> String {
        let (mut formatter, mut out) = (Formatter::new(&wanted), Vec::new());
        for line in LINES {
            if formatter.put(line.as_bytes(), &mut out) == More::Enough {
                break;
            }
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_a_client_reads() {
        let since = |text: &str| Some(text.parse().unwrap());
        for (wanted, want) in [
            (Wanted::default(), "one\ntwo\n\nthree  four\n"),
            (
                Wanted {
                    timestamps: true,
                    since: since("2026-01-01T00:00:02.1Z"),
                    ..Wanted::default()
                },
                "2026-01-01T00:00:02.5Z two\n2026-01-01T00:00:03Z \n2026-01-01T00:00:04Z three  \
                 four\n",
            ),
            (
                Wanted {
                    limit_bytes: Some(6),
                    ..Wanted::default()
                },
                "one\ntw",
            ),
            (
                Wanted {
                    since: since("2027-01-01T00:00:00Z"),
                    ..Wanted::default()
                },
                "",
            ),
        ] {
            assert_eq!(format(wanted.clone()), want, "{wanted:?}");
        }
    }

    #[test]
    fn ends_of_lines() {
        for (line, want) in [
            ("2026-01-01T00:00:01Z stdout F one\n", Share::End),
            ("2026-01-01T00:00:01Z stdout F one", Share::Nothing),
            ("2026-01-01T00:00:01Z stdout P one\n", Share::Part),
            ("2026-01-01T00:00:01Z stdin F one\n", Share::Nothing),
            ("\n", Share::Nothing),
        ] {
            assert_eq!(share(line.as_bytes()), want, "{line:?}");
        }
    }

    #[test]
    fn each_line_has_its_own_time() {
        let wanted = Wanted {
            since: Some("2026-01-01T00:00:05Z".parse().unwrap()),
            ..Wanted::default()
        };
        let (mut formatter, mut out) = (Formatter::new(&wanted), Vec::new());
        // The clock was set back between the second and the third.
        for (second, text) in [(4, "one"), (5, "two"), (3, "three"), (6, "four")] {
            let line = format!("2026-01-01T00:00:0{second}Z stdout F {text}");
            formatter.put(line.as_bytes(), &mut out);
        }
        assert_eq!(out, b"two\nfour\n");
    }
}
