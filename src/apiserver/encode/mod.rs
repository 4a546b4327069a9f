//! Answers and watch frames in the form that was negotiated.

mod status;
mod table;

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Map, Value, json};

pub use table::Include;

use super::{
    cache::Object,
    negotiate::{Format, View, Wanted},
    registry::Resource,
    response::{Page, status_value},
    status::Status,
    verbs::Event,
    write::api_version,
};

/// A body with its content type.
#[derive(Debug)]
pub struct Encoded {
    pub content_type: &'static str,
    pub bytes: Bytes,
}

pub fn object(
    row: &Resource,
    object: &Arc<Object>,
    wanted: Wanted,
    include: Include,
) -> Result<Encoded, Status> {
    let bytes = match (wanted.format, wanted.view) {
        (Format::Json { pretty: false }, View::Whole) => {
            newline(&object.json_form().pieces(true, wanted.owners))
        }
        (format, View::Whole) => match format {
            Format::Protobuf => envelope(row, object)?,
            _ => text(format, &*object.value())?,
        },
        (format, View::Table) => text(format, &table::of_object(row, object, include))?,
        (Format::Protobuf, _) => partial_envelope(object)?,
        (format, _) => text(format, &partial(object, wanted.owners))?,
    };
    Ok(Encoded {
        content_type: wanted.format.content_type(),
        bytes,
    })
}

pub fn list(
    row: &Resource,
    page: &Page,
    wanted: Wanted,
    include: Include,
) -> Result<Encoded, Status> {
    let bytes = match (wanted.format, wanted.view) {
        (Format::Json { pretty: false }, View::Whole) => json_list(row, page, wanted.owners),
        (Format::Protobuf, View::Whole) => protobuf_list(row, page)?,
        (format, View::Whole) => text(format, &whole_list(row, page))?,
        (format, View::Table) => text(format, &table::of_page(row, page, include))?,
        (Format::Protobuf, _) => {
            let ty = meta_type("PartialObjectMetadataList")?;
            let raw = proto::encode(ty, &partial_list(page)).map_err(Status::internal)?;
            proto::wrap_envelope("meta.k8s.io/v1", "PartialObjectMetadataList", &raw).into()
        }
        (format, _) => text(format, &partial_list(page))?,
    };
    Ok(Encoded {
        content_type: wanted.format.content_type(),
        bytes,
    })
}

/// A list in pieces of about [`PIECE`], each made when the one before it has gone out.
pub struct Pieces {
    row: &'static Resource,
    page: Page,
    wanted: Wanted,
    include: Include,
    head: Option<String>,
    next: usize,
    ended: bool,
}

const PIECE: usize = 64 << 10;

/// The page comes back for forms that are made as a whole.
pub fn pieces(
    row: &'static Resource,
    page: Page,
    wanted: Wanted,
    include: Include,
) -> Result<Pieces, Page> {
    let head = match (wanted.format, wanted.view) {
        (Format::Json { pretty: false }, View::Whole) => {
            list_head(&list_kind(row), &api_version(row), &page)
        }
        (Format::Json { pretty: false }, View::Table) => table::head_of_page(row, &page),
        (Format::Json { pretty: false }, View::Metadata) => {
            list_head("PartialObjectMetadataList", "meta.k8s.io/v1", &page)
        }
        _ => return Err(page),
    };
    Ok(Pieces {
        row,
        page,
        wanted,
        include,
        head: Some(head),
        next: 0,
        ended: false,
    })
}

impl Pieces {
    fn put(&self, object: &Object, out: &mut BytesMut) {
        let owners = self.wanted.owners;
        let value = match self.wanted.view {
            View::Whole => return put_item(self.row, object, owners, out),
            View::Table => table::line(self.row, object, self.include),
            View::Metadata | View::Discovery => partial(object, owners),
        };
        // Values of JSON always become JSON, and a buffer takes every write.
        let _ = serde_json::to_writer(out.writer(), &value);
    }
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = BytesMut::with_capacity(PIECE);
        if let Some(head) = self.head.take() {
            out.put_slice(head.as_bytes());
        }
        while let Some(object) = self.page.objects.get(self.next) {
            if self.next > 0 {
                out.put_u8(b',');
            }
            self.put(object, &mut out);
            self.next += 1;
            if out.len() >= PIECE {
                return Some(out.freeze());
            }
        }
        self.ended = true;
        out.put_slice(b"]}\n");
        Some(out.freeze())
    }
}

