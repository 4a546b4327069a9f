//! Parts of an object that are read and written by themselves.

use bytes::Bytes;
use http::Response;

use super::{
    super::{
        Body, Frontend, Incoming, ResourcePath,
        asked::Operation,
        body::decode,
        not_allowed,
        reply::{one, respond},
    },
    kind_of_patch, named_manager, not_forced,
};
use crate::apiserver::{
    encode,
    negotiate::OBJECTS,
    patch::PatchType,
    registry::Subresource,
    server::ApiServer,
    status::{Reason, Status},
    verbs::{self, Missing},
    write::{Writing, Written},
};

impl Frontend {
    pub(super) async fn subresource(
        &self,
        incoming: &Incoming,
        body: Bytes,
        path: &ResourcePath,
        writing: &Writing,
        (operation, name): (Operation, &str),
    ) -> Result<Response<Body>, Status> {
        let found = path
            .row
            .subresources
            .iter()
            .find(|subresource| match subresource {
                Subresource::Status => name == "status",
                Subresource::Scale(_) => name == "scale",
                Subresource::Special(special) => special.name == name,
            });
        let Some(found) = found else {
            return Err(Status::new(
                Reason::NotFound,
                "the server could not find the requested resource",
            ));
        };
        let server: &ApiServer = &self.server;
        if let Subresource::Scale(paths) = found {
            let scale = match operation {
                Operation::Get => verbs::get_scale(server, writing, paths).await?,
                Operation::Update => {
                    let (value, _) =
                        decode(&incoming.headers, body, "io.k8s.api.autoscaling.v1.Scale")?;
                    verbs::update_scale(server, writing, paths, &value).await?
                }
                Operation::Patch => {
                    let kind = kind_of_patch(incoming, path.row)?;
                    if kind == PatchType::Apply {
                        named_manager(incoming)?;
                        let writing = Writing {
                            applies: true,
                            ..writing.clone()
                        };
                        let force = incoming.query.flag("force");
                        verbs::apply_scale(server, &writing, paths, &body, force).await?
                    } else {
                        not_forced(incoming)?;
                        verbs::patch_scale(server, writing, paths, kind, &body).await?
                    }
                }
                _ => return Err(not_allowed(path)),
            };
            let encoded = encode::plain(
                &scale,
                "io.k8s.api.autoscaling.v1.Scale",
                incoming.wanted(OBJECTS)?.format,
            )?;
            return Ok(respond(incoming, 200, encoded, &[]));
        }
        let verb = match operation {
            Operation::Get => "get",
            Operation::Update => "update",
            Operation::Patch => "patch",
            _ => return Err(not_allowed(path)),
        };
        if let Subresource::Special(special) = found
            && !special.verbs.contains(&verb)
        {
            return Err(not_allowed(path));
        }
        let written = match verb {
            "get" => Written {
                object: server
                    .read(path.row, &path.namespace, &writing.name)
                    .await?,
                warnings: Vec::new(),
            },
            "update" => {
                let (value, complaints) = decode(&incoming.headers, body, path.row.type_name)?;
                verbs::update(server, writing, value, complaints, Missing::Refuse).await?
            }
            _ => {
                let kind = kind_of_patch(incoming, path.row)?;
                if kind == PatchType::Apply {
                    return self.apply(incoming, writing.clone(), &body).await;
                }
                not_forced(incoming)?;
                verbs::patch(server, writing, kind, &body).await?
            }
        };
        one(incoming, path.row, 200, written)
    }
}
