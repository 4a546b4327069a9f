//! Program, arguments and working directory. Pure.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Container;

use super::{Refused, expand::expand};
use crate::runtime::image::Image;

/// The pod's command replaces the image's entry point and its arguments; the pod's arguments alone
/// replace only the arguments.
pub fn argv(
    container: &Container,
    image: &Image,
    env: &[(String, String)],
) -> Result<Vec<String>, Refused> {
    let value = |name: &str| {
        let found = env.iter().rev().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone())
    };
    let expanded = |words: &Option<Vec<String>>| -> Vec<String> {
        let words = words.as_deref().unwrap_or_default();
        words.iter().map(|word| expand(word, value)).collect()
    };
    let of_image = |words: &Option<Vec<String>>| words.clone().unwrap_or_default();
    let config = image.config.config().clone().unwrap_or_default();
    let (command, args) = (expanded(&container.command), expanded(&container.args));
    let argv = match (command.is_empty(), args.is_empty()) {
        (false, _) => [command, args].concat(),
        (true, false) => [of_image(config.entrypoint()), args].concat(),
        (true, true) => [of_image(config.entrypoint()), of_image(config.cmd())].concat(),
    };
    match argv.first().is_none_or(String::is_empty) {
        true => Err(Refused::create("no command specified")),
        false => Ok(argv),
    }
}

pub fn working_dir(container: &Container, image: &Image) -> PathBuf {
    let given = |dir: &Option<String>| dir.clone().filter(|dir| !dir.is_empty());
    let of_image = || given(image.config.config().as_ref()?.working_dir());
    let dir = given(&container.working_dir).or_else(of_image);
    let dir = PathBuf::from(dir.unwrap_or_default());
    PathBuf::from("/").join(dir)
}
