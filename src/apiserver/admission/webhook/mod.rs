//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: programs of users that change or
//! refuse what is written.
//!
//! `rules.rs` says who is asked, `review.rs` what, [`crate::apiserver::callout`] calls. The
//! configurations are compiled when they have changed and not with each request.
//! Always true:
//! - Configurations themselves are never shown to a webhook: nobody can lock himself in.
//! - Mutating webhooks are asked one after the other, by configuration's name; validating ones all
//!   at once, and the first refusal in that order counts.

mod review;
mod rules;

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use serde_json::Value;

use self::{
    review::{Shown, Verdict},
    rules::Asked,
};
use super::{Operation, Plugin, Request};
use crate::apiserver::{
    callout::Caller,
    objects::Lookup,
    patch::{self, PatchType},
    registry::{
        Resource, ScalePaths, Subresource, custom,
        kinds::{
            groups::admissionregistration::{REVIEW_VERSIONS, is_configuration},
            selector,
            value::{items, number, text, texts},
        },
    },
    status::Status,
    verbs, write,
};

const MUTATING: &str = "mutatingwebhookconfigurations.admissionregistration.k8s.io";
const VALIDATING: &str = "validatingwebhookconfigurations.admissionregistration.k8s.io";

/// What a webhook that cannot be asked means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnFailure {
    Refuse,
    GoOn,
}

/// One webhook, ready to be asked.
struct Hook {
    /// Configuration and name: what tells it from others.
    id: String,
    name: String,
    rules: Vec<Value>,
    /// Whether other versions of a rule's kind count too.
    equivalent: bool,
    namespaces: Value,
    objects: Value,
    on_failure: OnFailure,
    timeout: Duration,
    version: &'static str,
    /// Asked again when others have changed the object after it.
    again: bool,
    caller: Caller,
}

#[derive(Default)]
struct Hooks {
    /// The configurations' last changes when this was made.
    of: (u64, u64),
    mutating: Vec<Hook>,
    validating: Vec<Hook>,
}

/// Who of the mutating webhooks is to be asked in the second round of one request.
#[derive(Debug, Default)]
pub struct Rounds {
    second: bool,
    /// Were asked, and want to be again if something changes after them.
    eligible: BTreeSet<String>,
    due: BTreeSet<String>,
    /// What the first round left.
    left: Option<Value>,
}

#[derive(Default)]
pub struct Webhooks {
    compiled: RwLock<Arc<Hooks>>,
}

impl Webhooks {
    /// The webhooks of now. Without configurations this is two counters read.
    async fn hooks(&self, lookup: &dyn Lookup) -> Arc<Hooks> {
        let of = (lookup.changed(MUTATING), lookup.changed(VALIDATING));
        let held = self
            .compiled
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if held.of == of {
            return held;
        }
        let hooks = Arc::new(Hooks {
            of,
            mutating: compile(&lookup.list(MUTATING, "").await),
            validating: compile(&lookup.list(VALIDATING, "").await),
        });
        *self
            .compiled
            .write()
            .unwrap_or_else(PoisonError::into_inner) = hooks.clone();
        hooks
    }
}

fn compile(configurations: &[Arc<Value>]) -> Vec<Hook> {
    let mut ordered: Vec<&Arc<Value>> = configurations.iter().collect();
    ordered.sort_by_key(|one| text(one, "metadata.name").to_owned());
    ordered
        .into_iter()
        .flat_map(|one| {
            let configuration = text(one, "metadata.name");
            items(one, "webhooks")
                .iter()
                .map(move |hook| compiled(configuration, hook))
        })
        .collect()
}

fn compiled(configuration: &str, hook: &Value) -> Hook {
    let name = text(hook, "name");
    let versions = texts(hook, "admissionReviewVersions");
    let version = versions
        .iter()
        .find_map(|wanted| REVIEW_VERSIONS.into_iter().find(|known| known == wanted));
    let seconds = number(hook, "timeoutSeconds").unwrap_or(10);
    Hook {
        id: format!("{configuration}/{name}"),
        name: name.to_owned(),
        rules: items(hook, "rules").to_vec(),
        equivalent: text(hook, "matchPolicy") != "Exact",
        namespaces: hook["namespaceSelector"].clone(),
        objects: hook["objectSelector"].clone(),
        on_failure: match text(hook, "failurePolicy") {
            "Ignore" => OnFailure::GoOn,
            _ => OnFailure::Refuse,
        },
        timeout: Duration::from_secs(u64::try_from(seconds).unwrap_or(10)),
        version: version.unwrap_or("v1"),
        again: text(hook, "reinvocationPolicy") == "IfNeeded",
        caller: Caller::new(&hook["clientConfig"]),
    }
}

