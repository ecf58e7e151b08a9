//! End-to-end scenarios: each starts `jobmesh dev` on a folder and ports of its own, and speaks
//! to it as its users do.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod analytics;
mod answers;
mod api;
mod api_document;
mod audit;
mod backup;
mod bad_input;
mod browser;
mod bulk;
mod clickhouse_away;
mod clients;
mod cluster;
mod command_line;
mod connections;
mod console;
mod dev;
mod disk;
mod expiry;
mod failures;
mod following;
mod handlers;
mod health;
mod hostile_messages;
mod http;
mod identities;
mod key_changes;
mod key_limits;
mod keys;
mod keys_cli;
mod kills;
mod later;
mod lists;
mod mesh;
mod nats_away;
mod nats_login;
mod numbers;
mod operations;
mod power_cut;
mod projects;
mod prometheus;
mod quota;
mod reading;
mod receiver;
mod replicas;
mod results;
mod schedules;
mod services;
mod small_bucket;
mod stopping;
mod tls;
mod traces;
mod webhooks;
mod whole_life;