/// A list up to its first item.
fn list_head(kind: &str, version: &str, page: &Page) -> String {
    format!(
        "{{\"kind\":\"{kind}\",\"apiVersion\":\"{version}\",\"metadata\":{},\"items\":[",
        Value::Object(list_metadata(page))
    )
}

/// A value that is not an object of the cache. `type_name`: its schema, for protobuf.
pub fn plain(value: &Value, type_name: &str, format: Format) -> Result<Encoded, Status> {
    if format == Format::Protobuf
        && let Some(ty) = proto::schema().get(type_name)
    {
        let raw = proto::encode(ty, value).map_err(Status::internal)?;
        let word = |name: &str| value[name].as_str().unwrap_or_default();
        let bytes = proto::wrap_envelope(word("apiVersion"), word("kind"), &raw).into();
        return Ok(Encoded {
            content_type: format.content_type(),
            bytes,
        });
    }
    let format = if format == Format::Protobuf {
        Format::Json { pretty: false }
    } else {
        format
    };
    let bytes = match type_name {
        status::TYPE => text(format, &status::Ordered::Status(value))?,
        _ => text(format, value)?,
    };
    Ok(Encoded {
        content_type: format.content_type(),
        bytes,
    })
}

pub fn text<T: serde::Serialize>(format: Format, value: &T) -> Result<Bytes, Status> {
    let mut bytes = match format {
        Format::Json { pretty: true } => {
            serde_json::to_vec_pretty(value).map_err(Status::internal)?
        }
        Format::Yaml => serde_saphyr::to_string(value)
            .map_err(Status::internal)?
            .into_bytes(),
        _ => serde_json::to_vec(value).map_err(Status::internal)?,
    };
    if bytes.last() != Some(&b'\n') {
        bytes.push(b'\n');
    }
    Ok(bytes.into())
}

/// Whether an object is answered by the bytes that [`Object::json`] shares.
pub fn is_plain_json(wanted: Wanted) -> bool {
    matches!(
        (wanted.format, wanted.view),
        (Format::Json { pretty: false }, View::Whole)
    )
}

fn newline(pieces: &[Bytes]) -> Bytes {
    let size: usize = pieces.iter().map(Bytes::len).sum();
    let mut bytes = BytesMut::with_capacity(size + 1);
    for piece in pieces {
        bytes.put_slice(piece);
    }
    bytes.put_u8(b'\n');
    bytes.freeze()
}

/// An item of a list.
fn put_item(row: &Resource, object: &Object, owners: bool, out: &mut BytesMut) {
    let kind = row.names_kind_in_lists();
    if !kind {
        out.put_u8(b'{');
    }
    for piece in object.json_form().pieces(kind, owners) {
        out.put_slice(&piece);
    }
}

fn type_of(name: &str) -> Result<&'static proto::Type, Status> {
    proto::schema()
        .get(name)
        .ok_or_else(|| Status::internal(format!("no schema for {name}")))
}

fn meta_type(name: &str) -> Result<&'static proto::Type, Status> {
    type_of(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}"))
}

fn envelope(row: &Resource, object: &Object) -> Result<Bytes, Status> {
    let raw = object
        .protobuf(type_of(row.type_name)?)
        .map_err(Status::internal)?;
    Ok(proto::wrap_envelope(&api_version(row), row.kind, &raw).into())
}

fn list_kind(row: &Resource) -> String {
    match row.custom {
        Some(custom) => custom.list_kind.to_owned(),
        None => format!("{}List", row.kind),
    }
}

fn list_metadata(page: &Page) -> Map<String, Value> {
    let mut metadata = Map::new();
    metadata.insert(
        "resourceVersion".to_owned(),
        json!(page.revision.to_string()),
    );
    if !page.next.is_empty() {
        metadata.insert("continue".to_owned(), json!(page.next));
    }
    if let Some(remaining) = page.remaining {
        metadata.insert("remainingItemCount".to_owned(), json!(remaining));
    }
    metadata
}

