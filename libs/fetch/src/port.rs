//! Ports for the servers that are started.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    net::{Ipv4Addr, TcpListener},
};

/// Ports below those that Linux, macOS and Windows give to outgoing connections: such a connection could take a
/// port between its choice and its use.
const FIRST: u16 = 16_384;
const COUNT: u16 = 16_384;
/// Ports that are tried.
const TRIES: u64 = 100;

/// A TCP port of 127.0.0.1 on which nothing listened a moment ago. A server that finds it taken
/// fails at its start.
///
/// # Errors
/// If none of a hundred random ports is free.
pub fn free_port() -> io::Result<u16> {
    let random = RandomState::new();
    let mut taken = io::Error::from(io::ErrorKind::AddrInUse);
    for n in 0..TRIES {
        let offset = random.hash_one(n) % u64::from(COUNT);
        let port = FIRST + u16::try_from(offset).unwrap_or(0);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => taken = error,
        }
    }
    Err(taken)
}
