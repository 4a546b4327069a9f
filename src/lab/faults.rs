//! What goes wrong with a host because somebody wants it to, and how it is healed.

use std::path::PathBuf;

use futures::{StreamExt, stream};
use netns::host::Process;
use nix::sys::signal::Signal;

use super::{
    Error, Labs, Name,
    daemons::{self, Starter},
    folder::{Lab, Locked},
    holder,
    lifecycle::{AT_ONCE, all_done, interruption, make_host, make_switch, remove_group},
    network,
    plan::{self, SWITCH, Step},
    record::{Faults, Host, Record, Role},
};
use crate::addresses::family::PerFamily;

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its cable is pulled.
    Cut,
    /// Its power is lost: every process of it is killed, and what is in memory is gone.
    Kill,
    /// Its daemon stands still; pods go on.
    Freeze,
    /// Each packet to and from it takes so many milliseconds longer.
    Delay(u32),
    /// Of a hundred packets to it and of a hundred from it so many are lost.
    Lose(u8),
}

impl Fault {
    /// With the others that a host has.
    fn and(self, others: &Faults) -> Faults {
        let mut all = others.clone();
        match self {
            Self::Cut => all.cut = true,
            // Nothing else can be wrong with it then.
            Self::Kill => {
                all = Faults {
                    killed: true,
                    ..Faults::default()
                }
            }
            Self::Freeze => all.frozen = true,
            Self::Delay(ms) => all.delay_ms = ms,
            Self::Lose(percent) => all.lost_percent = percent,
        }
        all
    }
}

/// Lets it happen to a host.
pub fn inflict(labs: &Labs, name: &Name, host: &str, fault: Fault) -> Result<(), Error> {
    let locked = labs.open(name)?;
    let lab = &locked.lab;
    let mut record = lab.made()?;
    let host = machine(&record, host)?.clone();
    let after = Faulty {
        host: &host,
        faults: fault.and(&host.faults),
    };
    match fault {
        Fault::Kill => {
            record.set_faults(&host.name, &after.faults);
            locked.save(&record)?;
            after.kill(lab)
        }
        _ => {
            let (switch, process) = (living(lab, SWITCH)?, living(lab, &host.name)?);
            record.set_faults(&host.name, &after.faults);
            locked.save(&record)?;
            let done = after.happens(lab, fault, &switch, &process);
            if done.is_err() {
                record.set_faults(&host.name, &host.faults);
                locked.save(&record)?;
            }
            done
        }
    }
}

/// A host, and all that shall be wrong with it.
struct Faulty<'a> {
    host: &'a Host,
    faults: Faults,
}

impl Faulty<'_> {
    fn kill(&self, lab: &Lab) -> Result<(), Error> {
        holder::kill(&[lab.holder(&self.host.name)])?;
        remove_group(self.host)?;
        match holder::find(&lab.holder(SWITCH))? {
            Some(switch) => network::unwire(&switch, self.host),
            None => Ok(()),
        }
    }

    fn happens(
        &self,
        lab: &Lab,
        fault: Fault,
        switch: &Process,
        process: &Process,
    ) -> Result<(), Error> {
        match fault {
            Fault::Kill => self.kill(lab),
            Fault::Cut => network::set_link(switch, self.host, false),
            Fault::Freeze => match daemons::daemon(lab, process, self.host)? {
                Some(daemon) => Ok(daemon.signal(Signal::SIGSTOP)?),
                None => Err(off(lab, &self.host.name)),
            },
            Fault::Delay(_) | Fault::Lose(_) => {
                network::disturb(switch, process, self.host, &self.faults)
            }
        }
    }
}

/// A host that stands for a machine.
fn machine<'a>(record: &'a Record, name: &str) -> Result<&'a Host, Error> {
    match name {
        SWITCH => Err(Error::NoMachine(name.to_owned())),
        name => record.host(name),
    }
}

fn off(lab: &Lab, host: &str) -> Error {
    Error::Off {
        host: host.to_owned(),
        flags: lab.flags.clone(),
    }
}

