//! The end of every write: into the store, if all that it was judged by still holds.
//!
//! Called by `write.rs` and, for deletions, by `verbs/delete.rs`.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    admission::Held,
    cache::{self, Object},
    metadata,
    patch::managed,
    registry::Resource,
    residence,
    server::ApiServer,
    status::{Reason, Status},
    write::{Writing, Written, is_finished},
};
use crate::store::{self, Durability, Expect, Guard, Op, Space, Write};

/// Why a commit changed nothing.
#[derive(Debug)]
pub enum Refused {
    /// The object is not the one that was read, or there is one where none was.
    Conflict,
    /// This key, on which the write depends, is not as it was judged.
    Guarded(Arc<str>),
    Other(Status),
}

impl Refused {
    pub fn status(self, row: &Resource, name: &str) -> Status {
        match self {
            Self::Conflict => Status::conflict(
                row.group,
                row.plural,
                name,
                "the object has been modified; please apply your changes to the latest version and try again",
            ),
            Self::Guarded(key) => {
                let what = key.strip_prefix(cache::ROOT).unwrap_or(&key).to_owned();
                Status::conflict(
                    row.group,
                    row.plural,
                    name,
                    &format!("{what}, on which it depends, has been modified; please try again"),
                )
            }
            Self::Other(status) => status,
        }
    }
}

/// A new object whose namespace or definition changes all the time is tried so often.
const RETRIES: usize = 16;

impl ApiServer {
    /// Admission may have taken a while: where the object is to live is looked at again, and must be
    /// the same at the very moment of the commit.
    pub(super) async fn commit_new(
        &self,
        writing: &Writing,
        name: &str,
        object: &Value,
        held: &Held,
    ) -> Result<u64, Status> {
        let row = writing.row;
        for _ in 0..RETRIES {
            let mut guards = residence::guards(self, row, &writing.namespace, name).await?;
            guards.extend_from_slice(held.guards());
            let key = writing.key(name);
            match self
                .commit(writing, key, Expect::Absent, guards, object)
                .await
            {
                Err(Refused::Conflict) => {
                    return Err(Status::already_exists(row.group, row.plural, name));
                }
                Err(Refused::Guarded(key)) if !held.depends_on(&key) => {}
                result => return result.map_err(|refused| refused.status(row, name)),
            }
        }
        Err(Status::conflict(
            row.group,
            row.plural,
            name,
            "its namespace or definition is being changed all the time; please try again",
        ))
    }

    /// Commits what was admitted, and settles what was taken for it.
    pub(super) async fn store(
        &self,
        writing: &Writing,
        mut object: Value,
        old: &Arc<Object>,
        warnings: Vec<String>,
        held: Held,
    ) -> Result<Written, Status> {
        let was = old.value();
        let row = writing.row;
        metadata::of(&mut object).insert(
            "resourceVersion".to_owned(),
            json!(old.revision.to_string()),
        );
        if object == *was || managed::is_same_but_for_times(&object, &was) {
            held.settle(false).await;
            return Ok(Written {
                object: old.clone(),
                warnings,
            });
        }
        if writing.dry_run {
            held.settle(false).await;
            self.could_store(writing, &object).await?;
            return Ok(self.written(writing, &writing.name, object, old.revision, warnings));
        }
        // The store's bytes have none, and without one they are written as they are here.
        metadata::of(&mut object).remove("resourceVersion");
        let ends = is_finished(row, &object);
        let (key, expect) = (
            writing.key(&writing.name),
            Expect::ModRevision(old.revision),
        );
        let committed = match ends {
            true => self.commit_delete(writing, key, expect).await,
            false => {
                let guards = held.guards().to_vec();
                let (again, same) = (guards.clone(), key.clone());
                let mut stored = self.commit(writing, key, expect, guards, &object).await;
                // Who owns what is the first that an object can do without.
                if matches!(&stored, Err(Refused::Other(status)) if *status == Status::not_stored())
                    && metadata::of(&mut object).remove("managedFields").is_some()
                {
                    stored = self.commit(writing, same, expect, again, &object).await;
                }
                stored
            }
        };
        held.settle(committed.is_ok() && !ends).await;
        let revision = committed.map_err(|refused| refused.status(row, &writing.name))?;
        if ends {
            self.deleted(writing, &object).await;
        } else {
            for plugin in self.plugins() {
                plugin.replaced(row, &was, &object).await;
            }
        }
        Ok(self.written(writing, &writing.name, object, revision, warnings))
    }

