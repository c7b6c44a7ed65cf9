//! What the demo writes: certificates for everybody in the story, and a configuration to read.

use std::cmp::Reverse;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use toml::Spanned;
use toml::de::DeTable;

use super::place::told;
use super::text;
use crate::clock::Wall;
use crate::server::Addresses;
use crate::tls;
use crate::trust::ServerIdentity;
use crate::trust::issue::{DevAuthority, Holder, Listed, Pair};

/// How long the demo's certificates and its revocation list last.
const LASTS: Duration = Duration::from_secs(90 * DAY);
/// How long its authorities last: longer, because whoever likes the demo issues certificates with them.
const AUTHORITY: Duration = Duration::from_secs(3650 * DAY);
/// How long at least what a demo begins with has to last.
const SHOWN: Duration = Duration::from_secs(7 * DAY);
const DAY: u64 = 86_400;

/// Where `certs` looks for it: whoever wants to can issue, renew and revoke here.
const PARTNERS: &str = "partners-ca";
/// Who has a certificate.
const HOLDERS: [&str; 4] = ["server", "acme", "globex", "stranger"];

/// Makes what is missing or about to end. The rest stays, above all the authority while it lasts: by it others may have
/// been let in.
pub(super) fn certificates(dir: &Path, now: Wall) -> Result<(), String> {
    let certs = dir.join("certs");
    for folder in [&dir.join("orgs.d"), &certs] {
        std::fs::create_dir_all(folder).map_err(told(folder))?;
    }
    let partners = if lasts(&certs, PARTNERS, now.plus(LASTS)) { kept(&certs)? } else { anew(&certs, now)? };
    write(&certs.join("ca.pem"), partners.certificate(), 0o644)?;
    for name in HOLDERS.into_iter().filter(|name| !lasts(&certs, name, now.plus(SHOWN))) {
        let pair = match name {
            "server" => partners.issue(&Holder::Server(&["localhost"]), now, LASTS).map_err(text)?,
            "stranger" => {
                let strangers = DevAuthority::create("Somebody else", now, AUTHORITY).map_err(text)?;
                partner(&strangers, "acme", now)?
            }
            org => partner(&partners, org, now)?,
        };
        put(&certs, name, &pair)?;
    }
    list(&certs.join("partners.crl"), &partners, now)
}

/// Whether a certificate and its key are there, belong together and do not end before `until`.
fn lasts(certs: &Path, name: &str, until: Wall) -> bool {
    let read = |end: &str| std::fs::read(certs.join(format!("{name}.{end}"))).unwrap_or_default();
    ServerIdentity::load(&read("pem"), &read("key"), until).is_ok()
}

fn kept(certs: &Path) -> Result<DevAuthority, String> {
    let read = |end: &str| {
        let path = certs.join(format!("{PARTNERS}.{end}"));
        std::fs::read_to_string(&path).map_err(told(&path))
    };
    DevAuthority::load(&read("pem")?, &read("key")?).map_err(text)
}

/// An authority anew. What another has signed goes first: nothing else would tell the next start whose it is.
fn anew(certs: &Path, now: Wall) -> Result<DevAuthority, String> {
    for name in HOLDERS.map(|name| format!("{name}.pem")).iter().map(String::as_str).chain(["partners.crl"]) {
        let path = certs.join(name);
        std::fs::remove_file(&path).or_else(|error| match error.kind() {
            ErrorKind::NotFound => Ok(()),
            _ => Err(told(&path)(error)),
        })?;
    }
    let made = DevAuthority::create("Portcullis demo partners", now, AUTHORITY).map_err(text)?;
    put(certs, PARTNERS, &Pair { certificate: made.certificate().to_owned(), key: made.key() })?;
    Ok(made)
}

fn partner(authority: &DevAuthority, org: &str, now: Wall) -> Result<Pair, String> {
    let uri = format!("spiffe://partners/{org}");
    authority.issue(&Holder::Partner { uri: &uri, name: org }, now, LASTS).map_err(text)
}

/// Signs the list again where it is about to be stale; whom it revokes stays revoked.
fn list(path: &Path, authority: &DevAuthority, now: Wall) -> Result<(), String> {
    let listed = std::fs::read(path).ok().and_then(|pem| Listed::read(&pem)).unwrap_or_default();
    if listed.next_update > now.plus(SHOWN) {
        return Ok(());
    }
    // Of a list that is gone nobody knows the number, and a lower one is refused.
    let number = u64::try_from(now.seconds()).unwrap_or_default().max(listed.number.saturating_add(1));
    write(path, &authority.crl(&listed.revoked, number, now, LASTS).map_err(text)?, 0o644)
}

