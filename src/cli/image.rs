//! `vetch image`: pull, import, list and remove images of this node.
//!
//! A running daemon does the work, since it holds the list of images; without one it is done here.

use std::{io::Write, path::PathBuf, process::ExitCode, sync::Arc};

use clap::{Args, Subcommand};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use super::{
    Error, block_on,
    control::{self, ImageLine, Outcome, Request},
    need_root,
    paths::{Paths, RootArg},
    registries::Registries,
};
use crate::{
    logging,
    runtime::image::{Credentials, Image, Images, Keyring},
};

/// Pull, import, list and remove this node's images
#[derive(Args)]
pub struct ImageCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Fetch an image from its registry
    Pull {
        image: String,
        #[arg(long, requires = "password")]
        username: Option<String>,
        /// `-` reads it from standard input
        #[arg(long, requires = "username")]
        password: Option<String>,
        #[command(flatten)]
        root: RootArg,
    },
    /// Take images from a docker-archive or an OCI layout, under the names in it
    Import {
        file: PathBuf,
        #[command(flatten)]
        root: RootArg,
    },
    /// List the images
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        root: RootArg,
    },
    /// Remove images by name or id
    Rm {
        #[arg(required = true)]
        images: Vec<String>,
        #[command(flatten)]
        root: RootArg,
    },
}

impl ImageCommand {
    pub fn run(self) -> Result<ExitCode, Error> {
        need_root("image")?;
        let mut out = std::io::stdout();
        block_on(async {
            match self.verb {
                Verb::Pull {
                    image,
                    username,
                    password,
                    root,
                } => {
                    let password = password.map(read_password).transpose()?;
                    let request = Request::ImagePull {
                        reference: image,
                        username,
                        password,
                    };
                    show_added(&mut out, ask(&root.paths()?, request).await?)?;
                }
                Verb::Import { file, root } => {
                    let path = std::path::absolute(file)?;
                    show_added(
                        &mut out,
                        ask(&root.paths()?, Request::ImageImport { path }).await?,
                    )?;
                }
                Verb::Ls { root } => {
                    show_list(&mut out, &ask(&root.paths()?, Request::ImageList).await?)?
                }
                Verb::Rm { images, root } => {
                    for reference in images {
                        ask(
                            &root.paths()?,
                            Request::ImageRemove {
                                reference: reference.clone(),
                            },
                        )
                        .await?;
                        writeln!(out, "removed {reference}")?;
                    }
                }
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn read_password(typed: String) -> std::io::Result<String> {
    if typed != "-" {
        return Ok(typed);
    }
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line.trim_end_matches('\n').to_owned())
}

async fn ask(paths: &Paths, request: Request) -> Result<Vec<ImageLine>, Error> {
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let shown = bar.clone();
    let progress = move |done, total| {
        shown.set_length(total);
        shown.set_position(done);
    };
    let outcome = match control::call(&paths.control_socket(), &request, progress.clone()).await? {
        Some(outcome) => outcome,
        None => {
            crate::cli::daemon::install_crypto();
            let settings = Registries::default().settings(paths)?;
            let images = Images::open(paths.state.clone(), paths.runtime(), settings).await?;
            handle(&images, request, Arc::new(progress)).await?
        }
    };
    bar.finish_and_clear();
    match outcome {
        Outcome::Images(images) => Ok(images),
        Outcome::Nothing => Ok(Vec::new()),
    }
}

/// Carries an image request out; also what the daemon does with one.
pub async fn handle(
    images: &Images,
    request: Request,
    progress: crate::runtime::image::Progress,
) -> Result<Outcome, Error> {
    let found = match request {
        Request::ImagePull {
            reference,
            username,
            password,
        } => {
            let keyring = match (username, password) {
                (Some(username), Some(password)) => {
                    Keyring::given(Credentials::Basic { username, password })
                }
                _ => Keyring::default(),
            };
            let source = images.source(&reference).await?;
            let pulled = images.pull(&source, keyring, Some(progress));
            let pulled = pulled.await?;
            let tried = pulled.tried().to_vec();
            let image = line(pulled.image());
            return Ok(Outcome::Images(vec![ImageLine { tried, ..image }]));
        }
        Request::ImageImport { path } => images.import(&path, Some(progress)).await?,
        Request::ImageList => {
            let found = images.list();
            let lines = found.iter().map(|image| line(image));
            return Ok(Outcome::Images(lines.collect()));
        }
        Request::ImageRemove { reference } => {
            images.remove(&reference).await?;
            Vec::new()
        }
        Request::Stop { .. } => return Err("not an image request".into()),
        #[cfg(feature = "test-hooks")]
        Request::Provoke { .. } => return Err("not an image request".into()),
    };
    Ok(Outcome::Images(found.iter().map(line).collect()))
}

fn line(image: &Image) -> ImageLine {
    let names = if image.names.is_empty() {
        image.digests.clone()
    } else {
        image.names.clone()
    };
    ImageLine {
        id: image.id.clone(),
        names,
        size_bytes: image.size_bytes,
        tried: Vec::new(),
    }
}

fn show_added(out: &mut impl Write, images: Vec<ImageLine>) -> std::io::Result<()> {
    for image in images {
        for line in &image.tried {
            logging::note(format_args!("{line}"));
        }
        let name = image.names.first().unwrap_or(&image.id);
        writeln!(
            out,
            "{name}  {}  {}",
            short_id(&image.id),
            HumanBytes(image.size_bytes)
        )?;
    }
    Ok(())
}

fn show_list(out: &mut impl Write, images: &[ImageLine]) -> std::io::Result<()> {
    writeln!(out, "{:<60} {:<14} SIZE", "IMAGE", "ID")?;
    for image in images {
        let none = ["<none>".to_owned()];
        let names = if image.names.is_empty() {
            none.as_slice()
        } else {
            &image.names
        };
        for name in names {
            writeln!(
                out,
                "{name:<60} {:<14} {}",
                short_id(&image.id),
                HumanBytes(image.size_bytes)
            )?;
        }
    }
    Ok(())
}

fn short_id(id: &str) -> &str {
    let hex = id.trim_start_matches("sha256:");
    hex.get(..12).unwrap_or(hex)
}
