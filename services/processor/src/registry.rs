//! Which handler runs which kind of work.

use std::{collections::HashMap, sync::Arc};

use job::Kind;

use crate::handler::{AnyHandler, Handler};

/// Handlers by the kind of work they take.
#[derive(Clone, Default)]
pub struct Registry {
    handlers: HashMap<Kind, Arc<dyn AnyHandler>>,
}

impl Registry {
    /// A registry without handlers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `handler` run work of this kind, in the place of the one that did.
    #[must_use]
    pub fn with(mut self, kind: Kind, handler: impl Handler) -> Self {
        self.handlers.insert(kind, Arc::new(handler));
        self
    }

    /// The kinds that have a handler, in a fixed order.
    pub fn kinds(&self) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|kind| self.handlers.contains_key(kind)).collect()
    }

    pub(crate) fn handler(&self, kind: Kind) -> Option<Arc<dyn AnyHandler>> {
        self.handlers.get(&kind).cloned()
    }
}
