//! The schema that a result must follow. Endpoints that ignore `response_format` do not get through.

use boon::{Compiler, SchemaIndex, Schemas, UrlLoader};
use job::{Json, bounds::truncate};
use serde_json::Value;

/// What a schema is called while it is compiled.
const URL: &str = "https://schema.invalid/options";
/// How much of a violation an error shows, in bytes.
const SHOWN_BYTES_MAX: usize = 1_000;

/// A JSON schema, compiled.
pub(super) struct Schema {
    schemas: Schemas,
    index: SchemaIndex,
}

/// Loads nothing: a schema comes from a tenant, and may not name files or servers.
struct NoLoader;

impl UrlLoader for NoLoader {
    fn load(&self, url: &str) -> Result<Value, Box<dyn std::error::Error>> {
        Err(format!("{url} is not loaded: a schema must be whole").into())
    }
}

impl Schema {
    /// Compiles a schema.
    ///
    /// # Errors
    /// Why it is no schema.
    pub fn compile(schema: &Json) -> Result<Self, String> {
        let refused = |why: String| format!("options.schema is no JSON schema: {why}");
        let value =
            serde_json::from_str(schema.get()).map_err(|error| refused(error.to_string()))?;
        let mut compiler = Compiler::new();
        compiler.use_loader(Box::new(NoLoader));
        let mut schemas = Schemas::new();
        let added = compiler.add_resource(URL, value);
        added.map_err(|error| refused(format!("{error:#}")))?;
        let index = compiler.compile(URL, &mut schemas);
        let index = index.map_err(|error| refused(format!("{error:#}")))?;
        Ok(Self { schemas, index })
    }

    /// Checks a result.
    ///
    /// # Errors
    /// How it violates the schema.
    pub fn check(&self, result: &Json) -> Result<(), String> {
        let value: Value = serde_json::from_str(result.get())
            .map_err(|error| format!("cannot be checked against options.schema: {error}"))?;
        self.schemas.validate(&value, self.index).map_err(|error| {
            let violations = error.to_string().replace('\n', "; ");
            format!("violates options.schema: {}", truncate(&violations, SHOWN_BYTES_MAX))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_loads_nothing_from_elsewhere() {
        for url in ["file:///etc/passwd", "https://example.com/schema.json"] {
            let schema = Json::of(&serde_json::json!({ "$ref": url })).expect("it is JSON");
            let error = Schema::compile(&schema).err().expect("it is refused");
            assert!(error.contains("options.schema"), "{error}");
        }
    }
}
