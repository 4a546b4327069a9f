//! `vetch token`: what another machine joins the cluster with.
//!
//! Tokens are Secrets of `kube-system` in the form that all of Kubernetes knows; these commands go through
//! the API as the cluster's administrator does.

use std::{io::Write, process::ExitCode, str::FromStr, time::Duration};

use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
    config::Kubeconfig,
};

use super::{Error, administrator, block_on, daemon, paths::RootArg};
use crate::{
    bootstrap_token::{self, BootstrapToken, Expiration, KeptToken},
    kubelet::settings,
};

/// Make, list and delete the tokens that machines join with
#[derive(Args)]
pub struct Token {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a token and print it
    Create {
        /// The token itself [default: a random one]
        token: Option<BootstrapToken>,
        /// How long it counts: `90s`, `1h30m`; 0 for ever
        #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = settings::duration)]
        ttl: Duration,
        /// What it is for, for `vetch token list`
        #[arg(long, default_value = "", value_name = "TEXT")]
        description: String,
        /// Print the whole command to run on the machine that joins
        #[arg(long)]
        print_join_command: bool,
        #[command(flatten)]
        root: RootArg,
    },
    /// List the tokens, without their secret halves
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        root: RootArg,
    },
    /// Delete tokens
    #[command(visible_alias = "rm")]
    Delete {
        /// A token, or its first six characters
        #[arg(required = true, value_name = "TOKEN", value_parser = id)]
        tokens: Vec<String>,
        #[command(flatten)]
        root: RootArg,
    },
}

/// A token's public half, of that or of the whole token.
fn id(text: &str) -> Result<String, bootstrap_token::Malformed> {
    match bootstrap_token::is_id(text) {
        true => Ok(text.to_owned()),
        false => BootstrapToken::from_str(text).map(|token| token.id().to_owned()),
    }
}

