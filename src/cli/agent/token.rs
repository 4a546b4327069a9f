//! Where the token to join with comes from: typed, in a file, or in the environment. The last two keep it off
//! the command line, which every user of the machine can read.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::bootstrap_token::{BootstrapToken, Malformed};

/// The variable that may hold a token.
const VARIABLE: &str = "VETCH_TOKEN";
/// A file that holds a token and perhaps a line's end is no larger.
const MAX_BYTES: u64 = 1024;

#[derive(Clone, Debug, clap::Args)]
#[group(required = false, multiple = false)]
pub struct TokenArgs {
    /// What `vetch token create` prints on the server; needed to join, not to start again [default: the variable VETCH_TOKEN]
    #[arg(long, value_name = "TOKEN")]
    token: Option<BootstrapToken>,
    /// A file with the token, read when it is needed
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Why there is no token to be had from where it was said to be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "--token-file {path}: it cannot be read; write into it what `vetch token create` prints on the server"
    )]
    Unreadable { path: PathBuf, source: io::Error },
    #[error(
        "--token-file {path} holds no token; write into it what `vetch token create` prints on the server"
    )]
    NoToken { path: PathBuf, source: Malformed },
    #[error("{VARIABLE} is no token; set it to what `vetch token create` prints on the server")]
    Variable(#[source] Malformed),
}

/// A token, or where it is. Files are read only when somebody needs it: a machine that has joined does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    None,
    Typed(BootstrapToken),
    File(PathBuf),
    Variable(Result<BootstrapToken, Malformed>),
}

impl TokenArgs {
    pub fn source(self) -> TokenSource {
        chosen(self, std::env::var_os(VARIABLE))
    }
}

/// What is typed counts more than the environment, which may be another's.
fn chosen(typed: TokenArgs, variable: Option<OsString>) -> TokenSource {
    let variable = variable.filter(|value| !value.is_empty());
    match (typed.token, typed.token_file, variable) {
        (Some(token), _, _) => TokenSource::Typed(token),
        (None, Some(path), _) => TokenSource::File(path),
        (None, None, Some(value)) => TokenSource::Variable(value.to_string_lossy().trim().parse()),
        (None, None, None) => TokenSource::None,
    }
}

impl TokenSource {
    /// The token; `None` where nobody has given one.
    pub fn read(&self) -> Result<Option<BootstrapToken>, Error> {
        match self {
            Self::None => Ok(None),
            Self::Typed(token) => Ok(Some(token.clone())),
            Self::File(path) => in_file(path).map(Some),
            Self::Variable(token) => token.clone().map(Some).map_err(Error::Variable),
        }
    }
}

fn in_file(path: &Path) -> Result<BootstrapToken, Error> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes))
        .map_err(|source| Error::Unreadable {
            path: path.to_owned(),
            source,
        })?;
    let token = String::from_utf8_lossy(&bytes).trim().parse();
    token.map_err(|source| Error::NoToken {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "abcdef.0123456789abcdef";

    fn args(token: Option<&str>, file: Option<&Path>) -> TokenArgs {
        TokenArgs {
            token: token.map(|token| token.parse().expect("a token")),
            token_file: file.map(Path::to_owned),
        }
    }

    #[test]
    fn which_source_counts() {
        let other = "ghijkl.0123456789abcdef";
        let file = Path::new("/f");
        for (typed, variable, want) in [
            (args(None, None), None, "None"),
            (args(None, None), Some(""), "None"),
            (
                args(Some(TOKEN), None),
                Some(other),
                "Typed(BootstrapToken(abcdef))",
            ),
            (args(None, Some(file)), Some(other), "File(\"/f\")"),
            (
                args(None, None),
                Some(other),
                "Variable(Ok(BootstrapToken(ghijkl)))",
            ),
        ] {
            let source = chosen(typed, variable.map(Into::into));
            assert_eq!(format!("{source:?}"), want);
        }
    }

    #[test]
    fn a_file_holds_one_token() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("token");
        let read = || TokenSource::File(path.clone()).read();
        let missing = read().expect_err("nothing is there").to_string();
        assert!(
            missing.contains("--token-file") && missing.contains("vetch token create"),
            "{missing}"
        );
        for (text, want) in [
            (TOKEN, true),
            ("abcdef.0123456789abcdef\n", true),
            (" abcdef.0123456789abcdef \r\n", true),
            ("", false),
            ("abcdef", false),
            ("abcdef.0123456789abcdef\nghijkl.0123456789abcdef\n", false),
        ] {
            std::fs::write(&path, text).expect("written");
            let found = read();
            assert_eq!(found.is_ok(), want, "{text:?}");
            if let Err(error) = found {
                assert!(matches!(error, Error::NoToken { .. }), "{error}");
            }
        }
        // A disk's worth of bytes is not read.
        std::fs::write(&path, vec![b' '; 1 << 20]).expect("written");
        assert!(read().is_err());
        let variable = |value: &str| chosen(args(None, None), Some(value.into())).read();
        assert!(variable("abcdef.0123456789abcdef\n").is_ok_and(|token| token.is_some()));
        assert!(matches!(variable("x"), Err(Error::Variable(_))));
    }
}
