//! Which kubeconfigs of Secrets are used. Whoever may write a Secret must not thereby run programs on the
//! gateway, read its files, or send its requests elsewhere. No I/O.

use std::fmt;

use hyper::Uri;
use kube::config::{AuthInfo, Cluster, Kubeconfig};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// What the gateway's settings allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Servers whose certificate is not checked (`insecure-skip-tls-verify`).
    pub allow_insecure: bool,
}

/// A kubeconfig that may be used.
#[derive(Clone)]
pub struct Access {
    /// One context, its cluster and its user; nothing else.
    pub kubeconfig: Kubeconfig,
    /// The API server's URL.
    pub server: String,
    /// SHA-256 of the text that it was read from: another one asks for a new client.
    pub content_hash: [u8; 32],
}

/// Without the credentials.
impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Why a kubeconfig is not used, and what to do. Never tells what a credential is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum Refusal {
    /// It is not UTF-8.
    #[error("it is not text; put a kubeconfig there")]
    NotText,
    /// It is not YAML, or not a kubeconfig.
    #[error("it is not a kubeconfig: the mistake is in line {line}, column {column}; correct it there")]
    Unparsable {
        /// Line, from 1.
        line: u64,
        /// Column in characters, from 1.
        column: u64,
    },
    /// It names no context and has several or none.
    #[error("it has {count} contexts and no current-context; set current-context")]
    NoCurrentContext {
        /// How many contexts there are.
        count: usize,
    },
    /// A name leads nowhere.
    #[error("it has no {kind} named {name:?}, which its {from} names; add it, or correct the name")]
    Dangling {
        /// What is missing: context, cluster or user.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What names it.
        from: &'static str,
    },
    /// It would run a program.
    #[error(
        "its user runs a program (exec) for credentials, which a Secret may not ask for; put a token or a \
         client certificate there, as `kanmon remote-secret create` does"
    )]
    Exec,
    /// It would use a plug-in.
    #[error(
        "its user has an auth-provider, and there are no such plug-ins; put a token or a client certificate \
         there, as `kanmon remote-secret create` does"
    )]
    AuthProvider,
    /// It would read a file of the gateway.
    #[error(
        "its {field} names a file, and a Secret may not read the gateway's files; put the content into \
         {instead}"
    )]
    FilePath {
        /// The field that names the file.
        field: &'static str,
        /// The field that holds the content itself.
        instead: &'static str,
    },
    /// The server's certificate would not be checked.
    #[error(
        "insecure-skip-tls-verify is set: whoever is on the way could pose as this cluster; put its CA into \
         certificate-authority-data, or allow it for all members with allowInsecureMembers"
    )]
    Insecure,
    /// The server is not reached by https.
    #[error("its server is not of the form https://host:port; correct the server")]
    NotHttps,
    /// It would send requests through somebody else.
    #[error(
        "proxy-url is set, and the gateway connects to members directly; remove it, and make the API server \
         reachable from the gateway"
    )]
    Proxy,
}

impl Refusal {
    /// A word for programs: the reason of an Event or a condition.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotText | Self::Unparsable { .. } => "KubeconfigUnreadable",
            Self::NoCurrentContext { .. } | Self::Dangling { .. } => "KubeconfigIncomplete",
            Self::Exec => "ExecRefused",
            Self::AuthProvider => "AuthProviderRefused",
            Self::FilePath { .. } => "FilePathRefused",
            Self::Insecure => "InsecureRefused",
            Self::NotHttps => "ServerNotHttps",
            Self::Proxy => "ProxyRefused",
        }
    }
}

/// Chooses the current context (or the only one) of a kubeconfig and checks what it leads to. Contexts,
/// clusters and users beside it are dropped unread.
///
/// # Errors
///
/// The text is not a kubeconfig, or asks for what a Secret may not ask for.
pub fn check(text: &str, policy: Policy) -> Result<Access, Refusal> {
    let whole = parse(text)?;
    let kubeconfig = reduce(whole)?;
    // `reduce` leaves exactly one of each.
    let cluster = kubeconfig.clusters.iter().find_map(|named| named.cluster.clone()).unwrap_or_default();
    let user = kubeconfig.auth_infos.iter().find_map(|named| named.auth_info.clone()).unwrap_or_default();
    check_user(&user)?;
    let server = check_cluster(&cluster, policy)?;
    Ok(Access { kubeconfig, server, content_hash: Sha256::digest(text).into() })
}

