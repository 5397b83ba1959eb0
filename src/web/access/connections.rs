//! How many connections one address holds open: those beyond a limit are told so and closed, so
//! that one client's mistake leaves room for the others.

use std::any::Any;
use std::collections::HashMap;
use std::net::{IpAddr, Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use actix_web::dev::Extensions;
use actix_web::rt;

use crate::access::address::{TrustedProxies, household};

/// Connections by address.
#[derive(Debug)]
pub struct Connections {
    /// Of one address; 0: any number.
    most: usize,
    /// Proxies hold those of everybody.
    trusted: Arc<TrustedProxies>,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection, counted for as long as it is open.
#[derive(Debug)]
pub(super) struct Counted {
    among: Arc<Connections>,
    of: IpAddr,
    /// The address has too many.
    pub(super) beyond: bool,
}

impl Connections {
    /// At most `most` of one address (0: any number), except for these proxies.
    #[must_use]
    pub fn new(most: usize, trusted: Arc<TrustedProxies>) -> Arc<Self> {
        Arc::new(Self { most, trusted, open: Mutex::default() })
    }

    /// Counts a connection that was just made; the gate looks at what is noted with it.
    ///
    /// One beyond the limit is answered and closed. At twice the limit there is no room for that
    /// either, and it is closed at once.
    pub fn made(self: &Arc<Self>, connection: &dyn Any, notes: &mut Extensions) {
        let Some(stream) = connection.downcast_ref::<rt::net::TcpStream>() else { return };
        let Ok(peer) = stream.peer_addr() else { return };
        let Some((counted, open)) = self.count(peer.ip()) else { return };
        if open > self.most.saturating_mul(2)
            && let Ok(same) = stream.as_fd().try_clone_to_owned()
        {
            drop(TcpStream::from(same).shutdown(Shutdown::Both));
        }
        if counted.beyond && open == self.most + 1 {
            tracing::warn!(address = %counted.of, most = self.most, "too many connections from one address");
        }
        notes.insert(counted);
    }

    fn count(self: &Arc<Self>, peer: IpAddr) -> Option<(Counted, usize)> {
        if self.most == 0 || self.trusted.contains(peer) {
            return None;
        }
        let of = household(peer);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(of).or_default();
        *count += 1;
        Some((Counted { among: Arc::clone(self), of, beyond: *count > self.most }, *count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.among.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.of) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_count_that_closed_connections_leave() {
        let proxies = Arc::new(TrustedProxies::new(vec!["10.0.0.1/32".parse().unwrap()]));
        let all = Connections::new(2, proxies);
        let made = |peer: &str| all.count(peer.parse().unwrap()).map(|(counted, _)| counted);
        let two = [made("192.0.2.1").unwrap(), made("192.0.2.1").unwrap()];
        assert!(two.iter().all(|counted| !counted.beyond));
        assert!(made("192.0.2.1").unwrap().beyond);
        assert!(!made("192.0.2.2").unwrap().beyond, "another address");
        assert!(made("10.0.0.1").is_none(), "a proxy");
        drop(two);
        assert!(!made("192.0.2.1").unwrap().beyond);
        assert!(all.open.lock().unwrap().is_empty(), "nothing is kept of those who left");
        assert!(Connections::new(0, Arc::default()).count("192.0.2.1".parse().unwrap()).is_none());
    }
}
