//! A proxy between a client and a server that fails in the ways networks do.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// What the proxy does with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Passes them on.
    Pass,
    /// Drops what the server sends.
    SwallowAnswers,
    /// Drops the messages that the server sends, and passes on its answers to pings.
    SwallowMessages,
    /// Passes them on later, both ways.
    Delay(Duration),
    /// Holds them, both ways, until the mode changes.
    Stall,
}

/// How existing connections end.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// In order, after what was passed on.
    Close,
    /// With a reset, which discards what is in flight.
    Reset,
}

#[derive(Clone, Copy, Debug)]
struct State {
    mode: Mode,
    /// Counts the cuts, each with how it ends connections.
    cuts: u64,
    cut: Cut,
}

/// A proxy on a free port of loopback.
pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
}

impl Proxy {
    /// Starts a proxy to `server`, an address of loopback.
    ///
    /// # Errors
    /// If no port is free.
    pub async fn start(server: String) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (state, seen) = watch::channel(State { mode: Mode::Pass, cuts: 0, cut: Cut::Close });
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&server).await else { continue };
                // Small messages must not wait for company: the proxy adds no delay of its own.
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let (client_read, client_write) = client.into_split();
                let (server_read, server_write) = server.into_split();
                tokio::spawn(copy(client_read, server_write, false, seen.clone()));
                tokio::spawn(copy(server_read, client_write, true, seen.clone()));
            }
        });
        Ok(Self { address, state })
    }

    /// The URL that leads to the server through this proxy.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// From now on what the server sends is lost.
    pub fn swallow_answers(&self) {
        self.state.send_modify(|state| state.mode = Mode::SwallowAnswers);
    }

    /// From now on messages are lost, as on a server that others do not reach, but pings are answered.
    pub fn swallow_messages(&self) {
        self.state.send_modify(|state| state.mode = Mode::SwallowMessages);
    }

    /// From now on everything takes this much longer, each way.
    pub fn delay(&self, time: Duration) {
        self.state.send_modify(|state| state.mode = Mode::Delay(time));
    }

    /// Holds everything back for a time, then passes it on.
    pub async fn stall(&self, time: Duration) {
        self.state.send_modify(|state| state.mode = Mode::Stall);
        tokio::time::sleep(time).await;
        self.state.send_modify(|state| state.mode = Mode::Pass);
    }

    /// Closes all connections; new ones pass everything on.
    pub fn cut(&self) {
        self.end(Cut::Close);
    }

    /// Resets all connections; new ones pass everything on.
    pub fn reset(&self) {
        self.end(Cut::Reset);
    }

    fn end(&self, cut: Cut) {
        self.state.send_modify(|state| {
            *state = State { mode: Mode::Pass, cuts: state.cuts + 1, cut };
        });
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    from_server: bool,
    mut state: watch::Receiver<State>,
) {
    let cuts = state.borrow().cuts;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = tokio::select! {
            cut = ended(&mut state, cuts) => return end(&to, cut),
            read = from.read(&mut buffer) => read,
        };
        let Ok(length @ 1..) = read else { return };
        let mode = state.borrow().mode;
        match mode {
            Mode::SwallowAnswers if from_server => continue,
            // Messages are small here: each comes in one piece.
            Mode::SwallowMessages if from_server && has_message(&buffer[..length]) => continue,
            Mode::Delay(time) => tokio::time::sleep(time).await,
            _ => {}
        }
        let resumed = state.wait_for(|state| state.mode != Mode::Stall).await.is_ok();
        if !resumed || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// Whether bytes of NATS's protocol hold a message, with headers or without.
fn has_message(bytes: &[u8]) -> bool {
    bytes.windows(4).any(|it| it == b"MSG ")
}

/// Waits for the next cut.
async fn ended(state: &mut watch::Receiver<State>, cuts: u64) -> Cut {
    match state.wait_for(|state| state.cuts != cuts).await {
        Ok(state) => state.cut,
        Err(_) => Cut::Close,
    }
}

fn end(to: &OwnedWriteHalf, cut: Cut) {
    if matches!(cut, Cut::Reset) {
        // Closing a socket without lingering sends a reset.
        let _ = to.as_ref().set_zero_linger();
    }
}
