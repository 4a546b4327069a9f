//! The API server's shared state, and how the parts inside it reach objects.

use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::{
    admission::Plugin,
    aggregation::Remotes,
    cache::{self, Cache, Object},
    objects::{Lookup, Named, Objects},
    registry::{Resource, custom::Rows},
    request::User,
    special::Special,
    status::{Reason, Status},
    verbs::{self, Missing},
    write::Writing,
};
use crate::store::Guard;

pub struct ApiServer {
    pub cache: Arc<Cache>,
    pub rows: Rows,
    pub remotes: Remotes,
    plugins: OnceLock<Vec<Arc<dyn Plugin>>>,
    specials: OnceLock<Vec<Arc<dyn Special>>>,
}

/// Writes from inside that meet a conflict look again at most so often.
const RETRIES: usize = 16;

impl ApiServer {
    pub fn new(cache: Arc<Cache>) -> Self {
        Self {
            cache,
            rows: Rows::default(),
            remotes: Remotes::default(),
            plugins: OnceLock::new(),
            specials: OnceLock::new(),
        }
    }

    /// The chain of admission; set once, since plugins need the server to exist.
    pub fn set_plugins(&self, plugins: Vec<Arc<dyn Plugin>>) {
        let _ = self.plugins.set(plugins);
    }

    pub fn set_specials(&self, specials: Vec<Arc<dyn Special>>) {
        let _ = self.specials.set(specials);
    }

    pub fn plugins(&self) -> &[Arc<dyn Plugin>] {
        self.plugins.get().map_or(&[], Vec::as_slice)
    }

    pub fn special(&self, row: &Resource, subresource: Option<&str>) -> Option<&Arc<dyn Special>> {
        self.specials
            .get()?
            .iter()
            .find(|special| special.serves(row, subresource))
    }

    fn row_of(&self, plural: &str) -> Result<&'static Resource, Status> {
        self.rows
            .by_plural(plural)
            .ok_or_else(|| Status::internal(format!("no resource {plural}")))
    }

    fn writing(&self, user: &User, target: Named<'_>) -> Result<Writing, Status> {
        let row = self.row_of(target.plural)?;
        Ok(Writing {
            user: user.clone(),
            subresource: (!target.subresource.is_empty()).then(|| target.subresource.to_owned()),
            ..Writing::own(row, target.namespace, target.name)
        })
    }

    /// An object in the form of `row`, as fresh as the last finished write.
    pub async fn read(
        &self,
        row: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Object>, Status> {
        self.cache.caught_up().await;
        let found = self
            .cache
            .kind(row.storage)
            .get(&cache::key(row.storage, namespace, name))
            .ok_or_else(|| Status::not_found(row.group, row.plural, name))?;
        self.shown(row, found).await
    }

    /// An object from the store in the form of the row's version.
    pub async fn shown(&self, row: &Resource, object: Arc<Object>) -> Result<Arc<Object>, Status> {
        if row.custom.is_none() && row.convert.is_none() {
            return Ok(object);
        }
        let mut shown = self.shown_all(row, vec![object]).await?;
        shown
            .pop()
            .ok_or_else(|| Status::internal("a conversion made nothing"))
    }

    pub async fn shown_all(
        &self,
        row: &Resource,
        objects: Vec<Arc<Object>>,
    ) -> Result<Vec<Arc<Object>>, Status> {
        if let Some(custom) = row.custom {
            return custom.shown_all(self, row, objects).await;
        }
        let Some(convert) = row.convert else {
            return Ok(objects);
        };
        let each = |object: Arc<Object>| {
            let mut value = (*object.value()).clone();
            (convert.from_stored)(&mut value);
            Arc::new(object.converted(value))
        };
        Ok(objects.into_iter().map(each).collect())
    }
}

#[async_trait::async_trait]
impl Lookup for ApiServer {
    async fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let object = self
            .read(self.row_of(plural).ok()?, namespace, name)
            .await
            .ok()?;
        Some(object.value().clone())
    }

    async fn list(&self, plural: &str, namespace: &str) -> Vec<Arc<Value>> {
        let Ok(row) = self.row_of(plural) else {
            return Vec::new();
        };
        self.cache.caught_up().await;
        let prefix = cache::key(row.storage, namespace, "");
        let objects = self.cache.kind(row.storage).list(&prefix, "");
        match self.shown_all(row, objects).await {
            Ok(objects) => objects
                .iter()
                .map(|object| object.value().clone())
                .collect(),
            Err(status) => {
                tracing::warn!(%status, plural, "objects cannot be read");
                Vec::new()
            }
        }
    }

    fn row(&self, plural: &str) -> Option<&'static Resource> {
        self.rows.by_plural(plural)
    }

    fn row_of_kind(&self, group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
        let rows = self.rows.all();
        rows.into_iter()
            .find(|row| row.is_kind(group, version, kind))
    }

    fn rows_of(&self, storage: &str) -> Vec<&'static Resource> {
        let mut rows = self.rows.all();
        rows.retain(|row| row.storage == storage);
        rows
    }

    fn changed(&self, plural: &str) -> u64 {
        self.row_of(plural)
            .map_or(0, |row| self.cache.kind(row.storage).last_change())
    }
}

#[async_trait::async_trait]
impl Objects for ApiServer {
    async fn create(
        &self,
        user: &User,
        plural: &str,
        namespace: &str,
        object: Value,
    ) -> Result<Value, Status> {
        let target = Named {
            plural,
            subresource: "",
            namespace,
            name: "",
        };
        let written = verbs::create(
            self,
            &self.writing(user, target)?,
            object,
            Vec::new(),
            Vec::new(),
        )
        .await?;
        Ok((*written.object.value()).clone())
    }

    async fn update(
        &self,
        user: &User,
        target: Named<'_>,
        trusted: bool,
        change: &(dyn for<'v> Fn(&'v mut Value) -> Result<(), Status> + Send + Sync),
    ) -> Result<Value, Status> {
        let writing = self.writing(user, target)?;
        for _ in 0..RETRIES {
            let old = self
                .read(writing.row, target.namespace, target.name)
                .await?;
            let mut new = (*old.value()).clone();
            change(&mut new)?;
            let result = match trusted {
                true => self.store_changed(&writing, new, &old, Vec::new()).await,
                false => verbs::update(self, &writing, new, Vec::new(), Missing::Refuse).await,
            };
            match result {
                Err(status) if status.reason == Reason::Conflict => {}
                result => return result.map(|written| (*written.object.value()).clone()),
            }
        }
        Err(Status::conflict(
            writing.row.group,
            writing.row.plural,
            target.name,
            "too many others are writing it",
        ))
    }

    async fn delete(
        &self,
        user: &User,
        target: Named<'_>,
        options: Value,
        guards: Vec<Guard>,
    ) -> Result<Value, Status> {
        let writing = Writing {
            guards,
            ..self.writing(user, target)?
        };
        let deleted = verbs::delete(self, &writing, &options).await?;
        Ok((*deleted.object().value()).clone())
    }
}
