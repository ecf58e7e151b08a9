//! What each service's login at NATS may do, and that it may do nothing else: deploy/nats/identities.conf.

use std::time::Duration;

use anyhow::Context;
use futures_util::{FutureExt, StreamExt};
use nats::{
    Broker,
    names::{self, Verb},
};
use service::Identity;

use crate::login_broker::{
    FOREIGN, STREAM_REQUESTS, STREAMS, broker_with_identities, connect, on_stream, processed,
};

/// How long a message may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Every kind of subject that there is.
fn subjects() -> Vec<String> {
    let mut subjects: Vec<String> =
        Verb::ALL.iter().map(|verb| verb.subject().to_string()).collect();
    for query in [
        names::QUERY_JOB,
        names::QUERY_STATS,
        names::QUERY_JOBS,
        names::QUERY_PROJECT,
        names::QUERY_SCHEDULES,
    ] {
        subjects.extend([query.any.to_owned(), query.all.to_owned()]);
    }
    let more = [
        names::QUERY_CLAIM,
        names::QUERY_CURRENT,
        names::QUERY_LEADER,
        names::QUERY_METRICS,
        names::QUERY_ENDED,
        names::QUERY_ARCHIVED,
        names::QUERY_AUDIT,
        names::AUDIT_SUBJECT,
        names::EVENT_SUBJECT,
        names::CONTROL_CANCEL,
        names::CONTROL_HEARTBEAT_REQUEST,
        names::UNSTORED,
        "jobmesh.event.p.j.queued",
        "jobmesh.work.high.process_batch.j.1",
        "jobmesh.work.low._fence",
        "jobmesh.heartbeat.x",
        "jobmesh.rejected.COMMANDS.1",
        "jobmesh.rejected.EVENTS.1",
        "jobmesh.rejected.WORK_HIGH.1",
        "jobmesh.other",
        "$KV.jobs.j",
        "$KV.jobs._through",
        "$KV.leases.state",
        "$KV.leases.metrics",
        "$KV.leases.metrics-pump",
        "$KV.keys.key.k",
        "$KV.failures.all",
        "$O.results.C.x",
        "$O.results.M.x",
        "$O.snapshots.C.x",
        "$JS.API.CONSUMER.CREATE.AUDIT.metrics",
        "$JS.API.CONSUMER.MSG.NEXT.AUDIT.metrics",
        "$JS.API.CONSUMER.DELETE.AUDIT.metrics",
        "$JS.ACK.AUDIT.metrics.1.1.1.1.0",
        "$JS.API.INFO",
        "$JS.API.STREAM.LIST",
        "$JS.API.STREAM.NAMES",
        "$JS.API.ACCOUNT.PURGE.X",
        "$SRV.PING",
        names::TASKS,
        "other",
    ];
    subjects.extend(more.map(str::to_owned));
    subjects.extend(Identity::ALL.map(|identity| format!("_INBOX.{}.x", identity.name())));
    subjects.extend(["_INBOX.x", "_INBOX.operator.x", "_INBOX.tasks.x"].map(str::to_owned));
    for stream in STREAMS {
        subjects.extend(STREAM_REQUESTS.map(|request| on_stream(request, stream)));
        subjects.push(format!("$JS.ACK.{stream}.c.1.1.1.1.0"));
    }
    subjects
}

/// Whether a service needs to publish to a subject.
fn may_publish(identity: Identity, subject: &str) -> bool {
    use Identity::{Edge, Metrics, Processor, State};
    let verb = Verb::of(subject);
    if let Some(verb) = verb {
        return match verb {
            Verb::Started | Verb::Progress | Verb::Outcome => identity == Processor,
            _ => identity == Edge,
        };
    }
    let begins = |with: &str| subject.starts_with(with);
    match identity {
        _ if subject == names::UNSTORED || subject == "$JS.API.INFO" => true,
        _ if begins("$JS.") => may_ask(identity, subject),
        State => {
            subject == names::EVENT_SUBJECT
                || ["jobmesh.event.", "jobmesh.work.", "jobmesh.control.", "jobmesh.rejected."]
                    .into_iter()
                    .chain(["$KV.jobs.", "$KV.leases.", "$O.snapshots.", "_INBOX."])
                    .any(begins)
        }
        Edge => {
            let is_of_leader = [names::QUERY_CLAIM, names::QUERY_CURRENT].contains(&subject);
            (begins("jobmesh.state.") && !is_of_leader)
                || [names::AUDIT_SUBJECT, names::TASKS].contains(&subject)
                || ["jobmesh.metrics.", "$KV.keys.", "$KV.failures.", "_INBOX.operator."]
                    .into_iter()
                    .chain(["_INBOX.tasks."])
                    .any(begins)
        }
        Metrics => {
            ["$KV.leases.metrics", "$KV.leases.metrics-pump"].contains(&subject)
                || begins("_INBOX.")
        }
        Processor => {
            [names::QUERY_CLAIM, names::QUERY_CURRENT].contains(&subject)
                || ["jobmesh.heartbeat.", "jobmesh.rejected.WORK_", "$O.results."]
                    .into_iter()
                    .any(begins)
        }
    }
}

