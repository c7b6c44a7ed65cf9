//! What the demo writes: certificates for everybody in the story, and a configuration to read.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use super::place::told;
use super::text;
use crate::clock::Wall;
use crate::server::Addresses;
use crate::tls;
use crate::trust::issue::{DevAuthority, Holder, Pair};

/// How long the demo's certificates last; they are made anew when they are gone.
const LASTS: Duration = Duration::from_secs(90 * 86_400);
/// How long its authorities last: longer, because whoever likes the demo issues certificates with them.
const AUTHORITY: Duration = Duration::from_secs(3650 * 86_400);

/// Makes what is missing: a second start finds everything there.
pub(super) fn certificates(dir: &Path, now: Wall) -> Result<(), String> {
    let certs = dir.join("certs");
    for folder in [&dir.join("orgs.d"), &certs] {
        std::fs::create_dir_all(folder).map_err(told(folder))?;
    }
    if certs.join("ready").exists() && certs.join("partners-ca.key").exists() {
        return Ok(());
    }
    let partners = DevAuthority::create("Portcullis demo partners", now, AUTHORITY).map_err(text)?;
    let strangers = DevAuthority::create("Somebody else", now, AUTHORITY).map_err(text)?;
    let server = partners.issue(&Holder::Server(&["localhost"]), now, LASTS).map_err(text)?;
    let holder = |authority: &DevAuthority, org: &str| {
        let uri = format!("spiffe://partners/{org}");
        authority.issue(&Holder::Partner { uri: &uri, name: org }, now, LASTS).map_err(text)
    };
    put(&certs, "server", &server)?;
    put(&certs, "acme", &holder(&partners, "acme")?)?;
    put(&certs, "globex", &holder(&partners, "globex")?)?;
    put(&certs, "stranger", &holder(&strangers, "acme")?)?;
    write(&certs.join("ca.pem"), partners.certificate(), 0o644)?;
    // Where `certs` looks for them: whoever wants to can issue, renew and revoke here.
    write(&certs.join("partners-ca.pem"), partners.certificate(), 0o644)?;
    write(&certs.join("partners-ca.key"), &partners.key(), 0o600)?;
    write(&certs.join("partners.crl"), &partners.crl(&[], 1, now, LASTS).map_err(text)?, 0o644)?;
    write(&certs.join("ready"), "made by portcullis demo\n", 0o644)
}

fn put(dir: &Path, name: &str, pair: &Pair) -> Result<(), String> {
    write(&dir.join(format!("{name}.pem")), &pair.certificate, 0o644)?;
    write(&dir.join(format!("{name}.key")), &pair.key, 0o600)
}

fn write(path: &Path, content: &str, mode: u32) -> Result<(), String> {
    use std::os::unix::fs::OpenOptionsExt;
    let open = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(path);
    open.and_then(|mut file| file.write_all(content.as_bytes())).map_err(told(path))
}

/// Writes the configuration. Ports may differ from start to start, so the main file is written every time; what an
/// operator edited in `orgs.d` stays.
pub(super) fn configuration(
    dir: &Path,
    mock: SocketAddr,
    partners: SocketAddr,
    admin: SocketAddr,
) -> Result<(), String> {
    let main = MAIN
        .replace("{partners}", &partners.to_string())
        .replace("{admin}", &admin.to_string())
        .replace("{mock}", &mock.to_string());
    write(&dir.join("portcullis.toml"), &main, 0o644)?;
    for (name, content) in [("national-cert", NATIONAL), ("acme", ACME), ("globex", GLOBEX)] {
        let path = dir.join("orgs.d").join(format!("{name}.toml"));
        if !path.exists() {
            write(&path, content, 0o644)?;
        }
    }
    Ok(())
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

const MAIN: &str = r#"# Written by `portcullis demo`. Everything here is what `portcullis config default` explains at length.
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

Edit {orgs}/*.toml and watch it take effect. The audit log is in {audit}. Ctrl-C stops.

"#;
