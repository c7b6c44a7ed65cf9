//! `portcullis explain`: offline, what would become of a request, and which line decides.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args as ClapArgs;
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use super::{Done, REFUSED, complain, say, tell};
use crate::ask::Route;
use crate::clock::{Clock, Wall};
use crate::identify::{self, Caller};
use crate::keeper::kept::Kept;
use crate::names::{OrgId, PurposeId};
use crate::outcome::{Code, Handshake, Refusal};
use crate::peer::Peer;
use crate::policy::{Binding, Org, Owner, Policy, Revocations, Status};
use crate::tls::{Acceptance, Terms};
use crate::{admit, gate};

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

/// What is judged by.
struct Grounds<'a> {
    policy: &'a Policy,
    /// What was revoked by command, as the state directory has it.
    withdrawn: Arc<Revocations>,
    now: Wall,
}

/// A decision, and the rule that made it.
struct Decision {
    code: String,
    text: String,
    rule: Option<String>,
    /// What the request is held against, where it came so far: whose request, and the limits.
    held: Option<(OrgId, Vec<Binding>)>,
}

impl Decision {
    fn new(code: impl Display, text: impl Into<String>, rule: Option<String>) -> Decision {
        Decision { code: code.to_string(), text: text.into(), rule, held: None }
    }
}

/// Explains a decision: exit 0 when allowed, 1 when refused.
pub fn run(args: &Args) -> Done {
    let policy = super::loaded(&args.config, args.json)?;
    let pem = std::fs::read(&args.cert).map_err(|error| error.to_string());
    let certificate = pem.and_then(|pem| CertificateDer::from_pem_slice(&pem).map_err(|error| error.to_string()));
    let certificate = certificate.map_err(|error| complain(format_args!("{}: {error}", args.cert.display())))?;
    let withdrawn = Kept::withdrawals(&policy.settings.state).load(Revocations::from_bytes);
    let withdrawn = withdrawn.unwrap_or_else(|error| {
        tell(format_args!("portcullis: what was revoked by command is left out: {error}\n"));
        None
    });
    let grounds = Grounds {
        policy: &policy,
        withdrawn: Arc::new(withdrawn.unwrap_or_default()),
        now: Clock::system().now().wall,
    };
    let decided = decide(args, &grounds, &certificate);
    let (allowed, Decision { code, text, rule, held }) = match decided {
        Ok(decision) => (true, decision),
        Err(decision) => (false, decision),
    };
    let place = rule.and_then(|rule| policy.locate(&rule));
    let said = if args.json {
        let limits: Option<Vec<Value>> = held.map(|(_, limits)| limits.iter().map(Binding::to_json).collect());
        say(json!({"allowed": allowed, "code": code, "text": text, "place": place, "limits": limits}))
    } else {
        let verdict = if allowed { "allowed" } else { "refused" };
        let place = place.map(|place| format!("\ndecided by {place}")).unwrap_or_default();
        let limits = held.map(|(org, limits)| format!("\nheld against:\n{}", Binding::render(&limits, &org)));
        say(format_args!("{verdict}: {text} ({code}){place}{}", limits.unwrap_or_default().trim_end()))
    };
    if allowed { said } else { Err(ExitCode::from(REFUSED)) }
}

/// Judges in the gateway's order: handshake, route, organization, purpose, case, model.
fn decide(args: &Args, grounds: &Grounds<'_>, certificate: &CertificateDer<'_>) -> Result<Decision, Decision> {
    let (peer, networks) = handshake(grounds, certificate)?;
    let route = Route::ALL.into_iter().find(|route| route.path() == args.path);
    let route = route.ok_or_else(|| Decision::new(Code::RouteNotFound, format!("{} is no route", args.path), None))?;
    let caller = caller(grounds, &peer)?;
    let org = caller.org();
    if !route.is_forwarded() {
        return Ok(Decision::new("ok", format!("{} may read {}{networks}", org.id, args.path), None));
    }
    let purpose = purpose(args, grounds, &caller)?;
    let rule = format!("org/{}/purposes/{purpose}", org.id);
    let Some(model) = &args.model else {
        let text = format!("{} may pursue this purpose{networks}; name a model to judge it too", org.id);
        return Ok(Decision::new("ok", text, Some(rule)));
    };
    let rule = granted(grounds, org, route, model)?;
    let text = format!("{} may use {model} for this purpose, within its limits{networks}", org.id);
    let group = grounds.policy.models.group_of(model).map(|group| &group.id);
    let held = Some((org.id.clone(), Binding::of(grounds.policy, org, &purpose, group)));
    Ok(Decision { held, ..Decision::new("ok", text, Some(rule)) })
}

