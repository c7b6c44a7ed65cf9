//! One handshake, from the first byte to a proof or a classified failure.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, Error, PeerIncompatible, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::acceptance::Acceptance;
use super::presented::{Away, Presented};
use super::verifier::OneVerifier;
use super::{clip, provider};
use crate::clock::Wall;
use crate::outcome::Handshake;
use crate::peer::Peer;

/// The decrypted side of a connection; boxed, because it is large and is handed on from layer to layer.
pub type ServerStream<S> = Box<TlsStream<S>>;

/// A finished handshake.
pub struct Accepted<S> {
    /// What flows now.
    pub stream: ServerStream<S>,
    /// What was proved.
    pub proof: Proof,
    /// What was agreed to speak.
    pub alpn: Alpn,
}

/// What a handshake proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// A certificate that holds.
    Certified(Peer),
    /// There was none, and the policy wants that explained.
    Missing,
}

/// The protocol above TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/2.
    H2,
    /// HTTP/1.1, also where nothing was said.
    Http1,
}

/// A handshake that failed.
#[derive(Debug)]
pub struct Failed {
    /// How.
    pub result: Handshake,
    /// The detail, for the operator.
    pub detail: String,
    /// The certificate that was shown, if it came to that.
    pub presented: Option<Box<Presented>>,
}

impl Failed {
    fn new(result: Handshake, detail: String) -> Failed {
        Failed { result, detail, presented: None }
    }
}

impl From<Away> for Failed {
    fn from(Away { turned, presented }: Away) -> Failed {
        Failed { presented: Some(Box::new(presented)), ..Failed::new(turned.result, turned.detail) }
    }
}

/// Performs the server's side of a handshake within `patience`.
///
/// # Errors
/// [`Failed`], with the result that metrics and records name.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    acceptance: &Arc<Acceptance>,
    address: SocketAddr,
    now: Wall,
    patience: Duration,
) -> Result<Accepted<S>, Failed> {
    match timeout(patience, handshake(stream, acceptance, address, now)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Failed::new(Handshake::Timeout, format!("not finished within {patience:?}"))),
    }
}

async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    acceptance: &Arc<Acceptance>,
    address: SocketAddr,
    now: Wall,
) -> Result<Accepted<S>, Failed> {
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await.map_err(|error| classify(&error))?;
    let name = start.client_hello().server_name().map(str::to_owned);
    let served = name.as_deref().is_some_and(|name| acceptance.serves(name));
    let verifier = OneVerifier::new(acceptance.clone(), now);
    let config =
        config(acceptance, &verifier, served).map_err(|error| Failed::new(Handshake::Other, error.to_string()))?;
    let outcome = start.into_stream(config).await;
    if !served {
        let detail = name.map_or_else(|| "no SNI".to_owned(), |name| format!("SNI {:?}", clip(&name)));
        return Err(Failed::new(Handshake::ServerName, detail));
    }
    let stream = match outcome {
        Ok(stream) => stream,
        Err(error) => {
            return Err(match verifier.said() {
                Some(Err(away)) => away.into(),
                // It holds, and may be another's: the signature that proves the key did not come, or is wrong.
                Some(Ok(verdict)) => Failed { presented: Some(Box::new(verdict.into())), ..classify(&error) },
                None => classify(&error),
            });
        }
    };
    let proof = match verifier.said() {
        Some(Ok(verdict)) => {
            Proof::Certified(Peer::proved(verdict.authority, verdict.authority_spki, verdict.leaf, address))
        }
        Some(Err(away)) => return Err(away.into()),
        None => Proof::Missing,
    };
    let alpn = if stream.get_ref().1.alpn_protocol() == Some(b"h2") { Alpn::H2 } else { Alpn::Http1 };
    Ok(Accepted { stream: Box::new(stream), proof, alpn })
}

/// A configuration for one connection. No tickets, no session cache, no early data: a resumed session would bypass
/// every later revocation.
fn config(acceptance: &Acceptance, verifier: &Arc<OneVerifier>, served: bool) -> Result<Arc<ServerConfig>, Error> {
    let resolver: Arc<dyn ResolvesServerCert> =
        if served { acceptance.resolver.clone() } else { Arc::new(NoCertificate) };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier.clone())
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
    Ok(Arc::new(config))
}

/// For names that are not served: rustls then refuses the handshake.
#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

fn classify(error: &io::Error) -> Failed {
    let tls = error.get_ref().and_then(|inside| inside.downcast_ref::<Error>());
    let result = match tls {
        Some(Error::NoCertificatesPresented) => Handshake::NoCertificate,
        Some(
            Error::PeerIncompatible(
                PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::Tls13RequiredForQuic,
            )
            | Error::AlertReceived(AlertDescription::ProtocolVersion),
        ) => Handshake::Version,
        _ => Handshake::Other,
    };
    Failed::new(result, clip(&error.to_string()))
}