/// Whether a service needs to ask JetStream this.
fn may_ask(identity: Identity, subject: &str) -> bool {
    use Identity::{Edge, Metrics, Processor, State};
    let Some(stream) =
        STREAMS.into_iter().find(|stream| subject.split('.').any(|it| it == *stream))
    else {
        return false;
    };
    let request = subject.trim_start_matches("$JS.").trim_start_matches("API.");
    let request = request.split(&format!(".{stream}")).next().unwrap_or_default();
    let reads_with_consumer = match identity {
        State => [names::COMMANDS, names::EVENTS, "OBJ_snapshots"].contains(&stream),
        Edge => [names::EVENTS, "KV_keys", names::RESULTS_STREAM].contains(&stream),
        Metrics => stream == names::EVENTS,
        Processor => false,
    };
    let is_work = stream.starts_with("WORK_");
    if identity == Metrics && subject.contains("AUDIT.metrics") {
        return request != "CONSUMER.DELETE";
    }
    match request {
        "STREAM.INFO" => true,
        "STREAM.CREATE" | "STREAM.UPDATE" => identity == State,
        "STREAM.PURGE" => identity == State && reads_with_consumer,
        "STREAM.MSG.GET" | "DIRECT.GET" => match identity {
            State => true,
            Edge => {
                reads_with_consumer
                    || [names::JOBS_STREAM, names::FAILURES_STREAM].contains(&stream)
            }
            Metrics => [names::EVENTS, "KV_leases"].contains(&stream),
            Processor => false,
        },
        "CONSUMER.CREATE" | "CONSUMER.INFO" => {
            // A consumer without a name would be of no use.
            let is_named = subject.ends_with(".c");
            reads_with_consumer || (identity == Processor && is_work && is_named)
        }
        // Some clients make durable consumers so.
        "CONSUMER.DURABLE.CREATE" => identity == Processor && is_work,
        "CONSUMER.DELETE" => reads_with_consumer,
        "CONSUMER.MSG.NEXT" => match identity {
            State => [names::COMMANDS, names::EVENTS].contains(&stream),
            Edge | Metrics => stream == names::EVENTS,
            Processor => is_work,
        },
        "ACK" => identity == Processor && is_work,
        _ => false,
    }
}

/// What can be subscribed to, with a subject that it matches.
const SUBSCRIPTIONS: [(&str, &str); 21] = [
    ("jobmesh.audit", "jobmesh.audit"),
    ("jobmesh.work.>", "jobmesh.work.low._fence"),
    ("jobmesh.rejected.>", "jobmesh.rejected.EVENTS.1"),
    ("$O.>", "$O.results.M.x"),
    ("$JS.ACK.>", "$JS.ACK.EVENTS.c.1.1.1.1.0"),
    ("$SRV.>", "$SRV.PING"),
    (">", "other"),
    ("jobmesh.>", "jobmesh.other"),
    ("jobmesh.cmd.*", "jobmesh.cmd.enqueue"),
    ("jobmesh.evt", "jobmesh.evt"),
    ("jobmesh.event.>", "jobmesh.event.p.j.queued"),
    ("jobmesh.state.>", "jobmesh.state.job"),
    ("jobmesh.metrics.*", "jobmesh.metrics.job"),
    ("jobmesh.control.>", "jobmesh.control.cancel"),
    ("jobmesh.heartbeat.*", "jobmesh.heartbeat.x"),
    ("jobmesh.unstored", "jobmesh.unstored"),
    ("$KV.>", "$KV.keys.key.k"),
    ("jobmesh.tasks", "jobmesh.tasks"),
    ("_INBOX.tasks.*", "_INBOX.tasks.x"),
    ("$JS.API.>", "$JS.API.INFO"),
    ("_INBOX.>", "_INBOX.x"),
];

fn may_subscribe(identity: Identity, subject: &str) -> bool {
    use Identity::{Edge, Metrics, Processor, State};
    match subject {
        "jobmesh.state.>" | "jobmesh.heartbeat.*" => identity == State,
        "jobmesh.metrics.*" => identity == Metrics,
        "_INBOX.tasks.*" => identity == Edge,
        "$SRV.>" | "jobmesh.tasks" => [State, Metrics, Edge].contains(&identity),
        "jobmesh.control.>" => identity == Processor,
        "jobmesh.unstored" => [State, Edge].contains(&identity),
        inbox => inbox == format!("_INBOX.{}.>", identity.name()),
    }
}

