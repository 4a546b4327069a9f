//! Several servers asked for the same: the next one early, so that a dead one holds up nobody for long.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

use super::message::Said;

/// The next server is asked while the one before may still answer.
pub const NEXT: Duration = Duration::from_millis(250);

/// The first answer, and who gave it; else that of a server that cannot tell, if there is one. Each server is asked
/// once: as soon as nobody is left who may answer, or [`NEXT`] after the one before; then it takes one of `extra`.
pub async fn first<Asking>(
    servers: &[SocketAddr],
    extra: &Arc<Semaphore>,
    ask: impl Fn(SocketAddr) -> Asking,
) -> Option<(Said, Option<SocketAddr>)>
where
    Asking: Future<Output = io::Result<Said>>,
{
    let asking = |server: SocketAddr, permit: Option<OwnedSemaphorePermit>| {
        let asked = ask(server);
        async move {
            let said = asked.await;
            drop(permit);
            (server, said)
        }
    };
    let mut waiting = servers.iter().copied();
    let mut under_way = FuturesUnordered::new();
    let mut failed = None;
    loop {
        if under_way.is_empty() {
            let Some(server) = waiting.next() else {
                return failed.map(|said| (said, None));
            };
            under_way.push(asking(server, None));
        }
        let next = async {
            sleep(NEXT).await;
            extra.clone().acquire_owned().await
        };
        let others = waiting.len() > 0;
        tokio::select! {
            Some((server, said)) = under_way.next() => match said {
                Ok(said) if !said.failed() => return Some((said, Some(server))),
                Ok(said) => {
                    tracing::debug!(%server, "upstream cannot tell");
                    failed = failed.or(Some(said));
                }
                Err(error) => tracing::debug!(%server, %error, "upstream failed"),
            },
            Ok(permit) = next, if others => {
                if let Some(server) = waiting.next() {
                    under_way.push(asking(server, Some(permit)));
                }
            }
        }
    }
}
