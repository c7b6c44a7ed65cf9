//! `portcullis explain`: offline, what would become of a request, and which line decides.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args as ClapArgs;
use http::header::{CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use ipnet::IpNet;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use super::{Done, REFUSED, say, tell};
use crate::ask::{Ask, Route};
use crate::clock::{Clock, Now};
use crate::identify::{self, Caller};
use crate::keeper::kept::Kept;
use crate::ledger::{Demand, Ledger, Verdict};
use crate::names::{OrgId, PurposeId};
use crate::outcome::{Code, Handshake, Refusal};
use crate::peer::Peer;
use crate::policy::{Binding, Group, Org, Owner, Policy, RevocationKind, Revocations, Status};
use crate::reserve::reserve;
use crate::tls::{Acceptance, Terms};
use crate::usage::Calibration;
use crate::{admit, answer, dialect, gate};

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
    /// The path, and its query
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
    now: Now,
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

    fn refused(refusal: Refusal) -> Decision {
        Decision::new(refusal.code, refusal.message, None)
    }

    /// Decided by no line of the files: no place is told.
    fn withdrawn(code: Code, kind: RevocationKind, target: &str) -> Decision {
        Decision::new(code, kind.told(target), None)
    }
}

/// Explains a decision: exit 0 when allowed, 1 when refused.
pub fn run(args: &Args) -> Done {
    let policy = super::loaded(&args.config, args.json)?;
    let certificate = super::certs::first(&args.cert)?;
    let withdrawn = Kept::withdrawals(&policy.settings.state).load(Revocations::from_bytes);
    let withdrawn = withdrawn.unwrap_or_else(|error| {
        tell(format_args!("portcullis: what was revoked by command is left out: {error}\n"));
        None
    });
    let grounds =
        Grounds { policy: &policy, withdrawn: Arc::new(withdrawn.unwrap_or_default()), now: Clock::system().now() };
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

/// Judges in the gateway's order, by the gateway's own rules: handshake, head, organization, purpose, case, model.
fn decide(args: &Args, grounds: &Grounds<'_>, certificate: &CertificateDer<'_>) -> Result<Decision, Decision> {
    let (peer, networks) = handshake(grounds, certificate)?;
    let head = head(args, grounds.policy)?;
    let Policy { server_names, purpose_header, .. } = grounds.policy;
    let gated = gate::judge(&head, gate::Doors { server_names, purpose_header }).map_err(Decision::refused)?;
    let route = gated.route();
    let caller = caller(grounds, &peer)?;
    let org = caller.org();
    connected(org)?;
    if !route.is_forwarded() {
        return Ok(Decision::new("ok", format!("{} may read {}{networks}", org.id, route.path()), None));
    }
    let purpose = purpose(&head.headers, grounds, &caller)?;
    let rule = format!("org/{}/purposes/{purpose}", org.id);
    let Some(model) = &args.model else {
        let text = format!("{} may pursue this purpose{networks}; name a model to judge it too", org.id);
        return Ok(Decision::new("ok", text, Some(rule)));
    };
    let ask = asked(route, model)?;
    let rule = granted(grounds, org, route, model)?;
    let text = format!("{} may use {model} for this purpose, within its limits{networks}", org.id);
    let group = grounds.policy.models.group_of(model);
    let held = Some((org.id.clone(), Binding::of(grounds.policy, org, &purpose, group.map(|group| &group.id))));
    match fits(grounds, org, &purpose, &ask, group) {
        Ok(()) => Ok(Decision { held, ..Decision::new("ok", text, Some(rule)) }),
        Err(refused) => Err(Decision { held, ..refused }),
    }
}

/// The head of the request that is asked about, with all that a client of good will adds.
fn head(args: &Args, policy: &Policy) -> Result<Parts, Decision> {
    let odd =
        |text: &str| Decision::new(Code::RequestInvalid, format!("{text:?} cannot stand in a request's head"), None);
    let mut head = Request::new(()).into_parts().0;
    // A URI is read without its fragment, which the gateway refuses.
    let target = args.path.parse().ok().filter(|_| !args.path.contains('#'));
    head.uri = target.ok_or_else(|| odd(&args.path))?;
    let route = gate::route(&head);
    head.method = route.and_then(|route| Method::from_bytes(route.method().as_bytes()).ok()).unwrap_or_default();
    if route.is_some_and(Route::is_forwarded) {
        head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    let case = HeaderName::from_static("portcullis-case");
    let lines = [
        (HOST, policy.server_names.first()),
        (policy.purpose_header.clone(), args.purpose.as_ref()),
        (case, args.case.as_ref()),
    ];
    for (name, value) in lines {
        // White space around a value is no part of it.
        let Some(value) = value.map(|value| value.trim_matches([' ', '\t'])) else { continue };
        head.headers.insert(name, HeaderValue::from_str(value).map_err(|_| odd(value))?);
    }
    Ok(head)
}

/// The least that can be asked of a model: what is read from a body that holds nothing else.
fn asked(route: Route, model: &str) -> Result<Ask, Decision> {
    let body = json!({"model": model}).to_string();
    dialect::read(route, body.as_bytes()).map_err(Decision::refused)
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
    let verdict = acceptance.judge(certificate, grounds.now.wall).map_err(|turned| {
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
    let Grounds { policy, ref withdrawn, now: Now { wall: now, .. } } = *grounds;
    identify::identify(policy, withdrawn, peer, now).map_err(|barred| {
        // An ancestor's suspension or dates count as well: the line that decides may be in its file.
        let at = |word: &str, decides: &dyn Fn(&Org) -> bool| {
            Some(format!("org/{}/{word}", barred.org()?.line().find(|org| decides(org))?.id))
        };
        let code = barred.refusal().code;
        let revoked = |org: &&Org| withdrawn.holds(RevocationKind::Organization, org.id.as_str());
        if let Some(org) = barred.org().filter(|_| code == Code::OrganizationSuspended)
            && let Some(holder) = org.line().find(revoked)
        {
            return Decision::withdrawn(code, RevocationKind::Organization, holder.id.as_str());
        }
        let rule = match code {
            Code::OrganizationSuspended => at("status", &|org| org.status == Status::Suspended),
            Code::GrantExpired => at("valid", &|org| !org.is_granted(now)),
            _ => None,
        };
        let refusal = Refusal::from(barred);
        let shown = match (&peer.leaf().uri, &peer.leaf().dns) {
            (Some(uri), _) => format!(", {uri}"),
            (None, Some(dns)) => format!(", {dns}"),
            (None, None) => String::new(),
        };
        let detail = refusal.operator.map(|detail| format!(" [{detail}: {}{shown}]", peer.authority()));
        Decision::new(refusal.code, refusal.message + &detail.unwrap_or_default(), rule)
    })
}

/// Reads the purpose and the case as the gateway does, and judges them.
fn purpose(headers: &HeaderMap, grounds: &Grounds<'_>, caller: &Caller) -> Result<PurposeId, Decision> {
    let policy = grounds.policy;
    let declared = admit::declared(headers, policy, &grounds.withdrawn, caller).map_err(Decision::refused)?;
    let purpose = declared.purpose.clone();
    admit::purpose(policy, &grounds.withdrawn, caller, declared).map_err(|refusal| {
        let granted = caller.org().purposes.contains(&purpose);
        let rule = match refusal.code {
            Code::PurposeUnknown => "catalog".to_owned(),
            code @ Code::PurposeNotPermitted if granted => {
                return Decision::withdrawn(code, RevocationKind::Purpose, purpose.as_str());
            }
            Code::PurposeNotPermitted => format!("org/{}/purposes", caller.org().id),
            _ => format!("catalog/{purpose}"),
        };
        Decision { rule: Some(rule), ..Decision::refused(refusal) }
    })?;
    Ok(purpose)
}

/// Whether it may hold a connection at all. How many it holds is not known offline.
fn connected(org: &Org) -> Result<(), Decision> {
    let Some(holder) = org.line().find(|org| org.connections == Some(0)) else { return Ok(()) };
    let text = format!("{} may hold no connection, so no request of {} is served", holder.id, org.id);
    Err(Decision::new(Code::ConcurrencyLimitExceeded, text, Some(format!("org/{}/connections", holder.id))))
}

/// Whether the least that can be asked fits all limits while nothing else stands against them: what does not then never
/// does. How much is used is not known offline.
fn fits(
    grounds: &Grounds<'_>,
    org: &Org,
    purpose: &PurposeId,
    ask: &Ask,
    group: Option<&Arc<Group>>,
) -> Result<(), Decision> {
    let (policy, now) = (grounds.policy, grounds.now);
    let Some(plan) = org.plan(purpose, group.map(|group| &group.id)) else { return Ok(()) };
    let (unused, quota) = (Ledger::new(), &policy.quota);
    let stand = || unused.standings(plan, &quota.timezone, now);
    let reserved = reserve(ask, group.map(AsRef::as_ref), quota, &Calibration::new(), plan, stand);
    let charge = reserved.map_err(Decision::refused)?.charge;
    match unused.admit(&Demand { plan, charge, timezone: &quota.timezone }, now) {
        Verdict::Refused(short) => {
            let rule = format!("org/{}/limits/{}", short.org, policy.named(&short.id));
            Err(Decision { rule: Some(rule), ..Decision::refused(answer::short(&short, &org.id, policy)) })
        }
        Verdict::Admitted(_) | Verdict::NeedsStore(_) => Ok(()),
    }
}

/// The rule that grants the model.
fn granted(grounds: &Grounds<'_>, org: &Org, route: Route, model: &str) -> Result<String, Decision> {
    let policy = grounds.policy;
    let of = policy.models.group_of(model);
    let group = of.map(|group| &group.id);
    if let Some(holder) = org.line().find(|org| !org.models.covers(model, group)) {
        let text = format!("the model {model} is not granted to {}", holder.id);
        return Err(Decision::new(Code::ModelNotPermitted, text, Some(format!("org/{}/models", holder.id))));
    }
    if let Some(name) = admit::withdrawn(of, &grounds.withdrawn, model) {
        return Err(Decision::withdrawn(Code::ModelNotPermitted, RevocationKind::Model, name));
    }
    let dialect = route.dialect();
    if policy.models.upstream_for(dialect, model).is_none() {
        let text = format!("no upstream that speaks {} serves {model}", dialect.as_str());
        return Err(Decision::new(Code::ModelNotPermitted, text, None));
    }
    Ok(format!("org/{}/models/{}", org.id, org.models.granting(model, group).unwrap_or(model)))
}