/// Publishes `payload` to each of `subjects`; which of them arrived at `admin`, who receives everything.
async fn arrived(
    admin: &Broker,
    from: &Broker,
    subjects: &[String],
    payload: &'static str,
) -> anyhow::Result<Vec<String>> {
    let mut all = admin.client.subscribe(">").await?;
    processed(admin).await?;
    for subject in subjects {
        from.client.publish(subject.clone(), payload.into()).await?;
    }
    processed(from).await?;
    admin.client.publish("end", "".into()).await?;
    let mut arrived = Vec::new();
    loop {
        let message = tokio::time::timeout(PATIENCE, all.next()).await;
        let message = message.with_context(|| format!("{payload}: the last message is missing"))?;
        let message = message.context("the connection is open")?;
        match message.subject.as_str() {
            "end" => break,
            subject if message.payload == payload => arrived.push(subject.to_owned()),
            _ => {}
        }
    }
    Ok(arrived)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_service_may_do_at_nats_what_it_needs_and_nothing_else() -> anyhow::Result<()> {
    let (nats, admin) = broker_with_identities().await?;
    let subjects = subjects();
    let everything = arrived(&admin, &admin, &subjects, "admin").await?;
    assert_eq!(everything, subjects, "not everything that is published arrives");
    let mut wrong = Vec::new();
    for identity in Identity::ALL {
        let name = identity.name();
        let broker = connect(&nats, name).await?;
        let published = arrived(&admin, &broker, &subjects, name).await?;
        for subject in &subjects {
            let (may, did) = (may_publish(identity, subject), published.contains(subject));
            if may != did {
                wrong.push(format!("{name} publishes to {subject}: {did}"));
            }
        }
        let inboxes = Identity::ALL.map(|of| format!("_INBOX.{}.", of.name()));
        let inboxes = inboxes.map(|inbox| (format!("{inbox}>"), format!("{inbox}x")));
        let all = SUBSCRIPTIONS.map(|(to, of)| (to.to_owned(), of.to_owned()));
        for (to, of) in all.into_iter().chain(inboxes) {
            let client = &broker.client;
            let mut subscribed = client.subscribe(to.clone()).await?;
            let inbox = client.new_inbox();
            let mut marker = client.subscribe(inbox.clone()).await?;
            processed(&broker).await?;
            admin.client.publish(of, "secret".into()).await?;
            admin.client.publish(inbox, "".into()).await?;
            let marked = tokio::time::timeout(PATIENCE, marker.next()).await;
            marked.with_context(|| format!("{name}, {to}: the marker is missing"))?;
            let did = subscribed.next().now_or_never().flatten().is_some();
            if may_subscribe(identity, &to) != did {
                wrong.push(format!("{name} subscribes to {to}: {did}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for stream in STREAMS.iter().filter(|stream| **stream != FOREIGN) {
        admin.js.get_stream(*stream).await?;
    }
    Ok(())
}

/// Some logins receive what they publish. NATS can permit answers to each message that comes in: a login could then ask for
/// an answer on any subject.
#[tokio::test(flavor = "multi_thread")]
async fn no_service_gets_the_right_to_publish_from_its_own_messages() -> anyhow::Result<()> {
    let (nats, admin) = broker_with_identities().await?;
    for identity in Identity::ALL {
        let broker = connect(&nats, identity.name()).await?;
        let inbox = broker.client.new_inbox();
        let both = [names::UNSTORED, names::HEARTBEATS, names::CONTROL_CANCEL, &inbox];
        for subject in both {
            let of = subject.replace('*', "x");
            let mut own = broker.client.subscribe(subject.to_owned()).await?;
            for target in ["$JS.API.STREAM.DELETE.FOREIGN", "$JS.API.STREAM.PURGE.FOREIGN"] {
                let asked = broker.client.publish_with_reply(of.clone(), target, "".into()).await;
                asked?;
                processed(&broker).await?;
                // From the admin, in case that the login may not publish here.
                admin.client.publish_with_reply(of.clone(), target, "".into()).await?;
                processed(&admin).await?;
                processed(&broker).await?;
                while let Some(Some(message)) = own.next().now_or_never() {
                    let reply = message.reply.context("it has a reply")?;
                    broker.client.publish(reply, "".into()).await?;
                }
                processed(&broker).await?;
            }
        }
    }
    let stream = admin.js.get_stream(FOREIGN).await?;
    assert_eq!(stream.cached_info().state.messages, 1);
    Ok(())
}
