//! TLS, for HTTPS probes. Without an authority any certificate does: a probe tells whether somebody answers, and
//! pods seldom have a certificate for their address.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, WantsVerifier,
};

use super::{failure, inconclusive};
use crate::desired::HealthCheck;
use crate::health::Outcome;

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));

/// The configuration of all probes without an authority.
static UNVERIFIED: LazyLock<Result<Arc<ClientConfig>, String>> = LazyLock::new(|| {
    let verifier = Arc::new(AnyCertificate(PROVIDER.signature_verification_algorithms.supported_schemes()));
    Ok(finish(builder()?.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()))
});

/// Speaks TLS on a connection to `address`. What is wrong with the check itself says nothing about the target.
pub(super) async fn connect(
    stream: TcpStream,
    address: SocketAddr,
    check: &HealthCheck,
) -> Result<TlsStream<TcpStream>, Outcome> {
    let config = match &check.ca_certificate {
        None => UNVERIFIED.clone(),
        Some(authorities) => verified_by(authorities),
    };
    let config = config.map_err(inconclusive)?;
    let name = server_name(address, check.host.as_deref()).map_err(inconclusive)?;
    let connected = TlsConnector::from(config).connect(name, stream).await;
    connected.map_err(|error| failure(format!("TLS failed: {error}")))
}

fn server_name(address: SocketAddr, host: Option<&str>) -> Result<ServerName<'static>, String> {
    match host {
        None => Ok(ServerName::IpAddress(address.ip().into())),
        Some(host) => ServerName::try_from(host.to_owned())
            .map_err(|_| format!("the health check's host {host:?} is no DNS name; correct it")),
    }
}

/// Made for every probe: that costs a hundredth of what the handshake does.
fn verified_by(authorities: &str) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        let added = certificate
            .map_err(|error| error.to_string())
            .and_then(|certificate| roots.add(certificate).map_err(|error| error.to_string()));
        added.map_err(|error| {
            format!("the health check's CA certificate cannot be read: {error}; correct it")
        })?;
    }
    if roots.is_empty() {
        return Err(
            "the health check's CA certificate has no CERTIFICATE block of PEM; correct it".to_owned()
        );
    }
    Ok(finish(builder()?.with_root_certificates(roots).with_no_client_auth()))
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, String> {
    ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("the gateway cannot speak TLS: {error}"))
}

fn finish(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Every probe should prove all of what a new client needs.
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// Takes every certificate, and does not look at signatures either: they prove nothing where the key is
/// anybody's.
#[derive(Debug)]
struct AnyCertificate(Vec<SignatureScheme>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
