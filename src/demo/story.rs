//! `demo --check`: the story that the demo invites people to try, played by the demo itself.
//!
//! Each chapter talks to the running gateway over its real listeners and says what it saw; nothing is assumed.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::RETRY_AFTER;

use super::client::{Answer, Partner};
use crate::keeper::audit::examine;
use crate::outcome::LONGEST_WAIT;
use crate::remote::Admin;

/// What one chapter showed.
pub struct Chapter {
    /// What was tried.
    pub title: &'static str,
    /// What was seen; `Err` when it was not what was promised.
    pub seen: Result<String, String>,
}

/// The people and places of the story.
pub struct Stage {
    /// A member organization with room.
    pub acme: Partner,
    /// A member organization with tight limits.
    pub globex: Partner,
    /// Somebody with a certificate from elsewhere.
    pub stranger: Partner,
    /// The admin side.
    pub admin: Admin,
    /// The directory of organization files.
    pub orgs: PathBuf,
    /// The audit directory.
    pub audit: PathBuf,
}

const RESEARCH: &str = "vulnerability-research";

/// Of so many requests the last would not fit the budgets of two days.
const MOST_ASKED: u32 = 60;

/// How long a budget stays used up. None where the wait is short: it is reserved by the answer before, of which nobody knows
/// yet what it used, or the next day is about to begin.
fn until_the_next_day(headers: &HeaderMap) -> Option<Duration> {
    let wait = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().map(Duration::from_secs).ok()?;
    (wait > Duration::from_secs(2)).then_some(wait)
}

fn chat(model: &str, stream: bool, max_tokens: u32) -> String {
    serde_json::json!({
        "model": model,
        "stream": stream,
        "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": "Say something useful."}],
    })
    .to_string()
}

impl Stage {
    /// Plays every chapter in order; a chapter that fails does not stop the rest.
    pub async fn play(&self, mut tell: impl FnMut(&Chapter)) -> bool {
        let mut fine = true;
        let mut chapter = |title, seen: Result<String, String>| {
            fine &= seen.is_ok();
            tell(&Chapter { title, seen });
        };
        chapter("allowed", self.allowed().await);
        chapter("streamed", self.streamed().await);
        chapter("purpose missing", self.refused(None, "purpose_missing", 400).await);
        chapter("purpose not permitted", self.refused(Some("malware-analysis"), "purpose_not_permitted", 403).await);
        chapter("stranger's certificate", self.stranger().await);
        chapter("over the request limit", self.over_the_request_limit().await);
        chapter("over the token budget", self.over_the_token_budget().await);
        chapter("quota edited while a stream is open", self.edited().await);
        chapter("partner suspended while a stream is open", self.suspended().await);
        chapter("audit verified", self.verified().await);
        chapter("a changed byte is found", self.changed_byte());
        fine
    }

    async fn allowed(&self) -> Result<String, String> {
        let answer = self.acme.ask(Some(RESEARCH), &chat("mock", false, 16)).await.map_err(text)?;
        let status = answer.status;
        let remaining = header(&answer, "x-ratelimit-remaining-requests");
        let (body, whole) = answer.rest().await;
        let held = status == 200 && whole && body.contains("\"usage\"") && !remaining.is_empty();
        expect(held, format!("200, {remaining} requests left this minute"), format!("{status}: {body}"))
    }

    async fn streamed(&self) -> Result<String, String> {
        let answer = self.acme.ask(Some(RESEARCH), &chat("mock", true, 12)).await.map_err(text)?;
        let status = answer.status;
        let (body, whole) = answer.rest().await;
        let events = body.matches("data: ").count();
        let held = status == 200 && whole && body.trim_end().ends_with("data: [DONE]");
        expect(held, format!("{events} events, [DONE]"), format!("{status}: {body}"))
    }

    async fn refused(&self, purpose: Option<&str>, reason: &str, status: u16) -> Result<String, String> {
        let answer = self.acme.ask(purpose, &chat("mock", false, 16)).await.map_err(text)?;
        let held = answer.status == status && answer.reason() == reason;
        expect(held, format!("{status} {reason}"), format!("{} {}", answer.status, answer.reason()))
    }

    async fn stranger(&self) -> Result<String, String> {
        match self.stranger.ask(Some(RESEARCH), &chat("mock", false, 16)).await {
            Ok(answer) => Err(format!("answered {}", answer.status)),
            Err(error) => Ok(format!("turned away in the handshake ({})", brief(&error))),
        }
    }

