//! Deletion of one object or of many.

use bytes::Bytes;
use http::Response;
use serde_json::{Value, json};

use super::{
    super::{
        Body, Frontend, Incoming,
        body::delete_options,
        not_allowed,
        reply::{offer, one, respond},
    },
    path_of,
};
use crate::apiserver::{
    encode,
    negotiate::OBJECTS,
    selector::Selection,
    status::Status,
    verbs::{self, Deleted, ListOptions},
    write::{Writing, Written},
};

/// Kinds whose DELETE answers with the object instead of a Status.
const RETURN_DELETED: [&str; 7] = [
    "pods",
    "services",
    "persistentvolumeclaims",
    "persistentvolumes",
    "serviceaccounts",
    "resourcequotas",
    "podtemplates",
];

/// Told to who deletes a Job without a word about its pods.
const JOB_ORPHANS: &str = "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning";

impl Frontend {
    /// What a deletion is told to do, and the write that it is.
    fn deletion(
        &self,
        incoming: &Incoming,
        writing: &Writing,
        verb: &str,
        body: Bytes,
    ) -> Result<(Writing, Value), Status> {
        if !writing.row.verbs.contains(&verb) {
            return Err(not_allowed(&path_of(writing)));
        }
        let options = delete_options(incoming, body)?;
        let dry_run = writing.dry_run
            || options["dryRun"]
                .as_array()
                .is_some_and(|list| list.iter().any(|all| all == "All"));
        let writing = Writing {
            dry_run,
            ..writing.clone()
        };
        Ok((writing, options))
    }

    pub(super) async fn delete_collection(
        &self,
        incoming: &Incoming,
        writing: &Writing,
        selection: Selection,
        body: Bytes,
    ) -> Result<Response<Body>, Status> {
        let row = writing.row;
        let (writing, options) = self.deletion(incoming, writing, "deletecollection", body)?;
        let select = ListOptions::parse(row, selection, &incoming.query)?;
        let objects = verbs::delete_collection(&self.server, &writing, &options, &select).await?;
        let page = crate::apiserver::response::Page {
            objects,
            revision: self.server.cache.revision(),
            next: String::new(),
            remaining: None,
        };
        let wanted = incoming.wanted(offer(row))?;
        let encoded = encode::list(row, &page, wanted, incoming.include()?)?;
        Ok(respond(incoming, 200, encoded, &[]))
    }

    pub(super) async fn delete(
        &self,
        incoming: &Incoming,
        writing: &Writing,
        body: Bytes,
    ) -> Result<Response<Body>, Status> {
        let row = writing.row;
        let (writing, options) = self.deletion(incoming, writing, "delete", body)?;
        let deleted = verbs::delete(&self.server, &writing, &options).await?;
        let says = |name: &str| options.get(name).is_some_and(|value| !value.is_null());
        let unsaid = !says("propagationPolicy") && !says("orphanDependents");
        let warnings = match row.plural {
            "jobs" if unsaid => vec![JOB_ORPHANS.to_owned()],
            _ => Vec::new(),
        };
        match deleted {
            Deleted::Gone(object) if !RETURN_DELETED.contains(&row.plural) => {
                let status = json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                    "details": {"name": &*object.name, "group": row.group, "kind": row.plural, "uid": object.value()["metadata"]["uid"]},
                });
                let encoded = encode::plain(
                    &status,
                    "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
                    incoming.wanted(OBJECTS)?.format,
                )?;
                Ok(respond(incoming, 200, encoded, &warnings))
            }
            deleted => one(
                incoming,
                row,
                200,
                Written {
                    object: deleted.object().clone(),
                    warnings,
                },
            ),
        }
    }
}
