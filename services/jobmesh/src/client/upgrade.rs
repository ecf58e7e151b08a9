//! `upgrade --check`: whether this program can join the mesh that runs, and what to replace in which order.

use std::process::ExitCode;

use clap::Args;
use job::version;
use nats::{Broker, presence::Presence, topology, topology::Sizes};
use service::{NatsLogin, NatsUrl};

use super::show;

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
    /// Shows what runs. The status to exit with is 0 if this program can join.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let access = self.login.access(self.nats_url.reveal())?;
        let broker = Broker::connect_with(&access, "jobmesh-upgrade").await?;
        let streams = topology::check_all(&broker, Sizes::default()).await;
        let presences = broker.presences().await?;
        let rows = presences.iter().map(|presence| {
            let Presence { service, instance, version, knows } = presence.clone();
            let knows = knows.map_or("unknown".to_owned(), |knows| knows.to_string());
            [service, instance, version, knows]
        });
        show::print(
            show::table(["service", "instance", "jobmesh", "messages"], rows.collect()).trim_end(),
        )?;
        let found = match streams {
            Err(error) => Err(format!("This program cannot use the streams: {error}")),
            Ok(()) => verdict(&presences),
        };
        let code = if found.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
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
    let newest = presences.iter().filter_map(|presence| presence.knows).max();
    if let Some(newest) = newest.filter(|newest| *newest > version::KNOWN) {
        return Err(format!(
            "{own} is older than the mesh: it would pause at the first message of version {newest}. Use a newer one."
        ));
    }
    let is_older = |presence: &&Presence| presence.knows.is_none_or(|knows| knows < version::KNOWN);
    let older = presences.iter().filter(is_older);
    let older: Vec<&str> = older.map(|presence| presence.service.as_str()).collect();
    let order = ORDER.into_iter().filter(|service| older.contains(service));
    let order = order.collect::<Vec<_>>().join(", ");
    Ok(match order.is_empty() {
        true => format!("{own} knows all that runs, and nothing that runs is older."),
        false => format!(
            "{own} can run beside these. Replace services in this order, one process at a time: {order}. Make a backup before."
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presence(service: &str, knows: Option<u32>) -> Presence {
        let (service, instance) = (service.to_owned(), service.to_owned());
        Presence { service, instance, version: "0.1.0".to_owned(), knows }
    }

    #[test]
    fn older_services_are_replaced_in_order_and_newer_ones_refuse_this_program() {
        let same = presence("state", Some(version::KNOWN));
        let text = verdict(std::slice::from_ref(&same)).expect("it can join");
        assert!(text.contains("nothing that runs is older"), "{text}");
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