    /// `globex` may send five requests at once and then one every twelve seconds.
    async fn over_the_request_limit(&self) -> Result<String, String> {
        let (mut admitted, mut refusal) = (0, None);
        for _ in 0..8 {
            let answer = self.globex.ask(Some(RESEARCH), &chat("mock", false, 1)).await.map_err(text)?;
            match answer.status.as_u16() {
                200 => admitted += 1,
                _ => refusal = Some((answer.status, answer.reason().to_owned(), header(&answer, "retry-after"))),
            }
        }
        let held = admitted == 5
            && refusal.as_ref().is_some_and(|(status, reason, wait)| {
                *status == 429 && reason == "rate_limit_exceeded" && !wait.is_empty()
            });
        let wait = refusal.as_ref().map(|(_, _, wait)| wait.clone()).unwrap_or_default();
        expect(held, format!("5 of 8 admitted, then 429, retry after {wait} s"), format!("{admitted}, {refusal:?}"))
    }

    /// The budget of `triage` is small: a few answers fill it, and a few more where a new day begins meanwhile.
    async fn over_the_token_budget(&self) -> Result<String, String> {
        for asked in 1..=MOST_ASKED {
            let answer = self.acme.ask(Some("triage"), &chat("mock", false, 64)).await.map_err(text)?;
            match (answer.status.as_u16(), until_the_next_day(&answer.headers)) {
                (200, _) => {}
                (429, Some(wait)) => {
                    let (reason, pointless) = (answer.reason(), header(&answer, "x-should-retry") == "false");
                    let held = reason == "insufficient_quota" && asked > 1 && pointless == (wait > LONGEST_WAIT);
                    let seen = format!("429 {reason} at request {asked}, retry after {} s", wait.as_secs());
                    return expect(held, seen.clone(), seen);
                }
                (429, None) => tokio::time::sleep(Duration::from_millis(250)).await,
                (status, _) => return Err(format!("{status} {}", answer.reason())),
            }
        }
        Err(format!("{MOST_ASKED} requests met no end of a budget of 300 tokens"))
    }

    async fn edited(&self) -> Result<String, String> {
        let mut stream = self.acme.ask(Some(RESEARCH), &chat("mock-tps-50", true, 60)).await.map_err(text)?;
        let before = first(&mut stream).await?;
        let used_before = self.used("globex", "requests_per_minute").await?;
        let diff = self.edit("globex.toml", "burst = 5", "burst = 6").await?;
        let used_after = self.used("globex", "requests_per_minute").await?;
        let answer = self.globex.ask(Some(RESEARCH), &chat("mock", false, 1)).await.map_err(text)?;
        let next = self.globex.ask(Some(RESEARCH), &chat("mock", false, 1)).await.map_err(text)?;
        let (rest, whole) = stream.rest().await;
        let survived = whole && rest.trim_end().ends_with("[DONE]") && !before.is_empty();
        let held = survived && used_before >= 4 && used_after + 1 >= used_before && next.status == 429;
        let seen = format!("stream survived, use kept ({used_after}), one more admitted: {diff}");
        let status = (answer.status, next.status);
        expect(held, seen, format!("whole {survived}, used {used_before} then {used_after}, {status:?}"))
    }

    async fn suspended(&self) -> Result<String, String> {
        let mut stream = self.acme.ask(Some(RESEARCH), &chat("mock-tps-50", true, 4000)).await.map_err(text)?;
        first(&mut stream).await?;
        self.edit("acme.toml", "status   = \"active\"", "status   = \"suspended\"").await?;
        let (rest, whole) = stream.rest().await;
        let told = rest.contains("organization_suspended");
        let later = self.acme.ask(Some(RESEARCH), &chat("mock", false, 1)).await.map_err(text)?;
        let refused = later.reason() == "organization_suspended";
        self.edit("acme.toml", "status   = \"suspended\"", "status   = \"active\"").await?;
        let held = !whole && told && refused;
        expect(held, "cut with its error event, then 403".into(), format!("whole {whole}, told {told}: {rest}"))
    }

    async fn verified(&self) -> Result<String, String> {
        // A checkpoint covers what was written a moment ago.
        tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
        let summary = examine::verify(&self.audit).map_err(doubt)?;
        Ok(format!("{} records, chain and checkpoints hold", summary.size))
    }

