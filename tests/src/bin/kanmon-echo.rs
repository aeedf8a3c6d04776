//! A pod's server: HTTP/1.1 and UDP on one port, over IPv4 and IPv6, that says which pod it is.
//!
//! `GET /` answers a line `pod=NAME cluster=NAME client=ADDRESS`, `GET /healthz` answers `ok`, `GET /bytes/COUNT` so many
//! zeroes. A datagram is
//! answered by the same line and, behind it, what the datagram held.
//!
//! SIGTERM ends it the way good servers end: for a while ([`Args::drain_delay`]) it takes new connections and
//! datagrams as before, because not every load balancer knows yet; then it takes no more, and it ends when
//! the clients have closed the connections they have, however long that takes.
//!
//! SIGUSR1 makes it refuse connections from then on, while those it has live, and SIGUSR2 take them again: a
//! server that is broken, in a process that runs.

use std::{
    future::pending,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Parser;
use socket2::{Domain, Socket, Type};
use tests::client::raise_open_files;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

/// Longest request head that is read.
const HEAD_LIMIT: usize = 8192;
/// Zeroes that are sent at once.
const ZEROES: usize = 1 << 18;

/// An HTTP and UDP server that says which pod it is.
#[derive(Parser)]
struct Args {
    /// The pod's name.
    #[arg(long, env = "HOSTNAME")]
    pod: String,
    /// The name of its member cluster.
    #[arg(long, env = "KANMON_CLUSTER")]
    cluster: String,
    /// TCP and UDP port.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// How long after SIGTERM it takes new connections, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    drain_delay: Duration,
}

fn seconds(text: &str) -> Result<Duration> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    raise_open_files()?;
    let here = SocketAddr::from((Ipv6Addr::UNSPECIFIED, args.port));
    let door = Door::open(here)?;
    let datagrams = datagrams(here).with_context(|| format!("cannot receive datagrams at {here}"))?;
    let name = Arc::new(format!("pod={} cluster={}", args.pod, args.cluster));
    let answering = tokio::spawn(echo(datagrams, name.clone()));
    let mut connections = JoinSet::new();
    take_until_drained(door, &name, args.drain_delay, &mut connections).await?;
    answering.abort();
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// Where connections are taken, or refused for a while.
struct Door {
    here: SocketAddr,
    listener: Option<TcpListener>,
    close: Signal,
    reopen: Signal,
}

impl Door {
    fn open(here: SocketAddr) -> Result<Door> {
        let on = |kind| signal(kind).context("cannot handle a signal");
        Ok(Door {
            here,
            listener: Some(listen(here)?),
            close: on(SignalKind::user_defined1())?,
            reopen: on(SignalKind::user_defined2())?,
        })
    }

    /// The next connection. Nothing is lost where this is dropped before it is done.
    async fn accept(&mut self) -> Result<io::Result<(TcpStream, SocketAddr)>> {
        loop {
            tokio::select! {
                accepted = accept(self.listener.as_ref()) => return Ok(accepted),
                _ = self.close.recv() => self.listener = None,
                _ = self.reopen.recv() => if self.listener.is_none() {
                    self.listener = Some(listen(self.here)?);
                },
            }
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => pending().await,
    }
}

/// Takes connections until `delay` after SIGTERM.
async fn take_until_drained(
    mut door: Door,
    name: &str,
    delay: Duration,
    connections: &mut JoinSet<()>,
) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut end: Option<Instant> = None;
    loop {
        tokio::select! {
            accepted = door.accept() => match accepted? {
                Ok((stream, client)) => {
                    let answer = identity(name, client);
                    // The peer may be gone at any time: an error ends this connection and nothing else.
                    connections.spawn(async move {
                        let _ = serve(stream, answer).await;
                    });
                }
                // Out of descriptors: let connections end before the next one.
                Err(_) => sleep(Duration::from_millis(5)).await,
            },
            Some(_) = connections.join_next() => {}
            _ = terminate.recv() => {
                end.get_or_insert(Instant::now() + delay);
            }
            () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => return Ok(()),
        }
    }
}

/// A socket of both families.
fn dual_stack(here: SocketAddr, kind: Type) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(kind == Type::STREAM)?;
    socket.set_nonblocking(true)?;
    socket.bind(&here.into())?;
    Ok(socket)
}

fn listen(here: SocketAddr) -> Result<TcpListener> {
    let socket = dual_stack(here, Type::STREAM).with_context(|| format!("cannot listen at {here}"))?;
    socket.listen(65535)?;
    Ok(TcpListener::from_std(socket.into())?)
}

fn datagrams(here: SocketAddr) -> Result<UdpSocket> {
    let socket = dual_stack(here, Type::DGRAM)?;
    socket.set_recv_buffer_size(4 << 20)?;
    Ok(UdpSocket::from_std(socket.into())?)
}

fn identity(name: &str, client: SocketAddr) -> String {
    let ip = match client.ip() {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 => v4,
    };
    format!("{name} client={}\n", SocketAddr::new(ip, client.port()))
}

async fn echo(socket: UdpSocket, name: Arc<String>) {
    let mut payload = vec![0; 65536];
    loop {
        // An ICMP error about an earlier answer is reported here: it concerns nobody now.
        if let Ok((len, client)) = socket.recv_from(&mut payload).await {
            let mut answer = identity(&name, client).into_bytes();
            answer.extend_from_slice(&payload[..len]);
            let _ = socket.send_to(&answer, client).await;
        }
    }
}

/// Answers requests without a body until the client is done.
async fn serve(mut stream: TcpStream, answer: String) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut received = Vec::with_capacity(1024);
    loop {
        let Some(request) = parse(&received)? else {
            if stream.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
            continue;
        };
        received.drain(..request.len);
        if let Some(count) = request.path.strip_prefix("/bytes/").and_then(|count| count.parse().ok()) {
            send_zeroes(&mut stream, count).await?;
            continue;
        }
        let (status, body) = match request.path.as_str() {
            "/" => ("200 OK", answer.as_str()),
            "/healthz" => ("200 OK", "ok\n"),
            _ => ("404 Not Found", "not here\n"),
        };
        let connection = if request.close { "close" } else { "keep-alive" };
        let response = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(response.as_bytes()).await?;
        if request.close {
            return Ok(stream.shutdown().await?);
        }
    }
}

/// Answers with a body of so many zeroes.
async fn send_zeroes(stream: &mut TcpStream, count: usize) -> Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {count}\r\nConnection: keep-alive\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let zeroes = vec![0; ZEROES];
    let mut left = count;
    while left > 0 {
        let piece = left.min(ZEROES);
        stream.write_all(&zeroes[..piece]).await?;
        left -= piece;
    }
    Ok(())
}

struct Request {
    path: String,
    close: bool,
    len: usize,
}

/// The first request in `received`, once it is there whole.
fn parse(received: &[u8]) -> Result<Option<Request>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(len) = request.parse(received)? else {
        anyhow::ensure!(received.len() < HEAD_LIMIT, "a request head of more than {HEAD_LIMIT} bytes");
        return Ok(None);
    };
    let old = request.version == Some(0);
    let close = request.headers.iter().any(|header| {
        header.name.eq_ignore_ascii_case("connection") && header.value.eq_ignore_ascii_case(b"close")
    });
    Ok(Some(Request { path: request.path.unwrap_or("/").to_owned(), close: close || old, len }))
}