impl Token {
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode, Error> {
        daemon::install_crypto();
        block_on(async {
            match self.verb {
                Verb::Create {
                    token,
                    ttl,
                    description,
                    print_join_command,
                    root,
                } => {
                    let token = token.unwrap_or_else(BootstrapToken::random);
                    let secret = secret(&token, end(ttl, Timestamp::now())?, &description);
                    create(&root, &token, &secret).await?;
                    match print_join_command {
                        true => writeln!(out, "{}", join_command(&server(&root).await?, &token))?,
                        false => writeln!(out, "{token}")?,
                    }
                }
                Verb::List { root } => show(out, &list(&root).await?, Timestamp::now())?,
                Verb::Delete { tokens, root } => {
                    let secrets = secrets(&root).await?;
                    for id in tokens {
                        delete(&secrets, &id, &root).await?;
                        writeln!(out, "deleted {id}")?;
                    }
                }
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

async fn create(root: &RootArg, token: &BootstrapToken, secret: &Secret) -> Result<(), Error> {
    let (secrets, params) = (secrets(root).await?, PostParams::default());
    match secrets.create(&params, secret).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            let (id, flag) = (token.id(), root.flag());
            Err(format!(
                "there is a token {id} already: delete it with `vetch token delete {id}{flag}`, \
                 or let `vetch token create{flag}` choose another"
            )
            .into())
        }
        made => Ok(made.map(drop)?),
    }
}

/// What makes another machine a node.
pub fn join_command(server: &str, token: &BootstrapToken) -> String {
    format!("vetch agent --server {server} --token {token}")
}

/// Where other machines reach the cluster, as it tells them itself.
async fn server(root: &RootArg) -> Result<String, Error> {
    let client = administrator::client(&root.paths()?, &root.flag()).await?;
    let maps: Api<ConfigMap> = Api::namespaced(client, "kube-public");
    let map = maps.get("cluster-info").await?;
    let text = map.data.and_then(|mut data| data.remove("kubeconfig"));
    let config = Kubeconfig::from_yaml(&text.unwrap_or_default())?;
    let cluster = config.clusters.into_iter().next();
    let server = cluster.and_then(|cluster| cluster.cluster?.server);
    server.ok_or_else(|| "kube-public/cluster-info does not say where the server is".into())
}

/// One that `vetch up` has made and that counts for a while yet, or else a new one.
pub async fn for_joining(client: Client) -> Result<BootstrapToken, Error> {
    const DESCRIPTION: &str = "made by vetch up";
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const SOON: SignedDuration = SignedDuration::from_hours(12);
    let secrets: Api<Secret> = Api::namespaced(client, bootstrap_token::NAMESPACE);
    let params = ListParams::default().fields(bootstrap_token::OF_TYPE);
    let now = Timestamp::now();
    let good = |kept: &KeptToken| {
        let lasts = match kept.expiration {
            Expiration::At(end) => end.duration_since(now) > SOON,
            Expiration::Never | Expiration::Unreadable => false,
        };
        lasts && kept.description == DESCRIPTION && kept.authentication && kept.signing
    };
    let found = secrets.list(&params).await?;
    let mut kept = found.iter().filter_map(KeptToken::of);
    if let Some(kept) = kept.find(good) {
        return Ok(kept.token);
    }
    let token = BootstrapToken::random();
    let secret = secret(&token, end(DAY, now)?, DESCRIPTION);
    secrets.create(&PostParams::default(), &secret).await?;
    Ok(token)
}

async fn list(root: &RootArg) -> Result<Vec<KeptToken>, Error> {
    let params = ListParams::default().fields(bootstrap_token::OF_TYPE);
    let found = secrets(root).await?.list(&params).await?;
    let mut tokens: Vec<KeptToken> = found.iter().filter_map(KeptToken::of).collect();
    tokens.sort_by(|a, b| a.token.id().cmp(b.token.id()));
    Ok(tokens)
}

async fn delete(secrets: &Api<Secret>, id: &str, root: &RootArg) -> Result<(), Error> {
    let name = bootstrap_token::secret_name(id);
    match secrets.delete(&name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => {
            let flag = root.flag();
            Err(format!("there is no token {id}: `vetch token list{flag}` shows all").into())
        }
        gone => Ok(gone.map(drop)?),
    }
}

/// The tokens' Secrets, as the administrator of the cluster below `root` sees them.
async fn secrets(root: &RootArg) -> Result<Api<Secret>, Error> {
    let client = administrator::client(&root.paths()?, &root.flag()).await?;
    Ok(Api::namespaced(client, bootstrap_token::NAMESPACE))
}

/// When a token of now ends; `None`: never.
fn end(ttl: Duration, now: Timestamp) -> Result<Option<Timestamp>, Error> {
    if ttl.is_zero() {
        return Ok(None);
    }
    let end = SignedDuration::try_from(ttl).and_then(|ttl| now.checked_add(ttl));
    let end = end.map_err(|_| "--ttl is longer than the calendar; 0 is for ever")?;
    Ok(Some(Timestamp::from_second(end.as_second())?))
}

fn secret(token: &BootstrapToken, end: Option<Timestamp>, description: &str) -> Secret {
    let mut data = vec![
        ("token-id", token.id().to_owned()),
        ("token-secret", token.secret().to_owned()),
        ("usage-bootstrap-authentication", "true".to_owned()),
        ("usage-bootstrap-signing", "true".to_owned()),
    ];
    if let Some(end) = end {
        data.push(("expiration", end.to_string()));
    }
    if !description.is_empty() {
        data.push(("description", description.to_owned()));
    }
    let data = data.into_iter();
    Secret {
        metadata: ObjectMeta {
            name: Some(token.secret_name()),
            namespace: Some(bootstrap_token::NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some(bootstrap_token::SECRET_TYPE.to_owned()),
        data: Some(
            data.map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes())))
                .collect(),
        ),
        ..Secret::default()
    }
}

fn show(out: &mut dyn Write, tokens: &[KeptToken], now: Timestamp) -> std::io::Result<()> {
    writeln!(
        out,
        "{:<8} {:<22} {:<24} DESCRIPTION",
        "TOKEN", "EXPIRES", "USAGES"
    )?;
    for kept in tokens {
        let expires = match kept.expiration {
            Expiration::Never => "never".to_owned(),
            over if over.is_over(now) => "expired".to_owned(),
            Expiration::At(end) => end.to_string(),
            Expiration::Unreadable => "expired".to_owned(),
        };
        let usages = [
            (kept.authentication, "authentication"),
            (kept.signing, "signing"),
        ];
        let usages: Vec<&str> = usages
            .iter()
            .filter_map(|(has, usage)| has.then_some(*usage))
            .collect();
        writeln!(
            out,
            "{:<8} {expires:<22} {:<24} {}",
            kept.token.id(),
            usages.join(","),
            printable(&kept.description),
        )?;
    }
    Ok(())
}

/// What somebody else wrote must not move the cursor of whoever reads it.
fn printable(text: &str) -> String {
    text.chars()
        .map(|one| if one.is_control() { ' ' } else { one })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_says_what_was_asked_for() {
        let now: Timestamp = "2030-01-01T00:00:00.5Z".parse().expect("a time");
        let token: BootstrapToken = "abcdef.0123456789abcdef".parse().expect("a token");
        let day = Duration::from_secs(86_400);
        let end_of_day = end(day, now).expect("a time");
        let kept = KeptToken::of(&secret(&token, end_of_day, "for\nthe lab")).expect("a token");
        assert!(kept.authentication && kept.signing);
        let tomorrow = "2030-01-02T00:00:00Z".parse().expect("a time");
        assert_eq!(kept.expiration, Expiration::At(tomorrow));
        let mut out = Vec::new();
        show(&mut out, std::slice::from_ref(&kept), now).expect("shown");
        let text = String::from_utf8(out).expect("text");
        assert_eq!(
            text,
            "TOKEN    EXPIRES                USAGES                   DESCRIPTION\n\
             abcdef   2030-01-02T00:00:00Z   authentication,signing   for the lab\n"
        );
        assert!(!text.contains("0123456789abcdef"), "the secret half");

        assert_eq!(end(Duration::ZERO, now).expect("never"), None);
        assert!(end(Duration::MAX, now).is_err());
        let for_ever = KeptToken::of(&secret(&token, None, "")).expect("a token");
        assert_eq!(for_ever.expiration, Expiration::Never);
    }

    #[test]
    fn tokens_are_named_by_either() {
        assert_eq!(id("abcdef"), Ok("abcdef".to_owned()));
        assert_eq!(id("abcdef.0123456789abcdef"), Ok("abcdef".to_owned()));
        assert!(id("abc").is_err());
    }
}
