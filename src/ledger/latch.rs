//! The lock around an account: an ordinary mutex, or in tests, on request, one whose interleavings are explored.
//!
//! Only tests know the second kind; the program has no choice to make here.

#[cfg(test)]
pub(super) use modelled::{Latch, Latched, model};
#[cfg(not(test))]
pub(super) use parking_lot::{Mutex as Latch, MutexGuard as Latched};

#[cfg(test)]
mod modelled {
    use std::cell::Cell;
    use std::fmt;
    use std::ops::{Deref, DerefMut};

    thread_local!(static MODELLED: Cell<bool> = const { Cell::new(false) });

    /// Runs `check` with every lock made on this thread being one that a model checker schedules.
    pub(in crate::ledger) fn model(check: impl FnOnce()) {
        MODELLED.set(true);
        check();
        MODELLED.set(false);
    }

    pub(in crate::ledger) enum Latch<T> {
        Real(parking_lot::Mutex<T>),
        Model(shuttle::sync::Mutex<T>),
    }

    pub(in crate::ledger) enum Latched<'a, T> {
        Real(parking_lot::MutexGuard<'a, T>),
        Model(shuttle::sync::MutexGuard<'a, T>),
    }

    impl<T> Latch<T> {
        pub(in crate::ledger) fn new(value: T) -> Latch<T> {
            if MODELLED.get() {
                Latch::Model(shuttle::sync::Mutex::new(value))
            } else {
                Latch::Real(parking_lot::Mutex::new(value))
            }
        }

        pub(in crate::ledger) fn lock(&self) -> Latched<'_, T> {
            match self {
                Latch::Real(mutex) => Latched::Real(mutex.lock()),
                Latch::Model(mutex) => Latched::Model(mutex.lock().unwrap()),
            }
        }
    }

    impl<T> Deref for Latched<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            match self {
                Latched::Real(guard) => guard,
                Latched::Model(guard) => guard,
            }
        }
    }

    impl<T> DerefMut for Latched<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            match self {
                Latched::Real(guard) => guard,
                Latched::Model(guard) => guard,
            }
        }
    }

    impl<T> fmt::Debug for Latch<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Latch")
        }
    }
}