fn put(dir: &Path, name: &str, pair: &Pair) -> Result<(), String> {
    write(&dir.join(format!("{name}.key")), &pair.key, 0o600)?;
    write(&dir.join(format!("{name}.pem")), &pair.certificate, 0o644)
}

/// Writes a file in one step: whatever ends the demo, no half of it stays.
fn write(path: &Path, content: &str, mode: u32) -> Result<(), String> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    // What an earlier one left half would keep its own mode.
    let _ = std::fs::remove_file(&fresh);
    let open = std::fs::OpenOptions::new().create_new(true).write(true).mode(mode).open(&fresh);
    let written = open.and_then(|mut file| file.write_all(content.as_bytes()));
    written.and_then(|()| std::fs::rename(&fresh, path)).map_err(told(path))
}

/// Writes the configuration. Ports may differ from start to start, so the addresses are put in every time; what an operator
/// edited stays.
pub(super) fn configuration(
    dir: &Path,
    mock: SocketAddr,
    partners: SocketAddr,
    admin: SocketAddr,
) -> Result<(), String> {
    let main = dir.join("portcullis.toml");
    let text = std::fs::read_to_string(&main).or_else(|error| match error.kind() {
        ErrorKind::NotFound => Ok(MAIN.to_owned()),
        _ => Err(told(&main)(error)),
    })?;
    write(&main, &addressed(text, &format!("http://{mock}"), &partners.to_string(), &admin.to_string()), 0o644)?;
    for (name, content) in [("national-cert", NATIONAL), ("acme", ACME), ("globex", GLOBEX)] {
        let path = dir.join("orgs.d").join(format!("{name}.toml"));
        if !path.exists() {
            write(&path, content, 0o644)?;
        }
    }
    Ok(())
}

/// The main file with these in their places. One that is no TOML has none, and whoever reads it next says so.
fn addressed(mut text: String, mock: &str, partners: &str, admin: &str) -> String {
    let Ok(root) = DeTable::parse(&text) else { return text };
    let root = root.get_ref();
    let address = |table: &str| root.get(table)?.get_ref().get("address").map(Spanned::span);
    let upstreams = root.get("upstream").and_then(|upstreams| upstreams.get_ref().as_array());
    let mocks = upstreams.into_iter().flat_map(|upstreams| upstreams.iter()).filter_map(|upstream| {
        let name = upstream.get_ref().get("name")?.get_ref().as_str()?;
        MOCKS.contains(&name).then_some((upstream.get_ref().get("url")?.span(), mock))
    });
    let listeners = [(address("listen"), partners), (address("admin"), admin)];
    let mut places: Vec<_> =
        listeners.into_iter().filter_map(|(place, new)| Some((place?, new))).chain(mocks).collect();
    // From the end, so that no place moves before its turn.
    places.sort_unstable_by_key(|(place, _)| Reverse(place.start));
    for (place, new) in places {
        text.replace_range(place, &format!("\"{new}\""));
    }
    text
}

/// A partner's side of TLS.
pub(super) fn client(dir: &Path, name: &str) -> Result<Arc<ClientConfig>, String> {
    let read = |file: String| {
        let path = dir.join("certs").join(file);
        std::fs::read(&path).map_err(told(&path))
    };
    let (ca, certificate, key) = (read("ca.pem".into())?, read(format!("{name}.pem"))?, read(format!("{name}.key"))?);
    tls::connector(Some(&ca), Some((&certificate, &key))).map_err(text)
}

