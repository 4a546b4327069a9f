//! Node ports: one ConfigMap holds who has which, changed by compare-and-swap.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    sync::{Mutex, PoisonError},
};

use serde_json::{Value, json};

use super::{Owner, SETTLED_SECONDS, user};
use crate::apiserver::{
    objects::{Named, Objects},
    registry::{
        Causes,
        kinds::value::{flag, has, items, members, number, object_mut, set, text},
    },
    status::{Reason, Status},
};

const TABLE: Named<'static> = Named {
    plural: "configmaps",
    subresource: "",
    namespace: "kube-system",
    name: "service-node-ports",
};

pub struct Pool<'a> {
    pub objects: &'a dyn Objects,
    pub range: &'a RangeInclusive<u16>,
    /// Never given.
    pub reserved: &'a [u16],
    pub table: &'a tokio::sync::Mutex<Known>,
    pub owner: Owner,
    pub dry_run: bool,
}

/// The revision of the table in which every Service's ports are known to be, so that the Services need not
/// be looked through. Nobody but this process has changed it since.
#[derive(Debug, Default)]
pub struct Known(Option<String>);

impl Known {
    fn is(&self, revision: &str) -> bool {
        self.0.as_deref() == Some(revision)
    }

    /// All ports were in it before, or have been put there now.
    fn follow(&mut self, changed: &Changed, is_complete: bool) {
        if is_complete || self.is(&changed.before) {
            self.0 = Some(changed.after.clone()).filter(|revision| !revision.is_empty());
        }
    }
}

/// The table's revisions.
#[derive(Debug, Default)]
struct Changed {
    before: String,
    after: String,
}

/// The ports that Services have, by the service's uid.
type Used = BTreeMap<u16, String>;

/// Ports and the entries made for them, or why not.
type Given = (Result<Vec<u16>, Refusal>, Entries);

/// A port the service needs. `path` is where it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wish {
    path: String,
    /// A number the client chose.
    asked: Option<u16>,
    /// Wishes of one group get one number: the same port over TCP and UDP.
    group: i64,
}

/// Who holds a port, and since when (seconds; None: a service that is in no table).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    uid: String,
    since: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Refusal {
    Taken(String, u16),
    OutOfRange(String, u16),
    Full,
}

/// What stands in the table for a port: the service's uid, the second it was claimed, and which of
/// its claims this is.
pub type Entries = BTreeMap<u16, String>;

