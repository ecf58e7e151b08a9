//! `upgrade --check`: whether this program can join the mesh that runs, and what to replace in which order.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use job::version;
use nats::{Broker, presence::Presence, topology, topology::Sizes};
use service::{NatsLogin, NatsUrl};

use super::show;

/// The status to exit with if this program cannot join.
const CANNOT_JOIN: u8 = 2;
/// The order in which services are replaced: those first that read what the others write.
const ORDER: [&str; 4] = ["state", "metrics", "processor", "edge"];

/// Compares this program with the services that run.
#[derive(Debug, Args)]
pub(crate) struct Upgrade {
    /// Change nothing: an operator replaces the services.
    #[arg(long, required = true)]
    check: bool,
    /// The URL of NATS; the login is that of an operator, who may do everything.
    #[arg(long, env = "JOBMESH_NATS_URL", hide_env_values = true)]
    nats_url: NatsUrl,
    #[command(flatten)]
    login: NatsLogin,
}

impl Upgrade {
    /// Shows what runs. The status to exit with is 0 if this program can join, and 2 if it cannot.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let access = self.login.access(self.nats_url.reveal())?;
        let broker = Broker::connect_with(&access, "jobmesh-upgrade").await?;
        let account = broker.js.query_account().await;
        account.context("is the login of NATS that of an operator, who may do everything?")?;
        let streams = topology::check_all(&broker, Sizes::default()).await;
        let presences = broker.presences().await?;
        let rows = presences.iter().map(|presence| {
            let Presence { service, instance, version, message_version } = presence.clone();
            let message_version = message_version
                .map_or("unknown".to_owned(), |message_version| message_version.to_string());
            [service, instance, version, message_version]
        });
        if !presences.is_empty() {
            let table = show::table(["service", "instance", "jobmesh", "messages"], rows.collect());
            show::print(table.trim_end())?;
        }
        let found = match streams {
            Err(topology::Error::Absent { .. }) if presences.is_empty() => {
                Err("There is no mesh: this account of NATS has no streams of Jobmesh.".to_owned())
            }
            // State of this program makes what an earlier version does not have.
            Err(topology::Error::Absent { .. }) => verdict(&presences),
            Err(error) => Err(format!("This program cannot use the streams: {error}")),
            Ok(()) => verdict(&presences),
        };
        let code = if found.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(CANNOT_JOIN) };
        let (Ok(text) | Err(text)) = found;
        show::print(&text)?;
        Ok(code)
    }
}

/// What to do, or why this program cannot join.
fn verdict(presences: &[Presence]) -> Result<String, String> {
    let own = format!(
        "This program (jobmesh {}, messages of version {})",
        service::VERSION.as_str(),
        version::KNOWN
    );
    if presences.is_empty() {
        return Err(
            "No service answers: start the mesh, or name its NATS by --nats-url.".to_owned()
        );
    }
    let newest = presences.iter().filter_map(|presence| presence.message_version).max();
    if let Some(newest) = newest.filter(|newest| *newest > version::KNOWN) {
        return Err(format!(
            "{own} is older than the mesh: it would pause at the first message of version {newest}. Use a newer one."
        ));
    }
    let is_older = |presence: &&Presence| {
        presence.message_version.is_none_or(|message_version| message_version < version::KNOWN)
    };
    let older = presences.iter().filter(is_older);
    let older: Vec<&str> = older.map(|presence| presence.service.as_str()).collect();
    let order = ORDER.into_iter().filter(|service| older.contains(service));
    let order = order.collect::<Vec<_>>().join(", ");
    let text = match order.is_empty() {
        true => format!("{own} knows all that answers, and nothing that answers is older."),
        false => format!(
            "{own} can run beside these. Replace services in this order, one process at a time: {order}. Make a backup before."
        ),
    };
    // An edge of an earlier version does not answer.
    let edges = presences.iter().filter(|presence| presence.service == "edge").count();
    let silent =
        if edges == 0 { " No edge answered: those of earlier versions do not." } else { "" };
    Ok(text + silent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presence(service: &str, message_version: Option<u32>) -> Presence {
        let (service, instance) = (service.to_owned(), service.to_owned());
        Presence { service, instance, version: "0.1.0".to_owned(), message_version }
    }

    #[test]
    fn older_services_are_replaced_in_order_and_newer_ones_refuse_this_program() {
        let same = presence("state", Some(version::KNOWN));
        let text = verdict(std::slice::from_ref(&same)).expect("it can join");
        assert!(text.contains("nothing that answers is older. No edge"), "{text}");
        let (edge, metrics) =
            (presence("edge", None), presence("metrics", Some(version::FIRST - 1)));
        let text = verdict(&[edge, same, metrics]).expect("it can join");
        assert!(text.contains("one process at a time: metrics, edge."), "{text}");
        verdict(&[]).expect_err("nothing answers");
        let newer = presence("processor", Some(version::KNOWN + 1));
        let text = verdict(&[newer]).expect_err("it is older");
        assert!(text.contains("older than the mesh"), "{text}");
    }
}
