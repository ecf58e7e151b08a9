//! How many connections are served, in total and of one address. A connection beyond that gets an
//! answer that says so, and health checks still work; beyond [`REFUSED_MAX`] of those it is closed.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Connections that are told at the same time that there are too many.
const REFUSED_MAX: usize = 256;
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
pub(super) struct Place {
    connections: Connections,
    address: IpAddr,
    pub admission: Admission,
}

impl Connections {
    pub fn new(total_max: usize, per_address_max: usize) -> Self {
        Self(Arc::new(Inner { total_max, per_address_max, open: Mutex::default() }))
    }

    /// Counts a connection of an address. `None` if it must be closed without an answer.
    pub fn admit(&self, address: IpAddr) -> Option<Place> {
        // Clients with IPv4 addresses can come over IPv6.
        let address = address.to_canonical();
        let mut open = self.lock();
        let of_address = open.by_address.get(&address).copied().unwrap_or(0);
        let admission = if open.total >= self.0.total_max {
            Admission::TooMany
        } else if of_address >= self.0.per_address_max {
            Admission::TooManyOfAddress
        } else {
            Admission::Served
        };
        if admission == Admission::Served {
            open.total += 1;
            *open.by_address.entry(address).or_default() += 1;
        } else if open.refused < REFUSED_MAX {
            open.refused += 1;
        } else {
            return None;
        }
        Some(Place { connections: self.clone(), address, admission })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        if self.admission != Admission::Served {
            open.refused -= 1;
            return;
        }
        open.total -= 1;
        if let Some(count) = open.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.by_address.remove(&self.address);
            }
        }
    }
}

/// Lets this process open as many files as it may need; logs if it cannot.
pub(super) fn raise_open_files(connections: usize) {
    let needed = connections as u64 + OTHER_FILES;
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
            let place = connections.admit(address).expect("it gets an answer");
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
        let refused: Vec<_> = (0..REFUSED_MAX).filter_map(|_| connections.admit(one)).collect();
        assert_eq!(refused.len(), REFUSED_MAX);
        assert!(connections.admit(one).is_none());
        drop(refused);
        assert!(connections.admit(one).is_some());
    }
}