/// What a handshake with this certificate proves, and from where alone, in words for the answer.
fn handshake(grounds: &Grounds<'_>, certificate: &CertificateDer<'_>) -> Result<(Peer, String), Decision> {
    let (policy, withdrawn) = (grounds.policy, grounds.withdrawn.clone());
    let acceptance = Acceptance::new(Terms {
        identity: policy.identity.clone(),
        authorities: policy.authorities.clone(),
        server_names: policy.server_names.clone(),
        explain: policy.explain_missing,
        longest: policy.longest_certificate,
        revoked: Arc::new(move |authority, leaf| withdrawn.certificate(authority.as_str(), leaf)),
    });
    let verdict = acceptance.judge(certificate, grounds.now).map_err(|turned| {
        let rule = match (turned.result, turned.authority) {
            (Handshake::UnknownIssuer, _) => Some("client_auth".to_owned()),
            (Handshake::Revoked | Handshake::Other, Some(authority)) => Some(format!("authority/{authority}/crl")),
            (_, authority) => authority.map(|authority| format!("authority/{authority}")),
        };
        Decision::new(turned.result, format!("the handshake is refused: {}", turned.detail), rule)
    })?;
    let networks = match policy.owner(&verdict.authority, &verdict.leaf) {
        Owner::One(_, identity) => identity.networks.as_slice(),
        Owner::Nobody | Owner::Many => &[],
    };
    let named: Vec<String> = networks.iter().map(ToString::to_string).collect();
    let said = if named.is_empty() { String::new() } else { format!(", from {} only", named.join(", ")) };
    // Where somebody connects from is not known offline: judged is who comes from where the identity may come from.
    let address = networks.first().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), IpNet::addr);
    Ok((Peer::proved(verdict.authority, verdict.authority_spki, verdict.leaf, (address, 0).into()), said))
}

fn caller(grounds: &Grounds<'_>, peer: &Peer) -> Result<Caller, Decision> {
    let Grounds { policy, ref withdrawn, now } = *grounds;
    identify::identify(policy, withdrawn, peer, now).map_err(|refusal| {
        let owner = match policy.owner(peer.authority(), peer.leaf()) {
            Owner::One(org, _) => Some(org),
            Owner::Nobody | Owner::Many => None,
        };
        // An ancestor's suspension or dates count as well: the line that decides may be in its file.
        let at = |word: &str, decides: &dyn Fn(&Org) -> bool| {
            Some(format!("org/{}/{word}", owner?.line().find(|org| decides(org))?.id))
        };
        let rule = match refusal.code {
            Code::OrganizationSuspended => at("status", &|org| org.status == Status::Suspended),
            Code::GrantExpired => at("valid", &|org| !org.is_granted(now)),
            _ => None,
        };
        let shown = match (&peer.leaf().uri, &peer.leaf().dns) {
            (Some(uri), _) => format!(", {uri}"),
            (None, Some(dns)) => format!(", {dns}"),
            (None, None) => String::new(),
        };
        let detail = refusal.operator.map(|detail| format!(" [{detail}: {}{shown}]", peer.authority()));
        Decision::new(refusal.code, refusal.message + &detail.unwrap_or_default(), rule)
    })
}

/// Reads the purpose and the case as the gateway would from a request, and judges them.
fn purpose(args: &Args, grounds: &Grounds<'_>, caller: &Caller) -> Result<PurposeId, Decision> {
    let policy = grounds.policy;
    let mut headers = HeaderMap::new();
    let case_header = HeaderName::from_static("portcullis-case");
    let given = [(policy.purpose_header.clone(), &args.purpose), (case_header, &args.case)];
    for (name, value) in given {
        let Some(value) = value else { continue };
        let odd = || Decision::new(Code::RequestInvalid, format!("{value:?} cannot stand in a header"), None);
        headers.insert(name, HeaderValue::from_str(value).map_err(|_| odd())?);
    }
    let refused = |refusal: Refusal, rule| Decision::new(refusal.code, refusal.message, rule);
    let declared = gate::declared(&headers, &policy.purpose_header).map_err(|refusal| refused(refusal, None))?;
    let purpose = declared.purpose.clone();
    admit::purpose(policy, &grounds.withdrawn, caller, declared).map_err(|refusal| {
        let rule = match refusal.code {
            Code::PurposeUnknown => "catalog".to_owned(),
            Code::PurposeNotPermitted => format!("org/{}/purposes", caller.org().id),
            _ => format!("catalog/{purpose}"),
        };
        refused(refusal, Some(rule))
    })?;
    Ok(purpose)
}

/// The rule that grants the model.
fn granted(grounds: &Grounds<'_>, org: &Org, route: Route, model: &str) -> Result<String, Decision> {
    let policy = grounds.policy;
    let group = policy.models.group_of(model).map(|group| &group.id);
    if let Some(holder) = org.line().find(|org| !org.models.covers(model, group)) {
        let text = format!("the model {model} is not granted to {}", holder.id);
        return Err(Decision::new(Code::ModelNotPermitted, text, Some(format!("org/{}/models", holder.id))));
    }
    if !admit::may_use(policy, org, &grounds.withdrawn, model) {
        let text = format!("the model {model} was revoked by command");
        return Err(Decision::new(Code::ModelNotPermitted, text, None));
    }
    let dialect = route.dialect();
    if policy.models.upstream_for(dialect, model).is_none() {
        let text = format!("no upstream that speaks {} serves {model}", dialect.as_str());
        return Err(Decision::new(Code::ModelNotPermitted, text, None));
    }
    Ok(format!("org/{}/models/{}", org.id, org.models.granting(model, group).unwrap_or(model)))
}
