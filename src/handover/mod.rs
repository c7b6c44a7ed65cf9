//! One process after the other on the same state, without a gap: the new one takes over listeners, quota marks and audit
//! log from the one that runs, which finishes what it carries.
//!
//! 1. The new process reads its configuration and makes everything that can fail, then knocks.
//! 2. The old one closes its door (who comes now waits in the queue of the listener, which was passed on), writes its
//!    marks with every open reservation in full, ends its part of the audit log with a signed checkpoint, and lets go.
//! 3. The new one goes on from there and opens. What the old one still settles, or has to record, it tells the new one,
//!    as an `elder`. Where the new one dies meanwhile, what the old one still uses is left in files (`untold`) for whoever
//!    starts next; what it had reserved stays counted in full.
//!
//! State and audit log have one writer at every moment.

mod elder;
mod leave;
mod take;
mod untold;

pub use elder::Elder;
pub use leave::{Lobby, leave, successor};
pub use take::{Taken, adopt_admin, partners, plain};
pub use untold::Inheritance;
