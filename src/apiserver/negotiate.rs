//! Which form of an answer a client wants, out of its `Accept` header. Pure.

use super::status::{Reason, Status};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json { pretty: bool },
    Yaml,
    Protobuf,
}

/// What is asked for instead of the object itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Whole,
    Table,
    /// `PartialObjectMetadata`, or the list of it.
    Metadata,
    /// Aggregated discovery.
    Discovery,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub format: Format,
    pub view: View,
    /// Whether `metadata.managedFields` are wanted: the components of this program do not look at them,
    /// and they may be larger than the rest.
    pub owners: bool,
}

/// What an endpoint can give.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    pub protobuf: bool,
    pub views: &'static [View],
    pub yaml: bool,
}

pub const OBJECTS: Offer = Offer {
    protobuf: true,
    views: &[View::Whole, View::Table, View::Metadata],
    yaml: true,
};
/// Answers that are made on request: there is no table of them.
pub const ANSWERS: Offer = Offer {
    views: &[View::Whole],
    ..OBJECTS
};
/// Custom resources have no protobuf form.
pub const CUSTOM: Offer = Offer {
    protobuf: false,
    ..OBJECTS
};
pub const WATCHES: Offer = Offer {
    yaml: false,
    ..OBJECTS
};
pub const CUSTOM_WATCHES: Offer = Offer {
    yaml: false,
    ..CUSTOM
};
pub const DOCUMENTS: Offer = Offer {
    protobuf: false,
    views: &[View::Whole, View::Discovery],
    yaml: true,
};

/// Walks the clauses by weight, then order; the first that can be served wins.
pub fn negotiate(accept: Option<&str>, pretty: bool, offer: Offer) -> Result<Wanted, Status> {
    let json = Wanted {
        format: Format::Json { pretty },
        view: View::Whole,
        owners: true,
    };
    let Some(accept) = accept.filter(|accept| !accept.trim().is_empty()) else {
        return Ok(json);
    };
    let mut clauses: Vec<(f32, &str)> = accept
        .split(',')
        .map(|clause| (weight(clause), clause))
        .collect();
    clauses.sort_by(|a, b| b.0.total_cmp(&a.0));
    clauses.iter().find_map(|(_, clause)| serve(clause, pretty, offer)).ok_or_else(|| {
        Status::new(
            Reason::NotAcceptable,
            "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )
    })
}

fn weight(clause: &str) -> f32 {
    parameters(clause)
        .find(|(name, _)| *name == "q")
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(1.0)
}

fn parameters(clause: &str) -> impl Iterator<Item = (&str, &str)> {
    clause
        .split(';')
        .skip(1)
        .filter_map(|part| part.trim().split_once('='))
}

fn serve(clause: &str, pretty: bool, offer: Offer) -> Option<Wanted> {
    let media = clause.split(';').next()?.trim();
    let (mut kind, mut group, mut version) = ("", "", "");
    let mut pretty = pretty;
    for (name, value) in parameters(clause) {
        match name {
            "as" => kind = value,
            "g" => group = value,
            "v" => version = value,
            "pretty" => pretty = value == "1" || value == "true",
            _ => {}
        }
    }
    let format = match media {
        "application/json" | "application/*" | "*/*" => Format::Json { pretty },
        "application/yaml" if offer.yaml => Format::Yaml,
        "application/vnd.kubernetes.protobuf" => Format::Protobuf,
        _ => return None,
    };
    let view = match (kind, group, version) {
        ("", ..) => View::Whole,
        ("Table", "meta.k8s.io", "v1" | "v1beta1") if format != Format::Protobuf => View::Table,
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => {
            View::Metadata
        }
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => View::Discovery,
        _ => return None,
    };
    // Metadata has a type also where the whole object has none.
    let has_type = offer.protobuf || view == View::Metadata;
    (offer.views.contains(&view) && (format != Format::Protobuf || has_type)).then_some(Wanted {
        format,
        view,
        owners: true,
    })
}

impl Format {
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json { .. } => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_send() {
        let json = Format::Json { pretty: false };
        for (accept, want) in [
            ("", Some((json, View::Whole))),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Some((json, View::Table)),
            ),
            (
                "application/vnd.kubernetes.protobuf,application/json",
                Some((Format::Protobuf, View::Whole)),
            ),
            (
                "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io, */*",
                Some((json, View::Whole)),
            ),
            (
                "application/json;q=0.5,application/yaml",
                Some((Format::Yaml, View::Whole)),
            ),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
                Some((Format::Protobuf, View::Metadata)),
            ),
            ("application/json;stream=watch", Some((json, View::Whole))),
            ("text/html", None),
            ("application/cbor", None),
        ] {
            let got = negotiate(Some(accept), false, OBJECTS)
                .ok()
                .map(|wanted| (wanted.format, wanted.view));
            assert_eq!(got, want, "{accept}");
        }
    }
}