/// What a leading comment, `---` or a trailing one surrounds. A parser's own message may quote the line, and
/// with it a credential, so only the place is told.
fn parse(text: &str) -> Result<Kubeconfig, Refusal> {
    // Aliases could make a small text huge, and no kubeconfig needs them.
    let options = serde_saphyr::options! { budget: serde_saphyr::budget! { max_aliases: 0 } };
    let documents: Result<Vec<Option<Document>>, _> = serde_saphyr::from_multiple_with_options(text, options);
    let documents = documents.map_err(|error| {
        let (line, column, _) = crate::config::yaml::locate(&error);
        Refusal::Unparsable { line, column }
    })?;
    let mut documents = documents.into_iter().flatten();
    match (documents.next(), documents.next()) {
        (Some(Document(kubeconfig)), None) => Ok(*kubeconfig),
        // Nothing, or two: either way the text as a whole is no kubeconfig.
        _ => Err(Refusal::Unparsable { line: 1, column: 1 }),
    }
}

#[derive(Deserialize, Serialize)]
#[serde(transparent)]
struct Document(Box<Kubeconfig>);

/// One context, its cluster and its user.
fn reduce(mut whole: Kubeconfig) -> Result<Kubeconfig, Refusal> {
    let current = whole.current_context.take().filter(|name| !name.is_empty());
    let context = match current {
        Some(name) => whole
            .contexts
            .into_iter()
            .find(|context| context.name == name)
            .ok_or(Refusal::Dangling { kind: "context", name, from: "current-context" })?,
        None if whole.contexts.len() == 1 => whole.contexts.remove(0),
        None => return Err(Refusal::NoCurrentContext { count: whole.contexts.len() }),
    };
    let names = context.context.clone().unwrap_or_default();
    let cluster = whole
        .clusters
        .into_iter()
        .find(|cluster| cluster.name == names.cluster)
        .ok_or(Refusal::Dangling { kind: "cluster", name: names.cluster, from: "context" })?;
    let user = names.user.unwrap_or_default();
    let user = whole.auth_infos.into_iter().find(|named| named.name == user).ok_or(Refusal::Dangling {
        kind: "user",
        name: user,
        from: "context",
    })?;
    Ok(Kubeconfig {
        current_context: Some(context.name.clone()),
        contexts: vec![context],
        clusters: vec![cluster],
        auth_infos: vec![user],
        kind: whole.kind,
        api_version: whole.api_version,
        ..Kubeconfig::default()
    })
}

fn check_user(user: &AuthInfo) -> Result<(), Refusal> {
    if user.exec.is_some() {
        return Err(Refusal::Exec);
    }
    if user.auth_provider.is_some() {
        return Err(Refusal::AuthProvider);
    }
    file(user.client_certificate.as_ref(), "client-certificate", "client-certificate-data")?;
    file(user.client_key.as_ref(), "client-key", "client-key-data")?;
    file(user.token_file.as_ref(), "tokenFile", "token")
}

/// The server's URL.
fn check_cluster(cluster: &Cluster, policy: Policy) -> Result<String, Refusal> {
    file(cluster.certificate_authority.as_ref(), "certificate-authority", "certificate-authority-data")?;
    if cluster.insecure_skip_tls_verify == Some(true) && !policy.allow_insecure {
        return Err(Refusal::Insecure);
    }
    if cluster.proxy_url.as_ref().is_some_and(|url| !url.is_empty()) {
        return Err(Refusal::Proxy);
    }
    let server = cluster.server.clone().unwrap_or_default();
    if is_https(&server) { Ok(server) } else { Err(Refusal::NotHttps) }
}

/// Whether a text is a URL of the form `https://host:port`. User and password would end up in messages.
pub(crate) fn is_https(url: &str) -> bool {
    url.parse::<Uri>().is_ok_and(|uri| {
        uri.scheme_str() == Some("https")
            && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
    })
}

