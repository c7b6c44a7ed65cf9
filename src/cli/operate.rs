//! `reload`, `status`, `drain`, `revoke` and `restore`: what an operator asks of a running gateway.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::{ArgGroup, Args};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Done, REFUSED, complain, print, say, tell};
use crate::admin::status::Status;
use crate::admin::terminal::{Screen, render};
use crate::peer::Sha256;
use crate::remote::Admin;
use crate::screen::tame;
use crate::trust::{self, regular};

/// Arguments of `portcullis reload`.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    #[command(flatten)]
    admin: Admin,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `portcullis status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    admin: Admin,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Repaint every second until interrupted
    #[arg(long)]
    watch: bool,
}

/// Arguments of `portcullis drain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    #[command(flatten)]
    admin: Admin,
    /// Return only when the gateway is gone
    #[arg(long)]
    wait: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What access is withdrawn from, or given back to.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("target").multiple(false))]
pub struct Target {
    /// An organization
    #[arg(long, value_name = "ID", group = "target")]
    org: Option<String>,
    /// A certificate: its file (PEM or DER, its chain with it or not), or its SHA-256
    #[arg(long, value_name = "FILE_OR_SHA256", group = "target")]
    cert: Option<String>,
    /// Every certificate of an authority
    #[arg(long, value_name = "NAME", group = "target")]
    authority: Option<String>,
    /// A purpose, for every organization
    #[arg(long, value_name = "ID", group = "target")]
    purpose: Option<String>,
    /// A model, for every organization
    #[arg(long, value_name = "NAME", group = "target")]
    model: Option<String>,
}