/// Prints lines to paste.
pub(super) fn invitation(dir: &Path, addresses: &Addresses) {
    let certs = std::path::absolute(dir.join("certs")).unwrap_or_else(|_| dir.join("certs"));
    let text = INVITATION
        .replace("{certs}", &quoted(&certs.display().to_string()))
        .replace("{orgs}", &dir.join("orgs.d").display().to_string())
        .replace("{main}", &dir.join("portcullis.toml").display().to_string())
        .replace("{audit}", &dir.join("audit").display().to_string())
        .replace("{port}", &addresses.partners.port().to_string())
        .replace("{admin}", &addresses.admin);
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// As a shell takes it for one word; in quotes only where it would not otherwise.
fn quoted(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+,:@%=".contains(&byte) || !byte.is_ascii();
    if path.bytes().all(plain) { path.to_owned() } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

/// The upstreams that are the mock model.
const MOCKS: [&str; 2] = ["mock-openai", "mock-anthropic"];

const MAIN: &str = r#"# Written by `portcullis demo`. Everything here is what `portcullis config default` explains at length.
# Edit it as you like: only both addresses and the mock model's URLs are put in again at every start.
orgs = "orgs.d"

[listen]
address      = "{partners}"
certificate  = "certs/server.pem"
private_key  = "certs/server.key"
server_names = ["localhost"]
drain        = { deadline = "5s" }

[client_auth]
authorities = [{ name = "partners", file = "certs/partners-ca.pem", crl = "certs/partners.crl" }]

[admin]
address = "{admin}"

[purpose.catalog]
vulnerability-research = "Finding and reporting flaws in own or authorized systems"
malware-analysis       = "Analysing malicious code in containment"
triage                 = "Sorting what comes in; a small budget of its own"
incident-response      = { text = "Handling a live incident", case = "required" }

# The mock model, once for each vendor's dialect.
[[upstream]]
name    = "mock-openai"
url     = "http://{mock}"
dialect = "openai"
models  = ["mock", "mock-*"]

[[upstream]]
name    = "mock-anthropic"
url     = "http://{mock}"
dialect = "anthropic"
models  = ["claude-mock", "claude-mock-*"]

[model.frontier]
match = ["mock", "mock-*", "claude-mock", "claude-mock-*"]
price_per_mtok = { input = "2.50", cached_input = "0.25", cache_write = "3.125", output = "15.00" }

[quota]
state = "state"

[audit]
directory = "audit"
"#;

const NATIONAL: &str = r#"# The lead agency: its members divide its share. Nobody connects as it.
id       = "national-cert"
name     = "National CERT"
purposes = ["vulnerability-research", "malware-analysis", "triage", "incident-response"]
models   = ["frontier"]

[limits]
tokens_per_minute = 1_000_000
cost_per_month    = "2500.00"
"#;

const ACME: &str = r#"id       = "acme"
name     = "Acme CERT"
status   = "active"
parent   = "national-cert"
purposes = ["vulnerability-research", "triage", "incident-response"]
models   = ["frontier"]
contact  = "ops@acme.example"

[[identity]]
authority = "partners"
uri       = "spiffe://partners/acme"

[limits]
requests_per_minute = 600
tokens_per_minute   = 200_000
concurrent_requests = 20

[purpose.triage.limits]
tokens_per_day = 300
"#;

const GLOBEX: &str = r#"id       = "globex"
name     = "Globex SOC"
status   = "active"
parent   = "national-cert"
purposes = ["vulnerability-research"]
models   = ["frontier"]

[[identity]]
authority = "partners"
uri       = "spiffe://partners/globex"

[limits]
requests_per_minute = { limit = 5, burst = 5 }
"#;

const INVITATION: &str = r#"
Portcullis stands. Partners: https://localhost:{port}   Status: {admin}

Allowed:
  curl --cacert {certs}/ca.pem --cert {certs}/acme.pem --key {certs}/acme.key https://localhost:{port}/v1/chat/completions -H 'content-type: application/json' -H 'portcullis-purpose: vulnerability-research' -d '{"model":"mock","messages":[{"role":"user","content":"hello"}]}'

Streamed:
  curl -N --cacert {certs}/ca.pem --cert {certs}/acme.pem --key {certs}/acme.key https://localhost:{port}/v1/chat/completions -H 'content-type: application/json' -H 'portcullis-purpose: vulnerability-research' -d '{"model":"mock-tps-20","stream":true,"max_tokens":100,"messages":[{"role":"user","content":"hello"}]}'

Refused, without a purpose:
  curl --cacert {certs}/ca.pem --cert {certs}/acme.pem --key {certs}/acme.key https://localhost:{port}/v1/chat/completions -H 'content-type: application/json' -d '{"model":"mock","messages":[]}'

Who am I, what have I used:
  curl --cacert {certs}/ca.pem --cert {certs}/acme.pem --key {certs}/acme.key https://localhost:{port}/portcullis/v1/usage

Python, OpenAI SDK:
  python3 -c 'import ssl, sys, openai; certs = sys.argv[1]; c = ssl.create_default_context(cafile=certs + "/ca.pem"); c.load_cert_chain(certs + "/acme.pem", certs + "/acme.key"); print(openai.OpenAI(base_url="https://localhost:{port}/v1", api_key="unused", default_headers={"portcullis-purpose": "vulnerability-research"}, http_client=openai.DefaultHttpx2Client(verify=c)).chat.completions.create(model="mock", messages=[{"role": "user", "content": "hello"}]).choices[0].message.content)' {certs}

Withdraw access at once, and give it back:
  curl -X POST {admin}/-/revoke -d '{"organization":"acme"}'
  curl -X POST {admin}/-/restore -d '{"organization":"acme"}'

Edit {orgs}/*.toml or {main} and watch it take effect. The audit log is in {audit}. Ctrl-C stops.

"#;

#[cfg(test)]
mod tests;
