//! A build without the feature `otlp`: there is no exporter, and nothing that could stand for one.

use super::Exchange;

/// None.
#[derive(Debug)]
pub(super) enum Exporter {}

impl Exporter {
    pub(super) fn start(_: &str) -> Result<Exporter, String> {
        Err("this binary was built without the feature `otlp`".to_owned())
    }

    pub(super) fn tell(&self, _: &Exchange<'_>) {
        match *self {}
    }

    pub(super) fn finish(&self) {
        match *self {}
    }
}