/// The items' shared bytes, strung together.
fn json_list(row: &Resource, page: &Page, owners: bool) -> Bytes {
    let head = list_head(&list_kind(row), &api_version(row), page);
    let size: usize = page
        .objects
        .iter()
        .map(|object| object.json().len() + 1)
        .sum();
    let mut bytes = BytesMut::with_capacity(head.len() + size + 4);
    bytes.put_slice(head.as_bytes());
    for (index, object) in page.objects.iter().enumerate() {
        if index > 0 {
            bytes.put_u8(b',');
        }
        put_item(row, object, owners, &mut bytes);
    }
    bytes.put_slice(b"]}\n");
    bytes.freeze()
}

fn whole_list(row: &Resource, page: &Page) -> Value {
    let items: Vec<Value> = page
        .objects
        .iter()
        .map(|object| {
            let mut item = (*object.value()).clone();
            if let Some(map) = item.as_object_mut().filter(|_| !row.names_kind_in_lists()) {
                map.remove("kind");
                map.remove("apiVersion");
            }
            item
        })
        .collect();
    json!({"kind": list_kind(row), "apiVersion": api_version(row), "metadata": list_metadata(page), "items": items})
}

/// `XList { 1 metadata, 2 items }` around the items' shared bytes.
fn protobuf_list(row: &Resource, page: &Page) -> Result<Bytes, Status> {
    let ty = type_of(row.type_name)?;
    let metadata = proto::encode(meta_type("ListMeta")?, &Value::Object(list_metadata(page)))
        .map_err(Status::internal)?;
    let mut raw = Vec::new();
    proto::put_bytes(&mut raw, 1, &metadata);
    for object in &page.objects {
        proto::put_bytes(&mut raw, 2, &object.protobuf(ty).map_err(Status::internal)?);
    }
    Ok(proto::wrap_envelope(&api_version(row), &format!("{}List", row.kind), &raw).into())
}

fn partial(object: &Object, owners: bool) -> Value {
    let value = object.value();
    let mut metadata = Map::new();
    for (name, member) in value["metadata"].as_object().into_iter().flatten() {
        if owners || name != "managedFields" {
            metadata.insert(name.clone(), member.clone());
        }
    }
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

fn partial_envelope(object: &Object) -> Result<Bytes, Status> {
    let raw = proto::encode(meta_type("PartialObjectMetadata")?, &partial(object, true))
        .map_err(Status::internal)?;
    Ok(proto::wrap_envelope("meta.k8s.io/v1", "PartialObjectMetadata", &raw).into())
}

fn partial_list(page: &Page) -> Value {
    let items: Vec<Value> = page
        .objects
        .iter()
        .map(|object| partial(object, true))
        .collect();
    json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata(page), "items": items})
}

/// Writes one watch's frames; remembers whether the columns were told.
#[derive(Debug)]
pub struct Frames {
    row: &'static Resource,
    wanted: Wanted,
    include: Include,
    columns_told: bool,
}

impl Frames {
    pub fn new(row: &'static Resource, wanted: Wanted, include: Include) -> Self {
        Self {
            row,
            wanted,
            include,
            columns_told: false,
        }
    }

