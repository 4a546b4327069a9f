//! Which device nodes a group's processes may use: the rules, and how each layout is told.

use crate::{Error, Group, Layout};

/// One line of a device list. Later rules win.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub allow: bool,
    pub kind: Kind,
    /// `None` stands for all.
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    All,
    Block,
    Char,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    pub read: bool,
    pub write: bool,
    pub make: bool,
}

impl Access {
    pub const FULL: Self = Self {
        read: true,
        write: true,
        make: true,
    };
    pub const MAKE: Self = Self {
        read: false,
        write: false,
        make: true,
    };

    /// Reads `rwm` letters; others are ignored.
    pub fn parse(letters: &str) -> Self {
        Self {
            read: letters.contains('r'),
            write: letters.contains('w'),
            make: letters.contains('m'),
        }
    }
}

/// What every container may do: make any node, use the harmless ones and terminals.
pub fn default_rules() -> Vec<Rule> {
    let rule = |kind, major, minor, access| Rule {
        allow: true,
        kind,
        major,
        minor,
        access,
    };
    let mut rules = vec![
        Rule {
            allow: false,
            ..rule(Kind::All, None, None, Access::FULL)
        },
        rule(Kind::Char, None, None, Access::MAKE),
        rule(Kind::Block, None, None, Access::MAKE),
    ];
    // null, zero, full, random, urandom, tty, console, ptmx, and all of pts.
    for (major, minor) in [
        (1, Some(3)),
        (1, Some(5)),
        (1, Some(7)),
        (1, Some(8)),
        (1, Some(9)),
        (5, Some(0)),
        (5, Some(1)),
        (5, Some(2)),
        (136, None),
    ] {
        rules.push(rule(Kind::Char, Some(major), minor, Access::FULL));
    }
    rules
}

/// The v1 files to write, in order: lists that add up, which a rule for everything empties first.
pub fn v1_writes(rules: &[Rule]) -> Vec<(&'static str, String)> {
    rules
        .iter()
        .map(|rule| {
            let file = if rule.allow {
                "devices.allow"
            } else {
                "devices.deny"
            };
            (file, line(rule))
        })
        .collect()
}

fn line(rule: &Rule) -> String {
    let kind = match rule.kind {
        Kind::All if rule.major.is_none() && rule.minor.is_none() => return "a".into(),
        Kind::All => 'a',
        Kind::Block => 'b',
        Kind::Char => 'c',
    };
    let number = |number: Option<u32>| number.map_or_else(|| "*".into(), |n| n.to_string());
    let mut access = String::new();
    for (letter, on) in [
        ('r', rule.access.read),
        ('w', rule.access.write),
        ('m', rule.access.make),
    ] {
        if on {
            access.push(letter);
        }
    }
    format!(
        "{kind} {}:{} {access}",
        number(rule.major),
        number(rule.minor)
    )
}

impl Group {
    /// Lets the group use what `rules` allow, and nothing else if they begin by denying all.
    pub fn set_devices(&self, rules: &[Rule]) -> Result<(), Error> {
        match self.layout() {
            // Opening such a file takes longer than writing to it, and there are some thirty rules.
            Layout::V1 => v1_writes(rules)
                .chunk_by(|(one, _), (other, _)| one == other)
                .try_for_each(|writes| {
                    let values = writes.iter().map(|(_, value)| value.as_str());
                    self.write_each(writes[0].0, values)
                }),
            Layout::V2 => crate::bpf::attach(self, rules),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_lines() {
        let writes = v1_writes(&default_rules());
        assert_eq!(writes[0], ("devices.deny", "a".into()));
        assert_eq!(writes[1], ("devices.allow", "c *:* m".into()));
        assert!(writes.contains(&("devices.allow", "c 1:3 rwm".into())));
        assert!(writes.contains(&("devices.allow", "c 136:* rwm".into())));
    }
}
