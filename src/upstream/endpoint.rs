//! Where an upstream is, and how it is spoken to: made once for a policy, shared by all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderValue;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;

use crate::ask::Dialect;
use crate::metrics::UpstreamSeries;
use crate::policy::Upstream;
use crate::tls;
pub use crate::tls::Unusable;

/// An upstream, ready to be connected to.
pub struct Endpoint {
    id: u64,
    upstream: Arc<Upstream>,
    series: Arc<UpstreamSeries>,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    pub(super) host_header: HeaderValue,
    pub(super) credential: Option<(&'static str, HeaderValue)>,
    pub(super) connect_timeout: Duration,
    pub(super) head_timeout: Duration,
    pub(super) idle_timeout: Duration,
}

impl Endpoint {
    /// Prepares an upstream, whose calls and connections count in `series`.
    ///
    /// # Errors
    /// [`Unusable`] when its TLS cannot be set up, or its credential cannot stand in a header.
    pub fn new(upstream: &Arc<Upstream>, series: Arc<UpstreamSeries>) -> Result<Endpoint, Unusable> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let unusable = |what: &str| Unusable(format!("upstream {}: {what}", upstream.name));
        let tls = if upstream.tls {
            let identity = upstream.identity.as_ref();
            let identity = identity.map(|(certificate, key)| (certificate.as_slice(), key.expose().as_bytes()));
            let config = tls::connector(upstream.authority.as_deref(), identity);
            let config = config.map_err(|Unusable(what)| unusable(&what))?;
            let name = ServerName::try_from(upstream.host.clone()).map_err(|_| unusable("its host is no name"))?;
            Some((config, name))
        } else {
            None
        };
        let standard = if upstream.tls { 443 } else { 80 };
        let named = if upstream.host.contains(':') { format!("[{}]", upstream.host) } else { upstream.host.clone() };
        let host = if upstream.port == standard { named } else { format!("{named}:{}", upstream.port) };
        let credential = upstream.api_key.as_ref().map(|key| {
            let (name, value) = match upstream.dialect {
                Dialect::OpenAi => ("authorization", format!("Bearer {}", key.expose())),
                Dialect::Anthropic => ("x-api-key", key.expose().to_owned()),
            };
            let mut value =
                HeaderValue::from_str(&value).map_err(|_| unusable("its api_key cannot stand in a header"))?;
            value.set_sensitive(true);
            Ok((name, value))
        });
        Ok(Endpoint {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            upstream: upstream.clone(),
            series,
            host: upstream.host.clone(),
            port: upstream.port,
            tls,
            host_header: HeaderValue::from_str(&host).map_err(|_| unusable("its host cannot stand in a header"))?,
            credential: credential.transpose()?,
            connect_timeout: upstream.connect_timeout,
            head_timeout: upstream.head_timeout,
            idle_timeout: upstream.idle_timeout,
        })
    }

    /// Unique within the process: pools are kept by it.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The upstream's name.
    #[must_use]
    pub fn name(&self) -> &crate::names::UpstreamName {
        &self.upstream.name
    }

    /// The upstream's figures.
    #[must_use]
    pub fn series(&self) -> &UpstreamSeries {
        &self.series
    }

    pub(super) fn shared_series(&self) -> Arc<UpstreamSeries> {
        self.series.clone()
    }

    /// Whether this is how `upstream` is reached, in every detail.
    #[must_use]
    pub fn reaches(&self, upstream: &Upstream) -> bool {
        *self.upstream == *upstream
    }

    pub(super) fn base_path(&self) -> &str {
        &self.upstream.base_path
    }
}
