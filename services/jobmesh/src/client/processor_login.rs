//! Logins at NATS for third-party processors: each may take work of some types, and has inboxes of its own.

use std::{fs::OpenOptions, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use anyhow::{Context, ensure};
use job::{JobType, PriorityClass};
use nats::names;
use nkeys::KeyPair;

use super::show;
use crate::handlers::JobTypeName;

/// The longest name of a login, in bytes.
const NAME_BYTES_MAX: usize = 32;

/// Makes a key pair, writes its seed to a file that only this user can read, and shows the user for the configuration of
/// NATS.
pub(super) fn create(name: &str, types: &[JobTypeName], seed_file: &Path) -> anyhow::Result<()> {
    let is_token = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    ensure!(
        (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_token),
        "--name of a processor's login must be 1 to {NAME_BYTES_MAX} lower-case letters, digits and dashes: it is \
         part of subjects"
    );
    let key = KeyPair::new_user();
    ensure!(
        !seed_file.exists(),
        "{} exists: a seed is never overwritten. Name another file, or remove this one if no login needs it",
        seed_file.display()
    );
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(seed_file);
    let mut file = file.with_context(|| format!("cannot make {}", seed_file.display()))?;
    let written = writeln!(file, "{}", key.seed()?).and_then(|()| file.sync_all());
    written.with_context(|| format!("cannot write {}", seed_file.display()))?;
    let types: Vec<JobType> = types.iter().map(|name| name.job_type()).collect();
    show::print(&user(name, &key.public_key(), &types))?;
    eprintln!(
        "Add these lines to `users` in the configuration of NATS (deploy/nats/identities.conf), and load it again \
         (nats-server --signal reload). For `jobmesh dev`, put them into <data-dir>/nats.users.conf and start it again. \
         Start the processor with\n\
         \x20 JOBMESH_NATS_NKEY_FILE={}\n\
         \x20 JOBMESH_NATS_INBOX={}\n\
         \x20 JOBMESH_TYPES={}\n\
         \x20 JOBMESH_WEBHOOK_CONCURRENCY=0",
        seed_file.display(),
        inbox(name),
        types.iter().map(|job_type| job_type.name()).collect::<Vec<_>>().join(","),
    );
    Ok(())
}

/// What the inboxes of a login begin with, behind `_INBOX.`.
fn inbox(name: &str) -> String {
    format!("processor-{name}")
}

/// A user of the configuration of NATS.
fn user(name: &str, nkey: &str, types: &[JobType]) -> String {
    let mut publish: Vec<String> = [
        "jobmesh.cmd.started",
        "jobmesh.cmd.progress",
        "jobmesh.cmd.outcome",
        "jobmesh.heartbeat.*",
        names::QUERY_CLAIM,
        names::QUERY_CURRENT,
        "$O.results.>",
        "$JS.API.INFO",
        "$JS.API.STREAM.INFO.RESTORE",
        "$JS.API.STREAM.INFO.OBJ_results",
    ]
    .map(str::to_owned)
    .into();
    for class in PriorityClass::ALL {
        let stream = names::work_stream(class);
        publish.push(format!("jobmesh.rejected.{stream}.*"));
        publish.push(format!("$JS.API.STREAM.INFO.{stream}"));
        for job_type in types {
            let (consumer, filter) =
                (names::work_consumer(*job_type), names::work_filter(class, *job_type));
            // With the filter: a consumer with the name of a type could else be made for another.
            publish.push(format!("$JS.API.CONSUMER.CREATE.{stream}.{consumer}.{filter}"));
            publish.push(format!("$JS.API.CONSUMER.INFO.{stream}.{consumer}"));
            publish.push(format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"));
            publish.push(format!("$JS.ACK.{stream}.{consumer}.>"));
        }
    }
    let publish: Vec<String> =
        publish.iter().map(|subject| format!("        {subject:?}")).collect();
    let inbox = inbox(name);
    format!(
        "# Processor {name:?}\n\
         {{\n\
         \x20 nkey: {nkey}\n\
         \x20 permissions: {{\n\
         \x20   publish: [\n{}\n\
         \x20   ]\n\
         \x20   subscribe: [\"_INBOX.{inbox}.>\", \"jobmesh.control.>\"]\n\
         \x20 }}\n\
         }}",
        publish.join(",\n")
    )
}
