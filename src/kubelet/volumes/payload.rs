//! Which files a volume of API data consists of. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Pod};

use super::objects::Data;
use crate::kubelet::container::{self, Facts};

/// Files by relative path.
pub type Payload = BTreeMap<String, File>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub content: Vec<u8>,
    pub mode: u32,
    pub owner: Option<u32>,
}

/// For files that do not say.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    pub mode: u32,
    pub owner: Option<u32>,
}

impl Defaults {
    pub fn new(mode: Option<i32>, owner: Option<i64>) -> Self {
        Self {
            mode: mode.map_or(0o644, permissions),
            owner: owner.and_then(|id| u32::try_from(id).ok()),
        }
    }

    fn file(self, content: Vec<u8>, mode: Option<i32>, owner: Option<i64>) -> File {
        File {
            content,
            mode: mode.map_or(self.mode, permissions),
            owner: owner.and_then(|id| u32::try_from(id).ok()).or(self.owner),
        }
    }
}

fn permissions(mode: i32) -> u32 {
    mode.unsigned_abs() & 0o777
}

/// All keys as files, or only the listed ones.
pub fn keyed(
    data: &Data,
    items: Option<&[KeyToPath]>,
    defaults: Defaults,
    optional: bool,
    what: &str,
) -> Result<Payload, String> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        let all = data.iter().map(|(key, content)| {
            let file = defaults.file(content.clone(), None, None);
            Ok((checked(key)?, file))
        });
        return all.collect();
    };
    let mut files = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(content) => {
                let file = defaults.file(content.clone(), item.mode, item.user);
                files.insert(checked(&item.path)?, file);
            }
            None if optional => {}
            None => return Err(format!("references non-existent {what} key: {}", item.key)),
        }
    }
    Ok(files)
}

/// The pod's own fields as files.
pub fn downward(
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    defaults: Defaults,
    facts: &Facts,
) -> Result<Payload, String> {
    let mut files = Payload::new();
    for item in items.unwrap_or_default() {
        let text = if let Some(field) = &item.field_ref {
            container::field(pod, &field.field_path)
                .ok_or_else(|| format!("unsupported fieldPath: {}", field.field_path))?
        } else if let Some(selector) = &item.resource_field_ref {
            let name = selector.container_name.as_deref().unwrap_or_default();
            let of = container::find_container(pod, name)
                .ok_or_else(|| format!("container {name} not found"))?;
            container::resource_field(of, selector, facts)?
        } else {
            continue;
        };
        let file = defaults.file(text.into_bytes(), item.mode, item.user);
        files.insert(checked(&item.path)?, file);
    }
    Ok(files)
}

/// A path that stays inside and cannot be taken for the writer's own names.
pub fn checked(path: &str) -> Result<String, String> {
    let wrong = |why: &str| Err(format!("invalid path {path:?}: {why}"));
    if path.is_empty() || path.starts_with('/') {
        return wrong("must be relative");
    }
    if path.split('/').any(|part| part == "..") {
        return wrong("must not contain '..'");
    }
    if path.starts_with("..") {
        return wrong("must not start with '..'");
    }
    let parts: Vec<_> = path
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    match parts.is_empty() {
        true => wrong("names no file"),
        false => Ok(parts.join("/")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_and_paths() {
        let data: Data = [("a".into(), b"1".to_vec()), ("b".into(), b"2".to_vec())].into();
        let run = |items: serde_json::Value, optional| {
            let items: Vec<KeyToPath> = serde_json::from_value(items).unwrap();
            let files = keyed(
                &data,
                Some(&items),
                Defaults::new(Some(0o400), None),
                optional,
                "secret",
            )?;
            let shown = files
                .iter()
                .map(|(path, file)| format!("{path} {:o}", file.mode));
            Ok::<_, String>(shown.collect::<Vec<_>>().join(", "))
        };
        for (items, optional, want) in [
            (json!([]), false, Ok("a 400, b 400")),
            (
                json!([{"key": "a", "path": "x//./y", "mode": 0o600}]),
                false,
                Ok("x/y 600"),
            ),
            (json!([{"key": "c", "path": "x"}]), true, Ok("")),
            (
                json!([{"key": "c", "path": "x"}]),
                false,
                Err("references non-existent secret key: c"),
            ),
            (
                json!([{"key": "a", "path": "../x"}]),
                false,
                Err("invalid path \"../x\": must not contain '..'"),
            ),
            (
                json!([{"key": "a", "path": "..data"}]),
                false,
                Err("invalid path \"..data\": must not start with '..'"),
            ),
            (
                json!([{"key": "a", "path": "/x"}]),
                false,
                Err("invalid path \"/x\": must be relative"),
            ),
        ] {
            let got = run(items.clone(), optional);
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{items}");
        }
    }
}