/// The host's first process.
pub fn living(lab: &Lab, host: &str) -> Result<Process, Error> {
    holder::find(&lab.holder(host))?.ok_or_else(|| off(lab, host))
}

/// Takes back all that is wrong with one host or with all: also what came by itself, such as a restart of the
/// machine. Returns once the nodes are Ready, if the server is not at fault itself.
pub async fn heal(
    labs: &Labs,
    name: &Name,
    host: Option<&str>,
    program: PathBuf,
) -> Result<(), Error> {
    let starter = Starter {
        program,
        interrupted: interruption()?,
    };
    let locked = labs.open(name)?;
    let mut record = locked.lab.made()?;
    let hosts = match host {
        Some(host) => vec![machine(&record, host)?.clone()],
        None => record.hosts.clone(),
    };
    let switch = match holder::find(&locked.lab.holder(SWITCH))? {
        Some(switch) => switch,
        None => make_switch(&starter.program, &locked.lab, &record)?,
    };
    let healing = Healing {
        locked: &locked,
        starter: &starter,
        switch: &switch,
        flags: record.flags.clone(),
        range: record.range,
    };
    // Nodes are Ready only once there is a server.
    for role in [Role::Server, Role::Node] {
        let of_role = hosts.iter().filter(|host| host.role == role);
        let healed = stream::iter(of_role.map(|host| healing.heal(host))).buffer_unordered(AT_ONCE);
        all_done(healed.collect().await)?;
    }
    for host in &hosts {
        record.set_faults(&host.name, &Faults::default());
    }
    locked.save(&record)?;
    let at_fault = |host: &Host| host.faults != Faults::default();
    if record.server().is_some_and(at_fault) {
        return Ok(());
    }
    let names: Vec<String> = hosts.into_iter().map(|host| host.name).collect();
    starter.wait_until_ready(&locked.lab, &record, &names).await
}

struct Healing<'a> {
    locked: &'a Locked,
    starter: &'a Starter,
    switch: &'a Process,
    flags: Vec<String>,
    range: PerFamily<ipnet::IpNet>,
}

impl Healing<'_> {
    /// A step already taken changes nothing.
    async fn heal(&self, host: &Host) -> Result<(), Error> {
        let lab = &self.locked.lab;
        let mut process = holder::find(&lab.holder(&host.name))?;
        if let Some(process) = &process {
            // The link went with the switch, if that was gone.
            network::wire(self.switch, process, host, &self.range)?;
        }
        for step in plan::healing(daemons::life(lab, host)?, &host.faults) {
            let there = process.as_ref().ok_or_else(|| off(lab, &host.name));
            match step {
                Step::MakeHost => {
                    remove_group(host)?;
                    let program = &self.starter.program;
                    process = Some(make_host(program, lab, self.switch, host, &self.range)?);
                }
                Step::SetLinkUp => network::set_link(self.switch, host, true)?,
                Step::LetPacketsPass => {
                    network::disturb(self.switch, there?, host, &Faults::default())?;
                }
                Step::ContinueDaemon => {
                    if let Some(daemon) = daemons::daemon(lab, there?, host)? {
                        daemon.signal(Signal::SIGCONT)?;
                    }
                }
                Step::StartDaemon => {
                    let start = self.starter.start(lab, there?, host, None, &self.flags);
                    start.await?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_add_up_but_for_a_power_loss() {
        let none = Faults::default();
        let slow = Fault::Delay(20).and(&none);
        let both = Fault::Lose(5).and(&slow);
        assert_eq!(both.to_string(), "delayed 20 ms, loses 5 %");
        let all = Fault::Freeze.and(&Fault::Cut.and(&both));
        assert_eq!(all.to_string(), "frozen, cut, delayed 20 ms, loses 5 %");
        assert_eq!(Fault::Delay(0).and(&slow), none);
        assert_eq!(Fault::Kill.and(&all).to_string(), "killed");
        assert!(!Fault::Kill.and(&all).cut);
    }
}
