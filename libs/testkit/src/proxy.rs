//! A proxy between a client and a server that can lose what the server says.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// A proxy on a free port of loopback.
pub struct Proxy {
    address: SocketAddr,
    deaf: Arc<AtomicBool>,
    cuts: watch::Sender<u64>,
}

impl Proxy {
    /// Starts a proxy to `server`, an address of loopback.
    ///
    /// # Errors
    /// Where no port is free.
    pub async fn start(server: String) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let deaf = Arc::new(AtomicBool::new(false));
        let (cuts, cut) = watch::channel(0);
        let swallow = deaf.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&server).await else { continue };
                let (client_read, client_write) = client.into_split();
                let (server_read, server_write) = server.into_split();
                tokio::spawn(copy(client_read, server_write, None, cut.clone()));
                tokio::spawn(copy(server_read, client_write, Some(swallow.clone()), cut.clone()));
            }
        });
        Ok(Self { address, deaf, cuts })
    }

    /// The URL that leads to the server through this proxy.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// From now on what the server says is lost.
    pub fn swallow_answers(&self) {
        self.deaf.store(true, Ordering::SeqCst);
    }

    /// Cuts all connections; new ones lose nothing.
    pub fn cut(&self) {
        self.deaf.store(false, Ordering::SeqCst);
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    swallow: Option<Arc<AtomicBool>>,
    mut cut: watch::Receiver<u64>,
) {
    cut.mark_unchanged();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = tokio::select! {
            _ = cut.changed() => return,
            read = from.read(&mut buffer) => read,
        };
        let Ok(length @ 1..) = read else { return };
        if swallow.as_ref().is_some_and(|swallow| swallow.load(Ordering::SeqCst)) {
            continue;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
