//! Whether the network brings packets for a VIP here: a datagram is sent to it, and looked for where it should come in.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use futures::future::join_all;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{Ipv4RecvErr, Ipv6RecvErr};
use tokio::task::spawn_blocking;

use super::super::facts::{Arrival, VipRoute};
use super::datagrams_to;
use super::tap::Tap;
use crate::desired::Desired;
use crate::io_error::plain;

/// The discard service (RFC 863).
const DISCARD: u16 = 9;
/// How long a datagram may be on its way.
const PATIENCE: Duration = Duration::from_millis(1000);
/// VIPs that are tried: a pool is routed as a whole.
const TRIED: usize = 8;

pub(super) async fn routes(desired: &Desired, own: &BTreeSet<IpAddr>) -> Vec<VipRoute> {
    let vips: BTreeSet<IpAddr> = desired.services.keys().map(|id| id.vip).collect();
    let tries = vips.into_iter().take(TRIED).map(|vip| {
        let is_own = own.contains(&vip);
        async move {
            if is_own {
                return VipRoute { vip, arrival: Arrival::Own };
            }
            let tried = spawn_blocking(move || send(vip)).await;
            let arrival = match tried {
                Ok(Ok(arrival)) => arrival,
                Ok(Err(error)) => Arrival::Unseen(format!("it can't be tried: {}", plain(&error))),
                Err(_) => Arrival::Unseen("it can't be tried".to_owned()),
            };
            VipRoute { vip, arrival }
        }
    });
    join_all(tries).await
}

fn send(vip: IpAddr) -> io::Result<Arrival> {
    let mut tap = match Tap::open(vip) {
        Ok(tap) => tap,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Ok(Arrival::Unseen("without CAP_NET_RAW what arrives can't be seen".to_owned()));
        }
        Err(error) => return Err(error),
    };
    let target = SocketAddr::new(vip, DISCARD);
    let socket = datagrams_to(target)?;
    // Without this the kernel keeps a router's "no route to that network" to itself: it might pass (udp(7)).
    match vip {
        IpAddr::V4(_) => setsockopt(&socket, Ipv4RecvErr, &true)?,
        IpAddr::V6(_) => setsockopt(&socket, Ipv6RecvErr, &true)?,
    }
    socket.connect(target)?;
    // Nobody else sends this.
    let token: [u8; 16] = rand::random();
    if let Err(error) = socket.send(&token) {
        return Ok(Arrival::Refused(plain(&error)));
    }
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if tap.holds(&token)? {
            return Ok(Arrival::Here);
        }
        match socket.take_error()? {
            // An agent that runs here answers so for a VIP's ports without a service.
            Some(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(Arrival::Here),
            Some(error) => return Ok(Arrival::Refused(plain(&error))),
            None => {}
        }
    }
    Ok(Arrival::Silence)
}