impl Pool<'_> {
    /// Fills in `nodePort`s and `healthCheckNodePort`; answers with the entries made for them.
    pub async fn give(&self, service: &mut Value, old: Option<&Value>) -> Result<Entries, Status> {
        let kept: Vec<u16> = old.map(held).unwrap_or_default();
        let wishes = wishes(service, &kept);
        if wishes.is_empty() {
            return Ok(Entries::new());
        }
        let mut known = self.table.lock().await;
        let given = match self.planned(&wishes, None, &mut known).await? {
            Some(given) => Some(given),
            // There may be room that only the Services tell of.
            None => {
                let used = self.used().await;
                self.planned(&wishes, Some(&used), &mut known).await?
            }
        };
        drop(known);
        let (chosen, entries) =
            given.ok_or_else(|| Status::internal("the table of node ports cannot be read"))?;
        let ports = chosen.map_err(|refusal| self.refused(refusal))?;
        for (wish, port) in wishes.iter().zip(ports) {
            match wish
                .path
                .strip_prefix("spec.ports[")
                .and_then(|rest| rest.split_once(']'))
            {
                Some((index, _)) => {
                    let index: usize = index.parse().unwrap_or_default();
                    set(&mut service["spec"]["ports"][index], "nodePort", port);
                }
                None => set(service, &wish.path, port),
            }
        }
        Ok(entries)
    }

    /// Ports for the wishes, claimed if this is no dry run. Without `used` it is `None` if the table alone
    /// does not say: it may lack ports, or there is none but of somebody who may be gone.
    async fn planned(
        &self,
        wishes: &[Wish],
        used: Option<&Used>,
        known: &mut Known,
    ) -> Result<Option<Given>, Status> {
        let seed: u64 = rand::random();
        let plan = |table: &Value| -> Option<Result<Vec<u16>, Refusal>> {
            if used.is_none() && !known.is(text(table, "metadata.resourceVersion")) {
                return None;
            }
            let now = jiff::Timestamp::now().as_second();
            let taken = taken(table, used, self.reserved, now);
            let planned = plan(&taken, wishes, &self.owner.uid, self.range, seed);
            Some(planned).filter(|planned| used.is_some() || planned.is_ok())
        };
        if self.dry_run {
            let table = self
                .objects
                .get(TABLE.plural, TABLE.namespace, TABLE.name)
                .await;
            let table = table.map(|table| (*table).clone()).unwrap_or_default();
            return Ok(plan(&table).map(|planned| (planned, Entries::new())));
        }
        if used.is_none() && known.0.is_none() {
            return Ok(None);
        }
        let outcome = Mutex::new(None);
        let changed = self
            .change(&|table: &mut Value| {
                let planned = plan(table);
                let now = jiff::Timestamp::now().as_second();
                if let Some(data) = used.and_then(|used| tidied(table, used, now)) {
                    set(table, "data", data);
                }
                let mut made = Entries::new();
                for port in planned.iter().flatten().flatten() {
                    let entry = format!("{} {now} {:08x}", self.owner.uid, rand::random::<u32>());
                    object_mut(table, "data").insert(port.to_string(), entry.clone().into());
                    made.insert(*port, entry);
                }
                *outcome.lock().unwrap_or_else(PoisonError::into_inner) =
                    planned.map(|planned| (planned, made));
                Ok(())
            })
            .await?;
        known.follow(&changed, used.is_some());
        Ok(outcome.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// The entries of ports that only `old` has, as they are before `new` is stored: a later claim of
    /// the same service on one of them makes another entry.
    pub async fn dropped(&self, old: &Value, new: &Value) -> Entries {
        let kept = held(new);
        let mut ports = held(old);
        ports.retain(|port| !kept.contains(port));
        if ports.is_empty() {
            return Entries::new();
        }
        let table = self
            .objects
            .get(TABLE.plural, TABLE.namespace, TABLE.name)
            .await;
        let Some(table) = table else {
            return Entries::new();
        };
        let entry = |port: u16| {
            let entry = table["data"][port.to_string()].as_str()?;
            (owner(entry) == self.owner.uid).then(|| (port, entry.to_owned()))
        };
        ports.into_iter().filter_map(entry).collect()
    }

    /// Takes these very entries out of the table.
    pub async fn take_back(&self, entries: &Entries) {
        let is = |port: u16, entry: &str| entries.get(&port).is_some_and(|own| own == entry);
        if !entries.is_empty() {
            self.strike(&is).await;
        }
    }

    /// Takes all of this service's entries for `ports` out of the table.
    pub async fn take_back_all(&self, ports: &[u16]) {
        let is = |port: u16, entry: &str| ports.contains(&port) && owner(entry) == self.owner.uid;
        if !ports.is_empty() {
            self.strike(&is).await;
        }
    }

    async fn strike(&self, is: &(dyn Fn(u16, &str) -> bool + Send + Sync)) {
        let mut known = self.table.lock().await;
        let struck = self
            .change(&|table: &mut Value| {
                object_mut(table, "data").retain(|port, entry| {
                    let port = port.parse().unwrap_or_default();
                    !is(port, entry.as_str().unwrap_or_default())
                });
                Ok(())
            })
            .await;
        match struck {
            Ok(changed) => known.follow(&changed, false),
            // The entries are stale now: they are taken over, or tidied.
            Err(status) => tracing::debug!(%status, "node ports not given back"),
        }
    }

    /// Makes the table what the Services say: entries of nobody go, and those that are missing come.
    pub async fn tidy(&self) {
        let mut known = self.table.lock().await;
        let used = self.used().await;
        let table = self
            .objects
            .get(TABLE.plural, TABLE.namespace, TABLE.name)
            .await;
        let now = jiff::Timestamp::now().as_second();
        let Some(table) = table.filter(|table| tidied(table, &used, now).is_some()) else {
            return;
        };
        drop(table);
        let tidied = self
            .change(&|table: &mut Value| {
                if let Some(data) = tidied(table, &used, now) {
                    set(table, "data", data);
                }
                Ok(())
            })
            .await;
        match tidied {
            Ok(changed) => known.follow(&changed, true),
            Err(status) => tracing::debug!(%status, "the table of node ports is not tidied"),
        }
    }

    /// The caller holds the lock.
    async fn change(
        &self,
        change: &(dyn for<'v> Fn(&'v mut Value) -> Result<(), Status> + Send + Sync),
    ) -> Result<Changed, Status> {
        let before = Mutex::new(String::new());
        let noting = |table: &mut Value| {
            let revision = text(table, "metadata.resourceVersion").to_owned();
            *before.lock().unwrap_or_else(PoisonError::into_inner) = revision;
            change(table)
        };
        for _ in 0..2 {
            match self.objects.update(&user(), TABLE, true, &noting).await {
                Err(status) if status.reason == Reason::NotFound => {}
                result => {
                    let table = result?;
                    return Ok(Changed {
                        after: text(&table, "metadata.resourceVersion").to_owned(),
                        before: before.into_inner().unwrap_or_else(PoisonError::into_inner),
                    });
                }
            }
            let empty = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": TABLE.name}, "data": {}});
            match self
                .objects
                .create(&user(), TABLE.plural, TABLE.namespace, empty)
                .await
            {
                Err(status) if status.reason != Reason::AlreadyExists => return Err(status),
                _ => {}
            }
        }
        Err(Status::internal("the table of node ports is being removed"))
    }

    /// Ports that services in the store have, by the service's uid.
    async fn used(&self) -> Used {
        let services = self.objects.list("services", "").await;
        services
            .iter()
            .flat_map(|service| {
                held(service)
                    .into_iter()
                    .map(|port| (port, text(service, "metadata.uid").to_owned()))
            })
            .collect()
    }

    fn refused(&self, refusal: Refusal) -> Status {
        let mut causes = Causes::default();
        match refusal {
            Refusal::Full => {
                return Status::internal("failed to allocate a nodePort: range is full");
            }
            Refusal::Taken(path, port) => {
                causes.invalid(path, port, "provided port is already allocated");
            }
            Refusal::OutOfRange(path, port) => causes.invalid(
                path,
                port,
                &format!(
                    "provided port is not in the valid range. The range of valid ports is {}-{}",
                    self.range.start(),
                    self.range.end()
                ),
            ),
        }
        Status::invalid("", "Service", &self.owner.name, causes.0)
    }
}