/// Arguments of `portcullis revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    #[command(flatten)]
    target: Target,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Show what is revoked
    #[arg(long, conflicts_with = "target")]
    list: bool,
    #[command(flatten)]
    admin: Admin,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `portcullis restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    target: Target,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    admin: Admin,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Asks the gateway to reload, and prints the difference or every mistake.
pub fn reload(args: &ReloadArgs) -> Done {
    post(&args.admin, "/-/reload", None, args.json)
}

/// Asks the gateway to drain and stop, and waits until it has if that is wanted.
pub fn drain(args: &DrainArgs) -> Done {
    post(&args.admin, "/-/drain", None, args.json)?;
    while args.wait && is_draining(&args.admin) {
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// Whether the gateway that drains is still there. One that does not drain is another, started since.
fn is_draining(admin: &Admin) -> bool {
    let Ok((StatusCode::OK, body)) = admin.call(Method::GET, "/status.json", None) else { return false };
    serde_json::from_slice::<Status>(&body).is_ok_and(|status| status.draining)
}

/// Shows the gateway's state, once or again and again.
pub fn status(args: &StatusArgs) -> Done {
    let mut shown = Shown::default();
    loop {
        let told = fetched(&args.admin).and_then(|body| shown.show(&body, args));
        match told {
            Ok(done) => done?,
            // At this address nobody ever was: that is a mistake, not a restart.
            Err(error) if !args.watch || !shown.reached => return Err(complain(error)),
            Err(error) => shown.lose(&error, args)?,
        }
        if !args.watch {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// What `status` showed last, so that a gateway that restarts does not take it away.
#[derive(Default)]
struct Shown {
    reached: bool,
    lost: bool,
    last: Option<Status>,
}

impl Shown {
    fn show(&mut self, body: &[u8], args: &StatusArgs) -> Result<Done, String> {
        let done = if args.json {
            say(String::from_utf8_lossy(body))
        } else {
            let status = serde_json::from_slice(body);
            let status = status.map_err(|error| format!("the gateway's status is of another form: {error}"))?;
            let screen = screen(args);
            let text = render(&status, screen);
            self.last = Some(status);
            paint(screen, &text)
        };
        (self.reached, self.lost) = (true, false);
        Ok(done)
    }

    /// Says once into a pipe, and on a screen above what was there last, that nobody answers.
    fn lose(&mut self, error: &str, args: &StatusArgs) -> Done {
        let first = !std::mem::replace(&mut self.lost, true);
        let Some(Screen { width, height }) = screen(args) else {
            if first {
                tell(format_args!("portcullis: not reachable, trying again: {error}\n"));
            }
            return Ok(());
        };
        let rest = Screen { width, height: height.saturating_sub(2) };
        let last = self.last.as_ref().map(|status| render(status, Some(rest))).unwrap_or_default();
        let said: String = format!("NOT REACHABLE, TRYING AGAIN: {error}").chars().take(width).collect();
        paint(Some(rest), &format!("{said}\n\n{last}"))
    }
}

/// The screen to fit, when somebody watches on one.
fn screen(args: &StatusArgs) -> Option<Screen> {
    let out = std::io::stdout();
    if !args.watch || args.json || !out.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&out).ok();
    let told = |name: &str| std::env::var(name).ok()?.parse().ok();
    let width = size.map(|size| usize::from(size.ws_col)).filter(|width| *width > 0).or_else(|| told("COLUMNS"));
    let height = size.map(|size| usize::from(size.ws_row)).filter(|height| *height > 0).or_else(|| told("LINES"));
    // The last line is the cursor's.
    Some(Screen { width: width.unwrap_or(80), height: height.unwrap_or(24).saturating_sub(1) })
}

fn fetched(admin: &Admin) -> Result<Bytes, String> {
    match admin.call(Method::GET, "/status.json", None) {
        Ok((StatusCode::OK, body)) => Ok(body),
        Ok((status, body)) => Err(astray(admin, status, &body)),
        Err(error) => Err(error.to_string()),
    }
}

/// A sentence for an answer that no gateway's admin side gives to what was asked.
pub(super) fn astray(admin: &Admin, status: StatusCode, body: &[u8]) -> String {
    let body = String::from_utf8_lossy(body);
    let said: String = body.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect();
    let hint = match status {
        StatusCode::UNAUTHORIZED => "--admin-token names the file with it",
        _ => "is that a gateway's admin side? --admin or PORTCULLIS_ADMIN says where",
    };
    format!("{admin}: {status}: {said}; {hint}")
}

/// The gateway's state, as it sends it.
fn get(admin: &Admin) -> Result<Bytes, ExitCode> {
    fetched(admin).map_err(complain)
}

fn paint(screen: Option<Screen>, text: &str) -> Done {
    if screen.is_some() {
        // Home, and clear to the end of the screen: no flicker, no scroll-back full of copies.
        print("\u{1b}[H\u{1b}[J")?;
    }
    print(text)
}

/// Withdraws access, or lists what is withdrawn.
pub fn revoke(args: &RevokeArgs) -> Done {
    if args.list {
        return list(&args.admin, args.json);
    }
    change(&args.admin, "/-/revoke", &args.target, args.reason.as_deref(), args.json)
}

/// Gives access back.
pub fn restore(args: &RestoreArgs) -> Done {
    change(&args.admin, "/-/restore", &args.target, args.reason.as_deref(), args.json)
}

fn list(admin: &Admin, as_json: bool) -> Done {
    let body = get(admin)?;
    let status: Value = serde_json::from_slice(&body).unwrap_or_default();
    let Some(entries) = status.get("revoked").and_then(Value::as_array) else {
        return Err(complain(astray(admin, StatusCode::OK, &body)));
    };
    if as_json {
        return say(json!(entries));
    }
    if entries.is_empty() {
        return say("nothing is revoked");
    }
    entries.iter().try_for_each(|entry| {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or("-").to_owned();
        let (kind, target) = (text("kind"), text("target"));
        say(format_args!("{kind:<20} {target:<66} {}  {}", text("since"), tame(&text("reason"))))
    })
}

fn change(admin: &Admin, path: &str, target: &Target, reason: Option<&str>, as_json: bool) -> Done {
    let (key, value) = target.named().map_err(complain)?;
    let body = json!({ key: value, "reason": reason }).to_string();
    post(admin, path, Some(body), as_json)
}

impl Target {
    fn named(&self) -> Result<(&'static str, String), String> {
        let plain = [
            ("organization", &self.org),
            ("authority", &self.authority),
            ("purpose", &self.purpose),
            ("model", &self.model),
        ];
        if let Some((key, Some(value))) = plain.into_iter().find(|(_, value)| value.is_some()) {
            return Ok((key, value.clone()));
        }
        let Some(cert) = &self.cert else {
            return Err("name one of --org, --cert, --authority, --purpose, --model".into());
        };
        if let Some(digest) = Sha256::parse(cert) {
            return Ok(("certificate_sha256", digest.to_string()));
        }
        let file = regular::read(Path::new(cert)).map_err(|error| format!("{cert}: {error}"))?;
        let digest = trust::leaf_sha256(&file).map_err(|what| format!("{cert}: {what}"))?;
        Ok(("certificate_sha256", digest.to_string()))
    }
}

/// Posts and prints what comes back: its `text` for people, all of it as JSON.
fn post(admin: &Admin, path: &str, body: Option<String>, as_json: bool) -> Done {
    let body = body.unwrap_or_else(|| "{}".into());
    let (status, body) = admin.call(Method::POST, path, Some(body)).map_err(complain)?;
    let value: Value = serde_json::from_slice(&body).unwrap_or_default();
    // Who does not answer as a gateway does has done nothing, and that is not the gateway's no.
    let Some(text) = value.get("text").and_then(Value::as_str).map(str::trim_end) else {
        return Err(complain(astray(admin, status, &body)));
    };
    // A name that nobody has is in force for whoever comes, but nobody was cut off: a script must not take it for done.
    let done = status.is_success() && value.get("known") != Some(&Value::Bool(false));
    let said = match (as_json, done) {
        (true, _) => say(String::from_utf8_lossy(&body)),
        (false, true) => say(text),
        (false, false) => {
            tell(format_args!("{text}\n"));
            Ok(())
        }
    };
    if done { said } else { Err(ExitCode::from(REFUSED)) }
}
