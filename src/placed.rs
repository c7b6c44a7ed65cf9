//! Large values, made where they will live.
//!
//! `Box::new` is handed a value that stands on the stack already, and copies it: of a future all of it, though most of it
//! is room for what is still to come. Where memory is asked for first, compilers make the value in it. Nothing is
//! promised, and nothing but the cost depends on it.

/// What `make` makes, in memory of its own.
#[inline]
pub fn placed<T>(make: impl FnOnce() -> T) -> Box<T> {
    let room = Box::new_uninit();
    Box::write(room, make())
}