/// The uid in an entry.
fn owner(entry: &str) -> &str {
    entry.split_once(' ').map_or("", |(uid, _)| uid)
}

/// When an entry was made, in seconds.
fn since(entry: &str) -> i64 {
    let rest = entry.split_once(' ').map_or("", |(_, rest)| rest);
    let since = rest.split(' ').next().unwrap_or_default();
    since.parse().unwrap_or_default()
}

/// Whether nobody has any use for an entry.
fn is_stale(port: u16, entry: &str, used: &Used, now: i64) -> bool {
    now - since(entry) > SETTLED_SECONDS && used.get(&port).is_none_or(|user| user != owner(entry))
}

/// The table's data as they should be; `None`: as they are. Pure.
fn tidied(table: &Value, used: &Used, now: i64) -> Option<Value> {
    let old = members(table, "data").cloned().unwrap_or_default();
    let mut new = old.clone();
    new.retain(|port, entry| {
        let entry = entry.as_str().unwrap_or_default();
        port.parse()
            .is_ok_and(|port| !is_stale(port, entry, used, now))
    });
    for (port, uid) in used {
        new.entry(port.to_string())
            .or_insert_with(|| format!("{uid} {now}").into());
    }
    (new != old).then_some(Value::Object(new))
}

/// The node ports in a service.
pub fn held(service: &Value) -> Vec<u16> {
    let health = number(service, "spec.healthCheckNodePort");
    items(service, "spec.ports")
        .iter()
        .filter_map(|port| number(port, "nodePort"))
        .chain(health)
        .filter_map(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        .collect()
}

fn wishes(service: &Value, kept: &[u16]) -> Vec<Wish> {
    let kind = text(service, "spec.type");
    let balanced = kind == "LoadBalancer";
    let automatic = kind == "NodePort"
        || (balanced
            && (flag(service, "spec.allocateLoadBalancerNodePorts")
                || !has(service, "spec.allocateLoadBalancerNodePorts")));
    if kind != "NodePort" && !balanced {
        return Vec::new();
    }
    let asked = |value: Option<i64>| {
        value
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0)
    };
    let mut wishes = Vec::new();
    for (index, port) in items(service, "spec.ports").iter().enumerate() {
        let asked = asked(number(port, "nodePort"));
        let has_it = asked.is_some_and(|port| kept.contains(&port));
        if !has_it && (automatic || asked.is_some()) {
            wishes.push(Wish {
                path: format!("spec.ports[{index}].nodePort"),
                asked,
                group: number(port, "port").unwrap_or_default(),
            });
        }
    }
    if balanced && text(service, "spec.externalTrafficPolicy") == "Local" {
        let asked = asked(number(service, "spec.healthCheckNodePort"));
        if !asked.is_some_and(|port| kept.contains(&port)) {
            wishes.push(Wish {
                path: "spec.healthCheckNodePort".to_owned(),
                asked,
                group: -1,
            });
        }
    }
    wishes
}