    pub fn content_type(&self) -> &'static str {
        match self.wanted.format {
            Format::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            _ => "application/json",
        }
    }

    /// As [`Frames::encode`], but a large object's bytes are shared by all watchers.
    pub fn parts(&mut self, event: &Event) -> Result<Vec<Bytes>, Status> {
        let (word, object) = match event {
            Event::Added(object) => ("ADDED", object),
            Event::Modified(object) => ("MODIFIED", object),
            Event::Deleted(object) => ("DELETED", object),
            _ => return Ok(vec![self.encode(event)?]),
        };
        match (self.wanted.format, self.wanted.view) {
            (Format::Json { .. }, View::Whole) if object.is_large() => {
                let [begin, end] = object.json_form().pieces(true, self.wanted.owners);
                let head = format!("{{\"type\":\"{word}\",\"object\":").into();
                Ok(vec![head, begin, end, Bytes::from_static(b"}\n")])
            }
            _ => Ok(vec![self.encode(event)?]),
        }
    }

    pub fn encode(&mut self, event: &Event) -> Result<Bytes, Status> {
        let (word, object) = match event {
            Event::Added(object) => ("ADDED", object),
            Event::Modified(object) => ("MODIFIED", object),
            Event::Deleted(object) => ("DELETED", object),
            Event::Bookmark {
                revision,
                initial_end,
            } => return self.bookmark(*revision, *initial_end),
            Event::Error(status) => return self.error(status),
        };
        match (self.wanted.format, self.wanted.view) {
            (Format::Protobuf, View::Whole) => {
                Ok(proto::watch_frame(word, &envelope(self.row, object)?).into())
            }
            (Format::Protobuf, _) => {
                Ok(proto::watch_frame(word, &partial_envelope(object)?).into())
            }
            (_, View::Table) => {
                let mut value = table::of_object(self.row, object, self.include);
                self.tell_columns_once(&mut value);
                let bytes = serde_json::to_vec(&value).map_err(Status::internal)?;
                json_frame(word, &[bytes.into()])
            }
            (_, View::Metadata) => json_frame(
                word,
                &[serde_json::to_vec(&partial(object, self.wanted.owners))
                    .map_err(Status::internal)?
                    .into()],
            ),
            _ => json_frame(word, &object.json_form().pieces(true, self.wanted.owners)),
        }
    }

    fn bookmark(&mut self, revision: u64, initial_end: bool) -> Result<Bytes, Status> {
        let mut metadata =
            json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let (kind, version) = match self.wanted.view {
            View::Metadata => ("PartialObjectMetadata", "meta.k8s.io/v1".to_owned()),
            _ => (self.row.kind, api_version(self.row)),
        };
        let value = json!({"kind": kind, "apiVersion": version, "metadata": metadata});
        if self.wanted.format == Format::Protobuf {
            let ty = match self.wanted.view {
                View::Metadata => meta_type("PartialObjectMetadata")?,
                _ => type_of(self.row.type_name)?,
            };
            let raw = proto::encode(ty, &value).map_err(Status::internal)?;
            return Ok(
                proto::watch_frame("BOOKMARK", &proto::wrap_envelope(&version, kind, &raw)).into(),
            );
        }
        let mut value = value;
        if self.wanted.view == View::Table {
            value = table::of_bookmark(self.row, &value, revision);
            self.tell_columns_once(&mut value);
        }
        let bytes = serde_json::to_vec(&value).map_err(Status::internal)?;
        json_frame("BOOKMARK", &[bytes.into()])
    }

    fn error(&self, status: &Status) -> Result<Bytes, Status> {
        let value = status_value(status);
        if self.wanted.format == Format::Protobuf {
            let raw = proto::encode(meta_type("Status")?, &value).map_err(Status::internal)?;
            return Ok(
                proto::watch_frame("ERROR", &proto::wrap_envelope("v1", "Status", &raw)).into(),
            );
        }
        let ordered = status::Ordered::Status(&value);
        let bytes = serde_json::to_vec(&ordered).map_err(Status::internal)?;
        json_frame("ERROR", &[bytes.into()])
    }

    /// Only the first frame of a watch says what the columns are.
    fn tell_columns_once(&mut self, table: &mut Value) {
        if self.columns_told {
            table["columnDefinitions"] = Value::Null;
        }
        self.columns_told = true;
    }
}

fn json_frame(word: &str, object: &[Bytes]) -> Result<Bytes, Status> {
    let size: usize = object.iter().map(Bytes::len).sum();
    let mut bytes = BytesMut::with_capacity(size + word.len() + 24);
    bytes.put_slice(b"{\"type\":\"");
    bytes.put_slice(word.as_bytes());
    bytes.put_slice(b"\",\"object\":");
    for piece in object {
        bytes.put_slice(piece);
    }
    bytes.put_slice(b"}\n");
    Ok(bytes.freeze())
}
