//! A cluster's certificates: one authority, the API server's certificate, and client certificates whose
//! subject is a user and a group.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// The authority of one cluster, and the directory with the files that the cluster's programs read.
pub(super) struct Pki {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    authority: String,
}

/// A certificate and its key, in PEM.
pub(super) struct Identity {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Pki {
    /// Makes an authority for the cluster called `cluster`, the certificate of an API server that is reached
    /// by `addresses`, and the key that signs service account tokens; the files go to `dir`.
    pub(super) fn create(dir: PathBuf, cluster: &str, addresses: &[IpAddr]) -> Result<Pki> {
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let (authority, issuer) =
            authority(cluster).with_context(|| format!("cannot make an authority for {cluster}"))?;
        let pki = Pki { dir, issuer, authority };
        pki.write("ca.crt", &pki.authority)?;
        let server = pki.server(cluster, addresses).context("cannot make a certificate for an API server")?;
        pki.write("server.crt", &server.certificate)?;
        pki.write("server.key", &server.key)?;
        let tokens = KeyPair::generate().context("cannot make a key for service account tokens")?;
        pki.write("service-accounts.key", &tokens.serialize_pem())?;
        pki.write("service-accounts.pub", &tokens.public_key_pem())?;
        Ok(pki)
    }

    /// The file called `name`: `ca.crt`, `server.crt`, `server.key`, `service-accounts.key` (signs tokens) or
    /// `service-accounts.pub`.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The authority's certificate, in PEM.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// A client certificate. The API server takes its common name for the user, its organisation for the
    /// user's group.
    pub(super) fn client(&self, user: &str, group: Option<&str>) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params).with_context(|| format!("cannot make a client certificate for {user}"))
    }

    fn server(&self, cluster: &str, addresses: &[IpAddr]) -> Result<Identity> {
        let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        let mut params = CertificateParams::new(names.map(str::to_owned))?;
        params.subject_alt_names.extend(addresses.iter().map(|&ip| SanType::IpAddress(ip)));
        params.distinguished_name.push(DnType::CommonName, format!("{cluster}-kube-apiserver"));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Result<Identity> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Identity { certificate, key: key.serialize_pem() })
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        write(&self.file(name), text)
    }
}

fn authority(cluster: &str) -> Result<(String, Issuer<'static, KeyPair>)> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("{cluster}-ca"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?.pem();
    Ok((certificate, Issuer::new(params, key)))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
