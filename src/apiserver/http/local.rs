//! The way in without a socket: a `kube::Client` whose requests are function calls.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body_util::BodyExt;

use super::{Body, Frontend, Peer};
use crate::{apiserver::request::User, supervision::hooks};

/// A client that acts as `user`. Everything but TLS and authentication is as over the network.
pub fn client(frontend: Arc<Frontend>, user: User) -> kube::Client {
    kube::Client::new(
        Local {
            frontend,
            user: Arc::new(user),
        },
        "default",
    )
}

#[derive(Clone)]
struct Local {
    frontend: Arc<Frontend>,
    user: Arc<User>,
}

impl tower::Service<Request<kube::client::Body>> for Local {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = futures::future::BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
        let (frontend, peer) = (self.frontend.clone(), Peer::Internal(self.user.clone()));
        // A task of its own, so that a caller that gives up does not stop a write half way.
        Box::pin(async move {
            hooks::delay().await;
            let task = tokio::spawn(frontend.handle(request, peer));
            let answer = task.await.unwrap_or_else(|error| {
                let status = crate::apiserver::status::Status::internal(error);
                super::failure(&status, None)
            });
            hooks::delay().await;
            Ok(answer)
        })
    }
}
