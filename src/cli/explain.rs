//! `portcullis explain`: offline, what would become of a request, and which line decides.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args as ClapArgs;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;

use super::{REFUSED, UNUSABLE};
use crate::admit;
use crate::ask::Route;
use crate::clock::Clock;
use crate::gate::Declared;
use crate::identify;
use crate::outcome::Code;
use crate::peer::Peer;
use crate::policy::{self, Policy, Revocations};
use crate::tls::{Acceptance, Terms};

/// Arguments of `portcullis explain`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The configuration
    #[arg(short, long, default_value = "config/portcullis.toml", value_name = "FILE")]
    config: PathBuf,
    /// The partner's certificate
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// The declared purpose
    #[arg(long)]
    purpose: Option<String>,
    /// The case reference
    #[arg(long)]
    case: Option<String>,
    /// The model
    #[arg(long)]
    model: Option<String>,
    /// The path
    #[arg(long, default_value = "/v1/chat/completions")]
    path: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A decision, and the rule that made it.
struct Decision {
    allowed: bool,
    code: String,
    text: String,
    rule: Option<String>,
}

/// Explains a decision: exit 0 when allowed, 1 when refused.
pub fn run(args: &Args) -> ExitCode {
    let clock = Clock::system();
    let policy = match super::loaded(&args.config) {
        Ok(policy) => policy,
        Err(code) => return code,
    };
    let certificate = std::fs::read(&args.cert).map_err(|error| error.to_string());
    let certificate =
        certificate.and_then(|pem| CertificateDer::from_pem_slice(&pem).map_err(|error| error.to_string()));
    let certificate = match certificate {
        Ok(certificate) => certificate,
        Err(error) => {
            eprintln!("portcullis: {}: {error}", args.cert.display());
            return ExitCode::from(UNUSABLE);
        }
    };
    let decision = decide(args, &policy, &certificate, &clock);
    let place = decision.rule.as_ref().and_then(|rule| policy.locate(rule));
    if args.json {
        println!(
            "{}",
            json!({"allowed": decision.allowed, "code": decision.code, "text": decision.text, "place": place})
        );
    } else {
        let verdict = if decision.allowed { "allowed" } else { "refused" };
        println!("{verdict}: {} ({})", decision.text, decision.code);
        if let Some(place) = place {
            println!("decided by {place}");
        }
    }
    if decision.allowed { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) }
}

fn refused(code: impl std::fmt::Display, text: impl Into<String>, rule: Option<String>) -> Decision {
    Decision { allowed: false, code: format!("{code}"), text: text.into(), rule }
}

fn decide(args: &Args, policy: &Policy, certificate: &CertificateDer<'_>, clock: &Clock) -> Decision {
    let now = clock.now().wall;
    let acceptance = Acceptance::new(Terms {
        identity: policy.identity.clone(),
        authorities: policy.authorities.clone(),
        server_names: policy.server_names.clone(),
        explain: policy.explain_missing,
        longest: policy.longest_certificate,
        revoked: Arc::new(|_, _| false),
    });
    let verdict = match acceptance.judge(certificate, now) {
        Ok(verdict) => verdict,
        Err(turned) => return refused(turned.result, format!("the handshake is refused: {}", turned.detail), None),
    };
    let address = ([127, 0, 0, 1], 0).into();
    let peer = Peer::proved(verdict.authority, verdict.authority_spki, verdict.leaf, address);
    let none = Revocations::default();
    let caller = match identify::identify(policy, &none, &peer, now) {
        Ok(caller) => caller,
        // Where somebody connects from is not known offline.
        Err(refusal) => return refused(refusal.code, refusal.message, owner_rule(policy, &peer, refusal.code)),
    };
    let org = &caller.org().id;
    let Some(route) = Route::ALL.into_iter().find(|route| route.path() == args.path) else {
        return refused(Code::RouteNotFound, format!("{} is no route", args.path), None);
    };
    if !route.is_forwarded() {
        return Decision {
            allowed: true,
            code: "ok".into(),
            text: format!("{org} may read {}", args.path),
            rule: None,
        };
    }
    let purpose = match args.purpose.as_deref().map(str::parse) {
        None => return refused(Code::PurposeMissing, "no purpose is declared", None),
        Some(Err(error)) => return refused(Code::PurposeInvalid, format!("the purpose {error}"), None),
        Some(Ok(purpose)) => purpose,
    };
    let case = args.case.as_deref().and_then(|case| case.parse().ok());
    let rule = format!("{org}.purposes.{purpose}");
    if let Err(refusal) = admit::purpose(policy, &none, &caller, Declared { purpose, case: Ok(case) }) {
        return refused(refusal.code, refusal.message, Some(format!("{org}.id")));
    }
    let Some(model) = &args.model else {
        let text = format!("{org} may pursue this purpose; name a model to judge it too");
        return Decision { allowed: true, code: "ok".into(), text, rule: Some(rule) };
    };
    if !admit::may_use(policy, caller.org(), &none, model)
        || policy.models.upstream_for(route.dialect(), model).is_none()
    {
        let text = format!("the model {model} is not granted to {org}, or no upstream of this dialect serves it");
        return refused(Code::ModelNotPermitted, text, Some(format!("{org}.id")));
    }
    let group = policy.models.group_of(model).map_or_else(|| model.clone(), |group| group.id.to_string());
    let text = format!("{org} may use {model} for this purpose, within its limits");
    Decision { allowed: true, code: "ok".into(), text, rule: Some(format!("{org}.models.{group}")) }
}

fn owner_rule(policy: &Policy, peer: &Peer, code: Code) -> Option<String> {
    let policy::Owner::One(org, _) = policy.owner(peer.authority(), peer.leaf()) else { return None };
    let word = match code {
        Code::OrganizationSuspended => "status",
        Code::GrantExpired => "valid",
        Code::NetworkNotPermitted => "identity.0",
        _ => "id",
    };
    Some(format!("{}.{word}", org.id))
}