impl Hook {
    /// The row in whose version this webhook wants the request; `None`: it does not want it.
    async fn wants<'a>(
        &self,
        request: &Request<'a>,
        object: Option<&Value>,
        lookup: &dyn Lookup,
    ) -> Option<&'a Resource> {
        let asked = |row| Asked {
            operation: request.operation,
            row,
            subresource: request.subresource,
        };
        let fits = |row| self.rules.iter().any(|rule| asked(row).fits(rule));
        let row = match fits(request.resource) {
            true => request.resource,
            false if self.equivalent => lookup
                .rows_of(request.resource.storage)
                .into_iter()
                .find(|row| fits(row))?,
            false => return None,
        };
        let labels = |object: Option<&'a Value>| object.map(|one| one["metadata"].get("labels"));
        let chosen = selector::is_empty(&self.objects)
            || object.is_some_and(|object| {
                selector::matches(&self.objects, object["metadata"].get("labels"))
            })
            || labels(request.old).is_some_and(|labels| selector::matches(&self.objects, labels));
        let here = chosen && self.in_namespace(request, object, lookup).await;
        here.then_some(row)
    }

    async fn in_namespace(
        &self,
        request: &Request<'_>,
        object: Option<&Value>,
        lookup: &dyn Lookup,
    ) -> bool {
        if selector::is_empty(&self.namespaces) {
            return true;
        }
        if request.resource.plural == "namespaces" && request.resource.group.is_empty() {
            let own = object.or(request.old);
            let labels = own.and_then(|own| own["metadata"].get("labels"));
            return selector::matches(&self.namespaces, labels);
        }
        if request.namespace.is_empty() {
            return true;
        }
        let namespace = lookup.get("namespaces", "", request.namespace).await;
        let labels = namespace
            .as_ref()
            .and_then(|one| one["metadata"].get("labels"));
        selector::matches(&self.namespaces, labels)
    }

    /// Asks; `Ok(None)`: it could not be asked, and that does not matter.
    async fn ask(
        &self,
        request: &Request<'_>,
        shown: &Shown<'_>,
        lookup: &dyn Lookup,
    ) -> Result<Option<Verdict>, Status> {
        let uid = uuid::Uuid::new_v4().to_string();
        let question = review::question(request, shown, self.version, &uid);
        let seconds = Some(self.timeout.as_secs());
        let answer = self.caller.post(lookup, &question, self.timeout, seconds);
        let verdict = match answer.await {
            Ok(answer) => review::answer(&answer, &self.name, self.version, &uid),
            Err(error) => Err(format!("failed to call webhook: {error}")),
        };
        match verdict {
            Ok(verdict) => Ok(Some(verdict)),
            Err(why) => self.failed(&why).map(|()| None),
        }
    }

    fn failed(&self, why: &str) -> Result<(), Status> {
        let what = format!("failed calling webhook {:?}: {why}", self.name);
        match self.on_failure {
            OnFailure::Refuse => Err(Status::internal(what)),
            OnFailure::GoOn => {
                tracing::warn!(webhook = self.id, "{what}; going on without it");
                Ok(())
            }
        }
    }
}

/// A write through the scale endpoint is shown as a Scale.
fn scale_paths(request: &Request<'_>) -> Option<&'static ScalePaths> {
    let asked = request.subresource == Some("scale");
    let mut all = request.resource.subresources.iter().filter(|_| asked);
    all.find_map(|subresource| match subresource {
        Subresource::Scale(paths) => Some(*paths),
        _ => None,
    })
}

/// The objects of a request in the version of `row`.
struct View {
    object: Option<Value>,
    old: Option<Value>,
}

impl View {
    async fn new(
        request: &Request<'_>,
        row: &Resource,
        object: Option<&Value>,
        lookup: &dyn Lookup,
    ) -> Result<Option<Self>, Status> {
        if let Some(paths) = scale_paths(request) {
            return Ok(Some(Self {
                object: object.map(|object| verbs::scale_of(paths, object)),
                old: request.old.map(|old| verbs::scale_of(paths, old)),
            }));
        }
        if std::ptr::eq(row, request.resource) || request.operation == Operation::Connect {
            return Ok(None);
        }
        let mut view = Self {
            object: None,
            old: None,
        };
        for (from, to) in [(object, &mut view.object), (request.old, &mut view.old)] {
            if let Some(from) = from {
                *to = Some(custom::converted(lookup, request.resource, row, from).await?);
            }
        }
        Ok(Some(view))
    }

    fn shown<'a>(
        view: Option<&'a Self>,
        row: &'a Resource,
        object: Option<&'a Value>,
        old: Option<&'a Value>,
    ) -> Shown<'a> {
        match view {
            Some(view) => Shown {
                row,
                object: view.object.as_ref(),
                old: view.old.as_ref(),
            },
            None => Shown { row, object, old },
        }
    }
}

