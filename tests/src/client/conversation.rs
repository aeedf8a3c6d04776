//! One HTTP connection: connect from a chosen source, ask, read who answers.

use std::{future::Future, io, mem::MaybeUninit, net::SocketAddr, os::fd::AsRawFd, time::Duration};

use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt::IpBindAddressNoPort},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::outcome::{Answer, Failure};

/// An open connection.
#[derive(Debug)]
pub(super) struct Conversation {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Conversation {
    /// Connects. Port 0 of `source` leaves the port to the kernel, which then chooses by the whole
    /// four-tuple, so that one address serves 64,512 connections to each target.
    pub(super) async fn connect(source: SocketAddr, target: SocketAddr) -> Result<Conversation, Failure> {
        let socket = bound(source, Type::STREAM)?;
        let stream = TcpSocket::from_std_stream(socket.into()).connect(target).await?;
        stream.set_nodelay(true)?;
        Ok(Conversation { stream, received: Vec::with_capacity(512) })
    }

    /// Asks `GET /`; with `last` the server closes the connection behind its answer.
    pub(super) async fn ask(&mut self, last: bool) -> Result<Answer, Failure> {
        let connection = if last { "close" } else { "keep-alive" };
        let request = format!("GET / HTTP/1.1\r\nHost: httpbin.demo\r\nConnection: {connection}\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await?;
        loop {
            if let Some((answer, len)) = parse(&self.received)? {
                self.received.drain(..len);
                return Ok(answer);
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(Failure::Reset);
            }
        }
    }

    /// Asks for a body of so many bytes, and reads it.
    pub(super) async fn fetch(&mut self, bytes: usize) -> Result<(), Failure> {
        let request = format!("GET /bytes/{bytes} HTTP/1.1\r\nHost: httpbin.demo\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await?;
        let mut piece = vec![0; 1 << 18];
        let mut head = Vec::new();
        let mut left = loop {
            let len = self.stream.read(&mut piece).await?;
            head.extend_from_slice(&piece[..len]);
            if let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
                let body = head.len() - end - 4;
                break bytes.checked_sub(body).ok_or_else(|| Failure::WrongAnswer("too long".into()))?;
            }
            if len == 0 {
                return Err(Failure::Reset);
            }
        };
        while left > 0 {
            match self.stream.read(&mut piece).await? {
                0 => return Err(Failure::Reset),
                len => left = left.saturating_sub(len),
            }
        }
        Ok(())
    }

    /// How many segments the kernel has sent again on it; before the first request these are SYNs.
    pub(super) fn retransmissions(&self) -> io::Result<u32> {
        Ok(tcp_info(&self.stream)?.tcpi_total_retrans)
    }

    /// Waits for the server's end of the connection, then closes it: TIME_WAIT is the server's.
    pub(super) async fn after_server(mut self) -> Result<(), Failure> {
        while self.stream.read_buf(&mut self.received).await? > 0 {}
        Ok(())
    }

    /// Closes the connection with RST: no TIME_WAIT anywhere.
    pub(super) fn reset(self) -> Result<(), Failure> {
        Ok(socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?)
    }
}

/// A socket of the source's family, bound to it.
pub(super) fn bound(source: SocketAddr, kind: Type) -> io::Result<Socket> {
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::for_address(source), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if kind == Type::STREAM && source.port() == 0 {
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
    } else if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&source.into())?;
    Ok(socket)
}

/// What the kernel knows of a connection.
fn tcp_info(stream: &TcpStream) -> io::Result<libc::tcp_info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).map_err(io::Error::other)?;
    // SAFETY: the socket is open while it is borrowed; `info` has `len` bytes, and the kernel writes no more.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    Errno::result(result)?;
    // SAFETY: integers and bit fields only, zeroed before the kernel wrote: every bit pattern is a value.
    Ok(unsafe { info.assume_init() })
}

/// Lets a request take `limit` at most.
pub(super) async fn within<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    timeout(limit, request).await.unwrap_or(Err(Failure::Timeout))
}

/// The first response in `received` and its length, once it is there whole.
fn parse(received: &[u8]) -> Result<Option<(Answer, usize)>, Failure> {
    let wrong = |what: String| Failure::WrongAnswer(what);
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(received).map_err(|e| wrong(e.to_string()))? {
        httparse::Status::Complete(len) => len,
        httparse::Status::Partial => return Ok(None),
    };
    if response.code != Some(200) {
        return Err(wrong(format!("status {}", response.code.unwrap_or(0))));
    }
    let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let body: usize = length
        .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok())
        .ok_or_else(|| wrong("a response without a length".into()))?;
    match received.get(head..head + body) {
        Some(body_bytes) => {
            let text = std::str::from_utf8(body_bytes).map_err(|e| wrong(e.to_string()))?;
            Ok(Some((Answer::parse(text)?, head + body)))
        }
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 28\r\n\r\npod=a-1 cluster=a client=c:1\n";

    #[test]
    fn a_response_counts_once_it_is_whole() {
        let whole = &RESPONSE[..RESPONSE.len() - 1];
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len]), Ok(None), "{len} bytes");
        }
        let (answer, len) = parse(whole).unwrap().unwrap();
        assert_eq!((answer.pod.as_str(), len), ("a-1", whole.len()));
    }

    #[test]
    fn another_status_or_another_protocol_is_a_wrong_answer() {
        let gone = b"HTTP/1.1 503 Gone\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(parse(gone), Err(Failure::WrongAnswer("status 503".into())));
        assert!(matches!(parse(b"SSH-2.0-OpenSSH\r\n"), Err(Failure::WrongAnswer(_))));
    }
}
