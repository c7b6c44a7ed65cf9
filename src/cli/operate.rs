//! `reload`, `status`, `drain`, `revoke` and `restore`: what an operator asks of a running gateway.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::{REFUSED, UNUSABLE};
use crate::admin::status::{Status, render_text};
use crate::peer::Sha256;
use crate::remote::Admin;
use crate::trust;

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
    /// A certificate: its file, or its SHA-256
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
pub fn reload(args: &ReloadArgs) -> ExitCode {
    post(&args.admin, "/-/reload", None, args.json)
}

/// Asks the gateway to drain and stop.
pub fn drain(args: &DrainArgs) -> ExitCode {
    post(&args.admin, "/-/drain", None, args.json)
}

/// Shows the gateway's state, once or again and again.
pub fn status(args: &StatusArgs) -> ExitCode {
    loop {
        let body = match args.admin.call(Method::GET, "/status.json", None) {
            Ok((StatusCode::OK, body)) => body,
            Ok((status, body)) => return complain(&format!("{status}: {}", String::from_utf8_lossy(&body))),
            Err(error) => return complain(&error.to_string()),
        };
        if args.json {
            println!("{}", String::from_utf8_lossy(&body));
        } else {
            match serde_json::from_slice::<Status>(&body) {
                Ok(status) => paint(&status, args.watch),
                Err(error) => return complain(&format!("the gateway's status is of another form: {error}")),
            }
        }
        if !args.watch {
            return ExitCode::SUCCESS;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn paint(status: &Status, watch: bool) {
    if watch && std::io::stdout().is_terminal() {
        // Home, and clear to the end of the screen: no flicker, no scroll-back full of copies.
        print!("\u{1b}[H\u{1b}[J");
    }
    println!("{}", render_text(status));
}

/// Withdraws access, or lists what is withdrawn.
pub fn revoke(args: &RevokeArgs) -> ExitCode {
    if args.list {
        return list(&args.admin, args.json);
    }
    change(&args.admin, "/-/revoke", &args.target, args.reason.as_deref(), args.json)
}

/// Gives access back.
pub fn restore(args: &RestoreArgs) -> ExitCode {
    change(&args.admin, "/-/restore", &args.target, args.reason.as_deref(), args.json)
}

fn list(admin: &Admin, as_json: bool) -> ExitCode {
    let body = match admin.call(Method::GET, "/status.json", None) {
        Ok((StatusCode::OK, body)) => body,
        Ok((status, _)) => return complain(&status.to_string()),
        Err(error) => return complain(&error.to_string()),
    };
    let Ok(status) = serde_json::from_slice::<Value>(&body) else { return complain("the answer is not JSON") };
    let revoked = status.get("revoked").cloned().unwrap_or_default();
    if as_json {
        println!("{revoked}");
        return ExitCode::SUCCESS;
    }
    let entries = revoked.as_array().map(Vec::as_slice).unwrap_or_default();
    if entries.is_empty() {
        println!("nothing is revoked");
    }
    for entry in entries {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or("-").to_owned();
        println!("{:<20} {:<66} {}  {}", text("kind"), text("target"), text("since"), text("reason"));
    }
    ExitCode::SUCCESS
}

fn change(admin: &Admin, path: &str, target: &Target, reason: Option<&str>, as_json: bool) -> ExitCode {
    let (key, value) = match target.named() {
        Ok(named) => named,
        Err(message) => return complain(&message),
    };
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
        let pem = std::fs::read(cert).map_err(|error| format!("{cert}: {error}"))?;
        let digest = trust::first_certificate_sha256(&pem).ok_or_else(|| format!("{cert}: holds no certificate"))?;
        Ok(("certificate_sha256", digest.to_string()))
    }
}

/// Posts and prints what comes back: its `text` for people, all of it as JSON.
fn post(admin: &Admin, path: &str, body: Option<String>, as_json: bool) -> ExitCode {
    let (status, body) = match admin.call(Method::POST, path, Some(body.unwrap_or_else(|| "{}".into()))) {
        Ok(answer) => answer,
        Err(error) => return complain(&error.to_string()),
    };
    let raw = String::from_utf8_lossy(&body);
    let value: Value = serde_json::from_slice(&body).unwrap_or_else(|_| json!({ "text": raw }));
    let text = value.get("text").and_then(Value::as_str).unwrap_or(&raw);
    let fine = status.is_success();
    match (as_json, fine) {
        (true, _) => println!("{raw}"),
        (false, true) => println!("{}", text.trim_end()),
        (false, false) => eprintln!("{}", text.trim_end()),
    }
    if fine { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) }
}

fn complain(message: &str) -> ExitCode {
    eprintln!("portcullis: {message}");
    ExitCode::from(UNUSABLE)
}
