//! An authority's lists as time goes on: newer ones take the place of older ones, and none counts before its time.
//!
//! A list that is early may come from a clock that is wrong, here or there. It is neither believed nor a mistake, which
//! would hold up everybody: the older one stays in force, or the door of those who depend on it is closed.

use std::sync::Arc;

use webpki::VerifiedPath;

use super::{Authority, Refused};
use crate::clock::Wall;
use crate::trust::crl::{self, Against, Crl};
use crate::trust::{Believed, Flaw};

impl Authority {
    /// The same, where a list whose time has not come leaves the older one of `in_force` in force. That may be this very
    /// one: then the clock was put back, and it stays.
    #[must_use]
    pub fn beside(mut self, in_force: &[Arc<Crl>]) -> Authority {
        for list in self.early.clone() {
            let Some(before) = in_force.iter().find(|before| before.series == list.series) else { continue };
            self.crls.iter_mut().filter(|crl| Arc::ptr_eq(crl, &list)).for_each(|crl| *crl = Arc::clone(before));
            self.early.retain(|early| !Arc::ptr_eq(early, &list) || !list.is_again(before));
        }
        self
    }

    /// The same authority with the lists of a newer reading of its CRL file (PEM or DER, one or many). None when no list
    /// has come further, nor the time of one that was early, and where a list that is in force would be lost.
    ///
    /// # Errors
    /// Every flaw of the file.
    pub fn with_newer_lists(&self, crl: &[u8], believed: &Believed, now: Wall) -> Result<Option<Authority>, Vec<Flaw>> {
        let against = Against { issuers: &self.issuers, believed };
        let crls: Vec<_> = crl::load(crl, against)?.into_iter().map(Arc::new).collect();
        let stays = |list: &Arc<Crl>| crls.iter().any(|newer| newer.series == list.series);
        if !self.crls.iter().all(stays) {
            return Ok(None);
        }
        let in_force: Vec<_> = self.in_force().cloned().collect();
        let newer = Authority {
            name: self.name.clone(),
            anchor: self.anchor.clone(),
            anchor_der: self.anchor_der.clone(),
            spki_sha256: self.spki_sha256,
            intermediates: self.intermediates.clone(),
            issuers: self.issuers.clone(),
            rekeyed: self.rekeyed,
            early: early(&crls, now),
            crls,
            rules: self.rules,
        };
        let newer = newer.beside(&in_force);
        let has_come = self.list_is_due(now) || believed.clone().with(newer.in_force()) != *believed;
        Ok(has_come.then_some(newer))
    }

    /// Those of them that may be believed: the time of the others has not come.
    pub fn in_force(&self) -> impl Iterator<Item = &Arc<Crl>> {
        self.crls.iter().filter(|crl| !self.is_early(crl))
    }

    /// Lists whose time had not come when they were read, and whether that closes the door.
    pub fn early(&self) -> impl Iterator<Item = (&Crl, bool)> {
        self.early.iter().map(|early| (&**early, self.crls.iter().any(|crl| Arc::ptr_eq(crl, early))))
    }

    /// Whether the time of one has come since.
    #[must_use]
    pub fn list_is_due(&self, now: Wall) -> bool {
        self.early.iter().any(|early| early.this_update() <= now)
    }

    pub(super) fn is_early(&self, crl: &Arc<Crl>) -> bool {
        self.early.iter().any(|early| Arc::ptr_eq(early, crl))
    }

    /// Holds one path against the time of the lists of the keys in it.
    pub(super) fn timely(&self, path: &VerifiedPath<'_>) -> Result<(), Refused> {
        let waits = !self.early.is_empty() && self.lists_of(path).any(|crl| self.is_early(crl));
        if waits { Err(webpki::Error::UnknownRevocationStatus) } else { Ok(()) }
    }
}

/// The lists whose time has not come.
pub(super) fn early(crls: &[Arc<Crl>], now: Wall) -> Vec<Arc<Crl>> {
    crls.iter().filter(|crl| crl.this_update() > now).cloned().collect()
}
