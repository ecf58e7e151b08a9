//! Ports for the servers that are started.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
    io,
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    sync::{Mutex, PoisonError},
};

/// Ports below those that Linux, macOS and Windows give to outgoing connections: such a connection could take a
/// port between its choice and its use.
const PORTS: Range<u16> = 16_384..24_576;
/// Ports that are tried.
const TRIES: u64 = 100;

/// A TCP port of 127.0.0.1 on which nothing listened a moment ago, and that this function has not given before. A
/// server that finds it taken fails at its start.
///
/// # Errors
/// If none of a hundred random ports is free.
pub fn free_port() -> io::Result<u16> {
    free_port_in(PORTS)
}

/// The same among these ports. Two programs that choose among the same ports at the same time can choose the same one.
///
/// # Errors
/// If none of a hundred random ports is free.
pub fn free_port_in(ports: Range<u16>) -> io::Result<u16> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let random = RandomState::new();
    let mut taken = io::Error::from(io::ErrorKind::AddrInUse);
    for n in 0..TRIES {
        let offset = random.hash_one(n) % u64::from(ports.end - ports.start);
        let port = ports.start + u16::try_from(offset).unwrap_or(0);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) if GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port) => {
                return Ok(port);
            }
            Ok(_) => {}
            Err(error) => taken = error,
        }
    }
    Err(taken)
}