fn file(path: Option<&String>, field: &'static str, instead: &'static str) -> Result<(), Refusal> {
    match path {
        Some(path) if !path.is_empty() => Err(Refusal::FilePath { field, instead }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "s3cret-token";

    fn text(cluster: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\npreferences: {{}}\ncurrent-context: c\ncontexts:\n- name: c\n  \
             context: {{cluster: c, user: u}}\nclusters:\n- name: c\n  cluster: {{{cluster}}}\nusers:\n\
             - name: u\n  user: {{{user}}}\n"
        )
    }

    fn good() -> String {
        text("server: \"https://198.51.100.1:6443\", certificate-authority-data: QQ==", &token(""))
    }

    fn token(more: &str) -> String {
        format!("token: {TOKEN}{more}")
    }

    fn refusal(text: &str) -> Refusal {
        check(text, Policy::default()).expect_err(text)
    }

    #[test]
    fn a_token_and_a_ca_are_all_that_is_needed() {
        let access = check(&good(), Policy::default()).unwrap();
        assert_eq!(access.server, "https://198.51.100.1:6443");
        assert_eq!(access.kubeconfig.contexts.len(), 1);
        assert!(access.kubeconfig.auth_infos[0].auth_info.as_ref().unwrap().token.is_some());
    }

    #[test]
    fn comments_and_document_markers_around_it_are_tolerated() {
        for around in [format!("# made by a tool\n{}---\n", good()), format!("---\n{}", good())] {
            assert!(check(&around, Policy::default()).is_ok(), "{around}");
        }
    }

    #[test]
    fn another_text_has_another_hash_and_the_same_text_the_same() {
        let hash = |text: &str| check(text, Policy::default()).unwrap().content_hash;
        assert_eq!(hash(&good()), hash(&good()));
        assert_ne!(hash(&good()), hash(&good().replace(TOKEN, "rotated")));
    }

    #[test]
    fn what_could_run_programs_read_files_or_lead_elsewhere_is_refused() {
        let server = "server: \"https://a:6443\"";
        let path = |field, instead| Refusal::FilePath { field, instead };
        for (cluster, user, expected) in [
            (server, "exec: {apiVersion: x, command: sh}", Refusal::Exec),
            (server, "auth-provider: {name: gcp}", Refusal::AuthProvider),
            (server, "client-certificate: /x", path("client-certificate", "client-certificate-data")),
            (server, "client-key: /x", path("client-key", "client-key-data")),
            (server, "tokenFile: /x", path("tokenFile", "token")),
            (
                "server: \"https://a\", certificate-authority: /x",
                "token: x",
                path("certificate-authority", "certificate-authority-data"),
            ),
            ("server: \"https://a\", insecure-skip-tls-verify: true", "token: x", Refusal::Insecure),
            ("server: \"https://a\", proxy-url: \"http://b\"", "token: x", Refusal::Proxy),
            ("server: \"http://a:6443\"", "token: x", Refusal::NotHttps),
            ("server: \"https://user:pass@a\"", "token: x", Refusal::NotHttps),
            ("server: \"a:6443\"", "token: x", Refusal::NotHttps),
            ("server: \"\"", "token: x", Refusal::NotHttps),
            ("certificate-authority-data: QQ==", "token: x", Refusal::NotHttps),
        ] {
            assert_eq!(refusal(&text(cluster, user)), expected, "{cluster} {user}");
        }
    }

    #[test]
    fn insecure_servers_are_used_where_the_gateway_allows_it() {
        let text = text("server: \"https://a\", insecure-skip-tls-verify: true", "token: x");
        assert!(check(&text, Policy { allow_insecure: true }).is_ok());
    }

    #[test]
    fn only_the_chosen_context_matters() {
        let more = "- name: other\n  user: {exec: {command: sh}}\n";
        let access = check(&(good() + more), Policy::default()).unwrap();
        assert_eq!(access.kubeconfig.auth_infos.len(), 1);
    }

    #[test]
    fn the_only_context_needs_no_current_context_and_several_do() {
        let only = good().replace("current-context: c\n", "");
        assert!(check(&only, Policy::default()).is_ok());
        let two = only.replace("contexts:\n", "contexts:\n- {name: d, context: {cluster: c, user: u}}\n");
        assert_eq!(refusal(&two), Refusal::NoCurrentContext { count: 2 });
        assert_eq!(refusal("kind: Config"), Refusal::NoCurrentContext { count: 0 });
    }

    #[test]
    fn names_that_lead_nowhere_are_told() {
        for (from, to, kind, expected) in [
            ("current-context: c", "current-context: x", "context", "x"),
            ("context: {cluster: c", "context: {cluster: x", "cluster", "x"),
            ("user: u}", "user: x}", "user", "x"),
        ] {
            match refusal(&good().replace(from, to)) {
                Refusal::Dangling { kind: found, name, .. } => assert_eq!((found, &*name), (kind, expected)),
                other => panic!("{other}"),
            }
        }
    }

    #[test]
    fn no_message_tells_a_credential() {
        let broken = good().replace(&token(""), &format!("token: [{TOKEN}"));
        let odd = text("server: \"https://a\"", &format!("token: {{a: {TOKEN}}}"));
        for text in [broken, odd, format!("{TOKEN}: {TOKEN}: {TOKEN}")] {
            let refusal = refusal(&text);
            assert!(matches!(refusal, Refusal::Unparsable { .. }), "{refusal}");
            assert!(!format!("{refusal} {refusal:?}").contains(TOKEN));
        }
        let access = check(&good(), Policy::default()).unwrap();
        assert!(!format!("{access:?} {access:#?}").contains(TOKEN));
    }

    #[test]
    fn a_text_that_swells_by_aliases_is_refused() {
        let text = "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: [*b,*b,*b,*b]\n".to_owned() + &good();
        assert!(matches!(refusal(&text), Refusal::Unparsable { .. }));
    }
}
