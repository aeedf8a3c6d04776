//! A TCP connection: a probe by itself, and the beginning of every other.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::net::{TcpSocket, TcpStream};

use super::{failure, inconclusive};
use crate::health::Outcome;
use crate::io_error::plain;

/// Connects from a port of the kernel's choice. No SNAT port is among those (`network::snat` refuses such ranges), so
/// an answer to a probe is never taken for one to a client.
pub(super) async fn connect(address: SocketAddr) -> Result<TcpStream, Outcome> {
    match open(address, None).await {
        Ok(stream) => Ok(stream),
        Err(error) if is_local(&error) => Err(inconclusive(format!("the gateway cannot probe: {error}"))),
        Err(error) => Err(failure(format!("cannot connect: {}", plain(&error)))),
    }
}

/// Opens a connection, from one of the node's addresses where it is named.
pub(crate) async fn open(address: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Closing sends a RST and leaves nothing behind: no TIME_WAIT piles up, here or at the pod.
    socket.set_zero_linger()?;
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    socket.connect(address).await
}

/// Whether an error comes from this process or node and says nothing about the target.
fn is_local(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::EADDRNOTAVAIL
                | libc::EACCES
                | libc::EPERM
        )
    )
}
