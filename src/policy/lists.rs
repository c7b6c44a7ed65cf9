//! Revocation lists wait for nobody: where the files as a whole are rejected, what the lists alone say is taken.
//!
//! A list is signed and numbered by its authority and needs no operator's word; a typo in one partner's file must not
//! keep a thief of another let in. Only a newer list of an authority in force takes the place of its older one. No
//! configuration is read here, and nothing that is wrong is told: whoever rejected the files has told it.

use std::sync::Arc;

use super::{Change, Diff, Policy, Summary};
use crate::clock::Now;
use crate::peer::Sha256;
use crate::trust::{Authority, regular};

impl Policy {
    /// This policy with every revocation list that has come further since it was loaded, and what that changes. None
    /// when no list has; a list that is wrong in any way stays what it was.
    #[must_use]
    pub fn with_newer_lists(&self, now: Now) -> Option<(Policy, Diff)> {
        let (mut diff, mut content) = (Diff::default(), self.hash.to_string());
        let mut newer = |authority: &Arc<Authority>| -> Option<Arc<Authority>> {
            let bytes = regular::read(self.lists.get(authority.name())?).ok()?;
            let authority = authority.with_newer_lists(&bytes, &self.believed, now.wall).ok()??;
            let text = format!("authority {}: newer revocation list; all else stays", authority.name());
            diff.changes.push(Change { text, loosens: false, restart: false });
            content.push_str(&Sha256::of(&bytes).to_string());
            Some(Arc::new(authority))
        };
        let authorities: Vec<_> =
            self.authorities.iter().map(|one| newer(one).unwrap_or_else(|| Arc::clone(one))).collect();
        if diff.changes.is_empty() {
            return None;
        }
        let believed = self.believed.clone().with(authorities.iter().flat_map(|authority| authority.in_force()));
        let (generation, hash) = (self.generation + 1, Sha256::of(content.as_bytes()));
        let (loaded_at, authorities) = (now.wall, authorities.into());
        let newer = Policy { generation, hash, loaded_at, authorities, believed, ..self.clone() };
        let lists = Diff::of(&Summary::only(self, |_| false), &Summary::only(&newer, |_| false));
        diff.changes.extend(lists.changes);
        Some((newer, diff))
    }
}