/// Lets every mutating webhook that is due change the object.
async fn mutate_all(
    hooks: &[Hook],
    request: &mut Request<'_>,
    mut object: Option<&mut Value>,
    lookup: &dyn Lookup,
) -> Result<(), Status> {
    if request.round.webhooks.second {
        let rounds = &mut request.round.webhooks;
        if rounds.left.as_ref() != object.as_deref() {
            rounds.due.append(&mut rounds.eligible);
        }
    }
    let mut changed = false;
    for hook in hooks {
        let rounds = &request.round.webhooks;
        if rounds.second && !rounds.due.contains(&hook.id) {
            continue;
        }
        let Some(row) = hook.wants(request, object.as_deref(), lookup).await else {
            continue;
        };
        let view = View::new(request, row, object.as_deref(), lookup).await?;
        let shown = View::shown(view.as_ref(), row, object.as_deref(), request.old);
        let Some(verdict) = hook.ask(request, &shown, lookup).await? else {
            continue;
        };
        request.warnings.extend(verdict.warnings);
        if let Some(status) = verdict.refused {
            return Err(*status);
        }
        let patched = match (&verdict.patch, shown.object, request.operation) {
            (Some(patch), Some(before), Operation::Create | Operation::Update) => {
                let whole = object.as_deref();
                patched(hook, request, row, (before, whole), patch, lookup).await?
            }
            _ => None,
        };
        let different = patched.filter(|new| Some(new) != object.as_deref());
        if let (Some(new), Some(object)) = (different, object.as_deref_mut()) {
            *object = new;
            changed = true;
            let rounds = &mut request.round.webhooks;
            rounds.due.append(&mut rounds.eligible);
        }
        if hook.again {
            request.round.webhooks.eligible.insert(hook.id.clone());
        }
    }
    let rounds = &mut request.round.webhooks;
    if changed && !rounds.second {
        rounds.second = true;
        rounds.left = object.as_deref().cloned();
        request.round.again = true;
    }
    Ok(())
}

/// The object after a webhook's patch, in the request's version, with nothing unknown in it.
/// `before` is what the webhook was shown, `whole` what it was made of.
async fn patched(
    hook: &Hook,
    request: &Request<'_>,
    row: &Resource,
    (before, whole): (&Value, Option<&Value>),
    patch: &[u8],
    lookup: &dyn Lookup,
) -> Result<Option<Value>, Status> {
    let after = async {
        let mut new = patch::apply(PatchType::Json, None, before, patch)?;
        if let (Some(paths), Some(whole)) = (scale_paths(request), whole) {
            let mut scaled = whole.clone();
            let replicas = new["spec"]["replicas"].as_i64().unwrap_or(0);
            verbs::put_replicas(paths, &mut scaled, replicas);
            return Ok(scaled);
        }
        if !std::ptr::eq(row, request.resource) {
            new = custom::converted(lookup, row, request.resource, &new).await?;
        }
        write::fit(request.resource, &mut new)?;
        request.resource.default_values(&mut new)?;
        Ok::<_, Status>(new)
    };
    match after.await {
        Ok(new) => Ok(Some(new)),
        Err(status) => hook.failed(&status.message).map(|()| None),
    }
}

/// Asks every validating webhook at once.
async fn validate_all(
    hooks: &[Hook],
    request: &mut Request<'_>,
    object: Option<&Value>,
    lookup: &dyn Lookup,
) -> Result<(), Status> {
    let asked = {
        let request = &*request;
        let each = hooks.iter().map(|hook| async move {
            let Some(row) = hook.wants(request, object, lookup).await else {
                return Ok(None);
            };
            let view = View::new(request, row, object, lookup).await?;
            let shown = View::shown(view.as_ref(), row, object, request.old);
            hook.ask(request, &shown, lookup).await
        });
        futures::future::join_all(each).await
    };
    let mut refusal = Ok(());
    for verdict in asked {
        match verdict {
            Ok(None) => {}
            Ok(Some(verdict)) => {
                request.warnings.extend(verdict.warnings);
                if let Some(status) = verdict.refused {
                    refusal = refusal.and(Err(*status));
                }
            }
            Err(status) => refusal = refusal.and(Err(status)),
        }
    }
    refusal
}

#[async_trait::async_trait]
impl Plugin for Webhooks {
    fn name(&self) -> &'static str {
        "AdmissionWebhook"
    }

    fn is_policy(&self) -> bool {
        true
    }

    async fn mutate(
        &self,
        request: &mut Request<'_>,
        object: &mut Value,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        let hooks = self.hooks(lookup).await;
        if hooks.mutating.is_empty() || is_configuration(request.resource) {
            return Ok(());
        }
        mutate_all(&hooks.mutating, request, Some(object), lookup).await
    }

    async fn validate(
        &self,
        request: &mut Request<'_>,
        object: Option<&Value>,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        let hooks = self.hooks(lookup).await;
        if is_configuration(request.resource) {
            return Ok(());
        }
        // A deletion has nothing to change, but those who change may refuse.
        if request.operation == Operation::Delete && !hooks.mutating.is_empty() {
            mutate_all(&hooks.mutating, request, None, lookup).await?;
        }
        if hooks.validating.is_empty() {
            return Ok(());
        }
        validate_all(&hooks.validating, request, object, lookup).await
    }
}
