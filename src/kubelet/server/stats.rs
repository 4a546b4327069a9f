//! `/stats/summary`, `/metrics` and what is below it: the node, its pods and what they use.

use http::{Response, StatusCode};

use super::{
    answer::{self, Answer, Body, full},
    query::Query,
};
use crate::{
    exposition::{CONTENT_TYPE, Page, process},
    kubelet::{
        Error,
        probe::Prober,
        stats::{Depth, Stats},
    },
};

pub async fn summary(stats: &Stats, query: &Query) -> Result<Response<Body>, Answer> {
    let depth = match query.flag("only_cpu_and_memory") {
        true => Depth::Compute,
        false => Depth::All,
    };
    answer::json(&stats.summary(depth).await.map_err(failed)?)
}

pub async fn resource(stats: &Stats) -> Result<Response<Body>, Answer> {
    exposed(stats.resource().await)
}

pub async fn cadvisor(stats: &Stats) -> Result<Response<Body>, Answer> {
    exposed(stats.cadvisor().await)
}

pub async fn kubelet(stats: &Stats) -> Result<Response<Body>, Answer> {
    let mut page = Page::new();
    stats.node(&mut page).await.map_err(failed)?;
    process::write(&mut page);
    exposed(Ok(page.into_text()))
}

pub fn probes(prober: &Prober) -> Response<Body> {
    let mut page = Page::new();
    prober.write(&mut page);
    answer::with_type(StatusCode::OK, CONTENT_TYPE, full(page.into_text()))
}

fn exposed(text: Result<String, Error>) -> Result<Response<Body>, Answer> {
    let body = full(text.map_err(failed)?);
    Ok(answer::with_type(StatusCode::OK, CONTENT_TYPE, body))
}

fn failed(error: Error) -> Answer {
    Answer::internal(error.to_string())
}
