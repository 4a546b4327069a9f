//! Turns the facts of `schema-v1.37.jsonl` into static Rust tables, so that the program parses
//! nothing at start.

use std::{collections::BTreeMap, env, fmt::Write as _, fs, path::Path};

use serde_json::Value;

/// Packages as the declarations abbreviate them; others are found beside the type itself.
const PACKAGES: &[(&str, &str)] = &[
    ("metav1", "io.k8s.apimachinery.pkg.apis.meta.v1"),
    ("corev1", "io.k8s.api.core.v1"),
    ("apiv1", "io.k8s.api.core.v1"),
    ("batchv1", "io.k8s.api.batch.v1"),
    ("authenticationv1", "io.k8s.api.authentication.v1"),
    ("authorizationv1", "io.k8s.api.authorization.v1"),
    ("schedulingv1alpha3", "io.k8s.api.scheduling.v1alpha3"),
];

/// Types of apimachinery that the facts name but do not hold.
const MISSING: &str = r#"{"type":"io.k8s.apimachinery.pkg.apis.meta.v1.GroupVersionKind","fields":[{"n":"group","t":"string","pb":1},{"n":"version","t":"string","pb":2},{"n":"kind","t":"string","pb":3}]}
{"type":"io.k8s.apimachinery.pkg.apis.meta.v1.GroupVersionResource","fields":[{"n":"group","t":"string","pb":1},{"n":"version","t":"string","pb":2},{"n":"resource","t":"string","pb":3}]}
{"type":"io.k8s.apimachinery.pkg.apis.meta.v1.GroupResource","fields":[{"n":"group","t":"string","pb":1},{"n":"resource","t":"string","pb":2}]}"#;

fn main() {
    println!("cargo::rerun-if-changed=schema-v1.37.jsonl");
    println!("cargo::rerun-if-changed=build.rs");
    let text = fs::read_to_string("schema-v1.37.jsonl").expect("the schema lies beside the crate");
    let types: BTreeMap<String, Value> = text
        .lines()
        .chain(MISSING.lines())
        .map(|line| serde_json::from_str::<Value>(line).expect("a JSON object a line"))
        .map(|fact| (fact["type"].as_str().expect("a type").to_owned(), fact))
        .collect();
    let generator = Generator {
        index: types
            .keys()
            .enumerate()
            .map(|(i, name)| (name.clone(), i))
            .collect(),
        types: &types,
    };
    let mut out = String::from("static TYPES: &[Type] = &[\n");
    for (name, fact) in &types {
        generator.emit(&mut out, name, fact);
    }
    out.push_str("];\n");
    let target = Path::new(&env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("types.rs");
    fs::write(target, out).expect("write the tables");
}

struct Generator<'a> {
    types: &'a BTreeMap<String, Value>,
    index: BTreeMap<String, usize>,
}

