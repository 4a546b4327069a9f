//! `vetch policy`: what network policies come to.

use std::{io::Write, net::IpAddr, process::ExitCode, str::FromStr};

use clap::{Args, Subcommand};

use super::{Error, administrator, block_on, daemon, paths::RootArg};
use crate::network_policy::{Connection, End, Protocol, Snapshot};

/// Ask what network policies come to
#[derive(Args)]
pub struct Policy {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Say whether a connection is allowed, and by which policies; exit code 1 if it is not
    Trace {
        /// The client: NAMESPACE/POD or an address
        from: Name,
        /// The server: NAMESPACE/POD or an address; not that of a Service, which stands for its pods
        to: Name,
        /// The server's port: 80, 53/udp, 132/sctp
        port: Port,
        #[command(flatten)]
        root: RootArg,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Pod(String, String),
    Address(IpAddr),
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        match text.split_once('/') {
            Some((namespace, pod)) if !namespace.is_empty() && !pod.is_empty() => {
                Ok(Self::Pod(namespace.to_owned(), pod.to_owned()))
            }
            _ => Err("it is neither NAMESPACE/POD nor an address".into()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Port(u16, Protocol);

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = Protocol::of(Some(&protocol.to_uppercase()));
        match (number.parse(), protocol) {
            (Ok(number @ 1..), Some(protocol)) => Ok(Self(number, protocol)),
            (_, None) => Err("the protocol is tcp, udp or sctp".into()),
            _ => Err("a port is a number from 1 to 65535".into()),
        }
    }
}

impl Policy {
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode, Error> {
        daemon::install_crypto();
        let Verb::Trace {
            from,
            to,
            port: Port(port, protocol),
            root,
        } = self.verb;
        let snapshot = block_on(async {
            let client = administrator::client(&root.paths()?, &root.flag()).await?;
            Ok(Snapshot::read(client).await?)
        })?;
        let connection = Connection {
            from: end(&snapshot, from)?,
            to: end(&snapshot, to)?,
            protocol,
            port,
        };
        let [egress, ingress] = snapshot.trace(&connection);
        writeln!(out, "egress   {egress}")?;
        writeln!(out, "ingress  {ingress}")?;
        let code = match egress.is_allowed() && ingress.is_allowed() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        };
        Ok(code)
    }
}

fn end(snapshot: &Snapshot, name: Name) -> Result<End, Error> {
    match name {
        Name::Address(address) => Ok(End::Address(address)),
        Name::Pod(namespace, pod) => match snapshot.pod(&namespace, &pod) {
            Some(facts) => Ok(End::Pod(Box::new(facts.clone()))),
            None => Err(format!(
                "there is no pod {namespace}/{pod} with an address of its own: `kubectl get pods -n {namespace} -o wide` shows all"
            )
            .into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_asked() {
        assert_eq!("n/p".parse(), Ok(Name::Pod("n".into(), "p".into())));
        assert_eq!(
            "fd00::1".parse(),
            Ok(Name::Address("fd00::1".parse().unwrap()))
        );
        for wrong in ["", "p", "/p", "n/"] {
            assert!(wrong.parse::<Name>().is_err(), "{wrong}");
        }
        assert_eq!("53/udp".parse(), Ok(Port(53, Protocol::Udp)));
        assert_eq!("80".parse(), Ok(Port(80, Protocol::Tcp)));
        for wrong in ["0", "65536", "x", "80/icmp", ""] {
            assert!(wrong.parse::<Port>().is_err(), "{wrong}");
        }
    }
}
