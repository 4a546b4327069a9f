//! One object, many, and what happens to them.

use bytes::Bytes;
use futures::StreamExt;
use http::Response;
use http_body_util::{BodyExt, StreamBody};

use super::super::{
    Body, Frontend, Incoming, ResourcePath, answer, components,
    reply::{cut, in_pieces, offer, one, respond, watch_offer},
};
use crate::apiserver::{
    cache::LARGE,
    encode::{self, Frames},
    selector::Selection,
    status::Status,
    verbs::{self, ListOptions, WatchOptions},
    write::Written,
};

/// Larger lists go out in pieces.
const LARGE_LIST: usize = 1 << 20;

impl Frontend {
    pub(super) async fn get(
        &self,
        incoming: &Incoming,
        path: &ResourcePath,
    ) -> Result<Response<Body>, Status> {
        self.allow(path, "get")?;
        let name = path.name.as_deref().unwrap_or_default();
        if components::is_one(path.row) {
            let page = components::list(path.row, &self.parts.look().await)?;
            let mut all = page.objects.into_iter();
            let object = all.find(|object| &*object.name == name);
            let row = path.row;
            let object = object.ok_or_else(|| Status::not_found(row.group, row.plural, name))?;
            let warnings = vec![components::DEPRECATED.to_owned()];
            return one(incoming, row, 200, Written { object, warnings });
        }
        let object = self.server.read(path.row, &path.namespace, name).await?;
        let wanted = incoming.wanted(offer(path.row))?;
        if object.is_large() && encode::is_plain_json(wanted) {
            // One copy for all who read it at the same time.
            let end = std::iter::once(Bytes::from_static(b"\n"));
            let pieces = object.json_form().pieces(true, wanted.owners);
            let pieces = pieces.into_iter().flat_map(|piece| cut(piece, None));
            let pieces = pieces.chain(end);
            return Ok(in_pieces(incoming, wanted.format.content_type(), pieces));
        }
        one(
            incoming,
            path.row,
            200,
            Written {
                object,
                warnings: Vec::new(),
            },
        )
    }

    pub(super) async fn list(
        &self,
        incoming: &Incoming,
        path: &ResourcePath,
        selection: Selection,
    ) -> Result<Response<Body>, Status> {
        self.allow(path, "list")?;
        let options = ListOptions::parse(path.row, selection, &incoming.query)?;
        let wanted = incoming.wanted(offer(path.row))?;
        if components::is_one(path.row) {
            let mut page = components::list(path.row, &self.parts.look().await)?;
            page.objects
                .retain(|object| options.selector.matches(path.row, object));
            let encoded = encode::list(path.row, &page, wanted, incoming.include()?)?;
            let warnings = [components::DEPRECATED.to_owned()];
            return Ok(respond(incoming, 200, encoded, &warnings));
        }
        let page = verbs::list(&self.server, path.row, &path.namespace, &options).await?;
        let include = incoming.include()?;
        let size: usize = page.objects.iter().map(|object| object.size).sum();
        if size < LARGE_LIST {
            let encoded = encode::list(path.row, &page, wanted, include)?;
            return Ok(respond(incoming, 200, encoded, &[]));
        }
        let content_type = wanted.format.content_type();
        match encode::pieces(path.row, page, wanted, include) {
            Ok(pieces) => Ok(in_pieces(incoming, content_type, pieces)),
            Err(page) => {
                // Counted before it is made, and until it has gone out.
                let memory = self.limits.memory(&incoming.who, size).await?;
                let encoded = encode::list(path.row, &page, wanted, include)?;
                drop(page);
                let pieces = cut(encoded.bytes, memory);
                Ok(in_pieces(incoming, content_type, pieces))
            }
        }
    }

    pub(super) async fn watch(
        &self,
        incoming: &Incoming,
        path: &ResourcePath,
        selection: Selection,
    ) -> Result<Response<Body>, Status> {
        self.allow(path, "watch")?;
        let name = path.name.as_deref();
        let options = WatchOptions::parse(path.row, selection, &incoming.query, name)?;
        let wanted = incoming.wanted(watch_offer(path.row))?;
        let mut frames = Frames::new(path.row, wanted, incoming.include()?);
        let content_type = frames.content_type();
        let events = verbs::watch(self.server.clone(), path.row, &path.namespace, options).await?;
        // What is ready together goes out together, as far as it is small.
        let chunks = async_stream::stream! {
            let mut batches = std::pin::pin!(events.ready_chunks(64));
            let mut chunk = bytes::BytesMut::new();
            while let Some(events) = batches.next().await {
                for event in events {
                    let parts = match frames.parts(&event) {
                        Ok(parts) => parts,
                        Err(status) => {
                            yield Err(crate::apiserver::response::BoxError::from(status));
                            return;
                        }
                    };
                    for part in parts {
                        if chunk.len() + part.len() > LARGE && !chunk.is_empty() {
                            yield Ok(http_body::Frame::data(chunk.split().freeze()));
                        }
                        if part.len() > LARGE {
                            yield Ok(http_body::Frame::data(part));
                        } else {
                            chunk.extend_from_slice(&part);
                        }
                    }
                }
                if !chunk.is_empty() {
                    yield Ok(http_body::Frame::data(chunk.split().freeze()));
                }
            }
        };
        Ok(answer(
            200,
            content_type,
            StreamBody::new(chunks).boxed_unsync(),
        ))
    }
}
