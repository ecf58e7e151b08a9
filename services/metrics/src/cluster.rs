//! The same tables on each server of a ClickHouse cluster, replicated.

use std::{fmt, str::FromStr};

/// The name of a ClickHouse cluster with one shard, whose servers all keep all rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterName(String);

impl ClusterName {
    /// The longest name, in bytes.
    const BYTES_MAX: usize = 128;

    /// The statement that does on all servers what this one does on its own, with tables that replicate their rows.
    /// Blocks are then deduplicated by all of them together.
    pub(crate) fn statement(&self, statement: &str) -> String {
        let kind = [
            "CREATE DATABASE IF NOT EXISTS ",
            "CREATE TABLE IF NOT EXISTS ",
            "CREATE MATERIALIZED VIEW IF NOT EXISTS ",
            "ALTER TABLE ",
        ];
        let kind = kind.into_iter().find(|kind| statement.starts_with(kind));
        let (start, rest) = statement.split_at(kind.map_or(0, str::len));
        let (name, rest) = rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len()));
        let on_cluster =
            if kind.is_some() { format!(" ON CLUSTER `{self}`") } else { String::new() };
        let rest = rest
            .replace("ENGINE = ", "ENGINE = Replicated")
            .replace("non_replicated_deduplication_window", "replicated_deduplication_window");
        format!("{start}{name}{on_cluster}{rest}")
    }
}

impl FromStr for ClusterName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if (1..=Self::BYTES_MAX).contains(&text.len()) && text.chars().all(plain) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "a cluster has a name of 1 to {} characters of A-Z, a-z, 0-9, - and _",
            Self::BYTES_MAX
        ))
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_for_all_servers_and_tables_replicate() {
        let cluster: ClusterName = "main".parse().expect("a name");
        for (one, all) in [
            (
                "CREATE DATABASE IF NOT EXISTS `d`",
                "CREATE DATABASE IF NOT EXISTS `d` ON CLUSTER `main`",
            ),
            (
                "CREATE TABLE IF NOT EXISTS t\n(a UInt8)\nENGINE = MergeTree\nORDER BY a\nSETTINGS non_replicated_deduplication_window = 1",
                "CREATE TABLE IF NOT EXISTS t ON CLUSTER `main`\n(a UInt8)\nENGINE = ReplicatedMergeTree\nORDER BY a\nSETTINGS replicated_deduplication_window = 1",
            ),
            ("ALTER TABLE v MODIFY QUERY", "ALTER TABLE v ON CLUSTER `main` MODIFY QUERY"),
            ("SELECT 1", "SELECT 1"),
        ] {
            assert_eq!(cluster.statement(one), all);
        }
        assert!("a`b".parse::<ClusterName>().is_err() && "".parse::<ClusterName>().is_err());
    }
}
