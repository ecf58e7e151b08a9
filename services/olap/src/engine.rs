//! The engine: a thread for each of three connections, for writes, reads of metrics, and reads of people.

use std::{path::Path, sync::Arc, thread::JoinHandle};

use anyhow::Context;
use tokio::sync::{mpsc, oneshot};

use crate::{
    access::User,
    library::{Answer, Chdb, Open},
    statement::Statement,
};

/// How long a statement of the reader may take, in seconds; it may ask for another time.
const READER_LIMIT: &str = "SET max_execution_time = 60";
/// Statements that wait for a connection.
const WAITING_MAX: usize = 256;

/// A statement with all that comes with it.
#[derive(Debug)]
pub(crate) struct Ask {
    pub user: User,
    pub statement: Statement,
    /// The format of rows, if the statement names none.
    pub format: String,
    /// The database, if it is not the default one.
    pub database: Option<String>,
    /// Server-side parameters.
    pub parameters: Vec<(String, String)>,
    /// Settings for this statement alone.
    pub settings: Vec<(String, String)>,
}

type Waiting = (Ask, oneshot::Sender<Result<Answer, String>>);

/// A handle to the engine. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Engine {
    /// Of the writer, which is metrics.
    reads: mpsc::Sender<Waiting>,
    /// Of the reader: its statements must not delay those of metrics.
    reader: mpsc::Sender<Waiting>,
    writes: mpsc::Sender<Waiting>,
}

/// The engine's threads, joined when every handle is dropped.
pub(crate) struct Threads {
    chdb: Arc<Chdb>,
    threads: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Loads the library and opens the tables in `dir`.
    pub fn start(library: &Path, dir: &Path) -> anyhow::Result<(Self, Threads)> {
        std::fs::create_dir_all(dir).with_context(|| format!("no directory {}", dir.display()))?;
        let chdb = Chdb::load(library)
            .with_context(|| format!("{} could not be loaded", library.display()))?;
        let mut threads = Vec::new();
        let mut connect = |name: &str| -> anyhow::Result<mpsc::Sender<Waiting>> {
            let open = chdb.connect(dir).with_context(|| {
                format!(
                    "the tables in {} could not be opened; is another olap running on them?",
                    dir.display()
                )
            })?;
            let (asks, waiting) = mpsc::channel(WAITING_MAX);
            let thread = std::thread::Builder::new().name(name.into());
            threads.push(thread.spawn(move || serve(open, waiting))?);
            Ok(asks)
        };
        let engine = Self {
            reads: connect("olap-read")?,
            reader: connect("olap-reader")?,
            writes: connect("olap-write")?,
        };
        Ok((engine, Threads { chdb, threads }))
    }

    /// Runs a statement.
    ///
    /// # Errors
    /// ClickHouse's own text.
    pub async fn run(&self, ask: Ask) -> Result<Answer, String> {
        let connection = match ask.statement {
            Statement::Read(_) if ask.user == User::Reader => &self.reader,
            Statement::Read(_) => &self.reads,
            Statement::Write(_) | Statement::Insert { .. } => &self.writes,
        };
        let (answer, answered) = oneshot::channel();
        let stopped = || "the engine stops".to_owned();
        connection.send((ask, answer)).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }
}

impl Threads {
    /// Waits for the last statements, closes the connections and stops the engine.
    pub fn join(self) {
        for thread in self.threads {
            // A thread that panicked has closed its connection on its way.
            let _ = thread.join();
        }
        self.chdb.shutdown();
    }
}

/// Runs statements on one connection until every handle is dropped.
fn serve(mut open: Open, mut waiting: mpsc::Receiver<Waiting>) {
    while let Some((ask, answer)) = waiting.blocking_recv() {
        if answer.is_closed() {
            continue;
        }
        // The requester may have stopped waiting.
        let _ = answer.send(run(&mut open, &ask));
    }
}

fn run(open: &mut Open, ask: &Ask) -> Result<Answer, String> {
    if let Some(database) = &ask.database {
        open.query(&format!("USE {}", identifier(database)), "Null", &[])?;
    }
    let limit = match ask.user {
        User::Reader => open.query(READER_LIMIT, "Null", &[]).map(|_| ()),
        User::Writer => Ok(()),
    };
    let set = ask.settings.iter().fold(limit, |set, (name, value)| {
        set?;
        open.query(&format!("SET {name} = {}", literal(value)), "Null", &[]).map(|_| ())
    });
    let answer = set.and_then(|()| match &ask.statement {
        Statement::Read(sql) if ask.user == User::Reader => {
            // Table functions and all that writes are refused by the engine itself.
            open.query("SET readonly = 1", "Null", &[])?;
            let answer = open.query(sql, &ask.format, &ask.parameters);
            let reset = open.query("SET readonly = DEFAULT", "Null", &[]);
            answer.and_then(|answer| reset.map(|_| answer))
        }
        Statement::Read(sql) | Statement::Write(sql) => {
            open.query(sql, &ask.format, &ask.parameters)
        }
        Statement::Insert { sql, format, inline } => {
            open.insert(sql, format, &ask.parameters, inline)
        }
    });
    // The connection goes back to what it was, for the next statement.
    for (name, _) in &ask.settings {
        let _ = open.query(&format!("SET {name} = DEFAULT"), "Null", &[]);
    }
    if ask.database.is_some() {
        let _ = open.query("USE default", "Null", &[]);
    }
    answer
}

fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

/// A value of a setting, as HTTP brings it, as a literal that every type of setting reads.
fn literal(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}
