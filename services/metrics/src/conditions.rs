//! Conditions of a query, with their values as parameters.

use clickhouse::{Client, query::Query};
use job::{Id, time::Millis};
use nats::query::RunFilter;
use serde::Serialize;

/// Conditions on the table `t` that must all hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conditions {
    sql: Vec<&'static str>,
    parameters: Vec<(&'static str, Parameter)>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
enum Parameter {
    Text(String),
    Texts(Vec<String>),
    Integer(i64),
    Unsigned(u64),
    Unsigneds(Vec<u64>),
}

impl Conditions {
    /// Those of a filter, without its times.
    pub fn of_runs(filter: &RunFilter) -> Self {
        let mut conditions = Self::default();
        if let Some(projects) = &filter.projects {
            let projects: Vec<String> = projects.iter().map(ToString::to_string).collect();
            let sql = "t.project IN {projects:Array(String)}";
            conditions = conditions.texts(sql, "projects", projects);
        }
        for (sql, name, value) in [
            ("t.type = {job_type:String}", "job_type", &filter.job_type),
            ("t.model = {model:String}", "model", &filter.model),
            ("t.worker = {processor:String}", "processor", &filter.processor),
        ] {
            if let Some(value) = value {
                conditions = conditions.text(sql, name, value.clone());
            }
        }
        match filter.error_group {
            Some(group) => conditions.unsigned("t.error_group = {group:UInt64}", "group", group),
            None => conditions,
        }
    }

    /// Those of a dimension of the sums by group: of these projects, if the dimension is theirs.
    pub fn of_dimension(dimension: &str, projects: Option<&[Id]>) -> Self {
        let conditions = Self::default();
        let sql = "t.dimension = {dimension:String}";
        let conditions = conditions.text(sql, "dimension", dimension.to_owned());
        let Some(projects) = projects else { return conditions };
        let projects = projects.iter().map(ToString::to_string).collect();
        conditions.texts("t.value IN {projects:Array(String)}", "projects", projects)
    }

    /// Adds one without a value.
    #[must_use]
    pub fn and(mut self, sql: &'static str) -> Self {
        self.sql.push(sql);
        self
    }

    /// Adds one that compares with a text.
    #[must_use]
    pub fn text(self, sql: &'static str, name: &'static str, value: String) -> Self {
        self.and(sql).bind(name, Parameter::Text(value))
    }

    /// Adds one that compares with texts.
    #[must_use]
    pub fn texts(self, sql: &'static str, name: &'static str, values: Vec<String>) -> Self {
        self.and(sql).bind(name, Parameter::Texts(values))
    }

    /// Adds one that compares with a number.
    #[must_use]
    pub fn unsigned(self, sql: &'static str, name: &'static str, value: u64) -> Self {
        self.and(sql).bind(name, Parameter::Unsigned(value))
    }

    /// Adds one that compares with a time, in ms since 1970.
    #[must_use]
    pub fn millis(self, sql: &'static str, name: &'static str, value: Millis) -> Self {
        self.and(sql).bind(name, Parameter::Integer(value))
    }

    /// Sets a text that other parts of the query use, too.
    #[must_use]
    pub fn with_text(self, name: &'static str, value: String) -> Self {
        self.bind(name, Parameter::Text(value))
    }

    /// Sets texts that other parts of the query use, too.
    #[must_use]
    pub fn with_texts(self, name: &'static str, values: Vec<String>) -> Self {
        self.bind(name, Parameter::Texts(values))
    }

    /// Sets a number that other parts of the query use, too.
    #[must_use]
    pub fn with_unsigned(self, name: &'static str, value: u64) -> Self {
        self.bind(name, Parameter::Unsigned(value))
    }

    /// Sets numbers that other parts of the query use, too.
    #[must_use]
    pub fn with_unsigneds(self, name: &'static str, values: Vec<u64>) -> Self {
        self.bind(name, Parameter::Unsigneds(values))
    }

    /// All conditions, for a WHERE clause.
    pub fn sql(&self) -> String {
        if self.sql.is_empty() { "true".to_owned() } else { self.sql.join(" AND ") }
    }

    /// A query with the parameters.
    pub fn query(&self, client: &Client, sql: &str) -> Query {
        let query = client.query_raw(sql);
        self.parameters.iter().fold(query, |query, (name, value)| query.param(name, value))
    }

    fn bind(mut self, name: &'static str, value: Parameter) -> Self {
        self.parameters.push((name, value));
        self
    }
}
