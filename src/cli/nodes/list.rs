//! `vetch node ls`.

use std::io::Write;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, api::ListParams};

use crate::cli::{Error, status::NodeLine, table};

pub async fn list(client: Client, out: &mut dyn Write) -> Result<(), Error> {
    let nodes: Api<Node> = Api::all(client);
    let nodes = nodes.list(&ListParams::default()).await?;
    let now = Timestamp::now();
    let lines: Vec<NodeLine> = nodes.iter().map(NodeLine::of).collect();
    Ok(table::write(
        out,
        &NodeLine::HEAD,
        lines.iter().map(|line| line.cells(now)),
    )?)
}