    /// Writes the bytes, if the write's own guards and these hold.
    async fn commit(
        &self,
        writing: &Writing,
        key: Arc<str>,
        expect: Expect,
        mut guards: Vec<Guard>,
        object: &Value,
    ) -> Result<u64, Refused> {
        let row = writing.row;
        let value = match self.stored_form(row, object).await? {
            Some(stored) => serde_json::to_vec(&stored),
            None => serde_json::to_vec(object),
        };
        let value = value.map_err(|error| Refused::Other(Status::internal(error)))?;
        // Kept for as long as the object is: without the room that the vector had to grow.
        let value = value.into_boxed_slice().into();
        let ttl = (row.storage == "events").then_some(EVENT_TTL);
        guards.extend_from_slice(&writing.guards);
        self.put(Write {
            key,
            expect,
            guards,
            op: Op::Put { value, ttl },
            durability: durability(row),
            space: space(writing, object),
        })
        .await
    }

    /// How the object is stored, if that differs from what it is: a copy of a large one is many times as
    /// large as its bytes.
    async fn stored_form(&self, row: &Resource, object: &Value) -> Result<Option<Value>, Refused> {
        let has_revision = object["metadata"].get("resourceVersion").is_some();
        if !has_revision && row.convert.is_none() && row.custom.is_none() {
            return Ok(None);
        }
        let mut stored = object.clone();
        metadata::of(&mut stored).remove("resourceVersion");
        if let Some(convert) = row.convert {
            (convert.to_stored)(&mut stored);
        }
        if let Some(custom) = row.custom {
            let converted = custom.to_stored(self, stored).await;
            stored = converted.map_err(Refused::Other)?;
        }
        Ok(Some(stored))
    }

    /// A dry run leaves out the store's part alone: what could not be converted for the store fails.
    pub async fn could_store(&self, writing: &Writing, object: &Value) -> Result<(), Status> {
        if writing.row.custom.is_none() {
            return Ok(());
        }
        let stored = self.stored_form(writing.row, object).await;
        let stored = stored.map_err(|refused| refused.status(writing.row, &writing.name));
        stored.map(|_| ())
    }

    pub async fn commit_delete(
        &self,
        writing: &Writing,
        key: Arc<str>,
        expect: Expect,
    ) -> Result<u64, Refused> {
        self.put(Write {
            key,
            expect,
            guards: writing.guards.clone(),
            op: Op::Delete,
            durability: durability(writing.row),
            space: Space::Reserved,
        })
        .await
    }

    async fn put(&self, write: Write) -> Result<u64, Refused> {
        match self.cache.store().commit(write).await {
            Ok(committed) => {
                self.cache.reached(committed.revision).await;
                Ok(committed.revision)
            }
            Err(store::Error::Conflict { .. }) => Err(Refused::Conflict),
            Err(store::Error::Guarded { key }) => Err(Refused::Guarded(key)),
            Err(error) => Err(Refused::Other(unstored(error))),
        }
    }
}

fn unstored(error: store::Error) -> Status {
    match error {
        store::Error::TooLarge { .. } => Status::not_stored(),
        store::Error::NoSpace => {
            Status::new(Reason::Unknown, "etcdserver: mvcc: database space exceeded")
        }
        store::Error::ReadOnly { reason } => Status::new(
            Reason::ServiceUnavailable,
            format!("the store takes no writes: {reason}"),
        ),
        error => Status::internal(error),
    }
}

/// Events are told for an hour.
const EVENT_TTL: std::time::Duration = std::time::Duration::from_secs(3600);

fn durability(row: &Resource) -> Durability {
    match row.storage {
        "events" | "leases" => Durability::Relaxed,
        _ => Durability::Synced,
    }
}

/// What must go on in a full store: heartbeats of nodes, statuses, the end of what is being deleted.
fn space(writing: &Writing, object: &Value) -> Space {
    let metadata = &object["metadata"];
    let heartbeat = match writing.row.storage {
        "nodes" => true,
        "leases" => matches!(
            metadata["namespace"].as_str(),
            Some("kube-node-lease" | "kube-system")
        ),
        _ => false,
    };
    let status = writing.subresource.as_deref() == Some("status");
    match heartbeat || status || metadata["deletionTimestamp"].is_string() {
        true => Space::Reserved,
        false => Space::Ordinary,
    }
}
