//! What a handshake proved about the other side.
//!
//! A [`Peer`] exists only after the chain, the revocation lists and the certificate profile were checked; `tls` is
//! the one caller of [`Peer::proved`]. It says nothing about organizations: that is judged anew for every request.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::clock::Wall;
use crate::names::AuthorityName;

/// A SHA-256 digest, shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    /// Parses 64 hexadecimal digits; colons between pairs are allowed, as `openssl` prints them.
    #[must_use]
    pub fn parse(text: &str) -> Option<Sha256> {
        let digits: Vec<u8> = text.bytes().filter(|b| *b != b':').collect();
        if digits.len() != 64 {
            return None;
        }
        let mut out = [0u8; 32];
        for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
            let [high, low] = pair else { return None };
            let high = char::from(*high).to_digit(16)?;
            let low = char::from(*low).to_digit(16)?;
            *byte = u8::try_from(high * 16 + low).ok()?;
        }
        Some(Sha256(out))
    }

    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Sha256 {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
        let mut out = [0u8; 32];
        out.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
        Sha256(out)
    }
}

impl Sha256 {
    /// The 64 lower-case hexadecimal digits; several stand in every audit line.
    fn digits(self) -> [u8; 64] {
        let mut digits = [b'0'; 64];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(self.0) {
            for (digit, nibble) in pair.iter_mut().zip([byte >> 4, byte & 15]) {
                *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
            }
        }
        digits
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.digits()).unwrap_or_default())
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Sha256 {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(std::str::from_utf8(&self.digits()).unwrap_or_default())
    }
}

/// The leaf certificate, reduced to what identity, revocation and records need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Digest of the whole certificate (DER).
    pub sha256: Sha256,
    /// Digest of its public key (DER `SubjectPublicKeyInfo`).
    pub spki_sha256: Sha256,
    /// Serial number as lower-case hexadecimal digits.
    pub serial: Arc<str>,
    /// Issuer, for people (RFC 4514 style); never compared.
    pub issuer: Arc<str>,
    /// The one URI subject alternative name, when there is exactly one.
    pub uri: Option<Arc<str>>,
    /// The one DNS subject alternative name, when there is exactly one.
    pub dns: Option<Arc<str>>,
    /// Earliest `notAfter` of the verified chain, leaf included.
    pub not_after: Wall,
    /// The certificate itself (DER), to be verified again when trust changes.
    pub der: Arc<[u8]>,
}

impl Leaf {
    /// The serial number as DER holds it: big-endian, with a leading zero where the first bit is set.
    #[must_use]
    pub fn serial_octets(&self) -> Option<Vec<u8>> {
        let pairs = self.serial.as_bytes().chunks(2);
        let octet = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let mut octets: Vec<u8> = pairs.map(octet).collect::<Option<_>>()?;
        if octets.first().is_some_and(|first| first & 0x80 != 0) {
            octets.insert(0, 0);
        }
        Some(octets)
    }
}

/// The proof that a handshake produced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    authority: AuthorityName,
    authority_spki: Sha256,
    leaf: Arc<Leaf>,
    address: SocketAddr,
}

impl Peer {
    /// States that the handshake verified all of this. Only `tls` may say so.
    #[must_use]
    pub fn proved(authority: AuthorityName, authority_spki: Sha256, leaf: Arc<Leaf>, address: SocketAddr) -> Peer {
        Peer { authority, authority_spki, leaf, address }
    }

    /// The one authority that vouches for the chain.
    #[must_use]
    pub fn authority(&self) -> &AuthorityName {
        &self.authority
    }

    /// Digest of that authority's public key: what identities are pinned to.
    #[must_use]
    pub fn authority_spki(&self) -> Sha256 {
        self.authority_spki
    }

    /// The leaf certificate's facts.
    #[must_use]
    pub fn leaf(&self) -> &Arc<Leaf> {
        &self.leaf
    }

    /// Where the connection comes from.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
