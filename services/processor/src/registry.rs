//! Which handler runs which work: the one that its project names, else the one of its kind.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use job::{Id, JobType};
use nats::wire::Work;

use crate::handler::{AnyHandler, Handler};

/// Handlers by the kind of work they take.
#[derive(Clone, Default)]
pub struct Registry {
    handlers: HashMap<JobType, Arc<dyn AnyHandler>>,
    named: BTreeMap<String, Arc<dyn AnyHandler>>,
}

impl Registry {
    /// A registry without handlers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers `handler` for this job type, and replaces the previous one.
    #[must_use]
    pub fn with(mut self, job_type: JobType, handler: impl Handler) -> Self {
        self.handlers.insert(job_type, Arc::new(handler));
        self
    }

    /// The kinds that have a handler, in a fixed order.
    pub fn job_types(&self) -> Vec<JobType> {
        JobType::EVERY.into_iter().filter(|job_type| self.handlers.contains_key(job_type)).collect()
    }

    /// The names of the handlers that projects can choose, in order.
    pub(crate) fn handler_names(&self) -> Vec<Id> {
        self.named.keys().map(|name| name.as_str().into()).collect()
    }

    /// Lets `handler` run the work of projects that name it.
    #[must_use]
    pub fn named(mut self, name: &str, handler: impl Handler) -> Self {
        self.named.insert(name.to_owned(), Arc::new(handler));
        self
    }

    /// Registers the handler of this name for this job type as well; `None` if there is none.
    #[must_use]
    pub fn also(mut self, job_type: JobType, name: &str) -> Option<Self> {
        let handler = self.named.get(name)?.clone();
        self.handlers.insert(job_type, handler);
        Some(self)
    }

    /// The handler of this work.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn handler(&self, work: &Work) -> Result<Arc<dyn AnyHandler>, String> {
        let found = match &work.handler {
            Some(name) => self.named.get(&**name),
            None => self.handlers.get(&work.job_type),
        };
        found.cloned().ok_or_else(|| match &work.handler {
            Some(name) => {
                let known: Vec<&str> = self.named.keys().map(String::as_str).collect();
                format!("this processor has no handler {name:?}; it has {}", known.join(", "))
            }
            None => format!("this processor has no handler for {}", work.job_type.name()),
        })
    }
}