impl Generator<'_> {
    fn emit(&self, out: &mut String, name: &str, fact: &Value) {
        let mut fields = Vec::new();
        self.fields(name, fact, &mut fields);
        let enumeration: Vec<String> = strings(&fact["enum"]);
        let alias = match fact["alias"].as_str() {
            Some(alias) => format!("Some({})", self.shape(name, alias).0),
            None => "None".to_owned(),
        };
        let atomic = fact["st"].as_str() == Some("atomic") || fact["mt"].as_str() == Some("atomic");
        let _ = writeln!(
            out,
            "Type {{ name: {name:?}, alias: {alias}, values: &{enumeration:?}, atomic: {atomic}, fields: &["
        );
        for field in fields {
            out.push_str(&field);
        }
        out.push_str("] },\n");
    }

    fn fields(&self, name: &str, fact: &Value, out: &mut Vec<String>) {
        for field in fact["fields"].as_array().into_iter().flatten() {
            let declared = field["t"].as_str().unwrap_or_default();
            // An inlined message that has a number of its own is a message of its own on the wire.
            if field["inline"] == true && field["pb"].is_null() {
                let target = self.resolve(name, declared.trim_start_matches('*'));
                match &target {
                    Some(target) if target.ends_with(".TypeMeta") => {
                        for kind in ["apiVersion", "kind"] {
                            out.push(format!("Field {{ name: {kind:?}, number: 0, shape: Shape::String, omit_empty: true, ..Field::NONE }},\n"));
                        }
                    }
                    Some(target) => self.fields(target, &self.types[target], out),
                    None => panic!("{name}: inlined {declared} is unknown"),
                }
                continue;
            }
            out.push(self.field(name, field));
        }
    }

    fn field(&self, owner: &str, field: &Value) -> String {
        let declared = field["t"].as_str().unwrap_or_default();
        let (shape, pointer) = self.shape(owner, declared);
        let flag = |key: &str| field[key] == true;
        let text = |key: &str| field[key].as_str().unwrap_or_default().to_owned();
        let list = match (
            field["lt"].as_str(),
            field["mt"].as_str(),
            field["st"].as_str(),
        ) {
            (Some("map"), ..) => "ListType::Map",
            (Some("set"), ..) => "ListType::Set",
            (Some("atomic"), ..) | (_, Some("atomic"), _) | (_, _, Some("atomic")) => {
                "ListType::Atomic"
            }
            _ => "ListType::Unset",
        };
        let patch = text("ps");
        format!(
            "Field {{ name: {:?}, number: {}, shape: {shape}, pointer: {pointer}, inline: {}, omit_empty: {}, optional: {}, required: {}, list: {list}, list_keys: &{:?}, merge: {}, retain_keys: {}, merge_key: {:?} }},\n",
            field["n"].as_str().unwrap_or_default(),
            field["pb"].as_u64().unwrap_or(0),
            flag("inline"),
            flag("omit"),
            flag("opt"),
            flag("req"),
            strings(&field["lk"]),
            patch.split(',').any(|part| part == "merge"),
            patch.split(',').any(|part| part == "retainKeys"),
            text("pk"),
        )
    }

    /// The shape of a declared Go type, and whether it is a pointer.
    fn shape(&self, owner: &str, declared: &str) -> (String, bool) {
        if let Some(inner) = declared.strip_prefix('*') {
            return (self.shape(owner, inner).0, true);
        }
        if declared == "[]byte" {
            return ("Shape::Bytes".to_owned(), false);
        }
        if let Some(inner) = declared.strip_prefix("[]") {
            return (
                format!("Shape::List(&{})", self.shape(owner, inner).0),
                false,
            );
        }
        if let Some((_, value)) = declared
            .strip_prefix("map[")
            .and_then(|rest| rest.split_once(']'))
        {
            return (
                format!("Shape::Map(&{})", self.shape(owner, value).0),
                false,
            );
        }
        let plain = declared.rsplit_once('.').map_or(declared, |(_, name)| name);
        let shape = match plain {
            "string" | "UID" | "NodeName" | "NamespacedName" => "Shape::String",
            "bool" => "Shape::Bool",
            "int" | "int32" | "int64" | "uint32" | "uint64" | "uint8" | "uint16" => match plain {
                "int64" | "uint64" | "int" => "Shape::Int64",
                _ => "Shape::Int32",
            },
            "float64" | "float32" => "Shape::Double",
            "Time" => "Shape::Time",
            "MicroTime" => "Shape::MicroTime",
            "Duration" => "Shape::Duration",
            "Quantity" => "Shape::Quantity",
            "IntOrString" => "Shape::IntOrString",
            "RawExtension" => "Shape::Raw",
            "Object" => "Shape::Raw",
            "FieldsV1" => "Shape::FieldsV1",
            "JSON"
            | "JSONSchemaPropsOrBool"
            | "JSONSchemaPropsOrArray"
            | "JSONSchemaPropsOrStringArray" => "Shape::Any",
            "ResourceList" => return ("Shape::Map(&Shape::Quantity)".to_owned(), false),
            _ => "",
        };
        if !shape.is_empty() {
            return (shape.to_owned(), false);
        }
        let target = self
            .resolve(owner, declared)
            .unwrap_or_else(|| panic!("{owner}: type {declared} is unknown"));
        let fact = &self.types[&target];
        match fact["alias"].as_str() {
            Some("string") => (format!("Shape::Enum({})", self.index[&target]), false),
            // A list or map with a name is a message around it on the wire.
            Some(alias) if alias.starts_with("[]") => (
                format!("Shape::NamedList(&{})", self.shape(&target, &alias[2..]).0),
                false,
            ),
            Some(alias) => self.shape(&target, alias),
            None => (format!("Shape::Message({})", self.index[&target]), false),
        }
    }

    fn resolve(&self, owner: &str, declared: &str) -> Option<String> {
        let (package, _) = owner.rsplit_once('.')?;
        let candidates = match declared.split_once('.') {
            None => vec![format!("{package}.{declared}")],
            Some((short, name)) => {
                let known = PACKAGES
                    .iter()
                    .find(|(abbreviation, _)| *abbreviation == short)
                    .map(|(_, package)| *package);
                let group = package.rsplit_once('.').map_or(package, |(group, _)| group);
                // `v1.X` is core's, or the same group's first version.
                known
                    .map(str::to_owned)
                    .into_iter()
                    .chain([
                        format!("{group}.{short}"),
                        format!("io.k8s.api.core.{short}"),
                        "io.k8s.apimachinery.pkg.apis.meta.v1".to_owned(),
                    ])
                    .map(|package| format!("{package}.{name}"))
                    .collect()
            }
        };
        let found = candidates
            .into_iter()
            .find(|name| self.types.contains_key(name));
        // Some declarations take a name from another version of their group, or from a package
        // that they import without a prefix.
        let group = package.rsplit_once('.').map_or(package, |(group, _)| group);
        let plain = declared.rsplit_once('.').map_or(declared, |(_, name)| name);
        let ends = |name: &&String| name.rsplit_once('.').is_some_and(|(_, last)| last == plain);
        found
            .or_else(|| {
                self.types
                    .keys()
                    .filter(ends)
                    .find(|name| name.starts_with(group))
                    .cloned()
            })
            .or_else(|| self.types.keys().find(ends).cloned())
    }
}

fn strings(value: &Value) -> Vec<String> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|text| text.as_str().map(str::to_owned))
        .collect()
}
