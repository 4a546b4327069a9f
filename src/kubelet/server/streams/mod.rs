//! Exec, attach and port-forward: from an upgraded request to bytes in a container.
//!
//! Called by `route`, after authorization. Protocols (`websocket.rs`, `spdy/`) know nothing of
//! containers; sessions (`exec.rs`, `forward.rs`) know nothing of protocols: they meet in
//! `channels.rs` (streams) and `link.rs` (the connection's life). `negotiate.rs` chooses.

mod channels;
mod descriptor;
mod exec;
mod forward;
mod link;
mod negotiate;
mod spdy;
mod websocket;

pub use exec::Kind;

use http::{Request, Response, StatusCode};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use self::{
    channels::Channels,
    forward::{Forwarder, PAIRING},
    link::Link,
    negotiate::{COMMANDS, Channelled, PORT_FORWARD, Protocol, Streamed},
    spdy::Connection,
    websocket::Socket,
};
use super::{
    Server,
    answer::{Answer, Body, text},
    lookup::{Found, Target},
    query::Query,
    sessions::Sessions,
};
use crate::{causes::causes, runtime::ExecConfig};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Two channels each, and a channel's number is a byte of which the last ones are taken.
const MAX_PORTS: usize = 100;

/// The streams that a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    fn parse(query: &Query) -> Result<Self, Answer> {
        let tty = query.flag("tty");
        let wanted = Self {
            stdin: query.flag("input"),
            stdout: query.flag("output"),
            // A terminal has one output.
            stderr: query.flag("error") && !tty,
            tty,
        };
        match wanted.stdin || wanted.stdout || wanted.stderr {
            true => Ok(wanted),
            false => Err(Answer::bad_request(
                "you must specify at least 1 of stdin, stdout, stderr",
            )),
        }
    }
}

/// Exec or attach: answers 101 and goes on with the session in a task of its own.
pub async fn command(
    server: &Server,
    sessions: &Sessions,
    mut request: Request<Incoming>,
    target: &Target,
    kind: Kind,
) -> Result<Response<Body>, Answer> {
    let query = Query::parse(request.uri());
    let wanted = Wanted::parse(&query)?;
    let argv: Vec<String> = query.all("command").map(str::to_owned).collect();
    if kind == Kind::Exec && argv.is_empty() {
        return Err(Answer::bad_request(
            "you must specify at least one command for the container",
        ));
    }
    let found = server.find(target).await?;
    let container = found.running(&target.container)?;
    let place = sessions.take(&found.uid)?;
    let agreed = match COMMANDS.negotiate(request.method(), request.headers()) {
        Ok(agreed) => agreed,
        Err(refused) => return Ok(refused.response()),
    };
    let (runtime, upgrade) = (server.runtime.clone(), hyper::upgrade::on(&mut request));
    let protocol = agreed.protocol;
    tokio::spawn(async move {
        let _place = place;
        let Some((channels, link)) = open(upgrade, protocol, wanted).await else {
            return;
        };
        let session = match kind {
            Kind::Exec => {
                let config = ExecConfig {
                    argv,
                    tty: wanted.tty,
                    stdin: wanted.stdin,
                    stdout: wanted.stdout,
                    stderr: wanted.stderr,
                };
                runtime.exec(&container, config).await
            }
            Kind::Attach => {
                let Wanted {
                    stdin,
                    stdout,
                    stderr,
                    ..
                } = wanted;
                runtime.attach(&container, stdin, stdout, stderr).await
            }
        };
        exec::run(kind, session, channels, link).await;
    });
    Ok(agreed.response())
}

type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

async fn upgraded(upgrade: OnUpgrade) -> Option<Upgraded> {
    match upgrade.await {
        Ok(upgraded) => Some(TokioIo::new(upgraded)),
        Err(error) => {
            tracing::debug!(%error, "an upgrade did not happen");
            None
        }
    }
}

async fn open(upgrade: OnUpgrade, protocol: Protocol, wanted: Wanted) -> Option<(Channels, Link)> {
    let io = upgraded(upgrade).await?;
    match protocol {
        Protocol::WebSocket(agreed) => Some(open_websocket(io, agreed, wanted).await),
        Protocol::Spdy(agreed) => open_spdy(io, agreed, wanted).await,
        // Only port-forward offers it.
        Protocol::Tunnel => None,
    }
}

async fn open_websocket<S>(io: S, agreed: Channelled, wanted: Wanted) -> (Channels, Link)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut inputs = Vec::new();
    if wanted.stdin {
        inputs.push(STDIN);
    }
    if wanted.tty {
        inputs.push(RESIZE);
    }
    let mut socket = Socket::start(io, agreed.encoding, agreed.half_close, &inputs).await;
    let channels = Channels {
        stdin: socket.input(STDIN),
        stdout: wanted.stdout.then(|| socket.output(STDOUT)),
        stderr: wanted.stderr.then(|| socket.output(STDERR)),
        error: socket.output(ERROR),
        resize: socket.input(RESIZE),
        report: agreed.report,
    };
    // Clients take the first message, be it empty, as a sign that the session has begun.
    let first = channels.stdout.as_ref().or(channels.stderr.as_ref());
    let _ = first
        .unwrap_or(&channels.error)
        .send(Vec::new().into())
        .await;
    (channels, socket.link)
}

