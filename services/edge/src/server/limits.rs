//! How many connections are served, in total and of one address. A connection beyond that gets one
//! answer that says so, or that of a health check; beyond [`REFUSED_MAX`] of those it is closed.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Connections beyond a limit that are answered at the same time, in total and of one address.
const REFUSED_MAX: usize = 256;
const REFUSED_PER_ADDRESS_MAX: usize = 32;
/// File descriptors for everything else than connections of clients.
const OTHER_FILES: u64 = 256;

/// The numbers of open connections. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Connections(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    total_max: usize,
    per_address_max: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    refused: usize,
    by_address: HashMap<IpAddr, usize>,
    refused_by_address: HashMap<IpAddr, usize>,
}

/// Whether a connection is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is.
    Served,
    /// There are too many connections.
    TooMany,
    /// There are too many of its address.
    TooManyOfAddress,
}

/// A connection that is counted until this is dropped.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    connections: Connections,
    /// `None` if connections of its address are not limited.
    address: Option<IpAddr>,
    pub admission: Admission,
}

impl Connections {
    pub fn new(total_max: usize, per_address_max: usize) -> Self {
        Self(Arc::new(Inner { total_max, per_address_max, open: Mutex::default() }))
    }

    /// Counts a connection of an address, or of a trusted proxy if there is none, which may have as many as there are in
    /// total. `None` if it must be closed without an answer.
    pub fn admit(&self, address: Option<IpAddr>) -> Option<ConnectionPermit> {
        let address = address.map(network_of);
        let mut open = self.lock();
        let count = |by: &HashMap<IpAddr, usize>| {
            address.and_then(|address| by.get(&address)).copied().unwrap_or(0)
        };
        let (of_address, refused) = (count(&open.by_address), count(&open.refused_by_address));
        let admission = if open.total >= self.0.total_max {
            Admission::TooMany
        } else if of_address >= self.0.per_address_max {
            Admission::TooManyOfAddress
        } else {
            Admission::Served
        };
        if admission == Admission::Served {
            open.total += 1;
            if let Some(address) = address {
                *open.by_address.entry(address).or_default() += 1;
            }
        } else if open.refused < REFUSED_MAX && refused < REFUSED_PER_ADDRESS_MAX {
            open.refused += 1;
            if let Some(address) = address {
                *open.refused_by_address.entry(address).or_default() += 1;
            }
        } else {
            return None;
        }
        Some(ConnectionPermit { connections: self.clone(), address, admission })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        let by_address = if self.admission == Admission::Served {
            open.total -= 1;
            &mut open.by_address
        } else {
            open.refused -= 1;
            &mut open.refused_by_address
        };
        if let Some(address) = self.address
            && let Some(count) = by_address.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&address);
            }
        }
    }
}

/// The address that a connection counts for: its own, or the first of its /64, which one client of IPv6
/// usually has. IPv4 addresses can come over IPv6.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

/// Lets this process open as many files as it may need; logs if it cannot.
pub(super) fn raise_open_files(connections: usize) {
    let needed = (connections + REFUSED_MAX) as u64 + OTHER_FILES;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a structure of the right type, for the time of the call.
    let is_read = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
    if !is_read || limit.rlim_cur >= needed {
        return;
    }
    limit.rlim_cur = needed.min(limit.rlim_max);
    // SAFETY: as above.
    let is_set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0;
    if !is_set || limit.rlim_cur < needed {
        tracing::warn!(
            files = limit.rlim_cur,
            needed,
            "this process may open fewer files than --max-connections needs: raise `ulimit -n`"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_in_total_and_by_address() {
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().expect("an address"));
        let connections = Connections::new(3, 2);
        let admitted = |address| {
            let place = connections.admit(Some(address)).expect("it gets an answer");
            (place.admission, place)
        };
        let (first, place) = admitted(one);
        let mapped = "::ffff:10.0.0.1".parse().expect("an address");
        let (second, _second) = admitted(mapped);
        assert_eq!((first, second), (Admission::Served, Admission::Served));
        assert_eq!(admitted(one).0, Admission::TooManyOfAddress);
        let (third, _third) = admitted(other);
        assert_eq!((third, admitted(other).0), (Admission::Served, Admission::TooMany));
        drop(place);
        assert_eq!(admitted(one).0, Admission::Served);
        let (_fourth, _place) = admitted(one);
        let refused: Vec<_> =
            (0..REFUSED_MAX).filter_map(|_| connections.admit(Some(one))).collect();
        assert_eq!(refused.len(), REFUSED_PER_ADDRESS_MAX);
        assert!(connections.admit(Some(one)).is_none());
        drop(refused);
        assert!(connections.admit(Some(one)).is_some());
        let neighbor = |text: &str| network_of(text.parse().expect("an address"));
        assert_eq!(neighbor("2001:db8::1"), neighbor("2001:db8::ffff:1"));
        assert_ne!(neighbor("2001:db8::1"), neighbor("2001:db8:0:1::1"));
    }
}
