//! One UDP request.

use std::net::SocketAddr;

use socket2::Type;
use tokio::net::UdpSocket;

use super::{
    conversation::bound,
    outcome::{Answer, Failure},
};

/// Sends one datagram from a socket of its own and waits for the answer to it.
pub(super) async fn request(
    source: SocketAddr,
    target: SocketAddr,
    number: usize,
) -> Result<Answer, Failure> {
    let socket = UdpSocket::from_std(bound(source, Type::DGRAM)?.into())?;
    // Connected: the kernel hands over only what comes from the target, and ICMP errors.
    socket.connect(target).await?;
    let question = format!("request {number} from {}", socket.local_addr()?);
    socket.send(question.as_bytes()).await?;
    let mut received = [0; 512];
    let len = socket.recv(&mut received).await?;
    let text = String::from_utf8_lossy(&received[..len]);
    match text.split_once('\n') {
        Some((line, echoed)) if echoed == question => Answer::parse(line),
        _ => Err(Failure::WrongAnswer(text.chars().take(80).collect())),
    }
}
