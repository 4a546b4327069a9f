//! The demo's application: says which pod answered.

use std::{convert::Infallible, net::Ipv4Addr, process::ExitCode};

use http_body_util::Full;
use hyper::{Request, Response, body::Bytes, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use crate::{
    cli::{Error, block_on},
    logging,
};

pub const SUBCOMMAND: &str = "demo-server";
/// Above 1023: the application runs without any right.
pub const PORT: u16 = 8080;

/// Serve the demo's page (what `up --demo` runs in its pods)
#[derive(clap::Args)]
pub struct DemoServer {}

impl DemoServer {
    pub fn run(self) -> Result<ExitCode, Error> {
        block_on(async {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
            logging::note(format_args!("listening on port {PORT}"));
            // The first process of a container has no default for SIGTERM.
            let mut terminate = signal(SignalKind::terminate())?;
            tokio::select! {
                result = serve(listener) => result?,
                _ = terminate.recv() => {}
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

async fn serve(listener: TcpListener) -> Result<(), Error> {
    let page = page(|name| std::env::var(name).unwrap_or_else(|_| "unknown".into()));
    loop {
        let (stream, _) = listener.accept().await?;
        let page = Bytes::from(page.clone());
        tokio::spawn(async move {
            let answer = service_fn(move |_: Request<_>| {
                let page = page.clone();
                async move { Ok::<_, Infallible>(Response::new(Full::new(page))) }
            });
            // A client that goes away ends its own connection only.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

fn page(variable: impl Fn(&str) -> String) -> String {
    format!(
        "Hello from pod {} at {} on node {}\n",
        variable("POD"),
        variable("ADDRESS"),
        variable("NODE")
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_says_who_answers() {
        let page = super::page(|name| name.to_lowercase());
        assert_eq!(page, "Hello from pod pod at address on node node\n");
    }
}
