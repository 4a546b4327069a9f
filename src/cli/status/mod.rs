//! `vetch status`: how the cluster is, what is wrong with it, and what to do about that.
//!
//! `gather.rs` asks, `facts.rs` has what was found, `diagnosis.rs` decides what of it is wrong. Works without a
//! daemon, and on a machine that is a node and nothing else.

mod diagnosis;
mod facts;
mod gather;
mod pods;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use jiff::Timestamp;
use serde::Serialize;

pub use self::facts::NodeLine;
use self::{
    diagnosis::{Finding, diagnose},
    facts::{Facts, Machine, age, span},
};
use super::{Error, block_on, daemon, need_root, paths::RootArg, table};

/// Show how the cluster is, what is wrong, and what to do about it; fails if something is
#[derive(clap::Args)]
pub struct Status {
    #[command(flatten)]
    root: RootArg,
    /// How to write it
    #[arg(long, short, value_enum, default_value_t = Output::Text, value_name = "FORMAT")]
    output: Output,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// All that is said.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    healthy: bool,
    #[serde(flatten)]
    facts: &'a Facts,
    findings: &'a [Finding],
}

impl Status {
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode, Error> {
        need_root("status")?;
        daemon::install_crypto();
        let (paths, flag) = (self.root.paths()?, self.root.flag());
        let facts = block_on(async { Ok(gather::gather(&paths, &flag).await) })?;
        let now = Timestamp::now();
        let findings = diagnose(&facts, now, &flag, gather::WITHIN);
        match self.output {
            Output::Text => show(out, &facts, &findings, now)?,
            Output::Json => {
                let report = Report {
                    healthy: findings.is_empty(),
                    facts: &facts,
                    findings: &findings,
                };
                serde_json::to_writer_pretty(&mut *out, &report)?;
                writeln!(out)?;
            }
        }
        Ok(match findings.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }
}

fn show(
    out: &mut dyn Write,
    facts: &Facts,
    findings: &[Finding],
    now: Timestamp,
) -> io::Result<()> {
    let what = match &facts.machine {
        Machine::Nothing => "no part of a cluster".to_owned(),
        Machine::Server => "a server and a node".to_owned(),
        Machine::Agent { node, .. } => format!("the node {}", table::printable(node)),
    };
    let daemon = match facts.daemon {
        Some(pid) => format!("vetch runs (process {pid})"),
        None => "vetch does not run".to_owned(),
    };
    writeln!(out, "this machine is {what}; {daemon}")?;
    if let Some(server) = &facts.server {
        let answers = match server.error {
            None => "answers",
            Some(_) => "does not answer",
        };
        write!(out, "the API server at {} {answers}", server.address)?;
        let well = facts.checks.iter().filter(|check| check.well).count();
        match facts.checks.len() {
            0 => writeln!(out)?,
            all => writeln!(out, "; {well} of {all} checks are well")?,
        }
    }
    if let Some(store) = facts.store {
        let (used, quota) = (mebibytes(store.used_bytes), mebibytes(store.quota_bytes));
        let revision = store.revision;
        writeln!(
            out,
            "the store holds {used} of {quota} MiB, at revision {revision}"
        )?;
    }
    if let Some(cni) = &facts.cni {
        let programs: Vec<String> = { cni.programs.iter() }
            .map(|folder| folder.display().to_string())
            .collect();
        let (configurations, programs) = (cni.configurations.display(), programs.join(", "));
        writeln!(
            out,
            "the pods of this machine have networks of CNI plugins: {configurations} says which, {programs} has them"
        )?;
    }
    if !facts.nodes.is_empty() {
        writeln!(out, "\nNODES")?;
        let rows = facts.nodes.iter().map(|node| node.cells(now));
        table::write(out, &NodeLine::HEAD, rows)?;
    }
    if !facts.certificates.is_empty() {
        writeln!(out, "\nCERTIFICATES")?;
        let rows = facts.certificates.iter().map(|one| {
            let left = one.ends.duration_since(now).as_secs();
            [one.name.clone(), one.ends.to_string(), remaining(left)]
        });
        table::write(out, &["NAME", "ENDS", "LEFT"], rows)?;
    }
    if !facts.tokens.is_empty() {
        writeln!(out, "\nTOKENS")?;
        let rows = facts.tokens.iter().map(|one| {
            let left = one.expires.map(|end| end.duration_since(now).as_secs());
            let left = left.map_or_else(|| "for ever".to_owned(), remaining);
            [one.id.clone(), left, one.description.clone()]
        });
        table::write(out, &["TOKEN", "LEFT", "DESCRIPTION"], rows)?;
    }
    if !facts.pods.is_empty() {
        writeln!(out, "\nPODS THAT DO NOT RUN")?;
        let rows = facts.pods.iter().map(|pod| {
            let since = pod.since.map(|since| age(since, now)).unwrap_or_default();
            let node = pod.node.clone().unwrap_or_default();
            let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
            [namespace, name, pod.status.clone(), since, node]
        });
        table::write(out, &["NAMESPACE", "NAME", "STATUS", "SINCE", "NODE"], rows)?;
    }
    if findings.is_empty() {
        return writeln!(out, "\nall is well");
    }
    writeln!(out, "\nWHAT IS WRONG, AND WHAT TO DO")?;
    for Finding { what, remedy } in findings {
        let (what, remedy) = (table::printable(what), table::printable(remedy));
        writeln!(out, "- {what} -> {remedy}")?;
    }
    Ok(())
}

fn remaining(seconds: i64) -> String {
    match seconds > 0 {
        true => span(seconds),
        false => "over".to_owned(),
    }
}

/// With one decimal.
fn mebibytes(bytes: u64) -> String {
    const TENTH: u64 = (1 << 20) / 10;
    let tenths = bytes / TENTH;
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubelet::network::cni::Folders;

    #[test]
    fn what_is_shown() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let mut facts = Facts {
            machine: Machine::Server,
            daemon: Some(7),
            ..Facts::default()
        };
        facts.server = Some(facts::Server {
            address: "https://127.0.0.1:6443".to_owned(),
            error: None,
        });
        facts.store = Some(facts::Store {
            used_bytes: 3 << 20,
            quota_bytes: 256 << 20,
            revision: 9,
        });
        facts.tokens = vec![facts::TokenLine {
            id: "abcdef".to_owned(),
            expires: None,
            description: "x\ny".to_owned(),
        }];
        facts.cni = Some(Folders {
            configurations: "/etc/cni/net.d".into(),
            programs: vec!["/a".into(), "/b".into()],
        });
        let shown = |findings: &[Finding]| {
            let mut out = Vec::new();
            show(&mut out, &facts, findings, now).unwrap();
            String::from_utf8(out).unwrap()
        };
        let text = shown(&[]);
        assert_eq!(
            text,
            "this machine is a server and a node; vetch runs (process 7)\n\
             the API server at https://127.0.0.1:6443 answers\n\
             the store holds 3.0 of 256.0 MiB, at revision 9\n\
             the pods of this machine have networks of CNI plugins: /etc/cni/net.d says which, /a, /b has them\n\n\
             TOKENS\n\
             TOKEN    LEFT       DESCRIPTION\n\
             abcdef   for ever   x y\n\n\
             all is well\n"
        );
        let wrong = Finding {
            what: "a\nb".to_owned(),
            remedy: "c".to_owned(),
        };
        assert!(shown(&[wrong]).ends_with("WHAT IS WRONG, AND WHAT TO DO\n- a b -> c\n"));
    }
}
