//! HTTPS probes, and whom they believe.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;

/// An authority, and its certificate in PEM.
fn authority(name: &str) -> (Issuer<'static, KeyPair>, Arc<str>) {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let pem = params.self_signed(&key).expect("a certificate").pem();
    (Issuer::new(params, key), pem.into())
}

/// A certificate for `name`, an address or a DNS name.
fn issue(issuer: &Issuer<'static, KeyPair>, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new([name.to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, issuer).expect("a certificate");
    (certificate.der().clone(), PrivateKeyDer::Pkcs8(key.serialize_der().into()))
}

/// A server that shows the certificate and answers 200; gives back the names that clients ask for in TLS, and
/// the heads of their requests.
async fn serve_tls(
    (certificate, key): (CertificateDer<'static>, PrivateKeyDer<'static>),
) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<(Option<String>, String)>) {
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has them")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("they belong together");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("local address");
    let (asked, received) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not believe us goes away.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let name = stream.get_ref().1.server_name().map(str::to_owned);
            let mut head = vec![0; 4096];
            let length = stream.read(&mut head).await.unwrap_or(0);
            let _ = asked.send((name, String::from_utf8_lossy(&head[..length]).to_lowercase()));
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            let _ = stream.flush().await;
        }
    });
    (address, received)
}

fn https(address: SocketAddr, host: Option<&str>, ca: Option<&Arc<str>>) -> ProbeTarget {
    let kind = HealthCheckKind::Https { path: "/up".into(), expected_status: 200..=299 };
    let mut target = target(address, kind);
    target.check.host = host.map(str::to_owned);
    target.check.ca_certificate = ca.cloned();
    target
}

#[tokio::test]
async fn without_an_authority_any_certificate_will_do() {
    let (issuer, _) = authority("ours");
    let (address, mut asked) = serve_tls(issue(&issuer, "elsewhere.example")).await;
    assert_eq!(probe_once(&https(address, None, None)).await, Outcome::Success);
    let (name, head) = asked.recv().await.expect("a request");
    assert_eq!(name, None);
    assert!(head.starts_with("get /up http/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("host: {address}\r\n")), "{head}");
}

#[tokio::test]
async fn a_host_is_asked_for_in_tls_and_in_http() {
    let (issuer, pem) = authority("ours");
    let (address, mut asked) = serve_tls(issue(&issuer, "web.example")).await;
    assert_eq!(probe_once(&https(address, Some("web.example"), Some(&pem))).await, Outcome::Success);
    let (name, head) = asked.recv().await.expect("a request");
    assert_eq!(name.as_deref(), Some("web.example"));
    assert!(head.contains("host: web.example\r\n"), "{head}");
}

#[tokio::test]
async fn with_an_authority_the_certificate_must_be_of_it() {
    let (issuer, pem) = authority("ours");
    let (_, stranger) = authority("stranger");
    let (address, _asked) = serve_tls(issue(&issuer, "127.0.0.1")).await;
    assert_eq!(probe_once(&https(address, None, Some(&pem))).await, Outcome::Success);
    let text = reason(probe_once(&https(address, None, Some(&stranger))).await);
    assert!(text.starts_with("TLS failed: ") && text.contains("UnknownIssuer"), "{text}");
}

#[tokio::test]
async fn with_an_authority_the_certificate_must_be_for_what_is_probed() {
    let (issuer, pem) = authority("ours");
    let (address, _asked) = serve_tls(issue(&issuer, "web.example")).await;
    let text = reason(probe_once(&https(address, None, Some(&pem))).await);
    assert!(text.starts_with("TLS failed: ") && text.contains("not valid for"), "{text}");
}

#[tokio::test]
async fn an_https_status_is_judged_too() {
    let (issuer, _) = authority("ours");
    let (address, _asked) = serve_tls(issue(&issuer, "web.example")).await;
    let mut other = https(address, None, None);
    other.check.kind = HealthCheckKind::Https { path: "/".into(), expected_status: 204..=204 };
    assert_eq!(reason(probe_once(&other).await), "HTTP status 200, expected 204–204");
}

#[tokio::test]
async fn a_server_without_tls_is_a_failure() {
    let (address, _heads) = serve("127.0.0.1:0", "HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let text = reason(probe_once(&https(address, None, None)).await);
    assert!(text.starts_with("TLS failed: "), "{text}");
}

#[tokio::test]
async fn a_check_that_cannot_be_done_blames_nobody() {
    let (issuer, _) = authority("ours");
    let (address, _asked) = serve_tls(issue(&issuer, "web.example")).await;
    for (host, ca, expected) in [
        (None, Some("not PEM"), "has no CERTIFICATE block"),
        (None, Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "cannot be read"),
        (Some("a name"), None, "is no DNS name"),
    ] {
        match probe_once(&https(address, host, ca.map(Arc::from).as_ref())).await {
            Outcome::Inconclusive { reason } => assert!(reason.contains(expected), "{reason}"),
            other => panic!("{expected}: {other:?}"),
        }
    }
}