/// What cannot be had: the table's claims except stale ones, and what services have besides. Without a
/// word about the services, all claims.
fn taken(table: &Value, used: Option<&Used>, reserved: &[u16], now: i64) -> BTreeMap<u16, Claim> {
    let mut taken: BTreeMap<u16, Claim> = used
        .into_iter()
        .flatten()
        .map(|(port, uid)| {
            (
                *port,
                Claim {
                    uid: uid.clone(),
                    since: None,
                },
            )
        })
        .collect();
    for (port, claim) in members(table, "data").into_iter().flatten() {
        let Ok(port) = port.parse::<u16>() else {
            continue;
        };
        let entry = claim.as_str().unwrap_or_default();
        if !used.is_some_and(|used| is_stale(port, entry, used, now)) {
            taken.insert(
                port,
                Claim {
                    uid: owner(entry).to_owned(),
                    since: Some(since(entry)),
                },
            );
        }
    }
    // Last, so that no service's claim on one of them counts.
    for port in reserved {
        let nobody = Claim {
            uid: String::new(),
            since: None,
        };
        taken.insert(*port, nobody);
    }
    taken
}

/// A port for every wish, or why not. Pure; `seed` says where the search begins.
fn plan(
    taken: &BTreeMap<u16, Claim>,
    wishes: &[Wish],
    uid: &str,
    range: &RangeInclusive<u16>,
    seed: u64,
) -> Result<Vec<u16>, Refusal> {
    let mut groups: BTreeMap<i64, u16> = BTreeMap::new();
    let mut given: Vec<u16> = Vec::new();
    for wish in wishes {
        if let Some(port) = wish.asked {
            if !range.contains(&port) {
                return Err(Refusal::OutOfRange(wish.path.clone(), port));
            }
            if taken.get(&port).is_some_and(|claim| claim.uid != uid) {
                return Err(Refusal::Taken(wish.path.clone(), port));
            }
            groups.entry(wish.group).or_insert(port);
            given.push(port);
        }
    }
    let size = u64::from(range.end() - range.start()) + 1;
    let mut free = (0..size)
        .map(|step| range.start() + u16::try_from((seed % size + step) % size).unwrap_or_default())
        .filter(|port| !taken.contains_key(port));
    let mut ports = Vec::new();
    for wish in wishes {
        let port = match (wish.asked, groups.get(&wish.group)) {
            (Some(port), _) => port,
            (None, Some(port)) => *port,
            (None, None) => {
                let port = free
                    .find(|port| !given.contains(port))
                    .ok_or(Refusal::Full)?;
                given.push(port);
                groups.insert(wish.group, port);
                port
            }
        };
        ports.push(port);
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(index: usize, asked: Option<u16>, group: i64) -> Wish {
        Wish {
            path: format!("spec.ports[{index}].nodePort"),
            asked,
            group,
        }
    }

    #[test]
    fn planning() {
        let claim = |uid: &str| Claim {
            uid: uid.to_owned(),
            since: None,
        };
        let taken = BTreeMap::from([(30001, claim("other")), (30002, claim("me"))]);
        let range = 30000..=30003;
        for (wishes, want) in [
            (vec![wish(0, None, 80)], Ok(vec![30000])),
            (
                vec![wish(0, None, 53), wish(1, None, 53), wish(2, None, 80)],
                Ok(vec![30000, 30000, 30003]),
            ),
            (vec![wish(0, Some(30002), 80)], Ok(vec![30002])),
            (
                vec![wish(0, Some(30001), 80)],
                Err(Refusal::Taken("spec.ports[0].nodePort".into(), 30001)),
            ),
            (
                vec![wish(0, Some(80), 80)],
                Err(Refusal::OutOfRange("spec.ports[0].nodePort".into(), 80)),
            ),
            (
                vec![wish(0, None, 1), wish(1, None, 2), wish(2, None, 3)],
                Err(Refusal::Full),
            ),
        ] {
            assert_eq!(plan(&taken, &wishes, "me", &range, 0), want, "{wishes:?}");
        }
    }

    #[test]
    fn claims_of_nobody_grow_stale() {
        let table = json!({"data": {"30000": "gone 100", "30001": "here 100 7", "30002": "new 995 8", "x": "y"}});
        let used = BTreeMap::from([(30001, "here".to_owned()), (30005, "elsewhere".to_owned())]);
        let want = json!({"30001": "here 100 7", "30002": "new 995 8", "30005": "elsewhere 1000"});
        assert_eq!(tidied(&table, &used, 1000), Some(want.clone()));
        assert_eq!(tidied(&json!({"data": want}), &used, 1000), None);
        let taken = super::taken(&table, Some(&used), &[30007], 1000);
        assert_eq!(
            taken.keys().copied().collect::<Vec<_>>(),
            [30001, 30002, 30005, 30007]
        );
    }
}
