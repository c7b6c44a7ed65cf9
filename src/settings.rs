//! Settings that need a restart: addresses, thread counts, state paths. Everything else is policy.
