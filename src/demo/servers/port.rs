//! Reservation of a loopback port.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use tokio::net::TcpSocket;

/// A free port, reserved by a socket that is bound and never listens.
///
/// While it is reserved, the operating system does not assign the port to sockets that request any free port, but a
/// server that requests it explicitly can bind it (both set `SO_REUSEADDR`, as servers do). A server that is killed and
/// restarted therefore finds its port free, and connections are refused in between.
#[derive(Debug)]
pub struct HeldPort {
    number: u16,
    _socket: TcpSocket,
}

impl HeldPort {
    /// Reserves any free port of 127.0.0.1.
    pub fn take() -> std::io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)))?;
        Ok(Self { number: socket.local_addr()?.port(), _socket: socket })
    }

    /// Port number.
    pub fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn held_port_refuses_connections_without_a_server() {
        let port = HeldPort::take().unwrap();
        let address = ("127.0.0.1", port.number());
        assert!(TcpStream::connect(address).is_err());
        let server = TcpListener::bind(address).unwrap();
        TcpStream::connect(address).unwrap();
        drop(server);
        assert!(TcpStream::connect(address).is_err());
        TcpListener::bind(address).unwrap();
    }

    #[test]
    fn held_port_is_not_assigned_again() {
        let port = HeldPort::take().unwrap();
        let others: Vec<_> = (0..500).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        assert!(others.iter().all(|other| other.local_addr().unwrap().port() != port.number()));
    }
}
