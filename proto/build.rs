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

const NULLABLE: &str = "protobuf.nullable=true";

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

/// Types that are owned as one: what the API marks with `structType=atomic`, which the table of
/// facts leaves out.
const ATOMIC_TYPES: [&str; 27] = [
    "io.k8s.api.admissionregistration.v1.MatchResources",
    "io.k8s.api.admissionregistration.v1.NamedRuleWithOperations",
    "io.k8s.api.admissionregistration.v1.ParamKind",
    "io.k8s.api.admissionregistration.v1.ParamRef",
    "io.k8s.api.admissionregistration.v1.Variable",
    "io.k8s.api.autoscaling.v1.CrossVersionObjectReference",
    "io.k8s.api.core.v1.ConfigMapKeySelector",
    "io.k8s.api.core.v1.EndpointAddress",
    "io.k8s.api.core.v1.EndpointPort",
    "io.k8s.api.core.v1.FileKeySelector",
    "io.k8s.api.core.v1.LocalObjectReference",
    "io.k8s.api.core.v1.NodeSelector",
    "io.k8s.api.core.v1.NodeSelectorTerm",
    "io.k8s.api.core.v1.ObjectFieldSelector",
    "io.k8s.api.core.v1.ObjectReference",
    "io.k8s.api.core.v1.ResourceFieldSelector",
    "io.k8s.api.core.v1.ScopeSelector",
    "io.k8s.api.core.v1.SecretKeySelector",
    "io.k8s.api.core.v1.SecretReference",
    "io.k8s.api.core.v1.TopologySelectorTerm",
    "io.k8s.api.core.v1.TypedLocalObjectReference",
    "io.k8s.api.discovery.v1.EndpointPort",
    "io.k8s.api.networking.v1.ServiceBackendPort",
    "io.k8s.api.rbac.v1.RoleRef",
    "io.k8s.api.rbac.v1.Subject",
    "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector",
    "io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference",
];

/// Members whose type is not atomic, but who are: `mapType=atomic`.
const ATOMIC_FIELDS: [(&str, &str); 4] = [
    ("io.k8s.api.core.v1.PodSpec", "nodeSelector"),
    ("io.k8s.api.core.v1.ReplicationControllerSpec", "selector"),
    ("io.k8s.api.core.v1.ServiceSpec", "selector"),
    ("io.k8s.api.node.v1.Scheduling", "nodeSelector"),
];

impl Generator<'_> {
    fn emit(&self, out: &mut String, name: &str, fact: &Value) {
        let mut fields = Vec::new();
        self.fields(name, fact, &mut fields);
        // Values that are only the known ones are no enumeration: clients would refuse others.
        let marked = strings(&fact["marks"]).iter().any(|mark| mark == "enum");
        let enumeration: Vec<String> = if marked {
            strings(&fact["enum"])
        } else {
            Vec::new()
        };
        let alias = match fact["alias"].as_str() {
            Some(alias) => format!("Some({})", self.shape(name, alias).0),
            None => "None".to_owned(),
        };
        let atomic = ATOMIC_TYPES.contains(&name);
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
            _ if ATOMIC_FIELDS.contains(&(owner, &*text("n"))) => "ListType::Atomic",
            _ => "ListType::Unset",
        };
        let patch = text("ps");
        format!(
            "Field {{ name: {:?}, number: {}, shape: {shape}, pointer: {pointer}, inline: {}, omit_empty: {}, optional: {}, required: {}, list: {list}, list_keys: &{:?}, merge: {}, retain_keys: {}, merge_key: {:?}, default: {:?} }},\n",
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
            default(&field["def"]),
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
            "JSON" => "Shape::Any",
            "JSONSchemaPropsOrBool" => "Shape::SchemaOrBool",
            "JSONSchemaPropsOrArray" => "Shape::SchemaOrArray",
            "JSONSchemaPropsOrStringArray" => "Shape::SchemaOrStrings",
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
            // A nullable list is a message around it on the wire.
            Some(alias) if strings(&fact["marks"]).contains(&NULLABLE.to_owned()) => (
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

/// The declared default as JSON text; references to Go constants are not JSON and are left out.
fn default(declared: &Value) -> String {
    let text = match declared {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if serde_json::from_str::<Value>(&text).is_ok() {
        text
    } else {
        String::new()
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
