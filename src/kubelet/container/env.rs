//! Environment variables: where they come from, which one wins, and what they refer to. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, Pod};

use super::{Environment, Facts, Referenced, Refused, expand::expand, fields, pod};
use crate::runtime::image::Image;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Names of config maps and secrets that the container's environment needs.
pub fn referenced(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut config_maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for source in container.env_from.iter().flatten() {
        config_maps.extend(source.config_map_ref.as_ref().map(|one| one.name.clone()));
        secrets.extend(source.secret_ref.as_ref().map(|one| one.name.clone()));
    }
    for source in container
        .env
        .iter()
        .flatten()
        .filter_map(|one| one.value_from.as_ref())
    {
        config_maps.extend(
            source
                .config_map_key_ref
                .as_ref()
                .map(|one| one.name.clone()),
        );
        secrets.extend(source.secret_key_ref.as_ref().map(|one| one.name.clone()));
    }
    let listed = |names: BTreeSet<String>| names.into_iter().collect();
    (listed(config_maps), listed(secrets))
}

/// Service variables < `envFrom` < `env`, with `$(VAR)` expanded. The image's own environment is
/// put below these by [`super::container_config`]. The pod's status answers `status.podIP` and so
/// on: it must be filled in before.
pub fn environment(
    pod: &Pod,
    container: &Container,
    services: &BTreeMap<String, String>,
    referenced: &Referenced,
    facts: &Facts,
) -> Result<Environment, Refused> {
    let mut own = Variables::default();
    let mut skipped = Vec::new();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (kind, objects, name, optional) = if let Some(from) = &source.config_map_ref {
            (
                "configmap",
                &referenced.config_maps,
                &from.name,
                from.optional,
            )
        } else if let Some(from) = &source.secret_ref {
            ("secret", &referenced.secrets, &from.name, from.optional)
        } else {
            continue;
        };
        let Some(data) = find(objects, kind, name, optional)? else {
            continue;
        };
        for (key, value) in data {
            let variable = format!("{prefix}{key}");
            match valid_name(&variable) {
                true => own.put(variable, utf8(value, kind, namespace, name, key)?),
                false => skipped.push(variable),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let known = |name: &str| own.get(name).or_else(|| services.get(name)).cloned();
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) if !value.is_empty() => Some(expand(value, known)),
            (_, Some(source)) => from_source(
                pod, container, namespace, variable, source, referenced, facts,
            )?,
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            own.put(variable.name.clone(), value);
        }
    }
    let mut variables: Vec<_> = services
        .iter()
        .filter(|(name, _)| own.get(name).is_none())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    variables.extend(own.0);
    Ok(Environment { variables, skipped })
}

/// The value of one variable; `None` if it is optional and absent.
fn from_source(
    pod: &Pod,
    container: &Container,
    namespace: &str,
    variable: &EnvVar,
    source: &EnvVarSource,
    referenced: &Referenced,
    facts: &Facts,
) -> Result<Option<String>, Refused> {
    if let Some(field) = &source.field_ref {
        let path = &field.field_path;
        return fields::field(pod, path)
            .map(Some)
            .ok_or_else(|| Refused::config(format!("unsupported fieldPath: {path}")));
    }
    if let Some(selector) = &source.resource_field_ref {
        let named = selector
            .container_name
            .as_ref()
            .filter(|name| !name.is_empty());
        let of = match named {
            None => Some(container),
            Some(name) => super::pod::find_container(pod, name),
        };
        let of = of.ok_or_else(|| {
            Refused::config(format!(
                "container {} not found",
                named.map_or("", String::as_str)
            ))
        })?;
        return fields::resource_field(of, selector, facts)
            .map(Some)
            .map_err(Refused::config);
    }
    if let Some(file) = &source.file_key_ref {
        return from_file(variable, file, referenced);
    }
    let (kind, shown, objects, name, key, optional) = if let Some(from) = &source.config_map_key_ref
    {
        let objects = &referenced.config_maps;
        (
            "configmap",
            "ConfigMap",
            objects,
            &from.name,
            &from.key,
            from.optional,
        )
    } else if let Some(from) = &source.secret_key_ref {
        let objects = &referenced.secrets;
        (
            "secret",
            "Secret",
            objects,
            &from.name,
            &from.key,
            from.optional,
        )
    } else {
        return Ok(Some(String::new()));
    };
    let Some(data) = find(objects, kind, name, optional)? else {
        return Ok(None);
    };
    match data.get(key) {
        Some(value) => utf8(value, kind, namespace, name, key).map(Some),
        None if optional == Some(true) => Ok(None),
        None => Err(Refused::config(format!(
            "couldn't find key {key} in {shown} {namespace}/{name}"
        ))),
    }
}

