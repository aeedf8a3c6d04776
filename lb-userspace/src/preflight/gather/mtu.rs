//! The largest packet that reaches an address: one datagram that may not be fragmented, and what the kernel knows after
//! that (ip(7), `IP_MTU_DISCOVER` and `IP_MTU`; ipv6(7) the same).

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::datagrams_to;

/// A port that nobody listens on: whoever is there says so.
const NOBODYS_PORT: u16 = 33434;
/// How long routers may take to object.
const PATIENCE: Duration = Duration::from_millis(600);
const LOOK: Duration = Duration::from_millis(20);
/// IPv4 and IPv6 headers, with UDP's.
const HEADERS: [u32; 2] = [28, 48];

/// The MTU of the whole path as far as it is known; bytes of an IP packet. `None`: it can't be asked.
pub(super) fn measure(address: IpAddr) -> Option<u32> {
    try_measure(address).ok()
}

fn try_measure(address: IpAddr) -> io::Result<u32> {
    let target = SocketAddr::new(address, NOBODYS_PORT);
    let socket = datagrams_to(target)?;
    let (level, discover, value, mtu) = if address.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO, libc::IP_MTU)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO, libc::IPV6_MTU)
    };
    set(&socket, level, discover, value)?;
    socket.connect(target)?;
    let first = get(&socket, level, mtu)?;
    let headers = HEADERS[usize::from(address.is_ipv6())];
    let full = vec![0; first.saturating_sub(headers) as usize];
    // Refused at once: the route knows better by now.
    let _ = socket.send(&full);
    let end = Instant::now() + PATIENCE;
    let mut known = first;
    while Instant::now() < end && known == first {
        sleep(LOOK);
        known = get(&socket, level, mtu)?;
        if matches!(socket.take_error(), Ok(Some(error)) if error.kind() == io::ErrorKind::ConnectionRefused)
        {
            break;
        }
    }
    Ok(known)
}

fn set(socket: &UdpSocket, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the socket is open, and the value is an `int` as these options want it, alive during the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn get(socket: &UdpSocket, level: i32, name: i32) -> io::Result<u32> {
    let mut value: i32 = 0;
    let mut length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the socket is open; the kernel writes at most `length` bytes into the `int`.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value.unsigned_abs()) }
}
