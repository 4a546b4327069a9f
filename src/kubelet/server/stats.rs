//! `/stats/summary`, `/metrics/resource` and `/metrics/cadvisor`: what the node and its pods use.

use http::{Response, StatusCode};

use super::{
    answer::{self, Answer, Body, full},
    query::Query,
};
use crate::kubelet::{
    Error,
    stats::{Depth, Stats},
};

/// As Prometheus names its text format.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

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

fn exposed(text: Result<String, Error>) -> Result<Response<Body>, Answer> {
    let body = full(text.map_err(failed)?);
    Ok(answer::with_type(StatusCode::OK, EXPOSITION, body))
}

fn failed(error: Error) -> Answer {
    Answer::internal(error.to_string())
}