/// A variable from a file of `NAME='value'` lines that an init container wrote.
fn from_file(
    variable: &EnvVar,
    file: &k8s_openapi::api::core::v1::FileKeySelector,
    referenced: &Referenced,
) -> Result<Option<String>, Refused> {
    let optional = file.optional == Some(true);
    let wrong = |what: String| {
        Refused::config(format!(
            "variable {}: {what} (volume {:?}, file {:?})",
            variable.name, file.volume_name, file.path
        ))
    };
    let place = (file.volume_name.clone(), file.path.clone());
    let Some(content) = referenced.files.get(&place).cloned().flatten() else {
        return match optional {
            true => Ok(None),
            false => Err(wrong("the file does not exist".into())),
        };
    };
    let text = String::from_utf8(content).map_err(|_| wrong("the file is not UTF-8".into()))?;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let parsed = line.split_once('=').and_then(|(name, value)| {
            let value = value.trim().strip_prefix('\'')?.strip_suffix('\'')?;
            Some((name.trim(), value))
        });
        let (name, value) = parsed.ok_or_else(|| {
            wrong(format!(
                "line {} is not of the form NAME='value'",
                number + 1
            ))
        })?;
        if name == file.key {
            return Ok(Some(value.to_owned()));
        }
    }
    match optional {
        true => Ok(None),
        false => Err(wrong(format!("the key {:?} is not there", file.key))),
    }
}

/// The object's data; `None` if it is optional and absent.
fn find<'a>(
    objects: &'a BTreeMap<String, Option<BTreeMap<String, Vec<u8>>>>,
    kind: &str,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<&'a BTreeMap<String, Vec<u8>>>, Refused> {
    match objects.get(name) {
        Some(Some(data)) => Ok(Some(data)),
        _ if optional == Some(true) => Ok(None),
        _ => Err(Refused::config(format!("{kind} {name:?} not found"))),
    }
}

/// OCI variables are text; passing on something else than the secret holds would be worse than
/// saying so.
fn utf8(
    value: &[u8],
    kind: &str,
    namespace: &str,
    name: &str,
    key: &str,
) -> Result<String, Refused> {
    String::from_utf8(value.to_vec()).map_err(|_| {
        Refused::config(format!(
            "key {key} of {kind} {namespace}/{name} is not UTF-8 and cannot be a variable"
        ))
    })
}

/// Any printable ASCII but the equals sign.
fn valid_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| matches!(byte, b' '..=b'~') && byte != b'=')
}

/// All the process gets, lowest first: image, HOSTNAME, TERM, then what the pod says. HOME comes
/// from the image's passwd, which the runtime reads.
pub fn process_environment(
    pod: &Pod,
    container: &Container,
    image: &Image,
    env: &[(String, String)],
) -> Vec<String> {
    let mut all = Variables::default();
    all.put("PATH".into(), PATH.into());
    let config = image.config.config().as_ref();
    for line in config
        .and_then(|config| config.env().as_ref())
        .into_iter()
        .flatten()
    {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        all.put(name.into(), value.into());
    }
    if container.tty == Some(true) {
        all.put("TERM".into(), "xterm".into());
    }
    all.put("HOSTNAME".into(), pod::shown_hostname(pod));
    for (name, value) in env {
        all.put(name.clone(), value.clone());
    }
    let lines = all
        .0
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"));
    lines.collect()
}

/// Variables in the order in which they were first given, each once.
#[derive(Default)]
struct Variables(Vec<(String, String)>);

impl Variables {
    fn get(&self, name: &str) -> Option<&String> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value)
    }

    fn put(&mut self, name: String, value: String) {
        match self.0.iter_mut().find(|(key, _)| *key == name) {
            Some(entry) => entry.1 = value,
            None => self.0.push((name, value)),
        }
    }
}