    /// Flips one byte in a copy of the log.
    fn changed_byte(&self) -> Result<String, String> {
        let copy = self.audit.with_extension("tampered");
        let _ = std::fs::remove_dir_all(&copy);
        std::fs::create_dir_all(&copy).map_err(text)?;
        for entry in std::fs::read_dir(&self.audit).map_err(text)? {
            let path = entry.map_err(text)?.path();
            if let (Some(name), true) = (path.file_name(), path.is_file()) {
                std::fs::copy(&path, copy.join(name)).map_err(text)?;
            }
        }
        let segment = first_segment(&copy)?;
        let mut bytes = std::fs::read(&segment).map_err(text)?;
        let middle = bytes.len() / 2;
        bytes.get_mut(middle).map(|byte| *byte ^= 1).ok_or("the log is empty")?;
        std::fs::write(&segment, bytes).map_err(text)?;
        let found = examine::verify(&copy).err().map(doubt);
        let _ = std::fs::remove_dir_all(&copy);
        found.ok_or_else(|| "the changed byte was not noticed".into())
    }

    async fn edit(&self, file: &str, from: &str, to: &str) -> Result<String, String> {
        let path = self.orgs.join(file);
        let old = std::fs::read_to_string(&path).map_err(text)?;
        let new = old.replace(from, to);
        if new == old {
            return Err(format!("{file} does not hold {from}"));
        }
        let fresh = path.with_extension("toml.new");
        std::fs::write(&fresh, new).map_err(text)?;
        std::fs::rename(&fresh, &path).map_err(text)?;
        let body = self.post("/-/reload").await?;
        let value: serde_json::Value = serde_json::from_slice(&body).map_err(text)?;
        Ok(value.get("text").and_then(|text| text.as_str()).unwrap_or_default().trim().replace('\n', "; "))
    }

    async fn post(&self, path: &str) -> Result<Bytes, String> {
        let (status, body) = self.admin.ask(hyper::Method::POST, path, Some("{}".into())).await.map_err(text)?;
        if status.is_success() { Ok(body) } else { Err(String::from_utf8_lossy(&body).into_owned()) }
    }

    /// What `/status.json` says an organization has used of a limit.
    async fn used(&self, org: &str, limit: &str) -> Result<u64, String> {
        let (_, body) = self.admin.ask(hyper::Method::GET, "/status.json", None).await.map_err(text)?;
        let status: serde_json::Value = serde_json::from_slice(&body).map_err(text)?;
        let of = |list: &serde_json::Value, key: &str, id: &str| {
            list.as_array()?.iter().find(|entry| entry.get(key).is_some_and(|value| value == id)).cloned()
        };
        let org = status.get("organizations").and_then(|list| of(list, "id", org)).ok_or("no such organization")?;
        let limit = org.get("limits").and_then(|list| of(list, "id", limit)).ok_or("no such limit")?;
        limit.get("used").and_then(serde_json::Value::as_u64).ok_or_else(|| "no number".into())
    }
}

async fn first(stream: &mut Answer) -> Result<Bytes, String> {
    if stream.status != 200 {
        return Err(format!("{} {}", stream.status, stream.reason()));
    }
    stream.next().await.map_err(text)?.ok_or_else(|| "the stream ended before it began".into())
}

fn first_segment(directory: &std::path::Path) -> Result<PathBuf, String> {
    let paths = std::fs::read_dir(directory).map_err(text)?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut segments: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl")).collect();
    segments.sort();
    segments.pop().ok_or_else(|| "no segment".into())
}

fn header(answer: &Answer, name: &str) -> String {
    answer.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

fn expect(held: bool, seen: String, instead: String) -> Result<String, String> {
    if held { Ok(seen) } else { Err(instead) }
}

fn brief(error: &io::Error) -> String {
    error.to_string().rsplit(": ").next().unwrap_or_default().to_owned()
}

#[expect(clippy::needless_pass_by_value, reason = "shaped for map_err")]
fn text(error: impl ToString) -> String {
    error.to_string()
}

fn doubt(failure: examine::Failure) -> String {
    match failure {
        examine::Failure::Unreadable(error) => error.to_string(),
        examine::Failure::Found(finding) => finding.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::Dialect;
    use crate::dialect::{Form, envelope};
    use crate::outcome::{Code, Refusal, Retry};

    #[test]
    fn a_budget_that_is_used_up_is_told_from_one_that_is_reserved_at_every_time_of_day() {
        for (millis, used_up) in [(250, false), (1_000, false), (2_001, true), (50_000, true), (60_001, true)] {
            let refusal = Refusal::new(Code::InsufficientQuota, "").retry(Retry::After(Duration::from_millis(millis)));
            let form = Form {
                dialect: Dialect::OpenAi,
                request_id: "",
                problem_json: false,
                route: None,
                violated: &[],
                jitter: 100,
            };
            assert_eq!(until_the_next_day(&envelope(&refusal, &form).headers).is_some(), used_up, "{millis}");
        }
    }
}