/// Waits for the streams that the client opens.
async fn open_spdy<S>(io: S, agreed: Streamed, wanted: Wanted) -> Option<(Channels, Link)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (reader, writer) = tokio::io::split(io);
    let mut connection = Connection::start(reader, writer)
        .inspect_err(|error| tracing::debug!(%error, "SPDY connection"))
        .ok()?;
    let (mut stdin, mut stdout, mut stderr) = (None, None, None);
    let (mut error, mut resize) = (None, None);
    let resizes = wanted.tty && agreed.resize;
    let all = async {
        while error.is_none()
            || (wanted.stdin && stdin.is_none())
            || (wanted.stdout && stdout.is_none())
            || (wanted.stderr && stderr.is_none())
            || (resizes && resize.is_none())
        {
            let stream = connection.streams.recv().await?;
            match stream.headers.get("streamtype") {
                Some("stdin") if wanted.stdin => stdin = Some(stream.input),
                Some("stdout") if wanted.stdout => stdout = Some(stream.output),
                Some("stderr") if wanted.stderr => stderr = Some(stream.output),
                Some("resize") if resizes => resize = Some(stream.input),
                Some("error") => error = Some(stream.output),
                _ => stream.reject().await,
            }
        }
        Some(())
    };
    if tokio::time::timeout(PAIRING, all).await != Ok(Some(())) {
        tracing::debug!("timed out waiting for client to create streams");
        return None;
    }
    let channels = Channels {
        stdin,
        stdout,
        stderr,
        error: error?,
        resize,
        report: agreed.report,
    };
    // Further streams are refused from here on.
    drop(connection.streams);
    Some((channels, connection.link))
}

/// Port-forward: answers 101 and goes on with the connections in a task of its own.
pub async fn forward(
    server: &Server,
    sessions: &Sessions,
    mut request: Request<Incoming>,
    target: &Target,
) -> Result<Response<Body>, Answer> {
    let found = server.find(target).await?;
    let agreed = match PORT_FORWARD.negotiate(request.method(), request.headers()) {
        Ok(agreed) => agreed,
        Err(refused) => return Ok(refused.response()),
    };
    let ports = ports(&Query::parse(request.uri()))?;
    if matches!(agreed.protocol, Protocol::WebSocket(_)) && ports.is_empty() {
        return Err(Answer::bad_request("query parameter \"port\" is required"));
    }
    let place = sessions.take(&found.uid)?;
    let forwarder = Forwarder {
        runtime: server.runtime.clone(),
        uid: found.alive()?,
        pod: format!("{}_{}", target.pod, target.namespace),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let protocol = agreed.protocol;
    tokio::spawn(async move {
        let _place = place;
        let Some(io) = upgraded(upgrade).await else {
            return;
        };
        let connection = match protocol {
            Protocol::WebSocket(Channelled {
                encoding,
                half_close,
                ..
            }) => {
                let inputs: Vec<u8> = (0..).step_by(2).take(ports.len()).collect();
                let socket = Socket::start(io, encoding, half_close, &inputs).await;
                return forward::over_websocket(forwarder, socket, ports).await;
            }
            Protocol::Spdy(_) => {
                let (reader, writer) = tokio::io::split(io);
                Connection::start(reader, writer)
            }
            Protocol::Tunnel => {
                let (reader, writer) = websocket::tunnel(io).await;
                Connection::start(reader, writer)
            }
        };
        match connection {
            Ok(connection) => forward::over_spdy(forwarder, connection).await,
            Err(error) => tracing::debug!(%error, "SPDY connection"),
        }
    });
    Ok(agreed.response())
}

fn ports(query: &Query) -> Result<Vec<u16>, Answer> {
    let given = query.all("port").chain(query.all("ports"));
    let ports: Result<Vec<u16>, Answer> = given
        .flat_map(|ports| ports.split(','))
        .map(|port| {
            let number = port.parse().ok().filter(|port| *port > 0);
            number.ok_or_else(|| Answer::bad_request(format!("unable to parse {port:?} as a port")))
        })
        .collect();
    match ports {
        Ok(ports) if ports.len() > MAX_PORTS => Err(Answer::bad_request("too many ports")),
        ports => ports,
    }
}

/// `/run`: executes a command and answers with all it said.
pub async fn run(
    server: &Server,
    sessions: &Sessions,
    query: &Query,
    target: &Target,
) -> Result<Response<Body>, Answer> {
    let found: Found = server.find(target).await?;
    let container = found.running(&target.container)?;
    let _place = sessions.take(&found.uid)?;
    let argv: Vec<String> = query
        .get("cmd")
        .unwrap_or_default()
        .split(' ')
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect();
    if argv.is_empty() {
        return Err(Answer::bad_request("query parameter \"cmd\" is required"));
    }
    let config = ExecConfig {
        argv,
        tty: false,
        stdin: false,
        stdout: true,
        stderr: true,
    };
    let session = server.runtime.exec(&container, config).await;
    let session = session.map_err(|error| Answer::internal(causes(&error)))?;
    match exec::collect(session).await {
        Ok(said) => Ok(text(StatusCode::OK, said)),
        Err(reason) => Err(Answer::internal(reason)),
    }
}

#[cfg(test)]
mod tests;
