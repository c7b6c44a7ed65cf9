//! The verifier of one handshake: asks the [`Acceptance`] and keeps what it said.
//!
//! rustls tells nobody which authority accepted, so every connection has its own verifier and reads the verdict from
//! it afterwards.

use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::verify_tls13_signature;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::acceptance::{Acceptance, Verdict};
use super::presented::Away;
use super::provider;
use crate::clock::Wall;
use crate::outcome::Handshake;

/// Verifies one client certificate.
#[derive(Debug)]
pub(super) struct OneVerifier {
    acceptance: Arc<Acceptance>,
    now: Wall,
    said: Mutex<Option<Result<Verdict, Away>>>,
}

impl OneVerifier {
    pub(super) fn new(acceptance: Arc<Acceptance>, now: Wall) -> Arc<OneVerifier> {
        Arc::new(OneVerifier { acceptance, now, said: Mutex::new(None) })
    }

    /// What was said, if a certificate was shown.
    pub(super) fn said(&self) -> Option<Result<Verdict, Away>> {
        self.said.lock().take()
    }
}

impl ClientCertVerifier for OneVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Who the partners' authorities are is nobody else's business.
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        !self.acceptance.terms.explain
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _presented: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let said = self.acceptance.judge(end_entity, self.now);
        let answer = match &said {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(turned) => Err(Error::InvalidCertificate(alert(turned.result))),
        };
        let away = |turned| Away { presented: self.acceptance.presented(end_entity, &turned, self.now), turned };
        *self.said.lock() = Some(said.map_err(away));
        answer
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The error whose alert fits the result.
fn alert(result: Handshake) -> CertificateError {
    match result {
        Handshake::Expired => CertificateError::Expired,
        Handshake::NotYetValid => CertificateError::NotValidYet,
        Handshake::Revoked => CertificateError::Revoked,
        Handshake::UnknownIssuer => CertificateError::UnknownIssuer,
        Handshake::Other => CertificateError::ExpiredRevocationList,
        _ => CertificateError::BadEncoding,
    }
}
